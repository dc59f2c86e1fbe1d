//! One chunk from any k of its fragments, each verified.

use std::collections::BTreeSet;
use std::time::Duration;

use alba_core::encryption::FragmentKey;
use alba_core::env::Deadline;
use alba_core::env::osd::Priority;
use alba_core::fragment::{Cipher, data_fragments, unpack};
use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceId, OsdId};
use alba_core::layout::fragment_len;
use alba_core::manifest::{Chunk, EncryptInfo, Manifest, PackedFragment};
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::preset::Compression;
use bytes::Bytes;

use super::race::race;
use crate::engine::Engine;
use crate::osd_pool::CallSize;
use crate::{ClientError, StoredObject};

/// Why a fragment could not be had.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) fragment: FragmentIndex,
    pub(super) reason: String,
}

/// A chunk to be read.
#[derive(Clone, Copy)]
pub(super) struct ChunkReader<'a> {
    pub(super) engine: &'a Engine,
    pub(super) namespace: NamespaceId,
    pub(super) manifest: &'a Manifest,
    pub(super) index: ChunkIndex,
    pub(super) chunk: &'a Chunk,
    /// Plain bytes of each of its fragments.
    pub(super) fragment_len: u32,
    /// What it is encrypted with.
    pub(super) key: Option<&'a FragmentKey>,
    pub(super) deadline: Deadline,
}

impl<'a> ChunkReader<'a> {
    /// Checks that the manifest describes the chunk in a way that this software can read.
    pub(super) fn new(
        engine: &'a Engine,
        object: &'a StoredObject,
        index: ChunkIndex,
        key: Option<&'a FragmentKey>,
        deadline: Deadline,
    ) -> Result<Self, ClientError> {
        let manifest = &*object.manifest;
        let undecodable = |reason: String| ClientError::Undecodable { object: manifest.name.clone(), reason };
        let shape = manifest.scheme.shape;
        let chunk = manifest
            .chunks
            .get(index.index())
            .ok_or_else(|| undecodable(format!("it has no chunk {index}")))?;
        if chunk.fragments.len() != shape.total() {
            let found = chunk.fragments.len();
            return Err(undecodable(format!(
                "chunk {index} has {found} fragments instead of {}",
                shape.total()
            )));
        }
        if key.is_none() && manifest.encryption != EncryptInfo::None {
            return Err(undecodable("it is encrypted, and there is no key".to_owned()));
        }
        let fragment_len = fragment_len(chunk.size, shape).map_err(|error| undecodable(error.to_string()))?;
        Ok(Self { engine, namespace: object.namespace, manifest, index, chunk, fragment_len, key, deadline })
    }

    fn k(&self) -> usize {
        self.manifest.scheme.shape.k()
    }

    /// Can parts of a fragment be read without reading it whole? What is encrypted can be decrypted from anywhere.
    pub(super) fn has_parts(&self) -> bool {
        self.manifest.scheme.compression == Compression::None
    }

