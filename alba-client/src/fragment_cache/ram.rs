//! The part in memory: foyer's w-TinyLFU, which a scan of cold fragments does not wash out.

use foyer::{Cache, CacheBuilder, LfuConfig};

use super::entry::Entry;
use super::tier::Slot;
use crate::counters::Counter;

/// An entry may take this part of the memory at most, so that one cannot wash out all others.
const LARGEST_PART: u64 = 8;

/// Memory per shard: locks are short, and a shard must hold many of the largest fragments.
const SHARD_BYTES: u64 = 256 << 20;

/// See the module.
pub(crate) struct Ram {
    entries: Cache<Slot, Entry>,
    limit: u64,
    pub(super) hits: Counter,
    pub(super) misses: Counter,
}

fn weight(entry: &Entry) -> usize {
    usize::try_from(entry.weight()).unwrap_or(usize::MAX)
}

impl Ram {
    /// Holds at most `bytes`.
    pub(crate) fn new(bytes: u64) -> Self {
        let shards = usize::try_from((bytes / SHARD_BYTES).clamp(1, 8)).unwrap_or(1);
        let capacity = usize::try_from(bytes).unwrap_or(usize::MAX);
        let entries = CacheBuilder::new(capacity)
            .with_name("fragments")
            .with_shards(shards)
            .with_eviction_config(LfuConfig::default())
            .with_weighter(|_: &Slot, entry: &Entry| weight(entry))
            .build();
        Self { entries, limit: bytes / LARGEST_PART, hits: Counter::default(), misses: Counter::default() }
    }

    pub(crate) fn get(&self, slot: &Slot) -> Option<Entry> {
        let found = self.entries.get(slot).map(|entry| entry.value().clone());
        if found.is_some() { &self.hits } else { &self.misses }.add(1);
        found
    }

    pub(crate) fn has(&self, slot: &Slot) -> bool {
        self.entries.contains(slot)
    }

    pub(crate) fn put(&self, slot: Slot, entry: Entry) {
        if entry.weight() <= self.limit {
            drop(self.entries.insert(slot, entry));
        }
    }

    pub(crate) fn remove(&self, slot: &Slot) {
        drop(self.entries.remove(slot));
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> u64 {
        u64::try_from(self.entries.usage()).unwrap_or(u64::MAX)
    }
}
