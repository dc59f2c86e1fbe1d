//! The background scrub: every fragment of every object is read and compared with its checksum once in a period, by default 30 days.
//!
//! Where it is follows from the time alone: at each moment of the period a certain place in the range of object ids is
//! due, the same for all namespaces, and a run covers what has become due since anybody last worked on its lane. So
//! there is no state to keep, any agent goes on where another stopped, and the rate follows the amount of data. A clock that
//! jumps makes it look at something twice or a period later, no more. A whole namespace at once, exactly: `verify-namespace`.

use std::sync::Arc;
use std::time::Duration;

use alba_client::repair::{Osds, Patient, Repairer, Suspect, is_gone};
use alba_core::failpoint::{Step, reach};
use alba_core::ids::ObjectId;
use alba_core::manifest::Manifest;
use alba_core::wire::rpc::abm::{AbmCommand, WORK_PAGE, WorkItem};
use async_trait::async_trait;

use super::repair::jobs::check;
use super::repair::{Surgery, is_served};
use crate::backend::Backend;
use crate::error::TaskError;
use crate::schedule::Timing;
use crate::task::{Run, Task, in_lane, lanes};

/// How often a lane is worked on.
const EVERY: Duration = Duration::from_secs(600);

/// Objects per page.
const PAGE: u32 = 20;

/// Longest a repair of what was found takes.
const OBJECT_TIME: Duration = Duration::from_secs(600);

/// The task `scrub`.
pub struct Scrub {
    surgery: Arc<Surgery>,
    period: Duration,
}

/// A range of object ids by their first 64 bits: from the first (included) to the second (excluded; none: to the end).
type Span = (u64, Option<u64>);

/// What became due in the last `since` of a period, at `now` (both since the Unix epoch): one range, or two around the end.
fn due(now: Duration, since: Duration, period: Duration) -> Vec<Span> {
    if since >= period {
        return vec![(0, None)];
    }
    let place = |at: Duration| {
        let into = at.as_millis() % period.as_millis().max(1);
        let place = (into << 64) / period.as_millis().max(1);
        // Below 2^64, for `into` is below the period.
        u64::try_from(place).unwrap_or(u64::MAX)
    };
    let (from, to) = (place(now.saturating_sub(since)), place(now));
    if from <= to { vec![(from, Some(to))] } else { vec![(from, None), (0, Some(to))] }
}

fn first_id(prefix: u64) -> ObjectId {
    let mut id = [0; 32];
    let (first, _) = id.split_at_mut(8);
    first.copy_from_slice(&prefix.to_be_bytes());
    ObjectId::new(id)
}

impl Scrub {
    /// All data in each `period`.
    pub fn new(surgery: Arc<Surgery>, period: Duration) -> Self {
        Self { surgery, period }
    }

    async fn span(&self, run: &Run, patient: &Patient, osds: &Osds, span: Span) -> Result<(), TaskError> {
        let repairer = self.surgery.repairer(&run.backend);
        let mut next = first_id(span.0);
        let end = span.1.map(first_id);
        loop {
            let page = repairer.page(patient, next, end, PAGE).await?;
            for manifest in &page.items {
                self.object(run, repairer, patient, osds, manifest).await?;
            }
            let after = page.items.last().and_then(|last| super::repair::jobs::after(&last.object_id));
            match after {
                Some(after) if page.has_more => next = after,
                _ => return Ok(()),
            }
        }
    }

