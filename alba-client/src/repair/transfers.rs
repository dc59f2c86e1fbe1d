//! How many fragments repair, moves and scrubbing have on their way at once: all at once when nobody else is there, few beside
//! clients.
//!
//! What a client's request waits behind is what runs at the same moment, on OSDs, on the network and on processors, not what runs
//! within a second. One fragment at a time is hardly felt at any speed; eight at once are, at a tenth of it.
//!
//! It must never be held while waiting for another one: each is one call to one OSD and what is computed of its answer. Nor must an OSD
//! that hangs hold up all others: what takes longer than [`HELD`] does little, and goes on beside the next one.

use std::pin::pin;
use std::time::Duration;

use alba_core::env::{Clock, Deadline, OsdError, within};
use alba_core::fair::{Limits, Permit, Pool};
use alba_core::request;

/// As many as may ever be on their way at once.
pub const MOST_TRANSFERS: u16 = 256;

/// Longest that one of them keeps others waiting.
const HELD: Duration = Duration::from_secs(1);

/// See the module.
pub struct Transfers(Pool);

impl Default for Transfers {
    fn default() -> Self {
        Self(Pool::new(limits(MOST_TRANSFERS)))
    }
}

fn limits(transfers: u16) -> Limits {
    Limits::all_alike(u64::from(transfers.clamp(1, MOST_TRANSFERS)))
}

impl Transfers {
    /// Lets so many run at once from now on, from 1 to [`MOST_TRANSFERS`]. Those that run stay.
    pub fn limit(&self, limit: u16) {
        self.0.resize(limits(limit));
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

    async fn begin(&self, clock: &dyn Clock, deadline: Deadline) -> Result<Permit, OsdError> {
        // Another one has held it until then.
        self.0.take(clock, &request::flow(), 1, deadline).await.map_err(|_| OsdError::Timeout)
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
            transfers.limit(1);
            let held = transfers.begin(clock, deadline).await.unwrap();
            let refused = transfers.begin(clock, deadline).await;
            assert!(matches!(refused, Err(OsdError::Timeout)));
            drop(held);
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
            steps in prop::collection::vec((0_u8..3, 1_u16..6), 1..200)
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
                assert_eq!(transfers.0.usage().used, 0);
            });
        }
    }
}
