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
