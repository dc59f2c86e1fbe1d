//! What is counted for the operator.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of a client.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) late_added: Counter,
    pub(crate) late_failed: Counter,
    pub(crate) tags_left: Counter,
    pub(crate) uploads_retried: Counter,
    pub(crate) spare_writes: Counter,
    pub(crate) repairs_handed_over: Counter,
    pub(crate) repairs_dropped: Counter,
    pub(crate) fragments_damaged: Counter,
    pub(crate) chunks_rescued: Counter,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> Statistics {
        Statistics {
            late_fragments_added: self.late_added.get(),
            late_fragments_failed: self.late_failed.get(),
            tags_left: self.tags_left.get(),
            uploads_retried: self.uploads_retried.get(),
            spare_writes: self.spare_writes.get(),
            repairs_handed_over: self.repairs_handed_over.get(),
            repairs_dropped: self.repairs_dropped.get(),
            fragments_damaged: self.fragments_damaged.get(),
            chunks_rescued: self.chunks_rescued.get(),
        }
    }
}

/// What a client counted since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Fragments that arrived after the commit and were added to the manifest.
    pub late_fragments_added: u64,
    /// Fragments that stay holes until repair fills them.
    pub late_fragments_failed: u64,
    /// Tags of stored fragments that could not be removed: garbage collection does.
    pub tags_left: u64,
    /// Uploads that needed a second attempt.
    pub uploads_retried: u64,
    /// Fragments written to another OSD than planned, since that one failed or was slow.
    pub spare_writes: u64,
    /// Damaged or missing fragments that the backend manager's work queue took.
    pub repairs_handed_over: u64,
    /// The same, forgotten because too many waited to be told: maintenance has to find them itself.
    pub repairs_dropped: u64,
    /// Fragments read whose checksum or content was wrong.
    pub fragments_damaged: u64,
    /// Reads of slices that had to fetch a whole chunk because a fragment failed or was slow.
    pub chunks_rescued: u64,
}
