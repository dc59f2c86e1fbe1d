//! Commands, queries and records of the ABM (features §1.3 to §1.5, §2.2).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::nsm::NsmMessage;
use crate::ids::{
    AlbaId, GroupId, IdError, LongId, MessageId, NamespaceId, NamespaceName, OsdId, Place, PresetName,
};
use crate::preset::Preset;
use crate::range::{Page, RangeQuery};
use crate::units::ByteCount;

/// How to reach an OSD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsdEndpoint {
    /// All are tried, in order.
    pub ips: Vec<IpAddr>,
    /// TCP port of the ALBA ASD protocol.
    pub port: u16,
}

/// What an operator registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsdInfo {
    /// Its name, checked in every prologue.
    pub long_id: LongId,
    /// Where it stands.
    pub place: Place,
    /// How to reach it.
    pub endpoint: OsdEndpoint,
    /// Its size when last heard of.
    pub capacity: ByteCount,
    /// Its fill when last heard of.
    pub used: ByteCount,
}

/// Life of an OSD in this backend: available → active (claimed) → decommissioning → purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OsdState {
    /// Registered, not ours.
    Available,
    /// Claimed: takes part.
    Active,
    /// Being emptied.
    Decommissioning,
}

/// An OSD in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsdRecord {
    /// As registered.
    pub info: OsdInfo,
    /// Given when claimed.
    pub osd_id: Option<OsdId>,
    /// Where it is in its life.
    pub state: OsdState,
    /// Microseconds since the Unix epoch at the claim.
    pub claimed_since: Option<u64>,
}

/// Life of a namespace: creating → active → removing → gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceState {
    /// The NSM group has not confirmed it.
    Creating,
    /// Usable.
    Active,
    /// Being deleted.
    Removing,
}

/// A namespace in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceRecord {
    /// Its number.
    pub id: NamespaceId,
    /// Its name.
    pub name: NamespaceName,
    /// Where its objects' metadata is.
    pub group: GroupId,
    /// Where it is in its life.
    pub state: NamespaceState,
    /// Fixed for life.
    pub preset: PresetName,
}

/// A preset in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresetRecord {
    /// Its name.
    pub name: PresetName,
    /// What it asks.
    pub preset: Preset,
    /// 0, +1 per update.
    pub version: u32,
    /// Used when a namespace names none.
    pub is_default: bool,
    /// Some namespace uses it.
    pub in_use: bool,
}

/// An NSM group in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Its name.
    pub id: GroupId,
    /// Where its servers listen (`ip:port`).
    pub servers: Vec<String>,
    /// How many namespaces live there.
    pub namespaces: u64,
    /// Given up by the operator.
    pub lost: bool,
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Destination {
    /// An NSM group.
    Group(GroupId),
    /// An OSD.
    Osd(OsdId),
}

/// A message to an OSD (features §1.5): the OSD keeps the number of the next one, so each has its effect once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OsdMessage {
    /// Store the OSD's own id, so that a lost ABM can be rebuilt.
    Identify {
        /// Its id here.
        osd_id: OsdId,
    },
    /// Accept fragments of a namespace.
    AddNamespace {
        /// Its id.
        id: NamespaceId,
        /// Its name.
        name: NamespaceName,
        /// Its preset, kept on the device for recovery.
        preset_name: PresetName,
        /// The preset itself.
        preset: Box<Preset>,
    },
    /// Drop all keys of a namespace.
    RemoveNamespace {
        /// Its id.
        id: NamespaceId,
    },
}

/// What a queue towards a destination holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// For an NSM group.
    Nsm(NsmMessage),
    /// For an OSD.
    Osd(OsdMessage),
}

