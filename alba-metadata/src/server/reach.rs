//! Speaks to an NSM group wherever it is led: here, or over the wire at one of its servers.
//!
//! For what may be repeated: a command whose answer is lost is sent again under a new request id.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Deadline, Env};
use alba_core::ids::GroupId;
use alba_core::net::rpc::RpcConnection;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmCommand, NsmError, NsmOutcome, NsmQuery};
use alba_core::wire::rpc::{Consistency, Refusal, Reply, Request, RequestId, SessionId};
use thiserror::Error;

use super::Groups;
use crate::abm::Abm;
use crate::machine::{Input, Output};
use crate::replicator::{ReplicationError, Replicator};

/// For one server: one that is silent is left while another may lead.
const ATTEMPT_TIME: Duration = Duration::from_millis(2500);

/// Why there is no answer of use.
#[derive(Debug, Error)]
pub(super) enum Failed {
    /// The model's word.
    #[error("refused: {0}")]
    Refused(NsmError),
    /// The group was not reached; whether a command counts is unknown.
    #[error("{0}")]
    Trouble(String),
}

impl From<String> for Failed {
    fn from(reason: String) -> Self {
        Self::Trouble(reason)
    }
}

/// One group.
pub(super) struct Reach {
    env: Env,
    abm: Arc<dyn Replicator<Abm>>,
    groups: Arc<Groups>,
    group: GroupId,
    open: Option<Open>,
}

/// The server that answered last.
struct Open {
    at: SocketAddr,
    connection: RpcConnection,
    session: Option<SessionId>,
    sequence: u64,
}

enum Work {
    Ask(NsmQuery),
    Tell(NsmCommand),
}

impl Reach {
    pub(super) fn new(
        env: &Env,
        abm: &Arc<dyn Replicator<Abm>>,
        groups: &Arc<Groups>,
        group: &GroupId,
    ) -> Self {
        let (env, abm, groups, group) = (env.clone(), abm.clone(), groups.clone(), group.clone());
        Self { env, abm, groups, group, open: None }
    }

    /// A linearizable read.
    pub(super) async fn ask(&mut self, query: NsmQuery, deadline: Deadline) -> Result<NsmAnswer, Failed> {
        let mut hint = None;
        if let Some(local) = self.groups.nsm.get(&self.group) {
            match local.query(query.clone(), Consistency::Linearizable, deadline).await {
                Ok((answer, _)) => return answer.map_err(Failed::Refused),
                Err(ReplicationError::NotLeader { leader }) => hint = leader,
                Err(error) => return Err(error.to_string().into()),
            }
        }
        match self.elsewhere(hint, &Work::Ask(query), deadline).await? {
            Reply::NsmAnswer(answer) => answer.map_err(Failed::Refused),
            other => Err(format!("an unexpected answer: {other:?}").into()),
        }
    }

    /// A command that may be repeated.
    pub(super) async fn tell(
        &mut self,
        command: NsmCommand,
        deadline: Deadline,
    ) -> Result<NsmOutcome, Failed> {
        let mut hint = None;
        if let Some(local) = self.groups.nsm.get(&self.group) {
            match local.propose(Input::Internal(command.clone()), deadline).await {
                Ok((Output::Done(result), _)) => return result.map_err(Failed::Refused),
                Ok(_) => return Err("the group gave an unexpected answer".to_owned().into()),
                Err(ReplicationError::NotLeader { leader }) => hint = leader,
                Err(error) => return Err(error.to_string().into()),
            }
        }
        match self.elsewhere(hint, &Work::Tell(command), deadline).await? {
            Reply::Nsm(result) => result.map_err(Failed::Refused),
            other => Err(format!("an unexpected answer: {other:?}").into()),
        }
    }

    /// Asks the group's servers in turn, each once: two that each take the other for the leader are no loop.
    async fn elsewhere(
        &mut self,
        hint: Option<String>,
        work: &Work,
        deadline: Deadline,
    ) -> Result<Reply, String> {
        let parse = |server: &String| server.parse::<SocketAddr>().ok();
        let mut candidates: VecDeque<SocketAddr> = VecDeque::new();
        candidates.extend(self.open.as_ref().map(|open| open.at));
        candidates.extend(hint.as_ref().and_then(parse));
        // Where the group is registered is only of interest when who answered last does not.
        let mut registered = false;
        let mut asked = Vec::new();
        let mut seen = format!("group {} has no servers", self.group);
        loop {
            let Some(server) = candidates.pop_front() else {
                if registered {
                    return Err(seen);
                }
                registered = true;
                candidates.extend(self.servers(deadline).await?.iter().filter_map(parse));
                continue;
            };
            if asked.contains(&server) {
                continue;
            }
            asked.push(server);
            let attempt = deadline.capped(self.env.clock.as_ref(), ATTEMPT_TIME);
            match self.attempt(server, work, attempt).await {
                Ok(Reply::Refused(Refusal::NotLeader { leader })) => {
                    seen = format!("{server} does not lead group {}", self.group);
                    if let Some(leader) = leader.as_ref().and_then(parse) {
                        candidates.push_front(leader);
                    }
                }
                Ok(Reply::Refused(refusal)) => seen = format!("{server}: {refusal:?}"),
                Ok(reply) => return Ok(reply),
                Err(reason) => seen = format!("{server}: {reason}"),
            }
            self.open = None;
        }
    }

    async fn servers(&self, deadline: Deadline) -> Result<Vec<String>, String> {
        let asked = self.abm.query(AbmQuery::Groups, Consistency::Linearizable, deadline).await;
        match asked.map_err(|error| error.to_string())?.0 {
            Ok(AbmAnswer::Groups(groups)) => {
                let found = groups.into_iter().find(|record| record.id == self.group);
                found
                    .map(|record| record.servers)
                    .ok_or_else(|| format!("group {} is not registered", self.group))
            }
            _ => Err("the ABM does not tell its groups".to_owned()),
        }
    }

    async fn attempt(
        &mut self,
        server: SocketAddr,
        work: &Work,
        deadline: Deadline,
    ) -> Result<Reply, String> {
        let usable = |open: &Open| open.at == server && !open.connection.is_broken();
        let mut open = match self.open.take().filter(usable) {
            Some(open) => open,
            None => {
                let connection = RpcConnection::open(&self.env, server, deadline).await;
                let connection = connection.map_err(|error| error.to_string())?;
                Open { at: server, connection, session: None, sequence: 0 }
            }
        };
        let request = match work {
            Work::Ask(query) => {
                Request::NsmQuery(self.group.clone(), Consistency::Linearizable, query.clone())
            }
            Work::Tell(command) => {
                let session = match open.session {
                    Some(session) => session,
                    None => match self.session(&open.connection, deadline).await? {
                        Reply::Session(session) => *open.session.insert(session),
                        other => return Ok(other),
                    },
                };
                open.sequence += 1;
                // One at a time, and none is repeated under its id.
                let id = RequestId { session, sequence: open.sequence, lowest_unacknowledged: open.sequence };
                Request::Nsm(self.group.clone(), id, command.clone())
            }
        };
        let answer = open.connection.call(&request, deadline).await.map_err(|error| error.to_string())?;
        self.open = Some(open);
        Ok(answer.reply)
    }

    async fn session(&self, connection: &RpcConnection, deadline: Deadline) -> Result<Reply, String> {
        let mut nonce = [0; 16];
        self.env.rng.fill(&mut nonce);
        let open = Request::OpenSession { group: self.group.clone(), nonce };
        connection.call(&open, deadline).await.map(|answer| answer.reply).map_err(|error| error.to_string())
    }
}
