//! `alba up`: a whole cluster on one machine, as real processes.

mod bootstrap;
mod config_files;
mod detach;
pub(crate) mod plan;
mod ready;
mod supervisor;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alba_client::metadata::MetadataClient;
use alba_core::daemon::{StopSignal, watch_parent};
use alba_core::env::{Deadline, Env, files, within};
use alba_core::ids::LongId;
use clap::Args;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::answer::{Answer, note};
use crate::error::CliError;
use crate::progress;
use crate::session::Session;
use config_files::Paths;
use plan::{Planned, Role, Shape, ShapeArgs};
use supervisor::{Ended, Program, Supervisor};
use table::{Identity, Processes};

/// How long a whole start may take. A cold start takes some seconds; replaying full disks takes longer.
const START: Duration = Duration::from_secs(120);

/// How long processes of a supervisor that was killed may take to notice.
const LEFTOVERS: Duration = Duration::from_secs(15);

/// Start a whole cluster on this machine: metadata, storage daemons, proxy; Ctrl-C stops it
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Example:\n  alba up                              in the foreground, in ./alba-data\n  \
                        alba up --detach --data-dir /tmp/a   in the background; stop it with `alba down --data-dir /tmp/a`"
)]
pub(crate) struct Up {
    /// Where everything is kept; what is there is resumed
    #[arg(long, value_name = "DIR", default_value = "./alba-data")]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    /// Leave processes that end as they are
    #[arg(long)]
    pub(crate) no_restart: bool,
    /// Return once the cluster is ready; `alba down` stops it
    #[arg(long)]
    pub(crate) detach: bool,
    /// This is the background process of --detach
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub(crate) detached: bool,
    /// Stop when standard input ends
    #[arg(long, hide = true)]
    pub(crate) die_with_parent: bool,
}

/// What the ready line says (interfaces §2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// The client configuration.
    pub(crate) config: PathBuf,
    /// For volume drivers.
    pub(crate) proxies: Vec<SocketAddr>,
    /// For clients of our own.
    pub(crate) metadata: Vec<SocketAddr>,
    /// Storage daemons.
    pub(crate) osds: Vec<ReadyOsd>,
    /// All processes.
    pub(crate) processes: Vec<ReadyProcess>,
}

/// A storage daemon of the ready line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReadyOsd {
    pub(crate) long_id: LongId,
    pub(crate) node_id: String,
    pub(crate) port: u16,
    pub(crate) pid: u32,
    pub(crate) metrics: SocketAddr,
}

/// A process of the ready line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReadyProcess {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) metrics: SocketAddr,
}

impl Ready {
    fn answer(&self) -> Result<Answer, CliError> {
        let list = |addresses: &[SocketAddr]| {
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let config = self.config.display();
        let text = format!(
            "The cluster is ready: {} storage daemons, {} processes.\n\n\
             proxies   {}   (ALBA protocol)\n\
             metadata  {}\n\
             config    {config}\n\n\
             Try:\n  \
             alba --config {config} upload-object demo ./README.md readme\n  \
             alba --config {config} download-object demo readme ./copy.md\n  \
             alba --config {config} status\n",
            self.osds.len(),
            self.processes.len(),
            list(&self.proxies),
            list(&self.metadata),
        );
        Answer::new(self, text)
    }
}

impl Up {
    /// Starts the cluster, says that it is ready, and keeps it running until it is told to stop.
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        if self.detach {
            return detach::run(&self, session).await;
        }
        if self.detached {
            detach::leave_terminal()?;
        }
        let stop = stop_signals(&session.env, self.die_with_parent)?;
        let mut cluster = tokio::select! {
            biased;
            started = Cluster::start(&self, &session.env) => started?,
            // Dropped half started: its children are killed with it.
            () = stop.first.wait() => return Err(CliError::failure("stopped before the cluster was ready")),
        };
        let mut answer = cluster.ready.answer()?;
        session.output.print(&answer);
        answer.printed = true;
        stop.first.wait().await;
        note("alba: stopping");
        cluster.supervisor.stop(&stop.second).await;
        Ok(answer)
    }
}

/// Asked once: stop in order. Asked twice: at once.
struct Stops {
    first: StopSignal,
    second: StopSignal,
}

