//! A batch as bytes. Version 2: its records (small values behind them), then the commit record that makes it count,
//! zeros up to the next block boundary, then the large values, each on a block boundary. Version 1 has every value
//! behind its record and the commit record at the end.
//!
//! Reading gives a batch whose *headers* are verified; its values are only after [`Batch::values_are_whole`], which
//! only recovery of a possibly torn tail needs.

use std::io;

use alba_core::blake3_tree::LeafTable;
use alba_core::checksum::Checksum;
use alba_core::env::DiskFile;
use alba_core::env::osd::{OsdKey, StoredValue};
use bytes::Bytes;
use thiserror::Error;

use super::format::{
    BLOCK, BLOCK_BYTES, BatchCrc, Chain, FormatError, INLINE_MAX, Kind, RECORD_HEADER, RecordHeader, Seed,
    Version, align, batch_crc, offset, tree_len,
};
use super::segment::Window;

/// What happens to a key, or to a range of them.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// A new value. The tree is there exactly when the checksum is a BLAKE3 root; it leads to that root.
    Set { key: OsdKey, stored: StoredValue, tree: Option<LeafTable> },
    /// None any more.
    Delete { key: OsdKey },
    /// None from `from` to `to`, exclusive, that was written before batch `until` (0: before this one).
    DeleteRange { from: OsdKey, to: OsdKey, until: u64 },
}

impl Change {
    fn key(&self) -> &OsdKey {
        match self {
            Self::Set { key, .. } | Self::Delete { key } | Self::DeleteRange { from: key, .. } => key,
        }
    }

    /// The bytes that belong to the record: value, or end of the range.
    fn value(&self) -> &[u8] {
        match self {
            Self::Set { stored, .. } => &stored.value,
            Self::Delete { .. } => &[],
            Self::DeleteRange { to, .. } => to,
        }
    }

    fn is_inline(&self) -> bool {
        !matches!(self, Self::Set { stored, .. } if stored.value.len() > INLINE_MAX)
    }

    /// Bytes among the records, and bytes behind them.
    fn encoded_len(&self) -> (u64, u64) {
        let value = self.value().len();
        let tree = match self {
            Self::Set { stored, .. } => tree_len(u32::try_from(value).unwrap_or(u32::MAX), &stored.checksum),
            _ => 0,
        };
        let head = offset(RECORD_HEADER + self.key().len() + value.div_ceil(BLOCK) * 4 + tree);
        if self.is_inline() { (head + offset(value), 0) } else { (head, align(offset(value))) }
    }
}

/// Bytes a batch takes in a segment, padding included.
pub(crate) fn encoded_len(changes: &[Change]) -> u64 {
    let (head, body) = changes.iter().map(Change::encoded_len).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    align(head + offset(RECORD_HEADER)) + body
}

/// Where a record and its value are, from the start of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub record: u64,
    pub value: u64,
}

/// A batch ready to be written.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// To be written back to back; large values are shared, not copied.
    pub parts: Vec<Bytes>,
    /// One per change.
    pub places: Vec<Place>,
    /// With padding: a multiple of the block size.
    pub len: u64,
}

/// Padding.
static ZEROS: [u8; BLOCK] = [0; BLOCK];

fn padding(len: u64) -> Bytes {
    // Less than a block.
    let missing = usize::try_from(align(len) - len).unwrap_or(0);
    Bytes::from_static(&ZEROS[..missing])
}

/// Makes the bytes of a batch, in version 2. `changes` is not empty and names every key once.
pub(crate) fn encode(seed: &Seed, chain: Chain, changes: &[Change]) -> Result<Encoded, FormatError> {
    let crc = seed.of_batch(chain.sequence);
    let total = encoded_len(changes);
    let body: u64 = changes.iter().map(|change| change.encoded_len().1).sum();
    let (mut head, mut values) = (Vec::with_capacity(BLOCK), Vec::new());
    let mut places = Vec::with_capacity(changes.len());
    let mut crcs = Vec::with_capacity(changes.len());
    let mut value_at = total - body;
    for (ordinal, change) in (0_u32..).zip(changes) {
        let value = change.value();
        let len =
            u32::try_from(value.len()).map_err(|_| FormatError::Field("value too long for a record"))?;
        let key_len =
            u16::try_from(change.key().len()).map_err(|_| FormatError::Field("key too long for a record"))?;
        let block = if change.is_inline() {
            0
        } else {
            u32::try_from(value_at / BLOCK_BYTES).map_err(|_| FormatError::Field("batch too long"))?
        };
        let (kind, tree) = match change {
            Change::Set { stored, tree, .. } => {
                (Kind::Value { len, checksum: stored.checksum, block }, tree.as_ref())
            }
            Change::Delete { .. } => (Kind::Tombstone, None),
            Change::DeleteRange { until, .. } => (Kind::RangeTombstone { len, until: *until }, None),
        };
        let record = offset(head.len());
        let header = RecordHeader { kind, key_len, ordinal, chain };
        let tree = tree.map_or(&[][..], |tree| tree.as_bytes());
        crcs.push(header.encode(crc, change.key(), &[&crc.table(value), tree], &mut head));
        if change.is_inline() {
            places.push(Place { record, value: offset(head.len()) });
            head.extend_from_slice(value);
        } else {
            places.push(Place { record, value: value_at });
            value_at += align(value.len().try_into().unwrap_or(u64::MAX));
            if let Change::Set { stored, .. } = change {
                values.push(stored.value.clone());
            }
        }
    }
    let count = u32::try_from(changes.len()).map_err(|_| FormatError::Field("too many records"))?;
    let kind = Kind::Commit { len: total, crc: batch_crc(&crcs) };
    RecordHeader { kind, key_len: 0, ordinal: count, chain }.encode(crc, &[], &[], &mut head);
    let mut parts = Vec::with_capacity(2 + values.len() * 2);
    let pad = padding(offset(head.len()));
    parts.extend([head.into(), pad]);
    for value in values {
        let pad = padding(offset(value.len()));
        parts.extend([value, pad]);
    }
    Ok(Encoded { parts, places, len: total })
}

