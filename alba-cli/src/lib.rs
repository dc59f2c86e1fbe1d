//! The `alba` command: the operator's tool, and the multi-call binary that runs every daemon.
//!
//! With `--to-json` a command writes exactly one object to standard output, whatever happens; everything else goes to
//! standard error. Exit codes: 0 success, 1 failure, 2 wrong arguments or configuration; `alba status` adds 3.

mod answer;
mod args;
mod authority;
mod client_file;
mod cluster_key;
mod commands;
mod demo;
mod down;
mod error;
mod json;
mod names;
mod progress;
mod ranges;
mod rebalancer;
mod recover;
mod session;
mod status;
mod table;
mod up;

use std::ffi::OsString;
use std::process::ExitCode;

use alba_core::daemon;

/// Runs the program from its arguments (the first is its own name) to its end.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let run: fn(Vec<OsString>) -> ExitCode = match args.get(1).and_then(|name| name.to_str()) {
        // With commands of its own: `alba asd-server format`.
        Some("asd-server") => |args| asd_server::main(args),
        // `alba metadata backup`.
        Some("metadata") => |args| alba_metadata::main(args),
        Some("proxy") => daemon::main::<alba_proxy::ProxyDaemon>,
        // With `--once` and `--list-tasks`.
        Some("maintenance") => |args| alba_maintenance::main(args),
        // With `--once` and `--dry-run`.
        Some("rebalancer") => rebalancer::main,
        _ => return args::run(args),
    };
    // `alba proxy --config X` is the program `proxy` with its arguments.
    args.remove(0);
    run(args)
}

/// Runs a rebalancer from its arguments (the first is its own name) to its end.
pub fn rebalancer(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    rebalancer::main(args.into_iter().collect())
}
