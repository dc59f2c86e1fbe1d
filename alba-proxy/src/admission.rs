//! Room for large requests: one bound in bytes for all connections together (invariant 9), shared fairly.
//!
//! The whole frame is reserved before its bulk is read: a request that has begun to arrive has room to its end, so
//! connections cannot wait for each other with half a frame each. One connection has one frame at a time, so
//! `max_frame_bytes` bounds what one client has.

use alba_core::env::{Clock, Deadline};
use alba_core::fair::{Flow, Limits, Permit, Pool};
use thiserror::Error;

use crate::config::ProxyConfig;

/// Up to this many bytes a request is not held up by large ones…
const SMALL: u64 = 1 << 20;

/// … for which one part in this many is kept.
const RESERVE: u64 = 16;

/// Room for requests.
pub(crate) struct Admission {
    pool: Pool,
}

/// Reserved bytes; given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Room {
    _permit: Option<Permit>,
}

/// No room became free in time.
#[derive(Debug, Error)]
#[error(
    "no room for a large request became free in time: others have the {limit} bytes that \
     max_request_bytes_in_flight allows; try again later"
)]
pub(crate) struct Full {
    limit: u64,
}

fn limits(config: &ProxyConfig) -> Limits {
    let total = config.max_request_bytes_in_flight;
    Limits { reserve: total / RESERVE, small: SMALL, ..Limits::all_alike(total) }
}

impl Admission {
    /// `max_request_bytes_in_flight` in all.
    pub(crate) fn new(config: &ProxyConfig) -> Self {
        Self { pool: Pool::new(limits(config)) }
    }

    /// Another limit from now on.
    pub(crate) fn resize(&self, config: &ProxyConfig) {
        self.pool.resize(limits(config));
    }

    /// Bytes reserved now.
    pub(crate) fn used(&self) -> u64 {
        self.pool.usage().used
    }

    /// Waits for room for `bytes`, by turns with the other clients. More than all the room gets all of it.
    pub(crate) async fn take(
        &self,
        clock: &dyn Clock,
        client: u64,
        bytes: u64,
        deadline: Deadline,
    ) -> Result<Room, Full> {
        let flow = Flow { namespace: None, client: Some(client) };
        match self.pool.take(clock, &flow, bytes, deadline).await {
            Ok(permit) => Ok(Room { _permit: Some(permit) }),
            Err(alba_core::fair::Exhausted::Total(limit) | alba_core::fair::Exhausted::Client(limit)) => {
                Err(Full { limit })
            }
        }
    }
}
