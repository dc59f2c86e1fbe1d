//! The stored form of manifests and the rules every one obeys.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | format version: 1 |
//! | rest | [`Manifest`] in postcard: fields in their order, integers as varints, lists behind their length |
//!
//! Nothing may follow. A change of the fields is a new version with a type of its own; version 1 stays readable.

use std::collections::BTreeSet;

use thiserror::Error;

use super::{Chunk, CipherMode, EncryptInfo, Manifest};
use crate::ids::{ChunkIndex, FragmentIndex, OsdId};
use crate::layout::{ChunkMap, LayoutError, MAX_CHUNK_SIZE, fragment_len};
use crate::preset::Compression;

/// The format that [`Manifest::encode`] writes.
const VERSION: u8 = 1;

/// Why bytes are no manifest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// Written by a newer version, or no manifest at all.
    #[error("manifest format {0} is unknown; this version reads format 1")]
    UnknownVersion(u8),
    /// Cut off or damaged.
    #[error("manifest is damaged: {0}")]
    Damaged(String),
    /// Reads well, but cannot describe an object.
    #[error("manifest is inconsistent: {0}")]
    Inconsistent(#[from] Inconsistency),
}

/// Which rule a manifest breaks.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Inconsistency {
    /// Even an empty object has a chunk.
    #[error("it has no chunks")]
    NoChunks,
    /// Chunks of another length than the object, or empty ones.
    #[error("chunks of {chunks} bytes, the last of {last}, cannot hold an object of {size} bytes")]
    Size {
        /// Bytes of the object.
        size: u64,
        /// Bytes of all chunks, padding included.
        chunks: u64,
        /// Bytes of the last one.
        last: u32,
    },
    /// A chunk size that formats cannot carry.
    #[error("chunk {chunk} has {size} bytes; at most 2147483647 are possible")]
    ChunkTooLarge {
        /// Which.
        chunk: ChunkIndex,
        /// Its size.
        size: u32,
    },
    /// A chunk size that k fragments cannot add up to.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Not k + m fragments.
    #[error("chunk {chunk} has {found} fragments instead of {expected}")]
    FragmentCount {
        /// Which.
        chunk: ChunkIndex,
        /// Its fragments.
        found: usize,
        /// k + m.
        expected: usize,
    },
    /// Two fragments of a chunk on one OSD: one loss would cost both.
    #[error("chunk {chunk} has two fragments on OSD {osd}")]
    OsdTwice {
        /// Which chunk.
        chunk: ChunkIndex,
        /// Which OSD.
        osd: OsdId,
    },
    /// Placed at a version that the manifest never had.
    #[error("fragment {fragment} of chunk {chunk} is newer than the manifest")]
    VersionAhead {
        /// Which chunk.
        chunk: ChunkIndex,
        /// Which fragment.
        fragment: FragmentIndex,
    },
    /// Neither compressed nor padded by encryption, and yet of another length.
    #[error("fragment {fragment} of chunk {chunk} has {found} packed bytes instead of {expected}")]
    PackedLength {
        /// Which chunk.
        chunk: ChunkIndex,
        /// Which fragment.
        fragment: FragmentIndex,
        /// In the manifest.
        found: u32,
        /// Its plain length.
        expected: u32,
    },
    /// A counter block without CTR, or CTR without one.
    #[error("fragment {fragment} of chunk {chunk} has a counter block and no CTR encryption, or the reverse")]
    Counter {
        /// Which chunk.
        chunk: ChunkIndex,
        /// Which fragment.
        fragment: FragmentIndex,
    },
    /// A limit that allows nothing.
    #[error("max_disks_per_node is 0")]
    NoDiskPerNode,
}

impl Manifest {
    /// The stored form.
    pub fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        // Serialising into memory fails for no value of these types; the error is passed on all the same.
        postcard::to_extend(self, vec![VERSION]).map_err(|error| ManifestError::Damaged(error.to_string()))
    }

    /// Reads the stored form. What comes back obeys [`Manifest::check`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let (version, body) =
            bytes.split_first().ok_or_else(|| ManifestError::Damaged("it is empty".into()))?;
        if *version != VERSION {
            return Err(ManifestError::UnknownVersion(*version));
        }
        let (manifest, rest) = postcard::take_from_bytes::<Self>(body)
            .map_err(|error| ManifestError::Damaged(error.to_string()))?;
        if !rest.is_empty() {
            return Err(ManifestError::Damaged(format!("{} bytes follow it", rest.len())));
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// The rules: chunks hold the object, the last one its end; each has k + m fragments that add up, on OSDs of their
    /// own; lengths, versions and counter blocks fit.
    pub fn check(&self) -> Result<(), Inconsistency> {
        let last = self.chunks.last().ok_or(Inconsistency::NoChunks)?.size;
        let chunks = ChunkMap::new(self.chunks.iter().map(|chunk| chunk.size), self.scheme.shape)?.end();
        // Every chunk holds bytes of the object; only an empty object has an empty one.
        let before_last = chunks - u64::from(last);
        let holds =
            if self.size == 0 { chunks == 0 && self.chunks.len() == 1 } else { before_last < self.size };
        if !holds || chunks < self.size {
            return Err(Inconsistency::Size { size: self.size, chunks, last });
        }
        for (index, chunk) in (0..).map(ChunkIndex).zip(&self.chunks) {
            self.check_chunk(index, chunk)?;
        }
        if self.max_disks_per_node == 0 {
            return Err(Inconsistency::NoDiskPerNode);
        }
        Ok(())
    }

    fn check_chunk(&self, index: ChunkIndex, chunk: &Chunk) -> Result<(), Inconsistency> {
        if chunk.size > MAX_CHUNK_SIZE {
            return Err(Inconsistency::ChunkTooLarge { chunk: index, size: chunk.size });
        }
        let expected = self.scheme.shape.total();
        if chunk.fragments.len() != expected {
            return Err(Inconsistency::FragmentCount {
                chunk: index,
                found: chunk.fragments.len(),
                expected,
            });
        }
        let ctr = matches!(self.encryption, EncryptInfo::Aes256 { mode: CipherMode::Ctr, .. });
        let same_length =
            self.scheme.compression == Compression::None && (ctr || self.encryption == EncryptInfo::None);
        let plain_len = fragment_len(chunk.size, self.scheme.shape)?;
        let mut osds = BTreeSet::new();
        for (position, fragment) in (0..).map(FragmentIndex).zip(&chunk.fragments) {
            if let Some(osd) = fragment.location
                && !osds.insert(osd)
            {
                return Err(Inconsistency::OsdTwice { chunk: index, osd });
            }
            if fragment.version > self.version {
                return Err(Inconsistency::VersionAhead { chunk: index, fragment: position });
            }
            if same_length && fragment.packed_len != plain_len {
                return Err(Inconsistency::PackedLength {
                    chunk: index,
                    fragment: position,
                    found: fragment.packed_len,
                    expected: plain_len,
                });
            }
            if fragment.ctr.is_some() != ctr {
                return Err(Inconsistency::Counter { chunk: index, fragment: position });
            }
        }
        Ok(())
    }
}
