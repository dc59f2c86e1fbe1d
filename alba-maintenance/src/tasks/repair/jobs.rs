//! Jobs over all objects of a namespace (features §3.7): each leaf is a range of object ids, worked on page by page. How far it has
//! come is changed by compare-and-set: it goes on where it was after a crash, and two agents cannot both move it.

use std::sync::Arc;
use std::time::Duration;

use alba_client::repair::{Checked, Osds, Patient, RepairError, Repaired, Repairer, Suspect, is_gone};
use alba_core::env::MetaError;
use alba_core::failpoint::{Step, reach};
use alba_core::ids::{JobName, ObjectId};
use alba_core::manifest::Manifest;
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmError, AbmQuery, JobAction, JobRecord, LeafProgress, WORK_PAGE, WorkItem,
};
use async_trait::async_trait;

use super::{Surgery, is_served};
use crate::backend::Backend;
use crate::error::TaskError;
use crate::task::Run;
use crate::tasks::work::{Handled, Handler, TURN, namespace_by_id};

/// Objects between two records of how far a leaf is.
const PAGE: u32 = 20;

/// Longest one object takes.
const OBJECT_TIME: Duration = Duration::from_secs(600);

/// Does the leaves of jobs.
pub struct Jobs {
    surgery: Arc<Surgery>,
}

impl Jobs {
    /// With what it shares with the others that repair.
    pub fn new(surgery: Arc<Surgery>) -> Self {
        Self { surgery }
    }
}

async fn job(backend: &Backend, name: &JobName) -> Result<Option<JobRecord>, TaskError> {
    let key = name.as_str().as_bytes().to_vec();
    let range = RangeQuery { first: key.clone(), last: Some((key, true)), ..RangeQuery::all() };
    match backend.ask_abm(AbmQuery::Jobs(range)).await? {
        AbmAnswer::Jobs(page) => Ok(page.items.into_iter().next()),
        _ => Err(TaskError::Mismatch("Jobs")),
    }
}

async fn leaf(backend: &Backend, name: &JobName, leaf: u32) -> Result<Option<LeafProgress>, TaskError> {
    match backend.ask_abm(AbmQuery::JobProgress(name.clone())).await? {
        AbmAnswer::JobProgress(leaves) => Ok(leaves
            .and_then(|leaves| usize::try_from(leaf).ok().and_then(|leaf| leaves.into_iter().nth(leaf)))),
        _ => Err(TaskError::Mismatch("JobProgress")),
    }
}

/// The id after this one; none after the last.
pub fn after(id: &ObjectId) -> Option<ObjectId> {
    let mut bytes = *id.as_bytes();
    for byte in bytes.iter_mut().rev() {
        let (next, overflow) = byte.overflowing_add(1);
        *byte = next;
        if !overflow {
            return Some(ObjectId::new(bytes));
        }
    }
    None
}

#[async_trait]
impl Handler for Jobs {
    fn takes(&self, item: &WorkItem) -> bool {
        matches!(item, WorkItem::IterateLeaf { .. })
    }

    async fn handle(&self, item: &WorkItem, run: &Run) -> Result<Handled, TaskError> {
        let WorkItem::IterateLeaf { job: name, leaf: number } = item else {
            return Ok(Handled::NotYet("not an item of this handler".to_owned()));
        };
        let Some(job) = job(&run.backend, name).await? else { return Ok(Handled::Done) };
        let repairer = self.surgery.repairer(&run.backend);
        let clock = &run.backend.env().clock;
        let end_of_turn = clock.now().plus(TURN);
        loop {
            let Some(progress) = leaf(&run.backend, name, *number).await? else { return Ok(Handled::Done) };
            let Some(next) = progress.next else { return Ok(Handled::Done) };
            let record = namespace_by_id(&run.backend, job.namespace).await?;
            let Some(record) = record else {
                // Deleted: there is nothing left of it.
                self.advance(run, name, *number, &progress, LeafProgress { next: None, ..progress.clone() })
                    .await?;
                continue;
            };
            if !is_served(&record) {
                return Ok(Handled::NotYet(format!("namespace {} cannot be worked on now", record.name)));
            }
            let registry = self.surgery.registry(&run.backend).await?;
            let patient = repairer.patient(record);
            let osds = repairer.osds(&patient, &registry).await?;
            let page = repairer.page(&patient, next, progress.end, PAGE).await?;
            // None: to the end of the leaf.
            let mut moved = LeafProgress { next: None, ..progress.clone() };
            let leaf = Leaf { run, repairer, patient: &patient, osds: &osds };
            for (position, manifest) in (1..).zip(&page.items) {
                leaf.one(&job, manifest, &mut moved).await?;
                moved.count += 1;
                reach(Step::JobObject);
                let over = clock.now() >= end_of_turn;
                if over || position == page.items.len() {
                    let more = page.has_more || position < page.items.len();
                    moved.next = after(&manifest.object_id).filter(|_| more);
                }
                if over {
                    break;
                }
            }
            let more = moved.next.is_some();
            reach(Step::JobPage);
            self.advance(run, name, *number, &progress, moved).await?;
            reach(Step::JobAdvanced);
            self.surgery.count();
            if more && clock.now() >= end_of_turn {
                return Ok(Handled::More);
            }
        }
    }
}

