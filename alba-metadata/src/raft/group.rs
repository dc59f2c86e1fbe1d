//! A replica of a group, as the server uses it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Deadline, Env, blocking, within};
use alba_core::kv::KvError;
use alba_core::wire::rpc::admin::{GroupMember, GroupStatus};
use alba_core::wire::rpc::{Consistency, MAX_REQUEST};
use async_trait::async_trait;
use bytes::Bytes;
use openraft::storage::RaftLogStorage;
use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::context::{Context, Standing};
use super::guard::Guarded;
use super::handle::{Receiver, refusal};
use super::home::{Home, Record};
use super::log::{Health, LogError, LogStore};
use super::members::{self, Changing, MembershipError};
use super::message::{Answer, Envelope, Message, decode, encode};
use super::network::{Links, Wire, in_time};
use super::outputs::Waiter;
use super::peers::Peers;
use super::propose::{self, Proposal};
use super::read::{self, Reader, Stale};
use super::runtime::scoped;
use super::snapshot::Incoming;
use super::state::{Machine, State, index_of, is_too_new};
use super::types::NodeId;
use super::{RaftConfig, elect, upkeep};
use crate::machine::{Input, OutputOf, format_of, pack_output, unpack_output};
use crate::model::Model;
use crate::replicator::{Index, ReadWork, ReplicationError, Replicator, answer_of};

/// Longest the library may take to stop.
const STOP: Duration = Duration::from_secs(10);

/// Room that an input takes in the queue besides its bytes.
const OVERHEAD: usize = 256;

/// A replica.
pub struct Raft<M: Model> {
    core: Arc<Core<M>>,
    supervisor: Option<AbortOnDrop>,
}

struct Core<M: Model> {
    env: Env,
    config: Arc<RaftConfig>,
    home: Home,
    peers: Arc<Peers>,
    running: Mutex<Result<Arc<Running<M>>, String>>,
    leads: watch::Sender<bool>,
    commits: Arc<watch::Sender<u64>>,
    /// Bytes of inputs under way.
    queue: Arc<Semaphore>,
}

/// While its storage is sound.
struct Running<M: Model> {
    context: Context<M>,
    proposals: mpsc::Sender<Proposal<M>>,
    readers: mpsc::Sender<Reader>,
    receiver: Receiver<M>,
    log: LogStore,
    _tasks: Vec<AbortOnDrop>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Consistent between any two statements that hold the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Model> Raft<M> {
    /// Starts a replica. It opens in the background: what keeps it from running is told by [`Replicator::trouble`].
    pub fn start(env: &Env, config: RaftConfig, home: Home, peers: Arc<Peers>) -> Self {
        let queue = config.limits.queue_bytes.min(Semaphore::MAX_PERMITS);
        let core = Arc::new(Core {
            env: env.clone(),
            config: Arc::new(config),
            home,
            peers,
            running: Mutex::new(Err("not opened yet".to_owned())),
            leads: watch::channel(false).0,
            commits: Arc::new(watch::channel(0).0),
            queue: Arc::new(Semaphore::new(queue)),
        });
        let supervisor = env.spawn.spawn("raft-supervisor", Box::pin(supervise(core.clone())));
        Self { core, supervisor: Some(supervisor.abort_on_drop()) }
    }

    /// Stops; returns when nothing runs any more.
    pub async fn stop(mut self) {
        drop(self.supervisor.take());
        self.core.stop("stopped").await;
    }

    async fn propose_for(&self, input: Bytes) -> Answer {
        let failed = |error: String| Answer::Failed(error);
        let decoded: Input<M::Command> = match postcard::from_bytes(&input) {
            Ok(decoded) => decoded,
            Err(error) => return failed(error.to_string()),
        };
        let deadline = self.core.env.deadline_in(Duration::from_secs(6));
        match self.core.propose_here(&decoded, deadline).await {
            Ok((output, index)) => match pack_output::<M>(&output) {
                Ok(output) => Answer::Output { index, output },
                Err(error) => failed(error.to_string()),
            },
            Err(ReplicationError::NotLeader { .. }) => {
                Answer::NotLeader { leader: self.core.running().ok().and_then(|r| r.context.leader()) }
            }
            Err(ReplicationError::NotAgreed { needed, agreed }) => Answer::NotAgreed { needed, agreed },
            Err(error) => failed(error.to_string()),
        }
    }
}

/// A replica, whatever its model.
#[async_trait]
pub trait AnyRaft: Send + Sync + 'static {
    /// Answers another replica's message.
    async fn receive(&self, bytes: &[u8]) -> Vec<u8>;

