//! Sequences: asserts against the state before, then puts and deletes, all or none (features §2.9). A single put or
//! delete is a sequence of one.

use std::collections::BTreeMap;

use alba_core::ids::{GcEpoch, NamespaceId, ObjectId, ObjectName};
use alba_core::manifest::{Manifest, Timestamp};
use alba_core::wire::rpc::nsm::{InlineValue, NsmError, ObjectAssert, ObjectUpdate, Overwrite};

use super::access;
use super::{Header, MAX_COMMAND, Refused, indexes, inline, objects, refuse};
use crate::model::Fault;
use crate::txn::KvTxn;
use crate::value::{damaged, encoded_len};

/// What a sequence stored, and what its deletions removed, each with the position of its update.
type Done = (Vec<Manifest>, Vec<(u32, ObjectId)>);

pub(super) fn apply(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    namespace: NamespaceId,
    asserts: &[ObjectAssert],
    updates: &[ObjectUpdate],
    epoch: GcEpoch,
) -> Result<Done, Refused> {
    // Exactly, where it comes near: most are far below.
    if at_most(asserts, updates) > MAX_COMMAND {
        let len = encoded_len(&(namespace, asserts, updates, epoch))?;
        if len > MAX_COMMAND {
            return refuse(NsmError::TooLarge(format!("a sequence of {len} bytes; at most {MAX_COMMAND}")));
        }
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
    let (mut stored, mut deleted) = (Vec::new(), Vec::new());
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
                let gone = objects::delete(txn, namespace, name, *must_exist)?;
                // A sequence is no longer than a request.
                let position = u32::try_from(position).map_err(damaged)?;
                deleted.extend(gone.map(|object| (position, object)));
            }
            ObjectUpdate::Delete { .. } => {}
        }
    }
    Ok((stored, deleted))
}

/// A sequence is encoded in no more bytes than this.
fn at_most(asserts: &[ObjectAssert], updates: &[ObjectUpdate]) -> usize {
    // Of an assert or update beside name, value, chunks and fragments: numbers of at most 10 bytes, ids and checksums of at most
    // 33, an encryption of 34.
    const EACH: usize = 256;
    const CHUNK: usize = 20;
    // Place 11, version 5, checksum 33, length 5, counter block 17.
    const FRAGMENT: usize = 71;
    let manifest = |manifest: &Manifest| {
        let chunks = manifest.chunks.iter().map(|chunk| CHUNK + FRAGMENT * chunk.fragments.len());
        manifest.name.as_bytes().len() + chunks.sum::<usize>()
    };
    let update = |update: &ObjectUpdate| match update {
        ObjectUpdate::Put { manifest: stored, .. } => manifest(stored),
        ObjectUpdate::PutInline { manifest: stored, value, .. } => manifest(stored) + value.packed.len(),
        ObjectUpdate::Delete { name, .. } => name.as_bytes().len(),
    };
    let assert = |assert: &ObjectAssert| match assert {
        ObjectAssert::Exists(name)
        | ObjectAssert::DoesNotExist(name)
        | ObjectAssert::HasId(name, _)
        | ObjectAssert::HasChecksum(name, _) => name.as_bytes().len(),
    };
    let updates = updates.iter().map(|one| EACH + update(one)).sum::<usize>();
    EACH + updates + asserts.iter().map(|one| EACH + assert(one)).sum::<usize>()
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
    indexes::insert(txn, namespace, &bucket, manifest)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use alba_core::checksum::Checksum;
    use alba_core::ids::{ObjectId, OsdId};
    use alba_core::manifest::{CipherMode, EncryptInfo};
    use alba_core::wire::rpc::nsm::InlineValue;

    use super::*;
    use crate::nsm::fixtures::{SPREAD, manifest, name};

    #[test]
    fn the_estimate_is_never_below_the_length() {
        let long = "x".repeat(4096);
        let mut largest = manifest(&long, 1, &[SPREAD; 40]);
        largest.size = u64::MAX;
        largest.checksum = Checksum::Blake3([7; 32]);
        largest.encryption = EncryptInfo::Aes256 { mode: CipherMode::Ctr, key_sha256: [255; 32] };
        largest.version.0 = u32::MAX;
        largest.max_disks_per_node = u32::MAX;
        largest.timestamp = Timestamp(u64::MAX);
        for chunk in &mut largest.chunks {
            chunk.size = u32::MAX;
            for fragment in &mut chunk.fragments {
                fragment.location = Some(OsdId::new(i64::MAX.unsigned_abs()).unwrap());
                fragment.version.0 = u32::MAX;
                fragment.checksum = Checksum::Blake3([255; 32]);
                fragment.packed_len = u32::MAX;
                fragment.ctr = Some([255; 16]);
            }
        }
        let overwrite = Overwrite::PreviousObjectId(ObjectId::new([255; 32]));
        let value = InlineValue {
            packed: vec![255; 5000],
            checksum: Checksum::Blake3([255; 32]),
            ctr: Some([255; 16]),
        };
        let put = ObjectUpdate::Put { manifest: Box::new(largest.clone()), overwrite };
        let inline = ObjectUpdate::PutInline { manifest: Box::new(largest), value, overwrite };
        let delete = ObjectUpdate::Delete { name: name(&long), must_exist: true };
        let asserts = [
            ObjectAssert::HasChecksum(name(&long), Checksum::Blake3([255; 32])),
            ObjectAssert::HasId(name(&long), ObjectId::new([255; 32])),
        ];
        let namespace = NamespaceId::new(i64::MAX.unsigned_abs()).unwrap();
        let epoch = GcEpoch::new(i64::MAX.unsigned_abs()).unwrap();
        for updates in
            [vec![], vec![put.clone()], vec![inline.clone()], vec![delete.clone()], vec![put, inline, delete]]
        {
            for asserts in [&asserts[..], &[]] {
                let len = encoded_len(&(namespace, asserts, &updates[..], epoch)).unwrap();
                let most = at_most(asserts, &updates);
                assert!(most >= len, "{len} bytes, {most} estimated");
            }
        }
    }
}
