//! Clients that ask at fixed times, whether the ones before were answered or not: what they wait counts from when they
//! wanted to ask, so that a server that is slow for a while does not hide it by being asked less.
//!
//! Each client is a thread with a proxy connection of its own. The timer of tokio has a resolution of 1 ms, which is as
//! much as a slice takes: they sleep in the kernel.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use alba_core::env::real;
use alba_core::ids::{NamespaceName, ObjectName};
use alba_proxy::client::ProxyClient;
use rand::RngExt;
use tokio::runtime::Runtime;

use super::number;
use super::times::{Times, ms};
use crate::cluster::Cluster;
use crate::content;

/// The namespace that `alba up` makes, with the default preset.
pub const NAMESPACE: &str = "demo";

/// Bytes of an object whose slices are read: one chunk of the default preset.
const SLICED: u64 = 5 << 20;

/// How many there are.
const OBJECTS: usize = 48;

/// Bytes of a slice, and of an object that is put.
const SLICE: i32 = 4 << 10;
const PUT: u64 = 1 << 20;

/// Clients that read slices, and clients that put. So many that none has to wait for its own last answer, as a rule.
const READERS: u32 = 16;
const WRITERS: u32 = 8;

const PATIENCE: Duration = Duration::from_secs(120);

/// A request: when it was to be sent, since the beginning, and how long after that it was answered.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    took: Duration,
}

/// What is asked for each second.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Slices of 4 KiB.
    pub slices: u64,
    /// Objects of 1 MiB.
    pub puts: u64,
}

impl Rates {
    /// `ALBA_BENCH_SLICES` (200) and `ALBA_BENCH_PUTS` (10): some tenth of what two cores can do.
    pub fn from_environment() -> Self {
        Self { slices: number("ALBA_BENCH_SLICES", 200), puts: number("ALBA_BENCH_PUTS", 10) }
    }
}

/// Clients at work.
pub struct Clients {
    /// What the times of samples and stretches count from.
    pub began: Instant,
    stop: Arc<AtomicBool>,
    readers: Vec<JoinHandle<Vec<Sample>>>,
    writers: Vec<JoinHandle<Vec<Sample>>>,
}

/// What all of them saw.
pub struct Seen {
    slices: Vec<Sample>,
    puts: Vec<Sample>,
}

/// One client's connection.
struct Connection {
    runtime: Runtime,
    env: alba_core::env::Env,
    namespace: NamespaceName,
    proxy: ProxyClient,
}

impl Connection {
    fn open(proxy: std::net::SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let env = real::env();
        let connected = ProxyClient::connect(&env, proxy, env.deadline_in(PATIENCE));
        let proxy = runtime.block_on(connected).unwrap();
        Self { runtime, env, namespace: NamespaceName::new(NAMESPACE).unwrap(), proxy }
    }

    fn put(&mut self, name: &str, file: &std::path::Path) {
        let (name, deadline) = (ObjectName::new(name).unwrap(), self.env.deadline_in(PATIENCE));
        let put = self.proxy.upload_object(&self.namespace, &name, file, true, None, deadline);
        self.runtime.block_on(put).unwrap();
    }

    fn slice(&mut self, name: &str, offset: u64) {
        let slice = (i64::try_from(offset).unwrap(), SLICE);
        let request = [(ObjectName::new(name).unwrap(), vec![slice])];
        let deadline = self.env.deadline_in(PATIENCE);
        let read = self.proxy.read_slices(&self.namespace, &request, false, deadline);
        let data = self.runtime.block_on(read).unwrap();
        assert_eq!(data.len(), usize::try_from(SLICE).unwrap());
    }
}

fn sliced(number: usize) -> String {
    format!("sliced-{number}")
}

/// Stores `count` objects of `size` bytes, of `threads` clients, for what is to be lost or moved.
pub fn fill(cluster: &Cluster, size: u64, count: usize, threads: usize) {
    let file = cluster.scratch().join("fill");
    content::write_file(&file, "fill", size).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let file = &file;
            scope.spawn(move || {
                let mut connection = Connection::open(cluster.proxy());
                for number in (thread..count).step_by(threads) {
                    connection.put(&format!("fill-{number}"), file);
                }
            });
        }
    });
}

/// Stores the objects whose slices are read.
pub fn store_sliced(cluster: &Cluster) {
    let file = cluster.scratch().join("sliced");
    content::write_file(&file, "sliced", SLICED).unwrap();
    let mut connection = Connection::open(cluster.proxy());
    (0..OBJECTS).for_each(|number| connection.put(&sliced(number), &file));
}

