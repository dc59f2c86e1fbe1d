//! One read for all who want the same at the same time.
//!
//! Nobody leads: every waiter drives the read whenever it is woken, so one that is dropped leaves the others where they
//! were, and the read ends with its last waiter. What was read is not kept: that is a cache's business.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared};

type Flight<T> = Shared<BoxFuture<'static, T>>;

/// Reads under way, by what they read. Bounded by the reads that requests wait for.
pub(crate) struct Flights<K: Ord, T: Clone> {
    under_way: Mutex<UnderWay<K, T>>,
}

struct UnderWay<K: Ord, T: Clone> {
    flights: BTreeMap<K, (u64, WeakShared<BoxFuture<'static, T>>)>,
    next: u64,
}

/// Takes a read off the list when it is done or dropped.
struct Landing<K: Ord, T: Clone> {
    flights: Arc<Flights<K, T>>,
    key: K,
    number: u64,
}

impl<K: Ord, T: Clone> Drop for Landing<K, T> {
    fn drop(&mut self) {
        let mut under_way = self.flights.lock();
        // Another one of the same may have begun after the last waiter of this one had left.
        if under_way.flights.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            under_way.flights.remove(&self.key);
        }
    }
}

impl<K, T> Flights<K, T>
where
    K: Ord + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { under_way: Mutex::new(UnderWay { flights: BTreeMap::new(), next: 0 }) })
    }

    /// The read of `key`: the one under way, or else `begin`'s; and whether it was under way already.
    pub(crate) fn join(
        self: &Arc<Self>,
        key: K,
        begin: impl FnOnce() -> BoxFuture<'static, T>,
    ) -> (Flight<T>, bool) {
        let mut under_way = self.lock();
        let known = under_way.flights.get(&key).and_then(|(_, flight)| flight.upgrade());
        // One that is done but still held by a waiter is not under way: what it read may have changed since.
        if let Some(flight) = known.filter(|flight| flight.peek().is_none()) {
            return (flight, true);
        }
        let number = under_way.next;
        under_way.next += 1;
        let landing = Landing { flights: Arc::clone(self), key: key.clone(), number };
        let read = begin();
        let flight = async move {
            let _landing = landing;
            read.await
        }
        .boxed()
        .shared();
        // A flight that was not polled to its end can be pointed at.
        if let Some(weak) = flight.downgrade() {
            under_way.flights.insert(key, (number, weak));
        }
        (flight, false)
    }
}

impl<K: Ord, T: Clone> Flights<K, T> {
    fn lock(&self) -> MutexGuard<'_, UnderWay<K, T>> {
        // Nothing that can panic runs while it is half changed.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().flights.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use alba_core::env::Env;
    use alba_core::env::sim::Simulation;

    use super::*;

    /// A read that takes ten milliseconds and is counted when it begins and when it ends.
    struct Reads {
        env: Env,
        flights: Arc<Flights<u32, u32>>,
        begun: Arc<AtomicUsize>,
        ended: Arc<AtomicUsize>,
    }

    impl Reads {
        fn new(simulation: &Simulation) -> Self {
            Self {
                env: simulation.node(1).env(),
                flights: Flights::new(),
                begun: Arc::default(),
                ended: Arc::default(),
            }
        }

        fn join(&self, key: u32) -> Flight<u32> {
            let (clock, begun, ended) = (self.env.clock.clone(), self.begun.clone(), self.ended.clone());
            let read = async move {
                begun.fetch_add(1, Ordering::Relaxed);
                clock.sleep_until(clock.now().plus(Duration::from_millis(10))).await;
                ended.fetch_add(1, Ordering::Relaxed);
                key * 10
            };
            self.flights.join(key, || read.boxed()).0
        }

        fn counts(&self) -> (usize, usize) {
            (self.begun.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed))
        }

        async fn pause(&self, millis: u64) {
            self.env.clock.sleep_until(self.env.clock.now().plus(Duration::from_millis(millis))).await;
        }
    }

    #[test]
    fn the_same_is_read_once_and_again_later() {
        let simulation = Simulation::new(1);
        let reads = Reads::new(&simulation);
        let work = async {
            let all = (0..20).map(|i| reads.join(i % 2));
            let read = futures_util::future::join_all(all).await;
            assert_eq!(read.iter().sum::<u32>(), 100);
            assert_eq!(reads.counts(), (2, 2));
            assert_eq!(reads.join(1).await, 10);
            assert_eq!(reads.counts(), (3, 3));
            assert_eq!(reads.flights.len(), 0);
        };
        simulation.run(Duration::from_secs(1), work).unwrap();
    }

    #[test]
    fn who_began_it_may_leave() {
        let simulation = Simulation::new(1);
        let reads = Reads::new(&simulation);
        let work = async {
            let mut first = reads.join(7);
            assert_eq!((&mut first).now_or_never(), None);
            let others = (reads.join(7), reads.join(7));
            reads.pause(5).await;
            drop(first);
            let started = simulation.now();
            assert_eq!(tokio::join!(others.0, others.1), (70, 70));
            assert_eq!(simulation.now().since(started), Duration::from_millis(5), "not begun anew");
            assert_eq!(reads.counts(), (1, 1));
        };
        simulation.run(Duration::from_secs(1), work).unwrap();
    }

    #[test]
    fn it_ends_with_its_last_waiter() {
        let simulation = Simulation::new(1);
        let reads = Reads::new(&simulation);
        let work = async {
            let (mut first, second) = (reads.join(7), reads.join(7));
            assert_eq!((&mut first).now_or_never(), None);
            drop(first);
            assert_eq!(reads.flights.len(), 1);
            drop(second);
            assert_eq!(reads.flights.len(), 0);
            reads.pause(50).await;
            assert_eq!(reads.counts(), (1, 0));
            // One that nobody ever looked at leaves nothing either.
            drop(reads.join(8));
            assert_eq!((reads.flights.len(), reads.counts()), (0, (1, 0)));
        };
        simulation.run(Duration::from_secs(1), work).unwrap();
    }

    #[test]
    fn a_finished_one_that_is_held_is_not_joined() {
        let simulation = Simulation::new(1);
        let reads = Reads::new(&simulation);
        let work = async {
            let held = reads.join(7);
            assert_eq!(held.clone().await, 70);
            assert_eq!(reads.join(7).await, 70);
            assert_eq!(reads.counts(), (2, 2));
            drop(held);
        };
        simulation.run(Duration::from_secs(1), work).unwrap();
    }
}
