//! OSDs come and go, and the fill becomes even by itself: with little more moved than must be, an agent killed in the middle,
//! clients at work, and never less redundancy than the policy asks for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
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

const CAPACITY: u64 = 64 << 20;

/// One chunk each: 2 + 1 fragments of half a chunk, each on a node of its own.
const POLICIES: [[u32; 4]; 1] = [[2, 1, 3, 1]];
const SIZE: u64 = 1 << 20;

fn name(object: usize) -> String {
    format!("object-{object:03}")
}

fn cluster(label: &str, nodes: u16, more: &[(&str, &str)]) -> Cluster {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    (options.nodes, options.osds_per_node) = (nodes, 2);
    options.more = vec!["--osd-capacity".to_owned(), CAPACITY.to_string()];
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
        "policies": POLICIES, "fragment_size": 1 << 20, "osds": ["all"], "compression": "none",
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

#[tokio::test(flavor = "multi_thread")]
async fn new_osds_are_filled_with_little_more_moved_than_must_be_though_the_agent_is_killed() {
    const OBJECTS: usize = 80;
    // So slow that the agent can be killed in the middle.
    let mut cluster = cluster("rebalance", 3, &[("ALBA_REBALANCER__REBALANCE__BYTES_PER_SECOND", "1000000")]);
    store(&cluster, 0..OBJECTS).await;
    cluster.alba(&["pause-task", "rebalance"]).unwrap();
    // Two more OSDs, on a node of their own.
    cluster.kill_everything(|_| {});
    cluster.set_nodes(4);
    cluster.up();
    assert_eq!(osds(&cluster, None).len(), 8);
    let before = held(&cluster);
    let settled = updates(&cluster, OBJECTS);
    let total: u64 = before.values().sum();
    let even = total / 8;
    let least: u64 = before.values().map(|held| held.saturating_sub(even)).sum();
    assert!(least >= 16 << 20, "{before:?}: too little to see anything");
    let planned = wait::until("the namespace is on the new OSDs", Duration::from_secs(60), || {
        let planned = dry_run(&cluster);
        if planned.contains("0 moves") { Err(planned) } else { Ok(planned) }
    });
    assert!(planned.contains("moves of"), "{planned}");
    assert_eq!(held(&cluster), before, "paused, and a dry run moves nothing");

    cluster.alba(&["resume-task", "rebalance"]).unwrap();
    wait::until("some have moved", Duration::from_secs(60), || {
        let held = held(&cluster);
        let moved: u64 = held.iter().filter(|(id, _)| !before.contains_key(id)).map(|(_, held)| held).sum();
        if moved >= 3 * SIZE / 2 { Ok(()) } else { Err(format!("{moved}")) }
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
    let rates: Vec<u64> = osds(&cluster, None).keys().map(|id| after.get(id).copied().unwrap_or(0)).collect();
    // Mean ± (0.01 + 1σ) of the capacity: σ is below half of what the range was.
    let (low, high) = (rates.iter().min().unwrap(), rates.iter().max().unwrap());
    assert!(high - low < before.values().max().unwrap() / 2, "{before:?} → {after:?}");
    assert!(*low > even / 2, "{after:?}");
    let moves = updates(&cluster, OBJECTS) - settled;
    let bytes = moves * (SIZE / 2);
    assert!(bytes * 10 <= least * 13, "{moves} moves, {bytes} bytes moved, {least} are the least");
    check(&cluster, 0..OBJECTS).await;
    verify(&cluster, "after");
    assert_eq!(held(&cluster), after, "an even fill stays as it is");
    let status = cluster.run(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(text.contains("rebalance ") && text.contains("fill "), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_under_load_and_redundancy_is_never_below_the_policy() {
    const OBJECTS: usize = 40;
    let cluster = cluster("drain", 4, &[]);
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
