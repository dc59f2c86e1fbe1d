//! What a fragment cache says of itself.

use crate::counters::Counter;

/// Counters of one tier: memory or SSD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TierStatistics {
    /// Lookups that found something.
    pub hits: u64,
    /// Lookups that did not, those that bypassed a broken SSD included.
    pub misses: u64,
    /// In use, about.
    pub bytes: u64,
}

/// Of the SSD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskStatistics {
    /// As of memory.
    pub tier: TierStatistics,
    /// Reads that took longer than the deadline: the OSDs were asked instead.
    pub timeouts: u64,
    /// Reads and writes that failed.
    pub errors: u64,
    /// Lookups while the SSD was not in use.
    pub bypassed: u64,
    /// Fragments that were not written because the queue was full.
    pub dropped_queue_full: u64,
    /// … because the configured bytes per second were used up.
    pub dropped_rate: u64,
    /// … because they were not wanted often enough.
    pub not_admitted: u64,
    /// Fragments written.
    pub written: u64,
    /// Why it is not in use; none while it works.
    pub broken: Option<String>,
}

/// What a fragment cache counted since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FragmentCacheStatistics {
    /// The part in memory.
    pub ram: TierStatistics,
    /// The part on an SSD, if there is one.
    pub disk: Option<DiskStatistics>,
    /// Cached bytes that were not what they should be. They were removed, and the OSDs asked.
    pub damaged: u64,
    /// Fragments that were not added because too many were waiting for it.
    pub dropped: u64,
    /// Fragments fetched in the background because slices of them were read repeatedly.
    pub filled: u64,
}

/// See [`DiskStatistics`].
#[derive(Debug, Default)]
pub(super) struct DiskCounters {
    pub(super) hits: Counter,
    pub(super) misses: Counter,
    pub(super) timeouts: Counter,
    pub(super) errors: Counter,
    pub(super) bypassed: Counter,
    pub(super) dropped_queue_full: Counter,
    pub(super) dropped_rate: Counter,
    pub(super) not_admitted: Counter,
    pub(super) written: Counter,
    /// Entries that the SSD's index had and that could not be read back.
    pub(super) damaged: Counter,
}

impl DiskCounters {
    pub(super) fn snapshot(&self, bytes: u64, broken: Option<String>) -> DiskStatistics {
        DiskStatistics {
            tier: TierStatistics { hits: self.hits.get(), misses: self.misses.get(), bytes },
            timeouts: self.timeouts.get(),
            errors: self.errors.get(),
            bypassed: self.bypassed.get(),
            dropped_queue_full: self.dropped_queue_full.get(),
            dropped_rate: self.dropped_rate.get(),
            not_admitted: self.not_admitted.get(),
            written: self.written.get(),
            broken,
        }
    }
}
