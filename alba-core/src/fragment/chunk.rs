//! A chunk's bytes as fragments and back, without copying what need not be.

use bytes::{Bytes, BytesMut};

use crate::checksum::Checksum;
use crate::erasure::{self, Apart, CodeError};
use crate::ids::FragmentIndex;
use crate::manifest::{Fragment, PackedFragment, VerifiedFragment};
use crate::policy::CodeShape;

/// Makes a chunk buffer `size` bytes long: cuts, or fills with zeros (never with what was in memory).
pub fn pad(mut buffer: BytesMut, size: usize) -> Bytes {
    buffer.resize(size, 0);
    buffer.freeze()
}

/// The k data fragments of a padded chunk: slices of its buffer.
pub fn split(chunk: &Bytes, shape: CodeShape) -> Result<Vec<Bytes>, CodeError> {
    let k = shape.k();
    let len = chunk.len() / k;
    if len * k != chunk.len() {
        return Err(CodeError::Length {
            expected: len.saturating_add(1).saturating_mul(k),
            found: chunk.len(),
        });
    }
    Ok((0..k).map(|index| chunk.slice(index * len..(index + 1) * len)).collect())
}

/// All k + m fragments of a padded chunk, in order: data as slices of its buffer, replicas as the buffer itself, parity
/// as slices of one new buffer.
pub fn encode_chunk(chunk: &Bytes, shape: CodeShape) -> Result<Vec<Bytes>, CodeError> {
    if shape.is_replication() {
        return Ok(vec![chunk.clone(); shape.total()]);
    }
    let mut fragments = split(chunk, shape)?;
    let data: Vec<&[u8]> = fragments.iter().map(|fragment| &fragment[..]).collect();
    let parity = fill(shape.m(), chunk.len() / shape.k(), chunk, |buffers| {
        erasure::code(shape).encode(&data, buffers)
    })?;
    fragments.extend(parity);
    Ok(fragments)
}

/// The wanted fragments, data or parity, computed from any k present ones (plain bytes); nothing else is computed.
pub fn regenerate(
    shape: CodeShape,
    present: &[(FragmentIndex, Bytes)],
    wanted: &[FragmentIndex],
) -> Result<Vec<Bytes>, CodeError> {
    let len = present.first().map_or(0, |(_, bytes)| bytes.len());
    let sources: Vec<(FragmentIndex, &[u8])> =
        present.iter().map(|(index, bytes)| (*index, &bytes[..])).collect();
    let like = present.first().map_or(&[][..], |(_, bytes)| &bytes[..]);
    fill(wanted.len(), len, like, |buffers| {
        let mut targets: Vec<(FragmentIndex, &mut [u8])> =
            wanted.iter().zip(buffers).map(|(index, buffer)| (*index, &mut **buffer)).collect();
        erasure::code(shape).reconstruct(&sources, &mut targets)
    })
}

/// The wanted fragments as they were stored, from any k others, of objects that are stored as they are, neither compressed nor
/// encrypted. Nobody need have looked at the others: every one of the k is in every result (else fewer than k would do), so one
/// whose BLAKE3 root is the manifest's can only have come of the right bytes. None when that cannot be told, or is not so.
pub fn regenerate_proven(
    shape: CodeShape,
    present: Vec<(FragmentIndex, PackedFragment)>,
    wanted: &[(FragmentIndex, Fragment)],
) -> Option<Vec<VerifiedFragment>> {
    let provable = |entry: &Fragment| matches!(entry.checksum, Checksum::Blake3(_)) && entry.ctr.is_none();
    if !wanted.iter().all(|(_, entry)| provable(entry)) {
        return None;
    }
    let present: Vec<(FragmentIndex, Bytes)> =
        present.into_iter().map(|(index, packed)| (index, packed.0)).collect();
    let indexes: Vec<FragmentIndex> = wanted.iter().map(|(index, _)| *index).collect();
    let made = regenerate(shape, &present, &indexes).ok()?;
    made.into_iter().zip(wanted).map(|(bytes, (_, entry))| PackedFragment(bytes).verify(entry).ok()).collect()
}

/// The k data fragments of a chunk, in order, from any k present ones: the present ones as they are, only the missing
/// ones computed.
pub fn data_fragments(shape: CodeShape, present: &[(FragmentIndex, Bytes)]) -> Result<Vec<Bytes>, CodeError> {
    let total = shape.total();
    if let Some((index, _)) = present.iter().find(|(index, _)| index.index() >= total) {
        return Err(CodeError::Index { index: *index, total });
    }
    let mut data: Vec<Option<Bytes>> = vec![None; shape.k()];
    for (index, bytes) in present {
        // Replicas are all the one data fragment.
        let position = if shape.is_replication() { 0 } else { index.index() };
        if let Some(slot) = data.get_mut(position) {
            *slot = Some(bytes.clone());
        }
    }
    let missing: Vec<FragmentIndex> = (0..)
        .map(FragmentIndex)
        .zip(&data)
        .filter(|(_, slot)| slot.is_none())
        .map(|(index, _)| index)
        .collect();
    let mut computed =
        if missing.is_empty() { Vec::new() } else { regenerate(shape, present, &missing)? }.into_iter();
    let data: Vec<Bytes> = data.into_iter().filter_map(|slot| slot.or_else(|| computed.next())).collect();
    let expected = data.first().map_or(0, Bytes::len);
    match data.iter().find(|fragment| fragment.len() != expected) {
        Some(odd) => Err(CodeError::Length { expected, found: odd.len() }),
        None => Ok(data),
    }
}

/// A chunk's data fragments without the padding: slices that together have `plain_len` bytes (fewer if there are no
/// more).
pub fn trim(fragments: Vec<Bytes>, plain_len: usize) -> Vec<Bytes> {
    let mut left = plain_len;
    let mut trimmed = Vec::with_capacity(fragments.len());
    for mut fragment in fragments {
        fragment.truncate(left);
        left -= fragment.len();
        if !fragment.is_empty() {
            trimmed.push(fragment);
        }
    }
    trimmed
}

/// `count` buffers of `len` bytes in one allocation, filled by `fill` from `like` and its neighbours.
fn fill(
    count: usize,
    len: usize,
    like: &[u8],
    fill: impl FnOnce(&mut [&mut [u8]]) -> Result<(), CodeError>,
) -> Result<Vec<Bytes>, CodeError> {
    // At most 255 fragments of at most 2 GiB.
    let mut buffer = BytesMut::zeroed(Apart::memory(count, len));
    let places = Apart::new(&buffer, count, len, like);
    fill(&mut places.split(&mut buffer))?;
    let whole = buffer.freeze();
    Ok((0..count).map(|index| whole.slice(places.range(index))).collect())
}
