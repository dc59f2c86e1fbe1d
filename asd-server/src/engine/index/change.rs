//! A change of the index in the making: what batches do to the rows, and to the accounts of the segments.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;

use alba_core::env::osd::OsdKey;
use alba_core::kv::{Durability, KvError, WriteBatch};

use super::Index;
use super::rows::{
    Changed, Entry, Live, Location, MARK, Mark, Range, SEGMENT, TOMBSTONE, Tombstone, encode, get, prefixed,
    row, segment_row,
};

/// A change of the index in the making.
pub(super) struct Change<'a> {
    index: &'a Index,
    /// The newest of each key so far.
    newest: BTreeMap<OsdKey, Newest>,
    /// Which rows of it there were: (entry, tombstone).
    stored: BTreeMap<OsdKey, (bool, bool)>,
    ranges: BTreeMap<Vec<u8>, Option<Range>>,
    live: BTreeMap<u64, Live>,
    pub(super) used: u64,
    pub(super) rows: WriteBatch,
    mark: Option<Mark>,
}

/// What is known of a key.
#[derive(Debug, Clone)]
enum Newest {
    Nothing,
    Entry(Entry),
    Tombstone(Tombstone),
}

impl<'a> Change<'a> {
    pub(super) fn begin(index: &'a Index) -> Result<Self, KvError> {
        let mark = index.mark()?;
        Ok(Self {
            index,
            newest: BTreeMap::new(),
            stored: BTreeMap::new(),
            ranges: BTreeMap::new(),
            live: BTreeMap::new(),
            used: mark.map_or(0, |mark| mark.used),
            rows: WriteBatch::default(),
            mark,
        })
    }

    fn newest(&mut self, key: &OsdKey) -> Result<Newest, KvError> {
        if let Some(newest) = self.newest.get(key) {
            return Ok(newest.clone());
        }
        let kv = self.index.kv.as_ref();
        let newest = match get(kv, &row(key))? {
            Some(entry) => Newest::Entry(entry),
            None => get(kv, &prefixed(TOMBSTONE, key))?.map_or(Newest::Nothing, Newest::Tombstone),
        };
        let rows = (matches!(newest, Newest::Entry(_)), matches!(newest, Newest::Tombstone(_)));
        self.stored.insert(key.clone(), rows);
        self.newest.insert(key.clone(), newest.clone());
        Ok(newest)
    }

    fn live(&mut self, number: u64) -> Result<&mut Live, KvError> {
        match self.live.entry(number) {
            MapEntry::Occupied(found) => Ok(found.into_mut()),
            MapEntry::Vacant(vacant) => {
                let found = get(self.index.kv.as_ref(), &segment_row(SEGMENT, number))?;
                Ok(vacant.insert(found.unwrap_or_default()))
            }
        }
    }

    /// Takes what is known of a key out of the accounts.
    fn take(&mut self, key: &OsdKey) -> Result<Newest, KvError> {
        let old = self.newest(key)?;
        match &old {
            Newest::Nothing => {}
            Newest::Entry(entry) => {
                let there = self.live(entry.location.segment)?;
                there.values = there.values.saturating_sub(1);
                there.bytes = there.bytes.saturating_sub(entry.footprint(key));
                self.used = self.used.saturating_sub(u64::from(entry.len));
            }
            Newest::Tombstone(tombstone) => {
                let there = self.live(tombstone.location.segment)?;
                there.tombstones = there.tombstones.saturating_sub(1);
            }
        }
        Ok(old)
    }

    pub(super) fn set(&mut self, key: OsdKey, mut entry: Entry) -> Result<(), KvError> {
        entry.since = match self.take(&key)? {
            Newest::Nothing => entry.location.sequence,
            Newest::Entry(old) => old.since,
            Newest::Tombstone(old) => old.since,
        };
        let there = self.live(entry.location.segment)?;
        there.values += 1;
        there.bytes += entry.footprint(&key);
        self.used += u64::from(entry.len);
        self.newest.insert(key, Newest::Entry(entry));
        Ok(())
    }

