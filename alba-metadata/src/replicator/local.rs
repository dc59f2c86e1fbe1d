//! The embedded default: one replica, its store on this machine. Commands that wait together share one commit, and while
//! one batch is written and synced the next is put together on top of it.
//!
//! It must never answer a command before its effect is safe on the disk. Readers look at the store, in which nothing is
//! seen before it is safe ([`Kv::commit`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::spawn::TaskGone;
use alba_core::env::{Deadline, Env, Moment, blocking, within};
use alba_core::ids::GroupId;
use alba_core::kv::{Durability, Kv, KvError, WriteBatch};
use alba_core::wire::rpc::Consistency;
use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::{Index, ReadWork, ReplicationError, Replicator, answer_of};
use crate::machine::{Input, OutputOf, step};
use crate::model::Model;
use crate::txn::{KvTxn, Layered, Paused};

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

/// Commands that are applied at once: so much later may a batch go into the store that could go now.
const STEP: usize = 64;

type Answer<M> = oneshot::Sender<Result<OutputOf<M>, ReplicationError>>;

struct Waiting<M: Model> {
    input: Input<M::Command>,
    answer: Answer<M>,
}

/// A batch that still takes commands.
struct Gathering<M: Model> {
    changes: Paused,
    outputs: Vec<OutputOf<M>>,
    opening: Opening,
    /// The batch before it, when that may not be in the store yet.
    below: Option<Arc<WriteBatch>>,
    answers: Vec<Answer<M>>,
    began: Moment,
}

/// A batch on its way into the store.
struct Closed<M: Model> {
    changes: Arc<WriteBatch>,
    outputs: Vec<OutputOf<M>>,
    opening: Opening,
    answers: Vec<Answer<M>>,
    began: Moment,
    /// There is one at a time.
    turn: OwnedSemaphorePermit,
}

