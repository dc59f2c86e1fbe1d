//! Moving what an object has on one OSD to another, for the fill's sake: the update of a repair that only copies.
//!
//! It must never cost anything: the packed bytes stay as they are, each compared with its checksum where it arrives, and
//! the manifest changes only at exactly the version that the move was planned for. Whoever else was at the object
//! meanwhile (an overwrite, a deletion, repair, another mover) wins, and what was copied goes with garbage collection.

use std::collections::BTreeSet;
use std::time::Duration;

use alba_core::env::Deadline;
use alba_core::ids::{ChunkIndex, FragmentIndex, ObjectId, ObjectVersion, OsdId};
use alba_core::manifest::Manifest;
use alba_core::range::Page;
use alba_core::wire::rpc::abm::{WORK_PAGE, WorkItem};
use alba_core::wire::rpc::nsm::NsmQuery;

use super::kept::Kept;
use super::plan::{Bad, ChunkWork, How, Situation, Step};
use super::standing::{Osds, Standing};
use super::update::{Attempt, Ended};
use super::{Patient, Repairer, SETTINGS_AGE};
use crate::ClientError;
use crate::repairs::hand_over;

/// What is moved from where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relocation {
    /// Which object.
    pub object: ObjectId,
    /// The version that this was planned for.
    pub version: ObjectVersion,
    /// All fragments that are there …
    pub source: OsdId,
    /// … go there.
    pub target: OsdId,
}

/// What became of a move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relocated {
    /// So many packed bytes have another place.
    Moved {
        /// All that was planned, or what could be moved of it.
        bytes: u64,
    },
    /// The object is another one by now, or gone, or has nothing there: nothing has changed.
    Stale,
    /// An OSD or the group would not have it: nothing has changed.
    Refused(String),
}

/// Packed bytes of an object on an OSD.
fn bytes_on(manifest: &Manifest, osd: OsdId) -> u64 {
    let there = manifest.fragments().filter(|(_, _, entry)| entry.location == Some(osd));
    there.map(|(_, _, entry)| u64::from(entry.packed_len)).sum()
}

/// The work of a move. Chunks that have a fragment on the target already stay as they are: an OSD has at most one of each.
fn work(manifest: &Manifest, source: OsdId, target: OsdId) -> Vec<ChunkWork> {
    let of = |(chunk, entries): (ChunkIndex, &alba_core::manifest::Chunk)| {
        if entries.fragments.iter().any(|entry| entry.location == Some(target)) {
            return None;
        }
        let there = (0..).map(FragmentIndex).zip(&entries.fragments);
        let steps: Vec<Step> = there
            .filter(|(_, entry)| entry.location == Some(source))
            .map(|(fragment, _)| Step { fragment, how: How::Copy { from: fragment, onto: target } })
            .take(1)
            .collect();
        (!steps.is_empty()).then_some(ChunkWork { chunk, steps, sources: Vec::new() })
    };
    (0..).map(ChunkIndex).zip(&manifest.chunks).filter_map(of).collect()
}

impl Repairer {
    /// Moves what an object has on one OSD to another one. What is found damaged or missing on the way is handed to repair.
    pub async fn relocate(
        &self,
        patient: &Patient,
        relocation: Relocation,
        osds: &Osds,
        deadline: Deadline,
    ) -> Result<Relocated, ClientError> {
        let Relocation { object, version, source, target } = relocation;
        let Some(manifest) = self.manifest(patient, object, deadline).await? else {
            return Ok(Relocated::Stale);
        };
        let work = work(&manifest, source, target);
        if manifest.version != version || work.is_empty() {
            return Ok(Relocated::Stale);
        }
        if osds.standing(target) != Standing::Takes {
            return Ok(Relocated::Refused(format!("OSD {target} takes no fragments of the namespace now")));
        }
        let info = self.settings(patient, SETTINGS_AGE, deadline).await?;
        let key = self.key_of(&manifest, &info)?;
        let (name, planned) = (manifest.name.clone(), bytes_on(&manifest, source));
        let none = BTreeSet::new();
        let situation = Situation { osds, policies: &info.preset.policies, bad: &none };
        let kept = Kept::new(&*self.engine.env.rng);
        let attempt = Attempt {
            engine: &self.engine,
            namespace: &patient.namespace,
            info: info.clone(),
            manifest,
            key,
            counters: &self.counters,
            kept: &kept,
            deadline,
        };
        let (ended, findings) = attempt.run(&work, &situation).await?;
        let bad = |(chunk, fragment, version): &Bad| WorkItem::RepairBadFragment {
            namespace: patient.id(),
            object,
            name: name.clone(),
            chunk: *chunk,
            fragment: *fragment,
            version: *version,
        };
        if !findings.bad.is_empty() {
            hand_over(&self.engine, findings.bad.iter().take(WORK_PAGE).map(bad).collect()).await;
        }
        Ok(match ended {
            Ended::Committed if findings.is_empty() && work.len() == attempt.manifest.chunks.len() => {
                Relocated::Moved { bytes: planned }
            }
            // Perhaps not all of it: what is left there says how much.
            Ended::Committed => match self.manifest(patient, object, deadline).await {
                Ok(Some(now)) => Relocated::Moved { bytes: planned.saturating_sub(bytes_on(&now, source)) },
                Ok(None) | Err(_) => Relocated::Moved { bytes: planned },
            },
            Ended::Raced => {
                self.counters.raced.add(1);
                Relocated::Stale
            }
            Ended::Stale(error) => {
                // For the next one.
                self.settings(patient, Duration::ZERO, deadline).await?;
                Relocated::Refused(error.to_string())
            }
            Ended::Nothing if findings.reasons.is_empty() => {
                Relocated::Refused("the outcome would satisfy no policy of the preset".to_owned())
            }
            Ended::Nothing => Relocated::Refused(findings.reasons.join("; ")),
        })
    }

    /// A page of the objects that have a fragment on an OSD, by id.
    pub async fn objects_on(
        &self,
        patient: &Patient,
        osd: OsdId,
        after: Option<ObjectId>,
        max: u32,
    ) -> Result<Page<ObjectId>, ClientError> {
        let query = || NsmQuery::ObjectsOnOsd { namespace: patient.id(), osd, after, max };
        super::survey::ids(self.ask(patient, query).await?)
    }
}
