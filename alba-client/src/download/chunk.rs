//! One chunk: which of its fragments to ask for, and its data from any k of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use alba_core::checksum::Checksum;
use alba_core::encryption::FragmentKey;
use alba_core::env::Deadline;
use alba_core::fragment::{data_fragments, regenerate};
use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceId, NamespaceName, OsdId};
use alba_core::layout::fragment_len;
use alba_core::manifest::{Chunk, EncryptInfo, Fragment, Manifest};
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::preset::Compression;
use bytes::Bytes;

use super::fetch::{Lost, Part, Why, fetch};
use super::pace::Pace;
use super::race::{Candidate, Raced, race};
use crate::engine::Engine;
use crate::fragment_cache::CacheKey;
use crate::osd_pool::{CallSize, Member};
use crate::{ClientError, StoredObject};

/// Bytes that the OSD at least reads for a part: a leaf of its tree.
pub(super) const LEAF: u32 = alba_core::blake3_tree::LEAF_BYTES;

/// The most that is read from a slow OSD to see whether it still is.
const LOOK_LARGE: u32 = 256 << 10;
const LOOK_SMALL: u32 = 4 << 10;

/// A chunk to be read.
#[derive(Clone, Copy)]
pub(super) struct ChunkReader<'a> {
    pub(super) engine: &'a Arc<Engine>,
    /// Where the object is.
    pub(super) name: &'a NamespaceName,
    pub(super) namespace: NamespaceId,
    pub(super) manifest: &'a Arc<Manifest>,
    pub(super) index: ChunkIndex,
    pub(super) chunk: &'a Chunk,
    /// Plain bytes of each of its fragments.
    pub(super) fragment_len: u32,
    /// What it is encrypted with.
    pub(super) key: Option<&'a Arc<FragmentKey>>,
    pub(super) deadline: Deadline,
}

/// Bytes of a chunk could not be had.
#[derive(Debug)]
pub(super) enum Failure {
    /// As parts they cannot be verified, perhaps as whole fragments.
    Unproven,
    /// For good.
    Client(ClientError),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

/// What was read, and whether all that was asked for was where the manifest says.
pub(super) type Had<T> = (T, bool);

/// Did all OSDs that were asked have what the manifest says?
pub(super) fn as_stated(lost: &[Lost]) -> bool {
    lost.iter().all(|lost| lost.why != Why::Bad)
}

impl<'a> ChunkReader<'a> {
    /// Checks that the manifest describes the chunk in a way that this software can read.
    pub(super) fn new(
        engine: &'a Arc<Engine>,
        name: &'a NamespaceName,
        object: &'a StoredObject,
        index: ChunkIndex,
        key: Option<&'a Arc<FragmentKey>>,
        deadline: Deadline,
    ) -> Result<Self, ClientError> {
        let manifest = &object.manifest;
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
        Ok(Self {
            engine,
            name,
            namespace: object.namespace,
            manifest,
            index,
            chunk,
            fragment_len,
            key,
            deadline,
        })
    }

    pub(super) fn k(&self) -> usize {
        self.manifest.scheme.shape.k()
    }

    pub(super) fn is_replicated(&self) -> bool {
        self.manifest.scheme.shape.is_replication()
    }

    /// Can parts of its fragments be read and verified without reading them whole, as far as is known? What is encrypted
    /// can be decrypted from anywhere.
    pub(super) fn has_parts(&self) -> bool {
        let now = self.engine.env.clock.now();
        let provable = |checksum: &Checksum, member: Option<&Arc<Member>>| match checksum {
            Checksum::None => true,
            Checksum::Blake3(_) => member.is_none_or(|member| member.health().proves(now)),
            Checksum::Sha1(_) | Checksum::Crc32c(_) => false,
        };
        self.manifest.scheme.compression == Compression::None
            && self.chunk.fragments.iter().all(|fragment| {
                let member = fragment.location.and_then(|osd| self.engine.pool.known(osd));
                provable(&fragment.checksum, member.as_ref())
            })
    }

