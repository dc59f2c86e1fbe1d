//! Room for large requests: one bound in bytes for all connections together (invariant 9).
//!
//! The whole frame is reserved before its bulk is read, in the order of asking: a request that has begun to arrive has
//! room to its end, so connections cannot wait for each other with half a frame each.

use std::sync::Arc;

use alba_core::env::{Clock, Deadline, within};
use alba_core::units::ByteCount;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits are counted in these many bytes: what a semaphore hands out at once is a `u32`.
const UNIT: u64 = 1024;

/// Room for requests.
pub(crate) struct Admission {
    semaphore: Arc<Semaphore>,
    units: u32,
}

/// Reserved bytes; given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Room {
    _permit: Option<OwnedSemaphorePermit>,
}

/// No room became free in time.
#[derive(Debug)]
pub(crate) struct Full;

impl Admission {
    /// `room` in all; at least one unit, at most 512 GiB.
    pub(crate) fn new(room: ByteCount) -> Self {
        let units = u32::try_from((room.get() / UNIT).clamp(1, 1 << 29)).unwrap_or(1 << 29);
        let permits = usize::try_from(units).unwrap_or(1 << 29);
        Self { semaphore: Arc::new(Semaphore::new(permits)), units }
    }

    /// Waits for room for `bytes`. More than all the room gets all of it.
    pub(crate) async fn take(&self, clock: &dyn Clock, bytes: u64, deadline: Deadline) -> Result<Room, Full> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units);
        match within(clock, deadline, self.semaphore.clone().acquire_many_owned(units)).await {
            Ok(Ok(permit)) => Ok(Room { _permit: Some(permit) }),
            // Never closed; were it, there would be no room.
            Ok(Err(_)) | Err(_) => Err(Full),
        }
    }
}
