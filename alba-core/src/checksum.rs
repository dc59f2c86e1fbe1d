//! Checksums of objects and fragments, and the algorithms that make them.
//!
//! A mismatch is an erasure for the reader, never an error (invariant 5); what to do about it is the caller's.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha1::Digest;

/// How a checksum is made. Tags on the wire: 1 none, 2 sha-1, 3 crc-32c, and ours alone: 4 blake3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ChecksumAlgorithm {
    /// No checksum: nothing can be verified.
    None,
    /// 20 bytes; volume drivers use it for fencing tags.
    Sha1,
    /// Castagnoli CRC.
    Crc32c,
    /// The root of a BLAKE3 tree.
    Blake3,
}

/// A checksum with its algorithm.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Checksum {
    /// No checksum.
    None,
    /// SHA-1.
    Sha1([u8; 20]),
    /// CRC-32C: reflected polynomial 0x82F63B78, initial value and final xor 0xFFFFFFFF.
    Crc32c(u32),
    /// BLAKE3.
    Blake3([u8; 32]),
}

impl Checksum {
    /// How it was made.
    pub fn algorithm(&self) -> ChecksumAlgorithm {
        match self {
            Self::None => ChecksumAlgorithm::None,
            Self::Sha1(_) => ChecksumAlgorithm::Sha1,
            Self::Crc32c(_) => ChecksumAlgorithm::Crc32c,
            Self::Blake3(_) => ChecksumAlgorithm::Blake3,
        }
    }

    /// Does `data` have this checksum? Always true without an algorithm.
    pub fn matches(&self, data: &[u8]) -> bool {
        self.algorithm().of(data) == *self
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Sha1(digest) => write!(f, "sha-1:{}", hex::encode(digest)),
            Self::Crc32c(crc) => write!(f, "crc-32c:{crc:08x}"),
            Self::Blake3(root) => write!(f, "blake3:{}", hex::encode(root)),
        }
    }
}

impl ChecksumAlgorithm {
    /// The name used in presets.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sha1 => "sha-1",
            Self::Crc32c => "crc-32c",
            Self::Blake3 => "blake3",
        }
    }

    /// The algorithm of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::Sha1, Self::Crc32c, Self::Blake3].into_iter().find(|a| a.name() == name)
    }

    /// The checksum of `data`.
    pub fn of(self, data: &[u8]) -> Checksum {
        let mut hasher = self.hasher();
        hasher.update(data);
        hasher.finish()
    }

    /// Starts an incremental computation.
    pub fn hasher(self) -> Hasher {
        Hasher(match self {
            Self::None => State::None,
            Self::Sha1 => State::Sha1(sha1::Sha1::new()),
            Self::Crc32c => State::Crc32c(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi)),
            Self::Blake3 => State::Blake3(Box::new(blake3::Hasher::new())),
        })
    }
}

/// A checksum in the making.
pub struct Hasher(State);

enum State {
    None,
    Sha1(sha1::Sha1),
    Crc32c(crc_fast::Digest),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// Adds `data`.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.0 {
            State::None => {}
            State::Sha1(hasher) => hasher.update(data),
            State::Crc32c(digest) => digest.update(data),
            State::Blake3(hasher) => {
                hasher.update(data);
            }
        }
    }

    /// The checksum of all that was added.
    pub fn finish(self) -> Checksum {
        match self.0 {
            State::None => Checksum::None,
            State::Sha1(hasher) => Checksum::Sha1(hasher.finalize().into()),
            State::Crc32c(digest) => {
                // A 32-bit CRC in a 64-bit return type: the upper half is zero.
                Checksum::Crc32c(u32::try_from(digest.finalize() & 0xffff_ffff).unwrap_or(0))
            }
            State::Blake3(hasher) => Checksum::Blake3(*hasher.finalize().as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_castagnoli() {
        let crc = |data: &[u8]| ChecksumAlgorithm::Crc32c.of(data);
        assert_eq!(crc(b"123456789"), Checksum::Crc32c(0xE306_9283));
        assert_eq!(crc(b""), Checksum::Crc32c(0));
        assert_eq!(crc(&[0; 32]), Checksum::Crc32c(0x8A91_36AA));
        assert_eq!(crc(b"The quick brown fox jumps over the lazy dog"), Checksum::Crc32c(0x2262_0404));
    }

    #[test]
    fn sha1_and_blake3_have_their_known_values() {
        assert_eq!(
            ChecksumAlgorithm::Sha1.of(b"abc").to_string(),
            "sha-1:a9993e364706816aba3e25717850c26c9cd0d89d"
        );
        assert_eq!(
            ChecksumAlgorithm::Blake3.of(b"").to_string(),
            "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }

    #[test]
    fn pieces_give_the_checksum_of_the_whole() {
        let data: Vec<u8> = (0..10_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        for algorithm in [
            ChecksumAlgorithm::None,
            ChecksumAlgorithm::Sha1,
            ChecksumAlgorithm::Crc32c,
            ChecksumAlgorithm::Blake3,
        ] {
            let mut hasher = algorithm.hasher();
            data.chunks(77).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), algorithm.of(&data));
        }
    }
}
