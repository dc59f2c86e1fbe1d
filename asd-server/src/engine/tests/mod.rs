//! The engine on simulated disks: the contract, crashes at every step, damage, failing devices, the format's bytes.

mod beside;
mod crash;
mod damage;
mod failing;
mod golden;
mod proof;
mod ranges;
mod rot;
mod scrubbing;
mod version_1;

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::ops::Bound;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use alba_core::checksum::ChecksumAlgorithm;
use alba_core::env::osd::{Osd, OsdAssert, OsdBatch, OsdError, OsdKey, OsdUpdate, Priority, StoredValue};
use alba_core::env::sim::disk::SimDiskDevice;
use alba_core::env::sim::{SimNode, Simulation};
use alba_core::env::{Deadline, osd_conformance, real};
use alba_core::kv::{Durability, Kv, KvError, KvRead, SimKv, SimKvDevice, WriteBatch};
use alba_core::range::RangeQuery;
use alba_core::units::ByteCount;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::index::Live;
use super::*;

const STORE: StoreId = StoreId(*b"store of a test!");

/// Virtual time one scenario may take.
const LIMIT: Duration = Duration::from_secs(3600);

type Model = BTreeMap<OsdKey, StoredValue>;

/// The index on a simulated device.
struct SimIndex(SimKvDevice, Option<SimDiskDevice>);

impl IndexStore for SimIndex {
    fn open(&self) -> Result<Arc<dyn Kv>, KvError> {
        Ok(match &self.1 {
            None => Arc::new(self.0.open()),
            Some(power) => Arc::new(PoweredKv { kv: self.0.open(), power: power.clone() }),
        })
    }

    fn wipe(&self) -> Result<(), KvError> {
        self.0.wipe();
        Ok(())
    }
}

/// An index on the same power supply as the disk: its commits and syncs are steps at which the power can go, too.
struct PoweredKv {
    kv: SimKv,
    power: SimDiskDevice,
}

impl KvRead for PoweredKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.kv.get(key)
    }

    fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<alba_core::kv::Entry>, KvError> {
        self.kv.scan(lower, upper, reverse, limit)
    }
}

impl Kv for PoweredKv {
    fn snapshot(&self) -> Result<Box<dyn KvRead + Send + '_>, KvError> {
        self.kv.snapshot()
    }

    fn commit(&self, batch: WriteBatch, durability: Durability) -> Result<(), KvError> {
        self.power.step().map_err(|error| KvError::Io(error.to_string()))?;
        self.kv.commit(batch, durability)
    }

    fn sync(&self) -> Result<(), KvError> {
        self.power.step().map_err(|error| KvError::Io(error.to_string()))?;
        self.kv.sync()
    }
}

/// One OSD's hardware.
#[derive(Clone)]
struct Hardware {
    /// Index and disk are on one power supply.
    powered: bool,
    disk: SimDiskDevice,
    index: SimKvDevice,
    config: EngineConfig,
}

impl Hardware {
    fn new(seed: u64) -> Self {
        Self::with_segments(seed, 64 << 10)
    }

    fn with_segments(seed: u64, segment_bytes: u64) -> Self {
        let config = EngineConfig { segment_bytes, capacity: Some(1 << 30), ..EngineConfig::default() };
        Self { powered: false, disk: SimDiskDevice::new(seed, 1 << 40), index: SimKvDevice::new(), config }
    }

    async fn open(&self, node: &SimNode) -> Result<(Engine, Opening), OpenError> {
        let env = node.env();
        let parts = EngineParts {
            disk: Arc::new(self.disk.open()),
            index: Arc::new(SimIndex(self.index.clone(), self.powered.then(|| self.disk.clone()))),
            clock: env.clock,
            bulk: env.bulk.clone(),
            spawn: env.spawn,
            store: STORE,
        };
        Engine::open(parts, self.config.clone()).await
    }

