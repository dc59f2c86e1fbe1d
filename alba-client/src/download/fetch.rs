//! One read of a fragment, or of a part of it, from the OSD that the manifest names: **every** byte that a reader gets from
//! an OSD comes through [`fetch`], and so does what the cache has. Who wants the same at the same time shares one read.
//!
//! Nothing leaves here unverified. Whole fragments are compared with the manifest's checksum. Of parts, the OSD proves
//! that they belong under the BLAKE3 root in the manifest; with another checksum only the whole can be verified, so parts
//! are refused ([`Why::Unproven`]). Without any checksum there is nothing to compare with but what the OSD itself checks.

use std::sync::Arc;

use alba_core::blake3_tree;
use alba_core::checksum::Checksum;
use alba_core::encryption::FragmentKey;
use alba_core::env::osd::{OsdKey, Priority, ValueSlice};
use alba_core::env::{Deadline, OsdError};
use alba_core::fragment::{Cipher, unpack};
use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceId, NamespaceName, ObjectId, ObjectVersion, OsdId};
use alba_core::manifest::{Fragment, Manifest, PackedFragment, VerifiedFragment};
use alba_core::wire::rpc::abm::WorkItem;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;

use super::chunk::ChunkReader;
use crate::engine::Engine;
use crate::fragment_cache::CacheKey;
use crate::osd_pool::{CallKind, CallSize, Member};

/// Which bytes of a plain fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// Some, not all: only where a plain fragment is stored byte for byte, encrypted or not.
    Range {
        /// Where they begin, in bytes.
        offset: u32,
        /// How many; not 0.
        len: u32,
    },
}

/// Why bytes of a fragment could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Only the whole fragment can be verified.
    Unproven,
    /// They are not there, or not what the manifest says: another manifest may know better, and repair is due.
    Bad,
    /// The OSD did not answer, or not well.
    Failed,
}

/// Bytes that could not be had.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    pub(super) fragment: FragmentIndex,
    pub(super) why: Why,
    pub(super) reason: String,
}

/// What is read: the same for all who want the same bytes of the same stored fragment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wanted {
    namespace: NamespaceId,
    object: ObjectId,
    chunk: ChunkIndex,
    fragment: FragmentIndex,
    version: ObjectVersion,
    osd: OsdId,
    part: Part,
}

/// The plain bytes of `part` of a fragment. Waits as long as its caller lets it; the OSD has `osd_timeout`.
pub(super) async fn fetch(
    reader: &ChunkReader<'_>,
    fragment: FragmentIndex,
    part: Part,
) -> Result<Bytes, Lost> {
    let lost = |reason: &str| Lost { fragment, why: Why::Failed, reason: reason.to_owned() };
    let entry = reader.chunk.fragments.get(fragment.index()).ok_or_else(|| lost("no such fragment"))?;
    let (osd, key) = reader.key(fragment).ok_or_else(|| lost("stored nowhere"))?;
    if reader.key.is_some() != entry.ctr.is_some() {
        return Err(lost("a counter block and encryption belong together"));
    }
    let wanted = Wanted {
        namespace: reader.namespace,
        object: reader.manifest.object_id,
        chunk: reader.index,
        fragment,
        version: entry.version,
        osd,
        part,
    };
    let begin = || {
        let read = Read {
            engine: Arc::clone(reader.engine),
            name: reader.name.clone(),
            manifest: Arc::clone(reader.manifest),
            entry: entry.clone(),
            plain_len: reader.fragment_len,
            cipher_key: reader.key.cloned(),
            osd_key: key,
            cache_key: reader.cache_key(fragment),
            wanted: wanted.clone(),
        };
        async move { read.run().await }.boxed()
    };
    let (flight, joined) = reader.engine.flights.join(wanted.clone(), begin);
    if joined {
        reader.engine.counters.fragments_merged.add(1);
    }
    flight.await
}

/// A read with all it needs: it may outlive the request that began it, as long as another one waits for it.
struct Read {
    engine: Arc<Engine>,
    name: NamespaceName,
    manifest: Arc<Manifest>,
    entry: Fragment,
    /// Plain bytes of the whole fragment.
    plain_len: u32,
    cipher_key: Option<Arc<FragmentKey>>,
    osd_key: OsdKey,
    cache_key: Option<CacheKey>,
    wanted: Wanted,
}

impl Read {
    fn lost(&self, why: Why, reason: impl Into<String>) -> Lost {
        Lost { fragment: self.wanted.fragment, why, reason: reason.into() }
    }

