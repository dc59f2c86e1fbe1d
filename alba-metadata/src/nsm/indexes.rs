//! The indexes and counters of objects. Adding and removing a record are each other's exact reverse; the truth is the
//! record, and [`super::recount`] makes all of this again from the records.

use std::collections::BTreeMap;

use alba_core::ids::{NamespaceId, NodeId, ObjectId, OsdId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::{Fragment, Manifest};
use alba_core::policy::Bucket;
use alba_core::wire::rpc::abm::OsdInfo;
use alba_core::wire::rpc::nsm::FragmentKey;
use serde::{Deserialize, Serialize};

use super::keys::{self, Table};
use crate::txn::{KvTxn, counter};
use crate::value::{PRESENT, damaged, decode, delete_long, encode_about, get_long, load, put_long};

/// An object as it is stored: with the bucket it is indexed in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ObjectRecord {
    pub(super) bucket: Bucket,
    pub(super) manifest: Manifest,
}

/// The same, of a manifest that is somewhere else: written alike.
#[derive(Serialize)]
struct RecordOf<'a> {
    bucket: &'a Bucket,
    manifest: &'a Manifest,
}

/// About how long the record of a manifest is, in bytes: most fragments have a checksum of 32 bytes.
fn about(manifest: &Manifest) -> usize {
    128 + manifest.name.as_bytes().len() + 44 * manifest.fragments().count()
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
    osds: &[OsdId],
) -> Result<BTreeMap<OsdId, NodeId>, KvError> {
    let mut nodes = BTreeMap::new();
    for osd in osds {
        if let Some(info) = load::<OsdInfo>(store, &keys::of_osd(namespace, Table::OsdInfos, *osd))? {
            nodes.insert(*osd, info.place.node().clone());
        }
    }
    Ok(nodes)
}

/// The OSDs that hold something of an object, each once, in order.
pub(super) fn osds_of(manifest: &Manifest) -> Vec<OsdId> {
    let mut osds: Vec<OsdId> =
        manifest.fragments().filter_map(|(_, _, fragment)| fragment.location).collect();
    osds.sort_unstable();
    osds.dedup();
    osds
}

/// Bytes per OSD, in order.
pub(super) fn bytes_per_osd(manifest: &Manifest) -> Vec<(OsdId, u64)> {
    let of = |fragment: &Fragment| Some((fragment.location?, u64::from(fragment.packed_len)));
    let mut bytes: Vec<(OsdId, u64)> =
        manifest.fragments().filter_map(|(_, _, fragment)| of(fragment)).collect();
    bytes.sort_unstable_by_key(|(osd, _)| *osd);
    bytes.dedup_by(|next, sum| {
        let same = next.0 == sum.0;
        if same {
            sum.1 = sum.1.saturating_add(next.1);
        }
        same
    });
    bytes
}

fn signed(bytes: u64, sign: i64) -> Result<i64, KvError> {
    let bytes = i64::try_from(bytes).map_err(damaged)?;
    bytes.checked_mul(sign).ok_or_else(|| damaged("a size out of range"))
}

fn count(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    bucket: &Bucket,
    manifest: &Manifest,
    sign: i64,
) -> Result<(), KvError> {
    let mut stored: u64 = 0;
    for (osd, bytes) in bytes_per_osd(manifest) {
        stored = stored.saturating_add(bytes);
        txn.add(keys::about_osd(namespace, Table::OsdBytes, osd), signed(bytes, sign)?)?;
    }
    txn.add(keys::bucket_count(namespace, bucket), sign)?;
    txn.add(keys::table(namespace, Table::ObjectCount), sign)?;
    txn.add(keys::table(namespace, Table::LogicalBytes), signed(manifest.size, sign)?)?;
    txn.add(keys::table(namespace, Table::StorageBytes), signed(stored, sign)?)
}

/// Stores a manifest with all that follows from it; the name points to it.
pub(super) fn insert(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    bucket: &Bucket,
    manifest: &Manifest,
) -> Result<(), KvError> {
    let id = &manifest.object_id;
    let record = encode_about(&RecordOf { bucket, manifest }, about(manifest))?;
    put_long(txn, &keys::object(namespace, id), &record)?;
    txn.put(keys::name(namespace, &manifest.name), [&PRESENT[..], id.as_bytes()].concat());
    txn.put(keys::object_in_bucket(namespace, bucket, id), PRESENT);
    for osd in osds_of(manifest) {
        txn.put(keys::object_on_osd(namespace, osd, id), PRESENT);
    }
    count(txn, namespace, bucket, manifest, 1)
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
    count(txn, namespace, &record.bucket, &record.manifest, -1)
}

/// The keys of an object's fragments and where they are.
pub(super) fn keys_of(manifest: &Manifest) -> impl Iterator<Item = (OsdId, FragmentKey)> {
    manifest.fragments().filter_map(|(chunk, fragment, entry)| {
        let key = FragmentKey { object: manifest.object_id, chunk, fragment, version: entry.version };
        entry.location.map(|osd| (osd, key))
    })
}

/// No manifest names these fragments any more: the OSDs' queues do (features §2.11). All of one object.
pub(super) fn queue(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    object: &ObjectId,
    fragments: impl IntoIterator<Item = (OsdId, FragmentKey)>,
) -> Result<(), KvError> {
    let queued = keys::queued(namespace, object);
    let before = counter(txn, &queued)?;
    let mut added = 0;
    for (osd, key) in fragments {
        let key = keys::to_delete(namespace, osd, &key);
        // Without a count there is nothing of the object in any queue, and no need to look.
        if before == 0 || txn.get(&key)?.is_none() {
            txn.put(key, PRESENT);
            added += 1;
        }
    }
    if added > 0 {
        txn.add(queued, added)?;
    }
    Ok(())
}

/// Takes a key out of the queue of an OSD; one that is not there is no change.
pub(super) fn unqueue(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    osd: OsdId,
    key: &FragmentKey,
) -> Result<(), KvError> {
    let row = keys::to_delete(namespace, osd, key);
    if txn.get(&row)?.is_some() {
        txn.delete(row);
        txn.add(keys::queued(namespace, &key.object), -1)?;
    }
    Ok(())
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
