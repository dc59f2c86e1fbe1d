//! A disk that fails and recovers, as health tells it.

use alba_core::checksum::Checksum;
use alba_core::daemon::Health;
use alba_core::env::osd::{Osd as _, OsdBatch, OsdUpdate, Priority, StoredValue};
use alba_core::env::real::OsRandom;
use alba_core::env::sim::Simulation;
use alba_core::env::sim::disk::{DiskOperation, SimDiskDevice};
use alba_core::kv::{Kv, KvError, SimKvDevice};
use alba_core::wire::asd::CLIENT_OPERATIONS;

use super::*;
use crate::engine::{EngineConfig, IndexStore};

struct SimIndex(SimKvDevice);

impl IndexStore for SimIndex {
    fn open(&self) -> Result<Arc<dyn Kv>, KvError> {
        Ok(Arc::new(self.0.open()))
    }

    fn wipe(&self) -> Result<(), KvError> {
        self.0.wipe();
        Ok(())
    }
}

struct Ill {
    env: Env,
    disk: SimDiskDevice,
    engine: Arc<Engine>,
    service: Arc<Service>,
    watch: Watch,
    health: Health,
}

impl Ill {
    async fn put(&self) -> bool {
        let stored = StoredValue { value: vec![1; 100].into(), checksum: Checksum::None };
        let batch = OsdBatch { asserts: vec![], updates: vec![OsdUpdate::Set("k".into(), stored)] };
        self.engine.apply(batch, Priority::High, self.env.deadline_in(CLOSE)).await.is_ok()
    }

    /// Looks each second for so long; gives the conditions then.
    async fn after(&mut self, seconds: u64) -> Vec<String> {
        for _ in 0..seconds {
            self.env.clock.sleep_until(self.env.clock.now().plus(WATCH)).await;
            self.watch.look().await;
        }
        self.watch.look().await;
        let shown = self.health.get();
        let mut own: serde_json::Value = serde_json::from_str(&self.service.health()).unwrap();
        assert!(own.as_object_mut().unwrap().remove(CLIENT_OPERATIONS).is_some());
        assert_eq!(own, shown.details, "the operation Health says the same");
        let conditions = shown.details["conditions"].as_array().unwrap();
        let names: Vec<_> = conditions.iter().map(|c| c["condition"].as_str().unwrap().to_owned()).collect();
        assert_eq!(shown.ready, names.is_empty());
        names
    }
}

fn run(scenario: impl AsyncFnOnce(Ill)) {
    let directory = tempfile::tempdir().unwrap();
    let home = Home::format(directory.path(), None, &"node-0".parse().unwrap(), &OsRandom).unwrap();
    let simulation = Simulation::new(11);
    let env = simulation.node(1).env();
    let main = async {
        let disk = SimDiskDevice::new(1, 1 << 40);
        let parts = EngineParts {
            disk: Arc::new(disk.open()),
            index: Arc::new(SimIndex(SimKvDevice::new())),
            clock: env.clock.clone(),
            bulk: env.bulk.clone(),
            spawn: env.spawn.clone(),
            store: home.store,
        };
        let config =
            EngineConfig { segment_bytes: 1 << 20, capacity: Some(10_000), ..EngineConfig::default() };
        let engine = Arc::new(Engine::open(parts, config).await.unwrap().0);
        let service = Service::new(env.clone(), ServiceLimits::default());
        service.set_engine(Ok(engine.clone()));
        let health = Health::default();
        let watch = Watch::new(
            env.clone(),
            health.clone(),
            service.clone(),
            home.identity.clone(),
            directory.path().to_owned(),
            4096,
        );
        scenario(Ill { env: env.clone(), disk, engine, service, watch, health }).await;
    };
    simulation.run(Duration::from_secs(3600), main).unwrap();
}

#[test]
fn a_disk_that_works_again_is_noticed_without_any_client() {
    run(async |mut ill| {
        assert!(ill.put().await);
        assert_eq!(ill.after(1).await, [""; 0]);
        for operation in [DiskOperation::Write, DiskOperation::Directory] {
            ill.disk.inject(operation, 0, u64::MAX, std::io::ErrorKind::ReadOnlyFilesystem);
        }
        assert!(!ill.put().await);
        assert_eq!(ill.after(20).await, ["writing_fails"]);
        assert!(ill.health.get().reason.contains("read-only"), "{:?}", ill.health.get());
        ill.disk.clear_injections();
        assert_eq!(ill.after(7).await, [""; 0]);
    });
}

#[test]
fn full_is_told_with_its_numbers_and_ends_with_its_cause() {
    run(async |mut ill| {
        ill.engine.set_full(true);
        assert_eq!(ill.after(1).await, ["full"]);
        assert!(ill.health.get().reason.contains("0 of 10000 bytes"), "{:?}", ill.health.get());
        ill.engine.set_full(false);
        assert_eq!(ill.after(1).await, [""; 0]);
    });
}

#[test]
fn a_store_that_is_not_open_is_not_ready_and_says_why() {
    run(async |mut ill| {
        ill.service.set_engine(Err("the store does not open: no such disk".into()));
        assert_eq!(ill.after(1).await, ["not_serving"]);
        assert!(ill.health.get().reason.contains("no such disk"));
        ill.service.set_engine(Ok(ill.engine.clone()));
        assert_eq!(ill.after(1).await, [""; 0]);
    });
}
