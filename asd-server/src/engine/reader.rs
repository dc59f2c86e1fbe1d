//! Reading values: by the index, verified block by block. What does not verify is never handed out.

use std::io;

use alba_core::blake3_tree::LeafTable;
use alba_core::checksum::Checksum;
use alba_core::env::computing;
use alba_core::env::osd::{OsdError, OsdKey, ProvenSlice, StoredValue, ValueSlice};
use bytes::{Bytes, BytesMut};

use super::Shared;
use super::format::{BLOCK, BLOCK_BYTES, INLINE_MAX, offset, tree_len};
use super::index::Entry;

/// Slices up to this size are kept in memory once they were read, in bytes.
const CACHED_MAX: usize = 64 * 1024;

/// A table and a value that are not further apart are read together, in bytes.
const NEIGHBOURS: usize = 64 * 1024;

/// Values from this size on are hashed where it may take a while.
const HASH_INLINE: usize = 64 * 1024;

/// Reads the value of an entry.
pub(crate) async fn value(shared: &Shared, key: &OsdKey, entry: &Entry) -> Result<StoredValue, OsdError> {
    let checksum: Checksum = entry.checksum;
    if let Some(inline) = &entry.inline {
        return Ok(StoredValue { value: inline.clone().into(), checksum });
    }
    let (table_at, table_len, len) = (entry.table_at(key), entry.table_len(), usize_of(entry.len));
    let (table, bytes) = match usize::try_from(entry.value_at - table_at) {
        // Neighbours: one read.
        Ok(gap) if gap <= NEIGHBOURS => {
            let mut both = read(shared, key, entry, table_at, gap + len).await?;
            let value = both.split_off(gap);
            (both.slice(..table_len), value)
        }
        _ => tokio::try_join!(
            read(shared, key, entry, table_at, table_len),
            read(shared, key, entry, entry.value_at, len),
        )?,
    };
    verify(shared, key, entry, 0, &table, &bytes)?;
    Ok(StoredValue { value: bytes, checksum })
}

fn check_slice(entry: &Entry, slice: &ValueSlice) -> Result<(), OsdError> {
    if slice.offset.checked_add(slice.len).is_some_and(|end| end <= entry.len) {
        return Ok(());
    }
    Err(OsdError::BadRequest(format!(
        "slice of {} bytes at {} is outside the value of {} bytes",
        slice.len, slice.offset, entry.len
    )))
}

/// Reads slices of the value of an entry; only the blocks they touch.
pub(crate) async fn slices(
    shared: &Shared,
    key: &OsdKey,
    entry: &Entry,
    slices: &[ValueSlice],
) -> Result<Vec<Bytes>, OsdError> {
    slices.iter().try_for_each(|slice| check_slice(entry, slice))?;
    let mut found = Vec::with_capacity(slices.len());
    for slice in slices {
        found.push(match slice_in_memory(shared, entry, *slice) {
            Some(bytes) => bytes,
            None => one_slice(shared, key, entry, *slice).await?,
        });
    }
    Ok(found)
}

/// A slice of which all is in memory. It is inside the value.
pub(crate) fn slice_in_memory(shared: &Shared, entry: &Entry, slice: ValueSlice) -> Option<Bytes> {
    let (start, len) = (usize_of(slice.offset), usize_of(slice.len));
    if len == 0 {
        return Some(Bytes::new());
    }
    if let Some(inline) = &entry.inline {
        return inline.get(start..start + len).map(Bytes::copy_from_slice);
    }
    if len > CACHED_MAX {
        return None;
    }
    let (first, past) = (start / BLOCK, (start + len).div_ceil(BLOCK));
    let block = |nth: usize| shared.cache.block(&entry.location, entry.value_at + offset(nth) * BLOCK_BYTES);
    let skip = start - first * BLOCK;
    if past == first + 1 {
        let block = block(first)?;
        return (skip + len <= block.len()).then(|| block.slice(skip..skip + len));
    }
    let mut all = BytesMut::with_capacity((past - first) * BLOCK);
    for nth in first..past {
        all.extend_from_slice(&block(nth)?);
    }
    (skip + len <= all.len()).then(|| all.freeze().slice(skip..skip + len))
}

