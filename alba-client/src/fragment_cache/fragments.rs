//! What reads and uploads call. Here everything that a cache gives is verified. (Concurrent misses are one read: that is the
//! reads' own doing, whether there is a cache or not.)

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alba_core::env::osd::{OsdKey, Priority, ValueSlice};
use alba_core::env::{Deadline, Env, computing, within};
use alba_core::fragment::Packed;
use alba_core::ids::{NamespaceId, OsdId};
use alba_core::manifest::{Fragment, PackedFragment, VerifiedFragment};
use alba_core::osd_keys::FragmentAddress;
use alba_core::policy::CodeShape;
use bytes::Bytes;

use super::entry::{Damaged, Entry};
use super::flights::Flights;
use super::sketch::Sketch;
use super::{CacheKey, FragmentCache, FragmentCacheConfig, FragmentCacheKind, FragmentCacheStatistics};
use crate::counters::Counter;
use crate::engine::Engine;
use crate::osd_pool::CallSize;

/// Bytes on their way into the cache, or fetched for it, at once. Beyond it fragments are not added.
const PENDING_BYTES: u64 = 32 << 20;

/// See the module.
pub(crate) struct Fragments {
    cache: Arc<dyn FragmentCache>,
    env: Env,
    config: FragmentCacheConfig,
    /// How often slices of a fragment were wanted that is not cached.
    wanted: Sketch,
    /// Fragments that are fetched because their slices are wanted again and again: nobody waits for one of these.
    fills: Flights<CacheKey, ()>,
    pending: Arc<AtomicU64>,
    damaged: Counter,
    dropped: Counter,
    filled: Arc<Counter>,
}

