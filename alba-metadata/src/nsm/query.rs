//! Reads of an NSM group.

use alba_core::ids::{NamespaceId, ObjectId, ObjectName, OsdId};
use alba_core::kv::{KvError, KvRead};
use alba_core::range::{PAGE_MAX, Page, RangeQuery};
use alba_core::wire::rpc::nsm::{NamespaceInfo, NamespaceStatistics, NsmAnswer, NsmError, NsmQuery};

use super::keys::{self, Table};
use super::{Refused, epochs, indexes, owned, refuse};
use crate::listing::page;
use crate::txn::counter;
use crate::value::{damaged, last_number, load, scan_prefix};

/// Most manifests per question: with the longest (1 MiB) an answer still fits a reply.
const MAX_NAMES: usize = PAGE_MAX;

/// Most bytes of stored manifests per answer: half of what a reply may hold.
const MAX_BYTES: usize = alba_core::wire::rpc::MAX_REPLY / 2;

pub(super) fn answer(store: &dyn KvRead, query: &NsmQuery) -> Result<NsmAnswer, Refused> {
    Ok(match query {
        NsmQuery::Namespace(namespace) => NsmAnswer::Namespace(Box::new(info(store, *namespace)?)),
        NsmQuery::Statistics(namespace) => {
            owned(store, *namespace)?;
            NsmAnswer::Statistics(statistics(store, *namespace)?)
        }
        NsmQuery::Objects { namespace, range } => {
            owned(store, *namespace)?;
            let names = keys::table(*namespace, Table::Names);
            NsmAnswer::Objects(page(store, &names, range, |name, _| {
                ObjectName::new(name).map(Some).map_err(damaged)
            })?)
        }
        NsmQuery::Manifests { namespace, names } => manifests(store, *namespace, names)?,
        NsmQuery::ManifestById { namespace, object } => {
            owned(store, *namespace)?;
            let record = indexes::object(store, *namespace, object)?;
            NsmAnswer::Manifest(record.map(|record| Box::new(record.manifest)))
        }
        NsmQuery::ObjectsOnOsd { namespace, osd, after, max } => {
            owned(store, *namespace)?;
            let prefix = keys::of_osd(*namespace, Table::ObjectsOnOsd, *osd);
            NsmAnswer::ObjectIds(object_ids(store, &prefix, after.as_ref(), *max)?)
        }
        NsmQuery::ObjectsInBucket { namespace, bucket, after, max } => {
            owned(store, *namespace)?;
            let prefix = keys::bucket(*namespace, bucket);
            NsmAnswer::ObjectIds(object_ids(store, &prefix, after.as_ref(), *max)?)
        }
        NsmQuery::DeleteQueue { namespace, osd, max } => {
            owned(store, *namespace)?;
            let prefix = keys::of_osd(*namespace, Table::DeleteQueue, *osd);
            let range = first_of(*max);
            NsmAnswer::Keys(page(store, &prefix, &range, |key, _| keys::parse_to_delete(key).map(Some))?)
        }
    })
}

fn first_of(max: u32) -> RangeQuery {
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

fn manifests(store: &dyn KvRead, namespace: NamespaceId, names: &[ObjectName]) -> Result<NsmAnswer, Refused> {
    owned(store, namespace)?;
    if names.len() > MAX_NAMES {
        return refuse(NsmError::TooLarge(format!("{} names; at most {MAX_NAMES}", names.len())));
    }
    let mut found = Vec::with_capacity(names.len());
    let mut bytes: usize = 0;
    for name in names {
        let manifest = indexes::by_name(store, namespace, name)?.map(|record| record.manifest);
        // A fragment's entry takes at most 64 bytes on the wire.
        bytes += manifest.as_ref().map_or(0, |manifest| manifest.fragments().count().saturating_mul(64));
        if bytes > MAX_BYTES {
            return refuse(NsmError::TooLarge("these manifests together; ask for fewer".to_owned()));
        }
        found.push(manifest);
    }
    Ok(NsmAnswer::Manifests(found))
}

fn osd_of(key: &[u8]) -> Result<OsdId, KvError> {
    OsdId::new(last_number(key)?).map_err(damaged)
}

fn info(store: &dyn KvRead, namespace: NamespaceId) -> Result<NamespaceInfo, Refused> {
    let header = owned(store, namespace)?;
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
    let buckets = scan_prefix(store, &bucket_prefix, usize::MAX)?;
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
