//! Storage daemons are lost for good, and maintenance brings every object back to its policy by itself: exactly counted before,
//! during and after, with an agent killed in the middle, and a second loss of as many survived.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use alba_client::{Client, ClientConfig};
use alba_core::checksum::Checksum;
use alba_core::env::osd::{OsdUpdate, StoredValue};
use alba_core::env::real;
use alba_core::ids::{AgentId, NamespaceId, TaskName};
use alba_core::wire::rpc::abm::{AbmCommand, AbmOutcome};
use alba_tests::cluster::{Cluster, Options, output_within};
use alba_tests::device::Device;
use alba_tests::http::metric;
use alba_tests::proxy::User;
use alba_tests::{content, wait};
use serde_json::{Value, json};

const NS: &str = "ward";

/// 5 + 2 fragments, at most 2 on each of the 4 nodes: with 12, 10 and 8 OSDs all 7 can be placed.
const POLICIES: [[u32; 4]; 1] = [[5, 2, 6, 2]];
const FRAGMENTS: usize = 7;
const K: i64 = 5;

const OBJECTS: usize = 40;

fn preset_json() -> String {
    json!({
        "policies": POLICIES, "fragment_size": 256 << 10, "osds": ["all"], "compression": "none",
        "fragment_checksum": ["blake3"], "fragment_encryption": ["none"],
        "object_checksum": { "allowed": [["crc-32c"]], "default": ["crc-32c"], "verify_upload": true },
    })
    .to_string()
}

fn size(object: usize) -> u64 {
    [0, 1, 100_000, 700_001, 3_000_000][object % 5]
}

fn name(object: usize) -> String {
    format!("object-{object:03}")
}

/// Where the fragments of each object's chunks are, by OSD id.
fn places(cluster: &Cluster) -> BTreeMap<usize, Vec<Vec<Option<u64>>>> {
    let of = |object: usize| {
        let shown = cluster.alba(&["show-object", NS, &name(object)]).unwrap();
        let chunks = shown["fragments"].as_array().unwrap_or_else(|| panic!("{shown}")).iter();
        let chunks = chunks
            .map(|chunk| chunk.as_array().unwrap().iter().map(|fragment| fragment["osd"].as_u64()).collect());
        (object, chunks.collect())
    };
    (0..OBJECTS).map(of).collect()
}

/// How many fragments the weakest chunk can lose, with these OSDs dead.
fn remaining(chunks: &[Vec<Option<u64>>], dead: &BTreeSet<u64>) -> i64 {
    let live = |chunk: &Vec<Option<u64>>| chunk.iter().flatten().filter(|osd| !dead.contains(osd)).count();
    i64::try_from(chunks.iter().map(live).min().unwrap()).unwrap() - K
}

struct Ward {
    cluster: Cluster,
    /// Long ids of those that were killed.
    dead: Vec<String>,
    /// An agent that was started by the test.
    agent: Option<Child>,
}

impl Drop for Ward {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            drop(agent.kill());
            drop(agent.wait());
        }
    }
}

impl Ward {
    fn safety(&self) -> Value {
        let mut arguments = vec!["get-disk-safety", "--namespace", NS];
        for long_id in &self.dead {
            arguments.extend(["--long-id", long_id]);
        }
        self.cluster.alba(&arguments).unwrap().as_array().unwrap()[0].clone()
    }

    /// Ids by long id.
    fn ids(&self) -> BTreeMap<String, u64> {
        let osds = self.cluster.alba(&["list-osds"]).unwrap();
        let of = |osd: &Value| (osd["long_id"].as_str().unwrap().to_owned(), osd["id"].as_u64().unwrap());
        osds.as_array().unwrap().iter().map(of).collect()
    }

