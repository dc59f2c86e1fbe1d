//! The typed RPC client of the metadata groups.
//!
//! One multiplexed connection per server, one session per group. A command keeps its request id through every retry, so
//! that it happens once however many answers are lost; it must never be sent under a second id while it may still
//! have happened under the first.
//!
//! Only the leader of a group takes commands and linearizable reads. Whoever answered last is asked first; a replica that is
//! not the leader says who is, and that one is asked next. A server that is silent is left after [`ATTEMPT_TIME`]: it may be
//! stopped or cut off while another one leads.

mod outages;
mod session;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::real::quic::{self, QuicLimits, QuicNet};
use alba_core::env::{Deadline, Directory, Env, MetaError, NamespaceStore, within};
use alba_core::ids::{GroupId, LongId, OsdId};
use alba_core::net::rpc::{Answer, RpcConnection, RpcError};
use alba_core::request::{self, Stage};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmError, AbmOutcome, AbmQuery};
use alba_core::wire::rpc::admin::{AdminError, AdminReply, AdminRequest, GroupStatus};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmCommand, NsmError, NsmOutcome, NsmQuery};
use alba_core::wire::rpc::watch::{WatchReply, WatchRequest};
use alba_core::wire::rpc::{Consistency, Refusal, Reply, Request, RequestId};
use async_trait::async_trait;

pub use outages::{Outage, Outages};
use session::{Session, Ticket};

use crate::{ClientConfig, ClientError};

/// First pause between two attempts; doubles up to [`LONGEST_PAUSE`], each time jittered down to half.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Longest one attempt waits for a connection before the next server is tried.
const CONNECT_TIME: Duration = Duration::from_secs(2);

/// Longest one attempt waits for its answer before it is repeated, under the same request id. A leader that was stopped holds its
/// callers up for so long; an answer that takes longer is had by the repetition.
const ATTEMPT_TIME: Duration = Duration::from_millis(2500);

/// The same where the server itself waits for others: until a namespace can be written to, for a device.
const WAITING_TIME: Duration = Duration::from_secs(8);

/// The same for a change of a group's members, which copies the whole state first.
const MEMBERS_TIME: Duration = Duration::from_secs(3600);

/// How many rounds a group's storage may refuse before the caller hears of it.
const STORAGE_ATTEMPTS: u32 = 4;

/// A client of all metadata groups; shared by everything in a process.
pub struct MetadataClient {
    env: Env,
    seeds: Vec<SocketAddr>,
    abm: GroupId,
    state: Mutex<State>,
    connections: Mutex<BTreeMap<SocketAddr, Arc<Slot>>>,
    /// How groups that do not answer are waited for; none: everybody asks again by itself.
    outages: Option<Arc<Outages>>,
}

/// The connection to one server; the async lock lets only one caller connect.
type Slot = tokio::sync::Mutex<Option<Arc<RpcConnection>>>;

#[derive(Default)]
struct State {
    sessions: BTreeMap<GroupId, Arc<Session>>,
    /// Who answered last for a group.
    leaders: BTreeMap<GroupId, SocketAddr>,
    /// What the ABM says about where groups are.
    servers: BTreeMap<GroupId, Vec<SocketAddr>>,
    /// The highest applied index that a group's answers came from.
    seen: BTreeMap<GroupId, u64>,
    /// Who told last of changes, and who last did not.
    watched: Option<SocketAddr>,
    unwatchable: Option<SocketAddr>,
}

/// What came of one attempt at one server.
enum Attempt {
    Answered(Answer),
    /// Not executed, or unknown: try again.
    Again(String),
    /// Not executed, since another server leads the group.
    Elsewhere(SocketAddr),
}

/// What a round of attempts without an answer has shown.
#[derive(Default)]
struct Refusals {
    /// Whose storage refused, and why.
    storage: BTreeMap<SocketAddr, String>,
    /// Who was said to lead.
    leaders: BTreeSet<SocketAddr>,
    /// Was there one that said nothing, or knew no leader?
    silent: bool,
}

impl Refusals {
    /// Why the group's storage refuses: said by all that are said to lead, or by all there are.
    fn of_the_group(&self) -> Option<String> {
        let all_leaders = self.leaders.iter().all(|leader| self.storage.contains_key(leader));
        let known = all_leaders && (!self.leaders.is_empty() || !self.silent);
        self.storage.values().next().filter(|_| known).cloned()
    }
}

