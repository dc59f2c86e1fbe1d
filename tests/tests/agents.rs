//! Agents live on when the metadata does not answer, and within their bounds however much there is to look after.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stderr,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use alba_tests::cluster::{Cluster, Options};
use alba_tests::http::{health, metric};
use alba_tests::process::{Memory, descriptors, memory, signal_pid};
use alba_tests::proxy::User;
use alba_tests::{content, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(240);

/// Both kinds, as `alba up` names them.
const AGENTS: [&str; 2] = ["maintenance-0", "rebalancer-0"];

fn preset_json(policy: [u32; 4]) -> String {
    json!({
        "policies": [policy], "fragment_size": 256 << 10, "osds": ["all"], "compression": "none",
        "fragment_checksum": ["crc-32c"], "fragment_encryption": ["none"],
        "object_checksum": { "allowed": [["crc-32c"]], "default": ["crc-32c"], "verify_upload": true },
    })
    .to_string()
}

fn start(name: &str, nodes: u16, osds_per_node: u16, env: &[(&str, &str)]) -> Cluster {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    (options.nodes, options.osds_per_node) = (nodes, osds_per_node);
    options.env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Cluster::start(name, options)
}

fn create_preset(cluster: &Cluster, name: &str, policy: [u32; 4]) {
    let file = cluster.scratch().join(format!("{name}.json"));
    std::fs::write(&file, preset_json(policy)).unwrap();
    cluster.alba(&["create-preset", name, "--input-url", file.to_str().unwrap()]).unwrap();
}

fn metrics_of(cluster: &Cluster, process: &str) -> SocketAddr {
    cluster.ready.processes.iter().find(|one| one.name == process).unwrap().metrics
}

/// The safety of a namespace when these OSDs are dead: how many fragments its weakest objects can lose, and how many these are.
fn safety(cluster: &Cluster, namespace: &str, dead: &[String]) -> (Value, Value) {
    let mut arguments = vec!["get-disk-safety", "--namespace", namespace];
    for long_id in dead {
        arguments.extend(["--long-id", long_id]);
    }
    let answer = cluster.alba(&arguments).unwrap()[0].clone();
    (answer["safety"].clone(), answer["safety_count"].clone())
}

fn wait_whole(cluster: &Cluster, namespace: &str, dead: &[String], want: (i64, u64)) {
    wait::until("all objects are repaired", PATIENCE, || {
        let found = safety(cluster, namespace, dead);
        if found == (json!(want.0), json!(want.1)) { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

/// The least time in which an agent can have asked so often, in seconds: it begins after 5 s, and pauses of 0.5, 1, 2, … 10 s
/// are jittered down to half.
fn least_seconds(attempts: u64) -> f64 {
    let mut pause = 0.5_f64;
    let mut seconds = 5.0;
    for _ in 0..attempts {
        seconds += pause / 2.0;
        pause = (pause * 2.0).min(10.0);
    }
    seconds
}

/// Both agents say that they wait for the backend manager, and ask ever more rarely.
fn wait_until_they_wait(cluster: &Cluster, attempts: u64) {
    for agent in AGENTS {
        let at = metrics_of(cluster, agent);
        wait::until("the agent waits with growing pauses", PATIENCE, || {
            let said = health(at).ok_or("it does not answer")?;
            let Some(lost) = said["details"]["waits_for"].as_array().and_then(|all| all.first()) else {
                return Err(said.to_string());
            };
            assert_eq!(lost["group"], "abm", "{said}");
            let (asked, seconds) = (lost["attempts"].as_u64().unwrap(), lost["seconds"].as_u64().unwrap());
            // Seconds are rounded down.
            let seconds = f64::from(u32::try_from(seconds).unwrap()) + 1.0;
            assert!(seconds >= least_seconds(asked), "{agent} asks too often: {said}");
            if asked >= attempts { Ok(()) } else { Err(said.to_string()) }
        });
        let said = health(at).unwrap();
        assert_eq!(said["ready"], false, "{said}");
        assert!(said["reason"].as_str().unwrap().starts_with("waits for metadata group abm"), "{said}");
        let label = "group=\"abm\"";
        // Metrics are published once a second.
        wait::until("its metrics say so, too", PATIENCE, || {
            let lost = metric(at, "alba_metadata_lost", label);
            let counted = metric(at, "alba_metadata_attempts_total", label);
            let enough = f64::from(u32::try_from(attempts).unwrap());
            let told = lost == Some(1.0) && counted.is_some_and(|counted| counted >= enough);
            if told { Ok(()) } else { Err(format!("{lost:?} {counted:?}")) }
        });
    }
}

fn wait_until_they_work(cluster: &Cluster, pids: &[u32]) {
    let runs = |at| metric(at, "alba_maintenance_runs_total", "outcome=\"succeeded\"").unwrap_or(0.0);
    let before: Vec<f64> = AGENTS.iter().map(|agent| runs(metrics_of(cluster, agent))).collect();
    for (agent, before) in AGENTS.iter().zip(before) {
        let at = metrics_of(cluster, agent);
        wait::until("the agent works again", PATIENCE, || {
            let said = health(at).ok_or("it does not answer")?;
            let lost = metric(at, "alba_metadata_lost", "group=\"abm\"");
            let works = said["ready"] == true && lost == Some(0.0) && runs(at) > before;
            if works { Ok(()) } else { Err(format!("{said} {lost:?} {}", runs(at))) }
        });
    }
    let now: Vec<u32> = AGENTS.iter().map(|agent| cluster.pid(agent)).collect();
    assert_eq!(now, pids);
    let alive: Vec<u32> = cluster.processes().iter().map(|process| process.pid).collect();
    assert!(pids.iter().all(|pid| alive.contains(pid)), "they are the same processes");
}

/// Ends a daemon that the test started itself.
struct Again(Child);

impl Drop for Again {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_wait_for_metadata_that_is_stopped_or_killed_and_finish_what_they_began() {
    const OBJECTS: usize = 24;
    const NS: &str = "ward";
    let cluster = start(
        "agents-wait",
        4,
        3,
        &[
            ("ALBA_MAINTENANCE__TASKS__REPAIR__EVERY", "1s"),
            // So slow that the metadata can be stopped in the middle.
            ("ALBA_MAINTENANCE__TASKS__REPAIR__OBJECTS_PER_SECOND", "3"),
            ("ALBA_MAINTENANCE__ADAPT_TO_CLIENTS", "false"),
            ("ALBA_MAINTENANCE__LEASE", "10s"),
            ("ALBA_REBALANCER__REBALANCE__EVERY", "1s"),
            ("ALBA_REBALANCER__ADAPT_TO_CLIENTS", "false"),
        ],
    );
    cluster.alba(&["update-maintenance-config", "--auto-repair-timeout-seconds", "10"]).unwrap();
    create_preset(&cluster, "ward", [4, 2, 5, 2]);
    cluster.alba(&["create-namespace", NS, "ward"]).unwrap();
    let mut user = User::new(cluster.proxy(), NS);
    let file = cluster.scratch().join("file");
    let name = |object: usize| format!("object-{object:02}");
    for object in 0..OBJECTS {
        content::write_file(&file, &name(object), 200_000).unwrap();
        user.upload(&name(object), &file, false).await.unwrap();
    }
    let whole = (2, u64::try_from(OBJECTS).unwrap());
    wait_whole(&cluster, NS, &[], whole);
    let pids = AGENTS.map(|agent| cluster.pid(agent));

    // A disk is lost, and in the middle of the repair the metadata says nothing any more.
    let maintenance = metrics_of(&cluster, "maintenance-0");
    let repaired = || metric(maintenance, "alba_repair_objects_total", "").unwrap_or(0.0);
    cluster.kill_osd(0);
    let mut dead = vec![cluster.ready.osds[0].long_id.clone()];
    wait::until("repair is under way", PATIENCE, || {
        if repaired() >= 1.0 { Ok(()) } else { Err(format!("{}", repaired())) }
    });
    let metadata = cluster.pid("metadata-0");
    signal_pid(metadata, Signal::STOP);
    wait_until_they_wait(&cluster, 4);
    signal_pid(metadata, Signal::CONT);
    wait_until_they_work(&cluster, &pids);
    wait_whole(&cluster, NS, &dead, whole);

    // It dies, and another disk with it; it is started again much later.
    signal_pid(metadata, Signal::KILL);
    cluster.kill_osd(5);
    dead.push(cluster.ready.osds[5].long_id.clone());
    wait_until_they_wait(&cluster, 3);
    let log = std::fs::File::create(cluster.scratch().join("metadata-again.log")).unwrap();
    let mut command = cluster.command();
    command.args(["metadata", "--config"]).arg(cluster.data_dir().join("config/metadata-0.toml"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let _again = Again(command.spawn().unwrap());
    wait_until_they_work(&cluster, &pids);
    wait_whole(&cluster, NS, &dead, whole);
    for object in 0..OBJECTS {
        user.download(&name(object), &file).await.unwrap();
        content::check_file(&file, &name(object), 200_000).unwrap();
    }
}

/// What an agent has of the machine.
#[derive(Debug, Clone, Copy)]
struct Use {
    memory: Memory,
    descriptors: usize,
}

fn uses(cluster: &Cluster) -> [Use; 2] {
    AGENTS.map(|agent| {
        let pid = cluster.pid(agent);
        Use { memory: memory(pid), descriptors: descriptors(pid) }
    })
}

/// By `docs/maintenance.md`, "Bounds", for the defaults.
const MEMORY_MAX: u64 = 448 << 20;

/// What thousands of objects more may cost: allocators keep some of what was used and given back.
const GROWTH_MAX: u64 = 48 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_descriptors_of_agents_do_not_grow_with_objects_and_namespaces() {
    const NAMESPACES: usize = 60;
    const OBJECTS: usize = 50;
    const OSDS: u16 = 6;
    let every = |task: &str| format!("ALBA_MAINTENANCE__TASKS__{task}__EVERY");
    let often = ["REPAIR", "SCRUB", "CLEANUP", "GC", "TRASH", "CLAIMS", "PRESETS"].map(every);
    let mut env: Vec<(&str, &str)> = often.iter().map(|key| (key.as_str(), "2s")).collect();
    env.extend([
        ("ALBA_MAINTENANCE__GC_GRACE", "1s"),
        // The shortest there is: the first objects alone are one in a second or two.
        ("ALBA_MAINTENANCE__SCRUB_PERIOD", "10m"),
        ("ALBA_MAINTENANCE__ADAPT_TO_CLIENTS", "false"),
        ("ALBA_REBALANCER__REBALANCE__EVERY", "1s"),
        ("ALBA_REBALANCER__ADAPT_TO_CLIENTS", "false"),
    ]);
    let cluster = start("agents-bounds", 3, OSDS / 3, &env);
    cluster.alba(&["update-maintenance-config", "--auto-repair-timeout-seconds", "10"]).unwrap();
    create_preset(&cluster, "ward", [2, 1, 3, 1]);
    let namespace = |n: usize| format!("ns-{n:03}");
    let name = |n: usize| format!("object-{n:03}");
    let file = cluster.scratch().join("file");
    content::write_file(&file, "the same for all", 20_000).unwrap();
    let fill = async |range: std::ops::Range<usize>| {
        for n in range.clone() {
            cluster.alba(&["create-namespace", &namespace(n), "ward"]).unwrap();
        }
        let mut users = tokio::task::JoinSet::new();
        for lane in 0..4 {
            let (file, proxy, range) = (file.clone(), cluster.proxy(), range.clone());
            users.spawn(async move {
                for n in range.filter(|n| n % 4 == lane) {
                    let mut user = User::new(proxy, &format!("ns-{n:03}"));
                    for object in 0..OBJECTS {
                        user.upload(&format!("object-{object:03}"), &file, true).await.unwrap();
                    }
                }
            });
        }
        users.join_all().await;
    };
    let check = |when: &str| {
        let most = usize::from(OSDS) * 8 + 64;
        for (agent, found) in AGENTS.iter().zip(uses(&cluster)) {
            assert!(found.memory.peak <= MEMORY_MAX, "{agent} {when}: {found:?}");
            assert!(found.descriptors <= most, "{agent} {when}: {found:?}");
        }
    };
    let maintenance = metrics_of(&cluster, "maintenance-0");
    // Every kind of task has worked once more.
    let round = |what: &str| {
        let runs = |task: &str| {
            metric(maintenance, "alba_maintenance_done_total", &format!("task=\"{task}\"")).unwrap_or(0.0)
        };
        // What is due of the scrub is little; the other one goes through all namespaces each time.
        let tasks = [("scrub", 5.0), ("presets", 100.0)];
        let before = tasks.map(|(task, _)| runs(task));
        wait::until(what, PATIENCE, || {
            let now = tasks.map(|(task, _)| runs(task));
            let all =
                now.iter().zip(before).zip(tasks).all(|((now, before), (_, least))| *now > before + least);
            if all { Ok(()) } else { Err(format!("{before:?} {now:?}")) }
        });
    };

    fill(0..NAMESPACES / 6).await;
    round("agents have seen the first");
    let before = uses(&cluster);
    check("with the first");
    fill(NAMESPACES / 6..NAMESPACES).await;
    round("agents have seen all");
    check("with all");

    // A disk is lost: half of all objects are repaired.
    cluster.kill_osd(0);
    let dead = vec![cluster.ready.osds[0].long_id.clone()];
    let (first, last) = (namespace(0), namespace(NAMESPACES - 1));
    for one in [&first, &last] {
        wait_whole(&cluster, one, &dead, (1, u64::try_from(OBJECTS).unwrap()));
    }
    check("after a repair");
    // Half of the objects are replaced, others deleted, and some namespaces with all they have.
    let mut user = User::new(cluster.proxy(), &last);
    for object in 0..OBJECTS {
        match object % 2 {
            0 => user.upload(&name(object), &file, true).await.unwrap(),
            _ => user.delete(&name(object)).await.unwrap(),
        }
    }
    for n in 0..NAMESPACES / 6 {
        cluster.alba(&["delete-namespace", &namespace(n), "--now"]).unwrap();
    }
    wait::until("agents have cleaned up", PATIENCE, || {
        let work = cluster.alba(&["list-work"]).unwrap();
        if work["count"] == 0 { Ok(()) } else { Err(work.to_string()) }
    });
    round("agents have seen what is left");
    check("in the end");
    let after = uses(&cluster);
    eprintln!("before {before:?}\nafter {after:?}");
    for ((agent, before), after) in AGENTS.iter().zip(before).zip(after) {
        let grown = after.memory.now.saturating_sub(before.memory.now);
        assert!(grown <= GROWTH_MAX, "{agent} has grown by {grown} bytes: {before:?} {after:?}");
        // Each OSD may get more of the eight connections that it is allowed.
        assert!(
            after.descriptors <= before.descriptors + 4 * usize::from(OSDS),
            "{agent}: {before:?} {after:?}"
        );
    }
}