/// A change of the ABM's state. The time of a command is given by the leader when it is proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbmCommand {
    /// First start: fixes the backend's id and makes the `default` preset. A repeat changes nothing.
    Bootstrap {
        /// The id, if this is the first.
        alba_id: AlbaId,
    },
    /// Adds an NSM group, or changes its servers.
    AddGroup {
        /// Its name.
        id: GroupId,
        /// Where it listens.
        servers: Vec<String>,
    },
    /// Registers an OSD as available.
    AddOsd(OsdInfo),
    /// Changes place, endpoint or size of a registered OSD.
    UpdateOsd(OsdInfo),
    /// The ownership keys on the device are ours: allocate an id, link to the namespaces. Sent by the leader.
    MarkClaimed {
        /// Which.
        long_id: LongId,
    },
    /// Adds a preset.
    CreatePreset {
        /// Its name.
        name: PresetName,
        /// What it asks.
        preset: Box<Preset>,
    },
    /// Namespaces that name no preset get this one.
    SetDefaultPreset {
        /// Its name.
        name: PresetName,
    },
    /// Adds a namespace. The server answers once it can be written to, or after a bounded wait.
    CreateNamespace {
        /// Its name.
        name: NamespaceName,
        /// None: the default one.
        preset: Option<PresetName>,
    },
    /// Removes a namespace with all its objects.
    DeleteNamespace {
        /// Its name.
        name: NamespaceName,
    },
    /// Messages up to and including this one have had their effect. Sent by the leader.
    MarkDelivered {
        /// By whom.
        destination: Destination,
        /// The last.
        upto: MessageId,
    },
}

/// What a command gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbmOutcome {
    /// Done.
    Done,
    /// The backend's id.
    AlbaId(AlbaId),
    /// The claimed OSD's id.
    OsdId(OsdId),
    /// The namespace, as it is after the command.
    Namespace(NamespaceRecord),
}

/// Which OSDs to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OsdFilter {
    /// All known.
    All,
    /// Claimed by this backend.
    Claimed,
    /// Not claimed.
    Available,
}

/// A read of the ABM's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbmQuery {
    /// The backend's id.
    AlbaId,
    /// OSDs ordered by long id.
    Osds {
        /// Which.
        filter: OsdFilter,
        /// Range of long ids.
        range: RangeQuery,
    },
    /// One OSD.
    Osd(LongId),
    /// Presets ordered by name.
    Presets(RangeQuery),
    /// One preset.
    Preset(PresetName),
    /// Namespaces ordered by name, whatever their state.
    Namespaces(RangeQuery),
    /// One namespace.
    Namespace(NamespaceName),
    /// All NSM groups.
    Groups,
    /// The OSDs linked to a namespace whose AddNamespace was delivered.
    NamespaceOsds(NamespaceId),
    /// Undelivered messages of a destination, oldest first.
    Messages {
        /// Whose.
        destination: Destination,
        /// At most this many.
        max: u32,
    },
    /// Destinations that have undelivered messages, with how many.
    Queues,
}

/// What a read gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbmAnswer {
    /// The backend's id.
    AlbaId(AlbaId),
    /// OSDs.
    Osds(Page<OsdRecord>),
    /// One OSD.
    Osd(Option<OsdRecord>),
    /// Presets.
    Presets(Page<PresetRecord>),
    /// One preset.
    Preset(Option<PresetRecord>),
    /// Namespaces.
    Namespaces(Page<NamespaceRecord>),
    /// One namespace.
    Namespace(Option<NamespaceRecord>),
    /// NSM groups.
    Groups(Vec<GroupRecord>),
    /// OSD ids.
    OsdIds(Vec<OsdId>),
    /// Messages.
    Messages(Vec<(MessageId, Message)>),
    /// Queue lengths.
    Queues(Vec<(Destination, u64)>),
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
    /// Only an active namespace can be deleted.
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
}

impl From<IdError> for AbmError {
    fn from(error: IdError) -> Self {
        Self::BadArgument(error.to_string())
    }
}

impl AbmError {
    /// The original's error number (features §5.3), on which management software branches.
    pub fn code(&self) -> u32 {
        match self {
            Self::Unknown(_) | Self::OsdUnreachable { .. } => 1,
            Self::NoGroup => 4,
            Self::NamespaceExists(_) => 5,
            Self::NamespaceUnknown(_) | Self::NamespaceNotActive(_) => 6,
            Self::OsdExists(_) => 7,
            Self::OsdUnknown(_) => 10,
            Self::OsdClaimed { .. } => 11,
            Self::PresetUnknown(_) => 13,
            Self::PresetExists(_) => 14,
            Self::PresetInvalid(_) => 17,
            Self::BadArgument(_) => 32,
        }
    }
}
