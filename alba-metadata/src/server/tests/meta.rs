//! A client of several servers that sends each command under one id until it is answered. The one that users have is of a crate
//! that must not be named here.

use std::collections::BTreeMap;

use alba_core::env::{Directory, MetaError, NamespaceStore};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmOutcome, AbmQuery};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmCommand, NsmOutcome, NsmQuery};
use async_trait::async_trait;

use super::*;

/// Longest wait for one answer.
const ATTEMPT: Duration = Duration::from_millis(2500);

/// Between rounds.
const PAUSE: Duration = Duration::from_millis(30);

pub(super) struct Meta {
    env: Env,
    servers: Mutex<Vec<SocketAddr>>,
    connections: Mutex<BTreeMap<SocketAddr, Arc<RpcConnection>>>,
    /// Per group: the session, and the number of its next command. Held while a command is under way.
    sessions: tokio::sync::Mutex<BTreeMap<GroupId, (SessionId, u64)>>,
}

impl Meta {
    pub(super) fn connect(env: Env, servers: Vec<SocketAddr>) -> Arc<Self> {
        let servers = Mutex::new(servers);
        Arc::new(Self {
            env,
            servers,
            connections: Mutex::default(),
            sessions: tokio::sync::Mutex::default(),
        })
    }

    async fn attempt(&self, server: SocketAddr, request: &Request, deadline: Deadline) -> Option<Reply> {
        let deadline = deadline.capped(self.env.clock.as_ref(), ATTEMPT);
        let known = self.connections.lock().unwrap().get(&server).cloned();
        let connection = match known.filter(|connection| !connection.is_broken()) {
            Some(connection) => connection,
            None => {
                let opened = Arc::new(RpcConnection::open(&self.env, server, deadline).await.ok()?);
                self.connections.lock().unwrap().insert(server, opened.clone());
                opened
            }
        };
        match connection.call(request, deadline).await.ok()?.reply {
            Reply::Refused(Refusal::SessionUnknown) => Some(Reply::Refused(Refusal::SessionUnknown)),
            Reply::Refused(_) => None,
            reply => Some(reply),
        }
    }

    async fn ask(&self, group: &GroupId, request: Request, deadline: Deadline) -> Result<Reply, MetaError> {
        loop {
            let servers = self.servers.lock().unwrap().clone();
            for server in servers {
                if let Some(reply) = self.attempt(server, &request, deadline).await {
                    return Ok(reply);
                }
                let groups = Request::AbmQuery(Consistency::Any, AbmQuery::Groups);
                if let Some(Reply::AbmAnswer(Ok(AbmAnswer::Groups(groups)))) =
                    self.attempt(server, &groups, deadline).await
                {
                    let mut servers = self.servers.lock().unwrap();
                    let named = groups.iter().flat_map(|group| &group.servers);
                    for server in named.filter_map(|server| server.parse().ok()) {
                        if !servers.contains(&server) {
                            servers.push(server);
                        }
                    }
                }
            }
            let clock = self.env.clock.as_ref();
            if deadline.left(clock) <= PAUSE {
                return Err(MetaError::Unreachable {
                    group: group.clone(),
                    reason: "no server answers".to_owned(),
                });
            }
            clock.sleep_until(clock.now().plus(PAUSE)).await;
        }
    }

    async fn execute(
        &self,
        group: &GroupId,
        request: impl Fn(RequestId) -> Request,
        deadline: Deadline,
    ) -> Result<Reply, MetaError> {
        let mut sessions = self.sessions.lock().await;
        let (session, sequence) = match sessions.get(group) {
            Some(known) => *known,
            None => {
                let nonce = self.env.rng.bytes32()[..16].try_into().unwrap();
                let open = Request::OpenSession { group: group.clone(), nonce };
                match self.ask(group, open, deadline).await? {
                    Reply::Session(session) => (session, 1),
                    other => panic!("{other:?}"),
                }
            }
        };
        sessions.insert(group.clone(), (session, sequence + 1));
        let id = RequestId { session, sequence, lowest_unacknowledged: sequence };
        let reply = self.ask(group, request(id), deadline).await;
        if !matches!(reply, Ok(Reply::Abm(_) | Reply::Nsm(_))) {
            sessions.remove(group);
        }
        match reply? {
            // It may have been sent before: nobody knows what came of it.
            Reply::Refused(Refusal::SessionUnknown) => Err(MetaError::SessionUnknown),
            reply => Ok(reply),
        }
    }
}

#[async_trait]
impl Directory for Meta {
    async fn command(&self, command: AbmCommand, deadline: Deadline) -> Result<AbmOutcome, MetaError> {
        let abm = GroupId::new(ABM).unwrap();
        match self.execute(&abm, |id| Request::Abm(id, command.clone()), deadline).await? {
            Reply::Abm(outcome) => Ok(outcome?),
            other => panic!("{other:?}"),
        }
    }

    async fn query(&self, query: AbmQuery, deadline: Deadline) -> Result<AbmAnswer, MetaError> {
        let abm = GroupId::new(ABM).unwrap();
        match self.ask(&abm, Request::AbmQuery(Consistency::Linearizable, query), deadline).await? {
            Reply::AbmAnswer(answer) => Ok(answer?),
            other => panic!("{other:?}"),
        }
    }
}

#[async_trait]
impl NamespaceStore for Meta {
    async fn command(
        &self,
        group: &GroupId,
        command: NsmCommand,
        deadline: Deadline,
    ) -> Result<NsmOutcome, MetaError> {
        match self.execute(group, |id| Request::Nsm(group.clone(), id, command.clone()), deadline).await? {
            Reply::Nsm(outcome) => Ok(outcome?),
            other => panic!("{other:?}"),
        }
    }

    async fn query(
        &self,
        group: &GroupId,
        query: NsmQuery,
        deadline: Deadline,
    ) -> Result<NsmAnswer, MetaError> {
        let request = Request::NsmQuery(group.clone(), Consistency::Linearizable, query);
        match self.ask(group, request, deadline).await? {
            Reply::NsmAnswer(answer) => Ok(answer?),
            other => panic!("{other:?}"),
        }
    }
}
