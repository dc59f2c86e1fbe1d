//! ALBA's object engine: cuts objects into chunks, codes them, spreads the fragments over OSDs, and reads them back
//! whole or in slices, around OSDs that are slow, damaged or gone.
//!
//! Everything outside is reached through the traits of [`alba_core::env`]: the metadata groups through `Directory` and
//! `NamespaceStore`, the OSDs through [`OsdConnector`]. The engine must never report a write as done before the
//! namespace's group committed it, never hand on bytes whose checksum was not verified, and never wait without a
//! deadline.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use alba_client::{BytesSource, Client, ClientConfig, Consistency, MemorySink, Slice, UploadOptions};
//! use alba_core::env::real;
//! use alba_core::ids::{NamespaceName, ObjectName};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let env = real::env();
//! let config = ClientConfig { metadata: vec!["127.0.0.1:4000".parse()?], ..ClientConfig::default() };
//! let client = Client::connect(env.clone(), config).await?;
//! // Every request has a deadline; it may be shared by several.
//! let deadline = env.deadline_in(Duration::from_secs(20));
//! let (namespace, name) = (NamespaceName::new("demo")?, ObjectName::new("greeting")?);
//!
//! let mut source = BytesSource::new("hello, disks");
//! client.upload(&namespace, &name, &mut source, UploadOptions::default(), deadline).await?;
//!
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
pub mod metadata;
mod names;
mod namespaces;
mod observer;
mod osd_pool;
mod repairs;
mod sink;
mod source;
#[cfg(test)]
mod tests;
mod types;
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
pub use sink::{FileSink, MemorySink, ObjectSink};
pub use source::{BytesSource, FileSource, ObjectSource};
pub use types::{Consistency, SequenceUpdate, Slice, SlicesRead, StoredObject, UploadOptions};
pub use watch::{AbmWatch, Changes, Generation};

pub use alba_core::wire::rpc::nsm::{ObjectAssert, Overwrite};
pub use alba_core::wire::rpc::watch::Topic;
