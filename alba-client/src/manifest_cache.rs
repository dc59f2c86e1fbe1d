//! Manifests in memory, bounded in bytes; the least recently used go first.
//!
//! A reader that asked the group before a write was committed must not put its older answer over the newer one. So
//! whoever wants to insert takes a [`Ticket`] before asking, and the cache takes the manifest only if nothing was written
//! under that name since.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alba_core::ids::{NamespaceId, ObjectName};
use alba_core::manifest::{Chunk, Fragment, Manifest};

/// Names share this many change counters. A collision costs an insert, never correctness.
const COUNTERS: usize = 1024;

/// See the module.
pub(crate) struct ManifestCache {
    limit: u64,
    state: Mutex<State>,
}

struct State {
    namespaces: BTreeMap<NamespaceId, BTreeMap<ObjectName, Entry>>,
    /// By last use.
    order: BTreeMap<u64, (NamespaceId, ObjectName)>,
    next_use: u64,
    bytes: u64,
    changes: Vec<u64>,
}

struct Entry {
    manifest: Arc<Manifest>,
    last_use: u64,
    bytes: u64,
}

/// The state of a name when it was taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket {
    counter: usize,
    value: u64,
}

/// Memory that a manifest takes, about.
fn footprint(manifest: &Manifest) -> u64 {
    let fragments: usize = manifest.chunks.iter().map(|chunk| chunk.fragments.capacity()).sum();
    // The name is kept three times: in the manifest, in the map and in the order of use.
    let bytes = 512
        + 3 * manifest.name.as_bytes().len()
        + manifest.chunks.capacity() * size_of::<Chunk>()
        + fragments * size_of::<Fragment>();
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn counter(namespace: NamespaceId, name: &ObjectName) -> usize {
    // FNV-1a: spreads names over the counters, the same in every run.
    let namespace = namespace.get().to_le_bytes();
    let hash = namespace.iter().chain(name.as_bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The remainder is below COUNTERS.
    usize::try_from(hash % 1024).unwrap_or(0)
}

impl State {
    fn take(&mut self, namespace: NamespaceId, name: &ObjectName) -> Option<Arc<Manifest>> {
        let names = self.namespaces.get_mut(&namespace)?;
        let entry = names.remove(name)?;
        if names.is_empty() {
            self.namespaces.remove(&namespace);
        }
        self.order.remove(&entry.last_use);
        self.bytes = self.bytes.saturating_sub(entry.bytes);
        Some(entry.manifest)
    }

    fn put(&mut self, namespace: NamespaceId, manifest: Arc<Manifest>, limit: u64) {
        let name = manifest.name.clone();
        self.take(namespace, &name);
        let bytes = footprint(&manifest);
        if bytes > limit {
            return;
        }
        let last_use = self.next_use;
        self.next_use += 1;
        self.order.insert(last_use, (namespace, name.clone()));
        self.namespaces.entry(namespace).or_default().insert(name, Entry { manifest, last_use, bytes });
        self.bytes += bytes;
        while self.bytes > limit {
            let Some((_, (namespace, name))) = self.order.first_key_value() else { break };
            let (namespace, name) = (*namespace, name.clone());
            self.take(namespace, &name);
        }
    }

    fn unchanged(&self, ticket: Ticket) -> bool {
        self.changes.get(ticket.counter) == Some(&ticket.value)
    }

    fn changed(&mut self, namespace: NamespaceId, name: &ObjectName) {
        if let Some(value) = self.changes.get_mut(counter(namespace, name)) {
            *value += 1;
        }
    }
}

impl ManifestCache {
    /// Keeps at most about `limit` bytes.
    pub(crate) fn new(limit: u64) -> Self {
        let state = State {
            namespaces: BTreeMap::new(),
            order: BTreeMap::new(),
            next_use: 0,
            bytes: 0,
            changes: vec![0; COUNTERS],
        };
        Self { limit, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs while the state is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// The cached manifest of a name.
    pub(crate) fn get(&self, namespace: NamespaceId, name: &ObjectName) -> Option<Arc<Manifest>> {
        let found = self.find(namespace, name);
        let counter = if found.is_some() { "alba_cache_hits_total" } else { "alba_cache_misses_total" };
        metrics::counter!(counter, "cache" => "manifest").increment(1);
        found
    }

    fn find(&self, namespace: NamespaceId, name: &ObjectName) -> Option<Arc<Manifest>> {
        let mut state = self.state();
        let state = &mut *state;
        let entry = state.namespaces.get_mut(&namespace)?.get_mut(name)?;
        let key = state.order.remove(&entry.last_use)?;
        entry.last_use = state.next_use;
        state.next_use += 1;
        state.order.insert(entry.last_use, key);
        Some(Arc::clone(&entry.manifest))
    }

    /// To be taken before the group is asked or told.
    pub(crate) fn ticket(&self, namespace: NamespaceId, name: &ObjectName) -> Ticket {
        let counter = counter(namespace, name);
        Ticket { counter, value: self.state().changes.get(counter).copied().unwrap_or(0) }
    }

    /// Keeps what the group answered to a read.
    pub(crate) fn insert_read(&self, ticket: Ticket, namespace: NamespaceId, manifest: Arc<Manifest>) {
        let mut state = self.state();
        if state.unchanged(ticket) {
            state.put(namespace, manifest, self.limit);
        }
    }

    /// Keeps what was just committed, unless another write of the name ended meanwhile: which came last is then unknown.
    pub(crate) fn insert_written(&self, ticket: Ticket, namespace: NamespaceId, manifest: Arc<Manifest>) {
        let mut state = self.state();
        let alone = state.unchanged(ticket);
        state.changed(namespace, &manifest.name);
        if alone {
            state.put(namespace, manifest, self.limit);
        } else {
            state.take(namespace, &manifest.name);
        }
    }

    /// Keeps a later version of an object that is cached; does nothing when another one is, or none.
    pub(crate) fn update(&self, namespace: NamespaceId, manifest: Arc<Manifest>) {
        let mut state = self.state();
        let cached = state.namespaces.get(&namespace).and_then(|names| names.get(&manifest.name));
        let older = cached.is_some_and(|entry| {
            entry.manifest.object_id == manifest.object_id && entry.manifest.version < manifest.version
        });
        if older {
            state.changed(namespace, &manifest.name);
            state.put(namespace, manifest, self.limit);
        }
    }

    /// Forgets a name: it was written, deleted, or what is cached proved wrong.
    pub(crate) fn remove(&self, namespace: NamespaceId, name: &ObjectName) {
        let mut state = self.state();
        state.changed(namespace, name);
        state.take(namespace, name);
    }

    /// Forgets all of a namespace.
    pub(crate) fn invalidate(&self, namespace: NamespaceId) {
        let mut state = self.state();
        state.changes.iter_mut().for_each(|value| *value += 1);
        for entry in state.namespaces.remove(&namespace).unwrap_or_default().into_values() {
            state.order.remove(&entry.last_use);
            state.bytes = state.bytes.saturating_sub(entry.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use alba_core::checksum::Checksum;
    use alba_core::ids::{ObjectId, ObjectVersion};
    use alba_core::manifest::{CodingMatrix, EncryptInfo, Scheme, Timestamp};
    use alba_core::policy::CodeShape;
    use alba_core::preset::Compression;

    use super::*;

    const NS: NamespaceId = NamespaceId::from_u32(7);

    fn manifest(name: &str, id: u8) -> Arc<Manifest> {
        Arc::new(Manifest {
            name: ObjectName::new(name).unwrap(),
            object_id: ObjectId::new([id; 32]),
            size: 0,
            checksum: Checksum::None,
            scheme: Scheme {
                shape: CodeShape::new(1, 0).unwrap(),
                matrix: CodingMatrix::VandermondeSystematic,
                compression: Compression::None,
            },
            encryption: EncryptInfo::None,
            chunks: Vec::new(),
            version: ObjectVersion(0),
            max_disks_per_node: 1,
            timestamp: Timestamp(0),
        })
    }

    fn name(text: &str) -> ObjectName {
        ObjectName::new(text).unwrap()
    }

    #[test]
    fn the_least_recently_used_goes_first_and_bytes_are_bounded() {
        let one = footprint(&manifest("a", 1));
        let cache = ManifestCache::new(2 * one);
        for text in ["a", "b"] {
            let ticket = cache.ticket(NS, &name(text));
            cache.insert_read(ticket, NS, manifest(text, 1));
        }
        assert!(cache.get(NS, &name("a")).is_some());
        let ticket = cache.ticket(NS, &name("c"));
        cache.insert_read(ticket, NS, manifest("c", 1));
        assert!(cache.get(NS, &name("b")).is_none());
        assert!(cache.get(NS, &name("a")).is_some() && cache.get(NS, &name("c")).is_some());
        assert_eq!(cache.state().bytes, 2 * one);
    }

    #[test]
    fn an_older_answer_never_replaces_a_write() {
        let cache = ManifestCache::new(1 << 20);
        let read = cache.ticket(NS, &name("a"));
        let write = cache.ticket(NS, &name("a"));
        cache.insert_written(write, NS, manifest("a", 2));
        cache.insert_read(read, NS, manifest("a", 1));
        assert_eq!(cache.get(NS, &name("a")), Some(manifest("a", 2)));
    }

    #[test]
    fn of_two_writes_at_once_neither_is_kept() {
        let cache = ManifestCache::new(1 << 20);
        let (first, second) = (cache.ticket(NS, &name("a")), cache.ticket(NS, &name("a")));
        cache.insert_written(first, NS, manifest("a", 1));
        cache.insert_written(second, NS, manifest("a", 2));
        assert_eq!(cache.get(NS, &name("a")), None);
    }

    #[test]
    fn invalidation_forgets_a_namespace_and_what_is_on_its_way_to_it() {
        let cache = ManifestCache::new(1 << 20);
        let ticket = cache.ticket(NS, &name("a"));
        cache.insert_read(ticket, NS, manifest("a", 1));
        let late = cache.ticket(NS, &name("b"));
        cache.invalidate(NS);
        cache.insert_read(late, NS, manifest("b", 1));
        assert!(cache.get(NS, &name("a")).is_none() && cache.get(NS, &name("b")).is_none());
        let state = cache.state();
        assert_eq!((state.bytes, state.order.len()), (0, 0));
    }

    #[test]
    fn only_a_later_version_of_the_cached_object_is_taken() {
        let cache = ManifestCache::new(1 << 20);
        let later = |id| {
            let mut later = Manifest::clone(&manifest("a", id));
            later.version = ObjectVersion(1);
            Arc::new(later)
        };
        cache.update(NS, later(1));
        assert_eq!(cache.get(NS, &name("a")), None);
        let ticket = cache.ticket(NS, &name("a"));
        cache.insert_written(ticket, NS, manifest("a", 1));
        cache.update(NS, later(2));
        assert_eq!(cache.get(NS, &name("a")), Some(manifest("a", 1)));
        cache.update(NS, later(1));
        assert_eq!(cache.get(NS, &name("a")), Some(later(1)));
    }
}
