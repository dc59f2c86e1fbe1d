//! Fixtures for the tests across processes and crates.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

pub mod agents;
pub mod bench;
pub mod bytes;
pub mod cluster;
pub mod content;
pub mod device;
pub mod faults;
pub mod guide;
pub mod history;
pub mod hosts;
pub mod hot_names;
pub mod http;
pub mod linearizable;
pub mod links;
pub mod metadata_nodes;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod repository;
pub mod requirements;
pub mod sim;
pub mod skips;
pub mod upkeep;
pub mod wait;
pub mod ward;
