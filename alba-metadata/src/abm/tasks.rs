//! What agents say of the tasks they do: when each ended well last, and how far it is. Only the holder of a task's lease is
//! believed: one that lost it cannot overwrite what its successor says.

use alba_core::ids::TaskName;
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{
    AbmError, AbmOutcome, LeaseRecord, PAUSED_MAX, RunReport, RunState, TaskRecord,
};

use super::revisions::{self, Kind};
use super::{Refused, keys, leases, refuse};
use crate::listing::page;
use crate::txn::KvTxn;
use crate::value::{decode, load, save, scan_prefix};

/// Longest reason kept, in characters.
const REASON_MAX: usize = 300;

pub(super) fn report(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    task: &TaskName,
    token: u64,
    report: &RunReport,
) -> Result<AbmOutcome, Refused> {
    let lease = leases::held(txn, task, token)?;
    let mut report = report.clone();
    if let RunState::Failed { reason } = &mut report.state {
        *reason = reason.chars().take(REASON_MAX).collect();
    }
    let old: Option<TaskRecord> = load(txn, &keys::task(task))?;
    let goes_on = |old: &TaskRecord| old.token == token && old.report.state == RunState::Running;
    let started = old.as_ref().filter(|old| goes_on(old)).map_or(now.0, |old| old.started);
    let (mut succeeded, mut failed, mut failures) =
        old.map_or((None, None, 0), |old| (old.succeeded, old.failed, old.failures));
    match &report.state {
        RunState::Running => {}
        RunState::Succeeded => {
            succeeded = Some(now.0);
            failures = 0;
        }
        RunState::Failed { reason } => {
            failed = Some((now.0, reason.clone()));
            failures = failures.saturating_add(1);
        }
    }
    let (task, agent, reported) = (task.clone(), lease.agent, now.0);
    let record = TaskRecord { task, agent, token, started, reported, report, succeeded, failed, failures };
    save(txn, keys::task(&record.task), &record)?;
    Ok(AbmOutcome::Done)
}

pub(super) fn forget(txn: &mut KvTxn<'_>, now: Timestamp, task: &TaskName) -> Result<AbmOutcome, Refused> {
    if let Some(lease) = load::<LeaseRecord>(txn, &keys::lease(task))? {
        if lease.expires > now.0 {
            return refuse(AbmError::LeaseMismatch { task: task.clone(), holder: lease.agent.to_string() });
        }
        txn.delete(keys::lease(task));
    }
    txn.delete(keys::task(task));
    txn.delete(keys::mark(task));
    Ok(AbmOutcome::Done)
}

pub(super) fn mark(
    txn: &mut KvTxn<'_>,
    task: &TaskName,
    token: u64,
    mark: u64,
) -> Result<AbmOutcome, Refused> {
    leases::held(txn, task, token)?;
    save(txn, keys::mark(task), &mark)?;
    Ok(AbmOutcome::Done)
}

pub(super) fn pause(txn: &mut KvTxn<'_>, task: &TaskName, pause: bool) -> Result<AbmOutcome, Refused> {
    let key = keys::paused(task);
    match (txn.get(&key)?.is_some(), pause) {
        (false, true) if paused(txn)?.len() >= PAUSED_MAX => {
            return refuse(AbmError::BadArgument(format!("{PAUSED_MAX} tasks are paused already")));
        }
        (false, true) => save(txn, key, task)?,
        (true, false) => txn.delete(key),
        _ => return Ok(AbmOutcome::Done),
    }
    revisions::bump(txn, Kind::Maintenance)?;
    Ok(AbmOutcome::Done)
}

pub(super) fn paused(store: &(impl KvRead + ?Sized)) -> Result<Vec<TaskName>, KvError> {
    let entries = scan_prefix(store, keys::PAUSED, usize::MAX)?;
    entries.into_iter().map(|(_, value)| decode(&value)).collect()
}

pub(super) fn list(store: &(impl KvRead + ?Sized), range: &RangeQuery) -> Result<Page<TaskRecord>, KvError> {
    page(store, keys::TASKS, range, |_, value| decode(value).map(Some))
}