/// A part of [`PENDING_BYTES`]; given back when dropped.
struct Pending {
    all: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Fragments {
    pub(crate) fn new(env: Env, config: FragmentCacheConfig, cache: Arc<dyn FragmentCache>) -> Self {
        Self {
            cache,
            env,
            config,
            wanted: Sketch::new(),
            fills: Flights::new(),
            pending: Arc::default(),
            damaged: Counter::default(),
            dropped: Counter::default(),
            filled: Arc::default(),
        }
    }

    /// Is there a cache at all?
    pub(crate) fn enabled(&self) -> bool {
        self.config.kind != FragmentCacheKind::None
    }

    /// Is there one on a disk of this machine?
    pub(crate) fn is_local(&self) -> bool {
        self.config.kind == FragmentCacheKind::Local
    }

    pub(crate) fn statistics(&self) -> FragmentCacheStatistics {
        let statistics = self.cache.statistics();
        FragmentCacheStatistics {
            damaged: statistics.damaged + self.damaged.get(),
            dropped: self.dropped.get(),
            filled: self.filled.get(),
            ..statistics
        }
    }

    /// Forgets all of a namespace.
    pub(crate) fn drop_namespace(&self, namespace: NamespaceId) {
        self.cache.drop_namespace(namespace);
    }

    /// Would a lookup be likely to find it?
    pub(crate) fn may_have(&self, key: &CacheKey) -> bool {
        self.enabled() && self.cache.may_have(key)
    }

    fn wrong(&self, key: &CacheKey, _: Damaged) {
        self.damaged.add(1);
        self.cache.remove(key);
        tracing::warn!(namespace = %key.namespace, fragment = ?key.address, "a cached fragment was damaged; it is fetched anew");
    }

    /// A whole fragment, verified, if it is cached. The caller limits the time; the cache takes no more of it than its own
    /// deadline.
    pub(crate) async fn whole(
        &self,
        engine: &Engine,
        key: &CacheKey,
        fragment: &Fragment,
        deadline: Deadline,
    ) -> Option<VerifiedFragment> {
        if !self.enabled() {
            return None;
        }
        let entry = self.lookup(key, deadline).await?;
        let (bytes, wanted, fragment) = (u64::from(fragment.packed_len), *key, fragment.clone());
        let verified = engine.compute(bytes, move || entry.whole(&wanted, &fragment)).await.ok()?;
        verified.map_err(|damaged| self.wrong(key, damaged)).ok()
    }

    /// A whole fragment was read from its OSD and verified.
    pub(crate) fn read(&self, key: CacheKey, packed: &VerifiedFragment) {
        if self.enabled() && self.config.cache_on_read {
            self.add(key, packed.bytes().clone());
        }
    }

    async fn lookup(&self, key: &CacheKey, deadline: Deadline) -> Option<Entry> {
        // Whatever cache it is: no longer than this.
        let limit = deadline.capped(&*self.env.clock, self.config.read_deadline());
        within(&*self.env.clock, limit, self.cache.get(key)).await.ok().flatten()
    }

    /// A range of a fragment, packed, if it is cached.
    pub(crate) async fn range(
        &self,
        key: &CacheKey,
        packed_len: u32,
        range: ValueSlice,
        deadline: Deadline,
    ) -> Option<Bytes> {
        if !self.enabled() {
            return None;
        }
        let entry = self.lookup(key, deadline).await?;
        let part = entry.range(key, packed_len, range.offset, range.len);
        part.map_err(|damaged| self.wrong(key, damaged)).ok()
    }

    /// Slices of a fragment were read from its OSD. Wanted often enough, it is fetched whole, in the background.
    pub(crate) fn missed(
        &self,
        engine: &Engine,
        key: &CacheKey,
        (osd, stored_key): (OsdId, OsdKey),
        fragment: &Fragment,
    ) {
        if !self.enabled() || !self.config.cache_on_read {
            return;
        }
        let wanted = self.wanted.touch(foyer::DefaultHasher::default().hash_one(key));
        if wanted < self.config.fill_after_reads {
            return;
        }
        // Somebody fetches it already: it will be cached.
        let Some(lead) = self.fills.lead(key) else { return };
        let Some(pending) = self.pending(u64::from(fragment.packed_len)) else { return };
        let (env, pool, cache) = (self.env.clone(), Arc::clone(&engine.pool), Arc::clone(&self.cache));
        let (key, fragment, filled) = (*key, fragment.clone(), Arc::clone(&self.filled));
        let deadline = engine.deadline_in(engine.config.osd_timeout());
        let fill = async move {
            let _held = (pending, lead);
            let bytes = u64::from(fragment.packed_len);
            let Ok(member) = pool.member(osd, deadline).await else { return };
            let values = pool.call(&member, CallSize::of(bytes), deadline, |osd, deadline| {
                let keys = vec![stored_key.clone()];
                // Behind what somebody is waiting for.
                async move { osd.multi_get(keys, Priority::Low, deadline).await }
            });
            let Ok(Some(Some(stored))) = values.await.map(|values| values.into_iter().next()) else { return };
            let seal = move || {
                let verified = PackedFragment(stored.value).verify(&fragment).ok()?;
                Some(Entry::seal(key, verified.bytes().clone()))
            };
            // Damage is found and reported by who reads it for somebody.
            let Ok(Some(entry)) = computing(&*env.bulk, seal).await else { return };
            cache.put(&key, entry);
            filled.add(1);
        };
        // It moves much, and nobody waits for it.
        self.env.bulk.spawn("fragment-cache-fill", Box::pin(fill));
    }

    /// A fragment that is being uploaded. Its object is not committed yet: until it is, nobody knows its id.
    pub(crate) fn written(
        &self,
        namespace: NamespaceId,
        shape: CodeShape,
        address: &FragmentAddress,
        packed: &Packed,
    ) {
        let is_data = address.fragment.index() < shape.k();
        if self.enabled() && self.config.cache_on_write && is_data {
            self.add(CacheKey { namespace, address: *address }, packed.bytes.clone());
        }
    }

    /// Adds verified bytes in the background.
    fn add(&self, key: CacheKey, packed: Bytes) {
        let Some(pending) = self.pending(u64::try_from(packed.len()).unwrap_or(u64::MAX)) else { return };
        let cache = Arc::clone(&self.cache);
        self.env.spawn.run_blocking(Box::new(move || {
            // A copy: the bytes may be a part of a larger buffer, which would stay in memory, uncounted.
            cache.put(&key, Entry::seal(key, Bytes::copy_from_slice(&packed)));
            drop(pending);
        }));
    }

    /// The right to hold so many bytes on their way; none when too many are.
    fn pending(&self, bytes: u64) -> Option<Pending> {
        let all = Arc::clone(&self.pending);
        let held = Pending { all, bytes };
        if self.pending.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes) > PENDING_BYTES {
            self.dropped.add(1);
            return None;
        }
        Some(held)
    }

    /// Fills under way.
    #[cfg(test)]
    pub(crate) fn under_way(&self) -> usize {
        self.fills.len()
    }
}
