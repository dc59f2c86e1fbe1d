//! The `alba-proxy` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    alba_core::daemon::main::<alba_proxy::ProxyDaemon>(std::env::args_os())
}
