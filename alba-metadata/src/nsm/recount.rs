//! Makes every index and counter of a namespace again from its manifests, and says where the stored ones differ.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use alba_core::ids::{NamespaceId, ObjectId, OsdId};
use alba_core::kv::{KvError, KvRead};
use alba_core::range::next_prefix;
use alba_core::wire::rpc::nsm::FragmentKey;

use super::indexes::{self, ObjectRecord};
use super::keys::{self, Table};
use super::{access, inline, objects, reindex};
use crate::value::{PRESENT, damaged, decode, get_long, last_number, scan_prefix};

mod other;

/// Something stored that does not follow from the manifests, or that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What is wrong.
    pub what: String,
    /// The key it is about.
    pub key: Vec<u8>,
    /// What is stored there.
    pub stored: Option<Vec<u8>>,
    /// What the manifests say should be.
    pub expected: Option<Vec<u8>>,
}

/// Tables that follow from the manifests and the delete queues.
const DERIVED: [Table; 11] = [
    Table::Names,
    Table::ObjectsOnOsd,
    Table::Buckets,
    Table::BucketCounts,
    Table::OsdBytes,
    Table::ObjectCount,
    Table::LogicalBytes,
    Table::StorageBytes,
    Table::InlineBytes,
    Table::FindingCount,
    Table::Queued,
];

/// Compares. Needs memory for the keys of the whole namespace: for tests and for an operator's check.
pub fn recount(store: &dyn KvRead, namespace: NamespaceId) -> Result<Vec<Difference>, KvError> {
    let mut differences = Vec::new();
    if store.get(&keys::header(namespace))?.is_none() {
        // On its way here, at most: rows come in the order of their keys.
        other::notes(store, namespace, &mut differences)?;
        return Ok(differences);
    }
    let mut expected: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut counters: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let mut referenced = BTreeSet::new();
    let pending: BTreeSet<_> = reindex::pending(store, namespace)?.into_iter().collect();
    let mut values = BTreeSet::new();
    for record in records(store, namespace)? {
        let manifest = &record.manifest;
        let id = manifest.object_id;
        let mut bucket = objects::bucket_in(store, namespace, manifest)?;
        if indexes::osds_of(manifest).iter().any(|osd| pending.contains(osd)) {
            // Put right in steps.
            bucket = record.bucket;
        }
        if bucket != record.bucket {
            differences.push(Difference {
                what: format!("object {id} is of bucket {bucket:?} and indexed as {:?}", record.bucket),
                key: keys::object(namespace, &id),
                stored: None,
                expected: None,
            });
        }
        let mut name_value = PRESENT.to_vec();
        name_value.extend_from_slice(id.as_bytes());
        if expected.insert(keys::name(namespace, &manifest.name), name_value).is_some() {
            differences.push(Difference {
                what: format!("two objects of the name {}", manifest.name),
                key: keys::name(namespace, &manifest.name),
                stored: None,
                expected: None,
            });
        }
        expected.insert(keys::object_in_bucket(namespace, &bucket, &id), PRESENT.to_vec());
        let mut stored_bytes = 0;
        for (osd, bytes) in indexes::bytes_per_osd(manifest) {
            expected.insert(keys::object_on_osd(namespace, osd, &id), PRESENT.to_vec());
            *counters.entry(keys::of_osd(namespace, Table::OsdBytes, osd)).or_default() += bytes;
            stored_bytes += bytes;
        }
        *counters.entry(keys::bucket_count(namespace, &bucket)).or_default() += 1;
        *counters.entry(keys::table(namespace, Table::ObjectCount)).or_default() += 1;
        *counters.entry(keys::table(namespace, Table::LogicalBytes)).or_default() += manifest.size;
        *counters.entry(keys::table(namespace, Table::StorageBytes)).or_default() += stored_bytes;
        referenced.extend(indexes::keys_of(manifest));
        if inline::is_inline(manifest) {
            values.insert(id);
        }
    }
    other::inline_values(store, namespace, &values, &mut counters, &mut differences)?;
    other::findings(store, namespace, &mut expected, &mut counters, &mut differences)?;
    queues(store, namespace, &referenced, &mut counters, &mut differences)?;
    // A counter at zero is not stored.
    let counters = counters.into_iter().filter(|(_, value)| *value > 0);
    expected.extend(counters.map(|(key, value)| (key, value.to_le_bytes().to_vec())));
    let mut stored = BTreeMap::new();
    for table in DERIVED.into_iter().chain([Table::FindingNames]) {
        stored.extend(scan_prefix(store, &keys::table(namespace, table), usize::MAX)?);
    }
    let all: BTreeSet<&Vec<u8>> = stored.keys().chain(expected.keys()).collect();
    for key in all {
        let (stored, expected) = (stored.get(key), expected.get(key));
        if stored != expected {
            differences.push(Difference {
                what: "an index or counter".to_owned(),
                key: key.clone(),
                stored: stored.cloned(),
                expected: expected.cloned(),
            });
        }
    }
    other::osds_and_epochs(store, namespace, &mut differences)?;
    other::notes(store, namespace, &mut differences)?;
    Ok(differences)
}

