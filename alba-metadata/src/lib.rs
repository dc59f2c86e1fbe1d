//! ALBA's metadata servers.
//!
//! Two models decide everything: the ABM ([`abm`]: OSDs, presets, namespaces) and the NSM ([`nsm`]: names, manifests,
//! indexes). Both are pure: `apply(transaction, time, command)` over an ordered key space. [`machine`] puts sessions
//! around a model so that a retried command gets its first answer; a [`replicator`] feeds it in one agreed order
//! and makes it durable; [`server`] hosts groups and delivers the ABM's messages.

pub mod abm;
pub mod backup;
mod command;
mod daemon;
#[cfg(test)]
mod gated;
mod listing;
pub mod machine;
pub mod model;
pub mod nsm;
pub mod raft;
pub mod replicator;
pub mod server;
pub mod session;
pub mod txn;
mod value;

use std::ffi::OsString;
use std::process::ExitCode;

pub use command::{backup_to_file, restore_file};
pub use daemon::{MetadataConfig, MetadataDaemon};

/// Runs the program from its arguments (the first is its name): the daemon, or one of the commands `init`, `join`, `backup`,
/// `restore`, `fsck` and `export`.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    match args.get(1).and_then(|word| word.to_str()) {
        Some(word) if command::is_command(word) => command::main(args),
        _ => alba_core::daemon::main::<MetadataDaemon>(args),
    }
}
