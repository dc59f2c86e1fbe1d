//! Reads of an NSM group.

use std::ops::Bound;

use alba_core::ids::{NamespaceId, ObjectId, ObjectName, OsdId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Manifest;
use alba_core::range::{PAGE_MAX, Page, RangeQuery, next_prefix};
use alba_core::wire::rpc::nsm::{
    GroupLoad, NamespaceDetails, NamespaceInfo, NamespaceStatistics, NsmAnswer, NsmError, NsmQuery, OsdUse,
    QUEUE_COUNT_MAX,
};

use super::access::{self, Want, admit};
use super::keys::{self, Table};
use super::{Refused, epochs, indexes, inline, recovery, refuse, relocate};
use crate::listing::page;
use crate::model::Fault;
use crate::txn::counter;
use crate::value::{damaged, decode, last_number, load, scan_prefix};

/// Most bytes of stored manifests per answer: half of what a reply may hold.
const MAX_BYTES: usize = alba_core::wire::rpc::MAX_REPLY / 2;

pub(super) fn answer(store: &dyn KvRead, query: &NsmQuery) -> Result<NsmAnswer, Refused> {
    Ok(match query {
        NsmQuery::Namespace(namespace) => NsmAnswer::Namespace(Box::new(info(store, *namespace)?)),
        NsmQuery::Statistics(namespace) => {
            admit(store, *namespace, Want::Look)?;
            NsmAnswer::Statistics(statistics(store, *namespace)?)
        }
        NsmQuery::Objects { namespace, range } => {
            admit(store, *namespace, Want::Read)?;
            let names = keys::table(*namespace, Table::Names);
            NsmAnswer::Objects(page(store, &names, range, |name, _| {
                ObjectName::new(name).map(Some).map_err(damaged)
            })?)
        }
        NsmQuery::Manifests { namespace, names } => manifests(store, *namespace, names)?,
        NsmQuery::ManifestById { namespace, object } => {
            admit(store, *namespace, Want::Inspect)?;
            let record = indexes::object(store, *namespace, object)?;
            NsmAnswer::Manifest(record.map(|record| Box::new(record.manifest)))
        }
        NsmQuery::ObjectsOnOsd { namespace, osd, after, max } => {
            admit(store, *namespace, Want::Inspect)?;
            let prefix = keys::of_osd(*namespace, Table::ObjectsOnOsd, *osd);
            NsmAnswer::ObjectIds(object_ids(store, &prefix, after.as_ref(), *max)?)
        }
        NsmQuery::ObjectsInBucket { namespace, bucket, after, max } => {
            admit(store, *namespace, Want::Inspect)?;
            let prefix = keys::bucket(*namespace, bucket);
            NsmAnswer::ObjectIds(object_ids(store, &prefix, after.as_ref(), *max)?)
        }
        NsmQuery::DeleteQueue { namespace, osd, max } => {
            admit(store, *namespace, Want::Inspect)?;
            let prefix = keys::of_osd(*namespace, Table::DeleteQueue, *osd);
            let range = first_of(*max);
            NsmAnswer::Keys(page(store, &prefix, &range, |key, _| keys::parse_to_delete(key).map(Some))?)
        }
        NsmQuery::Details(namespace) => NsmAnswer::Details(Box::new(details(store, *namespace)?)),
        NsmQuery::StatisticsOf(namespaces) => each_statistics(store, namespaces)?,
        NsmQuery::Exist { namespace, names } => exist(store, *namespace, names)?,
        NsmQuery::ObjectsById { namespace, range } => {
            admit(store, *namespace, Want::Inspect)?;
            let objects = keys::table(*namespace, Table::Objects);
            NsmAnswer::ObjectIds(ids_in_pieces(store, &objects, range)?)
        }
        NsmQuery::ManifestsById { namespace, range } => manifests_by_id(store, *namespace, range)?,
        NsmQuery::Contents { namespace, names } => contents(store, *namespace, names)?,
        NsmQuery::RecoveryFindings { namespace, after, max } => {
            admit(store, *namespace, Want::Recover)?;
            NsmAnswer::Findings(recovery::findings(store, *namespace, after.as_ref(), *max)?)
        }
        NsmQuery::MoveStatus(namespace) => NsmAnswer::MoveStatus(relocate::status(store, *namespace)?),
        NsmQuery::ExportPage { namespace, id, from } => {
            NsmAnswer::Exported(relocate::export(store, *namespace, *id, from)?)
        }
        NsmQuery::DeleteQueues(namespace) => {
            admit(store, *namespace, Want::Inspect)?;
            NsmAnswer::DeleteQueues(delete_queues(store, *namespace)?)
        }
        NsmQuery::NextMessage => NsmAnswer::NextMessage(super::next_message(store)?),
        NsmQuery::Load => NsmAnswer::Load(load_of(store)?),
        NsmQuery::Namespaces { after, max } => {
            let mut range = first_of(*max);
            if let Some(after) = after {
                range = range.after(&after.get().to_be_bytes());
            }
            NsmAnswer::Namespaces(page(store, keys::HEADERS, &range, |key, header| {
                let id = NamespaceId::new(last_number(key)?).map_err(damaged)?;
                Ok(Some((id, decode::<super::Header>(header)?.name)))
            })?)
        }
    })
}

/// From one OSD that has a queue to the next, without a look at those that have none.
fn delete_queues(store: &dyn KvRead, namespace: NamespaceId) -> Result<Vec<(OsdId, u64)>, KvError> {
    let table = keys::table(namespace, Table::DeleteQueue);
    let most = usize::try_from(QUEUE_COUNT_MAX).unwrap_or(usize::MAX);
    let mut found = Vec::new();
    let mut from = Some(table.clone());
    while let Some(lower) = from {
        let end = next_prefix(&table);
        let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let Some((key, _)) = store.scan(Bound::Included(&lower), upper, false, 1)?.into_iter().next() else {
            break;
        };
        let osd = key.get(table.len()..).and_then(|rest| rest.first_chunk::<8>());
        let osd = osd.ok_or_else(|| damaged("a key to delete from no OSD"))?;
        let osd = OsdId::new(u64::from_be_bytes(*osd)).map_err(damaged)?;
        let queue = keys::of_osd(namespace, Table::DeleteQueue, osd);
        found.push((osd, u64::try_from(scan_prefix(store, &queue, most)?.len()).unwrap_or(QUEUE_COUNT_MAX)));
        from = next_prefix(&queue);
    }
    Ok(found)
}

pub(super) fn first_of(max: u32) -> RangeQuery {
    RangeQuery { max: i32::try_from(max).unwrap_or(i32::MAX), ..RangeQuery::all() }
}

fn object_ids(
    store: &dyn KvRead,
    prefix: &[u8],
    after: Option<&ObjectId>,
    max: u32,
) -> Result<Page<ObjectId>, KvError> {
    let mut range = first_of(max);
    if let Some(after) = after {
        range = range.after(after.as_bytes());
    }
    page(store, prefix, &range, |id, _| ObjectId::try_from(id).map(Some).map_err(damaged))
}

/// Ids of a table of long values: a key is an id and the number of a piece. `range` is of ids or beginnings of ids.
pub(super) fn ids_in_pieces(
    store: &dyn KvRead,
    table: &[u8],
    range: &RangeQuery,
) -> Result<Page<ObjectId>, KvError> {
    // Behind all pieces of an id, when the bound is one.
    let behind = |bound: &[u8]| {
        let mut behind = bound.to_vec();
        if bound.len() == ID_LEN {
            behind.extend_from_slice(&[0xff; 2]);
        }
        behind
    };
    let mut range = range.clone();
    if !range.first_included {
        range.first = behind(&range.first);
    }
    if let Some((last, true)) = &mut range.last {
        *last = behind(last);
    }
    page(store, table, &range, |key, _| match key.split_at_checked(ID_LEN) {
        Some((id, [0, 0])) => ObjectId::try_from(id).map(Some).map_err(damaged),
        Some(_) => Ok(None),
        None => Err(damaged("a short object key")),
    })
}

/// Bytes of an object id.
const ID_LEN: usize = 32;

/// What an answer may still hold.
pub(super) struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(MAX_BYTES)
    }
}

