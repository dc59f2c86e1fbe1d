//! Small objects that live in the metadata (architecture §5). Their manifests have no chunks, their bytes are in a table of their
//! own, and they are indexed in a bucket of their own that no policy of a preset can have.

use alba_core::ids::{NamespaceId, ObjectId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Manifest;
use alba_core::policy::{Bucket, CodeShape};
use alba_core::preset::{FragmentEncryption, Preset};
use alba_core::wire::rpc::nsm::{InlineValue, MAX_INLINE, NsmError};

use super::keys::{self, Table};
use crate::txn::KvTxn;
use crate::value::{damaged, load, save};

/// Their bucket: one piece, as safe as the group. No object of fragments has so many.
pub(super) fn bucket() -> Result<Bucket, KvError> {
    let shape = CodeShape::new(1, 0).map_err(damaged)?;
    Ok(Bucket { shape, fragments: u32::MAX, max_per_node: 0 })
}

pub(super) fn is_inline(manifest: &Manifest) -> bool {
    manifest.chunks.is_empty()
}

/// May this object live here?
pub(super) fn conforms(manifest: &Manifest, value: &InlineValue, preset: &Preset) -> Result<(), NsmError> {
    let limit = preset.inline_limit;
    let violated = |reason: String| Err(NsmError::PresetViolated(reason));
    if limit == 0 {
        return violated("objects may not live in the metadata of this namespace".to_owned());
    }
    if !is_inline(manifest) {
        return violated("an object in the metadata has no chunks".to_owned());
    }
    if manifest.size > u64::from(limit) {
        return violated(format!("{} bytes; at most {limit} may live in the metadata", manifest.size));
    }
    if value.packed.len() > MAX_INLINE {
        return violated(format!("{} packed bytes; at most {MAX_INLINE}", value.packed.len()));
    }
    if !value.checksum.matches(&value.packed) {
        return violated("the checksum is not that of the packed bytes".to_owned());
    }
    if value.checksum.algorithm() != preset.fragment_checksum {
        return violated(format!("the packed bytes' checksum must be {}", preset.fragment_checksum.name()));
    }
    if value.ctr.is_some() != matches!(preset.fragment_encryption, FragmentEncryption::Aes256Ctr { .. }) {
        return violated("a counter block goes with encryption, and only with it".to_owned());
    }
    Ok(())
}

pub(super) fn value(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    id: &ObjectId,
) -> Result<Option<InlineValue>, KvError> {
    load(store, &keys::inline_value(namespace, id))
}

fn len(value: &InlineValue) -> Result<i64, KvError> {
    i64::try_from(value.packed.len()).map_err(damaged)
}

pub(super) fn insert(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    id: &ObjectId,
    value: &InlineValue,
) -> Result<(), KvError> {
    save(txn, keys::inline_value(namespace, id), value)?;
    txn.add(keys::table(namespace, Table::InlineBytes), len(value)?)
}

pub(super) fn remove(txn: &mut KvTxn<'_>, namespace: NamespaceId, id: &ObjectId) -> Result<(), KvError> {
    let value = value(txn, namespace, id)?;
    let value = value.ok_or_else(|| damaged(format!("object {id} lost its bytes")))?;
    txn.delete(keys::inline_value(namespace, id));
    txn.add(keys::table(namespace, Table::InlineBytes), -len(&value)?)
}
