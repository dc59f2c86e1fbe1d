//! Many want the same: one goes for it, the others wait for what it brings.
//!
//! Nothing is left behind by one that fails, is cancelled or panics: what is under way is marked by a guard, and waiters learn
//! of its end by the end of its channel. (The cache of the original left marks behind: a key that missed once, or could
//! not be added once, missed until the restart, and waiters waited for ever.)

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

type Landed<T> = watch::Receiver<Option<T>>;

/// What is under way, by key.
pub(crate) struct Flights<K: Ord, T>(Arc<Mutex<BTreeMap<K, Landed<T>>>>);

/// Removes the mark, however it ends.
struct Mark<K: Ord, T> {
    flights: Arc<Mutex<BTreeMap<K, Landed<T>>>>,
    key: K,
}

impl<K: Ord, T> Drop for Mark<K, T> {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// The right, and the duty, to go.
pub(crate) struct Lead<K: Ord, T> {
    // Dropped first: who comes after the end must not find the mark.
    _mark: Mark<K, T>,
    landed: watch::Sender<Option<T>>,
}

impl<K: Ord, T> Lead<K, T> {
    /// Hands it to all who wait. Dropping without it makes one of them go.
    pub(crate) fn land(self, value: T) {
        let Self { _mark, landed } = self;
        drop(_mark);
        // Nobody may be waiting.
        drop(landed.send(Some(value)));
    }
}

enum Place<K: Ord, T> {
    Lead(Lead<K, T>),
    Follow(Landed<T>),
}

impl<K: Ord + Clone, T: Clone> Flights<K, T> {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    fn join(&self, key: &K) -> Place<K, T> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(landed) = flights.get(key) {
            return Place::Follow(landed.clone());
        }
        let (sender, landed) = watch::channel(None);
        flights.insert(key.clone(), landed);
        let mark = Mark { flights: Arc::clone(&self.0), key: key.clone() };
        Place::Lead(Lead { _mark: mark, landed: sender })
    }

    /// The lead, unless somebody has it.
    pub(crate) fn lead(&self, key: &K) -> Option<Lead<K, T>> {
        match self.join(key) {
            Place::Lead(lead) => Some(lead),
            Place::Follow(_) => None,
        }
    }

    /// What somebody else's flight brings, or the lead. The caller limits the time.
    pub(crate) async fn follow_or_lead(&self, key: &K) -> Result<T, Lead<K, T>> {
        loop {
            match self.join(key) {
                Place::Lead(lead) => return Err(lead),
                Place::Follow(mut landed) => {
                    if let Ok(value) = landed.wait_for(Option::is_some).await
                        && let Some(value) = value.clone()
                    {
                        return Ok(value);
                    }
                }
            }
        }
    }

    /// How many are under way.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use alba_core::env::sim::Simulation;
    use futures_util::future::{join_all, select};

    use super::*;

    #[test]
    fn one_goes_and_all_get_it_and_nothing_is_left_by_those_who_give_up() {
        let simulation = Simulation::new(3);
        let clock = simulation.node(1).env().clock;
        let flights: Flights<u8, u32> = Flights::new();
        let gone = AtomicUsize::new(0);
        let sleep = |ms| clock.sleep_until(clock.now().plus(Duration::from_millis(ms)));
        let get = async || match flights.follow_or_lead(&7).await {
            Ok(value) => value,
            Err(lead) => {
                gone.fetch_add(1, Ordering::Relaxed);
                sleep(10).await;
                lead.land(5);
                5
            }
        };
        let work = async {
            assert_eq!(join_all((0..20).map(|_| get())).await, vec![5; 20]);
            assert_eq!((gone.swap(0, Ordering::Relaxed), flights.len()), (1, 0));
            // The first is cancelled half way: the others are not stuck, one of them goes.
            let first = Box::pin(get());
            let cancelled = async {
                drop(select(first, sleep(5)).await);
            };
            let (others, ()) = futures_util::future::join(join_all((0..5).map(|_| get())), cancelled).await;
            assert_eq!(others, vec![5; 5]);
            assert_eq!(flights.len(), 0);
            // One that fails leaves no mark either: the next one goes again.
            drop(flights.lead(&7).unwrap());
            assert!(flights.lead(&7).is_some());
        };
        simulation.run(Duration::from_secs(5), work).unwrap();
    }
}
