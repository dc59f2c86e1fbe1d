//! Maintenance on a cluster of real processes: what was replaced, deleted or never finished goes, nothing else does, and agents
//! may die anywhere. What is there is compared by `alba fsck`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use alba_client::{Client, ClientConfig, Consistency};
use alba_core::checksum::Checksum;
use alba_core::env::osd::{OsdAssert, OsdBatch, OsdUpdate, Priority, StoredValue};
use alba_core::env::real;
use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceName, ObjectId, ObjectName, ObjectVersion, OsdId};
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery};
use alba_tests::cluster::{Cluster, Options, output_within};
use alba_tests::proxy::User;
use alba_tests::{content, process, wait};
use bytes::Bytes;
use rustix::process::Signal;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

/// The steps at which agents die, in the order in which a run comes to them.
const STEPS: [(&str, &[&str]); 2] = [
    ("cleanup", &["cleanup.taken", "cleanup.deleted", "cleanup.forgotten"]),
    ("gc", &["gc.closing", "gc.closed", "gc.judged", "gc.deleted", "gc.opened"]),
];

fn options() -> Options {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    for (key, value) in [
        ("GC_GRACE", "1s"),
        ("LEASE", "2s"),
        ("TASKS__GC__EVERY", "2s"),
        ("TASKS__CLEANUP__EVERY", "1s"),
        ("TASKS__GC__AT_ONCE", "16"),
        ("TASKS__CLEANUP__AT_ONCE", "16"),
    ] {
        options.env.push((format!("ALBA_MAINTENANCE__{key}"), value.to_owned()));
    }
    options
}