/// Asks at the times `client`, `client` + `clients`, … of a rate until it is told to stop.
fn ask(
    began: Instant,
    (client, clients): (u32, u32),
    rate: u64,
    stop: &AtomicBool,
    mut request: impl FnMut(),
) -> Vec<Sample> {
    let mut samples = Vec::new();
    if rate == 0 {
        return samples;
    }
    let between = Duration::from_secs(1) / u32::try_from(rate).unwrap();
    for number in (client..).step_by(usize::try_from(clients).unwrap()) {
        let at = between * number;
        std::thread::sleep((began + at).saturating_duration_since(Instant::now()));
        if stop.load(Ordering::Relaxed) {
            break;
        }
        request();
        samples.push(Sample { at, took: began.elapsed() - at });
    }
    samples
}

impl Clients {
    /// Begins. Objects that are put overwrite a few names, so that what is stored does not grow.
    pub fn start(cluster: &Cluster, rates: Rates) -> Self {
        let (stop, proxy) = (Arc::new(AtomicBool::new(false)), cluster.proxy());
        let file = cluster.scratch().join("put");
        content::write_file(&file, "put", PUT).unwrap();
        let connections =
            |count: u32| -> Vec<Connection> { (0..count).map(|_| Connection::open(proxy)).collect() };
        let (readers, writers) = (connections(READERS), connections(WRITERS));
        let began = Instant::now();
        let readers = (0..).zip(readers).map(|(client, mut connection)| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                ask(began, (client, READERS), rates.slices, &stop, || {
                    let mut rng = rand::rng();
                    let place = rng.random_range(0..SLICED / u64::try_from(SLICE).unwrap());
                    connection
                        .slice(&sliced(rng.random_range(0..OBJECTS)), place * u64::try_from(SLICE).unwrap());
                })
            })
        });
        let readers = readers.collect();
        let writers = (0..).zip(writers).map(|(client, mut connection)| {
            let (stop, file): (_, PathBuf) = (stop.clone(), file.clone());
            std::thread::spawn(move || {
                let name = format!("put-{client}");
                ask(began, (client, WRITERS), rates.puts, &stop, || connection.put(&name, &file))
            })
        });
        let writers = writers.collect();
        Self { began, stop, readers, writers }
    }

    /// Ends them; what they saw.
    pub fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let all = |clients: Vec<JoinHandle<Vec<Sample>>>| -> Vec<Sample> {
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        };
        Seen { slices: all(self.readers), puts: all(self.writers) }
    }
}

impl Seen {
    /// Slices that were to be read in any of these stretches of time; none when there are none.
    pub fn slices(&self, stretches: &[Range<Duration>]) -> Option<Times> {
        times(&self.slices, stretches)
    }

    /// All of them, a line each: what it was, when it was to be sent and how long it took, in milliseconds.
    pub fn lines(&self) -> String {
        let line = |kind: &str, s: &Sample| format!("{kind} {:.3} {:.3}\n", ms(s.at), ms(s.took));
        let slices = self.slices.iter().map(|sample| line("slice", sample));
        slices.chain(self.puts.iter().map(|sample| line("put", sample))).collect()
    }

    /// The same of puts.
    pub fn puts(&self, stretches: &[Range<Duration>]) -> Option<Times> {
        times(&self.puts, stretches)
    }
}

fn times(samples: &[Sample], stretches: &[Range<Duration>]) -> Option<Times> {
    let within = |sample: &&Sample| stretches.iter().any(|stretch| stretch.contains(&sample.at));
    Times::of(samples.iter().filter(within).map(|sample| sample.took).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_to_be_sent_in_a_stretch_counts_from_when_it_was_to_be_sent() {
        let ms = Duration::from_millis;
        let samples: Vec<Sample> = (0..200).map(|n| Sample { at: ms(n), took: ms(n) }).collect();
        let found = times(&samples, &[ms(0)..ms(50), ms(100)..ms(150)]).unwrap();
        assert_eq!((found.count, found.p50, found.p99), (100, ms(49), ms(148)));
        assert!(times(&samples, &[ms(200)..ms(300)]).is_none());
    }

    #[test]
    fn a_client_that_was_held_up_asks_at_once_for_what_it_has_missed() {
        let (began, stop) = (Instant::now(), AtomicBool::new(false));
        let mut asked = 0;
        let samples = ask(began, (1, 2), 1000, &stop, || {
            asked += 1;
            if asked == 1 {
                std::thread::sleep(Duration::from_millis(20));
            }
            stop.store(asked == 5, Ordering::Relaxed);
        });
        let at: Vec<u128> = samples.iter().map(|sample| sample.at.as_millis()).collect();
        assert_eq!(at, [1, 3, 5, 7, 9]);
        // The second was to be sent at 3 ms, while the first was not answered before 21.
        assert!(samples[1].took >= Duration::from_millis(18), "{samples:?}");
    }
}
