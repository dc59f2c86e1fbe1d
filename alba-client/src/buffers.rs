//! Room for buffers: one bound in bytes for all requests of a client (invariant 9).
//!
//! Two pools, so that waiting cannot form a circle. `work` holds what is on its way between a source or sink and the
//! OSDs: whoever has room there needs no more of anything to finish and give it back. `answers` holds what slices
//! return: its owner may then wait for `work`, never the other way round.

use std::sync::Arc;

use alba_core::env::{Clock, Deadline, within};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ClientError;

/// Permits are counted in these many bytes: a semaphore's request is a `u32`.
const UNIT: u64 = 1024;

/// Both pools.
pub(crate) struct Buffers {
    clock: Arc<dyn Clock>,
    work: Pool,
    answers: Pool,
}

struct Pool {
    semaphore: Arc<Semaphore>,
    units: u32,
}

/// Reserved bytes; given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Room {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Pool {
    fn new(bytes: u64) -> Self {
        // 2^29 is what a semaphore can hold on every platform: 512 GiB of buffers.
        let units = u32::try_from((bytes / UNIT).clamp(1, 1 << 29)).unwrap_or(1 << 29);
        // Lossless: `usize` has at least 32 bits on every platform we build for.
        let permits = usize::try_from(units).unwrap_or(1 << 29);
        Self { semaphore: Arc::new(Semaphore::new(permits)), units }
    }

    async fn take(&self, clock: &dyn Clock, bytes: u64, deadline: Deadline) -> Result<Room, ClientError> {
        if bytes == 0 {
            return Ok(Room::default());
        }
        // What is larger than all the room gets all of it: it runs alone.
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units);
        let permit = within(clock, deadline, Arc::clone(&self.semaphore).acquire_many_owned(units))
            .await
            .map_err(|_| ClientError::Busy("no room for buffers became free by the deadline".to_owned()))?
            .map_err(|_| ClientError::Internal("the buffer pool is closed".to_owned()))?;
        Ok(Room { _permit: Some(permit) })
    }
}

impl Buffers {
    /// `bytes` for each pool.
    pub(crate) fn new(clock: Arc<dyn Clock>, bytes: u64) -> Self {
        Self { clock, work: Pool::new(bytes), answers: Pool::new(bytes) }
    }

    /// Waits for `bytes` of room for data on its way. Served in the order of asking.
    pub(crate) async fn work(&self, bytes: u64, deadline: Deadline) -> Result<Room, ClientError> {
        self.work.take(self.clock.as_ref(), bytes, deadline).await
    }

    /// Waits for `bytes` of room for an answer.
    pub(crate) async fn answer(&self, bytes: u64, deadline: Deadline) -> Result<Room, ClientError> {
        self.answers.take(self.clock.as_ref(), bytes, deadline).await
    }
}