    async fn run(self) -> Result<Bytes, Lost> {
        let deadline = self.engine.deadline_in(self.engine.config.osd_timeout());
        if let Some(plain) = self.cached(deadline).await {
            return Ok(plain);
        }
        let osd = self.wanted.osd;
        let member = self.engine.pool.member(osd, deadline).await.map_err(|error| {
            // One that is not of this backend (any more): the manifest is old.
            let why = if matches!(error, crate::ClientError::OsdUnknown(_)) { Why::Bad } else { Why::Failed };
            self.lost(why, error.to_string())
        })?;
        self.engine.counters.fragments_asked.add(1);
        match self.wanted.part {
            Part::Whole => self.whole(&member).await,
            Part::Range { offset, len } => {
                let plain = self.range(&member, ValueSlice { offset, len }).await?;
                if let Some(key) = &self.cache_key {
                    let from = (osd, self.osd_key.clone());
                    self.engine.fragments.missed(&self.engine, key, from, &self.entry);
                }
                Ok(plain)
            }
        }
    }

    /// From the cache, which takes no more time than its own deadline.
    async fn cached(&self, deadline: Deadline) -> Option<Bytes> {
        let (engine, key) = (&self.engine, self.cache_key.as_ref()?);
        match self.wanted.part {
            Part::Whole => {
                let packed = engine.fragments.whole(engine, key, &self.entry, deadline).await?;
                let unpack = self.unpacking()?;
                // Cannot fail: its checksum is the manifest's. If it does, the OSD is asked.
                engine.compute(u64::from(self.entry.packed_len), move || unpack(&packed)).await.ok()?.ok()
            }
            Part::Range { offset, len } if self.entry.packed_len == self.plain_len => {
                let slice = ValueSlice { offset, len };
                let packed = if self.entry.ctr.is_some() {
                    // After a recovery the same key can mean bytes that were encrypted with another counter block: only the
                    // whole shows that they are the manifest's.
                    let whole = engine.fragments.whole(engine, key, &self.entry, deadline).await?;
                    let from = usize::try_from(offset).ok()?;
                    let to = from.checked_add(usize::try_from(len).ok()?)?;
                    whole.bytes().get(from..to).map(Bytes::copy_from_slice)?
                } else {
                    engine.fragments.range(key, self.entry.packed_len, slice, deadline).await?
                };
                Some(self.decrypted(&packed, slice))
            }
            Part::Range { .. } => None,
        }
    }

    /// How packed bytes become plain ones; none where the fragment does not fit in memory.
    fn unpacking(&self) -> Option<impl FnOnce(&VerifiedFragment) -> Result<Bytes, String> + Send + use<>> {
        let compression = self.manifest.scheme.compression;
        let plain_len = usize::try_from(self.plain_len).ok()?;
        let (key, ctr) = (self.cipher_key.clone(), self.entry.ctr);
        Some(move |packed: &VerifiedFragment| {
            let cipher = key.as_deref().zip(ctr).map(|(key, counter)| Cipher { key, counter });
            unpack(packed, compression, cipher, plain_len).map_err(|error| error.to_string())
        })
    }

    /// A copy in any case: a slice of an answer would keep all of it in memory.
    fn decrypted(&self, packed: &Bytes, slice: ValueSlice) -> Bytes {
        let mut plain = BytesMut::from(&packed[..]);
        if let Some((key, counter)) = self.cipher_key.as_deref().zip(self.entry.ctr) {
            key.apply(&counter, u64::from(slice.offset), &mut plain);
        }
        plain.freeze()
    }

    async fn whole(&self, member: &Arc<Member>) -> Result<Bytes, Lost> {
        let engine = &self.engine;
        let packed_len = u64::from(self.entry.packed_len);
        let deadline = engine.deadline_in(engine.config.osd_timeout());
        let size = CallSize::of(packed_len);
        let values = engine
            .pool
            .call_of(CallKind::Read, member, size, deadline, |osd, deadline| {
                let keys = vec![self.osd_key.clone()];
                async move { osd.multi_get(keys, Priority::High, deadline).await }
            })
            .await
            .map_err(|error| self.refused(member, &error))?;
        let Some(Some(stored)) = values.into_iter().next() else { return Err(self.missing(member)) };
        let unpack = self.unpacking().ok_or_else(|| self.lost(Why::Failed, "it does not fit in memory"))?;
        let entry = self.entry.clone();
        let (packed, plain) = engine
            .compute(packed_len, move || {
                let verified = PackedFragment(stored.value)
                    .verify(&entry)
                    .map_err(|_| "its checksum is not the manifest's".to_owned())?;
                let plain = unpack(&verified)?;
                Ok::<_, String>((verified, plain))
            })
            .await
            .map_err(|error| self.lost(Why::Failed, error.to_string()))?
            .map_err(|reason| self.damaged(member, reason))?;
        if let Some(key) = &self.cache_key {
            engine.fragments.read(*key, &packed);
        }
        Ok(plain)
    }

