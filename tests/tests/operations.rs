//! What an operator sees and does at a running proxy: one id through the logs of all processes, health that says why not,
//! a configuration that is read again.
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
use std::time::Duration;

use alba_tests::cluster::{Cluster, Options};
use alba_tests::proxy::User;
use alba_tests::{content, process, wait};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

fn page(at: SocketAddr, path: &str) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(at).map_err(text)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(text)?;
    Ok(answer)
}

fn log(cluster: &Cluster, name: &str) -> String {
    std::fs::read_to_string(cluster.data_dir().join("logs").join(format!("{name}.log"))).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_why_and_changes_what_can_change() {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    (options.nodes, options.osds_per_node) = (4, 1);
    for (key, value) in [
        ("ALBA_PROXY__LOG_LEVEL", "info,alba_proxy=debug"),
        ("ALBA_METADATA__LOG_LEVEL", "info,alba_core::net::rpc=debug"),
    ] {
        options.env.push((key.to_owned(), value.to_owned()));
    }
    let cluster = Cluster::start("operations", options);
    let file = cluster.scratch().join("file");
    content::write_file(&file, "content", 100_000).unwrap();
    let mut user = User::new(cluster.proxy(), "demo");
    user.upload("traced", &file, false).await.unwrap();

    // One id, in the logs of both.
    let metadata = cluster.ready.processes.iter().find(|process| process.name.starts_with("metadata"));
    let metadata = metadata.unwrap().name.clone();
    wait::until("the upload's id stands in the log of the metadata server", PATIENCE, || {
        let served = log(&cluster, "proxy-0");
        let line = served.lines().rfind(|line| line.contains("write_object_fs") && line.contains("served"));
        let id = line.and_then(|line| line.split_once("request{id=")).and_then(|(_, rest)| rest.get(..16));
        let id = id.ok_or("the proxy's log has no such line")?;
        let there = log(&cluster, &metadata).lines().filter(|line| line.contains(id)).count();
        if there > 0 { Ok(()) } else { Err(format!("no line with {id}")) }
    });

    // The configuration read again.
    let config = cluster.data_dir().join("config/proxy-0.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        format!("slow_request_ms = 1\nhandshake_timeout_ms = 4000\nmax_frame_bytes = 2097152\n{text}"),
    )
    .unwrap();
    process::signal_pid(cluster.pid("proxy-0"), Signal::HUP);
    wait::until("the proxy says what changed and what did not", PATIENCE, || {
        let log = log(&cluster, "proxy-0");
        let has = |what: &str, key: &str| log.lines().any(|line| line.contains(what) && line.contains(key));
        let done = has("in force", "handshake_timeout_ms, slow_request_ms")
            && has("at the next start", "max_frame_bytes");
        if done { Ok(()) } else { Err("not yet".to_owned()) }
    });
    user.upload("slow", &file, false).await.unwrap();
    wait::until("a slow request says where its time went", PATIENCE, || {
        let log = log(&cluster, "proxy-0");
        let line = log.lines().find(|line| line.contains("slow request") && line.contains("write_object_fs"));
        let line = line.ok_or("no such line")?;
        let all = ["request{id=", "demo", "metadata ", "osds ", "sending="];
        if all.iter().all(|part| line.contains(part)) { Ok(()) } else { Err(line.to_owned()) }
    });

    // Health that says why not.
    let proxy = cluster.ready.processes.iter().find(|process| process.name == "proxy-0").unwrap().metrics;
    let ready = page(proxy, "/health/ready").unwrap();
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    let metrics = page(proxy, "/metrics").unwrap();
    for name in [
        "alba_proxy_request_seconds",
        "alba_proxy_bytes_total{op=\"write_object_fs\"}",
        "alba_osd_request_seconds",
        "alba_memory_bytes{pool=\"work\"}",
        "alba_proxy_slow_requests_total{op=\"write_object_fs\"}",
    ] {
        assert!(metrics.contains(name), "no {name} in {metrics}");
    }
    process::signal_pid(cluster.pid(&metadata), Signal::STOP);
    wait::until("the proxy says that the metadata does not answer", PATIENCE, || {
        let ready = page(proxy, "/health/ready")?;
        let says = ready.starts_with("HTTP/1.1 503") && ready.contains("metadata servers do not answer");
        if says { Ok(()) } else { Err(ready) }
    });
    process::signal_pid(cluster.pid(&metadata), Signal::CONT);
    wait::until("the proxy is ready again", PATIENCE, || {
        let ready = page(proxy, "/health/ready")?;
        if ready.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(ready) }
    });
}