    /// What a fragment is encrypted with.
    pub(super) fn cipher(&self, fragment: FragmentIndex) -> Option<Cipher<'a>> {
        let counter = self.chunk.fragments.get(fragment.index())?.ctr?;
        Some(Cipher { key: self.key?, counter })
    }

    /// Bytes of memory that reading the whole chunk may take: every fragment, and a second copy of the data when it
    /// must be decrypted or decompressed.
    pub(super) fn footprint(&self) -> u64 {
        let packed: u64 = self.chunk.fragments.iter().map(|fragment| u64::from(fragment.packed_len)).sum();
        let unpacked = if self.has_parts() && self.key.is_none() { 0 } else { u64::from(self.chunk.size) };
        packed + unpacked
    }

    /// Key of a fragment on its OSD.
    pub(super) fn key(&self, fragment: FragmentIndex) -> Option<(OsdId, Bytes)> {
        let entry = self.chunk.fragments.get(fragment.index())?;
        let address = FragmentAddress {
            object_id: self.manifest.object_id,
            chunk: self.index,
            fragment,
            version: entry.version,
        };
        Some((entry.location?, osd_keys::fragment(self.namespace, &address)))
    }

    /// The fragments that are stored somewhere, cheapest first: those in `last` and those on OSDs that are out of use
    /// or slow come after the others, data before parity.
    pub(super) fn candidates(&self, last: &BTreeSet<FragmentIndex>, size: CallSize) -> Vec<FragmentIndex> {
        let now = self.engine.env.clock.now();
        let slow = self.typical(size) * 4;
        let mut candidates = Vec::with_capacity(self.chunk.fragments.len());
        for (index, entry) in (0..).map(FragmentIndex).zip(&self.chunk.fragments) {
            let Some(osd) = entry.location else { continue };
            let member = self.engine.pool.known(osd);
            let out_of_use = member.as_ref().is_some_and(|member| !member.health().answers());
            let is_slow = member.and_then(|member| member.usual(size, now)).is_some_and(|usual| usual > slow);
            candidates.push((last.contains(&index), out_of_use, is_slow, index));
        }
        candidates.sort_unstable();
        candidates.into_iter().map(|(_, _, _, index)| index).collect()
    }

    /// The median over the chunk's OSDs of the time that nearly all their calls take, within the configured bounds:
    /// after it, something is unusual.
    pub(super) fn typical(&self, size: CallSize) -> Duration {
        let now = self.engine.env.clock.now();
        let config = &self.engine.config;
        let (least, most) =
            (Duration::from_millis(config.hedge_min_ms), Duration::from_millis(config.hedge_max_ms));
        let members = self.chunk.fragments.iter().filter_map(|f| self.engine.pool.known(f.location?));
        let mut usual: Vec<Duration> = members.filter_map(|member| member.usual(size, now)).collect();
        usual.sort_unstable();
        usual.get(usual.len() / 2).map_or(most, |median| (*median).clamp(least, most.max(least)))
    }

    /// One fragment, whole: read, verified, decompressed.
    pub(super) async fn fragment(&self, fragment: FragmentIndex) -> Result<(FragmentIndex, Bytes), Lost> {
        self.read_fragment(fragment)
            .await
            .map(|plain| (fragment, plain))
            .map_err(|reason| Lost { fragment, reason })
    }

    async fn read_fragment(&self, fragment: FragmentIndex) -> Result<Bytes, String> {
        let engine = self.engine;
        let entry = self.chunk.fragments.get(fragment.index()).ok_or("no such fragment")?.clone();
        let (osd, key) = self.key(fragment).ok_or("stored nowhere")?;
        let member = engine.pool.member(osd, self.deadline).await.map_err(|error| error.to_string())?;
        let packed_len = u64::from(entry.packed_len);
        let values = engine
            .pool
            .call(&member, CallSize::of(packed_len), self.deadline, |osd, deadline| {
                let keys = vec![key.clone()];
                async move { osd.multi_get(keys, Priority::High, deadline).await }
            })
            .await
            .map_err(|error| format!("OSD {}: {error}", member.id))?;
        let Some(Some(stored)) = values.into_iter().next() else {
            return Err(format!("OSD {} does not have it", member.id));
        };
        let compression = self.manifest.scheme.compression;
        let plain_len = usize::try_from(self.fragment_len).map_err(|error| error.to_string())?;
        if self.key.is_some() != entry.ctr.is_some() {
            return Err("a counter block and encryption belong together".to_owned());
        }
        let key = self.key.cloned();
        let unpacked = engine
            .compute(packed_len, move || {
                let verified = PackedFragment(stored.value)
                    .verify(&entry)
                    .map_err(|_| "its checksum is not the manifest's".to_owned())?;
                let cipher = key.as_ref().zip(entry.ctr).map(|(key, counter)| Cipher { key, counter });
                unpack(&verified, compression, cipher, plain_len).map_err(|error| error.to_string())
            })
            .await
            .map_err(|error| error.to_string())?;
        unpacked.map_err(|reason| {
            engine.counters.fragments_damaged.add(1);
            engine.pool.damaged(&member, &reason);
            tracing::warn!(
                object = %self.manifest.name, chunk = %self.index, %fragment, osd = %member.id, reason,
                "damaged fragment"
            );
            format!("OSD {}: {reason}", member.id)
        })
    }

    /// The k data fragments, plain and in order, and whether all that were asked for could be had. Fragments in `last`
    /// are asked for only when the others don't suffice.
    pub(super) async fn data(
        &self,
        last: &BTreeSet<FragmentIndex>,
    ) -> Result<(Vec<Bytes>, bool), ClientError> {
        let shape = self.manifest.scheme.shape;
        let largest = self.chunk.fragments.iter().map(|f| f.packed_len).max().unwrap_or(0);
        let size = CallSize::of(u64::from(largest));
        let candidates = self.candidates(last, size);
        let raced = race(&*self.engine.env.clock, candidates, self.k(), self.typical(size), |fragment| {
            self.fragment(fragment)
        })
        .await;
        if raced.won.len() < self.k() {
            let holes = self.chunk.fragments.iter().filter(|entry| entry.location.is_none()).count();
            let mut detail: Vec<String> = raced
                .lost
                .iter()
                .map(|lost| format!("fragment {}: {}", lost.fragment, lost.reason))
                .collect();
            if holes > 0 {
                detail.push(format!("{holes} never stored"));
            }
            return Err(ClientError::NotEnoughFragments {
                object: self.manifest.name.clone(),
                chunk: self.index,
                needed: self.k(),
                found: raced.won.len(),
                detail: detail.join("; "),
            });
        }
        let all_had = raced.lost.is_empty();
        let present = raced.won;
        let complete = shape.is_replication() || present.iter().all(|(index, _)| index.index() < shape.k());
        let bytes = if complete { 0 } else { u64::from(self.chunk.size) };
        let data =
            self.engine.compute(bytes, move || data_fragments(shape, &present)).await?.map_err(|error| {
                ClientError::Undecodable { object: self.manifest.name.clone(), reason: error.to_string() }
            })?;
        Ok((data, all_had))
    }
}
