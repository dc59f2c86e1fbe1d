//! A task of an agent that is switched on and off beside clients, round by round, and what clients feel of it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::limits::as_f64;
use super::open_loop::{Clients, Seen};
use super::times::{Times, ms};
use super::{cpu_seconds_of_all, print};
use crate::cluster::Cluster;
use crate::{process, wait};

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Agents look every other second whether a task is paused: one that was stopped for longer looks as soon as it goes on.
const STOPPED: Duration = Duration::from_millis(2200);

/// After so long without progress a task that was paused has ended.
const STILL: Duration = Duration::from_secs(3);

/// How long a task that was resumed may take to begin, and one that was paused to end.
const PATIENCE: Duration = Duration::from_secs(90);

/// So long clients are there before the first round. With two seconds the first round without the task had slices of 10 to 55 ms in it
/// (p99) after a cluster was filled, later ones 5 to 7.
const WARM: Duration = Duration::from_secs(15);

/// The task.
pub struct Task<'a> {
    /// Where it works.
    pub cluster: &'a Cluster,
    /// The agent's process.
    pub process: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The metric that counts the bytes that it has stored elsewhere.
    pub counter: &'static str,
}

/// A stretch of time in which the task worked.
#[derive(Debug, Clone)]
pub struct Stretch {
    /// From its first progress to its last.
    pub time: Range<Duration>,
    /// What it stored meanwhile.
    pub bytes: f64,
    /// CPU time that the whole machine used meanwhile, in seconds.
    pub cpu: f64,
}

impl Stretch {
    /// MB/s of some stretches together.
    pub fn speed(stretches: &[Self]) -> f64 {
        let bytes: f64 = stretches.iter().map(|stretch| stretch.bytes).sum();
        let seconds: f64 = stretches.iter().map(|s| (s.time.end - s.time.start).as_secs_f64()).sum();
        bytes / seconds / 1e6
    }

    /// Milliseconds of CPU time that the whole machine used for each MB.
    pub fn cpu_per_mb(&self) -> f64 {
        self.cpu * 1e3 / (self.bytes / 1e6)
    }
}

/// A metric of a process; none before it was counted for the first time.
pub fn metric(at: SocketAddr, name: &str) -> Option<f64> {
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(5)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let line = answer.lines().find(|line| line.split([' ', '{']).next() == Some(name))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

impl Task<'_> {
    /// Bytes that it has stored so far.
    pub fn done(&self) -> f64 {
        self.metric(self.counter).unwrap_or(0.0)
    }

    /// A metric of its agent.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let processes = &self.cluster.ready.processes;
        let agent = processes.iter().find(|process| process.name == self.process).unwrap();
        metric(agent.metrics, name)
    }

    /// Nobody does it until [`Task::work`].
    pub fn pause(&self) {
        self.cluster.alba(&["pause-task", self.name]).unwrap();
    }

    /// Has it done until `bytes` more are stored, it has worked for `time`, or it comes to its end; then it is paused. Times count
    /// from `began`. None when it did not begin, or ended at once.
    pub fn work(&self, began: Instant, bytes: f64, time: Duration) -> Option<Stretch> {
        self.cluster.alba(&["resume-task", self.name]).unwrap();
        let (waiting, before) = (Instant::now(), self.done());
        let first = loop {
            let done = self.done();
            if done > before {
                break done;
            }
            if waiting.elapsed() > PATIENCE {
                return None;
            }
            std::thread::sleep(LOOK);
        };
        let (from, cpu_before) = (began.elapsed(), cpu_seconds_of_all());
        let (mut last, mut to, mut cpu) = (first, from, 0.0);
        loop {
            std::thread::sleep(LOOK);
            let (done, now) = (self.done(), began.elapsed());
            if done > last {
                (last, to, cpu) = (done, now, cpu_seconds_of_all() - cpu_before);
            } else if now - to > STILL {
                break;
            }
            if done - before >= bytes || now - from >= time {
                break;
            }
        }
        // The stretch ends at once; the pause takes a while.
        let pid = self.cluster.pid(self.process);
        process::signal_pid(pid, Signal::STOP);
        std::thread::sleep(STOPPED);
        self.pause();
        process::signal_pid(pid, Signal::CONT);
        until_still(self);
        Some(Stretch { time: from..to, bytes: last - first, cpu })
    }

    /// How much of its rates the agent uses, for the clients' sake.
    pub fn share(&self) -> f64 {
        self.metric("alba_maintenance_rate_share").unwrap_or(1.0)
    }
}

