//! Namespaces move while clients write, servers crash and the network parts.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use super::meta::Meta;
use alba_core::env::{Directory, MetaError, NamespaceStore};
use alba_core::ids::{GcEpoch, ObjectId, ObjectName, PresetName};
use alba_core::kv::{Durability, Entry, KvError, KvRead, SimKv, WriteBatch};
use alba_core::wire::rpc::nsm::{MoveId, MoveStatus, NsmCommand, NsmOutcome, ObjectUpdate, Overwrite};
use rand::RngExt as _;
use tokio::sync::Notify;

use super::*;
use crate::nsm::fixtures::{SPREAD, manifest, osd_info, preset, put};

/// Cuts the power of all stores at the n-th commit from now.
struct Cut {
    left: AtomicI64,
    stores: Vec<SimKvDevice>,
    is_off: Notify,
}

impl Cut {
    fn count(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.stores.iter().for_each(SimKvDevice::fail);
            self.is_off.notify_one();
        }
    }
}

struct Counted {
    inner: SimKv,
    cut: Arc<Cut>,
}

impl KvRead for Counted {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.inner.get(key)
    }

    fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<Entry>, KvError> {
        self.inner.scan(lower, upper, reverse, limit)
    }
}

impl Kv for Counted {
    fn snapshot(&self) -> Result<Box<dyn KvRead + Send + '_>, KvError> {
        self.inner.snapshot()
    }

    fn commit(&self, batch: WriteBatch, durability: Durability) -> Result<(), KvError> {
        self.cut.count();
        self.inner.commit(batch, durability)
    }

    fn sync(&self) -> Result<(), KvError> {
        self.inner.sync()
    }
}

/// What clients were told, and what they do not know.
#[derive(Default)]
struct Told {
    objects: BTreeMap<ObjectName, Option<ObjectId>>,
    unknown: BTreeSet<ObjectName>,
    moved: u64,
}

#[derive(Default)]
struct Shared {
    told: Mutex<Told>,
    stop: AtomicBool,
    writing: AtomicUsize,
}

/// A backend with one namespace in nsm-0; nsm-1 is at the same server or at one of its own.
struct Moves {
    world: World,
    cut: Arc<Cut>,
    other: Option<SimNode>,
    shared: Arc<Shared>,
    /// Between two writes of one client, in milliseconds.
    pace: u64,
}

fn group(text: &str) -> GroupId {
    GroupId::new(text).unwrap()
}

fn ns() -> NamespaceName {
    NamespaceName::new("ns").unwrap()
}

impl Moves {
    fn new(seed: u64, apart: bool) -> Self {
        let world = World::new(seed, 6);
        let stores = world.stores.values().cloned().collect();
        let cut = Arc::new(Cut { left: AtomicI64::new(0), stores, is_off: Notify::new() });
        let other = apart.then(|| world.sim.node(3));
        Self { world, cut, other, shared: Arc::default(), pace: 2 }
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.world.sim.run(LIMIT, work).unwrap()
    }

    async fn boot(&self) {
        let world = &self.world;
        let apart = self.other.is_some();
        let cut = self.cut.clone();
        let open = move |device: &SimKvDevice| -> Arc<dyn Kv> {
            Arc::new(Counted { inner: device.open(), cut: cut.clone() })
        };
        let here = |id: &GroupId| !apart || id.as_str() != "nsm-1";
        world.start_some(&world.server.env(), world.address(), here, open.clone()).await;
        if let Some(other) = &self.other {
            world.start_some(&other.env(), other.address(4000), |id| id.as_str() == "nsm-1", open).await;
        }
    }

    fn client(&self) -> (Env, Arc<Meta>) {
        let env = self.world.sim.node(2).env();
        (env.clone(), Meta::connect(env, vec![self.world.address()]))
    }

    async fn record(&self, meta: &Meta, env: &Env) -> NamespaceRecord {
        let query = AbmQuery::Namespace(ns());
        match Directory::query(meta, query, env.deadline_in(LIMIT)).await.unwrap() {
            AbmAnswer::Namespace(Some(record)) => record,
            other => panic!("{other:?}"),
        }
    }

