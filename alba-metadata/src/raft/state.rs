//! The state machine of a replica: applies log entries to its store, each batch of entries in one atomic change together
//! with the position of the last, so that none is applied twice or left out whatever a crash does.
//!
//! Changes are not synced one by one: the log has them. What a crash loses of the store is a suffix, and it is applied
//! again from the log, which is never cut beyond what is safe in the store ([`State::durable`]).
//!
//! While one change is written to the store, the next is made on top of it. Readers and those who wait for an answer hear
//! of a change when it is in the store.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;

use alba_core::env::{Deadline, Env, blocking, within};
use alba_core::ids::GroupId;
use alba_core::kv::{Durability, Kv, KvError, KvRead, WriteBatch};
use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{AnyError, EntryPayload, RaftSnapshotBuilder, StorageIOError};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use super::RaftLimits;
use super::home::{Home, Record};
use super::outputs::Outputs;
use super::payload::{Batch, BatchId, OLDEST};
use super::snapshot::{self, SnapshotFile};
use super::types::{LogId, SnapshotMeta, StorageError, StoredMembership, TypeConfig};
use crate::machine::{Input, OutputOf, format_of, step};
use crate::model::Model;
use crate::txn::{Below, KvTxn, Layered};
use crate::value::{load, save};

/// Where the position of the last applied entry is. The models' keys never begin with 0.
const APPLIED: &[u8] = b"\0raft";

/// Where the newest format of entries is that the group has agreed on: the highest of those applied. Absent: the oldest. In
/// every snapshot, for a leader needs it that never applied the entry itself.
const FORMAT: &[u8] = b"\0format";

/// Payload bytes that are applied in one change of the store, about.
const CHANGE: usize = 4 << 20;

/// How far a store is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Applied {
    pub(super) log: Option<LogId>,
    pub(super) membership: StoredMembership,
}

/// How far the store is, in the state that is read.
pub(super) fn applied_of(store: &(impl KvRead + ?Sized)) -> Result<Applied, KvError> {
    Ok(load(store, APPLIED)?.unwrap_or_default())
}

/// The same as a number for clients.
pub(super) fn index_of(store: &(impl KvRead + ?Sized)) -> Result<u64, KvError> {
    Ok(applied_of(store)?.log.map_or(0, |log| log.index))
}

/// Term and index of the last entry that was applied; none in a group of one copy.
pub(crate) fn position_of(store: &(impl KvRead + ?Sized)) -> Result<Option<(u64, u64)>, KvError> {
    Ok(applied_of(store)?.log.map(|log| (log.leader_id.term, log.index)))
}

/// Is it a key of the replica, and not of the group's state?
pub(crate) fn is_own(key: &[u8]) -> bool {
    key == APPLIED || key == FORMAT
}

/// The newest format that the group has agreed on. One that is not read here ends it: what such entries have made of the
/// state may be more than this version understands.
fn agreed_in(store: &(impl KvRead + ?Sized), newest: u8) -> Result<Result<u8, String>, KvError> {
    let agreed: u8 = load(store, FORMAT)?.unwrap_or(OLDEST);
    Ok(if agreed <= newest {
        Ok(agreed)
    } else {
        Err(format!(
            "the group writes log entries of format {agreed}; the newest that is read here is {newest}: this server must be updated"
        ))
    })
}

/// Makes a state one of a replica that has applied so far.
pub(super) fn put_applied(kv: &dyn Kv, applied: &Applied) -> Result<(), KvError> {
    let mut txn = KvTxn::new(kv);
    save(&mut txn, APPLIED, applied)?;
    txn.accept();
    kv.commit(txn.into_batch(), Durability::Sync)
}

