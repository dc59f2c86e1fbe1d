//! The work queue of the ABM (features §3.7): items are claimed for a while, done by the handler of their kind, and reported as
//! done or failed. The ABM itself does what follows.
//!
//! Items of a kind without a handler stay in the queue, with that as their last failure, for an agent that has one.
//!
//! No item holds up others: one that takes hours is done in turns. After a turn it goes back to the end of the queue, behind
//! all that have waited meanwhile, and whoever takes it next goes on where it was.

use std::sync::Arc;
use std::time::Duration;

use alba_core::env::osd::{OsdBatch, OsdUpdate};
use alba_core::failpoint::{Step, reach};
use alba_core::ids::{NamespaceId, OsdId};
use alba_core::osd_keys;
use alba_core::range::{RangeQuery, next_prefix};
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmOutcome, AbmQuery, NamespaceRecord, OsdFilter, OsdState, WorkItem, WorkRecord,
};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery};
use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::obsolete;
use crate::backend::Backend;
use crate::error::TaskError;
use crate::schedule::Timing;
use crate::task::{Run, Task};

/// Items that a worker has in hand at a time.
const BATCH: u32 = 16;

/// A worker that has more than this in hand asks for more after [`LOOK`] only, so that short items are claimed many at a time.
const ENOUGH: usize = 8;

/// How often a worker with room asks for more. So long a short item waits, beside the turns of long ones.
const LOOK: Duration = Duration::from_secs(2);

/// How long a turn of a long item takes, and the object beyond. What it has done by then must be durable.
pub const TURN: Duration = Duration::from_secs(10);

/// Agents that can work on the queue side by side.
const WORKERS: usize = 8;

/// Keys deleted per call (wire-protocol §5.3).
const DELETE_STEP: i32 = 200;

/// What came of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handled {
    /// Done.
    Done,
    /// Its turn is over and there is more to do. What was done is durable.
    More,
    /// What it waits for is not so yet: this is why.
    NotYet(String),
}

/// Does items of some kinds. What it does must be harmless when done twice.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Is this item one of its?
    fn takes(&self, item: &WorkItem) -> bool;

    /// Does it.
    async fn handle(&self, item: &WorkItem, run: &Run) -> Result<Handled, TaskError>;
}

/// The handlers that there are.
pub fn handlers() -> Vec<Arc<dyn Handler>> {
    vec![Arc::new(LettingGo)]
}

/// The task `work`.
pub struct WorkQueue {
    handlers: Vec<Arc<dyn Handler>>,
}

impl WorkQueue {
    /// With these handlers; the first that takes an item does it.
    pub fn new(handlers: Vec<Arc<dyn Handler>>) -> Self {
        Self { handlers }
    }

    async fn handle(&self, item: &WorkItem, run: &Run) -> Result<Handled, TaskError> {
        match self.handlers.iter().find(|handler| handler.takes(item)) {
            Some(handler) => handler.handle(item, run).await,
            None => Ok(Handled::NotYet("this version has no agent that does it".to_owned())),
        }
    }

    async fn one(&self, run: &Run, record: WorkRecord, token: u64) -> Result<(), TaskError> {
        run.pace(1, 0).await;
        reach(Step::WorkClaimed);
        let handled = {
            let renew = keep(run, &record, token);
            tokio::select! {
                biased;
                handled = self.handle(&record.item, run) => handled,
                error = renew => Err(error),
            }
        };
        reach(Step::WorkHandled);
        let command = match handled {
            Ok(Handled::Done) => AbmCommand::MarkWorkCompleted(vec![record.id]),
            // Free at once, and behind all that wait already. It is no failure.
            Ok(Handled::More) => AbmCommand::RenewWork { ids: vec![record.id], token, period: 1 },
            Ok(Handled::NotYet(reason)) => AbmCommand::FailWork { id: record.id, token, reason },
            Err(error) => {
                run.progress.problem(format!("{:?}: {error}", record.item));
                AbmCommand::FailWork { id: record.id, token, reason: error.to_string() }
            }
        };
        let outcome = run.backend.tell_abm(command).await.map(drop);
        reach(Step::WorkReported);
        run.progress.did(1, 0);
        outcome
    }
}

