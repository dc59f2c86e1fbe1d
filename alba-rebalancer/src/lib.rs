//! Rebalancing: from fill rates and node layout to a ranked list of moves, and these moves carried out.
//!
//! *observe → plan → execute*: [`observe`] classifies the OSDs by fill, [`plan`] proposes moves under one
//! [objective](objective); both are pure. [`sight`] asks the backend how things are, [`execute`] carries moves out within
//! what the OSDs may bear ([`lanes`]), and a [`pass`] is all of it, page by page.
//!
//! A move must never break what the policy of its object guarantees: distinct OSDs and at most x fragments per node.

pub mod drain;
pub mod execute;
pub mod lanes;
pub mod layout;
pub mod objective;
pub mod observe;
pub mod pass;
pub mod plan;
pub mod rest;
pub mod sight;

pub use pass::{Onlooker, Rebalancer, Report, Settings};