/// What `alba fsck` says.
fn fsck(cluster: &Cluster) -> Value {
    let output = cluster.run(&["fsck", "--to-json"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let answer: Value = serde_json::from_str(text.trim())
        .unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(answer["success"], true, "{answer}");
    assert_eq!(answer["result"]["whole"], output.status.success(), "the exit code says it, too");
    answer["result"].clone()
}

/// Nothing is missing and nothing is leaked, whatever waits to be deleted.
fn assert_whole(cluster: &Cluster, when: &str) -> Value {
    let found = fsck(cluster);
    assert_eq!(found["whole"], true, "{when}: {found}");
    found
}

/// What OSDs hold is exactly what manifests name.
fn is_clean(found: &Value) -> bool {
    found["whole"] == true
        && found["fragments_held"] == found["fragments_named"]
        && found["fragments_tagged"] == 0
        && found["fragments_queued"] == 0
        && found["lone_tags"] == 0
}

fn wait_clean(cluster: &Cluster, what: &str) -> Value {
    wait::until(what, PATIENCE, || {
        let found = fsck(cluster);
        if is_clean(&found) { Ok(found) } else { Err(found.to_string()) }
    })
}

struct Stored {
    user: User,
    directory: PathBuf,
    /// What each name holds: the name of the content, and its size.
    objects: BTreeMap<String, (String, u64)>,
}

impl Stored {
    fn new(cluster: &Cluster, namespace: &str) -> Self {
        let user = User::new(cluster.proxy(), namespace);
        Self { user, directory: cluster.scratch().to_owned(), objects: BTreeMap::new() }
    }

    async fn put(&mut self, name: &str, size: u64) {
        let text = format!("{name} {size}");
        let file = self.directory.join("to-store");
        content::write_file(&file, &text, size).unwrap();
        self.user.upload(name, &file, true).await.unwrap();
        self.objects.insert(name.to_owned(), (text, size));
    }

    async fn delete(&mut self, name: &str) {
        self.user.delete(name).await.unwrap();
        self.objects.remove(name);
    }

    async fn check(&mut self) {
        let file = self.directory.join("read-back");
        for (name, (text, size)) in &self.objects {
            self.user.download(name, &file).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            content::check_file(&file, text, *size).unwrap();
        }
        let names: Vec<String> = self.objects.keys().cloned().collect();
        assert_eq!(self.user.list().await.unwrap(), names);
    }
}

/// Runs `alba maintenance --once TASK` as `alba up` configured the agent; it dies at `step`, if one is given.
fn once(cluster: &Cluster, task: &str, step: Option<&str>) -> Output {
    let mut command = cluster.command();
    let config = cluster.data_dir().join("config").join("maintenance-0.toml");
    command.args(["maintenance", "--once", task, "--config"]).arg(config);
    if let Some(step) = step {
        command.env("ALBA_TEST_MAINTENANCE_DIES_AT", step);
    }
    output_within(command, PATIENCE)
}

/// The same until no other agent, also no dead one, has any part of the task.
fn once_whole(cluster: &Cluster, task: &str) {
    wait::until("all parts are done", PATIENCE, || {
        let output = once(cluster, task, None);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() && !text.contains("another agent has it") { Ok(()) } else { Err(text) }
    });
}

async fn client(cluster: &Cluster) -> Client {
    let text = std::fs::read_to_string(&cluster.ready.config).unwrap();
    let mut table: toml::Table = toml::from_str(&text).unwrap();
    table.remove("proxies");
    let config: ClientConfig = table.try_into().unwrap();
    Client::connect(real::env(), config).await.unwrap()
}

/// What an upload leaves that dies before its commit: fragments with tags of the newest epoch, on each OSD one.
async fn leave_garbage(client: &Client, namespace: &str, id: u8) {
    let deadline = real::env().deadline_in(PATIENCE);
    let name = NamespaceName::new(namespace).unwrap();
    let record = client.namespace(&name, deadline).await.unwrap().unwrap();
    let query = NsmQuery::Namespace(record.id);
    let NsmAnswer::Namespace(info) =
        client.namespace_store().query(&record.group, query, deadline).await.unwrap()
    else {
        panic!("no answer to Namespace")
    };
    let object_id = ObjectId::new([id; 32]);
    for (osd, _) in &info.active_osds {
        let address = FragmentAddress {
            object_id,
            chunk: ChunkIndex(0),
            fragment: FragmentIndex(u32::try_from(osd.get()).unwrap()),
            version: ObjectVersion(0),
        };
        let set = |key, bytes: &'static [u8]| {
            let value = StoredValue { value: Bytes::from_static(bytes), checksum: Checksum::None };
            OsdUpdate::Set(key, value)
        };
        let batch = OsdBatch {
            asserts: vec![OsdAssert::Absent(osd_keys::fragment(record.id, &address))],
            updates: vec![
                set(osd_keys::fragment(record.id, &address), b"never finished"),
                set(osd_keys::recovery_info(record.id, &address), b"neither"),
                set(osd_keys::gc_tag(record.id, info.newest_epoch, &address), b""),
            ],
        };
        let handle = client.osd(*osd, deadline).await.unwrap();
        handle.apply(batch, Priority::High, deadline).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_replaced_deleted_or_never_finished_goes_and_nothing_else() {
    let mut options = options();
    options.restart = true;
    let cluster = Cluster::start("maintenance", options);
    for task in ["gc", "cleanup"] {
        cluster.alba(&["pause-task", task]).unwrap();
    }
    let paused = cluster.alba(&["list-tasks"]).unwrap();
    assert_eq!(paused["paused"], serde_json::json!(["cleanup", "gc"]));
    let mut stored = Stored::new(&cluster, "demo");
    for n in 0..12_u64 {
        stored.put(&format!("object {n}"), 100_000 * n).await;
    }
    for n in 0..4_u64 {
        stored.put(&format!("object {n}"), 300_000 + n).await;
        stored.delete(&format!("object {}", n + 4)).await;
    }

    // The proxy dies while fragments are there and the manifest is not.
    let before = fsck(&cluster)["fragments_tagged"].as_u64().unwrap();
    let large = cluster.scratch().join("large");
    content::write_file(&large, "large", 400 << 20).unwrap();
    let mut other = User::new(cluster.proxy(), "demo");
    let upload = tokio::spawn(async move { other.upload("never finished", &large, false).await });
    wait::until("fragments of the upload are there", PATIENCE, || {
        let found = fsck(&cluster);
        let tagged = found["fragments_tagged"].as_u64().unwrap();
        if tagged > before { Ok(()) } else { Err(found.to_string()) }
    });
    process::signal_pid(cluster.pid("proxy-0"), Signal::KILL);
    assert!(upload.await.unwrap().is_err(), "it was to be killed in the middle");

    let found = assert_whole(&cluster, "with agents paused");
    assert!(found["fragments_tagged"].as_u64().unwrap() > 0, "{found}");
    assert!(found["fragments_queued"].as_u64().unwrap() > 0, "{found}");
    for task in ["gc", "cleanup"] {
        cluster.alba(&["resume-task", task]).unwrap();
    }
    let found = wait_clean(&cluster, "everything that is not needed is gone");
    assert_eq!(found["objects"].as_u64().unwrap(), 8, "{found}");
    // To the proxy that was started in place of the one that was killed.
    stored.user = User::new(cluster.proxy(), "demo");
    stored.check().await;

    let tasks = cluster.alba(&["list-tasks"]).unwrap();
    let lane = |name: &str| {
        let tasks = tasks["tasks"].as_array().unwrap();
        tasks
            .iter()
            .find(|task| task["task"] == name)
            .unwrap_or_else(|| panic!("{name} in {tasks:?}"))
            .clone()
    };
    assert!(lane("gc/lane-00")["succeeded"].as_f64().unwrap() > 0.0);
    assert!(lane("cleanup/lane-00")["succeeded"].as_f64().unwrap() > 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_may_die_at_every_step_and_run_side_by_side() {
    let cluster = Cluster::start("maintenance-dies", options());
    // From here on only those that this test runs.
    process::signal_pid(cluster.pid("maintenance-0"), Signal::KILL);
    let mut stored = Stored::new(&cluster, "demo");
    let client = client(&cluster).await;
    let mut garbage = 1;
    for (task, steps) in STEPS {
        for step in steps {
            stored.put("replaced", 100_000 + u64::from(garbage)).await;
            stored.put("deleted", 50_000).await;
            stored.delete("deleted").await;
            leave_garbage(&client, "demo", garbage).await;
            garbage += 1;
            if task == "gc" {
                // Epochs are closed one run after they were opened.
                once_whole(&cluster, "gc");
            }
            // Until then the one that died before has its parts.
            wait::until("an agent dies", PATIENCE, || {
                let output = once(&cluster, task, Some(step));
                // By a signal: it has no exit code.
                if output.status.code().is_none() { Ok(()) } else { Err(format!("{step}: {output:?}")) }
            });
            assert_whole(&cluster, step);
        }
    }
    let found = fsck(&cluster);
    assert!(!is_clean(&found), "there is something to do: {found}");

    // Two at once, and again, for what was written in the last epoch.
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for task in ["gc", "gc", "cleanup", "cleanup"] {
                let cluster = &cluster;
                scope.spawn(move || once(cluster, task, None));
            }
        });
        assert_whole(&cluster, "two agents at once");
        once_whole(&cluster, "gc");
        once_whole(&cluster, "cleanup");
    }
    let found = fsck(&cluster);
    assert!(is_clean(&found), "{found}");
    stored.check().await;
}

/// The checker must see what is wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checker_finds_what_is_missing_and_what_is_leaked() {
    let cluster = Cluster::start("fsck", options());
    process::signal_pid(cluster.pid("maintenance-0"), Signal::KILL);
    let mut stored = Stored::new(&cluster, "demo");
    stored.put("object", 100_000).await;
    assert_whole(&cluster, "at first");
    let client = client(&cluster).await;
    let deadline = real::env().deadline_in(PATIENCE);
    let osd = client.osd(OsdId::from_u32(0), deadline).await.unwrap();
    let name = NamespaceName::new("demo").unwrap();
    let namespace = client.namespace(&name, deadline).await.unwrap().unwrap().id;
    let address = FragmentAddress {
        object_id: ObjectId::new([9; 32]),
        chunk: ChunkIndex(0),
        fragment: FragmentIndex(0),
        version: ObjectVersion(0),
    };
    let value = StoredValue { value: Bytes::from_static(b"leaked"), checksum: Checksum::None };
    let set = OsdUpdate::Set(osd_keys::fragment(namespace, &address), value);
    let batch = OsdBatch { asserts: vec![], updates: vec![set] };
    osd.apply(batch, Priority::High, deadline).await.unwrap();
    let found = fsck(&cluster);
    assert_eq!((&found["differences"], &found["list"][0]["wrong"]), (&1.into(), &"leaked".into()), "{found}");

    let object = ObjectName::new("object").unwrap();
    let stored = client.manifest(&name, &object, Consistency::Consistent, deadline).await.unwrap().unwrap();
    let fragment = &stored.manifest.chunks[0].fragments[0];
    let address =
        FragmentAddress { object_id: stored.manifest.object_id, version: fragment.version, ..address };
    let osd = client.osd(fragment.location.unwrap(), deadline).await.unwrap();
    let delete = OsdUpdate::Delete(osd_keys::fragment(namespace, &address));
    osd.apply(OsdBatch { asserts: vec![], updates: vec![delete] }, Priority::High, deadline).await.unwrap();
    let found = fsck(&cluster);
    let mut wrong: Vec<&str> =
        found["list"].as_array().unwrap().iter().map(|one| one["wrong"].as_str().unwrap()).collect();
    wrong.sort_unstable();
    assert_eq!(wrong, ["leaked", "missing"], "{found}");
}