    /// Runs a program on this hardware, as one process with one life.
    fn run<T>(&self, program: impl AsyncFnOnce(&SimNode, Engine, Opening) -> T) -> T {
        let simulation = Simulation::new(1);
        let node = simulation.node(1);
        let main = async {
            let (engine, opening) = self.open(&node).await.unwrap();
            program(&node, engine, opening).await
        };
        simulation.run(LIMIT, main).unwrap()
    }
}

fn deadline(node: &SimNode) -> Deadline {
    node.env().deadline_in(Duration::from_secs(60))
}

fn key(text: &str) -> OsdKey {
    OsdKey::copy_from_slice(text.as_bytes())
}

fn pattern(len: usize, salt: u64) -> Bytes {
    let mut bytes = vec![0; len];
    rand::Rng::fill_bytes(&mut StdRng::seed_from_u64(salt), &mut bytes);
    bytes.into()
}

fn stored(value: Bytes) -> StoredValue {
    StoredValue { checksum: ChecksumAlgorithm::Crc32c.of(&value), value }
}

fn set(name: &str, value: Bytes) -> OsdUpdate {
    OsdUpdate::Set(key(name), stored(value))
}

fn batch(updates: Vec<OsdUpdate>) -> OsdBatch {
    OsdBatch { asserts: Vec::new(), updates }
}

async fn apply(node: &SimNode, engine: &Engine, batch: OsdBatch) -> Result<(), OsdError> {
    engine.apply(batch, Priority::High, deadline(node)).await
}

async fn get(node: &SimNode, engine: &Engine, name: &str) -> Result<Option<StoredValue>, OsdError> {
    Ok(engine.multi_get(vec![key(name)], Priority::High, deadline(node)).await?.remove(0))
}

/// All an engine holds, read through its front door; its accounts are recounted on the way.
async fn content(node: &SimNode, engine: &Engine) -> Model {
    let mut model = Model::new();
    let mut query = RangeQuery::all();
    loop {
        let page = engine.range(query.clone(), Priority::Low, deadline(node)).await.unwrap();
        let values = engine.multi_get(page.items.clone(), Priority::Low, deadline(node)).await.unwrap();
        for (key, value) in page.items.iter().zip(values) {
            model.insert(key.clone(), value.unwrap());
        }
        match page.items.last() {
            Some(last) if page.has_more => query = query.after(last),
            _ => break,
        }
    }
    // Rows of deleted ranges are removed in the background.
    while !engine.shared.index().unwrap().unswept().is_empty() {
        node.env().clock.sleep_until(node.env().clock.now().plus(Duration::from_secs(1))).await;
    }
    let used: usize = model.values().map(|stored| stored.value.len()).sum();
    assert_eq!(engine.usage().used, ByteCount::from(used), "sum of the value sizes");
    let index = engine.shared.index().unwrap();
    let mut live: BTreeMap<u64, Live> = BTreeMap::new();
    for (key, entry) in index.scan(Bound::Unbounded, Bound::Unbounded, false, usize::MAX).unwrap() {
        let there = live.entry(entry.location.segment).or_default();
        there.values += 1;
        there.bytes += entry.footprint(&key);
    }
    let mut counted = index.live().unwrap();
    counted.values_mut().for_each(|live| live.tombstones = 0);
    counted.retain(|_, live| *live != Live::default());
    assert_eq!(counted, live, "what lives in each segment");
    model
}

/// What a batch does to the model; false when an assert refuses it.
fn play(model: &mut Model, batch: &OsdBatch) -> bool {
    let holds = batch.asserts.iter().all(|assert| match assert {
        OsdAssert::Absent(key) => !model.contains_key(key),
        OsdAssert::Value(key, value) => model.get(key).map(|stored| &stored.value) == Some(value),
    });
    if holds {
        for update in &batch.updates {
            match update {
                OsdUpdate::Set(key, stored) => drop(model.insert(key.clone(), stored.clone())),
                OsdUpdate::Delete(key) => drop(model.remove(key)),
                OsdUpdate::DeleteRange(from, to) => model.retain(|key, _| *key < from || *key >= to),
                OsdUpdate::SetFromPeer(..) => unreachable!("the engine has no peers"),
            }
        }
    }
    holds
}

