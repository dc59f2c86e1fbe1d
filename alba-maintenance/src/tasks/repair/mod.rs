//! Repair by policy, of all namespaces in one order (features §3.3, §3.4): the object that can lose the fewest fragments
//! comes first, wherever it is.
//!
//! ```text
//!   1 OSDs      which are to be emptied, purged, or silent for too long      [`detector`]
//!   2 survey    what the groups' indexes say is below its best               alba-client's repair::survey
//!   3 repair    the weakest first, some side by side; what failed rests
//! ```
//!
//! It begins anew when OSDs come or go, and until a survey finds nothing that can be done. What it counted and what rests it tells
//! the ABM, so that all can know, and that another agent goes on where this one was.

pub mod damage;
pub mod detector;
pub mod jobs;
mod rest;
mod surgery;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alba_client::ClientError;
use alba_client::repair::{
    Osds, Patient, Registry, RepairError, Repaired, Repairer, Survey, Waiting, Weakest, is_gone,
};
use alba_core::env::MetaError;
use alba_core::failpoint::{Step, reach};
use alba_core::ids::NamespaceId;
use alba_core::wire::rpc::abm::{CARE_PAGE, NamespaceRecord, NamespaceState, SurveyCounts};
use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::backend::Backend;
use crate::error::TaskError;
use crate::schedule::Timing;
use crate::task::{Run, Task, whole};

pub use surgery::Surgery;
use surgery::gauge;

/// Objects queued at a time, of all namespaces: some MiB. Those that there is no room for are found by the next survey.
const ROOM: usize = 20_000;

/// Bytes kept of what is known of OSDs, namespace by namespace, while objects of many are repaired in turn.
const WARDS: usize = 32 << 20;

/// Of them for each OSD of a namespace: its view, and its description in the namespace's settings.
const OSD_BYTES: usize = 600;

/// Namespaces that get gauges of their own in the life of a process, at some hundred bytes each; those beyond count in the sums only.
const SHOWN: usize = 10_000;

/// Objects repaired side by side.
const SIDE_BY_SIDE: usize = 8;

/// Longest one object takes, and the slowest that is waited for with large ones.
const OBJECT_TIME: Duration = Duration::from_secs(300);
const SLOWEST: u64 = 1 << 20;

/// The task `repair`.
pub struct Repair {
    surgery: Arc<Surgery>,
    gauges: Mutex<Gauges>,
}

/// Namespaces that gauges were set of.
#[derive(Debug, Default)]
struct Gauges {
    /// With their labels, while they are there.
    shown: BTreeMap<NamespaceId, Shown>,
    /// Whoever had any: an exporter never forgets a label.
    ever: BTreeSet<NamespaceId>,
}

/// The labels of a namespace's gauges.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    namespace: String,
    preset: String,
}

/// A namespace with what is known of its OSDs.
#[derive(Clone)]
struct Ward {
    patient: Patient,
    osds: Osds,
}

/// A namespace with objects in the queue.
enum Admitted {
    /// With what the survey learned.
    Ready(Ward),
    /// There was no room for that: it is asked for again when the turn comes.
    ByName(NamespaceRecord),
}

/// The namespaces with objects in the queue, within a bound in bytes.
#[derive(Default)]
struct Wards {
    by_id: BTreeMap<NamespaceId, Admitted>,
    bytes: usize,
}

impl Wards {
    fn admit(&mut self, record: NamespaceRecord, ward: Ward) {
        let bytes = ward.osds.iter().count().saturating_mul(OSD_BYTES);
        let id = record.id;
        let admitted = if self.bytes.saturating_add(bytes) <= WARDS {
            self.bytes += bytes;
            Admitted::Ready(ward)
        } else {
            Admitted::ByName(record)
        };
        self.by_id.insert(id, admitted);
    }
}

/// How the repair of one object ended.
enum Ended {
    /// Something was done.
    Done,
    Nothing,
    /// The group of its namespace cannot be reached: others of the namespace need not be tried.
    OutOfReach(NamespaceId),
}

impl Repair {
    /// With what it shares with the others that repair.
    pub fn new(surgery: Arc<Surgery>) -> Self {
        Self { surgery, gauges: Mutex::default() }
    }

