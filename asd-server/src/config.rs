//! The daemon's configuration.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use alba_core::ids::{LongId, Place};
use serde::{Deserialize, Serialize};

use crate::engine::{BLOCK_BYTES, EngineConfig};
use crate::schedule::ScheduleLimits;
use crate::server::Exposure;

/// Configuration of an ASD: everything is in the section `asd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The section.
    pub asd: AsdSection,
}

/// The keys of the section `asd`. All but the directory and the place have defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AsdSection {
    /// Where it keeps everything. Made at the first start.
    pub data_dir: PathBuf,
    /// Where the device stands: `node`, `rack/node` or `zone/rack/node`. Fixed at the first start.
    pub place: Place,
    /// Its globally unique name; random when not given. Fixed at the first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_id: Option<LongId>,
    /// Where it serves the ASD protocol.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Serve everything on `listen` although others can reach it and the protocol has no authentication. Without it such
    /// an address serves direct reads only.
    #[serde(default)]
    pub insecure_listen: bool,
    /// Format the data directory at the first start. Without it, `asd-server format` must have done that: a disk that is
    /// not mounted is then not taken for a new one.
    #[serde(default = "default_true")]
    pub auto_format: bool,
    /// Where it serves metrics and health; nowhere when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// Sum of value sizes it may hold, in bytes; see also `capacity_percent`. Changes live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// The share of the file system it may fill, where several ASDs share one; 100 when neither is given. Changes live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_percent: Option<u8>,
    /// Percent of the capacity from which data is refused.
    #[serde(default = "default_limit")]
    pub limit_percent: u8,
    /// Size of new segments in bytes: 1 MiB to 1 GiB, a multiple of 4096.
    #[serde(default = "default_segment")]
    pub segment_bytes: u64,
    /// Cache of the index, in bytes.
    #[serde(default = "default_index_cache")]
    pub index_cache_bytes: u64,
    /// Connections at once.
    #[serde(default = "default_connections")]
    pub max_connections: usize,
    /// Bytes of requests in memory, over all connections; and the same again of answers.
    #[serde(default = "default_in_flight")]
    pub max_in_flight_bytes: u64,
    /// Bytes that the disk works on at once; more operations wait. Changes live.
    #[serde(default = "default_disk_in_flight")]
    pub disk_in_flight_bytes: u64,
    /// Bytes of maintenance that the disk works on at once while clients use it. Changes live.
    #[serde(default = "default_maintenance_in_flight")]
    pub maintenance_in_flight_bytes: u64,
    /// Announce this ASD by UDP multicast every so many seconds; never when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multicast_seconds: Option<u32>,
}

fn default_true() -> bool {
    true
}

fn default_disk_in_flight() -> u64 {
    ScheduleLimits::default().in_flight
}

fn default_maintenance_in_flight() -> u64 {
    ScheduleLimits::default().low_in_flight
}

fn default_listen() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 8000).into()
}

fn default_limit() -> u8 {
    99
}

fn default_segment() -> u64 {
    64 << 20
}

fn default_index_cache() -> u64 {
    32 << 20
}

fn default_connections() -> usize {
    2048
}

fn default_in_flight() -> u64 {
    128 << 20
}

