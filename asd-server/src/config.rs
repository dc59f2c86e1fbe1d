//! The daemon's configuration.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use alba_core::env::real::disk::{IoConfig, IoMode};
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
    /// Where it serves the same protocol over QUIC, to who has a certificate of the cluster's authority; nowhere when not
    /// given. Needs `tls_cert`, `tls_key` and `tls_ca`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_listen: Option<SocketAddr>,
    /// PEM file with its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// PEM file with the certificate of the cluster's authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
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
    /// `auto`: the page cache is bypassed where the file system lets it; `direct`: always; `page-cache`: never.
    #[serde(default)]
    pub io_mode: IoModeName,
    /// Disk operations that run at once.
    #[serde(default = "default_io_threads")]
    pub io_threads: usize,
    /// Memory for reads and writes in progress, in bytes.
    #[serde(default = "default_io_buffers")]
    pub io_buffer_bytes: usize,
    /// Memory for small reads that come again: blocks of values, in bytes.
    #[serde(default = "default_block_cache")]
    pub block_cache_bytes: u64,
    /// Memory for where the values of often-read keys are, in bytes.
    #[serde(default = "default_entry_cache")]
    pub entry_cache_bytes: u64,
    /// Segments that are kept ready: their blocks are written once, ahead, so that writing values overwrites blocks.
    #[serde(default = "default_prepare_ahead")]
    pub prepare_ahead_segments: u64,
    /// Rate at which values are moved out of mostly dead segments while there is room; 0: no limit. Changes live.
    #[serde(default = "default_compaction")]
    pub compaction_bytes_per_second: u64,
    /// Rate of the scrub, which reads everything stored; 0: no limit. Changes live.
    #[serde(default = "default_scrub")]
    pub scrub_bytes_per_second: u64,
    /// Days from the beginning of one round of the scrub to the next.
    #[serde(default = "default_scrub_days")]
    pub scrub_days: u32,
    /// Announce this ASD by UDP multicast every so many seconds; never when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multicast_seconds: Option<u32>,
}

/// Names of the ways to do I/O.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoModeName {
    /// The page cache is bypassed where the file system lets it.
    #[default]
    Auto,
    /// The page cache is bypassed, or the ASD does not start.
    Direct,
    /// Through the page cache.
    PageCache,
}

fn default_io_threads() -> usize {
    IoConfig::default().threads
}

fn default_io_buffers() -> usize {
    IoConfig::default().buffer_bytes
}

fn default_block_cache() -> u64 {
    EngineConfig::default().block_cache_bytes
}

fn default_entry_cache() -> u64 {
    EngineConfig::default().entry_cache_bytes
}

fn default_prepare_ahead() -> u64 {
    2
}

fn default_compaction() -> u64 {
    EngineConfig::default().compaction_rate
}

fn default_scrub() -> u64 {
    EngineConfig::default().scrub_rate
}

fn default_scrub_days() -> u32 {
    14
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
    16 << 20
}

fn default_connections() -> usize {
    2048
}

fn default_in_flight() -> u64 {
    64 << 20
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
        if self.quic_listen.is_some() && self.tls_files().is_none() {
            return Err("asd.quic_listen needs asd.tls_cert, asd.tls_key and asd.tls_ca".into());
        }
        if !(1..=1024).contains(&self.io_threads) {
            return Err("asd.io_threads must be 1 to 1024".into());
        }
        if self.scrub_days == 0 {
            return Err("asd.scrub_days must be at least 1".into());
        }
        if self.multicast_seconds == Some(0) {
            return Err("asd.multicast_seconds must be at least 1; leave it out to announce nothing".into());
        }
        Ok(())
    }

    /// Authority, certificate and key, when all are given.
    pub(crate) fn tls_files(&self) -> Option<(&Path, &Path, &Path)> {
        Some((self.tls_ca.as_deref()?, self.tls_cert.as_deref()?, self.tls_key.as_deref()?))
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
            entry_cache_bytes: self.entry_cache_bytes,
            block_cache_bytes: self.block_cache_bytes,
            prepare_ahead: self.prepare_ahead_segments,
            compaction_rate: self.compaction_bytes_per_second,
            scrub_rate: self.scrub_bytes_per_second,
            scrub_every: Duration::from_secs(u64::from(self.scrub_days) * 24 * 3600),
            ..EngineConfig::default()
        }
    }

    /// How its disk is driven.
    pub(crate) fn io(&self) -> IoConfig {
        IoConfig {
            threads: self.io_threads,
            buffer_bytes: self.io_buffer_bytes,
            carries_bulk: true,
            mode: match self.io_mode {
                IoModeName::Auto => IoMode::Auto,
                IoModeName::Direct => IoMode::Direct,
                IoModeName::PageCache => IoMode::PageCache,
            },
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
        refused(|s| s.quic_listen = Some(default_listen()), "asd.tls_cert");
        refused(|s| s.io_threads = 0, "asd.io_threads");
        refused(|s| s.scrub_days = 0, "asd.scrub_days");
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