    async fn range(&self, member: &Arc<Member>, slice: ValueSlice) -> Result<Bytes, Lost> {
        if self.entry.packed_len != self.plain_len {
            return Err(self.lost(Why::Failed, "its stored length is not its plain one"));
        }
        let packed = match self.entry.checksum {
            Checksum::Blake3(root) => self.proven(member, slice, root).await?,
            Checksum::None => self.trusted(member, slice).await?,
            Checksum::Sha1(_) | Checksum::Crc32c(_) => return Err(self.lost(Why::Unproven, "no BLAKE3 root")),
        };
        Ok(self.decrypted(&packed, slice))
    }

    /// A part with the proof that it is of what has this root.
    async fn proven(
        &self,
        member: &Arc<Member>,
        slice: ValueSlice,
        root: blake3_tree::Root,
    ) -> Result<Bytes, Lost> {
        let engine = &self.engine;
        if !member.health().proves(engine.env.clock.now()) {
            return Err(self.lost(Why::Unproven, format!("OSD {} proves nothing", member.id)));
        }
        let deadline = engine.deadline_in(engine.config.osd_timeout());
        let size = CallSize::of(u64::from(slice.len));
        let answer = engine
            .pool
            .call_of(CallKind::Read, member, size, deadline, |osd, deadline| {
                let key = self.osd_key.clone();
                async move { osd.proven_get(key, slice, Priority::High, deadline).await }
            })
            .await;
        let proven = match answer {
            Ok(Some(proven)) => proven,
            Ok(None) => return Err(self.missing(member)),
            Err(OsdError::UnknownOperation) => {
                member.health().proves_nothing(engine.env.clock.now());
                return Err(self.lost(Why::Unproven, format!("OSD {} is an older one", member.id)));
            }
            // Stored without its root, or shorter than it was: the whole value shows which.
            Err(error @ OsdError::BadRequest(_)) => return Err(self.lost(Why::Unproven, error.to_string())),
            Err(error) => return Err(self.refused(member, &error)),
        };
        let len = self.entry.packed_len;
        engine
            .compute(u64::from(slice.len), move || blake3_tree::verify(root, len, slice, &proven))
            .await
            .map_err(|error| self.lost(Why::Failed, error.to_string()))?
            .map(blake3_tree::VerifiedSlice::into_bytes)
            .map_err(|error| self.damaged(member, error.to_string()))
    }

    /// A part of a value without checksum.
    async fn trusted(&self, member: &Arc<Member>, slice: ValueSlice) -> Result<Bytes, Lost> {
        let engine = &self.engine;
        let deadline = engine.deadline_in(engine.config.osd_timeout());
        let size = CallSize::of(u64::from(slice.len));
        let answer = engine
            .pool
            .call_of(CallKind::Read, member, size, deadline, |osd, deadline| {
                let key = self.osd_key.clone();
                async move { osd.partial_get(key, vec![slice], Priority::High, deadline).await }
            })
            .await
            .map_err(|error| self.refused(member, &error))?;
        let bytes = answer.ok_or_else(|| self.missing(member))?.into_iter().next().unwrap_or_default();
        if u32::try_from(bytes.len()) != Ok(slice.len) {
            return Err(
                self.lost(Why::Failed, format!("OSD {} gave another length than asked for", member.id))
            );
        }
        Ok(bytes)
    }

    /// The OSD did not give it.
    fn refused(&self, member: &Member, error: &OsdError) -> Lost {
        let why = match error {
            // Damage that the OSD found itself, or a value that is shorter than the manifest says.
            OsdError::Damaged(_) | OsdError::BadRequest(_) => {
                self.engine.counters.fragments_damaged.add(1);
                self.ask_repair();
                Why::Bad
            }
            _ => Why::Failed,
        };
        self.lost(why, format!("OSD {}: {error}", member.id))
    }

    fn missing(&self, member: &Member) -> Lost {
        self.ask_repair();
        self.lost(Why::Bad, format!("OSD {} does not have it", member.id))
    }

    fn damaged(&self, member: &Arc<Member>, reason: String) -> Lost {
        self.engine.counters.fragments_damaged.add(1);
        self.engine.pool.damaged(member, &reason);
        tracing::warn!(
            object = %self.manifest.name, chunk = %self.wanted.chunk, fragment = %self.wanted.fragment,
            osd = %member.id, reason, "damaged fragment"
        );
        self.ask_repair();
        self.lost(Why::Bad, format!("OSD {}: {reason}", member.id))
    }

    fn ask_repair(&self) {
        let item = WorkItem::RepairBadFragment {
            namespace: self.wanted.namespace,
            object: self.wanted.object,
            name: self.manifest.name.clone(),
            chunk: self.wanted.chunk,
            fragment: self.wanted.fragment,
            version: self.wanted.version,
        };
        self.engine.found.found(&self.engine, &self.name, item);
    }
}
