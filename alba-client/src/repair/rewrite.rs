//! Storing an object anew, as its preset wants it now: read chunk by chunk, uploaded under a new id, on condition that the
//! name still stands for the object that was read.

use std::io;
use std::sync::Arc;

use alba_core::encryption::FragmentKey;
use alba_core::env::Deadline;
use alba_core::failpoint::{Step, reach};
use alba_core::fragment::{data_fragments, trim};
use alba_core::ids::{ChunkIndex, FragmentIndex};
use alba_core::manifest::Manifest;
use alba_core::wire::rpc::nsm::Overwrite;
use async_trait::async_trait;
use bytes::Bytes;

use super::plan::Situation;
use super::read::Chunk;
use crate::engine::Engine;
use crate::namespaces::Namespace;
use crate::{ClientError, ObjectSource, UploadOptions, upload};

/// An object's bytes, one chunk in memory at a time.
struct Rereading<'a> {
    engine: &'a Arc<Engine>,
    namespace: &'a Arc<Namespace>,
    manifest: &'a Manifest,
    key: Option<&'a FragmentKey>,
    /// Of each chunk, the best ones first.
    sources: Vec<Vec<FragmentIndex>>,
    /// Where each chunk begins, in bytes of the object.
    starts: Vec<u64>,
    /// The chunk read last.
    current: Option<(ChunkIndex, Bytes)>,
    deadline: Deadline,
}

impl Rereading<'_> {
    /// The bytes of the chunk that has this byte of the object, and where it begins.
    async fn chunk_at(&mut self, offset: u64) -> io::Result<(u64, Bytes)> {
        let eof = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let position =
            self.starts.partition_point(|start| *start <= offset).checked_sub(1).ok_or_else(eof)?;
        let start = self.starts.get(position).copied().ok_or_else(eof)?;
        let index = ChunkIndex(u32::try_from(position).map_err(|_| eof())?);
        if let Some((_, bytes)) = self.current.as_ref().filter(|(current, _)| *current == index) {
            return Ok((start, bytes.clone()));
        }
        let bytes = self.read(index).await.map_err(|error| io::Error::other(error.to_string()))?;
        self.current = Some((index, bytes.clone()));
        Ok((start, bytes))
    }

    async fn read(&self, index: ChunkIndex) -> Result<Bytes, ClientError> {
        let manifest = self.manifest;
        let shape = manifest.scheme.shape;
        let chunk = Chunk {
            engine: self.engine,
            namespace: self.namespace.id,
            manifest,
            index,
            key: self.key,
            deadline: self.deadline,
        };
        let sources = self.sources.get(index.index()).map(Vec::as_slice).unwrap_or_default();
        let found = chunk.any_k(sources).await;
        reach(Step::RewriteRead);
        if found.present.len() < shape.k() {
            return Err(ClientError::NotEnoughFragments {
                object: manifest.name.clone(),
                chunk: index,
                needed: shape.k(),
                found: found.present.len(),
                detail: found.detail.join("; "),
            });
        }
        let undecodable = |reason: String| ClientError::Undecodable { object: manifest.name.clone(), reason };
        let len = manifest.chunk_len(index).and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
        let present = found.present;
        let data = self
            .engine
            .compute(u64::try_from(len).unwrap_or(u64::MAX), move || {
                data_fragments(shape, &present).map(|data| Bytes::from(trim(data, len).concat()))
            })
            .await?;
        data.map_err(|error| undecodable(error.to_string()))
    }
}

#[async_trait]
impl ObjectSource for Rereading<'_> {
    fn size(&self) -> u64 {
        self.manifest.size
    }

    async fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let eof = || io::Error::from(io::ErrorKind::UnexpectedEof);
            let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            let (start, bytes) = self.chunk_at(at).await?;
            let skip = usize::try_from(at - start).map_err(|_| eof())?;
            let part = bytes.get(skip..).filter(|part| !part.is_empty()).ok_or_else(eof)?;
            let target = buffer.get_mut(done..).unwrap_or_default();
            let len = part.len().min(target.len());
            if let (Some(target), Some(part)) = (target.get_mut(..len), part.get(..len)) {
                target.copy_from_slice(part);
            }
            done += len;
        }
        Ok(())
    }
}

/// Stores the object anew. Whoever replaced or deleted it meanwhile wins: [`ClientError::OverwriteNotAllowed`].
pub(super) async fn rewrite(
    engine: &Arc<Engine>,
    namespace: &Arc<Namespace>,
    manifest: &Manifest,
    key: Option<&FragmentKey>,
    situation: &Situation<'_>,
    deadline: Deadline,
) -> Result<(), ClientError> {
    let mut starts = Vec::with_capacity(manifest.chunks.len());
    let mut next = 0_u64;
    for chunk in &manifest.chunks {
        starts.push(next);
        next = next.saturating_add(u64::from(chunk.size));
    }
    let info = engine.namespaces.info(namespace, crate::watch::Fresh::within(super::SETTINGS_AGE), deadline);
    let allowed = &info.await?.preset.object_checksum.allowed;
    let mut source = Rereading {
        engine,
        namespace,
        manifest,
        key,
        sources: super::plan::sources(manifest, situation),
        starts,
        current: None,
        deadline,
    };
    let options = UploadOptions {
        overwrite: Overwrite::PreviousObjectId(manifest.object_id),
        checksum: Some(manifest.checksum).filter(|checksum| allowed.contains(&checksum.algorithm())),
    };
    upload::upload(engine, &namespace.name, &manifest.name, &mut source, options, deadline).await?;
    reach(Step::RewriteDone);
    Ok(())
}
