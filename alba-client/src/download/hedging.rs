//! How many extra reads may be spent on answers that are late.
//!
//! Asking more when answers are slow makes an overloaded backend slower still. So hedges come out of a budget: one extra
//! read for twenty that were needed, and some saved up for the moment in which an OSD becomes slow. When it is spent,
//! only what is late beyond `hedge_max_ms` is asked for elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};

/// Needed reads per extra one: 5 %.
const NEEDED_PER_EXTRA: u64 = 20;

/// Extra reads that can be saved up: enough for 64 clients that all meet an OSD that has just become slow, some times, with
/// five others to be asked each time.
const SAVED: u64 = 1024;

/// See the module.
pub(crate) struct Hedging {
    enabled: bool,
    /// In needed reads; at most those of [`SAVED`].
    credit: AtomicU64,
}

impl Hedging {
    /// With all that can be saved up.
    pub(crate) fn new(enabled: bool) -> Self {
        Self { enabled, credit: AtomicU64::new(SAVED * NEEDED_PER_EXTRA) }
    }

    /// Do reads go around slow OSDs at all?
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// So many reads are needed.
    pub(crate) fn needed(&self, reads: usize) {
        let reads = u64::try_from(reads).unwrap_or(u64::MAX);
        let add = |credit: u64| Some(credit.saturating_add(reads).min(SAVED * NEEDED_PER_EXTRA));
        // It never refuses to add.
        let _ = self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// May so many extra reads be made? If so, they are paid for.
    pub(crate) fn take(&self, extra: usize) -> bool {
        let cost = u64::try_from(extra).unwrap_or(u64::MAX).saturating_mul(NEEDED_PER_EXTRA);
        let pay = |credit: u64| credit.checked_sub(cost);
        self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_twenty_may_be_extra_beside_what_was_saved() {
        let hedging = Hedging::new(true);
        let spent = (0..).take_while(|_| hedging.take(1)).count();
        assert_eq!(spent, 1024);
        hedging.needed(99);
        assert_eq!((hedging.take(5), hedging.take(4), hedging.take(1)), (false, true, false));
        hedging.needed(1);
        assert!(hedging.take(1));
        hedging.needed(usize::MAX);
        hedging.needed(usize::MAX);
        assert!(hedging.take(1024) && !hedging.take(1) && !hedging.take(usize::MAX));
    }
}
