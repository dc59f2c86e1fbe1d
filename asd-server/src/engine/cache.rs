//! What is read often, in memory: entries of the index by key, and verified blocks of values. Bounded in bytes.
//!
//! It must never outlive a change: an entry is gone from here before the writer that changed it is answered. Blocks need
//! no such care, since a place in one life of a segment holds the same bytes for ever.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alba_core::env::osd::OsdKey;
use bytes::Bytes;
use quick_cache::{Weighter, sync, unsync};

use super::format::BLOCK;
use super::index::{Entry, Location};

/// Entries are kept in so many parts, each with a lock of its own.
const PARTS: u64 = 16;

/// What an entry takes beside its key and value, about, in bytes.
const ENTRY_BYTES: u64 = 256;

/// What a block takes beside its bytes, about.
const BLOCK_OVERHEAD: u64 = 96;

#[derive(Debug, Clone, Copy)]
struct EntryWeight;

impl Weighter<OsdKey, Arc<Entry>> for EntryWeight {
    fn weight(&self, key: &OsdKey, entry: &Arc<Entry>) -> u64 {
        let inline = entry.inline.as_ref().map_or(0, Vec::len);
        ENTRY_BYTES + u64::try_from(key.len() + inline).unwrap_or(u64::MAX >> 1)
    }
}

#[derive(Debug, Clone, Copy)]
struct BlockWeight;

impl Weighter<BlockKey, Bytes> for BlockWeight {
    fn weight(&self, _: &BlockKey, bytes: &Bytes) -> u64 {
        BLOCK_OVERHEAD + u64::try_from(bytes.len()).unwrap_or(u64::MAX >> 1)
    }
}

/// (segment, generation, where the block begins in it).
type BlockKey = (u64, u64, u64);

struct Part {
    entries: unsync::Cache<OsdKey, Arc<Entry>, EntryWeight>,
    /// Changes so far: what was looked up before the last one is not put in.
    changes: u64,
}

/// A promise to put into the cache what is looked up now, unless it changes meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket(u64);

/// The caches.
pub(crate) struct Cache {
    parts: Vec<Mutex<Part>>,
    blocks: sync::Cache<BlockKey, Bytes, BlockWeight>,
    hasher: RandomState,
}

impl Cache {
    /// With room for so many bytes of entries and of blocks.
    pub(crate) fn new(entry_bytes: u64, block_bytes: u64) -> Self {
        let part = |_| {
            let room = entry_bytes / PARTS;
            let count = usize::try_from(room / ENTRY_BYTES).unwrap_or(usize::MAX).clamp(1, 1 << 20);
            let entries = unsync::Cache::with_weighter(count, room, EntryWeight);
            Mutex::new(Part { entries, changes: 0 })
        };
        let blocks = usize::try_from(block_bytes / 4096).unwrap_or(usize::MAX).clamp(1, 1 << 24);
        Self {
            parts: (0..PARTS).map(part).collect(),
            blocks: sync::Cache::with_weighter(blocks, block_bytes, BlockWeight),
            hasher: RandomState::new(),
        }
    }

    /// No code panics while it holds the lock, so a poisoned lock holds a sound part.
    fn part(&self, key: &OsdKey) -> MutexGuard<'_, Part> {
        let nth = usize::try_from(self.hasher.hash_one(key) % PARTS).unwrap_or(0);
        self.parts[nth].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry, or a ticket for the one that is looked up next.
    pub(crate) fn entry(&self, key: &OsdKey) -> Result<Arc<Entry>, Ticket> {
        let part = self.part(key);
        part.entries.get(key).cloned().ok_or(Ticket(part.changes))
    }

    /// Keeps what was looked up with a ticket.
    pub(crate) fn keep(&self, key: &OsdKey, entry: Arc<Entry>, ticket: Ticket) {
        let mut part = self.part(key);
        if part.changes == ticket.0 {
            // Copied: the key is a slice of a whole request.
            part.entries.insert(OsdKey::copy_from_slice(key), entry);
        }
    }

    /// The key has changed.
    pub(crate) fn forget(&self, key: &OsdKey) {
        let mut part = self.part(key);
        part.changes += 1;
        part.entries.remove(key);
    }

    /// Any key may have changed.
    pub(crate) fn forget_all(&self) {
        for part in &self.parts {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            part.changes += 1;
            part.entries.clear();
        }
    }

    /// A verified block of a value: `at` is where it begins in the segment.
    pub(crate) fn block(&self, location: &Location, at: u64) -> Option<Bytes> {
        self.blocks.get(&(location.segment, location.generation, at))
    }

    /// Keeps verified blocks that begin at `at`. They are copied: a block must not keep a large buffer alive.
    pub(crate) fn keep_blocks(&self, location: &Location, at: u64, bytes: &[u8]) {
        let mut at = at;
        for block in bytes.chunks(BLOCK) {
            let key = (location.segment, location.generation, at);
            self.blocks.insert(key, Bytes::copy_from_slice(block));
            at += 4096;
        }
    }
}

#[cfg(test)]
mod tests {
    use alba_core::checksum::Checksum;

    use super::*;

    fn entry(sequence: u64) -> Arc<Entry> {
        let location = Location { segment: 1, generation: 1, sequence, at: 0 };
        let checksum = Checksum::None;
        Arc::new(Entry { location, value_at: 0, len: 0, checksum, since: 0, inline: None })
    }

    #[test]
    fn what_changed_since_it_was_looked_up_is_not_kept() {
        let cache = Cache::new(1 << 20, 1 << 20);
        let key = OsdKey::from_static(b"key");
        let ticket = cache.entry(&key).unwrap_err();
        cache.forget(&key);
        cache.keep(&key, entry(1), ticket);
        assert!(cache.entry(&key).is_err(), "the entry of before the change");
        let ticket = cache.entry(&key).unwrap_err();
        cache.keep(&key, entry(2), ticket);
        assert_eq!(cache.entry(&key).unwrap(), entry(2));
        cache.forget_all();
        assert!(cache.entry(&key).is_err());
    }

    #[test]
    fn memory_is_bounded() {
        let cache = Cache::new(1 << 20, 1 << 20);
        let location = entry(1).location;
        for n in 0..2_000_u64 {
            let key = OsdKey::from(n.to_le_bytes().to_vec());
            let ticket = cache.entry(&key).unwrap_err();
            cache.keep(&key, entry(n), ticket);
            cache.keep_blocks(&location, n * 4096, &[7; 4096]);
        }
        assert!(cache.blocks.weight() <= 1 << 20);
        let entries: u64 = cache.parts.iter().map(|part| part.lock().unwrap().entries.weight()).sum();
        assert!(entries <= 1 << 20);
        assert!(cache.block(&location, 1_999 * 4096).is_some());
    }
}
