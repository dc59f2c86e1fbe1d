//! Runs the processes of a cluster: starts them, restarts those that end, stops all within a bounded time.
//!
//! Each child holds the other end of a pipe of ours as its standard input and stops when it closes: the kernel closes it
//! however this process dies, so that nothing outlives it. Children are in process groups of their own: the terminal's
//! Ctrl-C reaches only us, and we stop them in order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alba_core::daemon::{DRAIN, StopSignal};
use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Deadline, Env, files, within};
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

use super::table::{self, Identity, Processes, Running};
use crate::answer::note;
use crate::error::CliError;

/// First pause before a restart; doubles up to [`LONGEST_PAUSE`] (interfaces §2).
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Whoever ran for so long starts again with the first pause.
const STEADY: Duration = Duration::from_secs(30);

/// A child has [`DRAIN`] to stop, and this to notice.
const GRACE: Duration = DRAIN.saturating_add(Duration::from_secs(2));

/// A log beyond this many bytes is put aside at the next start, replacing the one that was put aside before.
const LONGEST_LOG: u64 = 16 << 20;

/// How to run a process.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) args: Vec<OsString>,
    pub(super) log: PathBuf,
    pub(super) metrics: std::net::SocketAddr,
}

/// Something that happened to a process.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) name: String,
    pub(super) how: String,
}

/// All processes under supervision.
pub(super) struct Supervisor {
    env: Env,
    shared: Arc<Shared>,
    stop: watch::Sender<Stop>,
    tasks: Vec<(AbortOnDrop, watch::Receiver<bool>)>,
    events: mpsc::Sender<Ended>,
}

struct Shared {
    dir: PathBuf,
    executable: PathBuf,
    restart: bool,
    table: Mutex<Processes>,
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    Drain,
    Kill,
}

impl Supervisor {
    /// Of the cluster in `dir`. Ends of processes are told to the receiver.
    pub(super) fn new(
        env: Env,
        dir: &Path,
        restart: bool,
    ) -> Result<(Self, mpsc::Receiver<Ended>), CliError> {
        let executable = std::env::current_exe()
            .map_err(|error| CliError::failure(format!("cannot find this program's own file: {error}")))?;
        // Replaced by a newer build while it runs: the kernel still has the old one.
        let executable = if executable.exists() { executable } else { PathBuf::from("/proc/self/exe") };
        let own = Running { identity: Identity::of(std::process::id()), metrics: None };
        let table = Mutex::new(Processes::from([(table::SUPERVISOR.to_owned(), own)]));
        let shared = Arc::new(Shared { dir: dir.to_owned(), executable, restart, table });
        shared.keep_table()?;
        // Told to whoever looks; nobody has to, once the cluster is up.
        let (events, ended) = mpsc::channel(64);
        let (stop, _) = watch::channel(Stop::No);
        Ok((Self { env, shared, stop, tasks: Vec::new(), events }, ended))
    }

    /// Starts a process and watches over it.
    pub(super) fn start(&mut self, program: Program) -> Result<(), CliError> {
        let child = self.shared.spawn(&program)?;
        let (done, finished) = watch::channel(false);
        let keeper = Keeper {
            env: self.env.clone(),
            shared: self.shared.clone(),
            stop: self.stop.subscribe(),
            events: self.events.clone(),
            program,
        };
        let task = async move {
            keeper.run(child).await;
            done.send_replace(true);
        };
        let handle = self.env.spawn.spawn("keeper", Box::pin(task)).abort_on_drop();
        self.tasks.push((handle, finished));
        Ok(())
    }

    /// The processes as they run now.
    pub(super) fn processes(&self) -> Processes {
        self.shared.lock().clone()
    }

