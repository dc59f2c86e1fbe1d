#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

pub(crate) mod cluster;
mod group;
mod model;
mod pipelined;
mod simulated;
mod storage;