    /// The namespace with so many objects.
    async fn prepare(&self, objects: u32) -> NamespaceRecord {
        self.boot().await;
        let (env, meta) = self.client();
        let mut client = Client::connect(&env, self.world.address()).await;
        for n in 0..6 {
            client.abm(AbmCommand::AddOsd(osd_info(n))).await.unwrap();
            client.claim(usize::try_from(n).unwrap()).await.unwrap();
        }
        if let Some(other) = &self.other {
            let servers = vec![other.address(4000).to_string()];
            client.abm(AbmCommand::CreateGroup { id: group("nsm-1"), servers }).await.unwrap();
        }
        let name = PresetName::new("p").unwrap();
        let create = AbmCommand::CreatePreset { name: name.clone(), preset: Box::new(preset()) };
        client.abm(create).await.unwrap();
        let create =
            AbmCommand::CreateNamespace { name: ns(), preset: Some(name), group: Some(group("nsm-0")) };
        client.abm(create).await.unwrap();
        client.until(<[_]>::is_empty).await;
        let record = self.record(&meta, &env).await;
        for first in (0..objects).step_by(50) {
            let updates = (first..objects.min(first + 50)).map(|n| self.object(9, n)).collect();
            let command = sequence(&record, updates);
            let deadline = env.deadline_in(LIMIT);
            NamespaceStore::command(&*meta, &record.group, command, deadline).await.unwrap();
        }
        record
    }

    fn object(&self, writer: u8, n: u32) -> ObjectUpdate {
        let (name, id) = named(writer, n);
        let mut manifest = manifest(name.to_string().as_str(), u8::try_from(n % 200).unwrap(), &[SPREAD]);
        manifest.object_id = id;
        if writer == 9 {
            self.shared.told.lock().unwrap().objects.insert(name, Some(id));
        }
        put(manifest, Overwrite::Unconditionally)
    }

    fn start_writers(&self, record: &NamespaceRecord) {
        for number in 0..3 {
            let (env, meta) = self.client();
            let writer = Writer {
                env: env.clone(),
                meta,
                number,
                record: record.clone(),
                shared: self.shared.clone(),
                pace: self.pace,
            };
            self.shared.writing.fetch_add(1, Ordering::SeqCst);
            env.spawn.spawn("writer", Box::pin(writer.run()));
        }
    }

    async fn start_move(&self) {
        let (env, meta) = self.client();
        let start = AbmCommand::StartMove { name: ns(), to: group("nsm-1") };
        Directory::command(&*meta, start, env.deadline_in(LIMIT)).await.unwrap();
    }