    /// What is known of the group here.
    fn status(&self) -> Result<GroupStatus, ReplicationError>;

    /// Where the leader is, when another replica is it.
    fn leader_address(&self) -> Option<String>;

    /// Addresses of the members, sorted; none when they are not known.
    fn addresses(&self) -> Vec<String>;

    /// Takes the replica at `address` into the group; on the leader only.
    async fn add_replica(&self, address: &str) -> Result<NodeId, MembershipError>;

    /// Removes a replica; on the leader only.
    async fn remove_replica(&self, id: NodeId) -> Result<(), MembershipError>;

    /// Has a snapshot built now, and the log cut to what the limits say.
    async fn snapshot_now(&self) -> Result<(), ReplicationError>;
}

#[async_trait]
impl<M: Model> AnyRaft for Raft<M> {
    async fn receive(&self, bytes: &[u8]) -> Vec<u8> {
        let running = match self.core.running() {
            Ok(running) => running,
            Err(reason) => return refusal(reason),
        };
        let context = &running.context;
        let answer = match decode::<Envelope>(bytes) {
            Ok(envelope) if envelope.to != 0 && envelope.to != context.id => Answer::NotMe { id: context.id },
            // An input of another server's own, which only the group itself can answer.
            Ok(Envelope { message: Message::Propose { input }, .. }) => self.propose_for(input).await,
            Ok(envelope) => running.receiver.receive(envelope).await,
            Err(error) => Answer::Failed(error),
        };
        encode(&answer).unwrap_or_else(refusal)
    }

    fn status(&self) -> Result<GroupStatus, ReplicationError> {
        let running = self.core.running().map_err(down)?;
        let context = &running.context;
        let metrics = context.metrics();
        let membership = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or(0);
        let lag_of = |id: &NodeId| {
            let replication = metrics.replication.as_ref()?;
            if *id == context.id {
                return Some(0);
            }
            Some(last.saturating_sub(replication.get(id)?.map_or(0, |log| log.index)))
        };
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        let members = membership.nodes().map(|(id, node)| GroupMember {
            replica: *id,
            address: node.address.clone(),
            voter: voters.contains(id),
            lag: lag_of(id),
        });
        Ok(GroupStatus {
            replica: context.id,
            leader: metrics.current_leader,
            term: metrics.current_term,
            applied: *context.state.applied().borrow(),
            last,
            snapshot: metrics.snapshot.map_or(0, |log| log.index),
            cut: metrics.purged.map_or(0, |log| log.index),
            format: context.agreed(),
            members: members.collect(),
            trouble: Replicator::trouble(self),
        })
    }

    fn leader_address(&self) -> Option<String> {
        self.core.running().ok()?.context.leader_address()
    }

    fn addresses(&self) -> Vec<String> {
        let Ok(status) = self.status() else { return Vec::new() };
        let mut addresses: Vec<String> = status.members.into_iter().map(|member| member.address).collect();
        addresses.sort();
        addresses.dedup();
        addresses
    }

    async fn add_replica(&self, address: &str) -> Result<NodeId, MembershipError> {
        let running = self.core.running().map_err(MembershipError::Failed)?;
        members::admit(&running.context, &running.receiver.changing, address).await
    }

    async fn remove_replica(&self, id: NodeId) -> Result<(), MembershipError> {
        let running = self.core.running().map_err(MembershipError::Failed)?;
        members::remove(&running.context, &running.receiver.changing, id).await
    }

    async fn snapshot_now(&self) -> Result<(), ReplicationError> {
        let running = self.core.running().map_err(down)?;
        running.context.raft.trigger().snapshot().await.map_err(|_| ReplicationError::Stopped)
    }
}

