//! Repair of one object: plan, carry out, plan again with what was learnt on the way, until nothing is left to do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use alba_core::encryption::FragmentKey;
use alba_core::env::{Deadline, MetaError, Moment, within};
use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceId, NamespaceName, ObjectId, OsdId};
use alba_core::manifest::{CipherMode, EncryptInfo, Manifest};
use alba_core::wire::rpc::abm::NamespaceRecord;
use alba_core::wire::rpc::nsm::{NamespaceInfo, NsmAnswer, NsmQuery};
use thiserror::Error;

use super::counters::{Counters, RepairStatistics};
use super::kept::Kept;
use super::plan::{Bad, Plan, Situation, Unrepairable, plan};
use super::read::{Chunk, ReadFault};
use super::rewrite::rewrite;
use super::standing::Osds;
use super::update::{Attempt, Ended, Findings};
use super::{SETTINGS_AGE, Standing};
use crate::engine::Engine;
use crate::namespaces::{Namespace, unexpected};
use crate::watch::Fresh;
use crate::{Client, ClientError};

/// Plans for one object in a row that come to nothing before it waits for its next turn. Each is made because the one before has
/// shown another loss, an OSD that does not answer, or another repairer.
const ROUNDS: u32 = 12;

/// Longest a look at a fragment waits for room in memory.
const ROOM_TIME: Duration = Duration::from_secs(600);

/// Why an object was not repaired.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RepairError {
    /// It cannot be, as things are.
    #[error(transparent)]
    Unrepairable(#[from] Unrepairable),
    /// A call failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Each attempt met with something new.
    #[error("given up for now: {0}")]
    GivenUp(String),
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repaired {
    /// There is no such object (any more).
    Absent,
    /// There was nothing to do.
    Nothing,
    /// Some of its fragments were replaced.
    Updated,
    /// It was stored anew, under another id.
    Rewritten,
}

/// A fragment that someone found fault with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspect {
    /// Which, placed at which version.
    pub fragment: Bad,
    /// Is it lost, too, when its OSD does not answer?
    pub lost_if_silent: bool,
}

/// What a look at a fragment showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// It is as it should be.
    Well,
    /// Its OSD does not have it.
    Missing,
    /// Its bytes are wrong.
    Damaged,
    /// Its OSD does not answer.
    Unavailable,
}

/// A namespace to repair objects of.
#[derive(Clone)]
pub struct Patient {
    pub(super) namespace: Arc<Namespace>,
}

impl Patient {
    /// Its id.
    pub fn id(&self) -> NamespaceId {
        self.namespace.id
    }

    /// Its name.
    pub fn name(&self) -> &NamespaceName {
        &self.namespace.name
    }
}

impl std::fmt::Debug for Patient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Patient").field(&self.namespace.name).finish()
    }
}

/// Repairs objects one at a time; clones share their counters.
#[derive(Clone)]
pub struct Repairer {
    pub(crate) engine: Arc<Engine>,
    pub(super) counters: Arc<Counters>,
}

impl Client {
    /// What repairs this backend's objects. Its work shares the client's bound on memory.
    pub fn repairer(&self) -> Repairer {
        Repairer { engine: Arc::clone(&self.engine), counters: Arc::default() }
    }
}

impl Repairer {
    /// What was done so far.
    pub fn statistics(&self) -> RepairStatistics {
        self.counters.snapshot()
    }

    /// The namespace of a record that was just read; also one in the trash.
    pub fn patient(&self, record: NamespaceRecord) -> Patient {
        Patient { namespace: self.engine.namespaces.remember(record) }
    }

    /// Preset, policies and OSDs of a namespace, not older than `age`.
    pub async fn settings(
        &self,
        patient: &Patient,
        age: Duration,
        deadline: Deadline,
    ) -> Result<Arc<NamespaceInfo>, ClientError> {
        self.engine.namespaces.info(&patient.namespace, Fresh::within(age), deadline).await
    }

    /// The object as the group has it now.
    pub async fn manifest(
        &self,
        patient: &Patient,
        object: ObjectId,
        deadline: Deadline,
    ) -> Result<Option<Manifest>, ClientError> {
        let query = || NsmQuery::ManifestById { namespace: patient.namespace.id, object };
        match self.engine.ask_group(&patient.namespace, query, deadline).await? {
            NsmAnswer::Manifest(manifest) => Ok(manifest.map(|manifest| *manifest)),
            _ => Err(unexpected("Manifest")),
        }
    }

    /// Brings an object back to its best policy, as far as the OSDs allow. `suspects` are looked at first; those of other
    /// versions than the manifest's say nothing.
    pub async fn repair(
        &self,
        patient: &Patient,
        object: ObjectId,
        osds: &Osds,
        suspects: &[Suspect],
        deadline: Deadline,
    ) -> Result<Repaired, RepairError> {
        self.limited(deadline, self.run(patient, object, osds, suspects, false, deadline)).await
    }

