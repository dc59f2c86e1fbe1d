//! The daemon as a process, over TCP, beside what the machine can do, in the same run:
//! `cargo bench -p asd-server --bench asd [-- <part of a name>]`. One JSON line per measurement.
//!
//! `asd/put/<bytes>/<clients>` (limits, as lines of their own: `overwrite`, O_DIRECT pwrite + fdatasync by 16 threads into
//! a prewritten file; `append`, the same amounts to fresh files; `store`, a bare store behind as many connections),
//! `asd/partial-get/4096/<clients>` (of values in its
//! cache, with ALBA's client; `asd/partial-get-bare/...` with the echo's own client; limits: the echo of threads, and of
//! tokio) and `asd/get/1048576/<clients>` (limits: O_DIRECT reads by 16 threads, loopback copy), at last
//! `asd/memory`. Medians of ALBA_BENCH_ROUNDS (3) interleaved rounds of ALBA_BENCH_SECONDS (1) each, in
//! ALBA_BENCH_DIR (the build's directory); about 6 GiB there.

// A bench is an edge: it measures real time and prints.
#![allow(clippy::disallowed_methods, clippy::print_stderr, clippy::unwrap_used, clippy::expect_used)]

mod daemon;
mod raw_limits;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alba_core::checksum::ChecksumAlgorithm;
use alba_core::env::osd::{OsdKey, StoredValue, ValueSlice};
use bytes::Bytes;
use daemon::{Client, Daemon};
use raw_limits::{Limit, Measurement, disk, interleaved, net, store};
use tokio::runtime::Runtime;

/// Threads of the raw measurements, and most clients.
const THREADS: usize = 16;
const CLIENTS: [usize; 3] = [1, 4, THREADS];
const MIB: usize = 1 << 20;

/// Segments written ahead, in bytes: what is overwritten is reused long before they run out.
const PREPARED: u64 = 4 << 30;

/// Values that a client writes before it overwrites its first one.
const KEYS: usize = 16;

/// Whole values that are read: more than the daemon's caches hold.
const READ: usize = 256;

/// Slices that are read again and again: they fit into the daemon's cache.
const HOT: usize = 256;

const SLICE: u32 = 4096;

struct Bench {
    runtime: Runtime,
    daemon: Daemon,
    time: Duration,
    rounds: usize,
    wanted: Vec<String>,
}

fn main() -> io::Result<()> {
    // What cargo passes on begins with dashes.
    let wanted = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let directory = raw_limits::directory()?;
    let file = disk::prewritten(directory.path(), THREADS)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let daemon = runtime.block_on(Daemon::start(&directory.path().join("asd"), PREPARED))?;
    let (time, rounds) = raw_limits::settings_or(1, 3);
    let bench = Bench { runtime, daemon, time, rounds, wanted };
    bench.puts(directory.path(), &file)?;
    bench.partial_gets()?;
    bench.gets(&file)?;
    let unit = 1024.0 * 1024.0;
    print("asd/memory", bench.daemon.peak_memory()? / unit, "MiB", Some(("memory", 256.0)));
    Ok(())
}

fn print(name: &str, value: f64, unit: &'static str, limit: Option<(&str, f64)>) {
    let limit = limit.map(|(name, value)| Limit { name: name.to_owned(), value });
    Measurement { name: name.to_owned(), value, unit, limit }.print();
}

fn key(client: usize, nth: usize) -> OsdKey {
    format!("client-{client:02}-{nth:03}").into()
}

/// Random bytes: some disks are faster with zeros.
fn stored(len: usize, seed: usize) -> StoredValue {
    let value = Bytes::copy_from_slice(disk::Memory::new(len, u64::try_from(seed).unwrap()).get());
    StoredValue { checksum: ChecksumAlgorithm::Crc32c.of(&value), value }
}

