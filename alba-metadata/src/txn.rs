//! A transaction over a store: an overlay of changes, so that many commands share one commit and a command that fails
//! leaves nothing.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::ops::Bound;
use std::sync::Arc;

use alba_core::kv::{KvError, KvRead, WriteBatch};
use foldhash::fast::RandomState;
use indexmap::IndexMap;
use indexmap::map::Entry;

/// No value is longer, in bytes: an external engine may be behind the models one day (architecture §5).
pub const MAX_VALUE: usize = 90 << 10;

/// A key that a command wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Vec<u8>,
    /// Its value before the command.
    pub old: Option<Vec<u8>>,
    /// Its value after.
    pub new: Option<Vec<u8>>,
}

/// A new value.
#[derive(Debug, Clone)]
enum Value {
    Absent,
    Bytes(Vec<u8>),
    /// Of a counter, which nearly every command of a batch changes: without memory of its own.
    Counter([u8; 8]),
}

impl Value {
    fn as_deref(&self) -> Option<&[u8]> {
        match self {
            Self::Absent => None,
            Self::Bytes(bytes) => Some(bytes),
            Self::Counter(bytes) => Some(bytes),
        }
    }

    fn to_owned(&self) -> Option<Vec<u8>> {
        self.as_deref().map(<[u8]>::to_vec)
    }

    fn into_owned(self) -> Option<Vec<u8>> {
        match self {
            Self::Absent => None,
            Self::Bytes(bytes) => Some(bytes),
            Self::Counter(bytes) => Some(bytes.to_vec()),
        }
    }
}

/// What a key is changed to.
#[derive(Debug, Clone)]
struct Slot {
    value: Value,
    /// The command that changed it last.
    command: u64,
}

/// Changes on top of a store. What the current command changed can be taken back, until [`Self::accept`].
///
/// A batch makes many point accesses and few scans: the changes are in a hash table, and in order only as far as a scan
/// needed it. The table's own order is that of the changes, whatever the hashes are. Its hash is a fast one, seeded at random in each
/// process: who chooses names cannot choose which of them collide.
pub struct KvTxn<'a> {
    store: &'a dyn KvRead,
    changes: IndexMap<Vec<u8>, Slot, RandomState>,
    /// Number of the current command.
    command: u64,
    /// Changes that there were before the current command: those behind them are its own.
    accepted: usize,
    /// What all accepted commands wrote, in bytes: a key that several wrote is counted each time.
    bytes: usize,
    /// What the current command changed of them, as it was before.
    replaced: Vec<(usize, Slot)>,
    ordered: RefCell<Ordered>,
    /// Parsed values of the store, which does not change meanwhile: what all commands of a batch look at.
    parsed: RefCell<HashMap<Vec<u8>, Parsed, RandomState>>,
}

/// The keys of the first `upto` changes.
#[derive(Default)]
struct Ordered {
    keys: BTreeSet<Vec<u8>>,
    upto: usize,
}

/// A parsed value; none: the key is absent.
type Parsed = Option<Arc<dyn Any + Send + Sync>>;

/// Most values that are kept parsed.
const MAX_PARSED: usize = 4096;

impl<'a> KvTxn<'a> {
    /// No changes yet.
    pub fn new(store: &'a dyn KvRead) -> Self {
        Self {
            store,
            changes: IndexMap::default(),
            command: 0,
            accepted: 0,
            bytes: 0,
            replaced: Vec::new(),
            ordered: RefCell::default(),
            parsed: RefCell::default(),
        }
    }

