//! Bytes between processes: our own RPC messages, and the original's protocols as translations.

pub mod asd;
pub mod common;
pub mod llio;
pub mod manifest;
pub mod osd_info;
pub mod proxy;
pub mod recovery;
pub mod rpc;
