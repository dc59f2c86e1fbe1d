//! A proxy hears of what an operator changes. Its own questions come an hour apart: only what it is told of gets to it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use alba_tests::cluster::{Cluster, Options};
use alba_tests::proxy::User;
use alba_tests::{content, process, wait};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

/// The value of a metric without labels; none as long as there is none.
fn metric(at: SocketAddr, name: &str) -> Option<f64> {
    let mut stream = TcpStream::connect(at).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A storage daemon that `alba up` knows nothing of.
struct Asd(Child);

impl Drop for Asd {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Asd {
    fn start(cluster: &Cluster, port: u16) -> Self {
        let directory = cluster.scratch().join("one-more");
        std::fs::create_dir_all(&directory).unwrap();
        let config = cluster.scratch().join("one-more.toml");
        let text = format!(
            "[asd]\ndata_dir = {directory:?}\nplace = \"node-more\"\nlisten = \"127.0.0.1:{port}\"\n\
             prepare_ahead_segments = 0\nio_threads = 4\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut command = cluster.command();
        command.args(["asd-server", "--config"]).arg(&config);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.unwrap())
    }
}

/// A cluster of three OSDs whose proxy asks for nothing twice within an hour.
fn cluster(name: &str, metadata_nodes: &str) -> Cluster {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    (options.nodes, options.osds_per_node) = (3, 1);
    options.more = ["--metadata-nodes", metadata_nodes].map(str::to_owned).into();
    for key in ["REFRESH_MS", "REFRESH_WATCHED_MS"] {
        options.env.push((format!("ALBA_PROXY__CLIENT__{key}"), "3600000".to_owned()));
    }
    Cluster::start(name, options)
}

/// The metadata server other than `not` at which somebody waits for changes who was told of something before.
fn waits_at(cluster: &Cluster, not: Option<u32>) -> u32 {
    let servers = || cluster.ready.processes.iter().filter(|process| process.name.starts_with("metadata"));
    wait::until("the proxy waits for changes", PATIENCE, || {
        let mut seen = Vec::new();
        for server in servers().filter(|server| Some(server.pid) != not) {
            let told =
                ["alba_watch_wakeups_total", "alba_watch_waiters"].map(|name| metric(server.metrics, name));
            if let [Some(1.0..), Some(1.0..)] = told {
                return Ok(server.pid);
            }
            seen.push(told);
        }
        Err(format!("{seen:?}"))
    })
}

/// Adds an OSD and waits until the proxy uses it.
async fn claim_and_use(cluster: &Cluster, file: &Path) {
    let port = cluster.ready.osds[0].port + 20;
    let _asd = Asd::start(cluster, port);
    let port = port.to_string();
    let added = wait::until("the new OSD is registered", PATIENCE, || {
        let add = ["add-osd", "--host", "127.0.0.1", "--port", port.as_str(), "--node-id", "node-more"];
        cluster.alba(&add).map_err(|error| error.to_string())
    });
    let claimed = cluster.alba(&["claim-osd", "--long-id", added["long_id"].as_str().unwrap()]).unwrap();
    let id = claimed["id"].as_u64().unwrap();
    let mut round = 0;
    wait::until_async("the proxy uses the new OSD", PATIENCE, || {
        round += 1;
        let name = format!("later {round}");
        async move {
            let mut user = User::new(cluster.proxy(), "demo");
            user.upload(&name, file, false).await.map_err(|error| error.to_string())?;
            let shown = cluster.alba(&["show-object", "demo", &name]).map_err(|error| error.to_string())?;
            let mut fragments =
                shown["fragments"].as_array().unwrap().iter().flat_map(|chunk| chunk.as_array().unwrap());
            let used = fragments.any(|fragment| fragment["osd"].as_u64() == Some(id));
            if used { Ok(()) } else { Err(shown["fragments"].to_string()) }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claimed_osd_is_used_by_a_running_proxy_that_does_not_poll() {
    let cluster = cluster("watch", "1");
    let file = cluster.scratch().join("file");
    content::write_file(&file, "content", 10_000).unwrap();
    let mut user = User::new(cluster.proxy(), "demo");
    // The first upload begins the watch; what the second one asks for is known for an hour.
    user.upload("first", &file, false).await.unwrap();
    waits_at(&cluster, None);
    user.upload("second", &file, false).await.unwrap();
    claim_and_use(&cluster, &file).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_when_the_metadata_server_at_which_it_waits_is_killed() {
    let cluster = cluster("watch-replicated", "3");
    let file = cluster.scratch().join("file");
    content::write_file(&file, "content", 10_000).unwrap();
    let mut user = User::new(cluster.proxy(), "demo");
    user.upload("first", &file, false).await.unwrap();
    let killed = waits_at(&cluster, None);
    process::signal_pid(killed, Signal::KILL);
    waits_at(&cluster, Some(killed));
    user.upload("second", &file, false).await.unwrap();
    claim_and_use(&cluster, &file).await;
}
