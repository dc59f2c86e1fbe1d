//! The only door to time, randomness, disks, sockets and tasks.
//!
//! Everything that decides lives elsewhere and takes these traits (or plain values) as input, so that a simulator can
//! drive it with a seed. `clippy.toml` disallows the direct ways everywhere else.

pub mod clock;
pub mod disk;
pub mod disk_conformance;
pub mod files;
pub mod meta;
pub mod net;
pub mod osd;
pub mod osd_conformance;
pub mod real;
pub mod rng;
pub mod sim;
pub mod spawn;
pub mod turns;

use std::sync::Arc;

pub use clock::{Clock, Deadline, DeadlineExceeded, Moment, within};
pub use disk::{Disk, DiskFile};
pub use meta::{Directory, MetaError, NamespaceStore};
pub use net::{Connector, Endpoint, Listener, Net, Stream};
pub use osd::{Osd, OsdError};
pub use rng::Rng;
pub use spawn::{Here, Spawn, TaskGone, TaskHandle, Urgency, blocking, computing, elsewhere};
pub use turns::{DeviceTurn, DeviceTurns, Direction, NoTurns};

/// Requests that move up to this many bytes are small: it is little to compute, and less than a connection has under way.
pub const SMALL_REQUEST: u64 = 64 << 10;

/// What a component needs of the outside, bundled because nearly all need all of it.
#[derive(Clone)]
pub struct Env {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub rng: Arc<dyn Rng>,
    /// Sockets.
    pub net: Arc<dyn Net>,
    /// Tasks and blocking work.
    pub spawn: Arc<dyn Spawn>,
    /// The same for what is large and can wait a moment: uploads, whole objects, fragments. Its threads give way to those of
    /// `spawn`, so that a small request is not felt to wait behind it.
    pub bulk: Arc<dyn Spawn>,
    /// The same for what maintenance wants. Its threads give way to those of `bulk`, too.
    pub aside: Arc<dyn Spawn>,
}

impl Env {
    /// The moment `after` from now, as a deadline.
    pub fn deadline_in(&self, after: std::time::Duration) -> Deadline {
        Deadline::after(self.clock.as_ref(), after)
    }
}
