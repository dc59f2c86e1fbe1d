//! Snapshots: a whole state in a file, to send to replicas that are too far behind for the log, and to cut the log.
//!
//! A snapshot is read from one view of the store while commands go on, and written block by block. It is never trusted
//! before every block's checksum and the hash of the whole were compared, and it is installed beside the old state, never
//! over it.

mod build;
mod file;
mod incoming;
mod install;

pub(super) use build::{build, newest, remove_others};
pub use file::SnapshotFile;
pub(crate) use file::{entries_of, frame, put_entry};
pub(super) use incoming::{Incoming, Offer};
pub(super) use install::{adopt, install};

use std::io;

/// Names of finished snapshots begin so.
const PREFIX: &str = "snapshot-";

/// One being built.
const BUILDING: &str = "building";

fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
