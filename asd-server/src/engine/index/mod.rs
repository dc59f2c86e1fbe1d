//! The index: where the newest value of each key is. A checkpoint of the segments, never the only copy of anything:
//! when it is missing, damaged or of another store it is thrown away and made again from them.
//!
//! Rows: `k`‖key → entry; `t`‖key → what a tombstone still covers; `r`‖be64(until)‖its ends → a deleted range;
//! `s`‖be64(segment) → what lives there; `c`‖be64(segment) → what the scrub found there; `C` → how far the scrub is; `m`
//! → the mark (how far the segments are applied, and the sum of the value sizes). Rows and mark change in one atomic
//! batch, so after a crash the index is exactly the state after some batch of the history.

mod change;
mod rows;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use alba_core::env::files;
use alba_core::env::osd::OsdKey;
use alba_core::kv::{Durability, FjallKv, Kv, KvError, WriteBatch};
use serde::Deserialize;

use super::format::StoreId;
use change::Change;
pub use rows::Scrubbed;
pub(crate) use rows::{
    Applied, Changed, Effect, Entry, Live, Location, Mark, Range, ScrubProgress, Tombstone,
};
use rows::{
    KEY, MARK, RANGE, SCRUB, SCRUBBED, SEGMENT, TOMBSTONE, VERSION, decode, encode, get, prefixed, range_row,
    row, segment_row,
};

/// Rows in memory before they go to a file, in bytes: some twenty thousand.
const MEMTABLE_BYTES: u64 = 4 << 20;

/// Opens the index's store, and throws it away when it is of no use. Calls may wait for a disk.
pub trait IndexStore: Send + Sync + 'static {
    /// Opens it, creating it when it is absent.
    fn open(&self) -> Result<Arc<dyn Kv>, KvError>;

    /// Removes all of it. It is not open.
    fn wipe(&self) -> Result<(), KvError>;
}

/// The index in fjall, in a directory of its own.
pub struct FjallIndex {
    /// The directory.
    pub directory: PathBuf,
    /// Bound of its block cache, in bytes.
    pub cache_bytes: u64,
}

impl IndexStore for FjallIndex {
    fn open(&self) -> Result<Arc<dyn Kv>, KvError> {
        Ok(Arc::new(FjallKv::open_with(&self.directory, self.cache_bytes, MEMTABLE_BYTES)?))
    }

    fn wipe(&self) -> Result<(), KvError> {
        match files::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(KvError::Io(error.to_string())),
            _ => Ok(()),
        }
    }
}

/// An open index.
pub(crate) struct Index {
    kv: Arc<dyn Kv>,
    store: StoreId,
    /// Ranges whose deleted keys still have rows, oldest first.
    ranges: RwLock<Arc<Vec<Range>>>,
}

impl Index {
    pub(crate) fn new(kv: Arc<dyn Kv>, store: StoreId) -> Result<Self, KvError> {
        let index = Self { kv, store, ranges: RwLock::default() };
        let unswept = index.all_ranges()?.into_iter().filter(|range| !range.swept).collect();
        index.set_unswept(unswept);
        Ok(index)
    }

    /// The mark; none in an index that was never written, and an error in one of another store or version.
    pub(crate) fn mark(&self) -> Result<Option<Mark>, KvError> {
        let Some(mark) = get::<Mark>(self.kv.as_ref(), MARK)? else {
            return Ok(None);
        };
        if mark.version != VERSION || mark.store != self.store {
            return Err(KvError::Damaged("index of another store or version".into()));
        }
        Ok(Some(mark))
    }

    /// Ranges whose deleted keys still have rows. No code panics while it holds the lock.
    pub(crate) fn unswept(&self) -> Arc<Vec<Range>> {
        self.ranges.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_unswept(&self, ranges: Vec<Range>) {
        *self.ranges.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ranges);
    }

    fn all_ranges(&self) -> Result<Vec<Range>, KvError> {
        let rows =
            self.kv.scan(Bound::Included(&[RANGE]), Bound::Excluded(&[RANGE + 1]), false, usize::MAX)?;
        rows.iter().map(|(_, bytes)| decode(bytes)).collect()
    }

