//! A node with all its OSDs is lost, comes back while its fragments are made up for, and goes and comes again: in the end every
//! object is at its policy, and what became superfluous is gone. So it is when the node does not come back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::process::{Child, Stdio};
use std::time::Duration;

use alba_tests::cluster::{Cluster, Options};
use alba_tests::http::metric;
use alba_tests::upkeep::{Stored, assert_whole, fsck, wait_clean};
use alba_tests::{process, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

const NS: &str = "ward";

/// 3 + 2 fragments, at most 2 on a node: 3 of the 4 nodes can have all 5, and the loss of a node leaves at least 3.
const POLICY: [u32; 4] = [3, 2, 4, 2];
const FRAGMENTS: usize = 5;

const OBJECTS: usize = 60;

const PATIENCE: Duration = Duration::from_secs(180);

fn options() -> Options {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    options.osds_per_node = 2;
    for (key, value) in [
        ("TASKS__REPAIR__EVERY", "1s"),
        // So slow that the node can come back in the middle.
        ("TASKS__REPAIR__OBJECTS_PER_SECOND", "4"),
        ("ADAPT_TO_CLIENTS", "false"),
        ("GC_GRACE", "1s"),
        ("TASKS__GC__EVERY", "2s"),
        ("TASKS__GC__AT_ONCE", "16"),
        ("TASKS__CLEANUP__EVERY", "1s"),
        ("TASKS__CLEANUP__AT_ONCE", "16"),
    ] {
        options.env.push((format!("ALBA_MAINTENANCE__{key}"), value.to_owned()));
    }
    options
}

/// One storage daemon, wherever it was started from.
struct Daemon {
    long_id: String,
    arguments: Vec<String>,
    pid: u32,
    child: Option<Child>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A node that goes and comes.
struct Node(Vec<Daemon>);

impl Node {
    fn new(cluster: &Cluster, node: &str) -> Self {
        let daemons = cluster.daemons("asd-server");
        let of = |osd: &alba_tests::cluster::ReadyOsd| {
            let process = daemons.iter().find(|process| process.pid == osd.pid).unwrap();
            let arguments = process.args[1..].to_vec();
            Daemon { long_id: osd.long_id.clone(), arguments, pid: osd.pid, child: None }
        };
        Self(cluster.ready.osds.iter().filter(|osd| osd.node_id == node).map(of).collect())
    }

    fn kill(&mut self, cluster: &Cluster) {
        for daemon in &mut self.0 {
            process::signal_pid(daemon.pid, Signal::KILL);
            if let Some(mut child) = daemon.child.take() {
                child.wait().unwrap();
            }
        }
        wait::until("the node is dead", Duration::from_secs(20), || {
            let left = cluster.processes();
            let alive = left.iter().filter(|process| self.0.iter().any(|daemon| daemon.pid == process.pid));
            match alive.count() {
                0 => Ok(()),
                count => Err(count.to_string()),
            }
        });
    }

    fn restart(&mut self, cluster: &Cluster) {
        for daemon in &mut self.0 {
            let mut command = cluster.command();
            command.args(&daemon.arguments);
            let log = cluster.scratch().join(format!("{}.log", daemon.long_id));
            let log = File::options().create(true).append(true).open(log).unwrap();
            // They end with their standard input.
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
            let child = command.spawn().unwrap();
            (daemon.pid, daemon.child) = (child.id(), Some(child));
        }
    }
}

fn agent(cluster: &Cluster, name: &str) -> Option<f64> {
    let agent = cluster.ready.processes.iter().find(|process| process.name == "maintenance-0").unwrap();
    metric(agent.metrics, name, "")
}

fn wait_metric(cluster: &Cluster, what: &str, name: &str, wanted: impl Fn(f64) -> bool) -> f64 {
    wait::until(what, PATIENCE, || {
        let now = agent(cluster, name);
        now.filter(|now| wanted(*now)).ok_or_else(|| format!("{name} is {now:?}"))
    })
}

fn wait_silent(cluster: &Cluster, count: f64) {
    let what = format!("the agent sees that {count} OSDs are silent");
    wait_metric(cluster, &what, "alba_repair_silent_osds", |silent| silent == count);
}

/// Waits until so many more objects are repaired than were `before`.
fn wait_repaired(cluster: &Cluster, before: f64, more: f64) {
    let enough = |now: f64| now >= before + more;
    wait_metric(cluster, "some objects are repaired", "alba_repair_objects_total", enough);
}

fn repaired(cluster: &Cluster) -> f64 {
    agent(cluster, "alba_repair_objects_total").unwrap_or(0.0)
}

fn safety(cluster: &Cluster, dead: &[String]) -> Value {
    let mut arguments = vec!["get-disk-safety", "--namespace", NS];
    dead.iter().for_each(|long_id| arguments.extend(["--long-id", long_id]));
    cluster.alba(&arguments).unwrap()[0].clone()
}

/// Waits until every object has all of its fragments on other OSDs than these, and there is nothing left to repair; by the counts,
/// and by the manifests.
fn wait_at_policy(cluster: &Cluster, dead: &[String]) {
    wait::until("every object is at its policy", PATIENCE, || {
        let safety = safety(cluster, dead);
        let counts = (&safety["safety"], &safety["safety_count"]);
        let [backlog, below] =
            ["alba_repair_backlog_objects", "alba_objects_below_policy{namespace=\"ward\""]
                .map(|name| agent(cluster, name));
        match (counts == (&json!(2), &json!(OBJECTS)), backlog, below) {
            (true, Some(0.0), Some(0.0)) => Ok(()),
            other => Err(format!("{other:?} {safety}")),
        }
    });
    let listed = cluster.alba(&["list-all-osds"]).unwrap();
    let nodes: BTreeMap<u64, String> = listed
        .as_array()
        .unwrap()
        .iter()
        .filter(|osd| !dead.iter().any(|long_id| osd["long_id"] == json!(long_id)))
        .filter_map(|osd| Some((osd["id"].as_u64()?, osd["node_id"].as_str()?.to_owned())))
        .collect();
    for object in 0..OBJECTS {
        let shown = cluster.alba(&["show-object", NS, &name(object)]).unwrap();
        for chunk in shown["fragments"].as_array().unwrap() {
            let osds: BTreeSet<u64> =
                chunk.as_array().unwrap().iter().filter_map(|fragment| fragment["osd"].as_u64()).collect();
            assert_eq!(osds.len(), FRAGMENTS, "{object}: {chunk}");
            let mut on: BTreeMap<&String, usize> = BTreeMap::new();
            for osd in &osds {
                *on.entry(nodes.get(osd).unwrap_or_else(|| panic!("{object} is on {osd}"))).or_default() += 1;
            }
            assert!(on.values().all(|count| *count <= 2), "{object}: {on:?}");
        }
    }
}

fn name(object: usize) -> String {
    format!("object-{object:02}")
}

/// Fragments that are on OSDs and not in manifests.
fn superfluous(found: &Value) -> u64 {
    found["fragments_held"].as_u64().unwrap() - found["fragments_named"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_flaps_leaves_every_object_at_its_policy_and_nothing_else() {
    let cluster = Cluster::start("node-loss", options());
    let timeout = ["update-maintenance-config", "--auto-repair-timeout-seconds", "5"];
    cluster.alba(&timeout).unwrap();
    let preset = cluster.scratch().join("preset.json");
    let text = json!({
        "policies": [POLICY], "fragment_size": 256 << 10, "osds": ["all"], "compression": "none",
        "fragment_checksum": ["blake3"], "fragment_encryption": ["none"],
        "object_checksum": { "allowed": [["crc-32c"]], "default": ["crc-32c"], "verify_upload": true },
    });
    std::fs::write(&preset, text.to_string()).unwrap();
    cluster.alba(&["create-preset", "ward", "--input-url", preset.to_str().unwrap()]).unwrap();
    cluster.alba(&["create-namespace", NS, "ward"]).unwrap();
    let mut stored = Stored::new(&cluster, NS);
    for object in 0..OBJECTS {
        let size = [100_000, 700_001][object % 2];
        stored.put(&name(object), size).await;
    }
    wait_at_policy(&cluster, &[]);
    wait_clean(&cluster, "nothing but the objects is there");

    // So that what becomes superfluous is seen.
    cluster.alba(&["pause-task", "cleanup"]).unwrap();
    let mut node = Node::new(&cluster, "node-0");
    assert_eq!(node.0.len(), 2);
    for round in 0..3 {
        let before = repaired(&cluster);
        node.kill(&cluster);
        wait_silent(&cluster, 2.0);
        wait_repaired(&cluster, before, 3.0);
        // In the middle: some of what was there is elsewhere now, and some is still to be made up for.
        let long_ids: Vec<String> = node.0.iter().map(|daemon| daemon.long_id.clone()).collect();
        let left = safety(&cluster, &long_ids);
        assert_ne!(left["safety"], json!(2), "round {round}: all was repaired before the node came back");
        node.restart(&cluster);
        wait_silent(&cluster, 0.0);
        stored.check().await;
    }
    wait_at_policy(&cluster, &[]);
    let found = assert_whole(&cluster, "the node is back");
    assert!(superfluous(&found) > 0, "{found}");
    assert_eq!(superfluous(&found), found["fragments_queued"].as_u64().unwrap(), "{found}");
    cluster.alba(&["resume-task", "cleanup"]).unwrap();
    wait_clean(&cluster, "what became superfluous is gone");
    stored.check().await;

    // Another one goes, comes back in the middle, and goes for good.
    let mut node = Node::new(&cluster, "node-1");
    let long_ids: Vec<String> = node.0.iter().map(|daemon| daemon.long_id.clone()).collect();
    let before = repaired(&cluster);
    node.kill(&cluster);
    wait_repaired(&cluster, before, 3.0);
    node.restart(&cluster);
    wait_silent(&cluster, 0.0);
    node.kill(&cluster);
    wait_at_policy(&cluster, &long_ids);
    stored.check().await;
    // What waits to be deleted there, and what is there, goes with the OSDs.
    for long_id in &long_ids {
        cluster.alba(&["purge-osd", "--long-id", long_id]).unwrap();
    }
    let found = wait_clean(&cluster, "nothing is left of the node");
    assert_eq!(found["objects"], json!(OBJECTS), "{found}");
    wait::until("the OSDs are forgotten", PATIENCE, || {
        let listed = cluster.alba(&["list-osds"]).unwrap();
        let count = listed.as_array().unwrap().len();
        if count == 6 { Ok(()) } else { Err(listed.to_string()) }
    });
    wait_at_policy(&cluster, &[]);
    stored.check().await;
    assert_eq!(fsck(&cluster)["whole"], json!(true));
    let unrepairable = cluster.alba(&["list-unrepairable", "--namespace", NS]).unwrap();
    assert_eq!(unrepairable, json!([]));
}