impl MetadataClient {
    /// A client of the servers at these addresses. Connects when first asked something.
    pub fn connect(env: Env, servers: Vec<SocketAddr>) -> Arc<Self> {
        Arc::new(Self::new(env, servers, None))
    }

    /// The same for an agent: see [`Outages`].
    pub fn connect_patiently(env: Env, servers: Vec<SocketAddr>, outages: Arc<Outages>) -> Arc<Self> {
        Arc::new(Self::new(env, servers, Some(outages)))
    }

    fn new(env: Env, seeds: Vec<SocketAddr>, outages: Option<Arc<Outages>>) -> Self {
        // The name is valid: not empty and short.
        #[allow(clippy::expect_used)]
        let abm = GroupId::new("abm").expect("a valid name");
        Self { env, seeds, abm, state: Mutex::default(), connections: Mutex::default(), outages }
    }

    /// A client of the servers that `config` names, over QUIC when it has certificates, else over `env.net`. Reads the
    /// certificates: blocks, so for the start of a process.
    pub fn of(env: &Env, config: &ClientConfig) -> Result<Arc<Self>, ClientError> {
        Ok(Self::connect(Self::secured(env, config)?, config.metadata.clone()))
    }

    /// `env` with the network over which the metadata servers of `config` are spoken to. Reads the certificates.
    pub fn secured(env: &Env, config: &ClientConfig) -> Result<Env, ClientError> {
        let mut env = env.clone();
        if let Some((authority, certificate, key)) = config.tls_files() {
            let wrong = |error: &dyn std::error::Error| ClientError::Config(error.to_string());
            let identity =
                quic::Identity::read(authority, certificate, key).map_err(|error| wrong(&error))?;
            let net = QuicNet::new(env.clock.clone(), identity, quic::METADATA, QuicLimits::default());
            env.net = Arc::new(net.map_err(|error| wrong(&error))?);
        }
        Ok(env)
    }

    /// Takes a registered OSD into the backend: writes the ownership keys on the device, registers the claim and tells
    /// the device its namespaces. Idempotent.
    pub async fn claim_osd(&self, long_id: &LongId, deadline: Deadline) -> Result<OsdId, MetaError> {
        let reply = self.ask(&self.abm, || Request::ClaimOsd(long_id.clone()), deadline).await?;
        match reply {
            Reply::Abm(Ok(AbmOutcome::OsdId(id))) => Ok(id),
            Reply::Abm(Err(error)) => Err(error.into()),
            other => Err(unexpected(&other)),
        }
    }

    /// The highest applied index that an answer of a group came from: with [`Consistency::AtLeast`] any replica that has come so
    /// far gives an answer at least as new as all earlier ones. 0 when nothing is known.
    pub fn seen(&self, group: &GroupId) -> u64 {
        self.lock().seen.get(group).copied().unwrap_or(0)
    }

