//! What the ABM knows of OSDs, namespaces, presets and groups.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{GroupId, LongId, NamespaceId, NamespaceName, OsdId, Place, PresetName};
use crate::preset::Preset;
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

/// What an OSD is. Kinds with connection data of their own will carry it here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OsdKind {
    /// A storage daemon, reached by its endpoint.
    Asd,
}

/// Life of an OSD in this backend (features §1.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OsdState {
    /// Registered, not ours.
    Available,
    /// Claimed: takes part.
    Active,
    /// Being emptied: read from, never written to.
    Decommissioning,
    /// Takes no new fragments; what is there is read and counts as redundancy. Can become active again.
    Draining,
    /// Gone for good: never read, being forgotten.
    Purging,
    /// Emptied. Stays known until it is purged.
    Decommissioned,
    /// Another backend's.
    Foreign,
}

impl OsdState {
    /// Has this backend claimed it?
    pub fn is_claimed(self) -> bool {
        !matches!(self, Self::Available | Self::Foreign)
    }

    /// Is its data on the way out or gone?
    pub fn is_leaving(self) -> bool {
        matches!(self, Self::Decommissioning | Self::Purging | Self::Decommissioned)
    }
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
    /// What it is.
    pub kind: OsdKind,
    /// Of a foreign one: whose it is.
    pub owner: Option<String>,
}

/// Life of a namespace (features §1.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceState {
    /// The NSM group has not confirmed it.
    Creating,
    /// Usable.
    Active,
    /// Being deleted.
    Removing,
    /// Its group was lost; its objects are being made known to another one.
    Recovering,
    /// Deleted, and kept for a time.
    Trashed {
        /// Since when (microseconds since the Unix epoch, the ABM's time).
        since: u64,
    },
    /// Usable; its metadata is being copied to another group.
    Moving {
        /// Which.
        to: GroupId,
    },
}

impl NamespaceState {
    /// Can clients use it?
    pub fn is_usable(&self) -> bool {
        matches!(self, Self::Active | Self::Recovering | Self::Moving { .. })
    }
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

/// What a group has to do, as it reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLoad {
    /// Commands and reads in the last minute.
    pub operations_per_minute: u64,
    /// Size of its store.
    pub bytes: u64,
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
    /// As last reported.
    pub load: GroupLoad,
}