    fn set(&mut self, key: Vec<u8>, value: Value) {
        let slot = Slot { value, command: self.command };
        match self.changes.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(slot);
            }
            Entry::Occupied(mut entry) => {
                let before = entry.insert(slot);
                if before.command != self.command {
                    self.replaced.push((entry.index(), before));
                }
            }
        }
    }

    /// The changes of the current command.
    fn current(&self) -> impl Iterator<Item = (&Vec<u8>, &Slot)> {
        let replaced = self.replaced.iter().filter_map(|(index, _)| self.changes.get_index(*index));
        let own = self.changes.get_range(self.accepted..);
        replaced.chain(own.into_iter().flat_map(|own| own.iter()))
    }

    /// The parsed value of a key that many commands of a batch look at and few change: parsed once. A key is always parsed
    /// to the same type.
    pub fn common<T: Send + Sync + 'static>(
        &self,
        key: &[u8],
        parse: impl Fn(&[u8]) -> Result<T, KvError>,
    ) -> Result<Option<Arc<T>>, KvError> {
        if let Some(change) = self.changes.get(key) {
            return change.value.as_deref().map(|value| parse(value).map(Arc::new)).transpose();
        }
        let mut parsed = self.parsed.borrow_mut();
        match parsed.get(key) {
            Some(None) => return Ok(None),
            Some(Some(value)) => {
                if let Ok(value) = value.clone().downcast::<T>() {
                    return Ok(Some(value));
                }
            }
            None => {}
        }
        let value = self.store.get(key)?.map(|value| parse(&value).map(Arc::new)).transpose()?;
        if parsed.len() < MAX_PARSED {
            let any = value.clone().map(|value| -> Arc<dyn Any + Send + Sync> { value });
            parsed.insert(key.to_vec(), any);
        }
        Ok(value)
    }

    /// Sets a key. The models see to it that no value exceeds [`MAX_VALUE`].
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let value = value.into();
        debug_assert!(value.len() < MAX_VALUE, "a value of {} bytes", value.len());
        self.set(key.into(), Value::Bytes(value));
    }

    /// Removes a key.
    pub fn delete(&mut self, key: impl Into<Vec<u8>>) {
        self.set(key.into(), Value::Absent);
    }

    /// Adds to a counter. A counter is a bare u64 LE, the form that engines with an atomic add of their own know; one
    /// that comes to zero is removed. Below zero means that the store is damaged.
    pub fn add(&mut self, key: impl AsRef<[u8]>, delta: i64) -> Result<(), KvError> {
        let key = key.as_ref();
        let Some((index, _, slot)) = self.changes.get_full_mut(key) else {
            let value = sum(key, counter(self.store, key)?, delta)?;
            self.changes.insert(key.to_vec(), Slot { value, command: self.command });
            return Ok(());
        };
        let value = sum(key, parse_counter(key, slot.value.as_deref())?, delta)?;
        let before = std::mem::replace(slot, Slot { value, command: self.command });
        if before.command != self.command {
            self.replaced.push((index, before));
        }
        Ok(())
    }

    /// Keeps what the current command changed.
    pub fn accept(&mut self) {
        self.bytes = self.bytes.saturating_add(usize::try_from(self.written()).unwrap_or(usize::MAX));
        self.command += 1;
        self.accepted = self.changes.len();
        self.replaced.clear();
    }

    /// Forgets what the current command changed.
    pub fn reject(&mut self) {
        for (index, before) in self.replaced.drain(..) {
            if let Some((_, slot)) = self.changes.get_index_mut(index) {
                *slot = before;
            }
        }
        let ordered = self.ordered.get_mut();
        if let Some(own) = self.changes.get_range(self.accepted.min(ordered.upto)..ordered.upto) {
            for key in own.keys() {
                ordered.keys.remove(key);
            }
        }
        ordered.upto = ordered.upto.min(self.accepted);
        self.changes.truncate(self.accepted);
    }

    /// What the current command changed behind a prefix: keys with what was there before and what is there now, in
    /// order. Not everything in it need differ.
    pub fn changed(&self, prefix: &[u8]) -> Result<Vec<Change>, KvError> {
        let mut changes = Vec::new();
        for (index, before) in &self.replaced {
            if let Some((key, slot)) = self.changes.get_index(*index)
                && key.starts_with(prefix)
            {
                let (old, new) = (before.value.to_owned(), slot.value.to_owned());
                changes.push(Change { key: key.clone(), old, new });
            }
        }
        for (key, slot) in self.changes.iter().skip(self.accepted) {
            if key.starts_with(prefix) {
                changes.push(Change {
                    key: key.clone(),
                    old: self.store.get(key)?,
                    new: slot.value.to_owned(),
                });
            }
        }
        changes.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        Ok(changes)
    }

    /// Bytes of keys and values that the current command sets or removes.
    pub fn written(&self) -> u64 {
        let bytes = |(key, slot): (&Vec<u8>, &Slot)| {
            u64::try_from(key.len() + slot.value.as_deref().map_or(0, <[u8]>::len)).unwrap_or(u64::MAX)
        };
        self.current().map(bytes).sum()
    }

    /// Bytes of keys and values that all accepted commands wrote, those of a key as often as it was written.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts it aside without what the current command changed; it goes on with [`Self::resume`].
    pub fn pause(mut self) -> Paused {
        self.reject();
        Paused {
            changes: self.changes,
            command: self.command,
            bytes: self.bytes,
            parsed: self.parsed.into_inner(),
        }
    }

    /// Goes on with a transaction. The store must be as it was, changed at most by what lies on top of it now (see
    /// [`Layered`]) and was under the transaction before.
    pub fn resume(store: &'a dyn KvRead, paused: Paused) -> Self {
        let Paused { changes, command, bytes, parsed } = paused;
        let accepted = changes.len();
        let parsed = RefCell::new(parsed);
        Self {
            store,
            changes,
            command,
            accepted,
            bytes,
            replaced: Vec::new(),
            ordered: RefCell::default(),
            parsed,
        }
    }

    /// All accepted changes, for one atomic commit.
    pub fn into_batch(self) -> WriteBatch {
        self.pause().into_batch()
    }
}

