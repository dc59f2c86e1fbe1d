//! Telling the owner of a client, per namespace, what requests found where: for statistics.

use std::sync::{Arc, OnceLock};

use alba_core::ids::NamespaceName;

/// Where manifests came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ManifestCounts {
    /// From the cache.
    pub cached: u32,
    /// From the namespace's group.
    pub fetched: u32,
    /// From the cache, and found out of date when the fragments were read.
    pub stale: u32,
}

/// Is told. Called in the middle of requests, so it must be quick and must not call back.
pub trait ReadObserver: Send + Sync + 'static {
    /// Manifests of objects of a namespace were looked up.
    fn manifests(&self, namespace: &NamespaceName, counts: ManifestCounts);

    /// Fragments of a namespace's objects were looked for in a fragment cache.
    fn fragments(&self, _namespace: &NamespaceName, _hits: u32, _misses: u32) {}
}

/// The observer, once there is one.
#[derive(Default)]
pub(crate) struct Observed(OnceLock<Arc<dyn ReadObserver>>);

impl Observed {
    /// The first one stays.
    pub(crate) fn by(&self, observer: Arc<dyn ReadObserver>) {
        // An error says that there is one.
        drop(self.0.set(observer));
    }

    pub(crate) fn manifests(&self, namespace: &NamespaceName, counts: ManifestCounts) {
        if let Some(observer) = self.0.get()
            && counts != ManifestCounts::default()
        {
            observer.manifests(namespace, counts);
        }
    }
}
