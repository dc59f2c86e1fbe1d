//! An OSD that is a map: the model real engines are compared with, and the quick stand-in for one in tests. Nothing of
//! it survives a crash; it never fails but as the contract of [`Osd`] says. It has no peers to copy from.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::blake3_tree::LeafTable;
use crate::checksum::Checksum;
use crate::env::osd::{
    DiskUsage, OsdAssert, OsdBatch, OsdKey, OsdUpdate, Priority, ProvenSlice, StoredValue, ValueSlice,
};
use crate::env::{Deadline, Osd, OsdError};
use crate::range::{Page, RangeQuery};
use crate::units::ByteCount;

/// An OSD in memory.
#[derive(Debug)]
pub struct MemoryOsd {
    state: Mutex<State>,
    capacity: ByteCount,
}

#[derive(Debug, Default)]
struct State {
    values: BTreeMap<OsdKey, StoredValue>,
    full: bool,
}

impl MemoryOsd {
    /// An empty one that takes values of `capacity` bytes in sum (and the batch that goes above it).
    pub fn new(capacity: ByteCount) -> Self {
        Self { state: Mutex::default(), capacity }
    }

    /// Makes it refuse data, or accept it again.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// All it holds.
    pub fn content(&self) -> BTreeMap<OsdKey, StoredValue> {
        self.lock().values.clone()
    }

    /// Puts other bytes in the place of a value, as rot does: nothing is checked, and its checksum stays.
    pub fn rot(&self, key: &OsdKey, bytes: Bytes) {
        if let Some(stored) = self.lock().values.get_mut(key) {
            stored.value = bytes;
        }
    }

    /// No code panics while it holds the lock, so a poisoned lock holds a sound state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn used(&self) -> u64 {
        self.values.values().map(|stored| ByteCount::from(stored.value.len()).get()).sum()
    }
}

/// The bytes of `slice`, or none when it leaves the value.
fn cut(value: &Bytes, slice: ValueSlice) -> Option<Bytes> {
    let start = usize::try_from(slice.offset).ok()?;
    let end = start.checked_add(usize::try_from(slice.len).ok()?)?;
    (end <= value.len()).then(|| value.slice(start..end))
}

fn outside() -> OsdError {
    OsdError::BadRequest("slice outside the value".into())
}

/// What is wrong with an update, whatever the OSD holds.
fn check(update: &OsdUpdate) -> Result<(), OsdError> {
    match update {
        OsdUpdate::Set(key, StoredValue { value, checksum: checksum @ Checksum::Blake3(_) })
            if !checksum.matches(value) =>
        {
            Err(OsdError::WrongChecksum(key.clone()))
        }
        OsdUpdate::DeleteRange(from, to) if from >= to => {
            Err(OsdError::BadRequest("a range that ends before it begins".into()))
        }
        OsdUpdate::SetFromPeer(..) => Err(OsdError::UnknownOperation),
        OsdUpdate::Set(..) | OsdUpdate::Delete(_) | OsdUpdate::DeleteRange(..) => Ok(()),
    }
}

fn prove(stored: &StoredValue, slice: ValueSlice) -> Result<ProvenSlice, OsdError> {
    if !matches!(stored.checksum, Checksum::Blake3(_)) {
        return Err(OsdError::BadRequest("stored without a BLAKE3 root".into()));
    }
    let refused = |error: crate::blake3_tree::TreeError| OsdError::BadRequest(error.to_string());
    let table = LeafTable::of(&stored.value).map_err(refused)?;
    let covering = LeafTable::covering(table.value_len(), slice).map_err(refused)?;
    let leaves = ValueSlice { offset: covering.start, len: covering.end - covering.start };
    Ok(ProvenSlice {
        value_len: table.value_len(),
        leaves: cut(&stored.value, leaves).ok_or_else(outside)?,
        proof: table.prove(slice).map_err(refused)?,
    })
}

