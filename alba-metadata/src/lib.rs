//! ALBA's metadata servers.
//!
//! Two models decide everything: the ABM ([`abm`]: OSDs, presets, namespaces) and the NSM ([`nsm`]: names, manifests,
//! indexes). Both are pure: `apply(transaction, time, command)` over an ordered key space. [`machine`] puts sessions
//! around a model so that a retried command gets its first answer; a [`replicator`] feeds it in one agreed order
//! and makes it durable; [`server`] hosts groups and delivers the ABM's messages.

pub mod abm;
mod daemon;
mod listing;
pub mod machine;
pub mod model;
pub mod nsm;
pub mod raft;
pub mod replicator;
pub mod server;
pub mod session;
pub mod txn;
mod value;

pub use daemon::{MetadataConfig, MetadataDaemon};
