//! What the program does beside being a daemon: `--list-tasks`, and `--once TASK` for timers of systemd or cron.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use alba_client::Client;
use alba_core::config::{Document, Sources, Texts};
use alba_core::daemon::{self, Daemon};
use alba_core::env::{Env, real};
use anyhow::Context as _;
use clap::Parser;

use crate::agent::{Agent, new_agent_id};
use crate::backend::Backend;
use crate::config::MaintenanceConfig;
use crate::daemon::MaintenanceDaemon;
use crate::schedule::{Rhythm, duration_text};
use crate::tasks;

/// Between two lines about work that goes on.
const TELL_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Parser)]
#[command(
    name = "maintenance",
    version,
    about = "ALBA's maintenance agent, once",
    after_help = "Example:\n  alba maintenance --config maintenance.toml --once gc\n\n\
                  Exit codes: 0 done, 1 a part failed, 2 wrong arguments or configuration. Parts that another agent has \
                  are left to it."
)]
struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override a key of the configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Do each part of this task once, now, and end
    #[arg(long, value_name = "TASK", required_unless_present = "list_tasks")]
    once: Option<String>,
    /// List the tasks, with when they run
    #[arg(long, conflicts_with = "once")]
    list_tasks: bool,
}

/// Runs the program from its arguments (the first is its name) to its end.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let is_ours = |arg: &OsString| {
        let text = arg.to_string_lossy();
        text == "--list-tasks" || text == "--once" || text.starts_with("--once=")
    };
    if !args.iter().any(is_ours) {
        return daemon::main::<MaintenanceDaemon>(args);
    }
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Where it cannot be printed, the exit code says it.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let read = match &arguments.config {
        // To list tasks none is needed.
        None if arguments.list_tasks => Ok(MaintenanceConfig::new(Vec::new())),
        file => configuration::<MaintenanceDaemon>(file.as_deref(), &arguments.set),
    };
    let config = match read {
        Ok(config) => config,
        Err(error) => return complain(&format!("{error:#}"), 2),
    };
    let Some(task) = arguments.once else {
        list(&config);
        return ExitCode::SUCCESS;
    };
    if !tasks::all(&config).iter().any(|known| known.name() == task) {
        return complain(&format!("there is no task {task}; --list-tasks lists them"), 2);
    }
    let ended = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")
        .and_then(|runtime| runtime.block_on(Box::pin(once(&real::env(), config, &task))));
    match ended {
        Ok(well) => ExitCode::from(u8::from(!well)),
        Err(error) => complain(&format!("{error:#}"), 1),
    }
}

/// Is all done that there was to do?
async fn once(env: &Env, config: MaintenanceConfig, task: &str) -> anyhow::Result<bool> {
    let client = Client::connect(env.clone(), config.engine()).await?;
    let backend = Backend::new(env.clone(), client);
    let agent = Agent::new(backend, new_agent_id(env)?, tasks::all(&config), config);
    let once = {
        let mut ends = std::pin::pin!(agent.once(task));
        loop {
            let tick = env.clock.sleep_until(env.clock.now().plus(TELL_EVERY));
            tokio::select! {
                biased;
                once = &mut ends => break once?,
                () = tick => {
                    let running = agent.board().running(task, env.clock.now());
                    if !running.is_empty() {
                        drop(writeln!(std::io::stderr().lock(), "{task}/{running}"));
                    }
                }
            }
        }
    };
    for part in &once.elsewhere {
        say(&format!("{task}/{part}: another agent has it"));
    }
    for (part, error) in &once.failed {
        say(&format!("{task}/{part}: {error}"));
    }
    say(&format!("{task}: {} parts done, {} failed", once.done, once.failed.len()));
    Ok(once.failed.is_empty())
}

fn list(config: &MaintenanceConfig) {
    for task in tasks::all(config) {
        // A configuration that was checked.
        let Ok(settings) = config.settings(task.as_ref()) else { continue };
        let mut when = match &settings.timing.rhythm {
            Rhythm::Every(period) => format!("every {}", duration_text(*period)),
            Rhythm::Cron(cron) => format!("at {:?}", cron.pattern.to_string()),
        };
        if let Some(window) = settings.timing.window {
            when.push_str(&format!(" in {window}"));
        }
        if !settings.enabled {
            when = "switched off".to_owned();
        }
        say(&format!("{:<16} {:<28} {}", task.name(), when, task.about()));
    }
}

fn say(line: &str) {
    // A reader that went away (`| head`) is no failure of ours.
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

fn complain(message: &str, code: u8) -> ExitCode {
    drop(writeln!(std::io::stderr().lock(), "maintenance: {message}"));
    ExitCode::from(code)
}

/// The configuration of an agent's daemon, read as the daemon reads it, for what its program does beside being one.
pub fn configuration<D: Daemon>(file: Option<&Path>, set: &[String]) -> anyhow::Result<D::Config> {
    let file = match file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
            Some((path.to_owned(), text))
        }
    };
    let env = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let name = D::NAME.to_owned();
    let sources = Sources { name, file, env: env.collect(), set: set.to_vec() };
    let texts = Texts::new(&sources)?;
    let mut document = Document::parse(&texts)?;
    // The daemon's log and threads are not ours.
    for key in ["log_level", "log_format", "scheduling"] {
        let _: Option<String> = document.take(key)?;
    }
    let config: D::Config = document.into_typed()?;
    D::check(&config).map_err(anyhow::Error::msg)?;
    Ok(config)
}
