//! What the proxy did, per namespace (ProxyStatistics, command 15): bounded in the number of namespaces.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_client::{ManifestCounts, ReadObserver};
use alba_core::env::{Clock, Moment};
use alba_core::ids::NamespaceName;
use alba_core::wire::proxy::{NamespaceStatistics, ProxyStatistics};
use bytes::Bytes;

/// Namespaces kept; beyond them the one that was updated longest ago goes. With 0.7 KB each on the wire an answer stays below
/// 3 MB.
const KEPT: usize = 4096;

/// A request that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// An object, or the objects of a sequence, were stored.
    Upload,
    /// Objects were read whole.
    Download,
    /// Objects were deleted, and nothing stored.
    Delete,
    /// Slices were read.
    PartialRead {
        /// Bytes of all slices.
        bytes: u64,
        /// How many slices.
        slices: usize,
        /// Entries of the request.
        objects: usize,
    },
}

/// See the module.
pub(crate) struct Statistics {
    clock: Arc<dyn Clock>,
    kept: Mutex<Kept>,
}

struct Kept {
    since: Moment,
    creation: f64,
    updates: u64,
    namespaces: BTreeMap<NamespaceName, (u64, NamespaceStatistics)>,
}

impl Kept {
    fn new(clock: &dyn Clock) -> Self {
        Self { since: clock.now(), creation: wall(clock), updates: 0, namespaces: BTreeMap::new() }
    }

    /// The entry of a namespace, the youngest of all from now on.
    fn update(&mut self, namespace: &NamespaceName, now: f64) -> &mut NamespaceStatistics {
        if self.namespaces.len() >= KEPT && !self.namespaces.contains_key(namespace) {
            // Looking at all of them takes microseconds, and happens only when there are too many.
            let oldest = self.namespaces.iter().min_by_key(|(_, (updated, _))| *updated);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.namespaces.remove(&name);
            }
        }
        self.updates += 1;
        let (updated, statistics) = self.namespaces.entry(namespace.clone()).or_default();
        *updated = self.updates;
        statistics.last_updated = now;
        statistics
    }
}

/// Unix seconds. Doubles hold microseconds exactly until the year 2255.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn wall(clock: &dyn Clock) -> f64 {
    clock.wall_micros() as f64 / 1e6
}

/// Exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn float(count: usize) -> f64 {
    count as f64
}

impl Statistics {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let kept = Mutex::new(Kept::new(clock.as_ref()));
        Self { clock, kept }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing that can panic runs while it is half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request on a namespace that exists.
    pub(crate) fn record(&self, namespace: &NamespaceName, done: Done, took: Duration) {
        let now = wall(self.clock.as_ref());
        let took = took.as_secs_f64();
        let mut kept = self.kept();
        let of = kept.update(namespace, now);
        match done {
            Done::Upload => of.upload.add(took),
            Done::Download => of.download.add(took),
            Done::Delete => of.delete.add(took),
            Done::PartialRead { bytes: 0, slices, objects } => {
                of.empty_partial_read_count.add(float(slices));
                of.empty_partial_read_time.add(took);
                of.empty_partial_read_objects.add(float(objects));
            }
            Done::PartialRead { bytes, slices, objects } => {
                of.partial_read_size.add(float(usize::try_from(bytes).unwrap_or(usize::MAX)));
                of.partial_read_count.add(float(slices));
                of.partial_read_time.add(took);
                of.partial_read_objects.add(float(objects));
            }
        }
    }

    /// Forgets namespaces, then tells what is left, then forgets everything if asked to.
    pub(crate) fn tell(&self, clear: bool, forget: &[Bytes]) -> ProxyStatistics {
        let mut kept = self.kept();
        for name in forget {
            // What cannot be a name is not there.
            if let Ok(name) = NamespaceName::new(name.as_ref()) {
                kept.namespaces.remove(&name);
            }
        }
        let told = ProxyStatistics {
            creation: kept.creation,
            period: self.clock.now().since(kept.since).as_secs_f64(),
            namespaces: kept
                .namespaces
                .iter()
                .map(|(name, (_, statistics))| (Bytes::copy_from_slice(name.as_bytes()), *statistics))
                .collect(),
        };
        if clear {
            *kept = Kept::new(self.clock.as_ref());
        }
        told
    }

    /// The namespace is gone.
    pub(crate) fn forget(&self, namespace: &NamespaceName) {
        self.kept().namespaces.remove(namespace);
    }
}

