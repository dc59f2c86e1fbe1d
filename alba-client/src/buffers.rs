//! Room for buffers: one bound in bytes for all requests of a client (invariant 9), shared fairly.
//!
//! Two pools, so that waiting cannot form a circle. `work` holds what is on its way between a source or sink and the
//! OSDs: whoever has room there needs no more of anything to finish and give it back. `answers` holds what slices
//! return: its owner may then wait for `work`, never the other way round.
//!
//! In each, a part is kept for small requests: a slice never waits for a large upload to give room back. Who waits is
//! served by turns, each namespace and each of its clients alike ([`alba_core::fair`]).

use std::sync::Arc;

use alba_core::env::{Clock, Deadline};
use alba_core::fair::{Exhausted, Lane, Limits, Permit, Pool, Want};
use alba_core::request::{self, Stage};

use crate::{ClientConfig, ClientError};

/// A request that has asked for up to this many bytes, all its steps together, is small. What volume drivers read at once is 4
/// to 64 KiB; what they write has parity beside it.
const SMALL: u64 = 128 << 10;

/// One part in this many is kept for small requests: of 64 MiB enough for 64 of the largest, and for 37 slices of 4 KiB at once that are
/// computed from five others.
const RESERVE: u64 = 8;

/// Both pools.
pub(crate) struct Buffers {
    clock: Arc<dyn Clock>,
    work: Pool,
    answers: Pool,
}

/// Reserved bytes; given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Room {
    _permit: Option<Permit>,
}

fn limits(config: &ClientConfig) -> Limits {
    let total = config.max_bytes_in_flight;
    Limits { total, reserve: total / RESERVE, small: SMALL, per_client: config.max_client_bytes_in_flight }
}

impl Buffers {
    /// `max_bytes_in_flight` for each pool.
    pub(crate) fn new(clock: Arc<dyn Clock>, config: &ClientConfig) -> Self {
        let limits = limits(config);
        Self { clock, work: Pool::new(limits), answers: Pool::new(limits) }
    }

    /// Other limits from now on.
    pub(crate) fn resize(&self, config: &ClientConfig) {
        self.work.resize(limits(config));
        self.answers.resize(limits(config));
    }

    /// Waits for `bytes` of room for data on its way.
    pub(crate) async fn work(&self, bytes: u64, deadline: Deadline) -> Result<Room, ClientError> {
        self.take(&self.work, bytes, deadline).await
    }

    /// Waits for `bytes` of room for an answer.
    pub(crate) async fn answer(&self, bytes: u64, deadline: Deadline) -> Result<Room, ClientError> {
        self.take(&self.answers, bytes, deadline).await
    }

    /// Waits for `bytes` of room to compute `part` bytes from others. A request is as small as what it asked for: one that goes around
    /// a slow OSD must not wait behind uploads because it reads from five others instead.
    pub(crate) async fn around(
        &self,
        part: u64,
        bytes: u64,
        deadline: Deadline,
    ) -> Result<Room, ClientError> {
        self.take_for(&self.work, part, bytes, deadline).await
    }

    async fn take(&self, pool: &Pool, bytes: u64, deadline: Deadline) -> Result<Room, ClientError> {
        self.take_for(pool, bytes, bytes, deadline).await
    }

    /// Room for a step that makes the request larger by `growth`.
    async fn take_for(
        &self,
        pool: &Pool,
        growth: u64,
        bytes: u64,
        deadline: Deadline,
    ) -> Result<Room, ClientError> {
        if bytes == 0 {
            return Ok(Room::default());
        }
        let started = self.clock.now();
        // A large upload in small chunks is large.
        let lane = if request::grown_by(growth) <= SMALL { Lane::Small } else { Lane::Bulk };
        let want = Want { lane, units: bytes, cost: bytes };
        let taken = pool.take_in(&*self.clock, &request::flow(), want, deadline).await;
        request::spent(Stage::Queue, self.clock.now().since(started));
        let permit = taken.map_err(|error| ClientError::Busy(refused(error)))?;
        Ok(Room { _permit: Some(permit) })
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.work.usage().waiting + self.answers.usage().waiting
    }

    /// Bytes taken of each pool.
    pub(crate) fn used(&self) -> [(&'static str, u64); 2] {
        [("work", self.work.usage().used), ("answers", self.answers.usage().used)]
    }
}

fn refused(error: Exhausted) -> String {
    let (who, key, limit) = match error {
        Exhausted::Total(limit) => ("all requests together have", "max_bytes_in_flight", limit),
        Exhausted::Client(limit) => ("this client has", "max_client_bytes_in_flight", limit),
    };
    format!("no room for buffers became free by the deadline: {who} the {limit} bytes that {key} allows")
}
