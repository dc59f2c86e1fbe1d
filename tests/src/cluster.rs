//! A whole cluster of real processes for one test: own ports, own directory, nothing left behind.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::Signal;
use serde::Deserialize;
use serde_json::Value;

use crate::ports::PortBlock;
use crate::process::{self, Process};
use crate::wait;

/// How long a cluster may take to be ready. Debug builds on two busy cores need a part of it.
const READY: Duration = Duration::from_secs(180);

/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(300);

// Where a fixture's services are in its block of ports.
const PROXY: u16 = 0;
const METADATA: u16 = 10;
const METRICS: u16 = 20;
const ASDS: u16 = 60;

/// What kind of cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `alba` program (or one that is the same): `env!("CARGO_BIN_EXE_alba-under-test")`.
    pub program: PathBuf,
    /// Nodes; with [`Options::osds_per_node`] at most 40 OSDs.
    pub nodes: u16,
    /// OSDs on each.
    pub osds_per_node: u16,
    /// Whether children that die are started again.
    pub restart: bool,
    /// More arguments of `alba up`.
    pub more: Vec<String>,
    /// Environment of all processes: the way to set any configuration key (`ALBA_PROXY__CLIENT__…`).
    pub env: Vec<(String, String)>,
}

impl Options {
    /// 4 nodes with 3 OSDs each; who dies stays dead.
    pub fn new(program: &str) -> Self {
        Self {
            program: program.into(),
            nodes: 4,
            osds_per_node: 3,
            restart: false,
            more: Vec::new(),
            env: Vec::new(),
        }
    }
}

/// What `alba up --to-json` says.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    /// The client configuration.
    pub config: PathBuf,
    /// Where proxies listen.
    pub proxies: Vec<SocketAddr>,
    /// Where metadata servers listen.
    pub metadata: Vec<SocketAddr>,
    /// The storage daemons, in order.
    pub osds: Vec<ReadyOsd>,
    /// All processes.
    pub processes: Vec<ReadyProcess>,
}

/// One storage daemon.
#[derive(Debug, Clone, Deserialize)]
pub struct ReadyOsd {
    /// Its identity.
    pub long_id: String,
    /// Its node.
    pub node_id: String,
    /// Where it listens, on loopback.
    pub port: u16,
    /// Its process.
    pub pid: u32,
}

/// One process.
#[derive(Debug, Clone, Deserialize)]
pub struct ReadyProcess {
    /// Such as `asd-3`.
    pub name: String,
    /// Its id when the cluster became ready.
    pub pid: u32,
    /// Where it serves its metrics.
    pub metrics: SocketAddr,
}

/// A running cluster.
pub struct Cluster {
    options: Options,
    directory: PathBuf,
    ports: PortBlock,
    owner: String,
    up: Option<Child>,
    /// What it said when it became ready last.
    pub ready: Ready,
}

impl Cluster {
    /// Starts one and waits until it is ready. `name` is for its directory.
    pub fn start(name: &str, options: Options) -> Self {
        let directory = tempfile::Builder::new().prefix(&format!("alba-{name}-")).tempdir().unwrap().keep();
        let ports = PortBlock::claim();
        let owner = process::owner(&directory.to_string_lossy());
        let mut cluster = Self {
            options,
            directory,
            ports,
            owner,
            up: None,
            ready: Ready {
                config: PathBuf::new(),
                proxies: Vec::new(),
                metadata: Vec::new(),
                osds: Vec::new(),
                processes: Vec::new(),
            },
        };
        cluster.up();
        cluster
    }

    /// Where the cluster keeps its data and logs.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// What its daemons have logged so far, with their names.
    pub fn logs(&self) -> Vec<(String, String)> {
        let files = fs::read_dir(self.data_dir().join("logs")).unwrap().flatten();
        let logs: Vec<_> = files
            .map(|file| {
                let bytes = fs::read(file.path()).unwrap();
                (
                    file.file_name().to_string_lossy().into_owned(),
                    String::from_utf8_lossy(&bytes).into_owned(),
                )
            })
            .collect();
        assert!(!logs.is_empty(), "nothing was logged");
        logs
    }