/// What came of rounds with and without the task.
pub struct Rounds {
    /// What clients saw.
    pub seen: Seen,
    /// While it worked.
    pub with: Vec<Stretch>,
    /// While it did not.
    pub without: Vec<Range<Duration>>,
    /// The share of its rates at the end of each stretch.
    pub shares: Vec<f64>,
}

/// Rounds with and without the task in turn, beside clients. In each it may store as much as is left, divided by the rounds that are left.
pub fn rounds(task: &Task<'_>, clients: Clients, count: u32, left: f64, time: Duration) -> Rounds {
    let began = clients.began;
    let (mut with, mut without, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    let before = task.done();
    // Connections, caches and the clients' own code are warm, and the disk has got over what came before.
    std::thread::sleep(WARM);
    for round in 0..count {
        let from = began.elapsed();
        std::thread::sleep(time);
        without.push(from..began.elapsed());
        let left = left - (task.done() - before);
        if left <= 0.0 {
            break;
        }
        let Some(stretch) = task.work(began, left / f64::from(count - round), time) else { break };
        shares.push(task.share());
        with.push(stretch);
    }
    Rounds { seen: clients.stop(), with, without, shares }
}

/// How long requests of a kind took in some stretches of time.
type Of = fn(&Seen, &[Range<Duration>]) -> Option<Times>;

impl Rounds {
    /// Prints what clients waited, with and without, by kind of request.
    pub fn print(&self, bench: &str, task: &str) {
        let with: Vec<Range<Duration>> = self.with.iter().map(|stretch| stretch.time.clone()).collect();
        let kinds: [(&str, Of); 2] = [("slice", Seen::slices), ("put", Seen::puts)];
        if let Some(file) = std::env::var_os("ALBA_BENCH_SAMPLES") {
            let stretches = |name: &str, all: &[Range<Duration>]| -> String {
                all.iter().map(|s| format!("{name} {:.3} {:.3}\n", ms(s.start), ms(s.end))).collect()
            };
            let (on, off) = (stretches("with", &with), stretches("without", &self.without));
            std::fs::write(file, on + &off + &self.seen.lines()).unwrap();
        }
        let limit = format!("without {task}");
        for (kind, of) in kinds {
            for (round, (with, without)) in with.iter().zip(&self.without).enumerate() {
                let (Some(a), Some(b)) = (
                    of(&self.seen, std::slice::from_ref(with)),
                    of(&self.seen, std::slice::from_ref(without)),
                ) else {
                    continue;
                };
                print(
                    &format!("{bench}/{kind}/p99/round-{round}"),
                    ms(a.p99),
                    "ms",
                    Some((&limit, ms(b.p99))),
                );
            }
            let (Some(with), Some(without)) = (of(&self.seen, &with), of(&self.seen, &self.without)) else {
                continue;
            };
            print(&format!("{bench}/{kind}/p50"), ms(with.p50), "ms", Some((&limit, ms(without.p50))));
            print(&format!("{bench}/{kind}/p99"), ms(with.p99), "ms", Some((&limit, ms(without.p99))));
            let (with, without) = (with.count, without.count);
            let unit = format!("requests, {without} {limit}");
            print(&format!("{bench}/{kind}/count"), as_f64(u64::try_from(with).unwrap()), &unit, None);
        }
        for (round, (stretch, share)) in self.with.iter().zip(&self.shares).enumerate() {
            print(
                &format!("{bench}/round-{round}"),
                Stretch::speed(std::slice::from_ref(stretch)),
                "MB/s",
                None,
            );
            print(&format!("{bench}/round-{round}/share"), *share, "of the rates at its end", None);
        }
    }
}

/// Waits until a task that was paused stands still.
pub fn until_still(task: &Task<'_>) {
    let mut last = (task.done(), Instant::now());
    wait::until("the task stands still", PATIENCE, || {
        let done = task.done();
        if done > last.0 {
            last = (done, Instant::now());
        }
        if last.1.elapsed() > STILL { Ok(()) } else { Err(format!("{done}")) }
    });
}
