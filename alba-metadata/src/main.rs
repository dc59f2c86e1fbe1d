//! The metadata daemon as a program of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    alba_core::daemon::main::<alba_metadata::MetadataDaemon>(std::env::args_os())
}