/// The wire has 32 bits for these.
fn add(counter: &mut u32, more: u32) {
    *counter = counter.saturating_add(more);
}

impl ReadObserver for Statistics {
    fn manifests(&self, namespace: &NamespaceName, counts: ManifestCounts) {
        let now = wall(self.clock.as_ref());
        let mut kept = self.kept();
        let of = kept.update(namespace, now);
        add(&mut of.manifest_cached, counts.cached);
        add(&mut of.manifest_from_nsm, counts.fetched);
        add(&mut of.manifest_stale, counts.stale);
    }

    fn fragments(&self, namespace: &NamespaceName, hits: u32, misses: u32) {
        let now = wall(self.clock.as_ref());
        let mut kept = self.kept();
        let of = kept.update(namespace, now);
        add(&mut of.fragment_cache_hits, hits);
        add(&mut of.fragment_cache_misses, misses);
    }
}

#[cfg(test)]
mod tests {
    use alba_core::env::real;

    use super::*;

    fn statistics() -> Statistics {
        Statistics::new(real::env().clock)
    }

    fn name(text: &str) -> NamespaceName {
        NamespaceName::new(text).unwrap()
    }

    fn names(told: &ProxyStatistics) -> Vec<&[u8]> {
        told.namespaces.iter().map(|(name, _)| name.as_ref()).collect()
    }

    #[test]
    fn each_kind_of_request_has_its_place() {
        let statistics = statistics();
        let read = |bytes| Done::PartialRead { bytes, slices: 3, objects: 2 };
        for (done, seconds) in
            [(Done::Upload, 1), (Done::Download, 2), (Done::Delete, 3), (read(4096), 4), (read(0), 5)]
        {
            statistics.record(&name("a"), done, Duration::from_secs(seconds));
        }
        let counts = ManifestCounts { cached: 1, fetched: 2, stale: 3 };
        statistics.manifests(&name("a"), counts);
        statistics.fragments(&name("a"), 4, 5);
        let told = statistics.tell(false, &[]);
        assert_eq!(names(&told), [b"a"]);
        let of = told.namespaces[0].1;
        let averages = [
            (of.upload, 1.0),
            (of.download, 2.0),
            (of.delete, 3.0),
            (of.partial_read_size, 4096.0),
            (of.partial_read_count, 3.0),
            (of.partial_read_time, 4.0),
            (of.partial_read_objects, 2.0),
            (of.empty_partial_read_count, 3.0),
            (of.empty_partial_read_time, 5.0),
            (of.empty_partial_read_objects, 2.0),
        ];
        for (stat, average) in averages {
            assert_eq!((stat.n, stat.avg), (1, average));
        }
        let counted = [of.manifest_cached, of.manifest_from_nsm, of.manifest_stale];
        assert_eq!((counted, of.fragment_cache_hits, of.fragment_cache_misses), ([1, 2, 3], 4, 5));
        assert!(of.last_updated >= told.creation && told.creation > 1e9);
    }

    /// First the named ones go, then the rest is told, then all of it goes.
    #[test]
    fn forgetting_comes_before_telling_and_clearing_after() {
        let statistics = statistics();
        for namespace in ["a", "b", "c"] {
            statistics.record(&name(namespace), Done::Upload, Duration::ZERO);
        }
        statistics.forget(&name("c"));
        let long = Bytes::from(vec![b'x'; 100_000]);
        let told = statistics.tell(true, &["a".into(), "unknown".into(), "".into(), long]);
        assert_eq!(names(&told), [b"b"]);
        let again = statistics.tell(false, &[]);
        assert!(again.namespaces.is_empty() && again.creation >= told.creation);
    }

    #[test]
    fn the_namespace_updated_longest_ago_goes_first() {
        let statistics = statistics();
        let number = |number: usize| name(&format!("{number:05}"));
        for namespace in 0..KEPT {
            statistics.record(&number(namespace), Done::Upload, Duration::ZERO);
        }
        statistics.record(&number(0), Done::Delete, Duration::ZERO);
        statistics.manifests(&number(KEPT), ManifestCounts::default());
        let told = statistics.tell(false, &[]);
        assert_eq!(told.namespaces.len(), KEPT);
        let names = names(&told);
        assert!(names.contains(&b"00000".as_slice()) && !names.contains(&b"00001".as_slice()));
        assert!(names.contains(&format!("{KEPT:05}").as_bytes()));
    }
}
