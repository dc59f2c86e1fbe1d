//! What the commands beside the daemon share: arguments, a runtime, exit codes.

use std::ffi::OsString;
use std::future::Future;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

/// What a command ends with.
pub(crate) struct Report {
    /// For standard output.
    pub(crate) text: String,
    /// Did it find what it was looking for wrong?
    pub(crate) failed: bool,
}

impl Report {
    pub(crate) fn good(text: String) -> Self {
        Self { text, failed: false }
    }
}

/// Runs a command. Exit codes: 0 all is well, 1 something is not or it could not be done, 2 wrong arguments.
pub(crate) fn run<A: Parser, F: Future<Output = anyhow::Result<Report>>>(
    args: impl IntoIterator<Item = OsString>,
    work: impl FnOnce(A) -> F,
) -> ExitCode {
    let arguments = match A::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Where it cannot be printed, the exit code says it.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let ended = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")
        .and_then(|runtime| runtime.block_on(work(arguments)));
    match ended {
        Ok(report) => {
            drop(std::io::stdout().lock().write_all(report.text.as_bytes()));
            ExitCode::from(u8::from(report.failed))
        }
        Err(error) => {
            drop(writeln!(std::io::stderr().lock(), "{}: {error:#}", A::command().get_name()));
            ExitCode::from(1)
        }
    }
}