    /// Compares what is counted with what the manifests say, while nothing is repaired: `get-disk-safety` and `alba status`. Gives
    /// how many objects are below their policy.
    fn assert_counts(&self, when: &str) -> u64 {
        let ids = self.ids();
        let dead: BTreeSet<u64> = self.dead.iter().map(|long_id| ids[long_id]).collect();
        let mut expected: BTreeMap<i64, u64> = BTreeMap::new();
        for chunks in places(&self.cluster).values() {
            *expected.entry(remaining(chunks, &dead)).or_default() += 1;
        }
        let safety = self.safety();
        let mut counted: BTreeMap<i64, u64> = BTreeMap::new();
        for (count, remaining) in rows(&safety).into_iter().filter(|(count, _)| *count > 0) {
            *counted.entry(remaining).or_default() += count;
        }
        assert_eq!(counted, expected, "{when}: objects by what they can lose: {safety}");
        let (least, as_weak) = expected.first_key_value().unwrap();
        assert_eq!(
            (&safety["safety"], &safety["safety_count"]),
            (&json!(least), &json!(as_weak)),
            "{when}: {safety}"
        );
        let of = |wanted: fn(i64) -> bool| -> u64 {
            expected.iter().filter(|(left, _)| wanted(**left)).map(|(_, count)| count).sum()
        };
        let below = of(|left| left < i64::try_from(FRAGMENTS).unwrap() - K);
        let status = self.status();
        let told =
            ["objects", "below_policy", "at_risk", "unreadable", "exact"].map(|key| status[key].clone());
        let (at_risk, unreadable) = (of(|left| left == 0), of(|left| left < 0));
        let wanted = [json!(OBJECTS), json!(below), json!(at_risk), json!(unreadable), json!(true)];
        assert_eq!(told, wanted, "{when}: {status}");
        below
    }

    /// What `alba status` says of the namespace.
    fn status(&self) -> Value {
        let output = self.cluster.run(&["status", "--to-json"]);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = answer["result"]["namespaces"].as_array().unwrap_or_else(|| panic!("{answer}"));
        all.iter().find(|namespace| namespace["name"] == json!(NS)).unwrap().clone()
    }

    /// Kills OSDs for good, and checks that the loss is counted exactly: nothing is repaired within the time after which an OSD counts as
    /// dead. Gives how many objects are hit.
    fn lose(&mut self, indexes: &[usize]) -> u64 {
        for index in indexes {
            self.cluster.kill_osd(*index);
            self.dead.push(self.cluster.ready.osds[*index].long_id.clone());
        }
        self.assert_counts("just lost")
    }

    /// Waits until every object is at its best policy, by the counts and by the manifests.
    fn wait_until_whole(&self) {
        wait::until("every object is back at its policy", Duration::from_secs(240), || {
            let safety = self.safety();
            let whole = i64::try_from(FRAGMENTS).unwrap() - K;
            if (&safety["safety"], &safety["safety_count"]) == (&json!(whole), &json!(OBJECTS)) {
                Ok(())
            } else {
                Err(format!("{safety}"))
            }
        });
        let ids = self.ids();
        let dead: BTreeSet<u64> = self.dead.iter().map(|long_id| ids[long_id]).collect();
        for (object, chunks) in places(&self.cluster) {
            for chunk in chunks {
                let there: BTreeSet<u64> = chunk.iter().flatten().copied().collect();
                assert_eq!(there.len(), FRAGMENTS, "{object}");
                assert!(there.is_disjoint(&dead), "{object}: {there:?} of {dead:?}");
            }
        }
    }

    async fn read_all(&self, user: &mut User) {
        let file = self.cluster.scratch().join("read-back");
        for object in 0..OBJECTS {
            let read = user.download(&name(object), &file).await;
            read.unwrap_or_else(|error| panic!("download of {}: {error}", name(object)));
            content::check_file(&file, &name(object), size(object)).unwrap();
        }
    }

    fn agent_metrics(&self) -> SocketAddr {
        self.cluster.ready.processes.iter().find(|p| p.name == "maintenance-0").unwrap().metrics
    }

    fn below_policy(&self) -> Option<f64> {
        metric(self.agent_metrics(), "alba_objects_below_policy", &format!("namespace=\"{NS}\""))
    }
}

