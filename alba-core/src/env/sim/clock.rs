//! Virtual time: it stands still while any task can run and jumps to the next timer when none can.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;

use super::executor::{Core, TimerId};
use crate::env::{Clock, Moment};

/// 2024-01-01 00:00 UTC: where wall clocks of simulated nodes begin.
const WALL_START_MICROS: i64 = 1_704_067_200_000_000;

/// One node's clocks. The monotonic one is the same everywhere, the wall clock is off by what the scenario says.
pub(super) struct SimClock {
    pub(super) core: Arc<Core>,
    pub(super) node: u32,
}

#[async_trait]
impl Clock for SimClock {
    fn now(&self) -> Moment {
        self.core.now()
    }

    fn wall_micros(&self) -> u64 {
        let since_start = i64::try_from(self.core.now().0.as_micros()).unwrap_or(i64::MAX);
        let micros =
            WALL_START_MICROS.saturating_add(since_start).saturating_add(self.core.wall_offset(self.node));
        u64::try_from(micros).unwrap_or(0)
    }

    async fn sleep_until(&self, moment: Moment) {
        Sleep { core: self.core.clone(), until: moment, timer: None }.await;
    }
}

struct Sleep {
    core: Arc<Core>,
    until: Moment,
    timer: Option<TimerId>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(timer) = self.timer.take() {
            self.core.cancel_timer(timer);
        }
        if self.core.now() >= self.until {
            return Poll::Ready(());
        }
        let timer = self.core.wake_at(self.until, context.waker());
        self.timer = Some(timer);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.core.cancel_timer(timer);
        }
    }
}
