//! Storage daemons that are reached over QUIC: one connection each, whatever is asked of them and by how many.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use alba_client::{BytesSource, Client, ClientConfig, Consistency, MemorySink, UploadOptions};
use alba_core::env::real;
use alba_core::ids::{NamespaceName, ObjectName};
use alba_core::net::asd::OsdTransport;
use alba_tests::cluster::{Cluster, Options};
use alba_tests::proxy::User;
use alba_tests::{content, wait};
use rustix::process::Signal;
use serde_json::Value;

const NS: &str = "over-quic";

/// For whatever should not take long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Users of the proxy at the same time.
const USERS: usize = 24;

/// Several fragments' worth, so that what is in flight is more than one stream carries at once.
const SIZE: u64 = 3 << 20;

/// Storage daemons of a cluster, started anew with certificates and a port of QUIC: that of TCP, as a UDP port.
struct Daemons {
    cluster: Cluster,
    certificate: Value,
    children: Vec<Option<Child>>,
}

impl Daemons {
    fn start(cluster: Cluster) -> Self {
        let tls = cluster.data_dir().join("tls");
        let issued = cluster.alba(&["ca", "issue", "asds", "--dir", tls.to_str().unwrap()]).unwrap();
        let children = cluster.ready.osds.iter().map(|_| None).collect();
        let mut daemons = Self { cluster, certificate: issued, children };
        for index in 0..daemons.children.len() {
            daemons.cluster.kill_osd(index);
            daemons.start_one(index);
        }
        daemons
    }

    /// Starts one that is dead.
    fn start_one(&mut self, index: usize) {
        let config = self.cluster.data_dir().join("config").join(format!("asd-{index}.toml"));
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.cluster.scratch().join(format!("asd-{index}.log")))
            .unwrap();
        let mut command = self.cluster.command();
        command.arg("asd-server").arg("--config").arg(config);
        let port = self.cluster.ready.osds[index].port;
        let mut set = |key: &str, value: &str| _ = command.arg("--set").arg(format!("asd.{key}={value:?}"));
        set("quic_listen", &format!("127.0.0.1:{port}"));
        for key in ["tls_ca", "tls_cert", "tls_key"] {
            set(key, self.certificate[key].as_str().unwrap());
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let child = child.unwrap();
        self.cluster.ready.osds[index].pid = child.id();
        self.children[index] = Some(child);
    }