fn stop_signals(env: &Env, die_with_parent: bool) -> Result<Stops, CliError> {
    let failed = |error: std::io::Error| CliError::failure(format!("cannot watch for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let parent = die_with_parent.then(|| watch_parent(env));
    let ((first, one), (second, two)) = (StopSignal::pair(), StopSignal::pair());
    env.spawn.spawn(
        "signals",
        Box::pin(async move {
            let gone = async {
                match parent {
                    Some(parent) => parent.wait().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = gone => {}
            }
            first.stop();
            tokio::select! {
                biased;
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            second.stop();
        }),
    );
    Ok(Stops { first: one, second: two })
}

/// A running cluster. Dropping it kills its processes.
pub(crate) struct Cluster {
    /// What it says.
    pub(crate) ready: Ready,
    supervisor: Supervisor,
    programs: BTreeMap<String, Program>,
    _ended: mpsc::Receiver<Ended>,
    /// Given back after the last process is gone.
    _lock: std::fs::File,
}

impl Cluster {
    /// Starts what `up` describes and waits until it works.
    pub(crate) async fn start(up: &Up, env: &Env) -> Result<Self, CliError> {
        let paths = Paths::create(&up.data_dir)?;
        let lock =
            files::try_lock(&paths.lock()).map_err(|error| CliError::file("lock", &paths.lock(), &error))?;
        let lock = lock.ok_or_else(|| already_running(&paths.root))?;
        let shape = shape(&up.shape, &paths)?;
        let planned = shape.processes().map_err(CliError::usage)?;
        let deadline = env.deadline_in(START);
        end_leftovers(env, &paths.root).await?;
        check_ports(env, &planned).await?;
        keep_shape(&shape, &paths)?;
        let of = |role: Role| planned.iter().filter(move |process| process.role.command() == role.command());
        let metadata: Vec<SocketAddr> = of(Role::Metadata).map(|process| process.listen).collect();
        let proxies: Vec<SocketAddr> = of(Role::Proxy).map(|process| process.listen).collect();
        let client = config_files::client(&paths, proxies.clone(), metadata.clone())?;
        crate::cluster_key::ensure(&paths.cluster_key(), &*env.rng)?;

        let mut programs = BTreeMap::new();
        for process in &planned {
            let program = config_files::program(&paths, process, &shape, &metadata)?;
            programs.insert(process.name.clone(), program);
        }
        let start = |supervisor: &mut Supervisor, process: &Planned| match programs.get(&process.name) {
            Some(program) => supervisor.start(program.clone()),
            None => Err(CliError::failure(format!("{} was not planned", process.name))),
        };
        let (mut supervisor, mut ended) = Supervisor::new(env.clone(), &paths.root, !up.no_restart)?;
        let bar = progress::spinner();
        let begin = async {
            for process in of(Role::Metadata).chain(of(Role::Asd { node: 0 })) {
                start(&mut supervisor, process)?;
            }
            bar.set_message("waiting for the metadata servers");
            for process in of(Role::Metadata) {
                ready::wait(env, &process.name, process.metrics, deadline).await?;
            }
            let directory = MetadataClient::of(env, &client)?;
            bootstrap::groups(env, &directory, &metadata, &shape.groups(), deadline).await?;
            let mut osds = Vec::new();
            for process in of(Role::Asd { node: 0 }) {
                bar.set_message(format!("claiming {}", process.name));
                let long_id = match bootstrap::osd(env, &directory, process, deadline).await {
                    Ok(long_id) => long_id,
                    Err(error) => match bootstrap::known(&directory, process, deadline).await? {
                        // A cluster starts without a disk that is broken: that is what it is for.
                        Some(long_id) => {
                            note(&format!("alba: {} is missing: {error}", process.name));
                            long_id
                        }
                        None => return Err(error.while_doing(&process.name)),
                    },
                };
                osds.push((process, long_id));
            }
            bar.set_message("creating namespace demo");
            bootstrap::namespace(&directory, deadline).await?;
            for process in of(Role::Proxy).chain(of(Role::Maintenance)).chain(of(Role::Rebalancer)) {
                start(&mut supervisor, process)?;
            }
            bar.set_message("waiting for the proxy to store and read an object");
            for process in of(Role::Proxy) {
                ready::wait(env, &process.name, process.metrics, deadline).await?;
                bootstrap::probe(env, process.listen, &paths.root, deadline).await?;
            }
            for process in of(Role::Maintenance).chain(of(Role::Rebalancer)) {
                ready::wait(env, &process.name, process.metrics, deadline).await?;
            }
            Ok::<_, CliError>(osds)
        };
        // Whoever ends now will end again: better to say so at once than to wait for a deadline.
        let begun = tokio::select! {
            biased;
            Some(ended) = ended.recv() => Err(CliError::failure(format!("{} ended ({})", ended.name, ended.how))
                .while_doing("the cluster did not start")
                .with_log(&paths.log(&ended.name))),
            begun = begin => begun,
        };
        bar.finish_and_clear();
        let osds = match begun {
            Ok(osds) => osds,
            Err(error) => {
                let (_never, hurry) = StopSignal::pair();
                supervisor.stop(&hurry).await;
                return Err(error);
            }
        };
        let ready = ready_line(paths.client(), proxies, metadata, &osds, &planned, &supervisor.processes());
        Ok(Self { ready, supervisor, programs, _ended: ended, _lock: lock })
    }

    /// Kills a process with SIGKILL: nothing of it can react.
    pub(crate) fn kill(&self, name: &str) -> Result<(), CliError> {
        let processes = self.supervisor.processes();
        let running = processes.get(name).ok_or_else(|| CliError::failure(format!("{name} does not run")))?;
        running.identity.signal(Signal::KILL);
        Ok(())
    }

    /// Starts a process again that has ended, and waits until it can serve.
    pub(crate) async fn start_again(&mut self, name: &str, env: &Env) -> Result<(), CliError> {
        let program = self.programs.get(name);
        let program = program.ok_or_else(|| CliError::failure(format!("there is no {name}")))?.clone();
        let metrics = program.metrics;
        self.supervisor.start(program)?;
        ready::wait(env, name, metrics, env.deadline_in(START)).await
    }

    /// Stops all its processes.
    pub(crate) async fn stop(&mut self) {
        let (_never, hurry) = StopSignal::pair();
        self.supervisor.stop(&hurry).await;
    }
}

fn already_running(root: &Path) -> CliError {
    let root = root.display();
    CliError::failure(format!(
        "a cluster is running in {root} already: `alba status --data-dir {root}` shows it, `alba down --data-dir {root}` stops it"
    ))
}

fn shape(args: &ShapeArgs, paths: &Paths) -> Result<Shape, CliError> {
    let path = paths.shape();
    let last: Option<Shape> = match std::fs::read(&path) {
        Ok(text) => Some(serde_json::from_slice(&text).map_err(|error| {
            CliError::failure(format!("{} is damaged or of another version: {error}", path.display()))
        })?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(CliError::file("read", &path, &error)),
    };
    Shape::new(args, last.as_ref()).map_err(CliError::usage)
}

fn keep_shape(shape: &Shape, paths: &Paths) -> Result<(), CliError> {
    let text = serde_json::to_vec_pretty(shape).map_err(|error| CliError::failure(error.to_string()))?;
    files::replace(&paths.shape(), &text).map_err(|error| CliError::file("write", &paths.shape(), &error))
}

/// Processes of a supervisor that was killed end by themselves; those that do not are killed: the ports and the data are
/// theirs until then.
async fn end_leftovers(env: &Env, root: &Path) -> Result<(), CliError> {
    let left: Vec<Identity> = table::read(root)?.values().map(|running| running.identity).collect();
    if wait_ended(env, &left, LEFTOVERS).await {
        return Ok(());
    }
    left.iter().for_each(|identity| identity.signal(Signal::KILL));
    if wait_ended(env, &left, LEFTOVERS).await {
        return Ok(());
    }
    Err(CliError::failure(
        "processes of an earlier start cannot be ended; see processes.json in the data directory",
    ))
}

/// Waits until none of them is left.
pub(crate) async fn wait_ended(env: &Env, processes: &[Identity], patience: Duration) -> bool {
    let clock = env.clock.as_ref();
    let deadline = Deadline::after(clock, patience);
    let gone = async {
        while processes.iter().any(|identity| identity.is_alive()) {
            ready::pause(clock, deadline.0).await;
        }
    };
    within(clock, deadline, gone).await.is_ok()
}

/// Before anything starts: a taken port is named, with the option that moves it.
async fn check_ports(env: &Env, planned: &[Planned]) -> Result<(), CliError> {
    for process in planned {
        for (address, option) in process.addresses() {
            // Metadata servers listen on UDP.
            let udp = process.role == Role::Metadata && address == process.listen;
            let taken = if udp {
                std::net::UdpSocket::bind(address).err()
            } else {
                env.net.listen(address).await.err()
            };
            if let Some(error) = taken {
                return Err(CliError::failure(format!(
                    "{} needs port {}: {error}. Stop who has it, or move it with {option}",
                    process.name,
                    address.port()
                )));
            }
        }
    }
    Ok(())
}

fn ready_line(
    config: PathBuf,
    proxies: Vec<SocketAddr>,
    metadata: Vec<SocketAddr>,
    osds: &[(&Planned, LongId)],
    planned: &[Planned],
    running: &Processes,
) -> Ready {
    // One that was just restarted has a row again in a moment.
    let pid = |name: &str| running.get(name).map_or(0, |running| running.identity.pid);
    let osds = osds.iter().map(|(process, long_id)| ReadyOsd {
        long_id: long_id.clone(),
        node_id: match process.role {
            Role::Asd { node } => format!("node-{node}"),
            Role::Metadata | Role::Proxy | Role::Maintenance | Role::Rebalancer => String::new(),
        },
        port: process.listen.port(),
        pid: pid(&process.name),
        metrics: process.metrics,
    });
    let processes = planned.iter().map(|process| ReadyProcess {
        name: process.name.clone(),
        pid: pid(&process.name),
        metrics: process.metrics,
    });
    Ready { config, proxies, metadata, osds: osds.collect(), processes: processes.collect() }
}
