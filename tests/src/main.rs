//! The `alba` binary as the process tests start it: the same program, built with the tests, which ends by itself when the
//! test that started it is gone.
#![allow(clippy::disallowed_methods, reason = "test code, outside of what is simulated")]

use std::process::ExitCode;

fn main() -> ExitCode {
    alba_tests::process::end_with_owner();
    alba_cli::main(std::env::args_os())
}
