//! The embedded default: one replica, its store on this machine. Commands that wait together share one commit.

use std::collections::VecDeque;
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
        Self { queue: 256, batch: 128, reopen_after: Duration::from_millis(200) }
    }
}

struct Waiting<M: Model> {
    input: Input<M::Command>,
    answer: oneshot::Sender<Result<OutputOf<M>, ReplicationError>>,
}

/// One replica.
pub struct Local<M: Model> {
    env: Env,
    queue: mpsc::Sender<Waiting<M>>,
    store: Arc<Store>,
    commits: watch::Receiver<u64>,
    _apply: AbortOnDrop,
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
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, StoreState> {
        // Consistent between any two statements that hold the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open store, for reads.
    fn sound(&self) -> Result<Arc<dyn Kv>, KvError> {
        let state = self.lock();
        match (&state.kv, &state.failed) {
            (Some(kv), _) => Ok(kv.clone()),
            (None, Some((error, _))) => Err(error.clone()),
            (None, None) => Err(KvError::Io("the store is not open".to_owned())),
        }
    }

    /// The open store, opened again if it had failed long enough ago. Blocks.
    fn sound_or_reopened(&self, now: Moment, after: Duration) -> Result<Arc<dyn Kv>, KvError> {
        // Cloned, so that the lock is not held while the store opens.
        let failed = self.lock().failed.clone();
        match failed {
            Some((error, when)) if now.since(when) < after => return Err(error),
            Some(_) => {}
            None => return self.sound(),
        }
        match (self.open)() {
            Ok(kv) => {
                tracing::info!(group = %self.group, "the store is open again");
                let mut state = self.lock();
                state.kv = Some(kv.clone());
                state.failed = None;
                Ok(kv)
            }
            Err(error) => {
                self.lock().failed = Some((error.clone(), now));
                Err(error)
            }
        }
    }

    /// After a failure nothing of the store's state in memory is trusted: it is closed, and later opened from what is on
    /// the disk.
    fn poison(&self, error: &KvError, now: Moment) {
        tracing::error!(group = %self.group, %error, "the store failed; it is closed and will be opened again");
        let closed = {
            let mut state = self.lock();
            state.failed = Some((error.clone(), now));
            state.kv.take()
        };
        drop(closed);
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
            blocking(env.spawn.as_ref(), move || open()).await.map_err(|_| ReplicationError::Stopped)??
        };
        let state = Mutex::new(StoreState { kv: Some(first), failed: None });
        let store = Arc::new(Store { group: group.clone(), open, state });
        let (queue, waiting) = mpsc::channel(limits.queue.max(1));
        let (committed, commits) = watch::channel(0);
        let apply = apply_loop::<M>(env.clone(), store.clone(), waiting, committed, limits);
        let apply = env.spawn.spawn("metadata-apply", Box::pin(apply)).abort_on_drop();
        Ok(Self { env, queue, store, commits, _apply: apply })
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
        let kv = self.store.sound()?;
        let work = blocking(self.env.spawn.as_ref(), move || {
            let snapshot = kv.snapshot()?;
            read(snapshot.as_ref())
        });
        match within(self.env.clock.as_ref(), deadline, work).await {
            Ok(Ok(done)) => done.map(|()| 0).map_err(Into::into),
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

    fn trouble(&self) -> Option<String> {
        self.store.sound().err().map(|error| error.to_string())
    }
}

async fn apply_loop<M: Model>(
    env: Env,
    store: Arc<Store>,
    mut waiting: mpsc::Receiver<Waiting<M>>,
    committed: watch::Sender<u64>,
    limits: LocalLimits,
) {
    let mut batch = Vec::new();
    // Whatever came while the last batch was committed makes up the next one.
    while waiting.recv_many(&mut batch, limits.batch.max(1)).await > 0 {
        let (inputs, mut answers): (Vec<_>, VecDeque<_>) =
            batch.drain(..).map(|waiting| (waiting.input, waiting.answer)).unzip();
        let (now, wall) = (env.clock.now(), env.clock.wall_micros());
        let done = {
            let store = store.clone();
            let reopen_after = limits.reopen_after;
            blocking(env.spawn.as_ref(), move || apply_batch::<M>(&store, now, wall, reopen_after, &inputs))
                .await
        };
        match done {
            Ok(Ok((outputs, changed))) => {
                let took = env.clock.now().since(now).as_secs_f64();
                metrics::histogram!("alba_nsm_commit_seconds", "group" => store.group.to_string())
                    .record(took);
                if changed {
                    committed.send_modify(|count| *count = count.wrapping_add(1));
                }
                for (output, answer) in outputs.into_iter().zip(answers.drain(..)) {
                    // Whoever asked may have gone; the session remembers.
                    drop(answer.send(Ok(output)));
                }
            }
            Ok(Err(error)) => {
                for answer in answers.drain(..) {
                    drop(answer.send(Err(error.clone().into())));
                }
            }
            // The node is going down.
            Err(_) => return,
        }
    }
}

/// Applies a batch in one commit. The order: apply in memory, commit durably, answer. A crash before the commit loses
/// commands that nobody was told of; one after it loses answers, which the sessions remember.
fn apply_batch<M: Model>(
    store: &Store,
    now: Moment,
    wall: u64,
    reopen_after: Duration,
    inputs: &[Input<M::Command>],
) -> Result<(Vec<OutputOf<M>>, bool), KvError> {
    let kv = store.sound_or_reopened(now, reopen_after)?;
    let run = || {
        let mut txn = KvTxn::new(kv.as_ref());
        let mut outputs = Vec::with_capacity(inputs.len());
        for input in inputs {
            outputs.push(step::<M>(&mut txn, wall, input)?);
        }
        let changes = txn.into_batch();
        let changed = !changes.0.is_empty();
        if changed {
            kv.commit(changes, Durability::Sync)?;
        }
        Ok((outputs, changed))
    };
    let result = run();
    drop(kv);
    if let Err(error) = &result {
        store.poison(error, now);
    }
    result
}