impl Jobs {
    async fn advance(
        &self,
        run: &Run,
        name: &JobName,
        leaf: u32,
        expected: &LeafProgress,
        progress: LeafProgress,
    ) -> Result<(), TaskError> {
        let (name, expected) = (name.clone(), expected.clone());
        let command = AbmCommand::UpdateJobProgress { name, leaf, expected, progress };
        match run.backend.tell_abm(command).await {
            Ok(_) => Ok(()),
            // Another agent moved it, or it was cleared: what is so now is looked at next.
            Err(TaskError::Meta(MetaError::Abm(
                AbmError::ProgressMoved { .. } | AbmError::JobUnknown(_),
            ))) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What a page of a leaf is worked on with.
struct Leaf<'a> {
    run: &'a Run,
    repairer: &'a Repairer,
    patient: &'a Patient,
    osds: &'a Osds,
}

impl Leaf<'_> {
    async fn one(
        &self,
        job: &JobRecord,
        manifest: &Manifest,
        moved: &mut LeafProgress,
    ) -> Result<(), TaskError> {
        match &job.action {
            // Stored since the job began: it is as it should be, and may be the outcome of this very job.
            JobAction::Rewrite if manifest.timestamp.0 >= job.since => Ok(()),
            JobAction::Rewrite => {
                self.run.pace(1, manifest.size.saturating_mul(2)).await;
                let deadline = self.run.backend.env().deadline_in(OBJECT_TIME);
                let ended =
                    self.repairer.rewrite(self.patient, manifest.object_id, self.osds, deadline).await;
                let (namespace, object) = (self.patient.id(), manifest.object_id);
                self.ended(manifest, ended, vec![WorkItem::RewriteObject { namespace, object }]).await
            }
            JobAction::Verify { checksums, repair_osd_unavailable } => {
                let checked = check(self.run, self.repairer, self.patient, manifest, *checksums).await;
                moved.fragments_detected_missing += checked.missing;
                moved.fragments_osd_unavailable += checked.unavailable;
                moved.fragments_checksum_mismatch += checked.damaged;
                let suspects = checked.suspects(*repair_osd_unavailable);
                if suspects.is_empty() {
                    return Ok(());
                }
                let deadline = self.run.backend.env().deadline_in(OBJECT_TIME);
                let ended = self
                    .repairer
                    .repair(self.patient, manifest.object_id, self.osds, &suspects, deadline)
                    .await;
                let again = suspects.iter().take(WORK_PAGE).map(|suspect| {
                    let (chunk, fragment, version) = suspect.fragment;
                    let (namespace, object, name) =
                        (self.patient.id(), manifest.object_id, manifest.name.clone());
                    WorkItem::RepairBadFragment { namespace, object, name, chunk, fragment, version }
                });
                self.ended(manifest, ended, again.collect()).await
            }
        }
    }

    /// What could not be done now goes to the work queue, so that it neither stops the job nor is forgotten.
    async fn ended(
        &self,
        manifest: &Manifest,
        ended: Result<Repaired, RepairError>,
        again: Vec<WorkItem>,
    ) -> Result<(), TaskError> {
        let error = match ended {
            Ok(done) => {
                if let Repaired::Updated | Repaired::Rewritten = done {
                    metrics::counter!("alba_repair_objects_total").increment(1);
                }
                return Ok(());
            }
            Err(RepairError::Client(error)) if is_gone(&error) => return Err(error.into()),
            Err(error) => error,
        };
        self.run.progress.problem(format!("object {}: {error}", manifest.name));
        self.run.backend.tell_abm(AbmCommand::AddWork(again)).await.map(drop)
    }
}

/// What was found of an object's fragments.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    missing: u64,
    unavailable: u64,
    damaged: u64,
    bad: Vec<(Suspect, Checked)>,
}

impl Findings {
    /// Those to be repaired.
    pub fn suspects(&self, silent_too: bool) -> Vec<Suspect> {
        let wanted = self.bad.iter().filter(|(_, checked)| silent_too || *checked != Checked::Unavailable);
        wanted.map(|(suspect, _)| Suspect { lost_if_silent: silent_too, ..*suspect }).collect()
    }

    /// How many are damaged or missing.
    pub fn losses(&self) -> u64 {
        self.missing + self.damaged
    }
}

/// Looks at every fragment of an object, one at a time and within the rates.
pub async fn check(
    run: &Run,
    repairer: &Repairer,
    patient: &Patient,
    manifest: &Manifest,
    checksums: bool,
) -> Findings {
    let mut findings = Findings::default();
    for (chunk, fragment, entry) in manifest.fragments().filter(|(_, _, entry)| entry.location.is_some()) {
        run.pace(1, if checksums { entry.packed_len.into() } else { 0 }).await;
        let checked = repairer.check(patient, manifest, chunk, fragment, checksums).await;
        let count = match checked {
            Checked::Well => continue,
            Checked::Missing => &mut findings.missing,
            Checked::Unavailable => &mut findings.unavailable,
            Checked::Damaged => &mut findings.damaged,
        };
        *count += 1;
        let suspect = Suspect { fragment: (chunk, fragment, entry.version), lost_if_silent: false };
        findings.bad.push((suspect, checked));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_counted_up() {
        let mut last = [0xff; 32];
        assert_eq!(after(&ObjectId::new(last)), None);
        last[0] = 1;
        let mut expected = [0; 32];
        expected[0] = 2;
        assert_eq!(after(&ObjectId::new(last)), Some(ObjectId::new(expected)));
    }
}
