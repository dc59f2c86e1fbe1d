//! Recovery of a namespace whose group was lost (features §3.10): manifests that were put together from what OSDs hold come
//! back by id and highest version (of one version: most fragments), in any order and any number of times, with the same result.
//!
//! Nothing doubtful is restored: of two objects with one name neither is, and an object that may have been deleted is not.
//! They are listed apart, and an operator decides. While any is listed, the recovery cannot be finished, because
//! garbage collection would take their fragments. Fragments of lower versions are left alone; they are few and a scrub finds
//! them.

use std::collections::BTreeSet;

use alba_core::ids::{GcEpoch, NamespaceId, ObjectId, ObjectName, ObjectVersion, OsdId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Manifest;
use alba_core::range::Page;
use alba_core::wire::rpc::abm::OsdInfo;
use alba_core::wire::rpc::nsm::{
    Finding, FindingReason, Lifecycle, NsmError, NsmOutcome, Recovered, RecoveredObject, Resolution,
};

use super::access::{self, Want};
use super::indexes;
use super::keys::{self, Table};
use super::{Refused, checks, epochs, inline, objects, refuse};
use crate::txn::{KvTxn, counter};
use crate::value::{
    PRESENT, damaged, decode, delete_long, encode, get_long, last_number, load, put_long, save, scan_prefix,
};

pub(super) fn recover(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    found: &[RecoveredObject],
) -> Result<NsmOutcome, Refused> {
    let (_, mut state) = access::admit(txn, namespace, Want::Recover)?;
    let mut results = Vec::with_capacity(found.len());
    let mut floor = state.floor;
    for object in found {
        let result = match sound(&object.manifest) {
            Err(error) => Recovered::Refused(error),
            Ok(()) => {
                floor = floor.max(object.manifest.timestamp);
                one(txn, namespace, object)?
            }
        };
        results.push(result);
    }
    if floor != state.floor {
        // What is written later is later than everything recovered.
        state.floor = floor;
        access::save_state(txn, namespace, &state)?;
    }
    Ok(NsmOutcome::Recovered(results))
}

/// A manifest that describes an object that can be read. It need not be as the preset now wants it, nor safe.
fn sound(manifest: &Manifest) -> Result<(), NsmError> {
    if let Err(inconsistency) = manifest.check() {
        return Err(NsmError::InvalidUpdate(inconsistency.to_string()));
    }
    checks::readable(manifest)
}

/// The better manifest of an object has the higher rank: of one version the one that knows of more fragments, since an OSD that
/// was not asked before may be asked now.
fn rank(manifest: &Manifest) -> (ObjectVersion, usize) {
    let known = manifest.fragments().filter(|(_, _, fragment)| fragment.location.is_some());
    (manifest.version, known.count())
}

fn one(txn: &mut KvTxn<'_>, namespace: NamespaceId, object: &RecoveredObject) -> Result<Recovered, KvError> {
    let manifest = &object.manifest;
    let (id, name) = (&manifest.object_id, &manifest.name);
    let stored = indexes::object(txn, namespace, id)?.map(|record| record.manifest);
    let apart = finding(txn, namespace, id)?;
    let was_flagged = apart.as_ref().is_some_and(|f| f.reason == FindingReason::PossiblyDeleted);
    let possibly_deleted = object.possibly_deleted || was_flagged;
    let known = stored.as_ref().or(apart.as_ref().map(|finding| &finding.manifest));
    let newer = known.is_none_or(|known| rank(known) < rank(manifest));
    // A name is for ever: an object of another name under the same id is no version of this one. The first one stays.
    if known.is_some_and(|known| known.name != *name) {
        return Ok(Recovered::Refused(NsmError::NonUniqueObjectId));
    }
    if !newer && (was_flagged || !object.possibly_deleted) {
        return Ok(Recovered::Known);
    }
    // Discarded before.
    if objects::is_being_deleted(txn, namespace, manifest)? {
        return Ok(Recovered::Refused(NsmError::NonUniqueObjectId));
    }
    let newest = match known {
        Some(known) if !newer => known.clone(),
        _ => manifest.clone(),
    };
    take_out(txn, namespace, id)?;
    let rivals = rivals(txn, namespace, name)?;
    if !rivals.is_empty() {
        for rival in rivals {
            set_apart_stored(txn, namespace, &rival)?;
        }
        let reason = if possibly_deleted { FindingReason::PossiblyDeleted } else { FindingReason::Conflict };
        set_apart(txn, namespace, &Finding { reason, manifest: newest })?;
        return Ok(Recovered::Apart(reason));
    }
    if possibly_deleted {
        let reason = FindingReason::PossiblyDeleted;
        set_apart(txn, namespace, &Finding { reason, manifest: newest })?;
        return Ok(Recovered::Apart(reason));
    }
    store(txn, namespace, newest)?;
    Ok(Recovered::Stored)
}

fn store(txn: &mut KvTxn<'_>, namespace: NamespaceId, manifest: Manifest) -> Result<(), KvError> {
    let bucket = objects::bucket_of(txn, namespace, &manifest)?;
    indexes::insert(txn, namespace, &bucket, &manifest)
}

/// Takes what is known of an object out of wherever it is.
fn take_out(txn: &mut KvTxn<'_>, namespace: NamespaceId, id: &ObjectId) -> Result<(), KvError> {
    if let Some(record) = indexes::object(txn, namespace, id)? {
        indexes::remove(txn, namespace, &record)?;
        txn.delete(keys::name(namespace, &record.manifest.name));
    }
    if let Some(finding) = finding(txn, namespace, id)? {
        delete_long(txn, &keys::finding(namespace, id))?;
        txn.delete(keys::finding_name(namespace, &finding.manifest.name, Some(id)));
        txn.add(keys::table(namespace, Table::FindingCount), -1)?;
    }
    Ok(())
}

/// The other objects of a name, stored or apart.
fn rivals(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    name: &ObjectName,
) -> Result<Vec<ObjectId>, KvError> {
    let prefix = keys::finding_name(namespace, name, None);
    let mut rivals = Vec::new();
    for (key, _) in scan_prefix(store, &prefix, usize::MAX)? {
        let id = key.get(prefix.len()..).unwrap_or_default();
        rivals.push(ObjectId::try_from(id).map_err(damaged)?);
    }
    rivals.extend(indexes::id_of(store, namespace, name)?);
    Ok(rivals)
}

fn set_apart(txn: &mut KvTxn<'_>, namespace: NamespaceId, finding: &Finding) -> Result<(), KvError> {
    let id = &finding.manifest.object_id;
    put_long(txn, &keys::finding(namespace, id), &encode(finding)?)?;
    txn.put(keys::finding_name(namespace, &finding.manifest.name, Some(id)), PRESENT);
    txn.add(keys::table(namespace, Table::FindingCount), 1)
}

/// Sets a stored object apart that turned out to have a rival.
fn set_apart_stored(txn: &mut KvTxn<'_>, namespace: NamespaceId, id: &ObjectId) -> Result<(), KvError> {
    let Some(record) = indexes::object(txn, namespace, id)? else { return Ok(()) };
    take_out(txn, namespace, id)?;
    let finding = Finding { reason: FindingReason::Conflict, manifest: record.manifest };
    set_apart(txn, namespace, &finding)
}

fn finding(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    id: &ObjectId,
) -> Result<Option<Finding>, KvError> {
    get_long(store, &keys::finding(namespace, id))?.map(|bytes| decode(&bytes)).transpose()
}

pub(super) fn resolve(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    id: &ObjectId,
    resolution: Resolution,
) -> Result<NsmOutcome, Refused> {
    access::admit(txn, namespace, Want::Recover)?;
    let Some(finding) = finding(txn, namespace, id)? else {
        return refuse(NsmError::ObjectNotFound);
    };
    match resolution {
        Resolution::Restore => {
            let name = &finding.manifest.name;
            if indexes::id_of(txn, namespace, name)?.is_some() {
                return refuse(NsmError::OverwriteNotAllowed(name.clone()));
            }
            take_out(txn, namespace, id)?;
            store(txn, namespace, finding.manifest)?;
        }
        Resolution::Discard => {
            take_out(txn, namespace, id)?;
            indexes::queue(txn, namespace, id, indexes::keys_of(&finding.manifest))?;
        }
    }
    Ok(NsmOutcome::Done)
}

pub(super) fn finish(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    epoch: GcEpoch,
) -> Result<NsmOutcome, Refused> {
    let (_, mut state) = match access::admit(txn, namespace, Want::Recover) {
        // A repeat.
        Err(super::Fault::Refused(NsmError::NotRecovering(_))) => return Ok(NsmOutcome::Done),
        admitted => admitted?,
    };
    let left = counter(txn, &keys::table(namespace, Table::FindingCount))?;
    if left > 0 {
        return refuse(NsmError::InvalidUpdate(format!("{left} recovered objects wait for a decision")));
    }
    let old = epochs::get(txn, namespace)?;
    let only = epoch.max(old.newest);
    let epochs = epochs::Epochs { min: only, newest: only };
    save(txn, keys::table(namespace, Table::Epochs), &epochs)?;
    state.lifecycle = Lifecycle::Active;
    access::save_state(txn, namespace, &state)?;
    Ok(NsmOutcome::Done)
}

/// Does a fragment of this object wait to be deleted from one of these OSDs?
pub(crate) fn waits_for_deletion(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    object: &ObjectId,
    osds: &[OsdId],
) -> Result<bool, KvError> {
    for osd in osds {
        let mut prefix = keys::of_osd(namespace, Table::DeleteQueue, *osd);
        prefix.extend_from_slice(object.as_bytes());
        if !scan_prefix(store, &prefix, 1)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Objects, and the OSDs that may have notes of them.
pub(crate) type Noted<T> = (Vec<T>, Vec<OsdInfo>);

/// The objects that have these names now, and the OSDs that can take notes of them.
pub(crate) fn to_note(
    store: &dyn KvRead,
    namespace: NamespaceId,
    names: &BTreeSet<ObjectName>,
) -> Result<Noted<(ObjectId, ObjectName)>, KvError> {
    let mut objects = Vec::new();
    for name in names {
        objects.extend(indexes::id_of(store, namespace, name)?.map(|id| (id, name.clone())));
    }
    let osds = if objects.is_empty() { Vec::new() } else { note_takers(store, namespace)? };
    Ok((objects, osds))
}

/// The OSDs that can take notes about objects of a namespace.
pub(crate) fn note_takers(store: &dyn KvRead, namespace: NamespaceId) -> Result<Vec<OsdInfo>, KvError> {
    let mut osds = Vec::new();
    for (key, _) in scan_prefix(store, &keys::table(namespace, Table::ActiveOsds), usize::MAX)? {
        osds.extend(info_of(store, namespace, &key)?);
    }
    Ok(osds)
}

/// Those of the objects of which no fragment waits to be deleted, and the OSDs that may have notes of them.
pub(crate) fn without_keys_to_delete(
    store: &dyn KvRead,
    namespace: NamespaceId,
    objects: &BTreeSet<ObjectId>,
) -> Result<Noted<ObjectId>, KvError> {
    let (mut ids, mut osds) = (Vec::new(), Vec::new());
    for (key, _) in scan_prefix(store, &keys::table(namespace, Table::OsdInfos), usize::MAX)? {
        ids.push(OsdId::new(last_number(&key)?).map_err(damaged)?);
        osds.extend(info_of(store, namespace, &key)?);
    }
    let mut free = Vec::new();
    for object in objects {
        // One that is stored is not deleted, whatever was deleted of it.
        let stored = indexes::object(store, namespace, object)?.is_some();
        if !stored && !waits_for_deletion(store, namespace, object, &ids)? {
            free.push(*object);
        }
    }
    Ok((free, osds))
}

/// Of the OSD that a key is about.
fn info_of(store: &dyn KvRead, namespace: NamespaceId, key: &[u8]) -> Result<Option<OsdInfo>, KvError> {
    let osd = OsdId::new(last_number(key)?).map_err(damaged)?;
    load(store, &keys::of_osd(namespace, Table::OsdInfos, osd))
}

/// A page of what is listed apart.
pub(super) fn findings(
    store: &dyn KvRead,
    namespace: NamespaceId,
    after: Option<&ObjectId>,
    max: u32,
) -> Result<Page<Finding>, KvError> {
    let mut range = super::query::first_of(max);
    if let Some(after) = after {
        range = range.after(after.as_bytes());
    }
    let ids = super::query::ids_in_pieces(store, &keys::table(namespace, Table::Findings), &range)?;
    let mut budget = super::query::Budget::default();
    let mut items = Vec::new();
    for id in &ids.items {
        let finding = finding(store, namespace, id)?
            .ok_or_else(|| damaged(format!("finding {id} lost its first piece")))?;
        if !budget.take(&finding.manifest) {
            return Ok(Page { items, has_more: true });
        }
        items.push(finding);
    }
    debug_assert!(items.iter().all(|finding| !inline::is_inline(&finding.manifest)));
    Ok(Page { items, has_more: ids.has_more })
}
