//! The machines of a run: storage, metadata and clients, with devices that outlive crashes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alba_client::ClientConfig;
use alba_client::metadata::MetadataClient;
use alba_core::env::sim::disk::SimDiskDevice;
use alba_core::env::sim::{SimNode, Simulation};
use alba_core::env::{Directory as _, Env, Moment};
use alba_core::ids::{GroupId, LongId, NamespaceName, NodeId, Place, PresetName};
use alba_core::kv::{Kv, KvError, SimKvDevice};
use alba_core::net::rpc::{self, ServerLimits};
use alba_core::policy::Policy;
use alba_core::preset::Preset;
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{AbmCommand, MaintenanceUpdate, OsdEndpoint, OsdInfo};
use alba_metadata::replicator::{LocalLimits, StoreOpener};
use alba_metadata::server::{AsdDevices, Node, NodeConfig};
use asd_server::engine::{Engine, EngineConfig, EngineParts, IndexStore, StoreId};
use asd_server::server::{Server, ServerLimits as AsdServerLimits, Service, ServiceLimits};
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::disk::TracedDisk;

/// Storage machines, two on each node of the placement.
pub(super) const OSDS: usize = 8;
/// Machines that may come later, each on a node of its own.
const SPARES: usize = 2;
/// The namespace that the clients use.
pub(super) const NAMESPACE: &str = "simulated";

const ASD_PORT: u16 = 8000;
const METADATA_PORT: u16 = 4000;
/// Small, so that runs roll over to new segments.
const SEGMENT_BYTES: u64 = 1 << 20;
const DISK_BYTES: u64 = 256 << 20;
/// Small, so that ordinary objects have several chunks.
const FRAGMENT_BYTES: u32 = 8 << 10;
/// Time for anything of the set-up.
const SET_UP: Duration = Duration::from_secs(60);

// Numbers of the machines.
const METADATA: u32 = 1;
const AUDITOR: u32 = 2;
const FIRST_OSD: u32 = 10;
const FIRST_CLIENT: u32 = 100;
const FIRST_AGENT: u32 = 200;
const FIRST_MOVER: u32 = 300;

/// So long an OSD may be silent where repair goes on: long enough for an ordinary crash, too short for an outage.
const SILENCE_SECONDS: u64 = 5;

/// Where a storage machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The backend has not heard of it.
    Spare,
    /// It may be down, and comes back with all that it had synced.
    Member,
    /// It never comes back.
    Lost,
}

/// A storage machine.
pub(super) struct OsdMachine {
    pub(super) node: SimNode,
    pub(super) long_id: LongId,
    stage: Mutex<Stage>,
    /// Down for longer than a crash: nobody but its operator starts it.
    held: AtomicBool,
    /// Tells its store from others.
    mark: u8,
    place: Place,
    disk: SimDiskDevice,
    index: SimKvDevice,
    up: AtomicBool,
}

/// The machine of the metadata groups.
pub(super) struct MetadataMachine {
    pub(super) node: SimNode,
    /// One store per group.
    stores: BTreeMap<GroupId, SimKvDevice>,
}

/// All machines of a run.
pub(super) struct World<'s> {
    sim: &'s Simulation,
    env: Env,
    pub(super) osds: Vec<OsdMachine>,
    pub(super) metadata: MetadataMachine,
    pub(super) auditor: SimNode,
    /// Are silent OSDs made up for?
    repaired: bool,
}

/// The index of a simulated storage daemon.
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

impl<'s> World<'s> {
    /// Starts all machines, claims the OSDs and creates the namespace. `repaired`: silent OSDs are made up for.
    pub(super) async fn start(sim: &'s Simulation, repaired: bool) -> Self {
        let osds = (0..OSDS + SPARES).map(|index| {
            let number = FIRST_OSD + u32::try_from(index).unwrap();
            OsdMachine {
                node: sim.node(number),
                long_id: LongId::new(format!("asd-{index}")).unwrap(),
                stage: Mutex::new(if index < OSDS { Stage::Member } else { Stage::Spare }),
                held: AtomicBool::new(false),
                mark: u8::try_from(index).unwrap(),
                place: Place::of_node(
                    NodeId::new(format!("node-{}", if index < OSDS { index / 2 } else { index })).unwrap(),
                ),
                disk: SimDiskDevice::new(sim.rng(&format!("disk {index}")).random(), DISK_BYTES),
                index: SimKvDevice::new(),
                up: AtomicBool::new(false),
            }
        });
        let stores =
            ["abm", "nsm-0"].map(|group| (GroupId::new(group).unwrap(), SimKvDevice::new())).into_iter();
        let world = Self {
            sim,
            env: sim.node(AUDITOR).env(),
            osds: osds.collect(),
            metadata: MetadataMachine { node: sim.node(METADATA), stores: stores.collect() },
            auditor: sim.node(AUDITOR),
            repaired,
        };
        world.start_metadata();
        world.start_everything();
        world.set_up().await;
        world
    }

