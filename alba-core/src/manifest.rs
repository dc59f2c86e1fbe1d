//! Manifests: where an object's fragments are and how to read them.
//!
//! These are our own types; the original's wire forms (ser 1 and 2) are translations in [`crate::wire`]. A stored
//! manifest names its coding matrix, because parity of another matrix cannot be read with ours.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::checksum::Checksum;
use crate::ids::{ChunkIndex, FragmentIndex, NodeId, ObjectId, ObjectName, ObjectVersion, OsdId};
use crate::layout::{ChunkMap, LayoutError, fragment_len};
use crate::placement::bucket_of;
use crate::policy::{Bucket, CodeShape};
use crate::preset::{Compression, FragmentEncryption};

mod stored;

pub use stored::{Inconsistency, ManifestError};

/// Which generator matrix made the parity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CodingMatrix {
    /// Vandermonde (k+m)×k times the inverse of its top square, over GF(2^8) with polynomial 0x11D: that of the
    /// `reed-solomon-erasure` crate.
    VandermondeSystematic,
}

/// How the bytes of an object became packed fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheme {
    /// k and m.
    pub shape: CodeShape,
    /// The generator matrix.
    pub matrix: CodingMatrix,
    /// Per fragment, before encryption.
    pub compression: Compression,
}

/// How fragments are encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncryptInfo {
    /// Not at all.
    None,
    /// AES-256.
    Aes256 {
        /// The mode.
        mode: CipherMode,
        /// SHA-256 of the key.
        key_sha256: [u8; 32],
    },
}

impl From<&FragmentEncryption> for EncryptInfo {
    fn from(encryption: &FragmentEncryption) -> Self {
        match encryption {
            FragmentEncryption::None => Self::None,
            FragmentEncryption::Aes256Ctr { key_sha256, .. } => {
                Self::Aes256 { mode: CipherMode::Ctr, key_sha256: *key_sha256 }
            }
        }
    }
}

/// The block cipher mode of the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CipherMode {
    /// With PKCS#7 padding and a derived iv; readable for compatibility.
    Cbc,
    /// With the counter block kept per fragment.
    Ctr,
}

/// One fragment's entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment {
    /// The OSD that acknowledged it; none: a hole, stored nowhere (checksum and length still describe it).
    pub location: Option<OsdId>,
    /// The object version at which it was last placed; part of its key.
    pub version: ObjectVersion,
    /// Of the packed bytes.
    pub checksum: Checksum,
    /// Length of the packed bytes.
    pub packed_len: u32,
    /// Initial counter block for CTR.
    pub ctr: Option<[u8; 16]>,
}

/// One chunk: k + m fragments of equal plain length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Plain bytes of the k data fragments together, padding included.
    pub size: u32,
    /// Data `0..k`, then parity.
    pub fragments: Vec<Fragment>,
}

/// Microseconds since the Unix epoch, given by the metadata leader, strictly increasing per object name. Never used
/// to decide anything (invariant 8).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// As the wire carries it: Unix seconds.
    pub fn to_seconds(self) -> f64 {
        // Doubles hold microseconds exactly until the year 2255.
        #[allow(clippy::cast_precision_loss)]
        let micros = self.0 as f64;
        micros / 1e6
    }
}

/// An object as the namespace manager keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name.
    pub name: ObjectName,
    /// Its identity.
    pub object_id: ObjectId,
    /// Bytes of the object, without padding.
    pub size: u64,
    /// Of the object's own bytes.
    pub checksum: Checksum,
    /// Coding and compression.
    pub scheme: Scheme,
    /// Encryption.
    pub encryption: EncryptInfo,
    /// In order; at least one.
    pub chunks: Vec<Chunk>,
    /// 0 at upload, +1 at each update.
    pub version: ObjectVersion,
    /// x of the policy used.
    pub max_disks_per_node: u32,
    /// When it was committed.
    pub timestamp: Timestamp,
}

impl Manifest {
    /// Entry of one fragment.
    pub fn fragment(&self, chunk: ChunkIndex, fragment: FragmentIndex) -> Option<&Fragment> {
        self.chunks.get(chunk.index())?.fragments.get(fragment.index())
    }

    /// Plain bytes of each fragment of a chunk, padding included; none past the last chunk.
    pub fn fragment_len(&self, chunk: ChunkIndex) -> Option<u32> {
        fragment_len(self.chunks.get(chunk.index())?.size, self.scheme.shape).ok()
    }

    /// Where its bytes are.
    pub fn chunk_map(&self) -> Result<ChunkMap, LayoutError> {
        ChunkMap::new(self.chunks.iter().map(|chunk| chunk.size), self.scheme.shape)
    }

    /// Bytes of the object in a chunk, without padding; none past the last chunk.
    pub fn chunk_len(&self, chunk: ChunkIndex) -> Option<u32> {
        let before: u64 = self.chunks.get(..chunk.index())?.iter().map(|chunk| u64::from(chunk.size)).sum();
        let size = self.chunks.get(chunk.index())?.size;
        Some(u32::try_from(self.size.saturating_sub(before)).map_or(size, |left| left.min(size)))
    }

    /// Its bucket, given the node of each OSD (features §2.3).
    pub fn bucket<'a>(&self, node_of: impl Fn(OsdId) -> Option<&'a NodeId>) -> Bucket {
        let locations = self.chunks.iter().map(|chunk| chunk.fragments.iter().map(|f| f.location));
        bucket_of(self.scheme.shape, locations, node_of)
    }

    /// All fragments with their positions.
    pub fn fragments(&self) -> impl Iterator<Item = (ChunkIndex, FragmentIndex, &Fragment)> {
        (0_u32..).zip(&self.chunks).flat_map(|(chunk, c)| {
            (0_u32..).zip(&c.fragments).map(move |(f, entry)| (ChunkIndex(chunk), FragmentIndex(f), entry))
        })
    }
}

/// Packed bytes whose checksum nobody has looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedFragment(pub Bytes);

/// Packed bytes that had the checksum of the manifest: only these may be decoded or handed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedFragment(Bytes);

impl PackedFragment {
    /// Compares length and checksum with the manifest's entry. A mismatch gives the bytes back: to the reader it is
    /// an erasure.
    pub fn verify(self, entry: &Fragment) -> Result<VerifiedFragment, Self> {
        let right_length = u32::try_from(self.0.len()).is_ok_and(|len| len == entry.packed_len);
        if right_length && entry.checksum.matches(&self.0) { Ok(VerifiedFragment(self.0)) } else { Err(self) }
    }
}

impl VerifiedFragment {
    /// The packed bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

#[cfg(test)]
mod tests;
