//! What one repair of an object has stored so far and could not commit: it is used again as it is when a later plan has the
//! same fragment in the same place, and never a reason to go elsewhere.
//!
//! Whose a fragment is, its tag says: the value of a tag is the mark of the repair that wrote it. Only who wrote a tag, or took
//! it over, takes it away, so that what another one wrote under the same key stays tagged, and is found by garbage collection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use alba_core::env::Rng;
use alba_core::ids::{GcEpoch, ObjectVersion, OsdId};
use alba_core::manifest::Fragment;
use alba_core::osd_keys::FragmentAddress;
use bytes::Bytes;

/// The mark of one repair: 16 random bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark(Bytes);

impl Mark {
    pub(super) fn new(rng: &dyn Rng) -> Self {
        Self([rng.u64().to_be_bytes(), rng.u64().to_be_bytes()].concat().into())
    }

    /// As the value of a tag.
    pub(super) fn value(&self) -> Bytes {
        self.0.clone()
    }
}

/// A stored fragment that no manifest names yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeptFragment {
    /// Of its tag.
    pub(super) epoch: GcEpoch,
    /// What the manifest would say of it.
    pub(super) entry: Fragment,
}

#[derive(Debug, Default)]
struct Inner {
    fragments: BTreeMap<(OsdId, FragmentAddress), KeptFragment>,
    /// OSDs where something of another one is under a key that this version needs.
    taken: BTreeSet<OsdId>,
    /// Of the object; none: nothing is known of it yet.
    version: Option<ObjectVersion>,
}

/// See the module. As much as a few hundred bytes for each fragment of the object.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) mark: Mark,
    inner: Mutex<Inner>,
}

impl Kept {
    pub(super) fn new(rng: &dyn Rng) -> Self {
        Self { mark: Mark::new(rng), inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Its methods don't panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object has this version now: keys of another one are of no use.
    pub(super) fn at(&self, version: ObjectVersion) {
        let mut inner = self.lock();
        if inner.version != Some(version) {
            *inner = Inner { version: Some(version), ..Inner::default() };
        }
    }

    pub(super) fn find(&self, osd: OsdId, address: &FragmentAddress) -> Option<KeptFragment> {
        self.lock().fragments.get(&(osd, *address)).cloned()
    }

    pub(super) fn keep(&self, osd: OsdId, address: FragmentAddress, fragment: KeptFragment) {
        self.lock().fragments.insert((osd, address), fragment);
    }

    pub(super) fn forget(&self, osd: OsdId, address: &FragmentAddress) {
        self.lock().fragments.remove(&(osd, *address));
    }

    /// A key there is another one's.
    pub(super) fn is_taken(&self, osd: OsdId) {
        self.lock().taken.insert(osd);
    }

    /// Where this version cannot go.
    pub(super) fn taken(&self) -> BTreeSet<OsdId> {
        self.lock().taken.clone()
    }
}
