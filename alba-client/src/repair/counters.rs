//! What repair counts for the operator.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) objects_updated: Count,
    pub(super) objects_rewritten: Count,
    pub(super) regenerated: Count,
    pub(super) copied: Count,
    pub(super) peer_copied: Count,
    pub(super) dropped: Count,
    pub(super) bytes_read: Count,
    pub(super) bytes_written: Count,
    pub(super) raced: Count,
    pub(super) keys_taken: Count,
}

impl Counters {
    pub(super) fn snapshot(&self) -> RepairStatistics {
        RepairStatistics {
            objects_updated: self.objects_updated.get(),
            objects_rewritten: self.objects_rewritten.get(),
            regenerated: self.regenerated.get(),
            copied: self.copied.get(),
            peer_copied: self.peer_copied.get(),
            dropped: self.dropped.get(),
            bytes_read: self.bytes_read.get(),
            bytes_written: self.bytes_written.get(),
            raced: self.raced.get(),
            keys_taken: self.keys_taken.get(),
        }
    }
}

/// What a repairer did since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RepairStatistics {
    /// Updates of manifests.
    pub objects_updated: u64,
    /// Objects stored anew.
    pub objects_rewritten: u64,
    /// Fragments computed from others.
    pub regenerated: u64,
    /// Fragments copied as they were.
    pub copied: u64,
    /// Those of them that went from OSD to OSD.
    pub peer_copied: u64,
    /// Fragments given up: holes.
    pub dropped: u64,
    /// Packed bytes read here.
    pub bytes_read: u64,
    /// Packed bytes stored.
    pub bytes_written: u64,
    /// Updates that came too late: the object had changed. Two repairers at one object show here.
    pub raced: u64,
    /// Fragments that were not stored because another attempt's were there.
    pub keys_taken: u64,
}
