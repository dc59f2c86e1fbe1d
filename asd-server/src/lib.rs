//! The storage daemon of one disk: an ordered key-value store with atomic conditional batches, behind the ALBA ASD
//! protocol. It knows keys and bytes, not objects or manifests.

mod beside;
mod command;
pub mod config;
mod daemon;
pub mod engine;
mod format;
mod fsck;
#[doc(hidden)]
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod home;
mod inspect;
pub mod prepare;
pub mod schedule;
pub mod server;
pub mod state;

use std::ffi::OsString;
use std::process::ExitCode;

pub use beside::Beside;
pub use daemon::AsdDaemon;

/// Runs the program from its arguments (the first is its name): the daemon, or one of the commands `format`, `fsck`
/// and `inspect`.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let command = match args.get(1).and_then(|command| command.to_str()) {
        Some("format") => format::main,
        Some("fsck") => fsck::main,
        Some("inspect") => inspect::main,
        _ => return alba_core::daemon::main::<AsdDaemon>(args),
    };
    args.remove(0);
    command(args)
}

/// A number for a gauge. Exact up to 2^53.
#[allow(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn gauge(value: u64) -> f64 {
    value as f64
}