    /// One survey, and repair of what it found. 0: there is nothing to be done for now.
    async fn round(&self, run: &Run) -> Result<u64, TaskError> {
        let surgery = &self.surgery;
        let repairer = surgery.repairer(&run.backend);
        let registry = surgery.registry(&run.backend).await?;
        noted(run, surgery.wake_if_changed(run, &registry).await);
        let mut queue = Weakest::new(ROOM);
        let mut wards = Wards::default();
        let mut totals = Survey::default();
        let mut shown = BTreeSet::new();
        let mut counted = Vec::new();
        let mut all = BTreeSet::new();
        let mut namespaces = run.backend.each_namespace();
        while let Some(record) = namespaces.next().await? {
            all.insert(record.id);
            if !is_served(&record) {
                continue;
            }
            run.pace(1, 0).await;
            match self.survey(repairer, &registry, record.clone(), &mut queue).await {
                Ok((ward, survey)) => {
                    self.show(&record, &survey);
                    shown.insert(record.id);
                    counted.push((record.id, counts(&survey)));
                    totals.repairable += survey.repairable;
                    totals.unrepairable += survey.unrepairable;
                    for (name, _, why) in survey.listed.iter().take(3) {
                        tracing::warn!(namespace = %record.name, object = %name, %why, "cannot be repaired");
                    }
                    if survey.repairable > 0 {
                        wards.admit(record, ward);
                    }
                }
                Err(error) if is_gone(&error) => {}
                // One group that cannot be reached must not hold up the others.
                Err(error) => run.progress.problem(format!("namespace {}: {error}", record.name)),
            }
        }
        self.show_no_more(&shown);
        surgery.namespaces(&all);
        for counted in counted.chunks(CARE_PAGE) {
            noted(run, run.report_surveys(counted.to_vec()).await);
        }
        noted(run, surgery.tell(run, true).await);
        metrics::gauge!("alba_repair_backlog_objects").set(gauge(totals.repairable));
        metrics::gauge!("alba_repair_unrepairable_objects").set(gauge(totals.unrepairable));
        run.progress.found(u64::try_from(queue.len()).unwrap_or(u64::MAX));
        reach(Step::RepairSurveyed);
        let repaired = self.repair_all(run, repairer, &wards, &registry, queue).await?;
        surgery.count();
        Ok(repaired)
    }

    async fn survey(
        &self,
        repairer: &Repairer,
        registry: &Registry,
        record: NamespaceRecord,
        queue: &mut Weakest,
    ) -> Result<(Ward, Survey), ClientError> {
        let ward = learn(repairer, registry, record).await?;
        let namespace = ward.patient.id();
        let (resting, known) = (self.surgery.resting_in(namespace), self.surgery.failed_in(namespace));
        let survey = repairer.survey(&ward.patient, &ward.osds, (&resting, &known), queue).await?;
        self.surgery.surveyed(namespace, &survey.sick);
        Ok((ward, survey))
    }

    async fn repair_all(
        &self,
        run: &Run,
        repairer: &Repairer,
        wards: &Wards,
        registry: &Registry,
        mut queue: Weakest,
    ) -> Result<u64, TaskError> {
        let mut repaired = 0;
        let mut running = FuturesUnordered::new();
        let mut stale = false;
        let mut out_of_reach = BTreeSet::new();
        // Beside the work: an OSD that hangs takes a while to be looked at.
        let mut changed = pin!(self.other_osds(run, registry));
        loop {
            while !stale && running.len() < SIDE_BY_SIDE {
                let Some(next) = queue.pop() else { break };
                let Some(ward) = wards.by_id.get(&next.namespace) else { continue };
                if !out_of_reach.contains(&next.namespace) {
                    running.push(self.one(run, repairer, registry, ward, next));
                }
            }
            tokio::select! {
                biased;
                ended = running.next() => {
                    let Some(ended) = ended else { break };
                    match ended {
                        Ended::Done => repaired += 1,
                        Ended::Nothing => {}
                        Ended::OutOfReach(namespace) => drop(out_of_reach.insert(namespace)),
                    }
                    let left = u64::try_from(queue.len() + running.len()).unwrap_or(u64::MAX);
                    metrics::gauge!("alba_repair_backlog_objects").set(gauge(left));
                    self.surgery.count();
                    noted(run, self.surgery.tell(run, false).await);
                }
                // Other OSDs, another order.
                () = &mut changed, if !stale => stale = true,
            }
        }
        noted(run, self.surgery.tell(run, true).await);
        // Then there may be more to do at once.
        Ok(repaired + u64::from(stale))
    }

