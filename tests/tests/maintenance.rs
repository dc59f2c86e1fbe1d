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

use alba_client::{Client, Consistency};
use alba_core::checksum::Checksum;
use alba_core::env::osd::{OsdAssert, OsdBatch, OsdUpdate, Priority, StoredValue};
use alba_core::env::real;
use alba_core::failpoint::Step;
use alba_core::ids::{
    ChunkIndex, FragmentIndex, NamespaceId, NamespaceName, ObjectId, ObjectName, ObjectVersion, OsdId,
};
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::range::{RangeQuery, next_prefix};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery};
use alba_tests::agents::{Once, Scene, trial};
use alba_tests::cluster::{Cluster, Options};
use alba_tests::proxy::User;
use alba_tests::upkeep::{PATIENCE, Stored, assert_whole, client, fsck, is_clean, wait_clean};
use alba_tests::{content, process, wait};
use bytes::Bytes;
use rustix::process::Signal;
use tokio::sync::Mutex;

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
    let stored = Mutex::new(Stored::new(&cluster, "demo"));
    let client = client(&cluster).await;
    let (gc, cleanup) = (Once::maintenance(&cluster, "gc"), Once::maintenance(&cluster, "cleanup"));
    let mut garbage = 0;
    for (number, step) in Scene::Collecting.steps().into_iter().enumerate() {
        let once = if step.name().starts_with("gc.") { &gc } else { &cleanup };
        let more = async || {
            let mut stored = stored.lock().await;
            garbage += 1;
            stored.put("replaced", 100_000 + u64::from(garbage)).await;
            stored.put("deleted", 50_000).await;
            stored.delete("deleted").await;
            leave_garbage(&client, "demo", garbage).await;
            if step.name().starts_with("gc.") {
                // Epochs are closed one run after they were opened.
                gc.whole(&cluster);
            }
        };
        trial(&cluster, once, step, number % 2 == 1, more, async || once.whole(&cluster)).await;
        assert_whole(&cluster, step.name());
    }
    let found = fsck(&cluster);
    assert!(!is_clean(&found), "there is something to do: {found}");

    // Two at once, and again, for what was written in the last epoch.
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for once in [&gc, &gc, &cleanup, &cleanup] {
                let cluster = &cluster;
                scope.spawn(move || once.run(cluster));
            }
        });
        assert_whole(&cluster, "two agents at once");
        gc.whole(&cluster);
        cleanup.whole(&cluster);
    }
    let found = fsck(&cluster);
    assert!(is_clean(&found), "{found}");
    stored.lock().await.check().await;
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

/// Keys of a namespace on all OSDs.
async fn keys_of(client: &Client, osds: u32, namespace: NamespaceId) -> usize {
    let deadline = real::env().deadline_in(PATIENCE);
    let prefix = osd_keys::namespace_marker(namespace);
    let mut found = 0;
    for osd in 0..osds {
        let osd = client.osd(OsdId::from_u32(osd), deadline).await.unwrap();
        let last = next_prefix(&prefix).map(|end| (end, false));
        let range = RangeQuery { first: prefix.to_vec(), last, ..RangeQuery::all() };
        let page = osd.range(range, Priority::High, deadline).await.unwrap();
        assert!(!page.has_more);
        found += page.items.len();
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deleted_namespace_leaves_on_osds_is_deleted_by_whichever_agent_lives() {
    const OSDS: u32 = 4;
    let mut options = options();
    (options.nodes, options.osds_per_node) = (4, 1);
    let cluster = Cluster::start("maintenance-deleted", options);
    // From here on only those that this test runs.
    process::signal_pid(cluster.pid("maintenance-0"), Signal::KILL);
    let mut doomed = Stored::new(&cluster, "doomed");
    doomed.user.create_namespace().await.unwrap();
    for n in 0..12 {
        doomed.put(&format!("object {n}"), 50_000).await;
    }
    let client = client(&cluster).await;
    let deadline = real::env().deadline_in(PATIENCE);
    let name = NamespaceName::new("doomed").unwrap();
    let id = client.namespace(&name, deadline).await.unwrap().unwrap().id;
    assert!(keys_of(&client, OSDS, id).await > 24);
    cluster.alba(&["delete-namespace", "doomed", "--now"]).unwrap();
    let items = || cluster.alba(&["list-work"]).unwrap()["count"].as_u64().unwrap();
    wait::until("each OSD is an item of the work queue", PATIENCE, || {
        let items = items();
        if items == 4 { Ok(()) } else { Err(items.to_string()) }
    });
    // No message waits for what is left: the OSDs serve a new namespace at once.
    assert!(keys_of(&client, OSDS, id).await > 24);
    let mut fresh = Stored::new(&cluster, "doomed");
    fresh.user.create_namespace().await.unwrap();
    fresh.put("object", 50_000).await;
    fresh.check().await;

    let work = Once::maintenance(&cluster, "work");
    work.dies_at(&cluster, Step::WorkUnmarked.into(), async || {}).await;
    assert!(items() > 0);
    wait::until("another agent has done it", PATIENCE, || {
        work.run(&cluster);
        let items = items();
        if items == 0 { Ok(()) } else { Err(items.to_string()) }
    });
    assert_eq!(keys_of(&client, OSDS, id).await, 0);
    fresh.check().await;
    assert_whole(&cluster, "in the end");
}
