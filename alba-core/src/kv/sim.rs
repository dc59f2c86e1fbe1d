//! [`Kv`] whose device survives a crash with what a crash leaves: a synced state and some prefix of the batches after
//! it, never a part of one. It must never keep less than what was synced, or batches out of order.

use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::mem::{MemSnapshot, State, apply, scan};
use super::{Durability, Entry, Kv, KvError, KvRead, WriteBatch, check_keys};

/// What stays when the process goes: the durable state, the batches after it, and how often it crashed.
#[derive(Debug, Default)]
struct Device {
    durable: Arc<State>,
    live: Arc<State>,
    unsynced: Vec<WriteBatch>,
    crashes: u64,
    failing: bool,
}

/// The simulated device of one store.
#[derive(Debug, Clone, Default)]
pub struct SimKvDevice(Arc<Mutex<Device>>);

impl SimKvDevice {
    /// An empty device.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the store. Handles opened before a crash or a wipe only give errors.
    pub fn open(&self) -> SimKv {
        SimKv { opened_at: self.lock().crashes, device: self.clone() }
    }

    /// Batches that a crash may lose now.
    pub fn unsynced(&self) -> usize {
        self.lock().unsynced.len()
    }

    /// Crashes: of the unsynced batches the first `kept` stay (all, when there are fewer).
    pub fn crash(&self, kept: usize) {
        let mut device = self.lock();
        let unsynced = std::mem::take(&mut device.unsynced);
        let mut state = device.durable.clone();
        for batch in unsynced.iter().take(kept) {
            apply(Arc::make_mut(&mut state), batch);
        }
        device.durable = state.clone();
        device.live = state;
        device.crashes += 1;
        device.failing = false;
    }

    /// Loses everything, as if the store's directory had been deleted.
    pub fn wipe(&self) {
        let mut device = self.lock();
        *device = Device { crashes: device.crashes + 1, ..Device::default() };
    }

    /// From now on every commit and sync fails, until the next crash or wipe.
    pub fn fail(&self) {
        self.lock().failing = true;
    }

    /// No code panics while it holds the lock, so a poisoned lock holds a sound state.
    fn lock(&self) -> MutexGuard<'_, Device> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open simulated store.
#[derive(Debug)]
pub struct SimKv {
    device: SimKvDevice,
    opened_at: u64,
}

impl SimKv {
    fn device(&self) -> Result<MutexGuard<'_, Device>, KvError> {
        let device = self.device.lock();
        if device.crashes == self.opened_at {
            Ok(device)
        } else {
            Err(KvError::Io("the simulated device crashed".into()))
        }
    }

    fn writable(&self) -> Result<MutexGuard<'_, Device>, KvError> {
        let device = self.device()?;
        if device.failing { Err(KvError::Io("injected failure".into())) } else { Ok(device) }
    }
}

impl KvRead for SimKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.device()?.live.get(key).map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<Entry>, KvError> {
        let live = self.device()?.live.clone();
        Ok(scan(&live, lower, upper, reverse, limit))
    }
}

impl Kv for SimKv {
    fn snapshot(&self) -> Result<Box<dyn KvRead + Send + '_>, KvError> {
        Ok(Box::new(MemSnapshot(self.device()?.live.clone())))
    }

    fn commit(&self, batch: WriteBatch, durability: Durability) -> Result<(), KvError> {
        check_keys(&batch)?;
        let mut device = self.writable()?;
        apply(Arc::make_mut(&mut device.live), &batch);
        device.unsynced.push(batch);
        if durability == Durability::Sync {
            device.make_durable();
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), KvError> {
        self.writable()?.make_durable();
        Ok(())
    }
}

impl Device {
    fn make_durable(&mut self) {
        self.durable = self.live.clone();
        self.unsynced.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(kv: &SimKv, key: &str, durability: Durability) {
        let mut batch = WriteBatch::default();
        batch.put(key, "v");
        kv.commit(batch, durability).unwrap();
    }

    #[test]
    fn conforms() {
        let device = SimKvDevice::new();
        super::super::conformance::run(move || {
            device.wipe();
            Arc::new(device.open())
        });
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        for kept in 0..4 {
            let device = SimKvDevice::new();
            let kv = device.open();
            put(&kv, "a", Durability::Sync);
            put(&kv, "b", Durability::Eventual);
            put(&kv, "c", Durability::Eventual);
            device.crash(kept);
            assert!(matches!(kv.get(b"a"), Err(KvError::Io(_))), "the old handle is dead");
            let kv = device.open();
            let found = ["a", "b", "c"].map(|key| kv.get(key.as_bytes()).unwrap().is_some());
            assert_eq!(found, [true, kept >= 1, kept >= 2]);
        }
    }

    #[test]
    fn an_injected_failure_ends_with_the_next_crash() {
        let device = SimKvDevice::new();
        let kv = device.open();
        device.fail();
        assert!(kv.sync().is_err());
        device.crash(0);
        device.open().sync().unwrap();
    }
}
