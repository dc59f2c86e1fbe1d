//! Messages between clients and metadata servers, and among metadata servers.
//!
//! A frame is `u32 LE length ‖ body`; the body is [`FORMAT`] (one byte), a correlation number (u64 LE), a note (u64 LE)
//! and a postcard value. The note of a request is the time its sender still waits, in microseconds (0: not said); that of
//! an answer the last applied index of the group's state it was given from (0: none). Requests on one connection run concurrently; an answer carries the number of its request.

pub mod abm;
pub mod admin;
pub mod nsm;
pub mod watch;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{AlbaId, GroupId, LongId};
use abm::{AbmAnswer, AbmCommand, AbmError, AbmOutcome, AbmQuery};
use admin::{AdminError, AdminReply, AdminRequest};
use nsm::{NsmAnswer, NsmCommand, NsmError, NsmOutcome, NsmQuery};
use watch::{WatchReply, WatchRequest};

/// First byte of every body. Another value means another format version.
pub const FORMAT: u8 = 2;

/// First byte of a body that has a trace id (u64 LE, not 0) behind its note: the id of the client's request that the message is
/// sent for, for log lines. Everybody reads both; it stands in requests only.
pub const TRACED: u8 = 3;

/// Longest body a command may have: 1 MiB (architecture §5).
pub const MAX_REQUEST: usize = 1 << 20;

/// Longest body of what one replica sends to another: an entry with the longest command, or several shorter ones.
pub const MAX_REPLICATE: usize = 2 << 20;

/// Longest body of an answer: a page of the longest manifests still fits.
pub const MAX_REPLY: usize = 64 << 20;

/// A client's series of commands to one group; made by `OpenSession`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// Names one command for ever: a retry carries the same and gets the first answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// The session.
    pub session: SessionId,
    /// Position in it, from 1.
    pub sequence: u64,
    /// All below have been answered and will never be retried: the group may forget their replies.
    pub lowest_unacknowledged: u64,
}

/// How new the state must be that a read is answered from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// It holds every command that was acknowledged before the read was sent.
    Linearizable,
    /// It holds the commands up to this applied index; any replica may answer.
    AtLeast(u64),
    /// Whatever the asked replica has.
    Any,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// What the server is and hosts.
    Hello,
    /// Starts a session with a group. `nonce` makes a retry harmless.
    OpenSession {
        /// With which group.
        group: GroupId,
        /// 16 random bytes.
        nonce: [u8; 16],
    },
    /// A command for the ABM.
    Abm(RequestId, AbmCommand),
    /// A read from the ABM.
    AbmQuery(Consistency, AbmQuery),
    /// A command for an NSM group.
    Nsm(GroupId, RequestId, NsmCommand),
    /// A read from an NSM group.
    NsmQuery(GroupId, Consistency, NsmQuery),
    /// Takes an OSD into this backend: the leader writes the ownership keys on the device, then registers the claim
    /// and tells the device its namespaces. Idempotent.
    ClaimOsd(LongId),
    /// From one replica of a group to another; what is in it is theirs.
    Replicate(GroupId, Bytes),
    /// An operator's question or wish about a replicated group.
    Admin(GroupId, AdminRequest),
    /// Waits until the ABM has changed; any server that hosts it answers.
    Watch(WatchRequest),
}

impl Request {
    /// What log lines call a request of this kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::OpenSession { .. } => "open_session",
            Self::Abm(..) => "abm",
            Self::AbmQuery(..) => "abm_query",
            Self::Nsm(..) => "nsm",
            Self::NsmQuery(..) => "nsm_query",
            Self::ClaimOsd(_) => "claim_osd",
            Self::Replicate(..) => "replicate",
            Self::Admin(..) => "admin",
            Self::Watch(_) => "watch",
        }
    }

    /// Longest body that a request of this kind may have.
    pub fn max_len(&self) -> usize {
        match self {
            Self::Replicate(..) => MAX_REPLICATE,
            _ => MAX_REQUEST,
        }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Hello`.
    Hello {
        /// The backend served.
        alba_id: AlbaId,
        /// Groups of which this server has the leader.
        groups: Vec<GroupId>,
        /// Its software version.
        version: String,
    },
    /// To `OpenSession`.
    Session(SessionId),
    /// To `Abm`.
    Abm(Result<AbmOutcome, AbmError>),
    /// To `AbmQuery`.
    AbmAnswer(Result<AbmAnswer, AbmError>),
    /// To `Nsm`.
    Nsm(Result<NsmOutcome, NsmError>),
    /// To `NsmQuery`.
    NsmAnswer(Result<NsmAnswer, NsmError>),
    /// To `Replicate`.
    Replicate(Bytes),
    /// The command did not get to the model.
    Refused(Refusal),
    /// To `Admin`.
    Admin(Result<AdminReply, AdminError>),
    /// To `Watch`.
    Watch(WatchReply),
}

/// Why a request did not get to the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The session has expired or never was; the command was not executed.
    SessionUnknown,
    /// This server does not host that group.
    UnknownGroup,
    /// This replica does not lead the group; nothing happened.
    NotLeader {
        /// Where the leader is (`ip:port`), when the replica knows one.
        leader: Option<String>,
    },
    /// The replica had not applied the asked index in time.
    Behind,
    /// The body does not decode, or is of a format this server does not know.
    BadRequest(String),
    /// The group's storage refuses (full, I/O error); the command may or may not have happened.
    Storage(String),
    /// Too many requests wait; nothing happened.
    Overloaded,
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