/// What the state machine shares with the rest of the replica.
pub(super) struct State<M: Model> {
    pub(super) env: Env,
    pub(super) group: GroupId,
    pub(super) home: Home,
    pub(super) outputs: Outputs<M>,
    kv: RwLock<Arc<dyn Kv>>,
    /// Changed only by an installation, of which there is one at a time.
    record: Mutex<Record>,
    snapshot: Mutex<Option<(SnapshotMeta, SnapshotFile)>>,
    applied: watch::Sender<u64>,
    /// Why the store takes no changes any more.
    failed: watch::Sender<Option<KvError>>,
    commits: Arc<watch::Sender<u64>>,
    durable: AtomicU64,
    /// What was applied at the start.
    found: Option<LogId>,
    /// The log's last entry, as the elections of others ask for it.
    last_log: Mutex<Option<LogId>>,
    /// Payload bytes applied since the last snapshot.
    since_snapshot: AtomicU64,
    /// Bytes that one change of the store writes, about.
    change_bytes: usize,
    /// Longest that one is waited for.
    patience: Duration,
    /// Until when the change that is being written has to be done.
    writing: Mutex<Option<Deadline>>,
    /// The newest format of entries that is applied here.
    newest_format: u8,
    /// The newest that was applied.
    format: AtomicU8,
    /// Why no further entry can ever be applied by this version.
    halted: Mutex<Option<String>>,
    /// Blocks of a snapshot that may wait for the writer.
    snapshot_queue: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Consistent between any two statements that hold the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: Model> State<M> {
    /// Opens the store that the record names, finishes an installation that a crash interrupted, and removes what does
    /// not belong.
    pub(super) async fn open(
        env: &Env,
        group: &GroupId,
        home: &Home,
        mut record: Record,
        commits: Arc<watch::Sender<u64>>,
        limits: &RaftLimits,
    ) -> io::Result<Self> {
        let gone = |_| io::Error::other("the node is going down");
        let (states, current) = (home.states.clone(), record.state);
        let open = move || {
            for other in states.list()?.into_iter().filter(|generation| *generation != current) {
                states.remove(other)?;
            }
            let kv = states.open(current)?;
            let applied = applied_of(kv.as_ref())?;
            Ok::<_, KvError>((kv, applied))
        };
        let (mut kv, mut applied) =
            blocking(env.spawn.as_ref(), open).await.map_err(gone)?.map_err(kv_to_io)?;
        let snapshot = snapshot::newest(&home.files).await?;
        if let Some((meta, file)) = &snapshot
            && meta.last_log_id > applied.log
        {
            // It was adopted, so a leader sent it, or the store was lost: either way it is the state to start from.
            let next = record.state.saturating_add(1);
            let installed = snapshot::install(env, &home.states, next, meta, file).await?;
            let old = std::mem::replace(&mut record.state, next);
            home.save(record).await?;
            kv = installed;
            let states = home.states.clone();
            let removed = blocking(env.spawn.as_ref(), move || states.remove(old)).await.map_err(gone)?;
            removed.map_err(kv_to_io)?;
            applied = Applied { log: meta.last_log_id, membership: meta.last_membership.clone() };
        }
        let index = applied.log.map_or(0, |log| log.index);
        let newest_format = limits.newest_format;
        let format = agreed(env, &kv, newest_format).await?;
        Ok(Self {
            env: env.clone(),
            group: group.clone(),
            home: home.clone(),
            outputs: Outputs::default(),
            kv: RwLock::new(kv),
            record: Mutex::new(record),
            snapshot: Mutex::new(snapshot),
            applied: watch::channel(index).0,
            failed: watch::channel(None).0,
            commits,
            // What was found in the store after the start is on the disk.
            durable: AtomicU64::new(index),
            found: applied.log,
            last_log: Mutex::new(applied.log),
            since_snapshot: AtomicU64::new(0),
            change_bytes: limits.change_bytes,
            patience: limits.patience,
            writing: Mutex::new(None),
            newest_format,
            format: AtomicU8::new(format),
            halted: Mutex::new(None),
            snapshot_queue: limits.snapshot_queue,
        })
    }

    /// The store as it is now.
    pub(super) fn kv(&self) -> Arc<dyn Kv> {
        let kv: RwLockReadGuard<'_, Arc<dyn Kv>> = self.kv.read().unwrap_or_else(PoisonError::into_inner);
        kv.clone()
    }

    pub(super) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Waits until the store has failed, and says why: the replica has to be opened again.
    pub(super) async fn failure(&self) -> KvError {
        let mut failed = self.failed.subscribe();
        match failed.wait_for(Option::is_some).await.ok().and_then(|error| error.clone()) {
            Some(error) => error,
            // The sender is ours.
            None => std::future::pending().await,
        }
    }

    /// Writes a change to the store and tells those who wait for it. Position and changes together: a crash keeps both or
    /// neither, and the log has what it loses.
    fn commit(
        self: &Arc<Self>,
        kv: Arc<dyn Kv>,
        changes: &WriteBatch,
        effects: Effects<M>,
        written: oneshot::Sender<Result<(), KvError>>,
    ) {
        let mut unfinished = Unfinished(Some(&self.failed));
        let result = kv.commit_shared(changes, Durability::Eventual);
        unfinished.0 = None;
        *lock(&self.writing) = None;
        drop(kv);
        if let Err(error) = result {
            self.failed.send_replace(Some(error.clone()));
            drop(written.send(Err(error)));
            return;
        }
        self.since_snapshot.fetch_add(effects.bytes, Ordering::Relaxed);
        self.format.fetch_max(effects.format, Ordering::AcqRel);
        self.applied.send_replace(effects.last);
        if effects.changed {
            self.commits.send_modify(|count| *count = count.wrapping_add(1));
        }
        // The next change goes on while answers are given. (The library may have gone.)
        drop(written.send(Ok(())));
        let state = self.clone();
        let answer = async move {
            for (batch, index, outputs) in effects.outputs {
                state.outputs.applied(batch, index, outputs);
            }
        };
        // From here each answer would wake up a thread for whoever waits for it. It ends by itself, at once.
        drop(self.env.spawn.spawn("raft-answer", Box::pin(answer)));
    }

    /// A store that does not end a change has failed: the replica has to be opened again, and others serve until it is.
    pub(super) fn fail_if_stuck(&self) {
        let until = *lock(&self.writing);
        if until.is_some_and(|until| until.left(self.env.clock.as_ref()).is_zero()) {
            self.fail_stuck();
        }
    }

    fn fail_stuck(&self) -> KvError {
        let error = KvError::Io(format!("a change of the store is not done after {:?}", self.patience));
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert_with(|| error.clone());
            first
        });
        error
    }

    /// The newest format of entries that the group has agreed on, as far as entries were applied here.
    pub(super) fn format(&self) -> u8 {
        self.format.load(Ordering::Acquire)
    }

    pub(super) fn halted(&self) -> Option<String> {
        lock(&self.halted).clone()
    }

    /// Entries up to here are safe in the store: the log may be cut there.
    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// The last applied entry as it was at the start.
    pub(super) fn applied_log(&self) -> Option<LogId> {
        self.found
    }

    pub(super) fn record(&self) -> Record {
        *lock(&self.record)
    }

    pub(super) fn set_record(&self, record: Record) {
        *lock(&self.record) = record;
    }

    pub(super) fn last_log(&self) -> Option<LogId> {
        *lock(&self.last_log)
    }

    pub(super) fn set_last_log(&self, last: Option<LogId>) {
        *lock(&self.last_log) = last;
    }

    pub(super) fn bytes_since_snapshot(&self) -> u64 {
        self.since_snapshot.load(Ordering::Relaxed)
    }

    fn halt(&self, reason: &str) {
        tracing::error!(group = %self.group, reason, "the replica halts");
        lock(&self.halted).get_or_insert_with(|| reason.to_owned());
    }

    async fn build(&self) -> io::Result<(SnapshotMeta, SnapshotFile)> {
        let before = self.bytes_since_snapshot();
        let (meta, file) =
            snapshot::build(&self.env, self.kv(), &self.home.files, self.snapshot_queue).await?;
        self.safe_up_to(meta.last_log_id.map_or(0, |log| log.index));
        self.since_snapshot.fetch_sub(before, Ordering::Relaxed);
        let newer = {
            let mut current = lock(&self.snapshot);
            // One may have come from the leader meanwhile.
            let newer = current.as_ref().is_some_and(|(other, _)| other.last_log_id > meta.last_log_id);
            if !newer {
                *current = Some((meta.clone(), file.clone()));
            }
            newer
        };
        if newer {
            self.home.files.remove(&file.name).await?;
        } else {
            snapshot::remove_others(self.home.files.as_ref(), &file.name).await?;
        }
        Ok((meta, file))
    }

    fn safe_up_to(&self, index: u64) {
        self.durable.fetch_max(index, Ordering::AcqRel);
    }

    /// Replaces the state by a snapshot. In this order: the snapshot becomes ours, so that a restart would finish this;
    /// the new store is filled and synced; the record names it; it is used. The old state is served until then.
    async fn install(&self, meta: &SnapshotMeta, file: SnapshotFile) -> io::Result<()> {
        let file = snapshot::adopt(&self.home.files, meta, file).await?;
        *lock(&self.snapshot) = Some((meta.clone(), file.clone()));
        let mut record = *lock(&self.record);
        let old = record.state;
        record.state = old.saturating_add(1);
        let kv = snapshot::install(&self.env, &self.home.states, record.state, meta, &file).await?;
        self.home.save(record).await?;
        *lock(&self.record) = record;
        let format = match agreed(&self.env, &kv, self.newest_format).await {
            Ok(format) => format,
            Err(error) => {
                if is_too_new(&error) {
                    self.halt(&error.to_string());
                }
                return Err(error);
            }
        };
        self.format.fetch_max(format, Ordering::AcqRel);
        let replaced = std::mem::replace(&mut *self.kv.write().unwrap_or_else(PoisonError::into_inner), kv);
        let index = meta.last_log_id.map_or(0, |log| log.index);
        self.safe_up_to(index);
        {
            let mut last = lock(&self.last_log);
            *last = (*last).max(meta.last_log_id);
        }
        self.since_snapshot.store(0, Ordering::Relaxed);
        self.applied.send_replace(index);
        self.commits.send_modify(|count| *count = count.wrapping_add(1));
        let weak = Arc::downgrade(&replaced);
        drop(replaced);
        self.remove_when_unused(old, weak);
        Ok(())
    }

    /// Readers may still use the old store; what is left after a minute is removed at the next start.
    fn remove_when_unused(&self, generation: u64, store: Weak<dyn Kv>) {
        let (env, states) = (self.env.clone(), self.home.states.clone());
        let task = async move {
            for _ in 0..600 {
                if store.strong_count() == 0 {
                    env.spawn.run_blocking(Box::new(move || {
                        if let Err(error) = states.remove(generation) {
                            tracing::warn!(%error, generation, "an old state is not removed");
                        }
                    }));
                    return;
                }
                env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(100))).await;
            }
        };
        // Runs on by itself; it ends within the minute.
        drop(self.env.spawn.spawn("raft-remove-state", Box::pin(task)));
    }
}