/// Keeps an item from others while it is worked on: for as long as a lease lasts, again and again. Ends only when that fails for longer.
async fn keep(run: &Run, record: &WorkRecord, token: u64) -> TaskError {
    let clock = &run.backend.env().clock;
    let mut renewed = clock.now();
    loop {
        run.sleep(run.lease / 3).await;
        let asked = clock.now();
        let period = u64::try_from(run.lease.as_micros()).unwrap_or(u64::MAX);
        match run.backend.tell_abm(AbmCommand::RenewWork { ids: vec![record.id], token, period }).await {
            Ok(_) => renewed = asked,
            Err(error) if clock.now().since(renewed) > run.lease => return error,
            Err(_) => {}
        }
    }
}

#[async_trait]
impl Task for WorkQueue {
    fn name(&self) -> &'static str {
        "work"
    }

    fn about(&self) -> &'static str {
        "does the items of the work queue: clean-up after unlinked OSDs, repairs that readers asked for, jobs"
    }

    fn usual(&self) -> Timing {
        Timing::every(Duration::from_secs(2))
    }

    async fn parts(&self, backend: &Backend) -> Result<Vec<String>, TaskError> {
        // An empty queue costs one question.
        let AbmAnswer::WorkCount(count) = backend.ask_abm(AbmQuery::WorkCount).await? else {
            return Err(TaskError::Mismatch("WorkCount"));
        };
        metrics::gauge!("alba_work_queue_items").set(u32::try_from(count).map_or(f64::INFINITY, f64::from));
        let workers = usize::try_from(count.div_ceil(BATCH.into())).unwrap_or(WORKERS).min(WORKERS);
        Ok((0..workers).map(|worker| format!("worker-{worker}")).collect())
    }

    async fn run(&self, _: &str, run: &Run) -> Result<(), TaskError> {
        let clock = &run.backend.env().clock;
        let most = usize::try_from(BATCH).unwrap_or(usize::MAX);
        // Side by side: none waits for another, and each keeps its claim.
        let mut running = FuturesUnordered::new();
        let mut next_look = clock.now();
        let mut failed = None;
        loop {
            let room = most.saturating_sub(running.len());
            if failed.is_none() && room > 0 && (running.len() <= ENOUGH || clock.now() >= next_look) {
                match claim(run, room).await {
                    Ok((token, items)) => {
                        run.progress.found(u64::try_from(items.len()).unwrap_or(u64::MAX));
                        running.extend(items.into_iter().map(|item| self.one(run, item, token)));
                    }
                    // What is in hand is brought to an end.
                    Err(error) => failed = Some(error),
                }
                next_look = clock.now().plus(LOOK);
            }
            if running.is_empty() {
                return failed.map_or(Ok(()), Err);
            }
            tokio::select! {
                biased;
                ended = running.next() => {
                    if let Some(Err(error)) = ended {
                        failed = failed.or(Some(error));
                    }
                }
                () = clock.sleep_until(next_look), if failed.is_none() && running.len() < most => {}
            }
        }
    }
}

/// Takes items that nobody works on: those that have waited for longest. They stay with this agent for a lease.
async fn claim(run: &Run, max: usize) -> Result<(u64, Vec<WorkRecord>), TaskError> {
    let period = u64::try_from(run.lease.as_micros()).unwrap_or(u64::MAX);
    let max = u32::try_from(max).unwrap_or(BATCH).min(BATCH);
    match run.backend.tell_abm(AbmCommand::ClaimWork { agent: run.agent.clone(), max, period }).await? {
        AbmOutcome::Work { token, items } => Ok((token, items)),
        _ => Err(TaskError::Mismatch("Work")),
    }
}

/// What follows when namespaces and OSDs let go of each other.
struct LettingGo;

#[async_trait]
impl Handler for LettingGo {
    fn takes(&self, item: &WorkItem) -> bool {
        matches!(
            item,
            WorkItem::WaitUntilRepaired { .. }
                | WorkItem::WaitUntilDecommissioned { .. }
                | WorkItem::CleanupNamespaceOsd { .. }
                | WorkItem::CleanupOsdNamespace { .. }
        )
    }

