//! The daemon's configuration.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use alba_core::ids::{LongId, Place};
use serde::{Deserialize, Serialize};

use crate::engine::{BLOCK_BYTES, EngineConfig};

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
    /// Listen on an address others can reach, although the protocol has no authentication.
    #[serde(default)]
    pub insecure_listen: bool,
    /// Where it serves metrics and health; nowhere when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// Sum of value sizes it may hold, in bytes; the size of the file system when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
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
        if !self.listen.ip().is_loopback() && !self.insecure_listen {
            return Err(format!(
                "asd.listen = {} can be reached from other machines and the protocol has no authentication: \
                 listen on loopback, or set asd.insecure_listen = true",
                self.listen
            ));
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
        Ok(())
    }

    pub(crate) fn engine(&self) -> EngineConfig {
        EngineConfig {
            segment_bytes: self.segment_bytes,
            capacity: self.capacity_bytes,
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
        AsdSection {
            data_dir: "/disk".into(),
            place: "node-0".parse().unwrap(),
            long_id: None,
            listen: default_listen(),
            insecure_listen: false,
            metrics_listen: None,
            capacity_bytes: None,
            limit_percent: default_limit(),
            segment_bytes: default_segment(),
            index_cache_bytes: default_index_cache(),
            max_connections: default_connections(),
            max_in_flight_bytes: default_in_flight(),
        }
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
        refused(|s| s.listen = ([0, 0, 0, 0], 8000).into(), "asd.insecure_listen");
        refused(|s| s.limit_percent = 0, "asd.limit_percent");
        refused(|s| s.segment_bytes = 4096, "asd.segment_bytes");
        refused(|s| s.segment_bytes += 1, "asd.segment_bytes");
        refused(|s| s.max_connections = 0, "asd.max_connections");
        refused(|s| s.max_in_flight_bytes = 1, "asd.max_in_flight_bytes");
        let mut open = section();
        open.listen = ([0, 0, 0, 0], 8000).into();
        open.insecure_listen = true;
        assert_eq!(open.check(), Ok(()));
    }
}
