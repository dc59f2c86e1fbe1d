//! What an operator can set of the fragment cache. Sizes are in bytes, times in milliseconds.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What fragments are cached in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FragmentCacheKind {
    /// Nothing.
    #[default]
    None,
    /// Memory.
    Ram,
    /// Memory, and a directory on a local SSD.
    Local,
}

/// The fragment cache. Every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FragmentCacheConfig {
    /// `none`, `ram` or `local`.
    #[serde(default)]
    pub kind: FragmentCacheKind,
    /// Directory of `local`, for this process alone. It may be emptied at any time; with another format in it, it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Memory for fragments. `local` takes about 64 MiB more, for what is on its way to the SSD.
    #[serde(default = "defaults::ram_bytes")]
    pub ram_bytes: u64,
    /// Space on the SSD. It is used up to this and then over and over again.
    #[serde(default = "defaults::disk_bytes")]
    pub disk_bytes: u64,
    /// Keep fragments that were read.
    #[serde(default = "defaults::yes")]
    pub cache_on_read: bool,
    /// Keep data fragments that are written.
    #[serde(default)]
    pub cache_on_write: bool,
    /// A slice of a fragment is read from its OSD as it is; when the same fragment is wanted for the n-th time, all of it is
    /// fetched in the background for the cache. 1: at the first time.
    #[serde(default = "defaults::fill_after_reads")]
    pub fill_after_reads: u8,
    /// How long the SSD may take before the OSDs are asked instead. At most 100.
    #[serde(default = "defaults::read_deadline_ms")]
    pub read_deadline_ms: u64,
    /// Most bytes written to the SSD in a second: it spares the SSD, and fragments beyond it are not kept there.
    #[serde(default = "defaults::write_bytes_per_second")]
    pub write_bytes_per_second: u64,
}

mod defaults {
    pub(super) fn ram_bytes() -> u64 {
        256 << 20
    }
    pub(super) fn disk_bytes() -> u64 {
        16 << 30
    }
    pub(super) fn yes() -> bool {
        true
    }
    pub(super) fn fill_after_reads() -> u8 {
        2
    }
    pub(super) fn read_deadline_ms() -> u64 {
        20
    }
    pub(super) fn write_bytes_per_second() -> u64 {
        200 << 20
    }
}

impl Default for FragmentCacheConfig {
    fn default() -> Self {
        Self {
            kind: FragmentCacheKind::None,
            path: None,
            ram_bytes: defaults::ram_bytes(),
            disk_bytes: defaults::disk_bytes(),
            cache_on_read: defaults::yes(),
            cache_on_write: false,
            fill_after_reads: defaults::fill_after_reads(),
            read_deadline_ms: defaults::read_deadline_ms(),
            write_bytes_per_second: defaults::write_bytes_per_second(),
        }
    }
}

/// Less is no cache on an SSD: eviction goes by blocks, and there must be some.
pub(super) const LEAST_DISK_BYTES: u64 = 16 << 20;

impl FragmentCacheConfig {
    /// How long the SSD may take.
    pub(crate) fn read_deadline(&self) -> Duration {
        Duration::from_millis(self.read_deadline_ms)
    }

    /// The first thing that is wrong with the values, in words for the operator.
    pub fn check(&self) -> Result<(), String> {
        if self.kind == FragmentCacheKind::None {
            return Ok(());
        }
        if self.kind == FragmentCacheKind::Local && self.path.is_none() {
            return Err("kind = \"local\" needs a path: a directory on a local SSD".to_owned());
        }
        if self.ram_bytes < 1 << 20 {
            return Err("ram_bytes must be at least 1048576 (1 MiB)".to_owned());
        }
        if self.kind == FragmentCacheKind::Local && self.disk_bytes < LEAST_DISK_BYTES {
            return Err(format!("disk_bytes must be at least {LEAST_DISK_BYTES} (16 MiB)"));
        }
        if !(1..=100).contains(&self.read_deadline_ms) {
            return Err("read_deadline_ms must be from 1 to 100".to_owned());
        }
        if self.fill_after_reads == 0 || self.write_bytes_per_second == 0 {
            return Err("fill_after_reads and write_bytes_per_second must be at least 1".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_named() {
        let with = |change: fn(&mut FragmentCacheConfig)| {
            let path = Some("/ssd".into());
            let mut config =
                FragmentCacheConfig { kind: FragmentCacheKind::Local, path, ..Default::default() };
            assert_eq!(config.check(), Ok(()));
            change(&mut config);
            config.check().unwrap_err()
        };
        assert!(with(|c| c.path = None).contains("path"));
        assert!(with(|c| c.ram_bytes = 1).contains("ram_bytes"));
        assert!(with(|c| c.disk_bytes = 1).contains("disk_bytes"));
        assert!(with(|c| c.read_deadline_ms = 101).contains("read_deadline_ms"));
        assert!(with(|c| c.fill_after_reads = 0).contains("fill_after_reads"));
        // Nothing of it matters without a cache.
        assert_eq!(FragmentCacheConfig { ram_bytes: 0, ..Default::default() }.check(), Ok(()));
    }
}