    async fn handle(&self, item: &WorkItem, run: &Run) -> Result<Handled, TaskError> {
        match item {
            WorkItem::WaitUntilRepaired { osd, namespace } => repaired(run, *namespace, *osd).await,
            WorkItem::WaitUntilDecommissioned { osd } => emptied(run, *osd).await,
            WorkItem::CleanupNamespaceOsd { namespace, osd } => {
                if let Some(record) = namespace_by_id(&run.backend, *namespace).await? {
                    obsolete::forget(run, &record, *osd).await?;
                }
                Ok(Handled::Done)
            }
            WorkItem::CleanupOsdNamespace { osd, namespace } => clean_osd(run, *osd, *namespace).await,
            _ => Ok(Handled::NotYet("not an item of this handler".to_owned())),
        }
    }
}

/// Its record, whatever its name is; none when it is gone.
pub async fn namespace_by_id(
    backend: &Backend,
    id: NamespaceId,
) -> Result<Option<NamespaceRecord>, TaskError> {
    let mut namespaces = backend.each_namespace();
    while let Some(record) = namespaces.next().await? {
        if record.id == id {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

async fn repaired(run: &Run, namespace: NamespaceId, osd: OsdId) -> Result<Handled, TaskError> {
    let Some(record) = namespace_by_id(&run.backend, namespace).await? else { return Ok(Handled::Done) };
    let query = NsmQuery::ObjectsOnOsd { namespace, osd, after: None, max: 1 };
    match run.backend.ask_group(&record.group, query).await? {
        NsmAnswer::ObjectIds(page) if page.items.is_empty() => Ok(Handled::Done),
        NsmAnswer::ObjectIds(_) => {
            Ok(Handled::NotYet(format!("objects of namespace {} are still on OSD {osd}", record.name)))
        }
        _ => Err(TaskError::Mismatch("ObjectIds")),
    }
}

async fn emptied(run: &Run, osd: OsdId) -> Result<Handled, TaskError> {
    match run.backend.ask_abm(AbmQuery::OsdNamespaces { osd, after: None, max: 1 }).await? {
        AbmAnswer::NamespaceIds(page) if page.items.is_empty() => Ok(Handled::Done),
        AbmAnswer::NamespaceIds(_) => {
            Ok(Handled::NotYet(format!("namespaces are still linked to OSD {osd}")))
        }
        _ => Err(TaskError::Mismatch("NamespaceIds")),
    }
}

/// Deletes everything of a namespace from an OSD that it is not linked to any more.
async fn clean_osd(run: &Run, osd: OsdId, namespace: NamespaceId) -> Result<Handled, TaskError> {
    let claimed = run.backend.osds(OsdFilter::Claimed).await?;
    let Some(record) = claimed.into_iter().find(|record| record.osd_id == Some(osd)) else {
        return Ok(Handled::Done);
    };
    if record.state == OsdState::Purging {
        return Ok(Handled::Done);
    }
    if let AbmAnswer::OsdIds(linked) = run.backend.ask_abm(AbmQuery::NamespaceOsds(namespace)).await?
        && linked.contains(&osd)
    {
        return Ok(Handled::NotYet(format!("namespace {namespace} is linked to OSD {osd}")));
    }
    let handle = run.backend.osd(osd).await?;
    let marker = osd_keys::namespace_marker(namespace);
    // The marker goes first: every write asserts it, so what is there then can only shrink.
    let unmark = OsdBatch { asserts: Vec::new(), updates: vec![OsdUpdate::Delete(marker.clone())] };
    handle.apply(unmark).await?;
    reach(Step::WorkUnmarked);
    let range = RangeQuery {
        last: next_prefix(&marker).map(|end| (end, false)),
        first: marker.to_vec(),
        first_included: true,
        reverse: false,
        max: DELETE_STEP,
    };
    loop {
        let page = handle.range(range.clone()).await?;
        if page.items.is_empty() {
            return Ok(Handled::Done);
        }
        run.pace(u64::try_from(page.items.len()).unwrap_or(u64::MAX), 0).await;
        let updates = page.items.into_iter().map(OsdUpdate::Delete).collect();
        handle.apply(OsdBatch { asserts: Vec::new(), updates }).await?;
        reach(Step::WorkCleaned);
    }
}
