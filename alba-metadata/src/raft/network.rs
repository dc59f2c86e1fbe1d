//! The library's way to the other replicas.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Env, within};
use alba_core::ids::GroupId;
use alba_core::net::rpc::RpcError;
use alba_core::wire::rpc::{Reply, Request};
use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{EntryPayload, Snapshot, Vote};
use thiserror::Error;

use super::message::{Answer, Envelope, Message, decode, encode};
use super::peers::Peers;
use super::runtime::scoped;
use super::snapshot::Offer;
use super::types::{NodeId, Replica, TypeConfig};

/// Payload bytes in one request, about: at least one entry is sent, whatever its size.
const APPEND_BYTES: usize = 1 << 20;

/// Bytes of a snapshot in one request.
const CHUNK: u64 = 512 << 10;

/// For a chunk, or for finding out how much there is.
const CHUNK_TIME: Duration = Duration::from_secs(20);

/// For the installation of a whole snapshot; when it takes longer the sender asks again.
const INSTALL_TIME: Duration = Duration::from_secs(600);

/// Pause after a replica was not reached.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(200);

/// Who speaks, for which group.
pub(super) struct Wire {
    pub(super) env: Env,
    pub(super) peers: Arc<Peers>,
    pub(super) group: GroupId,
    pub(super) me: NodeId,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum WireError {
    /// Nothing arrived there.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// Whether it arrived is unknown.
    #[error("{0}")]
    Lost(String),
}

impl Wire {
    /// Sends a message to replica `to` (0: whoever is there).
    pub(super) async fn call(
        &self,
        address: &str,
        to: NodeId,
        message: Message,
        patience: Duration,
    ) -> Result<Answer, WireError> {
        let bytes = encode(&Envelope { from: self.me, to, message }).map_err(WireError::Lost)?;
        let request = Request::Replicate(self.group.clone(), bytes.into());
        let deadline = self.env.deadline_in(patience);
        match self.peers.call(address, &request, deadline).await {
            Ok(answer) => match answer.reply {
                Reply::Replicate(bytes) => match decode(&bytes).map_err(WireError::Lost)? {
                    Answer::NotMe { id } => {
                        Err(WireError::Unreachable(format!("replica {id:016x} is there instead")))
                    }
                    Answer::Failed(reason) => Err(WireError::Unreachable(reason)),
                    answer => Ok(answer),
                },
                other => Err(WireError::Unreachable(format!("{other:?}"))),
            },
            Err(error @ (RpcError::Connect(_) | RpcError::TooLarge { .. })) => {
                Err(WireError::Unreachable(error.to_string()))
            }
            Err(error) => Err(WireError::Lost(error.to_string())),
        }
    }
}

impl From<WireError> for RPCError<NodeId, Replica, RaftError<NodeId>> {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Unreachable(_) => Self::Unreachable(Unreachable::new(&error)),
            WireError::Lost(_) => Self::Network(NetworkError::new(&error)),
        }
    }
}

impl From<WireError> for StreamingError<TypeConfig, Fatal<NodeId>> {
    // Always with a pause: the library retries a lost one at once.
    fn from(error: WireError) -> Self {
        Self::Unreachable(Unreachable::new(&error))
    }
}

fn unexpected() -> WireError {
    WireError::Lost("an answer to another question".to_owned())
}

/// Makes [`Link`]s.
pub(super) struct Links(pub(super) Arc<Wire>);

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, node: &Replica) -> Link {
        Link { wire: self.0.clone(), target, address: node.address.clone() }
    }
}

/// The way to one replica.
pub(super) struct Link {
    wire: Arc<Wire>,
    target: NodeId,
    address: String,
}

impl Link {
    async fn call(&self, message: Message, patience: Duration) -> Result<Answer, WireError> {
        self.wire.call(&self.address, self.target, message, patience).await
    }

    async fn send_snapshot(
        &self,
        vote: Vote<NodeId>,
        snapshot: Snapshot<TypeConfig>,
    ) -> Result<SnapshotResponse<NodeId>, WireError> {
        let lost = |error: std::io::Error| WireError::Lost(format!("cannot read the snapshot: {error}"));
        let file = &snapshot.snapshot;
        let snapshot_id = snapshot.meta.snapshot_id.clone();
        let offer = Box::new(Offer { meta: snapshot.meta.clone(), len: file.len, hash: file.hash });
        let mut have = match self.call(Message::SnapshotBegin { vote, offer }, CHUNK_TIME).await? {
            Answer::Snapshot { have: Some(have) } => have,
            Answer::Installed(response) => return Ok(response),
            _ => return Err(unexpected()),
        };
        tracing::info!(group = %self.wire.group, to = %self.address, have, len = file.len, "sending a snapshot");
        while have < file.len {
            let len = usize::try_from((file.len - have).min(CHUNK)).unwrap_or(0);
            let bytes = file.file.read_at(have, len).await.map_err(lost)?;
            let chunk = Message::SnapshotChunk { snapshot_id: snapshot_id.clone(), offset: have, bytes };
            match self.call(chunk, CHUNK_TIME).await? {
                Answer::Snapshot { have: Some(now) } if now > have => have = now,
                _ => return Err(unexpected()),
            }
        }
        match self.call(Message::SnapshotFinish { vote, snapshot_id }, INSTALL_TIME).await? {
            Answer::Installed(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        mut rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RPCError<NodeId, Replica, RaftError<NodeId>>> {
        let mut bytes = 0;
        let fitting = rpc.entries.iter().take_while(|entry| {
            let first = bytes == 0;
            bytes += match &entry.payload {
                EntryPayload::Normal(payload) => payload.0.len() + 64,
                _ => 1024,
            };
            first || bytes <= APPEND_BYTES
        });
        let fitting = fitting.count();
        let part = fitting < rpc.entries.len();
        rpc.entries.truncate(fitting);
        let last = rpc.entries.last().map(|entry| entry.log_id);
        match self.call(Message::Append(rpc), option.hard_ttl()).await? {
            Answer::Append(AppendEntriesResponse::Success) if part => {
                Ok(AppendEntriesResponse::PartialSuccess(last))
            }
            Answer::Append(response) => Ok(response),
            _ => Err(unexpected().into()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RPCError<NodeId, Replica, RaftError<NodeId>>> {
        match self.call(Message::Vote(rpc), option.hard_ttl()).await? {
            Answer::Vote(response) => Ok(response),
            _ => Err(unexpected().into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<NodeId>,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<TypeConfig, Fatal<NodeId>>> {
        // The longest it can take is bounded by its parts.
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot) => Ok(sent?),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_PAUSE))
    }
}

/// A deadline for one question to the library's own task, which may wait for its disk.
pub(super) async fn in_time<F: Future>(env: &Env, limit: Duration, work: F) -> Option<F::Output> {
    within(env.clock.as_ref(), env.deadline_in(limit), scoped(env, work)).await.ok()
}
