//! Keys of the original's proxy that mean the same here under another name. Each wins over ours.
//!
//! The original has more: `docs/formats/proxy-protocol.md` says what became of each.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use alba_client::ClientConfig;
use serde::{Deserialize, Serialize};

use super::ProxyConfig;

/// The original's port.
const PORT: u16 = 10_000;

/// What the original could listen with. It had `rdma`, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// The only one.
    Tcp,
}

impl ProxyConfig {
    /// Where it listens over TCP: `ips` and `port` where they are given, else `listen`.
    pub fn listen_at(&self) -> SocketAddr {
        let ip = self.ips.as_ref().and_then(|ips| ips.first()).copied();
        match (ip, self.port) {
            (None, None) => self.listen,
            (ip, port) => (ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), port.unwrap_or(PORT)).into(),
        }
    }

    /// What is wrong with the original's keys.
    pub(super) fn check_original(&self) -> Result<(), String> {
        if self.ips.as_ref().is_some_and(|ips| ips.len() != 1) {
            return Err(
                "ips must name one address, the one to listen on; without it that is 127.0.0.1".to_owned()
            );
        }
        let timeout = self.osd_timeout.map_or(Ok(Duration::ZERO), Duration::try_from_secs_f64);
        if !timeout.is_ok_and(|timeout| self.osd_timeout.is_none() || timeout.as_millis() > 0) {
            return Err("osd_timeout (in seconds) must be at least 0.001".to_owned());
        }
        Ok(())
    }

    /// Puts the original's keys where they belong.
    pub(super) fn apply_original(&self, engine: &mut ClientConfig) {
        if let Some(slack) = self.upload_slack {
            engine.upload_slack = slack;
        }
        if let Some(seconds) = self.osd_timeout {
            let timeout = Duration::try_from_secs_f64(seconds).unwrap_or_default();
            engine.osd_timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        }
        if let Some(connections) = self.osd_connection_pool_size {
            engine.osd_connections = connections;
        }
        if let Some(bytes) = self.manifest_cache_size {
            engine.manifest_cache_bytes = bytes;
        }
    }
}
