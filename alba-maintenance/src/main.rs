//! The `alba-maintenance` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    alba_maintenance::main(std::env::args_os())
}