impl<M: Model> Drop for Raft<M> {
    fn drop(&mut self) {
        let core = self.core.clone();
        let stop = async move { core.stop("stopped").await };
        // The library's task ends only when it is told to.
        drop(self.core.env.spawn.spawn("raft-stop", Box::pin(stop)));
    }
}

fn down(reason: String) -> ReplicationError {
    ReplicationError::Store(KvError::Io(reason))
}

/// A replica that is not open (yet): nothing happened here, and others may serve. The reason is told by
/// [`Replicator::trouble`].
fn not_open(reason: String) -> ReplicationError {
    tracing::debug!(reason, "asked while not open");
    ReplicationError::NotLeader { leader: None }
}

impl<M: Model> Core<M> {
    fn running(&self) -> Result<Arc<Running<M>>, String> {
        lock(&self.running).clone()
    }

    async fn stop(&self, reason: &str) {
        let stopped = std::mem::replace(&mut *lock(&self.running), Err(reason.to_owned()));
        self.leads.send_replace(false);
        let Ok(running) = stopped else { return };
        running.context.state.outputs.abandon();
        if in_time(&self.env, STOP, running.context.raft.shutdown()).await.is_none() {
            tracing::error!(group = %self.config.group, "the replica does not stop");
        }
        running.context.state.outputs.abandon();
        if !running.log.close(self.env.deadline_in(STOP)).await {
            tracing::error!(group = %self.config.group, "the log does not close");
        }
    }

