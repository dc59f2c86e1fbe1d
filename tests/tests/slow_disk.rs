//! One of twelve storage daemons is slow, or stopped: reads and writes go on around it.
//!
//! What is asserted does not depend on how fast the machine is. How much longer slices take is measured by
//! `just slow-disk`, and is exact in simulated time (`alba-client`, `tests::slow`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    unreachable_pub,
    dead_code,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

#[path = "disks/reader.rs"]
mod reader;

use std::time::{Duration, Instant};

use alba_client::ClientError;
use alba_core::wire::asd::Slowness;
use alba_tests::cluster::{Cluster, Options};
use futures_util::future::join_all;
use reader::Reader;
use rustix::process::Signal;

const OBJECTS: usize = 8;

/// Bytes of a fragment; each object is one chunk of five of them.
const FRAGMENT: usize = 128 << 10;

/// A slice's deadline. Calls to an OSD may take longer than that: nobody is saved by giving up a call.
const DEADLINE: Duration = Duration::from_secs(20);

async fn store(reader: &Reader) {
    reader.create_namespace().await;
    for object in 0..OBJECTS {
        reader.put(&format!("o{object}"), 5 * FRAGMENT).await.unwrap();
    }
}

/// A slice out of each fragment of each object, all at once.
async fn slices(reader: &Reader) -> Vec<Result<(), ClientError>> {
    let places = (0..OBJECTS).flat_map(|object| (0..5).map(move |fragment| (object, fragment)));
    let reads = places.map(async |(object, fragment)| {
        let offset = u64::try_from(fragment * FRAGMENT + 8192).unwrap();
        reader.slice(&format!("o{object}"), offset, 4096, DEADLINE).await
    });
    join_all(reads).await
}

fn failed(reads: &[Result<(), ClientError>]) -> Vec<&ClientError> {
    reads.iter().filter_map(|read| read.as_ref().err()).collect()
}

