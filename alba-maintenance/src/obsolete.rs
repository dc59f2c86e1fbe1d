//! Clean-up of fragments that a command replaced or deleted: their keys wait in the namespace's delete queue of each OSD
//! (features §3.3).
//!
//! Deleting is repeatable: after a crash the same page is deleted again, harmlessly, before the queue forgets it.

use alba_core::env::osd::{OsdBatch, OsdUpdate};
use alba_core::ids::NamespaceId;
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::wire::rpc::nsm::FragmentKey;

/// Keys taken from a queue at a time: one batch on the OSD stays small beside client requests.
pub const PAGE: u32 = 100;

/// One batch that removes the fragments and their recovery info. No assert: a version is written once, and what is in
/// the queue is named by no manifest and never will be.
pub fn batch(namespace: NamespaceId, keys: &[FragmentKey]) -> OsdBatch {
    let updates = keys
        .iter()
        .map(|key| FragmentAddress {
            object_id: key.object,
            chunk: key.chunk,
            fragment: key.fragment,
            version: key.version,
        })
        .flat_map(|address| {
            [osd_keys::fragment(namespace, &address), osd_keys::recovery_info(namespace, &address)]
        })
        .map(OsdUpdate::Delete)
        .collect();
    OsdBatch { asserts: Vec::new(), updates }
}

#[cfg(test)]
mod tests {
    use alba_core::ids::{ChunkIndex, FragmentIndex, ObjectId, ObjectVersion};

    use super::*;

    #[test]
    fn data_and_recovery_info_go_together() {
        let namespace = NamespaceId::from_u32(7);
        let key = |fragment| FragmentKey {
            object: ObjectId::new([1; 32]),
            chunk: ChunkIndex(0),
            fragment: FragmentIndex(fragment),
            version: ObjectVersion(2),
        };
        let batch = batch(namespace, &[key(0), key(1)]);
        assert!(batch.asserts.is_empty());
        assert_eq!(batch.updates.len(), 4);
        assert!(batch.updates.iter().all(|update| matches!(update, OsdUpdate::Delete(_))));
        assert!(super::batch(namespace, &[]).updates.is_empty());
    }
}
