//! From the fragments of one object, as OSDs hold them, to its manifest. Pure.
//!
//! A fragment may be there more than once: an upload gave it to two OSDs, a repair has written it anew. Of these the one
//! without a gc tag counts, since a tag goes only when the group has confirmed the fragment; of several the one of the highest
//! version. What is not chosen and has its tag goes with the next garbage collection.

use std::collections::{BTreeMap, BTreeSet};

use alba_core::ids::{ChunkIndex, FragmentIndex, NodeId, ObjectId, ObjectVersion, OsdId};
use alba_core::manifest::{Chunk, EncryptInfo, Fragment, Manifest, Scheme, Timestamp};
use alba_core::osd_keys::FragmentAddress;
use alba_core::policy::CodeShape;
use alba_core::preset::Preset;
use alba_core::wire::recovery::{RecoveryInfo, RecoveryMatrix, RecoveryObject, RecoveryScheme};
use thiserror::Error;

/// A fragment with what lies beside it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// Where.
    pub(crate) osd: OsdId,
    /// Which.
    pub(crate) address: FragmentAddress,
    /// Its recovery info.
    pub(crate) info: RecoveryInfo,
    /// Has it still its gc tag: is it not known to have been confirmed?
    pub(crate) tagged: bool,
}

/// Why there is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum NoManifest {
    /// The last chunk, which tells the object's size and coding, is not there.
    #[error("nothing of its last chunk was found")]
    NoEnd,
    /// It cannot be read.
    #[error("chunk {chunk} has {found} of the {needed} fragments that it needs")]
    TooFew {
        /// Of which chunk.
        chunk: u32,
        /// Different ones.
        found: usize,
        /// k.
        needed: usize,
    },
    /// The pieces are not of one object.
    #[error("what was found does not fit together: {0}")]
    Inconsistent(String),
    /// Not written by this software.
    #[error("{0} cannot be read by this version")]
    Foreign(&'static str),
}

/// The fragment chosen for each place, all of the highest version seen, and the object's own description.
struct Chosen<'f> {
    places: BTreeMap<(ChunkIndex, FragmentIndex), &'f Found>,
    version: ObjectVersion,
}

/// A manifest of these fragments, encrypted as the preset says: its key is for life. `node_of` gives the node of an OSD, for the limit per node, which is taken from the policy
/// of `preset` with the same code, if there is one.
pub(crate) fn assemble<'n>(
    id: ObjectId,
    found: &[Found],
    preset: &Preset,
    node_of: impl Fn(OsdId) -> Option<&'n NodeId>,
) -> Result<Manifest, NoManifest> {
    let chosen = choose(found);
    let (last, object) = end_of(&chosen)?;
    let (scheme, shape) = scheme_of(&object.scheme)?;
    let name = found.first().map(|found| found.info.name.clone()).ok_or(NoManifest::NoEnd)?;
    if chosen.places.values().any(|found| found.info.name != name) {
        return Err(NoManifest::Inconsistent("different names".to_owned()));
    }
    let mut chunks = Vec::new();
    for number in 0..=last.0 {
        chunks.push(chunk(&chosen, ChunkIndex(number), shape)?);
    }
    let mut manifest = Manifest {
        name,
        object_id: id,
        size: object.size,
        checksum: object.checksum,
        scheme,
        encryption: EncryptInfo::from(&preset.fragment_encryption),
        chunks,
        version: chosen.version,
        max_disks_per_node: 1,
        timestamp: timestamp(object.timestamp),
    };
    let (k, m) = shape.as_u8();
    let policy = preset.policies.iter().find(|policy| policy.shape().as_u8() == (k, m));
    manifest.max_disks_per_node = match policy {
        Some(policy) => policy.max_per_node(),
        None => most_per_node(&manifest, node_of),
    };
    manifest.check().map_err(|error| NoManifest::Inconsistent(error.to_string()))?;
    Ok(manifest)
}

/// Seconds as recovery info has them, in microseconds; what makes no sense is the beginning of time.
fn timestamp(seconds: f64) -> Timestamp {
    // Saturating, and 0 for what is no number: the time only orders candidates for people.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    let micros = (seconds * 1e6) as u64;
    Timestamp(micros)
}

fn most_per_node<'n>(manifest: &Manifest, node_of: impl Fn(OsdId) -> Option<&'n NodeId>) -> u32 {
    let mut most = 1;
    for chunk in &manifest.chunks {
        let mut counts: BTreeMap<&NodeId, u32> = BTreeMap::new();
        for node in chunk.fragments.iter().filter_map(|fragment| node_of(fragment.location?)) {
            let count = counts.entry(node).or_default();
            *count += 1;
            most = most.max(*count);
        }
    }
    most
}

/// The better ones come last.
fn rank(found: &Found) -> (bool, ObjectVersion) {
    (!found.tagged, found.address.version)
}

fn choose(found: &[Found]) -> Chosen<'_> {
    let mut places: BTreeMap<(ChunkIndex, FragmentIndex), &Found> = BTreeMap::new();
    for one in found {
        let place = places.entry((one.address.chunk, one.address.fragment)).or_insert(one);
        if rank(one) > rank(place) {
            *place = one;
        }
    }
    // Two fragments of a chunk on one OSD: the worse place is a hole, since nothing may be lost with one device that a
    // manifest counts twice.
    let mut best: BTreeMap<(ChunkIndex, OsdId), FragmentIndex> = BTreeMap::new();
    let mut holes = BTreeSet::new();
    for ((chunk, fragment), one) in &places {
        match best.get(&(*chunk, one.osd)).copied() {
            None => drop(best.insert((*chunk, one.osd), *fragment)),
            Some(other) if places.get(&(*chunk, other)).is_some_and(|there| rank(there) >= rank(one)) => {
                holes.insert((*chunk, *fragment));
            }
            Some(other) => {
                holes.insert((*chunk, other));
                best.insert((*chunk, one.osd), *fragment);
            }
        }
    }
    places.retain(|place, _| !holes.contains(place));
    let version = found.iter().map(|found| found.address.version).max().unwrap_or(ObjectVersion(0));
    Chosen { places, version }
}

