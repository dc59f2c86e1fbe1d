//! Time: a monotonic clock for waiting, a wall clock for people. No decision may depend on the wall clock (invariant 8).

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;

/// A point on this process's monotonic clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub Duration);

impl Moment {
    /// Time from `earlier` to here; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// `after` later.
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(after))
    }
}

/// The moment by which an answer is of use. Passed down and never extended (invariant 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(pub Moment);

impl Deadline {
    /// `after` from now.
    pub fn after(clock: &dyn Clock, after: Duration) -> Self {
        Self(clock.now().plus(after))
    }

    /// Time left; zero when past.
    pub fn left(self, clock: &dyn Clock) -> Duration {
        self.0.since(clock.now())
    }

    /// The earlier of this and `after` from now: a step's own limit inside the whole request's.
    #[must_use]
    pub fn capped(self, clock: &dyn Clock, after: Duration) -> Self {
        self.min(Self::after(clock, after))
    }
}

/// The deadline passed before the work was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("deadline exceeded")]
pub struct DeadlineExceeded;

/// Time.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// Now, on the monotonic clock.
    fn now(&self) -> Moment;

    /// Microseconds since the Unix epoch by the wall clock; for people and time stamps only.
    fn wall_micros(&self) -> u64;

    /// Returns at `moment` or soon after.
    async fn sleep_until(&self, moment: Moment);
}

/// Waits for `work`, at most until `deadline`; cancels it (drops it) then. `work` is polled first, so what is ready at
/// the deadline counts.
pub async fn within<F: Future>(
    clock: &dyn Clock,
    deadline: Deadline,
    work: F,
) -> Result<F::Output, DeadlineExceeded> {
    let mut work = pin!(work);
    // Most work is ready when it is first asked for: only what is not needs a timer.
    let mut alarm = None;
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => {
            let alarm = alarm.get_or_insert_with(|| clock.sleep_until(deadline.0));
            alarm.as_mut().poll(context).map(|()| Err(DeadlineExceeded))
        }
    })
    .await
}