/// Only a newer version can go on with the state.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct TooNew(String);

/// Is it for ever, for this version?
pub(super) fn is_too_new(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<TooNew>())
}

/// [`agreed_in`] of an open store; see [`is_too_new`].
async fn agreed(env: &Env, kv: &Arc<dyn Kv>, newest: u8) -> io::Result<u8> {
    let kv = kv.clone();
    let found = blocking(env.spawn.as_ref(), move || agreed_in(kv.as_ref(), newest)).await;
    let found = found.map_err(|_| io::Error::other("the node is going down"))?.map_err(kv_to_io)?;
    found.map_err(|reason| io::Error::other(TooNew(reason)))
}

pub(super) fn kv_to_io(error: KvError) -> io::Error {
    let kind = match error {
        KvError::NoSpace => io::ErrorKind::StorageFull,
        KvError::Damaged(_) => io::ErrorKind::InvalidData,
        KvError::Io(_) | KvError::KeyLength(_) => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// Why entries were not applied.
enum ApplyError {
    Store(KvError),
    /// This version cannot know what they mean.
    Halt(String),
}

impl From<KvError> for ApplyError {
    fn from(error: KvError) -> Self {
        Self::Store(error)
    }
}

/// What came of some entries.
struct Effects<M: Model> {
    outputs: Vec<(BatchId, u64, Vec<OutputOf<M>>)>,
    last: u64,
    bytes: u64,
    changed: bool,
    /// The newest of the entries.
    format: u8,
}

/// Applies entries until they have written `most` bytes, whole ones and at least one; how many.
fn apply_entries<M: Model>(
    store: &Layered<'_>,
    entries: &[openraft::Entry<TypeConfig>],
    newest_format: u8,
    most: usize,
) -> Result<(WriteBatch, Effects<M>, usize), ApplyError> {
    let mut applied = applied_of(store)?;
    let mut txn = KvTxn::new(store);
    let mut effects = Effects { outputs: Vec::new(), last: 0, bytes: 0, changed: false, format: OLDEST };
    let mut count = 0;
    for entry in entries {
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(membership) => {
                applied.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
            }
            EntryPayload::Normal(payload) => {
                effects.bytes += u64::try_from(payload.0.len()).unwrap_or(u64::MAX);
                let batch = Batch::decode(&payload.0, newest_format)
                    .map_err(|error| ApplyError::Halt(error.to_string()))?;
                let mut outputs = Vec::with_capacity(batch.inputs.len());
                for input in &batch.inputs {
                    let input: Input<M::Command> = postcard::from_bytes(input).map_err(|error| {
                        ApplyError::Halt(format!(
                            "entry {} holds a command that this version does not know: it must be updated ({error})",
                            entry.log_id.index
                        ))
                    })?;
                    if format_of::<M>(&input) > newest_format {
                        let kind = format_of::<M>(&input);
                        return Err(ApplyError::Halt(format!(
                            "entry {} holds a command of format {kind}; the newest that is read here is {newest_format}: this server must be updated",
                            entry.log_id.index
                        )));
                    }
                    outputs.push(step::<M>(&mut txn, batch.wall, &input)?);
                }
                effects.format = effects.format.max(batch.format);
                effects.changed |= !batch.inputs.is_empty();
                effects.outputs.push((batch.id, entry.log_id.index, outputs));
            }
        }
        applied.log = Some(entry.log_id);
        effects.last = entry.log_id.index;
        count += 1;
        if txn.bytes() >= most {
            break;
        }
    }
    save(&mut txn, APPLIED, &applied)?;
    if effects.format > load(store, FORMAT)?.unwrap_or(OLDEST) {
        save(&mut txn, FORMAT, &effects.format)?;
    }
    txn.accept();
    Ok((txn.into_batch(), effects, count))
}

/// Entries per change of the store, by their bytes.
fn changes(entries: Vec<openraft::Entry<TypeConfig>>) -> Vec<Vec<openraft::Entry<TypeConfig>>> {
    let mut all = Vec::new();
    let (mut current, mut bytes) = (Vec::new(), 0);
    for entry in entries {
        if let EntryPayload::Normal(payload) = &entry.payload {
            bytes += payload.0.len();
        }
        current.push(entry);
        if bytes >= CHANGE {
            all.push(std::mem::take(&mut current));
            bytes = 0;
        }
    }
    if !current.is_empty() {
        all.push(current);
    }
    all
}

/// A change whose writing ends without an answer (a panic in the store) has failed: the supervisor is to hear of it at once.
struct Unfinished<'a>(Option<&'a watch::Sender<Option<KvError>>>);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(failed) = self.0 {
            failed.send_replace(Some(KvError::Io("a change of the store was not finished".to_owned())));
        }
    }
}