    /// Stores an object anew, whatever state it is in (features §3.7).
    pub async fn rewrite(
        &self,
        patient: &Patient,
        object: ObjectId,
        osds: &Osds,
        deadline: Deadline,
    ) -> Result<Repaired, RepairError> {
        self.limited(deadline, self.run(patient, object, osds, &[], true, deadline)).await
    }

    /// Whatever a repair waits for, a thread included: no longer than this. Cut off it leaves tags, which garbage collection
    /// looks at, and nothing else.
    async fn limited(
        &self,
        deadline: Deadline,
        work: impl Future<Output = Result<Repaired, RepairError>> + Send,
    ) -> Result<Repaired, RepairError> {
        within(&*self.engine.env.clock, deadline, Box::pin(work))
            .await
            .map_err(ClientError::deadline("the repair"))?
    }

    async fn run(
        &self,
        patient: &Patient,
        object: ObjectId,
        osds: &Osds,
        suspects: &[Suspect],
        anew: bool,
        deadline: Deadline,
    ) -> Result<Repaired, RepairError> {
        let mut osds = osds.clone();
        let mut bad: BTreeSet<Bad> = BTreeSet::new();
        let mut done = Repaired::Nothing;
        let mut age = SETTINGS_AGE;
        let mut reasons = Vec::new();
        let mut hindered = false;
        let mut first = true;
        let mut in_vain = 0;
        let mut commits = 0;
        let kept = Kept::new(&*self.engine.env.rng);
        while in_vain < ROUNDS {
            let Some(manifest) = self.manifest(patient, object, deadline).await? else {
                return Ok(if done == Repaired::Nothing { Repaired::Absent } else { done });
            };
            let chunks = manifest.chunks.len();
            let info = self.settings(patient, age, deadline).await?;
            let key = self.key_of(&manifest, &info)?;
            if std::mem::take(&mut first) {
                for suspect in suspects {
                    self.look(patient, &manifest, key.as_ref(), *suspect, (&mut osds, &mut bad), deadline)
                        .await;
                }
            }
            kept.at(manifest.version);
            let taken = kept.taken();
            let mut standing = osds.clone();
            for osd in &taken {
                standing.spare(*osd);
            }
            let situation = Situation { osds: &standing, policies: &info.preset.policies, bad: &bad };
            let planned = if anew {
                None
            } else {
                Some(plan(&manifest, &situation, &mut self.engine.env.rng.generator()))
            };
            let work = match planned {
                // Without the OSDs that failed nothing is left to do; with them there was.
                Some(Plan::Nothing) if done == Repaired::Nothing && (hindered || !taken.is_empty()) => break,
                Some(Plan::Nothing) => return Ok(done),
                Some(Plan::Unrepairable(reason)) => return Err(reason.into()),
                Some(Plan::Update(work)) => work,
                Some(Plan::Rewrite(_)) | None => {
                    if manifest.chunks.is_empty() {
                        // It lives in the metadata: there is nothing to be gained.
                        return Ok(done);
                    }
                    return self.store_anew(patient, &manifest, key.as_ref(), &situation, deadline).await;
                }
            };
            let attempt = Attempt {
                engine: &self.engine,
                namespace: &patient.namespace,
                info: Arc::clone(&info),
                manifest,
                key,
                counters: &self.counters,
                kept: &kept,
                deadline,
            };
            let (ended, findings) = attempt.run(&work, &situation).await?;
            age = SETTINGS_AGE;
            in_vain += 1;
            match ended {
                Ended::Committed => {
                    done = Repaired::Updated;
                    in_vain = 0;
                    commits += 1;
                    // One for each chunk is possible, when each has damage of its own; more would be a disk that spoils all it gets.
                    if commits > chunks.saturating_add(usize::try_from(ROUNDS).unwrap_or(0)) {
                        reasons.push("what is repaired is damaged again at once".to_owned());
                        break;
                    }
                }
                Ended::Raced => self.counters.raced.add(1),
                Ended::Stale(error) => {
                    // The settings are asked for anew.
                    age = Duration::ZERO;
                    reasons.push(error.to_string());
                }
                Ended::Nothing if findings.is_empty() => {
                    return Err(RepairError::GivenUp("nothing of the plan could be done".to_owned()));
                }
                Ended::Nothing => {}
            }
            hindered |= !findings.avoid.is_empty() || !findings.silent.is_empty();
            learn(findings, &mut osds, &mut bad, &mut reasons);
        }
        // The last ones tell most.
        let from = reasons.len().saturating_sub(3);
        Err(RepairError::GivenUp(reasons.split_off(from).join("; ")))
    }