    /// Waits until OSDs are not any more as they were.
    async fn other_osds(&self, run: &Run, before: &Registry) {
        loop {
            run.sleep(Duration::from_secs(1)).await;
            if let Ok(now) = self.surgery.registry(&run.backend).await
                && (now.silent != before.silent || now.away != before.away || !same_states(&now, before))
            {
                return;
            }
        }
    }

    /// Repairs one object.
    async fn one(
        &self,
        run: &Run,
        repairer: &Repairer,
        registry: &Registry,
        admitted: &Admitted,
        waiting: Waiting,
    ) -> Ended {
        let _hurry = run.hurry(waiting.remaining <= 0);
        run.pace(1, waiting.bytes).await;
        reach(Step::RepairObject);
        let time = OBJECT_TIME.saturating_add(Duration::from_secs(waiting.bytes / SLOWEST));
        let deadline = run.backend.env().deadline_in(time);
        let (namespace, object) = (waiting.namespace, waiting.object);
        let (name, ended) = match admitted {
            Admitted::Ready(ward) => (ward.patient.name(), Ok(Cow::Borrowed(ward))),
            Admitted::ByName(record) => {
                (&record.name, learn(repairer, registry, record.clone()).await.map(Cow::Owned))
            }
        };
        let ended = match ended {
            Ok(ward) => repairer.repair(&ward.patient, object, &ward.osds, &[], deadline).await,
            Err(error) => Err(error.into()),
        };
        if ended.is_ok() {
            reach(Step::RepairDone);
        }
        run.progress.did(1, waiting.bytes);
        match ended {
            Ok(Repaired::Absent | Repaired::Nothing) => {
                self.surgery.well(namespace, object);
                Ended::Nothing
            }
            Ok(Repaired::Updated | Repaired::Rewritten) => {
                self.surgery.well(namespace, object);
                metrics::counter!("alba_repair_objects_total").increment(1);
                Ended::Done
            }
            Err(RepairError::Client(error)) if is_gone(&error) => Ended::Nothing,
            // No fault of the object's: it does not rest.
            Err(RepairError::Client(ClientError::Meta(error @ MetaError::Unreachable { .. }))) => {
                run.progress.problem(format!("namespace {name}: {error}"));
                Ended::OutOfReach(namespace)
            }
            Err(error) => {
                let text = format!("object {object} of namespace {name}: {error}");
                self.surgery.failed(&run.backend, namespace, object, text.clone());
                reach(Step::RepairFailed);
                run.progress.problem(text);
                Ended::Nothing
            }
        }
    }

    fn show(&self, record: &NamespaceRecord, survey: &Survey) {
        let mut gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        if gauges.ever.len() >= SHOWN && !gauges.ever.contains(&record.id) {
            return;
        }
        let labels = Shown { namespace: record.name.to_string(), preset: record.preset.to_string() };
        let (namespace, preset) = (labels.namespace.clone(), labels.preset.clone());
        metrics::gauge!("alba_objects_below_policy", "namespace" => namespace.clone(), "preset" => preset)
            .set(gauge(survey.below_policy));
        // Of a namespace without objects there is none.
        let safety = survey
            .safety
            .least()
            .map_or(f64::NAN, |(least, _)| i32::try_from(least).map_or(f64::INFINITY, f64::from));
        metrics::gauge!("alba_disk_safety", "namespace" => namespace).set(safety);
        gauges.ever.insert(record.id);
        gauges.shown.insert(record.id, labels);
    }

    /// What is gone has nothing that is below its policy.
    fn show_no_more(&self, there: &BTreeSet<NamespaceId>) {
        let shown = &mut self.gauges.lock().unwrap_or_else(PoisonError::into_inner).shown;
        let gone: Vec<NamespaceId> = shown.keys().filter(|id| !there.contains(id)).copied().collect();
        for labels in gone.iter().filter_map(|id| shown.remove(id)) {
            let Shown { namespace, preset } = labels;
            metrics::gauge!("alba_objects_below_policy", "namespace" => namespace.clone(), "preset" => preset)
                .set(0.0);
            metrics::gauge!("alba_disk_safety", "namespace" => namespace).set(f64::NAN);
        }
    }
}

