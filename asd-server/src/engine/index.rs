//! The index: where the newest value of each key is. A checkpoint of the segments, never the only copy of anything:
//! when it is missing, damaged or of another store it is thrown away and made again from them.
//!
//! Rows: `k`‖key → entry; `s`‖be64(segment) → what lives there; `m` → the mark (how far the segments are applied, and
//! the sum of the value sizes). Entries and mark change in one atomic batch, so after a crash the index is exactly the
//! state after some batch of the history.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;

use alba_core::checksum::Checksum;
use alba_core::env::files;
use alba_core::env::osd::OsdKey;
use alba_core::kv::{Durability, FjallKv, Kv, KvError, KvRead, WriteBatch};
use serde::{Deserialize, Serialize};

use super::format::{RECORD_HEADER, Seed, StoreId, blocks, offset};

/// Version of the rows. Another one is rebuilt, not read.
const VERSION: u32 = 1;

const KEY: u8 = b'k';
const SEGMENT: u8 = b's';
const MARK: &[u8] = b"m";

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
        Ok(Arc::new(FjallKv::open(&self.directory, self.cache_bytes)?))
    }

    fn wipe(&self) -> Result<(), KvError> {
        match files::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(KvError::Io(error.to_string())),
            _ => Ok(()),
        }
    }
}

/// Where a record is, and what its checksums are seeded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Location {
    pub segment: u64,
    pub generation: u64,
    pub sequence: u64,
    /// Where the record begins.
    pub at: u64,
}

/// What the index knows of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub location: Location,
    pub len: u32,
    pub checksum: Checksum,
    /// The value itself when it is small.
    pub inline: Option<Vec<u8>>,
}

impl Location {
    pub(crate) fn seed(&self, store: StoreId) -> Seed {
        Seed { store, segment: self.segment, generation: self.generation }
    }
}

impl Entry {
    /// Where the table of block checksums begins.
    pub(crate) fn table_at(&self, key: &[u8]) -> u64 {
        self.location.at + offset(RECORD_HEADER + key.len())
    }

    /// Where the value begins.
    pub(crate) fn value_at(&self, key: &[u8]) -> u64 {
        self.table_at(key) + u64::from(blocks(self.len)) * 4
    }
}

/// How far the segments are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    version: u32,
    pub store: StoreId,
    pub segment: u64,
    pub generation: u64,
    /// Where the next batch begins.
    pub offset: u64,
    /// Of the last batch applied.
    pub sequence: u64,
    /// Sum of the value sizes, in bytes.
    pub used: u64,
}

/// What of a segment is still in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Live {
    pub values: u64,
    pub bytes: u64,
}

/// A batch to be put into the index.
pub(crate) struct Applied {
    /// In any order; each key once.
    pub entries: Vec<(OsdKey, Option<Entry>)>,
    pub segment: u64,
    pub generation: u64,
    pub sequence: u64,
    /// Where the next batch begins.
    pub end: u64,
}

/// An open index.
pub(crate) struct Index {
    kv: Arc<dyn Kv>,
    store: StoreId,
}

fn row(key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(key.len() + 1);
    row.push(KEY);
    row.extend_from_slice(key);
    row
}