impl Budget {
    /// Is there room for this one? The first always fits: a manifest is at most 1 MiB.
    pub(super) fn take(&mut self, manifest: &Manifest) -> bool {
        // A fragment's entry takes at most 64 bytes on the wire; names are at most 1 KiB.
        let bytes = manifest.fragments().count().saturating_mul(64).saturating_add(2 << 10);
        match self.0.checked_sub(bytes) {
            Some(left) => {
                self.0 = left;
                true
            }
            None => false,
        }
    }
}

fn too_many<T>(items: &[T]) -> Result<(), Refused> {
    if items.len() > PAGE_MAX {
        return refuse(NsmError::TooLarge(format!("{} at once; at most {PAGE_MAX}", items.len())));
    }
    Ok(())
}

fn manifests(store: &dyn KvRead, namespace: NamespaceId, names: &[ObjectName]) -> Result<NsmAnswer, Refused> {
    admit(store, namespace, Want::Read)?;
    let mut found = Vec::with_capacity(names.len().min(PAGE_MAX));
    by_names(store, namespace, names, |manifest| {
        found.push(manifest);
        Ok(())
    })?;
    Ok(NsmAnswer::Manifests(found))
}

/// The manifests of these names in their order, within the bounds of an answer.
fn by_names(
    store: &dyn KvRead,
    namespace: NamespaceId,
    names: &[ObjectName],
    mut each: impl FnMut(Option<Manifest>) -> Result<(), KvError>,
) -> Result<(), Refused> {
    too_many(names)?;
    let mut budget = Budget::default();
    for name in names {
        let manifest = indexes::by_name(store, namespace, name)?.map(|record| record.manifest);
        if manifest.as_ref().is_some_and(|manifest| !budget.take(manifest)) {
            return refuse(NsmError::TooLarge("these manifests together; ask for fewer".to_owned()));
        }
        each(manifest)?;
    }
    Ok(())
}

