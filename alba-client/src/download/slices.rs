//! Parts of objects: only the bytes asked for are read where the fragments allow it (wire-protocol §2.4, features §2.8).

use std::collections::BTreeMap;
use std::sync::Arc;

use alba_core::env::Deadline;
use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceName, ObjectName};
use alba_core::layout::{CheckedSlices, ChunkMap, Piece, SliceError, SliceRequest, check_slices};
use bytes::Bytes;
use futures_util::stream::{self, FuturesUnordered, StreamExt};

use super::chunk::{ChunkReader, Failure, Had, LEAF};
use super::fetch::Part;
use super::inline::{self, Now};
use super::{Found, find, find_newer};
use crate::engine::Engine;
use crate::keys::Keys;
use crate::{ClientError, Consistency, Slice, SlicesRead, StoredObject};

/// Objects of one request read at once.
const OBJECTS_AT_ONCE: usize = 8;

/// Chunks of one object read at once.
const CHUNKS_AT_ONCE: usize = 8;

/// Reads the slices of each entry, all or nothing.
pub(crate) async fn read_slices(
    engine: &Arc<Engine>,
    namespace: &NamespaceName,
    requests: Vec<(ObjectName, Vec<Slice>)>,
    consistency: Consistency,
    deadline: Deadline,
) -> Result<SlicesRead, ClientError> {
    if requests.is_empty() {
        // As the original: not even the namespace is looked at.
        return Ok(SlicesRead { data: Vec::new(), objects: Vec::new(), _room: Default::default() });
    }
    let names: Vec<ObjectName> = requests.iter().map(|(name, _)| name.clone()).collect();
    let found = find(engine, namespace, &names, consistency, deadline).await?;
    let mut entries = Vec::with_capacity(requests.len());
    let mut total = 0_u64;
    for ((name, slices), found) in requests.into_iter().zip(found) {
        let found = found.ok_or(ClientError::ObjectUnknown(name))?;
        let asked: Vec<SliceRequest> =
            slices.iter().map(|slice| SliceRequest { offset: slice.offset, len: slice.length }).collect();
        total += u64::from(check(&asked, &found.object)?.total());
        entries.push((found, asked));
    }
    let limit = engine.config.max_bytes_in_flight;
    if total > limit {
        return Err(ClientError::TooMuchAtOnce { asked: total, limit });
    }
    let room = engine.buffers.answer(total, deadline).await?;
    let mut reads = stream::iter(entries)
        .map(|(found, asked)| read_entry(engine, namespace, found, asked, deadline))
        .buffered(OBJECTS_AT_ONCE);
    let mut data = Vec::new();
    let mut objects = Vec::new();
    while let Some(read) = reads.next().await {
        let (pieces, object) = read?;
        data.extend(pieces);
        objects.push(object);
    }
    Ok(SlicesRead { data, objects, _room: room })
}

fn check(asked: &[SliceRequest], object: &StoredObject) -> Result<CheckedSlices, ClientError> {
    check_slices(asked, object.manifest.size).map_err(|error| match error {
        SliceError::BadLength { .. } => ClientError::BadSliceLength,
        SliceError::Overlap { .. } => ClientError::OverlappingSlices,
        SliceError::OutsideObject { .. } => ClientError::SliceOutsideObject,
        SliceError::TooMuch { total } => {
            ClientError::TooMuchAtOnce { asked: total, limit: u64::from(u32::MAX) }
        }
    })
}

/// Reads one object's slices. When a cached manifest does not lead to the data, the current one is asked for once.
async fn read_entry(
    engine: &Arc<Engine>,
    namespace: &NamespaceName,
    found: Found,
    asked: Vec<SliceRequest>,
    deadline: Deadline,
) -> Result<(Vec<Bytes>, StoredObject), ClientError> {
    let found = if found.object.manifest.chunks.is_empty() {
        match inline::read(engine, namespace, &found, deadline).await? {
            Now::Here(object, plain) => return Ok((parts(&plain, &asked, &object)?, object)),
            Now::Elsewhere(found) => found,
        }
    } else {
        found
    };
    match read_object(engine, namespace, &found, &asked, deadline).await {
        Err(error @ ClientError::NotEnoughFragments { .. }) if found.from_cache => {
            let Some(newer) = find_newer(engine, namespace, &found.object, deadline).await? else {
                return Err(error);
            };
            let data = read_object(engine, namespace, &newer, &asked, deadline).await?;
            Ok((data, newer.object))
        }
        Err(error) => Err(error),
        Ok(data) => Ok((data, found.object)),
    }
}

