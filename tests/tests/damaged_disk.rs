//! Storage daemons are killed, and bits flip on their disks: while k fragments are good all reads are equal, and what was found
//! damaged is told; with k − 1 left the error says so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    unreachable_pub,
    dead_code,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

#[path = "disks/reader.rs"]
mod reader;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alba_client::ClientError;
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery};
use alba_tests::cluster::{Cluster, Options};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use reader::Reader;

const PATIENCE: Duration = Duration::from_secs(60);

/// Objects with their sizes: less than a fragment, one chunk, several with a rest.
const OBJECTS: [(&str, usize); 4] = [("a", 1), ("b", 70_000), ("c", 5 << 20), ("d", (11 << 20) + 17)];

async fn store(reader: &Reader) {
    reader.create_namespace().await;
    for (name, size) in OBJECTS {
        reader.put(name, size).await.unwrap();
    }
    reader.client.settle(reader.env.deadline_in(PATIENCE)).await.unwrap();
}

/// Reads everything, whole and in slices.
async fn read_all(reader: &Reader, rng: &mut StdRng) {
    for (name, size) in OBJECTS {
        reader.whole(name, size, PATIENCE).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        for _ in 0..12 {
            let offset = rng.random_range(0..size);
            let len = rng.random_range(1..=(size - offset).min(20_000));
            let read = reader.slice(name, u64::try_from(offset).unwrap(), len, PATIENCE).await;
            read.unwrap_or_else(|error| panic!("{name} from {offset}, {len} bytes: {error}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_m_disks_may_die_and_k_minus_1_are_too_few() {
    let cluster = Cluster::start("dead-disks", Options::new(env!("CARGO_BIN_EXE_alba-under-test")));
    let reader = Reader::connect(&cluster, |_| {}).await;
    store(&reader).await;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..12).collect();
    order.shuffle(&mut rng);
    let (first, rest) = order.split_at(4);
    for index in first {
        cluster.kill_osd(*index);
    }
    read_all(&reader, &mut rng).await;
    // A client that does not know who is dead.
    read_all(&Reader::connect(&cluster, |_| {}).await, &mut rng).await;

    // Of nine fragments on nine of twelve disks at most four are left.
    for index in &rest[..4] {
        cluster.kill_osd(*index);
    }
    let newcomer = Reader::connect(&cluster, |_| {}).await;
    for reader in [&reader, &newcomer] {
        for (name, size) in OBJECTS {
            let before = reader.client.statistics().fragments_asked;
            let whole = reader.whole(name, size, PATIENCE).await;
            // Of all data fragments of a chunk: at most four are there. A slice of one that is there can still be read.
            let part = if name == "a" { whole.clone() } else { reader.slice(name, 0, size, PATIENCE).await };
            let (Err(whole), Err(part)) = (&whole, &part) else { panic!("{name}: {whole:?}, {part:?}") };
            for error in [whole, part] {
                let ClientError::NotEnoughFragments { needed: 5, found, detail, .. } = error else {
                    panic!("{name}: {error}")
                };
                assert!(*found < 5 && detail.contains("OSD"), "{name}: {error}");
            }
            // Three chunks: nine fragments of each, and for a slice of each of five fragments that one and nine.
            let asked = reader.client.statistics().fragments_asked - before;
            assert!(asked <= 3 * (9 + 5 * 10), "{name}: {asked} reads for an error");
        }
    }
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { files_below(&path, found) } else { found.push(path) }
    }
}

/// The segment files of each of the cluster's OSDs.
fn segments(cluster: &Cluster) -> Vec<Vec<PathBuf>> {
    let mut all = Vec::new();
    files_below(&cluster.data_dir(), &mut all);
    let mut by_disk = std::collections::BTreeMap::<PathBuf, Vec<PathBuf>>::new();
    for path in all {
        let directory = path.parent().unwrap().to_owned();
        if directory.ends_with("segments") {
            by_disk.entry(directory).or_default().push(path);
        }
    }
    by_disk.into_values().collect()
}

/// Flips a bit of about every 50 kB that are not zero.
fn rot(segment: &Path, rng: &mut StdRng) -> usize {
    let file = File::options().read(true).write(true).open(segment).unwrap();
    let len = file.metadata().unwrap().len();
    let (mut at, mut flipped) = (rng.random_range(0..50_000), 0);
    while at < len {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        if byte != [0] {
            byte[0] ^= 1 << rng.random_range(0..8);
            file.write_all_at(&byte, at).unwrap();
            flipped += 1;
        }
        at += rng.random_range(1..100_000);
    }
    flipped
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_on_m_disks_are_found_and_told_and_never_read() {
    let cluster = Cluster::start("rotten-disks", Options::new(env!("CARGO_BIN_EXE_alba-under-test")));
    let reader = Reader::connect(&cluster, |config| config.report_osds_ms = 500).await;
    store(&reader).await;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disks = segments(&cluster);
    assert_eq!(disks.len(), 12);
    disks.shuffle(&mut rng);
    let flipped: usize = disks.iter().take(4).flatten().map(|segment| rot(segment, &mut rng)).sum();
    assert!(flipped > 20, "{flipped}");
    for _ in 0..3 {
        read_all(&reader, &mut rng).await;
    }
    let counted = reader.client.statistics();
    assert!(counted.fragments_damaged > 0, "{flipped} bits flipped, {counted:?}");

    // Told to those who repair, and to those who watch.
    let until = reader.env.deadline_in(PATIENCE);
    loop {
        let asked = reader.client.statistics().repairs_handed_over;
        let query = AbmQuery::OsdHealth(RangeQuery::all());
        let answer = reader.client.directory().query(query, until).await.unwrap();
        let AbmAnswer::OsdHealth(page) = answer else { panic!("{answer:?}") };
        let told: u64 = page.items.iter().map(|(_, health)| health.checksum_errors).sum();
        if asked > 0 && told > 0 {
            break;
        }
        assert!(until.left(&*reader.env.clock) > Duration::ZERO, "{asked} repairs, {told} errors told");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
