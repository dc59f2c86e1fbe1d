//! What a manifest must be like to be stored (features §2.6). Pure.

use std::collections::{BTreeMap, BTreeSet};

use alba_core::ids::{NodeId, ObjectVersion, OsdId};
use alba_core::manifest::{EncryptInfo, Manifest};
use alba_core::policy::Bucket;
use alba_core::preset::Preset;
use alba_core::wire::rpc::nsm::NsmError;

fn violated<T>(reason: String) -> Result<T, NsmError> {
    Err(NsmError::PresetViolated(reason))
}

/// Is it made as the preset wants: fragment size, encryption, checksums, compression; and sound in itself?
pub(super) fn conforms(manifest: &Manifest, preset: &Preset) -> Result<(), NsmError> {
    let shape = manifest.scheme.shape;
    if manifest.chunks.is_empty() {
        return violated("an object has at least one chunk".to_owned());
    }
    let mut bytes: u64 = 0;
    for chunk in &manifest.chunks {
        let fragment = usize::try_from(chunk.size).unwrap_or(usize::MAX).div_ceil(shape.k());
        if u32::try_from(fragment).map_or(true, |len| len > preset.fragment_size) {
            return violated(format!("fragments of {fragment} bytes; at most {}", preset.fragment_size));
        }
        if chunk.fragments.len() != shape.total() {
            let (found, wanted) = (chunk.fragments.len(), shape.total());
            return violated(format!("a chunk of {found} fragments; its scheme has {wanted}"));
        }
        bytes = bytes.saturating_add(u64::from(chunk.size));
    }
    if bytes < manifest.size {
        return violated(format!("chunks of {bytes} bytes for an object of {}", manifest.size));
    }
    if manifest.encryption != EncryptInfo::None {
        return violated("the preset asks for no encryption".to_owned());
    }
    let fragment_checksum = preset.fragment_checksum;
    if manifest.fragments().any(|(_, _, entry)| entry.checksum.algorithm() != fragment_checksum) {
        return violated(format!("fragment checksums must be {}", fragment_checksum.name()));
    }
    let algorithm = manifest.checksum.algorithm();
    if !preset.object_checksum.allowed.contains(&algorithm) {
        return violated(format!("object checksum {} is not allowed", algorithm.name()));
    }
    if manifest.scheme.compression != preset.compression {
        return violated("another compression".to_owned());
    }
    for version in std::iter::once(manifest.version).chain(manifest.fragments().map(|(_, _, f)| f.version)) {
        if version != ObjectVersion(0) {
            return Err(NsmError::InvalidVersion(version));
        }
    }
    Ok(())
}

/// Are the OSDs of each chunk distinct?
pub(super) fn spread(manifest: &Manifest) -> Result<(), NsmError> {
    for chunk in &manifest.chunks {
        let mut seen = BTreeSet::new();
        if chunk.fragments.iter().filter_map(|fragment| fragment.location).any(|osd| !seen.insert(osd)) {
            return Err(NsmError::InvalidFragmentSpread);
        }
    }
    Ok(())
}

/// The bucket of a manifest: the weakest chunk, the most crowded node (features §2.3). An OSD nobody knows the node of
/// counts as a node of its own.
pub(super) fn bucket(manifest: &Manifest, nodes: &BTreeMap<OsdId, NodeId>) -> Bucket {
    let mut fragments = u32::MAX;
    let mut max_per_node = 0;
    for chunk in &manifest.chunks {
        let mut present: u32 = 0;
        let mut per_node: BTreeMap<Result<&NodeId, OsdId>, u32> = BTreeMap::new();
        for osd in chunk.fragments.iter().filter_map(|fragment| fragment.location) {
            present += 1;
            *per_node.entry(nodes.get(&osd).ok_or(osd)).or_default() += 1;
        }
        fragments = fragments.min(present);
        max_per_node = per_node.into_values().fold(max_per_node, u32::max);
    }
    Bucket { shape: manifest.scheme.shape, fragments, max_per_node }
}

/// Does some policy of the preset take the bucket?
pub(super) fn satisfies(bucket: &Bucket, preset: &Preset) -> Result<(), NsmError> {
    if preset.policies.iter().any(|policy| bucket.satisfies(policy)) {
        Ok(())
    } else {
        Err(NsmError::InvalidBucket)
    }
}
