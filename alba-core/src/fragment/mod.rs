//! Fragments: packed, verified, unpacked.
//!
//! Packing is chunk → erasure code → compress → checksum, each of the k + m fragments on its own (wire-protocol §6.3),
//! so that a partial read touches one fragment and repair can check packed bytes without decoding them. Only bytes that
//! had the manifest's checksum ([`VerifiedFragment`]) can be unpacked, and unpacking never allocates more than the
//! manifest says the plain fragment has.

use bytes::Bytes;
use thiserror::Error;

use crate::checksum::{Checksum, ChecksumAlgorithm};
use crate::erasure::CodeError;
use crate::ids::{ObjectVersion, OsdId};
use crate::manifest::{Fragment, VerifiedFragment};
use crate::policy::CodeShape;
use crate::preset::Compression;

mod chunk;
mod codec;

pub use chunk::{data_fragments, encode_chunk, pad, regenerate, split, trim};

/// A fragment ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// What the OSD keeps.
    pub bytes: Bytes,
    /// Their number.
    pub len: u32,
    /// Of the bytes.
    pub checksum: Checksum,
}

impl Packed {
    /// Its entry in the manifest: stored at `location`, or a hole.
    pub fn entry(&self, location: Option<OsdId>, version: ObjectVersion) -> Fragment {
        Fragment { location, version, checksum: self.checksum, packed_len: self.len, ctr: None }
    }
}

/// Why a fragment cannot be packed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PackError {
    /// The compressor failed.
    #[error("{codec}: {reason}")]
    Codec {
        /// Its name.
        codec: &'static str,
        /// What it says.
        reason: String,
    },
    /// Longer than a manifest can say.
    #[error("a packed fragment of {0} bytes is longer than 4294967295")]
    TooLong(usize),
    /// The chunk does not fit the code.
    #[error(transparent)]
    Code(#[from] CodeError),
}

/// Why verified bytes cannot be unpacked. Since the checksum was right they were packed wrongly, or by something that
/// packs otherwise than the manifest says: an erasure for the reader.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnpackError {
    /// Not the plain length that the manifest says.
    #[error("{found} plain bytes where the manifest says {expected}")]
    Length {
        /// Of the manifest, in bytes.
        expected: usize,
        /// Found or announced, in bytes.
        found: usize,
    },
    /// No output of this codec.
    #[error("{codec}: {reason}")]
    Codec {
        /// Its name.
        codec: &'static str,
        /// What it says.
        reason: String,
    },
}

/// Compresses and sums up one plain fragment. Copies nothing when there is no compression.
pub fn pack(
    plain: &Bytes,
    compression: Compression,
    checksum: ChecksumAlgorithm,
) -> Result<Packed, PackError> {
    let bytes = codec::compress(plain, compression)?;
    let len = u32::try_from(bytes.len()).map_err(|_| PackError::TooLong(bytes.len()))?;
    Ok(Packed { checksum: checksum.of(&bytes), len, bytes })
}

/// Codes a padded chunk and packs its k + m fragments, in order. Of replicas the first is packed, the rest share its
/// bytes.
pub fn pack_chunk(
    chunk: &Bytes,
    shape: CodeShape,
    compression: Compression,
    checksum: ChecksumAlgorithm,
) -> Result<Vec<Packed>, PackError> {
    if shape.is_replication() {
        return Ok(vec![pack(chunk, compression, checksum)?; shape.total()]);
    }
    encode_chunk(chunk, shape)?.iter().map(|plain| pack(plain, compression, checksum)).collect()
}

/// The plain bytes of a fragment: exactly `plain_len`. Copies nothing when there is no compression.
pub fn unpack(
    packed: &VerifiedFragment,
    compression: Compression,
    plain_len: usize,
) -> Result<Bytes, UnpackError> {
    codec::decompress(packed.bytes(), compression, plain_len)
}

#[cfg(test)]
mod tests;
