//! The metadata daemon as a program of its own, with its commands.

use std::process::ExitCode;

fn main() -> ExitCode {
    alba_metadata::main(std::env::args_os())
}
