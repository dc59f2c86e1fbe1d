//! Setting where the fragments of an object are: repair and rebalancing (features §2.12, invariant 2).

use std::collections::BTreeSet;

use alba_core::ids::{GcEpoch, NamespaceId, ObjectId, ObjectVersion};
use alba_core::manifest::{Inconsistency, Manifest};
use alba_core::preset::Preset;
use alba_core::wire::rpc::nsm::{FragmentKey, FragmentUpdate, NsmError, NsmOutcome};

use super::access::{self, Want};
use super::indexes;
use super::objects::{bucket_of, check_linked};
use super::{Refused, checks, epochs, refuse};
use crate::model::Fault;
use crate::txn::KvTxn;

/// The keys that go out of use, by OSD, and the manifest after the update.
struct Changed {
    manifest: Manifest,
    replaced: Vec<(alba_core::ids::OsdId, FragmentKey)>,
    new: BTreeSet<alba_core::ids::OsdId>,
}

pub(super) fn apply(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    object: &ObjectId,
    version: ObjectVersion,
    fragments: &[FragmentUpdate],
    epoch: GcEpoch,
) -> Result<NsmOutcome, Refused> {
    let (header, _) = access::admit(txn, namespace, Want::Maintain)?;
    let Some(old) = indexes::object(txn, namespace, object)? else {
        return refuse(NsmError::ObjectNotFound);
    };
    if old.manifest.version != version {
        return refuse(NsmError::InvalidVersion(old.manifest.version));
    }
    let changed = change(&old.manifest, fragments, &header.preset).map_err(Fault::Refused)?;
    checks::spread(&changed.manifest).map_err(Fault::Refused)?;
    epochs::common(txn, namespace)?.check(epoch).map_err(Fault::Refused)?;
    let only_removals = changed.new.is_empty();
    check_linked(txn, namespace, changed.new)?;
    let bucket = bucket_of(txn, namespace, &changed.manifest)?;
    // What only takes fragments away tells of a loss; refusing to hear of it would not undo it.
    if !only_removals {
        checks::satisfies(&bucket, &header.preset).map_err(Fault::Refused)?;
    }
    indexes::remove(txn, namespace, &old)?;
    indexes::queue(txn, namespace, object, changed.replaced)?;
    indexes::insert(txn, namespace, &bucket, &changed.manifest)?;
    Ok(NsmOutcome::Updated(Box::new(changed.manifest)))
}

fn change(old: &Manifest, fragments: &[FragmentUpdate], preset: &Preset) -> Result<Changed, NsmError> {
    let impossible = |reason: String| Err(NsmError::InvalidUpdate(reason));
    if fragments.is_empty() {
        return impossible("no fragments".to_owned());
    }
    let Some(version) = old.version.0.checked_add(1).map(ObjectVersion) else {
        return impossible("the versions of this object are used up".to_owned());
    };
    let mut manifest = Manifest { version, ..old.clone() };
    let mut seen = BTreeSet::new();
    let mut replaced = Vec::new();
    let mut new = BTreeSet::new();
    for update in fragments {
        let FragmentUpdate { chunk, fragment, osd, packed, ctr } = update;
        if !seen.insert((*chunk, *fragment)) {
            return impossible(format!("fragment {fragment} of chunk {chunk} comes twice"));
        }
        let entry = manifest.chunks.get_mut(chunk.index());
        let Some(entry) = entry.and_then(|chunk| chunk.fragments.get_mut(fragment.index())) else {
            return impossible(format!("there is no fragment {fragment} of chunk {chunk}"));
        };
        if let Some(at) = entry.location {
            let key = FragmentKey {
                object: old.object_id,
                chunk: *chunk,
                fragment: *fragment,
                version: entry.version,
            };
            replaced.push((at, key));
        }
        entry.location = *osd;
        match osd {
            Some(osd) => {
                new.insert(*osd);
                entry.version = version;
                if let Some((len, checksum)) = packed {
                    if checksum.algorithm() != preset.fragment_checksum {
                        let name = preset.fragment_checksum.name();
                        return Err(NsmError::PresetViolated(format!("fragment checksums must be {name}")));
                    }
                    entry.packed_len = *len;
                    entry.checksum = *checksum;
                }
                if ctr.is_some() {
                    entry.ctr = *ctr;
                }
            }
            None if packed.is_some() || ctr.is_some() => {
                return impossible(format!("fragment {fragment} of chunk {chunk} has bytes and no place"));
            }
            None => {}
        }
    }
    match manifest.check() {
        // An OSD twice in a chunk has an answer of its own: `spread`.
        Ok(()) | Err(Inconsistency::OsdTwice { .. }) => Ok(Changed { manifest, replaced, new }),
        Err(inconsistency) => impossible(inconsistency.to_string()),
    }
}
