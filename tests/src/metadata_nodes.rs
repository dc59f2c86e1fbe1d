//! Real metadata daemons that form one set of replicated groups, behind links that a test can cut.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use alba_core::env::{Env, real};
use alba_core::ids::GroupId;
use alba_core::net::rpc::RpcConnection;
use alba_core::wire::rpc::admin::{AdminReply, AdminRequest, GroupStatus};
use alba_core::wire::rpc::{Refusal, Reply, Request};
use rustix::process::Signal;

use crate::cluster::tail;
use crate::links::{Ends, Links};
use crate::ports::PortBlock;
use crate::{process, wait};

/// How long a group may take to have a leader when nothing is wrong with a majority. The promise is seconds; machines that
/// run other tests too are slower.
pub const LEADER: Duration = Duration::from_secs(60);

/// Longest a node may take to say whether it leads.
const ASK: Duration = Duration::from_millis(700);

// Where things are in the block of ports.
const FRONT: u16 = 0;
const BACK: u16 = 10;
const METRICS: u16 = 20;

/// What kind of nodes.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `alba` program: `env!("CARGO_BIN_EXE_alba-under-test")`.
    pub program: PathBuf,
    /// How many nodes.
    pub nodes: u16,
    /// Environment of all of them.
    pub env: Vec<(String, String)>,
}

impl Options {
    /// Three nodes.
    pub fn new(program: &str) -> Self {
        Self { program: program.into(), nodes: 3, env: Vec::new() }
    }
}

/// Running nodes. Nothing of them outlives this.
pub struct MetadataNodes {
    options: Options,
    directory: PathBuf,
    ports: PortBlock,
    owner: String,
    children: Vec<Option<Child>>,
    ends: Vec<Ends>,
    env: Env,
    /// The connections between the nodes and from clients.
    pub links: Links,
}

/// The group that tests put objects into.
pub fn nsm_group() -> GroupId {
    GroupId::new("nsm-0").unwrap()
}

impl MetadataNodes {
    /// Starts them and waits until the groups have leaders. `name` is for the directory.
    pub async fn start(name: &str, options: Options) -> Self {
        let directory = tempfile::Builder::new().prefix(&format!("alba-{name}-")).tempdir().unwrap().keep();
        let ports = PortBlock::claim();
        let owner = process::owner(&directory.to_string_lossy());
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let ends: Vec<Ends> = (0..options.nodes)
            .map(|node| Ends { front: local(ports.port(FRONT + node)), back: local(ports.port(BACK + node)) })
            .collect();
        let links = Links::start(&ends).await;
        let children = ends.iter().map(|_| None).collect();
        let mut nodes = Self { options, directory, ports, owner, children, ends, env: real::env(), links };
        for node in 0..nodes.len() {
            nodes.configure(node);
            nodes.start_node(node);
        }
        nodes.leader(&nsm_group()).await;
        nodes
    }

    /// How many nodes there are, running or not.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Where clients and nodes reach each node.
    pub fn fronts(&self) -> Vec<SocketAddr> {
        self.ends.iter().map(|ends| ends.front).collect()
    }

    /// Where a node really listens, past all cuts.
    pub fn back(&self, node: usize) -> SocketAddr {
        self.ends[node].back
    }

    /// The real clock, sockets and randomness, as clients want them.
    pub fn env(&self) -> &Env {
        &self.env
    }

    fn node_dir(&self, node: usize) -> PathBuf {
        self.directory.join(format!("node-{node}"))
    }

    fn configure(&self, node: usize) {
        let directory = self.node_dir(node);
        std::fs::create_dir_all(&directory).unwrap();
        let nodes: Vec<String> = self.fronts().iter().map(|front| format!("\"{front}\"")).collect();
        let metrics = self.ports.port(METRICS + u16::try_from(node).unwrap());
        let mut text = format!(
            "data_dir = {:?}\nlisten = \"{}\"\nadvertise = \"{}\"\nmetrics_listen = \"127.0.0.1:{metrics}\"\n",
            directory.join("data"),
            self.ends[node].back,
            self.ends[node].front,
        );
        if nodes.len() > 1 {
            text.push_str(&format!("nodes = [{}]\n", nodes.join(", ")));
        }
        std::fs::write(directory.join("metadata.toml"), text).unwrap();
    }