/// A batch that means something to `model`.
fn random_batch(rng: &mut StdRng, model: &Model) -> OsdBatch {
    let any_key = |rng: &mut StdRng| key(&format!("k{}", rng.random_range(0..10)));
    let mut asserts = Vec::new();
    if rng.random_bool(0.3) {
        let asked = any_key(rng);
        asserts.push(match model.get(&asked) {
            Some(stored) if rng.random_bool(0.7) => OsdAssert::Value(asked, stored.value.clone()),
            _ => OsdAssert::Absent(asked),
        });
    }
    let updates = (0..rng.random_range(1..4)).map(|_| {
        let chosen = any_key(rng);
        if rng.random_bool(0.02) {
            let to = key(&format!("k{}", rng.random_range(1..10)));
            return if chosen < to { OsdUpdate::DeleteRange(chosen, to) } else { OsdUpdate::Delete(chosen) };
        }
        let size = [0, 100, 4_096, 5_000, 9_000][rng.random_range(0..5)];
        if rng.random_bool(0.25) {
            OsdUpdate::Delete(chosen)
        } else {
            OsdUpdate::Set(chosen, stored(pattern(size, rng.random())))
        }
    });
    OsdBatch { updates: updates.collect(), asserts }
}

/// Waits for all, polling them in order.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(move |context| {
        for (future, output) in &mut running {
            if output.is_none()
                && let Poll::Ready(done) = future.as_mut().poll(context)
            {
                *output = Some(done);
            }
        }
        if running.iter().all(|(_, output)| output.is_some()) {
            Poll::Ready(running.iter_mut().filter_map(|(_, output)| output.take()).collect())
        } else {
            Poll::Pending
        }
    })
    .await
}