async fn one_slice(
    shared: &Shared,
    key: &OsdKey,
    entry: &Entry,
    slice: ValueSlice,
) -> Result<Bytes, OsdError> {
    let (start, len) = (usize_of(slice.offset), usize_of(slice.len));
    if entry.inline.is_some() {
        // Else it would have been found in memory.
        return Err(shared.damaged(key, "its value in the index is cut off"));
    }
    let first = start / BLOCK;
    let end = start + len;
    let past = end.div_ceil(BLOCK);
    let covered_end = (past * BLOCK).min(usize_of(entry.len));
    let table_at = entry.table_at(key) + offset(first) * 4;
    let value_at = entry.value_at + offset(first) * BLOCK_BYTES;
    // At once: on a busy disk each read waits, and only the longer one of two should be felt.
    let (table, covered) = tokio::try_join!(
        read(shared, key, entry, table_at, (past - first) * 4),
        read(shared, key, entry, value_at, covered_end - first * BLOCK),
    )?;
    // A value has at most 2^32 bytes, so its blocks are counted in 32 bits.
    let first_block = slice.offset / 4096;
    verify(shared, key, entry, first_block, &table, &covered)?;
    if len <= CACHED_MAX {
        shared.cache.keep_blocks(&entry.location, value_at, &covered);
    }
    Ok(covered.slice(start - first * BLOCK..end - first * BLOCK))
}

/// A slice with its proof. The value has a BLAKE3 root.
pub(crate) async fn proven(
    shared: &Shared,
    key: &OsdKey,
    entry: &Entry,
    slice: ValueSlice,
) -> Result<ProvenSlice, OsdError> {
    if !matches!(entry.checksum, Checksum::Blake3(_)) {
        return Err(OsdError::BadRequest("the value has no BLAKE3 root: read it without a proof".into()));
    }
    check_slice(entry, &slice)?;
    let refused = |error: alba_core::blake3_tree::TreeError| OsdError::BadRequest(error.to_string());
    let leaves = LeafTable::covering(entry.len, slice).map_err(refused)?;
    let covering = ValueSlice { offset: leaves.start, len: leaves.end - leaves.start };
    let wanted = [covering];
    let (tree, mut bytes) = tokio::try_join!(tree(shared, key, entry), slices(shared, key, entry, &wanted))?;
    let bytes = bytes.pop().unwrap_or_default();
    let proof = tree.prove(slice).map_err(refused)?;
    Ok(ProvenSlice { value_len: entry.len, leaves: bytes, proof })
}

/// The tree of a value with a BLAKE3 root; made again from the value when the one kept beside it does not lead to the
/// root.
pub(crate) async fn tree(shared: &Shared, key: &OsdKey, entry: &Entry) -> Result<LeafTable, OsdError> {
    let Checksum::Blake3(root) = entry.checksum else {
        return Err(OsdError::BadRequest("the value has no BLAKE3 root".into()));
    };
    // Values of segments of version 1 have none beside them; there the bytes found are others, and do not lead to it.
    let len = tree_len(entry.len, &entry.checksum);
    if len > 0 && entry.value_at.is_multiple_of(BLOCK_BYTES) && usize_of(entry.len) > INLINE_MAX {
        let at = entry.table_at(key) + offset(entry.table_len());
        let kept = read(shared, key, entry, at, len).await?;
        if let Ok(tree) = LeafTable::parse(root, entry.len, kept) {
            return Ok(tree);
        }
        metrics::counter!("alba_osd_trees_recomputed_total").increment(1);
    }
    let value = value(shared, key, entry).await?.value;
    let tree = hash(shared, value).await?;
    if tree.root() == root { Ok(tree) } else { Err(shared.damaged(key, "it has another BLAKE3 root")) }
}

/// The tree of a value.
pub(crate) async fn hash(shared: &Shared, value: Bytes) -> Result<LeafTable, OsdError> {
    let tree = if value.len() < HASH_INLINE {
        LeafTable::of(&value)
    } else {
        let done = computing(shared.sources.spawn.as_ref(), move || LeafTable::of(&value)).await;
        done.map_err(|gone| OsdError::Device(gone.to_string()))?
    };
    tree.map_err(|error| OsdError::BadRequest(error.to_string()))
}

/// A 32-bit length in memory: `usize` has at least 32 bits on every platform we build for.
fn usize_of(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

async fn read(shared: &Shared, key: &OsdKey, entry: &Entry, at: u64, len: usize) -> Result<Bytes, OsdError> {
    let (segment, generation) = (entry.location.segment, entry.location.generation);
    let gone = |what: &str| shared.damaged(key, &format!("segment {segment:016x} {what}"));
    let result = match shared.files.pin(segment, generation).await {
        Ok(Some(pinned)) => pinned.file.read_at(at, len).await,
        // The caller looks whether the key has a new value by now.
        Ok(None) => return Err(OsdError::Damaged(format!("segment {segment:016x} is gone"))),
        Err(error) => Err(error),
    };
    result.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => gone("is gone or cut off"),
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
