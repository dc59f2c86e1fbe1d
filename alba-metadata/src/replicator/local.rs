//! The embedded default: one replica, its store on this machine. Commands that wait together share one commit, and while
//! one batch becomes safe the next is applied on top of it.
//!
//! It must never answer a command, or a read that saw its effect, before that is safe on the disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Deadline, Env, Moment, blocking, within};
use alba_core::ids::GroupId;
use alba_core::kv::{Durability, Kv, KvError};
use alba_core::wire::rpc::Consistency;
use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Index, ReadWork, ReplicationError, Replicator, answer_of};
use crate::machine::{Input, OutputOf, step};
use crate::model::Model;
use crate::txn::KvTxn;

/// Opens a group's store, also again after it was poisoned.
pub type StoreOpener = Arc<dyn Fn() -> Result<Arc<dyn Kv>, KvError> + Send + Sync>;

/// How much a group takes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalLimits {
    /// Commands that wait for a batch; more wait with their callers, whom the server bounds.
    pub queue: usize,
    /// Commands that share one commit.
    pub batch: usize,
    /// A store that failed is opened again no sooner than this after the last try.
    pub reopen_after: Duration,
}

impl Default for LocalLimits {
    fn default() -> Self {
        Self { queue: 512, batch: 512, reopen_after: Duration::from_millis(200) }
    }
}

type Answer<M> = oneshot::Sender<Result<OutputOf<M>, ReplicationError>>;

struct Waiting<M: Model> {
    input: Input<M::Command>,
    answer: Answer<M>,
}

/// Batches that wait for the sync which is to make them safe; they share it.
const UNSAFE_BATCHES: usize = 2;

/// A batch that is in the store, but perhaps not on the disk.
struct Applied<M: Model> {
    outputs: Vec<OutputOf<M>>,
    answers: Vec<Answer<M>>,
    /// It changed something.
    changed: bool,
    /// The opening it was applied in.
    opening: Opening,
    number: u64,
    began: Moment,
}

/// What came of a batch, whether it changed something, where it was applied, and its number.
type Written<M> = (Vec<OutputOf<M>>, bool, Opening, u64);

/// One opening of the store. A failure ends it, and what of it was not safe by then is answered with the error.
#[derive(Clone)]
struct Opening {
    kv: Arc<dyn Kv>,
    generation: u64,
}

/// The opening in use, and the number up to which all batches are on the disk or of an opening that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Safe {
    generation: u64,
    number: u64,
}

/// One replica.
pub struct Local<M: Model> {
    env: Env,
    queue: mpsc::Sender<Waiting<M>>,
    store: Arc<Store>,
    commits: watch::Receiver<u64>,
    _tasks: [AbortOnDrop; 2],
}

/// The store, while it is sound.
struct Store {
    group: GroupId,
    open: StoreOpener,
    state: Mutex<StoreState>,
    /// Number of the last batch that was or is being put into the store.
    applied: AtomicU64,
    safe: watch::Sender<Safe>,
}

struct StoreState {
    kv: Option<Arc<dyn Kv>>,
    failed: Option<(KvError, Moment)>,
    /// Failures so far.
    generation: u64,
}

