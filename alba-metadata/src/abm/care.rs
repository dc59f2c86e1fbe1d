//! Objects in trouble, as the agent that repairs tells of them, and maintenance windows. An agent keeps nothing: what it must not forget
//! when it dies (which objects rest, and for how long) is here, bounded.
//!
//! Windows end by the ABM's own time, which only grows: no agent's clock and no agent that is gone keeps one open.

use alba_core::ids::{NamespaceId, ObjectId, TaskName};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{
    AbmError, AbmOutcome, CARE_PAGE, FailedRepair, REASON_MAX, SurveyCounts, SurveyRecord, UNREPAIRED_MAX,
    UnrepairedRecord, WINDOW_MAX, WINDOWS_MAX, WindowRecord, WindowTarget, rest,
};

use super::revisions::{self, Kind};
use super::{Refused, keys, leases, refuse};
use crate::listing::page;
use crate::txn::{KvTxn, counter};
use crate::value::{decode, load, save, scan_prefix};

/// All that are stored; some may be over.
fn stored_windows(store: &(impl KvRead + ?Sized)) -> Result<Vec<WindowRecord>, KvError> {
    let entries = scan_prefix(store, keys::WINDOWS, usize::MAX)?;
    entries.into_iter().map(|(_, value)| decode(&value)).collect()
}

pub(super) fn windows(store: &(impl KvRead + ?Sized), now: u64) -> Result<Vec<WindowRecord>, KvError> {
    Ok(stored_windows(store)?.into_iter().filter(|window| window.until > now).collect())
}

pub(super) fn open(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    target: &WindowTarget,
    period: u64,
    reason: &str,
) -> Result<AbmOutcome, Refused> {
    if !(1..=WINDOW_MAX).contains(&period) {
        return refuse(AbmError::BadArgument(format!("a window lasts 1 to {WINDOW_MAX} microseconds")));
    }
    if let WindowTarget::Osd(long_id) = target
        && txn.get(&keys::osd(long_id))?.is_none()
    {
        return refuse(AbmError::OsdUnknown(long_id.clone()));
    }
    let mut others = 0;
    let mut since = now.0;
    for window in stored_windows(txn)? {
        if window.until <= now.0 {
            txn.delete(keys::window(&window.target));
        } else if window.target == *target {
            since = window.since;
        } else {
            others += 1;
        }
    }
    if others >= WINDOWS_MAX {
        return refuse(AbmError::BadArgument(format!("{WINDOWS_MAX} windows are open already")));
    }
    let reason = reason.chars().take(REASON_MAX).collect();
    let window = WindowRecord { target: target.clone(), reason, since, until: now.0.saturating_add(period) };
    save(txn, keys::window(target), &window)?;
    revisions::bump(txn, Kind::Maintenance)?;
    Ok(AbmOutcome::Done)
}

pub(super) fn close(txn: &mut KvTxn<'_>, target: &WindowTarget) -> Result<AbmOutcome, Refused> {
    let key = keys::window(target);
    if txn.get(&key)?.is_some() {
        txn.delete(key);
        revisions::bump(txn, Kind::Maintenance)?;
    }
    Ok(AbmOutcome::Done)
}

fn at_most_a_page(count: usize) -> Result<(), Refused> {
    if count <= CARE_PAGE {
        return Ok(());
    }
    refuse(AbmError::BadArgument(format!("at most {CARE_PAGE} at once")))
}

pub(super) fn surveyed(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    task: &TaskName,
    token: u64,
    surveys: &[(NamespaceId, SurveyCounts)],
) -> Result<AbmOutcome, Refused> {
    leases::held(txn, task, token)?;
    at_most_a_page(surveys.len())?;
    for (namespace, counts) in surveys {
        if txn.get(&keys::namespace_by_id(*namespace))?.is_some() {
            let record = SurveyRecord { namespace: *namespace, at: now.0, counts: *counts };
            save(txn, keys::survey(*namespace), &record)?;
        }
    }
    Ok(AbmOutcome::Done)
}

pub(super) fn surveys(
    store: &(impl KvRead + ?Sized),
    after: Option<NamespaceId>,
    max: u32,
) -> Result<Page<SurveyRecord>, KvError> {
    let after = after.map(|id| id.get().to_be_bytes().to_vec());
    page(store, keys::SURVEYS, &behind(after, max), |_, value| decode(value).map(Some))
}

fn behind(after: Option<Vec<u8>>, max: u32) -> RangeQuery {
    let max = usize::try_from(max).unwrap_or(usize::MAX).min(CARE_PAGE);
    let all = RangeQuery { max: i32::try_from(max).unwrap_or(i32::MAX), ..RangeQuery::all() };
    match after {
        Some(after) => all.after(&after),
        None => all,
    }
}

pub(super) fn repaired(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    task: &TaskName,
    token: u64,
    failed: &[FailedRepair],
    well: &[(NamespaceId, ObjectId)],
) -> Result<AbmOutcome, Refused> {
    leases::held(txn, task, token)?;
    at_most_a_page(failed.len().max(well.len()))?;
    for (namespace, object) in well {
        let key = keys::unrepaired(*namespace, object);
        if txn.get(&key)?.is_some() {
            txn.delete(key);
            txn.add(keys::UNREPAIRED_COUNT, -1)?;
        }
    }
    let woken: u64 = load(txn, keys::WOKEN)?.unwrap_or_default();
    for one in failed {
        let key = keys::unrepaired(one.namespace, &one.object);
        let old: Option<UnrepairedRecord> = load(txn, &key)?;
        match &old {
            None if counter(txn, keys::UNREPAIRED_COUNT)? >= UNREPAIRED_MAX => continue,
            None => txn.add(keys::UNREPAIRED_COUNT, 1)?,
            Some(_) => {}
        }
        // What failed with other OSDs says nothing of how long it has to rest.
        let failures = old.filter(|old| old.at > woken).map_or(0, |old| old.failures);
        let record = UnrepairedRecord {
            namespace: one.namespace,
            object: one.object,
            failures: failures.saturating_add(1),
            at: now.0,
            until: now.0.saturating_add(rest(failures)),
            reason: one.reason.chars().take(REASON_MAX).collect(),
        };
        save(txn, key, &record)?;
    }
    Ok(AbmOutcome::Done)
}

pub(super) fn wake(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    task: &TaskName,
    token: u64,
) -> Result<AbmOutcome, Refused> {
    leases::held(txn, task, token)?;
    save(txn, keys::WOKEN, &now.0)?;
    Ok(AbmOutcome::Done)
}

pub(super) fn unrepaired(
    store: &(impl KvRead + ?Sized),
    after: Option<(NamespaceId, ObjectId)>,
    max: u32,
) -> Result<Page<UnrepairedRecord>, KvError> {
    let woken: u64 = load(store, keys::WOKEN)?.unwrap_or_default();
    let after = after.map(|(namespace, object)| {
        [namespace.get().to_be_bytes().as_slice(), object.as_bytes().as_slice()].concat()
    });
    page(store, keys::UNREPAIRED, &behind(after, max), |_, value| {
        let mut record: UnrepairedRecord = decode(value)?;
        if record.at <= woken {
            // It rests no longer.
            (record.failures, record.until) = (0, record.at);
        }
        Ok(Some(record))
    })
}
