//! What the consensus library works with. Payloads are opaque bytes here: what an input means is the model's business,
//! and whether it is known at all is told by the format version in front of it.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::runtime::EnvRuntime;
use super::snapshot::SnapshotFile;

/// Names a replica for ever: drawn at random per data directory and never used again, so that a wiped disk cannot vote
/// in the name of the one that had promised something (architecture §5).
pub type NodeId = u64;

/// Where a replica is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Address of its metadata server (`ip:port`).
    pub address: String,
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// A batch of encoded inputs: one log entry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload(pub Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

openraft::declare_raft_types!(
    /// The library's types, for every group alike.
    pub TypeConfig:
        D = Payload,
        R = (),
        NodeId = NodeId,
        Node = Replica,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = SnapshotFile,
        AsyncRuntime = EnvRuntime,
);

/// Position of an entry.
pub type LogId = openraft::LogId<NodeId>;

/// A membership with its position.
pub type StoredMembership = openraft::StoredMembership<NodeId, Replica>;

/// What a snapshot holds.
pub type SnapshotMeta = openraft::SnapshotMeta<NodeId, Replica>;

/// What storage tells the library.
pub type StorageError = openraft::StorageError<NodeId>;
