//! What the store, its readers, the writer and the upkeep of segments share.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alba_core::env::{Deadline, Disk, DiskFile, Env, within};
use openraft::storage::LogFlushed;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::entries::Entries;
use super::format::{Entry, LogId, Record, StoreId, Vote};
use super::plan::{ALL_LEAVE, ENTRIES_LEAVE, Plan};
use super::segments::Segment;
use super::{Health, LogError, LogLimits};
use crate::raft::types::TypeConfig;

/// Unit of the bound on waiting bytes.
pub(super) const ROOM: u64 = 1024;

/// What waits to be written, in this order.
pub(super) enum Item {
    /// Entries with their serials.
    Append {
        entries: Vec<(u64, Arc<Entry>)>,
        done: Option<LogFlushed<TypeConfig>>,
        /// Room in the queue.
        permit: OwnedSemaphorePermit,
    },
    /// A vote, a truncation, a purge.
    Control { record: Record, done: Option<oneshot::Sender<Result<(), LogError>>> },
    /// Goes along with the next write; nobody waits for it.
    Committed(Option<LogId>),
}

impl Item {
    /// Lengths of its records.
    pub(super) fn lens(&self) -> Vec<u64> {
        match self {
            Self::Append { entries, .. } => {
                entries.iter().map(|(_, entry)| super::format::entry_len(entry)).collect()
            }
            Self::Control { record, .. } => vec![record.encoded_len()],
            Self::Committed(id) => vec![Record::Committed(*id).encoded_len()],
        }
    }

    fn leave(&self) -> usize {
        match self {
            Self::Control { .. } => ALL_LEAVE,
            Self::Append { .. } | Self::Committed(_) => ENTRIES_LEAVE,
        }
    }

    /// Tells whoever waits.
    pub(super) fn answer(&mut self, result: Result<(), LogError>) {
        match self {
            Self::Append { done, .. } => {
                if let Some(done) = done.take() {
                    done.log_io_completed(result.map_err(io::Error::from));
                }
            }
            Self::Control { done, .. } => {
                if let Some(done) = done.take() {
                    // Who gave up waiting needs no answer.
                    drop(done.send(result));
                }
            }
            Self::Committed(_) => {}
        }
    }
}

/// The log as it will be when everything that waits is written.
pub(super) struct State {
    pub entries: Entries,
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    pub committed: Option<LogId>,
    pub queue: VecDeque<Item>,
    /// Space left behind what waits.
    pub plan: Plan,
    /// Segments that entries wait for, beyond what is kept ready.
    pub wanted: usize,
    /// Files of the segments of the log, for readers.
    pub files: BTreeMap<u64, Arc<dyn DiskFile>>,
    /// Ready to be used.
    pub spares: VecDeque<Segment>,
    /// Dead, to be made ready or removed.
    pub retired: Vec<Segment>,
    pub next_number: u64,
    /// Why there are not enough spares.
    pub no_space: Option<String>,
    pub failed: Option<String>,
    pub closed: bool,
}

/// Everything of one open log.
pub(super) struct Shared {
    pub env: Env,
    pub disk: Arc<dyn Disk>,
    pub limits: LogLimits,
    pub store: StoreId,
    pub state: Mutex<State>,
    /// There is something to write.
    pub work: Notify,
    /// There is something to do about segments.
    pub upkeep: Notify,
    /// Counts changes of the space there is.
    pub space: watch::Sender<u64>,
    /// Room for waiting entries, in units of [`ROOM`].
    pub room: Arc<Semaphore>,
    pub health: watch::Sender<Health>,
    /// Tasks that run.
    pub tasks: watch::Sender<usize>,
}

impl Shared {
    /// No code panics while it holds the lock, so a poisoned lock holds a sound state.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs an operation on the disk. One that does not answer in time fails the log; it is awaited all the same, since
    /// it may still happen: only when it is over may its file be touched by another life of the log.
    pub(super) async fn io<T>(
        &self,
        doing: &'static str,
        operation: impl Future<Output = io::Result<T>>,
    ) -> Result<T, LogError> {
        let mut operation = pin!(operation);
        let clock = self.env.clock.as_ref();
        let deadline = Deadline::after(clock, self.limits.stall_after);
        if let Ok(result) = within(clock, deadline, operation.as_mut()).await {
            return result.map_err(LogError::io(doing));
        }
        self.fail(&LogError::Stalled);
        drop(operation.await);
        Err(LogError::Stalled)
    }

    /// Nothing is taken any more. All that waits is told.
    pub(super) fn fail(&self, error: &LogError) {
        let waiting = {
            let mut state = self.state();
            if state.failed.is_none() {
                state.failed = Some(error.to_string());
            }
            std::mem::take(&mut state.queue)
        };
        tracing::error!(%error, "the Raft log has failed");
        self.room.close();
        for mut item in waiting {
            item.answer(Err(error.clone()));
        }
        self.told_health();
        self.space.send_modify(|count| *count += 1);
        self.upkeep.notify_one();
        self.work.notify_one();
    }

    /// Tells how it is now.
    pub(super) fn told_health(&self) {
        let health = {
            let state = self.state();
            match (&state.failed, &state.no_space) {
                (Some(reason), _) => Health::Failed(reason.clone()),
                (None, Some(reason)) => Health::NoSpace(reason.clone()),
                (None, None) => Health::Ok,
            }
        };
        self.health.send_if_modified(|known| std::mem::replace(known, health.clone()) != health);
    }

    /// Segments to keep ready for what is asked now.
    pub(super) fn spares_wanted(state: &State) -> usize {
        ENTRIES_LEAVE + 1 + state.wanted
    }
}

impl State {
    /// Is it open and sound?
    pub(super) fn check(&self) -> Result<(), LogError> {
        match &self.failed {
            Some(reason) => Err(LogError::Failed(reason.clone())),
            None if self.closed => Err(LogError::Closed),
            None => Ok(()),
        }
    }

    /// Puts an item in the queue if there is disk space for it; otherwise gives it back.
    pub(super) fn enqueue(&mut self, item: Item, segment_bytes: u64) -> Result<(), Item> {
        if self.plan.place(item.lens(), segment_bytes, item.leave()) {
            self.queue.push_back(item);
            Ok(())
        } else {
            Err(item)
        }
    }

    /// Plans anew from where the log ends now.
    pub(super) fn plan_from(&mut self, free: u64, segment_bytes: u64) {
        self.plan = Plan { free, spares: self.spares.len() };
        for item in &self.queue {
            // What was accepted fits: it needs no more than it did then, and spares have only been added.
            self.plan.place(item.lens(), segment_bytes, 0);
        }
    }
}
