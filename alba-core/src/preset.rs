//! Presets: what a namespace asks of its objects. A [`Preset`] is valid by construction.

use serde::{Deserialize, Serialize};

use crate::checksum::ChecksumAlgorithm;
use crate::ids::OsdId;
use crate::policy::Policy;

/// How fragments are compressed. Wire tags 1 none, 2 snappy; lz4 and zstd go out to old clients as snappy, which
/// they never decompress themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Compression {
    /// As is.
    None,
    /// A raw snappy block.
    Snappy,
    /// An lz4 block behind its plain length.
    Lz4,
    /// A zstd frame, level 1.
    Zstd,
}

impl Compression {
    const ALL: [Self; 4] = [Self::None, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The name used in presets.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The codec of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.name() == name)
    }
}

/// Which OSDs may hold the fragments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OsdSet {
    /// All of the backend, those claimed later too.
    All,
    /// These only.
    Explicit(Vec<OsdId>),
}

/// Rules for the checksum of a whole object (wire-protocol §2.5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectChecksums {
    /// What a client may send.
    pub allowed: Vec<ChecksumAlgorithm>,
    /// Computed when the client sends none.
    pub default: ChecksumAlgorithm,
    /// Compare what the client sent with the data.
    pub verify_upload: bool,
}

/// What a namespace asks of its objects (features §2.2). Field invariants: policies not empty; fragment size >= 16;
/// the default checksum is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preset {
    /// Preferred first; the first satisfiable one is used.
    pub policies: Vec<Policy>,
    /// Largest plain fragment in bytes.
    pub fragment_size: u32,
    /// Where fragments may go.
    pub osds: OsdSet,
    /// Per fragment.
    pub compression: Compression,
    /// Of packed fragments.
    pub fragment_checksum: ChecksumAlgorithm,
    /// Of whole objects.
    pub object_checksum: ObjectChecksums,
}

impl Preset {
    /// The preset called `default` that every backend starts with (interfaces §4).
    pub fn built_in() -> Self {
        Self {
            policies: [[5, 4, 8, 3], [2, 2, 3, 4]]
                .into_iter()
                .filter_map(|p| Policy::try_from(p).ok())
                .collect(),
            fragment_size: 1 << 20,
            osds: OsdSet::All,
            compression: Compression::None,
            fragment_checksum: ChecksumAlgorithm::Blake3,
            object_checksum: ObjectChecksums {
                allowed: vec![
                    ChecksumAlgorithm::None,
                    ChecksumAlgorithm::Sha1,
                    ChecksumAlgorithm::Crc32c,
                    ChecksumAlgorithm::Blake3,
                ],
                default: ChecksumAlgorithm::Crc32c,
                verify_upload: true,
            },
        }
    }
}
