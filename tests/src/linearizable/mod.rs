//! Were concurrent operations on a few names answered as if they had happened one after the other, each at some moment
//! between its call and its answer?
//!
//! Every name is an object of its own ([`object`]), so that each is decided apart (linearizability is local: Herlihy and
//! Wing, 1990). The search ([`check`]) is that of Wing and Gong with the memory of Lowe ("Testing for linearizability",
//! 2017): states that were reached with the same operations done are looked at once. It must never call a history
//! linearizable that is not, and says so when it gave up.

pub mod check;
pub mod explain;
pub mod history;
pub mod object;
#[cfg(test)]
mod tests;
pub mod timestamps;

pub use check::{Verdict, check};
pub use explain::Violation;
pub use history::{Counts, End, History, Operation, Recorder};
pub use object::{Answer, Call, Condition, State, Value};