/// Slices of an object that is at hand.
fn parts(plain: &Bytes, asked: &[SliceRequest], object: &StoredObject) -> Result<Vec<Bytes>, ClientError> {
    check(asked, object)?;
    let part = |slice: &SliceRequest| {
        let from = usize::try_from(slice.offset).ok()?;
        let to = from.checked_add(usize::try_from(slice.len).ok()?)?;
        plain.get(from..to).map(Bytes::copy_from_slice)
    };
    asked.iter().map(|slice| part(slice).ok_or(ClientError::SliceOutsideObject)).collect()
}

/// A piece with its position in the answer.
type Placed = (usize, Piece);

async fn read_object(
    engine: &Arc<Engine>,
    namespace: &NamespaceName,
    found: &Found,
    asked: &[SliceRequest],
    deadline: Deadline,
) -> Result<Vec<Bytes>, ClientError> {
    let object = &found.object;
    let manifest = &object.manifest;
    let undecodable = |error: alba_core::layout::LayoutError| ClientError::Undecodable {
        object: manifest.name.clone(),
        reason: error.to_string(),
    };
    let slices = check(asked, object)?;
    let map = ChunkMap::new(manifest.chunks.iter().map(|chunk| chunk.size), manifest.scheme.shape)
        .map_err(undecodable)?;
    let plan = map.plan(&slices).map_err(undecodable)?;
    let mut by_chunk: BTreeMap<ChunkIndex, Vec<Placed>> = BTreeMap::new();
    for (position, piece) in plan.iter().enumerate() {
        by_chunk.entry(piece.chunk).or_default().push((position, *piece));
    }
    let mut answer = vec![Bytes::new(); plan.len()];
    let key = Keys::of_object(engine, namespace, &manifest.encryption, deadline).await?;
    let key = key.as_ref();
    let mut reads = stream::iter(by_chunk)
        .map(|(chunk, pieces)| async move {
            let reader = ChunkReader::new(engine, namespace, object, chunk, key, deadline)?;
            read_chunk(&reader, &pieces).await
        })
        .buffer_unordered(CHUNKS_AT_ONCE);
    let mut as_stated = true;
    while let Some(read) = reads.next().await {
        let (pieces, chunk_as_stated) = read?;
        as_stated &= chunk_as_stated;
        for (position, bytes) in pieces {
            if let Some(slot) = answer.get_mut(position) {
                *slot = bytes;
            }
        }
    }
    if found.from_cache && !as_stated {
        // Some fragment is not where the cached manifest says: the next reader shall look anew.
        engine.cache.remove(object.namespace, &manifest.name);
    }
    Ok(answer)
}

/// Pieces of one fragment that are read together.
struct Run {
    fragment: FragmentIndex,
    from: u32,
    to: u32,
    pieces: Vec<Placed>,
}

/// The reads that give these pieces: pieces of a fragment that touch the same leaf, or neighbours, are read together.
fn runs(pieces: &[Placed]) -> Vec<Run> {
    let mut sorted: Vec<Placed> = pieces.to_vec();
    sorted.sort_unstable_by_key(|(position, piece)| (piece.fragment, piece.offset, *position));
    let mut runs: Vec<Run> = Vec::new();
    for placed in sorted {
        let (from, to) = (placed.1.offset, placed.1.offset.saturating_add(placed.1.len));
        match runs.last_mut() {
            Some(run) if run.fragment == placed.1.fragment && from / LEAF <= run.to.div_ceil(LEAF) => {
                run.to = run.to.max(to);
                run.pieces.push(placed);
            }
            _ => runs.push(Run { fragment: placed.1.fragment, from, to, pieces: vec![placed] }),
        }
    }
    runs
}

/// The same with one read per fragment, of all of it.
fn whole_runs(pieces: &[Placed], fragment_len: u32) -> Vec<Run> {
    let mut by_fragment: BTreeMap<FragmentIndex, Vec<Placed>> = BTreeMap::new();
    for placed in pieces {
        by_fragment.entry(placed.1.fragment).or_default().push(*placed);
    }
    by_fragment
        .into_iter()
        .map(|(fragment, pieces)| Run { fragment, from: 0, to: fragment_len, pieces })
        .collect()
}

