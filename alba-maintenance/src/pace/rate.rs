//! A rate as the moment at which the next thing may be done: the generic cell rate algorithm (ITU-T I.371), in whole
//! nanoseconds.

use std::time::Duration;

use alba_core::env::Moment;
use serde::{Deserialize, Serialize};

use super::FULL;

/// What was not used is made up for, but for no longer than this.
const BURST: Duration = Duration::from_secs(1);

/// Longest that one thing is held up, however large it is.
const LONGEST: Duration = Duration::from_secs(60);

/// Limits; what is absent is not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes read, written or freed per second.
    pub bytes_per_second: Option<u64>,
    /// Objects, or fragments, looked at per second.
    pub objects_per_second: Option<u64>,
}

/// How much may be done per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_second: u64,
    /// When all that was reserved so far will have been done.
    until: Moment,
}

impl Rate {
    /// At most so much per second, and at least 1.
    pub fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1), until: Moment::default() }
    }

    /// Reserves `amount` at `share` of the rate (of [`FULL`]), and says when it may be done.
    pub fn reserve(&mut self, now: Moment, amount: u64, share: u16) -> Moment {
        let begin = self.until.max(Moment(now.0.saturating_sub(BURST)));
        let nanos = u128::from(amount) * 1_000_000_000 * u128::from(FULL)
            / (u128::from(self.per_second) * u128::from(share.max(1)));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(LONGEST);
        // What is done at once is paid for by those who come after it.
        self.until = begin.plus(cost);
        begin.max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_rate_and_a_burst() {
        for (share, want) in [(FULL, 1000_u64), (FULL / 4, 250)] {
            let mut rate = Rate::new(1000);
            let start = Moment(Duration::from_secs(100));
            let mut now = start;
            let mut done = 0;
            // Ten seconds of someone who always wants more.
            while now.since(start) < Duration::from_secs(10) {
                now = now.max(rate.reserve(now, 50, share));
                done += 50;
            }
            let most = want * 11 + 100;
            assert!((want * 10..=most).contains(&done), "share {share}: {done}");
        }
    }

    #[test]
    fn something_large_waits_for_nothing_but_holds_up_the_next() {
        let mut rate = Rate::new(10);
        let now = Moment(Duration::from_secs(100));
        assert_eq!(rate.reserve(now, 100, FULL), now);
        assert_eq!(rate.reserve(now, 1, FULL), now.plus(Duration::from_secs(9)));
        let mut rate = Rate::new(0);
        rate.reserve(now, u64::MAX, 1);
        assert!(rate.reserve(now, 1, FULL) <= now.plus(LONGEST), "never for ever");
    }
}
