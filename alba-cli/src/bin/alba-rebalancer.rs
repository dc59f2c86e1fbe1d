//! The `alba-rebalancer` program: the same as `alba rebalancer`. It is built here because its loop uses the framework of the
//! maintenance agents, which the crate `alba-rebalancer` may not depend on.

use std::process::ExitCode;

fn main() -> ExitCode {
    alba_cli::rebalancer(std::env::args_os())
}
