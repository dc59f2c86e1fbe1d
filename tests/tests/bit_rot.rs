//! Bits flip in one of a hundred stored fragments: one scrub finds them all, `alba status` says so from the first one on, all are
//! repaired, and then it says that all is well again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use alba_client::Client;
use alba_core::env::osd::OsdKey;
use alba_core::env::real;
use alba_core::ids::{NamespaceName, WorkId};
use alba_core::osd_keys::FragmentAddress;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, WorkItem};
use alba_tests::agents::Once;
use alba_tests::cluster::{Cluster, Options};
use alba_tests::device::Device;
use alba_tests::upkeep::{PATIENCE, Stored, assert_whole, client, wait_clean};
use alba_tests::wait;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

const NS: &str = "ward";

/// 2 + 2 fragments, all of which three of the four nodes can have.
const POLICY: [u32; 4] = [2, 2, 3, 2];

const OBJECTS: usize = 200;

/// Two data fragments of half of it.
const SIZE: u64 = 64 << 10;

fn options() -> Options {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    options.osds_per_node = 2;
    let mut set = |key: &str, value: &str| options.env.push((key.to_owned(), value.to_owned()));
    // What is read comes from the disk, and little has to be searched for what is to rot.
    set("ALBA_ASD_SERVER__ASD__BLOCK_CACHE_BYTES", "0");
    set("ALBA_ASD_SERVER__ASD__SEGMENT_BYTES", "4194304");
    set("ALBA_MAINTENANCE__ADAPT_TO_CLIENTS", "false");
    set("ALBA_MAINTENANCE__TASKS__REPAIR__EVERY", "1s");
    set("ALBA_MAINTENANCE__TASKS__CLEANUP__EVERY", "1s");
    set("ALBA_MAINTENANCE__TASKS__GC__EVERY", "2s");
    set("ALBA_MAINTENANCE__GC_GRACE", "1s");
    // A run reads everything; the test says when.
    set("ALBA_MAINTENANCE__SCRUB_PERIOD", "10m");
    set("ALBA_MAINTENANCE__TASKS__SCRUB__ENABLED", "false");
    options
}