    pub(super) fn delete(&mut self, key: OsdKey, location: Location) -> Result<(), KvError> {
        let newest = match self.take(&key)? {
            // It covers nothing.
            Newest::Nothing => Newest::Nothing,
            Newest::Entry(old) => {
                Newest::Tombstone(Tombstone { location, since: old.since, until: location.sequence })
            }
            // The same one in a new place.
            Newest::Tombstone(old) => Newest::Tombstone(Tombstone { location, ..old }),
        };
        if matches!(newest, Newest::Tombstone(_)) {
            self.live(location.segment)?.tombstones += 1;
        }
        self.newest.insert(key, newest);
        Ok(())
    }

    /// Gives the range back when it is a new one, to be swept.
    pub(super) fn delete_range(&mut self, mut range: Range) -> Result<Option<Range>, KvError> {
        let row = range.row();
        let old = match self.ranges.get(&row) {
            Some(old) => old.clone(),
            None => get::<Range>(self.index.kv.as_ref(), &row)?,
        };
        if let Some(old) = &old {
            // The same one in a new place.
            let there = self.live(old.location.segment)?;
            there.tombstones = there.tombstones.saturating_sub(1);
            range.swept = old.swept;
        }
        self.live(range.location.segment)?.tombstones += 1;
        self.ranges.insert(row, Some(range.clone()));
        Ok(old.is_none().then_some(range))
    }

    pub(super) fn forget(&mut self, key: &OsdKey, tombstone: &Tombstone) -> Result<(), KvError> {
        if matches!(self.newest(key)?, Newest::Tombstone(found) if found == *tombstone) {
            self.take(key)?;
            self.newest.insert(key.clone(), Newest::Nothing);
        }
        Ok(())
    }

    pub(super) fn forget_range(&mut self, range: &Range) -> Result<(), KvError> {
        let row = range.row();
        if get::<Range>(self.index.kv.as_ref(), &row)?.as_ref() == Some(range) {
            let there = self.live(range.location.segment)?;
            there.tombstones = there.tombstones.saturating_sub(1);
            self.ranges.insert(row, None);
        }
        Ok(())
    }

    /// Removes the row of an entry that a range has deleted.
    pub(super) fn remove(&mut self, key: OsdKey, entry: &Entry) -> Result<(), KvError> {
        if matches!(self.newest(&key)?, Newest::Entry(found) if found == *entry) {
            self.take(&key)?;
            self.newest.insert(key, Newest::Nothing);
        }
        Ok(())
    }

    pub(super) fn commit(mut self, mark: Option<Mark>) -> Result<Changed, KvError> {
        let rows = &mut self.rows;
        for (key, newest) in self.newest {
            let (had_entry, had_tombstone) = self.stored.get(&key).copied().unwrap_or((true, true));
            if had_tombstone && !matches!(newest, Newest::Tombstone(_)) {
                rows.delete(prefixed(TOMBSTONE, &key));
            }
            if had_entry && !matches!(newest, Newest::Entry(_)) {
                rows.delete(row(&key));
            }
            match newest {
                Newest::Nothing => {}
                Newest::Entry(found) => rows.put(row(&key), encode(&found)?),
                Newest::Tombstone(found) => rows.put(prefixed(TOMBSTONE, &key), encode(&found)?),
            }
        }
        for (row, range) in self.ranges {
            match range {
                Some(range) => rows.put(row, encode(&range)?),
                None => rows.delete(row),
            }
        }
        for (number, live) in &self.live {
            rows.put(segment_row(SEGMENT, *number), encode(live)?);
        }
        let mark = mark.or(self.mark).map(|mark| Mark { used: self.used, ..mark });
        if let Some(mark) = mark {
            rows.put(MARK, encode(&mark)?);
        }
        self.index.kv.commit(self.rows, Durability::Eventual)?;
        Ok(Changed { used: self.used, live: self.live })
    }
}
