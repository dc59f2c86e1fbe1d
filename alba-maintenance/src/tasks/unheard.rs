//! OSDs that did not answer. Asking one again for each of a thousand namespaces would take a timeout each, and hold up the work on all
//! others; so it is left alone for a while, by all parts of the task. What waits for it stays where it is, and the run says so.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::{Moment, OsdError};
use alba_core::ids::OsdId;

use crate::error::TaskError;
use crate::progress::Progress;

/// How long one is left alone: some times as long as asking it in vain takes, and no longer than its absence matters to people.
const FOR: Duration = Duration::from_secs(120);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Unheard(Mutex<BTreeMap<OsdId, Moment>>);

impl Unheard {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<OsdId, Moment>> {
        // Maps don't panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is it to be left alone?
    pub(super) fn has(&self, osd: OsdId, now: Moment) -> bool {
        let mut unheard = self.lock();
        unheard.retain(|_, since| now.since(*since) < FOR);
        unheard.contains_key(&osd)
    }

    /// Something failed: was it that an OSD did not answer? One that says no has answered.
    pub(super) fn note(&self, error: &TaskError, now: Moment) {
        if let TaskError::Osd { osd, error: OsdError::Connection(_) | OsdError::Timeout } = error {
            self.lock().insert(*osd, now);
        }
    }
}

/// Of one run: what was left alone, and how often.
#[derive(Debug, Default)]
pub(super) struct Skipped(BTreeMap<OsdId, u64>);

impl Skipped {
    /// In one more namespace.
    pub(super) fn count(&mut self, osd: OsdId) {
        *self.0.entry(osd).or_default() += 1;
    }

    /// Says so: the run has not done all there is.
    pub(super) fn tell(&self, progress: &Progress) {
        for (osd, namespaces) in &self.0 {
            progress.problem(format!("OSD {osd} does not answer: skipped in {namespaces} namespaces"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_left_alone_for_a_while_and_who_says_no_is_not() {
        let unheard = Unheard::default();
        let at = |seconds| Moment(Duration::from_secs(seconds));
        let (one, other) = (OsdId::from_u32(1), OsdId::from_u32(2));
        let failed = |osd, error| TaskError::Osd { osd, error };
        unheard.note(&failed(one, OsdError::Timeout), at(10));
        unheard.note(&failed(other, OsdError::Full), at(10));
        unheard.note(&TaskError::Unknown(other), at(10));
        assert!(unheard.has(one, at(129)) && !unheard.has(other, at(10)));
        assert!(!unheard.has(one, at(130)));
        assert!(!unheard.has(one, at(11)), "forgotten for good");
    }

    #[test]
    fn what_was_skipped_is_told_once_for_each_osd() {
        let mut skipped = Skipped::default();
        let progress = Progress::default();
        skipped.tell(&progress);
        assert_eq!(progress.problems_text(), None);
        for _ in 0..3 {
            skipped.count(OsdId::from_u32(7));
        }
        skipped.tell(&progress);
        assert_eq!(progress.problems_text().unwrap(), "OSD 7 does not answer: skipped in 3 namespaces");
    }
}
