//! Rebalancing: from fill rates and node layout to a ranked list of moves.
//!
//! *observe → plan → execute*: [`observe`] classifies the OSDs by fill, [`plan`] proposes moves; both are pure. Moving
//! fragments needs the object engine's relocation and is not part of this crate yet, so there is no daemon: nothing here
//! touches a disk or a socket.
//!
//! A move must never break what the policy of its object guarantees: distinct OSDs and at most x fragments per node.

pub mod observe;
pub mod plan;
