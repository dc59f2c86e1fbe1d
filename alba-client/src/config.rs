//! What an operator can set of the object engine. Sizes are in bytes, times in milliseconds.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alba_core::net::asd::OsdTransport;
use serde::{Deserialize, Serialize};

use crate::FragmentCacheConfig;

/// Configuration of a [`Client`](crate::Client). Every field but `metadata` has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// Metadata servers; any one that answers is enough. Without any, [`Client::connect`](crate::Client::connect)
    /// refuses; daemons that embed this may name them elsewhere.
    #[serde(default)]
    pub metadata: Vec<SocketAddr>,
    /// PEM file with the certificate of the cluster's authority. With it, `tls_cert` and `tls_key` the metadata servers are
    /// reached over QUIC, each side knowing the other by its certificate; without them over plain TCP. OSDs that serve QUIC
    /// are reached with the same certificate: see `osd_transport`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// PEM file with the own certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the own private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// File of the cluster's key, which opens the keys of presets that encrypt; not readable for everybody. `alba ca init`
    /// makes it. Not needed where no preset encrypts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_key: Option<PathBuf>,
    /// How old what is known of OSDs and of a namespace may be when an upload starts, while no metadata server tells of changes.
    #[serde(default = "defaults::refresh_ms")]
    pub refresh_ms: u64,
    /// The same while one does: what has changed is asked for anew at once anyway.
    #[serde(default = "defaults::refresh_watched_ms")]
    pub refresh_watched_ms: u64,
    /// Limit of one call to one OSD.
    #[serde(default = "defaults::osd_timeout_ms")]
    pub osd_timeout_ms: u64,
    /// Deadline of small requests when the caller has none of its own. Bulk requests take the caller's.
    #[serde(default = "defaults::request_timeout_ms")]
    pub request_timeout_ms: u64,
    /// After the last chunk had enough fragments in time t, t × this is waited for the rest. From 0 to 100.
    #[serde(default = "defaults::upload_slack")]
    pub upload_slack: f64,
    /// Buffers of all uploads and downloads together. Requests wait for room, to their deadline. One chunk that is
    /// larger than this takes all of it.
    #[serde(default = "defaults::max_bytes_in_flight")]
    pub max_bytes_in_flight: u64,
    /// The same for one client of the process, such as a connection to a proxy. One that has nothing gets what it needs for
    /// one step, however much.
    #[serde(default = "defaults::max_client_bytes_in_flight")]
    pub max_client_bytes_in_flight: u64,
    /// Uploads that may run at once, those whose tags are still being removed included. One in eight more may change little:
    /// small uploads and deletions do not wait for large ones.
    #[serde(default = "defaults::max_uploads")]
    pub max_uploads: usize,
    /// Memory for cached manifests.
    #[serde(default = "defaults::manifest_cache_bytes")]
    pub manifest_cache_bytes: u64,
    /// TCP connections to one OSD.
    #[serde(default = "defaults::osd_connections")]
    pub osd_connections: usize,
    /// TCP connections to all OSDs together that stay open while nothing uses them; those beyond are closed after use.
    #[serde(default = "defaults::max_idle_osd_connections")]
    pub max_idle_osd_connections: usize,
    /// How OSDs are reached. `auto`: over TCP where the OSD is registered with such a port, over QUIC where it is registered
    /// with that alone. `tcp`, `quic`: only so; an OSD without such a port is not reached at all. Over QUIC all requests to an
    /// OSD share one connection, which is encrypted and shows a certificate; bulk costs ten times the CPU time of TCP.
    #[serde(default)]
    pub osd_transport: OsdTransport,
    /// Requests at once to one OSD that is reached over QUIC, each a stream of the one connection. From 1 to 256.
    #[serde(default = "defaults::osd_streams")]
    pub osd_streams: usize,
    /// Do reads go around OSDs that are slow: ask others when an answer takes unusually long, and others from the start while
    /// an OSD is known to be slow? Without, a slow OSD shows in every read that it has a part of.
    #[serde(default = "defaults::hedge")]
    pub hedge: bool,
    /// A read asks one more OSD when the first ones take unusually long, but never sooner than this…
    #[serde(default = "defaults::hedge_min_ms")]
    pub hedge_min_ms: u64,
    /// … and always after this.
    #[serde(default = "defaults::hedge_max_ms")]
    pub hedge_max_ms: u64,
    /// A fragment goes to a spare OSD as well when its write takes three times as long as the faster half of its chunk's
    /// writes, but never sooner than this.
    #[serde(default = "defaults::write_hedge_min_ms")]
    pub write_hedge_min_ms: u64,
    /// Pause between two reports to the ABM of how OSDs are doing.
    #[serde(default = "defaults::report_osds_ms")]
    pub report_osds_ms: u64,
    /// Fragments kept in memory and on a local SSD.
    #[serde(default)]
    pub fragment_cache: FragmentCacheConfig,
}

mod defaults {
    pub(super) fn refresh_ms() -> u64 {
        1000
    }
    pub(super) fn refresh_watched_ms() -> u64 {
        60_000
    }
    pub(super) fn osd_timeout_ms() -> u64 {
        10_000
    }
    pub(super) fn request_timeout_ms() -> u64 {
        20_000
    }
    pub(super) fn upload_slack() -> f64 {
        0.2
    }
    pub(super) fn max_bytes_in_flight() -> u64 {
        64 << 20
    }
    pub(super) fn max_client_bytes_in_flight() -> u64 {
        32 << 20
    }
    pub(super) fn max_uploads() -> usize {
        256
    }
    pub(super) fn manifest_cache_bytes() -> u64 {
        64 << 20
    }
    pub(super) fn max_idle_osd_connections() -> usize {
        4096
    }
    pub(super) fn osd_connections() -> usize {
        8
    }
    pub(super) fn osd_streams() -> usize {
        64
    }
    pub(super) fn hedge() -> bool {
        true
    }
    pub(super) fn hedge_min_ms() -> u64 {
        5
    }
    pub(super) fn hedge_max_ms() -> u64 {
        500
    }
    pub(super) fn write_hedge_min_ms() -> u64 {
        50
    }
    pub(super) fn report_osds_ms() -> u64 {
        60_000
    }
}

