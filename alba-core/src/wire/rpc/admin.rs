//! What an operator asks of a replicated group. Questions are answered by any replica; changes by the leader only.

use serde::{Deserialize, Serialize};
use thiserror::Error;

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
    /// Newest format of entries that every member can apply; 0: not known, since only the leader asks them.
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
}
