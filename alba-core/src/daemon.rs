//! What all daemons share at start and stop: arguments, configuration, logs, signals, health, metrics.
//!
//! A daemon implements [`Daemon`] and hands its arguments to [`main`]. Signals: TERM and INT ask it to stop (a second
//! one ends it at once), and after [`DRAIN`] it is ended whatever it still does; HUP reads the configuration again,
//! applies its `log_level` and hands the rest to the daemon ([`Context::changes`]). Exit codes: 0 stopped as asked, 1 failed at run time, 2 wrong arguments or configuration.
//!
//! Beside its own keys every daemon's configuration has `scheduling`, `log_level` and `log_format`; the arguments of the same names
//! win over them.

pub mod allocator;
mod args;
mod changes;
mod health;
mod http;
mod logs;
mod pages;
mod stop;

use std::ffi::OsString;
use std::future::Future;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::num::NonZero;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};

pub use args::Shared;
pub use changes::{Changes, Changing};
pub use health::{Health, Readiness};
pub use pages::Pages;
pub use stop::{StopSignal, Stopper};

use crate::config;
use crate::env::{Deadline, Env, real, within};
use crate::erasure::kernel::Kernel;
use args::{Arguments, Outcome, Scheduling};
use logs::Logs;

/// How long a daemon may finish what it has begun after it was asked to stop.
pub const DRAIN: Duration = Duration::from_secs(10);

/// The same when the process that started it is gone: its successor needs the ports.
const ORPHAN_DRAIN: Duration = Duration::from_secs(2);

/// How long blocking work may hold up the end of the process.
const RUNTIME_END: Duration = Duration::from_secs(1);

/// Threads of a daemon, which never wait for anything but work.
///
/// Each one more makes others wake up to look whether they can help, and that costs more than it brings where a daemon is one of many
/// on its machine: with one of each for 12 OSDs on two processors, slices beside uploads took a fifth less, and uploads a tenth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads {
    /// For small requests, and for everything in daemons that give way.
    pub small: NonZero<usize>,
    /// For large ones.
    pub bulk: NonZero<usize>,
}

impl Threads {
    /// One for `small` processors each and one for `bulk` each; one at least, and no more than `most`.
    pub fn one_for(processors: usize, small: usize, bulk: usize, most: usize) -> Self {
        let one_for =
            |each: usize| NonZero::new((processors / each.max(1)).min(most)).unwrap_or(NonZero::<usize>::MIN);
        Self { small: one_for(small), bulk: one_for(bulk) }
    }
}

/// A program that runs until it is told to stop.
pub trait Daemon: Sized {
    /// Its keys; with `#[serde(deny_unknown_fields)]`. `log_level`, `log_format` and `scheduling` belong to all daemons.
    type Config: DeserializeOwned + Serialize + Send + Sync + 'static;

    /// Its name for arguments, logs and environment variables, such as `proxy` or `asd-server`.
    const NAME: &'static str;

    /// What it is, in one line.
    const ABOUT: &'static str;

    /// Is all its work such that clients of other daemons should go first, whatever they ask for?
    const GIVES_WAY: bool = false;

    /// Do its small requests go before everything else on the machine, unless the key `scheduling` is `normal`, where the system allows it?
    const GOES_BEFORE_ALL: bool = false;

    /// How many threads it has on a machine with so many processors.
    fn threads(processors: NonZero<usize>) -> Threads {
        Threads { small: processors, bulk: processors }
    }

    /// Checks what types cannot: the text of an error says which key and what to do.
    fn check(config: &Self::Config) -> Result<(), String>;

    /// Where it serves `/metrics`, `/health/live`, `/health/ready` and `/config`; none: nowhere.
    fn metrics_listen(config: &Self::Config) -> Option<SocketAddr>;

