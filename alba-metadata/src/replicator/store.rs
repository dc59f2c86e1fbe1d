//! The store of a group of one replica, while it is sound. After a failure nothing of its state in memory is trusted: it is
//! closed, and opened again from what is on the disk.
//!
//! A store that failed must never be closed on an executor's thread: closing waits for its disk.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::spawn::Spawn;
use alba_core::env::{Moment, blocking};
use alba_core::ids::GroupId;
use alba_core::kv::{Kv, KvError, MemKv};

use super::ReplicationError;

/// Opens a group's store, also again after it was poisoned.
pub type StoreOpener = Arc<dyn Fn() -> Result<Arc<dyn Kv>, KvError> + Send + Sync>;

/// One opening of the store. A failure ends it, and all that is not safe by then is answered with the error.
#[derive(Clone)]
pub(super) struct Opening {
    kv: Arc<OpenKv>,
    pub(super) generation: u64,
}

impl Opening {
    pub(super) fn kv(&self) -> &dyn Kv {
        self.kv.kv.as_ref()
    }
}

/// Closes when nobody uses it any more.
struct OpenKv {
    kv: Arc<dyn Kv>,
    spawn: Arc<dyn Spawn>,
    failed: AtomicBool,
}

impl Drop for OpenKv {
    fn drop(&mut self) {
        // A sound one is closed by whoever ends the replica, and is closed when that returns.
        if self.failed.load(Ordering::Acquire) {
            // Taken out, so that nothing of it is left to be dropped here.
            let kv = std::mem::replace(&mut self.kv, Arc::new(MemKv::new()));
            self.spawn.run_blocking(Box::new(move || drop(kv)));
        }
    }
}

/// The store.
pub(super) struct Store {
    pub(super) group: GroupId,
    open: StoreOpener,
    spawn: Arc<dyn Spawn>,
    state: Mutex<State>,
}

struct State {
    kv: Option<Arc<OpenKv>>,
    failed: Option<(KvError, Moment)>,
    /// It is being opened again.
    opening: bool,
    /// Failures so far.
    generation: u64,
}

/// Opens a store. What a killed process wrote may be there and not on the disk: it is made safe before it is read.
fn opened(open: &StoreOpener, spawn: &Arc<dyn Spawn>) -> Result<Arc<OpenKv>, KvError> {
    let kv = open()?;
    kv.sync()?;
    Ok(Arc::new(OpenKv { kv, spawn: spawn.clone(), failed: AtomicBool::new(false) }))
}

impl Store {
    /// Opens it for the first time.
    pub(super) async fn start(
        spawn: &Arc<dyn Spawn>,
        group: &GroupId,
        open: StoreOpener,
    ) -> Result<Self, ReplicationError> {
        let first = {
            let (open, spawn) = (open.clone(), spawn.clone());
            blocking(spawn.clone().as_ref(), move || opened(&open, &spawn))
                .await
                .map_err(|_| ReplicationError::Stopped)??
        };
        let state = State { kv: Some(first), failed: None, opening: false, generation: 0 };
        Ok(Self { group: group.clone(), open, spawn: spawn.clone(), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Consistent between any two statements that hold the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is what was made on top of that opening still what the store will have?
    pub(super) fn is_current(&self, opening: &Opening) -> bool {
        self.lock().generation == opening.generation
    }

    /// The open store.
    pub(super) fn sound(&self) -> Result<Opening, KvError> {
        let state = self.lock();
        match (&state.kv, &state.failed) {
            (Some(kv), _) => Ok(Opening { kv: kv.clone(), generation: state.generation }),
            (None, Some((error, _))) => Err(error.clone()),
            (None, None) => Err(KvError::Io("the store is not open".to_owned())),
        }
    }

    /// The open store, opened again if it had failed long enough ago. Blocks.
    pub(super) fn sound_or_reopened(&self, now: Moment, after: Duration) -> Result<Opening, KvError> {
        let reopening = {
            let mut state = self.lock();
            match &state.failed {
                Some((error, when)) if state.opening || now.since(*when) < after => return Err(error.clone()),
                Some(_) => {
                    state.opening = true;
                    // The lock is not held while the store opens.
                    Some(Reopening(self))
                }
                None => None,
            }
        };
        let Some(reopening) = reopening else { return self.sound() };
        let result = opened(&self.open, &self.spawn);
        let mut state = self.lock();
        let result = match result {
            Ok(kv) => {
                tracing::info!(group = %self.group, "the store is open again");
                state.kv = Some(kv.clone());
                state.failed = None;
                Ok(Opening { kv, generation: state.generation })
            }
            Err(error) => {
                state.failed = Some((error.clone(), now));
                Err(error)
            }
        };
        drop(state);
        drop(reopening);
        result
    }

    /// Ends an opening.
    pub(super) fn poison(&self, generation: u64, error: &KvError, now: Moment) {
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
        if let Some(closed) = closed {
            closed.failed.store(true, Ordering::Release);
        }
    }

    /// Why an opening that was sound is not any more.
    pub(super) fn failure(&self) -> KvError {
        let failed = self.lock().failed.clone();
        failed.map_or_else(|| KvError::Io("the store failed meanwhile".to_owned()), |(error, _)| error)
    }
}

/// One opens the store at a time, however its opening ends.
struct Reopening<'a>(&'a Store);

impl Drop for Reopening<'_> {
    fn drop(&mut self) {
        self.0.lock().opening = false;
    }
}