/// A transaction without its store.
#[derive(Default)]
pub struct Paused {
    changes: IndexMap<Vec<u8>, Slot, RandomState>,
    command: u64,
    bytes: usize,
    parsed: HashMap<Vec<u8>, Parsed, RandomState>,
}

impl Paused {
    /// See [`KvTxn::bytes`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All its changes, for one atomic commit.
    pub fn into_batch(self) -> WriteBatch {
        WriteBatch(self.changes.into_iter().map(|(key, slot)| (key, slot.value.into_owned())).collect())
    }
}

/// Changes that are being committed, or were, and on top of which the next are made. Most keys that those look at are not in it: that a bit
/// map tells.
pub struct Below {
    changes: Arc<WriteBatch>,
    hasher: RandomState,
    /// A bit for each hash of a key, about sixteen times as many as there are keys.
    bits: Vec<u64>,
}

impl Below {
    /// Of a batch.
    pub fn new(changes: Arc<WriteBatch>) -> Self {
        let words = (changes.0.len() / 4).next_power_of_two();
        let mut below = Self { changes, hasher: RandomState::default(), bits: vec![0; words] };
        for key in below.changes.0.keys() {
            let (word, bit) = below.place(key);
            if let Some(word) = below.bits.get_mut(word) {
                *word |= bit;
            }
        }
        below
    }

    /// Where the bit of a key is.
    fn place(&self, key: &[u8]) -> (usize, u64) {
        let hash = self.hasher.hash_one(key);
        // The number of words is a power of two; whatever a hash is cut to, it names one of them.
        let word = usize::try_from(hash >> 32).unwrap_or_default() & (self.bits.len() - 1);
        (word, 1 << (hash & 63))
    }

    fn get(&self, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        let (word, bit) = self.place(key);
        if self.bits.get(word).is_none_or(|word| word & bit == 0) { None } else { self.changes.0.get(key) }
    }
}

/// A store with a batch on top of it that is being committed, or was: the same either way.
pub struct Layered<'a> {
    store: &'a dyn KvRead,
    below: Option<&'a Below>,
}

impl<'a> Layered<'a> {
    /// The store as it is once the batch is in it.
    pub fn new(store: &'a dyn KvRead, below: Option<&'a Below>) -> Self {
        Self { store, below }
    }
}

impl KvRead for Layered<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        match self.below.and_then(|below| below.get(key)) {
            Some(value) => Ok(value.clone()),
            None => self.store.get(key),
        }
    }

    fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<alba_core::kv::Entry>, KvError> {
        if is_empty(lower, upper) || limit == 0 {
            return Ok(Vec::new());
        }
        let changed = self.below.map(|below| below.changes.0.range::<[u8], _>((lower, upper)));
        let changed = changed.into_iter().flatten().map(|(key, value)| (key.as_slice(), value.as_deref()));
        merged(self.store, (lower, upper), reverse, limit, changed.collect())
    }
}

/// The value of a counter; absent is 0.
pub fn counter(store: &(impl KvRead + ?Sized), key: &[u8]) -> Result<u64, KvError> {
    parse_counter(key, store.get(key)?.as_deref())
}

fn parse_counter(key: &[u8], value: Option<&[u8]>) -> Result<u64, KvError> {
    let Some(bytes) = value else { return Ok(0) };
    match <[u8; 8]>::try_from(bytes) {
        Ok(bytes) => Ok(u64::from_le_bytes(bytes)),
        Err(_) => Err(KvError::Damaged(format!("counter {key:02x?} has {} bytes", bytes.len()))),
    }
}

/// A counter's value after a change.
fn sum(key: &[u8], old: u64, delta: i64) -> Result<Value, KvError> {
    match old.checked_add_signed(delta) {
        Some(0) => Ok(Value::Absent),
        Some(new) => Ok(Value::Counter(new.to_le_bytes())),
        None => Err(KvError::Damaged(format!("counter {key:02x?}: {old} plus {delta}"))),
    }
}

