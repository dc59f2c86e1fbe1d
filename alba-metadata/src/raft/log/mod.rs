//! The Raft log of one replica: entries, the vote, what was purged and what is known to be committed, on one disk.
//!
//! It promises: an entry whose callback said so, and a vote that was saved, survive any crash; a truncated or purged
//! entry never comes back; a full disk is a state that is told before it is reached. It must never acknowledge before
//! the sync, never rewrite a block that was acknowledged, never cut what was synced, never hand out bytes that do not
//! verify.
//!
//! Everything is a record in one sequence, in preallocated segments (`docs/formats/metadata.md`). What arrives while a
//! sync runs is written and synced together. A segment's activation block carries the vote, the purge point and the
//! committed point, so older segments can go; a dead segment is used again under a raised generation, made durable
//! before its first record.
//!
//! # What a restart can tell, and what it cannot
//!
//! Each record says up to where the log was known to be durable when it was written. A record that does not verify,
//! and after which anything says that it had been durable, is **rot**: opening fails and names the place, the replica
//! must join anew. One after which nothing says so is a **torn tail** and is cut. Therefore:
//!
//! * Damage before the last write is always told as rot, whatever it hit: the segments form a chain that names its
//!   members, so a lost or foreign file is noticed too.
//! * Damage to the *last* write looks like a torn tail, although it may have been acknowledged. This lasts until the
//!   next write, and at most for [`LogLimits::mark_after`] when nothing more comes: then a small record proves it.
//! * A torn sector is told from rot by that only. An acknowledged write that the disk lost without an error, with all
//!   that came after it, cannot be told; nor can the loss of the newest segment as a whole: its file is gone, or its
//!   header blocks read as zeros, as if they had never been written.
//!
//! What was not proven but verifies was perhaps acknowledged, perhaps never made durable: it counts, and is written
//! again and synced before the log is open. Every opening begins a new segment, so nothing beyond a cut is ever
//! continued: the old segment counts up to the record its successor names, and no further.

mod entries;
mod format;
mod phase;
mod plan;
mod read;
mod recovery;
mod segments;
mod shared;
mod store;
#[cfg(test)]
mod tests;
mod upkeep;
mod writer;

use std::io;
use std::time::Duration;

use thiserror::Error;

pub use format::FormatError;
pub use recovery::{Cut, Recovered};
pub use store::LogStore;

/// What a log may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Size of a segment in bytes; a multiple of 4 KiB. At least five segments are in use or ready.
    pub segment_bytes: u64,
    /// Dead and new segments that are kept ready; more are removed. At least three.
    pub spare_segments: usize,
    /// Bytes after which a write takes no more.
    pub batch_bytes: u64,
    /// Bytes of entries that may wait for the disk; beyond them `append` waits.
    pub queue_bytes: u64,
    /// Bytes of entries kept in memory for readers.
    pub cache_bytes: u64,
    /// Bytes of entries in one answer to a replication stream; at least one entry is given.
    pub answer_bytes: u64,
    /// Bytes of the file system that are left free.
    pub min_free_bytes: u64,
    /// Idle time after which the last write is proven by another.
    pub mark_after: Duration,
    /// Between attempts to get disk space.
    pub retry_after: Duration,
    /// After this time a disk that does not answer counts as failed.
    pub stall_after: Duration,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            spare_segments: 6,
            // Reaches the bandwidth of the disk and delays no one much.
            batch_bytes: 4 << 20,
            queue_bytes: 32 << 20,
            cache_bytes: 32 << 20,
            answer_bytes: 1 << 20,
            min_free_bytes: 64 << 20,
            mark_after: Duration::from_millis(200),
            retry_after: Duration::from_secs(1),
            stall_after: Duration::from_secs(30),
        }
    }
}

/// How a log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It takes everything.
    Ok,
    /// There is no space for another segment: new entries are refused soon (ask [`LogStore::room_for`]); votes and
    /// truncations still go. It ends by itself when space returns.
    NoSpace(String),
    /// It takes nothing any more; closing and opening it again recovers what the disk holds.
    Failed(String),
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LogError {
    /// The disk failed.
    #[error("{doing}: {reason}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The kind of error.
        kind: io::ErrorKind,
        /// The error.
        reason: String,
    },
    /// Something that had been durable is damaged. The replica must join anew, under another id.
    #[error("{segment} is damaged at byte {offset}: {reason}")]
    Rot {
        /// The segment's file.
        segment: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A segment that is needed is gone. The replica must join anew, under another id.
    #[error("segment activation {activation} is missing")]
    Missing {
        /// Number of its activation.
        activation: u64,
    },
    /// A segment of another log is in the directory.
    #[error("{segment} belongs to another log")]
    Foreign {
        /// Its file.
        segment: String,
    },
    /// Written by a newer program.
    #[error("{segment}: {version}")]
    Version {
        /// Its file.
        segment: String,
        /// What it says.
        version: FormatError,
    },
    /// There is no space for it.
    #[error("no disk space for the log")]
    NoSpace,
    /// It does not fit into a segment.
    #[error("an entry of {bytes} bytes, the log takes {max} at most")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The limits make no sense.
    #[error("{0}")]
    Limits(&'static str),
    /// An entry that is not the next one.
    #[error("entry {found} where {expected} is next")]
    Order {
        /// Index that is next.
        expected: u64,
        /// Index that came.
        found: u64,
    },
    /// The disk did not answer in time.
    #[error("the disk did not answer in time")]
    Stalled,
    /// It failed before.
    #[error("the log has failed: {0}")]
    Failed(String),
    /// It is closed.
    #[error("the log is closed")]
    Closed,
}

impl LogError {
    fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { doing, kind: error.kind(), reason: error.to_string() }
    }
}

impl From<LogError> for io::Error {
    fn from(error: LogError) -> Self {
        let kind = match &error {
            LogError::Io { kind, .. } => *kind,
            LogError::NoSpace => io::ErrorKind::StorageFull,
            LogError::Stalled => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
