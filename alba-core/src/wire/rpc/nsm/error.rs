//! Why an NSM group refuses.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{GcEpoch, NamespaceId, ObjectName, ObjectVersion, OsdId};

/// Why an NSM group refused. Codes: features §2.12.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum NsmError {
    /// The server's own trouble.
    #[error("{0}")]
    Unknown(String),
    /// The epoch is not valid any more (or not yet).
    #[error("gc epoch {0} is not valid")]
    InvalidGcEpoch(GcEpoch),
    /// No such object.
    #[error("object not found")]
    ObjectNotFound,
    /// The object id is in use, or was and its fragments wait to be deleted.
    #[error("object id is not unique")]
    NonUniqueObjectId,
    /// This group does not own the namespace.
    #[error("namespace {0} is not here")]
    NamespaceMoved(NamespaceId),
    /// The overwrite mode forbids it.
    #[error("object {0} may not be overwritten")]
    OverwriteNotAllowed(ObjectName),
    /// The manifest is not at the version the update needs.
    #[error("object is at version {0}")]
    InvalidVersion(ObjectVersion),
    /// Two fragments of a chunk on one OSD.
    #[error("two fragments of a chunk on one OSD")]
    InvalidFragmentSpread,
    /// A fragment on an OSD that takes none.
    #[error("OSD {0} takes no new fragments")]
    InactiveOsd(OsdId),
    /// An assert of a sequence failed.
    #[error("assert failed on object {0}")]
    AssertFailed(ObjectName),
    /// Too few fragments or too many per node for every policy of the preset.
    #[error("the fragments satisfy no policy of the preset")]
    InvalidBucket,
    /// The manifest is not as the preset wants it.
    #[error("not as the preset wants it: {0}")]
    PresetViolated(String),
    /// The command is larger than the group takes.
    #[error("too large: {0}")]
    TooLarge(String),
    /// An update that contradicts itself or the object.
    #[error("no possible update: {0}")]
    InvalidUpdate(String),
    /// Fewer fragments of a chunk than are needed to read it.
    #[error("a chunk has too few fragments to be read")]
    InsufficientFragments,
    /// The namespace is about to be served by another group; the same command under a new request id succeeds soon,
    /// here or there.
    #[error("namespace {0} is being moved to another group")]
    NamespaceFrozen(NamespaceId),
    /// The namespace is in the trash.
    #[error("namespace {0} is in the trash: restore it first")]
    NamespaceTrashed(NamespaceId),
    /// The namespace is not complete yet.
    #[error("namespace {0} is being recovered")]
    NamespaceRecovering(NamespaceId),
    /// What only a recovering namespace takes.
    #[error("namespace {0} is not being recovered")]
    NotRecovering(NamespaceId),
    /// A step of a move that does not fit what is here.
    #[error("this step of the move is not possible: {0}")]
    MoveRefused(String),
}

impl NsmError {
    /// The original's error number (features §2.12). Its other numbers have no error here: 10 (not the master) and 14
    /// (inconsistent read) are [`super::super::Refusal`]s, 12 (old plug-in) has no counterpart, 13 (unknown operation) is
    /// a body that does not decode, 15 (old time stamp) cannot be since the group gives them, 18 (too many disks per
    /// node) is contained in 21.
    pub fn code(&self) -> u32 {
        match self {
            Self::Unknown(_)
            | Self::TooLarge(_)
            | Self::InvalidUpdate(_)
            | Self::NotRecovering(_)
            | Self::MoveRefused(_) => 1,
            Self::InvalidGcEpoch(_) => 5,
            Self::ObjectNotFound => 6,
            Self::NonUniqueObjectId => 7,
            Self::NamespaceMoved(_) | Self::NamespaceTrashed(_) | Self::NamespaceRecovering(_) => 8,
            Self::OverwriteNotAllowed(_) => 9,
            // Like another master: to be tried again.
            Self::NamespaceFrozen(_) => 10,
            Self::InvalidVersion(_) => 11,
            Self::InvalidFragmentSpread => 16,
            Self::InactiveOsd(_) => 17,
            Self::InsufficientFragments => 19,
            Self::AssertFailed(_) => 20,
            Self::InvalidBucket => 21,
            Self::PresetViolated(_) => 22,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_original() {
        let name = ObjectName::new("a").unwrap();
        let namespace = NamespaceId::from_u32(1);
        for (error, code) in [
            (NsmError::Unknown(String::new()), 1),
            (NsmError::TooLarge(String::new()), 1),
            (NsmError::InvalidUpdate(String::new()), 1),
            (NsmError::NotRecovering(namespace), 1),
            (NsmError::MoveRefused(String::new()), 1),
            (NsmError::InvalidGcEpoch(GcEpoch::from_u32(1)), 5),
            (NsmError::ObjectNotFound, 6),
            (NsmError::NonUniqueObjectId, 7),
            (NsmError::NamespaceMoved(namespace), 8),
            (NsmError::NamespaceTrashed(namespace), 8),
            (NsmError::NamespaceRecovering(namespace), 8),
            (NsmError::OverwriteNotAllowed(name.clone()), 9),
            (NsmError::NamespaceFrozen(namespace), 10),
            (NsmError::InvalidVersion(ObjectVersion(1)), 11),
            (NsmError::InvalidFragmentSpread, 16),
            (NsmError::InactiveOsd(OsdId::from_u32(1)), 17),
            (NsmError::InsufficientFragments, 19),
            (NsmError::AssertFailed(name), 20),
            (NsmError::InvalidBucket, 21),
            (NsmError::PresetViolated(String::new()), 22),
        ] {
            assert_eq!(error.code(), code, "{error:?}");
        }
    }
}
