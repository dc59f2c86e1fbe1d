use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{DiskUsage, OsdBatch, OsdKey, OsdUpdate, Priority, StoredValue, ValueSlice};
use alba_core::env::sim::memory_osd::MemoryOsd;
use alba_core::env::sim::{SimNode, Simulation};
use alba_core::env::{Osd, OsdError};
use alba_core::ids::{GcEpoch, NamespaceId, NodeId, OsdId, Place};
use alba_core::kv::{Kv, SimKvDevice};
use alba_core::net::rpc::{RpcConnection, ServerLimits, serve};
use alba_core::osd_keys;
use alba_core::range::{Page, RangeQuery};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::Consistency;
use alba_core::wire::rpc::SessionId;
use alba_core::wire::rpc::abm::{
    Destination, NamespaceRecord, NamespaceState, OsdEndpoint, OsdInfo, OsdState,
};
use alba_core::wire::rpc::nsm::{InlineValue, NamespaceInfo, NsmAnswer, NsmQuery, Overwrite};
use bytes::Bytes;

use super::*;

mod ages;
mod claims;
mod delivery;
mod meta;
mod moves;
mod watch;

const LIMIT: Duration = Duration::from_secs(3600);

/// An OSD that can be cut off.
struct TestOsd {
    inner: MemoryOsd,
    cut_off: Mutex<bool>,
    peers: Mutex<Vec<LongId>>,
}

impl TestOsd {
    fn reach(&self) -> Result<&MemoryOsd, OsdError> {
        if *self.cut_off.lock().unwrap() {
            return Err(OsdError::Connection("cut off".to_owned()));
        }
        Ok(&self.inner)
    }
}

#[async_trait]
impl Osd for TestOsd {
    async fn apply(&self, batch: OsdBatch, priority: Priority, deadline: Deadline) -> Result<(), OsdError> {
        self.reach()?.apply(batch, priority, deadline).await
    }

