//! Replicas in one process: real sockets on loopback, simulated disks and stores that lose what was not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alba_core::env::sim::disk::SimDiskDevice;
use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Deadline, Env, real};
use alba_core::ids::GroupId;
use alba_core::kv::{Kv, KvError, SimKvDevice};
use alba_core::net::rpc::{Answer, Handler, ServerLimits, serve};
use alba_core::wire::rpc::{Consistency, Refusal, Reply, Request, RequestId, SessionId};
use async_trait::async_trait;

use super::model::{ListCommand, Lists};
use crate::machine::{Input, Output};
use crate::raft::handle::refusal;
use crate::raft::log::LogLimits;
use crate::raft::message::{Envelope, decode};
use crate::raft::types::NodeId;
use crate::raft::{AnyRaft, Home, PAYLOAD_FORMAT, Peers, Raft, RaftConfig, RaftLimits, States};
use crate::replicator::{ReplicationError, Replicator};

/// Stores that survive as devices do.
#[derive(Default)]
pub(crate) struct SimStates(pub(crate) Mutex<BTreeMap<u64, SimKvDevice>>);

impl States for SimStates {
    fn open(&self, generation: u64) -> Result<Arc<dyn Kv>, KvError> {
        let device = self.0.lock().unwrap().entry(generation).or_default().clone();
        Ok(Arc::new(device.open()))
    }

