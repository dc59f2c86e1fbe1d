//! The indexes and counters of objects. Adding and removing a record are each other's exact reverse; the truth is the
//! record, and [`super::recount`] makes all of this again from the records.

use std::collections::{BTreeMap, BTreeSet};

use alba_core::ids::{NamespaceId, NodeId, ObjectId, OsdId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Manifest;
use alba_core::policy::Bucket;
use alba_core::wire::rpc::abm::OsdInfo;
use alba_core::wire::rpc::nsm::FragmentKey;
use serde::{Deserialize, Serialize};

use super::keys::{self, Table};
use crate::txn::KvTxn;
use crate::value::{PRESENT, damaged, decode, delete_long, encode, get_long, load, put_long};

/// An object as it is stored: with the bucket it is indexed in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ObjectRecord {
    pub(super) bucket: Bucket,
    pub(super) manifest: Manifest,
}

/// The object of an id.
pub(super) fn object(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    id: &ObjectId,
) -> Result<Option<ObjectRecord>, KvError> {
    get_long(store, &keys::object(namespace, id))?.map(|bytes| decode(&bytes)).transpose()
}

/// Where the OSDs of a manifest stand, as far as the namespace knows them.
pub(super) fn nodes(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    osds: &BTreeSet<OsdId>,
) -> Result<BTreeMap<OsdId, NodeId>, KvError> {
    let mut nodes = BTreeMap::new();
    for osd in osds {
        if let Some(info) = load::<OsdInfo>(store, &keys::of_osd(namespace, Table::OsdInfos, *osd))? {
            nodes.insert(*osd, info.place.node().clone());
        }
    }
    Ok(nodes)
}

/// The OSDs that hold something of an object.
pub(super) fn osds_of(manifest: &Manifest) -> BTreeSet<OsdId> {
    manifest.fragments().filter_map(|(_, _, fragment)| fragment.location).collect()
}

/// Bytes per OSD.
pub(super) fn bytes_per_osd(manifest: &Manifest) -> BTreeMap<OsdId, u64> {
    let mut bytes: BTreeMap<OsdId, u64> = BTreeMap::new();
    for (_, _, fragment) in manifest.fragments() {
        if let Some(osd) = fragment.location {
            let sum = bytes.entry(osd).or_default();
            *sum = sum.saturating_add(u64::from(fragment.packed_len));
        }
    }
    bytes
}

fn signed(bytes: u64, sign: i64) -> Result<i64, KvError> {
    let bytes = i64::try_from(bytes).map_err(damaged)?;
    bytes.checked_mul(sign).ok_or_else(|| damaged("a size out of range"))
}

fn count(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    record: &ObjectRecord,
    sign: i64,
) -> Result<(), KvError> {
    let mut stored: u64 = 0;
    for (osd, bytes) in bytes_per_osd(&record.manifest) {
        stored = stored.saturating_add(bytes);
        txn.add(keys::of_osd(namespace, Table::OsdBytes, osd), signed(bytes, sign)?)?;
    }
    txn.add(keys::bucket_count(namespace, &record.bucket), sign)?;
    txn.add(keys::table(namespace, Table::ObjectCount), sign)?;
    txn.add(keys::table(namespace, Table::LogicalBytes), signed(record.manifest.size, sign)?)?;
    txn.add(keys::table(namespace, Table::StorageBytes), signed(stored, sign)?)
}

/// Stores a record with all that follows from it; the name points to it.
pub(super) fn insert(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    record: &ObjectRecord,
) -> Result<(), KvError> {
    let id = &record.manifest.object_id;
    put_long(txn, &keys::object(namespace, id), &encode(record)?)?;
    let mut value = PRESENT.to_vec();
    value.extend_from_slice(id.as_bytes());
    txn.put(keys::name(namespace, &record.manifest.name), value);
    txn.put(keys::object_in_bucket(namespace, &record.bucket, id), PRESENT);
    for osd in osds_of(&record.manifest) {
        txn.put(keys::object_on_osd(namespace, osd, id), PRESENT);
    }
    count(txn, namespace, record, 1)
}

/// Removes a record with all that follows from it, but its name.
pub(super) fn remove(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    record: &ObjectRecord,
) -> Result<(), KvError> {
    let id = &record.manifest.object_id;
    delete_long(txn, &keys::object(namespace, id))?;
    txn.delete(keys::object_in_bucket(namespace, &record.bucket, id));
    for osd in osds_of(&record.manifest) {
        txn.delete(keys::object_on_osd(namespace, osd, id));
    }
    count(txn, namespace, record, -1)
}

/// The keys of an object's fragments and where they are.
pub(super) fn keys_of(manifest: &Manifest) -> impl Iterator<Item = (OsdId, FragmentKey)> {
    manifest.fragments().filter_map(|(chunk, fragment, entry)| {
        let key = FragmentKey { object: manifest.object_id, chunk, fragment, version: entry.version };
        entry.location.map(|osd| (osd, key))
    })
}

/// No manifest names these fragments any more: the OSDs' queues do (features §2.11).
pub(super) fn queue_fragments(txn: &mut KvTxn<'_>, namespace: NamespaceId, manifest: &Manifest) {
    for (osd, key) in keys_of(manifest) {
        txn.put(keys::to_delete(namespace, osd, &key), PRESENT);
    }
}

/// The object id of a name's value.
pub(super) fn parse_name_value(value: &[u8]) -> Result<ObjectId, KvError> {
    match value.split_first() {
        Some((&crate::value::VERSION, id)) => ObjectId::try_from(id).map_err(damaged),
        _ => Err(damaged("a name of another format version")),
    }
}

/// The id of the object of a name.
pub(super) fn id_of(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    name: &alba_core::ids::ObjectName,
) -> Result<Option<ObjectId>, KvError> {
    store.get(&keys::name(namespace, name))?.map(|value| parse_name_value(&value)).transpose()
}

/// The object of a name.
pub(super) fn by_name(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    name: &alba_core::ids::ObjectName,
) -> Result<Option<ObjectRecord>, KvError> {
    match id_of(store, namespace, name)? {
        None => Ok(None),
        Some(id) => match object(store, namespace, &id)? {
            Some(record) => Ok(Some(record)),
            None => Err(damaged(format!("object {id} has a name and no manifest"))),
        },
    }
}