/// Opens a store. What a killed process wrote may be there and not on the disk: it is made safe before it is read.
fn opened(open: &StoreOpener) -> Result<Arc<dyn Kv>, KvError> {
    let kv = open()?;
    kv.sync()?;
    Ok(kv)
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, StoreState> {
        // Consistent between any two statements that hold the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open store.
    fn sound(&self) -> Result<Opening, KvError> {
        let state = self.lock();
        match (&state.kv, &state.failed) {
            (Some(kv), _) => Ok(Opening { kv: kv.clone(), generation: state.generation }),
            (None, Some((error, _))) => Err(error.clone()),
            (None, None) => Err(KvError::Io("the store is not open".to_owned())),
        }
    }

    /// The open store, opened again if it had failed long enough ago. Blocks.
    fn sound_or_reopened(&self, now: Moment, after: Duration) -> Result<Opening, KvError> {
        // Cloned, so that the lock is not held while the store opens.
        let failed = self.lock().failed.clone();
        match failed {
            Some((error, when)) if now.since(when) < after => return Err(error),
            Some(_) => {}
            None => return self.sound(),
        }
        match opened(&self.open) {
            Ok(kv) => {
                tracing::info!(group = %self.group, "the store is open again");
                let mut state = self.lock();
                state.kv = Some(kv.clone());
                state.failed = None;
                Ok(Opening { kv, generation: state.generation })
            }
            Err(error) => {
                self.lock().failed = Some((error.clone(), now));
                Err(error)
            }
        }
    }

    /// After a failure nothing of the store's state in memory is trusted: it is closed, and later opened from what is on
    /// the disk.
    fn poison(&self, generation: u64, error: &KvError, now: Moment) {
        let closed = {
            let mut state = self.lock();
            if state.generation != generation {
                // Of a store that was closed before.
                return;
            }
            state.generation += 1;
            state.failed = Some((error.clone(), now));
            // Those who wait for what was not safe hear of it.
            self.safe.send_modify(|safe| safe.generation = state.generation);
            state.kv.take()
        };
        tracing::error!(group = %self.group, %error, "the store failed; it is closed and will be opened again");
        drop(closed);
    }

    /// A batch is safe, or was of an opening that is over: no reader of the current one need wait for it. Its
    /// predecessors are settled too.
    fn settle(&self, number: u64) {
        self.safe.send_modify(|safe| safe.number = safe.number.max(number));
    }

    /// Why an opening that was sound is not any more.
    fn failure(&self) -> KvError {
        let failed = self.lock().failed.clone();
        failed.map_or_else(|| KvError::Io("the store failed meanwhile".to_owned()), |(error, _)| error)
    }
}

impl<M: Model> Local<M> {
    /// Opens the store and starts to apply.
    pub async fn start(
        env: Env,
        group: &GroupId,
        open: StoreOpener,
        limits: LocalLimits,
    ) -> Result<Self, ReplicationError> {
        let first = {
            let open = open.clone();
            blocking(env.spawn.as_ref(), move || opened(&open))
                .await
                .map_err(|_| ReplicationError::Stopped)??
        };
        let state = Mutex::new(StoreState { kv: Some(first), failed: None, generation: 0 });
        let safe = watch::channel(Safe { generation: 0, number: 0 }).0;
        let store = Arc::new(Store { group: group.clone(), open, state, applied: AtomicU64::new(0), safe });
        let (queue, waiting) = mpsc::channel(limits.queue.max(1));
        let (committed, commits) = watch::channel(0);
        let (applied, to_sync) = mpsc::channel(UNSAFE_BATCHES - 1);
        let apply = apply_loop::<M>(env.clone(), store.clone(), waiting, applied, limits);
        let sync = sync_loop::<M>(env.clone(), store.clone(), to_sync, committed);
        let tasks = [
            env.spawn.spawn("metadata-apply", Box::pin(apply)).abort_on_drop(),
            env.spawn.spawn("metadata-sync", Box::pin(sync)).abort_on_drop(),
        ];
        Ok(Self { env, queue, store, commits, _tasks: tasks })
    }
}

#[async_trait]
impl<M: Model> Replicator<M> for Local<M> {
    async fn propose(
        &self,
        input: Input<M::Command>,
        deadline: Deadline,
    ) -> Result<(OutputOf<M>, Index), ReplicationError> {
        let (answer, output) = oneshot::channel();
        let clock = self.env.clock.as_ref();
        match within(clock, deadline, self.queue.send(Waiting { input, answer })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(ReplicationError::Stopped),
            Err(_) => return Err(ReplicationError::Overloaded),
        }
        match within(self.env.clock.as_ref(), deadline, output).await {
            Ok(Ok(output)) => Ok((output?, 0)),
            Ok(Err(_)) => Err(ReplicationError::Stopped),
            Err(_) => Err(ReplicationError::Timeout),
        }
    }

    async fn query(
        &self,
        query: M::Query,
        _: Consistency,
        deadline: Deadline,
    ) -> Result<(Result<M::Answer, M::Error>, Index), ReplicationError> {
        let answer = super::read_with(self, deadline, move |store| answer_of::<M>(M::query(store, &query)));
        Ok((answer.await?, 0))
    }

    async fn read(
        &self,
        read: ReadWork,
        _: Consistency,
        deadline: Deadline,
    ) -> Result<Index, ReplicationError> {
        // Commands are answered after their commit: the store as it is now holds all that were. It may hold others that
        // are not safe yet, which nobody may hear of.
        let clock = self.env.clock.as_ref();
        let store = self.store.clone();
        let work = blocking(self.env.spawn.as_ref(), move || {
            let opening = store.sound()?;
            let snapshot = opening.kv.snapshot()?;
            // Counted before the batch goes into the store: at least what the snapshot has.
            let number = store.applied.load(Ordering::SeqCst);
            read(snapshot.as_ref())?;
            Ok::<_, KvError>(Safe { generation: opening.generation, number })
        });
        let seen = match within(clock, deadline, work).await {
            Ok(Ok(done)) => done?,
            Ok(Err(_)) => return Err(ReplicationError::Stopped),
            Err(_) => return Err(ReplicationError::Timeout),
        };
        let mut safe = self.store.safe.subscribe();
        let reached = safe.wait_for(|safe| safe.generation != seen.generation || safe.number >= seen.number);
        match within(clock, deadline, reached).await {
            Ok(Ok(safe)) if safe.generation == seen.generation => Ok(0),
            Ok(Ok(_)) => Err(self.store.failure().into()),
            Ok(Err(_)) => Err(ReplicationError::Stopped),
            Err(_) => Err(ReplicationError::Timeout),
        }
    }

    fn commits(&self) -> watch::Receiver<u64> {
        self.commits.clone()
    }

    fn leadership(&self) -> watch::Receiver<bool> {
        // The one there is; it never changes.
        watch::channel(true).1
    }

    fn copies(&self) -> usize {
        1
    }

    fn trouble(&self) -> Option<String> {
        self.store.sound().err().map(|error| error.to_string())
    }
}

fn refuse<M: Model>(answers: Vec<Answer<M>>, error: &KvError) {
    for answer in answers {
        drop(answer.send(Err(error.clone().into())));
    }
}

async fn apply_loop<M: Model>(
    env: Env,
    store: Arc<Store>,
    mut waiting: mpsc::Receiver<Waiting<M>>,
    applied: mpsc::Sender<Applied<M>>,
    limits: LocalLimits,
) {
    let mut batch = Vec::new();
    loop {
        // Room first: whatever comes until then makes up the next batch.
        let Ok(room) = applied.reserve().await else { return };
        if waiting.recv_many(&mut batch, limits.batch.max(1)).await == 0 {
            return;
        }
        let (inputs, answers): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|waiting| (waiting.input, waiting.answer)).unzip();
        let (began, wall) = (env.clock.now(), env.clock.wall_micros());
        let done = {
            let store = store.clone();
            let reopen_after = limits.reopen_after;
            blocking(env.spawn.as_ref(), move || apply_batch::<M>(&store, began, wall, reopen_after, &inputs))
                .await
        };
        match done {
            Ok(Ok((outputs, changed, opening, number))) => {
                room.send(Applied { outputs, answers, changed, opening, number, began });
            }
            Ok(Err(error)) => refuse::<M>(answers, &error),
            // The node is going down.
            Err(_) => return,
        }
    }
}

