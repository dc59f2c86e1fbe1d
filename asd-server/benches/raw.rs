//! The raw limits of this machine, beside fio where it is installed, and how much of them the disk layer reaches with no
//! storage engine on top: `cargo bench -p asd-server --bench raw [-- <part of a name>]`. One JSON line per measurement.
//!
//! Names: `raw/overwrite|read|append/<bytes>/<threads>` (limit: fio's figure, in the same rounds),
//! `raw/tcp-copy/<bytes>/<connections>`, `raw/tcp-echo/<threads|tokio>/<answer bytes>/<connections>`, and
//! `io/<mode>/overwrite|read/<bytes>/<callers>` (limit: the raw figure, in the same rounds). Medians of
//! ALBA_BENCH_ROUNDS (3) rounds of ALBA_BENCH_SECONDS (2) each, in ALBA_BENCH_DIR (the build's directory).

// A bench is an edge: it measures real time and prints.
#![allow(clippy::disallowed_methods, clippy::print_stderr, clippy::unwrap_used, clippy::expect_used)]

mod raw_limits;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alba_core::env::real::disk::{IoConfig, IoMode, RealDisk};
use alba_core::env::{Disk, DiskFile};
use bytes::Bytes;
use raw_limits::disk::RANGE;
use raw_limits::{Limit, Measurement, disk, fio, interleaved, net};

const THREADS: usize = 16;
const BLOCKS: [usize; 3] = [64 << 10, 256 << 10, 1 << 20];

fn main() -> io::Result<()> {
    // What cargo passes on begins with dashes.
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let directory = raw_limits::directory()?;
    files(directory.path(), &wants)?;
    sockets(&wants)
}

fn print(name: &str, value: f64, unit: &'static str, limit: Option<(&str, f64)>) {
    let limit = limit.map(|(name, value)| Limit { name: name.to_owned(), value });
    Measurement { name: name.to_owned(), value, unit, limit }.print();
}

fn files(directory: &Path, wants: &dyn Fn(&str) -> bool) -> io::Result<()> {
    let (time, rounds) = raw_limits::settings();
    let with_fio = fio::available();
    if !with_fio {
        eprintln!("no fio here: its figures are missing");
    }
    let file = disk::prewritten(directory, THREADS)?;
    for (block, threads) in BLOCKS.map(|block| (block, THREADS)).into_iter().chain([(1 << 20, 1)]) {
        let name = format!("raw/append/{block}/{threads}");
        if wants(&name) {
            let mut ours = || disk::append(directory, threads, block, time);
            let mut theirs = || fio::run("append", directory, threads, block, time);
            compare(&name, rounds, &mut ours, with_fio.then_some(&mut theirs))?;
        }
    }
    for block in BLOCKS {
        let name = format!("raw/overwrite/{block}/{THREADS}");
        if wants(&name) {
            let mut ours = || disk::overwrite(&file, THREADS, block, time);
            let mut theirs = || fio::run("overwrite", &file, THREADS, block, time);
            compare(&name, rounds, &mut ours, with_fio.then_some(&mut theirs))?;
        }
    }
    for block in [4 << 10, 1 << 20] {
        let name = format!("raw/read/{block}/{THREADS}");
        if wants(&name) {
            let mut ours = || disk::read(&file, THREADS, block, time);
            let mut theirs = || fio::run("read", &file, THREADS, block, time);
            compare(&name, rounds, &mut ours, with_fio.then_some(&mut theirs))?;
        }
    }
    layer(directory, &file, wants)
}

/// Ours with fio's as its limit.
fn compare(
    name: &str,
    rounds: usize,
    ours: &mut dyn FnMut() -> io::Result<f64>,
    theirs: Option<&mut impl FnMut() -> io::Result<f64>>,
) -> io::Result<()> {
    if let Some(theirs) = theirs {
        let [ours, theirs] = interleaved(rounds, [ours, theirs])?;
        print(name, ours, "MB/s", Some(("fio", theirs)));
    } else {
        let [ours] = interleaved(rounds, [ours])?;
        print(name, ours, "MB/s", None);
    }
    Ok(())
}

