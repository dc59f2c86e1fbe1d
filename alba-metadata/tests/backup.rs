//! The commands of the real program: backup while it runs, restore into nothing, check, export; for a group of one copy and
//! for one of three.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use alba_core::env::{Env, files, real};
use alba_core::kv::{Durability, FjallKv, Kv, KvRead, WriteBatch};
use alba_core::net::rpc::RpcConnection;
use alba_core::wire::rpc::admin::{AdminReply, AdminRequest, GroupStatus};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery};
use alba_core::wire::rpc::{Reply, Request};

use common::{Client, NS, Server, group, namespace, object_name, put};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_alba-metadata")).args(args).output().unwrap()
}

fn well(args: &[&str]) -> String {
    let output = run(args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

async fn addresses(env: &Env, count: usize) -> Vec<SocketAddr> {
    let mut found = BTreeSet::new();
    let mut open = Vec::new();
    while found.len() < count {
        // Ports that were free a moment ago.
        let listener = env.net.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        found.insert(listener.local_addr().unwrap());
        open.push(listener);
    }
    found.into_iter().collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn objects(client: &Client) -> u64 {
    match client.ask(NsmQuery::Statistics(NS)).await {
        NsmAnswer::Statistics(statistics) => statistics.objects,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_copy_is_backed_up_checked_and_restored() {
    let env = real::env();
    let directory = tempfile::tempdir().unwrap();
    let at = addresses(&env, 1).await[0];
    let config = directory.path().join("metadata.toml");
    let data_dir = directory.path().join("data");
    let content = format!("data_dir = {:?}\nlisten = \"{at}\"\n", data_dir.display().to_string());
    files::replace(&config, content.as_bytes()).unwrap();
    let (config, file) = (text(&config), directory.path().join("nsm-0.backup"));
    let server = Server::start(Path::new(config));
    let mut client = Client::connect(&env, at).await;
    client.command(namespace()).await.unwrap();
    for n in 0..10 {
        client.command(put(n)).await.unwrap();
    }
    let said = well(&["backup", "--config", config, "--group", "nsm-0", text(&file)]);
    assert!(said.contains("group nsm-0"), "{said}");
    // Not a second time over it.
    assert_eq!(run(&["backup", "--config", config, "--group", "nsm-0", text(&file)]).status.code(), Some(1));
    assert_eq!(well(&["fsck", "--online", "--config", config]), "");
    let exported = well(&["export", "--server", &at.to_string(), "--group", "nsm-0"]);
    assert!(exported.contains("object 7"));
    // After the backup: lost by the restore.
    client.command(put(10)).await.unwrap();
    assert_eq!(objects(&client).await, 11);
    // A running server's directory is not touched.
    for command in ["fsck", "export"] {
        let output = run(&[command, "--config", config]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("another process uses it"), "{output:?}");
    }
    drop(server);
    assert_eq!(well(&["fsck", "--config", config]), "");
    let restore = ["restore", "--config", config, "--group", "nsm-0", text(&file)];
    let refused = run(&restore);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is not empty"), "{refused:?}");
    files::remove_dir_all(&data_dir.join("nsm-0")).unwrap();
    assert_eq!(run(&["restore", "--config", config, "--group", "abm", text(&file)]).status.code(), Some(1));
    well(&restore);
    for line in well(&["export", "--backup", text(&file)]).lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    let server = Server::start(Path::new(config));
    // The same session goes on: it is in the backup. Its last command had not happened in this state.
    let mut again = Client::connect(&env, at).await;
    assert_eq!(objects(&again).await, 10);
    again.command(put(11)).await.unwrap();
    client.connection = again.connection;
    client.command(put(12)).await.unwrap();
    assert_eq!(objects(&client).await, 12);
    drop(server);
    // A wrong counter is found, in the directory and in a backup of it.
    let store = FjallKv::open(&data_dir.join("nsm-0"), 1 << 20).unwrap();
    let all = std::ops::Bound::Unbounded;
    let rows = store.scan(all, all, false, usize::MAX).unwrap();
    let (key, _) =
        rows.into_iter().find(|(key, v)| key[0] == b'n' && key.len() == 10 && v.len() == 8).unwrap();
    let mut batch = WriteBatch::default();
    batch.put(key.clone(), 99_u64.to_le_bytes());
    store.commit(batch, Durability::Sync).unwrap();
    drop(store);
    let wrong = |output: Output| {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(line["key"], digits);
    };
    wrong(run(&["fsck", "--config", config, "--group", "nsm-0"]));
    let server = Server::start(Path::new(config));
    drop(Client::connect(&env, at).await);
    wrong(run(&["fsck", "--online", "--config", config, "--group", "nsm-0"]));
    let second = directory.path().join("second.backup");
    well(&["backup", "--server", &at.to_string(), "--any", "--group", "nsm-0", text(&second)]);
    drop(server);
    wrong(run(&["fsck", "--backup", text(&second)]));
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

struct Three {
    env: Env,
    at: Vec<SocketAddr>,
    configs: Vec<PathBuf>,
    data: Vec<PathBuf>,
}

impl Three {
    async fn new(directory: &Path) -> Self {
        let env = real::env();
        let at = addresses(&env, 3).await;
        let nodes: Vec<String> = at.iter().map(ToString::to_string).collect();
        let (mut configs, mut data) = (Vec::new(), Vec::new());
        for (n, at) in at.iter().enumerate() {
            let data_dir = directory.join(format!("data-{n}"));
            let config = directory.join(format!("{n}.toml"));
            let content = format!(
                "data_dir = {:?}\nlisten = \"{at}\"\nnodes = {nodes:?}\ngroups = [\"nsm-0\"]\n",
                data_dir.display().to_string()
            );
            files::replace(&config, content.as_bytes()).unwrap();
            configs.push(config);
            data.push(data_dir);
        }
        Self { env, at, configs, data }
    }

    fn start(&self) -> Vec<Server> {
        self.configs.iter().map(|config| Server::start(config)).collect()
    }

    async fn status(&self, n: usize) -> Option<GroupStatus> {
        let deadline = self.env.deadline_in(Duration::from_secs(2));
        let connection = RpcConnection::open(&self.env, self.at[n], deadline).await.ok()?;
        let ask = Request::Admin(group(), AdminRequest::Status);
        match connection.call(&ask, deadline).await.ok()?.reply {
            Reply::Admin(Ok(AdminReply::Status(status))) => Some(status),
            _ => None,
        }
    }

    /// Waits until three replicas vote and none else is a member; which of the servers leads.
    async fn whole(&self) -> usize {
        let until = self.env.deadline_in(Duration::from_secs(120));
        loop {
            let mut seen = Vec::new();
            for n in 0..3 {
                let Some(status) = self.status(n).await else { continue };
                let voters = status.members.iter().filter(|member| member.voter).count();
                if status.leader == Some(status.replica) && voters == 3 && status.members.len() == 3 {
                    return n;
                }
                seen.push(status);
            }
            assert!(!until.left(self.env.clock.as_ref()).is_zero(), "{seen:?}");
            self.env.clock.sleep_until(self.env.clock.now().plus(Duration::from_millis(100))).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicated_group_is_restored_on_one_server_and_the_others_join() {
    let directory = tempfile::tempdir().unwrap();
    let three = Three::new(directory.path()).await;
    let env = three.env.clone();
    let servers = three.start();
    let leader = three.whole().await;
    let mut client = Client::connect(&env, three.at[leader]).await;
    client.command(namespace()).await.unwrap();
    for n in 0..10 {
        client.command(put(n)).await.unwrap();
    }
    let file = directory.path().join("nsm-0.backup");
    // Asked of a follower first: it names the leader.
    let follower = (leader + 1) % 3;
    let said = well(&["backup", "--config", text(&three.configs[follower]), "--group", "nsm-0", text(&file)]);
    assert!(!said.contains("applied index 0"), "{said}");
    // From a follower itself, whatever it has.
    let any = directory.path().join("any.backup");
    let at = three.at[follower].to_string();
    well(&["backup", "--server", &at, "--any", "--group", "nsm-0", text(&any)]);
    assert_eq!(well(&["fsck", "--backup", text(&any)]), "");
    client.command(put(10)).await.unwrap();
    let before = three.status(leader).await.unwrap();
    drop(servers);
    assert_eq!(well(&["fsck", "--config", text(&three.configs[0])]), "");
    for data in &three.data {
        files::remove_dir_all(data).unwrap();
    }
    well(&["restore", "--config", text(&three.configs[1]), "--group", "nsm-0", text(&file)]);
    assert_eq!(well(&["fsck", "--config", text(&three.configs[1])]), "");
    let _servers = three.start();
    let leader = three.whole().await;
    let after = three.status(leader).await.unwrap();
    assert!(before.members.iter().all(|old| after.members.iter().all(|new| new.replica != old.replica)));
    let mut client = Client::connect(&env, three.at[leader]).await;
    assert_eq!(objects(&client).await, 10);
    for n in 0..10 {
        let query = NsmQuery::Manifests { namespace: NS, names: vec![object_name(n)] };
        assert!(matches!(client.ask(query).await, NsmAnswer::Manifests(found) if found[0].is_some()));
    }
    client.command(put(11)).await.unwrap();
    // The term and the index go on from where the backup was.
    assert!(after.applied > 10, "{after:?}");
}
