//! The log as openraft sees it.

use std::fmt::Debug;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use alba_core::env::{Deadline, Disk, Env, within};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{
    AnyError, ErrorSubject, ErrorVerb, OptionalSend, RaftLogReader, StorageError, StorageIOError,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::format::{Entry, LogId, PREFACE, Record, Vote, entry_len};
use super::plan::ENTRIES_LEAVE;
use super::read;
use super::recovery::{self, Recovered};
use super::shared::{Item, ROOM, Shared, State};
use super::upkeep;
use super::{Health, LogError, LogLimits};
use crate::raft::types::{NodeId, TypeConfig};

/// An open log. Clones are the same log; when the last one is dropped (or at [`LogStore::close`]) it ends.
#[derive(Clone)]
pub struct LogStore {
    pub(super) open: Arc<Open>,
}

/// Ends the log's tasks when dropped.
pub(super) struct Open {
    pub(super) shared: Arc<Shared>,
}

impl Drop for Open {
    fn drop(&mut self) {
        end(&self.shared);
    }
}

fn end(shared: &Shared) {
    shared.state().closed = true;
    shared.work.notify_one();
    shared.upkeep.notify_one();
    shared.space.send_modify(|count| *count += 1);
}

/// Counts a task while it lives.
struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.tasks.send_modify(|count| *count -= 1);
    }
}

fn start(shared: &Arc<Shared>, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    shared.tasks.send_modify(|count| *count += 1);
    let running = Running(shared.clone());
    let task = async move {
        work.await;
        drop(running);
    };
    drop(shared.env.spawn.spawn(name, Box::pin(task)));
}

impl LogStore {
    /// Opens the log on `disk`, which it has for itself, or makes it on an empty one. A log that was open on it before
    /// must be closed ([`LogStore::close`]), also one that has failed.
    ///
    /// # Errors
    /// [`LogError::Rot`] and [`LogError::Missing`]: the replica must join anew. [`LogError::NoSpace`] and
    /// [`LogError::Io`]: try again later. [`LogError::Stalled`]: not in this process, since what was begun may still
    /// happen.
    pub async fn open(
        env: Env,
        disk: Arc<dyn Disk>,
        limits: LogLimits,
    ) -> Result<(Self, Recovered), LogError> {
        let (shared, writer, recovered) = recovery::open(env, disk, limits).await?;
        start(&shared, "raft log writer", writer.run());
        start(&shared, "raft log upkeep", upkeep::run(shared.clone()));
        Ok((Self { open: Arc::new(Open { shared }) }, recovered))
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.open.shared
    }

    /// Takes nothing more, writes what waits, and returns when nothing of this log touches the disk any more; false when
    /// that was not so until the deadline.
    pub async fn close(&self, deadline: Deadline) -> bool {
        let shared = self.shared();
        end(shared);
        let mut tasks = shared.tasks.subscribe();
        let ended = async { tasks.wait_for(|count| *count == 0).await.is_ok() };
        within(shared.env.clock.as_ref(), deadline, ended).await.unwrap_or(false)
    }

    /// How it is.
    pub fn health(&self) -> Health {
        self.shared().health.borrow().clone()
    }

    /// The same, to be waited on.
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.shared().health.subscribe()
    }

    /// Is there disk space for an entry with a payload of `bytes`? To be asked before a proposal, and before entries of
    /// a leader are taken: when `append` finds none, openraft stops. It says no while half a segment is left, so that
    /// what was let through before finds its space.
    pub fn room_for(&self, bytes: u64) -> bool {
        let shared = self.shared();
        let state = shared.state();
        if state.check().is_err() {
            return false;
        }
        if state.no_space.is_none() {
            return true;
        }
        let segment = shared.limits.segment_bytes;
        let mut plan = state.plan;
        // An entry is its payload and less than a block.
        let asked = bytes.saturating_add(1024);
        plan.place([segment / 4, segment / 4], segment, ENTRIES_LEAVE)
            && plan.place([asked], segment, ENTRIES_LEAVE)
    }

    /// Largest payload of an entry, in bytes.
    pub fn payload_max(&self) -> u64 {
        // As for what is asked above.
        self.shared().limits.segment_bytes - PREFACE - 1024
    }

    /// Takes entries. Their callback is called when they are durable.
    async fn put(&self, mut entries: Vec<Entry>, done: LogFlushed<TypeConfig>) -> Result<(), LogError> {
        let shared = self.shared();
        // What was purged is applied and in a snapshot for good; it is not taken twice.
        let purged = shared.state().purged.map(|id| id.index);
        entries.retain(|entry| Some(entry.log_id.index) > purged);
        let lens: Vec<u64> = entries.iter().map(entry_len).collect();
        let max = shared.limits.segment_bytes - PREFACE;
        if let Some(bytes) = lens.iter().copied().find(|len| *len > max) {
            return Err(LogError::TooLarge { bytes, max });
        }
        if entries.is_empty() {
            done.log_io_completed(Ok(()));
            return Ok(());
        }
        let permit = self.room(lens.iter().sum()).await?;
        let item = Item::Append {
            entries: entries.into_iter().map(|entry| (0, Arc::new(entry))).collect(),
            done: Some(done),
            permit,
        };
        let mut space = shared.space.subscribe();
        let mut waiting = Some(item);
        while let Some(item) = waiting.take() {
            {
                space.borrow_and_update();
                let mut state = shared.state();
                match accept(&mut state, item, &lens, shared.limits.segment_bytes)? {
                    None => break,
                    Some(_) if state.no_space.is_some() => return Err(LogError::NoSpace),
                    Some(item) => {
                        let bytes: u64 = lens.iter().sum();
                        let segments = bytes / (max / 2) + 1;
                        state.wanted = state.wanted.max(usize::try_from(segments).unwrap_or(usize::MAX));
                        waiting = Some(item);
                    }
                }
            }
            // Made ready by the upkeep, or refused by it: it has a limit in time.
            shared.upkeep.notify_one();
            if space.changed().await.is_err() {
                return Err(LogError::Closed);
            }
        }
        shared.work.notify_one();
        Ok(())
    }

    /// Waits until there is room for `bytes` in the queue; the writer makes some, or fails in its time.
    async fn room(&self, bytes: u64) -> Result<OwnedSemaphorePermit, LogError> {
        let shared = self.shared();
        // What is larger than the whole room takes all of it.
        let units = bytes.div_ceil(ROOM).min(shared.limits.queue_bytes / ROOM);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let permit = shared.room.clone().acquire_many_owned(units).await;
        permit.map_err(|_| shared.state().check().err().unwrap_or(LogError::Closed))
    }

    /// Writes a record that changes the log, and waits until it is durable.
    async fn control(&self, record: Record, change: impl FnOnce(&mut State)) -> Result<(), LogError> {
        let shared = self.shared();
        let (done, result) = oneshot::channel();
        {
            let mut state = shared.state();
            state.check()?;
            let item = Item::Control { record, done: Some(done) };
            if state.enqueue(item, shared.limits.segment_bytes).is_err() {
                return Err(LogError::NoSpace);
            }
            change(&mut state);
        }
        shared.work.notify_one();
        // The writer answers, or fails in its time.
        result.await.unwrap_or(Err(LogError::Closed))
    }
}

