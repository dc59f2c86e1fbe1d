//! Sharing what is scarce (bytes of memory, slots, threads) among namespaces and clients.
//!
//! [`Queue`] decides who is next and is pure; [`Pool`] is a counter of units whose callers wait in two such queues: one
//! for small requests with room of their own, one for all others. So a small request never waits for a large one to
//! end, and a large one only for its turn. Neither must ever keep anything of a caller that has gone.

mod pool;
mod queue;
#[cfg(test)]
mod tests;

pub use pool::{Exhausted, Lane, Limits, Permit, Pool, Usage, Want};
pub use queue::{Flow, Next, Queue, Ticket};