    /// Starts a node that does not run.
    pub fn start_node(&mut self, node: usize) {
        assert!(self.children[node].is_none(), "node {node} runs");
        let directory = self.node_dir(node);
        let log = File::options().create(true).append(true).open(directory.join("log")).unwrap();
        let child = Command::new(&self.options.program)
            .args(["metadata", "--config"])
            .arg(directory.join("metadata.toml"))
            .env(process::OWNER, &self.owner)
            .envs(self.options.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.links.set_process(node, Some(child.id()));
        self.children[node] = Some(child);
    }

    /// Loses all that a node that does not run has on its disk.
    pub fn wipe(&self, node: usize) {
        assert!(self.children[node].is_none(), "node {node} runs");
        std::fs::remove_dir_all(self.node_dir(node).join("data")).unwrap();
    }

    /// Asks a node about a group, past all cuts.
    pub async fn admin(
        &self,
        node: usize,
        group: &GroupId,
        request: AdminRequest,
    ) -> Result<AdminReply, String> {
        let connection = self.direct(node).await?;
        let request = Request::Admin(group.clone(), request);
        match connection.call(&request, self.env.deadline_in(Duration::from_secs(5))).await {
            Ok(answer) => match answer.reply {
                Reply::Admin(answer) => answer.map_err(|error| error.to_string()),
                other => Err(format!("{other:?}")),
            },
            Err(error) => Err(error.to_string()),
        }
    }

    /// How a group is, as a node knows it.
    pub async fn status(&self, node: usize, group: &GroupId) -> Result<GroupStatus, String> {
        match self.admin(node, group, AdminRequest::Status).await? {
            AdminReply::Status(status) => Ok(status),
            other => Err(format!("{other:?}")),
        }
    }

    /// Waits until a node that came back with an empty disk votes in all groups, under other names than before.
    pub async fn until_it_votes(&self, node: usize, before: &[u64]) {
        for group in self.groups() {
            let group = &group;
            eventually("a wiped node votes again", || async move {
                let status = self.status(node, group).await?;
                let voter = status.members.iter().any(|it| it.replica == status.replica && it.voter);
                if voter && status.members.len() == self.len() && !before.contains(&status.replica) {
                    Ok(())
                } else {
                    Err(format!("{group}: {status:?}"))
                }
            })
            .await;
        }
    }

    /// The names that a node has in the groups.
    pub async fn replicas(&self, node: usize) -> Vec<u64> {
        let mut replicas = Vec::new();
        for group in self.groups() {
            let group = &group;
            replicas.push(
                eventually(
                    "a node knows its name",
                    || async move { Ok(self.status(node, group).await?.replica) },
                )
                .await,
            );
        }
        replicas
    }

    fn groups(&self) -> [GroupId; 2] {
        [GroupId::new("abm").unwrap(), nsm_group()]
    }

    /// Does the node run (or is it paused)?
    pub fn runs(&self, node: usize) -> bool {
        self.children[node].is_some()
    }

    /// SIGKILL; returns when it is dead.
    pub fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.children[node].take() {
            child.kill().unwrap();
            child.wait().unwrap();
            self.links.set_process(node, None);
        }
    }

    /// Sends a signal to a node that runs.
    pub fn signal(&self, node: usize, signal: Signal) {
        if let Some(child) = &self.children[node] {
            process::signal_pid(child.id(), signal);
        }
    }

    /// Everything runs and nothing is cut.
    pub fn restore(&mut self) {
        self.links.heal();
        for node in 0..self.len() {
            if self.runs(node) {
                self.signal(node, Signal::CONT);
            } else {
                self.start_node(node);
            }
        }
    }

