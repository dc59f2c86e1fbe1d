//! Why the ABM refuses, with the numbers that management software branches on.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::LeafProgress;
use crate::ids::{GroupId, IdError, JobName, LongId, NamespaceName, PresetName, TaskName};

/// The original's error numbers (features §5.3), all of them.
pub mod code {
    /// Anything else.
    pub const UNKNOWN: u32 = 1;
    /// `Nsm_host_already_exists`.
    pub const GROUP_EXISTS: u32 = 3;
    /// `Nsm_host_unknown`.
    pub const GROUP_UNKNOWN: u32 = 4;
    /// `Namespace_already_exists`.
    pub const NAMESPACE_EXISTS: u32 = 5;
    /// `Namespace_does_not_exist`.
    pub const NAMESPACE_UNKNOWN: u32 = 6;
    /// `Osd_already_exists`.
    pub const OSD_EXISTS: u32 = 7;
    /// `Osd_already_decommissioned`.
    pub const OSD_DECOMMISSIONED: u32 = 8;
    /// `Osd_already_linked_to_namespace`: cannot happen here, links are made by the ABM alone.
    pub const OSD_LINKED: u32 = 9;
    /// `Osd_unknown`.
    pub const OSD_UNKNOWN: u32 = 10;
    /// `Osd_already_claimed`.
    pub const OSD_CLAIMED: u32 = 11;
    /// `Osd_info_mismatch`.
    pub const OSD_INFO_MISMATCH: u32 = 12;
    /// `Preset_does_not_exist`.
    pub const PRESET_UNKNOWN: u32 = 13;
    /// `Preset_already_exists`.
    pub const PRESET_EXISTS: u32 = 14;
    /// `Preset_cant_delete_default`: cannot happen here, deleting the default leaves none.
    pub const PRESET_IS_DEFAULT: u32 = 15;
    /// `Preset_cant_delete_in_use`.
    pub const PRESET_IN_USE: u32 = 16;
    /// `Invalid_preset`.
    pub const PRESET_INVALID: u32 = 17;
    /// `Not_master`: a refusal of the server, not of the model.
    pub const NOT_MASTER: u32 = 25;
    /// `Old_plugin_version`: a refusal of the server, not of the model.
    pub const OLD_VERSION: u32 = 26;
    /// `Inconsistent_read`: a refusal of the server, not of the model.
    pub const INCONSISTENT_READ: u32 = 27;
    /// `Unknown_operation`: a refusal of the server, not of the model.
    pub const UNKNOWN_OPERATION: u32 = 28;
    /// `Claim_lease_mismatch`.
    pub const LEASE_MISMATCH: u32 = 29;
    /// `Progress_does_not_exist`.
    pub const PROGRESS_UNKNOWN: u32 = 30;
    /// `Progress_CAS_failed`.
    pub const PROGRESS_CAS_FAILED: u32 = 31;
    /// `Bad_argument`.
    pub const BAD_ARGUMENT: u32 = 32;
}

/// Why the ABM refused. Codes: features §5.3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum AbmError {
    /// No group for the namespace.
    #[error("there is no NSM group; add one first")]
    NoGroup,
    /// A namespace of that name exists.
    #[error("namespace {0} already exists")]
    NamespaceExists(NamespaceName),
    /// No such namespace.
    #[error("namespace {0} does not exist")]
    NamespaceUnknown(NamespaceName),
    /// Not in the state for this.
    #[error("namespace {0} is not active")]
    NamespaceNotActive(NamespaceName),
    /// An OSD of that long id is registered.
    #[error("OSD {0} is already registered")]
    OsdExists(LongId),
    /// No such OSD.
    #[error("OSD {0} is not registered")]
    OsdUnknown(LongId),
    /// The device belongs to someone.
    #[error("OSD {long_id} is already claimed by {owner}")]
    OsdClaimed {
        /// Which.
        long_id: LongId,
        /// Whose it is.
        owner: String,
    },
    /// The device could not be asked.
    #[error("OSD {long_id} cannot be reached: {reason}")]
    OsdUnreachable {
        /// Which.
        long_id: LongId,
        /// What happened.
        reason: String,
    },
    /// No such preset.
    #[error("preset {0} does not exist")]
    PresetUnknown(PresetName),
    /// A preset of that name exists.
    #[error("preset {0} already exists")]
    PresetExists(PresetName),
    /// The preset names OSDs that this backend has not.
    #[error("invalid preset: {0}")]
    PresetInvalid(String),
    /// Not bootstrapped, or a value out of range.
    #[error("{0}")]
    BadArgument(String),
    /// The server's own trouble.
    #[error("{0}")]
    Unknown(String),
    /// A group of that name exists.
    #[error("NSM group {0} already exists")]
    GroupExists(GroupId),
    /// No such group.
    #[error("NSM group {0} does not exist")]
    GroupUnknown(GroupId),
    /// It has been given up on.
    #[error("OSD {0} is already decommissioned")]
    OsdDecommissioned(LongId),
    /// What was said of the OSD does not fit what is known.
    #[error("OSD {long_id}: {reason}")]
    OsdInfoMismatch {
        /// Which.
        long_id: LongId,
        /// What does not fit.
        reason: String,
    },
    /// Some namespace uses the preset.
    #[error("preset {0} is in use")]
    PresetInUse(PresetName),
    /// Someone else has the task, or the token is old.
    #[error("task {task} is held by {holder}")]
    LeaseMismatch {
        /// Which.
        task: TaskName,
        /// Who has it.
        holder: String,
    },
    /// No such job or leaf.
    #[error("there is no job {0}, or it has no such leaf")]
    JobUnknown(JobName),
    /// The leaf is not where the sender thought.
    #[error("a leaf of job {name} has moved on")]
    ProgressMoved {
        /// Of which job.
        name: JobName,
        /// Where the leaf is.
        found: Box<LeafProgress>,
    },
}

impl From<IdError> for AbmError {
    fn from(error: IdError) -> Self {
        Self::BadArgument(error.to_string())
    }
}

impl AbmError {
    /// The original's error number.
    pub fn code(&self) -> u32 {
        match self {
            Self::Unknown(_) | Self::OsdUnreachable { .. } => code::UNKNOWN,
            Self::GroupExists(_) => code::GROUP_EXISTS,
            Self::NoGroup | Self::GroupUnknown(_) => code::GROUP_UNKNOWN,
            Self::NamespaceExists(_) => code::NAMESPACE_EXISTS,
            Self::NamespaceUnknown(_) | Self::NamespaceNotActive(_) => code::NAMESPACE_UNKNOWN,
            Self::OsdExists(_) => code::OSD_EXISTS,
            Self::OsdDecommissioned(_) => code::OSD_DECOMMISSIONED,
            Self::OsdUnknown(_) => code::OSD_UNKNOWN,
            Self::OsdClaimed { .. } => code::OSD_CLAIMED,
            Self::OsdInfoMismatch { .. } => code::OSD_INFO_MISMATCH,
            Self::PresetUnknown(_) => code::PRESET_UNKNOWN,
            Self::PresetExists(_) => code::PRESET_EXISTS,
            Self::PresetInUse(_) => code::PRESET_IN_USE,
            Self::PresetInvalid(_) => code::PRESET_INVALID,
            Self::LeaseMismatch { .. } => code::LEASE_MISMATCH,
            Self::JobUnknown(_) => code::PROGRESS_UNKNOWN,
            Self::ProgressMoved { .. } => code::PROGRESS_CAS_FAILED,
            Self::BadArgument(_) => code::BAD_ARGUMENT,
        }
    }
}