impl Default for ClientConfig {
    /// No metadata server: for [`Client::with_parts`](crate::Client::with_parts).
    fn default() -> Self {
        Self {
            metadata: Vec::new(),
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            cluster_key: None,
            refresh_ms: defaults::refresh_ms(),
            refresh_watched_ms: defaults::refresh_watched_ms(),
            osd_timeout_ms: defaults::osd_timeout_ms(),
            request_timeout_ms: defaults::request_timeout_ms(),
            upload_slack: defaults::upload_slack(),
            max_bytes_in_flight: defaults::max_bytes_in_flight(),
            max_client_bytes_in_flight: defaults::max_client_bytes_in_flight(),
            max_uploads: defaults::max_uploads(),
            manifest_cache_bytes: defaults::manifest_cache_bytes(),
            osd_connections: defaults::osd_connections(),
            max_idle_osd_connections: defaults::max_idle_osd_connections(),
            osd_transport: OsdTransport::Auto,
            osd_streams: defaults::osd_streams(),
            hedge: defaults::hedge(),
            hedge_min_ms: defaults::hedge_min_ms(),
            hedge_max_ms: defaults::hedge_max_ms(),
            write_hedge_min_ms: defaults::write_hedge_min_ms(),
            report_osds_ms: defaults::report_osds_ms(),
            fragment_cache: FragmentCacheConfig::default(),
        }
    }
}

impl ClientConfig {
    /// Limit of one call to one OSD.
    pub fn osd_timeout(&self) -> Duration {
        Duration::from_millis(self.osd_timeout_ms)
    }

    /// Deadline of small requests when the caller has none.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    /// How soon a slow write may be sent to a spare OSD.
    pub(crate) fn write_hedge_min(&self) -> Duration {
        Duration::from_millis(self.write_hedge_min_ms)
    }

    /// Authority, certificate and key, when there is a certificate.
    pub fn tls_files(&self) -> Option<(&Path, &Path, &Path)> {
        Some((self.tls_ca.as_deref()?, self.tls_cert.as_deref()?, self.tls_key.as_deref()?))
    }

    /// The first thing that is wrong with the values, in words for the operator.
    pub fn check(&self) -> Result<(), String> {
        let given = [&self.tls_ca, &self.tls_cert, &self.tls_key].into_iter().flatten().count();
        if given != 0 && given != 3 {
            return Err("tls_ca, tls_cert and tls_key belong together: give all of them or none".to_owned());
        }
        let at_least_one = [
            ("osd_timeout_ms", self.osd_timeout_ms),
            ("request_timeout_ms", self.request_timeout_ms),
            ("hedge_min_ms", self.hedge_min_ms),
            ("write_hedge_min_ms", self.write_hedge_min_ms),
            ("report_osds_ms", self.report_osds_ms),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                return Err(format!("{key} must be at least 1"));
            }
        }
        if self.max_uploads == 0 || self.osd_connections == 0 {
            return Err("max_uploads and osd_connections must be at least 1".to_owned());
        }
        // An OSD allows so many streams per connection; beyond that requests would wait to be opened.
        if !(1..=256).contains(&self.osd_streams) {
            return Err("osd_streams must be between 1 and 256".to_owned());
        }
        if self.osd_transport == OsdTransport::Quic && given == 0 {
            return Err("osd_transport = \"quic\" needs tls_ca, tls_cert and tls_key".to_owned());
        }
        if self.max_bytes_in_flight < 1 << 20 {
            return Err("max_bytes_in_flight must be at least 1048576 (1 MiB)".to_owned());
        }
        if self.max_client_bytes_in_flight < 1 << 20 {
            return Err("max_client_bytes_in_flight must be at least 1048576 (1 MiB)".to_owned());
        }
        if !(0.0..=100.0).contains(&self.upload_slack) {
            return Err("upload_slack must be between 0 and 100".to_owned());
        }
        if self.hedge_max_ms < self.hedge_min_ms {
            return Err("hedge_max_ms must not be below hedge_min_ms".to_owned());
        }
        self.fragment_cache.check().map_err(|reason| format!("fragment_cache: {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_nonsense_is_named() {
        assert_eq!(ClientConfig::default().check(), Ok(()));
        let with = |change: fn(&mut ClientConfig)| {
            let mut config = ClientConfig::default();
            change(&mut config);
            config.check().unwrap_err()
        };
        assert!(with(|c| c.osd_timeout_ms = 0).contains("osd_timeout_ms"));
        assert!(with(|c| c.upload_slack = f64::NAN).contains("upload_slack"));
        assert!(with(|c| c.tls_ca = Some("ca.pem".into())).contains("tls_cert"));
        assert!(with(|c| c.osd_streams = 257).contains("osd_streams"));
        assert!(with(|c| c.osd_transport = OsdTransport::Quic).contains("tls_cert"));
        assert!(with(|c| c.max_bytes_in_flight = 1).contains("max_bytes_in_flight"));
        assert!(with(|c| c.max_client_bytes_in_flight = 1).contains("max_client_bytes_in_flight"));
        assert!(with(|c| c.hedge_max_ms = 1).contains("hedge_max_ms"));
    }
}
