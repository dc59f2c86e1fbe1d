//! Reading values: by the index, verified block by block. What does not verify is never handed out.

use std::io;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{OsdError, OsdKey, StoredValue, ValueSlice};
use bytes::Bytes;

use super::Shared;
use super::format::{BLOCK, BLOCK_BYTES, offset};
use super::index::Entry;

/// Reads the value of an entry.
pub(crate) async fn value(shared: &Shared, key: &OsdKey, entry: &Entry) -> Result<StoredValue, OsdError> {
    let checksum: Checksum = entry.checksum;
    if let Some(inline) = &entry.inline {
        return Ok(StoredValue { value: inline.clone().into(), checksum });
    }
    let table_len = usize_of(entry.len.div_ceil(4096)) * 4;
    let len = usize_of(entry.len);
    // Table and value are neighbours: one read.
    let mut bytes = read(shared, key, entry, entry.table_at(key), table_len + len).await?;
    let table = bytes.split_to(table_len);
    verify(shared, key, entry, 0, &table, &bytes)?;
    Ok(StoredValue { value: bytes, checksum })
}

/// Reads slices of the value of an entry; only the blocks they touch.
pub(crate) async fn slices(
    shared: &Shared,
    key: &OsdKey,
    entry: &Entry,
    slices: &[ValueSlice],
) -> Result<Vec<Bytes>, OsdError> {
    let outside = |slice: &&ValueSlice| slice.offset.checked_add(slice.len).is_none_or(|end| end > entry.len);
    if let Some(slice) = slices.iter().find(outside) {
        return Err(OsdError::BadRequest(format!(
            "slice of {} bytes at {} is outside the value of {} bytes",
            slice.len, slice.offset, entry.len
        )));
    }
    let mut found = Vec::with_capacity(slices.len());
    for slice in slices {
        found.push(one_slice(shared, key, entry, *slice).await?);
    }
    Ok(found)
}

async fn one_slice(
    shared: &Shared,
    key: &OsdKey,
    entry: &Entry,
    slice: ValueSlice,
) -> Result<Bytes, OsdError> {
    let (start, len) = (usize_of(slice.offset), usize_of(slice.len));
    if let Some(inline) = &entry.inline {
        let found = inline.get(start..start + len).map(Bytes::copy_from_slice);
        return found.ok_or_else(|| shared.damaged(key, "its value in the index is cut off"));
    }
    if len == 0 {
        return Ok(Bytes::new());
    }
    let first = start / BLOCK;
    let end = start + len;
    let past = end.div_ceil(BLOCK);
    let covered_end = (past * BLOCK).min(usize_of(entry.len));
    let table_at = entry.table_at(key) + offset(first) * 4;
    let value_at = entry.value_at(key) + offset(first) * BLOCK_BYTES;
    let table = read(shared, key, entry, table_at, (past - first) * 4).await?;
    let covered = read(shared, key, entry, value_at, covered_end - first * BLOCK).await?;
    // A value has at most 2^32 bytes, so its blocks are counted in 32 bits.
    let first_block = slice.offset / 4096;
    verify(shared, key, entry, first_block, &table, &covered)?;
    Ok(covered.slice(start - first * BLOCK..end - first * BLOCK))
}

/// A 32-bit length in memory: `usize` has at least 32 bits on every platform we build for.
fn usize_of(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

async fn read(shared: &Shared, key: &OsdKey, entry: &Entry, at: u64, len: usize) -> Result<Bytes, OsdError> {
    let segment = entry.location.segment;
    let result = match shared.files.get(segment).await {
        Ok(file) => file.read_at(at, len).await,
        Err(error) => Err(error),
    };
    result.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => {
            shared.damaged(key, &format!("segment {segment:016x} is gone or cut off"))
        }
        _ => {
            shared.status.read_failed(&error);
            OsdError::Device(format!("cannot read segment {segment:016x}: {error}"))
        }
    })
}

/// Compares blocks, from number `first` on, with their checksums.
fn verify(
    shared: &Shared,
    key: &OsdKey,
    entry: &Entry,
    first: u32,
    table: &[u8],
    blocks: &[u8],
) -> Result<(), OsdError> {
    let crc = entry.location.seed(shared.store).of_batch(entry.location.sequence);
    for (number, (block, stored)) in (first..).zip(blocks.chunks(BLOCK).zip(table.chunks(4))) {
        if crc.block(number, block).to_le_bytes() != stored {
            let reason = format!("block {number} in segment {:016x}", entry.location.segment);
            return Err(shared.damaged(key, &reason));
        }
    }
    Ok(())
}