/// Reads the pieces of one chunk.
async fn read_chunk(
    reader: &ChunkReader<'_>,
    pieces: &[Placed],
) -> Result<Had<Vec<(usize, Bytes)>>, ClientError> {
    if reader.has_parts() {
        match read_runs(reader, runs(pieces), false).await {
            Ok(read) => return Ok(read),
            Err(Failure::Client(error)) => return Err(error),
            Err(Failure::Unproven) => {
                tracing::debug!(object = %reader.manifest.name, chunk = %reader.index, "its parts cannot be verified");
            }
        }
    }
    let _room = reader.engine.buffers.work(reader.footprint(), reader.deadline).await?;
    match read_runs(reader, whole_runs(pieces, reader.fragment_len), true).await {
        Ok(read) => Ok(read),
        Err(Failure::Client(error)) => Err(error),
        Err(Failure::Unproven) => Err(out_of_range(reader)),
    }
}

async fn read_runs(
    reader: &ChunkReader<'_>,
    runs: Vec<Run>,
    has_room: bool,
) -> Result<Had<Vec<(usize, Bytes)>>, Failure> {
    let mut reads: FuturesUnordered<_> = runs
        .into_iter()
        .map(|run| async move {
            let part = if run.from == 0 && run.to == reader.fragment_len {
                Part::Whole
            } else {
                Part::Range { offset: run.from, len: run.to.saturating_sub(run.from) }
            };
            let (bytes, as_stated) = reader.run(run.fragment, part, has_room).await?;
            let cut = |(position, piece): &Placed| Some((*position, cut(&bytes, piece, run.from)?));
            let cut: Option<Vec<_>> = run.pieces.iter().map(cut).collect();
            Ok::<_, Failure>((cut.ok_or_else(|| out_of_range(reader))?, as_stated))
        })
        .collect();
    let (mut done, mut as_stated) = (Vec::new(), true);
    while let Some(read) = reads.next().await {
        let (pieces, run_as_stated) = read?;
        done.extend(pieces);
        as_stated &= run_as_stated;
    }
    Ok((done, as_stated))
}

fn out_of_range(reader: &ChunkReader<'_>) -> ClientError {
    ClientError::Undecodable {
        object: reader.manifest.name.clone(),
        reason: format!("a piece is outside the fragments of chunk {}", reader.index),
    }
}

/// A copy of a piece out of what was read from `from` on: a slice of it would keep all of it in memory.
fn cut(bytes: &Bytes, piece: &Piece, from: u32) -> Option<Bytes> {
    let start = usize::try_from(piece.offset.checked_sub(from)?).ok()?;
    let end = start.checked_add(usize::try_from(piece.len).ok()?)?;
    if start == 0 && end == bytes.len() {
        return Some(bytes.clone());
    }
    bytes.get(start..end).map(Bytes::copy_from_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(position: usize, fragment: u32, offset: u32, len: u32) -> Placed {
        let piece = Piece { chunk: ChunkIndex(0), fragment: FragmentIndex(fragment), offset, len, target: 0 };
        (position, piece)
    }

    #[test]
    fn what_is_near_is_read_together() {
        let pieces = [
            placed(0, 1, 100, 10),
            placed(1, 0, 0, 10),
            placed(2, 0, 3 * LEAF, 10),
            placed(3, 1, LEAF + 5, 10),
            placed(4, 1, 10, 10),
        ];
        let found: Vec<_> = runs(&pieces)
            .into_iter()
            .map(|run| {
                (run.fragment.0, run.from, run.to, run.pieces.iter().map(|(at, _)| *at).collect::<Vec<_>>())
            })
            .collect();
        let expected = vec![
            (0, 0, 10, vec![1]),
            (0, 3 * LEAF, 3 * LEAF + 10, vec![2]),
            (1, 10, LEAF + 15, vec![4, 0, 3]),
        ];
        assert_eq!(found, expected);
        let whole: Vec<_> =
            whole_runs(&pieces, 9 * LEAF).iter().map(|run| (run.fragment.0, run.to)).collect();
        assert_eq!(whole, [(0, 9 * LEAF), (1, 9 * LEAF)]);
    }
}
