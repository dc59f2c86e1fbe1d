//! Carrying out an update: new fragments under the next version, then one change of the manifest, then the tags.
//!
//! ```text
//!   1 fragments   acknowledged, with asserts that namespace and key are as they must be
//!   2 manifest    one UpdateObject, at exactly the version the plan was made for, naming the epoch of the tags
//!   3 tags        removed from what the group has acknowledged
//! ```
//!
//! A crash before 2 leaves tagged fragments that no manifest names; one between 2 and 3 leaves tags on fragments that a
//! manifest names. Garbage collection tells them apart. The group queues what was replaced in the same command as 2.

use std::collections::BTreeMap;
use std::sync::Arc;

use alba_core::checksum::Checksum;
use alba_core::encryption::FragmentKey;
use alba_core::env::osd::PeerSource;
use alba_core::env::{Deadline, MetaError};
use alba_core::failpoint::{self, reach};
use alba_core::fragment::Packed;
use alba_core::ids::{ChunkIndex, FragmentIndex, GcEpoch, ObjectVersion, OsdId};
use alba_core::manifest::{Fragment, Manifest};
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::wire::recovery::RecoveryInfo;
use alba_core::wire::rpc::nsm::{
    FragmentUpdate, NamespaceInfo, NsmAnswer, NsmCommand, NsmError, NsmOutcome, NsmQuery,
};
use bytes::Bytes;
use futures_util::future::join_all;

use super::counters::Counters;
use super::kept::{Kept, KeptFragment};
use super::plan::{Bad, ChunkWork, How, Situation, accepted};
use super::read::{Chunk, ReadFault};
use super::store::{Content, Store, StoreError, take_over, use_again};
use crate::ClientError;
use crate::engine::Engine;
use crate::namespaces::{Namespace, unexpected};
use crate::osd_pool::Member;
use crate::untag::{self, After, Tag};
use crate::upload::recovery::of_object;

/// Fragments changed by one command: at most 70 bytes each, so that it stays well below the 1 MiB that a group takes.
const FRAGMENTS_PER_COMMIT: usize = 8000;

/// One attempt at one object.
pub(super) struct Attempt<'a> {
    pub(super) engine: &'a Arc<Engine>,
    pub(super) namespace: &'a Arc<Namespace>,
    /// Preset and epoch, as new as they have to be.
    pub(super) info: Arc<NamespaceInfo>,
    pub(super) manifest: Manifest,
    pub(super) key: Option<FragmentKey>,
    pub(super) counters: &'a Counters,
    /// What earlier attempts of this repair have stored.
    pub(super) kept: &'a Kept,
    pub(super) deadline: Deadline,
}

/// What came up on the way: the next plan goes by it.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Missing or damaged.
    pub(super) bad: Vec<Bad>,
    /// Did not take a fragment.
    pub(super) avoid: Vec<OsdId>,
    /// Did not answer when it was read from.
    pub(super) silent: Vec<OsdId>,
    /// Why something could not be done.
    pub(super) reasons: Vec<String>,
}

impl Findings {
    pub(super) fn is_empty(&self) -> bool {
        self.bad.is_empty() && self.avoid.is_empty() && self.silent.is_empty() && self.reasons.is_empty()
    }

    fn add(&mut self, other: Self) {
        self.bad.extend(other.bad);
        self.avoid.extend(other.avoid);
        self.silent.extend(other.silent);
        self.reasons.extend(other.reasons);
    }
}

/// How an update ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The group took it; perhaps not all of the work is done.
    Committed,
    /// Nothing could be stored.
    Nothing,
    /// The object has changed meanwhile, or is gone.
    Raced,
    /// The namespace's settings have changed meanwhile.
    Stale(NsmError),
}

/// A step whose fragment is stored.
struct Stored {
    chunk: ChunkIndex,
    update: FragmentUpdate,
    how: How,
    at: Option<(Arc<Member>, FragmentAddress)>,
}