    /// Waits for the end of the move.
    async fn end(&self) -> NamespaceRecord {
        let (env, meta) = self.client();
        loop {
            let record = self.record(&meta, &env).await;
            if record.state == NamespaceState::Active {
                return record;
            }
            env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(20))).await;
        }
    }

    async fn stop_writers(&self) {
        let (env, _) = self.client();
        env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(300))).await;
        self.shared.stop.store(true, Ordering::SeqCst);
        while self.shared.writing.load(Ordering::SeqCst) > 0 {
            env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(10))).await;
        }
    }

    /// All that was acknowledged is where the ABM says, and nowhere else.
    async fn check(&self, record: &NamespaceRecord) {
        let (env, meta) = self.client();
        let client = Client::connect(&env, self.world.address()).await;
        client.until(<[_]>::is_empty).await;
        let told = std::mem::take(&mut *self.shared.told.lock().unwrap());
        assert!(told.objects.len() > 30, "{}", told.objects.len());
        let names: Vec<ObjectName> = told.objects.keys().cloned().collect();
        for some in names.chunks(30) {
            let query = NsmQuery::Manifests { namespace: record.id, names: some.to_vec() };
            let asked = NamespaceStore::query(&*meta, &record.group, query, env.deadline_in(LIMIT)).await;
            let NsmAnswer::Manifests(found) = asked.unwrap() else { panic!() };
            for (name, found) in some.iter().zip(found) {
                let found = found.map(|manifest| manifest.object_id);
                assert!(told.unknown.contains(name) || found == told.objects[name], "{name}: {found:?}");
            }
        }
        let away = if record.group == group("nsm-0") { group("nsm-1") } else { group("nsm-0") };
        for (id, device) in &self.world.stores {
            if id.as_str() != ABM {
                assert_eq!(crate::nsm::recount(&device.open(), record.id).unwrap(), []);
            }
        }
        let status = NsmQuery::MoveStatus(record.id);
        let status = NamespaceStore::query(&*meta, &away, status, env.deadline_in(LIMIT)).await.unwrap();
        assert_eq!(status, NsmAnswer::MoveStatus(MoveStatus::Absent { ended: MoveId(1) }));
        assert_eq!(crate::abm::recount(&self.world.stores[&group(ABM)].open()).unwrap(), []);
        let info = client.call(Request::NsmQuery(
            record.group.clone(),
            Consistency::Linearizable,
            NsmQuery::Namespace(record.id),
        ));
        if self.other.is_none() {
            let Reply::NsmAnswer(Ok(NsmAnswer::Namespace(info))) = info.await else { panic!() };
            assert_eq!(info.active_osds.len(), 6);
        }
    }
}

fn named(writer: u8, n: u32) -> (ObjectName, ObjectId) {
    let mut id = [writer; 32];
    id[..4].copy_from_slice(&n.to_be_bytes());
    (ObjectName::new(format!("{writer}-{n:06}")).unwrap(), ObjectId::new(id))
}

fn sequence(record: &NamespaceRecord, updates: Vec<ObjectUpdate>) -> NsmCommand {
    NsmCommand::Sequence { namespace: record.id, asserts: vec![], updates, epoch: GcEpoch::from_u32(0) }
}

struct Writer {
    env: Env,
    meta: Arc<Meta>,
    number: u8,
    record: NamespaceRecord,
    shared: Arc<Shared>,
    pace: u64,
}

impl Writer {
    async fn run(mut self) {
        let shared = self.shared.clone();
        let mut n = 0;
        while !shared.stop.load(Ordering::SeqCst) {
            let (name, id) = named(self.number, n);
            let mut manifest = manifest(name.to_string().as_str(), u8::try_from(n % 200).unwrap(), &[SPREAD]);
            manifest.object_id = id;
            self.change(&name, Some(id), put(manifest, Overwrite::Unconditionally)).await;
            if n % 3 == 2 {
                let (name, _) = named(self.number, n - 1);
                self.change(&name, None, ObjectUpdate::Delete { name: name.clone(), must_exist: false })
                    .await;
            }
            n += 1;
            self.pause(self.pace).await;
        }
        shared.writing.fetch_sub(1, Ordering::SeqCst);
    }

    async fn pause(&self, millis: u64) {
        self.env.clock.sleep_until(self.env.clock.now().plus(Duration::from_millis(millis))).await;
    }

    async fn change(&mut self, name: &ObjectName, after: Option<ObjectId>, update: ObjectUpdate) {
        let result = self.tell(update).await;
        let mut told = self.shared.told.lock().unwrap();
        match result {
            Ok(_) => drop(told.objects.insert(name.clone(), after)),
            Err(_) => drop(told.unknown.insert(name.clone())),
        }
    }

    /// Follows the namespace.
    async fn tell(&mut self, update: ObjectUpdate) -> Result<NsmOutcome, MetaError> {
        loop {
            let command = sequence(&self.record, vec![update.clone()]);
            let deadline = self.env.deadline_in(Duration::from_secs(120));
            match NamespaceStore::command(&*self.meta, &self.record.group, command, deadline).await {
                Err(MetaError::Nsm(NsmError::NamespaceFrozen(_))) => {
                    self.pause(3).await;
                }
                Err(MetaError::Nsm(NsmError::NamespaceMoved(_))) => {
                    self.shared.told.lock().unwrap().moved += 1;
                    self.pause(3).await;
                    let query = AbmQuery::Namespace(ns());
                    let answer = Directory::query(&*self.meta, query, deadline).await?;
                    let AbmAnswer::Namespace(Some(record)) = answer else { panic!("{answer:?}") };
                    self.record = record;
                }
                Err(MetaError::Nsm(error)) => panic!("{error}"),
                result => return result,
            }
        }
    }
}

