//! Turns that daemons take whose data is on the same device: what they do in the background there, one of them does at a time.
//!
//! A daemon keeps its own background work small while clients are there. Twelve of them on one disk do not, together: each knows of
//! itself alone, and a client's request waits behind all. Nothing may depend on a turn but who waits: it can be gone without.

use async_trait::async_trait;

/// What a turn is for. One may read while another writes: reads are short, and what everything waits for on most devices is a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From the device.
    Read,
    /// To the device, until it is safe there.
    Write,
}

impl Direction {
    /// As metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// It is this one's turn until this is dropped. While it is held nothing must be waited for but the device, or not for long.
pub struct DeviceTurn(#[allow(dead_code, reason = "held for its drop")] Box<dyn Send + Sync>);

impl DeviceTurn {
    /// Ends when `held` is dropped.
    pub fn new(held: impl Send + Sync + 'static) -> Self {
        Self(Box::new(held))
    }
}

/// The turns of one device.
#[async_trait]
pub trait DeviceTurns: Send + Sync + 'static {
    /// Waits for a turn, for a bounded time. None: there are no turns here, or others keep them for too long.
    async fn take(&self, direction: Direction) -> Option<DeviceTurn>;
}

/// Whoever has a device for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoTurns;

#[async_trait]
impl DeviceTurns for NoTurns {
    async fn take(&self, _: Direction) -> Option<DeviceTurn> {
        None
    }
}