/// `BTreeMap::range` panics on such bounds.
fn is_empty(lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> bool {
    match (lower, upper) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(first), Bound::Included(last)) => first > last,
        (Bound::Included(first) | Bound::Excluded(first), Bound::Included(last) | Bound::Excluded(last)) => {
            first >= last
        }
    }
}

impl KvRead for KvTxn<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        match self.changes.get(key) {
            Some(change) => Ok(change.value.to_owned()),
            None => self.store.get(key),
        }
    }

    fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<alba_core::kv::Entry>, KvError> {
        if is_empty(lower, upper) || limit == 0 {
            return Ok(Vec::new());
        }
        let mut ordered = self.ordered.borrow_mut();
        if let Some(more) = self.changes.get_range(ordered.upto..) {
            ordered.keys.extend(more.keys().cloned());
            ordered.upto = self.changes.len();
        }
        let changed: Vec<(&[u8], Option<&[u8]>)> = ordered
            .keys
            .range::<[u8], _>((lower, upper))
            .filter_map(|key| self.changes.get_key_value(key))
            .map(|(key, slot)| (key.as_slice(), slot.value.as_deref()))
            .collect();
        merged(self.store, (lower, upper), reverse, limit, changed)
    }
}

/// A scan of a store and changes on top of it; the changes are those within the bounds.
fn merged(
    store: &dyn KvRead,
    (lower, upper): (Bound<&[u8]>, Bound<&[u8]>),
    reverse: bool,
    limit: usize,
    changed: Vec<(&[u8], Option<&[u8]>)>,
) -> Result<Vec<alba_core::kv::Entry>, KvError> {
    // Of the stored entries at most `changed.len()` are hidden: so many more are enough to fill the page.
    let mut stored = store.scan(lower, upper, reverse, limit.saturating_add(changed.len()))?;
    if changed.is_empty() {
        stored.truncate(limit);
        return Ok(stored);
    }
    let exhausted = stored.len() < limit.saturating_add(changed.len());
    let last_stored = stored.last().map(|(key, _)| key.clone());
    let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = stored.into_iter().collect();
    for (key, value) in changed {
        match value {
            Some(value) => merged.insert(key.to_vec(), value.to_vec()),
            None => merged.remove(key),
        };
    }
    // Beyond the last stored entry that was read, others may lie between the changed ones.
    if let (false, Some(edge)) = (exhausted, last_stored) {
        merged.retain(|key, _| if reverse { *key >= edge } else { *key <= edge });
    }
    Ok(if reverse {
        merged.into_iter().rev().take(limit).collect()
    } else {
        merged.into_iter().take(limit).collect()
    })
}

#[cfg(test)]
mod tests {
    use alba_core::kv::MemKv;
    use alba_core::kv::{Durability, Kv};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rejected_command_leaves_nothing() {
        let store = MemKv::new();
        let mut txn = KvTxn::new(&store);
        txn.put("a", "1");
        txn.accept();
        txn.put("a", "2");
        txn.delete("b");
        txn.add("n", 3).unwrap();
        assert_eq!(txn.get(b"a").unwrap().as_deref(), Some(&b"2"[..]));
        txn.reject();
        assert_eq!(txn.get(b"a").unwrap().as_deref(), Some(&b"1"[..]));
        let batch = txn.into_batch();
        assert_eq!(batch.0.len(), 1);
    }

    #[test]
    fn counters_vanish_at_zero_and_never_go_below() {
        let store = MemKv::new();
        let mut txn = KvTxn::new(&store);
        txn.add("n", 3).unwrap();
        assert_eq!(counter(&txn, b"n").unwrap(), 3);
        txn.add("n", -3).unwrap();
        assert_eq!(txn.get(b"n").unwrap(), None);
        assert!(txn.add("n", -1).is_err());
    }

    #[test]
    fn what_a_command_changed_is_told_from_what_others_did() {
        let store = MemKv::new();
        let mut batch = WriteBatch::default();
        batch.put("a1", "stored");
        store.commit(batch, Durability::Sync).unwrap();
        let mut txn = KvTxn::new(&store);
        txn.put("a2", "earlier");
        txn.put("a4", "earlier");
        txn.accept();
        for value in ["x", "now"] {
            txn.put("a3", value);
            txn.put("a2", value);
            txn.put("b", value);
        }
        txn.delete("a1");
        let change = |key: &str, old: Option<&str>, new: Option<&str>| Change {
            key: key.into(),
            old: old.map(Into::into),
            new: new.map(Into::into),
        };
        let expected = [
            change("a1", Some("stored"), None),
            change("a2", Some("earlier"), Some("now")),
            change("a3", None, Some("now")),
        ];
        assert_eq!(txn.changed(b"a").unwrap(), expected);
        assert_eq!(txn.written(), 2 + 5 + 5 + 4);
        txn.reject();
        assert_eq!((txn.changed(b"a").unwrap(), txn.written()), (Vec::new(), 0));
        assert_eq!(txn.get(b"a2").unwrap().as_deref(), Some(&b"earlier"[..]));
    }

