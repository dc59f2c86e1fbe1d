//! The server's side of the ALBA proxy protocol, byte by byte, over a fake object engine.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod bounds;
mod client;
mod commands;
mod connection;
mod cuts;
mod fake;
mod files;
mod harness;
mod inspect;
mod lanes;
mod operations;
mod sequences;
mod slices;
mod vectors;
mod whole;
