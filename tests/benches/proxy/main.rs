//! A whole cluster of real processes behind one proxy, beside loopback TCP and the raw disk, in the same run:
//! `cargo bench -p alba-tests --bench proxy [-- <part of a name>]`. One JSON line per measurement.
//!
//! `proxy/put/<bytes>/<clients>` and `proxy/get/<bytes>/<clients>`: whole objects from and to files, MB/s (10^6 bytes) of user data, with `…/p50`, `…/p99` (ms) and `…/cpu`, the CPU seconds per GiB of user data over all
//! processes of the cluster. `proxy/slice/<bytes>/<where>/<clients>`: slices per second at random places of objects that were written before, `<where>` being `asd` (no fragment cache), `ram` or `local` (the caches of these kinds).
//! `proxy/fairness/…`: p50 and p99 of slices of 4 KiB that one client reads `alone`, and `beside` another one that keeps 64 connections busy with uploads of 64 MiB;
//! these two take turns ALBA_BENCH_ROUNDS (3) times and are summed up. Each round leaves 8 GB or more: one is enough for a RAM disk.
//! The thread that reads goes before others where it may. `disk` is what reads of 4 KiB with nothing of ours in between take in the same seconds: all storage daemons have the one disk here. On a RAM disk (TMPDIR) it is nothing.
//! Preset `default`: 12 OSDs on 4 nodes, 5+4. Limits: `loopback`, TCP between two threads of this process, and `disk`, blocks of 1 MiB written over and synced with fdatasync.
//! ALBA_BENCH_SECONDS (5) per measurement, TMPDIR for the cluster and all files; ALBA_BENCH_PROGRAM: another build of the daemons. Takes up to 50 GiB of disk for its time.

// A bench is an edge: it measures real time and prints.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::panic
)]

mod load;

use std::time::Duration;

use alba_core::env::real;
use alba_tests::bench::times::{Times, ms};
use alba_tests::bench::{Bench, limits, number, print, program};
use alba_tests::cluster::{Cluster, Options};

/// Clients at once.
const CLIENTS: [usize; 3] = [1, 16, 64];

/// Sizes of whole objects.
const OBJECTS: [u64; 2] = [4 << 20, 64 << 20];

/// Sizes of slices.
const SLICES: [u32; 2] = [4 << 10, 64 << 10];

/// Where slices come from: the kind of fragment cache, in the proxy's configuration.
const PLACES: [(&str, &str); 3] = [("asd", "none"), ("ram", "ram"), ("local", "local")];

fn print_times(name: &str, times: Times) {
    print(&format!("{name}/p50"), ms(times.p50), "ms", None);
    print(&format!("{name}/p99"), ms(times.p99), "ms", None);
}

fn start(place: &str, cache: &str) -> Cluster {
    let mut options = Options::new(&program(env!("CARGO_BIN_EXE_alba-under-test")));
    if cache == "ram" {
        options.env.push(("ALBA_PROXY__CLIENT__FRAGMENT_CACHE__KIND".to_owned(), cache.to_owned()));
    } else {
        options.more.extend(["--fragment-cache".to_owned(), cache.to_owned()]);
    }
    // Only the daemons that serve requests are measured here.
    options.more.extend(["--osd-capacity".to_owned(), (64_u64 << 30).to_string()]);
    Cluster::start(&format!("bench-{place}"), options)
}

fn whole_objects(bench: &Bench, runtime: &tokio::runtime::Runtime) {
    let names = |op: &str| -> Vec<(String, u64, usize)> {
        OBJECTS
            .into_iter()
            .flat_map(|size| CLIENTS.into_iter().map(move |clients| (size, clients)))
            .map(|(size, clients)| (format!("proxy/{op}/{size}/{clients}"), size, clients))
            .collect()
    };
    let (puts, gets) = (names("put"), names("get"));
    if !puts.iter().chain(&gets).any(|(name, ..)| bench.wants(name)) {
        return;
    }
    let cluster = start("whole", "none");
    let (loopback, loopback_cpu) = limits::loopback(bench.seconds);
    let disk = limits::disk(cluster.scratch(), bench.seconds);
    print("proxy/loopback", loopback, "MB/s", None);
    print("proxy/loopback/cpu", loopback_cpu, "CPU-s/GiB", None);
    print("proxy/disk", disk, "MB/s", None);
    for (op, list) in [(load::Op::Put, puts), (load::Op::Get, gets)] {
        for (name, size, clients) in list {
            if !bench.wants(&name) {
                continue;
            }
            let load = runtime.block_on(load::whole(&cluster, op, size, clients, bench.seconds));
            let rate = load.bytes_per_second / 1e6;
            print(&name, rate, "MB/s", Some(("loopback", loopback)));
            print(&name, rate, "MB/s", Some(("disk", disk)));
            print_times(&name, load.times());
            print(&format!("{name}/cpu"), load.cpu_per_gib, "CPU-s/GiB", None);
            for (kind, cpu) in &load.cpu_by_kind {
                print(&format!("{name}/cpu/{kind}"), *cpu, "CPU-s/GiB", None);
            }
        }
    }
    print("proxy/memory", load::proxy_memory(&cluster), "MiB at most", None);
}