    async fn set_up(&self) {
        let deadline = self.env.deadline_in(SET_UP);
        let directory = MetadataClient::connect(self.env.clone(), vec![self.metadata_address()]);
        for osd in self.osds.iter().filter(|osd| osd.stage() == Stage::Member) {
            directory.command(AbmCommand::AddOsd(osd.info()), deadline).await.unwrap();
            directory.claim_osd(&osd.long_id, deadline).await.unwrap();
        }
        if self.repaired {
            let update = MaintenanceUpdate {
                enable_auto_repair: Some(true),
                auto_repair_timeout_seconds: Some(SILENCE_SECONDS),
                ..MaintenanceUpdate::default()
            };
            directory.command(AbmCommand::UpdateMaintenance(update), deadline).await.unwrap();
        }
        let preset = PresetName::new("small").unwrap();
        let create = AbmCommand::CreatePreset { name: preset.clone(), preset: Box::new(small_preset()) };
        directory.command(create, deadline).await.unwrap();
        let name = NamespaceName::new(NAMESPACE).unwrap();
        let create = AbmCommand::CreateNamespace { name, preset: Some(preset), group: None };
        directory.command(create, deadline).await.unwrap();
    }

    pub(super) async fn sleep(&self, time: Duration) {
        self.env.clock.sleep_until(self.env.clock.now().plus(time)).await;
    }

    pub(super) fn now(&self) -> Moment {
        self.env.clock.now()
    }

    /// A command of the operator's, who has patience. False when it is refused: what was to be changed has changed.
    pub(super) async fn tell(&self, command: AbmCommand) -> bool {
        let directory = MetadataClient::connect(self.env.clone(), vec![self.metadata_address()]);
        directory.command(command, self.env.deadline_in(SET_UP)).await.is_ok()
    }

    /// The next spare machine becomes a member.
    pub(super) async fn add_spare(&self) -> bool {
        let Some(osd) = self.osds.iter().find(|osd| osd.stage() == Stage::Spare) else { return false };
        osd.start();
        osd.set_stage(Stage::Member);
        let directory = MetadataClient::connect(self.env.clone(), vec![self.metadata_address()]);
        let deadline = self.env.deadline_in(SET_UP);
        directory.command(AbmCommand::AddOsd(osd.info()), deadline).await.unwrap();
        directory.claim_osd(&osd.long_id, deadline).await.unwrap();
        true
    }

    /// A storage machine and all that is on it is gone for good.
    pub(super) fn lose_osd(&self, index: usize, rng: &mut StdRng) {
        self.crash_osd(index, rng);
        self.osds[index].set_stage(Stage::Lost);
    }

    /// It is down until [`Self::release_osd`].
    pub(super) fn hold_osd(&self, index: usize, rng: &mut StdRng) {
        self.crash_osd(index, rng);
        self.osds[index].held.store(true, Ordering::Relaxed);
    }

    pub(super) fn release_osd(&self, index: usize) {
        let osd = &self.osds[index];
        osd.held.store(false, Ordering::Relaxed);
        if !osd.up.load(Ordering::Relaxed) {
            osd.start();
        }
    }

    fn metadata_address(&self) -> SocketAddr {
        self.metadata.node.address(METADATA_PORT)
    }

    pub(super) fn client_config(&self) -> ClientConfig {
        ClientConfig {
            metadata: vec![self.metadata_address()],
            osd_timeout_ms: 2000,
            report_osds_ms: if self.repaired { 1000 } else { ClientConfig::default().report_osds_ms },
            ..ClientConfig::default()
        }
    }

    pub(super) fn client_node(&self, machine: u32) -> SimNode {
        self.sim.node(FIRST_CLIENT + machine)
    }

    pub(super) fn mover_node(&self, machine: u32) -> SimNode {
        self.sim.node(FIRST_MOVER + machine)
    }

    pub(super) fn agent_node(&self, machine: u32) -> SimNode {
        self.sim.node(FIRST_AGENT + machine)
    }

    /// One of the first two client machines.
    pub(super) fn any_client(&self, rng: &mut StdRng) -> SimNode {
        self.client_node(rng.random_range(0..2))
    }

    pub(super) fn osds_down(&self) -> usize {
        self.osds.iter().filter(|osd| osd.is_down()).count()
    }

    /// A storage machine loses power, unless it is down already: of what its disk had not synced anything may be lost.
    pub(super) fn crash_osd(&self, index: usize, rng: &mut StdRng) {
        let osd = &self.osds[index];
        if osd.up.swap(false, Ordering::Relaxed) {
            osd.node.crash();
            osd.disk.crash();
            osd.index.crash(rng.random_range(0..=osd.index.unsynced()));
        }
    }