    /// Bytes of memory that reading the whole chunk may take: every fragment, and a second copy of the data when it
    /// must be decrypted or decompressed.
    pub(super) fn footprint(&self) -> u64 {
        let packed: u64 = self.chunk.fragments.iter().map(|fragment| u64::from(fragment.packed_len)).sum();
        let is_plain = self.manifest.scheme.compression == Compression::None && self.key.is_none();
        packed + if is_plain { 0 } else { u64::from(self.chunk.size) }
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

    /// What it is cached under.
    pub(super) fn cache_key(&self, fragment: FragmentIndex) -> Option<CacheKey> {
        let entry = self.chunk.fragments.get(fragment.index())?;
        // Equal copies are one.
        let same = |other: &Fragment| {
            self.is_replicated()
                && (other.checksum, other.packed_len, other.ctr)
                    == (entry.checksum, entry.packed_len, entry.ctr)
        };
        let mut copies = (0..).map(FragmentIndex).zip(&self.chunk.fragments);
        let (fragment, version) = copies
            .find(|(_, other)| same(other))
            .map_or((fragment, entry.version), |(first, other)| (first, other.version));
        let object_id = self.manifest.object_id;
        let address = FragmentAddress { object_id, chunk: self.index, fragment, version };
        Some(CacheKey { namespace: self.namespace, address })
    }

    fn is_cached(&self, fragment: FragmentIndex) -> bool {
        self.cache_key(fragment).is_some_and(|key| self.engine.fragments.may_have(&key))
    }

    fn member(&self, fragment: FragmentIndex) -> Option<Arc<Member>> {
        let osd = self.chunk.fragments.get(fragment.index())?.location?;
        self.engine.pool.known(osd)
    }

    /// How large a read of `part` of any of its fragments is.
    pub(super) fn size_of(&self, part: Part) -> CallSize {
        let largest = || self.chunk.fragments.iter().map(|fragment| fragment.packed_len).max().unwrap_or(0);
        CallSize::of(u64::from(match part {
            Part::Whole => largest(),
            Part::Range { len, .. } => len,
        }))
    }

    pub(super) fn pace(&self, part: Part) -> Pace {
        Pace::of(self.engine, self.chunk, self.size_of(part))
    }

    /// Is there any sense in asking for this fragment before others? Not when it is stored nowhere, or, unless it is cached,
    /// on an OSD that is out of use or slow. One that is slow is looked at in the background.
    pub(super) fn answers_well(&self, fragment: FragmentIndex, pace: &Pace) -> bool {
        let Some((_, key)) = self.key(fragment) else { return false };
        if self.is_cached(fragment) {
            return true;
        }
        let Some(member) = self.member(fragment) else { return true };
        if !member.health().answers() {
            return false;
        }
        let slow = pace.is_slow(&member);
        if slow {
            let stored = self.chunk.fragments.get(fragment.index()).map_or(0, |entry| entry.packed_len);
            let most = if pace.size() == CallSize::Small { LOOK_SMALL } else { LOOK_LARGE };
            self.engine.pool.look_at(&member, key, stored.min(most), pace.size());
        }
        !slow
    }

    /// The fragments that are stored somewhere, cheapest first: what is cached costs nothing, wherever else it is; those on OSDs that are out of use come last, before them those
    /// in `last`, before them those on slow OSDs; else data before parity.
    fn candidates(&self, last: &BTreeSet<FragmentIndex>, pace: &Pace) -> Vec<Candidate<FragmentIndex>> {
        let mut candidates = Vec::with_capacity(self.chunk.fragments.len());
        for (index, entry) in (0..).map(FragmentIndex).zip(&self.chunk.fragments) {
            if entry.location.is_none() {
                continue;
            }
            let member = self.member(index);
            let out_of_use = member.as_ref().is_some_and(|member| !member.health().answers());
            let avoided = !self.answers_well(index, pace);
            let patience = pace.patience(member.as_deref());
            let uncached = !self.is_cached(index);
            candidates.push((uncached, out_of_use, last.contains(&index), avoided, index, patience));
        }
        candidates.sort_unstable();
        candidates.into_iter().map(|(.., who, patience)| Candidate { who, patience }).collect()
    }

    /// The same part of the first `needed` fragments that answer.
    pub(super) async fn any(
        &self,
        part: Part,
        needed: usize,
        last: &BTreeSet<FragmentIndex>,
    ) -> Raced<(FragmentIndex, Bytes), Lost> {
        let pace = self.pace(part);
        let engine = self.engine;
        let candidates = self.candidates(last, &pace);
        let ask = |fragment| async move { fetch(self, fragment, part).await.map(|bytes| (fragment, bytes)) };
        let raced = race(&*engine.env.clock, &engine.hedging, pace.longest(), candidates, needed, ask).await;
        engine.counters.hedges.add(raced.hedges);
        engine.counters.hedges_won.add(raced.hedges_won);
        raced
    }

    /// `needed` fragments were necessary and fewer could be had.
    pub(super) fn not_enough(&self, needed: usize, found: usize, lost: &[Lost]) -> Failure {
        if lost.iter().any(|lost| lost.why == Why::Unproven) {
            return Failure::Unproven;
        }
        let holes = self.chunk.fragments.iter().filter(|entry| entry.location.is_none()).count();
        let mut detail: Vec<String> =
            lost.iter().map(|lost| format!("fragment {}: {}", lost.fragment, lost.reason)).collect();
        if holes > 0 {
            detail.push(format!("{holes} never stored"));
        }
        Failure::Client(ClientError::NotEnoughFragments {
            object: self.manifest.name.clone(),
            chunk: self.index,
            needed,
            found,
            detail: detail.join("; "),
        })
    }

    fn undecodable(&self, reason: &dyn std::fmt::Display) -> ClientError {
        ClientError::Undecodable { object: self.manifest.name.clone(), reason: reason.to_string() }
    }

    /// The k data fragments, plain and in order.
    pub(super) async fn data(&self) -> Result<Had<Vec<Bytes>>, ClientError> {
        let shape = self.manifest.scheme.shape;
        self.engine.counters.fragments_needed.add(u64::try_from(self.k()).unwrap_or(u64::MAX));
        self.engine.hedging.needed(self.k());
        let raced = self.any(Part::Whole, self.k(), &BTreeSet::new()).await;
        if raced.won.len() < self.k() {
            return Err(match self.not_enough(self.k(), raced.won.len(), &raced.lost) {
                Failure::Client(error) => error,
                Failure::Unproven => self.undecodable(&"whole fragments need no proof"),
            });
        }
        let as_stated = as_stated(&raced.lost);
        let present = raced.won;
        let complete = shape.is_replication() || present.iter().all(|(index, _)| index.index() < shape.k());
        let bytes = if complete { 0 } else { u64::from(self.chunk.size) };
        let data = self
            .engine
            .compute(bytes, move || data_fragments(shape, &present))
            .await?
            .map_err(|error| self.undecodable(&error))?;
        Ok((data, as_stated))
    }

    /// A part of a data fragment, computed from the same part of any k fragments: the code works byte by byte. Fragments in
    /// `last` are asked for only when the others don't suffice.
    pub(super) async fn computed(
        &self,
        fragment: FragmentIndex,
        part: Part,
        last: &BTreeSet<FragmentIndex>,
    ) -> Result<Had<Bytes>, Failure> {
        let shape = self.manifest.scheme.shape;
        let mut raced = self.any(part, self.k(), last).await;
        let as_stated = as_stated(&raced.lost);
        if let Some(itself) = raced.won.iter().position(|(index, _)| *index == fragment) {
            return Ok((raced.won.swap_remove(itself).1, as_stated));
        }
        if raced.won.len() < self.k() {
            return Err(self.not_enough(self.k(), raced.won.len(), &raced.lost));
        }
        let present = raced.won;
        let bytes = present.iter().map(|(_, bytes)| u64::try_from(bytes.len()).unwrap_or(u64::MAX)).sum();
        let computed = self
            .engine
            .compute(bytes, move || regenerate(shape, &present, &[fragment]))
            .await?
            .map_err(|error| self.undecodable(&error))?;
        let plain = computed.into_iter().next().ok_or_else(|| self.undecodable(&"nothing was computed"))?;
        Ok((plain, as_stated))
    }
}
