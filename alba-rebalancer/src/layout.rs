//! Where one object's fragments are: what a plan needs of a manifest, and no more, so that many fit in memory.

use alba_core::ids::{NamespaceId, ObjectId, ObjectVersion, OsdId};
use alba_core::manifest::Manifest;

/// A stored fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Where.
    pub osd: OsdId,
    /// Packed bytes.
    pub bytes: u32,
}

/// A sampled object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Which.
    pub object: ObjectId,
    /// As of which version of the manifest.
    pub version: ObjectVersion,
    /// x of its policy: fragments of a chunk that one node may hold.
    pub max_per_node: u32,
    /// By chunk; holes are left out.
    pub chunks: Vec<Vec<Placed>>,
}

impl Layout {
    /// Of a manifest.
    pub fn of(namespace: NamespaceId, manifest: &Manifest) -> Self {
        let chunk = |chunk: &alba_core::manifest::Chunk| {
            let placed =
                |f: &alba_core::manifest::Fragment| Some(Placed { osd: f.location?, bytes: f.packed_len });
            chunk.fragments.iter().filter_map(placed).collect()
        };
        Self {
            namespace,
            object: manifest.object_id,
            version: manifest.version,
            max_per_node: manifest.max_disks_per_node,
            chunks: manifest.chunks.iter().map(chunk).collect(),
        }
    }

    /// The chunks that have a fragment on `osd`.
    pub fn chunks_on(&self, osd: OsdId) -> impl Iterator<Item = &Vec<Placed>> {
        self.chunks.iter().filter(move |chunk| chunk.iter().any(|placed| placed.osd == osd))
    }

    /// Packed bytes on `osd`.
    pub fn bytes_on(&self, osd: OsdId) -> u64 {
        let all = self.chunks.iter().flatten();
        all.filter(|placed| placed.osd == osd).map(|placed| u64::from(placed.bytes)).sum()
    }

    /// Puts what is on `source` onto `target`.
    pub fn relocate(&mut self, source: OsdId, target: OsdId) {
        for placed in self.chunks.iter_mut().flatten().filter(|placed| placed.osd == source) {
            placed.osd = target;
        }
    }
}
