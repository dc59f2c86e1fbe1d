//! Fragments in memory and on a local SSD, so that what is read often needs no OSD.
//!
//! A cache helps or is left out. It must never hand on bytes that were not verified, never cost a reader more than its
//! own deadline, never hold up a reader or writer to add something, and never take more memory or disk than the
//! configuration says. What it holds is never stale: it is found by the object's id, which is never used twice, not by
//! a name.
//!
//! ```text
//!   [`Fragments`]   what reads and uploads call: verifies, merges misses, fetches what is read in slices
//!      └─ [`LocalCache`]   keys with generations; memory first
//!            ├─ [`ram::Ram`]
//!            └─ [`guarded::Guarded`]   deadline, one read per entry, bounded queue of writes, circuit breaker
//!                  └─ [`ssd::Ssd`]   foyer, on threads of its own
//! ```

mod breaker;
mod config;
mod entry;
mod flights;
mod fragments;
mod generations;
mod guarded;
mod local;
mod ram;
mod sketch;
mod ssd;
mod statistics;
#[cfg(test)]
pub(crate) mod tests;
mod tier;

use std::sync::Arc;

use alba_core::env::Env;
use alba_core::ids::NamespaceId;
use alba_core::osd_keys::FragmentAddress;
use async_trait::async_trait;

pub use config::{FragmentCacheConfig, FragmentCacheKind};
pub(crate) use entry::Entry;
pub(crate) use fragments::Fragments;
pub use statistics::{DiskStatistics, FragmentCacheStatistics, TierStatistics};

/// Which fragment. What is stored under an address is written once, so what is cached under it is never stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CacheKey {
    pub(crate) namespace: NamespaceId,
    pub(crate) address: FragmentAddress,
}

/// A cache of fragments. What it gives is not to be trusted before it was verified ([`Entry::whole`], [`Entry::range`]).
#[async_trait]
pub(crate) trait FragmentCache: Send + Sync + 'static {
    /// What is kept under a key. Takes no longer than the cache's own deadline; dropping it leaves nothing behind.
    async fn get(&self, key: &CacheKey) -> Option<Entry>;

    /// Would a lookup be likely to find something? At once.
    fn may_have(&self, key: &CacheKey) -> bool;

    /// Keeps an entry, or not. At once.
    fn put(&self, key: &CacheKey, entry: Entry);

    /// Forgets an entry that was wrong.
    fn remove(&self, key: &CacheKey);

    /// Forgets all of a namespace.
    fn drop_namespace(&self, namespace: NamespaceId);

    /// What was counted.
    fn statistics(&self) -> FragmentCacheStatistics;
}

/// No cache.
pub(crate) struct Nothing;

#[async_trait]
impl FragmentCache for Nothing {
    async fn get(&self, _: &CacheKey) -> Option<Entry> {
        None
    }

    fn may_have(&self, _: &CacheKey) -> bool {
        false
    }

    fn put(&self, _: &CacheKey, _: Entry) {}

    fn remove(&self, _: &CacheKey) {}

    fn drop_namespace(&self, _: NamespaceId) {}

    fn statistics(&self) -> FragmentCacheStatistics {
        FragmentCacheStatistics::default()
    }
}

/// The cache that the configuration asks for. A disk is opened in the background: until then, and if it cannot be, the cache is
/// that much smaller.
pub(crate) fn open(env: &Env, config: &FragmentCacheConfig) -> Arc<dyn FragmentCache> {
    let (generations, sketch) = (Arc::new(generations::Generations::new()), Arc::new(sketch::Sketch::new()));
    let disk = match (config.kind, &config.path) {
        (FragmentCacheKind::None, _) => return Arc::new(Nothing),
        (FragmentCacheKind::Local, Some(path)) => {
            let (generations, sketch) = (Arc::clone(&generations), Arc::clone(&sketch));
            let ssd = ssd::Ssd::new(path.clone(), config.disk_bytes, generations, sketch);
            let rate = config.write_bytes_per_second;
            Some(guarded::Guarded::start(Arc::new(ssd), env, config.read_deadline(), rate))
        }
        // A path is there: the configuration was checked.
        (FragmentCacheKind::Ram | FragmentCacheKind::Local, _) => None,
    };
    Arc::new(local::LocalCache::new(config.ram_bytes, disk, generations, sketch))
}
