//! The scheduler: one thread, all tasks of all nodes, the next one to run drawn from the seed.
//!
//! Not tokio's: there the order of tasks is fixed (so a seed would explore nothing), timers are rounded to
//! milliseconds, and dropping exactly one node's tasks is not possible. Code under simulation may use tokio's channels
//! and locks, which belong to no runtime; it must not use tokio's tasks and timers, which `clippy.toml` disallows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::net::Network;
use super::rng::{self, SimRng};
use super::trace::Trace;
use crate::env::Moment;
use crate::env::spawn::Task;

/// Locks, also after a panic elsewhere: the test that panicked has failed already.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The future given to [`super::Simulation::run`].
pub(super) const MAIN: u64 = 0;

/// Order of timers: by time, then by age.
pub(super) type TimerId = (Moment, u64);

/// Everything of a run that its parts share.
pub(super) struct Core {
    seed: u64,
    /// Nanoseconds since the start of the run.
    now: AtomicU64,
    woken: Arc<Woken>,
    state: Mutex<State>,
    order: Mutex<StdRng>,
    pub(super) network: Network,
    pub(super) trace: Trace,
}

#[derive(Default)]
struct State {
    next_id: u64,
    tasks: BTreeMap<u64, Slot>,
    timers: BTreeMap<TimerId, Waker>,
    nodes: BTreeMap<u32, Node>,
    /// Woken tasks of stalled nodes.
    parked: BTreeSet<u64>,
}

struct Slot {
    node: u32,
    name: &'static str,
    /// Absent while it is being polled.
    future: Option<Task>,
}

struct Node {
    life: u64,
    stalled: bool,
    wall_offset: i64,
    rng: Arc<SimRng>,
}

/// Tasks to poll. A lock of its own, the innermost: wakers are called under other locks.
#[derive(Default)]
struct Woken(Mutex<BTreeSet<u64>>);

struct TaskWaker {
    id: u64,
    woken: Arc<Woken>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        lock(&self.woken.0).insert(self.id);
    }
}