    /// A directory for the test's own files.
    pub fn scratch(&self) -> &Path {
        &self.directory
    }

    /// Where the (first) proxy listens.
    pub fn proxy(&self) -> SocketAddr {
        self.ready.proxies[0]
    }

    /// The arguments with which this cluster is started.
    pub fn up_arguments(&self) -> Vec<String> {
        let options = &self.options;
        let mut arguments = vec!["up".to_owned(), "--to-json".to_owned()];
        let mut push = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        push("--data-dir", self.data_dir().to_string_lossy().into_owned());
        push("--nodes", options.nodes.to_string());
        push("--osds-per-node", options.osds_per_node.to_string());
        push("--proxy-port", self.ports.port(PROXY).to_string());
        push("--metadata-base-port", self.ports.port(METADATA).to_string());
        push("--metrics-base-port", self.ports.port(METRICS).to_string());
        push("--asd-base-port", self.ports.port(ASDS).to_string());
        if !options.restart {
            arguments.push("--no-restart".to_owned());
        }
        arguments.extend(options.more.iter().cloned());
        arguments
    }

    /// The program with the fixture's mark, ready to take arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.options.program);
        command.env(process::OWNER, &self.owner).env_remove("ALBA_CONFIG").current_dir(&self.directory);
        command.envs(self.options.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// How many nodes it has when it is started the next time.
    pub fn set_nodes(&mut self, nodes: u16) {
        self.options.nodes = nodes;
    }

    /// Starts (again) on the same data and ports, and waits until it is ready.
    pub fn up(&mut self) {
        assert!(self.up.is_none(), "it is up already");
        let log = self.directory.join("up.log");
        let stderr = File::options().create(true).append(true).open(&log).unwrap();
        let mut child = self
            .command()
            .args(self.up_arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        self.up = Some(child);
        let line = match lines.recv_timeout(READY) {
            Ok(line) => line,
            Err(error) => panic!("alba up gave no line ({error}); the end of its log:\n{}", tail(&log)),
        };
        let answer: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"));
        assert_eq!(answer["success"], Value::Bool(true), "{line}\n{}", tail(&log));
        self.ready = serde_json::from_value(answer["result"].clone())
            .unwrap_or_else(|error| panic!("{error} in the ready line: {line}"));
    }

    /// All its processes that live, `alba up` itself included.
    pub fn processes(&self) -> Vec<Process> {
        process::owned(&self.owner)
    }

    /// The daemons of a kind (`asd-server`, `metadata`, `proxy`, …) that live.
    pub fn daemons(&self, kind: &str) -> Vec<Process> {
        self.processes()
            .into_iter()
            .filter(|process| process.args.get(1).is_some_and(|arg| arg == kind))
            .collect()
    }

    /// The process id of a daemon as it was when the cluster became ready.
    pub fn pid(&self, name: &str) -> u32 {
        let found = self.ready.processes.iter().find(|process| process.name == name);
        found.unwrap_or_else(|| panic!("no process {name} in {:?}", self.ready.processes)).pid
    }

    /// SIGKILL to OSD number `index`; returns when it is dead.
    pub fn kill_osd(&self, index: usize) {
        self.kill(self.ready.osds[index].pid);
    }

    /// SIGKILL to one of its processes; returns when it is dead: what it listened at is free then.
    pub fn kill(&self, pid: u32) {
        process::signal_pid(pid, Signal::KILL);
        self.wait_dead(&[pid]);
    }

    /// Sends a signal to OSD number `index`.
    pub fn signal_osd(&self, index: usize, signal: Signal) {
        process::signal_pid(self.ready.osds[index].pid, signal);
    }

    fn wait_dead(&self, pids: &[u32]) {
        wait::until("killed processes are gone", Duration::from_secs(20), || {
            let alive: Vec<Process> =
                self.processes().into_iter().filter(|process| pids.contains(&process.pid)).collect();
            let dying: Vec<u32> = pids.iter().copied().filter(|pid| process::has_threads(*pid)).collect();
            if alive.is_empty() && dying.is_empty() { Ok(()) } else { Err(format!("{alive:?} {dying:?}")) }
        });
    }

    /// SIGKILL to everything, in the order that `shuffle` makes; the supervisor too. What they listened at is free then.
    pub fn kill_everything(&mut self, shuffle: impl FnOnce(&mut Vec<Process>)) {
        let mut processes = self.processes();
        shuffle(&mut processes);
        for process in &processes {
            process.signal(Signal::KILL);
        }
        let mut killed: BTreeSet<u32> = processes.iter().map(|process| process.pid).collect();
        wait::until("everything is dead", Duration::from_secs(20), || {
            let left = self.processes();
            left.iter().for_each(|process| process.signal(Signal::KILL));
            killed.extend(left.iter().map(|process| process.pid));
            // A process that dies is no longer to be seen as one of these before its sockets are closed.
            let dying: Vec<u32> = killed.iter().copied().filter(|pid| process::has_threads(*pid)).collect();
            if left.is_empty() && dying.is_empty() { Ok(()) } else { Err(format!("{left:?} {dying:?}")) }
        });
        if let Some(mut child) = self.up.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Runs `alba` with the cluster's client configuration.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command();
        command.args(arguments).arg("--config").arg(&self.ready.config);
        output_within(command, COMMAND)
    }

    /// Runs `alba … --to-json`: its result, or its error object.
    pub fn alba(&self, arguments: &[&str]) -> Result<Value, Value> {
        let mut all = arguments.to_vec();
        all.push("--to-json");
        let output = self.run(&all);
        let text = String::from_utf8_lossy(&output.stdout);
        let mut answer: Value = serde_json::from_str(text.trim()).unwrap_or_else(|error| {
            panic!(
                "alba {arguments:?} did not answer with one JSON object ({error}): {text}\n{}",
                String::from_utf8_lossy(&output.stderr)
            )
        });
        if answer["success"] == Value::Bool(true) {
            assert!(output.status.success(), "{arguments:?}: success, but {:?}", output.status);
            Ok(answer["result"].take())
        } else {
            assert!(!output.status.success(), "{arguments:?}: an error, but {:?}", output.status);
            Err(answer["error"].take())
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A panic in here while the test panics would abort the other tests.
        let owner = self.owner.clone();
        for _ in 0..200 {
            let left = process::owned(&owner);
            if left.is_empty() {
                break;
            }
            left.iter().for_each(|process| process.signal(Signal::KILL));
            std::thread::sleep(Duration::from_millis(25));
        }
        if let Some(mut child) = self.up.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() || std::env::var_os("ALBA_KEEP_TEST_DATA").is_some() {
            eprintln!("data and logs are kept in {}", self.directory.display());
        } else {
            process::remove_test_directory(&self.directory);
        }
    }
}

/// Runs a command to its end, or kills it when it takes too long.
pub fn output_within(mut command: Command, patience: Duration) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    match ended.recv_timeout(patience) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            process::signal_pid(pid, Signal::KILL);
            let output = ended.recv().unwrap().unwrap();
            panic!("{command:?} took more than {patience:?}: {}", String::from_utf8_lossy(&output.stderr))
        }
    }
}

/// The lines of a pipe as they come; read on to the end, so that its writer never waits.
fn lines_of(pipe: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            drop(sender.send(line));
        }
    });
    lines
}

/// The last lines of a file.
pub fn tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut last = VecDeque::new();
    for line in text.lines() {
        if last.len() == 40 {
            last.pop_front();
        }
        last.push_back(line);
    }
    Vec::from(last).join("\n")
}
