//! What a manifest must be like to be stored (features §2.6). Pure.

use std::collections::BTreeSet;

use alba_core::ids::{ChunkIndex, ObjectVersion};
use alba_core::manifest::{EncryptInfo, Fragment, Inconsistency, Manifest};
use alba_core::policy::Bucket;
use alba_core::preset::Preset;
use alba_core::wire::rpc::nsm::NsmError;

fn violated<T>(reason: String) -> Result<T, NsmError> {
    Err(NsmError::PresetViolated(reason))
}

/// Is it made as the preset wants: fragment size, encryption, checksums, compression; and sound in itself? Of an object
/// that lives in the metadata: all that does not concern fragments.
pub(super) fn conforms(manifest: &Manifest, preset: &Preset, inline: bool) -> Result<(), NsmError> {
    match manifest.check() {
        // An OSD twice in a chunk has an answer of its own, in its place in the order: `spread`.
        Ok(()) | Err(Inconsistency::OsdTwice { .. }) => {}
        Err(Inconsistency::NoChunks) if inline => {}
        Err(inconsistency) => return violated(inconsistency.to_string()),
    }
    for chunk in (0..).map(ChunkIndex).take(manifest.chunks.len()) {
        let len = manifest.fragment_len(chunk).unwrap_or(u32::MAX);
        if len > preset.fragment_size {
            return violated(format!("fragments of {len} bytes; at most {}", preset.fragment_size));
        }
    }
    let encryption = EncryptInfo::from(&preset.fragment_encryption);
    if manifest.encryption != encryption {
        return violated(match encryption {
            EncryptInfo::None => "the preset asks for no encryption".to_owned(),
            EncryptInfo::Aes256 { .. } => "not encrypted with the key of the preset".to_owned(),
        });
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

/// Has every chunk enough fragments to be read?
pub(super) fn readable(manifest: &Manifest) -> Result<(), NsmError> {
    let needed = manifest.scheme.shape.k();
    let stored = |fragments: &[Fragment]| fragments.iter().filter(|f| f.location.is_some()).count();
    if manifest.chunks.iter().all(|chunk| stored(&chunk.fragments) >= needed) {
        Ok(())
    } else {
        Err(NsmError::InsufficientFragments)
    }
}

/// Does some policy of the preset take the bucket?
pub(super) fn satisfies(bucket: &Bucket, preset: &Preset) -> Result<(), NsmError> {
    if preset.policies.iter().any(|policy| bucket.satisfies(policy)) {
        Ok(())
    } else {
        Err(NsmError::InvalidBucket)
    }
}
