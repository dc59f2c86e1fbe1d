//! Hosts for one test on one machine: each has a network, a file system and a name of its own, made of namespaces.
//!
//! They are processes that hold their namespaces and end when the test does, however that ends; nothing has a name that the
//! machine could keep. Their addresses exist between them only, so that they may be any.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cluster::{output_within, tail};
use crate::process::{self, Process};
use crate::repository::root;

/// How long one block of commands may take.
const BLOCK: Duration = Duration::from_secs(120);

/// What a machine must allow, tried in namespaces that are gone when it ends.
const PROBE: &str = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w \
     && mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w /etc \
     && hostname probe && ip link add probe type bridge && ip link add one type veth peer name other \
     && command -v setpriv && command -v runuser && command -v useradd && command -v findmnt";

/// Why hosts cannot be made here.
pub fn impossible() -> Option<String> {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--uts", "--propagation", "private", "sh", "-c", PROBE]);
    match command.output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Some(if said.is_empty() { format!("a tool is missing ({})", output.status) } else { said })
        }
        Err(error) => Some(format!("unshare cannot be run: {error}")),
    }
}

/// The hosts and what connects them. Nothing of them outlives this.
pub struct Hosts {
    directory: PathBuf,
    owner: String,
    program: PathBuf,
    switch: Anchor,
    hosts: BTreeMap<String, Host>,
    env: Vec<(String, String)>,
}

struct Host {
    anchor: Anchor,
    /// For its files and its daemons' logs.
    directory: PathBuf,
}

impl Host {
    /// Process ids and logs of its daemons.
    fn state(&self) -> PathBuf {
        self.directory.join("state")
    }
}

/// A process that holds namespaces until the other end of its standard input is closed.
struct Anchor(Child);

impl Anchor {
    fn start(mut command: Command, owner: &str) -> Self {
        let mut child = command
            .env(process::OWNER, owner)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line != "ready\n" {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("{command:?}: {line}{said}");
        }
        Self(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Hosts {
    /// Hosts of these names and addresses, with the `alba` program installed. All are in one network of 24 bits.
    pub fn start(name: &str, program: &str, addresses: &[(&str, &str)]) -> Self {
        let directory = tempfile::Builder::new().prefix(&format!("alba-{name}-")).tempdir().unwrap().keep();
        // Daemons run as another user.
        fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let owner = process::owner(&directory.to_string_lossy());
        let mut switch = Command::new("unshare");
        let bridge =
            "ip link add switch type bridge && ip link set switch up && echo ready && exec cat > /dev/null";
        switch.args(["--net", "sh", "-c", bridge]);
        let switch = Anchor::start(switch, &owner);
        let (hosts, env) = (BTreeMap::new(), Vec::new());
        let mut all = Self { directory, owner, program: program.into(), switch, hosts, env };
        fs::create_dir(all.directory.join("addresses")).unwrap();
        for (name, address) in addresses {
            all.add(name, address);
        }
        all
    }

    /// An environment variable of everything that runs on the hosts from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    fn add(&mut self, name: &str, address: &str) {
        let directory = self.directory.join(name);
        fs::create_dir_all(directory.join("state")).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--net", "--mount", "--uts", "--propagation", "private", "bash"])
            .arg(here("setup.sh"))
            .arg(name)
            .arg(&directory)
            .arg(&self.program)
            .arg(root())
            .arg(here(""));
        let host = Host { anchor: Anchor::start(command, &self.owner), directory };
        let pid = host.anchor.pid();
        let state = host.state();
        fs::write(self.directory.join("addresses").join(address), format!("{pid} {}\n", state.display()))
            .unwrap();
        self.hosts.insert(name.to_owned(), host);
        self.on_switch(&format!(
            "ip link add {name} type veth peer name eth0 netns {pid} && ip link set {name} master switch up"
        ));
        let set = format!("ip address add {address}/24 dev eth0 && ip link set eth0 up");
        let output = self.run(name, &set);
        assert!(output.status.success(), "{output:?}");
    }

    fn on_switch(&self, script: &str) {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.switch.0.id().to_string(), "--net", "sh", "-ec", script]);
        let output = output_within(command, BLOCK);
        assert!(output.status.success(), "{script}: {output:?}");
    }

