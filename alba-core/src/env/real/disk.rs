//! [`Disk`] on a directory of the real file system: plain files, positioned reads and writes, fdatasync.
//!
//! Whole blocks bypass the page cache (O_DIRECT) where the file system takes it: rewriting blocks that were written
//! before then costs no memory and no journal. Every call runs on a thread that may block, never on the executor, and
//! every wait (for a buffer, for a thread) ends when the caller gives up. Only one process may use a directory; who
//! opens it holds the lock.

mod buffers;
mod direct;
mod file;
mod pieces;
mod probe;
mod threads;

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use self::buffers::{Buffers, LARGEST};
use self::file::Handles;
use self::pieces::{Pieces, is_small};
use self::probe::{PROBE_PREFIX, Probed, probe};
use self::threads::{IoThreads, Work};
use crate::env::disk::{BLOCK, BLOCK_BYTES, check_punch};
use crate::env::{Disk, DiskFile, Spawn, blocking};

/// Writes larger than this go in pieces, so that few buffers serve many.
const PIECE: usize = 1 << 20;

/// Whether the page cache is bypassed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoMode {
    /// Where the file system lets it.
    #[default]
    Auto,
    /// Always; opening a disk that refuses fails.
    Direct,
    /// Never.
    PageCache,
}

/// How a disk is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoConfig {
    /// Operations that run at once; 16 matched io_uring (docs/performance.md). Half as many small reads can run beside them.
    pub threads: usize,
    /// Most memory for reads and writes in progress and for what was read and is not dropped yet, in bytes. Fewer than
    /// 16 MiB are taken as 16 MiB.
    pub buffer_bytes: usize,
    /// Whether the page cache is bypassed.
    pub mode: IoMode,
    /// Do large requests use it, too? Then its threads give way to small ones, but for those that only do small reads; else all go first.
    pub carries_bulk: bool,
}

impl Default for IoConfig {
    fn default() -> Self {
        Self { threads: 16, buffer_bytes: 32 << 20, mode: IoMode::Auto, carries_bulk: true }
    }
}

/// What a disk has in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoUsage {
    /// Operations that run or wait for a thread; 0 on a disk without threads of its own.
    pub operations: usize,
    /// Bytes of buffers in use, those lent included.
    pub buffer_bytes: usize,
    /// Bytes of buffers that hold what was read and is not dropped yet.
    pub lent_bytes: usize,
}

/// Where the work is done.
enum Runner {
    Threads(IoThreads),
    Spawn(Arc<dyn Spawn>),
}

struct Shared {
    runner: Runner,
    buffers: Buffers,
    pieces: Pieces,
    direct: bool,
}

impl Shared {
    /// Runs `work` where it may block. A worker that ended without an answer is an I/O error.
    async fn run<T: Send + 'static>(
        &self,
        kind: Work,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        match &self.runner {
            Runner::Threads(threads) => threads.run(kind, work).await,
            Runner::Spawn(spawn) => blocking(spawn.as_ref(), work).await.map_err(io::Error::other)?,
        }
    }
}

/// The files in one directory. When it and all its files are dropped, its threads end; an operation that was given up
/// may still be running then.
pub struct RealDisk {
    directory: PathBuf,
    shared: Arc<Shared>,
}

impl RealDisk {
    /// The files of `directory`, which exists, on threads of its own. Subdirectories are not shown. Blocks while it
    /// finds out what the file system takes.
    ///
    /// # Errors
    /// `Unsupported` when O_DIRECT is demanded and refused; that threads could not be started.
    pub fn with(directory: impl Into<PathBuf>, config: IoConfig) -> io::Result<Self> {
        let directory = directory.into();
        let direct = match config.mode {
            IoMode::PageCache => false,
            IoMode::Auto => takes_direct(&directory),
            IoMode::Direct => match probe(&directory) {
                // Of a full or failing disk nothing is known: it does as it is told.
                Probed::Takes | Probed::Unknown(_) => true,
                Probed::Refuses => {
                    let what = format!("{} is on a file system without O_DIRECT", directory.display());
                    return Err(io::Error::new(io::ErrorKind::Unsupported, what));
                }
            },
        };
        let runner = Runner::Threads(IoThreads::new(config.threads, config.carries_bulk)?);
        let shared =
            Shared { runner, buffers: Buffers::new(config.buffer_bytes), pieces: Pieces::new(), direct };
        Ok(Self { directory, shared: Arc::new(shared) })
    }

    /// The same on `spawn`'s blocking threads and otherwise as by default: for tools and tests, that open many.
    pub fn new(directory: impl Into<PathBuf>, spawn: Arc<dyn Spawn>) -> Self {
        let directory = directory.into();
        let direct = takes_direct(&directory);
        let buffers = Buffers::new(IoConfig::default().buffer_bytes);
        let (runner, pieces) = (Runner::Spawn(spawn), Pieces::new());
        Self { directory, shared: Arc::new(Shared { runner, buffers, pieces, direct }) }
    }

    /// What was chosen: [`IoMode::Direct`] or [`IoMode::PageCache`].
    pub fn mode(&self) -> IoMode {
        if self.shared.direct { IoMode::Direct } else { IoMode::PageCache }
    }

    /// What is in flight now.
    pub fn usage(&self) -> IoUsage {
        let operations = match &self.shared.runner {
            Runner::Threads(threads) => threads.in_flight(),
            Runner::Spawn(_) => 0,
        };
        let (buffer_bytes, lent_bytes) = self.shared.buffers.in_use();
        IoUsage { operations, buffer_bytes, lent_bytes }
    }

