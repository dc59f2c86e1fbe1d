//! The commands beside the daemon: `init`, `join`, `backup`, `restore`, `fsck`, `export`.

mod begin;
mod offline;
mod online;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use alba_core::config::{Document, Sources, Texts};
use alba_core::daemon::Daemon;
use alba_core::env::{Env, real};
use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::backup::BackupError;
use crate::daemon::{MetadataConfig, MetadataDaemon};

pub use offline::restore_file;
pub use online::backup_to_file;

/// Does this word name a command?
pub(crate) fn is_command(word: &str) -> bool {
    matches!(word, "init" | "join" | "backup" | "restore" | "fsck" | "export")
}

#[derive(Debug, Parser)]
#[command(name = "alba-metadata", version, about = "First steps, backups and checks of metadata groups")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the configuration of a first server and make its data directory
    Init(begin::Init),
    /// Check the configuration of a server that is added and make its data directory
    Join(begin::Join),
    /// Write one state of a group that runs to a file
    Backup(online::Backup),
    /// Make a group of a backup, in the data directory of a server that does not run
    Restore(offline::Restore),
    /// Make every counter and index of a group again and say which differ
    Fsck(offline::Fsck),
    /// Write a group as JSON lines
    Export(offline::Export),
}

/// Runs a command. Exit codes: 0 all is well, 1 differences were found or it could not be done, 2 wrong arguments.
pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Where it cannot be printed, the exit code says it.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let env = real::env();
    let ended = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")
        .and_then(|runtime| runtime.block_on(Box::pin(run(&env, arguments.command))));
    match ended {
        Ok(well) => ExitCode::from(u8::from(!well)),
        Err(error) => {
            drop(writeln!(std::io::stderr().lock(), "alba-metadata: {error:#}"));
            ExitCode::from(1)
        }
    }
}

/// Is all well?
async fn run(env: &Env, command: Command) -> anyhow::Result<bool> {
    match command {
        Command::Init(command) => command.run(env).await,
        Command::Join(command) => command.run(env).await,
        Command::Backup(command) => command.run(env).await,
        Command::Restore(command) => command.run(env).await,
        Command::Fsck(command) => command.run(env).await,
        Command::Export(command) => command.run(env).await,
    }
}

fn say(line: &str) {
    // A reader that went away (`| head`) is no failure of ours.
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

/// The daemon's configuration, read as the daemon reads it.
fn configuration(path: &Path) -> anyhow::Result<MetadataConfig> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    let env = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let sources = Sources {
        name: MetadataDaemon::NAME.to_owned(),
        file: Some((path.to_owned(), text)),
        env: env.collect(),
        set: Vec::new(),
    };
    let texts = Texts::new(&sources)?;
    let mut document = Document::parse(&texts)?;
    // The daemon's log and threads are not ours.
    for key in ["log_level", "log_format", "scheduling"] {
        let _: Option<String> = document.take(key)?;
    }
    let config: MetadataConfig = document.into_typed()?;
    MetadataDaemon::check(&config).map_err(anyhow::Error::msg)?;
    Ok(config)
}

fn of_file<T>(path: &Path, result: Result<T, BackupError>) -> anyhow::Result<T> {
    result.with_context(|| path.display().to_string())
}