fn slices(bench: &Bench, runtime: &tokio::runtime::Runtime) {
    for (place, cache) in PLACES {
        let all = SLICES.into_iter().flat_map(|len| CLIENTS.into_iter().map(move |clients| (len, clients)));
        let wanted: Vec<_> = all
            .map(|(len, clients)| (format!("proxy/slice/{len}/{place}/{clients}"), len, clients))
            .filter(|(name, ..)| bench.wants(name))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let cluster = start(place, cache);
        let objects = runtime.block_on(load::fill(&cluster));
        for (name, len, clients) in wanted {
            let echo = limits::echo(clients, usize::try_from(len).unwrap(), bench.seconds / 2);
            let load = runtime.block_on(load::slices(&cluster, &objects, len, clients, bench.seconds));
            print(&name, load.per_second, "slices/s", Some(("loopback-echo", echo)));
            print_times(&name, load.times());
            print(&format!("{name}/cpu"), load.cpu_per_request * 1e6, "us", None);
        }
    }
}

/// Does one client see that another one asks for everything?
fn fairness(bench: &Bench, runtime: &tokio::runtime::Runtime) {
    const SLICE: u32 = 4 << 10;
    const HOGS: usize = 64;
    const BULK: u64 = 64 << 20;
    if !bench.wants("proxy/fairness") {
        return;
    }
    let cluster = start("fairness", "none");
    let objects = runtime.block_on(load::fill(&cluster));
    // Another client is another process: not of the same threads at least.
    let own = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // What is measured is the proxy, not how long this thread waits for a processor when its answer is there. Only root may.
    let first = real::go_before_all();
    real::go_first();
    print("proxy/fairness/client-goes-first", f64::from(u8::from(first)), "0 or 1", None);
    let slices = || own.block_on(load::slices(&cluster, &objects, SLICE, 1, bench.seconds));
    let disk = || limits::small_reads(cluster.scratch(), bench.seconds);
    // The disk in the same seconds; the first ones of the slices go into reading everything once.
    let measured = || {
        std::thread::scope(|scope| {
            let disk = scope.spawn(disk);
            [slices().took, disk.join().expect("the disk's times")]
        })
    };
    // In turn, as the machine is faster and slower from one ten seconds to the next.
    let (mut alone, mut beside, mut others) = ([vec![], vec![]], [vec![], vec![]], vec![]);
    for round in 0..number("ALBA_BENCH_ROUNDS", 3) {
        let now_alone = measured();
        let (now_beside, hogs) = std::thread::scope(|scope| {
            // They end after the slices do.
            let hogs = load::whole(&cluster, load::Op::Put, BULK, HOGS, bench.seconds * 2);
            let hogs = scope.spawn(|| runtime.block_on(hogs));
            (measured(), hogs.join().expect("uploads"))
        });
        let p99 = |[slices, _]: &[Vec<Duration>; 2]| ms(Times::of(slices.clone()).expect("slices").p99);
        let name = format!("proxy/fairness/beside/p99/round-{round}");
        print(&name, p99(&now_beside), "ms", Some(("alone", p99(&now_alone))));
        for (all, now) in alone.iter_mut().zip(now_alone).chain(beside.iter_mut().zip(now_beside)) {
            all.extend(now);
        }
        others.push(hogs.bytes_per_second / 1e6);
    }
    let [alone, beside] = [alone, beside].map(|all| all.map(|took| Times::of(took).expect("times")));
    print_times("proxy/fairness/alone", alone[0]);
    for ((what, beside), alone) in ["beside", "disk"].into_iter().zip(beside).zip(alone) {
        for (part, beside, alone) in [("p50", beside.p50, alone.p50), ("p99", beside.p99, alone.p99)] {
            print(&format!("proxy/fairness/{what}/{part}"), ms(beside), "ms", Some(("alone", ms(alone))));
        }
    }
    for speed in others {
        print("proxy/fairness/others", speed, "MB/s", None);
    }
    print("proxy/fairness/memory", load::proxy_memory(&cluster), "MiB at most", None);
}

fn main() {
    let bench = Bench::from_environment();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    whole_objects(&bench, &runtime);
    slices(&bench, &runtime);
    fairness(&bench, &runtime);
}
