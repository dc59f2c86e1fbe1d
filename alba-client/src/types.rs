//! The plain values of the API.

use std::sync::Arc;

use alba_core::checksum::Checksum;
use alba_core::ids::{NamespaceId, ObjectName};
use alba_core::manifest::Manifest;
use alba_core::wire::rpc::nsm::Overwrite;
use bytes::Bytes;

use crate::ObjectSource;
use crate::buffers::Room;

/// How fresh a manifest must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Asked from the namespace's group, linearizably.
    Consistent,
    /// A cached one will do, whatever its age; "there is none" is still never answered from a cache.
    Cached,
}

/// An object as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// Where.
    pub namespace: NamespaceId,
    /// What and how.
    pub manifest: Arc<Manifest>,
}

/// How to upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadOptions {
    /// What may be replaced.
    pub overwrite: Overwrite,
    /// The checksum the client expects, if it says one (wire-protocol §2.5).
    pub checksum: Option<Checksum>,
}

impl Default for UploadOptions {
    fn default() -> Self {
        Self { overwrite: Overwrite::Unconditionally, checksum: None }
    }
}

/// A change of a sequence. Of several for one name the last counts.
pub enum SequenceUpdate {
    /// Stores an object, replacing any.
    Upload {
        /// Its name.
        name: ObjectName,
        /// Its bytes.
        source: Box<dyn ObjectSource>,
        /// The checksum the client expects.
        checksum: Option<Checksum>,
    },
    /// Removes a name; a free one is fine.
    Delete {
        /// Which.
        name: ObjectName,
    },
}

/// A part of an object, as the wire has it: checked by [`Client::read_slices`](crate::Client::read_slices).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// Where it begins, in bytes.
    pub offset: i64,
    /// How long it is, in bytes.
    pub length: i32,
}

/// What was read. Its bytes count against the client's `max_bytes_in_flight` until it is dropped.
#[derive(Debug)]
pub struct SlicesRead {
    /// The bytes asked for, in the order of the request; a slice may be in several pieces.
    pub data: Vec<Bytes>,
    /// The objects read, one per entry of the request.
    pub objects: Vec<StoredObject>,
    pub(crate) _room: Room,
}