#[test]
fn conforms_on_a_simulated_disk() {
    Hardware::with_segments(1, 12 << 20).run(async |node, engine, opening| {
        assert_eq!(opening, Opening { replayed: 0, rebuilt: false, damage: vec![] });
        let engine = Arc::new(engine);
        osd_conformance::run(engine.clone(), node.env().clock).await;
        osd_conformance::run_extensions(engine, node.env().clock).await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_on_a_real_disk() {
    let directory = tempfile::tempdir().unwrap();
    let env = real::env();
    let parts = EngineParts {
        disk: Arc::new(real::disk::RealDisk::new(directory.path(), env.spawn.clone())),
        index: Arc::new(FjallIndex { directory: directory.path().join("index"), cache_bytes: 1 << 20 }),
        clock: env.clock.clone(),
        bulk: env.bulk.clone(),
        spawn: env.spawn.clone(),
        store: STORE,
    };
    let config = EngineConfig { segment_bytes: 16 << 20, ..EngineConfig::default() };
    let (engine, _) = Engine::open(parts.clone(), config.clone()).await.unwrap();
    let engine = Arc::new(engine);
    osd_conformance::run(engine.clone(), env.clock.clone()).await;
    let stays = set("stays", pattern(100_000, 1));
    engine.apply(batch(vec![stays]), Priority::High, env.deadline_in(LIMIT)).await.unwrap();
    engine.close(env.deadline_in(LIMIT)).await;
    drop(engine);
    for rebuild in [false, true] {
        if rebuild {
            parts.index.wipe().unwrap();
        }
        let (engine, opening) = Engine::open(parts.clone(), config.clone()).await.unwrap();
        assert_eq!((opening.rebuilt, opening.damage), (rebuild, vec![]));
        let found =
            engine.multi_get(vec![key("stays")], Priority::High, env.deadline_in(LIMIT)).await.unwrap();
        assert_eq!(found, [Some(stored(pattern(100_000, 1)))]);
        engine.close(env.deadline_in(LIMIT)).await;
    }
}

#[test]
fn what_does_not_fit_is_refused_and_harms_nothing() {
    Hardware::new(1).run(async |node, engine, _| {
        let refused = async |updates| {
            let result = apply(node, &engine, batch(updates)).await;
            assert!(matches!(result, Err(OsdError::BadRequest(_))), "{result:?}");
        };
        let value_max = usize::try_from(engine.value_max()).unwrap();
        refused(vec![set("k", pattern(value_max + 1, 1))]).await;
        refused(vec![set(&"k".repeat(KEY_MAX + 1), Bytes::new())]).await;
        refused(vec![set("a", pattern(value_max, 1)), set("b", pattern(value_max, 1))]).await;
        apply(node, &engine, batch(vec![set(&"k".repeat(KEY_MAX), pattern(value_max, 1))])).await.unwrap();
        assert_eq!(content(node, &engine).await.len(), 1);
    });
}

#[test]
fn waiting_bytes_are_bounded_and_deadlines_kept() {
    let mut hardware = Hardware::new(1);
    hardware.config.queue_bytes = 8 << 10;
    let simulation = Simulation::new(1);
    let node = simulation.node(1);
    let main = async {
        let env = node.env();
        let parts = EngineParts {
            // Each operation of the disk takes a second.
            disk: Arc::new(hardware.disk.open_slow(env.clock.clone(), Duration::from_secs(1))),
            index: Arc::new(SimIndex(hardware.index.clone(), None)),
            clock: env.clock.clone(),
            bulk: env.bulk.clone(),
            spawn: env.spawn.clone(),
            store: STORE,
        };
        let (engine, _) = Engine::open(parts, hardware.config.clone()).await.unwrap();
        let soon = env.deadline_in(Duration::from_secs(3));
        let put = |name| engine.apply(batch(vec![set(name, pattern(6_000, 1))]), Priority::High, soon);
        let results = join_all(vec![put("a"), put("b"), put("c")]).await;
        assert_eq!(results[0], Err(OsdError::Timeout), "beginning a segment takes longer");
        assert!(matches!(results[1], Err(OsdError::Overloaded(_))), "{results:?}");
        assert!(matches!(results[2], Err(OsdError::Overloaded(_))));
        assert_eq!(node.env().clock.now(), soon.0);
        // All room comes back.
        let later = env.deadline_in(Duration::from_secs(100));
        let again = |name| engine.apply(batch(vec![set(name, pattern(6_000, 1))]), Priority::High, later);
        assert_eq!(join_all(vec![again("a"), again("b"), again("c")]).await, vec![Ok(()); 3]);
    };
    simulation.run(LIMIT, main).unwrap();
}

#[test]
fn a_full_osd_refuses_data_until_there_is_space() {
    let mut hardware = Hardware::new(1);
    hardware.config.capacity = Some(10_000);
    hardware.run(async |node, engine, _| {
        let big = || batch(vec![set("big", pattern(9_900, 1))]);
        apply(node, &engine, big()).await.unwrap();
        assert_eq!(apply(node, &engine, big()).await, Err(OsdError::Full));
        let counter = OsdUpdate::Set(alba_core::osd_keys::next_message(), stored(Bytes::from_static(b"1")));
        apply(node, &engine, batch(vec![counter])).await.unwrap();
        apply(node, &engine, batch(vec![OsdUpdate::Delete(key("big"))])).await.unwrap();
        apply(node, &engine, big()).await.unwrap();
        apply(node, &engine, batch(vec![OsdUpdate::Delete(key("big"))])).await.unwrap();
        engine.set_full(true);
        assert_eq!(apply(node, &engine, big()).await, Err(OsdError::Full));
        engine.set_full(false);
        apply(node, &engine, big()).await.unwrap();
    });
}