/// A fragment to be stored: which, what, and what the manifest will say of it.
struct Fresh {
    fragment: FragmentIndex,
    how: How,
    onto: OsdId,
    content: Made,
    entry: Fragment,
}

/// Where its bytes come from.
enum Made {
    Computed(Packed),
    CopyOf(FragmentIndex),
    /// It is there already, since an earlier attempt, with a tag of this epoch.
    Kept(GcEpoch),
}

impl Attempt<'_> {
    pub(super) fn chunk(&self, index: ChunkIndex) -> Chunk<'_> {
        Chunk {
            engine: self.engine,
            namespace: self.namespace.id,
            manifest: &self.manifest,
            index,
            key: self.key.as_ref(),
            deadline: self.deadline,
        }
    }

    fn new_address(&self, chunk: ChunkIndex, fragment: FragmentIndex) -> FragmentAddress {
        let (object_id, version) = (self.manifest.object_id, self.next_version());
        FragmentAddress { object_id, chunk, fragment, version }
    }

    fn next_version(&self) -> ObjectVersion {
        ObjectVersion(self.manifest.version.0.saturating_add(1))
    }

    /// Does as much of the work as can be done, and commits it at once.
    pub(super) async fn run(
        &self,
        work: &[ChunkWork],
        situation: &Situation<'_>,
    ) -> Result<(Ended, Findings), ClientError> {
        reach(failpoint::Step::UpdatePlanned);
        let mut stored: Vec<Stored> = Vec::new();
        let mut findings = Findings::default();
        for work in work {
            if !stored.is_empty() && stored.len() + work.steps.len() > FRAGMENTS_PER_COMMIT {
                break;
            }
            let (done, found) = self.work_on(work).await?;
            stored.extend(done);
            let go_on = found.is_empty();
            findings.add(found);
            if !go_on {
                break;
            }
        }
        let done = works_of(&stored);
        if done.is_empty() || !accepted(&self.manifest, &done, situation) {
            return Ok((Ended::Nothing, findings));
        }
        Ok((self.commit(stored).await?, findings))
    }

    async fn work_on(&self, work: &ChunkWork) -> Result<(Vec<Stored>, Findings), ClientError> {
        let mut findings = Findings::default();
        let _room = self.engine.buffers.work(self.footprint(work), self.deadline).await?;
        let Some(fresh) = self.make(work, &mut findings).await? else {
            return Ok((Vec::new(), findings));
        };
        reach(failpoint::Step::UpdateMade);
        let recovery = self.recovery(work.chunk, &fresh).await?;
        let stores =
            fresh.iter().zip(recovery).map(|(fresh, recovery)| self.store(work.chunk, fresh, recovery));
        let mut stored = Vec::new();
        let mut all_stored = true;
        for (result, fresh) in join_all(stores).await.into_iter().zip(&fresh) {
            match result {
                Ok(at) => stored.push(self.stored(work.chunk, fresh, at)),
                Err(found) => {
                    all_stored = false;
                    findings.add(found);
                }
            }
        }
        if !all_stored {
            // What was to be given up may be needed now.
            return Ok((stored, findings));
        }
        let dropped = work.steps.iter().filter(|step| step.how == How::Drop);
        stored.extend(dropped.map(|step| Stored {
            chunk: work.chunk,
            update: FragmentUpdate {
                chunk: work.chunk,
                fragment: step.fragment,
                osd: None,
                packed: None,
                ctr: None,
            },
            how: step.how,
            at: None,
        }));
        Ok((stored, findings))
    }

    /// Memory that a chunk takes: what is read, its plain form, and what is made of it.
    fn footprint(&self, work: &ChunkWork) -> u64 {
        let Some(chunk) = self.manifest.chunks.get(work.chunk.index()) else { return 0 };
        let packed = |fragment: FragmentIndex| {
            chunk.fragments.get(fragment.index()).map_or(0, |entry| u64::from(entry.packed_len))
        };
        let plain = u64::from(self.manifest.fragment_len(work.chunk).unwrap_or(0));
        let mut bytes = 0;
        let mut computes = false;
        for step in &work.steps {
            match step.how {
                How::Copy { from, .. } => bytes += packed(from),
                How::Regenerate { .. } => {
                    computes = true;
                    bytes += 2 * plain;
                }
                How::Drop => {}
            }
        }
        if computes {
            bytes += work.sources.iter().map(|f| packed(*f).max(plain)).max().unwrap_or(0)
                * u64::from(self.manifest.scheme.shape.as_u8().0);
        }
        bytes
    }

    /// Computes what is to be computed; none when that is not possible.
    async fn make(
        &self,
        work: &ChunkWork,
        findings: &mut Findings,
    ) -> Result<Option<Vec<Fresh>>, ClientError> {
        let kept = |fragment: FragmentIndex, onto: OsdId| {
            self.kept.find(onto, &self.new_address(work.chunk, fragment))
        };
        let wanted: Vec<FragmentIndex> = work
            .steps
            .iter()
            .filter(|step| match step.how {
                How::Regenerate { onto } => kept(step.fragment, onto).is_none(),
                How::Copy { .. } | How::Drop => false,
            })
            .map(|step| step.fragment)
            .collect();
        let mut computed = BTreeMap::new();
        if !wanted.is_empty() {
            match self.compute(work, &wanted, findings).await? {
                Some(packed) => computed.extend(wanted.into_iter().zip(packed)),
                None => return Ok(None),
            }
        }
        let version = self.next_version();
        let mut fresh = Vec::new();
        for step in &work.steps {
            let stored = step.how.onto().and_then(|onto| Some((onto, kept(step.fragment, onto)?)));
            if let Some((onto, KeptFragment { epoch, entry })) = stored {
                let (fragment, how, content) = (step.fragment, step.how, Made::Kept(epoch));
                fresh.push(Fresh { fragment, how, onto, content, entry });
                continue;
            }
            let (onto, content, entry) = match step.how {
                How::Drop => continue,
                How::Copy { from, onto } => {
                    let Some(entry) = self.manifest.fragment(work.chunk, from) else { continue };
                    (onto, Made::CopyOf(from), Fragment { location: Some(onto), version, ..entry.clone() })
                }
                How::Regenerate { onto } => {
                    let Some(packed) = computed.remove(&step.fragment) else { continue };
                    let entry = packed.entry(Some(onto), version);
                    (onto, Made::Computed(packed), entry)
                }
            };
            fresh.push(Fresh { fragment: step.fragment, how: step.how, onto, content, entry });
        }
        Ok(Some(fresh))
    }

    pub(super) fn bad(&self, chunk: ChunkIndex, fragment: FragmentIndex) -> Option<Bad> {
        Some((chunk, fragment, self.manifest.fragment(chunk, fragment)?.version))
    }

    /// The recovery info of each fresh fragment: it tells of all fragments of the chunk as they will be.
    async fn recovery(&self, index: ChunkIndex, fresh: &[Fresh]) -> Result<Vec<Bytes>, ClientError> {
        let manifest = &self.manifest;
        let internal =
            |reason: String| ClientError::Internal(format!("recovery info of {}: {reason}", manifest.name));
        let chunk = manifest
            .chunks
            .get(index.index())
            .ok_or_else(|| internal(format!("there is no chunk {index}")))?;
        let mut fragments: Vec<(u32, Checksum)> =
            chunk.fragments.iter().map(|entry| (entry.packed_len, entry.checksum)).collect();
        for fresh in fresh {
            if let Some(entry) = fragments.get_mut(fresh.fragment.index()) {
                *entry = (fresh.entry.packed_len, fresh.entry.checksum);
            }
        }
        let is_last = index.index() + 1 == manifest.chunks.len();
        let object = || of_object(&manifest.scheme, manifest.size, manifest.checksum, manifest.timestamp);
        let info = RecoveryInfo {
            name: manifest.name.clone(),
            chunk_size: chunk.size,
            fragments,
            object: is_last.then(object),
            ctr: None,
        };
        let each: Vec<_> = fresh.iter().map(|fresh| (fresh.entry.ctr, counter(self.engine))).collect();
        let key = self.key.clone();
        let encoded = self
            .engine
            .compute(u64::MAX, move || match key {
                None => Ok(vec![info.encode()?; each.len()]),
                Some(key) => each
                    .into_iter()
                    .map(|(ctr, counter)| {
                        RecoveryInfo { ctr, ..info.clone() }.encode_encrypted(&key, counter)
                    })
                    .collect::<Result<Vec<Bytes>, _>>(),
            })
            .await?;
        encoded.map_err(|error: alba_core::wire::llio::WireError| internal(error.to_string()))
    }

    async fn store(
        &self,
        chunk: ChunkIndex,
        fresh: &Fresh,
        recovery: Bytes,
    ) -> Result<(Arc<Member>, FragmentAddress), Findings> {
        let stored = self.store_unkept(chunk, fresh, recovery).await?;
        let kept = KeptFragment { epoch: self.info.newest_epoch, entry: fresh.entry.clone() };
        self.kept.keep(fresh.onto, stored.1, kept);
        Ok(stored)
    }

    async fn store_unkept(
        &self,
        chunk: ChunkIndex,
        fresh: &Fresh,
        recovery: Bytes,
    ) -> Result<(Arc<Member>, FragmentAddress), Findings> {
        let onto = fresh.onto;
        let refused = |reason: String| Findings {
            avoid: vec![onto],
            reasons: vec![format!("OSD {onto}: {reason}")],
            ..Findings::default()
        };
        let member =
            self.engine.pool.member(onto, self.deadline).await.map_err(|error| refused(error.to_string()))?;
        reach(failpoint::Step::UpdateStoring);
        let address = self.new_address(chunk, fresh.fragment);
        let mut store = Store {
            namespace: self.namespace.id,
            epoch: self.info.newest_epoch,
            address,
            content: Content::Bytes(Packed {
                bytes: Bytes::new(),
                len: 0,
                checksum: Checksum::None,
                ctr: None,
            }),
            recovery,
            mark: self.kept.mark.clone(),
            open: self.info.min_epoch..=self.info.newest_epoch,
        };
        match &fresh.content {
            Made::Kept(epoch) => {
                let old = (*epoch, store.mark.value());
                let (recovery, to) = (store.recovery.clone(), (store.epoch, &store.mark));
                let batch = take_over(store.namespace, &address, old, to, recovery);
                let done = (osd_keys::gc_tag(store.namespace, store.epoch, &address), &store.mark);
                return match use_again(self.engine, &member, batch, done, self.deadline).await {
                    Ok(()) => Ok((member, address)),
                    Err(error) => {
                        self.kept.forget(onto, &address);
                        Err(self.not_stored(onto, error, refused))
                    }
                };
            }
            Made::Computed(packed) => store.content = Content::Bytes(packed.clone()),
            Made::CopyOf(from) => {
                if let Some(content) = self.of_peer(chunk, *from).await {
                    store.content = content;
                    match store.run(self.engine, &member, self.deadline).await {
                        Ok(()) => {
                            self.counters.peer_copied.add(1);
                            return Ok((member, address));
                        }
                        Err(StoreError::NoCopy(error)) => {
                            tracing::debug!(%onto, %error, "copied through here");
                        }
                        Err(error) => return Err(self.not_stored(onto, error, refused)),
                    }
                }
                store.content = Content::Bytes(self.fetch(chunk, *from).await?);
            }
        }
        match store.run(self.engine, &member, self.deadline).await {
            Ok(()) => Ok((member, address)),
            Err(error) => Err(self.not_stored(onto, error, refused)),
        }
    }

    fn not_stored(&self, onto: OsdId, error: StoreError, refused: impl Fn(String) -> Findings) -> Findings {
        match error {
            // The OSD is well. It is another place's turn only as long as the object is what it is.
            StoreError::KeyTaken => {
                self.counters.keys_taken.add(1);
                self.kept.is_taken(onto);
                Findings { avoid: Vec::new(), ..refused(error.to_string()) }
            }
            StoreError::Gone => Findings { avoid: Vec::new(), ..refused(error.to_string()) },
            StoreError::NotInNamespace | StoreError::NoCopy(_) | StoreError::Osd(_) => {
                refused(error.to_string())
            }
        }
    }

    /// The value as another OSD can fetch it, if it can be verified there.
    async fn of_peer(&self, chunk: ChunkIndex, from: FragmentIndex) -> Option<Content> {
        let entry = self.manifest.fragment(chunk, from)?.clone();
        if entry.checksum == Checksum::None {
            return None;
        }
        let source = self.engine.pool.member(entry.location?, self.deadline).await.ok()?;
        let key = osd_keys::fragment(self.namespace.id, &self.chunk(chunk).address(from)?);
        let peer = PeerSource { peer: source.info().long_id.clone(), key, checksum: entry.checksum };
        Some(Content::OfPeer(peer, entry))
    }

    /// The packed bytes of a fragment, read here.
    async fn fetch(&self, chunk: ChunkIndex, from: FragmentIndex) -> Result<Packed, Findings> {
        let entry = self.manifest.fragment(chunk, from);
        match (self.chunk(chunk).packed(from).await, entry) {
            (Ok(verified), Some(entry)) => {
                self.counters.bytes_read.add(u64::from(entry.packed_len));
                let bytes = verified.bytes().clone();
                Ok(Packed { bytes, len: entry.packed_len, checksum: entry.checksum, ctr: entry.ctr })
            }
            (Ok(_), None) => Err(Findings::default()),
            (Err(fault), _) => {
                let mut findings = Findings { reasons: vec![fault.to_string()], ..Findings::default() };
                match fault {
                    ReadFault::Missing | ReadFault::Damaged(_) => findings.bad.extend(self.bad(chunk, from)),
                    ReadFault::Unreachable(_) => {
                        findings.silent.extend(entry.and_then(|entry| entry.location));
                    }
                }
                Err(findings)
            }
        }
    }

    fn stored(&self, chunk: ChunkIndex, fresh: &Fresh, at: (Arc<Member>, FragmentAddress)) -> Stored {
        let old = self.manifest.fragment(chunk, fresh.fragment);
        let entry = &fresh.entry;
        let same =
            old.is_some_and(|old| (old.packed_len, old.checksum) == (entry.packed_len, entry.checksum));
        let same_ctr = old.is_some_and(|old| old.ctr == entry.ctr);
        Stored {
            chunk,
            update: FragmentUpdate {
                chunk,
                fragment: fresh.fragment,
                osd: Some(fresh.onto),
                packed: (!same).then_some((entry.packed_len, entry.checksum)),
                ctr: entry.ctr.filter(|_| !same_ctr),
            },
            how: fresh.how,
            at: Some(at),
        }
    }

    async fn commit(&self, stored: Vec<Stored>) -> Result<Ended, ClientError> {
        reach(failpoint::Step::UpdateCommitting);
        let fragments: Vec<FragmentUpdate> = stored.iter().map(|stored| stored.update.clone()).collect();
        let command = || NsmCommand::UpdateObject {
            namespace: self.namespace.id,
            object: self.manifest.object_id,
            version: self.manifest.version,
            fragments: fragments.clone(),
            epoch: self.info.newest_epoch,
        };
        let manifest = match self.engine.tell_group(self.namespace, command, self.deadline).await {
            Ok(NsmOutcome::Updated(manifest)) => manifest,
            Ok(_) => return Err(unexpected("Updated")),
            Err(ClientError::Meta(MetaError::SessionUnknown)) => match self.find_out(&fragments).await? {
                Some(manifest) => manifest,
                None => return Ok(Ended::Raced),
            },
            Err(ClientError::Meta(MetaError::Nsm(error))) => match error {
                NsmError::InvalidVersion(_) | NsmError::ObjectNotFound => return Ok(Ended::Raced),
                NsmError::InvalidGcEpoch(_)
                | NsmError::InactiveOsd(_)
                | NsmError::InvalidBucket
                | NsmError::InvalidFragmentSpread
                | NsmError::PresetViolated(_) => return Ok(Ended::Stale(error)),
                error => return Err(ClientError::Meta(MetaError::Nsm(error))),
            },
            Err(error) => return Err(error),
        };
        reach(failpoint::Step::UpdateCommitted);
        self.engine.cache.update(self.namespace.id, Arc::from(manifest));
        self.count(&stored);
        // Only now, and only from what the group has acknowledged (invariant 3).
        self.remove_tags(stored).await;
        Ok(Ended::Committed)
    }

    /// The group forgot our session, and with it the answer. Was the command applied?
    async fn find_out(&self, fragments: &[FragmentUpdate]) -> Result<Option<Box<Manifest>>, ClientError> {
        let (namespace, object) = (self.namespace.id, self.manifest.object_id);
        let query = || NsmQuery::ManifestById { namespace, object };
        let NsmAnswer::Manifest(now) = self.engine.ask_group(self.namespace, query, self.deadline).await?
        else {
            return Err(unexpected("Manifest"));
        };
        let version = self.next_version();
        Ok(now.filter(|now| {
            // Of another repairer's update at least one place differs, or it was the same update.
            now.version == version
                && fragments.iter().all(|update| {
                    now.fragment(update.chunk, update.fragment)
                        .is_some_and(|entry| entry.location == update.osd)
                })
        }))
    }

    fn count(&self, stored: &[Stored]) {
        let counters = self.counters;
        counters.objects_updated.add(1);
        for stored in stored {
            match stored.how {
                How::Regenerate { .. } => counters.regenerated.add(1),
                How::Copy { .. } => counters.copied.add(1),
                How::Drop => counters.dropped.add(1),
            }
            if let How::Regenerate { .. } | How::Copy { .. } = stored.how {
                let old = self.manifest.fragment(stored.chunk, stored.update.fragment);
                let len = stored.update.packed.map(|(len, _)| len).or(old.map(|old| old.packed_len));
                counters.bytes_written.add(u64::from(len.unwrap_or(0)));
            }
        }
    }

    /// What stays tagged is found by garbage collection. So is what another repairer has written under the same key meanwhile:
    /// its tag has another mark, and stays.
    async fn remove_tags(&self, stored: Vec<Stored>) {
        let (engine, namespace, epoch) = (self.engine, self.namespace.id, self.info.newest_epoch);
        let mark = self.kept.mark.value();
        let tag =
            |address| Tag { key: osd_keys::gc_tag(namespace, epoch, &address), mark: Some(mark.clone()) };
        let tags = stored.into_iter().filter_map(|stored| stored.at);
        let tags = tags.map(|(member, address)| (member, tag(address)));
        match engine.unsettled(engine.deadline_in(engine.config.osd_timeout())).await {
            Ok(unsettled) => untag::remove(engine, namespace, After::Update, tags, &unsettled).await,
            Err(error) => {
                let reason = error.to_string();
                tags.for_each(|(member, _)| untag::leave(engine, member.id, 1, &reason));
            }
        }
    }
}

/// The work that these steps make up.
fn works_of(stored: &[Stored]) -> Vec<ChunkWork> {
    let mut works: BTreeMap<ChunkIndex, ChunkWork> = BTreeMap::new();
    for stored in stored {
        let work = works.entry(stored.chunk).or_insert_with(|| ChunkWork {
            chunk: stored.chunk,
            steps: Vec::new(),
            sources: Vec::new(),
        });
        work.steps.push(super::plan::Step { fragment: stored.update.fragment, how: stored.how });
    }
    works.into_values().collect()
}

/// A counter block that nothing was or will be encrypted with.
pub(super) fn counter(engine: &Engine) -> alba_core::encryption::CounterBlock {
    let [first, second] = [0, 1].map(|_| engine.env.rng.u64().to_le_bytes());
    let mut counter = [0; 16];
    let (low, high) = counter.split_at_mut(8);
    low.copy_from_slice(&first);
    high.copy_from_slice(&second);
    counter
}
