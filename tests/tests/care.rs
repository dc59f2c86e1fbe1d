//! What operators and agents tell each other through the metadata: planned work, exact counts, and what could not be repaired.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use alba_client::{Client, ClientConfig};
use alba_core::env::osd::{Osd as _, OsdBatch, OsdUpdate, Priority};
use alba_core::env::real;
use alba_core::ids::LongId;
use alba_core::net::asd::{AsdClient, AsdClientConfig};
use alba_core::osd_keys::{self, Parsed};
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, UnrepairedRecord};
use alba_tests::cluster::{Cluster, Options};
use alba_tests::http::metric;
use alba_tests::proxy::User;
use alba_tests::{content, wait};
use serde_json::{Value, json};

const NS: &str = "ward";
const OBJECTS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(180);

/// 6 nodes with 2 OSDs each, and objects of 4 + 3 fragments: whole without one node, readable without another OSD, too.
async fn cluster(name: &str) -> (Cluster, User) {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    (options.nodes, options.osds_per_node) = (6, 2);
    let set = |key: &str, value: &str| (format!("ALBA_MAINTENANCE__{key}"), value.to_owned());
    options.env = vec![set("TASKS__REPAIR__EVERY", "1s"), set("LEASE", "2s")];
    let cluster = Cluster::start(name, options);
    cluster.alba(&["update-maintenance-config", "--auto-repair-timeout-seconds", "10"]).unwrap();
    let preset = json!({
        "policies": [[4, 3, 6, 2]], "fragment_size": 256 << 10, "osds": ["all"], "compression": "none",
        "fragment_checksum": ["blake3"], "fragment_encryption": ["none"],
        "object_checksum": { "allowed": [["crc-32c"]], "default": ["crc-32c"], "verify_upload": true },
    });
    let file = cluster.scratch().join("preset.json");
    std::fs::write(&file, preset.to_string()).unwrap();
    cluster.alba(&["create-preset", "ward", "--input-url", file.to_str().unwrap()]).unwrap();
    cluster.alba(&["create-namespace", NS, "ward"]).unwrap();
    let user = User::new(cluster.proxy(), NS);
    (cluster, user)
}

async fn fill(cluster: &Cluster, user: &mut User) {
    let file = cluster.scratch().join("file");
    for object in 0..OBJECTS {
        content::write_file(&file, &format!("{object}"), 300_000).unwrap();
        user.upload(&format!("o{object}"), &file, false).await.unwrap();
    }
    wait::until("all fragments are there", PATIENCE, || {
        let all = (0..OBJECTS).all(|object| places(cluster, object).len() == 7);
        if all { Ok(()) } else { Err("some are missing".to_owned()) }
    });
}

/// The OSDs of an object's fragments.
fn places(cluster: &Cluster, object: usize) -> BTreeSet<u64> {
    let shown = cluster.alba(&["show-object", NS, &format!("o{object}")]).unwrap();
    let fragments = shown["fragments"][0].as_array().unwrap().iter();
    fragments.filter_map(|fragment| fragment["osd"].as_u64()).collect()
}