    /// Where `name` is; a name that would leave the directory is refused.
    fn path(&self, name: &str) -> io::Result<PathBuf> {
        let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        if plain { Ok(self.directory.join(name)) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    async fn open_with(
        &self,
        open: impl FnOnce(bool) -> io::Result<Handles> + Send + 'static,
    ) -> io::Result<Arc<dyn DiskFile>> {
        let direct = self.shared.direct;
        let handles = self.shared.run(Work::Other, move || open(direct)).await?;
        Ok(Arc::new(RealFile { handles: Arc::new(handles), shared: self.shared.clone() }))
    }
}

#[async_trait]
impl Disk for RealDisk {
    async fn list(&self) -> io::Result<Vec<String>> {
        let directory = self.directory.clone();
        self.shared
            .run(Work::Other, move || {
                let mut names = Vec::new();
                for entry in fs::read_dir(&directory)? {
                    let entry = entry?;
                    // Names that are no text are not ours.
                    if entry.file_type()?.is_file()
                        && let Ok(name) = entry.file_name().into_string()
                        && !name.starts_with(PROBE_PREFIX)
                    {
                        names.push(name);
                    }
                }
                names.sort();
                Ok(names)
            })
            .await
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path(name)?;
        self.open_with(move |direct| Handles::create(&path, len, direct)).await
    }

    async fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path(name)?;
        self.open_with(move |direct| Handles::open(&path, direct)).await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name)?;
        self.shared.run(Work::Other, move || fs::remove_file(path)).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.path(from)?, self.path(to)?);
        self.shared.run(Work::Other, move || fs::rename(from, to)).await
    }

    async fn sync_directory(&self) -> io::Result<()> {
        let directory = self.directory.clone();
        self.shared.run(Work::Other, move || File::open(directory)?.sync_all()).await
    }

    async fn space(&self) -> io::Result<(u64, u64)> {
        let directory = self.directory.clone();
        self.shared.run(Work::Other, move || space(&directory)).await
    }

    fn expect_small(&self) {
        self.shared.pieces.expect_small();
    }
}

/// Does the file system of `directory` take O_DIRECT, as far as can be told?
fn takes_direct(directory: &Path) -> bool {
    match probe(directory) {
        Probed::Takes => true,
        Probed::Refuses => false,
        Probed::Unknown(error) => {
            let directory = directory.display();
            tracing::warn!(%directory, %error, "cannot tell whether O_DIRECT works: using the page cache");
            false
        }
    }
}

/// (free to us, total) bytes of the file system that holds `path`.
pub fn space(path: &Path) -> io::Result<(u64, u64)> {
    let found = rustix::fs::statvfs(path)?;
    Ok((found.f_bavail.saturating_mul(found.f_frsize), found.f_blocks.saturating_mul(found.f_frsize)))
}

/// Work in progress holds the handles only, so that the threads end when disk and files are dropped. So what a call moves at most is
/// looked up before the work is handed over.
struct RealFile {
    handles: Arc<Handles>,
    shared: Arc<Shared>,
}

impl RealFile {
    async fn run<T: Send + 'static>(
        &self,
        kind: Work,
        work: impl FnOnce(&Handles) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let handles = self.handles.clone();
        self.shared.run(kind, move || work(&handles)).await
    }

    /// Writes `parts`, and then does something else on the same thread.
    async fn write_and(
        &self,
        offset: u64,
        parts: Vec<Bytes>,
        then: impl FnOnce(&Handles) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let len: usize = parts.iter().map(Bytes::len).sum();
        if len > 0 && self.handles.takes_direct(offset, len) {
            let buffer = self.shared.buffers.take(direct::copied_len(&parts).clamp(1, PIECE)).await?;
            let share = self.shared.pieces.share(len).await;
            self.run(Work::Other, move |handles| {
                handles.write_direct(offset, &parts, buffer, share.per_call)?;
                drop(share);
                then(handles)
            })
            .await
        } else {
            let share = self.shared.pieces.share(len).await;
            self.run(Work::Other, move |handles| {
                handles.write_cached(offset, &parts, share.per_call)?;
                drop(share);
                then(handles)
            })
            .await
        }
    }
}

#[async_trait]
impl DiskFile for RealFile {
    async fn len(&self) -> io::Result<u64> {
        self.run(Work::Other, Handles::len).await
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let skip = usize::try_from(offset % BLOCK_BYTES).map_err(io::Error::other)?;
        // No file is that long.
        let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len)?.checked_add(BLOCK_BYTES));
        let blocks = skip.checked_add(len).and_then(|touched| touched.checked_next_multiple_of(BLOCK));
        let (Some(_), Some(blocks)) = (end, blocks) else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        self.shared.pieces.reads(len);
        let buffer = self.shared.buffers.take(if blocks <= LARGEST { blocks } else { PIECE }).await?;
        let share = self.shared.pieces.share(len).await;
        let kind = if is_small(len) { Work::SmallRead } else { Work::Read };
        self.run(kind, move |handles| {
            let read = handles.read(offset, len, buffer, share.per_call);
            drop(share);
            read
        })
        .await
    }

    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        self.write_and(offset, parts, |_| Ok(())).await
    }

    async fn write_durably_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        self.write_and(offset, parts, Handles::sync).await
    }

    async fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        check_punch(offset, len)?;
        self.run(Work::Other, move |handles| handles.punch(offset, len)).await
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        self.run(Work::Other, move |handles| handles.allocate(len)).await
    }

    async fn sync(&self) -> io::Result<()> {
        self.run(Work::Other, Handles::sync).await
    }
}