    async fn object(
        &self,
        run: &Run,
        repairer: &Repairer,
        patient: &Patient,
        osds: &Osds,
        manifest: &Manifest,
    ) -> Result<(), TaskError> {
        let found = check(run, repairer, patient, manifest, true).await;
        let bytes = manifest.fragments().map(|(_, _, entry)| u64::from(entry.packed_len)).sum();
        run.progress.did(1, bytes);
        metrics::counter!("alba_scrub_bytes_total").increment(bytes);
        metrics::counter!("alba_scrub_errors_total").increment(found.losses());
        // Those on OSDs that do not answer are the failure detector's.
        let suspects = found.suspects(false);
        if suspects.is_empty() {
            return Ok(());
        }
        reach(Step::ScrubFound);
        // First of all: from now on everybody knows, until it is repaired, by whomever. So it is neither forgotten nor in the way of
        // the rest when that fails here.
        let items: Vec<WorkItem> = suspects.iter().map(|suspect| item(patient, manifest, suspect)).collect();
        for page in items.chunks(WORK_PAGE) {
            // Nor when it cannot be told, as when too many items wait already: it can still be repaired.
            if let Err(error) = run.backend.tell_abm(AbmCommand::AddWork(page.to_vec())).await {
                run.progress
                    .problem(format!("object {}: what was found is not told: {error}", manifest.name));
            }
        }
        let deadline = run.backend.env().deadline_in(OBJECT_TIME);
        let ended = repairer.repair(patient, manifest.object_id, osds, &suspects, deadline).await;
        reach(Step::ScrubRepaired);
        self.surgery.count();
        let Err(error) = ended else {
            metrics::counter!("alba_repair_objects_total").increment(1);
            return Ok(());
        };
        run.progress.problem(format!("object {}: {error}", manifest.name));
        Ok(())
    }
}

fn item(patient: &Patient, manifest: &Manifest, suspect: &Suspect) -> WorkItem {
    let (chunk, fragment, version) = suspect.fragment;
    let (namespace, object, name) = (patient.id(), manifest.object_id, manifest.name.clone());
    WorkItem::RepairBadFragment { namespace, object, name, chunk, fragment, version }
}

#[async_trait]
impl Task for Scrub {
    fn name(&self) -> &'static str {
        "scrub"
    }

    fn about(&self) -> &'static str {
        "reads every fragment once in each scrub_period, and repairs what is damaged or missing"
    }

    fn usual(&self) -> Timing {
        Timing::every(EVERY)
    }

    async fn parts(&self, _: &Backend) -> Result<Vec<String>, TaskError> {
        Ok(lanes())
    }

    async fn run(&self, part: &str, run: &Run) -> Result<(), TaskError> {
        let since = run.rested.unwrap_or(EVERY).max(EVERY);
        let now = Duration::from_micros(run.backend.env().clock.wall_micros());
        let spans = due(now, since, self.period);
        for record in run.backend.namespaces().await?.into_iter().filter(is_served) {
            if !in_lane(part, record.id.get()) {
                continue;
            }
            let name = record.name.clone();
            let patient = self.surgery.repairer(&run.backend).patient(record);
            let registry = self.surgery.registry(&run.backend).await?;
            let osds = match self.surgery.repairer(&run.backend).osds(&patient, &registry).await {
                Ok(osds) => osds,
                Err(error) if is_gone(&error) => continue,
                Err(error) => {
                    run.progress.problem(format!("namespace {name}: {error}"));
                    continue;
                }
            };
            for span in &spans {
                if let Err(error) = self.span(run, &patient, &osds, *span).await {
                    run.progress.problem(format!("namespace {name}: {error}"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_period_covers_all_ids_once() {
        let period = Duration::from_secs(1000);
        let at = Duration::from_secs(10_000);
        assert_eq!(due(at, period, period), [(0, None)]);
        let half = due(at + period / 2, period / 4, period);
        assert_eq!(half, [(1 << 62, Some(1 << 63))]);
        let around = due(at + period / 4, period / 2, period);
        assert_eq!(around, [(3 << 62, None), (0, Some(1 << 62))]);
    }

    proptest! {
        #[test]
        fn what_follows_begins_where_the_last_ended(steps in prop::collection::vec(1_u64..400, 1..40)) {
            let period = Duration::from_millis(1000);
            let mut at = Duration::from_secs(7);
            let mut end = None;
            for step in steps {
                let step = Duration::from_millis(step);
                at += step;
                let spans = due(at, step, period);
                if let Some(end) = end {
                    prop_assert_eq!(spans[0].0, end);
                }
                end = spans.last().unwrap().1;
            }
        }
    }
}