/// Makes batches safe and answers. In the order in which they were applied: one that changed nothing may still say
/// what an earlier one did.
async fn sync_loop<M: Model>(
    env: Env,
    store: Arc<Store>,
    mut applied: mpsc::Receiver<Applied<M>>,
    committed: watch::Sender<u64>,
) {
    let mut batches = Vec::new();
    while applied.recv_many(&mut batches, UNSAFE_BATCHES).await > 0 {
        let openings: Vec<(Opening, bool)> =
            batches.iter().map(|batch| (batch.opening.clone(), batch.changed)).collect();
        let done = {
            let (store, now) = (store.clone(), env.clock.now());
            blocking(env.spawn.as_ref(), move || sync_batches(&store, now, openings)).await
        };
        // The node is going down.
        let Ok(results) = done else { return };
        for (batch, result) in batches.drain(..).zip(results) {
            let Applied { outputs, answers, changed, number, began, .. } = batch;
            if let Err(error) = result {
                store.settle(number);
                refuse::<M>(answers, &error);
                continue;
            }
            let took = env.clock.now().since(began).as_secs_f64();
            metrics::histogram!("alba_nsm_commit_seconds", "group" => store.group.to_string()).record(took);
            store.settle(number);
            if changed {
                committed.send_modify(|count| *count = count.wrapping_add(1));
            }
            for (output, answer) in outputs.into_iter().zip(answers) {
                // Whoever asked may have gone; the session remembers.
                drop(answer.send(Ok(output)));
            }
        }
    }
}

