//! How many fragments repair, moves and scrubbing have on their way at once: all at once when nobody else is there, few beside
//! clients.
//!
//! What a client's request waits behind is what runs at the same moment, on OSDs, on the network and on processors, not what runs
//! within a second. One fragment at a time is hardly felt at any speed; eight at once are, at a tenth of it.
//!
//! It must never be held while waiting for another one: each is one call to one OSD and what is computed of its answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alba_core::env::{Clock, Deadline, OsdError, within};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// As many as may ever be on their way at once.
pub const MOST_TRANSFERS: u16 = 256;

/// See the module.
pub struct Transfers {
    turns: Arc<Semaphore>,
    state: Mutex<State>,
}

struct State {
    /// As many may run.
    limit: u16,
    /// Turns of so many that run end with them.
    too_many: u16,
}

/// The right to one.
pub(crate) struct Transfer<'a> {
    transfers: &'a Transfers,
    turn: Option<OwnedSemaphorePermit>,
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        let mut state = self.transfers.lock();
        if state.too_many > 0
            && let Some(turn) = self.turn.take()
        {
            state.too_many -= 1;
            turn.forget();
        }
    }
}

impl Default for Transfers {
    fn default() -> Self {
        let state = Mutex::new(State { limit: MOST_TRANSFERS, too_many: 0 });
        Self { turns: Arc::new(Semaphore::new(usize::from(MOST_TRANSFERS))), state }
    }
}

impl Transfers {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic happens under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets so many run at once from now on, up to [`MOST_TRANSFERS`]; none at all while it is 0. Those that run stay.
    pub fn limit(&self, limit: u16) {
        let limit = limit.min(MOST_TRANSFERS);
        let mut state = self.lock();
        if limit > state.limit {
            let more = limit - state.limit;
            let kept = more.min(state.too_many);
            state.too_many -= kept;
            self.turns.add_permits(usize::from(more - kept));
        } else {
            let fewer = state.limit - limit;
            let gone = self.turns.forget_permits(usize::from(fewer));
            state.too_many += fewer.saturating_sub(u16::try_from(gone).unwrap_or(fewer));
        }
        state.limit = limit;
    }

    /// Waits for its turn.
    pub(crate) async fn begin(
        &self,
        clock: &dyn Clock,
        deadline: Deadline,
    ) -> Result<Transfer<'_>, OsdError> {
        let turn = within(clock, deadline, self.turns.clone().acquire_owned()).await;
        // It is never closed.
        let turn = turn.ok().and_then(Result::ok).ok_or(OsdError::Timeout)?;
        Ok(Transfer { transfers: self, turn: Some(turn) })
    }
}