    #[test]
    fn a_common_value_is_parsed_once_and_follows_changes() {
        let store = MemKv::new();
        let mut batch = WriteBatch::default();
        batch.put("a", "1");
        store.commit(batch, Durability::Sync).unwrap();
        let mut txn = KvTxn::new(&store);
        let parsed = std::cell::Cell::new(0);
        let read = |txn: &KvTxn<'_>, key: &[u8]| {
            let parse = |value: &[u8]| {
                parsed.set(parsed.get() + 1);
                Ok(value.to_vec())
            };
            txn.common(key, parse).unwrap().map(|value| Vec::clone(&value))
        };
        for _ in 0..3 {
            assert_eq!((read(&txn, b"a").as_deref(), read(&txn, b"b")), (Some(&b"1"[..]), None));
        }
        assert_eq!(parsed.get(), 1);
        txn.put("a", "2");
        txn.put("b", "3");
        assert_eq!(read(&txn, b"a").as_deref(), Some(&b"2"[..]));
        assert_eq!(read(&txn, b"b").as_deref(), Some(&b"3"[..]));
        txn.reject();
        assert_eq!((read(&txn, b"a").as_deref(), read(&txn, b"b")), (Some(&b"1"[..]), None));
    }

    fn key() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(0_u8..4, 1..3)
    }

    proptest! {
        /// Whatever lies in the store and in the two layers, a scan is that of a plain map.
        #[test]
        fn a_scan_sees_store_and_changes_as_one(
            layers in proptest::collection::vec(
                proptest::collection::btree_map(key(), proptest::option::of(any::<u8>()), 0..12), 3..4),
            first in key(), last in key(), reverse: bool, limit in 0_usize..8,
            first_included: bool, last_included: bool, below: bool, paused: bool,
        ) {
            let store = MemKv::new();
            let mut model = BTreeMap::new();
            let mut batch = WriteBatch::default();
            for (key, value) in &layers[0] {
                if let Some(value) = value {
                    batch.put(key.clone(), vec![*value]);
                }
            }
            store.commit(batch, Durability::Sync).unwrap();
            // What the second layer changes lies on top of the store or in the transaction, which is put aside in between.
            let below = below.then(|| {
                let changed = |(key, value): (&Vec<u8>, &Option<u8>)| (key.clone(), value.map(|value| vec![value]));
                Below::new(Arc::new(WriteBatch(layers[1].iter().map(changed).collect())))
            });
            let store = Layered::new(&store, below.as_ref());
            let mut txn = KvTxn::new(&store);
            for (n, layer) in layers.iter().enumerate() {
                for (key, value) in layer {
                    match value {
                        Some(value) => { model.insert(key.clone(), vec![*value]); }
                        None => { model.remove(key); }
                    }
                    match value {
                        _ if n == 0 || n == 1 && below.is_some() => {}
                        Some(value) => txn.put(key.clone(), vec![*value]),
                        None => txn.delete(key.clone()),
                    }
                }
                if n == 1 {
                    txn.accept();
                    // What is taken back leaves nothing, also in what was put in order before.
                    for key in layers[2].keys().chain([&first]) {
                        txn.put(key.clone(), "taken back");
                    }
                    txn.scan(Bound::Unbounded, Bound::Unbounded, false, 1).unwrap();
                    txn.delete(last.clone());
                    if paused {
                        txn = KvTxn::resume(&store, txn.pause());
                    } else {
                        txn.reject();
                    }
                }
            }
            let lower = if first_included { Bound::Included(&first[..]) } else { Bound::Excluded(&first[..]) };
            let upper = if last_included { Bound::Included(&last[..]) } else { Bound::Excluded(&last[..]) };
            let all = model.clone();
            let mut expected: Vec<_> = model
                .into_iter()
                .filter(|(key, _)| (*key > first || (first_included && *key == first))
                    && (*key < last || (last_included && *key == last)))
                .collect();
            if reverse {
                expected.reverse();
            }
            expected.truncate(limit);
            prop_assert_eq!(txn.scan(lower, upper, reverse, limit).unwrap(), expected);
            for (key, value) in all {
                prop_assert_eq!(txn.get(&key).unwrap(), Some(value));
            }
        }
    }
}