fn rows(safety: &Value) -> Vec<(u64, i64)> {
    let row = |row: &Value| (row["count"].as_u64().unwrap(), row["remaining_safety"].as_i64().unwrap());
    safety["bucket_safety"].as_array().unwrap().iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_osds_are_made_up_for_also_by_another_agent_and_a_second_loss_is_survived() {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    let set = |key: &str, value: &str| (format!("ALBA_MAINTENANCE__{key}"), value.to_owned());
    options.env = vec![
        set("TASKS__REPAIR__EVERY", "1s"),
        // So slow that an agent can be killed in the middle.
        set("TASKS__REPAIR__OBJECTS_PER_SECOND", "4"),
        set("ADAPT_TO_CLIENTS", "false"),
    ];
    let cluster = Cluster::start("repair", options);
    let timeout = ["update-maintenance-config", "--auto-repair-timeout-seconds", "20"];
    cluster.alba(&timeout).unwrap();
    let preset = cluster.scratch().join("preset.json");
    std::fs::write(&preset, preset_json()).unwrap();
    cluster.alba(&["create-preset", "ward", "--input-url", preset.to_str().unwrap()]).unwrap();
    cluster.alba(&["create-namespace", NS, "ward"]).unwrap();
    let mut user = User::new(cluster.proxy(), NS);
    let file = cluster.scratch().join("to-store");
    for object in 0..OBJECTS {
        content::write_file(&file, &name(object), size(object)).unwrap();
        user.upload(&name(object), &file, false).await.unwrap();
    }
    let mut ward = Ward { cluster, dead: Vec::new(), agent: None };
    // Before: all are whole. A fragment that was late at the upload is added by repair, after a while.
    ward.wait_until_whole();
    assert_eq!(ward.assert_counts("before"), 0);
    wait::until("the agent sees that nothing is below its policy", Duration::from_secs(60), || {
        if ward.below_policy() == Some(0.0) { Ok(()) } else { Err(format!("{:?}", ward.below_policy())) }
    });

    // The first loss: one OSD on each of two nodes. What it costs is counted exactly, by the command and by the agent.
    let nodes = |ward: &Ward, index: usize| ward.cluster.ready.osds[index].node_id.clone();
    assert_ne!(nodes(&ward, 0), nodes(&ward, 4));
    let all_hit = ward.lose(&[0, 4]);
    let hit = f64::from(u32::try_from(all_hit).unwrap());
    assert!(hit >= 10.0, "too few objects are hit to kill an agent in the middle: {hit}");
    wait::until("the agent counts all that are hit", Duration::from_secs(60), || match ward.below_policy() {
        Some(below) if below > 0.0 => {
            assert_eq!(below, hit, "exactly these");
            Ok(())
        }
        other => Err(format!("{other:?}")),
    });

    // During: some are repaired, some are not, and the agent dies. Another one goes on.
    let repaired = |ward: &Ward| metric(ward.agent_metrics(), "alba_repair_objects_total", "").unwrap_or(0.0);
    let done = wait::until("some objects are repaired", Duration::from_secs(60), || {
        let done = repaired(&ward);
        if done >= 2.0 { Ok(done) } else { Err(format!("{done}")) }
    });
    let agent = ward.cluster.daemons("maintenance");
    assert_eq!(agent.len(), 1);
    agent[0].signal(rustix::process::Signal::KILL);
    wait::until("the agent is dead", Duration::from_secs(20), || {
        let left = ward.cluster.daemons("maintenance");
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert!(done < hit, "all were repaired before the agent could be killed");
    let left = ward.assert_counts("in the middle");
    assert!((1..all_hit).contains(&left), "{left} of {all_hit} are below their policy in the middle");
    let config = agent[0].args.iter().skip_while(|arg| *arg != "--config").nth(1).unwrap();
    let mut command = ward.cluster.command();
    command.args(["maintenance", "--config", config]);
    let log = std::fs::File::create(ward.cluster.scratch().join("agent.log")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    ward.agent = Some(command.spawn().unwrap());
    ward.wait_until_whole();
    assert_eq!(ward.assert_counts("after"), 0);
    ward.read_all(&mut user).await;
    wait::until("the other agent sees that all is well", Duration::from_secs(60), || {
        if ward.below_policy() == Some(0.0) { Ok(()) } else { Err(format!("{:?}", ward.below_policy())) }
    });

    // The second loss, of as many on the two other nodes, is survived: all can be read at once, and is made up for.
    ward.lose(&[6, 9]);
    ward.read_all(&mut user).await;
    ward.wait_until_whole();
    assert_eq!(ward.assert_counts("after"), 0);
    ward.read_all(&mut user).await;
    let unrepairable = ward.cluster.alba(&["list-unrepairable", "--namespace", NS]).unwrap();
    assert_eq!(unrepairable, json!([]));
}

/// Runs a job to its end; what it counted.
fn job(cluster: &Cluster, command: &str, name: &str) -> Value {
    cluster.alba(&[command, NS, "--job-name", name, "--factor", "3"]).unwrap();
    wait::until("the job is finished", Duration::from_secs(180), || {
        let progress = cluster.alba(&["show-job-progress", name]).unwrap();
        if progress["finished"] == json!(true) { Ok(progress) } else { Err(progress.to_string()) }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_osd_is_emptied_jobs_find_all_damage_and_objects_are_stored_anew() {
    const COUNT: usize = 15;
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    options.env = vec![("ALBA_MAINTENANCE__TASKS__REPAIR__EVERY".to_owned(), "1s".to_owned())];
    let cluster = Cluster::start("repair-jobs", options);
    let preset = cluster.scratch().join("preset.json");
    std::fs::write(&preset, preset_json()).unwrap();
    cluster.alba(&["create-preset", "ward", "--input-url", preset.to_str().unwrap()]).unwrap();
    cluster.alba(&["create-namespace", NS, "ward"]).unwrap();
    let listed = cluster.alba(&["list-namespaces"]).unwrap();
    let record = listed.as_array().unwrap().iter().find(|namespace| namespace["name"] == json!(NS));
    let namespace = NamespaceId::new(record.unwrap()["id"].as_u64().unwrap()).unwrap();
    let mut user = User::new(cluster.proxy(), NS);
    let file = cluster.scratch().join("file");
    for object in 0..COUNT {
        content::write_file(&file, &name(object), size(object)).unwrap();
        user.upload(&name(object), &file, false).await.unwrap();
    }
    let whole = |what: &str| {
        wait::until(what, Duration::from_secs(180), || {
            let safety = cluster.alba(&["get-disk-safety", "--namespace", NS]).unwrap()[0].clone();
            let whole = (&safety["safety"], &safety["safety_count"]) == (&json!(2), &json!(COUNT));
            if whole { Ok(()) } else { Err(safety.to_string()) }
        });
    };
    whole("all fragments are there");

    // Emptied: no fragment of it is left there, and it is decommissioned when no namespace has anything on it.
    let leaving = cluster.ready.osds[2].long_id.clone();
    assert!(!Device::of(&cluster, 2).fragments(namespace).await.is_empty());
    cluster.alba(&["decommission-osd", "--long-id", &leaving]).unwrap();
    wait::until("the OSD is decommissioned", Duration::from_secs(180), || {
        let osds = cluster.alba(&["list-all-osds"]).unwrap();
        let osd =
            osds.as_array().unwrap().iter().find(|osd| osd["long_id"] == json!(leaving)).unwrap().clone();
        if osd["state"] == json!("decommissioned") { Ok(()) } else { Err(osd.to_string()) }
    });
    whole("nothing was lost by that");
    wait::until_async("the device is clean", Duration::from_secs(60), async || {
        let left = Device::of(&cluster, 2).fragments(namespace).await.len();
        if left == 0 { Ok(()) } else { Err(format!("{left} fragments are left")) }
    })
    .await;

    // Damage: of the first chunk of each object one fragment has other bytes, and another one is gone. (What was moved, or repaired by two
    // at once, may be in two places until it is cleared away or collected: all of them.)
    let mut hurt = (BTreeSet::new(), BTreeSet::new());
    for index in (0..12).filter(|index| *index != 2) {
        let device = Device::of(&cluster, index);
        for (key, address) in device.fragments(namespace).await {
            match (address.chunk.0, address.fragment.0) {
                (0, 1) => {
                    device.spoil(key).await;
                    hurt.0.insert(address.object_id);
                }
                (0, 5) => {
                    device.apply(OsdUpdate::Delete(key)).await;
                    hurt.1.insert(address.object_id);
                }
                _ => {}
            }
        }
    }
    assert_eq!((hurt.0.len(), hurt.1.len()), (COUNT, COUNT));
    let found = job(&cluster, "verify-namespace", "check-1");
    let counts = |found: &Value| {
        ["count", "fragments_checksum_mismatch", "fragments_detected_missing", "fragments_osd_unavailable"]
            .map(|key| found[key].as_u64().unwrap())
    };
    let count = COUNT as u64;
    assert_eq!(counts(&found), [count, count, count, 0]);
    let found = job(&cluster, "verify-namespace", "check-2");
    assert_eq!(counts(&found), [count, 0, 0, 0], "all was repaired");
    assert_eq!(cluster.alba(&["list-unrepairable"]).unwrap(), json!([]));

    // Stored anew, once each: by the job and by the command.
    let id = |object: usize| cluster.alba(&["show-object", NS, &name(object)]).unwrap()["object_id"].clone();
    let before: Vec<Value> = (0..COUNT).map(id).collect();
    let found = job(&cluster, "rewrite-namespace", "anew-1");
    assert!(found["count"].as_u64().unwrap() >= count, "{found}");
    let after: Vec<Value> = (0..COUNT).map(id).collect();
    assert!(before.iter().zip(&after).all(|(before, after)| before != after));
    cluster.alba(&["rewrite-object", NS, &name(3)]).unwrap();
    assert_ne!(id(3), after[3]);
    for object in 0..COUNT {
        user.download(&name(object), &file).await.unwrap();
        content::check_file(&file, &name(object), size(object)).unwrap();
    }
}

/// Puts `count` objects into a namespace of its own.
async fn filled(cluster: &Cluster, count: usize) -> (User, NamespaceId) {
    let preset = cluster.scratch().join("preset.json");
    std::fs::write(&preset, preset_json()).unwrap();
    cluster.alba(&["create-preset", "ward", "--input-url", preset.to_str().unwrap()]).unwrap();
    cluster.alba(&["create-namespace", NS, "ward"]).unwrap();
    let listed = cluster.alba(&["list-namespaces"]).unwrap();
    let record = listed.as_array().unwrap().iter().find(|namespace| namespace["name"] == json!(NS));
    let namespace = NamespaceId::new(record.unwrap()["id"].as_u64().unwrap()).unwrap();
    let mut user = User::new(cluster.proxy(), NS);
    let file = cluster.scratch().join("file");
    for object in 0..count {
        content::write_file(&file, &name(object), size(object)).unwrap();
        user.upload(&name(object), &file, false).await.unwrap();
    }
    (user, namespace)
}

async fn read_back(cluster: &Cluster, user: &mut User, count: usize) {
    let file = cluster.scratch().join("read-back");
    for object in 0..count {
        user.download(&name(object), &file).await.unwrap();
        content::check_file(&file, &name(object), size(object)).unwrap();
    }
}

fn wait_at_policy(cluster: &Cluster, count: usize, what: &str) {
    wait::until(what, Duration::from_secs(180), || {
        let safety = cluster.alba(&["get-disk-safety", "--namespace", NS]).unwrap()[0].clone();
        let whole = (&safety["safety"], &safety["safety_count"]) == (&json!(2), &json!(count));
        if whole { Ok(()) } else { Err(safety.to_string()) }
    });
}

/// What OSDs hold is exactly what manifests name.
fn wait_clean(cluster: &Cluster) {
    wait::until("fsck finds nothing", Duration::from_secs(180), || {
        let output = cluster.run(&["fsck", "--to-json"]);
        let answer: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let found = &answer["result"];
        let clean = found["whole"] == true
            && found["fragments_held"] == found["fragments_named"]
            && ["fragments_tagged", "fragments_queued", "lone_tags"].iter().all(|key| found[*key] == 0);
        if clean { Ok(()) } else { Err(answer.to_string()) }
    });
}

/// The agent of `alba up`, configured by the environment.
fn quick(settings: &[(&str, &str)]) -> Options {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    let all = [
        ("GC_GRACE", "1s"),
        ("LEASE", "2s"),
        ("TASKS__GC__EVERY", "2s"),
        ("TASKS__CLEANUP__EVERY", "1s"),
        ("TASKS__REPAIR__EVERY", "1s"),
        ("TASKS__GC__AT_ONCE", "16"),
        ("TASKS__CLEANUP__AT_ONCE", "16"),
    ];
    let all = all.iter().chain(settings);
    options.env = all.map(|(key, value)| (format!("ALBA_MAINTENANCE__{key}"), (*value).to_owned())).collect();
    options
}

/// An OSD that is dead is forgotten: nothing is read from it, all objects are made whole elsewhere, and nothing of it is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_osd_is_purged_and_all_objects_are_whole_and_nothing_is_left() {
    const COUNT: usize = 15;
    let cluster = Cluster::start("purge", quick(&[]));
    let (mut user, _) = filled(&cluster, COUNT).await;
    wait_at_policy(&cluster, COUNT, "all fragments are there");
    cluster.kill_osd(7);
    let long_id = cluster.ready.osds[7].long_id.clone();
    cluster.alba(&["purge-osd", "--long-id", &long_id]).unwrap();
    wait::until("nobody knows the OSD any more", Duration::from_secs(180), || {
        let osds = cluster.alba(&["list-all-osds"]).unwrap();
        let found = osds.as_array().unwrap().iter().find(|osd| osd["long_id"] == json!(long_id));
        found.map_or(Ok(()), |osd| Err(osd.to_string()))
    });
    wait_at_policy(&cluster, COUNT, "all fragments are elsewhere");
    wait_clean(&cluster);
    read_back(&cluster, &mut user, COUNT).await;
    assert_eq!(cluster.alba(&["list-unrepairable"]).unwrap(), json!([]));
}

/// As if nobody had scrubbed for a month: what a lane has covered is set back to the beginning of time.
async fn set_scrub_back(cluster: &Cluster) {
    let text = std::fs::read_to_string(&cluster.ready.config).unwrap();
    let mut table: toml::Table = toml::from_str(&text).unwrap();
    table.remove("proxies");
    let config: ClientConfig = table.try_into().unwrap();
    let env = real::env();
    let client = Client::connect(env.clone(), config).await.unwrap();
    let deadline = env.deadline_in(Duration::from_secs(60));
    for lane in alba_maintenance::task::lanes() {
        let task = TaskName::new(format!("scrub/{lane}")).unwrap();
        // The agent that was killed may have it for a moment yet.
        let token = wait::until_async("the lane is free", Duration::from_secs(60), async || {
            let (task, agent) = (task.clone(), AgentId::new("test").unwrap());
            let acquire = AbmCommand::AcquireLease { task, agent, period: 60_000_000 };
            match client.directory().command(acquire, deadline).await {
                Ok(AbmOutcome::Lease(lease)) => Ok(lease.token),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let mark = AbmCommand::MarkTask { task: task.clone(), token, mark: 0 };
        client.directory().command(mark, deadline).await.unwrap();
        client.directory().command(AbmCommand::ReleaseLease { task, token }, deadline).await.unwrap();
    }
}

/// Nobody reads. The agents find all damage on their schedule, also when one of them dies on the way.
#[tokio::test(flavor = "multi_thread")]
async fn the_scheduled_scrub_finds_all_flipped_bits_and_goes_on_where_an_agent_died() {
    const COUNT: usize = 15;
    let cluster = Cluster::start("scrub", quick(&[("TASKS__SCRUB__ENABLED", "true")]));
    let (mut user, namespace) = filled(&cluster, COUNT).await;
    wait_at_policy(&cluster, COUNT, "all fragments are there");
    let agent = cluster.daemons("maintenance");
    let config = agent[0].args.iter().skip_while(|arg| *arg != "--config").nth(1).unwrap().clone();
    agent[0].signal(rustix::process::Signal::KILL);
    let mut hurt = 0;
    for index in 0..12 {
        let device = Device::of(&cluster, index);
        for (key, address) in device.fragments(namespace).await {
            if address.chunk.0 == 0 && address.fragment.0 == 3 {
                let value = StoredValue { value: b"flipped".as_slice().into(), checksum: Checksum::None };
                device.apply(OsdUpdate::Set(key, value)).await;
                hurt += 1;
            }
        }
    }
    assert_eq!(hurt, COUNT);
    set_scrub_back(&cluster).await;
    // One dies after its first slice, with much of the period before it.
    let mut dies = cluster.command();
    dies.args(["maintenance", "--once", "scrub", "--config", &config]);
    dies.env("ALBA_TEST_DIES_AT", "scrub.marked");
    let died = output_within(dies, Duration::from_secs(180));
    assert_eq!(died.status.code(), None, "by a signal: {died:?}");
    // Another one has it on its schedule.
    let mut command = cluster.command();
    command.args(["maintenance", "--config", &config]).env("ALBA_MAINTENANCE__TASKS__SCRUB__EVERY", "1s");
    let log = std::fs::File::create(cluster.scratch().join("agent.log")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let ward = Ward { cluster, dead: Vec::new(), agent: Some(command.spawn().unwrap()) };
    let left = async || {
        let mut left = 0;
        for index in 0..12 {
            let device = Device::of(&ward.cluster, index);
            for (key, address) in device.fragments(namespace).await {
                let found = device.get(key).await;
                let flipped = |stored: &StoredValue| stored.value.as_ref() == b"flipped";
                // Replaced ones wait for clean-up: what manifests name is of a later version.
                left += usize::from(address.version.0 == 0 && found.as_ref().is_some_and(flipped));
            }
        }
        left
    };
    wait::until_async("all damage is found and gone", Duration::from_secs(240), async || {
        let left = left().await;
        if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
    })
    .await;
    let found = job(&ward.cluster, "verify-namespace", "check");
    let counts = ["fragments_checksum_mismatch", "fragments_detected_missing"].map(|key| found[key].as_u64());
    assert_eq!(counts, [Some(0), Some(0)], "{found}");
    wait_clean(&ward.cluster);
    read_back(&ward.cluster, &mut user, COUNT).await;
}
