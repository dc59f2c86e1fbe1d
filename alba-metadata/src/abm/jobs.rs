//! Jobs over all objects of a namespace (features §3.7), cut into leaves of equal ranges of object ids. Each leaf is an item
//! of the work queue and has a record of how far it has come, changed only by who knows what it is: so a leaf goes on
//! after a crash, and two agents cannot both move it.

use alba_core::ids::{JobName, NamespaceName, ObjectId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{
    AbmError, AbmOutcome, JobAction, JobRecord, LEAVES_MAX, LeafProgress, NamespaceRecord, WorkItem,
};

use super::{Refused, keys, refuse, work};
use crate::listing::page;
use crate::txn::KvTxn;
use crate::value::{decode, load, save, scan_prefix};

pub(super) fn start(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    name: &JobName,
    namespace: &NamespaceName,
    action: &JobAction,
    factor: u32,
) -> Result<AbmOutcome, Refused> {
    if !(1..=LEAVES_MAX).contains(&factor) {
        return refuse(AbmError::BadArgument(format!("a job has 1 to {LEAVES_MAX} leaves")));
    }
    if txn.get(&keys::job(name))?.is_some() {
        let text = format!("there is a job {name} already; clear it, or choose another name");
        return refuse(AbmError::BadArgument(text));
    }
    let Some(record) = load::<NamespaceRecord>(txn, &keys::namespace(namespace))? else {
        return refuse(AbmError::NamespaceUnknown(namespace.clone()));
    };
    if !record.state.is_usable() {
        return refuse(AbmError::NamespaceNotActive(namespace.clone()));
    }
    let job = JobRecord {
        name: name.clone(),
        namespace: record.id,
        action: action.clone(),
        leaves: factor,
        since: now.0,
    };
    save(txn, keys::job(name), &job)?;
    for leaf in 0..factor {
        let progress = LeafProgress {
            next: Some(border(leaf, factor).unwrap_or(ObjectId::new([0; 32]))),
            end: border(leaf + 1, factor),
            ..LeafProgress::default()
        };
        save(txn, keys::leaf(name, leaf), &progress)?;
        work::add(txn, now, &WorkItem::IterateLeaf { job: name.clone(), leaf })?;
    }
    Ok(AbmOutcome::Done)
}

/// The lowest object id of a leaf, by its first 32 bits; none behind the last leaf.
fn border(leaf: u32, factor: u32) -> Option<ObjectId> {
    let prefix = (u64::from(leaf) << 32) / u64::from(factor);
    let prefix = u32::try_from(prefix).ok()?;
    let mut id = [0; 32];
    let (first, _) = id.split_at_mut(4);
    first.copy_from_slice(&prefix.to_be_bytes());
    Some(ObjectId::new(id))
}

pub(super) fn update(
    txn: &mut KvTxn<'_>,
    name: &JobName,
    leaf: u32,
    expected: &LeafProgress,
    progress: &LeafProgress,
) -> Result<AbmOutcome, Refused> {
    let key = keys::leaf(name, leaf);
    let Some(found) = load::<LeafProgress>(txn, &key)? else {
        return refuse(AbmError::JobUnknown(name.clone()));
    };
    if found != *expected {
        return refuse(AbmError::ProgressMoved { name: name.clone(), found: Box::new(found) });
    }
    let goes_back = progress.next.is_some_and(|next| found.next.is_none_or(|before| next < before));
    if progress.end != found.end || goes_back {
        return refuse(AbmError::BadArgument("a leaf only moves on, and keeps its end".to_owned()));
    }
    save(txn, key, progress)?;
    Ok(AbmOutcome::Done)
}

/// A leaf's item may go when all its objects are done, or the job was cleared.
pub(super) fn check_finished(txn: &KvTxn<'_>, name: &JobName, leaf: u32) -> Result<(), Refused> {
    match load::<LeafProgress>(txn, &keys::leaf(name, leaf))? {
        Some(LeafProgress { next: Some(_), .. }) => {
            refuse(AbmError::BadArgument(format!("leaf {leaf} of job {name} is not finished")))
        }
        _ => Ok(()),
    }
}

pub(super) fn clear(txn: &mut KvTxn<'_>, name: &JobName) -> Result<AbmOutcome, Refused> {
    let Some(job) = load::<JobRecord>(txn, &keys::job(name))? else {
        return refuse(AbmError::JobUnknown(name.clone()));
    };
    for leaf in 0..job.leaves {
        work::cancel(txn, &WorkItem::IterateLeaf { job: name.clone(), leaf })?;
        txn.delete(keys::leaf(name, leaf));
    }
    txn.delete(keys::job(name));
    Ok(AbmOutcome::Done)
}

pub(super) fn list(store: &(impl KvRead + ?Sized), range: &RangeQuery) -> Result<Page<JobRecord>, KvError> {
    page(store, keys::JOBS, range, |_, value| decode(value).map(Some))
}

pub(super) fn progress(
    store: &(impl KvRead + ?Sized),
    name: &JobName,
) -> Result<Option<Vec<LeafProgress>>, KvError> {
    if store.get(&keys::job(name))?.is_none() {
        return Ok(None);
    }
    let leaves = scan_prefix(store, &keys::leaves(name), usize::MAX)?;
    leaves.into_iter().map(|(_, value)| decode(&value)).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_cover_all_object_ids_in_equal_ranges() {
        for factor in [1, 2, 3, 10, LEAVES_MAX] {
            let borders: Vec<u64> = (0..factor)
                .map(|leaf| {
                    let id = border(leaf, factor).unwrap();
                    u64::from(u32::from_be_bytes(id.as_bytes()[..4].try_into().unwrap()))
                })
                .chain([1 << 32])
                .collect();
            assert_eq!((borders[0], border(factor, factor)), (0, None));
            let size = (1_u64 << 32) / u64::from(factor);
            assert!(borders.windows(2).all(|pair| (size..=size + 1).contains(&(pair[1] - pair[0]))));
        }
    }
}
