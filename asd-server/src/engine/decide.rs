//! What a batch does, decided against the state it meets: the index, overlaid with the batches before it that the index
//! has not got yet.

use std::collections::BTreeMap;

use alba_core::blake3_tree::LeafTable;
use alba_core::env::osd::{OsdAssert, OsdBatch, OsdError, OsdKey, OsdUpdate};
use bytes::Bytes;

use super::batch::Change;
use super::index::Entry;

/// Changes that are planned and not in the index yet, by the group they are written with.
#[derive(Default)]
pub(crate) struct Overlay {
    /// Newest change of each key.
    keys: BTreeMap<OsdKey, (u64, Option<Bytes>)>,
    /// Ranges deleted in front of what `keys` says.
    ranges: Vec<(u64, OsdKey, OsdKey)>,
}

impl Overlay {
    /// Takes in a batch that will be written with `group`.
    pub(crate) fn add(&mut self, group: u64, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Set { key, stored, .. } => {
                    self.keys.insert(key.clone(), (group, Some(stored.value.clone())));
                }
                Change::Delete { key } => {
                    self.keys.insert(key.clone(), (group, None));
                }
                // An old one in a new place.
                Change::DeleteRange { until: 1.., .. } => {}
                Change::DeleteRange { from, to, .. } => {
                    if from < to {
                        for (_, value) in self.keys.range_mut(from.clone()..to.clone()) {
                            *value = (group, None);
                        }
                    }
                    self.ranges.push((group, from.clone(), to.clone()));
                }
            }
        }
    }

    /// The index has all groups up to this one.
    pub(crate) fn applied(&mut self, group: u64) {
        self.keys.retain(|_, (of, _)| *of > group);
        self.ranges.retain(|(of, ..)| *of > group);
    }

    /// Nothing of it will happen.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Is a change of this key under way?
    pub(crate) fn touches(&self, key: &OsdKey) -> bool {
        self.keys.contains_key(key) || self.ranges.iter().any(|(_, from, to)| from <= key && key < to)
    }
}

/// The state a batch meets.
pub(crate) struct View<'a> {
    pub overlay: &'a Overlay,
    /// What the index had when the group began.
    pub stored: &'a BTreeMap<OsdKey, Entry>,
}

/// What is known about a key.
pub(crate) enum Found<'a> {
    Absent,
    /// Written by a batch that the index has not got yet.
    Fresh(&'a Bytes),
    Stored(&'a Entry),
}

impl<'a> View<'a> {
    pub(crate) fn find(&self, key: &OsdKey) -> Found<'a> {
        match (self.overlay.keys.get(key), self.stored.get(key)) {
            (Some((_, Some(value))), _) => Found::Fresh(value),
            (None, Some(entry)) if !self.overlay.touches(key) => Found::Stored(entry),
            _ => Found::Absent,
        }
    }

    /// Checks an assert. A value that has to be read from its segment first is given back as its entry.
    pub(crate) fn check(&self, assert: &OsdAssert) -> Result<Option<&'a Entry>, OsdError> {
        let failed = || Err(OsdError::AssertFailed(assert.key().clone()));
        match (assert, self.find(assert.key())) {
            (OsdAssert::Absent(_), Found::Absent) => Ok(None),
            (OsdAssert::Value(_, expected), Found::Fresh(value)) if value == expected => Ok(None),
            (OsdAssert::Value(_, expected), Found::Stored(entry)) => {
                if u32::try_from(expected.len()) != Ok(entry.len) {
                    return failed();
                }
                match &entry.inline {
                    Some(inline) if inline == expected => Ok(None),
                    Some(_) => failed(),
                    None => Ok(Some(entry)),
                }
            }
            _ => failed(),
        }
    }

    /// The changes a batch makes: the last update of each key, without deletes of what is absent.
    pub(crate) fn changes(&self, updates: &[PreparedUpdate]) -> Vec<Change> {
        let mut last: BTreeMap<OsdKey, Option<&PreparedUpdate>> = BTreeMap::new();
        let mut ranges = Vec::new();
        for update in updates {
            match &update.update {
                OsdUpdate::Set(key, _) => drop(last.insert(key.clone(), Some(update))),
                OsdUpdate::Delete(key) => drop(last.insert(key.clone(), None)),
                OsdUpdate::DeleteRange(from, to) => {
                    last.retain(|key, _| key < from || key >= to);
                    ranges.push(Change::DeleteRange { from: from.clone(), to: to.clone(), until: 0 });
                }
                // The engine refuses it before.
                OsdUpdate::SetFromPeer(..) => {}
            }
        }
        let single = last.into_iter().filter_map(|(key, update)| {
            let set = update.and_then(|update| match &update.update {
                OsdUpdate::Set(_, stored) => Some((stored.clone(), update.tree.clone())),
                _ => None,
            });
            match set {
                Some((stored, tree)) => Some(Change::Set { key, stored, tree }),
                None if matches!(self.find(&key), Found::Absent) => None,
                None => Some(Change::Delete { key }),
            }
        });
        let single: Vec<Change> = single.collect();
        ranges.into_iter().chain(single).collect()
    }
}

/// An update with what was computed of its value before.
#[derive(Debug, Clone)]
pub(crate) struct PreparedUpdate {
    pub update: OsdUpdate,
    /// For a value with a BLAKE3 root: the tree that leads to it.
    pub tree: Option<LeafTable>,
}

/// The keys whose present state decides what a batch does. A value is set whatever there was before.
pub(crate) fn deciding(asserts: &[OsdAssert], updates: &[PreparedUpdate]) -> impl Iterator<Item = OsdKey> {
    let asserted = asserts.iter().map(|assert| assert.key().clone());
    let deleted = updates.iter().filter_map(|update| match &update.update {
        OsdUpdate::Delete(key) => Some(key.clone()),
        OsdUpdate::Set(..) | OsdUpdate::DeleteRange(..) | OsdUpdate::SetFromPeer(..) => None,
    });
    asserted.chain(deleted)
}

/// All keys that a request names.
pub(crate) fn named(batch: &OsdBatch) -> impl Iterator<Item = &OsdKey> {
    let asserted = batch.asserts.iter().map(OsdAssert::key);
    let updated = batch.updates.iter().flat_map(|update| match update {
        OsdUpdate::Set(key, _) | OsdUpdate::Delete(key) | OsdUpdate::SetFromPeer(key, _) => [Some(key), None],
        OsdUpdate::DeleteRange(from, to) => [Some(from), Some(to)],
    });
    asserted.chain(updated.flatten())
}
