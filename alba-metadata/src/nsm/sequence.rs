//! Sequences: asserts against the state before, then puts and deletes, all or none (features §2.9). A single put or
//! delete is a sequence of one.

use std::collections::BTreeMap;

use alba_core::ids::{GcEpoch, NamespaceId, ObjectName};
use alba_core::manifest::{Manifest, Timestamp};
use alba_core::wire::rpc::nsm::{InlineValue, NsmError, NsmOutcome, ObjectAssert, ObjectUpdate, Overwrite};

use super::access;
use super::{Header, MAX_COMMAND, Refused, indexes, inline, objects, refuse};
use crate::model::Fault;
use crate::txn::KvTxn;
use crate::value::encoded_len;

pub(super) fn apply(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    namespace: NamespaceId,
    asserts: &[ObjectAssert],
    updates: &[ObjectUpdate],
    epoch: GcEpoch,
) -> Result<NsmOutcome, Refused> {
    let len = encoded_len(&(namespace, asserts, updates, epoch))?;
    if len > MAX_COMMAND {
        return refuse(NsmError::TooLarge(format!("a sequence of {len} bytes; at most {MAX_COMMAND}")));
    }
    let (header, state) = access::admit_write(txn, namespace)?;
    for assert in asserts {
        check(txn, namespace, assert)?;
    }
    let mut last: BTreeMap<&ObjectName, usize> = BTreeMap::new();
    for (position, update) in updates.iter().enumerate() {
        last.insert(name_of(update), position);
    }
    let puts = |update: &ObjectUpdate| !matches!(update, ObjectUpdate::Delete { .. });
    let timestamp = if updates.iter().any(puts) { access::stamp(txn, namespace, &state, now)? } else { now };
    let target = Target { namespace, header: &header, epoch };
    let mut stored = Vec::new();
    for (position, update) in updates.iter().enumerate() {
        let counts = last.get(name_of(update)) == Some(&position);
        match update {
            ObjectUpdate::Put { manifest, overwrite } => {
                let manifest = Manifest { timestamp, ..Manifest::clone(manifest) };
                if counts {
                    put(txn, &target, &manifest, None, *overwrite)?;
                }
                stored.push(manifest);
            }
            ObjectUpdate::PutInline { manifest, value, overwrite } => {
                let manifest = Manifest { timestamp, ..Manifest::clone(manifest) };
                if counts {
                    put(txn, &target, &manifest, Some(value), *overwrite)?;
                }
                stored.push(manifest);
            }
            ObjectUpdate::Delete { name, must_exist } if counts => {
                objects::delete(txn, namespace, name, *must_exist)?;
            }
            ObjectUpdate::Delete { .. } => {}
        }
    }
    Ok(NsmOutcome::Stored(stored))
}

fn name_of(update: &ObjectUpdate) -> &ObjectName {
    match update {
        ObjectUpdate::Put { manifest, .. } | ObjectUpdate::PutInline { manifest, .. } => &manifest.name,
        ObjectUpdate::Delete { name, .. } => name,
    }
}

fn check(txn: &KvTxn<'_>, namespace: NamespaceId, assert: &ObjectAssert) -> Result<(), Refused> {
    let (name, holds) = match assert {
        ObjectAssert::Exists(name) => (name, indexes::id_of(txn, namespace, name)?.is_some()),
        ObjectAssert::DoesNotExist(name) => (name, indexes::id_of(txn, namespace, name)?.is_none()),
        ObjectAssert::HasId(name, id) => (name, indexes::id_of(txn, namespace, name)? == Some(*id)),
        ObjectAssert::HasChecksum(name, checksum) => {
            let object = indexes::by_name(txn, namespace, name)?;
            (name, object.is_some_and(|record| record.manifest.checksum == *checksum))
        }
    };
    if holds { Ok(()) } else { refuse(NsmError::AssertFailed(name.clone())) }
}

/// What the puts of a sequence have in common.
struct Target<'a> {
    namespace: NamespaceId,
    header: &'a Header,
    epoch: GcEpoch,
}

/// The checks are in the order of features §2.6; the first that fails is the answer.
fn put(
    txn: &mut KvTxn<'_>,
    target: &Target<'_>,
    manifest: &Manifest,
    value: Option<&InlineValue>,
    overwrite: Overwrite,
) -> Result<(), Refused> {
    let Target { namespace, header, epoch } = *target;
    if let Some(value) = value {
        inline::conforms(manifest, value, &header.preset).map_err(Fault::Refused)?;
    }
    super::checks::conforms(manifest, &header.preset, value.is_some()).map_err(Fault::Refused)?;
    if indexes::object(txn, namespace, &manifest.object_id)?.is_some()
        || objects::is_being_deleted(txn, namespace, manifest)?
    {
        return refuse(NsmError::NonUniqueObjectId);
    }
    super::checks::spread(manifest).map_err(Fault::Refused)?;
    let old = indexes::by_name(txn, namespace, &manifest.name)?;
    let allowed = match (overwrite, &old) {
        (Overwrite::Unconditionally, _)
        | (Overwrite::NoPrevious, None)
        | (Overwrite::AnyPrevious, Some(_)) => true,
        (Overwrite::PreviousObjectId(id), Some(old)) => old.manifest.object_id == id,
        _ => false,
    };
    if !allowed {
        return refuse(NsmError::OverwriteNotAllowed(manifest.name.clone()));
    }
    super::epochs::common(txn, namespace)?.check(epoch).map_err(Fault::Refused)?;
    // The time stamp needs no check: it is the command's own, later than that of every command before.
    objects::check_linked(txn, namespace, indexes::osds_of(manifest))?;
    let bucket = objects::bucket_of(txn, namespace, manifest)?;
    if value.is_none() {
        super::checks::satisfies(&bucket, &header.preset).map_err(Fault::Refused)?;
    }
    if let Some(old) = old {
        objects::replace(txn, namespace, &old)?;
    }
    if let Some(value) = value {
        inline::insert(txn, namespace, &manifest.object_id, value)?;
    }
    indexes::insert(txn, namespace, &indexes::ObjectRecord { bucket, manifest: manifest.clone() })?;
    Ok(())
}
