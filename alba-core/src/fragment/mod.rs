//! Fragments: packed, verified, unpacked.
//!
//! Packing is chunk → erasure code → compress → encrypt → checksum, each of the k + m fragments on its own (wire-protocol §6.3),
//! so that a partial read touches one fragment and repair can check packed bytes without decoding them. Only bytes that
//! had the manifest's checksum ([`VerifiedFragment`]) can be unpacked, and unpacking never allocates more than the
//! manifest says the plain fragment has.

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use crate::checksum::{Checksum, ChecksumAlgorithm};
use crate::encryption::{CounterBlock, FragmentKey};
use crate::erasure::CodeError;
use crate::ids::{ObjectVersion, OsdId};
use crate::manifest::{Fragment, Timestamp, VerifiedFragment};
use crate::policy::CodeShape;
use crate::preset::Compression;

mod chunk;
mod codec;

pub use chunk::{data_fragments, encode_chunk, pad, regenerate, regenerate_proven, split, trim};

/// A fragment ready to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// What the OSD keeps.
    pub bytes: Bytes,
    /// Their number.
    pub len: u32,
    /// Of the bytes.
    pub checksum: Checksum,
    /// What they are encrypted from.
    pub ctr: Option<CounterBlock>,
}

/// What one fragment is encrypted with.
#[derive(Debug, Clone, Copy)]
pub struct Cipher<'a> {
    /// The preset's key.
    pub key: &'a FragmentKey,
    /// Its own first counter block: used for this fragment and never for other bytes.
    pub counter: CounterBlock,
}

impl Packed {
    /// Its entry in the manifest: stored at `location`, or a hole.
    pub fn entry(&self, location: Option<OsdId>, version: ObjectVersion) -> Fragment {
        Fragment { location, version, checksum: self.checksum, packed_len: self.len, ctr: self.ctr }
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
    /// Not one counter block for each fragment (one in all for replicas).
    #[error("{found} counter blocks for {expected} fragments")]
    Counters {
        /// Fragments to be encrypted.
        expected: usize,
        /// Counter blocks given.
        found: usize,
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

/// The bytes encrypted, or decrypted: CTR does the same for both.
fn crypt(bytes: &Bytes, cipher: Cipher<'_>) -> Bytes {
    let mut buffer = BytesMut::from(&bytes[..]);
    cipher.key.apply(&cipher.counter, 0, &mut buffer);
    buffer.freeze()
}

/// Compresses, encrypts and sums up one plain fragment. Copies nothing when there is nothing to compress or encrypt. `now`
/// matters to [`Compression::Test`] only.
pub fn pack(
    plain: &Bytes,
    compression: Compression,
    cipher: Option<Cipher<'_>>,
    checksum: ChecksumAlgorithm,
    now: Timestamp,
) -> Result<Packed, PackError> {
    let mut bytes = codec::compress(plain, compression, now)?;
    if let Some(cipher) = cipher {
        bytes = crypt(&bytes, cipher);
    }
    let len = u32::try_from(bytes.len()).map_err(|_| PackError::TooLong(bytes.len()))?;
    Ok(Packed { checksum: checksum.of(&bytes), len, bytes, ctr: cipher.map(|cipher| cipher.counter) })
}

/// Counter blocks that [`pack_chunk`] wants: one for each fragment of different bytes.
pub fn counters_needed(shape: CodeShape) -> usize {
    if shape.is_replication() { 1 } else { shape.total() }
}

/// Codes a padded chunk and packs its k + m fragments, in order. Of replicas the first is packed, the rest share its
/// bytes. With a key there must be [`counters_needed`] fresh counter blocks.
pub fn pack_chunk(
    chunk: &Bytes,
    shape: CodeShape,
    compression: Compression,
    encryption: Option<(&FragmentKey, &[CounterBlock])>,
    checksum: ChecksumAlgorithm,
    now: Timestamp,
) -> Result<Vec<Packed>, PackError> {
    let expected = counters_needed(shape);
    if let Some((_, counters)) = encryption
        && counters.len() != expected
    {
        return Err(PackError::Counters { expected, found: counters.len() });
    }
    let cipher = |index: usize| {
        let (key, counters) = encryption?;
        Some(Cipher { key, counter: *counters.get(index)? })
    };
    if shape.is_replication() {
        return Ok(vec![pack(chunk, compression, cipher(0), checksum, now)?; shape.total()]);
    }
    let plain = encode_chunk(chunk, shape)?;
    let fragments = plain.iter().enumerate();
    fragments.map(|(index, plain)| pack(plain, compression, cipher(index), checksum, now)).collect()
}

/// The plain bytes of a fragment: exactly `plain_len`. Copies nothing when there is nothing to decrypt or decompress.
pub fn unpack(
    packed: &VerifiedFragment,
    compression: Compression,
    cipher: Option<Cipher<'_>>,
    plain_len: usize,
) -> Result<Bytes, UnpackError> {
    match cipher {
        Some(cipher) => codec::decompress(&crypt(packed.bytes(), cipher), compression, plain_len),
        None => codec::decompress(packed.bytes(), compression, plain_len),
    }
}

#[cfg(test)]
mod tests;