fn name(object: usize) -> String {
    format!("object-{object:03}")
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

/// The segments of OSD number `index`.
fn segments(cluster: &Cluster, index: usize) -> Vec<PathBuf> {
    let mut all = Vec::new();
    files_below(&cluster.data_dir(), &mut all);
    let own = format!("asd-{index}");
    all.retain(|path| {
        path.parent().unwrap().ends_with("segments")
            && path.components().any(|part| part.as_os_str() == own.as_str())
    });
    all
}

/// Flips a bit of a fragment where it is stored.
async fn rot(cluster: &Cluster, index: usize, key: OsdKey, rng: &mut StdRng) {
    let value = Device::of(cluster, index).get(key).await.unwrap().value;
    let at = rng.random_range(0..value.len() - 32);
    let needle = &value[at..at + 32];
    let mut flipped = 0;
    for segment in segments(cluster, index) {
        let bytes = std::fs::read(&segment).unwrap();
        let file = File::options().write(true).open(&segment).unwrap();
        // What was moved may still be where it was, too.
        for (place, _) in bytes.windows(32).enumerate().filter(|(_, window)| *window == needle) {
            let byte = needle[0] ^ (1 << rng.random_range(0..8));
            file.write_all_at(&[byte], u64::try_from(place).unwrap()).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 0, "the fragment is not found on OSD {index}");
}

/// Fragments that are known to want repair.
async fn known(client: &Client) -> BTreeSet<FragmentAddress> {
    let (mut found, mut after) = (BTreeSet::new(), None::<WorkId>);
    loop {
        let deadline = real::env().deadline_in(PATIENCE);
        let query = AbmQuery::Work { after, max: 100 };
        let AbmAnswer::Work(page) = client.directory().query(query, deadline).await.unwrap() else {
            panic!("no answer to Work")
        };
        after = page.items.last().map(|record| record.id);
        found.extend(page.items.into_iter().filter_map(|record| match record.item {
            WorkItem::RepairBadFragment { object, chunk, fragment, version, .. } => {
                Some(FragmentAddress { object_id: object, chunk, fragment, version })
            }
            _ => None,
        }));
        if !page.has_more {
            return found;
        }
    }
}

/// What `alba status` says: is all well, and why not?
fn status(cluster: &Cluster) -> (bool, Value) {
    let output = cluster.run(&["status", "--to-json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let result = &answer["result"];
    let well = result["health"] == json!("healthy");
    assert_eq!(well, output.status.success(), "{answer}");
    (well, json!([result["health"], result["reasons"], result["namespaces"]]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_scrub_finds_all_rot_and_the_status_tells_until_it_is_repaired() {
    let cluster = Cluster::start("bit-rot", options());
    let preset = cluster.scratch().join("preset.json");
    let text = json!({
        "policies": [POLICY], "fragment_size": 256 << 10, "osds": ["all"], "compression": "none",
        "fragment_checksum": ["blake3"], "fragment_encryption": ["none"],
        "object_checksum": { "allowed": [["crc-32c"]], "default": ["crc-32c"], "verify_upload": true },
    });
    std::fs::write(&preset, text.to_string()).unwrap();
    cluster.alba(&["create-preset", "ward", "--input-url", preset.to_str().unwrap()]).unwrap();
    cluster.alba(&["create-namespace", NS, "ward"]).unwrap();
    let client = client(&cluster).await;
    let deadline = real::env().deadline_in(PATIENCE);
    let namespace = client.namespace(&NamespaceName::new(NS).unwrap(), deadline).await.unwrap().unwrap().id;
    let mut stored = Stored::new(&cluster, NS);
    for object in 0..OBJECTS {
        stored.put(&name(object), SIZE).await;
    }
    let well = |what: &str| {
        wait::until(what, PATIENCE, || match status(&cluster) {
            (true, _) => Ok(()),
            (false, why) => Err(why.to_string()),
        });
    };
    well("all is well before");
    wait_clean(&cluster, "each object has its fragments, and nothing else is there");

    // So that what is found is seen before it is repaired.
    cluster.alba(&["pause-task", "work"]).unwrap();
    let seed: u64 =
        std::env::var("ALBA_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fragments = Vec::new();
    for index in 0..cluster.ready.osds.len() {
        for (key, address) in Device::of(&cluster, index).fragments(namespace).await {
            fragments.push((index, key, address));
        }
    }
    assert_eq!(fragments.len(), OBJECTS * 4);
    fragments.shuffle(&mut rng);
    let mut rotten: BTreeSet<FragmentAddress> = BTreeSet::new();
    for (index, key, address) in fragments {
        if rotten.len() >= OBJECTS * 4 / 100 {
            break;
        }
        // Two of the four can be lost.
        if rotten.iter().filter(|other| other.object_id == address.object_id).count() < 2 {
            rot(&cluster, index, key, &mut rng).await;
            rotten.insert(address);
        }
    }
    well("nobody knows of it");

    let scrub = Once::maintenance(&cluster, "scrub");
    let mut looks = 0;
    let ended = std::thread::scope(|scope| {
        let run = scope.spawn(|| scrub.run(&cluster));
        // From the first one on.
        while !run.is_finished() {
            let before =
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(known(&client)));
            let (well, why) = status(&cluster);
            if !before.is_empty() {
                assert!(!well, "{} fragments are known to be damaged: {why}", before.len());
                looks += 1;
            }
        }
        run.join().unwrap()
    });
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(known(&client).await, rotten, "one scrub finds all, and nothing else");
    let (is_well, why) = status(&cluster);
    assert!(!is_well, "{why}");
    println!("{} fragments of {}; {looks} looks while they were found", rotten.len(), OBJECTS * 4);

    cluster.alba(&["resume-task", "work"]).unwrap();
    wait::until_async("all are repaired", PATIENCE, async || {
        let (is_well, why) = status(&cluster);
        let left = known(&client).await;
        assert!(left.is_empty() || !is_well, "{} fragments are left: {why}", left.len());
        if left.is_empty() { Ok(()) } else { Err(format!("{} are left", left.len())) }
    })
    .await;
    assert_whole(&cluster, "all are repaired");
    let since = Instant::now();
    well("all is well after");
    println!("green {:.1} s after the checker found the cluster whole", since.elapsed().as_secs_f64());

    // Every fragment is read once more: none is damaged now.
    cluster.alba(&["verify-namespace", NS, "--job-name", "after", "--factor", "2"]).unwrap();
    let found = wait::until("the job is finished", PATIENCE, || {
        let progress = cluster.alba(&["show-job-progress", "after"]).unwrap();
        if progress["finished"] == json!(true) { Ok(progress) } else { Err(progress.to_string()) }
    });
    assert_eq!(found["count"], json!(OBJECTS), "{found}");
    assert_eq!(found["fragments_checksum_mismatch"], json!(0), "{found}");
    assert_eq!(found["fragments_detected_missing"], json!(0), "{found}");
    wait_clean(&cluster, "the damaged ones are gone");
    stored.check().await;
}