/// The last chunk, and what it says of the object.
fn end_of<'f>(chosen: &Chosen<'f>) -> Result<(ChunkIndex, &'f RecoveryObject), NoManifest> {
    let mut end: Option<(ChunkIndex, &RecoveryObject)> = None;
    for ((chunk, _), found) in &chosen.places {
        let Some(object) = &found.info.object else { continue };
        match end {
            // The checksum may differ in its time only.
            Some((last, first))
                if last != *chunk || first.scheme != object.scheme || first.size != object.size =>
            {
                return Err(NoManifest::Inconsistent("two ends".to_owned()));
            }
            Some((_, first)) if first.checksum != object.checksum => {
                return Err(NoManifest::Inconsistent("two checksums of the object".to_owned()));
            }
            Some(_) => {}
            None => end = Some((*chunk, object)),
        }
    }
    let end = end.ok_or(NoManifest::NoEnd)?;
    match chosen.places.last_key_value() {
        Some(((chunk, _), _)) if *chunk != end.0 => {
            Err(NoManifest::Inconsistent("a chunk behind the last".to_owned()))
        }
        _ => Ok(end),
    }
}

fn scheme_of(scheme: &RecoveryScheme) -> Result<(Scheme, CodeShape), NoManifest> {
    let RecoveryMatrix::Ours(matrix) = scheme.matrix else {
        return Err(NoManifest::Foreign("parity of the original's matrix"));
    };
    let compression = scheme.compression;
    let number = |n: u32| u8::try_from(n).map_err(|_| NoManifest::Inconsistent("k or m".to_owned()));
    let shape = CodeShape::new(number(scheme.k)?, number(scheme.m)?)
        .map_err(|error| NoManifest::Inconsistent(error.to_string()))?;
    Ok((Scheme { shape, matrix, compression }, shape))
}

fn chunk(chosen: &Chosen<'_>, number: ChunkIndex, shape: CodeShape) -> Result<Chunk, NoManifest> {
    let (k, m) = shape.as_u8();
    let total = u32::from(k) + u32::from(m);
    let place = |fragment: u32| chosen.places.get(&(number, FragmentIndex(fragment))).copied();
    let count = (0..total).filter(|fragment| place(*fragment).is_some()).count();
    // The newest knows most of its siblings.
    let newest = (0..total).filter_map(place).max_by_key(|found| found.address.version);
    let Some(newest) = newest.filter(|_| count >= shape.k()) else {
        return Err(NoManifest::TooFew { chunk: number.0, found: count, needed: shape.k() });
    };
    let mut fragments = Vec::new();
    for index in 0..total {
        let found = place(index);
        // Each knows itself best: the info beside a repaired fragment tells of its siblings as they were before.
        let told = found.unwrap_or(newest);
        let entry = FragmentIndex(index).index();
        let (packed_len, checksum) = *told
            .info
            .fragments
            .get(entry)
            .ok_or_else(|| NoManifest::Inconsistent("fewer fragments than k + m".to_owned()))?;
        if told.info.chunk_size != newest.info.chunk_size {
            return Err(NoManifest::Inconsistent(format!("two sizes of chunk {}", number.0)));
        }
        fragments.push(Fragment {
            location: found.map(|found| found.osd),
            version: found.map_or(ObjectVersion(0), |found| found.address.version),
            checksum,
            packed_len,
            // A hole has the counter block of its siblings if these are copies; else nobody will ever read with it.
            ctr: told.info.ctr,
        });
    }
    Ok(Chunk { size: newest.info.chunk_size, fragments })
}

/// What a manifest says of those of its fragments that are on some OSDs, as if they had been found: for OSDs that cannot be
/// asked.
pub(crate) fn as_told(manifest: &Manifest, osds: &BTreeSet<OsdId>) -> Vec<Found> {
    let (k, m) = manifest.scheme.shape.as_u8();
    let object = RecoveryObject {
        scheme: RecoveryScheme {
            k: u32::from(k),
            m: u32::from(m),
            matrix: RecoveryMatrix::Ours(manifest.scheme.matrix),
            compression: manifest.scheme.compression,
        },
        size: manifest.size,
        checksum: manifest.checksum,
        timestamp: manifest.timestamp.to_seconds(),
    };
    let mut told = Vec::new();
    for (chunk, index, fragment) in manifest.fragments() {
        let Some(osd) = fragment.location.filter(|osd| osds.contains(osd)) else { continue };
        let Some(whole) = manifest.chunks.get(chunk.index()) else { continue };
        let is_last = chunk.index() + 1 == manifest.chunks.len();
        let fragments = whole.fragments.iter().map(|f| (f.packed_len, f.checksum)).collect();
        told.push(Found {
            osd,
            address: FragmentAddress {
                object_id: manifest.object_id,
                chunk,
                fragment: index,
                version: fragment.version,
            },
            info: RecoveryInfo {
                name: manifest.name.clone(),
                chunk_size: whole.size,
                fragments,
                object: is_last.then(|| object.clone()),
                ctr: fragment.ctr,
            },
            tagged: false,
        });
    }
    told
}

#[cfg(test)]
mod tests;