    /// The entries of `keys`, all of one instant.
    pub(crate) fn lookup(&self, keys: &[OsdKey]) -> Result<Vec<Option<Entry>>, KvError> {
        // A new range appears together with the rows of its batch (see `apply`); one that was swept leaves no rows.
        let guard = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (ranges, view) = (guard.clone(), self.kv.snapshot()?);
        drop(guard);
        let find = |key: &OsdKey| {
            let entry = get::<Entry>(view.as_ref(), &row(key))?;
            Ok(entry.filter(|entry| !ranges.iter().any(|range| range.deletes(key, entry))))
        };
        keys.iter().map(find).collect()
    }

    /// What is left of a deleted key.
    pub(crate) fn tombstone(&self, key: &[u8]) -> Result<Option<Tombstone>, KvError> {
        get(self.kv.as_ref(), &prefixed(TOMBSTONE, key))
    }

    /// What is left of a range that was deleted before batch `until`.
    pub(crate) fn range(&self, until: u64, from: &[u8], to: &[u8]) -> Result<Option<Range>, KvError> {
        get(self.kv.as_ref(), &range_row(until, from, to))
    }

    /// Keys and entries between the bounds.
    pub(crate) fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<(OsdKey, Entry)>, KvError> {
        let mut found = Vec::new();
        let (mut lower, mut upper) = (lower.map(<[u8]>::to_vec), upper.map(<[u8]>::to_vec));
        while found.len() < limit {
            let ranges = self.unswept();
            let wanted = limit - found.len();
            let bounds = (lower.as_ref().map(Vec::as_slice), upper.as_ref().map(Vec::as_slice));
            let rows = self.scan_rows(bounds.0, bounds.1, reverse, wanted)?;
            let (all, last) = (rows.len() < wanted, rows.last().map(|(key, _)| key.to_vec()));
            let deleted =
                |(key, entry): &(OsdKey, Entry)| ranges.iter().any(|range| range.deletes(key, entry));
            found.extend(rows.into_iter().filter(|row| !deleted(row)));
            match last {
                Some(last) if !all && reverse => upper = Bound::Excluded(last),
                Some(last) if !all => lower = Bound::Excluded(last),
                _ => break,
            }
        }
        Ok(found)
    }