    async fn multi_get(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Vec<Option<StoredValue>>, OsdError> {
        self.reach()?.multi_get(keys, priority, deadline).await
    }

    async fn multi_exists(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Vec<bool>, OsdError> {
        self.reach()?.multi_exists(keys, priority, deadline).await
    }

    async fn partial_get(
        &self,
        key: OsdKey,
        slices: Vec<ValueSlice>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Option<Vec<Bytes>>, OsdError> {
        self.reach()?.partial_get(key, slices, priority, deadline).await
    }

    async fn range(
        &self,
        query: RangeQuery,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Page<OsdKey>, OsdError> {
        self.reach()?.range(query, priority, deadline).await
    }

    async fn disk_usage(&self, deadline: Deadline) -> Result<DiskUsage, OsdError> {
        self.reach()?.disk_usage(deadline).await
    }
}

struct TestDevices(BTreeMap<LongId, Arc<TestOsd>>);

#[async_trait]
impl Devices for TestDevices {
    fn osd(&self, info: &OsdInfo) -> Arc<dyn Osd> {
        self.0[&info.long_id].clone()
    }

    async fn set_peers(&self, info: &OsdInfo, peers: &[OsdInfo], _: Deadline) -> Result<(), OsdError> {
        let osd = &self.0[&info.long_id];
        osd.reach()?;
        *osd.peers.lock().unwrap() = peers.iter().map(|peer| peer.long_id.clone()).collect();
        Ok(())
    }
}

fn info(n: usize) -> OsdInfo {
    OsdInfo {
        long_id: LongId::new(format!("osd-{n}")).unwrap(),
        place: Place::of_node(NodeId::new(format!("node-{}", n % 2)).unwrap()),
        endpoint: OsdEndpoint::over_tcp(vec!["127.0.0.1".parse().unwrap()], 1),
        capacity: ByteCount::mib(1),
        used: ByteCount(0),
    }
}

struct World {
    sim: Simulation,
    server: SimNode,
    stores: BTreeMap<GroupId, SimKvDevice>,
    devices: Arc<TestDevices>,
}

impl World {
    fn new(seed: u64, osds: usize) -> Self {
        let sim = Simulation::new(seed);
        let names = ["abm", "nsm-0", "nsm-1"].map(|name| GroupId::new(name).unwrap());
        let device = |_| TestOsd {
            inner: MemoryOsd::new(ByteCount::mib(1)),
            cut_off: Mutex::new(false),
            peers: Mutex::default(),
        };
        let devices = (0..osds).map(|n| (info(n).long_id, Arc::new(device(n)))).collect();
        Self {
            server: sim.node(1),
            sim,
            stores: names.into_iter().map(|name| (name, SimKvDevice::new())).collect(),
            devices: Arc::new(TestDevices(devices)),
        }
    }

    fn osd(&self, n: usize) -> &TestOsd {
        &self.devices.0[&info(n).long_id]
    }

    fn address(&self) -> SocketAddr {
        self.server.address(4000)
    }

    async fn start(&self, env: &Env) {
        self.start_some(env, self.address(), |_| true, |device| Arc::new(device.open())).await;
    }

    /// A server of some of the groups.
    async fn start_some(
        &self,
        env: &Env,
        at: SocketAddr,
        hosts: impl Fn(&GroupId) -> bool,
        open: impl Fn(&SimKvDevice) -> Arc<dyn Kv> + Clone + Send + Sync + 'static,
    ) {
        let groups = self.stores.iter().filter(|(id, _)| hosts(id)).map(|(id, device)| {
            let (device, open) = (device.clone(), open.clone());
            let opener: StoreOpener = Arc::new(move || Ok(open(&device)));
            (id.clone(), opener)
        });
        let config = NodeConfig {
            groups: groups.collect(),
            advertise: at.to_string(),
            limits: LocalLimits::default(),
        };
        let node = Node::start(env.clone(), config, self.devices.clone()).await.unwrap();
        let listener = env.net.listen(at).await.unwrap();
        let serving = serve(env.clone(), listener, node, ServerLimits::default());
        env.spawn.spawn(
            "server",
            Box::pin(async move {
                serving.await;
            }),
        );
    }
}

/// A client of the plainest kind.
struct Client {
    env: Env,
    connection: RpcConnection,
    session: SessionId,
    next: u64,
}

impl Client {
    async fn connect(env: &Env, at: SocketAddr) -> Self {
        let deadline = env.deadline_in(Duration::from_secs(10));
        let connection = RpcConnection::open(env, at, deadline).await.unwrap();
        let open = Request::OpenSession {
            group: GroupId::new(ABM).unwrap(),
            nonce: env.rng.bytes32()[..16].try_into().unwrap(),
        };
        let session = match connection.call(&open, deadline).await.unwrap().reply {
            Reply::Session(session) => session,
            other => panic!("{other:?}"),
        };
        Self { env: env.clone(), connection, session, next: 1 }
    }

    async fn call(&self, request: Request) -> Reply {
        let deadline = self.env.deadline_in(Duration::from_secs(30));
        self.connection.call(&request, deadline).await.unwrap().reply
    }

    async fn abm(&mut self, command: AbmCommand) -> Result<AbmOutcome, AbmError> {
        let id = RequestId { session: self.session, sequence: self.next, lowest_unacknowledged: self.next };
        self.next += 1;
        match self.call(Request::Abm(id, command)).await {
            Reply::Abm(result) => result,
            other => panic!("{other:?}"),
        }
    }

    async fn claim(&self, n: usize) -> Result<OsdId, AbmError> {
        match self.call(Request::ClaimOsd(info(n).long_id)).await {
            Reply::Abm(Ok(AbmOutcome::OsdId(id))) => Ok(id),
            Reply::Abm(Err(error)) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    async fn add_and_claim(&mut self, osds: std::ops::Range<usize>) {
        for n in osds {
            self.abm(AbmCommand::AddOsd(info(n))).await.unwrap();
            self.claim(n).await.unwrap();
        }
    }

    async fn create(&mut self, text: &str) -> NamespaceRecord {
        let name = NamespaceName::new(text).unwrap();
        match self.abm(AbmCommand::CreateNamespace { name, preset: None, group: None }).await {
            Ok(AbmOutcome::Namespace(record)) => record,
            other => panic!("{other:?}"),
        }
    }

    async fn namespace(&self, record: &NamespaceRecord) -> NamespaceInfo {
        let query = NsmQuery::Namespace(record.id);
        match self.call(Request::NsmQuery(record.group.clone(), Consistency::Linearizable, query)).await {
            Reply::NsmAnswer(Ok(NsmAnswer::Namespace(info))) => *info,
            other => panic!("{other:?}"),
        }
    }

    async fn queues(&self) -> Vec<(Destination, u64)> {
        match self.call(Request::AbmQuery(Consistency::Linearizable, AbmQuery::Queues)).await {
            Reply::AbmAnswer(Ok(AbmAnswer::Queues(queues))) => queues,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the outbox is as wanted.
    async fn until(&self, wanted: impl Fn(&[(Destination, u64)]) -> bool) {
        for _ in 0..1000 {
            if wanted(&self.queues().await) {
                return;
            }
            self.env.clock.sleep_until(self.env.clock.now().plus(Duration::from_millis(50))).await;
        }
        panic!("the queues stay as {:?}", self.queues().await);
    }
}

#[test]
fn a_claimed_osd_knows_whose_it_is_and_a_new_namespace_is_writable_at_once() {
    let world = World::new(1, 4);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let mut client = Client::connect(&ours, world.address()).await;
        let Reply::Hello { alba_id, groups, .. } = client.call(Request::Hello).await else { panic!() };
        assert_eq!(groups.len(), 3);
        client.add_and_claim(0..4).await;
        assert_eq!(client.claim(0).await.unwrap(), OsdId::from_u32(0), "a repeat");
        let record = client.create("ns").await;
        assert_eq!(record.state, NamespaceState::Active);
        let info = client.namespace(&record).await;
        // (2, 2, 3, 4) is met by three OSDs.
        assert!(info.active_osds.len() >= 3, "{info:?}");
        client.until(<[_]>::is_empty).await;
        let content = world.osd(2).inner.content();
        let value = |key: &OsdKey| content[key].value.clone();
        assert_eq!(value(&osd_keys::instance_log()), alba_id.as_str());
        assert_eq!(value(&osd_keys::next_instance()), osd_keys::NEXT_INSTANCE_VALUE);
        assert_eq!(value(&osd_keys::instance_index(&alba_id)), osd_keys::INSTANCE_INDEX_VALUE);
        let two = alba_core::ids::MessageId::from_u32(2);
        assert_eq!(value(&osd_keys::next_message()), osd_keys::message_id_value(two));
        assert_eq!(value(&osd_keys::namespace_marker(record.id)), osd_keys::NAMESPACE_ACTIVE);
        assert_eq!(value(&osd_keys::namespace_name(record.id)), "ns");
        let on_device: OsdOnDevice = crate::value::decode(&value(&osd_keys::osd_record())).unwrap();
        assert_eq!(on_device, OsdOnDevice { alba_id, osd_id: OsdId::from_u32(2) });
        let kept: NamespaceOnDevice =
            crate::value::decode(&value(&osd_keys::namespace_preset(record.id))).unwrap();
        assert_eq!(kept.preset, info.preset);
    });
    running.unwrap();
}

#[test]
fn a_stuck_osd_shows_and_holds_nobody_up() {
    let world = World::new(3, 5);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let mut client = Client::connect(&ours, world.address()).await;
        client.add_and_claim(0..5).await;
        client.until(<[_]>::is_empty).await;
        *world.osd(1).cut_off.lock().unwrap() = true;
        let began = ours.clock.now();
        let record = client.create("ns").await;
        assert_eq!(record.state, NamespaceState::Active);
        assert!(ours.clock.now().since(began) < Duration::from_secs(1), "it did not wait for the stuck one");
        let stuck = Destination::Osd(OsdId::from_u32(1));
        client.until(|queues| queues == [(stuck.clone(), 1)]).await;
        assert_eq!(client.namespace(&record).await.active_osds.len(), 4);
        *world.osd(1).cut_off.lock().unwrap() = false;
        client.until(<[_]>::is_empty).await;
        assert_eq!(client.namespace(&record).await.active_osds.len(), 5);
    });
    running.unwrap();
}

#[test]
fn after_a_crash_the_server_goes_on_where_it_was() {
    let world = World::new(5, 3);
    let ours = world.sim.node(2).env();
    let theirs = world.server.env();
    let record = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let mut client = Client::connect(&ours, world.address()).await;
        client.add_and_claim(0..3).await;
        *world.osd(0).cut_off.lock().unwrap() = true;
        client.create("ns").await
    });
    let record = record.unwrap();
    world.server.crash();
    for store in world.stores.values() {
        store.crash(0);
    }
    *world.osd(0).cut_off.lock().unwrap() = false;
    let theirs = world.server.env();
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let client = Client::connect(&ours, world.address()).await;
        client.until(<[_]>::is_empty).await;
        assert_eq!(client.namespace(&record).await.active_osds.len(), 3);
    });
    running.unwrap();
}

