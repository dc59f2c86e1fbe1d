//! Connections, for servers and clients alike.

pub mod asd;
pub mod frame;
pub mod memory;
pub mod rpc;
