//! ALBA's proxy: serves the ALBA proxy protocol to volume drivers, on top of the object engine in `alba-client`.
//!
//! Stateless but for caches. It must never hang on a client, grow with what a client promises to send, or leave
//! something behind for one that has gone.

pub mod client;
mod frame;
