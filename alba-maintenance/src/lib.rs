//! Maintenance agents: what keeps a backend whole and clean while nobody looks.
//!
//! Any number of identical agents share the work by leases of the ABM ([`lease`]). Each does [`task`]s: on a schedule
//! ([`schedule`]), within rates that adapt to clients ([`pace`]), and says what it does ([`progress`]). Agents keep nothing: all
//! progress is in the metadata groups, so one that dies anywhere is made up for by another.
//!
//! A fragment that a manifest names must never be deleted (invariant 3 of the design: "GC never deletes what can still
//! be referenced").

pub mod agent;
pub mod backend;
mod command;
pub mod config;
mod daemon;
pub mod error;
pub mod fsck;
pub mod lease;
pub mod pace;
pub mod progress;
pub mod schedule;
pub mod task;
pub mod tasks;
pub mod waiting;

pub use agent::Agent;
pub use backend::{Backend, Namespaces};
pub use command::{configuration, main};
pub use config::MaintenanceConfig;
pub use daemon::{KEPT, MaintenanceDaemon};
pub use error::TaskError;