    /// Serves until [`Context::stop`], finishes what it has begun and returns. It says when it is ready to
    /// [`Context::health`].
    fn run(config: Self::Config, context: Context) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// What a running daemon gets.
#[derive(Clone)]
pub struct Context {
    /// The outside.
    pub env: Env,
    /// Says when to stop.
    pub stop: StopSignal,
    /// Tells others whether it can serve.
    pub health: Health,
    /// Its configuration, each time it was read again. What can change live is applied, the rest waits for a restart.
    pub changes: Changes,
    /// What it serves as JSON beside health and metrics.
    pub pages: Pages,
}

impl Context {
    /// A context for a daemon inside another process (tests), and what stops it.
    pub fn new(env: Env) -> (Self, Stopper) {
        let (context, stopper, _) = Self::with_changes(env);
        (context, stopper)
    }

    /// The same, and what hands it new configurations.
    pub fn with_changes(env: Env) -> (Self, Stopper, Changing) {
        let (stopper, stop) = StopSignal::pair();
        let (changing, changes) = Changes::pair();
        (Self { env, stop, health: Health::default(), changes, pages: Pages::default() }, stopper, changing)
    }
}

/// Runs a daemon from its arguments (the first is the program's name) to its end.
pub fn main<D: Daemon>(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::parse(args, D::NAME, D::ABOUT) {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    if let Err(error) = Kernel::forced() {
        return complain(D::NAME, &error.to_string(), 2);
    }
    let (config, shared) = match arguments.load::<D>() {
        Ok(Outcome::Run(config, shared)) => (config, shared),
        Ok(Outcome::Checked(text)) => return finish(print(&text)),
        Err(message) => return complain(D::NAME, &message, 2),
    };
    let logs = match Logs::start(&shared) {
        Ok(logs) => logs,
        Err(message) => return complain(D::NAME, &message, 2),
    };
    let threads = D::threads(real::processors());
    let before_all = go_before_all::<D>(shared.scheduling);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().worker_threads(threads.small.get()).thread_name(D::NAME);
    let workers = if D::GIVES_WAY {
        runtime.on_thread_start(real::urgency::stand_aside);
        None
    } else {
        let (workers, start) = real::urgency::starting(threads.small.get());
        runtime.on_thread_start(start);
        Some(workers)
    };
    let runtime = match runtime.build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(D::NAME, &format!("cannot start its threads: {error}"), 1),
    };
    if workers.is_some_and(|workers| !workers.wait()) {
        tracing::warn!("threads for small requests start late: others may go first in their place");
    }
    let ended = runtime.block_on(serve::<D>(config, arguments, logs, threads.bulk, before_all));
    runtime.shutdown_timeout(RUNTIME_END);
    match ended {
        Ok(code) => code,
        Err(error) => complain(D::NAME, &format!("{error:#}"), 1),
    }
}

/// As the key `scheduling` says; false where small requests do not go before all. Whoever asked for that is told why not.
fn go_before_all<D: Daemon>(scheduling: Scheduling) -> bool {
    let asked = scheduling == Scheduling::RealTime;
    if scheduling == Scheduling::Normal || !D::GOES_BEFORE_ALL {
        if asked {
            tracing::warn!(
                "scheduling = \"real-time\" changes nothing here: it is for proxies and storage daemons"
            );
        }
        return false;
    }
    let may = real::urgency::go_before_all();
    if may {
        tracing::info!("threads for small requests have a real-time priority");
    } else if asked {
        tracing::warn!(
            "scheduling = \"real-time\", but the system does not allow it: run as root, or give the unit LimitRTPRIO=1"
        );
    } else {
        tracing::info!("threads for small requests have no real-time priority: the system does not allow it");
    }
    may
}

async fn serve<D: Daemon>(
    config: D::Config,
    arguments: Arguments,
    logs: Logs,
    bulk_threads: NonZero<usize>,
    before_all: bool,
) -> anyhow::Result<ExitCode> {
    let mut env = real::env_with(bulk_threads);
    if D::GIVES_WAY {
        env.bulk = env.aside.clone();
    }
    let (context, stopper, changing) = Context::with_changes(env.clone());
    // Handlers first: a signal during start stops it in order, too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let parent = arguments.die_with_parent.then(|| watch_parent(&env));
    let _http = match D::metrics_listen(&config) {
        None => None,
        Some(at) => {
            // Whoever reads a histogram spins until those who write to it are done: a thread that goes before these would spin for long.
            let spawn = if before_all { env.bulk.clone() } else { env.spawn.clone() };
            let env = Env { spawn, ..env.clone() };
            Some(http::start(&env, at, &config, context.health.clone(), context.pages.clone()).await?)
        }
    };
    let erasure_kernel = Kernel::best().name();
    tracing::info!(daemon = D::NAME, version = env!("CARGO_PKG_VERSION"), erasure_kernel, "starting");
    let mut run = Box::pin(D::run(config, context.clone()));
    let drain = loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break DRAIN,
            _ = interrupt.recv() => break DRAIN,
            () = gone(parent.as_ref()) => break ORPHAN_DRAIN,
            _ = hang_up.recv() => match arguments.load::<D>() {
                Ok(Outcome::Run(config, shared)) => {
                    logs.reload(&shared);
                    changing.hand_over(config);
                }
                Ok(Outcome::Checked(_)) => {}
                Err(error) => tracing::error!(%error, "configuration not reloaded; the old one stays"),
            },
            ended = &mut run => return ended.map(|()| ExitCode::SUCCESS),
        }
    };
    tracing::info!(daemon = D::NAME, "stopping");
    context.health.set_not_ready("stopping");
    stopper.stop();
    let deadline = Deadline::after(env.clock.as_ref(), drain);
    let rest = async {
        tokio::select! {
            biased;
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            ended = &mut run => Some(ended),
        }
    };
    match within(env.clock.as_ref(), deadline, rest).await {
        Ok(Some(ended)) => ended.map(|()| ExitCode::SUCCESS),
        Ok(None) => {
            tracing::warn!("told twice to stop: ended at once");
            Ok(ExitCode::from(1))
        }
        Err(_) => {
            tracing::warn!(seconds = drain.as_secs(), "not drained in time: ended with requests in flight");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Gives a signal once standard input ends: the process that started this one holds its other end, and the kernel closes
/// it however that process dies.
pub fn watch_parent(env: &Env) -> StopSignal {
    let (stopper, parent) = StopSignal::pair();
    env.spawn.run_blocking(Box::new(move || {
        let mut sink = [0; 64];
        let mut input = std::io::stdin().lock();
        loop {
            match input.read(&mut sink) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        stopper.stop();
    }));
    parent
}

/// Never, when there is no parent to watch.
async fn gone(parent: Option<&StopSignal>) {
    match parent {
        Some(parent) => parent.wait().await,
        None => std::future::pending().await,
    }
}

fn print(text: &str) -> std::io::Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes())
}

fn finish(printed: std::io::Result<()>) -> ExitCode {
    // A reader that went away (`| head`) is no failure of ours.
    drop(printed);
    ExitCode::SUCCESS
}

/// One line on standard error, and the exit code. Where even that cannot be written, the code says it.
fn complain(name: &str, message: &str, code: u8) -> ExitCode {
    drop(writeln!(std::io::stderr().lock(), "{name}: {message}"));
    ExitCode::from(code)
}

/// The environment as [`config::Sources`] wants it. Names or values that are no text cannot be ours.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The effective configuration, masked, as TOML with the shared keys in front.
fn effective<C: Serialize>(config: &C, shared: &Shared) -> Result<toml::Table, toml::ser::Error> {
    let mut table = config::masked(config)?;
    table.insert("log_level".to_owned(), toml::Value::String(shared.log_level.clone()));
    table.insert("log_format".to_owned(), toml::Value::String(shared.log_format.to_string()));
    table.insert("scheduling".to_owned(), toml::Value::String(shared.scheduling.to_string()));
    Ok(table)
}

#[cfg(test)]
mod tests;