fn segment_row(number: u64) -> Vec<u8> {
    let mut row = vec![SEGMENT];
    row.extend(number.to_be_bytes());
    row
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, KvError> {
    postcard::from_bytes(bytes).map_err(|error| KvError::Damaged(format!("a row does not decode: {error}")))
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, KvError> {
    postcard::to_stdvec(value).map_err(|error| KvError::Damaged(format!("a row does not encode: {error}")))
}

fn get<T: for<'a> Deserialize<'a>>(view: &(impl KvRead + ?Sized), row: &[u8]) -> Result<Option<T>, KvError> {
    view.get(row)?.map(|bytes| decode(&bytes)).transpose()
}

impl Index {
    pub(crate) fn new(kv: Arc<dyn Kv>, store: StoreId) -> Self {
        Self { kv, store }
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

    /// The entries of `keys`, all of one instant.
    pub(crate) fn lookup(&self, keys: &[OsdKey]) -> Result<Vec<Option<Entry>>, KvError> {
        let view = self.kv.snapshot()?;
        keys.iter().map(|key| get(view.as_ref(), &row(key))).collect()
    }

    /// Keys and entries between the bounds.
    pub(crate) fn scan(
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

    /// What lives in each segment that ever held a value, by number.
    pub(crate) fn live(&self) -> Result<BTreeMap<u64, Live>, KvError> {
        let rows =
            self.kv.scan(Bound::Included(&[SEGMENT]), Bound::Excluded(&[SEGMENT + 1]), false, usize::MAX)?;
        let mut live = BTreeMap::new();
        for (row, bytes) in rows {
            let number = row.get(1..).and_then(|digits| digits.try_into().ok()).map(u64::from_be_bytes);
            let number =
                number.ok_or_else(|| KvError::Damaged("a segment's row has another length".into()))?;
            live.insert(number, decode(&bytes)?);
        }
        Ok(live)
    }

    /// Puts batches into the index, in the order of the history; returns the new sum of value sizes. Atomic; durable
    /// some time later.
    pub(crate) fn apply(&self, batches: Vec<Applied>) -> Result<u64, KvError> {
        let Some(last) = batches.last() else {
            return Ok(self.mark()?.map_or(0, |mark| mark.used));
        };
        let mut used = self.mark()?.map_or(0, |mark| mark.used);
        let (segment, generation, end, sequence) = (last.segment, last.generation, last.end, last.sequence);
        // The newest entry of each key so far, and what lives where.
        let mut newest: BTreeMap<OsdKey, Option<Entry>> = BTreeMap::new();
        let mut live: BTreeMap<u64, Live> = BTreeMap::new();
        let segments = |live: &mut BTreeMap<u64, Live>, number: u64| -> Result<Live, KvError> {
            match live.get(&number) {
                Some(found) => Ok(*found),
                None => Ok(get(self.kv.as_ref(), &segment_row(number))?.unwrap_or_default()),
            }
        };
        for (key, entry) in batches.into_iter().flat_map(|batch| batch.entries) {
            let old = match newest.get(&key) {
                Some(old) => old.clone(),
                None => get(self.kv.as_ref(), &row(&key))?,
            };
            if let Some(old) = old {
                let mut there = segments(&mut live, old.location.segment)?;
                there.values = there.values.saturating_sub(1);
                there.bytes = there.bytes.saturating_sub(u64::from(old.len));
                live.insert(old.location.segment, there);
                used = used.saturating_sub(u64::from(old.len));
            }
            if let Some(new) = &entry {
                let mut there = segments(&mut live, new.location.segment)?;
                there.values += 1;
                there.bytes += u64::from(new.len);
                live.insert(new.location.segment, there);
                used += u64::from(new.len);
            }
            newest.insert(key, entry);
        }
        let mut rows = WriteBatch::default();
        for (key, entry) in newest {
            match entry {
                Some(entry) => rows.put(row(&key), encode(&entry)?),
                None => rows.delete(row(&key)),
            }
        }
        for (number, live) in live {
            rows.put(segment_row(number), encode(&live)?);
        }
        let mark =
            Mark { version: VERSION, store: self.store, segment, generation, offset: end, sequence, used };
        rows.put(MARK, encode(&mark)?);
        self.kv.commit(rows, Durability::Eventual)?;
        Ok(used)
    }

    /// Forgets a segment that was removed.
    pub(crate) fn forget_segment(&self, number: u64) -> Result<(), KvError> {
        let mut rows = WriteBatch::default();
        rows.delete(segment_row(number));
        self.kv.commit(rows, Durability::Eventual)
    }

    /// Makes all of it durable.
    pub(crate) fn sync(&self) -> Result<(), KvError> {
        self.kv.sync()
    }
}
