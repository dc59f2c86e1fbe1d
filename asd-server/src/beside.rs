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

/// What clients asked for.
#[derive(Debug, Default)]
struct Clients {
    count: AtomicU64,
    /// When the last one asked, in microseconds; one more, since 0 says that none has.
    last: AtomicU64,
}

impl Clients {
    fn asked(&self, now: Moment) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(now.0.as_micros()).unwrap_or(u64::MAX);
        self.last.fetch_max(micros.saturating_add(1), Ordering::Relaxed);
    }

    /// Has one asked lately?
    fn are_there(&self, now: Moment) -> bool {
        let Some(last) = self.last.load(Ordering::Relaxed).checked_sub(1) else { return false };
        now.since(Moment(Duration::from_micros(last))) < CLIENTS
    }
}

/// Who else uses the device: the clients of this ASD, and other daemons.
pub struct Beside {
    clients: Clients,
    turns: Arc<dyn DeviceTurns>,
    clock: Arc<dyn Clock>,
}

impl Beside {
    /// On a device with these turns.
    pub fn new(turns: Arc<dyn DeviceTurns>, clock: Arc<dyn Clock>) -> Self {
        Self { clients: Clients::default(), turns, clock }
    }

    /// A client asks for something.
    pub(crate) fn asked(&self, now: Moment) {
        self.clients.asked(now);
    }

    /// How often clients asked.
    pub(crate) fn client_operations(&self) -> u64 {
        self.clients.count.load(Ordering::Relaxed)
    }

    /// Would clients feel it when `bytes` are moved now?
    pub(crate) fn is_felt(&self, bytes: u64) -> bool {
        bytes > LARGE && self.clients.are_there(self.clock.now())
    }

    /// The turn of the device. It is given back when what is moved is in memory, or safe. None: there are no turns.
    pub(crate) async fn turn(&self, direction: Direction) -> Option<DeviceTurn> {
        let asked = self.clock.now();
        let turn = self.turns.take(direction).await?;
        let waited = self.clock.now().since(asked).as_secs_f64();
        metrics::histogram!("alba_osd_device_turn_seconds", "direction" => direction.name()).record(waited);
        Some(turn)
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
