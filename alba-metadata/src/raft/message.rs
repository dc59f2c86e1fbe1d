//! What replicas of a group say to each other, inside `Request::Replicate` and `Reply::Replicate`:
//! `FORMAT ‖ postcard(Envelope)` and `FORMAT ‖ postcard(Answer)`.

use openraft::Vote;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::snapshot::Offer;
use super::types::{LogId, NodeId, TypeConfig};

/// First byte. Another one is another format; kinds are only ever added at the end of the enums.
pub(super) const FORMAT: u8 = 1;

/// A message with who sends it and whom it is for: a new replica at an old address must not take what is meant for the
/// one before it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Envelope {
    pub(super) from: NodeId,
    /// 0: whoever is there.
    pub(super) to: NodeId,
    pub(super) message: Message,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Message {
    /// Who are you?
    Hello,
    /// May I have an election? (Raft's pre-vote.)
    PreVote { last_log_id: Option<LogId> },
    /// Raft's vote request.
    Vote(VoteRequest<NodeId>),
    /// Raft's log entries.
    Append(AppendEntriesRequest<TypeConfig>),
    /// A snapshot will come.
    SnapshotBegin { vote: Vote<NodeId>, offer: Box<Offer> },
    /// A part of it.
    SnapshotChunk {
        snapshot_id: String,
        offset: u64,
        bytes: bytes::Bytes,
    },
    /// All of it was sent: install it.
    SnapshotFinish { vote: Vote<NodeId>, snapshot_id: String },
    /// A new replica at this address asks to take the place of the one that was there.
    Join { address: String },
    /// The server's own input, for the leader.
    Propose {
        input: bytes::Bytes,
    },
}

/// Who a replica is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Greeting {
    pub(super) id: NodeId,
    /// It knows of a group (has a log or a state).
    pub(super) initialized: bool,
    /// The leader it knows.
    pub(super) leader: Option<(NodeId, String)>,
    /// Newest payload format it can apply.
    pub(super) payload_format: u8,
    /// Is the sender a member, as far as it knows?
    pub(super) member: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Hello(Greeting),
    /// Would it vote for the asker?
    PreVote { granted: bool, member: bool },
    Vote(VoteResponse<NodeId>),
    Append(AppendEntriesResponse<NodeId>),
    /// Bytes of the snapshot that are here, or none when another one is coming in.
    Snapshot { have: Option<u64> },
    /// The snapshot is installed, or its sender's time is over.
    Installed(SnapshotResponse<NodeId>),
    /// It will be seen to.
    Accepted,
    /// No member has that address: an operator has to add it.
    NotInvited,
    /// What came of the input, as it is remembered, with the index.
    Output { index: u64, output: Vec<u8> },
    NotLeader { leader: Option<(NodeId, String)> },
    /// The message is for somebody else.
    NotMe { id: NodeId },
    /// Not running, or its storage failed.
    Failed(String),
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    postcard::to_extend(value, vec![FORMAT]).map_err(|error| error.to_string())
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => postcard::from_bytes(body).map_err(|error| error.to_string()),
        Some((format, _)) => Err(format!("replicas' messages of format {format} are not known here")),
        None => Err("an empty message".to_owned()),
    }
}