/// Applies a batch in one change of the store. The order: apply in memory, write, sync ([`sync_batches`]), answer. A crash
/// before the sync loses commands that nobody was told of; one after it loses answers, which the sessions remember.
fn apply_batch<M: Model>(
    store: &Store,
    now: Moment,
    wall: u64,
    reopen_after: Duration,
    inputs: &[Input<M::Command>],
) -> Result<Written<M>, KvError> {
    let opening = store.sound_or_reopened(now, reopen_after)?;
    let number = store.applied.fetch_add(1, Ordering::SeqCst) + 1;
    let run = || {
        let mut txn = KvTxn::new(opening.kv.as_ref());
        let mut outputs = Vec::with_capacity(inputs.len());
        for input in inputs {
            outputs.push(step::<M>(&mut txn, wall, input)?);
        }
        let changes = txn.into_batch();
        let changed = !changes.0.is_empty();
        if changed {
            opening.kv.commit(changes, Durability::Eventual)?;
        }
        Ok((outputs, changed))
    };
    match run() {
        Ok((outputs, changed)) => Ok((outputs, changed, opening, number)),
        Err(error) => {
            let generation = opening.generation;
            drop(opening);
            store.poison(generation, &error, now);
            store.settle(number);
            Err(error)
        }
    }
}

/// Makes batches safe; those of one opening share a sync, as it is one of all that was written before.
fn sync_batches(store: &Store, now: Moment, batches: Vec<(Opening, bool)>) -> Vec<Result<(), KvError>> {
    let newest = batches.iter().filter(|(_, changed)| *changed).map(|(opening, _)| opening).next_back();
    let synced = match newest.map(|newest| (newest.kv.sync(), newest.generation)) {
        Some((Err(error), generation)) => Some((generation, error)),
        Some((Ok(()), _)) | None => None,
    };
    let generations: Vec<u64> = batches.iter().map(|(opening, _)| opening.generation).collect();
    drop(batches);
    if let Some((generation, error)) = &synced {
        store.poison(*generation, error, now);
    }
    let current = store.lock().generation;
    let of = |generation: u64| match &synced {
        // Also when it failed at a later batch: the store it was put in is given up.
        _ if generation != current => Err(store.failure()),
        Some((failed, error)) if *failed == generation => Err(error.clone()),
        _ => Ok(()),
    };
    generations.into_iter().map(of).collect()
}