/// A change on its way into the store.
struct Pending {
    below: Arc<Below>,
    until: Deadline,
    written: oneshot::Receiver<Result<(), KvError>>,
}

/// The library's handle on the state.
pub(super) struct Machine<M: Model> {
    pub(super) state: Arc<State<M>>,
    pending: Option<Pending>,
    /// A change that did not get into the store. Nothing may ever be applied on a store without it: the replica is opened again.
    lost: Option<StorageError>,
}

impl<M: Model> Machine<M> {
    pub(super) fn new(state: Arc<State<M>>) -> Self {
        Self { state, pending: None, lost: None }
    }

    /// Waits until the store has everything that was applied.
    pub(super) async fn settle(&mut self) -> Result<(), StorageError> {
        if let Some(error) = &self.lost {
            return Err(error.clone());
        }
        let Some(pending) = &mut self.pending else { return Ok(()) };
        // Not taken before it has ended: whoever is cancelled here leaves it to the next one.
        let clock = self.state.env.clock.as_ref();
        let written = within(clock, pending.until, &mut pending.written).await;
        self.pending = None;
        let error = match written {
            Ok(Ok(Ok(()))) => return Ok(()),
            Ok(Ok(Err(error))) => failed(error),
            Ok(Err(error)) => failed(error),
            Err(_) => failed(self.state.fail_stuck()),
        };
        self.lost = Some(error.clone());
        Err(error)
    }
}