    fn kill(&mut self, index: usize) {
        let mut child = self.children[index].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// `alba update-osd` for all of them.
    fn update(&self, arguments: impl Fn(u16) -> Vec<String>) {
        for osd in &self.cluster.ready.osds {
            let more = arguments(osd.port);
            let mut all = vec!["update-osd", "--long-id", &osd.long_id];
            all.extend(more.iter().map(String::as_str));
            self.cluster.alba(&all).unwrap();
        }
    }

    /// How many connections over QUIC the proxy has made to each OSD.
    fn connections(&self) -> Vec<u64> {
        let proxy = self.cluster.ready.processes.iter().find(|process| process.name == "proxy-0").unwrap();
        let mut stream = TcpStream::connect_timeout(&proxy.metrics, Duration::from_secs(5)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let count = |port: u16| {
            let start = format!("alba_quic_connections_total{{peer=\"127.0.0.1:{port}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |count| count.parse().unwrap())
        };
        self.cluster.ready.osds.iter().map(|osd| count(osd.port)).collect()
    }

    fn user(&self) -> User {
        User::new(self.cluster.proxy(), NS)
    }

    async fn put(&self, user: &mut User, name: &str) -> Result<(), String> {
        let file = self.cluster.scratch().join(format!("{name}.in"));
        content::write_file(&file, name, SIZE).unwrap();
        user.upload(name, &file, true).await.map_err(|error| format!("upload of {name}: {error}"))
    }

    async fn get(&self, user: &mut User, name: &str) -> Result<(), String> {
        let file = self.cluster.scratch().join(format!("{name}.out"));
        user.download(name, &file).await.map_err(|error| format!("download of {name}: {error}"))?;
        content::check_file(&file, name, SIZE).unwrap();
        let slices = [(5, 100), (1 << 20, 70_000), (2_000_001, 4096)];
        let read = user.slices(name, &slices).await.map_err(|error| format!("slices of {name}: {error}"))?;
        let expected = slices.map(|(offset, length)| {
            content::slice(name, u64::try_from(offset).unwrap(), usize::try_from(length).unwrap())
        });
        assert!(read == expected.concat(), "slices of {name} differ");
        Ok(())
    }

    /// Users who write, read and read parts, all at once.
    async fn many_at_once(&self, what: &str) {
        let users = (0..USERS).map(async |number| {
            let (mut user, name) = (self.user(), format!("{what}-{number}"));
            self.put(&mut user, &name).await?;
            self.get(&mut user, &name).await
        });
        for done in futures_util::future::join_all(users).await {
            done.unwrap();
        }
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        for mut child in self.children.iter_mut().filter_map(Option::take) {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A client in this process that reaches OSDs over QUIC although they serve TCP too.
async fn is_reached_when_the_operator_says_so(cluster: &Cluster) {
    let env = real::env();
    let text = std::fs::read_to_string(&cluster.ready.config).unwrap();
    let mut table: toml::Table = text.parse().unwrap();
    table.remove("proxies");
    table.insert("osd_transport".to_owned(), "quic".into());
    let config: ClientConfig = table.try_into().unwrap();
    assert_eq!(config.osd_transport, OsdTransport::Quic);
    let client = Client::connect(env.clone(), config).await.unwrap();
    let deadline = env.deadline_in(PATIENCE);
    let (namespace, name) = (NamespaceName::new(NS).unwrap(), ObjectName::new("by-choice").unwrap());
    let bytes = content::bytes("by-choice", 1 << 20);
    let mut source = BytesSource::new(bytes.clone());
    client.upload(&namespace, &name, &mut source, UploadOptions::default(), deadline).await.unwrap();
    let mut sink = MemorySink::new();
    client.download(&namespace, &name, Consistency::Consistent, &mut sink, deadline).await.unwrap();
    assert!(sink.into_bytes() == bytes);
    client.settle(deadline).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_all_requests_to_an_osd_and_its_loss_is_made_up_for() {
    let options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    let mut daemons = Daemons::start(Cluster::start("over-quic", options));
    let osds = daemons.cluster.ready.osds.len();
    let mut user = daemons.user();
    wait::until_async("the OSDs are back", PATIENCE, async || {
        let created = daemons.cluster.alba(&["create-namespace", NS]);
        created.map_err(|error| error.to_string())
    })
    .await;
    wait::until_async("an upload works", PATIENCE, async || daemons.put(&mut daemons.user(), "first").await)
        .await;

    // Both ways: bulk goes over TCP, unless a client's configuration says otherwise.
    daemons.update(|port| vec!["--quic-port".to_owned(), port.to_string()]);
    let listed = daemons.cluster.alba(&["list-osds"]).unwrap();
    assert_eq!(listed[0]["port"], listed[0]["quic_port"], "{listed}");
    is_reached_when_the_operator_says_so(&daemons.cluster).await;
    daemons.put(&mut user, "still-tcp").await.unwrap();
    assert_eq!(daemons.connections(), vec![0; osds]);

    // QUIC only: for the proxy, and for the metadata server and the agents.
    daemons.update(|_| vec!["--port".to_owned(), "none".to_owned()]);
    wait::until_async("the proxy reaches all over QUIC", PATIENCE, async || {
        daemons.put(&mut daemons.user(), "touch").await?;
        let made = daemons.connections();
        if made.iter().all(|count| *count > 0) { Ok(()) } else { Err(format!("{made:?}")) }
    })
    .await;
    daemons.many_at_once("all-up").await;
    assert_eq!(daemons.connections(), vec![1; osds]);
    for name in ["first", "still-tcp", "all-up-3"] {
        daemons.get(&mut user, name).await.unwrap();
    }

    // One dies, and is missed by nobody; when it is back it is reached by a new connection.
    daemons.kill(0);
    daemons.many_at_once("one-dead").await;
    daemons.start_one(0);
    wait::until_async("the proxy reaches it again", PATIENCE, async || {
        daemons.put(&mut daemons.user(), "touch").await?;
        let made = daemons.connections();
        if made[0] > 1 { Ok(()) } else { Err(format!("{made:?}")) }
    })
    .await;

    // One hangs: nobody waits for it.
    daemons.cluster.signal_osd(1, Signal::STOP);
    daemons.many_at_once("one-stopped").await;
    for name in ["first", "all-up-5", "one-dead-7"] {
        daemons.get(&mut user, name).await.unwrap();
    }
    daemons.cluster.signal_osd(1, Signal::CONT);
    wait::until_async("the proxy finds it well again", PATIENCE, async || {
        let view = daemons.cluster.alba(&["proxy-osd-view"]).unwrap();
        let states = view["state_infos"].as_array().unwrap();
        let out = states.iter().filter(|state| state[2]["disqualified"] == true).count();
        if out == 0 { Ok(()) } else { Err(view.to_string()) }
    })
    .await;
    daemons.many_at_once("all-well").await;
    // Nothing happened to the others.
    assert_eq!(daemons.connections()[2..], vec![1; osds - 2]);

    // The metadata server tells OSDs of namespaces, and reaches them the same way.
    daemons.cluster.alba(&["create-namespace", "told-over-quic"]).unwrap();
    let mut user = User::new(daemons.cluster.proxy(), "told-over-quic");
    wait::until_async("the OSDs take fragments of a new namespace", PATIENCE, async || {
        daemons.put(&mut User::new(daemons.cluster.proxy(), "told-over-quic"), "new").await
    })
    .await;
    daemons.get(&mut user, "new").await.unwrap();
}
