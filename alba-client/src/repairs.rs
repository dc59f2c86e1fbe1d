//! Fragments that somebody has to repair, told to the backend manager: a durable item of its work queue each.
//!
//! While the backend manager cannot be reached they wait here, up to a bound in bytes; what does not fit is dropped and
//! counted, and found by maintenance itself later. Whoever tells of a fragment waits for one attempt at most.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use alba_core::env::Clock;
use alba_core::wire::rpc::abm::{AbmCommand, AbmOutcome, WORK_PAGE, WorkItem};
use tokio::sync::oneshot;

use crate::ClientError;
use crate::engine::Engine;
use crate::namespaces::unexpected;

/// All items that wait: some ten thousand.
const MOST_BYTES: usize = 4 << 20;

/// First and longest pause between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// See the module.
#[derive(Default)]
pub(crate) struct Repairs(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    items: VecDeque<WorkItem>,
    bytes: usize,
    /// Somebody tells the backend manager again and again.
    in_hand: bool,
}

/// About what an item takes in memory.
fn size(item: &WorkItem) -> usize {
    let name = match item {
        WorkItem::RepairBadFragment { name, .. } => name.as_bytes().len(),
        _ => 0,
    };
    size_of::<WorkItem>() + name
}

impl Waiting {
    /// Returns how many did not fit.
    fn add(&mut self, items: Vec<WorkItem>) -> u64 {
        let mut dropped = 0;
        for item in items {
            if self.items.contains(&item) {
                continue;
            }
            let size = size(&item);
            if self.bytes + size > MOST_BYTES {
                dropped += 1;
            } else {
                self.bytes += size;
                self.items.push_back(item);
            }
        }
        dropped
    }

    fn page(&self) -> Vec<WorkItem> {
        self.items.iter().take(WORK_PAGE).cloned().collect()
    }

    /// These first ones are told.
    fn told(&mut self, count: usize) {
        for item in self.items.drain(..count.min(self.items.len())) {
            self.bytes = self.bytes.saturating_sub(size(&item));
        }
    }
}

impl Repairs {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Its methods don't panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells of fragments to be repaired. Waits until the first page of all that wait is told, or was tried to be told once, so that it is
/// one call at most that somebody waits for who has better things to do; the others are told by a background task that ends
/// with the engine.
pub(crate) async fn hand_over(engine: &Arc<Engine>, items: Vec<WorkItem>) {
    {
        let mut waiting = engine.repairs.lock();
        let dropped = waiting.add(items);
        if dropped > 0 {
            engine.counters.repairs_dropped.add(dropped);
            tracing::warn!(dropped, "too many fragments wait to be handed to repair");
        }
        if waiting.items.is_empty() || std::mem::replace(&mut waiting.in_hand, true) {
            return;
        }
    }
    let (tried, first) = oneshot::channel();
    let clock = Arc::clone(&engine.env.clock);
    // A task of its own from the beginning: whoever is cancelled while it waits must not take the right to tell along.
    engine.env.spawn.spawn("repairs", Box::pin(tell(Arc::downgrade(engine), clock, tried)));
    // An error says that the task is gone: the process ends.
    drop(first.await);
}

/// Tells until nothing waits. `tried` hears of the first attempt.
async fn tell(engine: Weak<Engine>, clock: Arc<dyn Clock>, tried: oneshot::Sender<()>) {
    let (mut tried, mut pause) = (Some(tried), PAUSE.0);
    loop {
        let Some(strong) = engine.upgrade() else { return };
        match tell_all(&strong, &mut tried).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(%error, "fragments to be repaired cannot be handed over; trying again")
            }
        }
        drop(strong);
        say(&mut tried);
        clock.sleep_until(clock.now().plus(pause)).await;
        pause = (pause * 3 / 2).min(PAUSE.1);
    }
}

/// Lets go who waits for the first attempt.
fn say(tried: &mut Option<oneshot::Sender<()>>) {
    // Nobody may wait for it any more.
    tried.take().map(|tried| tried.send(()));
}

/// Tells of all that wait, and gives back the right to.
async fn tell_all(engine: &Arc<Engine>, tried: &mut Option<oneshot::Sender<()>>) -> Result<(), ClientError> {
    loop {
        let page = {
            let mut waiting = engine.repairs.lock();
            let page = waiting.page();
            // Under the same lock: what is added from here on finds nobody telling.
            waiting.in_hand = !page.is_empty();
            page
        };
        if page.is_empty() {
            return Ok(());
        }
        let count = page.len();
        let deadline = engine.deadline_in(engine.config.request_timeout());
        match engine.tell_directory(AbmCommand::AddWork(page), deadline).await? {
            AbmOutcome::Done => {}
            _ => return Err(unexpected("Done")),
        }
        engine.repairs.lock().told(count);
        engine.counters.repairs_handed_over.add(u64::try_from(count).unwrap_or(u64::MAX));
        say(tried);
    }
}

#[cfg(test)]
mod tests {
    use alba_core::ids::{NamespaceId, ObjectId};

    use super::*;

    fn item(number: u16) -> WorkItem {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&number.to_le_bytes());
        WorkItem::RewriteObject { namespace: NamespaceId::from_u32(1), object: ObjectId::new(id) }
    }

    #[test]
    fn items_wait_once_in_order_and_up_to_a_bound() {
        let mut waiting = Waiting::default();
        assert_eq!(waiting.add(vec![item(1), item(2), item(1)]), 0);
        assert_eq!(waiting.page(), [item(1), item(2)]);
        let fit = MOST_BYTES / size(&item(0));
        let dropped = waiting.add((3..=u16::MAX).map(item).collect());
        assert_eq!((waiting.items.len(), dropped), (fit, u64::from(u16::MAX) - u64::try_from(fit).unwrap()));
        waiting.told(WORK_PAGE);
        assert_eq!(waiting.page()[0], item(101));
        waiting.told(usize::MAX);
        assert_eq!((waiting.bytes, waiting.page()), (0, vec![]));
    }
}
