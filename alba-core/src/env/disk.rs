//! One disk's files, as the storage engine uses them: named files in one flat directory.
//!
//! What is durable when: bytes written to a file only after that file's `sync` returned; a file's existence, new size
//! or absence only after `sync_directory`. Until then a crash may keep, drop or tear any of it.
//!
//! A call that is given up (dropped before it answered) has no known outcome, and may still happen *later*: whoever
//! gives up a write must treat its range as lost for as long as the disk is open, and never write other bytes there.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

/// Writes whose offset and length are multiples of this many bytes may bypass the page cache; holes are punched in
/// multiples of it. Reads are never bound to it. A power of two.
pub const BLOCK: usize = 4096;

/// [`BLOCK`] as a file offset.
pub const BLOCK_BYTES: u64 = 4096;

/// The files of one storage daemon.
#[async_trait]
pub trait Disk: Send + Sync + 'static {
    /// Names of all files, sorted.
    async fn list(&self) -> io::Result<Vec<String>>;

    /// Creates `name`, which must not exist, with `len` zero bytes allocated.
    async fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens `name` for reading and writing. On a file system that is mounted read-only it can still be read; writes
    /// give `ReadOnlyFilesystem`.
    async fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Removes `name`.
    async fn remove(&self, name: &str) -> io::Result<()>;

    /// Renames `from` to `to`, replacing it.
    async fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes creations, removals and renames safe.
    async fn sync_directory(&self) -> io::Result<()>;

    /// (free, total) bytes of the file system.
    async fn space(&self) -> io::Result<(u64, u64)>;

    /// Somebody waits for small things from the device, perhaps of another daemon: for a second what is large is moved in small pieces,
    /// which they can come between. It changes nothing else, and may be without effect.
    fn expect_small(&self) {}
}

/// An open file.
#[allow(clippy::len_without_is_empty, reason = "a call to the device; nobody asks whether it is zero")]
#[async_trait]
pub trait DiskFile: Send + Sync + 'static {
    /// Current length in bytes.
    async fn len(&self) -> io::Result<u64>;

    /// Exactly `len` bytes at `offset`; `UnexpectedEof` when the file ends before.
    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes>;

    /// Writes `parts` back to back at `offset`, extending the file as needed. Fastest where offset and total length are
    /// multiples of [`BLOCK`]. A failed write leaves any part of it.
    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()>;

    /// [`DiskFile::write_at`], then [`DiskFile::sync`], which may be one step: whoever waits for both anyway.
    async fn write_durably_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        self.write_at(offset, parts).await?;
        self.sync().await
    }

    /// Gives the space of `len` bytes at `offset` back to the file system; they read as zeros. The length stays, also
    /// where the range passes the end. Safe after `sync`, like a write. `Unsupported` where the file system cannot;
    /// `InvalidInput` unless both are multiples of [`BLOCK`].
    async fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Puts blocks behind the first `len` bytes again where holes were punched, without changing what is read or the
    /// length. `StorageFull` when there are none left.
    async fn allocate(&self, len: u64) -> io::Result<()> {
        let _ = len;
        Ok(())
    }

    /// Makes all writes so far safe (data and length). After a failure nothing is known about them: never retry on the
    /// same range.
    async fn sync(&self) -> io::Result<()>;
}

/// Refuses what [`DiskFile::punch`] may not be asked.
pub(super) fn check_punch(offset: u64, len: u64) -> io::Result<()> {
    let aligned = offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK_BYTES);
    if aligned && offset.checked_add(len).is_some() {
        Ok(())
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}
