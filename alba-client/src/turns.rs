//! Whose turn it is to upload, and to compute: both in fair order, with places kept for small requests.

use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Clock, Deadline, within};
use alba_core::fair::{Exhausted, Lane, Limits, Permit, Pool, Want};
use alba_core::request::{self, Stage};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{ClientConfig, ClientError};

/// Up to this many bytes a change (an upload, a deletion, a sequence) is small.
const SMALL_UPLOAD: u64 = 64 << 10;

/// Up to this many bytes a piece of computing is small: less than a millisecond. 64 KiB from eight fragments…
const SMALL_COMPUTE: u64 = 512 << 10;

/// … if its request has asked for no more room than this so far.
const SMALL_REQUEST: u64 = 128 << 10;

/// A million uploads at once is beyond any use; the bound keeps the conversions exact.
const MOST_UPLOADS: u32 = 1 << 20;

/// Computing has no deadline of its own: each request's ends it sooner.
const COMPUTE_PATIENCE: Duration = Duration::from_secs(3600);

/// See the module.
pub(crate) struct Turns {
    clock: Arc<dyn Clock>,
    uploads: Pool,
    /// Never short of permits, since `uploads` gives out fewer: it only tells when all have come back.
    settled: Arc<Semaphore>,
    compute: Pool,
}

/// Something is left to do of a change: while it is there, [`Turns::settle`] waits.
#[derive(Debug)]
pub(crate) struct Unsettled {
    _permit: OwnedSemaphorePermit,
}

/// The right to upload.
#[derive(Debug)]
pub(crate) struct UploadSlot {
    _turn: Permit,
    unsettled: Arc<Unsettled>,
}

impl UploadSlot {
    /// For what is left to do when another may upload instead.
    pub(crate) fn unsettled(&self) -> Arc<Unsettled> {
        Arc::clone(&self.unsettled)
    }
}

/// One in four more for small changes: each keeps its place until its late fragments are added.
fn uploads(config: &ClientConfig) -> Limits {
    let slots = u64::try_from(config.max_uploads).unwrap_or(u64::MAX).clamp(1, u64::from(MOST_UPLOADS / 2));
    let reserve = slots.div_ceil(4);
    Limits { reserve, ..Limits::all_alike(slots + reserve) }
}

/// As many large pieces at once as there are processors, and half as many small ones beside them.
fn threads() -> Limits {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let processors = u64::try_from(processors).unwrap_or(1);
    let reserve = processors.div_ceil(2);
    Limits { reserve, ..Limits::all_alike(processors + reserve) }
}

impl Turns {
    pub(crate) fn new(clock: Arc<dyn Clock>, config: &ClientConfig) -> Self {
        // Lossless: `usize` has at least 32 bits on every platform we build for.
        let permits = usize::try_from(MOST_UPLOADS).unwrap_or(1 << 20);
        Self {
            clock,
            uploads: Pool::new(uploads(config)),
            settled: Arc::new(Semaphore::new(permits)),
            compute: Pool::new(threads()),
        }
    }

    pub(crate) fn resize(&self, config: &ClientConfig) {
        self.uploads.resize(uploads(config));
    }

    /// The right to upload `bytes`.
    pub(crate) async fn upload(&self, bytes: u64, deadline: Deadline) -> Result<UploadSlot, ClientError> {
        let lane = if bytes <= SMALL_UPLOAD { Lane::Small } else { Lane::Bulk };
        let started = self.clock.now();
        // Each takes one slot, but who uploads more has had more of a turn.
        let want = Want { lane, units: 1, cost: bytes.max(1) };
        let turn = self.uploads.take_in(&*self.clock, &request::flow(), want, deadline).await;
        request::spent(Stage::Queue, self.clock.now().since(started));
        let turn = turn.map_err(|error| {
            let (Exhausted::Total(limit) | Exhausted::Client(limit)) = error;
            let text = format!(
                "no upload ended by the deadline that would have made room: {limit} run, as max_uploads allows"
            );
            ClientError::Busy(text)
        })?;
        Ok(UploadSlot { _turn: turn, unsettled: self.unsettled(deadline).await? })
    }

    /// Something that is left to do of a change begins.
    pub(crate) async fn unsettled(&self, deadline: Deadline) -> Result<Arc<Unsettled>, ClientError> {
        let permit = within(&*self.clock, deadline, Arc::clone(&self.settled).acquire_owned())
            .await
            .map_err(|_| ClientError::Busy("waiting for background work before a change".to_owned()))?
            .map_err(|_| ClientError::Internal("uploads are closed".to_owned()))?;
        Ok(Arc::new(Unsettled { _permit: permit }))
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.uploads.usage().waiting + self.compute.usage().waiting
    }

    /// Waits until no upload and nothing that follows from one is left.
    pub(crate) async fn settle(&self, deadline: Deadline) -> Result<(), ClientError> {
        within(&*self.clock, deadline, self.settled.acquire_many(MOST_UPLOADS))
            .await
            .map_err(ClientError::deadline("background work"))?
            .map(drop)
            .map_err(|_| ClientError::Internal("uploads are closed".to_owned()))
    }

    /// The right to compute over `bytes` bytes.
    pub(crate) async fn compute(&self, bytes: u64) -> Result<Permit, ClientError> {
        // Large requests do much of their computing in small pieces: what counts is whose they are.
        let small = bytes <= SMALL_COMPUTE && request::grown_by(0) <= SMALL_REQUEST;
        let lane = if small { Lane::Small } else { Lane::Bulk };
        // What is only known to be much counts as a piece of the usual size.
        let want = Want { lane, units: 1, cost: if bytes == u64::MAX { SMALL_COMPUTE } else { bytes } };
        let patience = Deadline::after(&*self.clock, COMPUTE_PATIENCE);
        (self.compute.take_in(&*self.clock, &request::flow(), want, patience).await)
            .map_err(|_| ClientError::Busy("no thread became free".to_owned()))
    }
}
