//! A proxy with a fragment cache on disk: what is cached is served while no storage daemon answers, also after the proxy was
//! killed and after its cache's files were damaged.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use alba_tests::cluster::{Cluster, Options};
use alba_tests::proxy::User;
use alba_tests::{content, wait};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(120);

const OBJECTS: [(&str, u64); 3] = [("small", 200_000), ("one chunk", 5 << 20), ("three chunks", 12_345_678)];

/// Data fragments of the objects: 5 of each chunk of 5 MiB or less.
const FRAGMENTS: u64 = 5 + 5 + 15;

fn get(server: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(server).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// A metric's value; 0 while it is not there.
fn metric(cluster: &Cluster, name: &str) -> u64 {
    let server = cluster.ready.processes.iter().find(|process| process.name == "proxy-0").unwrap().metrics;
    let text = get(server, "/metrics").unwrap_or_default();
    let line =
        text.lines().find(|line| line.starts_with(name) && line.as_bytes().get(name.len()) == Some(&b' '));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

fn ssd(cluster: &Cluster) -> String {
    let server = cluster.ready.processes.iter().find(|process| process.name == "proxy-0").unwrap().metrics;
    let answer = get(server, "/health/ready").unwrap_or_default();
    let (_, body) = answer.split_once("\"ssd\":\"").unwrap_or_default();
    body.split('"').next().unwrap_or_default().to_owned()
}

async fn in_use(cluster: &Cluster) {
    wait::until_async("the cache is in use", PATIENCE, async || match ssd(cluster) {
        state if state == "in use" => Ok(()),
        state => Err(state),
    })
    .await;
}

/// Reads all objects; on a busy machine the disk may miss its deadline, so that it takes more than one attempt.
async fn all_are_read(cluster: &Cluster, directory: &Path) {
    let file = directory.join("read-back");
    for (name, size) in OBJECTS {
        wait::until_async(name, PATIENCE, async || {
            User::new(cluster.proxy(), "demo").download(name, &file).await.map_err(|error| error.to_string())
        })
        .await;
        content::check_file(&file, name, size).unwrap();
    }
}

/// All fragments were found in this part of the cache. Metrics are published once a second.
fn hits(cluster: &Cluster, cache: &str) {
    let name = format!("alba_cache_hits_total{{cache=\"{cache}\"}}");
    wait::until("all is found in the cache", PATIENCE, || match metric(cluster, &name) {
        hits if hits >= FRAGMENTS => Ok(()),
        hits => Err(format!("{hits} hits of {cache}")),
    });
}

fn kill_proxy(cluster: &Cluster) {
    for proxy in cluster.daemons("proxy") {
        proxy.signal(Signal::KILL);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cached_is_served_while_no_osd_answers_and_damage_is_not() {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    options.restart = true;
    options.more = vec!["--fragment-cache".to_owned(), "local".to_owned()];
    // A debug build on a busy machine: nothing here is about speed.
    options.env = [("FRAGMENT_CACHE__READ_DEADLINE_MS", "100"), ("OSD_TIMEOUT_MS", "1000")]
        .map(|(key, value)| (format!("ALBA_PROXY__CLIENT__{key}"), value.to_owned()))
        .into();
    let cluster = Cluster::start("fragment-cache", options);
    let directory = cluster.scratch().to_owned();
    in_use(&cluster).await;
    let file = directory.join("to-store");
    for (name, size) in OBJECTS {
        content::write_file(&file, name, size).unwrap();
        User::new(cluster.proxy(), "demo").upload(name, &file, false).await.unwrap();
    }
    wait::until("all is on the disk", PATIENCE, || match metric(&cluster, "alba_cache_ssd_written_total") {
        written if written >= FRAGMENTS => Ok(()),
        written => Err(format!("{written} fragments are written")),
    });

    // From here on nobody but the cache has anything to say.
    for index in 0..cluster.ready.osds.len() {
        cluster.signal_osd(index, Signal::STOP);
    }
    all_are_read(&cluster, &directory).await;
    hits(&cluster, "fragment-ram");

    kill_proxy(&cluster);
    wait::until("a new proxy", PATIENCE, || {
        let new = cluster.daemons("proxy").iter().any(|proxy| proxy.pid != cluster.pid("proxy-0"));
        new.then_some(()).ok_or_else(|| "not yet".to_owned())
    });
    in_use(&cluster).await;
    all_are_read(&cluster, &directory).await;
    hits(&cluster, "fragment-ssd");

    // Damage in every fragment on the disk, and a proxy that has nothing in memory.
    for index in 0..cluster.ready.osds.len() {
        cluster.signal_osd(index, Signal::CONT);
    }
    for block in std::fs::read_dir(cluster.data_dir().join("data/proxy-0/fragment-cache/blocks")).unwrap() {
        let path = block.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let mut file = std::fs::File::options().write(true).open(&path).unwrap();
        for (page, bytes) in bytes.chunks(16 << 10).enumerate() {
            if bytes.iter().any(|byte| *byte != 0) {
                file.seek(SeekFrom::Start(u64::try_from(page * (16 << 10) + 9000).unwrap())).unwrap();
                file.write_all(&[!bytes[9000]]).unwrap();
            }
        }
    }
    kill_proxy(&cluster);
    in_use(&cluster).await;
    all_are_read(&cluster, &directory).await;
    assert_eq!(metric(&cluster, "alba_cache_ssd_in_use{cache=\"fragment-ssd\"}"), 1);
}