#[test]
fn a_lost_delivery_mark_has_no_second_effect_and_a_gap_is_refused() {
    let world = World::new(6, 1);
    let env = world.sim.node(2).env();
    let running = world.sim.run(LIMIT, async {
        let alba_id = AlbaId::new("backend").unwrap();
        let osd = &world.osd(0).inner;
        let deadline = env.deadline_in(LIMIT);
        let id = alba_core::ids::MessageId::from_u32;
        let message = |n| alba_core::wire::rpc::abm::OsdMessage::Identify { osd_id: OsdId::from_u32(n) };
        on_device::deliver(osd, &alba_id, id(0), Some(&message(1)), id(2), deadline).await.unwrap();
        let before = osd.content();
        on_device::deliver(osd, &alba_id, id(0), Some(&message(2)), id(2), deadline).await.unwrap();
        assert_eq!(osd.content(), before);
        let gap = on_device::deliver(osd, &alba_id, id(2), Some(&message(1)), id(2), deadline).await;
        assert!(matches!(gap, Err(on_device::DeliveryError::TooFarOff { .. })));
        on_device::deliver(osd, &alba_id, id(1), Some(&message(1)), id(2), deadline).await.unwrap();
    });
    running.unwrap();
}

#[test]
fn uuids_are_of_version_4() {
    let sim = Simulation::new(1);
    let text = uuid(&sim.node(1).env());
    assert_eq!(text.len(), 36);
    assert_eq!((&text[14..15], text.matches('-').count()), ("4", 4));
    assert!("89ab".contains(&text[19..20]));
}

#[test]
fn a_group_of_one_keeps_no_objects_in_its_metadata() {
    let world = World::new(31, 1);
    let (theirs, ours) = (world.server.env(), world.sim.node(2).env());
    let running = world.sim.run(LIMIT, async {
        world.start(&theirs).await;
        let client = Client::connect(&ours, world.address()).await;
        let value = InlineValue { packed: Vec::new(), checksum: Checksum::None, ctr: None };
        let manifest = Box::new(crate::nsm::fixtures::manifest("small", 1, &[]));
        let update = ObjectUpdate::PutInline { manifest, value, overwrite: Overwrite::Unconditionally };
        let command = NsmCommand::Sequence {
            namespace: NamespaceId::from_u32(0),
            asserts: Vec::new(),
            updates: vec![update],
            epoch: GcEpoch::from_u32(0),
        };
        let id = RequestId { session: client.session, sequence: 1, lowest_unacknowledged: 1 };
        let reply = client.call(Request::Nsm(GroupId::new("nsm-0").unwrap(), id, command)).await;
        let Reply::Nsm(Err(NsmError::PresetViolated(reason))) = &reply else { panic!("{reply:?}") };
        assert!(reason.contains("this one has 1"), "{reason}");
    });
    running.unwrap();
}