    fn remove(&self, generation: u64) -> Result<(), KvError> {
        if let Some(device) = self.0.lock().unwrap().remove(&generation) {
            device.wipe();
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<u64>, KvError> {
        Ok(self.0.lock().unwrap().keys().copied().collect())
    }
}

/// A machine's disks.
pub(crate) struct Place {
    pub(crate) files: SimDiskDevice,
    pub(crate) log: SimDiskDevice,
    pub(crate) states: Arc<SimStates>,
    home: Mutex<Home>,
}

impl Place {
    pub(crate) fn new(seed: u64) -> Self {
        let files = SimDiskDevice::new(seed, 1 << 30);
        let log = SimDiskDevice::new(seed + 1000, 1 << 30);
        let states = Arc::new(SimStates::default());
        let home = Home { files: Arc::new(files.open()), log: Arc::new(log.open()), states: states.clone() };
        Self { files, log, states, home: Mutex::new(home) }
    }

    pub(crate) fn home(&self) -> Home {
        self.home.lock().unwrap().clone()
    }

    /// Loses what was not synced: of the stores all of it, of the disks any part.
    pub(crate) fn crash(&self) {
        for device in self.states.0.lock().unwrap().values() {
            device.crash(0);
        }
        self.files.crash();
        self.log.crash();
        *self.home.lock().unwrap() = Home {
            files: Arc::new(self.files.open()),
            log: Arc::new(self.log.open()),
            states: self.states.clone(),
        };
    }
}

pub(crate) struct Member {
    pub(crate) address: SocketAddr,
    pub(crate) place: Place,
    pub(crate) raft: Option<Arc<Raft<Lists>>>,
    /// What the version that it runs can apply.
    pub(crate) newest_format: u8,
    server: Option<AbortOnDrop>,
}

impl Member {
    fn new(address: SocketAddr, place: Place) -> Self {
        Self { address, place, raft: None, newest_format: PAYLOAD_FORMAT, server: None }
    }
}

/// Replicas whose messages are dropped.
type Cut = Arc<Mutex<BTreeSet<NodeId>>>;

pub(crate) struct Door {
    raft: Arc<Raft<Lists>>,
    cut: Cut,
}

impl Door {
    /// Nothing is cut off here.
    pub(crate) fn open(raft: Arc<Raft<Lists>>) -> Self {
        Self { raft, cut: Cut::default() }
    }
}

#[async_trait]
impl Handler for Door {
    async fn handle(&self, request: Request, _: Option<Duration>) -> Answer {
        let Request::Replicate(_, bytes) = request else {
            return Reply::Refused(Refusal::UnknownGroup).into();
        };
        let from = decode::<Envelope>(&bytes).map(|envelope| envelope.from).unwrap_or(0);
        let mine = self.raft.status().map(|status| status.replica).unwrap_or(0);
        let cut = {
            let cut = self.cut.lock().unwrap();
            cut.contains(&from) || cut.contains(&mine)
        };
        let answer = if cut { refusal("cut off") } else { self.raft.receive(&bytes).await };
        Reply::Replicate(answer.into()).into()
    }
}

pub(crate) struct Cluster {
    pub(crate) env: Env,
    pub(crate) members: Vec<Member>,
    pub(crate) limits: RaftLimits,
    peers: Vec<String>,
    cut: Cut,
}

pub(crate) fn quick() -> RaftLimits {
    RaftLimits {
        heartbeat: Duration::from_millis(100),
        lease: Duration::from_millis(600),
        reopen_after: Duration::from_millis(100),
        log: LogLimits { segment_bytes: 1 << 20, spare_segments: 3, ..LogLimits::default() },
        ..RaftLimits::default()
    }
}

async fn free_address(env: &Env) -> SocketAddr {
    let listener = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    listener.local_addr().unwrap()
}

impl Cluster {
    pub(crate) async fn start(count: usize, limits: RaftLimits) -> Self {
        let mut cluster = Self::prepare(count, limits).await;
        for n in 0..count {
            cluster.boot(n).await;
        }
        cluster.leader().await;
        cluster
    }

    /// Machines that do not run yet.
    pub(crate) async fn prepare(count: usize, limits: RaftLimits) -> Self {
        let env = real::env();
        let mut addresses = BTreeSet::new();
        while addresses.len() < count {
            addresses.insert(free_address(&env).await);
        }
        let peers = addresses.iter().map(ToString::to_string).collect();
        let mut cluster = Self { env, members: Vec::new(), limits, peers, cut: Cut::default() };
        for (n, address) in addresses.into_iter().enumerate() {
            let place = Place::new(u64::try_from(n).unwrap());
            cluster.members.push(Member::new(address, place));
        }
        cluster
    }

    /// A machine that is not of the configuration.
    pub(crate) async fn stranger(&mut self) -> usize {
        self.stranger_of(PAYLOAD_FORMAT).await
    }

    /// The same, of a version that reads formats up to this one.
    pub(crate) async fn stranger_of(&mut self, newest_format: u8) -> usize {
        let address = free_address(&self.env).await;
        let place = Place::new(77);
        self.members.push(Member { newest_format, ..Member::new(address, place) });
        let n = self.members.len() - 1;
        self.boot(n).await;
        n
    }

    pub(crate) async fn boot(&mut self, n: usize) {
        let member = &mut self.members[n];
        let config = RaftConfig {
            group: GroupId::new("lists").unwrap(),
            address: member.address.to_string(),
            peers: self.peers.clone(),
            limits: RaftLimits { newest_format: member.newest_format, ..self.limits.clone() },
        };
        let raft = Arc::new(Raft::start(&self.env, config, member.place.home(), Peers::new(&self.env)));
        let door = Arc::new(Door { raft: raft.clone(), cut: self.cut.clone() });
        let until = self.env.deadline_in(Duration::from_secs(20));
        let listener = loop {
            match self.env.net.listen(member.address).await {
                Ok(listener) => break listener,
                Err(error) => {
                    assert!(!until.left(self.env.clock.as_ref()).is_zero(), "{error}");
                    self.env.clock.sleep_until(self.env.clock.now().plus(Duration::from_millis(20))).await;
                }
            }
        };
        let serving = serve(self.env.clone(), listener, door, ServerLimits::default());
        let task = async move {
            serving.await;
        };
        member.server = Some(self.env.spawn.spawn("door", Box::pin(task)).abort_on_drop());
        member.raft = Some(raft);
    }

    /// Ends a replica as kill -9 does to a process.
    pub(crate) async fn kill(&mut self, n: usize) {
        let member = &mut self.members[n];
        member.server = None;
        let mut raft = member.raft.take().unwrap();
        let until = self.env.deadline_in(Duration::from_secs(20));
        // Requests under way still hold it.
        let raft = loop {
            match Arc::try_unwrap(raft) {
                Ok(raft) => break raft,
                Err(shared) => raft = shared,
            }
            assert!(!until.left(self.env.clock.as_ref()).is_zero(), "somebody keeps the replica");
            self.env.clock.sleep_until(self.env.clock.now().plus(Duration::from_millis(5))).await;
        };
        raft.stop().await;
        self.members[n].place.crash();
    }

    pub(crate) fn raft(&self, n: usize) -> &Raft<Lists> {
        self.members[n].raft.as_deref().unwrap()
    }

    pub(crate) fn id(&self, n: usize) -> NodeId {
        self.raft(n).status().unwrap().replica
    }

    pub(crate) fn cut_off(&self, n: usize) {
        self.cut.lock().unwrap().insert(self.id(n));
    }

    pub(crate) fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }

    pub(crate) fn soon(&self) -> Deadline {
        self.env.deadline_in(Duration::from_secs(10))
    }

    pub(crate) async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let until = self.env.deadline_in(Duration::from_secs(60));
        while !condition() {
            assert!(!until.left(self.env.clock.as_ref()).is_zero(), "never: {what}");
            self.env.clock.sleep_until(self.env.clock.now().plus(Duration::from_millis(10))).await;
        }
    }

