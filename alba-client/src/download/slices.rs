//! Parts of objects: only the bytes asked for are read where the fragments allow it (wire-protocol §2.4, features §2.8).

use std::collections::{BTreeMap, BTreeSet};

use alba_core::env::Deadline;
use alba_core::env::osd::{Priority, ValueSlice};
use alba_core::fragment::Cipher;
use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceName, ObjectName};
use alba_core::layout::{CheckedSlices, ChunkMap, Piece, SliceError, SliceRequest, check_slices};
use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, Either, Fuse, FutureExt};
use futures_util::stream::{self, FuturesUnordered, StreamExt};

use super::chunk::{ChunkReader, Lost};
use super::inline::{self, Now};
use super::race::race;
use super::{Found, find, find_newer};
use crate::engine::Engine;
use crate::keys::Keys;
use crate::osd_pool::CallSize;
use crate::{ClientError, Consistency, Slice, SlicesRead, StoredObject};

/// Objects of one request read at once.
const OBJECTS_AT_ONCE: usize = 8;

/// Chunks of one object read at once.
const CHUNKS_AT_ONCE: usize = 8;

/// Reads the slices of each entry, all or nothing.
pub(crate) async fn read_slices(
    engine: &Engine,
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
    engine: &Engine,
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
    engine: &Engine,
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
    let key = key.as_deref();
    let mut reads = stream::iter(by_chunk)
        .map(|(chunk, pieces)| async move {
            let reader = ChunkReader::new(engine, object, chunk, key, deadline)?;
            read_chunk(&reader, pieces).await
        })
        .buffer_unordered(CHUNKS_AT_ONCE);
    let mut all_had = true;
    while let Some(read) = reads.next().await {
        let (pieces, had) = read?;
        all_had &= had;
        for (position, bytes) in pieces {
            if let Some(slot) = answer.get_mut(position) {
                *slot = bytes;
            }
        }
    }
    if found.from_cache && !all_had {
        // Some fragment is not where the cached manifest says: the next reader shall look anew.
        engine.cache.remove(object.namespace, &manifest.name);
    }
    Ok(answer)
}

/// Reads pieces of one chunk: each fragment's directly; and once one of them fails or takes unusually long, the whole
/// chunk from whatever fragments answer. Returns also whether all fragments asked for could be had.
async fn read_chunk(
    reader: &ChunkReader<'_>,
    pieces: Vec<Placed>,
) -> Result<(Vec<(usize, Bytes)>, bool), ClientError> {
    let engine = reader.engine;
    let clock = &*engine.env.clock;
    let mut missing: BTreeMap<FragmentIndex, Vec<Placed>> = BTreeMap::new();
    for placed in pieces {
        missing.entry(placed.1.fragment).or_default().push(placed);
    }
    // Whole fragments are read where parts cannot be: that takes room beside the answer's own.
    let whole = !reader.has_parts();
    let _room = if whole {
        engine.buffers.work(reader.footprint(), reader.deadline).await?
    } else {
        Default::default()
    };
    let mut direct: FuturesUnordered<_> = missing
        .iter()
        .map(|(fragment, pieces)| read_fragment(reader, *fragment, pieces.iter().map(|(_, p)| *p).collect()))
        .collect();
    let largest = missing.values().map(|pieces| pieces.iter().map(|(_, p)| u64::from(p.len)).sum()).max();
    let hedge_at = clock.now().plus(reader.typical(CallSize::of(largest.unwrap_or(0))));
    let mut unusable = BTreeSet::new();
    let mut done = Vec::new();
    let mut all_had = true;
    let mut rescue: Fuse<BoxFuture<'_, Result<Vec<Bytes>, ClientError>>> = Fuse::terminated();
    let mut rescuing = false;
    let mut rescue_error = None;
    while !missing.is_empty() {
        let mut start = false;
        tokio::select! {
            biased;
            Some((fragment, read)) = direct.next() => match read {
                Ok(bytes) => {
                    let placed = missing.remove(&fragment).unwrap_or_default();
                    done.extend(placed.into_iter().map(|(position, _)| position).zip(bytes));
                }
                Err(lost) => {
                    tracing::debug!(object = %reader.manifest.name, chunk = %reader.index, %fragment,
                        reason = lost.reason, "fragment cannot be read directly");
                    all_had = false;
                    unusable.insert(fragment);
                    start = !rescuing;
                    if direct.is_empty() && let Some(error) = rescue_error.take() {
                        return Err(error);
                    }
                }
            },
            rescued = &mut rescue => match rescued {
                Ok(data) => {
                    for (fragment, placed) in std::mem::take(&mut missing) {
                        let index = fragment.index();
                        for (position, piece) in placed {
                            let bytes = data.get(index).and_then(|plain| cut(plain, &piece)).ok_or_else(|| out_of_range(reader))?;
                            done.push((position, bytes));
                        }
                    }
                }
                Err(error) if direct.is_empty() => return Err(error),
                Err(error) => rescue_error = Some(error),
            },
            () = clock.sleep_until(hedge_at), if !rescuing => start = true,
        }
        if start {
            rescuing = true;
            engine.counters.chunks_rescued.add(1);
            let mut last = unusable.clone();
            last.extend(missing.keys().copied());
            let work = async move {
                let _room = if whole {
                    Default::default()
                } else {
                    engine.buffers.work(reader.footprint(), reader.deadline).await?
                };
                reader.data(&last).await.map(|(data, _)| data)
            };
            rescue = work.boxed().fuse();
        }
    }
    Ok((done, all_had))
}