/// A slice of a value: each client begins elsewhere, none in the first block.
fn slice(nth: usize) -> (OsdKey, ValueSlice) {
    let nth = nth % HOT;
    let offset = u32::try_from(1 + nth % 200).unwrap() * SLICE;
    (key(0, nth % READ), ValueSlice { offset, len: SLICE })
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|part| name.contains(part.as_str()))
    }

    /// Each client calls `work` with its number and a count, one call at a time: calls per second of all together.
    fn clients<F: Future<Output = io::Result<()>> + Send>(
        &self,
        clients: usize,
        work: impl Fn(Client, usize, usize) -> F + Send + Sync + 'static,
    ) -> io::Result<f64> {
        let (time, work) = (self.time, Arc::new(work));
        self.runtime.block_on(async {
            let all: Vec<Client> = (0..clients).map(|_| self.daemon.client()).collect();
            // Connected before it begins.
            for client in &all {
                client.delete(vec![key(99, 0)]).await?;
            }
            let began = Instant::now();
            let each = |(number, client): (usize, Client)| {
                let work = work.clone();
                tokio::spawn(Box::pin(async move {
                    let mut count = 0;
                    while began.elapsed() < time {
                        work(client.clone(), number, count).await?;
                        count += 1;
                    }
                    Ok::<usize, io::Error>(count)
                }))
            };
            let running: Vec<_> = all.into_iter().enumerate().map(each).collect();
            let mut total = 0;
            for task in running {
                total += task.await.map_err(io::Error::other)??;
            }
            Ok(disk::per_second(u64::try_from(total).unwrap(), began.elapsed()))
        })
    }

    /// Puts, round and round the keys of each client; MB/s (10^6 bytes). Afterwards, not timed, they are deleted, so
    /// that nothing but free segments is left to the next one.
    fn put(&self, clients: usize, values: &Arc<Vec<StoredValue>>, len: usize) -> io::Result<f64> {
        let values = values.clone();
        let rate = self.clients(clients, move |client, number, count| {
            let value = values[number].clone();
            async move { client.put(key(number, count % KEYS), value).await }
        })?;
        let all = (0..clients).flat_map(|client| (0..KEYS).map(move |nth| key(client, nth))).collect();
        self.runtime.block_on(self.daemon.client().delete(all))?;
        Ok(rate * f64::from(u32::try_from(len).unwrap()) / 1e6)
    }

    fn puts(&self, directory: &Path, file: &Path) -> io::Result<()> {
        for len in [64 << 10, 256 << 10, MIB] {
            let prefix = format!("asd/put/{len}");
            if !self.wants(&prefix) {
                continue;
            }
            let values = Arc::new((0..THREADS).map(|seed| stored(len, seed)).collect());
            let bare = |clients| store::store(file, clients, len, self.time);
            let put = |clients| self.put(clients, &values, len);
            let [a, b, c] = CLIENTS;
            let [overwrite, append, bare_a, put_a, bare_b, put_b, bare_c, put_c] = interleaved(
                self.rounds,
                [
                    &mut || disk::overwrite(file, THREADS, len, self.time),
                    &mut || disk::append(directory, THREADS, len, self.time),
                    &mut || bare(a),
                    &mut || put(a),
                    &mut || bare(b),
                    &mut || put(b),
                    &mut || bare(c),
                    &mut || put(c),
                ],
            )?;
            for (clients, bare, rate) in [(a, bare_a, put_a), (b, bare_b, put_b), (c, bare_c, put_c)] {
                let name = format!("{prefix}/{clients}");
                print(&name, rate, "MB/s", Some((&format!("raw/overwrite/{len}/{THREADS}"), overwrite)));
                print(&name, rate, "MB/s", Some((&format!("raw/append/{len}/{THREADS}"), append)));
                print(&name, rate, "MB/s", Some((&format!("raw/store/{len}/{clients}"), bare)));
            }
        }
        Ok(())
    }

    /// What is read.
    fn fill(&self) -> io::Result<()> {
        let client = self.daemon.client();
        self.runtime.block_on(async {
            for nth in 0..READ {
                client.put(key(0, nth), stored(MIB, nth)).await?;
            }
            Ok(())
        })
    }

    fn partial_gets(&self) -> io::Result<()> {
        if !self.wants("asd/partial-get") {
            return Ok(());
        }
        self.fill()?;
        let client = self.daemon.client();
        self.runtime.block_on(async {
            // Twice: what is seen once need not be kept.
            for nth in 0..2 * HOT {
                let (key, slice) = slice(nth);
                client.partial_get(key, slice).await?;
            }
            Ok::<(), io::Error>(())
        })?;
        for clients in CLIENTS {
            let (hot, range) = slice(0);
            let request = self.daemon.bare(&hot, range)?.1.len();
            // Length, status and "found", then the slice.
            let answer = 4 + 4 + 1 + 4096;
            let [threads, tokio, ours, bare] = interleaved(
                self.rounds,
                [
                    &mut || net::echo(net::Ends::Threads, clients, request, answer, self.time),
                    &mut || net::echo(net::Ends::Tokio, clients, request, answer, self.time),
                    &mut || {
                        self.clients(clients, |client, number, count| {
                            let (key, slice) = slice(number * 17 + count);
                            async move { client.partial_get(key, slice).await }
                        })
                    },
                    &mut || net::ask(clients, self.time, answer, || self.daemon.bare(&hot, range)),
                ],
            )?;
            for (kind, rate) in [("partial-get", ours), ("partial-get-bare", bare)] {
                let name = format!("asd/{kind}/4096/{clients}");
                for (label, echo) in [("threads", threads), ("tokio", tokio)] {
                    print(
                        &name,
                        rate,
                        "answers/s",
                        Some((&format!("raw/tcp-echo/{label}/4096/{clients}"), echo)),
                    );
                }
            }
        }
        Ok(())
    }

    fn gets(&self, file: &Path) -> io::Result<()> {
        if !self.wants("asd/get") {
            return Ok(());
        }
        self.fill()?;
        for clients in CLIENTS {
            let [read, copy, rate] = interleaved(
                self.rounds,
                [
                    &mut || disk::read(file, THREADS, MIB, self.time),
                    &mut || net::copy(clients, MIB, self.time),
                    &mut || {
                        let rate = self.clients(clients, move |client, number, count| {
                            let nth = (number * READ / clients + count) % READ;
                            async move { client.get(key(0, nth), MIB).await }
                        })?;
                        Ok(rate * f64::from(u32::try_from(MIB).unwrap()) / 1e6)
                    },
                ],
            )?;
            let name = format!("asd/get/{MIB}/{clients}");
            print(&name, rate, "MB/s", Some((&format!("raw/read/{MIB}/{THREADS}"), read)));
            print(&name, rate, "MB/s", Some((&format!("raw/tcp-copy/{MIB}/{clients}"), copy)));
        }
        Ok(())
    }
}
