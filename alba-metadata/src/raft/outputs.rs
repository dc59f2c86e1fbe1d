//! Who waits for what comes of a batch. Outputs never enter the log: each replica computes them, and only the one that
//! proposed the batch has somebody to give them to.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::payload::BatchId;
use crate::machine::OutputOf;
use crate::model::Model;
use crate::replicator::{Index, ReplicationError};

/// What a proposer hears.
pub(super) type Outcome<M> = Result<(OutputOf<M>, Index), ReplicationError>;

/// One who waits, with the room its input takes in the queue.
pub(super) struct Waiter<M: Model> {
    pub(super) answer: oneshot::Sender<Outcome<M>>,
    pub(super) _room: OwnedSemaphorePermit,
}

struct Proposed<M: Model> {
    waiters: Vec<Waiter<M>>,
    /// It reached this replica's log: whether it will count is unknown from then on, until it is applied.
    logged: bool,
}

/// Batches of this run that are neither applied nor given up; as many as are in flight.
pub(super) struct Outputs<M: Model>(Mutex<BTreeMap<BatchId, Proposed<M>>>);

impl<M: Model> Default for Outputs<M> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<M: Model> Outputs<M> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<BatchId, Proposed<M>>> {
        // Consistent between any two statements that hold the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn register(&self, id: BatchId, waiters: Vec<Waiter<M>>) {
        self.lock().insert(id, Proposed { waiters, logged: false });
    }

    /// The batch is being appended to this replica's log.
    pub(super) fn logged(&self, id: BatchId) {
        if let Some(proposed) = self.lock().get_mut(&id) {
            proposed.logged = true;
        }
    }

    /// The batch was applied at `index`.
    pub(super) fn applied(&self, id: BatchId, index: Index, outputs: Vec<OutputOf<M>>) {
        let Some(proposed) = self.lock().remove(&id) else { return };
        for (waiter, output) in proposed.waiters.into_iter().zip(outputs) {
            // Whoever asked may have gone; the session remembers.
            drop(waiter.answer.send(Ok((output, index))));
        }
    }

    /// The library gave the batch up. Only one that never was in the log certainly never happens: a later leader may
    /// still hold a copy of any other.
    pub(super) fn failed(&self, id: BatchId, never_logged: &ReplicationError, logged: &ReplicationError) {
        let Some(proposed) = self.lock().remove(&id) else { return };
        let error = if proposed.logged { logged } else { never_logged };
        for waiter in proposed.waiters {
            drop(waiter.answer.send(Err(error.clone())));
        }
    }

    /// The replica stops: nobody can say what becomes of them.
    pub(super) fn abandon(&self) {
        let all = std::mem::take(&mut *self.lock());
        for waiter in all.into_values().flat_map(|proposed| proposed.waiters) {
            drop(waiter.answer.send(Err(ReplicationError::Timeout)));
        }
    }
}
