//! The metadata daemon as a program of its own, with its commands.

use std::process::ExitCode;

/// Rows of a put are some forty small pieces of memory that one thread makes and another gives back: with the system's allocator a sixth of
/// all CPU time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    alba_metadata::main(std::env::args_os())
}
