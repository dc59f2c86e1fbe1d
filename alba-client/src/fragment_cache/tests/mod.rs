//! What every cache must do, whatever it is made of, and a tier with faults to make them of.

mod conformance;
mod faults;
mod model;
mod on_disk;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alba_core::env::{Clock, Env};
use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceId, ObjectId, ObjectVersion};
use alba_core::osd_keys::FragmentAddress;
use async_trait::async_trait;
use bytes::Bytes;

use super::CacheKey;
use super::entry::Entry;
use super::generations::Generations;
use super::guarded::Guarded;
use super::local::LocalCache;
use super::sketch::Sketch;
use super::tier::{Loaded, Slot, Tier, TierError};

pub(super) fn key(namespace: u32, object: u8) -> CacheKey {
    let address = FragmentAddress {
        object_id: ObjectId::new([object; 32]),
        chunk: ChunkIndex(0),
        fragment: FragmentIndex(0),
        version: ObjectVersion(0),
    };
    CacheKey { namespace: NamespaceId::from_u32(namespace), address }
}

/// What a fragment holds: its key tells.
pub(super) fn content(key: &CacheKey, len: usize) -> Bytes {
    let mut state = key.namespace.get() << 8 | u64::from(key.address.object_id.as_bytes()[0]);
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}

pub(super) fn entry(key: &CacheKey, len: usize) -> Entry {
    Entry::seal(*key, content(key, len))
}

/// Waits for a condition, a (real or simulated) minute at most.
pub(super) async fn until(clock: &dyn Clock, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..12_000 {
        if condition().await {
            return;
        }
        clock.sleep_until(clock.now().plus(Duration::from_millis(5))).await;
    }
    panic!("the condition did not come about");
}

/// What goes wrong in a [`TestTier`].
#[derive(Debug, Clone, Default)]
pub(crate) struct TierFaults {
    pub(crate) opens_fail: bool,
    pub(crate) reads_hang: bool,
    pub(crate) reads_fail: bool,
    pub(crate) read_delay: Duration,
    /// One bit of what is read is wrong.
    pub(crate) reads_lie: bool,
    pub(crate) writes_hang: bool,
    pub(crate) writes_fail: bool,
}

/// A tier in memory, with faults.
pub(crate) struct TestTier {
    clock: Arc<dyn Clock>,
    entries: Mutex<BTreeMap<Slot, Entry>>,
    faults: Mutex<TierFaults>,
    /// Opened, read, written so often.
    pub(crate) calls: Mutex<[usize; 3]>,
    room: bool,
}

impl TestTier {
    pub(crate) fn new(env: &Env) -> Arc<Self> {
        Self::with_room(env, true)
    }

    pub(crate) fn with_room(env: &Env, room: bool) -> Arc<Self> {
        let clock = Arc::clone(&env.clock);
        let (entries, faults, calls) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { clock, entries, faults, calls, room })
    }

    pub(crate) fn set(&self, faults: TierFaults) {
        *self.faults.lock().unwrap() = faults;
    }

    fn called(&self, which: usize) -> TierFaults {
        self.calls.lock().unwrap()[which] += 1;
        self.faults.lock().unwrap().clone()
    }

    pub(crate) fn has(&self, wanted: &CacheKey) -> bool {
        self.entries
            .lock()
            .unwrap()
            .keys()
            .any(|slot| slot.address == wanted.address && slot.namespace == wanted.namespace.get())
    }
}

#[async_trait]
impl Tier for TestTier {
    async fn open(&self) -> Result<(), TierError> {
        if self.called(0).opens_fail { Err(TierError("no such disk".to_owned())) } else { Ok(()) }
    }

    fn may_have(&self, slot: &Slot) -> bool {
        self.entries.lock().unwrap().contains_key(slot)
    }

    async fn load(&self, slot: &Slot) -> Result<Loaded, TierError> {
        let faults = self.called(1);
        if faults.reads_hang {
            std::future::pending::<()>().await;
        }
        if faults.read_delay > Duration::ZERO {
            self.clock.sleep_until(self.clock.now().plus(faults.read_delay)).await;
        }
        if faults.reads_fail {
            return Err(TierError("input/output error".to_owned()));
        }
        let found = self.entries.lock().unwrap().get(slot).cloned();
        Ok(match found {
            Some(entry) if faults.reads_lie => Loaded::Found(entry.flipped(0)),
            Some(entry) => Loaded::Found(entry),
            None => Loaded::Gone,
        })
    }

    async fn store(&self, batch: Vec<(Slot, Entry)>) -> Result<(), TierError> {
        let faults = self.called(2);
        if faults.writes_hang {
            std::future::pending::<()>().await;
        }
        if faults.writes_fail {
            return Err(TierError("no space left on device".to_owned()));
        }
        self.entries.lock().unwrap().extend(batch);
        Ok(())
    }

    fn remove(&self, slot: &Slot) {
        self.entries.lock().unwrap().remove(slot);
    }

    async fn keep_generations(&self) -> Result<(), TierError> {
        Ok(())
    }

    fn used(&self) -> u64 {
        self.entries.lock().unwrap().values().map(Entry::weight).sum()
    }

    fn has_room(&self) -> bool {
        self.room
    }

    fn largest(&self) -> u64 {
        4 << 20
    }
}

/// The deadline of the caches in these tests.
pub(crate) const DEADLINE: Duration = Duration::from_millis(20);

/// A cache over a tier.
pub(crate) fn over(env: &Env, tier: Arc<dyn Tier>, ram_bytes: u64) -> Arc<LocalCache> {
    with_deadline(env, tier, ram_bytes, DEADLINE)
}

/// The same with another deadline.
pub(crate) fn with_deadline(
    env: &Env,
    tier: Arc<dyn Tier>,
    ram_bytes: u64,
    deadline: Duration,
) -> Arc<LocalCache> {
    let disk = Guarded::start(tier, env, deadline, 1 << 30);
    Arc::new(LocalCache::new(ram_bytes, Some(disk), Arc::new(Generations::new()), Arc::new(Sketch::new())))
}

/// A cache in memory.
pub(crate) fn in_memory(ram_bytes: u64) -> Arc<LocalCache> {
    Arc::new(LocalCache::new(ram_bytes, None, Arc::new(Generations::new()), Arc::new(Sketch::new())))
}