fn out_of_range(reader: &ChunkReader<'_>) -> ClientError {
    ClientError::Undecodable {
        object: reader.manifest.name.clone(),
        reason: format!("a piece is outside the fragments of chunk {}", reader.index),
    }
}

/// A copy of a piece of a plain fragment: a slice of it would keep the whole fragment in memory.
fn cut(plain: &Bytes, piece: &Piece) -> Option<Bytes> {
    let from = usize::try_from(piece.offset).ok()?;
    let to = from.checked_add(usize::try_from(piece.len).ok()?)?;
    if from == 0 && to == plain.len() {
        return Some(plain.clone());
    }
    plain.get(from..to).map(Bytes::copy_from_slice)
}

/// The pieces of one data fragment, from it or, when k = 1, from any of its copies.
async fn read_fragment(
    reader: &ChunkReader<'_>,
    fragment: FragmentIndex,
    pieces: Vec<Piece>,
) -> (FragmentIndex, Result<Vec<Bytes>, Lost>) {
    let bytes = pieces.iter().map(|piece| u64::from(piece.len)).sum();
    let size = CallSize::of(bytes);
    let copies = if reader.manifest.scheme.shape.is_replication() {
        reader.candidates(&BTreeSet::new(), size)
    } else {
        vec![fragment]
    };
    let pause = reader.typical(size);
    let raced = race(&*reader.engine.env.clock, copies, 1, pause, |copy| {
        // Asked for whole it is checked against the manifest.
        let all = pieces.len() == 1 && pieces.iter().all(|piece| piece.len == reader.fragment_len);
        if reader.has_parts() && !all {
            Either::Left(read_ranges(reader, copy, &pieces, bytes))
        } else {
            let pieces = &pieces;
            Either::Right(async move {
                let (fragment, plain) = reader.fragment(copy).await?;
                let cut: Option<Vec<Bytes>> = pieces.iter().map(|piece| cut(&plain, piece)).collect();
                let outside = || Lost { fragment, reason: "shorter than the manifest says".to_owned() };
                cut.ok_or_else(outside)
            })
        }
    })
    .await;
    let read = match raced.won.into_iter().next() {
        Some(bytes) => Ok(bytes),
        None => {
            let reasons: Vec<String> = raced.lost.into_iter().map(|lost| lost.reason).collect();
            Err(Lost { fragment, reason: reasons.join("; ") })
        }
    };
    (fragment, read)
}

/// Ranges of a fragment that is stored as it is; the OSD verifies the blocks that they touch.
async fn read_ranges(
    reader: &ChunkReader<'_>,
    fragment: FragmentIndex,
    pieces: &[Piece],
    bytes: u64,
) -> Result<Vec<Bytes>, Lost> {
    let lost = |reason: String| Lost { fragment, reason };
    let engine = reader.engine;
    let (osd, key) = reader.key(fragment).ok_or_else(|| lost("stored nowhere".to_owned()))?;
    let stored_len = reader.chunk.fragments.get(fragment.index()).map(|entry| entry.packed_len);
    if stored_len != Some(reader.fragment_len) {
        return Err(lost("its stored length is not its plain one".to_owned()));
    }
    let member = engine.pool.member(osd, reader.deadline).await.map_err(|error| lost(error.to_string()))?;
    if !member.health().answers() && !reader.manifest.scheme.shape.is_replication() {
        // Rescue at once: waiting for a device that is known to be in trouble would only cost time.
        return Err(lost(format!("OSD {osd} is out of use")));
    }
    let ranges: Vec<ValueSlice> =
        pieces.iter().map(|piece| ValueSlice { offset: piece.offset, len: piece.len }).collect();
    let answer = engine
        .pool
        .call(&member, CallSize::of(bytes), reader.deadline, |osd, deadline| {
            let (key, ranges) = (key.clone(), ranges.clone());
            async move { osd.partial_get(key, ranges, Priority::High, deadline).await }
        })
        .await
        .map_err(|error| lost(format!("OSD {osd}: {error}")))?
        .ok_or_else(|| lost(format!("OSD {osd} does not have it")))?;
    let fits = answer.len() == ranges.len()
        && answer.iter().zip(&ranges).all(|(bytes, range)| u32::try_from(bytes.len()) == Ok(range.len));
    let answer = match reader.cipher(fragment) {
        Some(cipher) if fits => decrypt(cipher, answer, &ranges),
        _ => answer,
    };
    if fits { Ok(answer) } else { Err(lost(format!("OSD {osd} gave another length than asked for"))) }
}

/// Ranges of an encrypted fragment in the clear.
fn decrypt(cipher: Cipher<'_>, parts: Vec<Bytes>, ranges: &[ValueSlice]) -> Vec<Bytes> {
    let part = |(part, range): (Bytes, &ValueSlice)| {
        let mut plain = BytesMut::from(&part[..]);
        cipher.key.apply(&cipher.counter, u64::from(range.offset), &mut plain);
        plain.freeze()
    };
    parts.into_iter().zip(ranges).map(part).collect()
}
