//! How many fragments repair, moves and scrubbing have on their way at once: all at once when nobody else is there, few beside
//! clients.
//!
//! What a client's request waits behind is what runs at the same moment, on OSDs, on the network and on processors, not what runs
//! within a second. One fragment at a time is hardly felt at any speed; eight at once are, at a tenth of it.
//!
//! It must never be held while waiting for another one: each is one call to one OSD and what is computed of its answer. Nor must an OSD
//! that hangs hold up all others: what takes longer than [`HELD`] does little, and goes on beside the next one.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::{Clock, Deadline, OsdError, within};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// As many as may ever be on their way at once.
pub const MOST_TRANSFERS: u16 = 256;

/// Longest that one of them keeps others waiting.
const HELD: Duration = Duration::from_secs(1);

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
struct Transfer<'a> {
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

    /// Does `call` when its turn comes.
    pub(crate) async fn run<T>(
        &self,
        clock: &dyn Clock,
        deadline: Deadline,
        call: impl Future<Output = T>,
    ) -> Result<T, OsdError> {
        let turn = self.begin(clock, deadline).await?;
        let mut call = pin!(call);
        if let Ok(done) = within(clock, Deadline::after(clock, HELD), call.as_mut()).await {
            return Ok(done);
        }
        drop(turn);
        Ok(call.await)
    }

    async fn begin(&self, clock: &dyn Clock, deadline: Deadline) -> Result<Transfer<'_>, OsdError> {
        let turn = within(clock, deadline, self.turns.clone().acquire_owned()).await;
        // It is never closed.
        let turn = turn.ok().and_then(Result::ok).ok_or(OsdError::Timeout)?;
        Ok(Transfer { transfers: self, turn: Some(turn) })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use alba_core::env::sim::Simulation;
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    /// Runs `test` with a clock and a deadline that never comes by itself.
    fn with_clock(test: impl AsyncFnOnce(&dyn Clock, Deadline)) {
        let simulation = Simulation::new(1);
        let env = simulation.node(1).env();
        let test = async { test(env.clock.as_ref(), env.deadline_in(Duration::from_secs(10))).await };
        simulation.run(Duration::from_secs(60), test).unwrap();
    }

    #[test]
    fn who_waits_for_longer_than_it_may_is_told() {
        with_clock(async |clock, deadline| {
            let transfers = Transfers::default();
            transfers.limit(0);
            let refused = transfers.begin(clock, deadline).await;
            assert!(matches!(refused, Err(OsdError::Timeout)));
            transfers.limit(1);
            let later = Deadline::after(clock, Duration::from_secs(10));
            assert!(transfers.begin(clock, later).await.is_ok());
        });
    }

    #[test]
    fn a_call_that_hangs_does_not_hold_up_the_others() {
        with_clock(async |clock, deadline| {
            let transfers = Transfers::default();
            transfers.limit(1);
            let begun = clock.now();
            let hangs = transfers.run(clock, deadline, clock.sleep_until(begun.plus(HELD * 5)));
            let next = async {
                transfers.run(clock, deadline, async {}).await.unwrap();
                clock.now().since(begun)
            };
            let (hung, waited) = futures_util::future::join(hangs, next).await;
            assert_eq!((hung, waited), (Ok(()), HELD));
            assert_eq!(clock.now().since(begun), HELD * 5, "and it comes to its end");
        });
    }

    proptest! {
        /// However the limit changes: a transfer begins exactly when fewer run than may.
        #[test]
        fn no_more_run_than_may_and_no_turn_is_lost(
            steps in prop::collection::vec((0_u8..3, 0_u16..6), 1..200)
        ) {
            with_clock(async |clock, deadline| {
                let transfers = Transfers::default();
                let mut limit = usize::from(MOST_TRANSFERS);
                let mut running = Vec::new();
                for (step, number) in steps {
                    match step {
                        0 => {
                            transfers.limit(number);
                            limit = usize::from(number);
                        }
                        1 => drop(running.pop()),
                        _ => {
                            let begun = transfers.begin(clock, deadline).now_or_never();
                            assert_eq!(begun.is_some(), running.len() < limit, "{} of {limit}", running.len());
                            running.extend(begun.and_then(Result::ok));
                        }
                    }
                }
                running.clear();
                transfers.limit(MOST_TRANSFERS);
                assert_eq!(transfers.turns.available_permits(), usize::from(MOST_TRANSFERS));
            });
        }
    }
}
