//! ALBA's object engine: cuts objects into chunks, codes them, spreads the fragments over OSDs, and reads them back
//! whole or in slices, around OSDs that are slow, damaged or gone.
//!
//! Everything outside is reached through the traits of [`alba_core::env`]: the metadata groups through `Directory` and
//! `NamespaceStore`, the OSDs through [`OsdConnector`]. The engine must never report a write as done before the
//! namespace's group committed it, never hand on bytes whose checksum was not verified, and never wait without a
//! deadline.
//!
//! # Connecting
//!
//! A [`Client`] needs an environment (clock, network, tasks: [`alba_core::env::real`], in a tokio runtime) and the addresses of
//! the metadata servers. One is enough for a process; clones share caches, connections and limits.
//!
//! ```no_run
//! use alba_client::{Client, ClientConfig};
//! use alba_core::env::real;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let env = real::env();
//! let config = ClientConfig { metadata: vec!["127.0.0.1:4000".parse()?], ..ClientConfig::default() };
//! let client = Client::connect(env, config).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Storing and reading
//!
//! This runs against a [backend in memory](memory), which is also what tests of programs can use. Each method of [`Client`]
//! has an example of its own.
//!
//! ```
//! use std::time::Duration;
//!
//! use alba_client::memory::MemoryBackend;
//! use alba_client::{BytesSource, ClientConfig, Consistency, MemorySink, Slice, UploadOptions};
//! use alba_core::env::real;
//! use alba_core::ids::{NamespaceName, ObjectName, OsdId};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let env = real::env();
//! let backend = MemoryBackend::new(env.clone())?;
//! let client = backend.client(ClientConfig::default());
//! // Every request has a deadline; it may be shared by several.
//! let deadline = env.deadline_in(Duration::from_secs(20));
//! let (namespace, name) = (NamespaceName::new("demo")?, ObjectName::new("greeting")?);
//! client.create_namespace(&namespace, None, deadline).await?;
//!
//! let mut source = BytesSource::new("hello, disks");
//! client.upload(&namespace, &name, &mut source, UploadOptions::default(), deadline).await?;
//!
//! // Damaged fragments are noticed and read around.
//! backend.damage(OsdId::from_u32(0));
//! backend.damage(OsdId::from_u32(1));
//! let mut sink = MemorySink::new();
//! client.download(&namespace, &name, Consistency::Consistent, &mut sink, deadline).await?;
//! assert_eq!(&sink.into_bytes()[..], b"hello, disks");
//!
//! let part = vec![(name, vec![Slice { offset: 7, length: 5 }])];
//! let read = client.read_slices(&namespace, part, Consistency::Cached, deadline).await?;
//! assert_eq!(read.data.concat(), b"disks");
//!
//! // Before the process ends: what uploads left to do in the background.
//! client.settle(deadline).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Many users in one process
//!
//! Room, upload slots and threads are shared fairly among namespaces and, in each, among clients. Who serves others wraps
//! each request in [`alba_core::request::Request::scope`], which says whose it is, has its id in all log lines, and
//! tells afterwards where the time went.

mod buffers;
mod client;
mod config;
mod counters;
mod download;
mod engine;
mod error;
mod found;
mod fragment_cache;
mod inspect;
mod keys;
mod manifest_cache;
pub mod memory;
pub mod metadata;
mod names;
mod namespaces;
mod observer;
mod osd_pool;
mod osds;
mod outlook;
pub mod repair;
mod repairs;
mod sink;
mod source;
mod start;
#[cfg(test)]
mod tests;
mod trash;
mod turns;
mod types;
mod untag;
mod upload;
mod watch;

pub use client::Client;
pub use config::ClientConfig;
pub use counters::Statistics;
pub use error::ClientError;
pub use fragment_cache::{
    DiskStatistics, FragmentCacheConfig, FragmentCacheKind, FragmentCacheStatistics, TierStatistics,
};
pub use inspect::{NamespaceKey, OsdOpinion, OsdReading};
pub use observer::{ManifestCounts, ReadObserver};
pub use osd_pool::OsdConnector;
pub use osds::reach;
pub use outlook::Outlook;
pub use sink::{FileSink, MemorySink, ObjectSink};
pub use source::{BytesSource, FileSource, ObjectSource};
pub use types::{Consistency, SequenceUpdate, Slice, SlicesRead, StoredObject, UploadOptions};
pub use watch::{AbmWatch, Changes, Generation};

pub use alba_core::wire::rpc::nsm::{ObjectAssert, Overwrite};
pub use alba_core::wire::rpc::watch::Topic;
