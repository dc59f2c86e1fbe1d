//! ALBA's proxy: serves the ALBA proxy protocol to volume drivers, on top of the object engine in `alba-client`.
//!
//! Stateless but for caches. It must never hang on a client, grow with what a client promises to send, or leave
//! something behind for one that has gone.

mod admission;
mod backend;
mod caches;
pub mod client;
mod config;
mod connection;
mod daemon;
mod files;
mod frame;
mod handler;
mod objects;
mod op;
mod osds;
mod read_metrics;
mod readiness;
mod refusal;
mod sequence;
mod server;
mod statistics;
mod trace;
mod wire;

pub use backend::{Backend, SlicesAnswer};
pub use config::{ProxyConfig, Transport};
pub use daemon::ProxyDaemon;
pub use server::Server;
