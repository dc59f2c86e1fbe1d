//! The fragments of one chunk as repair reads them: whole, verified, at low priority, no more of them than are needed.

use std::sync::Arc;

use alba_core::encryption::FragmentKey;
use alba_core::env::osd::Priority;
use alba_core::env::{Deadline, OsdError};
use alba_core::fragment::{Cipher, unpack};
use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceId};
use alba_core::layout::fragment_len;
use alba_core::manifest::{Fragment, Manifest, PackedFragment, VerifiedFragment};
use alba_core::osd_keys::{self, FragmentAddress};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::engine::Engine;
use crate::osd_pool::{CallKind, CallSize, Member};

/// Why a fragment could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReadFault {
    /// Its OSD does not have it.
    #[error("it is not there")]
    Missing,
    /// Its bytes are not what the manifest says.
    #[error("damaged: {0}")]
    Damaged(String),
    /// Its OSD did not answer, or has no place.
    #[error("{0}")]
    Unreachable(String),
}

impl ReadFault {
    /// Is it certain that these bytes are of no use?
    pub(super) fn is_loss(&self) -> bool {
        matches!(self, Self::Missing | Self::Damaged(_))
    }
}

/// A chunk to be read.
#[derive(Clone, Copy)]
pub(super) struct Chunk<'a> {
    pub(super) engine: &'a Arc<Engine>,
    pub(super) namespace: NamespaceId,
    pub(super) manifest: &'a Manifest,
    pub(super) index: ChunkIndex,
    /// What the object is encrypted with.
    pub(super) key: Option<&'a FragmentKey>,
    pub(super) deadline: Deadline,
}

/// What reading k fragments gave.
#[derive(Debug)]
pub(super) struct Sources<T> {
    /// Their bytes, of k fragments when there were so many.
    pub(super) present: Vec<(FragmentIndex, T)>,
    /// Those that were missing or damaged.
    pub(super) lost: Vec<FragmentIndex>,
    /// Why others could not be had.
    pub(super) detail: Vec<String>,
    /// Packed bytes read.
    pub(super) bytes: u64,
}