fn moves_while_clients_write(apart: bool) {
    let moves = Moves::new(21, apart);
    moves.run(async {
        let record = moves.prepare(3000).await;
        moves.start_writers(&record);
        moves.start_move().await;
        let after = moves.end().await;
        assert_eq!(after, NamespaceRecord { group: group("nsm-1"), ..record });
        moves.stop_writers().await;
        {
            let told = moves.shared.told.lock().unwrap();
            assert_eq!(told.unknown, BTreeSet::new());
            assert!(told.moved > 0, "the writers saw the move");
        }
        moves.check(&after).await;
    });
}

#[test]
fn a_namespace_moves_while_clients_write() {
    moves_while_clients_write(false);
}

#[test]
fn a_namespace_moves_to_a_group_of_another_server() {
    moves_while_clients_write(true);
}

/// Every run cuts the power at some commits between the beginning of the move and its end.
#[test]
fn a_move_goes_on_after_crashes_wherever_they_come() {
    let mut crashes = 0;
    for seed in 0..24 {
        let apart = seed % 2 == 1;
        let moves = Moves::new(100 + seed, apart);
        let mut rng = moves.world.sim.rng("crashes");
        let record = moves.run(async {
            let record = moves.prepare(600).await;
            moves.start_writers(&record);
            moves.start_move().await;
            record
        });
        let after = loop {
            moves.cut.left.store(rng.random_range(1..40), Ordering::SeqCst);
            let ended = moves.run(async {
                tokio::select! {
                    biased;
                    () = moves.cut.is_off.notified() => None,
                    record = moves.end() => Some(record),
                }
            });
            if let Some(record) = ended {
                moves.cut.left.store(0, Ordering::SeqCst);
                break record;
            }
            crashes += 1;
            moves.world.server.crash();
            moves.other.iter().for_each(SimNode::crash);
            for store in moves.world.stores.values() {
                store.crash(rng.random_range(0..3));
            }
            moves.run(moves.boot());
        };
        assert_eq!(after, NamespaceRecord { group: group("nsm-1"), ..record }, "seed {seed}");
        moves.run(async {
            moves.stop_writers().await;
            moves.check(&after).await;
        });
    }
    assert!(crashes > 24, "{crashes}");
}

/// A target that falls silent does not take the namespace with it: it moves, or stays, and clients go on.
#[test]
fn a_silent_target_ends_the_move_one_way_or_the_other() {
    let mut ended = BTreeMap::new();
    for seed in 0..12 {
        let mut moves = Moves::new(200 + seed, true);
        moves.pace = 25;
        let mut rng = moves.world.sim.rng("parting");
        let record = moves.run(async {
            let record = moves.prepare(100).await;
            moves.start_writers(&record);
            moves.start_move().await;
            record
        });
        let (env, _) = moves.client();
        let wait = Duration::from_micros(rng.random_range(0..120_000));
        moves.run(env.clock.sleep_until(env.clock.now().plus(wait)));
        let other = moves.other.as_ref().unwrap();
        moves.world.sim.sever(&moves.world.server, other);
        moves.run(env.clock.sleep_until(env.clock.now().plus(Duration::from_secs(20))));
        moves.world.sim.heal();
        let after = moves.run(moves.end());
        *ended.entry(after.group.clone()).or_insert(0) += 1;
        moves.run(async {
            moves.stop_writers().await;
            moves.check(&after).await;
        });
        assert_eq!(after.id, record.id);
    }
    assert!(ended.contains_key(&group("nsm-1")), "{ended:?}");
}