/// One opening of the store. A failure ends it, and all that is not safe by then is answered with the error.
#[derive(Clone)]
struct Opening {
    kv: Arc<dyn Kv>,
    generation: u64,
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
            state.kv.take()
        };
        tracing::error!(group = %self.group, %error, "the store failed; it is closed and will be opened again");
        drop(closed);
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
        let store = Arc::new(Store { group: group.clone(), open, state });
        let (queue, waiting) = mpsc::channel(limits.queue.max(1));
        let (committed, commits) = watch::channel(0);
        let (closed, to_commit) = mpsc::channel(1);
        let apply = apply_loop::<M>(env.clone(), store.clone(), waiting, closed, limits);
        let commit = commit_loop::<M>(env.clone(), store.clone(), to_commit, committed);
        let tasks = [
            env.spawn.spawn("metadata-apply", Box::pin(apply)).abort_on_drop(),
            env.spawn.spawn("metadata-commit", Box::pin(commit)).abort_on_drop(),
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
        // Commands are answered after their commit: the store as it is now holds all that were.
        let clock = self.env.clock.as_ref();
        let store = self.store.clone();
        let work = blocking(self.env.spawn.as_ref(), move || {
            let opening = store.sound()?;
            let snapshot = opening.kv.snapshot()?;
            read(snapshot.as_ref())
        });
        match within(clock, deadline, work).await {
            Ok(Ok(done)) => {
                done?;
                Ok(0)
            }
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
    closed: mpsc::Sender<Closed<M>>,
    limits: LocalLimits,
) {
    let turns = Arc::new(Semaphore::new(1));
    let mut gathering: Option<Gathering<M>> = None;
    // The batch that was closed last, which may not be in the store yet; the one before it is, or has failed.
    let mut last: Option<(u64, Arc<WriteBatch>)> = None;
    let mut more = Vec::new();
    let mut ended = false;
    loop {
        let room = limits.batch.max(1) - gathering.as_ref().map_or(0, |batch| batch.outputs.len());
        let room = if ended { 0 } else { room.min(STEP) };
        // A batch that can go into the store goes; until then it takes what comes.
        let turn = tokio::select! {
            biased;
            turn = turns.clone().acquire_owned(), if gathering.is_some() => turn.ok(),
            count = waiting.recv_many(&mut more, room), if room > 0 => {
                ended = count == 0;
                None
            }
            else => return,
        };
        if let Some(turn) = turn
            && let Some(batch) = gathering.take()
        {
            let Gathering { changes, outputs, opening, answers, began, .. } = batch;
            let changes = Arc::new(changes.into_batch());
            last = Some((opening.generation, changes.clone()));
            if closed.send(Closed { changes, outputs, opening, answers, began, turn }).await.is_err() {
                return;
            }
        }
        if more.is_empty() {
            continue;
        }
        let (inputs, answers): (Vec<_>, Vec<_>) =
            more.drain(..).map(|waiting| (waiting.input, waiting.answer)).unzip();
        let (now, wall) = (env.clock.now(), env.clock.wall_micros());
        let mut batch = match gathering.take() {
            Some(batch) => batch,
            None => match begin(&env, &store, now, limits.reopen_after, &last).await {
                Ok(Ok(batch)) => batch,
                Ok(Err(error)) => {
                    refuse::<M>(answers, &error);
                    continue;
                }
                // The node is going down.
                Err(TaskGone) => return,
            },
        };
        batch.answers.extend(answers);
        let (changes, opening, below) =
            (std::mem::take(&mut batch.changes), batch.opening.clone(), batch.below.clone());
        let work = move || apply::<M>(&opening, below.as_deref(), changes, wall, &inputs);
        match blocking(env.spawn.as_ref(), work).await {
            Ok(Ok((changes, outputs))) => {
                batch.changes = changes;
                batch.outputs.extend(outputs);
                gathering = Some(batch);
            }
            Ok(Err(error)) => {
                store.poison(batch.opening.generation, &error, now);
                refuse::<M>(batch.answers, &error);
            }
            Err(TaskGone) => return,
        }
    }
}

/// A batch without commands yet.
async fn begin<M: Model>(
    env: &Env,
    store: &Arc<Store>,
    now: Moment,
    reopen_after: Duration,
    last: &Option<(u64, Arc<WriteBatch>)>,
) -> Result<Result<Gathering<M>, KvError>, TaskGone> {
    let opening = match store.sound() {
        Ok(opening) => opening,
        Err(_) => {
            let store = store.clone();
            let reopen = move || store.sound_or_reopened(now, reopen_after);
            match blocking(env.spawn.as_ref(), reopen).await? {
                Ok(opening) => opening,
                Err(error) => return Ok(Err(error)),
            }
        }
    };
    // One of an opening that is over is in the store, or failed.
    let below = last.as_ref().filter(|(generation, _)| *generation == opening.generation);
    let below = below.map(|(_, changes)| changes.clone());
    let (outputs, answers) = (Vec::new(), Vec::new());
    Ok(Ok(Gathering { changes: Paused::default(), outputs, opening, below, answers, began: now }))
}

/// Applies inputs in memory.
fn apply<M: Model>(
    opening: &Opening,
    below: Option<&WriteBatch>,
    changes: Paused,
    wall: u64,
    inputs: &[Input<M::Command>],
) -> Result<(Paused, Vec<OutputOf<M>>), KvError> {
    let store = Layered::new(opening.kv.as_ref(), below);
    let mut txn = KvTxn::resume(&store, changes);
    let outputs = inputs.iter().map(|input| step::<M>(&mut txn, wall, input)).collect::<Result<_, _>>()?;
    Ok((txn.pause(), outputs))
}

/// Puts batches into the store and answers, in their order: one that changed nothing may still say what an earlier one
/// did. The order of each: applied in memory ([`apply`]), written, synced, answered. A crash before the sync loses commands that
/// nobody was told of; one after it loses answers, which the sessions remember.
async fn commit_loop<M: Model>(
    env: Env,
    store: Arc<Store>,
    mut batches: mpsc::Receiver<Closed<M>>,
    committed: watch::Sender<u64>,
) {
    while let Some(batch) = batches.recv().await {
        let Closed { changes, outputs, opening, answers, began, turn } = batch;
        let changed = !changes.0.is_empty();
        let (done, now) = (store.clone(), env.clock.now());
        let done = blocking(env.spawn.as_ref(), move || commit(&done, now, opening, &changes)).await;
        // The next one goes on while this one is answered.
        drop(turn);
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                refuse::<M>(answers, &error);
                continue;
            }
            // The node is going down.
            Err(TaskGone) => return,
        }
        let took = env.clock.now().since(began).as_secs_f64();
        metrics::histogram!("alba_nsm_commit_seconds", "group" => store.group.to_string()).record(took);
        if changed {
            committed.send_modify(|count| *count = count.wrapping_add(1));
        }
        for (output, answer) in outputs.into_iter().zip(answers) {
            // Whoever asked may have gone; the session remembers.
            drop(answer.send(Ok(output)));
        }
    }
}

/// Writes and syncs a batch, unless the opening it was applied on is over: then what is below it may not be there.
fn commit(store: &Store, now: Moment, opening: Opening, changes: &WriteBatch) -> Result<(), KvError> {
    if store.lock().generation != opening.generation {
        return Err(store.failure());
    }
    if changes.0.is_empty() {
        return Ok(());
    }
    let done = opening.kv.commit_shared(changes, Durability::Sync);
    let generation = opening.generation;
    // Before it is poisoned: the store must close to be opened again.
    drop(opening);
    if let Err(error) = &done {
        store.poison(generation, error, now);
    }
    done
}
