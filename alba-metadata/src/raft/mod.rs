//! A group of several replicas: Raft (openraft) under a model. It decides nothing about metadata, only in which order
//! inputs happen and that a majority has them on disk.
//!
//! * [`group`]: the replica as the server uses it; opens it, watches it, opens it again when its storage failed.
//! * [`propose`] packs inputs into entries, [`state`] applies them, [`outputs`] brings what came of them back.
//! * [`read`]: linearizable reads. [`elect`]: when to stand for election. [`members`]: who belongs to the group.
//! * [`guard`] keeps log and state consistent, [`snapshot`] writes, sends and installs whole states.
//! * [`seed`] makes the first replica of a group of a restored state.
//! * [`runtime`]: the library on the environment of its node, also a simulated one.
//! * [`message`], [`network`], [`peers`], [`handle`]: what replicas say to each other.
//!
//! It must never answer before a majority has an input on disk, never serve half a state, never vote on what it forgot.
#![allow(rustdoc::private_intra_doc_links, reason = "an overview for those who read the source")]

mod context;
mod elect;
mod group;
mod guard;
mod handle;
mod home;
pub mod log;
mod members;
mod message;
mod network;
mod outputs;
mod payload;
mod peers;
mod propose;
mod read;
mod runtime;
pub(crate) mod seed;
mod snapshot;
mod state;
#[cfg(test)]
pub(crate) mod tests;
pub mod types;
mod upkeep;

use std::time::Duration;

use alba_core::ids::GroupId;

use crate::replicator::{CHANGE_BYTES, STORE_PATIENCE};

pub use group::{AnyRaft, Raft};
pub(crate) use home::crc;
pub use home::{Home, States};
pub use members::MembershipError;
pub use payload::{FORMAT as PAYLOAD_FORMAT, OLDEST as OLDEST_PAYLOAD_FORMAT};
pub use peers::Peers;
pub use snapshot::SnapshotFile;
pub(crate) use snapshot::{entries_of, frame, put_entry};
pub(crate) use state::{is_own as is_replicas_own, position_of};

/// What a replica is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftConfig {
    /// Its group.
    pub group: GroupId,
    /// Where the other replicas reach its server (`ip:port`).
    pub address: String,
    /// The members the group is to be formed of, by address, this one included; of a group that exists, those that may
    /// know where its leader is.
    pub peers: Vec<String>,
    /// What it may use.
    pub limits: RaftLimits,
}

/// How much a replica takes on, and how long it waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftLimits {
    /// Between a leader's signs of life; also the deadline of each.
    pub heartbeat: Duration,
    /// So long after the last sign of life nobody else is elected; a dead leader is replaced about half as much later.
    pub lease: Duration,
    /// Bytes of inputs that wait for an entry or for its end; more wait with their callers.
    pub queue_bytes: usize,
    /// Bytes of an entry, about: a longer input gets one of its own.
    pub batch_bytes: usize,
    /// Inputs of an entry.
    pub batch_inputs: usize,
    /// Entries that are being written, sent or applied.
    pub entries_in_flight: usize,
    /// Entries applied since the last snapshot that make up the next.
    pub snapshot_entries: u64,
    /// Bytes of entries applied since the last snapshot that make up the next.
    pub snapshot_bytes: u64,
    /// Entries kept behind a snapshot for replicas that are a little behind.
    pub keep_entries: u64,
    /// Blocks of 256 KiB of a snapshot in memory while it is written.
    pub snapshot_queue: usize,
    /// The newest format of log entries that it says it can apply, and applies: from the oldest to [`PAYLOAD_FORMAT`]. Less
    /// than that makes it a member of the version before: the group goes on in the older format.
    pub newest_format: u8,
    /// Bytes that the entries of one change of the store write, about: the entry that reaches it is the change's last.
    pub change_bytes: usize,
    /// Longest that a change of the store is waited for; a store that takes longer has failed.
    pub patience: Duration,
    /// A replica whose storage failed is opened again after this.
    pub reopen_after: Duration,
    /// Of the log.
    pub log: log::LogLimits,
}

impl Default for RaftLimits {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            lease: Duration::from_millis(1500),
            queue_bytes: 64 << 20,
            batch_bytes: 512 << 10,
            batch_inputs: 512,
            entries_in_flight: 4,
            snapshot_entries: 100_000,
            snapshot_bytes: 256 << 20,
            keep_entries: 4096,
            snapshot_queue: 8,
            newest_format: PAYLOAD_FORMAT,
            change_bytes: CHANGE_BYTES,
            patience: STORE_PATIENCE,
            reopen_after: Duration::from_secs(1),
            log: log::LogLimits::default(),
        }
    }
}
