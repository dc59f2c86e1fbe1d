//! The storage daemon of one disk: an ordered key-value store with atomic conditional batches, behind the ALBA ASD
//! protocol. It knows keys and bytes, not objects or manifests.

pub mod config;
mod daemon;
pub mod engine;
mod fsck;
pub mod home;
pub mod schedule;
pub mod server;

use std::ffi::OsString;
use std::process::ExitCode;

pub use daemon::AsdDaemon;

/// Runs the program from its arguments (the first is its name): the daemon, or `fsck`.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if args.get(1).is_some_and(|command| command == "fsck") {
        args.remove(0);
        return fsck::main(args);
    }
    alba_core::daemon::main::<AsdDaemon>(args)
}

/// A number for a gauge. Exact up to 2^53.
#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn gauge(value: u64) -> f64 {
    value as f64
}
