//! Which entries there are, where each is on the disk, and the recent ones themselves.
//!
//! It must never drop an entry from memory that is not on the disk yet.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::LogError;
use super::format::{Entry, LogId};

/// Memory an entry takes beside its bytes, about.
const OVERHEAD: u64 = 256;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub segment: u64,
    pub generation: u64,
    pub offset: u64,
}

/// One entry.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub id: LogId,
    /// Tells this entry from others that have been at its index.
    pub serial: u64,
    /// Bytes of its record.
    pub len: u64,
    /// Absent until it is durable.
    pub location: Option<Location>,
    /// Always there until it is durable.
    pub cached: Option<Arc<Entry>>,
}

/// All entries.
#[derive(Debug)]
pub(super) struct Entries {
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    next_serial: u64,
    /// All from here on are cached.
    cached_from: u64,
    cached_bytes: u64,
    limit: u64,
}

impl Entries {
    /// None yet, of which `limit` bytes will be kept in memory.
    pub(super) fn new(limit: u64) -> Self {
        Self { first: 0, slots: VecDeque::new(), next_serial: 1, cached_from: 0, cached_bytes: 0, limit }
    }

    /// Index after the last one.
    pub(super) fn next(&self) -> u64 {
        self.first + super::format::offset(self.slots.len())
    }

    pub(super) fn first(&self) -> Option<&Slot> {
        self.slots.front()
    }

    pub(super) fn last(&self) -> Option<&Slot> {
        self.slots.back()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn nth(&self, index: u64) -> Option<usize> {
        let nth = usize::try_from(index.checked_sub(self.first)?).ok()?;
        (nth < self.slots.len()).then_some(nth)
    }

    /// The entries of a range that are there.
    pub(super) fn range(&self, range: Range<u64>) -> impl Iterator<Item = &Slot> {
        let start = range.start.max(self.first);
        let end = range.end.min(self.next()).max(start);
        let nth =
            |index: u64| usize::try_from(index - self.first).unwrap_or(usize::MAX).min(self.slots.len());
        self.slots.range(nth(start)..nth(end))
    }

    pub(super) fn get(&self, index: u64) -> Option<&Slot> {
        self.slots.get(self.nth(index)?)
    }

    /// Is it the next one? The first one of all may have any index, unless something was purged.
    pub(super) fn check(&self, index: u64, purged: Option<LogId>) -> Result<(), LogError> {
        let expected = if self.is_empty() { purged.map(|id| id.index + 1) } else { Some(self.next()) };
        match expected {
            Some(expected) if expected != index => Err(LogError::Order { expected, found: index }),
            _ => Ok(()),
        }
    }

    /// Adds the next one, which [`Entries::check`] has seen. Gives its serial.
    pub(super) fn push(&mut self, entry: Arc<Entry>, len: u64, location: Option<Location>) -> u64 {
        if self.is_empty() {
            self.first = entry.log_id.index;
            self.cached_from = self.first;
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        self.slots.push_back(Slot { id: entry.log_id, serial, len, location, cached: Some(entry) });
        self.cached_bytes += len + OVERHEAD;
        self.evict();
        serial
    }

    /// It is durable, there.
    pub(super) fn locate(&mut self, index: u64, serial: u64, location: Location) {
        if let Some(nth) = self.nth(index)
            && let Some(slot) = self.slots.get_mut(nth)
            && slot.serial == serial
        {
            slot.location = Some(location);
        }
    }

    /// Forgets entries of which there are enough in memory.
    pub(super) fn evict(&mut self) {
        while self.cached_bytes > self.limit
            && let Some(nth) = self.nth(self.cached_from)
            && let Some(slot) = self.slots.get_mut(nth)
            && slot.location.is_some()
        {
            slot.cached = None;
            self.cached_bytes -= slot.len + OVERHEAD;
            self.cached_from += 1;
        }
    }

    fn uncount(&mut self, slot: &Slot) {
        if slot.cached.is_some() {
            self.cached_bytes -= slot.len + OVERHEAD;
        }
    }

    /// Removes those from `since` on.
    pub(super) fn truncate(&mut self, since: u64) {
        while self.last().is_some_and(|slot| slot.id.index >= since) {
            if let Some(slot) = self.slots.pop_back() {
                self.uncount(&slot);
            }
        }
        self.cached_from = self.cached_from.min(self.next());
    }

    /// Removes those up to `upto`.
    pub(super) fn purge(&mut self, upto: u64) {
        while self.first().is_some_and(|slot| slot.id.index <= upto) {
            if let Some(slot) = self.slots.pop_front() {
                self.uncount(&slot);
                self.first += 1;
            }
        }
        self.cached_from = self.cached_from.max(self.first);
    }

    /// Bytes of memory taken by cached entries, about.
    #[cfg(test)]
    pub(super) fn cached_bytes(&self) -> u64 {
        self.cached_bytes
    }
}
