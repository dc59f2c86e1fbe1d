//! What an operator asks of a group. Questions are answered by any replica; changes of the members by the leader only.
//! Streams (backup, check, export) work with groups of one copy too.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Consistency;

/// A request about one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// How the group is, as the asked replica knows it.
    Status,
    /// Takes the replica that runs at this address (`ip:port`) into the group: first it gets the state, then it votes. A member
    /// that had the same address leaves. Repeating it is harmless.
    AddReplica {
        /// Where its server is.
        address: String,
    },
    /// Removes a member, alive or not.
    RemoveReplica {
        /// Its name.
        replica: u64,
    },
    /// Writes a snapshot now and cuts the log, on the asked replica.
    Snapshot,
    /// Begins to read the whole group in one state, on the asked replica.
    Open {
        /// What is made of the state.
        what: StreamKind,
        /// How new the state must be.
        consistency: Consistency,
    },
    /// The next piece of a stream. One that nobody asked for a minute ends.
    Next {
        /// Which.
        stream: u64,
        /// Counts the pieces from 0. The one before may be asked for again, after a lost answer.
        number: u64,
    },
    /// Ends a stream before its end. Repeating it is harmless.
    Close {
        /// Which.
        stream: u64,
    },
}

/// What is made of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamKind {
    /// The bytes of a backup file.
    Backup,
    /// One JSON line for each counter or index entry that does not follow from the records.
    Check,
    /// The rows as JSON lines.
    Export,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminReply {
    /// To `Status`.
    Status(GroupStatus),
    /// To `AddReplica`: the name of the replica, which votes now.
    Added {
        /// Its name.
        replica: u64,
    },
    /// Done, or (`Snapshot`) begun.
    Done,
    /// To `Open`.
    Opened {
        /// Its name for `Next` and `Close`.
        stream: u64,
    },
    /// To `Next`: the pieces in order make up the stream.
    Piece {
        /// What comes next; may be empty.
        bytes: Bytes,
        /// Was it the last?
        last: bool,
    },
    /// To `Next`: not there yet, ask again.
    Wait,
}

/// A group as one of its replicas knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The replica that answers; 0 for a group without replication.
    pub replica: u64,
    /// The leader it knows.
    pub leader: Option<u64>,
    /// Its term.
    pub term: u64,
    /// Index of the last entry it applied.
    pub applied: u64,
    /// Index of the last entry of its log.
    pub last: u64,
    /// Index of the last entry in its newest snapshot; 0: none.
    pub snapshot: u64,
    /// Index of the last entry that its log no longer has; 0: it has all.
    pub cut: u64,
    /// Newest format of entries that every member can apply, as far as it knows: the leader asks them, the others hear of it with
    /// the first entry. 0: a version that did not tell.
    pub format: u8,
    /// The members.
    pub members: Vec<GroupMember>,
    /// Why it cannot serve.
    pub trouble: Option<String>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMember {
    /// Its name.
    pub replica: u64,
    /// Where its server is (`ip:port`).
    pub address: String,
    /// Does it vote?
    pub voter: bool,
    /// Entries that it lacks; only the leader knows.
    pub lag: Option<u64>,
}

/// Why it was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum AdminError {
    /// The group has one copy by configuration.
    #[error("the group is not replicated")]
    NotReplicated,
    /// Nobody answers there, or somebody else.
    #[error("{address}: {reason}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// One change at a time.
    #[error("another change of the group's members is under way")]
    Busy,
    /// No such member.
    #[error("the group has no replica {0:016x}")]
    UnknownReplica(u64),
    /// The last one that votes cannot go.
    #[error("it is the only voting replica of the group")]
    LastReplica,
    /// Not done in time; it may still happen.
    #[error("{0}")]
    Failed(String),
    /// It has ended, or was never begun here.
    #[error("no such stream: it ended, or nobody asked for a minute")]
    StreamUnknown,
    /// As many as may be read at once.
    #[error("{0} streams are being read already: try again later")]
    TooManyStreams(usize),
}
