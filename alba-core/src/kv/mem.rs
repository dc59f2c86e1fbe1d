//! [`Kv`] in memory, for tests, simulation and caches that may be lost: it holds nothing back and keeps nothing.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Durability, Entry, Kv, KvError, KvRead, WriteBatch, check_keys, is_empty_range};

/// One state. Values are shared, so that copying a state copies keys only.
pub(super) type State = BTreeMap<Vec<u8>, Arc<[u8]>>;

/// A store in memory. A snapshot shares the state; the first batch after it copies the map (not the values).
#[derive(Debug, Default)]
pub struct MemKv {
    state: RwLock<Arc<State>>,
}

impl MemKv {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The state now. A panic elsewhere cannot leave it half changed: batches are applied under the write lock by code
    /// that does not panic.
    pub(super) fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(super) fn apply(state: &mut State, batch: &WriteBatch) {
    for (key, value) in &batch.0 {
        match value {
            Some(value) => state.insert(key.clone(), value.as_slice().into()),
            None => state.remove(key),
        };
    }
}

pub(super) fn scan(
    state: &State,
    lower: Bound<&[u8]>,
    upper: Bound<&[u8]>,
    reverse: bool,
    limit: usize,
) -> Vec<Entry> {
    if is_empty_range(lower, upper) {
        return Vec::new();
    }
    let range = state.range::<[u8], _>((lower, upper));
    let entry = |(key, value): (&Vec<u8>, &Arc<[u8]>)| (key.clone(), value.to_vec());
    if reverse {
        range.rev().take(limit).map(entry).collect()
    } else {
        range.take(limit).map(entry).collect()
    }
}

impl KvRead for MemKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.state().get(key).map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<Entry>, KvError> {
        Ok(scan(&self.state(), lower, upper, reverse, limit))
    }
}

pub(super) struct MemSnapshot(pub(super) Arc<State>);

impl KvRead for MemSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.0.get(key).map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<Entry>, KvError> {
        Ok(scan(&self.0, lower, upper, reverse, limit))
    }
}

impl Kv for MemKv {
    fn snapshot(&self) -> Result<Box<dyn KvRead + Send + '_>, KvError> {
        Ok(Box::new(MemSnapshot(self.state())))
    }

    fn commit(&self, batch: WriteBatch, _: Durability) -> Result<(), KvError> {
        check_keys(&batch)?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        apply(Arc::make_mut(&mut state), &batch);
        Ok(())
    }

    fn sync(&self) -> Result<(), KvError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        super::super::conformance::run(|| Arc::new(MemKv::new()));
    }
}