fn contents(store: &dyn KvRead, namespace: NamespaceId, names: &[ObjectName]) -> Result<NsmAnswer, Refused> {
    admit(store, namespace, Want::Read)?;
    let mut found = Vec::with_capacity(names.len().min(PAGE_MAX));
    by_names(store, namespace, names, |manifest| {
        let value = match &manifest {
            Some(manifest) if inline::is_inline(manifest) => {
                inline::value(store, namespace, &manifest.object_id)?
            }
            _ => None,
        };
        found.push(manifest.map(|manifest| (manifest, value)));
        Ok(())
    })?;
    Ok(NsmAnswer::Contents(found))
}

fn exist(store: &dyn KvRead, namespace: NamespaceId, names: &[ObjectName]) -> Result<NsmAnswer, Refused> {
    admit(store, namespace, Want::Read)?;
    too_many(names)?;
    let each = names.iter().map(|name| Ok(indexes::id_of(store, namespace, name)?.is_some()));
    Ok(NsmAnswer::Exist(each.collect::<Result<_, KvError>>()?))
}

fn manifests_by_id(
    store: &dyn KvRead,
    namespace: NamespaceId,
    range: &RangeQuery,
) -> Result<NsmAnswer, Refused> {
    admit(store, namespace, Want::Inspect)?;
    let ids = ids_in_pieces(store, &keys::table(namespace, Table::Objects), range)?;
    let mut budget = Budget::default();
    let mut items = Vec::new();
    for id in &ids.items {
        let record = indexes::object(store, namespace, id)?;
        let manifest = record.ok_or_else(|| damaged(format!("object {id} lost its first piece")))?.manifest;
        if !budget.take(&manifest) {
            return Ok(NsmAnswer::ManifestPage(Page { items, has_more: true }));
        }
        items.push(manifest);
    }
    Ok(NsmAnswer::ManifestPage(Page { items, has_more: ids.has_more }))
}

fn each_statistics(store: &dyn KvRead, namespaces: &[NamespaceId]) -> Result<NsmAnswer, Refused> {
    too_many(namespaces)?;
    let mut each = Vec::with_capacity(namespaces.len());
    for namespace in namespaces {
        each.push(match admit(store, *namespace, Want::Look) {
            Ok(_) => Ok(statistics(store, *namespace)?),
            Err(Fault::Refused(error)) => Err(error),
            Err(fault) => return Err(fault),
        });
    }
    Ok(NsmAnswer::EachStatistics(each))
}

