//! What a batch does, decided against the state it meets: the index, and the batches before it in the same group.

use std::collections::BTreeMap;

use alba_core::env::osd::{OsdAssert, OsdBatch, OsdError, OsdKey, OsdUpdate};
use bytes::Bytes;

use super::batch::Change;
use super::index::Entry;

/// The state a batch meets: what the index held when the group began, overlaid with the group's batches so far.
#[derive(Default)]
pub(crate) struct View {
    stored: BTreeMap<OsdKey, Entry>,
    overlay: BTreeMap<OsdKey, Option<Bytes>>,
}

/// What is known about a key.
pub(crate) enum Found<'a> {
    Absent,
    /// Written by an earlier batch of the group.
    Fresh(&'a Bytes),
    Stored(&'a Entry),
}

impl View {
    pub(crate) fn new(keys: Vec<OsdKey>, entries: Vec<Option<Entry>>) -> Self {
        let found = keys.into_iter().zip(entries);
        let stored = found.filter_map(|(key, entry)| Some((key, entry?))).collect();
        Self { stored, overlay: BTreeMap::new() }
    }

    pub(crate) fn find(&self, key: &OsdKey) -> Found<'_> {
        match (self.overlay.get(key), self.stored.get(key)) {
            (Some(Some(value)), _) => Found::Fresh(value),
            (Some(None), _) | (None, None) => Found::Absent,
            (None, Some(entry)) => Found::Stored(entry),
        }
    }

    /// Takes in a batch that will be written.
    pub(crate) fn add(&mut self, changes: &[Change]) {
        for change in changes {
            let value = change.value.as_ref().map(|stored| stored.value.clone());
            self.overlay.insert(change.key.clone(), value);
        }
    }

    /// Checks an assert. A value that has to be read from its segment first is given back as its entry.
    pub(crate) fn check<'a>(&'a self, assert: &OsdAssert) -> Result<Option<&'a Entry>, OsdError> {
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
    pub(crate) fn changes(&self, updates: Vec<OsdUpdate>) -> Vec<Change> {
        let mut last = BTreeMap::new();
        for update in updates {
            match update {
                OsdUpdate::Set(key, stored) => last.insert(key, Some(stored)),
                OsdUpdate::Delete(key) => last.insert(key, None),
                // Refused before they get here.
                OsdUpdate::DeleteRange(..) | OsdUpdate::SetFromPeer(..) => None,
            };
        }
        let changes = last.into_iter().map(|(key, value)| Change { key, value });
        changes
            .filter(|change| change.value.is_some() || !matches!(self.find(&change.key), Found::Absent))
            .collect()
    }
}

/// All keys a batch is about.
pub(crate) fn keys(batch: &OsdBatch) -> impl Iterator<Item = OsdKey> + '_ {
    let asserted = batch.asserts.iter().map(OsdAssert::key);
    let updated = batch.updates.iter().filter_map(|update| match update {
        OsdUpdate::Set(key, _) | OsdUpdate::Delete(key) => Some(key),
        OsdUpdate::DeleteRange(..) | OsdUpdate::SetFromPeer(..) => None,
    });
    asserted.chain(updated).cloned()
}