/// Puts entries in the queue and among the others; gives them back when there is no disk space.
fn accept(state: &mut State, item: Item, lens: &[u64], segment_bytes: u64) -> Result<Option<Item>, LogError> {
    state.check()?;
    let Item::Append { mut entries, done, permit } = item else { return Ok(Some(item)) };
    let mut next = None;
    for (_, entry) in &entries {
        let index = entry.log_id.index;
        match next {
            None => state.entries.check(index, state.purged)?,
            Some(next) if next != index => return Err(LogError::Order { expected: next, found: index }),
            Some(_) => {}
        }
        next = Some(index + 1);
    }
    if !state.plan.place(lens.iter().copied(), segment_bytes, ENTRIES_LEAVE) {
        return Ok(Some(Item::Append { entries, done, permit }));
    }
    state.wanted = 0;
    for ((serial, entry), len) in entries.iter_mut().zip(lens) {
        *serial = state.entries.push(entry.clone(), *len, None);
    }
    state.queue.push_back(Item::Append { entries, done, permit });
    Ok(None)
}

fn storage_error(subject: ErrorSubject<NodeId>, verb: ErrorVerb, error: LogError) -> StorageError<NodeId> {
    StorageError::IO { source: StorageIOError::new(subject, verb, AnyError::new(&error)) }
}

fn reading(error: LogError) -> StorageError<NodeId> {
    storage_error(ErrorSubject::Logs, ErrorVerb::Read, error)
}

fn writing(error: LogError) -> StorageError<NodeId> {
    storage_error(ErrorSubject::Logs, ErrorVerb::Write, error)
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError<NodeId>> {
        read::read(self.shared(), half_open(&range), u64::MAX).await.map_err(reading)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError<NodeId>> {
        let bytes = self.shared().limits.answer_bytes;
        let found = read::read(self.shared(), start..end, bytes).await.map_err(reading)?;
        // What begins later would be taken for what follows the entry before `start`.
        Ok(if found.first().is_some_and(|entry| entry.log_id.index == start) { found } else { Vec::new() })
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError<NodeId>> {
        let state = self.shared().state();
        Ok(LogState {
            last_purged_log_id: state.purged,
            last_log_id: state.entries.last().map(|slot| slot.id).or(state.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError<NodeId>> {
        let vote = *vote;
        let saved = self.control(Record::Vote(vote), |state| state.vote = Some(vote)).await;
        saved.map_err(|error| storage_error(ErrorSubject::Vote, ErrorVerb::Write, error))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError<NodeId>> {
        Ok(self.shared().state().vote)
    }

    /// Is written with whatever comes next, or when nothing comes for a while: after a crash an older one may be read.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError<NodeId>> {
        let shared = self.shared();
        let mut state = shared.state();
        state.check().map_err(writing)?;
        state.committed = committed;
        if let Some(Item::Committed(waiting)) = state.queue.back_mut() {
            *waiting = committed;
        } else {
            // Without space it is kept in memory only.
            drop(state.enqueue(Item::Committed(committed), shared.limits.segment_bytes));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError<NodeId>> {
        Ok(self.shared().state().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError<NodeId>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.put(entries, callback).await.map_err(writing)
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError<NodeId>> {
        let truncated =
            self.control(Record::Truncate(since), |state| state.entries.truncate(since.index)).await;
        truncated.map_err(writing)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError<NodeId>> {
        if self.shared().state().purged.is_some_and(|purged| purged.index >= upto.index) {
            return Ok(());
        }
        let change = |state: &mut State| {
            state.entries.purge(upto.index);
            state.purged = Some(upto);
        };
        // The writer says which segments are needed no more.
        self.control(Record::Purge { upto, oldest: 0 }, change).await.map_err(writing)
    }
}