    /// Fails the test when a node ended by itself.
    pub fn check_alive(&mut self) {
        for node in 0..self.len() {
            let ended = self.children[node].as_mut().and_then(|child| child.try_wait().unwrap());
            if let Some(status) = ended {
                panic!("node {node} ended by itself ({status}):\n{}", self.log(node));
            }
        }
    }

    /// The end of a node's log.
    pub fn log(&self, node: usize) -> String {
        tail(&self.node_dir(node).join("log"))
    }

    /// A connection to a node, past all cuts.
    pub async fn direct(&self, node: usize) -> Result<RpcConnection, String> {
        let deadline = self.env.deadline_in(ASK);
        RpcConnection::open(&self.env, self.back(node), deadline).await.map_err(|error| error.to_string())
    }

    /// The nodes that say they lead a group.
    pub async fn claim_to_lead(&self, group: &GroupId) -> Vec<usize> {
        claim_to_lead(&self.env, &self.ends, group).await
    }

    /// What [`leader_changes`] needs.
    pub fn ends(&self) -> Vec<Ends> {
        self.ends.clone()
    }

    /// Waits until exactly one node leads a group.
    pub async fn leader(&mut self, group: &GroupId) -> usize {
        self.leader_other_than(group, None).await
    }

    /// Waits until exactly one node leads a group, `not` left out: one that was cut off may say for long that it leads.
    pub async fn leader_other_than(&mut self, group: &GroupId, not: Option<usize>) -> usize {
        let until = std::time::Instant::now() + LEADER;
        loop {
            self.check_alive();
            let mut claims = self.claim_to_lead(group).await;
            claims.retain(|node| Some(*node) != not);
            if let [leader] = claims[..] {
                return leader;
            }
            if std::time::Instant::now() > until {
                let logs: Vec<String> =
                    (0..self.len()).map(|node| format!("node {node}:\n{}", self.log(node))).collect();
                panic!(
                    "no leader of {group} but {not:?} in {LEADER:?}: {claims:?} say they lead\n{}",
                    logs.join("\n")
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn claim_to_lead(env: &Env, ends: &[Ends], group: &GroupId) -> Vec<usize> {
    let mut asking = tokio::task::JoinSet::new();
    for (node, ends) in ends.iter().enumerate() {
        let (env, group, back) = (env.clone(), group.clone(), ends.back);
        asking.spawn(async move {
            let deadline = env.deadline_in(ASK);
            let connection = RpcConnection::open(&env, back, deadline).await.ok()?;
            match connection.call(&Request::Hello, deadline).await.map(|answer| answer.reply) {
                Ok(Reply::Hello { groups, .. }) if groups.contains(&group) => Some(node),
                Ok(Reply::Hello { .. } | Reply::Refused(Refusal::UnknownGroup)) | Err(_) => None,
                Ok(other) => panic!("an answer to another question: {other:?}"),
            }
        });
    }
    let mut claims: Vec<usize> = asking.join_all().await.into_iter().flatten().collect();
    claims.sort_unstable();
    claims
}

/// Counts changes of a group's leader until it is dropped. Never more than there were: only moments in which exactly one
/// node says that it leads are looked at.
pub struct LeaderChanges {
    count: tokio::sync::watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl LeaderChanges {
    /// Starts counting.
    pub fn watch(nodes: &MetadataNodes, group: &GroupId) -> Self {
        let (counter, count) = tokio::sync::watch::channel(0);
        let (env, ends, group) = (nodes.env.clone(), nodes.ends(), group.clone());
        let task = tokio::spawn(async move {
            let mut leader = None;
            loop {
                if let [now] = claim_to_lead(&env, &ends, &group).await[..] {
                    if leader.is_some_and(|before| before != now) {
                        counter.send_modify(|count| *count += 1);
                    }
                    leader = Some(now);
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { count, task }
    }

    /// So far.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }
}

impl Drop for LeaderChanges {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for MetadataNodes {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
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

/// Waits for something that the nodes must come to by themselves.
pub async fn eventually<T, F>(what: &str, condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    wait::until_async(what, LEADER, condition).await
}