fn load_of(store: &dyn KvRead) -> Result<GroupLoad, KvError> {
    let namespaces = scan_prefix(store, keys::HEADERS, usize::MAX)?.len();
    Ok(GroupLoad {
        namespaces: u64::try_from(namespaces).unwrap_or(u64::MAX),
        operations: counter(store, keys::OPERATIONS)?,
        written: counter(store, keys::WRITTEN)?,
    })
}

/// How a namespace uses an OSD that it knows.
pub(super) fn use_of(store: &dyn KvRead, namespace: NamespaceId, osd: OsdId) -> Result<OsdUse, KvError> {
    Ok(if store.get(&keys::of_osd(namespace, Table::ActiveOsds, osd))?.is_some() {
        OsdUse::Active
    } else if store.get(&keys::of_osd(namespace, Table::DrainingOsds, osd))?.is_some() {
        OsdUse::Draining
    } else {
        OsdUse::Unlinked
    })
}

fn details(store: &dyn KvRead, namespace: NamespaceId) -> Result<NamespaceDetails, Refused> {
    let (_, state) = admit(store, namespace, Want::Look)?;
    let mut osds = Vec::new();
    for (key, info) in scan_prefix(store, &keys::table(namespace, Table::OsdInfos), usize::MAX)? {
        let osd = osd_of(&key)?;
        osds.push((osd, decode(&info)?, use_of(store, namespace, osd)?));
    }
    // What is handed over is not admitted, and what comes is not here yet.
    let frozen = matches!(
        state.moving,
        Some(access::Moving::Outgoing(access::Outgoing { stage: access::Stage::Frozen, .. }))
    );
    Ok(NamespaceDetails {
        lifecycle: state.lifecycle,
        trashed: state.trashed,
        frozen,
        osds,
        inline_objects: counter(store, &keys::bucket_count(namespace, &inline::bucket()?))?,
        inline_bytes: counter(store, &keys::table(namespace, Table::InlineBytes))?,
        findings: counter(store, &keys::table(namespace, Table::FindingCount))?,
    })
}

fn osd_of(key: &[u8]) -> Result<OsdId, KvError> {
    OsdId::new(last_number(key)?).map_err(damaged)
}

fn info(store: &dyn KvRead, namespace: NamespaceId) -> Result<NamespaceInfo, Refused> {
    let (header, _) = admit(store, namespace, Want::Look)?;
    let epochs = epochs::get(store, namespace)?;
    let mut active_osds = Vec::new();
    for (key, _) in scan_prefix(store, &keys::table(namespace, Table::ActiveOsds), usize::MAX)? {
        let osd = osd_of(&key)?;
        let info = load(store, &keys::of_osd(namespace, Table::OsdInfos, osd))?;
        active_osds.push((osd, info.ok_or_else(|| damaged(format!("OSD {osd} without info")))?));
    }
    Ok(NamespaceInfo {
        name: header.name,
        preset: header.preset,
        preset_version: header.preset_version,
        active_osds,
        min_epoch: epochs.min,
        newest_epoch: epochs.newest,
    })
}

fn statistics(store: &dyn KvRead, namespace: NamespaceId) -> Result<NamespaceStatistics, KvError> {
    let osd_bytes = scan_prefix(store, &keys::table(namespace, Table::OsdBytes), usize::MAX)?;
    let bucket_prefix = keys::table(namespace, Table::BucketCounts);
    let inline = keys::bucket_count(namespace, &inline::bucket()?);
    let mut buckets = scan_prefix(store, &bucket_prefix, usize::MAX)?;
    // Maintenance goes through buckets; there is nothing for it to do about these.
    buckets.retain(|(key, _)| *key != inline);
    Ok(NamespaceStatistics {
        objects: counter(store, &keys::table(namespace, Table::ObjectCount))?,
        logical_bytes: counter(store, &keys::table(namespace, Table::LogicalBytes))?,
        storage_bytes: counter(store, &keys::table(namespace, Table::StorageBytes))?,
        storage_per_osd: osd_bytes
            .iter()
            .map(|(key, _)| Ok((osd_of(key)?, counter(store, key)?)))
            .collect::<Result<_, KvError>>()?,
        buckets: buckets
            .iter()
            .map(|(key, _)| {
                let bucket = keys::parse_bucket(key.get(bucket_prefix.len()..).unwrap_or_default())?;
                Ok((bucket, counter(store, key)?))
            })
            .collect::<Result<_, KvError>>()?,
    })
}