#[async_trait]
impl Osd for MemoryOsd {
    async fn apply(&self, batch: OsdBatch, _: Priority, _: Deadline) -> Result<(), OsdError> {
        batch.updates.iter().try_for_each(check)?;
        let mut state = self.lock();
        let full = state.full || state.used() >= self.capacity.get();
        if full && batch.updates.iter().any(|update| matches!(update, OsdUpdate::Set(..))) {
            return Err(OsdError::Full);
        }
        for assert in batch.asserts {
            let stored = state.values.get(assert.key()).map(|stored| &stored.value);
            let holds = match &assert {
                OsdAssert::Absent(_) => stored.is_none(),
                OsdAssert::Value(_, expected) => stored == Some(expected),
            };
            if !holds {
                return Err(OsdError::AssertFailed(assert.key().clone()));
            }
        }
        for update in batch.updates {
            match update {
                OsdUpdate::Set(key, stored) => drop(state.values.insert(key, stored)),
                OsdUpdate::Delete(key) => drop(state.values.remove(&key)),
                OsdUpdate::DeleteRange(from, to) => state.values.retain(|key, _| *key < from || *key >= to),
                // Refused before.
                OsdUpdate::SetFromPeer(..) => {}
            }
        }
        Ok(())
    }

    async fn multi_get(
        &self,
        keys: Vec<OsdKey>,
        _: Priority,
        _: Deadline,
    ) -> Result<Vec<Option<StoredValue>>, OsdError> {
        let state = self.lock();
        Ok(keys.iter().map(|key| state.values.get(key).cloned()).collect())
    }

    async fn multi_exists(&self, keys: Vec<OsdKey>, _: Priority, _: Deadline) -> Result<Vec<bool>, OsdError> {
        let state = self.lock();
        Ok(keys.iter().map(|key| state.values.contains_key(key)).collect())
    }

    async fn partial_get(
        &self,
        key: OsdKey,
        slices: Vec<ValueSlice>,
        _: Priority,
        _: Deadline,
    ) -> Result<Option<Vec<Bytes>>, OsdError> {
        let state = self.lock();
        let Some(stored) = state.values.get(&key) else { return Ok(None) };
        let cut = |slice| cut(&stored.value, slice).ok_or_else(outside);
        slices.into_iter().map(cut).collect::<Result<_, _>>().map(Some)
    }

    async fn proven_get(
        &self,
        key: OsdKey,
        slice: ValueSlice,
        _: Priority,
        _: Deadline,
    ) -> Result<Option<ProvenSlice>, OsdError> {
        let stored = self.lock().values.get(&key).cloned();
        stored.map(|stored| prove(&stored, slice)).transpose()
    }

    async fn range(&self, query: RangeQuery, _: Priority, _: Deadline) -> Result<Page<OsdKey>, OsdError> {
        let state = self.lock();
        let found = state.values.keys().filter(|key| query.contains(key)).cloned();
        let wanted = query.limit() + 1;
        let mut items: Vec<OsdKey> =
            if query.reverse { found.rev().take(wanted).collect() } else { found.take(wanted).collect() };
        let has_more = items.len() == wanted;
        items.truncate(query.limit());
        Ok(Page { items, has_more })
    }

    async fn disk_usage(&self, _: Deadline) -> Result<DiskUsage, OsdError> {
        Ok(DiskUsage { used: ByteCount(self.lock().used()), capacity: self.capacity })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::env::real::TokioClock;

    #[tokio::test]
    async fn conforms() {
        let osd = Arc::new(MemoryOsd::new(ByteCount::mib(1024)));
        let clock = Arc::new(TokioClock::new());
        crate::env::osd_conformance::run(osd.clone(), clock.clone()).await;
        crate::env::osd_conformance::run_extensions(osd, clock).await;
    }

    #[tokio::test]
    async fn a_full_one_takes_deletes_only() {
        let osd = MemoryOsd::new(ByteCount(10));
        let deadline = Deadline(crate::env::Moment::default());
        let key = OsdKey::from_static(b"k");
        let stored = StoredValue { value: Bytes::from_static(b"ten bytes!"), checksum: Checksum::None };
        let set = OsdBatch { asserts: vec![], updates: vec![OsdUpdate::Set(key.clone(), stored)] };
        osd.apply(set.clone(), Priority::High, deadline).await.unwrap();
        assert_eq!(osd.apply(set.clone(), Priority::High, deadline).await, Err(OsdError::Full));
        let delete = OsdBatch { asserts: vec![], updates: vec![OsdUpdate::Delete(key)] };
        osd.apply(delete, Priority::High, deadline).await.unwrap();
        osd.apply(set, Priority::High, deadline).await.unwrap();
    }
}
