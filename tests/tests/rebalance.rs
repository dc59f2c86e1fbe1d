//! OSDs come and go, and the fill becomes even by itself: with little more moved than must be, an agent killed in the middle,
//! clients at work, and never less redundancy than the policy asks for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alba_tests::cluster::{Cluster, Options};
use alba_tests::proxy::User;
use alba_tests::{content, wait};
use serde_json::{Value, json};

const NS: &str = "even";

/// Of an object: one chunk.
const SIZE: u64 = 1 << 20;

/// What a test runs on.
struct Shape {
    nodes: u16,
    osds_per_node: u16,
    policy: [u32; 4],
    /// Of an OSD.
    capacity: u64,
}

fn name(object: usize) -> String {
    format!("object-{object:03}")
}

fn cluster(label: &str, shape: &Shape, more: &[(&str, &str)]) -> Cluster {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    (options.nodes, options.osds_per_node) = (shape.nodes, shape.osds_per_node);
    options.more = vec!["--osd-capacity".to_owned(), shape.capacity.to_string()];
    let mut set = |key: &str, value: &str| options.env.push((key.to_owned(), value.to_owned()));
    set("ALBA_REBALANCER__REBALANCE__EVERY", "1s");
    set("ALBA_REBALANCER__ADAPT_TO_CLIENTS", "false");
    // Disks so small need small segments.
    set("ALBA_ASD_SERVER__ASD__SEGMENT_BYTES", "4194304");
    set("ALBA_MAINTENANCE__ADAPT_TO_CLIENTS", "false");
    set("ALBA_MAINTENANCE__TASKS__REPAIR__EVERY", "1s");
    more.iter().for_each(|(key, value)| set(key, value));
    let cluster = Cluster::start(label, options);
    let preset = cluster.scratch().join("preset.json");
    let text = json!({
        "policies": [shape.policy], "fragment_size": 1 << 20, "osds": ["all"], "compression": "none",
        "fragment_checksum": ["blake3"], "fragment_encryption": ["none"],
        "object_checksum": { "allowed": [["crc-32c"]], "default": ["crc-32c"], "verify_upload": true },
    });
    std::fs::write(&preset, text.to_string()).unwrap();
    cluster.alba(&["create-preset", "even", "--input-url", preset.to_str().unwrap()]).unwrap();
    cluster.alba(&["create-namespace", NS, "even"]).unwrap();
    cluster
}

async fn store(cluster: &Cluster, objects: std::ops::Range<usize>) {
    let mut user = User::new(cluster.proxy(), NS);
    let file = cluster.scratch().join("to-store");
    for object in objects {
        content::write_file(&file, &name(object), SIZE).unwrap();
        user.upload(&name(object), &file, true).await.unwrap();
    }
}

async fn check(cluster: &Cluster, objects: std::ops::Range<usize>) {
    let mut user = User::new(cluster.proxy(), NS);
    let file = cluster.scratch().join("read-back");
    for object in objects {
        let read = user.download(&name(object), &file).await;
        read.unwrap_or_else(|error| panic!("download of {}: {error}", name(object)));
        content::check_file(&file, &name(object), SIZE).unwrap();
    }
}

/// Packed bytes of the namespace on each OSD that has any.
fn held(cluster: &Cluster) -> BTreeMap<u64, u64> {
    let shown = cluster.alba(&["show-namespace", NS]).unwrap();
    let pairs = shown["storage_per_osd"].as_array().unwrap().iter();
    pairs.map(|pair| (pair[0].as_u64().unwrap(), pair[1].as_u64().unwrap())).collect()
}

/// Ids and long ids of the OSDs of a node, of all when none is named.
fn osds(cluster: &Cluster, node: Option<&str>) -> BTreeMap<u64, String> {
    let found = cluster.alba(&["list-osds"]).unwrap();
    let of = |osd: &Value| (osd["id"].as_u64().unwrap(), osd["long_id"].as_str().unwrap().to_owned());
    let on = |osd: &&Value| node.is_none_or(|node| osd["node_id"] == json!(node));
    found.as_array().unwrap().iter().filter(on).map(of).collect()
}

