//! Rates of background work, changeable while it runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alba_core::env::Clock;

/// Bytes per second; 0 is no limit.
#[derive(Debug, Default)]
pub(crate) struct Rate(AtomicU64);

impl Rate {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self(AtomicU64::new(bytes_per_second))
    }

    pub(crate) fn set(&self, bytes_per_second: u64) {
        self.0.store(bytes_per_second, Ordering::Relaxed);
    }

    /// How long `bytes` take at this rate.
    fn time(&self, bytes: u64) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            rate => Duration::from_micros(
                u64::try_from(u128::from(bytes) * 1_000_000 / u128::from(rate)).unwrap_or(u64::MAX),
            ),
        }
    }

    /// Waits as long as `bytes`, which were just handled, take.
    pub(crate) async fn pace(&self, clock: &dyn Clock, bytes: u64) {
        let time = self.time(bytes);
        if !time.is_zero() {
            clock.sleep_until(clock.now().plus(time)).await;
        }
    }
}

/// The rates of an engine.
#[derive(Debug)]
pub(crate) struct Rates {
    pub compaction: Rate,
    pub preparation: Rate,
    pub scrub: Rate,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time() {
        let rate = Rate::new(1 << 20);
        assert_eq!(rate.time(1 << 19), Duration::from_millis(500));
        rate.set(0);
        assert_eq!(rate.time(u64::MAX), Duration::ZERO);
    }
}
