//! Metadata commits beside what disk and store can do, in the same run:
//! `cargo bench -p alba-metadata --bench metadata [-- <part of a name>]`. One JSON line per measurement.
//!
//! `metadata/put/<kind>/<clients>`: commits of an object with nine fragments per second through a whole group, with p50 and
//! p99 and the CPU time of the process per put (clients and all replicas, background work of the stores) as lines of their own. Kinds: `local` (one store without replication), `raft-1` and `raft-3` (replicas in this process,
//! each with its own log and store, over TCP on loopback). The clients run in this process too. Limits: `store`, the same changes committed and synced into
//! fjall alone, in batches as large as there are clients and, beside `local`, in batches as large as the group's own were; and `fdatasync`, a raw append of 4 KiB and its sync. `etcd-1` and `etcd-3`: Debian's etcd with so many members and a transaction of the rows that a put alone
//! writes; needs `apt-get install etcd-server`. `metadata/list/<names>`: a page of 200 names. `metadata/restart/<objects>` and
//! `metadata/size/<objects>`: opening the store again until it answers, and its bytes; `metadata/memory/<objects>`: the most memory of the process until then, when nothing else is measured.
//! Store and groups are measured in turn, ALBA_BENCH_ROUNDS (3) times, and the median counts: how much fjall merges meanwhile differs.
//! ALBA_BENCH_SECONDS (3) per measurement, ALBA_BENCH_OBJECTS (1000000) to list, in ALBA_BENCH_DIR (the build's directory).

// A bench is an edge: it measures real time and prints.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::panic
)]

mod etcd;
mod group;
mod limits;
mod objects;
mod replicas;
mod scale;

use std::path::PathBuf;
use std::time::Duration;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Clients at once.
const CLIENTS: [usize; 4] = [1, 16, 64, 256];

/// Others beside us, with how many members.
const PEERS: [(&str, usize); 2] = [("etcd-1", 1), ("etcd-3", 3)];

/// What is asked for, and where.
pub(crate) struct Bench {
    wanted: Vec<String>,
    pub(crate) seconds: Duration,
    rounds: u64,
    pub(crate) objects: u64,
    directory: PathBuf,
}

impl Bench {
    fn from_environment() -> Self {
        let number = |name: &str, default: u64| {
            std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
        };
        Self {
            // What cargo passes on begins with dashes.
            wanted: std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect(),
            seconds: Duration::from_secs(number("ALBA_BENCH_SECONDS", 3)),
            rounds: number("ALBA_BENCH_ROUNDS", 3).max(1),
            objects: number("ALBA_BENCH_OBJECTS", 1_000_000),
            directory: std::env::var_os("ALBA_BENCH_DIR")
                .map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from),
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|part| name.contains(part))
    }

    /// An empty directory that goes with what is returned.
    pub(crate) fn directory(&self) -> tempfile::TempDir {
        tempfile::tempdir_in(&self.directory).expect("a directory")
    }
}

/// CPU time of this process so far, in seconds: what a busy machine does not distort much. Zero where there is no /proc.
pub(crate) fn cpu_seconds() -> f64 {
    cpu_seconds_of("self")
}

/// The same of another process.
pub(crate) fn cpu_seconds_of(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Fields 14 and 15 of proc(5), in ticks of 10 ms; the name before them may hold anything but its closing bracket.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// The most memory that this process has had, in bytes. Zero where there is no /proc.
pub(crate) fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// One line. A limit is what the same machine gave without us, in the same run.
pub(crate) fn print(name: &str, value: f64, unit: &str, limit: Option<(&str, f64)>) {
    match limit {
        Some((limit_name, limit)) => println!(
            r#"{{"name":"{name}","value":{value:.1},"unit":"{unit}","limit":"{limit_name}","limit_value":{limit:.1},"ratio":{:.3}}}"#,
            value / limit
        ),
        None => println!(r#"{{"name":"{name}","value":{value:.1},"unit":"{unit}"}}"#),
    }
}

fn print_rate(name: &str, load: &group::Load, store: f64, equal: Option<f64>) {
    print(name, load.per_second, "commits/s", Some(("store", store)));
    if let (Some(equal), Some(puts)) = (equal, load.per_batch) {
        let limit = format!("store, {puts} puts at a time");
        print(name, load.per_second, "commits/s", Some((&limit, equal)));
    }
}

fn print_load(name: &str, load: &group::Load, store: f64, equal: Option<f64>, fdatasync: f64) {
    print_rate(name, load, store, equal);
    print(name, load.per_second, "commits/s", Some(("fdatasync", fdatasync)));
    print(&format!("{name}/cpu"), load.cpu * 1e6, "us", None);
    print(&format!("{name}/p50"), load.p50.as_secs_f64() * 1e3, "ms", None);
    print(&format!("{name}/p99"), load.p99.as_secs_f64() * 1e3, "ms", None);
}

fn main() {
    let bench = Bench::from_environment();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    for clients in CLIENTS {
        let name = |kind: &str| format!("metadata/put/{kind}/{clients}");
        let wanted: Vec<_> = group::KINDS.into_iter().filter(|(kind, _)| bench.wants(&name(kind))).collect();
        let peers: Vec<_> = PEERS.into_iter().filter(|(kind, _)| bench.wants(&name(kind))).collect();
        if wanted.is_empty() && peers.is_empty() {
            continue;
        }
        let fdatasync = limits::fdatasync(&bench);
        let mut stores = Vec::new();
        let mut loads: Vec<Vec<(group::Load, Option<f64>)>> = wanted.iter().map(|_| Vec::new()).collect();
        for round in 0..bench.rounds {
            let store = limits::store(&bench, clients, clients);
            stores.push(store);
            for ((kind, what), loads) in wanted.iter().zip(&mut loads) {
                let load = runtime.block_on(group::puts(&bench, *what, clients));
                let equal = load.per_batch.map(|puts| limits::store(&bench, clients, puts).0);
                let name = format!("{}/round-{round}", name(kind));
                print_rate(&name, &load, store.0, equal);
                loads.push((load, equal));
            }
        }
        // Of an odd number of rounds the one in the middle.
        stores.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (store, store_cpu) = stores[stores.len() / 2];
        print(&name("store"), store, "commits/s", None);
        print(&format!("{}/cpu", name("store")), store_cpu * 1e6, "us", None);
        for ((kind, _), mut loads) in wanted.into_iter().zip(loads) {
            loads.sort_by(|one, other| one.0.per_second.total_cmp(&other.0.per_second));
            let (load, equal) = &loads[loads.len() / 2];
            print_load(&name(kind), load, store, *equal, fdatasync);
        }
        for (kind, members) in peers {
            match etcd::installed() {
                Some(etcd) => {
                    let load = runtime.block_on(etcd::puts(&bench, &etcd, members, clients));
                    print_load(&name(kind), &load, store, None, fdatasync);
                }
                None => println!(
                    r#"{{"name":"{}","skipped":"no etcd: apt-get install etcd-server"}}"#,
                    name(kind)
                ),
            }
        }
    }
    if bench.wants("metadata/list") || bench.wants("metadata/restart") || bench.wants("metadata/size") {
        scale::measure(&bench);
    }
}