impl Core {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            now: AtomicU64::new(0),
            woken: Arc::default(),
            state: Mutex::default(),
            order: Mutex::new(rng::stream(seed, "order of tasks")),
            network: Network::new(rng::stream(seed, "network")),
            trace: Trace::default(),
        }
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn now(&self) -> Moment {
        Moment(Duration::from_nanos(self.now.load(Ordering::Relaxed)))
    }

    pub(super) fn record(&self, node: u32, kind: &'static str, detail: &[u8]) {
        self.trace.record(self.now(), node, kind, detail);
    }

    fn with_node<T>(&self, node: u32, change: impl FnOnce(&mut Node) -> T) -> T {
        let mut state = lock(&self.state);
        let seed = self.seed;
        change(state.nodes.entry(node).or_insert_with(|| Node {
            life: 0,
            stalled: false,
            wall_offset: 0,
            rng: Arc::new(SimRng::new(seed, node)),
        }))
    }

    pub(super) fn node_life(&self, node: u32) -> u64 {
        self.with_node(node, |node| node.life)
    }

    pub(super) fn node_rng(&self, node: u32) -> Arc<SimRng> {
        self.with_node(node, |node| node.rng.clone())
    }

    pub(super) fn wall_offset(&self, node: u32) -> i64 {
        self.with_node(node, |node| node.wall_offset)
    }

    pub(super) fn set_wall_offset(&self, node: u32, micros: i64) {
        self.with_node(node, |node| node.wall_offset = micros);
    }

    /// Starts a task of `node`, unless that life of it is over.
    pub(super) fn spawn(&self, node: u32, life: u64, name: &'static str, task: Task) -> Option<u64> {
        if self.node_life(node) != life {
            return None;
        }
        let id = {
            let mut state = lock(&self.state);
            state.next_id += 1;
            let id = state.next_id;
            state.tasks.insert(id, Slot { node, name, future: Some(task) });
            id
        };
        lock(&self.woken.0).insert(id);
        Some(id)
    }

    /// Drops a task. One that is being polled (it ends itself) is dropped when that poll returns.
    pub(super) fn abort(&self, id: u64) {
        let slot = lock(&self.state).tasks.remove(&id);
        // Dropped after the lock is released: what the future owns may end other tasks in turn.
        drop(slot);
    }

    /// Ends all tasks of a node and this life of it.
    pub(super) fn end_node(&self, node: u32) {
        self.with_node(node, |node| {
            node.life += 1;
            node.stalled = false;
        });
        let ended: Vec<Slot> = {
            let mut state = lock(&self.state);
            let ids: Vec<u64> =
                state.tasks.iter().filter(|(_, slot)| slot.node == node).map(|(id, _)| *id).collect();
            ids.iter().filter_map(|id| state.tasks.remove(id)).collect()
        };
        drop(ended);
    }

    /// Stops (or lets go on) a node without ending anything, as SIGSTOP does.
    pub(super) fn stall(&self, node: u32, stalled: bool) {
        self.with_node(node, |node| node.stalled = stalled);
        if !stalled {
            let parked = std::mem::take(&mut lock(&self.state).parked);
            lock(&self.woken.0).extend(parked);
        }
    }

    /// Names of the tasks that are left, for the message of a stuck run.
    pub(super) fn task_names(&self) -> Vec<String> {
        lock(&self.state).tasks.values().map(|slot| format!("node {}: {}", slot.node, slot.name)).collect()
    }

    /// Ends everything. Tasks own the core and the core owns tasks: this breaks the circle.
    pub(super) fn clear(&self) {
        self.network.clear();
        let (tasks, timers) = {
            let mut state = lock(&self.state);
            (std::mem::take(&mut state.tasks), std::mem::take(&mut state.timers))
        };
        drop(tasks);
        drop(timers);
    }

    pub(super) fn wake_at(&self, at: Moment, waker: &Waker) -> TimerId {
        let mut state = lock(&self.state);
        state.next_id += 1;
        let id = (at, state.next_id);
        state.timers.insert(id, waker.clone());
        id
    }

    pub(super) fn cancel_timer(&self, id: TimerId) {
        let waker = lock(&self.state).timers.remove(&id);
        // Dropped after the lock is released, like all wakers here: one may own a future that has timers of its own.
        drop(waker);
    }

    pub(super) fn waker(&self, id: u64) -> Waker {
        Waker::from(Arc::new(TaskWaker { id, woken: self.woken.clone() }))
    }

    /// A woken task that may run, drawn from the seed.
    pub(super) fn next_ready(&self) -> Option<u64> {
        loop {
            let id = {
                let mut woken = lock(&self.woken.0);
                if woken.is_empty() {
                    return None;
                }
                let at = lock(&self.order).random_range(0..woken.len());
                let id = *woken.iter().nth(at)?;
                woken.remove(&id);
                id
            };
            let mut state = lock(&self.state);
            let stalled = state
                .tasks
                .get(&id)
                .and_then(|slot| state.nodes.get(&slot.node))
                .is_some_and(|node| node.stalled);
            if stalled {
                state.parked.insert(id);
            } else {
                return Some(id);
            }
        }
    }

    /// Polls a task once.
    pub(super) fn poll_task(&self, id: u64) {
        let Some(mut future) = lock(&self.state).tasks.get_mut(&id).and_then(|slot| slot.future.take())
        else {
            return; // woken after its end
        };
        let waker = self.waker(id);
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        let finished = {
            let mut state = lock(&self.state);
            match (polled, state.tasks.get_mut(&id)) {
                (Poll::Pending, Some(slot)) => {
                    slot.future = Some(future);
                    return;
                }
                _ => state.tasks.remove(&id),
            }
        };
        drop(finished);
        drop(future);
    }

    /// Jumps to the next timer and wakes what waits for that moment. False when there is none up to `limit`.
    pub(super) fn advance(&self, limit: Moment) -> bool {
        let due: Vec<Waker> = {
            let mut state = lock(&self.state);
            let Some((&(at, _), _)) = state.timers.first_key_value() else { return false };
            if at > limit {
                return false;
            }
            let nanos = u64::try_from(at.0.as_nanos()).unwrap_or(u64::MAX);
            // Timers may be set in the past; time itself never goes back.
            self.now.fetch_max(nanos, Ordering::Relaxed);
            let later = state.timers.split_off(&(Moment(at.0 + Duration::from_nanos(1)), 0));
            std::mem::replace(&mut state.timers, later).into_values().collect()
        };
        due.iter().for_each(Waker::wake_by_ref);
        true
    }

    pub(super) fn wake_main(&self) {
        lock(&self.woken.0).insert(MAIN);
    }

    pub(super) fn has_timers(&self) -> bool {
        !lock(&self.state).timers.is_empty()
    }
}
