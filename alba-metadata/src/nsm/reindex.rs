//! An OSD that moves to another node changes the buckets of the objects that it holds parts of. They can be many, so they
//! are put right in steps that no command waits for.

use alba_core::ids::{NamespaceId, ObjectId, OsdId};
use alba_core::kv::{KvError, KvRead};
use alba_core::range::RangeQuery;

use super::indexes;
use super::keys::{self, Table};
use super::{access, changes, objects};
use crate::listing::page;
use crate::txn::KvTxn;
use crate::value::{damaged, last_number, load, save, scan_prefix};

/// Objects per step.
const STEP: i32 = 100;

/// The objects of this OSD have to be looked at, all of them.
pub(super) fn begin(txn: &mut KvTxn<'_>, namespace: NamespaceId, osd: OsdId) -> Result<(), KvError> {
    save(txn, keys::reindexed(namespace, Some(osd)), &None::<ObjectId>)
}

/// Is an OSD of this namespace not done yet?
pub(super) fn is_pending(store: &(impl KvRead + ?Sized), namespace: NamespaceId) -> Result<bool, KvError> {
    Ok(!scan_prefix(store, &keys::reindexed(namespace, None), 1)?.is_empty())
}

/// The OSDs of this namespace that are not done yet.
pub(super) fn pending(store: &(impl KvRead + ?Sized), namespace: NamespaceId) -> Result<Vec<OsdId>, KvError> {
    scan_prefix(store, &keys::reindexed(namespace, None), usize::MAX)?
        .iter()
        .map(|(key, _)| OsdId::new(last_number(key)?).map_err(damaged))
        .collect()
}

/// Looks at some objects; true when there may be more.
pub(super) fn step(txn: &mut KvTxn<'_>) -> Result<bool, KvError> {
    let Some((marker, _)) = scan_prefix(txn, keys::REINDEXED, 1)?.into_iter().next() else {
        return Ok(false);
    };
    let rest = marker.get(keys::REINDEXED.len()..).unwrap_or_default();
    let (namespace, osd) = rest.split_at_checked(8).ok_or_else(|| damaged("a short marker"))?;
    let namespace = NamespaceId::new(last_number(namespace)?).map_err(damaged)?;
    let osd = OsdId::new(last_number(osd)?).map_err(damaged)?;
    // A namespace that was deleted. (One that is handed over waits for this first.)
    if !access::takes_messages(txn, namespace)? {
        txn.delete(marker);
        return Ok(true);
    }
    let done: Option<ObjectId> = load(txn, &marker)?.flatten();
    let mut range = RangeQuery { max: STEP, ..RangeQuery::all() };
    if let Some(done) = done {
        range = range.after(done.as_bytes());
    }
    let prefix = keys::of_osd(namespace, Table::ObjectsOnOsd, osd);
    let found = page(txn, &prefix, &range, |id, _| ObjectId::try_from(id).map(Some).map_err(damaged))?;
    for id in &found.items {
        let record = indexes::object(txn, namespace, id)?;
        let record = record.ok_or_else(|| damaged(format!("object {id} has an index and no manifest")))?;
        let bucket = objects::bucket_of(txn, namespace, &record.manifest)?;
        if bucket != record.bucket {
            indexes::remove(txn, namespace, &record)?;
            indexes::insert(txn, namespace, &bucket, &record.manifest)?;
        }
    }
    match found.items.last() {
        Some(last) if found.has_more => save(txn, marker, &Some(*last))?,
        _ => txn.delete(marker),
    }
    changes::note(txn, namespace)?;
    Ok(true)
}
