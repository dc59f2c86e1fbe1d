//! Rebalancing: from fill rates and node layout to a ranked list of moves, and these moves carried out.
//!
//! *observe → plan → execute*: [`observe`] classifies the OSDs by fill, [`plan`] proposes moves under one
//! [objective](objective); both are pure.
//!
//! A move must never break what the policy of its object guarantees: distinct OSDs and at most x fragments per node.

pub mod drain;
pub mod layout;
pub mod objective;
pub mod observe;
pub mod plan;
pub mod rest;
