//! A node is lost, and rebuilt, in a cluster of real processes; beside a raw copy of as many bytes in the same run:
//! `cargo bench -p alba-tests --bench repair`. One JSON line per measurement.
//!
//! Preset `default`: 5+4 on 12 OSDs of 4 nodes, at most 3 on one; three OSDs of one node are killed and purged, so that every chunk has lost
//! two or three fragments. `repair/idle`: MB/s (10^6 bytes) of lost fragments stored again while no client is there. `repair/beside`: the
//! same in rounds beside clients that ask at fixed times, and `repair/slice/…`, `repair/put/…`: what slices of 4 KiB and puts of 1 MiB
//! took in these rounds, with rounds without repair in between as the limit. The agent goes at its default rates.
//! Limit `copy`: fragments' files copied one by one, each read from the disk, written and synced, by one thread or by four, whichever is faster;
//! the mean of before and after what it is the limit of, both without clients.
//! ALBA_BENCH_MIB (6144) of objects, ALBA_BENCH_ROUNDS (3) of at most ALBA_BENCH_SECONDS (5) each, ALBA_BENCH_SLICES (200) and ALBA_BENCH_PUTS (10) per second; ALBA_BENCH_PROGRAM: another build of the daemons.

// A bench is an edge: it measures real time and prints.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::panic
)]

use std::time::{Duration, Instant};

use alba_tests::bench::limits::{CopyAround, as_f64};
use alba_tests::bench::open_loop::{Clients, NAMESPACE, Rates, fill, store_sliced};
use alba_tests::bench::rounds::{Stretch, Task, rounds, until_still};
use alba_tests::bench::{Bench, number, print, program};
use alba_tests::cluster::{Cluster, Options};

/// Bytes of an object: four chunks.
const OBJECT: u64 = 20 << 20;

/// Of what was lost so much is rebuilt without clients; the rest beside them.
const IDLE: f64 = 0.25;

/// The OSDs of one node.
const LOST: [usize; 3] = [9, 10, 11];

fn start() -> Cluster {
    let mut options = Options::new(&program(env!("CARGO_BIN_EXE_alba-under-test")));
    options.more.extend(["--osd-capacity".to_owned(), (64_u64 << 30).to_string()]);
    let mut set = |key: &str, value: &str| options.env.push((key.to_owned(), value.to_owned()));
    // No rates: only how soon it begins.
    set("ALBA_MAINTENANCE__TASKS__REPAIR__EVERY", "1s");
    Cluster::start("bench-repair", options)
}

/// Packed bytes on the OSDs that will be lost.
fn held(cluster: &Cluster) -> f64 {
    let osds = cluster.alba(&["list-osds"]).unwrap();
    let lost = LOST.map(|index| cluster.ready.osds[index].long_id.clone());
    let ids: Vec<u64> = (osds.as_array().unwrap().iter())
        .filter(|osd| lost.iter().any(|long_id| osd["long_id"] == long_id.as_str()))
        .map(|osd| osd["id"].as_u64().unwrap())
        .collect();
    let shown = cluster.alba(&["show-namespace", NAMESPACE]).unwrap();
    let pairs = shown["storage_per_osd"].as_array().unwrap().iter();
    let held = pairs.filter(|pair| ids.contains(&pair[0].as_u64().unwrap()));
    as_f64(held.map(|pair| pair[1].as_u64().unwrap()).sum())
}

fn main() {
    let bench = Bench::from_environment();
    if !bench.wants("repair") {
        return;
    }
    let (mib, count) = (number("ALBA_BENCH_MIB", 6144), number("ALBA_BENCH_ROUNDS", 3));
    let cluster = start();
    let task = Task {
        cluster: &cluster,
        process: "maintenance-0",
        name: "repair",
        counter: "alba_repair_bytes_total",
    };
    task.pause();
    fill(&cluster, OBJECT, usize::try_from(mib.div_ceil(OBJECT >> 20)).unwrap(), 4);
    let lost = held(&cluster);
    assert!(lost > 0.0, "nothing would be lost");
    for index in LOST {
        cluster.kill_osd(index);
        cluster.alba(&["purge-osd", "--long-id", &cluster.ready.osds[index].long_id]).unwrap();
    }
    // Whole from the beginning, on the OSDs that are left: what clients read is no better in later rounds.
    store_sliced(&cluster);
    until_still(&task);
    print("repair/lost", lost / 1e6, "MB", None);
    let mut copy = CopyAround::before(cluster.scratch(), 1 << 20, lost * IDLE);
    let idle = task.work(Instant::now(), lost * IDLE, Duration::from_secs(120)).expect("repair begins");
    let speed = Stretch::speed(std::slice::from_ref(&idle));
    print("repair/idle", speed, "MB/s", Some(("copy", copy.around())));
    print("repair/idle/cpu", idle.cpu_per_mb(), "ms per MB", None);

    let left = lost - task.done();
    let clients = Clients::start(&cluster, Rates::from_environment());
    let rounds = rounds(&task, clients, u32::try_from(count).unwrap(), left, bench.seconds);
    assert!(!rounds.with.is_empty(), "all was rebuilt before the rounds: more ALBA_BENCH_MIB are needed");
    print("repair/beside", Stretch::speed(&rounds.with), "MB/s", Some(("copy", copy.around())));
    for stretch in &rounds.with {
        print("repair/beside/cpu", stretch.cpu_per_mb(), "ms per MB, clients included", None);
    }
    rounds.print("repair", "repair");
    print("repair/left", (lost - task.done()) / 1e6, "MB", None);
}