    /// What was promised under this replica's name is gone: it comes back as somebody else and has itself brought up to
    /// date. Only where others have what is lost.
    async fn lost(&self, what: &str) -> io::Result<()> {
        if self.config.peers.iter().all(|peer| *peer == self.config.address) {
            let reason = format!("{what} is lost or damaged, and no other replica has it: restore a backup");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        tracing::error!(group = %self.config.group, what, "lost or damaged: the replica joins its group anew");
        self.home.renew(self.env.rng.as_ref()).await.map(|_| ())
    }

    fn library_config(&self) -> Result<Config, io::Error> {
        let limits = &self.config.limits;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let lease = millis(limits.lease);
        let config = Config {
            cluster_name: self.config.group.to_string(),
            heartbeat_interval: millis(limits.heartbeat),
            // The lease is the longest election time.
            election_timeout_min: lease.saturating_mul(2) / 3,
            election_timeout_max: lease,
            // Elections are [`elect`]'s business, snapshots [`upkeep`]'s.
            enable_elect: false,
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: limits.keep_entries,
            purge_batch_size: 1,
            max_payload_entries: 64,
            install_snapshot_timeout: 3_600_000,
            ..Config::default()
        };
        config.validate().map_err(io::Error::other)
    }

    async fn open(&self) -> io::Result<Running<M>> {
        let env = &self.env;
        let record = self.record().await?;
        let opened = LogStore::open(env.clone(), self.home.log.clone(), self.config.limits.log).await;
        let (log, recovered) = match opened {
            Ok(opened) => opened,
            Err(error @ (LogError::Rot { .. } | LogError::Missing { .. })) => {
                self.lost(&format!("the log: {error}")).await?;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(cut) = &recovered.cut {
            tracing::info!(group = %self.config.group, ?cut, "the log's torn end is cut off");
        }
        match self.open_with(log.clone(), record).await {
            Ok(running) => Ok(running),
            Err(error) => {
                log.close(env.deadline_in(STOP)).await;
                Err(error)
            }
        }
    }

    async fn open_with(&self, store: LogStore, mut record: Record) -> io::Result<Running<M>> {
        let env = &self.env;
        let state = State::<M>::open(
            env,
            &self.config.group,
            &self.home,
            record,
            self.commits.clone(),
            &self.config.limits,
        )
        .await?;
        if !record.complete {
            record = state.record();
            record.complete = true;
            // Log and state exist: from now on the name is bound to them.
            self.home.save(record).await?;
            state.set_record(record);
        }
        let id = record.id;
        let state = Arc::new(state);
        let wire = Arc::new(Wire {
            env: env.clone(),
            peers: self.peers.clone(),
            group: self.config.group.clone(),
            me: id,
        });
        let mut log = Guarded::new(store.clone(), state.clone());
        let last = log.get_log_state().await.map_err(io::Error::other)?;
        if last.last_purged_log_id > state.applied_log() {
            // Neither the store nor a snapshot has what the log no longer has.
            self.lost("the state").await?;
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the state is older than the log's beginning",
            ));
        }
        state.set_last_log(last.last_log_id.max(state.last_log()));
        let config = Arc::new(self.library_config()?);
        let opening = openraft::Raft::new(id, config, Links(wire.clone()), log, Machine::new(state.clone()));
        let raft = scoped(env, opening).await.map_err(io::Error::other)?;
        let context = Context {
            env: env.clone(),
            config: self.config.clone(),
            id,
            raft,
            wire,
            state,
            found: Arc::default(),
            standing: Arc::default(),
            yielding: Arc::default(),
        };
        let (proposals, proposed) = mpsc::channel(self.config.limits.batch_inputs.max(1));
        let (readers, reading) = mpsc::channel(read::QUEUE);
        let changing = Changing::default();
        let spawn = |name, task| env.spawn.spawn(name, task).abort_on_drop();
        let tasks = vec![
            spawn("raft-propose", Box::pin(propose::run(context.clone(), proposed))),
            spawn("raft-read", Box::pin(read::run(context.clone(), reading))),
            spawn("raft-elect", Box::pin(elect::run(context.clone()))),
            spawn("raft-members", Box::pin(members::run(context.clone(), changing.clone()))),
            spawn("raft-upkeep", Box::pin(upkeep::run(context.clone(), store.clone()))),
        ];
        let incoming = Arc::new(tokio::sync::Mutex::new(Incoming::new(self.home.files.clone())));
        let receiver = Receiver { context: context.clone(), incoming, changing, log: store.clone() };
        tracing::info!(group = %self.config.group, id, address = self.config.address, "the replica is open");
        Ok(Running { context, proposals, readers, receiver, log: store, _tasks: tasks })
    }

    /// Who this replica is. What was promised under a name and is not there any more ends the name.
    async fn record(&self) -> io::Result<Record> {
        let rng = self.env.rng.as_ref();
        let mut record = self.home.record(rng).await?;
        if record.complete && self.home.log_is_empty().await? {
            self.lost("the log").await?;
            record = self.home.record(rng).await?;
        }
        if !record.complete {
            self.home.clear().await?;
            let states = self.home.states.clone();
            let remove =
                move || states.list()?.into_iter().try_for_each(|generation| states.remove(generation));
            let removed = blocking(self.env.spawn.as_ref(), remove).await.map_err(io::Error::other)?;
            removed.map_err(super::state::kv_to_io)?;
            record.state = 1;
        }
        Ok(record)
    }

    async fn propose_here(
        &self,
        input: &Input<M::Command>,
        deadline: Deadline,
    ) -> Result<(OutputOf<M>, Index), ReplicationError> {
        let clock = self.env.clock.as_ref();
        let running = self.running().map_err(not_open)?;
        let context = &running.context;
        if !context.leads() {
            return Err(ReplicationError::NotLeader { leader: context.leader_address() });
        }
        if context.lost_majority() || context.is_yielding() {
            return Err(ReplicationError::NotLeader { leader: None });
        }
        let (needed, agreed) = (format_of::<M>(input), context.agreed());
        if needed > agreed {
            return Err(ReplicationError::NotAgreed { needed, agreed });
        }
        let bytes = postcard::to_stdvec(input)
            .map_err(|error| ReplicationError::Store(KvError::Damaged(error.to_string())))?;
        if bytes.len() > MAX_REQUEST {
            let reason = format!("a command of {} bytes; at most {MAX_REQUEST} are allowed", bytes.len());
            return Err(ReplicationError::Store(KvError::Damaged(reason)));
        }
        if !running.log.room_for(u64::try_from(bytes.len()).unwrap_or(u64::MAX)) {
            return Err(ReplicationError::Store(KvError::NoSpace));
        }
        let room = u32::try_from(bytes.len().saturating_add(OVERHEAD)).unwrap_or(u32::MAX);
        let room = match within(clock, deadline, self.queue.clone().acquire_many_owned(room)).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return Err(ReplicationError::Stopped),
            Err(_) => return Err(ReplicationError::Overloaded),
        };
        let (answer, output) = oneshot::channel();
        let proposal =
            Proposal { input: bytes.into(), format: needed, waiter: Waiter { answer, _room: room } };
        match within(clock, deadline, running.proposals.send(proposal)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(ReplicationError::Stopped),
            Err(_) => return Err(ReplicationError::Overloaded),
        }
        match within(clock, deadline, output).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(ReplicationError::Stopped),
            Err(_) => Err(ReplicationError::Timeout),
        }
    }

    /// Has the leader propose an input of this server's own.
    async fn forward(
        &self,
        input: &Input<M::Command>,
        leader: Option<String>,
        deadline: Deadline,
    ) -> Result<(OutputOf<M>, Index), ReplicationError> {
        let running = self.running().map_err(not_open)?;
        let (Some(address), Input::Internal(command)) = (leader.clone(), input) else {
            return Err(ReplicationError::NotLeader { leader });
        };
        let bytes = postcard::to_stdvec(input)
            .map_err(|error| ReplicationError::Store(KvError::Damaged(error.to_string())))?;
        let message = Message::Propose { input: bytes.into() };
        let patience = deadline.left(self.env.clock.as_ref());
        match running.context.wire.call(&address, 0, message, patience).await {
            Ok(Answer::Output { index, output }) => Ok((unpack_output::<M>(command, &output)?, index)),
            Ok(Answer::NotLeader { .. }) => Err(ReplicationError::NotLeader { leader: None }),
            Ok(Answer::NotAgreed { needed, agreed }) => Err(ReplicationError::NotAgreed { needed, agreed }),
            // It may have been done.
            Ok(_) | Err(_) => Err(ReplicationError::Timeout),
        }
    }

    /// Waits until the state has what `consistency` asks for.
    async fn ready(
        &self,
        running: &Running<M>,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<(), ReplicationError> {
        let clock = self.env.clock.as_ref();
        let (index, late) = match consistency {
            Consistency::Any => return Ok(()),
            Consistency::AtLeast(index) => (index, ReplicationError::Behind),
            Consistency::Linearizable => {
                let stale = read::answers_stale();
                if stale == Some(Stale::Replica) {
                    return Ok(());
                }
                if !running.context.leads() {
                    return Err(ReplicationError::NotLeader { leader: running.context.leader_address() });
                }
                if stale == Some(Stale::Leader) {
                    return Ok(());
                }
                let (answer, confirmed) = oneshot::channel();
                match within(clock, deadline, running.readers.send(Reader { deadline, answer })).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Err(ReplicationError::Stopped),
                    Err(_) => return Err(ReplicationError::Overloaded),
                }
                match within(clock, deadline, confirmed).await {
                    Ok(Ok(index)) => (index?, ReplicationError::Timeout),
                    Ok(Err(_)) => return Err(ReplicationError::Stopped),
                    Err(_) => return Err(ReplicationError::Timeout),
                }
            }
        };
        let mut applied = running.context.state.applied();
        match within(clock, deadline, applied.wait_for(|applied| *applied >= index)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ReplicationError::Stopped),
            Err(_) => Err(late),
        }
    }

    /// Reads from one state; its index comes from that same state.
    async fn view<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn alba_core::kv::KvRead) -> Result<T, KvError> + Send + 'static,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<(T, Index), ReplicationError> {
        let running = self.running().map_err(not_open)?;
        self.ready(&running, consistency, deadline).await?;
        let kv = running.context.state.kv();
        let work = blocking(self.env.spawn.as_ref(), move || {
            let snapshot = kv.snapshot()?;
            let index = index_of(snapshot.as_ref())?;
            Ok((read(snapshot.as_ref())?, index))
        });
        match within(self.env.clock.as_ref(), deadline, work).await {
            Ok(Ok(done)) => done.map_err(ReplicationError::Store),
            Ok(Err(_)) => Err(ReplicationError::Stopped),
            Err(_) => Err(ReplicationError::Timeout),
        }
    }
}

