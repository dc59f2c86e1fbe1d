//! Connections, for servers and clients alike.

pub mod asd;
pub mod rpc;