impl AsdSection {
    /// Checks what types cannot.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.data_dir.as_os_str().is_empty() {
            return Err("asd.data_dir is empty: name the directory of this disk".into());
        }
        if !(1..=100).contains(&self.limit_percent) {
            return Err("asd.limit_percent must be 1 to 100".into());
        }
        if !(1 << 20..=1 << 30).contains(&self.segment_bytes)
            || !self.segment_bytes.is_multiple_of(BLOCK_BYTES)
        {
            return Err("asd.segment_bytes must be 1 MiB to 1 GiB and a multiple of 4096".into());
        }
        if self.max_connections == 0 {
            return Err("asd.max_connections must be at least 1".into());
        }
        if self.max_in_flight_bytes < self.segment_bytes {
            return Err(
                "asd.max_in_flight_bytes must be at least asd.segment_bytes: a batch may be so large".into(),
            );
        }
        if self.capacity_bytes.is_some() && self.capacity_percent.is_some() {
            return Err("asd.capacity_bytes and asd.capacity_percent are both given: leave one out".into());
        }
        if self.capacity_percent.is_some_and(|percent| !(1..=100).contains(&percent)) {
            return Err("asd.capacity_percent must be 1 to 100".into());
        }
        if self.disk_in_flight_bytes < 1 << 20 {
            return Err("asd.disk_in_flight_bytes must be at least 1 MiB".into());
        }
        if self.maintenance_in_flight_bytes > self.disk_in_flight_bytes / 2 {
            return Err(
                "asd.maintenance_in_flight_bytes must be at most half of asd.disk_in_flight_bytes".into()
            );
        }
        if self.multicast_seconds == Some(0) {
            return Err("asd.multicast_seconds must be at least 1; leave it out to announce nothing".into());
        }
        Ok(())
    }

    /// What its plain port serves.
    pub(crate) fn exposure(&self) -> Exposure {
        if self.listen.ip().is_loopback() || self.insecure_listen {
            Exposure::Trusted
        } else {
            Exposure::DirectReads
        }
    }

    pub(crate) fn schedule(&self) -> ScheduleLimits {
        ScheduleLimits {
            in_flight: self.disk_in_flight_bytes,
            low_in_flight: self.maintenance_in_flight_bytes,
            low_waiting: self.max_in_flight_bytes / 2,
            ..ScheduleLimits::default()
        }
    }

    /// Its capacity on a file system of `total` bytes.
    pub(crate) fn capacity(&self, total: u64) -> u64 {
        match (self.capacity_bytes, self.capacity_percent) {
            (Some(bytes), _) => bytes,
            (None, Some(percent)) => total / 100 * u64::from(percent),
            (None, None) => total,
        }
    }

    pub(crate) fn engine(&self, total: u64) -> EngineConfig {
        EngineConfig {
            segment_bytes: self.segment_bytes,
            capacity: Some(self.capacity(total)),
            limit_percent: self.limit_percent,
            queue_bytes: self.max_in_flight_bytes,
            ..EngineConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> AsdSection {
        toml::from_str("data_dir = \"/disk\"\nplace = \"node-0\"").unwrap()
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(section().check(), Ok(()));
        let refused = |change: fn(&mut AsdSection), key: &str| {
            let mut section = section();
            change(&mut section);
            let error = section.check().unwrap_err();
            assert!(error.contains(key), "{error}");
        };
        refused(|s| s.data_dir = PathBuf::new(), "asd.data_dir");
        refused(|s| s.limit_percent = 0, "asd.limit_percent");
        refused(|s| s.segment_bytes = 4096, "asd.segment_bytes");
        refused(|s| s.segment_bytes += 1, "asd.segment_bytes");
        refused(|s| s.max_connections = 0, "asd.max_connections");
        refused(|s| s.max_in_flight_bytes = 1, "asd.max_in_flight_bytes");
        refused(|s| (s.capacity_bytes, s.capacity_percent) = (Some(1), Some(1)), "asd.capacity_percent");
        refused(|s| s.capacity_percent = Some(101), "asd.capacity_percent");
        refused(|s| s.disk_in_flight_bytes = 1, "asd.disk_in_flight_bytes");
        refused(|s| s.maintenance_in_flight_bytes = 64 << 20, "asd.maintenance_in_flight_bytes");
        refused(|s| s.multicast_seconds = Some(0), "asd.multicast_seconds");
    }

    #[test]
    fn a_port_that_others_reach_serves_direct_reads_unless_told_otherwise() {
        let mut section = section();
        assert_eq!(section.exposure(), Exposure::Trusted, "loopback");
        section.listen = ([0, 0, 0, 0], 8000).into();
        assert_eq!((section.check(), section.exposure()), (Ok(()), Exposure::DirectReads));
        section.insecure_listen = true;
        assert_eq!((section.check(), section.exposure()), (Ok(()), Exposure::Trusted));
    }

    #[test]
    fn capacity_is_bytes_a_share_or_the_whole_file_system() {
        let mut section = section();
        assert_eq!(section.capacity(1000), 1000);
        section.capacity_percent = Some(25);
        assert_eq!(section.capacity(1000), 250);
        (section.capacity_bytes, section.capacity_percent) = (Some(7), None);
        assert_eq!(section.capacity(1000), 7);
    }
}
