//! A batch as bytes: its records, then the commit record that makes it count, then zeros up to the next block boundary.
//!
//! Reading gives a batch whose *headers* are verified; its values are only after [`Batch::values_are_whole`], which
//! only recovery of a possibly torn tail needs.

use alba_core::checksum::Checksum;
use alba_core::env::DiskFile;
use alba_core::env::osd::{OsdKey, StoredValue};
use bytes::Bytes;
use std::io;
use thiserror::Error;

use super::format::{
    BLOCK, Chain, FormatError, INLINE_MAX, Kind, RECORD_HEADER, RecordHeader, Seed, align, batch_crc, offset,
};
use super::segment::Window;

/// What happens to one key: a new value, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub key: OsdKey,
    pub value: Option<StoredValue>,
}

impl Change {
    fn encoded_len(&self) -> u64 {
        let value = self.value.as_ref().map_or(0, |stored| stored.value.len());
        offset(RECORD_HEADER + self.key.len() + value.div_ceil(BLOCK) * 4 + value)
    }
}

/// Bytes a batch takes in a segment, padding included.
pub(crate) fn encoded_len(changes: &[Change]) -> u64 {
    align(changes.iter().map(Change::encoded_len).sum::<u64>() + offset(RECORD_HEADER))
}

/// A batch ready to be written.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// To be written back to back; values are shared, not copied.
    pub parts: Vec<Bytes>,
    /// Where each record begins, from the start of the batch.
    pub offsets: Vec<u64>,
    /// With padding: a multiple of the block size.
    pub len: u64,
}

/// Makes the bytes of a batch. `changes` names every key once and is not empty.
pub(crate) fn encode(seed: &Seed, chain: Chain, changes: &[Change]) -> Result<Encoded, FormatError> {
    let crc = seed.of_batch(chain.sequence);
    let mut parts = Vec::with_capacity(changes.len() * 2 + 1);
    let mut offsets = Vec::with_capacity(changes.len());
    let mut crcs = Vec::with_capacity(changes.len());
    let mut len = 0;
    // Headers gather here until a large value cuts them: small values are copied, large ones shared.
    let mut gathered = Vec::new();
    for (ordinal, change) in (0_u32..).zip(changes) {
        let (kind, value) = match &change.value {
            None => (Kind::Tombstone, Bytes::new()),
            Some(stored) => {
                let len = u32::try_from(stored.value.len())
                    .map_err(|_| FormatError::Field("value too long for a record"))?;
                (Kind::Value { len, checksum: stored.checksum }, stored.value.clone())
            }
        };
        let key_len =
            u16::try_from(change.key.len()).map_err(|_| FormatError::Field("key too long for a record"))?;
        offsets.push(len);
        let header = RecordHeader { kind, key_len, ordinal, chain };
        let before = gathered.len();
        crcs.push(header.encode(crc, &change.key, &crc.table(&value), &mut gathered));
        len += offset(gathered.len() - before) + offset(value.len());
        if value.len() <= INLINE_MAX {
            gathered.extend_from_slice(&value);
        } else {
            parts.push(std::mem::take(&mut gathered).into());
            parts.push(value);
        }
    }
    let count = u32::try_from(changes.len()).map_err(|_| FormatError::Field("too many records"))?;
    let total = len + offset(RECORD_HEADER);
    let kind = Kind::Commit { len: total, crc: batch_crc(&crcs) };
    RecordHeader { kind, key_len: 0, ordinal: count, chain }.encode(crc, &[], &[], &mut gathered);
    let padded = align(total);
    // Less than a block.
    gathered.resize(gathered.len() + usize::try_from(padded - total).unwrap_or(0), 0);
    parts.push(gathered.into());
    Ok(Encoded { parts, offsets, len: padded })
}

/// A record found in a segment.
#[derive(Debug)]
pub(crate) struct Record {
    pub key: OsdKey,
    /// None for a tombstone.
    pub value: Option<RecordValue>,
    /// Where the record begins in its segment.
    pub at: u64,
}

/// The value of a record found in a segment.
#[derive(Debug)]
pub(crate) struct RecordValue {
    pub len: u32,
    pub checksum: Checksum,
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
pub(crate) async fn read(window: &mut Window<'_>, seed: &Seed, at: u64) -> Result<Batch, BatchError> {
    let mut records = Vec::new();
    let mut crcs = Vec::new();
    let mut position = at;
    let mut chain = None;
    loop {
        let fixed = window.get(position, RECORD_HEADER).await?;
        let header = RecordHeader::decode(&fixed)?;
        let head_len = RECORD_HEADER + usize::from(header.key_len) + header.table_len();
        let head = window.get(position, head_len).await?;
        let crc = header.verify(seed, &head)?;
        if *chain.get_or_insert(header.chain) != header.chain
            || offset(records.len()) != u64::from(header.ordinal)
        {
            return Err(FormatError::Field("record of another batch").into());
        }
        let value_at = position + offset(head_len);
        let next = value_at + u64::from(header.value_len());
        let key = head.slice(RECORD_HEADER..RECORD_HEADER + usize::from(header.key_len));
        let value = match header.kind {
            Kind::Tombstone => None,
            Kind::Value { len, checksum } => {
                let table = head.slice(RECORD_HEADER + usize::from(header.key_len)..);
                let inline = match usize::try_from(len) {
                    Ok(small) if small <= INLINE_MAX => {
                        let bytes = window.get(value_at, small).await?;
                        let whole = seed.of_batch(header.chain.sequence).table(&bytes) == table;
                        whole.then_some(bytes)
                    }
                    _ => None,
                };
                Some(RecordValue { len, checksum, inline })
            }
            Kind::Commit { len, crc } => {
                if len != next - at || crc != batch_crc(&crcs) || records.is_empty() {
                    return Err(FormatError::Checksum("batch").into());
                }
                return Ok(Batch { chain: header.chain, records, start: at, end: align(next) });
            }
        };
        crcs.push(crc);
        records.push(Record { key, value, at: position });
        position = next;
    }
}

impl Batch {
    /// Reads and checks all values.
    pub(crate) async fn values_are_whole(&self, file: &dyn DiskFile, seed: &Seed) -> io::Result<bool> {
        let crc = seed.of_batch(self.chain.sequence);
        for record in &self.records {
            let Some(value) = &record.value else { continue };
            if value.inline.is_some() {
                continue;
            }
            let len = usize::try_from(value.len).map_err(io::Error::other)?;
            let table_at = record.at + offset(RECORD_HEADER + record.key.len());
            let table_len = len.div_ceil(BLOCK) * 4;
            let mut bytes = file.read_at(table_at, table_len + len).await?;
            let table = bytes.split_to(table_len);
            if crc.table(&bytes) != table {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