    /// Asks or tells the group itself, beside what it stores. Changes go to its leader, wherever that is.
    pub async fn admin(
        &self,
        group: &GroupId,
        request: AdminRequest,
        deadline: Deadline,
    ) -> Result<Result<AdminReply, AdminError>, MetaError> {
        match self.ask(group, || Request::Admin(group.clone(), request.clone()), deadline).await? {
            Reply::Admin(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// How one server sees a group that has a replica there.
    pub async fn group_status_at(
        &self,
        server: SocketAddr,
        group: &GroupId,
        deadline: Deadline,
    ) -> Result<GroupStatus, MetaError> {
        let mut request = || Request::Admin(group.clone(), AdminRequest::Status);
        let unreachable = |reason: String| MetaError::Unreachable { group: group.clone(), reason };
        match self.attempt(server, &mut request, deadline).await? {
            Attempt::Answered(Answer { reply: Reply::Admin(Ok(AdminReply::Status(status))), .. }) => {
                Ok(status)
            }
            Attempt::Answered(Answer { reply: Reply::Admin(Err(error)), .. }) => {
                Err(unreachable(error.to_string()))
            }
            Attempt::Answered(answer) => Err(unexpected(&answer.reply)),
            Attempt::Again(reason) => Err(unreachable(reason)),
            Attempt::Elsewhere(leader) => Err(unreachable(format!("{server} points at {leader}"))),
        }
    }

    /// Reads from the ABM, as new as `consistency` wants it.
    pub async fn abm_query_at(
        &self,
        consistency: Consistency,
        query: AbmQuery,
        deadline: Deadline,
    ) -> Result<AbmAnswer, MetaError> {
        match self.ask(&self.abm, || Request::AbmQuery(consistency, query.clone()), deadline).await? {
            Reply::AbmAnswer(answer) => Ok(answer?),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads from an NSM group, as new as `consistency` wants it.
    pub async fn nsm_query_at(
        &self,
        group: &GroupId,
        consistency: Consistency,
        query: NsmQuery,
        deadline: Deadline,
    ) -> Result<NsmAnswer, MetaError> {
        let request = || Request::NsmQuery(group.clone(), consistency, query.clone());
        match self.ask(group, request, deadline).await? {
            Reply::NsmAnswer(answer) => Ok(answer?),
            other => Err(unexpected(&other)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Consistent between any two statements that hold the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one command, exactly once.
    async fn execute(
        &self,
        group: &GroupId,
        request: impl Fn(RequestId) -> Request + Send + Sync,
        deadline: Deadline,
    ) -> Result<Reply, MetaError> {
        loop {
            let session = self.session(group, deadline).await?;
            let Some(ticket) = Ticket::take(&session) else {
                // Too far ahead of an unanswered command: a fresh session has room, and this one ends with its tickets.
                self.forget_session(group, &session);
                continue;
            };
            match self.ask(group, || request(ticket.request_id()), deadline).await? {
                Reply::Refused(Refusal::SessionUnknown) => {
                    self.forget_session(group, &session);
                    // `ask` may have sent it more than once; then the first may have been executed.
                    if ticket.sends() > 1 {
                        return Err(MetaError::SessionUnknown);
                    }
                }
                reply => return Ok(reply),
            }
        }
    }

    /// The session with a group; opened when there is none.
    async fn session(&self, group: &GroupId, deadline: Deadline) -> Result<Arc<Session>, MetaError> {
        if let Some(session) = self.lock().sessions.get(group) {
            return Ok(session.clone());
        }
        let mut nonce = [0; 16];
        self.env.rng.fill(&mut nonce);
        let open = || Request::OpenSession { group: group.clone(), nonce };
        match self.ask(group, open, deadline).await? {
            // Two callers may have opened one each: the first stays, the other is never used and expires.
            Reply::Session(id) => {
                let mut state = self.lock();
                let session = state.sessions.entry(group.clone());
                Ok(session.or_insert_with(|| Arc::new(Session::new(id))).clone())
            }
            other => Err(unexpected(&other)),
        }
    }

    fn forget_session(&self, group: &GroupId, session: &Arc<Session>) {
        let mut state = self.lock();
        if state.sessions.get(group).is_some_and(|known| Arc::ptr_eq(known, session)) {
            state.sessions.remove(group);
        }
    }

    /// Asks the group's servers in turn until one answers for it or the deadline passes. A server whose storage refuses is passed
    /// over: another may lead by now. Only when nobody points elsewhere, several times, does the caller hear of it.
    async fn ask(
        &self,
        group: &GroupId,
        request: impl FnMut() -> Request + Send,
        deadline: Deadline,
    ) -> Result<Reply, MetaError> {
        let started = self.env.clock.now();
        let reply = self.ask_in_turn(group, request, deadline).await;
        request::spent(Stage::Metadata, self.env.clock.now().since(started));
        reply
    }

    /// The same without counting its time.
    async fn ask_in_turn(
        &self,
        group: &GroupId,
        mut request: impl FnMut() -> Request + Send,
        deadline: Deadline,
    ) -> Result<Reply, MetaError> {
        let began = self.env.clock.now();
        let mut round = 0;
        let mut refused_rounds = 0;
        loop {
            let attempt = match &self.outages {
                Some(outages) => outages.turn(group, deadline).await?,
                None => None,
            };
            let mut refusals = Refusals::default();
            let mut seen = "no server is known; check the configured addresses".to_owned();
            let mut candidates = VecDeque::from(self.candidates(group));
            let mut asked = Vec::new();
            while let Some(server) = candidates.pop_front() {
                if asked.contains(&server) {
                    continue;
                }
                asked.push(server);
                match self.attempt(server, &mut request, deadline).await? {
                    Attempt::Answered(Answer { reply: Reply::Refused(Refusal::Storage(reason)), .. }) => {
                        seen = format!("{server}: {reason}");
                        refusals.storage.insert(server, reason);
                    }
                    Attempt::Answered(answer) => {
                        if let Some(outages) = &self.outages {
                            outages.answered(group);
                        }
                        let mut state = self.lock();
                        state.leaders.insert(group.clone(), server);
                        let newest = state.seen.entry(group.clone()).or_default();
                        *newest = answer.index.max(*newest);
                        return Ok(answer.reply);
                    }
                    Attempt::Again(reason) => {
                        seen = reason;
                        refusals.silent = true;
                    }
                    // Each is asked once per round: two that each take the other for the leader are no loop.
                    Attempt::Elsewhere(leader) => {
                        seen = format!("{server} says that {leader} leads the group");
                        refusals.leaders.insert(leader);
                        candidates.push_front(leader);
                    }
                }
                self.lock().leaders.remove(group);
                if deadline.left(self.env.clock.as_ref()).is_zero() {
                    return Err(MetaError::Unreachable { group: group.clone(), reason: seen });
                }
            }
            if let Some(reason) = refusals.of_the_group() {
                refused_rounds += 1;
                if refused_rounds >= STORAGE_ATTEMPTS {
                    return Err(MetaError::Storage(reason));
                }
            }
            let lost = self.outages.as_ref().is_some_and(|outages| outages.silent(group, began, &seen));
            drop(attempt);
            if !lost {
                round += 1;
                self.pause(round, deadline, group, &seen).await?;
            }
            if *group != self.abm {
                self.learn_groups(deadline).await;
            }
        }
    }

    /// Servers that may host the group, the likeliest first.
    fn candidates(&self, group: &GroupId) -> Vec<SocketAddr> {
        let state = self.lock();
        let known = state.servers.get(group).into_iter().flatten();
        let mut all = Vec::new();
        for server in state.leaders.get(group).into_iter().chain(known).chain(&self.seeds) {
            if !all.contains(server) {
                all.push(*server);
            }
        }
        all
    }

    /// Asks the ABM where the groups are. Failing leaves what was known.
    async fn learn_groups(&self, deadline: Deadline) {
        for server in self.candidates(&self.abm) {
            let asked = self
                .attempt(server, &mut || Request::AbmQuery(Consistency::Any, AbmQuery::Groups), deadline)
                .await;
            if let Ok(Attempt::Answered(answer)) = asked
                && let Reply::AbmAnswer(Ok(AbmAnswer::Groups(groups))) = answer.reply
            {
                let mut state = self.lock();
                for group in groups {
                    let servers = group.servers.iter().filter_map(|server| server.parse().ok()).collect();
                    state.servers.insert(group.id, servers);
                }
                return;
            }
        }
    }

    async fn attempt(
        &self,
        server: SocketAddr,
        request: &mut (impl FnMut() -> Request + Send),
        deadline: Deadline,
    ) -> Result<Attempt, MetaError> {
        let clock = self.env.clock.as_ref();
        let connection = match self.connection(server, deadline.capped(clock, CONNECT_TIME)).await {
            Ok(connection) => connection,
            Err(error) => return Ok(Attempt::Again(error.to_string())),
        };
        let request = request();
        match connection.call(&request, deadline.capped(clock, attempt_time(&request))).await {
            Ok(Answer { reply: Reply::Refused(refusal), index }) => match refusal {
                Refusal::UnknownGroup => Ok(Attempt::Again(format!("{server} does not host the group"))),
                Refusal::NotLeader { leader } => Ok(match leader.and_then(|leader| leader.parse().ok()) {
                    Some(leader) if leader != server => Attempt::Elsewhere(leader),
                    _ => Attempt::Again(format!("{server} knows no leader of the group")),
                }),
                Refusal::Behind => Ok(Attempt::Again(format!("{server} is behind"))),
                Refusal::Overloaded => Ok(Attempt::Again(format!("{server} is overloaded"))),
                Refusal::BadRequest(reason) => Err(MetaError::Protocol(reason)),
                refusal @ (Refusal::SessionUnknown | Refusal::Storage(_)) => {
                    Ok(Attempt::Answered(Answer { reply: Reply::Refused(refusal), index }))
                }
            },
            Ok(answer) => Ok(Attempt::Answered(answer)),
            Err(RpcError::TooLarge { len, max }) => Err(too_large(&request, len, max)),
            Err(error) => Ok(Attempt::Again(format!("{server}: {error}"))),
        }
    }

    async fn connection(
        &self,
        server: SocketAddr,
        deadline: Deadline,
    ) -> Result<Arc<RpcConnection>, RpcError> {
        let slot = {
            let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            connections.entry(server).or_default().clone()
        };
        let clock = self.env.clock.as_ref();
        // Whoever holds the lock connects, by its own deadline.
        let mut slot = within(clock, deadline, slot.lock()).await.map_err(|_| RpcError::Timeout)?;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.is_broken()) {
            return Ok(connection.clone());
        }
        *slot = None;
        let connection = Arc::new(RpcConnection::open(&self.env, server, deadline).await?);
        *slot = Some(connection.clone());
        Ok(connection)
    }

    /// Waits before attempt `round`; the error when there is no time left for another.
    async fn pause(
        &self,
        round: u32,
        deadline: Deadline,
        group: &GroupId,
        reason: &str,
    ) -> Result<(), MetaError> {
        let longest = FIRST_PAUSE.saturating_mul(1 << round.min(10)).min(LONGEST_PAUSE);
        // Between half of it and all of it: clients that failed together don't come back together.
        let thousandths = u32::try_from(self.env.rng.u64() % 500).unwrap_or(0) + 500;
        let pause = longest / 1000 * thousandths;
        let clock = self.env.clock.as_ref();
        if pause >= deadline.left(clock) {
            return Err(MetaError::Unreachable { group: group.clone(), reason: reason.to_owned() });
        }
        clock.sleep_until(clock.now().plus(pause)).await;
        Ok(())
    }
}

/// A call that ends before its answer can be there would take its connection for dead, and with it the calls of others.
fn attempt_time(request: &Request) -> Duration {
    match request {
        Request::ClaimOsd(_)
        | Request::Abm(_, AbmCommand::CreateNamespace { .. } | AbmCommand::DeleteNamespace { .. }) => {
            WAITING_TIME
        }
        Request::Admin(_, AdminRequest::AddReplica { .. } | AdminRequest::RemoveReplica { .. }) => {
            MEMBERS_TIME
        }
        // It is answered when it has waited, at the latest.
        Request::Watch(watch) => watch.wait() + ATTEMPT_TIME,
        _ => ATTEMPT_TIME,
    }
}

fn unexpected(reply: &Reply) -> MetaError {
    match reply {
        Reply::Refused(Refusal::SessionUnknown) => MetaError::SessionUnknown,
        Reply::Refused(Refusal::Storage(reason)) => MetaError::Storage(reason.clone()),
        Reply::Refused(refusal) => MetaError::Protocol(format!("refused: {refusal:?}")),
        _ => MetaError::Protocol("the answer is not one to the question".to_owned()),
    }
}

fn too_large(request: &Request, len: usize, max: usize) -> MetaError {
    let text = format!("the command takes {len} bytes; at most {max} are allowed");
    match request {
        Request::Nsm(..) => NsmError::TooLarge(text).into(),
        Request::Abm(..) => AbmError::BadArgument(text).into(),
        _ => MetaError::Protocol(text),
    }
}

#[async_trait]
impl Directory for MetadataClient {
    async fn command(&self, command: AbmCommand, deadline: Deadline) -> Result<AbmOutcome, MetaError> {
        let request = |id| Request::Abm(id, command.clone());
        match self.execute(&self.abm, request, deadline).await? {
            Reply::Abm(outcome) => Ok(outcome?),
            other => Err(unexpected(&other)),
        }
    }

    async fn query(&self, query: AbmQuery, deadline: Deadline) -> Result<AbmAnswer, MetaError> {
        self.abm_query_at(Consistency::Linearizable, query, deadline).await
    }

    async fn watch(&self, request: WatchRequest, deadline: Deadline) -> Result<WatchReply, MetaError> {
        self.watch_changes(request, deadline).await
    }
}

#[async_trait]
impl NamespaceStore for MetadataClient {
    async fn command(
        &self,
        group: &GroupId,
        command: NsmCommand,
        deadline: Deadline,
    ) -> Result<NsmOutcome, MetaError> {
        let request = |id| Request::Nsm(group.clone(), id, command.clone());
        match self.execute(group, request, deadline).await? {
            Reply::Nsm(outcome) => Ok(outcome?),
            other => Err(unexpected(&other)),
        }
    }

    async fn query(
        &self,
        group: &GroupId,
        query: NsmQuery,
        deadline: Deadline,
    ) -> Result<NsmAnswer, MetaError> {
        self.nsm_query_at(group, Consistency::Linearizable, query, deadline).await
    }
}