    fn cut_offs(&self) -> BTreeSet<NodeId> {
        self.cut.lock().unwrap().clone()
    }

    /// The replica that leads and is not cut off, as soon as there is one.
    pub(crate) async fn leader(&self) -> usize {
        let mut leader = None;
        self.until("a leader", || {
            let cut = self.cut_offs();
            leader = (0..self.members.len()).find(|n| {
                let Some(raft) = &self.members[*n].raft else { return false };
                let Ok(status) = raft.status() else { return false };
                *raft.leadership().borrow() && !cut.contains(&status.replica)
            });
            leader.is_some()
        })
        .await;
        leader.unwrap()
    }

    /// Has whichever replica leads do it, until one does.
    pub(crate) async fn propose(&self, input: Input<ListCommand>) -> Output<u64, super::model::Twice> {
        let until = self.env.deadline_in(Duration::from_secs(60));
        loop {
            let leader = self.leader().await;
            let attempt = self.env.deadline_in(Duration::from_secs(3));
            match self.raft(leader).propose(input.clone(), attempt).await {
                Ok((output, _)) => return output,
                Err(error) => {
                    assert!(!until.left(self.env.clock.as_ref()).is_zero(), "{error}");
                    self.env.clock.sleep_until(self.env.clock.now().plus(Duration::from_millis(20))).await;
                }
            }
        }
    }

    pub(crate) async fn session(&self) -> SessionId {
        let mut nonce = [0; 16];
        self.env.rng.fill(&mut nonce);
        match self.propose(Input::OpenSession(nonce)).await {
            Output::Session(session) => session,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn push(&self, session: SessionId, sequence: u64, key: &str) {
        let id = RequestId { session, sequence, lowest_unacknowledged: sequence };
        let command = ListCommand::Push { key: key.to_owned(), number: sequence };
        match self.propose(Input::Command(id, command)).await {
            Output::Done(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn list(
        &self,
        n: usize,
        key: &str,
        how: Consistency,
    ) -> Result<Vec<u64>, ReplicationError> {
        let (answer, _) = self.raft(n).query(key.to_owned(), how, self.soon()).await?;
        Ok(answer.unwrap())
    }

    /// All that was acknowledged until now, for a read elsewhere.
    pub(crate) async fn newest(&self, leader: usize) -> Consistency {
        let read = self.raft(leader).query("a".to_owned(), Consistency::Linearizable, self.soon());
        Consistency::AtLeast(read.await.unwrap().1)
    }

    /// The list as the leader has it.
    pub(crate) async fn read(&self, key: &str) -> Vec<u64> {
        let until = self.env.deadline_in(Duration::from_secs(60));
        loop {
            let leader = self.leader().await;
            match self.list(leader, key, Consistency::Linearizable).await {
                Ok(list) => return list,
                Err(error) => assert!(!until.left(self.env.clock.as_ref()).is_zero(), "{error}"),
            }
        }
    }
}