/// `alba status`: what it says, and the exit code.
fn status(cluster: &Cluster) -> (Value, Option<i32>) {
    let output = cluster.run(&["status", "--to-json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    (answer["result"].clone(), output.status.code())
}

fn reasons(status: &Value) -> String {
    status["reasons"].to_string()
}

/// What agents counted of the namespace.
fn counted(status: &Value) -> Value {
    let all = status["namespaces"].as_array().unwrap();
    all.iter().find(|namespace| namespace["name"] == NS).unwrap()["agents"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_repaired_for_a_node_that_is_away_on_purpose_until_the_time_is_over() {
    let (cluster, mut user) = cluster("window").await;
    fill(&cluster, &mut user).await;
    let of_node = |cluster: &Cluster| -> BTreeSet<u64> {
        let osds = cluster.alba(&["list-osds"]).unwrap();
        let there = osds.as_array().unwrap().iter().filter(|osd| osd["node_id"] == "node-5");
        there.map(|osd| osd["id"].as_u64().unwrap()).collect()
    };
    let away = of_node(&cluster);
    assert_eq!(away.len(), 2);
    let before: Vec<_> = (0..OBJECTS).map(|object| places(&cluster, object)).collect();
    let hit = before.iter().filter(|places| !places.is_disjoint(&away)).count();
    assert!(hit > 0, "{before:?}");

    let unknown = cluster.alba(&["maintenance-window", "--node", "node-55", "--for", "1h"]).unwrap_err();
    assert!(unknown.to_string().contains("node-55"), "{unknown}");
    let window = cluster
        .alba(&["maintenance-window", "--node", "node-5", "--for", "1h", "--reason", "new memory"])
        .unwrap();
    assert!(window["seconds_left"].as_f64().unwrap() > 3500.0, "{window}");
    cluster.kill_osd(10);
    cluster.kill_osd(11);

    // It is counted as what it is, and left alone, however long it is silent.
    let shown = wait::until("agents count what is away", PATIENCE, || {
        let (shown, code) = status(&cluster);
        let left = counted(&shown)["left_alone"].as_u64();
        if left == Some(hit as u64) { Ok((shown, code)) } else { Err(counted(&shown).to_string()) }
    });
    assert_eq!(counted(&shown.0)["below_policy"], json!(hit));
    assert_eq!((shown.1, &counted(&shown.0)["repairable"]), (Some(1), &json!(0)), "{}", shown.0);
    assert!(
        reasons(&shown.0).contains("nothing is repaired for its sake: maintenance window"),
        "{}",
        shown.0
    );
    assert!(reasons(&shown.0).contains("new memory") && reasons(&shown.0).contains("below their policy"));
    assert_eq!(shown.0["maintenance_windows"][0]["node_id"], "node-5");
    let safety = cluster.alba(&["get-disk-safety", "--namespace", NS, "--include-errored-as-dead"]).unwrap();
    assert!(safety[0]["safety"].as_i64().unwrap() < 3, "what is away does not count: {safety}");
    let now: Vec<_> = (0..OBJECTS).map(|object| places(&cluster, object)).collect();
    assert_eq!(now, before, "nothing has moved");

    // Everything else is repaired meanwhile.
    let gone = cluster.ready.osds[0].long_id.clone();
    let other = cluster.alba(&["list-osds"]).unwrap();
    let other =
        other.as_array().unwrap().iter().find(|osd| osd["long_id"] == json!(gone)).unwrap()["id"].clone();
    cluster.kill_osd(0);
    let lost = other.as_u64().unwrap();
    wait::until("what another OSD had is elsewhere", PATIENCE, || {
        let left = (0..OBJECTS).filter(|object| places(&cluster, *object).contains(&lost)).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} objects are still on it")) }
    });
    let still = (0..OBJECTS).filter(|object| !places(&cluster, *object).is_disjoint(&away)).count();
    assert_eq!(still, hit, "what is away stays where it is");

    // The time is over: nobody has to do anything.
    cluster.alba(&["maintenance-window", "--node", "node-5", "--for", "2s"]).unwrap();
    wait::until("all is elsewhere", PATIENCE, || {
        let left = (0..OBJECTS).filter(|object| !places(&cluster, *object).is_disjoint(&away)).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} objects are still there")) }
    });
    assert_eq!(cluster.alba(&["list-maintenance-windows"]).unwrap(), json!([]));
    assert!(cluster.alba(&["cancel-maintenance-window", "--node", "node-5"]).is_err(), "it is over");
    let file = cluster.scratch().join("read-back");
    for object in 0..OBJECTS {
        user.download(&format!("o{object}"), &file).await.unwrap();
        content::check_file(&file, &format!("{object}"), 300_000).unwrap();
    }
}

/// An agent that the test has started.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// An object has lost too much behind the metadata's back, and an OSD with a part of the rest is dead: each attempt at it fails.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_repaired_is_told_and_rests_also_when_another_agent_takes_over() {
    let (cluster, mut user) = cluster("unrepairable").await;
    fill(&cluster, &mut user).await;
    let env = real::env();
    let shown = cluster.alba(&["show-object", NS, "o0"]).unwrap();
    let osds = cluster.alba(&["list-osds"]).unwrap();
    let dies =
        osds.as_array().unwrap().iter().find(|osd| osd["id"] == shown["fragments"][0][4]["osd"]).unwrap();
    let dies = cluster.ready.osds.iter().position(|osd| dies["long_id"] == json!(osd.long_id)).unwrap();
    let mut lost = 0;
    for osd in &cluster.ready.osds {
        let address = SocketAddr::from(([127, 0, 0, 1], osd.port));
        let long_id = LongId::new(osd.long_id.clone()).unwrap();
        let device = AsdClient::new(env.clone(), vec![address], long_id, AsdClientConfig::default());
        let deadline = env.deadline_in(Duration::from_secs(20));
        let page = device.range(RangeQuery::all(), Priority::High, deadline).await.unwrap();
        for key in page.items {
            // Of every object as many are left as are needed, and one of these is on an OSD that dies.
            if let Ok(Parsed::Fragment(_, address)) = osd_keys::parse(&key)
                && address.fragment.0 < 3
            {
                let updates = vec![OsdUpdate::Delete(key)];
                let batch = OsdBatch { asserts: Vec::new(), updates };
                device.apply(batch, Priority::High, deadline).await.unwrap();
                lost += 1;
            }
        }
    }
    assert!(lost >= 3 * OBJECTS, "{lost}");
    cluster.kill_osd(dies);

    let text = std::fs::read_to_string(&cluster.ready.config).unwrap();
    let mut table: toml::Table = toml::from_str(&text).unwrap();
    table.remove("proxies");
    let config: ClientConfig = table.try_into().unwrap();
    let client = Client::connect(env.clone(), config).await.unwrap();
    let unrepaired = async || -> Vec<UnrepairedRecord> {
        let query = AbmQuery::Unrepaired { after: None, max: 100 };
        match client.directory().query(query, env.deadline_in(PATIENCE)).await.unwrap() {
            AbmAnswer::Unrepaired { page, .. } => page.items,
            other => panic!("{other:?}"),
        }
    };
    // Long enough that an agent that did not know of it would come before its time.
    let before = wait::until_async("it has failed some times", PATIENCE, async || {
        let found = unrepaired().await;
        let first = found.first().filter(|one| one.failures >= 2).cloned();
        first.ok_or_else(|| format!("{found:?}"))
    })
    .await;
    let (shown, code) = status(&cluster);
    assert!(reasons(&shown).contains("failed and is tried again"), "{shown}");
    assert_ne!(code, Some(0));
    let listed = cluster.alba(&["list-unrepairable", "--namespace", NS]).unwrap();
    let id = before.object.to_string();
    let one = listed.as_array().unwrap().iter().find(|one| one["object_id"] == json!(id));
    assert!(one.unwrap()["reason"].as_str().unwrap().contains("fragments"), "{listed}");

    let agents = cluster.daemons("maintenance");
    let config = agents[0].args.iter().skip_while(|arg| *arg != "--config").nth(1).unwrap().clone();
    cluster.kill(agents[0].pid);
    let mut command = cluster.command();
    command.args(["maintenance", "--config", &config]);
    let log = std::fs::File::create(cluster.scratch().join("agent.log")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let _agent = Agent(command.spawn().unwrap());
    // The last word of the agent that is dead, and the first one of the other.
    let last = unrepaired().await.into_iter().find(|one| one.object == before.object).unwrap();
    let next = wait::until_async("the other agent has tried", PATIENCE, async || {
        let found = unrepaired().await.into_iter().find(|one| one.object == before.object);
        found.filter(|one| one.at > last.at).ok_or_else(|| format!("{last:?}"))
    })
    .await;
    assert_eq!(next.failures, last.failures + 1, "it goes on counting: {last:?} {next:?}");
    assert!(next.at >= last.until, "it has rested as long as it was to: {last:?} {next:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_know_whether_clients_are_there_and_move_little_at_once_beside_them() {
    let (cluster, mut user) = cluster("company").await;
    let processes = &cluster.ready.processes;
    let agents = ["maintenance-0", "rebalancer-0"].map(|name| {
        processes
            .iter()
            .find(|process| process.name == name)
            .unwrap_or_else(|| panic!("{processes:?}"))
            .metrics
    });
    // Nobody is there, or somebody.
    let expect = |clients: f64, limits: [f64; 2]| {
        let seen = agents.map(|agent| {
            ["beside_clients", "transfers_limit"]
                .map(|name| metric(agent, &format!("alba_maintenance_{name}"), ""))
        });
        if seen == limits.map(|limit| [Some(clients), Some(limit)]) {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    };
    wait::until("nobody is there", PATIENCE, || expect(0.0, [256.0; 2]));
    let file = cluster.scratch().join("file");
    content::write_file(&file, "content", 10_000).unwrap();
    let begun = Instant::now();
    // Repair one for each two of twelve OSDs, moves one for each eight or a part of them.
    while let Err(seen) = expect(1.0, [6.0, 2.0]) {
        assert!(begun.elapsed() < PATIENCE, "clients are not noticed: {seen}");
        user.upload("o", &file, true).await.unwrap();
    }
    wait::until("nobody is there any more", PATIENCE, || expect(0.0, [256.0; 2]));
}
