//! The rows of the index: their keys and what is in them.

use std::collections::BTreeMap;

use alba_core::checksum::Checksum;
use alba_core::env::osd::OsdKey;
use alba_core::kv::{KvError, KvRead};
use serde::{Deserialize, Serialize};

use super::super::format::{INLINE_MAX, RECORD_HEADER, Seed, StoreId, align, blocks, offset, tree_len};

/// Version of the rows. Another one is rebuilt, not read.
pub(super) const VERSION: u32 = 2;

pub(super) const KEY: u8 = b'k';
pub(super) const TOMBSTONE: u8 = b't';
pub(super) const RANGE: u8 = b'r';
pub(super) const SEGMENT: u8 = b's';
pub(super) const SCRUBBED: u8 = b'c';
pub(super) const SCRUB: &[u8] = b"C";
pub(super) const MARK: &[u8] = b"m";

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
    /// Where the value begins in the segment.
    pub value_at: u64,
    pub len: u32,
    pub checksum: Checksum,
    /// Number of the first batch that may have left a record of this key which is dead now and not overwritten yet: a
    /// tombstone of this key has to cover all from there on.
    pub since: u64,
    /// The value itself when it is small.
    pub inline: Option<Vec<u8>>,
}

/// A deleted key of which records may be left in segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tombstone {
    pub location: Location,
    /// Such records are of batches from here on,
    pub since: u64,
    /// and before this one.
    pub until: u64,
}

/// A deleted range of keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Range {
    pub location: Location,
    pub from: Vec<u8>,
    /// Exclusive.
    pub to: Vec<u8>,
    /// It deletes what was written before this batch.
    pub until: u64,
    /// The rows of what it deleted are gone.
    pub swept: bool,
}

impl Range {
    pub(crate) fn covers(&self, key: &[u8]) -> bool {
        *self.from <= *key && *key < *self.to
    }

    pub(super) fn deletes(&self, key: &[u8], entry: &Entry) -> bool {
        entry.location.sequence < self.until && self.covers(key)
    }

    pub(super) fn row(&self) -> Vec<u8> {
        range_row(self.until, &self.from, &self.to)
    }
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

    /// Bytes that its record takes in a segment, about: what compacting has to write again.
    pub(crate) fn footprint(&self, key: &[u8]) -> u64 {
        let head = RECORD_HEADER + key.len() + self.table_len() + tree_len(self.len, &self.checksum);
        let len = u64::from(self.len);
        offset(head) + if len > offset(INLINE_MAX) { align(len) } else { len }
    }

    /// Bytes of the table.
    pub(crate) fn table_len(&self) -> usize {
        // At most 32 KiB.
        usize::try_from(blocks(self.len)).unwrap_or(0) * 4
    }
}

/// How far the segments are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(super) version: u32,
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
    /// That their records take.
    pub bytes: u64,
    /// Tombstones, of keys and ranges.
    pub tombstones: u64,
}

/// What the scrub found in one life of a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubbed {
    /// Which life.
    pub generation: u64,
    /// When it was through, in microseconds of the wall clock (for people).
    pub at_micros: u64,
    /// Values that were read.
    pub values: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them are damaged.
    pub damaged: u64,
}

/// How far the scrub is. It goes through the segments in the order of their numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScrubProgress {
    /// Rounds completed.
    pub rounds: u64,
    /// When the round began, in microseconds of the wall clock.
    pub began_micros: u64,
    /// The next segment.
    pub next: u64,
}

/// What one record of a batch does to the index.
#[derive(Debug)]
pub(crate) enum Effect {
    Set(OsdKey, Entry),
    Delete(OsdKey, Location),
    DeleteRange(Range),
}

/// A batch to be put into the index.
pub(crate) struct Applied {
    /// In any order; each key once.
    pub effects: Vec<Effect>,
    pub segment: u64,
    pub generation: u64,
    pub sequence: u64,
    /// Where the next batch begins.
    pub end: u64,
}

/// What putting batches into the index changed.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// The new sum of value sizes.
    pub used: u64,
    /// What lives in the segments concerned.
    pub live: BTreeMap<u64, Live>,
}

pub(super) fn prefixed(prefix: u8, key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(key.len() + 1);
    row.push(prefix);
    row.extend_from_slice(key);
    row
}

pub(super) fn row(key: &[u8]) -> Vec<u8> {
    prefixed(KEY, key)
}

pub(super) fn segment_row(prefix: u8, number: u64) -> Vec<u8> {
    prefixed(prefix, &number.to_be_bytes())
}

pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, KvError> {
    postcard::from_bytes(bytes).map_err(|error| KvError::Damaged(format!("a row does not decode: {error}")))
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, KvError> {
    postcard::to_stdvec(value).map_err(|error| KvError::Damaged(format!("a row does not encode: {error}")))
}

pub(super) fn get<T: for<'a> Deserialize<'a>>(
    view: &(impl KvRead + ?Sized),
    row: &[u8],
) -> Result<Option<T>, KvError> {
    view.get(row)?.map(|bytes| decode(&bytes)).transpose()
}

/// A batch may delete several ranges, also such that begin alike: all of it is in the row's key.
pub(super) fn range_row(until: u64, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut row = vec![RANGE];
    row.extend(until.to_be_bytes());
    row.extend(offset(from.len()).to_be_bytes());
    row.extend_from_slice(from);
    row.extend_from_slice(to);
    row
}