fn failed(error: impl std::error::Error + 'static) -> StorageError {
    StorageIOError::write_state_machine(AnyError::new(&error)).into()
}

impl<M: Model> RaftStateMachine<TypeConfig> for Machine<M> {
    type SnapshotBuilder = Builder<M>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        self.settle().await?;
        let kv = self.state.kv();
        let applied = blocking(self.state.env.spawn.as_ref(), move || applied_of(kv.as_ref()))
            .await
            .map_err(failed)?
            .map_err(failed)?;
        Ok((applied.log, applied.membership))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError>
    where
        I: IntoIterator<Item = openraft::Entry<TypeConfig>> + Send,
        I::IntoIter: Send,
    {
        let state = self.state.clone();
        let entries: Vec<_> = entries.into_iter().collect();
        let count = entries.len();
        if let Some(reason) = state.halted() {
            return Err(failed(io::Error::other(reason)));
        }
        if let Some(error) = &self.lost {
            return Err(error.clone());
        }
        let mut left: VecDeque<_> = changes(entries).into();
        while let Some(change) = left.pop_front() {
            let kv = state.kv();
            let started = state.env.clock.now();
            // The change before this one, which may not be in the store yet; all earlier ones are.
            let below = self.pending.as_ref().map(|pending| pending.below.clone());
            let (newest, most) = (state.newest_format, state.change_bytes);
            let done = blocking(state.env.spawn.as_ref(), move || {
                let layered = Layered::new(kv.as_ref(), below.as_deref());
                let applied = apply_entries::<M>(&layered, &change, newest, most);
                (change, applied)
            });
            let (mut change, applied) = done.await.map_err(failed)?;
            match applied {
                Ok((changes, effects, count)) => {
                    change.drain(..count);
                    if !change.is_empty() {
                        left.push_front(change);
                    }
                    let took = state.env.clock.now().since(started).as_secs_f64();
                    metrics::histogram!("alba_raft_apply_seconds", "group" => state.group.to_string())
                        .record(took);
                    self.settle().await?;
                    let (written, done) = oneshot::channel();
                    let (changes, kv) = (Arc::new(changes), state.kv());
                    let until = state.env.deadline_in(state.patience);
                    *lock(&state.writing) = Some(until);
                    let (committing, writing) = (state.clone(), changes.clone());
                    let commit = move || committing.commit(kv, &writing, effects, written);
                    state.env.spawn.run_blocking(Box::new(commit));
                    // While it is being written.
                    self.pending =
                        Some(Pending { below: Arc::new(Below::new(changes)), until, written: done });
                }
                Err(ApplyError::Store(error)) => return Err(failed(error)),
                Err(ApplyError::Halt(reason)) => {
                    state.halt(&reason);
                    return Err(failed(io::Error::other(reason)));
                }
            }
        }
        Ok(vec![(); count])
    }

    async fn get_snapshot_builder(&mut self) -> Builder<M> {
        // What the library believes to be applied is to be in the snapshot. A failure is told by the next change, and
        // to the replica's supervisor.
        drop(self.settle().await);
        Builder(self.state.clone())
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError> {
        // Snapshots come in through `Incoming`; only the library's own test asks for a place to put one.
        self.settle().await?;
        let state = &self.state;
        let build = snapshot::build(&state.env, state.kv(), &state.home.files, state.snapshot_queue);
        build.await.map(|(_, file)| Box::new(file)).map_err(failed)
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotFile>,
    ) -> Result<(), StorageError> {
        self.settle().await?;
        self.state.install(meta, *snapshot).await.map_err(failed)
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let current = lock(&self.state.snapshot).clone();
        Ok(current.map(|(meta, file)| Snapshot { meta, snapshot: Box::new(file) }))
    }
}

/// Builds snapshots beside the state machine.
pub(super) struct Builder<M: Model>(Arc<State<M>>);

impl<M: Model> RaftSnapshotBuilder<TypeConfig> for Builder<M> {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let (meta, file) = self.0.build().await.map_err(failed)?;
        Ok(Snapshot { meta, snapshot: Box::new(file) })
    }
}