/// A record found in a segment.
#[derive(Debug)]
pub(crate) struct Record {
    pub key: OsdKey,
    pub effect: Effect,
    /// Where the record begins in its segment.
    pub at: u64,
}

/// What a record does.
#[derive(Debug)]
pub(crate) enum Effect {
    Set(RecordValue),
    Delete,
    DeleteRange { to: OsdKey, until: u64 },
}

/// The value of a record found in a segment.
#[derive(Debug)]
pub(crate) struct RecordValue {
    pub len: u32,
    pub checksum: Checksum,
    /// Where it begins in its segment.
    pub at: u64,
    /// The bytes of a small value that is whole.
    pub inline: Option<Bytes>,
}

/// A batch found in a segment: its headers and its commit record are verified.
#[derive(Debug)]
pub(crate) struct Batch {
    pub chain: Chain,
    pub records: Vec<Record>,
    /// Where it begins.
    pub start: u64,
    /// Where the next batch may begin.
    pub end: u64,
}

/// Why no batch could be read.
#[derive(Debug, Error)]
pub(crate) enum BatchError {
    /// There is none, or it is not whole.
    #[error(transparent)]
    Invalid(#[from] FormatError),
    /// The disk failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads the batch that begins at `at`.
pub(crate) async fn read(
    window: &mut Window<'_>,
    version: Version,
    seed: &Seed,
    at: u64,
) -> Result<Batch, BatchError> {
    let mut records = Vec::new();
    let mut crcs = Vec::new();
    let mut position = at;
    // End of the values behind the records.
    let mut values_end = 0;
    let mut chain = None;
    loop {
        let fixed = window.get(position, RECORD_HEADER).await?;
        let header = RecordHeader::decode(&fixed)?;
        let key_end = RECORD_HEADER + usize::from(header.key_len);
        let table_end = key_end + header.table_len();
        let head_len = table_end + header.tree_len(version);
        let head = window.get(position, head_len).await?;
        let header_crc = header.verify(seed, &head)?;
        if *chain.get_or_insert(header.chain) != header.chain
            || offset(records.len()) != u64::from(header.ordinal)
        {
            return Err(FormatError::Field("record of another batch").into());
        }
        let crc = seed.of_batch(header.chain.sequence);
        let behind = position + offset(head_len);
        let mut next = behind + u64::from(header.value_len());
        let key = head.slice(RECORD_HEADER..key_end);
        let table = head.slice(key_end..table_end);
        let effect = match header.kind {
            Kind::Tombstone => Effect::Delete,
            Kind::RangeTombstone { len, until } => {
                let to = small(window, crc, &table, behind, len).await?;
                let to = to.ok_or(FormatError::Checksum("end of a range"))?;
                Effect::DeleteRange { to, until: if until == 0 { header.chain.sequence } else { until } }
            }
            Kind::Value { len, checksum, block } => {
                let value_at = if block == 0 { behind } else { at + u64::from(block) * BLOCK_BYTES };
                let inline = small(window, crc, &table, value_at, len).await?;
                if block > 0 {
                    next = behind;
                    values_end = value_at + align(len.into());
                }
                Effect::Set(RecordValue { len, checksum, at: value_at, inline })
            }
            Kind::Commit { len, crc } => {
                let end = match version {
                    Version::V1 => next,
                    Version::V2 => align(next).max(values_end),
                };
                if len != end - at || crc != batch_crc(&crcs) || records.is_empty() {
                    return Err(FormatError::Checksum("batch").into());
                }
                return Ok(Batch { chain: header.chain, records, start: at, end: align(end) });
            }
        };
        crcs.push(header_crc);
        records.push(Record { key, effect, at: position });
        position = next;
    }
}

/// A small value, when it is one and whole.
async fn small(
    window: &mut Window<'_>,
    crc: BatchCrc,
    table: &[u8],
    at: u64,
    len: u32,
) -> Result<Option<Bytes>, BatchError> {
    match usize::try_from(len) {
        Ok(small) if small <= INLINE_MAX => {
            let bytes = window.get(at, small).await?;
            Ok((crc.table(&bytes) == *table).then_some(bytes))
        }
        _ => Ok(None),
    }
}

impl Batch {
    /// Reads and checks all values.
    pub(crate) async fn values_are_whole(&self, file: &dyn DiskFile, seed: &Seed) -> io::Result<bool> {
        let crc = seed.of_batch(self.chain.sequence);
        for record in &self.records {
            let Effect::Set(value) = &record.effect else { continue };
            if value.inline.is_some() {
                continue;
            }
            let len = usize::try_from(value.len).map_err(io::Error::other)?;
            let table_at = record.at + offset(RECORD_HEADER + record.key.len());
            let table = file.read_at(table_at, len.div_ceil(BLOCK) * 4).await?;
            let bytes = match file.read_at(value.at, len).await {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => return Err(error),
            };
            if crc.table(&bytes) != table {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
