//! The simulated outside: clock, network, disks and tasks of any number of nodes, driven by one seed on one thread.
//!
//! The same seed gives the same run, event for event: [`Trace::hash`] proves it. For that to hold, code under simulation
//! reaches the outside only through [`crate::env`], never iterates a `HashMap` where the order matters, and marks every
//! `tokio::select!` as `biased`. The simulator must never loosen what the real outside promises, nor promise more: a
//! connection is as unreliable as TCP, a disk keeps only what was synced.

mod clock;
pub mod disk;
mod executor;
mod given;
mod image;
pub mod memory_osd;
mod net;
mod rng;
mod spawn;
mod trace;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rand::rngs::StdRng;
use thiserror::Error;

use super::{Env, Moment};
use executor::{Core, MAIN};

pub use given::Given;
pub use trace::Trace;

/// Polls without time moving after which a run counts as spinning.
const SPINNING: u64 = 5_000_000;

/// Why a run ended without its result.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Stuck {
    /// Nothing is woken and no timer is set: it would wait for ever.
    #[error("deadlock at {at:?}: nothing can run any more; tasks: {tasks:?}")]
    Deadlock {
        /// When.
        at: Duration,
        /// The tasks that wait.
        tasks: Vec<String>,
    },
    /// It was not done within the virtual time it was given.
    #[error("not done at {at:?}; tasks: {tasks:?}")]
    OutOfTime {
        /// When.
        at: Duration,
        /// The tasks that were left.
        tasks: Vec<String>,
    },
    /// Tasks wake each other without end, and time stands still.
    #[error("spinning at {at:?}; tasks: {tasks:?}")]
    Spinning {
        /// When.
        at: Duration,
        /// The tasks that were left.
        tasks: Vec<String>,
    },
}

/// A run. Dropping it ends all its tasks.
pub struct Simulation {
    core: Arc<Core>,
}

impl Simulation {
    /// A run with nothing in it yet, at time zero.
    pub fn new(seed: u64) -> Self {
        Self { core: Arc::new(Core::new(seed)) }
    }

    /// A machine. The same number is the same machine; numbers are below 2^24.
    pub fn node(&self, number: u32) -> SimNode {
        SimNode { core: self.core.clone(), number }
    }

    /// Runs tasks and time until `main` is done, for at most `limit` of virtual time from now. Tasks that are left go
    /// on at the next call.
    pub fn run<T>(&self, limit: Duration, main: impl Future<Output = T>) -> Result<T, Stuck> {
        let mut main = pin!(main);
        let limit = self.core.now().plus(limit);
        let waker = self.core.waker(MAIN);
        self.core.wake_main();
        let mut polls = 0_u64;
        loop {
            match self.core.next_ready() {
                Some(MAIN) => {
                    if let Poll::Ready(output) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return Ok(output);
                    }
                }
                Some(task) => self.core.poll_task(task),
                None if self.core.advance(limit) => polls = 0,
                None => return Err(self.stuck()),
            }
            polls += 1;
            if polls > SPINNING {
                return Err(Stuck::Spinning { at: self.now().0, tasks: self.core.task_names() });
            }
        }
    }

    fn stuck(&self) -> Stuck {
        let (at, tasks) = (self.now().0, self.core.task_names());
        if self.core.has_timers() { Stuck::OutOfTime { at, tasks } } else { Stuck::Deadlock { at, tasks } }
    }

    /// Virtual time.
    pub fn now(&self) -> Moment {
        self.core.now()
    }

    /// What has happened.
    pub fn trace(&self) -> Trace {
        self.core.trace.clone()
    }

    /// A generator for the scenario's own choices; each name is a stream of its own.
    pub fn rng(&self, name: &str) -> StdRng {
        rng::stream(self.core.seed(), &format!("scenario {name}"))
    }

    /// Stops bytes from one node to another (one way) until [`Simulation::heal`]; they are late then, not lost.
    pub fn block(&self, from: &SimNode, to: &SimNode) {
        self.core.record(from.number, "block", &to.number.to_le_bytes());
        self.core.network.block(from.number, to.number);
    }

    /// Adds a delay to what one node sends to another from now on, until [`Simulation::heal`].
    pub fn slow(&self, from: &SimNode, to: &SimNode, by: Duration) {
        self.core.record(from.number, "slow", &to.number.to_le_bytes());
        self.core.network.slow(from.number, to.number, by);
    }

    /// Resets the connections between two nodes. New ones can be made.
    pub fn sever(&self, one: &SimNode, other: &SimNode) {
        self.core.record(one.number, "sever", &other.number.to_le_bytes());
        self.core.network.sever(one.number, other.number);
    }

    /// Opens all blocked links and takes away all delays.
    pub fn heal(&self) {
        self.core.record(0, "heal", &[]);
        self.core.network.heal();
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        self.core.clear();
    }
}

/// A machine of a run.
#[derive(Clone)]
pub struct SimNode {
    core: Arc<Core>,
    number: u32,
}

impl SimNode {
    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The outside as a process started on it now sees it. After [`SimNode::crash`] this [`Env`] starts no tasks and
    /// makes no connections any more; the restarted process takes a new one.
    pub fn env(&self) -> Env {
        let (core, node, life) = (&self.core, self.number, self.core.node_life(self.number));
        let spawn = Arc::new(spawn::SimSpawn { core: core.clone(), node, life });
        Env {
            clock: Arc::new(clock::SimClock { core: core.clone(), node }),
            rng: core.node_rng(node),
            net: Arc::new(net::SimNet { core: core.clone(), node, life }),
            // Computing takes no time here: nothing to give way to.
            bulk: spawn.clone(),
            aside: spawn.clone(),
            spawn,
        }
    }

    /// Where others reach `port` of it.
    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(net::address_of(self.number), port)
    }

    /// Power off: its connections are reset, its listeners gone, its tasks dropped between two of their steps. What its
    /// disks keep is decided by them.
    pub fn crash(&self) {
        self.core.record(self.number, "crash", &[]);
        // Connections first: what the dropped tasks would say goodbye with must not arrive.
        self.core.network.end_node(self.number);
        self.core.end_node(self.number);
    }

    /// Stops all its tasks without ending them, as SIGSTOP does. Its connections stay open.
    pub fn stall(&self) {
        self.core.record(self.number, "stall", &[]);
        self.core.stall(self.number, true);
    }

    /// Lets a stalled node go on.
    pub fn resume(&self) {
        self.core.record(self.number, "resume", &[]);
        self.core.stall(self.number, false);
    }

    /// Sets its wall clock off by `micros` against the others.
    pub fn set_wall_offset(&self, micros: i64) {
        self.core.set_wall_offset(self.number, micros);
    }

    /// Adds an event of this node to the trace: for simulated devices.
    pub fn record(&self, kind: &'static str, detail: &[u8]) {
        self.core.record(self.number, kind, detail);
    }
}
