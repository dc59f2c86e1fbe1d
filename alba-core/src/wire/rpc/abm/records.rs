//! What the ABM knows of OSDs, namespaces, presets and groups.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::ids::{GroupId, LongId, NamespaceId, NamespaceName, OsdId, Place, PresetName};
use crate::preset::Preset;
use crate::units::ByteCount;

/// Where an OSD serves the ASD protocol. Ports are not 0.
///
/// Encoded as one number, QUIC × 2^16 + TCP, where 0 says that there is none. What has no QUIC has the encoding of a port alone: that
/// of records that were written before there was any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub enum OsdPorts {
    /// Over plain TCP.
    Tcp(u16),
    /// Over QUIC (a UDP port), to who has a certificate of the cluster.
    Quic(u16),
    /// Both ways.
    Both {
        /// The port of TCP.
        tcp: u16,
        /// The port of QUIC.
        quic: u16,
    },
}

impl From<u32> for OsdPorts {
    fn from(encoded: u32) -> Self {
        let [tcp_low, tcp_high, quic_low, quic_high] = encoded.to_le_bytes();
        let tcp = u16::from_le_bytes([tcp_low, tcp_high]);
        match u16::from_le_bytes([quic_low, quic_high]) {
            0 => Self::Tcp(tcp),
            quic if tcp == 0 => Self::Quic(quic),
            quic => Self::Both { tcp, quic },
        }
    }
}

impl From<OsdPorts> for u32 {
    fn from(ports: OsdPorts) -> Self {
        Self::from(ports.quic().unwrap_or(0)) << 16 | Self::from(ports.tcp().unwrap_or(0))
    }
}

impl OsdPorts {
    /// What is given; none when nothing is.
    pub fn of(tcp: Option<u16>, quic: Option<u16>) -> Option<Self> {
        match (tcp, quic) {
            (Some(tcp), Some(quic)) => Some(Self::Both { tcp, quic }),
            (Some(tcp), None) => Some(Self::Tcp(tcp)),
            (None, Some(quic)) => Some(Self::Quic(quic)),
            (None, None) => None,
        }
    }

    /// Can it be reached there?
    pub fn is_valid(self) -> bool {
        self.tcp() != Some(0) && self.quic() != Some(0)
    }

    /// The port of TCP, if there is one.
    pub fn tcp(self) -> Option<u16> {
        match self {
            Self::Tcp(tcp) | Self::Both { tcp, .. } => Some(tcp),
            Self::Quic(_) => None,
        }
    }

    /// The port of QUIC, if there is one.
    pub fn quic(self) -> Option<u16> {
        match self {
            Self::Quic(quic) | Self::Both { quic, .. } => Some(quic),
            Self::Tcp(_) => None,
        }
    }
}

/// How to reach an OSD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsdEndpoint {
    /// All are tried, in order.
    pub ips: Vec<IpAddr>,
    /// The same at each of them.
    pub ports: OsdPorts,
}

impl OsdEndpoint {
    /// One that is reached over TCP only.
    pub fn over_tcp(ips: Vec<IpAddr>, port: u16) -> Self {
        Self { ips, ports: OsdPorts::Tcp(port) }
    }

    /// Its addresses over TCP, in order.
    pub fn tcp(&self) -> impl Iterator<Item = SocketAddr> {
        self.at(self.ports.tcp())
    }

    /// Its addresses over QUIC, in order.
    pub fn quic(&self) -> impl Iterator<Item = SocketAddr> {
        self.at(self.ports.quic())
    }

    fn at(&self, port: Option<u16>) -> impl Iterator<Item = SocketAddr> {
        port.into_iter().flat_map(|port| self.ips.iter().map(move |ip| SocketAddr::new(*ip, port)))
    }
}

/// For people: `10.0.0.1,10.0.1.1:8000`, and the port of QUIC where there is one: `10.0.0.1:quic:8500`,
/// `10.0.0.1:8000+quic:8500`.
impl fmt::Display for OsdEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, ip) in self.ips.iter().enumerate() {
            write!(f, "{}{ip}", if number == 0 { "" } else { "," })?;
        }
        match self.ports {
            OsdPorts::Tcp(tcp) => write!(f, ":{tcp}"),
            OsdPorts::Quic(quic) => write!(f, ":quic:{quic}"),
            OsdPorts::Both { tcp, quic } => write!(f, ":{tcp}+quic:{quic}"),
        }
    }
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
