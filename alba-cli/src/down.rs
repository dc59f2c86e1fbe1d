//! `alba down`: stops a local cluster, whoever started it.

use std::path::PathBuf;
use std::time::Duration;

use alba_core::env::files;
use clap::Args;
use rustix::process::Signal;
use serde_json::json;

use crate::answer::{Answer, note};
use crate::error::CliError;
use crate::session::Session;
use crate::up::table::{self, Identity};
use crate::up::wait_ended;

/// The supervisor stops its processes within 17 s (their 10 s, and for those that do not); a little more.
const PATIENCE: Duration = Duration::from_secs(20);

/// After a kill only the kernel can be slow.
const AFTER_KILL: Duration = Duration::from_secs(5);

/// Stop the cluster that `alba up` runs in a data directory
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba down --data-dir ./alba-data")]
pub(crate) struct Down {
    /// The cluster's data directory
    #[arg(long, value_name = "DIR", default_value = "./alba-data")]
    data_dir: PathBuf,
}

impl Down {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let dir = &self.data_dir;
        let lock = dir.join("lock");
        if !lock.exists() {
            return Err(CliError::usage(format!(
                "there is no cluster in {}; give --data-dir DIR",
                dir.display()
            )));
        }
        let processes = table::read(dir)?;
        let all: Vec<Identity> = processes.values().map(|running| running.identity).collect();
        let running = all.iter().filter(|identity| identity.is_alive()).count();
        let held = files::try_lock(&lock).map_err(|error| CliError::file("lock", &lock, &error))?;
        if held.is_some() && running == 0 {
            return answer(0, format!("no cluster is running in {}", dir.display()));
        }
        match processes.get(table::SUPERVISOR).filter(|running| running.identity.is_alive()) {
            Some(supervisor) => supervisor.identity.signal(Signal::TERM),
            // Killed: what it left notices by itself, or is told now.
            None => all.iter().for_each(|identity| identity.signal(Signal::TERM)),
        }
        if !wait_ended(&session.env, &all, PATIENCE).await {
            note("alba: some processes did not stop in time and are killed");
            all.iter().for_each(|identity| identity.signal(Signal::KILL));
            if !wait_ended(&session.env, &all, AFTER_KILL).await {
                return Err(CliError::failure(
                    "some processes cannot be killed; see processes.json in the data directory",
                ));
            }
        }
        answer(running, format!("stopped the cluster in {} ({running} processes)", dir.display()))
    }
}

fn answer(stopped: usize, text: String) -> Result<Answer, CliError> {
    Answer::new(json!({ "stopped": stopped }), text)
}