impl Chunk<'_> {
    /// Where a fragment is kept: its OSD's key for it.
    pub(super) fn address(&self, fragment: FragmentIndex) -> Option<FragmentAddress> {
        let version = self.manifest.fragment(self.index, fragment)?.version;
        Some(FragmentAddress { object_id: self.manifest.object_id, chunk: self.index, fragment, version })
    }

    /// A fragment as it is stored, with the checksum of the manifest.
    pub(super) async fn packed(&self, fragment: FragmentIndex) -> Result<VerifiedFragment, ReadFault> {
        let engine = self.engine;
        let verified = async {
            let (member, packed, entry) = self.stored(fragment).await?;
            let len = u64::from(entry.packed_len);
            let verified = engine.compute(len, move || packed.verify(&entry)).await;
            verified.map_err(|error| ReadFault::Unreachable(error.to_string()))?.map_err(|_| {
                let reason = "its checksum is not the manifest's";
                engine.counters.fragments_damaged.add(1);
                engine.pool.damaged(&member, reason);
                ReadFault::Damaged(reason.to_owned())
            })
        };
        self.in_turn(verified).await
    }

    /// A fragment as it is stored; nobody has looked at its checksum.
    async fn unverified(&self, fragment: FragmentIndex) -> Result<(PackedFragment, u64), ReadFault> {
        let (_, packed, entry) = self.in_turn(self.stored(fragment)).await?;
        Ok((packed, u64::from(entry.packed_len)))
    }

    /// One transfer.
    async fn in_turn<T>(&self, transfer: impl Future<Output = Result<T, ReadFault>>) -> Result<T, ReadFault> {
        let clock = self.engine.env.clock.as_ref();
        let done = self.engine.transfers.run(clock, self.deadline, transfer).await;
        done.map_err(|error| ReadFault::Unreachable(error.to_string()))?
    }

    /// What its OSD has of a fragment, and what the manifest says of it.
    async fn stored(
        &self,
        fragment: FragmentIndex,
    ) -> Result<(Arc<Member>, PackedFragment, Fragment), ReadFault> {
        let engine = self.engine;
        let nowhere = || ReadFault::Unreachable("it is stored nowhere".to_owned());
        let entry = self.manifest.fragment(self.index, fragment).ok_or_else(nowhere)?.clone();
        let (osd, address) = entry.location.zip(self.address(fragment)).ok_or_else(nowhere)?;
        let unreachable =
            |error: &dyn std::fmt::Display| ReadFault::Unreachable(format!("OSD {osd}: {error}"));
        let member = engine.pool.member(osd, self.deadline).await.map_err(|error| unreachable(&error))?;
        let key = osd_keys::fragment(self.namespace, &address);
        let size = CallSize::of(u64::from(entry.packed_len));
        let values = engine
            .pool
            .call_of(CallKind::Read, &member, size, self.deadline, |osd, deadline| {
                let keys = vec![key.clone()];
                async move { osd.multi_get(keys, Priority::Low, deadline).await }
            })
            .await
            .map_err(|error| match error {
                OsdError::Damaged(what) => ReadFault::Damaged(what),
                error => unreachable(&error),
            })?;
        let stored = values.into_iter().next().flatten().ok_or(ReadFault::Missing)?;
        Ok((member, PackedFragment(stored.value), entry))
    }

    /// Is it there? Its bytes are not looked at.
    pub(super) async fn exists(&self, fragment: FragmentIndex) -> Result<(), ReadFault> {
        let nowhere = || ReadFault::Unreachable("it is stored nowhere".to_owned());
        let osd = self.manifest.fragment(self.index, fragment).and_then(|entry| entry.location);
        let (osd, address) = osd.zip(self.address(fragment)).ok_or_else(nowhere)?;
        let unreachable =
            |error: &dyn std::fmt::Display| ReadFault::Unreachable(format!("OSD {osd}: {error}"));
        let pool = &self.engine.pool;
        let member = pool.member(osd, self.deadline).await.map_err(|error| unreachable(&error))?;
        let key = osd_keys::fragment(self.namespace, &address);
        let found = pool
            .call_of(CallKind::Read, &member, CallSize::Small, self.deadline, |osd, deadline| {
                let keys = vec![key.clone()];
                async move { osd.multi_exists(keys, Priority::Low, deadline).await }
            })
            .await
            .map_err(|error| unreachable(&error))?;
        if found.first() == Some(&true) { Ok(()) } else { Err(ReadFault::Missing) }
    }

    /// A fragment, decrypted and decompressed.
    async fn plain(&self, fragment: FragmentIndex) -> Result<(Bytes, u64), ReadFault> {
        let packed = self.packed(fragment).await?;
        let wrong = |reason: String| ReadFault::Damaged(reason);
        let chunk = self.manifest.chunks.get(self.index.index());
        let (chunk, entry) = chunk
            .zip(self.manifest.fragment(self.index, fragment))
            .ok_or_else(|| wrong("there is no such chunk".to_owned()))?;
        let plain_len = fragment_len(chunk.size, self.manifest.scheme.shape)
            .ok()
            .and_then(|len| usize::try_from(len).ok())
            .ok_or_else(|| wrong("a chunk of impossible size".to_owned()))?;
        if self.key.is_some() != entry.ctr.is_some() {
            return Err(wrong("a counter block and encryption belong together".to_owned()));
        }
        let cipher = self.key.cloned().zip(entry.ctr);
        let compression = self.manifest.scheme.compression;
        let len = u64::from(entry.packed_len);
        let unpacked = self
            .engine
            .compute(len, move || {
                let cipher = cipher.as_ref().map(|(key, counter)| Cipher { key, counter: *counter });
                unpack(&packed, compression, cipher, plain_len)
            })
            .await
            .map_err(|error| ReadFault::Unreachable(error.to_string()))?;
        // The checksum was right, and yet it is no fragment of this chunk: it was packed wrongly.
        Ok((unpacked.map_err(|error| wrong(error.to_string()))?, len))
    }

    /// Any k fragments, plain; the first ones of `sources`, and another for each that fails.
    pub(super) async fn any_k(&self, sources: &[FragmentIndex]) -> Sources<Bytes> {
        self.any_k_by(sources, |fragment| self.plain(fragment)).await
    }

    /// The same as they are stored, and nobody has looked at their checksums: for who can tell by what comes out of them.
    pub(super) async fn any_k_unverified(&self, sources: &[FragmentIndex]) -> Sources<PackedFragment> {
        self.any_k_by(sources, |fragment| self.unverified(fragment)).await
    }

    async fn any_k_by<T, F: Future<Output = Result<(T, u64), ReadFault>>>(
        &self,
        sources: &[FragmentIndex],
        read: impl Fn(FragmentIndex) -> F,
    ) -> Sources<T> {
        let k = self.manifest.scheme.shape.k();
        let mut waiting = sources.iter().copied();
        let read = |fragment| {
            let reading = read(fragment);
            async move { (fragment, reading.await) }
        };
        let mut reads: FuturesUnordered<_> = waiting.by_ref().take(k).map(&read).collect();
        let mut got = Sources { present: Vec::new(), lost: Vec::new(), detail: Vec::new(), bytes: 0 };
        while let Some((fragment, result)) = reads.next().await {
            match result {
                Ok((content, bytes)) => {
                    got.present.push((fragment, content));
                    got.bytes += bytes;
                }
                Err(fault) => {
                    got.detail.push(format!("fragment {fragment}: {fault}"));
                    if fault.is_loss() {
                        got.lost.push(fragment);
                    }
                    reads.extend(waiting.next().map(&read));
                }
            }
        }
        got
    }
}
