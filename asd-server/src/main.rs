//! The program `asd-server`.

use std::process::ExitCode;

fn main() -> ExitCode {
    asd_server::main(std::env::args_os())
}
