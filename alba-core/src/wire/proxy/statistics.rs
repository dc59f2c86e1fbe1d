//! ProxyStatistics (command 15).

use bytes::Bytes;

use crate::wire::common::Stat;
use crate::wire::llio::{Reader, WireError, Writer};

/// Statistics of one namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct NamespaceStatistics {
    /// Seconds per upload.
    pub upload: Stat,
    /// Seconds per download.
    pub download: Stat,
    /// Manifests found in the cache.
    pub manifest_cached: u32,
    /// Manifests fetched.
    pub manifest_from_nsm: u32,
    /// Manifests that were cached but out of date.
    pub manifest_stale: u32,
    /// Fragments found in the cache.
    pub fragment_cache_hits: u32,
    /// Fragments not found there.
    pub fragment_cache_misses: u32,
    /// Bytes per partial read.
    pub partial_read_size: Stat,
    /// Slices per partial read.
    pub partial_read_count: Stat,
    /// Seconds per partial read.
    pub partial_read_time: Stat,
    /// Objects per partial read.
    pub partial_read_objects: Stat,
    /// Seconds per delete.
    pub delete: Stat,
    /// Slices per partial read of nothing.
    pub empty_partial_read_count: Stat,
    /// Seconds per partial read of nothing.
    pub empty_partial_read_time: Stat,
    /// Objects per partial read of nothing.
    pub empty_partial_read_objects: Stat,
    /// Unix seconds.
    pub last_updated: f64,
}

impl NamespaceStatistics {
    const LEN: usize = 10 * Stat::LEN + 5 * 4 + 8;

    fn read(r: &mut Reader) -> Result<Self, WireError> {
        Ok(Self {
            upload: Stat::read(r)?,
            download: Stat::read(r)?,
            manifest_cached: r.uint32()?,
            manifest_from_nsm: r.uint32()?,
            manifest_stale: r.uint32()?,
            fragment_cache_hits: r.uint32()?,
            fragment_cache_misses: r.uint32()?,
            partial_read_size: Stat::read(r)?,
            partial_read_count: Stat::read(r)?,
            partial_read_time: Stat::read(r)?,
            partial_read_objects: Stat::read(r)?,
            delete: Stat::read(r)?,
            empty_partial_read_count: Stat::read(r)?,
            empty_partial_read_time: Stat::read(r)?,
            empty_partial_read_objects: Stat::read(r)?,
            last_updated: r.float()?,
        })
    }

    fn write(&self, w: &mut Writer) {
        self.upload.write(w);
        self.download.write(w);
        for count in [
            self.manifest_cached,
            self.manifest_from_nsm,
            self.manifest_stale,
            self.fragment_cache_hits,
            self.fragment_cache_misses,
        ] {
            w.uint32(count);
        }
        for stat in [
            &self.partial_read_size,
            &self.partial_read_count,
            &self.partial_read_time,
            &self.partial_read_objects,
            &self.delete,
            &self.empty_partial_read_count,
            &self.empty_partial_read_time,
            &self.empty_partial_read_objects,
        ] {
            stat.write(w);
        }
        w.float(self.last_updated);
    }
}

/// Statistics of a proxy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProxyStatistics {
    /// Since when, Unix seconds.
    pub creation: f64,
    /// For how long, seconds.
    pub period: f64,
    /// By namespace name.
    pub namespaces: Vec<(Bytes, NamespaceStatistics)>,
}

impl ProxyStatistics {
    pub(super) fn read(r: &mut Reader) -> Result<Self, WireError> {
        match r.int8()? {
            1 => Ok(Self {
                creation: r.float()?,
                period: r.float()?,
                namespaces: r.list(4 + NamespaceStatistics::LEN, |r| {
                    Ok((r.bytes()?, NamespaceStatistics::read(r)?))
                })?,
            }),
            tag => Err(WireError::Tag { what: "statistics version", tag: u32::from(tag) }),
        }
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.int8(1);
        w.float(self.creation);
        w.float(self.period);
        w.list(&self.namespaces, |w, (name, statistics)| {
            w.bytes(name);
            statistics.write(w);
        });
    }
}