/// What the ABM did not hear or say is no reason not to repair: at worst something is tried again too early, or is not shown. A
/// server of an older version does not know what this is about.
fn noted(run: &Run, told: Result<(), TaskError>) {
    if let Err(error) = told {
        run.progress.problem(format!("the ABM and this agent did not compare notes: {error}"));
    }
}

/// What is told of a survey.
fn counts(survey: &Survey) -> SurveyCounts {
    SurveyCounts {
        below_policy: survey.below_policy,
        repairable: survey.repairable,
        unrepairable: survey.unrepairable,
        left_alone: survey.left_alone,
        least: survey.safety.least(),
    }
}

/// What is known of a namespace's OSDs now.
async fn learn(
    repairer: &Repairer,
    registry: &Registry,
    record: NamespaceRecord,
) -> Result<Ward, ClientError> {
    let patient = repairer.patient(record);
    let osds = repairer.osds(&patient, registry).await?;
    Ok(Ward { patient, osds })
}

fn same_states(a: &Registry, b: &Registry) -> bool {
    let states = |registry: &Registry| {
        registry.records.iter().map(|(osd, record)| (*osd, record.state)).collect::<Vec<_>>()
    };
    states(a) == states(b)
}

/// Is there somebody to ask about its objects? In the trash, too, nothing may be lost.
pub fn is_served(record: &NamespaceRecord) -> bool {
    matches!(
        record.state,
        NamespaceState::Active | NamespaceState::Trashed { .. } | NamespaceState::Moving { .. }
    )
}

#[async_trait]
impl Task for Repair {
    fn name(&self) -> &'static str {
        "repair"
    }

    fn about(&self) -> &'static str {
        "brings objects back to their best policy, the weakest of all namespaces first; empties OSDs that leave or are dead"
    }

    fn usual(&self) -> Timing {
        Timing::every(Duration::from_secs(20))
    }

    fn at_once(&self) -> usize {
        1
    }

    async fn parts(&self, _: &Backend) -> Result<Vec<String>, TaskError> {
        // One order for all namespaces: one agent has it.
        Ok(whole())
    }

    async fn run(&self, _: &str, run: &Run) -> Result<(), TaskError> {
        if !run.continues {
            noted(run, self.surgery.recall(run).await);
        }
        while self.round(run).await? > 0 {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alba_client::repair::{OsdView, Standing};
    use alba_core::ids::{GroupId, NamespaceName, NodeId, OsdId, PresetName};
    use alba_core::units::ByteCount;

    use super::*;

    #[test]
    fn what_is_kept_of_namespaces_does_not_grow_beyond_its_bound() {
        const OSDS: u32 = 1000;
        let env = alba_core::env::sim::Simulation::new(1).node(1).env();
        let backend = alba_client::memory::MemoryBackend::new(env).unwrap();
        let repairer = backend.client(Default::default()).repairer();
        let view = OsdView {
            node: NodeId::new("node").unwrap(),
            standing: Standing::Takes,
            total: ByteCount(1),
            used: ByteCount(0),
        };
        let osds: Osds = (0..OSDS).map(|id| (OsdId::from_u32(id), view.clone())).collect();
        let mut wards = Wards::default();
        for id in 0..500 {
            let record = NamespaceRecord {
                id: NamespaceId::from_u32(id),
                name: NamespaceName::new(format!("n-{id}")).unwrap(),
                group: GroupId::new("nsm-0").unwrap(),
                state: NamespaceState::Active,
                preset: PresetName::new("p").unwrap(),
            };
            let ward = Ward { patient: repairer.patient(record.clone()), osds: osds.clone() };
            wards.admit(record, ward);
        }
        let ready = wards.by_id.values().filter(|ward| matches!(ward, Admitted::Ready(_))).count();
        assert_eq!((wards.by_id.len(), ready), (500, WARDS / (OSD_BYTES * 1000)));
        assert!(wards.bytes <= WARDS);
    }
}
