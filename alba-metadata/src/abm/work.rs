//! The work queue (features §3.7): items wait for an agent, are claimed for a time, come back after a failure or when the
//! time is over, and go when they are done. A claim keeps others away and no more: whoever does an item after its claim ran
//! out does what is harmless to do twice.
//!
//! Two items that say the same are one: a fragment that a thousand reads find damaged is repaired once.

use std::ops::Bound;

use alba_core::ids::{AgentId, WorkId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::range::Page;
use alba_core::wire::rpc::abm::{AbmError, AbmOutcome, WORK_PAGE, WorkItem, WorkRecord};

use super::{Refused, jobs, keys, leases, links, osds, refuse};
use crate::listing::page;
use crate::txn::{KvTxn, counter};
use crate::value::{PRESENT, damaged, encode, last_number, load, save};

/// Most items that clients may have wait; what the ABM itself makes is bounded by namespaces and OSDs.
const QUEUE_MAX: u64 = 1_000_000;

/// First pause after a failure, in microseconds (features §3.7).
const FIRST_PAUSE: u64 = 1_000_000;

/// Longest pause, in microseconds (features §3.7).
const LONGEST_PAUSE: u64 = 120_000_000;

/// Longest reason kept, in characters.
const REASON_MAX: usize = 200;

/// Adds an item, unless it is there.
pub(super) fn add(txn: &mut KvTxn<'_>, now: Timestamp, item: &WorkItem) -> Result<(), KvError> {
    let by_item = keys::work_by_item(&encode(item)?);
    if txn.get(&by_item)?.is_some() {
        return Ok(());
    }
    let id = load::<WorkId>(txn, keys::NEXT_WORK)?.unwrap_or(WorkId::from_u32(0));
    save(txn, keys::NEXT_WORK, &id.next().ok_or_else(|| damaged("work ids are used up"))?)?;
    let record = WorkRecord {
        id,
        item: item.clone(),
        claim: None,
        not_before: now.0,
        failures: 0,
        last_failure: None,
    };
    save(txn, by_item, &id)?;
    txn.add(keys::WORK_COUNT, 1)?;
    put(txn, None, &record)
}

/// Stores a record in place of `old`.
fn put(txn: &mut KvTxn<'_>, old: Option<&WorkRecord>, record: &WorkRecord) -> Result<(), KvError> {
    if let Some(old) = old {
        txn.delete(keys::work_by_time(old.not_before, old.id));
    }
    txn.put(keys::work_by_time(record.not_before, record.id), PRESENT);
    save(txn, keys::work(record.id), record)
}

pub(super) fn remove(txn: &mut KvTxn<'_>, record: &WorkRecord) -> Result<(), KvError> {
    txn.delete(keys::work(record.id));
    txn.delete(keys::work_by_time(record.not_before, record.id));
    txn.delete(keys::work_by_item(&encode(&record.item)?));
    txn.add(keys::WORK_COUNT, -1)
}

/// Takes out the item that says this, if it is there.
pub(super) fn cancel(txn: &mut KvTxn<'_>, item: &WorkItem) -> Result<(), KvError> {
    let id: Option<WorkId> = load(txn, &keys::work_by_item(&encode(item)?))?;
    match id.map(|id| load::<WorkRecord>(txn, &keys::work(id))).transpose()?.flatten() {
        Some(record) => remove(txn, &record),
        None => Ok(()),
    }
}

pub(super) fn add_all(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    items: &[WorkItem],
) -> Result<AbmOutcome, Refused> {
    if items.len() > WORK_PAGE {
        return refuse(AbmError::BadArgument(format!("at most {WORK_PAGE} items at once")));
    }
    if counter(txn, keys::WORK_COUNT)? >= QUEUE_MAX {
        return refuse(AbmError::BadArgument(format!("{QUEUE_MAX} items wait already")));
    }
    for item in items {
        match item {
            WorkItem::RepairBadFragment { .. } | WorkItem::RewriteObject { .. } => add(txn, now, item)?,
            WorkItem::WaitUntilRepaired { .. }
            | WorkItem::WaitUntilDecommissioned { .. }
            | WorkItem::CleanupNamespaceOsd { .. }
            | WorkItem::CleanupOsdNamespace { .. }
            | WorkItem::IterateLeaf { .. } => {
                let text = "only the ABM itself makes items of this kind".to_owned();
                return refuse(AbmError::BadArgument(text));
            }
        }
    }
    Ok(AbmOutcome::Done)
}

/// Gives an agent the items that have waited for longest.
pub(super) fn claim(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    agent: &AgentId,
    max: u32,
    period: u64,
) -> Result<AbmOutcome, Refused> {
    let max = usize::try_from(max).unwrap_or(usize::MAX).min(WORK_PAGE);
    let until = leases::until(now, period)?;
    let end = keys::work_by_time(now.0.saturating_add(1), WorkId::from_u32(0));
    let ready = txn.scan(Bound::Included(keys::WORK_BY_TIME), Bound::Excluded(&end), false, max)?;
    let token = leases::next_token(txn)?;
    let mut items = Vec::new();
    for (key, _) in ready {
        let id = WorkId::new(last_number(&key)?).map_err(damaged)?;
        let old: WorkRecord =
            load(txn, &keys::work(id))?.ok_or_else(|| damaged("a claimable item is gone"))?;
        let claimed = Some((agent.clone(), token));
        let record = WorkRecord { claim: claimed, not_before: until, ..old.clone() };
        put(txn, Some(&old), &record)?;
        items.push(record);
    }
    items.sort_by_key(|record| record.id);
    Ok(AbmOutcome::Work { token, items })
}

/// The record of an item, if it is still this claim's.
fn held(txn: &KvTxn<'_>, id: WorkId, token: u64) -> Result<Option<WorkRecord>, KvError> {
    let record: Option<WorkRecord> = load(txn, &keys::work(id))?;
    Ok(record.filter(|record| record.claim.as_ref().is_some_and(|(_, holder)| *holder == token)))
}

pub(super) fn renew(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    ids: &[WorkId],
    token: u64,
    period: u64,
) -> Result<AbmOutcome, Refused> {
    let until = leases::until(now, period)?;
    if ids.len() > WORK_PAGE {
        return refuse(AbmError::BadArgument(format!("at most {WORK_PAGE} items at once")));
    }
    for id in ids {
        if let Some(old) = held(txn, *id, token)? {
            put(txn, Some(&old), &WorkRecord { not_before: until, ..old.clone() })?;
        }
    }
    Ok(AbmOutcome::Done)
}

pub(super) fn fail(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    id: WorkId,
    token: u64,
    reason: &str,
) -> Result<AbmOutcome, Refused> {
    if let Some(old) = held(txn, id, token)? {
        let record = WorkRecord {
            claim: None,
            not_before: now.0.saturating_add(pause(old.failures)),
            failures: old.failures.saturating_add(1),
            last_failure: Some(reason.chars().take(REASON_MAX).collect()),
            ..old.clone()
        };
        put(txn, Some(&old), &record)?;
    }
    Ok(AbmOutcome::Done)
}

/// Half as long again after each failure.
fn pause(failures: u32) -> u64 {
    let mut pause = FIRST_PAUSE;
    for _ in 0..failures.min(64) {
        pause = (pause + pause / 2).min(LONGEST_PAUSE);
    }
    pause
}

/// Takes out what is done, and does what follows. If something cannot follow yet, none of them counts as done.
pub(super) fn completed(txn: &mut KvTxn<'_>, now: Timestamp, ids: &[WorkId]) -> Result<AbmOutcome, Refused> {
    if ids.len() > WORK_PAGE {
        return refuse(AbmError::BadArgument(format!("at most {WORK_PAGE} items at once")));
    }
    for id in ids {
        let Some(record) = load::<WorkRecord>(txn, &keys::work(*id))? else { continue };
        remove(txn, &record)?;
        match &record.item {
            WorkItem::WaitUntilRepaired { osd, namespace } => links::repaired(txn, now, *namespace, *osd)?,
            WorkItem::WaitUntilDecommissioned { osd } => osds::emptied(txn, *osd)?,
            WorkItem::IterateLeaf { job, leaf } => jobs::check_finished(txn, job, *leaf)?,
            WorkItem::CleanupNamespaceOsd { .. }
            | WorkItem::CleanupOsdNamespace { .. }
            | WorkItem::RepairBadFragment { .. }
            | WorkItem::RewriteObject { .. } => {}
        }
    }
    Ok(AbmOutcome::Done)
}

pub(super) fn list(
    store: &(impl KvRead + ?Sized),
    after: Option<WorkId>,
    max: u32,
) -> Result<Page<WorkRecord>, KvError> {
    let most = u32::try_from(WORK_PAGE).unwrap_or(u32::MAX);
    let range = osds::after_number(after.map(WorkId::get), max.min(most));
    page(store, keys::WORK, &range, |_, value| crate::value::decode(value).map(Some))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_by_half_up_to_two_minutes() {
        let pauses: Vec<u64> = (0..4).map(pause).collect();
        assert_eq!(pauses, [1_000_000, 1_500_000, 2_250_000, 3_375_000]);
        assert_eq!((pause(12), pause(u32::MAX)), (LONGEST_PAUSE, LONGEST_PAUSE));
    }
}