/// How often the manifests were updated: once for each move, when nothing is repaired.
fn updates(cluster: &Cluster, objects: usize) -> u64 {
    let of =
        |object| cluster.alba(&["show-object", NS, &name(object)]).unwrap()["version_id"].as_u64().unwrap();
    (0..objects).map(of).sum()
}

fn config_of(cluster: &Cluster) -> String {
    cluster.data_dir().join("config/rebalancer-0.toml").to_str().unwrap().to_owned()
}

fn dry_run(cluster: &Cluster) -> String {
    let mut command = cluster.command();
    command.args(["rebalancer", "--config", &config_of(cluster), "--dry-run"]);
    let output = alba_tests::cluster::output_within(command, Duration::from_secs(120));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Looks at every fragment of the namespace; nothing may be missing or damaged, nor be there for ever without being needed.
fn verify(cluster: &Cluster, job: &str) {
    let found = cluster.alba(&["fsck", NS]).unwrap();
    assert_eq!(found["whole"], json!(true), "{found}");
    cluster.alba(&["verify-namespace", NS, "--job-name", job, "--factor", "2"]).unwrap();
    let progress = wait::until("the job is finished", Duration::from_secs(180), || {
        let progress = cluster.alba(&["show-job-progress", job]).unwrap();
        if progress["finished"] == json!(true) { Ok(progress) } else { Err(progress.to_string()) }
    });
    for count in ["fragments_detected_missing", "fragments_checksum_mismatch"] {
        let found = progress.to_string();
        assert!(!found.contains(count) || found.contains(&format!("\"{count}\":0")), "{found}");
    }
}

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Twelve OSDs on four nodes. 4 + 2 fragments, at most two on a node.
const GROWING: Shape = Shape { nodes: 4, osds_per_node: 3, policy: [4, 2, 6, 2], capacity: 32 << 20 };

/// Are all of these within the bounds of the classes, mean ± (0.01 + 1σ) of the fill rates?
fn within_bounds(rates: &[f64]) -> bool {
    let count = f64::from(u32::try_from(rates.len()).unwrap());
    let mean = rates.iter().sum::<f64>() / count;
    let deviation = (rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count).sqrt();
    rates.iter().all(|rate| (rate - mean).abs() <= 0.01 + deviation)
}

/// Fill rates of so many OSDs; those that hold nothing have 0.
fn rates(held: &BTreeMap<u64, u64>, osds: &BTreeMap<u64, String>) -> Vec<f64> {
    let rate = |id| f64::from(u32::try_from(held.get(id).copied().unwrap_or(0)).unwrap());
    let capacity = f64::from(u32::try_from(GROWING.capacity).unwrap());
    osds.keys().map(|id| rate(id) / capacity).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_osds_are_filled_with_little_more_moved_than_must_be_though_the_agent_is_killed() {
    // Six fragments of a quarter of 1 MiB each fill the twelve to 60 %.
    const OBJECTS: usize = 154;
    const FRAGMENT: u64 = SIZE / 4;
    // So slow that the agent can be killed in the middle.
    let slow = [("ALBA_REBALANCER__REBALANCE__BYTES_PER_SECOND", "2000000")];
    let mut cluster = cluster("rebalance", &GROWING, &slow);
    store(&cluster, 0..OBJECTS).await;
    cluster.alba(&["pause-task", "rebalance"]).unwrap();
    // Three more OSDs, on a node of their own.
    cluster.kill_everything(|_| {});
    cluster.set_nodes(5);
    cluster.up();
    let all = osds(&cluster, None);
    assert_eq!(all.len(), 15);
    wait::until("every object has all of its fragments", Duration::from_secs(90), || {
        let shown = cluster.alba(&["get-disk-safety", "--namespace", NS]).unwrap();
        if shown[0]["safety"] == json!(2) { Ok(()) } else { Err(shown.to_string()) }
    });
    let before = held(&cluster);
    let settled = updates(&cluster, OBJECTS);
    let total: u64 = before.values().sum();
    assert_eq!((before.len(), total), (12, 6 * FRAGMENT * OBJECTS as u64));
    let filled = rates(&before, &all);
    // 0.60 on average, as the total says. Where fragments go is drawn: one OSD of a dozen may be two or three deviations (of 0.05) below.
    assert!(!within_bounds(&filled) && filled.iter().filter(|rate| **rate > 0.4).count() == 12, "{filled:?}");
    let even = total / 15;
    let least: u64 = before.values().map(|held| held.saturating_sub(even)).sum();
    let planned = wait::until("the namespace is on the new OSDs", Duration::from_secs(60), || {
        let planned = dry_run(&cluster);
        if planned.contains("\n0 moves") { Err(planned) } else { Ok(planned) }
    });
    assert!(planned.contains("moves of"), "{planned}");
    assert_eq!(held(&cluster), before, "paused, and a dry run moves nothing");

    cluster.alba(&["resume-task", "rebalance"]).unwrap();
    wait::until("some have moved", Duration::from_secs(60), || {
        let held = held(&cluster);
        let moved: u64 = held.iter().filter(|(id, _)| !before.contains_key(id)).map(|(_, held)| held).sum();
        if moved >= 4 * FRAGMENT { Ok(()) } else { Err(format!("{moved}")) }
    });
    let agent = cluster.daemons("rebalancer");
    assert_eq!(agent.len(), 1);
    agent[0].signal(rustix::process::Signal::KILL);
    check(&cluster, 0..OBJECTS).await;
    let in_the_middle = held(&cluster);
    assert!(!dry_run(&cluster).contains("the fill is even"), "all was moved before the agent was killed");
    assert_eq!(in_the_middle.values().sum::<u64>(), total, "nothing is there twice, by the metadata");

    // Another one goes on, as fast as it may.
    let mut command = cluster.command();
    command.args(["rebalancer", "--config", &config_of(&cluster)]);
    command.env("ALBA_REBALANCER__REBALANCE__BYTES_PER_SECOND", "100000000");
    let log = std::fs::File::create(cluster.scratch().join("agent.log")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let _agent = Agent(command.spawn().unwrap());
    wait::until("the fill is even", Duration::from_secs(180), || {
        let planned = dry_run(&cluster);
        if planned.contains("the fill is even") { Ok(()) } else { Err(planned) }
    });
    let after = held(&cluster);
    assert_eq!(after.values().sum::<u64>(), total);
    let filled = rates(&after, &all);
    assert!(within_bounds(&filled), "{filled:?}");
    let (low, high) =
        (filled.iter().copied().fold(f64::MAX, f64::min), filled.iter().copied().fold(0.0, f64::max));
    // With twelve OSDs at one level and three at another these bounds meet at a distance of 0.025; a fragment is 0.008.
    assert!(high - low < 0.08, "{filled:?}");
    let moves = updates(&cluster, OBJECTS) - settled;
    let bytes = moves * FRAGMENT;
    println!("{moves} moves, {bytes} bytes moved, {least} are the least; fill from {low:.3} to {high:.3}");
    assert!(bytes * 10 <= least * 13, "{moves} moves, {bytes} bytes moved, {least} are the least");
    check(&cluster, 0..OBJECTS).await;
    verify(&cluster, "after");
    assert_eq!(held(&cluster), after, "an even fill stays as it is");
    // What an agent says of itself it says every ten seconds.
    wait::until("the status tells of the fill", Duration::from_secs(60), || {
        let status = cluster.run(&["status"]);
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        let said = ["rebalance ", "fill ", "goal: 15 at ", "before it moved anything: "];
        let seen = cluster.alba(&["status"]).unwrap()["rebalance"].take();
        let moved = seen["moves"].as_u64().is_some_and(|moves| moves > 0);
        let before = seen["fill_tenths_before"].as_array().map(Vec::len) == Some(10);
        let well = moved && before && said.iter().all(|said| text.contains(said));
        if well { Ok(()) } else { Err(format!("{seen} {text}")) }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_under_load_and_redundancy_is_never_below_the_policy() {
    const OBJECTS: usize = 40;
    // Each fragment on a node of its own.
    let shape = Shape { nodes: 4, osds_per_node: 2, policy: [2, 1, 3, 1], capacity: 64 << 20 };
    let cluster = cluster("drain", &shape, &[]);
    store(&cluster, 0..OBJECTS).await;
    // Its preset asks for more than what will be left: with it in use nothing may go.
    let refused = cluster.alba(&["drain-node", "node-3"]).unwrap_err();
    assert!(refused["message"].as_str().unwrap().contains("preset default"), "{refused}");
    // Not into the trash, where it would still be held.
    cluster.alba(&["update-maintenance-config", "--auto-cleanup-deleted-namespaces", "0"]).unwrap();
    cluster.alba(&["delete-namespace", "demo"]).unwrap();
    wait::until("the other namespace is gone", Duration::from_secs(60), || {
        let left = cluster.alba(&["list-namespaces"]).unwrap();
        if left.as_array().unwrap().len() == 1 { Ok(()) } else { Err(left.to_string()) }
    });
    let safety = |cluster: &Cluster| {
        let shown = cluster.alba(&["get-disk-safety", "--namespace", NS]).unwrap();
        shown[0]["safety"].as_i64().unwrap_or(i64::MAX)
    };
    wait::until("every object has all of its fragments", Duration::from_secs(90), || {
        let safety = safety(&cluster);
        if safety >= 1 { Ok(()) } else { Err(safety.to_string()) }
    });
    let leaving = osds(&cluster, Some("node-3"));
    assert_eq!(leaving.len(), 2);
    // One and back.
    let one = leaving.values().next().unwrap();
    let drained = cluster.alba(&["drain-osd", one]).unwrap();
    assert_eq!(drained["state"], json!("draining"));
    assert_eq!(cluster.alba(&["drain-osd", one, "--cancel"]).unwrap()["state"], json!("active"));

    // Clients go on all the time, and it is looked at all the time.
    let done = Arc::new(AtomicBool::new(false));
    let mut waiter = cluster.command();
    waiter.args(["drain-node", "node-3", "--wait", "--to-json", "--timeout", "240", "--config"]);
    waiter.arg(&cluster.ready.config);
    let over = done.clone();
    let waiting = std::thread::spawn(move || {
        let output = alba_tests::cluster::output_within(waiter, Duration::from_secs(280));
        over.store(true, Ordering::SeqCst);
        output
    });
    let (mut next, mut looked) = (OBJECTS, 0);
    while !done.load(Ordering::SeqCst) {
        // As many as fit.
        if next < OBJECTS + 30 {
            store(&cluster, next..next + 1).await;
            next += 1;
        }
        looked += 1;
        check(&cluster, looked % OBJECTS..looked % OBJECTS + 1).await;
        let now = safety(&cluster);
        assert!(now >= 1, "an object can lose {now} fragments while the node is drained");
    }
    let output = waiting.join().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer: Value = serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!((&answer["success"], &answer["result"]["left"]), (&json!(true), &json!(0)), "{text}");
    let after = held(&cluster);
    assert!(leaving.keys().all(|id| after.get(id).copied().unwrap_or(0) == 0), "{after:?}");

    // With three nodes left none of them can go: each chunk needs three.
    let refused = cluster.alba(&["drain-node", "node-0"]).unwrap_err();
    assert!(refused["message"].as_str().unwrap().contains("add "), "{refused}");
    assert_eq!(cluster.alba(&["list-draining-osds"]).unwrap().as_array().unwrap().len(), 2);

    for long_id in leaving.values() {
        cluster.alba(&["decommission-osd", "--long-id", long_id]).unwrap();
    }
    wait::until("they are gone", Duration::from_secs(90), || {
        let left = cluster.alba(&["list-decommissioning-osds"]).unwrap();
        if left == json!([]) { Ok(()) } else { Err(left.to_string()) }
    });
    check(&cluster, 0..next).await;
    verify(&cluster, "after");
}