/// No manifest names what waits to be deleted; and how much of it there is of each object.
fn queues(
    store: &dyn KvRead,
    namespace: NamespaceId,
    referenced: &BTreeSet<(OsdId, FragmentKey)>,
    counters: &mut BTreeMap<Vec<u8>, u64>,
    differences: &mut Vec<Difference>,
) -> Result<(), KvError> {
    let queue = keys::table(namespace, Table::DeleteQueue);
    for (key, _) in scan_prefix(store, &queue, usize::MAX)? {
        let (osd, rest) = key
            .get(queue.len()..)
            .and_then(|rest| rest.split_at_checked(8))
            .ok_or_else(|| damaged("a short delete queue key"))?;
        let osd = OsdId::new(last_number(osd)?).map_err(damaged)?;
        let fragment = keys::parse_to_delete(rest)?;
        *counters.entry(keys::queued(namespace, &fragment.object)).or_default() += 1;
        if referenced.contains(&(osd, fragment)) {
            differences.push(Difference {
                what: "the delete queue names a fragment that a manifest names".to_owned(),
                stored: Some(PRESENT.to_vec()),
                key,
                expected: None,
            });
        }
    }
    Ok(())
}

/// Compares everything that a group keeps: every namespace that has rows, and the sessions. With each difference the
/// namespace that it is about.
pub fn recount_group(store: &dyn KvRead) -> Result<Vec<(Option<NamespaceId>, Difference)>, KvError> {
    let mut differences = Vec::new();
    for (key, stored, expected) in crate::session::recount(store)? {
        differences.push((
            None,
            Difference {
                what: "a counter of sessions".to_owned(),
                key,
                stored: Some(stored.to_le_bytes().to_vec()),
                expected: Some(expected.to_le_bytes().to_vec()),
            },
        ));
    }
    let mut namespaces = BTreeSet::new();
    for (key, _) in scan_prefix(store, keys::HEADERS, usize::MAX)? {
        namespaces.insert(NamespaceId::new(last_number(&key)?).map_err(damaged)?);
    }
    // Those with tables: from each to the next, without reading what is between.
    let mut from = keys::ALL.to_vec();
    let end = next_prefix(keys::ALL).ok_or_else(|| damaged("tables without an end"))?;
    while let Some((key, _)) =
        store.scan(Bound::Included(&from), Bound::Excluded(&end), false, 1)?.into_iter().next()
    {
        let id = key.get(keys::ALL.len()..keys::ALL.len() + 8).ok_or_else(|| damaged("a short key"))?;
        let namespace = NamespaceId::new(last_number(id)?).map_err(damaged)?;
        let prefix = keys::all_of(namespace);
        from = next_prefix(&prefix).ok_or_else(|| damaged("a namespace without an end"))?;
        let expected = namespaces.contains(&namespace)
            || store.get(&keys::dropped(namespace))?.is_some()
            || matches!(access::state(store, namespace)?.moving, Some(access::Moving::Incoming { .. }));
        if !expected {
            let what = "tables of a namespace that is not here, not coming and not being dropped".to_owned();
            let difference = Difference { what, key: prefix, stored: None, expected: None };
            differences.push((Some(namespace), difference));
        }
        namespaces.insert(namespace);
    }
    for namespace in namespaces {
        let found = recount(store, namespace)?;
        differences.extend(found.into_iter().map(|difference| (Some(namespace), difference)));
    }
    Ok(differences)
}

/// All objects, by id.
fn records(store: &dyn KvRead, namespace: NamespaceId) -> Result<Vec<ObjectRecord>, KvError> {
    let table = keys::table(namespace, Table::Objects);
    let mut ids = BTreeSet::new();
    for (key, _) in scan_prefix(store, &table, usize::MAX)? {
        let id = key.get(table.len()..table.len() + 32).ok_or_else(|| damaged("a short object key"))?;
        ids.insert(ObjectId::try_from(id).map_err(damaged)?);
    }
    ids.iter()
        .map(|id| {
            let bytes = get_long(store, &keys::object(namespace, id))?;
            decode(&bytes.ok_or_else(|| damaged(format!("object {id} lost its first piece")))?)
        })
        .collect()
}
