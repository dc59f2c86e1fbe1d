//! What becomes of a fragment that still carries a gc tag.
//!
//! The order around this decision is what makes it safe: the tag's epoch is invalid *before* the scan that found it; the
//! manifest is read consistently, by object id, from the group that owns the namespace *after* that; and the batch
//! below asserts that the tag is still there. A group that does not own the namespace never answers "absent".

use alba_core::env::osd::{OsdAssert, OsdBatch, OsdUpdate};
use alba_core::ids::{GcEpoch, NamespaceId, OsdId};
use alba_core::manifest::Manifest;
use alba_core::osd_keys::{self, FragmentAddress};
use bytes::Bytes;

/// A tag of an invalid epoch, found on an OSD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleTag {
    /// In which namespace.
    pub namespace: NamespaceId,
    /// The epoch of the attempt that wrote it; no longer valid.
    pub epoch: GcEpoch,
    /// Which fragment it tags.
    pub address: FragmentAddress,
    /// Its value: the mark of the repair that wrote it, or nothing.
    pub value: Bytes,
}

/// What to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The manifest places this very version of the fragment on this OSD: only the tag is left over.
    Referenced,
    /// No manifest can come to name it any more.
    Garbage,
}

/// Decides, given the manifest that the owning group holds for the tag's object id (none: no such object).
pub fn judge(tag: &StaleTag, osd: OsdId, manifest: Option<&Manifest>) -> Verdict {
    let placed_here = manifest
        .filter(|manifest| manifest.object_id == tag.address.object_id)
        .and_then(|manifest| manifest.fragment(tag.address.chunk, tag.address.fragment))
        .is_some_and(|entry| entry.location == Some(osd) && entry.version == tag.address.version);
    if placed_here { Verdict::Referenced } else { Verdict::Garbage }
}

/// The batch that carries out a verdict. Garbage goes only while its tag is as it was found: without it someone else has decided, and
/// with another value someone else has taken the fragment over.
pub fn carry_out(tag: &StaleTag, verdict: Verdict) -> OsdBatch {
    let tag_key = osd_keys::gc_tag(tag.namespace, tag.epoch, &tag.address);
    match verdict {
        Verdict::Referenced => OsdBatch { asserts: Vec::new(), updates: vec![OsdUpdate::Delete(tag_key)] },
        Verdict::Garbage => OsdBatch {
            asserts: vec![OsdAssert::Value(tag_key.clone(), tag.value.clone())],
            updates: vec![
                OsdUpdate::Delete(osd_keys::fragment(tag.namespace, &tag.address)),
                OsdUpdate::Delete(osd_keys::recovery_info(tag.namespace, &tag.address)),
                OsdUpdate::Delete(tag_key),
            ],
        },
    }
}

#[cfg(test)]
mod tests {
    use alba_core::checksum::Checksum;
    use alba_core::ids::{ChunkIndex, FragmentIndex, ObjectId, ObjectName, ObjectVersion};
    use alba_core::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Scheme, Timestamp};
    use alba_core::policy::CodeShape;
    use alba_core::preset::Compression;

    use super::*;

    fn manifest(id: u8, location: Option<u32>, version: u32) -> Manifest {
        Manifest {
            name: ObjectName::new("o").unwrap(),
            object_id: ObjectId::new([id; 32]),
            size: 1,
            checksum: Checksum::None,
            scheme: Scheme {
                shape: CodeShape::new(1, 0).unwrap(),
                matrix: CodingMatrix::VandermondeSystematic,
                compression: Compression::None,
            },
            encryption: EncryptInfo::None,
            chunks: vec![Chunk {
                size: 1,
                fragments: vec![Fragment {
                    location: location.map(OsdId::from_u32),
                    version: ObjectVersion(version),
                    checksum: Checksum::None,
                    packed_len: 1,
                    ctr: None,
                }],
            }],
            version: ObjectVersion(version),
            max_disks_per_node: 1,
            timestamp: Timestamp(0),
        }
    }

    fn tag(id: u8, version: u32) -> StaleTag {
        StaleTag {
            namespace: NamespaceId::from_u32(7),
            epoch: GcEpoch::from_u32(0),
            address: FragmentAddress {
                object_id: ObjectId::new([id; 32]),
                chunk: ChunkIndex(0),
                fragment: FragmentIndex(0),
                version: ObjectVersion(version),
            },
            value: Bytes::from_static(b"mark"),
        }
    }

    #[test]
    fn only_the_exact_place_and_version_is_referenced() {
        let here = OsdId::from_u32(3);
        let judged = |manifest: Option<&Manifest>| judge(&tag(1, 0), here, manifest);
        assert_eq!(judged(Some(&manifest(1, Some(3), 0))), Verdict::Referenced);
        assert_eq!(judged(Some(&manifest(1, Some(4), 0))), Verdict::Garbage, "placed elsewhere");
        assert_eq!(judged(Some(&manifest(1, Some(3), 1))), Verdict::Garbage, "placed again since");
        assert_eq!(judged(Some(&manifest(1, None, 0))), Verdict::Garbage, "a hole");
        assert_eq!(judged(Some(&manifest(2, Some(3), 0))), Verdict::Garbage, "another object");
        assert_eq!(judged(None), Verdict::Garbage, "no object");
    }

    #[test]
    fn garbage_is_deleted_with_an_assert_on_its_tag_and_a_referenced_fragment_never() {
        let batch = carry_out(&tag(1, 0), Verdict::Garbage);
        assert_eq!((batch.asserts.len(), batch.updates.len()), (1, 3));
        let tag_key = osd_keys::gc_tag(NamespaceId::from_u32(7), GcEpoch::from_u32(0), &tag(1, 0).address);
        assert_eq!(batch.asserts, [OsdAssert::Value(tag_key.clone(), Bytes::from_static(b"mark"))]);
        let batch = carry_out(&tag(1, 0), Verdict::Referenced);
        assert_eq!(batch, OsdBatch { asserts: vec![], updates: vec![OsdUpdate::Delete(tag_key)] });
    }
}
