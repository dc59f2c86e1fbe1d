//! ALBA's pure domain, shared by every process.
//!
//! Everything here is a function of its input. Time, randomness, disks and sockets are reached only through
//! the traits of [`mod@env`]; the real ones live in [`env::real`] and [`net`], the simulated ones in [`env::sim`].
//! This crate must never depend on another crate of the workspace.

mod aligned;
pub mod blake3_tree;
pub mod checksum;
pub mod config;
pub mod daemon;
pub mod encryption;
pub mod env;
pub mod erasure;
pub mod failpoint;
pub mod fair;
pub mod fragment;
#[doc(hidden)]
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod ids;
pub mod kv;
pub mod layout;
pub mod manifest;
pub mod net;
pub mod osd_keys;
pub mod placement;
pub mod policy;
pub mod preset;
pub mod range;
pub mod request;
pub mod units;
pub mod wire;
