//! Three empty OSDs are added to twelve that are filled to the same level, and filled, in a cluster of real processes beside clients:
//! `cargo bench -p alba-tests --bench rebalance`. One JSON line per measurement.
//!
//! Preset `default`: 5+4, 12 OSDs on 4 nodes at ALBA_BENCH_FILL (60) percent of ALBA_BENCH_CAPACITY_MIB (768) each; the empty ones are on a fifth. `rebalance/fill/…`:
//! the distance between the fullest and the emptiest OSD in percent of their capacity. `rebalance/moved`: bytes that moved, beside the least
//! for a perfectly even fill. `rebalance/beside`: MB/s (10^6 bytes) moved in rounds beside clients that ask at fixed times, and `rebalance/slice/…`,
//! `rebalance/put/…`: what slices of 4 KiB and puts of 1 MiB took in these rounds, with rounds without moves in between as the limit.
//! `rebalance/idle`: what is left, without clients. The agent goes at its default rates. Limit `copy`: as in the bench `repair`.
//! ALBA_BENCH_ROUNDS (3) of at most ALBA_BENCH_SECONDS (5) each, ALBA_BENCH_SLICES (200) and ALBA_BENCH_PUTS (10) per second; ALBA_BENCH_PROGRAM: another build of the daemons. ALBA_BENCH_SAMPLES: a file for what each
//! request took (tests/src/bench/rounds.rs).

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

/// Bytes of an object: four chunks, and 9/5 of it on the disks.
const OBJECT: u64 = 20 << 20;

const FULL: u64 = 12;
const EMPTY: u64 = 3;

fn start(capacity: u64) -> Cluster {
    let mut options = Options::new(&program(env!("CARGO_BIN_EXE_alba-under-test")));
    options.more.extend(["--osd-capacity".to_owned(), capacity.to_string()]);
    let mut set = |key: &str, value: &str| options.env.push((key.to_owned(), value.to_owned()));
    // No rates: only how soon it begins.
    set("ALBA_REBALANCER__REBALANCE__EVERY", "1s");
    // Disks so small need small segments.
    set("ALBA_ASD_SERVER__ASD__SEGMENT_BYTES", "16777216");
    Cluster::start("bench-rebalance", options)
}

/// Packed bytes on each OSD, by the metadata; those of no OSD are not named.
fn held(cluster: &Cluster) -> Vec<u64> {
    let shown = cluster.alba(&["show-namespace", NAMESPACE]).unwrap();
    let pairs = shown["storage_per_osd"].as_array().unwrap().iter();
    pairs.map(|pair| pair[1].as_u64().unwrap()).filter(|held| *held > 0).collect()
}

/// Between the fullest and the emptiest, in percent of the capacity.
fn spread(held: &[u64], osds: u64, capacity: u64) -> f64 {
    let most = held.iter().copied().max().unwrap_or(0);
    let least = if held.len() as u64 == osds { held.iter().copied().min().unwrap_or(0) } else { 0 };
    as_f64(most - least) * 100.0 / as_f64(capacity)
}

fn main() {
    let bench = Bench::from_environment();
    if !bench.wants("rebalance") {
        return;
    }
    let capacity = number("ALBA_BENCH_CAPACITY_MIB", 768) << 20;
    let stored = capacity * FULL * number("ALBA_BENCH_FILL", 60) / 100;
    let mut cluster = start(capacity);
    cluster.alba(&["pause-task", "rebalance"]).unwrap();
    // Long before the rounds: a disk may be busy with giving back the blocks of its files after they are gone.
    let mut copy = CopyAround::before(cluster.scratch(), 1 << 20, as_f64(capacity * FULL / 10));
    store_sliced(&cluster);
    fill(&cluster, OBJECT, usize::try_from(stored * 5 / 9 / OBJECT).unwrap(), 4);
    cluster.kill_everything(|_| {});
    cluster.set_nodes(5);
    cluster.up();
    let before = held(&cluster);
    let even = before.iter().sum::<u64>() / (FULL + EMPTY);
    let least = as_f64(before.iter().map(|held| held.saturating_sub(even)).sum());
    print("rebalance/stored", as_f64(before.iter().sum()) / 1e6, "MB", None);
    print("rebalance/fill/before", spread(&before, FULL + EMPTY, capacity), "% between", None);
    let task = Task {
        cluster: &cluster,
        process: "rebalancer-0",
        name: "rebalance",
        counter: "alba_rebalance_moved_bytes_total",
    };
    until_still(&task);

    let clients = Clients::start(&cluster, Rates::from_environment());
    let count = u32::try_from(number("ALBA_BENCH_ROUNDS", 3)).unwrap();
    let rounds = rounds(&task, clients, count, least * 0.8, bench.seconds);
    assert!(!rounds.with.is_empty(), "nothing moved");
    print("rebalance/beside", Stretch::speed(&rounds.with), "MB/s", Some(("copy", copy.around())));
    rounds.print("rebalance", "moves");
    // What is left, to the end.
    let rest = task.work(Instant::now(), f64::INFINITY, Duration::from_secs(120));
    if let Some(idle) = rest.filter(|idle| idle.bytes > 0.0) {
        let speed = Stretch::speed(std::slice::from_ref(&idle));
        print("rebalance/idle", speed, "MB/s", Some(("copy", copy.around())));
    }
    let after = held(&cluster);
    print("rebalance/fill/after", spread(&after, FULL + EMPTY, capacity), "% between", None);
    print("rebalance/moved", task.done() / 1e6, "MB", Some(("least", least / 1e6)));
    let outlook = task.metric("alba_rebalance_outlook");
    print("rebalance/outlook", outlook.unwrap_or(-1.0), "0 is even", None);
}
