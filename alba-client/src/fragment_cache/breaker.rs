//! When a cache's disk is to be left alone: after a few calls in a row that failed or took too long, until a probe has shown
//! that it works again. Pure: what happened goes in, what to do comes out.

use std::time::Duration;

/// So many reads, or writes, in a row: one late answer may be the machine's fault.
const FAILURES: u32 = 3;

/// Between probes: at first, and at most. Each failed one doubles it.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Reading.
    Read,
    /// Writing. A disk that is full still reads well: these are counted apart.
    Write,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Breaker {
    failed_reads: u32,
    failed_writes: u32,
    broken: Option<Broken>,
}

#[derive(Debug)]
struct Broken {
    reason: String,
    pause: Duration,
}

impl Breaker {
    /// Not to be used before the first probe.
    pub(crate) fn closed(reason: &str) -> Self {
        let broken = Broken { reason: reason.to_owned(), pause: PAUSE.0 };
        Self { failed_reads: 0, failed_writes: 0, broken: Some(broken) }
    }

    /// May it be used?
    pub(crate) fn works(&self) -> bool {
        self.broken.is_none()
    }

    /// Why it may not.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.broken.as_ref().map(|broken| broken.reason.as_str())
    }

    fn failures(&mut self, call: Call) -> &mut u32 {
        match call {
            Call::Read => &mut self.failed_reads,
            Call::Write => &mut self.failed_writes,
        }
    }

    pub(crate) fn succeeded(&mut self, call: Call) {
        *self.failures(call) = 0;
    }

    /// Says whether this was the one too many: then probes are to be started.
    pub(crate) fn failed(&mut self, call: Call, reason: &str) -> bool {
        let failures = self.failures(call);
        *failures += 1;
        if *failures < FAILURES || self.broken.is_some() {
            return false;
        }
        self.broken = Some(Broken { reason: reason.to_owned(), pause: PAUSE.0 });
        true
    }

    /// A probe failed. How long to wait until the next.
    pub(crate) fn probe_failed(&mut self, reason: &str) -> Duration {
        let broken = self.broken.get_or_insert_with(|| Broken { reason: String::new(), pause: PAUSE.0 });
        reason.clone_into(&mut broken.reason);
        let pause = broken.pause;
        broken.pause = (pause * 2).min(PAUSE.1);
        pause
    }

    /// A probe has shown that it works.
    pub(crate) fn repaired(&mut self) {
        *self = Self { failed_reads: 0, failed_writes: 0, broken: None };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_backs_off_until_a_probe_succeeds() {
        let mut breaker = Breaker::closed("opening");
        assert!(!breaker.works());
        breaker.repaired();
        for _ in 0..10 {
            assert!(!breaker.failed(Call::Read, "late") && !breaker.failed(Call::Read, "late"));
            breaker.succeeded(Call::Read);
        }
        // A disk that is full: its reads do not hide it.
        assert!(!breaker.failed(Call::Write, "full"));
        breaker.succeeded(Call::Read);
        assert!(!breaker.failed(Call::Write, "full"));
        breaker.succeeded(Call::Read);
        assert!(breaker.works());
        assert!(breaker.failed(Call::Write, "full"));
        assert!(!breaker.failed(Call::Write, "full"), "the probes are started once");
        assert_eq!(breaker.reason(), Some("full"));
        let pauses: Vec<u64> = (0..8).map(|_| breaker.probe_failed("gone").as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(breaker.reason(), Some("gone"));
        breaker.repaired();
        assert!(breaker.works() && breaker.reason().is_none());
    }
}
