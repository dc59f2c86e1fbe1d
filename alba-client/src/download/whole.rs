//! Whole objects: chunks in order into a sink, the next ones fetched meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use alba_core::checksum::Hasher;
use alba_core::env::Deadline;
use alba_core::fragment::trim;
use alba_core::ids::{ChunkIndex, NamespaceName, ObjectName};
use alba_core::request;
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};

use super::chunk::ChunkReader;
use super::inline::{self, Now};
use super::{Found, find, find_newer};
use crate::buffers::Room;
use crate::engine::{Engine, alongside};
use crate::keys::Keys;
use crate::{ClientError, Consistency, ObjectSink, StoredObject};

/// Chunks fetched or waiting for the sink at once, if there is room for them.
const CHUNKS_AHEAD: usize = 4;

/// Reads an object into `sink`. When a cached manifest does not lead to the data, the current one is asked for once.
pub(crate) async fn download(
    engine: &Arc<Engine>,
    namespace: &NamespaceName,
    name: &ObjectName,
    consistency: Consistency,
    sink: &mut dyn ObjectSink,
    deadline: Deadline,
) -> Result<StoredObject, ClientError> {
    let found = find(engine, namespace, std::slice::from_ref(name), consistency, deadline).await?;
    let found = found.into_iter().next().flatten().ok_or_else(|| ClientError::ObjectUnknown(name.clone()))?;
    let found = if found.object.manifest.chunks.is_empty() {
        match inline::read(engine, namespace, &found, deadline).await? {
            Now::Here(object, plain) => {
                write(&object, plain, sink).await?;
                return Ok(object);
            }
            Now::Elsewhere(found) => found,
        }
    } else {
        found
    };
    match read(engine, namespace, &found, sink, deadline).await {
        Err(error @ ClientError::NotEnoughFragments { .. }) if found.from_cache => {
            let Some(newer) = find_newer(engine, namespace, &found.object, deadline).await? else {
                return Err(error);
            };
            sink.restart().await.map_err(|error| ClientError::sink(&error))?;
            read(engine, namespace, &newer, sink, deadline).await?;
            Ok(newer.object)
        }
        Err(error) => Err(error),
        Ok(()) => Ok(found.object),
    }
}

/// A chunk on its way to the sink, with the room it takes.
struct Fetched {
    data: Vec<Bytes>,
    as_stated: bool,
    _room: Room,
}

/// An object that is at hand into the sink.
async fn write(object: &StoredObject, plain: Bytes, sink: &mut dyn ObjectSink) -> Result<(), ClientError> {
    let expected = object.manifest.checksum;
    let found = expected.algorithm().of(&plain);
    if found != expected {
        return Err(ClientError::ChecksumMismatch { object: object.manifest.name.clone(), expected, found });
    }
    sink.write_at(0, plain).await.map_err(|error| ClientError::sink(&error))?;
    sink.finish().await.map_err(|error| ClientError::sink(&error))
}

async fn read(
    engine: &Arc<Engine>,
    namespace: &NamespaceName,
    found: &Found,
    sink: &mut dyn ObjectSink,
    deadline: Deadline,
) -> Result<(), ClientError> {
    let object = &found.object;
    let manifest = &object.manifest;
    // A large object's first chunk must not take the room that is kept for small requests.
    request::grown_by(manifest.size);
    let count = u32::try_from(manifest.chunks.len()).map_err(|_| ClientError::Undecodable {
        object: manifest.name.clone(),
        reason: "too many chunks".to_owned(),
    })?;
    let key = Keys::of_object(engine, namespace, &manifest.encryption, deadline).await?;
    let key = key.as_ref();
    let mut hasher = Some(manifest.checksum.algorithm().hasher());
    let mut fetches = FuturesUnordered::new();
    let mut ready: BTreeMap<u32, Result<Fetched, ClientError>> = BTreeMap::new();
    let mut next = 0;
    let mut written = 0;
    let mut offset = 0;
    let mut as_stated = true;
    while written < count {
        if next < count && fetches.len() + ready.len() < CHUNKS_AHEAD {
            let reader = ChunkReader::new(engine, namespace, object, ChunkIndex(next), key, deadline)?;
            let room = engine.buffers.work(reader.footprint(), deadline);
            // Room is taken in the order of the chunks: a later one must never hold what an earlier one waits for.
            let room = if ready.contains_key(&written) {
                // The sink can go on, so nothing is waited for. What is there is used: the sink may take a while.
                room.now_or_never().transpose()?
            } else {
                tokio::select! {
                    biased;
                    Some((index, fetched)) = fetches.next() => {
                        ready.insert(index, fetched);
                        continue;
                    }
                    room = room => Some(room?),
                }
            };
            if let Some(room) = room {
                let index = next;
                fetches.push(async move {
                    let fetched = reader.data().await;
                    (index, fetched.map(|(data, as_stated)| Fetched { data, as_stated, _room: room }))
                });
                next += 1;
                continue;
            }
        }
        let Some(fetched) = ready.remove(&written) else {
            if let Some((index, fetched)) = fetches.next().await {
                ready.insert(index, fetched);
            }
            continue;
        };
        let fetched = fetched?;
        as_stated &= fetched.as_stated;
        let left = usize::try_from(manifest.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let data = trim(fetched.data, left);
        let work = async {
            hasher = add(engine, hasher.take(), &data).await?;
            for piece in data {
                let len = u64::try_from(piece.len()).unwrap_or(u64::MAX);
                sink.write_at(offset, piece).await.map_err(|error| ClientError::sink(&error))?;
                offset += len;
            }
            Ok::<(), ClientError>(())
        };
        alongside(&mut fetches, |(index, fetched)| drop(ready.insert(index, fetched)), work).await?;
        written += 1;
    }
    if offset != manifest.size {
        return Err(ClientError::Undecodable {
            object: manifest.name.clone(),
            reason: format!("its chunks hold {offset} bytes, its size is {}", manifest.size),
        });
    }
    let checksum = hasher.map_or(manifest.checksum, Hasher::finish);
    if checksum != manifest.checksum {
        return Err(ClientError::ChecksumMismatch {
            object: manifest.name.clone(),
            expected: manifest.checksum,
            found: checksum,
        });
    }
    if found.from_cache && !as_stated {
        // Some fragment is not where the cached manifest says: the next reader shall look anew.
        engine.cache.remove(object.namespace, &manifest.name);
    }
    sink.finish().await.map_err(|error| ClientError::sink(&error))
}

/// Adds pieces to the object's checksum.
async fn add(engine: &Engine, hasher: Option<Hasher>, data: &[Bytes]) -> Result<Option<Hasher>, ClientError> {
    let Some(mut hasher) = hasher else { return Ok(None) };
    if data.is_empty() {
        return Ok(Some(hasher));
    }
    let bytes = data.iter().map(|piece| u64::try_from(piece.len()).unwrap_or(u64::MAX)).sum();
    let data = data.to_vec();
    engine
        .compute(bytes, move || {
            data.iter().for_each(|piece| hasher.update(piece));
            Some(hasher)
        })
        .await
}