    /// Rows between the bounds, those that a range has deleted included.
    fn scan_rows(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<(OsdKey, Entry)>, KvError> {
        let lower = match lower {
            Bound::Included(key) => Bound::Included(row(key)),
            Bound::Excluded(key) => Bound::Excluded(row(key)),
            Bound::Unbounded => Bound::Included(vec![KEY]),
        };
        let upper = match upper {
            Bound::Included(key) => Bound::Included(row(key)),
            Bound::Excluded(key) => Bound::Excluded(row(key)),
            Bound::Unbounded => Bound::Excluded(vec![KEY + 1]),
        };
        let bounds = (lower.as_ref().map(Vec::as_slice), upper.as_ref().map(Vec::as_slice));
        let rows = self.kv.scan(bounds.0, bounds.1, reverse, limit)?;
        rows.into_iter().map(|(row, bytes)| Ok((OsdKey::from(row).slice(1..), decode(&bytes)?))).collect()
    }

    /// What lives in each segment that holds anything, by number.
    pub(crate) fn live(&self) -> Result<BTreeMap<u64, Live>, KvError> {
        self.by_segment(SEGMENT)
    }

    /// What the scrub found, by segment.
    pub(crate) fn scrubbed(&self) -> Result<BTreeMap<u64, Scrubbed>, KvError> {
        self.by_segment(SCRUBBED)
    }

    fn by_segment<T: for<'a> Deserialize<'a>>(&self, prefix: u8) -> Result<BTreeMap<u64, T>, KvError> {
        let rows =
            self.kv.scan(Bound::Included(&[prefix]), Bound::Excluded(&[prefix + 1]), false, usize::MAX)?;
        let mut found = BTreeMap::new();
        for (row, bytes) in rows {
            let number = row.get(1..).and_then(|digits| digits.try_into().ok()).map(u64::from_be_bytes);
            let number =
                number.ok_or_else(|| KvError::Damaged("a segment's row has another length".into()))?;
            found.insert(number, decode(&bytes)?);
        }
        Ok(found)
    }

    /// How far the scrub is.
    pub(crate) fn scrub_progress(&self) -> Result<ScrubProgress, KvError> {
        Ok(get(self.kv.as_ref(), SCRUB)?.unwrap_or_default())
    }

    /// Remembers what the scrub found in a segment, and how far it is.
    pub(crate) fn set_scrubbed(
        &self,
        found: Option<(u64, Scrubbed)>,
        progress: &ScrubProgress,
    ) -> Result<(), KvError> {
        let mut rows = WriteBatch::default();
        if let Some((number, found)) = found {
            rows.put(segment_row(SCRUBBED, number), encode(&found)?);
        }
        rows.put(SCRUB, encode(progress)?);
        self.kv.commit(rows, Durability::Eventual)
    }

    /// Puts batches into the index, in the order of the history. Atomic; durable some time later.
    pub(crate) fn apply(&self, batches: Vec<Applied>) -> Result<Changed, KvError> {
        let mut change = Change::begin(self)?;
        let Some(last) = batches.last() else {
            return Ok(Changed { used: change.used, live: BTreeMap::new() });
        };
        let at = (last.segment, last.generation, last.end, last.sequence);
        let mut new_ranges = Vec::new();
        for batch in batches {
            for effect in batch.effects {
                match effect {
                    Effect::Set(key, entry) => change.set(key, entry)?,
                    Effect::Delete(key, location) => change.delete(key, location)?,
                    Effect::DeleteRange(range) => {
                        if let Some(new) = change.delete_range(range)? {
                            new_ranges.push(new);
                        }
                    }
                }
            }
        }
        let (segment, generation, offset, sequence) = at;
        let used = change.used;
        let mark = Mark { version: VERSION, store: self.store, segment, generation, offset, sequence, used };
        if new_ranges.is_empty() {
            return change.commit(Some(mark));
        }
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let changed = change.commit(Some(mark))?;
        new_ranges.splice(0..0, ranges.iter().cloned());
        *ranges = Arc::new(new_ranges);
        Ok(changed)
    }

    /// Forgets tombstones that are not needed any more, unless they changed since they were looked at.
    pub(crate) fn forget_tombstones(
        &self,
        keys: &[(OsdKey, Tombstone)],
        ranges: &[Range],
    ) -> Result<Changed, KvError> {
        let mut change = Change::begin(self)?;
        for (key, tombstone) in keys {
            change.forget(key, tombstone)?;
        }
        for range in ranges {
            change.forget_range(range)?;
        }
        change.commit(None)
    }

    /// Removes rows of what `range` has deleted; true when there are none left.
    pub(crate) fn sweep(&self, range: &Range, limit: usize) -> Result<(Changed, bool), KvError> {
        let mut change = Change::begin(self)?;
        let (from, to) = (Bound::Included(&*range.from), Bound::Excluded(&*range.to));
        let mut lower = from.map(<[u8]>::to_vec);
        let mut removed = 0;
        // Newer keys in the range stay, and are stepped over.
        let done = loop {
            let rows = self.scan_rows(lower.as_ref().map(Vec::as_slice), to, false, limit)?;
            let (all, last) = (rows.len() < limit, rows.last().map(|(key, _)| key.to_vec()));
            for (key, entry) in rows {
                if range.deletes(&key, &entry) {
                    removed += 1;
                    change.remove(key, &entry)?;
                }
            }
            match last {
                Some(last) if !all => lower = Bound::Excluded(last),
                _ => break true,
            }
            if removed >= limit {
                break false;
            }
        };
        if done && let Some(mut found) = get::<Range>(self.kv.as_ref(), &range.row())? {
            found.swept = true;
            change.rows.put(range.row(), encode(&found)?);
        }
        let changed = change.commit(None)?;
        if done {
            let same = |other: &Range| other.row() == range.row();
            let left = self.unswept().iter().filter(|other| !same(other)).cloned().collect();
            self.set_unswept(left);
        }
        Ok((changed, done))
    }

    /// Forgets a segment that begins another life.
    pub(crate) fn forget_segment(&self, number: u64) -> Result<(), KvError> {
        let mut rows = WriteBatch::default();
        rows.delete(segment_row(SEGMENT, number));
        rows.delete(segment_row(SCRUBBED, number));
        self.kv.commit(rows, Durability::Eventual)
    }

    /// Makes all of it durable.
    pub(crate) fn sync(&self) -> Result<(), KvError> {
        self.kv.sync()
    }
}
