#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

pub(crate) mod cluster;
mod formats;
mod group;
pub(crate) mod model;
mod pipelined;
mod simulated;
mod storage;