#[async_trait]
impl<M: Model> Replicator<M> for Raft<M> {
    async fn propose(
        &self,
        input: Input<M::Command>,
        deadline: Deadline,
    ) -> Result<(OutputOf<M>, Index), ReplicationError> {
        match self.core.propose_here(&input, deadline).await {
            Err(ReplicationError::NotLeader { leader }) => self.core.forward(&input, leader, deadline).await,
            other => other,
        }
    }

    async fn query(
        &self,
        query: M::Query,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<(Result<M::Answer, M::Error>, Index), ReplicationError> {
        let read = move |store: &dyn alba_core::kv::KvRead| answer_of::<M>(M::query(store, &query));
        self.core.view(read, consistency, deadline).await
    }

    async fn read(
        &self,
        read: ReadWork,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<Index, ReplicationError> {
        self.core.view(read, consistency, deadline).await.map(|((), index)| index)
    }

    fn commits(&self) -> watch::Receiver<u64> {
        self.core.commits.subscribe()
    }

    fn leadership(&self) -> watch::Receiver<bool> {
        self.core.leads.subscribe()
    }

    fn copies(&self) -> usize {
        let running = self.core.running();
        running.map_or(0, |running| running.context.membership().membership().voter_ids().count())
    }

    fn trouble(&self) -> Option<String> {
        let running = match self.core.running() {
            Ok(running) => running,
            Err(reason) => return Some(reason),
        };
        let context = &running.context;
        if let Some(reason) = context.state.halted() {
            return Some(reason);
        }
        if let Health::NoSpace(reason) = running.log.health() {
            return Some(format!("no disk space for the log: {reason}"));
        }
        let membership = context.membership();
        if membership.membership().nodes().next().is_none() {
            return Some("waits for its group to form, or to be taken into it".to_owned());
        }
        let removed = membership.membership().get_node(&context.id).is_none();
        if removed || context.standing() == Standing::Removed {
            return Some("is no member of its group any more".to_owned());
        }
        if context.lost_majority() {
            return Some("no majority of the replicas answers".to_owned());
        }
        if context.leader().is_none() {
            return Some("no leader".to_owned());
        }
        None
    }
}

/// Keeps the replica open.
async fn supervise<M: Model>(core: Arc<Core<M>>) {
    loop {
        match core.open().await {
            Ok(running) => {
                let context = running.context.clone();
                *lock(&core.running) = Ok(Arc::new(running));
                let reason = watch_over(&core, &context).await;
                tracing::error!(group = %core.config.group, reason, "the replica stopped");
                core.stop(&reason).await;
                if let Some(reason) = context.state.halted() {
                    // Opening it again would end at the same entry: only another version gets further.
                    *lock(&core.running) = Err(reason);
                    return std::future::pending().await;
                }
            }
            Err(error) => {
                tracing::error!(group = %core.config.group, %error, "the replica cannot be opened");
                *lock(&core.running) = Err(format!("cannot be opened: {error}"));
                if is_too_new(&error) {
                    return std::future::pending().await;
                }
            }
        }
        let clock = &core.env.clock;
        clock.sleep_until(clock.now().plus(core.config.limits.reopen_after)).await;
    }
}

/// Follows the library until it ends; why it did.
async fn watch_over<M: Model>(core: &Core<M>, context: &Context<M>) -> String {
    let mut metrics = context.raft.metrics();
    loop {
        {
            let now = metrics.borrow_and_update();
            if let Err(fatal) = &now.running_state {
                return fatal.to_string();
            }
            let leader = now.state == ServerState::Leader;
            drop(now);
            // One that no majority follows may have a successor already.
            let leads = leader && !context.lost_majority();
            core.leads.send_if_modified(|before| std::mem::replace(before, leads) != leads);
        }
        tokio::select! {
            changed = metrics.changed() => {
                if changed.is_err() {
                    return "the library's task ended".to_owned();
                }
            }
            error = context.state.failure() => return format!("the store failed: {error}"),
        }
    }
}
