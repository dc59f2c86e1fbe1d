//! What is counted for the operator.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
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
    pub(crate) fragments_needed: Counter,
    pub(crate) fragments_asked: Counter,
    pub(crate) fragments_merged: Counter,
    pub(crate) hedges: Counter,
    pub(crate) hedges_won: Counter,
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
            fragments_needed: self.fragments_needed.get(),
            fragments_asked: self.fragments_asked.get(),
            fragments_merged: self.fragments_merged.get(),
            hedged_reads: self.hedges.get(),
            hedged_reads_won: self.hedges_won.get(),
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
    /// Parts of fragments that were computed from others, because a fragment failed or was slow.
    pub chunks_rescued: u64,
    /// Reads of fragments or parts of them that would have been enough if every OSD had answered well and in time.
    pub fragments_needed: u64,
    /// Reads of fragments or parts of them that OSDs were asked for. What is above `fragments_needed` was extra.
    pub fragments_asked: u64,
    /// Reads that waited for the same read of another request instead of asking the OSD.
    pub fragments_merged: u64,
    /// How often others were asked because an answer took unusually long.
    pub hedged_reads: u64,
    /// How often they answered before the late one did.
    pub hedged_reads_won: u64,
}
