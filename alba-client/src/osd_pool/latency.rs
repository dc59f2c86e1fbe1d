//! How long calls to one OSD take: what nearly all of them stay below, and what is usual for it just now.
//!
//! Two figures because they answer two questions. *When is this call unusual?* needs the tail, and may rise at the first
//! late answer: the estimator of TCP's retransmission time (RFC 6298). *Is this OSD slow?* must not follow from one late
//! answer: the median of the last calls.

use std::time::Duration;

/// Calls that the median is over: three of them decide.
const LAST: usize = 5;

/// Calls before there is a median.
const ENOUGH: usize = 3;

/// Estimates of one OSD for calls of one size, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latency {
    mean: u64,
    deviation: u64,
    last: [u64; LAST],
    /// Calls so far, counted no further than [`LAST`].
    count: usize,
    next: usize,
}

impl Latency {
    /// After the first call.
    pub(super) fn first(latency: Duration) -> Self {
        let sample = micros(latency);
        Self { mean: sample, deviation: sample / 2, last: [sample; LAST], count: 1, next: 1 }
    }

    /// After another call.
    #[must_use]
    pub(super) fn and(self, latency: Duration) -> Self {
        let sample = micros(latency);
        let mut last = self.last;
        if let Some(slot) = last.get_mut(self.next) {
            *slot = sample;
        }
        Self {
            mean: (self.mean * 7 + sample) / 8,
            deviation: (self.deviation * 3 + self.mean.abs_diff(sample)) / 4,
            last,
            count: (self.count + 1).min(LAST),
            next: (self.next + 1) % LAST,
        }
    }

    /// The time within which nearly all calls end.
    pub(super) fn usual(&self) -> Duration {
        Duration::from_micros(self.mean + 4 * self.deviation)
    }

    /// The median of the last calls, once there are enough.
    pub(super) fn middle(&self) -> Option<Duration> {
        if self.count < ENOUGH {
            return None;
        }
        // Those that are not there yet are the first call's: they don't move the median of three beyond the calls made.
        let mut last = self.last;
        last.sort_unstable();
        last.get(LAST / 2).map(|sample| Duration::from_micros(*sample))
    }
}

/// Bounded so that the arithmetic above cannot overflow: no call takes 36 000 years.
fn micros(latency: Duration) -> u64 {
    u64::try_from(latency.as_micros()).unwrap_or(u64::MAX / 16).min(u64::MAX / 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(millis: &[u64]) -> Latency {
        let mut samples = millis.iter().map(|millis| Duration::from_millis(*millis));
        let first = Latency::first(samples.next().unwrap());
        samples.fold(first, Latency::and)
    }

    #[test]
    fn one_late_answer_raises_the_tail_and_not_the_middle() {
        let steady = after(&[2; 50]);
        assert!(steady.usual() >= Duration::from_millis(2) && steady.usual() < Duration::from_millis(3));
        assert_eq!(steady.middle(), Some(Duration::from_millis(2)));
        let late = steady.and(Duration::from_secs(1));
        assert!(late.usual() > Duration::from_millis(100));
        assert_eq!(late.middle(), Some(Duration::from_millis(2)));
    }

    #[test]
    fn three_of_five_decide_both_ways() {
        let mut latency = after(&[2, 2, 2, 2, 2, 50, 50]);
        assert_eq!(latency.middle(), Some(Duration::from_millis(2)));
        latency = latency.and(Duration::from_millis(50));
        assert_eq!(latency.middle(), Some(Duration::from_millis(50)));
        latency = latency.and(Duration::from_millis(2)).and(Duration::from_millis(2));
        assert_eq!(latency.middle(), Some(Duration::from_millis(50)));
        assert_eq!(latency.and(Duration::from_millis(2)).middle(), Some(Duration::from_millis(2)));
    }

    #[test]
    fn there_is_no_middle_of_two() {
        assert_eq!(after(&[2, 3]).middle(), None);
        assert_eq!(after(&[3, 2, 2]).middle(), Some(Duration::from_millis(3)));
        assert_eq!(Latency::first(Duration::MAX).and(Duration::MAX).middle(), None);
    }
}
