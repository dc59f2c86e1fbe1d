//! What went wrong, as far as a caller can act on it.

use std::io;

use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::encryption::KeyError;
use alba_core::env::{DeadlineExceeded, MetaError, TaskGone};
use alba_core::ids::{ChunkIndex, IdError, NamespaceName, ObjectName, OsdId, PresetName};
use thiserror::Error;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClientError {
    /// No such namespace.
    #[error("namespace {0} does not exist")]
    NamespaceUnknown(NamespaceName),
    /// The name is taken.
    #[error("namespace {0} already exists")]
    NamespaceExists(NamespaceName),
    /// No such preset.
    #[error("preset {0} does not exist")]
    PresetUnknown(PresetName),
    /// No such object.
    #[error("object {0} does not exist")]
    ObjectUnknown(ObjectName),
    /// The overwrite mode forbids it.
    #[error("object {0} may not be overwritten")]
    OverwriteNotAllowed(ObjectName),
    /// An assert of a sequence failed on this object; nothing happened.
    #[error("assert failed on object {0}")]
    AssertFailed(ObjectName),
    /// The data is not what its checksum says.
    #[error("object {object}: checksum is {found}, expected {expected}")]
    ChecksumMismatch {
        /// Whose.
        object: ObjectName,
        /// Given by the client or kept in the manifest.
        expected: Checksum,
        /// Of the data.
        found: Checksum,
    },
    /// The preset does not allow checksums of this algorithm.
    #[error("the preset does not allow object checksums of algorithm {}", .0.name())]
    ChecksumNotAllowed(ChecksumAlgorithm),
    /// Too few usable OSDs, or too few nodes, for every policy of the preset.
    #[error("no policy can be satisfied: {reason}")]
    NoSatisfiablePolicy {
        /// What there is and what is missing.
        reason: String,
    },
    /// A slice of negative length.
    #[error("slice length is negative")]
    BadSliceLength,
    /// Slices of one object overlap.
    #[error("slices overlap")]
    OverlappingSlices,
    /// A slice ends beyond the object.
    #[error("slice is outside the object")]
    SliceOutsideObject,
    /// One answer would be larger than is allowed.
    #[error("{asked} bytes are asked for at once; at most {limit} are allowed")]
    TooMuchAtOnce {
        /// Bytes of the answer.
        asked: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// An object larger than the manifest format can describe.
    #[error("object {object} is too large: {reason}")]
    ObjectTooLarge {
        /// Which.
        object: ObjectName,
        /// Which limit.
        reason: String,
    },
    /// Fewer intact fragments of a chunk than are needed to read it.
    #[error(
        "object {object}, chunk {chunk}: only {found} of the {needed} fragments needed could be read ({detail})"
    )]
    NotEnoughFragments {
        /// Which object.
        object: ObjectName,
        /// Which chunk.
        chunk: ChunkIndex,
        /// k.
        needed: usize,
        /// Intact and reachable.
        found: usize,
        /// What happened to the others.
        detail: String,
    },
    /// Fewer fragments of a chunk could be stored than the policy asks.
    #[error(
        "object {object}, chunk {chunk}: only {stored} of the {needed} fragments needed could be stored ({detail})"
    )]
    ChunkNotStored {
        /// Which object.
        object: ObjectName,
        /// Which chunk.
        chunk: ChunkIndex,
        /// c.
        needed: usize,
        /// Acknowledged.
        stored: usize,
        /// What happened to the others.
        detail: String,
    },
    /// A fragment had the right checksum but is not what the manifest describes.
    #[error("object {object} cannot be decoded: {reason}")]
    Undecodable {
        /// Which object.
        object: ObjectName,
        /// What does not fit.
        reason: String,
    },
    /// The key that the data is encrypted with cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No such OSD in this backend.
    #[error("OSD {0} is not known to this backend")]
    OsdUnknown(OsdId),
    /// The data to upload could not be read.
    #[error("cannot read the data to upload: {text}")]
    Source {
        /// The class of the I/O error.
        kind: io::ErrorKind,
        /// The error in words.
        text: String,
    },
    /// The downloaded data could not be written.
    #[error("cannot write the downloaded data: {text}")]
    Sink {
        /// The class of the I/O error.
        kind: io::ErrorKind,
        /// The error in words.
        text: String,
    },
    /// A metadata group refused or could not be reached.
    #[error(transparent)]
    Meta(MetaError),
    /// The deadline passed. What a write did is unknown.
    #[error("deadline exceeded while {waiting_for}")]
    Deadline {
        /// What was waited for.
        waiting_for: &'static str,
    },
    /// Too many requests wait already; nothing happened.
    #[error("too busy: {0}")]
    Busy(String),
    /// A name or id that the formats cannot carry.
    #[error(transparent)]
    InvalidName(#[from] IdError),
    /// The configuration is unusable.
    #[error("configuration: {0}")]
    Config(String),
    /// A defect of ours, or a version that does not fit.
    #[error("internal: {0}")]
    Internal(String),
}

impl ClientError {
    /// The data to upload could not be read.
    pub fn source(error: &io::Error) -> Self {
        Self::Source { kind: error.kind(), text: error.to_string() }
    }

    /// The downloaded data could not be written.
    pub fn sink(error: &io::Error) -> Self {
        Self::Sink { kind: error.kind(), text: error.to_string() }
    }

    /// The file to upload does not exist.
    pub fn is_source_not_found(&self) -> bool {
        matches!(self, Self::Source { kind: io::ErrorKind::NotFound, .. })
    }

    /// The deadline passed while waiting for `waiting_for`.
    pub(crate) fn deadline(waiting_for: &'static str) -> impl FnOnce(DeadlineExceeded) -> Self {
        move |DeadlineExceeded| Self::Deadline { waiting_for }
    }
}

impl From<TaskGone> for ClientError {
    fn from(error: TaskGone) -> Self {
        Self::Internal(error.to_string())
    }
}
