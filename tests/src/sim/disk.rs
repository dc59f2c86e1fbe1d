//! A simulated disk whose every change and sync is an event of the run.

use std::io;
use std::sync::Arc;

use alba_core::env::sim::SimNode;
use alba_core::env::{Disk, DiskFile};
use async_trait::async_trait;
use bytes::Bytes;

/// Records what is done to the disk below it.
pub(super) struct TracedDisk<D> {
    node: SimNode,
    disk: D,
}

impl<D: Disk> TracedDisk<D> {
    pub(super) fn new(node: SimNode, disk: D) -> Self {
        Self { node, disk }
    }

    fn traced(&self, name: &str, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(TracedFile { node: self.node.clone(), name: name.to_owned(), file })
    }
}

#[async_trait]
impl<D: Disk> Disk for TracedDisk<D> {
    async fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list().await
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.node.record("create file", format!("{name} {len}").as_bytes());
        Ok(self.traced(name, self.disk.create(name, len).await?))
    }

    async fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.traced(name, self.disk.open(name).await?))
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.node.record("remove file", name.as_bytes());
        self.disk.remove(name).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.node.record("rename file", format!("{from} {to}").as_bytes());
        self.disk.rename(from, to).await
    }

    async fn sync_directory(&self) -> io::Result<()> {
        self.node.record("sync directory", &[]);
        self.disk.sync_directory().await
    }

    async fn space(&self) -> io::Result<(u64, u64)> {
        self.disk.space().await
    }
}

struct TracedFile {
    node: SimNode,
    name: String,
    file: Arc<dyn DiskFile>,
}

#[async_trait]
impl DiskFile for TracedFile {
    async fn len(&self) -> io::Result<u64> {
        self.file.len().await
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.file.read_at(offset, len).await
    }

    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        let mut event = format!("{} {offset} ", self.name).into_bytes();
        parts.iter().for_each(|part| event.extend_from_slice(blake3::hash(part).as_bytes()));
        self.node.record("write", &event);
        self.file.write_at(offset, parts).await
    }

    async fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.node.record("punch", format!("{} {offset} {len}", self.name).as_bytes());
        self.file.punch(offset, len).await
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        self.node.record("allocate", format!("{} {len}", self.name).as_bytes());
        self.file.allocate(len).await
    }

    async fn sync(&self) -> io::Result<()> {
        self.node.record("sync", self.name.as_bytes());
        self.file.sync().await
    }
}