    /// Stops all. Returns once none is left, or after a bounded time.
    pub(super) async fn stop(&mut self, hurry: &StopSignal) {
        self.stop.send_replace(Stop::Drain);
        let clock = self.env.clock.clone();
        let deadline = Deadline::after(clock.as_ref(), GRACE);
        let drained = async {
            tokio::select! {
                biased;
                () = wait_all(&mut self.tasks) => {}
                () = hurry.wait() => {}
            }
        };
        if within(clock.as_ref(), deadline, drained).await.is_err() {
            note("alba: some processes did not stop in time and are killed");
        }
        self.stop.send_replace(Stop::Kill);
        let deadline = Deadline::after(clock.as_ref(), Duration::from_secs(5));
        // After a kill only the kernel can be slow.
        let _ = within(clock.as_ref(), deadline, wait_all(&mut self.tasks)).await;
        self.shared.lock().clear();
        drop(self.shared.keep_table());
    }
}

async fn wait_all(tasks: &mut [(AbortOnDrop, watch::Receiver<bool>)]) {
    for (_, finished) in tasks {
        // An error: the task is gone, and with it its child.
        drop(finished.wait_for(|done| *done).await);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Running>> {
        // Only whole rows are put in or taken out.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_table(&self) -> Result<(), CliError> {
        // Written under the lock: two writers would use the same temporary file.
        table::write(&self.dir, &self.lock())
    }

    fn spawn(&self, program: &Program) -> Result<Child, CliError> {
        let failed = |error: io::Error| CliError::failure(format!("cannot start {}: {error}", program.name));
        let log = files::append_log(&program.log, LONGEST_LOG).map_err(failed)?;
        let child = Command::new(&self.executable)
            .args(&program.args)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        if let Some(pid) = child.id() {
            let running = Running { identity: Identity::of(pid), metrics: Some(program.metrics) };
            self.lock().insert(program.name.clone(), running);
            self.keep_table()?;
        }
        Ok(child)
    }
}

/// Keeps one process running.
struct Keeper {
    env: Env,
    shared: Arc<Shared>,
    stop: watch::Receiver<Stop>,
    events: mpsc::Sender<Ended>,
    program: Program,
}

impl Keeper {
    async fn run(mut self, mut child: Child) {
        let mut pause = FIRST_PAUSE;
        loop {
            // Held for as long as the child is to live: waiting for it would close its standard input.
            let _parent = child.stdin.take();
            let clock = self.env.clock.clone();
            let started = clock.now();
            tokio::select! {
                biased;
                () = asked(&mut self.stop, Stop::Drain) => return self.end(child).await,
                status = child.wait() => self.tell(&status),
            }
            if !self.shared.restart {
                self.shared.lock().remove(&self.program.name);
                drop(self.shared.keep_table());
                return;
            }
            if clock.now().since(started) >= STEADY {
                pause = FIRST_PAUSE;
            }
            child = loop {
                let again = clock.now().plus(pause);
                pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
                tokio::select! {
                    biased;
                    () = asked(&mut self.stop, Stop::Drain) => return,
                    () = clock.sleep_until(again) => {}
                }
                match self.shared.spawn(&self.program) {
                    Ok(child) => break child,
                    Err(error) => note(&format!("alba: {error}; trying again")),
                }
            };
        }
    }

    fn tell(&self, status: &io::Result<ExitStatus>) {
        let how = match status {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let next = if self.shared.restart { "restarting it" } else { "it stays down (--no-restart)" };
        let ended = Ended { name: self.program.name.clone(), how };
        note(&format!(
            "alba: {} ended ({}); {next}. Its log: {}",
            ended.name,
            ended.how,
            self.program.log.display()
        ));
        // Nobody looks any more once the cluster is up.
        drop(self.events.try_send(ended));
    }

    /// TERM, then KILL when it is time.
    async fn end(&mut self, mut child: Child) {
        if let Some(pid) = child.id() {
            let identity = Identity::of(pid);
            identity.signal(Signal::TERM);
            // A stopped process handles no signal but KILL.
            identity.signal(Signal::CONT);
        }
        tokio::select! {
            biased;
            ended = child.wait() => drop(ended),
            () = asked(&mut self.stop, Stop::Kill) => drop(child.kill().await),
        }
    }
}

/// Returns once at least `stop` is asked for; at once when the supervisor is gone.
async fn asked(signal: &mut watch::Receiver<Stop>, stop: Stop) {
    drop(signal.wait_for(|now| *now == Stop::Kill || *now == stop).await);
}
