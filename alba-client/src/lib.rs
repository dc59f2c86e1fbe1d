//! ALBA's object engine: cuts objects into chunks, codes them, spreads the fragments over OSDs, and reads them back
//! whole or in slices, around OSDs that are slow, damaged or gone.
//!
//! Everything outside is reached through the traits of [`alba_core::env`]: the metadata groups through `Directory` and
//! `NamespaceStore`, the OSDs through [`OsdConnector`]. The engine must never report a write as done before the
//! namespace's group committed it, never hand on bytes whose checksum was not verified, and never wait without a
//! deadline.

mod buffers;
mod client;
mod config;
mod counters;
mod download;
mod engine;
mod error;
mod manifest_cache;
pub mod metadata;
mod namespaces;
mod osd_pool;
mod sink;
mod source;
#[cfg(test)]
mod tests;
mod types;
mod upload;

pub use client::Client;
pub use config::ClientConfig;
pub use counters::Statistics;
pub use error::ClientError;
pub use osd_pool::OsdConnector;
pub use sink::{FileSink, MemorySink, ObjectSink};
pub use source::{BytesSource, FileSource, ObjectSource};
pub use types::{Consistency, SequenceUpdate, Slice, SlicesRead, StoredObject, UploadOptions};

pub use alba_core::wire::rpc::nsm::{ObjectAssert, Overwrite};