    /// Looks at a fragment: its bytes, or only whether it is there.
    pub async fn check(
        &self,
        patient: &Patient,
        manifest: &Manifest,
        index: ChunkIndex,
        fragment: FragmentIndex,
        checksum: bool,
    ) -> Checked {
        let engine = &self.engine;
        // Before the time of the OSD begins: that others have all the room says nothing of it.
        let bytes = manifest.fragment(index, fragment).map_or(0, |entry| entry.packed_len.into());
        let room = engine.buffers.work(if checksum { bytes } else { 0 }, engine.deadline_in(ROOM_TIME));
        let Ok(_room) = room.await else { return Checked::Unavailable };
        let deadline = engine.deadline_in(engine.config.osd_timeout());
        let chunk = Chunk { engine, namespace: patient.id(), manifest, index, key: None, deadline };
        let found =
            if checksum { chunk.packed(fragment).await.map(drop) } else { chunk.exists(fragment).await };
        match found {
            Ok(()) => Checked::Well,
            Err(ReadFault::Missing) => Checked::Missing,
            Err(ReadFault::Damaged(_)) => Checked::Damaged,
            Err(ReadFault::Unreachable(_)) => Checked::Unavailable,
        }
    }

    /// This process's time.
    pub fn now(&self) -> Moment {
        self.engine.env.clock.now()
    }

    /// Looks at a fragment that someone found fault with.
    async fn look(
        &self,
        patient: &Patient,
        manifest: &Manifest,
        key: Option<&FragmentKey>,
        suspect: Suspect,
        (osds, bad): (&mut Osds, &mut BTreeSet<Bad>),
        deadline: Deadline,
    ) {
        let (index, fragment, version) = suspect.fragment;
        let current = manifest.fragment(index, fragment);
        if current.is_none_or(|entry| entry.version != version || entry.location.is_none()) {
            return;
        }
        let engine = &self.engine;
        let chunk = Chunk { engine, namespace: patient.namespace.id, manifest, index, key, deadline };
        match chunk.packed(fragment).await {
            Ok(_) => {}
            Err(ReadFault::Missing | ReadFault::Damaged(_)) => {
                bad.insert(suspect.fragment);
            }
            // Made up for where there is a place, and never given up: it may only be starting again.
            Err(ReadFault::Unreachable(_)) => {
                if let Some(osd) = current.and_then(|entry| entry.location).filter(|_| suspect.lost_if_silent)
                {
                    lost(osds, osd);
                }
            }
        }
    }

    /// The key of an object, from its namespace's preset: a preset's key is for life.
    pub(super) fn key_of(
        &self,
        manifest: &Manifest,
        info: &NamespaceInfo,
    ) -> Result<Option<FragmentKey>, ClientError> {
        let undecodable = |reason: &str| ClientError::Undecodable {
            object: manifest.name.clone(),
            reason: reason.to_owned(),
        };
        match &manifest.encryption {
            EncryptInfo::None => Ok(None),
            EncryptInfo::Aes256 { mode: CipherMode::Cbc, .. } => {
                Err(undecodable("AES-CBC is not written by this version"))
            }
            EncryptInfo::Aes256 { mode: CipherMode::Ctr, key_sha256 } => {
                let key = self.engine.keys.of_preset(&info.preset.fragment_encryption)?;
                let key = key.filter(|key| key.sha256() == *key_sha256);
                Ok(Some(key.ok_or_else(|| undecodable("its key is not that of the preset"))?))
            }
        }
    }

    async fn store_anew(
        &self,
        patient: &Patient,
        manifest: &Manifest,
        key: Option<&FragmentKey>,
        situation: &Situation<'_>,
        deadline: Deadline,
    ) -> Result<Repaired, RepairError> {
        match rewrite(&self.engine, &patient.namespace, manifest, key, situation, deadline).await {
            Ok(()) => {
                self.counters.objects_rewritten.add(1);
                self.counters.bytes_written.add(manifest.size);
                Ok(Repaired::Rewritten)
            }
            // Replaced or deleted meanwhile: what there is now is new.
            Err(ClientError::OverwriteNotAllowed(_)) => {
                self.counters.raced.add(1);
                Ok(Repaired::Absent)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// It does not answer: what is there is to be made up for, unless it is away on purpose.
fn lost(osds: &mut Osds, osd: OsdId) {
    if osds.standing(osd) != Standing::Away {
        osds.set(osd, Standing::Dead);
    }
}

/// What came up goes into the next plan.
fn learn(findings: Findings, osds: &mut Osds, bad: &mut BTreeSet<Bad>, reasons: &mut Vec<String>) {
    bad.extend(findings.bad);
    for osd in findings.avoid {
        osds.spare(osd);
    }
    for osd in findings.silent {
        lost(osds, osd);
    }
    reasons.extend(findings.reasons);
}

/// The group does not know the namespace (any more): it was deleted.
pub fn is_gone(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Meta(MetaError::Nsm(alba_core::wire::rpc::nsm::NsmError::NamespaceMoved(_)))
            | ClientError::NamespaceUnknown(_)
    )
}