/// The disk layer beside what it is made of.
fn layer(directory: &Path, file: &Path, wants: &dyn Fn(&str) -> bool) -> io::Result<()> {
    let (time, rounds) = raw_limits::settings();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let io_config = |mode| IoConfig { threads: THREADS, mode, ..IoConfig::default() };
    for (mode, label) in [(IoMode::Auto, "auto"), (IoMode::PageCache, "page-cache")] {
        let real = RealDisk::with(directory, io_config(mode))?;
        let opened = runtime.block_on(real.open("prewritten"))?;
        for block in BLOCKS {
            let name = format!("io/{label}/overwrite/{block}/{THREADS}");
            if wants(&name) {
                let mut raw = || disk::overwrite(file, THREADS, block, time);
                let mut layered = || runtime.block_on(callers(&opened, block, time, Work::Overwrite));
                let [layered, raw] = interleaved(rounds, [&mut layered, &mut raw])?;
                print(&name, layered, "MB/s", Some((&format!("raw/overwrite/{block}/{THREADS}"), raw)));
            }
        }
        for block in [4 << 10, 1 << 20] {
            let name = format!("io/{label}/read/{block}/{THREADS}");
            if wants(&name) {
                let mut raw = || disk::read(file, THREADS, block, time);
                let mut layered = || runtime.block_on(callers(&opened, block, time, Work::Read));
                let [layered, raw] = interleaved(rounds, [&mut layered, &mut raw])?;
                print(&name, layered, "MB/s", Some((&format!("raw/read/{block}/{THREADS}"), raw)));
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Work {
    Overwrite,
    Read,
}

/// As many tasks as the raw measurement has threads, doing the same.
async fn callers(file: &Arc<dyn DiskFile>, block: usize, time: Duration, work: Work) -> io::Result<f64> {
    let done = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let size = u64::try_from(block).unwrap();
    let mut tasks = Vec::new();
    for task in 0..u64::try_from(THREADS).unwrap() {
        let (file, done) = (file.clone(), done.clone());
        // Two parts, as a header and a value would be.
        let data = Bytes::copy_from_slice(disk::Memory::new(block, task).get());
        let parts = vec![data.slice(..100), data.slice(100..)];
        tasks.push(tokio::spawn(async move {
            let mut bytes = 0;
            while began.elapsed() < time {
                let offset = task * RANGE + bytes % RANGE;
                match work {
                    Work::Overwrite => {
                        file.write_at(offset, parts.clone()).await?;
                        file.sync().await?;
                    }
                    Work::Read => drop(file.read_at(offset, block).await?),
                }
                bytes += size;
            }
            done.fetch_add(bytes, Ordering::Relaxed);
            Ok::<(), io::Error>(())
        }));
    }
    for task in tasks {
        task.await.map_err(io::Error::other)??;
    }
    Ok(disk::per_second(done.load(Ordering::Relaxed), began.elapsed()) / 1e6)
}

fn sockets(wants: &dyn Fn(&str) -> bool) -> io::Result<()> {
    let (time, rounds) = raw_limits::settings();
    for connections in [1, 4, 16] {
        let name = format!("raw/tcp-copy/{}/{connections}", 1 << 20);
        if wants(&name) {
            let [rate] = interleaved(rounds, [&mut || net::copy(connections, 1 << 20, time)])?;
            print(&name, rate, "MB/s", None);
        }
    }
    for connections in [1, 4, 16] {
        for (ends, label) in [(net::Ends::Threads, "threads"), (net::Ends::Tokio, "tokio")] {
            let name = format!("raw/tcp-echo/{label}/4096/{connections}");
            if wants(&name) {
                let [rate] = interleaved(rounds, [&mut || net::echo(ends, connections, 100, 4096, time)])?;
                print(&name, rate, "answers/s", None);
            }
        }
    }
    Ok(())
}
