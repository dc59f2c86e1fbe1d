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
    SnapshotChunk { snapshot_id: String, offset: u64, bytes: bytes::Bytes },
    /// All of it was sent: install it.
    SnapshotFinish { vote: Vote<NodeId>, snapshot_id: String },
    /// A new replica at this address asks to take the place of the one that was there.
    Join { address: String },
    /// The server's own input, for the leader.
    Propose { input: bytes::Bytes },
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
    PreVote {
        granted: bool,
        member: bool,
    },
    Vote(VoteResponse<NodeId>),
    Append(AppendEntriesResponse<NodeId>),
    /// Bytes of the snapshot that are here, or none when another one is coming in.
    Snapshot {
        have: Option<u64>,
    },
    /// The snapshot is installed, or its sender's time is over.
    Installed(SnapshotResponse<NodeId>),
    /// It will be seen to.
    Accepted,
    /// No member has that address: an operator has to add it.
    NotInvited,
    /// What came of the input, as it is remembered, with the index.
    Output {
        index: u64,
        output: Vec<u8>,
    },
    NotLeader {
        leader: Option<(NodeId, String)>,
    },
    /// The message is for somebody else.
    NotMe {
        id: NodeId,
    },
    /// Not running, or its storage failed.
    Failed(String),
    /// The input needs entries of a newer format than the members have agreed on; nothing happened.
    NotAgreed {
        needed: u8,
        agreed: u8,
    },
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

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    #[test]
    fn messages_have_golden_bytes() {
        let envelope = |message| encode(&Envelope { from: 1, to: 300, message }).unwrap();
        assert_eq!(envelope(Message::Hello), [FORMAT, 1, 0xac, 2, 0]);
        let last_log_id = Some(LogId::new(CommittedLeaderId::new(5, 6), 7));
        assert_eq!(envelope(Message::PreVote { last_log_id }), [FORMAT, 1, 0xac, 2, 1, 1, 5, 6, 7]);
        let vote = Vote::new(5, 6);
        let request = VoteRequest::new(vote, last_log_id);
        assert_eq!(envelope(Message::Vote(request)), [FORMAT, 1, 0xac, 2, 2, 5, 6, 0, 1, 5, 6, 7]);
        let heartbeat = AppendEntriesRequest {
            vote: Vote::new_committed(5, 6),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: last_log_id,
        };
        assert_eq!(envelope(Message::Append(heartbeat)), [FORMAT, 1, 0xac, 2, 3, 5, 6, 1, 0, 0, 1, 5, 6, 7]);
        let chunk =
            Message::SnapshotChunk { snapshot_id: "s".to_owned(), offset: 9, bytes: b"ab".as_slice().into() };
        assert_eq!(envelope(chunk), [FORMAT, 1, 0xac, 2, 5, 1, b's', 9, 2, b'a', b'b']);
        let finish = Message::SnapshotFinish { vote, snapshot_id: "s".to_owned() };
        assert_eq!(envelope(finish), [FORMAT, 1, 0xac, 2, 6, 5, 6, 0, 1, b's']);
        assert_eq!(envelope(Message::Join { address: "a".to_owned() }), [FORMAT, 1, 0xac, 2, 7, 1, b'a']);
        let propose = Message::Propose { input: b"i".as_slice().into() };
        assert_eq!(envelope(propose), [FORMAT, 1, 0xac, 2, 8, 1, b'i']);
        let greeting = Greeting {
            id: 2,
            initialized: true,
            leader: Some((3, "l".to_owned())),
            payload_format: 1,
            member: false,
        };
        assert_eq!(encode(&Answer::Hello(greeting)).unwrap(), [FORMAT, 0, 2, 1, 1, 3, 1, b'l', 1, 0]);
        assert_eq!(encode(&Answer::Append(AppendEntriesResponse::Success)).unwrap(), [FORMAT, 3, 0]);
        assert_eq!(encode(&Answer::NotMe { id: 2 }).unwrap(), [FORMAT, 10, 2]);
        assert_eq!(encode(&Answer::Failed("x".to_owned())).unwrap(), [FORMAT, 11, 1, b'x']);
        assert_eq!(encode(&Answer::NotAgreed { needed: 2, agreed: 1 }).unwrap(), [FORMAT, 12, 2, 1]);
    }

    #[test]
    fn other_formats_and_garbage_are_errors() {
        assert!(decode::<Envelope>(b"").unwrap_err().contains("empty"));
        assert!(decode::<Envelope>(&[FORMAT + 1, 0]).unwrap_err().contains("format 2"));
        assert!(decode::<Envelope>(&[FORMAT, 1, 2, 99]).is_err());
    }
}
