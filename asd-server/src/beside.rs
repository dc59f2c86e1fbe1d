//! What is done beside clients, for maintenance and by the engine itself: it takes turns with the other ASDs whose data is on the same device.
//!
//! Each ASD lets little of it run at once while clients are there ([`crate::schedule`]), but several on one disk are as much as they are
//! many. A client's write is felt most: it waits for the flushes of all.
//!
//! It must never keep anything from being done: a turn is waited for only so long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alba_core::env::{Clock, DeviceTurn, DeviceTurns, Direction, Moment};

/// So long after the last request of a client others are to be expected; agents wait as long before they let all go on at once.
const CLIENTS: Duration = Duration::from_secs(2);

/// What moves more than this many bytes takes turns. Less is read sooner than waited for, and what an ASD writes of it at once (tags,
/// deletions) shares one flush, which it would not one after the other.
const LARGE: u64 = 64 << 10;

/// Where a turn was waited for, others have their data on the device, too; for so long as far as is known.
const OTHERS: Duration = Duration::from_secs(10);

/// To be told a turn that is free takes less.
const WAITED: Duration = Duration::from_millis(1);

/// What clients asked for.
#[derive(Debug, Default)]
struct Clients {
    count: AtomicU64,
    last: Last,
}

impl Clients {
    fn asked(&self, now: Moment) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.last.note(now);
    }

    /// Has one asked lately?
    fn are_there(&self, now: Moment) -> bool {
        self.last.is_within(CLIENTS, now)
    }
}

/// When something was last, in microseconds; one more, since 0 says that it never was.
#[derive(Debug, Default)]
struct Last(AtomicU64);

impl Last {
    fn note(&self, now: Moment) {
        let micros = u64::try_from(now.0.as_micros()).unwrap_or(u64::MAX);
        self.0.fetch_max(micros.saturating_add(1), Ordering::Relaxed);
    }

    fn is_within(&self, time: Duration, now: Moment) -> bool {
        let Some(last) = self.0.load(Ordering::Relaxed).checked_sub(1) else { return false };
        now.since(Moment(Duration::from_micros(last))) < time
    }
}

/// Who else uses the device: the clients of this ASD, and other daemons.
pub struct Beside {
    clients: Clients,
    turns: Arc<dyn DeviceTurns>,
    clock: Arc<dyn Clock>,
    /// When a turn was not to be had at once.
    waited: Last,
}

impl Beside {
    /// On a device with these turns.
    pub fn new(turns: Arc<dyn DeviceTurns>, clock: Arc<dyn Clock>) -> Self {
        Self { clients: Clients::default(), turns, clock, waited: Last::default() }
    }

    /// A client asks for something.
    pub(crate) fn asked(&self, now: Moment) {
        self.clients.asked(now);
    }

    /// How often clients asked.
    pub(crate) fn client_operations(&self) -> u64 {
        self.clients.count.load(Ordering::Relaxed)
    }

    /// Would clients of this ASD feel it when `bytes` are moved now?
    pub(crate) fn is_felt(&self, bytes: u64) -> bool {
        bytes > LARGE && self.clients.are_there(self.clock.now())
    }

    /// The turn of the device. It is given back when what is moved is in memory, or safe. None: there are no turns.
    pub(crate) async fn turn(&self, direction: Direction) -> Option<DeviceTurn> {
        let asked = self.clock.now();
        let turn = self.turns.take(direction).await;
        let now = self.clock.now();
        let waited = now.since(asked);
        if waited > WAITED {
            self.waited.note(now);
        }
        if turn.is_some() {
            let name = direction.name();
            metrics::histogram!("alba_osd_device_turn_seconds", "direction" => name)
                .record(waited.as_secs_f64());
        }
        turn
    }

    /// Do others use the device, too, whose clients are not known here?
    pub(crate) fn has_company(&self) -> bool {
        self.waited.is_within(OTHERS, self.clock.now())
    }
}

/// Turns for tests of the service and of the engine.
#[cfg(test)]
pub(crate) mod doubles {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    use async_trait::async_trait;

    use super::*;

    /// Turns that can be had after a while.
    pub(crate) struct Late {
        clock: Arc<dyn Clock>,
        after: Duration,
        /// Is none given, as where a device has no turns?
        none: bool,
        pub(crate) taken: Mutex<Vec<Direction>>,
        pub(crate) held: Arc<AtomicUsize>,
    }

    struct Held(Arc<AtomicUsize>);

    impl Drop for Held {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    impl Late {
        /// Given after so long.
        pub(crate) fn new(clock: Arc<dyn Clock>, after: Duration, none: bool) -> Arc<Self> {
            let (taken, held) = (Mutex::default(), Arc::default());
            Arc::new(Self { clock, after, none, taken, held })
        }

        /// How many were taken to read, and to write.
        pub(crate) fn counts(&self) -> (usize, usize) {
            let taken = self.taken.lock().unwrap();
            let reads = taken.iter().filter(|direction| **direction == Direction::Read).count();
            (reads, taken.len() - reads)
        }
    }

    #[async_trait]
    impl DeviceTurns for Late {
        async fn take(&self, direction: Direction) -> Option<DeviceTurn> {
            self.clock.sleep_until(self.clock.now().plus(self.after)).await;
            if self.none {
                return None;
            }
            self.taken.lock().unwrap().push(direction);
            self.held.fetch_add(1, Ordering::Relaxed);
            Some(DeviceTurn::new(Held(self.held.clone())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_there_for_a_while_after_each_request() {
        let at = |millis| Moment(Duration::from_millis(millis));
        let clients = Clients::default();
        assert!(!clients.are_there(at(0)), "none has ever asked");
        clients.asked(at(0));
        assert_eq!([0, 1999, 2000].map(|millis| clients.are_there(at(millis))), [true, true, false]);
        clients.asked(at(5000));
        // Two that ask at the same time may be noted in the other order.
        clients.asked(at(4999));
        assert_eq!([6999, 7000].map(|millis| clients.are_there(at(millis))), [true, false]);
        assert_eq!(clients.count.load(Ordering::Relaxed), 3);
    }
}
