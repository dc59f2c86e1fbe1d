//! What has to be moved out of a segment before that can be reused. Which of it still has to, when its turn comes, is
//! decided here; what is moved becomes an ordinary batch of the history.

use std::collections::BTreeMap;

use alba_core::blake3_tree::LeafTable;
use alba_core::env::osd::{OsdKey, StoredValue};

use super::batch::Change;
use super::index::{Entry, Range, Tombstone};
use super::phase::{self, Sabotage};
use super::table::Table;

/// A value that lived in the segment when it was read.
pub(crate) struct MovedValue {
    pub key: OsdKey,
    pub entry: Entry,
    pub stored: StoredValue,
    pub tree: Option<LeafTable>,
}

/// Part of what a segment holds that may be needed.
#[derive(Default)]
pub(crate) struct Relocation {
    /// The segment.
    pub from: u64,
    pub values: Vec<MovedValue>,
    pub tombstones: Vec<(OsdKey, Tombstone)>,
    pub ranges: Vec<Range>,
}

/// What of it is needed now.
#[derive(Default)]
pub(crate) struct Needed {
    pub changes: Vec<Change>,
    /// Not needed anywhere any more.
    pub forgotten_keys: Vec<(OsdKey, Tombstone)>,
    pub forgotten_ranges: Vec<Range>,
}

impl Relocation {
    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty() && self.tombstones.is_empty() && self.ranges.is_empty()
    }

    /// Keys of which the present entry decides.
    pub(crate) fn keys(&self) -> Vec<OsdKey> {
        let values = self.values.iter().map(|value| value.key.clone());
        values.chain(self.tombstones.iter().map(|(key, _)| key.clone())).collect()
    }

    /// Decides against the present entries. `changes` tells of keys that a batch under way changes: those need not be
    /// moved, that batch does it.
    pub(crate) fn decide(
        self,
        stored: &BTreeMap<OsdKey, Entry>,
        changes: impl Fn(&OsdKey) -> bool,
        table: &Table,
    ) -> Needed {
        let mut needed = Needed::default();
        for MovedValue { key, entry, stored: value, tree } in self.values {
            if stored.get(&key) == Some(&entry) && !changes(&key) {
                needed.changes.push(Change::Set { key, stored: value, tree });
            }
        }
        let may_hold = |since, until| {
            !phase::sabotaged(Sabotage::DropTombstones) && table.may_hold(since, until, self.from)
        };
        for (key, tombstone) in self.tombstones {
            if stored.contains_key(&key) || changes(&key) {
                continue;
            }
            if may_hold(tombstone.since, tombstone.until) {
                needed.changes.push(Change::Delete { key });
            } else {
                needed.forgotten_keys.push((key, tombstone));
            }
        }
        for range in self.ranges {
            // What it deleted may be anything that is older.
            if !range.swept || may_hold(1, range.until) {
                let (from, to, until) = (range.from.into(), range.to.into(), range.until);
                needed.changes.push(Change::DeleteRange { from, to, until });
            } else {
                needed.forgotten_ranges.push(range);
            }
        }
        needed
    }
}
