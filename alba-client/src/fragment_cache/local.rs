//! Memory, and below it a disk if there is one.

use std::sync::Arc;

use alba_core::ids::NamespaceId;
use async_trait::async_trait;

use super::entry::Entry;
use super::generations::Generations;
use super::guarded::Guarded;
use super::ram::Ram;
use super::sketch::Sketch;
use super::statistics::{FragmentCacheStatistics, TierStatistics};
use super::tier::Slot;
use super::{CacheKey, FragmentCache};

/// Wanted so often, a fragment is worth a write to the disk.
const WORTH_A_WRITE: u8 = 2;

/// See the module.
pub(crate) struct LocalCache {
    generations: Arc<Generations>,
    sketch: Arc<Sketch>,
    ram: Ram,
    disk: Option<Arc<Guarded>>,
}

impl LocalCache {
    /// `generations` and `sketch` are the disk's, too.
    pub(crate) fn new(
        ram_bytes: u64,
        disk: Option<Arc<Guarded>>,
        generations: Arc<Generations>,
        sketch: Arc<Sketch>,
    ) -> Self {
        Self { generations, sketch, ram: Ram::new(ram_bytes), disk }
    }

    fn slot(&self, key: &CacheKey) -> Slot {
        Slot {
            namespace: key.namespace.get(),
            generation: self.generations.of(key.namespace),
            address: key.address,
        }
    }

    /// To the disk, if it is worth it: a scan of cold fragments must not wash out what is hot there.
    fn offer(&self, slot: Slot, entry: Entry, wanted: u8) {
        let Some(disk) = &self.disk else { return };
        if wanted < WORTH_A_WRITE && !disk.has_room() {
            disk.counters.not_admitted.add(1);
        } else if !disk.may_have(&slot) {
            disk.offer(slot, entry);
        }
    }
}

#[async_trait]
impl FragmentCache for LocalCache {
    async fn get(&self, key: &CacheKey) -> Option<Entry> {
        let slot = self.slot(key);
        let wanted = self.sketch.touch(slot.hash());
        if let Some(entry) = self.ram.get(&slot) {
            if wanted == WORTH_A_WRITE {
                self.offer(slot, entry.clone(), wanted);
            }
            return Some(entry);
        }
        let entry = self.disk.as_ref()?.get(&slot).await?;
        self.ram.put(slot, entry.clone());
        Some(entry)
    }

    fn may_have(&self, key: &CacheKey) -> bool {
        let slot = self.slot(key);
        self.ram.has(&slot) || self.disk.as_ref().is_some_and(|disk| disk.may_have(&slot))
    }

    fn put(&self, key: &CacheKey, entry: Entry) {
        let slot = self.slot(key);
        self.ram.put(slot, entry.clone());
        self.offer(slot, entry, self.sketch.estimate(slot.hash()));
    }

    fn remove(&self, key: &CacheKey) {
        let slot = self.slot(key);
        self.ram.remove(&slot);
        if let Some(disk) = &self.disk {
            disk.remove(&slot);
        }
    }

    fn drop_namespace(&self, namespace: NamespaceId) {
        self.generations.drop_namespace(namespace);
        if let Some(disk) = &self.disk {
            disk.keep_generations();
        }
    }

    fn statistics(&self) -> FragmentCacheStatistics {
        let (hits, misses) = (self.ram.hits.get(), self.ram.misses.get());
        FragmentCacheStatistics {
            ram: TierStatistics { hits, misses, bytes: self.ram.used() },
            damaged: self.disk.as_ref().map_or(0, |disk| disk.counters.damaged.get()),
            disk: self.disk.as_ref().map(|disk| disk.statistics()),
            ..Default::default()
        }
    }
}