    /// Starts one of those that are down.
    pub(super) fn start_one_osd(&self, rng: &mut StdRng) {
        let held = |osd: &OsdMachine| osd.held.load(Ordering::Relaxed);
        let down: Vec<&OsdMachine> = self.osds.iter().filter(|osd| osd.is_down() && !held(osd)).collect();
        if !down.is_empty() {
            down[rng.random_range(0..down.len())].start();
        }
    }

    /// Starts all that are down.
    pub(super) fn start_everything(&self) {
        self.osds.iter().filter(|osd| osd.is_down()).for_each(OsdMachine::start);
    }

    pub(super) fn crash_metadata(&self, rng: &mut StdRng) {
        self.metadata.node.crash();
        for store in self.metadata.stores.values() {
            store.crash(rng.random_range(0..=store.unsynced()));
        }
    }

    /// The first `count` storage machines come back with empty disks.
    pub(super) fn lose_disks(&self, count: usize) {
        for osd in self.osds.iter().take(count) {
            osd.node.crash();
            osd.disk.crash();
            for name in osd.disk.names() {
                osd.disk.lose(&name);
            }
            osd.index.wipe();
            osd.start();
        }
    }

    /// The NSM group comes back empty.
    pub(super) fn lose_metadata(&self) {
        self.metadata.node.crash();
        for (group, store) in &self.metadata.stores {
            store.crash(0);
            if group.as_str() != "abm" {
                store.wipe();
            }
        }
        self.start_metadata();
    }

    pub(super) fn start_metadata(&self) {
        self.metadata.start();
    }
}

/// 3 + 2, written with 4, at most 2 on a node; replication when even that is not possible.
fn small_preset() -> Preset {
    let policies = [[3, 2, 4, 2], [1, 2, 2, 1]];
    Preset {
        policies: policies.map(|policy| Policy::try_from(policy).unwrap()).to_vec(),
        fragment_size: FRAGMENT_BYTES,
        ..Preset::built_in()
    }
}

impl OsdMachine {
    pub(super) fn stage(&self) -> Stage {
        *self.stage.lock().unwrap()
    }

    fn set_stage(&self, stage: Stage) {
        *self.stage.lock().unwrap() = stage;
    }

    /// Is it a member that does not run?
    fn is_down(&self) -> bool {
        self.stage() == Stage::Member && !self.up.load(Ordering::Relaxed)
    }

    fn info(&self) -> OsdInfo {
        OsdInfo {
            long_id: self.long_id.clone(),
            place: self.place.clone(),
            endpoint: OsdEndpoint::over_tcp(vec![self.node.address(ASD_PORT).ip()], ASD_PORT),
            capacity: ByteCount(DISK_BYTES),
            used: ByteCount(0),
        }
    }

    fn start(&self) {
        self.up.store(true, Ordering::Relaxed);
        let env = self.node.env();
        let parts = EngineParts {
            disk: Arc::new(TracedDisk::new(self.node.clone(), self.disk.open())),
            index: Arc::new(SimIndex(self.index.clone())),
            clock: env.clock.clone(),
            bulk: env.bulk.clone(),
            spawn: env.spawn.clone(),
            store: StoreId([self.mark; 16]),
        };
        let (inner, long_id, address) = (env.clone(), self.long_id.clone(), self.node.address(ASD_PORT));
        let serve = async move {
            let config = EngineConfig { segment_bytes: SEGMENT_BYTES, ..EngineConfig::default() };
            // A store that was cut off anywhere opens again: that is part of what is tested.
            let (engine, _) = Engine::open(parts, config).await.unwrap();
            let service = Service::new(inner.clone(), ServiceLimits::default());
            service.set_engine(Ok(Arc::new(engine)));
            let listener = inner.net.listen(address).await.unwrap();
            Server::new(inner, long_id, service, AsdServerLimits::default()).serve(listener).await;
        };
        env.spawn.spawn("asd-server", Box::pin(serve));
    }
}

impl MetadataMachine {
    fn start(&self) {
        let env = self.node.env();
        let address = self.node.address(METADATA_PORT);
        let groups = self.stores.iter().map(|(group, device)| {
            let device = device.clone();
            let open: StoreOpener = Arc::new(move || Ok(Arc::new(device.open()) as Arc<dyn Kv>));
            (group.clone(), open)
        });
        let config = NodeConfig {
            groups: groups.collect(),
            advertise: address.to_string(),
            limits: LocalLimits::default(),
        };
        let inner = env.clone();
        let serve = async move {
            let listener = inner.net.listen(address).await.unwrap();
            let devices = Arc::new(AsdDevices::new(inner.clone()));
            let node = Node::start(inner.clone(), config, devices).await.unwrap();
            let error = rpc::serve(inner, listener, node, ServerLimits::default()).await;
            panic!("the listener failed: {error}");
        };
        env.spawn.spawn("metadata", Box::pin(serve));
    }
}
