//! The embedded default: one replica, its store on this machine. Commands that wait together share one commit, and while
//! one batch is written and synced the next is put together on top of it.
//!
//! It must never answer a command before its effect is safe on the disk. Readers look at the store, in which nothing is
//! seen before it is safe ([`Kv::commit`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::spawn::{AbortOnDrop, TaskGone};
use alba_core::env::{Deadline, Env, Moment, Urgency, blocking, within};
use alba_core::ids::GroupId;
use alba_core::kv::{Durability, KvError, WriteBatch};
use alba_core::wire::rpc::Consistency;
use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::store::{Opening, Store, StoreOpener};
use super::{CHANGE_BYTES, Index, ReadWork, ReplicationError, Replicator, STORE_PATIENCE, answer_of};
use crate::machine::{Input, OutputOf, step};
use crate::model::Model;
use crate::txn::{Below, KvTxn, Layered, Paused};

/// How much a group takes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalLimits {
    /// Commands that wait for a batch; more wait with their callers, whom the server bounds.
    pub queue: usize,
    /// Commands that share one commit.
    pub batch: usize,
    /// Bytes that the commands of a batch write, about: the one that reaches it is the batch's last.
    pub change_bytes: usize,
    /// A store that failed is opened again no sooner than this after the last try.
    pub reopen_after: Duration,
    /// Longest that one step of the store is waited for; a store that takes longer has failed.
    pub patience: Duration,
}

impl Default for LocalLimits {
    fn default() -> Self {
        Self {
            queue: 512,
            batch: 512,
            change_bytes: CHANGE_BYTES,
            reopen_after: Duration::from_millis(200),
            patience: STORE_PATIENCE,
        }
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
    below: Option<Arc<Below>>,
    answers: Vec<Answer<M>>,
    began: Moment,
}

/// The right to write a batch, of which there is one at a time. Who has written it gives it back, or who waited too long for that.
type Turn = Arc<Mutex<Option<OwnedSemaphorePermit>>>;

/// What is locked is consistent between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(turn: &Turn) -> Option<OwnedSemaphorePermit> {
    lock(turn).take()
}

/// A batch that is being written.
struct Writing<M: Model> {
    outputs: Vec<OutputOf<M>>,
    answers: Vec<Answer<M>>,
    began: Moment,
    generation: u64,
    changed: bool,
    turn: Turn,
    until: Deadline,
    done: oneshot::Receiver<Result<(), KvError>>,
}

/// One replica.
pub struct Local<M: Model> {
    env: Env,
    queue: mpsc::Sender<Waiting<M>>,
    store: Arc<Store>,
    commits: watch::Receiver<u64>,
    applying: Step,
    _tasks: [AbortOnDrop; 3],
}

impl<M: Model> Local<M> {
    /// Opens the store and starts to apply.
    pub async fn start(
        env: Env,
        group: &GroupId,
        open: StoreOpener,
        limits: LocalLimits,
    ) -> Result<Self, ReplicationError> {
        let store = Arc::new(Store::start(&env.spawn, group, open).await?);
        let (queue, waiting) = mpsc::channel(limits.queue.max(1));
        let (committed, commits) = watch::channel(0);
        let (written, writing) = mpsc::channel(1);
        let step = Arc::new(Mutex::new(None));
        let watch = watch_steps(env.clone(), store.clone(), step.clone(), limits.patience);
        let answer = answer_loop::<M>(env.clone(), store.clone(), writing, committed, limits.patience);
        let apply = apply_loop::<M>(env.clone(), store.clone(), waiting, written, limits, step.clone());
        // Nothing comes of a command before it was applied, and to be applied takes less than to wake up a thread for it twice: so that
        // has a thread of its own.
        let tasks = [
            env.spawn.spawn_thread("metadata-apply", Urgency::First, Box::pin(apply)).abort_on_drop(),
            env.spawn.spawn("metadata-answer", Box::pin(answer)).abort_on_drop(),
            env.spawn.spawn("metadata-watch", Box::pin(watch)).abort_on_drop(),
        ];
        Ok(Self { env, queue, store, commits, applying: step, _tasks: tasks })
    }

    /// Is nothing applied, because something is that does not end? Then nobody needs to wait for it.
    fn stuck(&self) -> Option<KvError> {
        let step = *lock(&self.applying);
        step.filter(|(until, _)| until.0 <= self.env.clock.now())?;
        self.store.sound().err()
    }
}

