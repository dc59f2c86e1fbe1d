//! The `alba` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    alba_cli::main(std::env::args_os())
}