    /// From now on nothing comes from this host or to it. Nobody is told: its link stays up.
    pub fn cut_off(&self, host: &str) {
        self.on_switch(&format!("ip link set {host} nomaster"));
    }

    /// Everything comes through again.
    pub fn reconnect(&self, host: &str) {
        self.on_switch(&format!("ip link set {host} master switch"));
    }

    fn host(&self, name: &str) -> &Host {
        self.hosts.get(name).unwrap_or_else(|| panic!("there is no host {name}"))
    }

    /// Runs commands as root's login shell on a host would. The first that fails ends them.
    pub fn run(&self, name: &str, script: &str) -> Output {
        let host = self.host(name);
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &host.anchor.pid(), "--net", "--mount", "--uts", "bash", "--login", "-c"])
            .arg(format!("set -eu -o pipefail\ncd\n{script}"))
            .env(process::OWNER, &self.owner)
            .env("HOME", "/root")
            .env("ALBA_TEST_STATE", host.state())
            .env("ALBA_TEST_HOSTS", self.directory.join("addresses"))
            .env_remove("ALBA_CONFIG")
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        output_within(command, BLOCK)
    }

    /// The same of what must succeed; gives its standard output.
    pub fn must(&self, name: &str, script: &str) -> String {
        let output = self.run(name, script);
        let (said, wrong) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}: {script}\n{}\n{said}{wrong}", output.status);
        said.into_owned()
    }

    /// Writes a file of a host.
    pub fn write(&self, name: &str, path: &str, text: &str) {
        let (directory, _) = path.rsplit_once('/').unwrap();
        self.must(
            name,
            &format!("mkdir -p '{directory}'\ncat > '{path}' <<'END OF FILE'\n{text}END OF FILE\n"),
        );
    }

    /// Runs a future on a thread in a host's network; files are the machine's.
    pub fn spawn<F: Future<Output = T>, T: Send + 'static>(
        &self,
        name: &str,
        make: impl FnOnce() -> F + Send + 'static,
    ) -> JoinHandle<T> {
        let network = File::open(format!("/proc/{}/ns/net", self.host(name).anchor.pid())).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            // Threads that it starts are in the network of the one that starts them: this one.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(make())
        })
    }

    /// Where a test may keep files that daemons read and write, under the same name on all hosts.
    pub fn exchange(&self) -> PathBuf {
        let directory = self.directory.join("exchange");
        if !directory.exists() {
            fs::create_dir(&directory).unwrap();
            fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        }
        directory
    }

    /// What the daemons of a host said last.
    pub fn logs(&self, name: &str) -> String {
        let mut logs = crate::repository::files(&self.host(name).state(), ".log");
        logs.sort();
        let tails = logs.iter().map(|log| format!("{}:\n{}\n", log.display(), tail(log)));
        tails.collect()
    }

    fn processes(&self) -> Vec<Process> {
        process::owned(&self.owner)
    }
}

/// A file that stands beside this one.
fn here(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/hosts").join(file)
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // A panic in here while the test panics would abort the other tests.
        for _ in 0..200 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            left.iter().for_each(|process| process.signal(Signal::KILL));
            std::thread::sleep(Duration::from_millis(25));
        }
        // The namespaces end with their last process, and with them all mounts below the directory.
        self.hosts.clear();
        if std::thread::panicking() || std::env::var_os("ALBA_KEEP_TEST_DATA").is_some() {
            eprintln!("data and logs are kept in {}", self.directory.display());
        } else {
            process::remove_test_directory(&self.directory);
        }
    }
}