#[async_trait]
impl<M: Model> Replicator<M> for Local<M> {
    async fn propose(
        &self,
        input: Input<M::Command>,
        deadline: Deadline,
    ) -> Result<(OutputOf<M>, Index), ReplicationError> {
        if let Some(error) = self.stuck() {
            return Err(error.into());
        }
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
            let snapshot = opening.kv().snapshot()?;
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

/// What is being applied: until when, and on which opening of the store.
type Step = Arc<Mutex<Option<(Deadline, u64)>>>;

/// A store in which applying does not end has failed: whoever comes then hears it at once, and what was applied is not written.
async fn watch_steps(env: Env, store: Arc<Store>, step: Step, patience: Duration) {
    loop {
        env.clock.sleep_until(env.deadline_in(patience / 4).0).await;
        let step = *lock(&step);
        let now = env.clock.now();
        if let Some((until, generation)) = step
            && until.0 <= now
        {
            store.poison(generation, &late(patience), now);
        }
    }
}

/// A step that ends without an answer has panicked, or the server is going down.
fn gone(gone: TaskGone) -> KvError {
    KvError::Io(format!("a step of the store: {gone}"))
}

/// One that takes too long goes on by itself. Either way nobody must build on what it may have done.
fn late(patience: Duration) -> KvError {
    KvError::Io(format!("a step of the store is not done after {patience:?}"))
}

/// Waits for a step that runs where it may block.
async fn step_of_store<T>(
    env: &Env,
    until: Deadline,
    patience: Duration,
    done: oneshot::Receiver<Result<T, KvError>>,
) -> Result<T, KvError> {
    match within(env.clock.as_ref(), until, done).await {
        Ok(done) => done.unwrap_or_else(|_| Err(gone(TaskGone))),
        Err(_) => Err(late(patience)),
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
    written: mpsc::Sender<Writing<M>>,
    limits: LocalLimits,
    applying: Step,
) {
    let turns = Arc::new(Semaphore::new(1));
    let mut gathering: Option<Gathering<M>> = None;
    // The batch that was closed last, which may not be in the store yet; the one before it is, or has failed.
    let mut last: Option<(u64, Arc<Below>)> = None;
    let mut more = Vec::new();
    let mut ended = false;
    loop {
        let room = match &gathering {
            // What is left of the last step comes first, in the next batch.
            _ if ended || !more.is_empty() => 0,
            Some(batch) if batch.changes.bytes() >= limits.change_bytes => 0,
            Some(batch) => limits.batch.max(1).saturating_sub(batch.outputs.len()).min(STEP),
            None => limits.batch.clamp(1, STEP),
        };
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
            let (generation, changed) = (opening.generation, !changes.0.is_empty());
            let turn = Arc::new(Mutex::new(Some(turn)));
            let until = env.deadline_in(limits.patience);
            let done = write(&env, &store, opening, changes.clone(), turn.clone());
            let writing = Writing { outputs, answers, began, generation, changed, turn, until, done };
            // While it is being written.
            last = Some((generation, Arc::new(Below::new(changes))));
            if written.send(writing).await.is_err() {
                return;
            }
        }
        if more.is_empty() {
            continue;
        }
        let (inputs, mut answers): (Vec<_>, Vec<_>) =
            more.drain(..).map(|waiting| (waiting.input, waiting.answer)).unzip();
        let (now, wall) = (env.clock.now(), env.clock.wall_micros());
        let mut batch = match gathering.take() {
            Some(batch) => batch,
            None => match begin(&env, &store, now, &limits, &last).await {
                Ok(batch) => batch,
                Err(error) => {
                    refuse::<M>(answers, &error);
                    continue;
                }
            },
        };
        let (changes, opening, below) =
            (std::mem::take(&mut batch.changes), batch.opening.clone(), batch.below.clone());
        let most = limits.change_bytes;
        let note = |step| *lock(&applying) = step;
        note(Some((env.deadline_in(limits.patience), opening.generation)));
        let work = move || apply::<M>(&opening, below.as_deref(), changes, most, wall, inputs);
        // Here and now; how long it may take is watched from outside.
        let done = blocking(env.spawn.as_ref(), work).await;
        note(None);
        match done.unwrap_or_else(|gone| Err(self::gone(gone))) {
            Ok(Applied { changes, outputs, rest }) => {
                let later = answers.split_off(outputs.len());
                more.extend(rest.into_iter().zip(later).map(|(input, answer)| Waiting { input, answer }));
                batch.answers.extend(answers);
                batch.changes = changes;
                batch.outputs.extend(outputs);
                gathering = Some(batch);
            }
            Err(error) => {
                store.poison(batch.opening.generation, &error, now);
                batch.answers.extend(answers);
                refuse::<M>(batch.answers, &error);
            }
        }
    }
}

/// A batch without commands yet.
async fn begin<M: Model>(
    env: &Env,
    store: &Arc<Store>,
    now: Moment,
    limits: &LocalLimits,
    last: &Option<(u64, Arc<Below>)>,
) -> Result<Gathering<M>, KvError> {
    let opening = match store.sound() {
        Ok(opening) => opening,
        Err(_) => {
            let (store, after) = (store.clone(), limits.reopen_after);
            let (tell, opened) = oneshot::channel();
            // Not here: one that takes longer than it may is used when it is open.
            env.spawn.run_blocking(Box::new(move || drop(tell.send(store.sound_or_reopened(now, after)))));
            step_of_store(env, env.deadline_in(limits.patience), limits.patience, opened).await?
        }
    };
    // One of an opening that is over is in the store, or failed.
    let below = last.as_ref().filter(|(generation, _)| *generation == opening.generation);
    let below = below.map(|(_, changes)| changes.clone());
    let (outputs, answers) = (Vec::new(), Vec::new());
    Ok(Gathering { changes: Paused::default(), outputs, opening, below, answers, began: now })
}

/// What came of a step.
struct Applied<M: Model> {
    changes: Paused,
    outputs: Vec<OutputOf<M>>,
    /// Inputs for which the batch has no room any more.
    rest: Vec<Input<M::Command>>,
}

/// Applies inputs in memory, until the batch has written `most` bytes; at least one.
fn apply<M: Model>(
    opening: &Opening,
    below: Option<&Below>,
    changes: Paused,
    most: usize,
    wall: u64,
    mut inputs: Vec<Input<M::Command>>,
) -> Result<Applied<M>, KvError> {
    let store = Layered::new(opening.kv(), below);
    let mut txn = KvTxn::resume(&store, changes);
    let mut outputs = Vec::with_capacity(inputs.len());
    for input in &inputs {
        outputs.push(step::<M>(&mut txn, wall, input)?);
        if txn.bytes() >= most {
            break;
        }
    }
    let rest = inputs.split_off(outputs.len());
    Ok(Applied { changes: txn.pause(), outputs, rest })
}

/// Begins to write a batch, whose turn it is. The thread that writes it also lets the next one in: each thread that has to wake up in
/// between is time in which the store has nothing to do.
fn write(
    env: &Env,
    store: &Arc<Store>,
    opening: Opening,
    changes: Arc<WriteBatch>,
    turn: Turn,
) -> oneshot::Receiver<Result<(), KvError>> {
    let (tell, done) = oneshot::channel();
    let (store, now) = (store.clone(), env.clock.now());
    env.spawn.run_blocking(Box::new(move || {
        let done = commit(&store, now, opening, &changes);
        // One that failed is poisoned by now.
        drop(take(&turn));
        // Whoever waited may have gone, or have waited too long.
        drop(tell.send(done));
    }));
    done
}

/// Answers when a batch is in the store, in their order: one that changed nothing may still say what an earlier one
/// did. The order of each: applied in memory ([`apply`]), written, synced, answered. A crash before the sync loses commands that
/// nobody was told of; one after it loses answers, which the sessions remember.
///
/// Not on the thread that wrote it: there each answer would wake up a thread for whoever waits for it.
async fn answer_loop<M: Model>(
    env: Env,
    store: Arc<Store>,
    mut batches: mpsc::Receiver<Writing<M>>,
    committed: watch::Sender<u64>,
    patience: Duration,
) {
    while let Some(batch) = batches.recv().await {
        let Writing { outputs, answers, began, generation, changed, turn, until, done } = batch;
        let done = step_of_store(&env, until, patience, done).await;
        if let Err(error) = done {
            // Also when it panicked, or does not end: whether it is in the store is not known, and nothing may come on top of
            // it. Before the next one is let in.
            store.poison(generation, &error, env.clock.now());
            drop(take(&turn));
            refuse::<M>(answers, &error);
            continue;
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
    if !store.is_current(&opening) {
        return Err(store.failure());
    }
    if changes.0.is_empty() {
        return Ok(());
    }
    let done = opening.kv().commit_shared(changes, Durability::Sync);
    let generation = opening.generation;
    // Before it is poisoned: the store must close to be opened again.
    drop(opening);
    if let Err(error) = &done {
        store.poison(generation, error, now);
    }
    done
}
