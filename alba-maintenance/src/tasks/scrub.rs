//! The background scrub: every fragment of every object is read and compared with its checksum once in a period, by default 30 days.
//!
//! What is due follows from the time: at each moment of the period a certain place in the range of object ids is due, the same
//! for all namespaces. Each lane notes up to which moment everything is covered, slice by slice, so that any agent goes on where
//! another stopped or was broken off, and nothing is passed over; the rate follows the amount of data. All times are the ABM's.
//! A whole namespace at once, exactly: `verify-namespace`.

use std::sync::Arc;
use std::time::Duration;

use alba_client::repair::{Osds, Patient, Repairer, Suspect};
use alba_core::failpoint::{Step, reach};
use alba_core::ids::ObjectId;
use alba_core::manifest::Manifest;
use alba_core::wire::rpc::abm::{AbmCommand, NamespaceRecord, WORK_PAGE, WorkItem};
use async_trait::async_trait;

use super::repair::jobs::check;
use super::repair::{Surgery, is_served};
use crate::backend::Backend;
use crate::error::TaskError;
use crate::schedule::Timing;
use crate::task::{Run, Task, in_lane, lanes};

/// How often a lane is worked on.
const EVERY: Duration = Duration::from_secs(600);

/// Into at most so many slices a period is cut: what a run that is broken off did in vain is a part of one.
const SLICES: u32 = 256;

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

/// What is not covered yet, in the order in which it is to be: from when to when, since the Unix epoch. `mark`: all before
/// is covered, none: nobody has noted anything. `now`: when the run began.
fn slices(
    mark: Option<Duration>,
    now: Duration,
    period: Duration,
) -> impl Iterator<Item = (Duration, Duration)> {
    // After a period everything is due once. A mark of the future is a clock's mistake that has been put right since.
    let earliest = now.saturating_sub(period);
    let from = mark.map_or(now.saturating_sub(EVERY), |mark| if mark > now { earliest } else { mark });
    let slice = EVERY.max(period / SLICES).max(Duration::from_micros(1));
    std::iter::successors(Some(from.max(earliest)), move |from| from.checked_add(slice))
        .take_while(move |from| *from < now)
        .map(move |from| (from, from.saturating_add(slice).min(now)))
}

/// What becomes due from one moment to another of a period (all since the Unix epoch): one range, or two around the end.
fn due(from: Duration, to: Duration, period: Duration) -> Vec<Span> {
    if to.saturating_sub(from) >= period {
        return vec![(0, None)];
    }
    let place = |at: Duration| {
        let into = at.as_millis() % period.as_millis().max(1);
        let place = (into << 64) / period.as_millis().max(1);
        // Below 2^64, for `into` is below the period.
        u64::try_from(place).unwrap_or(u64::MAX)
    };
    let (from, to) = (place(from), place(to));
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

    /// Goes through these ranges of all namespaces of a lane; false when that was not possible for one of them.
    async fn slice(&self, part: &str, run: &Run, spans: &[Span]) -> Result<bool, TaskError> {
        let mut covered = true;
        for record in run.backend.namespaces().await?.into_iter().filter(is_served) {
            if !in_lane(part, record.id.get()) {
                continue;
            }
            let name = record.name.clone();
            let patient = self.surgery.repairer(&run.backend).patient(record);
            let ended = async {
                let registry = self.surgery.registry(&run.backend).await?;
                let osds = self.surgery.repairer(&run.backend).osds(&patient, &registry).await?;
                for span in spans {
                    self.span(run, &patient, &osds, *span).await?;
                }
                Ok::<(), TaskError>(())
            };
            match ended.await {
                Ok(()) => {}
                // Deleted, or about to be.
                Err(error) if error.is_gone() => {}
                // The others are not held up by that.
                Err(error) => {
                    covered = false;
                    run.progress.problem(format!("namespace {name}: {error}"));
                }
            }
        }
        Ok(covered)
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
        let mine = |record: &NamespaceRecord| is_served(record) && in_lane(part, record.id.get());
        if !run.backend.namespaces().await?.iter().any(mine) {
            // What is created from now on becomes due later.
            return run.set_mark(run.began).await;
        }
        let mark = run.mark().await?.map(Duration::from_micros);
        for (from, to) in slices(mark, Duration::from_micros(run.began), self.period) {
            if !self.slice(part, run, &due(from, to, self.period)).await? {
                // Why is told by then. The next run begins here again.
                return Ok(());
            }
            run.set_mark(u64::try_from(to.as_micros()).unwrap_or(u64::MAX)).await?;
            reach(Step::ScrubMarked);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(30 * 86_400);

    #[test]
    fn a_period_covers_all_ids_once() {
        let period = Duration::from_secs(1000);
        let at = Duration::from_secs(10_000);
        assert_eq!(due(at - period, at, period), [(0, None)]);
        let half = due(at + period / 4, at + period / 2, period);
        assert_eq!(half, [(1 << 62, Some(1 << 63))]);
        let around = due(at - period / 4, at + period / 4, period);
        assert_eq!(around, [(3 << 62, None), (0, Some(1 << 62))]);
    }

    #[test]
    fn after_a_long_rest_everything_is_due_once_and_a_first_run_begins_small() {
        let now = PERIOD * 7;
        let whole = |mark| {
            let all: Vec<_> = slices(mark, now, PERIOD).collect();
            (all.first().copied().unwrap().0, all.last().copied().unwrap().1)
        };
        assert_eq!(whole(Some(Duration::ZERO)), (now - PERIOD, now));
        assert_eq!(whole(Some(now - PERIOD / 3)), (now - PERIOD / 3, now));
        assert_eq!(whole(None), (now - EVERY, now));
        assert_eq!(whole(Some(now + PERIOD)), (now - PERIOD, now), "a clock that was wrong");
        assert_eq!(slices(Some(now), now, PERIOD).count(), 0);
        assert!(slices(Some(Duration::ZERO), now, PERIOD).count() <= 257);
    }

    proptest! {
        #[test]
        fn what_follows_begins_where_the_last_ended(steps in prop::collection::vec(1_u64..400, 1..40)) {
            let period = Duration::from_millis(1000);
            let mut at = Duration::from_secs(7);
            let mut end = None;
            for step in steps {
                let step = Duration::from_millis(step);
                let spans = due(at, at + step, period);
                at += step;
                if let Some(end) = end {
                    prop_assert_eq!(spans[0].0, end);
                }
                end = spans.last().unwrap().1;
            }
        }

        /// Runs take time, are broken off after any number of slices, fail, and come late: what was due from the first one on and is
        /// not older than a period is covered, or still to come, without a gap.
        #[test]
        fn nothing_is_passed_over_however_runs_end(
            runs in prop::collection::vec((1_u64..200_000, 0_usize..40, 0_u64..5000), 1..60)
        ) {
            let mut now = Duration::from_secs(1_000_000_000);
            let mut mark = None;
            let mut covered: Option<Duration> = None;
            for (rest, complete, took) in runs {
                now += Duration::from_secs(rest);
                let began = now;
                for (from, to) in slices(mark, began, PERIOD).take(complete) {
                    // Where the last slice that was covered ended, or a whole period ago.
                    if let Some(covered) = covered {
                        prop_assert_eq!(from, covered.max(began.saturating_sub(PERIOD)));
                    }
                    prop_assert!(from < to && to <= began);
                    covered = Some(to);
                    mark = Some(to);
                }
                now += Duration::from_secs(took);
            }
        }
    }
}