fn slowness(seconds: f64) -> Option<Slowness> {
    Some(Slowness { fixed: seconds, variable: 0.0 })
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_writes_go_on_around_a_slow_disk_and_not_without_hedges() {
    let cluster = Cluster::start("slow-disk", Options::new(env!("CARGO_BIN_EXE_alba-under-test")));
    assert_eq!(cluster.ready.osds.len(), 12);
    let reader = Reader::connect(&cluster, |config| config.osd_timeout_ms = 60_000).await;
    let unhedged = Reader::connect(&cluster, |config| {
        config.osd_timeout_ms = 60_000;
        config.hedge = false;
    })
    .await;
    store(&reader).await;
    for reader in [&reader, &unhedged] {
        for _ in 0..3 {
            assert_eq!(failed(&slices(reader).await), [] as [&ClientError; 0]);
        }
    }
    // The one that has what is asked for.
    let slow = reader.osd_of(&cluster, "o0", 0).await;
    let osd = reader.osd(&cluster, slow);
    for seconds in [0.05, 1.0] {
        osd.set_slowness(slowness(seconds), reader.env.deadline_in(DEADLINE)).await.unwrap();
        for round in 0..3 {
            assert_eq!(failed(&slices(&reader).await), [] as [&ClientError; 0], "beside {seconds} s");
            reader.put(&format!("beside-{seconds}-{round}"), 5 * FRAGMENT).await.unwrap();
        }
    }
    osd.set_slowness(None, reader.env.deadline_in(DEADLINE)).await.unwrap();

    cluster.signal_osd(slow, Signal::STOP);
    for round in 0..3 {
        assert_eq!(failed(&slices(&reader).await), [] as [&ClientError; 0], "beside a stopped one");
        for object in 0..OBJECTS {
            reader.whole(&format!("o{object}"), 5 * FRAGMENT, DEADLINE).await.unwrap();
        }
        reader.put(&format!("beside-stopped-{round}"), 5 * FRAGMENT).await.unwrap();
    }
    let counted = reader.client.statistics();
    assert!(counted.hedged_reads > 0 && counted.chunks_rescued > 0, "{counted:?}");

    let reads = slices(&unhedged).await;
    let failures = failed(&reads);
    assert!(!failures.is_empty(), "without hedges a stopped disk must show, or this test tests nothing");
    assert!(failures.iter().all(|error| matches!(error, ClientError::Deadline { .. })), "{failures:?}");
    assert_eq!(unhedged.client.statistics().hedged_reads, 0);

    cluster.signal_osd(slow, Signal::CONT);
    assert_eq!(failed(&slices(&reader).await), [] as [&ClientError; 0]);
}

/// Slices at once in the measurement: enough that the slow disk is always being asked.
const AT_ONCE: usize = 4;

/// How slices are asked for.
#[derive(Clone, Copy)]
enum Load {
    /// One after the other, as fast as they come: two cores have nothing left, and what a computed slice takes from the
    /// others is seen, too.
    Full,
    /// So many in a second, whether those before came or not. Each is measured from when it was due.
    Paced(f64),
}

/// Reads slices for some time; gives how long each took, sorted.
async fn measure(reader: &Reader, load: Load, time: Duration) -> Vec<Duration> {
    let begin = Instant::now();
    let until = begin + time;
    let workers = (0..AT_ONCE).map(async |worker| {
        let mut took = Vec::new();
        let mut number = worker;
        while Instant::now() < until {
            let (object, place) = (number % OBJECTS, number * 7919 % (5 * FRAGMENT / 4096));
            let offset = u64::try_from(place * 4096).unwrap();
            let due = match load {
                Load::Full => Instant::now(),
                Load::Paced(rate) => {
                    let due =
                        begin + Duration::from_secs_f64(f64::from(u32::try_from(number).unwrap()) / rate);
                    tokio::time::sleep_until(due.into()).await;
                    due
                }
            };
            reader.slice(&format!("o{object}"), offset, 4096, DEADLINE).await.unwrap();
            took.push(due.elapsed());
            number += AT_ONCE;
        }
        took
    });
    let mut took: Vec<Duration> = join_all(workers).await.into_iter().flatten().collect();
    took.sort_unstable();
    took
}

fn at(took: &[Duration], permille: usize) -> f64 {
    took[(took.len() * permille / 1000).min(took.len() - 1)].as_secs_f64() * 1000.0
}

fn slow_down(seconds: f64) -> Option<Slowness> {
    (seconds < f64::INFINITY).then(|| slowness(seconds)).flatten()
}

/// The same, with the fragments that were asked for beyond what was needed, in percent of these.
async fn measure_reads(reader: &Reader, load: Load, time: Duration) -> (Vec<Duration>, f64) {
    let before = reader.client.statistics();
    let took = measure(reader, load, time).await;
    let now = reader.client.statistics();
    let needed = now.fragments_needed - before.fragments_needed;
    let extra = (now.fragments_asked - before.fragments_asked).saturating_sub(needed);
    let exact = |count: u64| f64::from(u32::try_from(count).unwrap());
    (took, 100.0 * exact(extra) / exact(needed))
}

/// Prints a line of JSON for each case: percentiles in milliseconds, and the ratio of its p99 to the p99 just before.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: just slow-disk"]
async fn measure_slices_beside_a_slow_disk() {
    let cluster = Cluster::start("slow-disk-bench", Options::new(env!("CARGO_BIN_EXE_alba-under-test")));
    let reader = Reader::connect(&cluster, |_| {}).await;
    store(&reader).await;
    let slow = reader.osd_of(&cluster, "o0", 0).await;
    let osd = reader.osd(&cluster, slow);
    let (warm, time) = (Duration::from_secs(1), Duration::from_secs(5));
    let most = measure(&reader, Load::Full, warm).await.len();
    let quarter = f64::from(u32::try_from(most).unwrap()) / 4.0;
    for (load, name) in [(Load::Paced(quarter), "a quarter"), (Load::Full, "full")] {
        for (case, seconds) in [("50 ms", 0.05), ("1 s", 1.0), ("stopped", f64::INFINITY)] {
            // After the case before: until it is known to be well.
            let since = Instant::now();
            while measure_reads(&reader, load, warm).await.1 > 1.0 {
                assert!(since.elapsed() < Duration::from_secs(120), "still gone around");
            }
            let known_after = since.elapsed().as_secs_f64();
            let (well, extra) = measure_reads(&reader, load, time).await;
            match slow_down(seconds) {
                None => cluster.signal_osd(slow, Signal::STOP),
                slowness => osd.set_slowness(slowness, reader.env.deadline_in(DEADLINE)).await.unwrap(),
            }
            // The first second does not count.
            measure(&reader, load, warm).await;
            let beside = measure(&reader, load, time).await;
            println!(
                "{{\"load\":\"{name}\",\"case\":\"{case}\",\"slices\":{},\"p50_ms\":{:.3},\"p99_ms\":{:.3},\
                 \"slices_beside\":{},\"p50_beside_ms\":{:.3},\"p99_beside_ms\":{:.3},\
                 \"p999_beside_ms\":{:.3},\"ratio_p99\":{:.2},\"extra_reads_when_well_percent\":{extra:.2},\
                 \"known_to_be_well_after_s\":{known_after:.1}}}",
                well.len(),
                at(&well, 500),
                at(&well, 990),
                beside.len(),
                at(&beside, 500),
                at(&beside, 990),
                at(&beside, 999),
                at(&beside, 990) / at(&well, 990),
            );
            match slow_down(seconds) {
                None => cluster.signal_osd(slow, Signal::CONT),
                Some(_) => osd.set_slowness(None, reader.env.deadline_in(DEADLINE)).await.unwrap(),
            }
        }
    }
}
