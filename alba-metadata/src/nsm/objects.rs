//! Changes of single objects.

use alba_core::ids::{
    ChunkIndex, FragmentIndex, GcEpoch, NamespaceId, ObjectId, ObjectName, ObjectVersion, OsdId,
};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Manifest;
use alba_core::policy::Bucket;
use alba_core::wire::rpc::abm::OsdInfo;
use alba_core::wire::rpc::nsm::{FragmentKey, NsmError, NsmOutcome};

use super::access::{self, Want};
use super::indexes::{self, ObjectRecord};
use super::keys::Table;
use super::{Refused, checks, epochs, inline, keys, refuse};
use crate::model::Fault;
use crate::txn::KvTxn;
use crate::value::decode;

/// Do all of these OSDs take new fragments?
pub(super) fn check_linked(
    txn: &KvTxn<'_>,
    namespace: NamespaceId,
    osds: impl IntoIterator<Item = OsdId>,
) -> Result<(), Refused> {
    for osd in osds {
        if txn.common(keys::about_osd(namespace, Table::ActiveOsds, osd).as_ref(), |_| Ok(()))?.is_none() {
            return refuse(NsmError::InactiveOsd(osd));
        }
    }
    Ok(())
}

/// The bucket a manifest belongs in.
pub(super) fn bucket_of(
    txn: &KvTxn<'_>,
    namespace: NamespaceId,
    manifest: &Manifest,
) -> Result<Bucket, KvError> {
    if inline::is_inline(manifest) {
        return inline::bucket();
    }
    let mut nodes = Vec::new();
    for osd in indexes::osds_of(manifest) {
        let key = keys::about_osd(namespace, Table::OsdInfos, osd);
        if let Some(info) = txn.common(key.as_ref(), decode::<OsdInfo>)? {
            nodes.push((osd, info));
        }
    }
    // In the order of the OSDs.
    let info = |osd: OsdId| nodes.binary_search_by_key(&osd, |(osd, _)| *osd).ok().and_then(|n| nodes.get(n));
    Ok(manifest.bucket(|osd| info(osd).map(|(_, info)| info.place.node())))
}

/// The same, of a store as it is.
pub(super) fn bucket_in(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    manifest: &Manifest,
) -> Result<Bucket, KvError> {
    if inline::is_inline(manifest) {
        return inline::bucket();
    }
    let nodes = indexes::nodes(store, namespace, &indexes::osds_of(manifest))?;
    Ok(manifest.bucket(|osd| nodes.get(&osd)))
}

/// Takes an object out; its fragments become deletable in the same command.
pub(super) fn replace(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    record: &ObjectRecord,
) -> Result<(), KvError> {
    indexes::remove(txn, namespace, record)?;
    let manifest = &record.manifest;
    indexes::queue(txn, namespace, &manifest.object_id, indexes::keys_of(manifest))?;
    if inline::is_inline(&record.manifest) {
        inline::remove(txn, namespace, &record.manifest.object_id)?;
    }
    Ok(())
}

/// Does a key of this manifest wait to be deleted? Then the object id was used before, and its fragments are about to go:
/// to store it again would be to lose it.
pub(super) fn is_being_deleted(
    txn: &KvTxn<'_>,
    namespace: NamespaceId,
    manifest: &Manifest,
) -> Result<bool, KvError> {
    // So nearly always: one look instead of one for each fragment.
    if txn.get(&keys::queued(namespace, &manifest.object_id))?.is_none() {
        return Ok(false);
    }
    for (osd, key) in indexes::keys_of(manifest) {
        if txn.get(&keys::to_delete(namespace, osd, &key))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Keys dropped from a delete queue per command.
const CLEANUP_STEP: usize = 1000;

/// These keys are gone from the OSD.
pub(super) fn mark_deleted(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    osd: OsdId,
    keys: &[FragmentKey],
) -> Result<NsmOutcome, Refused> {
    access::admit(txn, namespace, Want::Maintain)?;
    for key in keys {
        // A repeat writes nothing.
        indexes::unqueue(txn, namespace, osd, key)?;
    }
    Ok(NsmOutcome::Done)
}

/// Forgets the delete queue of an OSD that is gone for good, in steps.
pub(super) fn clean_up_osd(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    osd: OsdId,
) -> Result<NsmOutcome, Refused> {
    access::admit(txn, namespace, Want::Maintain)?;
    let queue = keys::of_osd(namespace, Table::DeleteQueue, osd);
    let found = crate::value::scan_prefix(txn, &queue, CLEANUP_STEP + 1)?;
    let more = found.len() > CLEANUP_STEP;
    for (key, _) in found.iter().take(CLEANUP_STEP) {
        let key = keys::parse_to_delete(key.get(queue.len()..).unwrap_or_default())?;
        indexes::unqueue(txn, namespace, osd, &key)?;
    }
    Ok(NsmOutcome::Cleaned { more })
}

/// Removes a name; the object that had it.
pub(super) fn delete(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    name: &ObjectName,
    must_exist: bool,
) -> Result<Option<ObjectId>, Refused> {
    match indexes::by_name(txn, namespace, name)? {
        Some(record) => {
            replace(txn, namespace, &record)?;
            txn.delete(keys::name(namespace, name));
            Ok(Some(record.manifest.object_id))
        }
        None if must_exist => refuse(NsmError::ObjectNotFound),
        None => Ok(None),
    }
}

/// Fills holes with fragments that arrived after the commit (invariant 2): the stored version must be 0 and becomes
/// 1, the fragments keep version 0.
pub(super) fn add_late_fragments(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    object: &ObjectId,
    fragments: &[(ChunkIndex, FragmentIndex, OsdId)],
    epoch: GcEpoch,
) -> Result<NsmOutcome, Refused> {
    let (header, _) = access::admit(txn, namespace, Want::Write)?;
    let Some(old) = indexes::object(txn, namespace, object)? else {
        return refuse(NsmError::ObjectNotFound);
    };
    let version = old.manifest.version;
    if version != ObjectVersion(0) {
        return refuse(NsmError::InvalidVersion(version));
    }
    let mut manifest = old.manifest.clone();
    manifest.version = ObjectVersion(1);
    for (chunk, fragment, osd) in fragments {
        let chunk = manifest.chunks.get_mut(chunk.index());
        match chunk.and_then(|chunk| chunk.fragments.get_mut(fragment.index())) {
            Some(entry) if entry.location.is_none() => entry.location = Some(*osd),
            // No hole there: the caller works from another manifest than the stored one.
            _ => return refuse(NsmError::InvalidVersion(version)),
        }
    }
    checks::spread(&manifest).map_err(Fault::Refused)?;
    epochs::common(txn, namespace)?.check(epoch).map_err(Fault::Refused)?;
    let mut osds: Vec<OsdId> = fragments.iter().map(|(_, _, osd)| *osd).collect();
    // The first in this order that is not linked is the answer.
    osds.sort_unstable();
    check_linked(txn, namespace, osds)?;
    let bucket = bucket_of(txn, namespace, &manifest)?;
    checks::satisfies(&bucket, &header.preset).map_err(Fault::Refused)?;
    indexes::remove(txn, namespace, &old)?;
    indexes::insert(txn, namespace, &bucket, &manifest)?;
    Ok(NsmOutcome::Updated(Box::new(manifest)))
}
