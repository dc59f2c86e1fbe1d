//! [`Disk`] on a directory of the real file system: plain files, positioned reads and writes, fdatasync.
//!
//! Every call goes through the page cache and runs on a thread that may block, never on the executor. Only one process
//! may use a directory; who opens it holds the lock.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::FallocateFlags;

use crate::env::{Disk, DiskFile, Spawn, blocking};

/// Most buffers one pwritev takes (IOV_MAX on Linux).
const PARTS_PER_CALL: usize = 1024;

/// The files in one directory.
pub struct RealDisk {
    directory: PathBuf,
    spawn: Arc<dyn Spawn>,
}

impl RealDisk {
    /// The files of `directory`, which exists. Subdirectories are not shown.
    pub fn new(directory: impl Into<PathBuf>, spawn: Arc<dyn Spawn>) -> Self {
        Self { directory: directory.into(), spawn }
    }

    /// Where `name` is; a name that would leave the directory is refused.
    fn path(&self, name: &str) -> io::Result<PathBuf> {
        let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        if plain { Ok(self.directory.join(name)) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn open_file(&self, file: File) -> Arc<dyn DiskFile> {
        Arc::new(RealFile { file: Arc::new(file), spawn: self.spawn.clone() })
    }
}

/// Runs `work` where it may block. A worker that ended without an answer is an I/O error.
async fn run<T: Send + 'static>(
    spawn: &Arc<dyn Spawn>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    blocking(spawn.as_ref(), work).await.map_err(io::Error::other)?
}

#[async_trait]
impl Disk for RealDisk {
    async fn list(&self) -> io::Result<Vec<String>> {
        let directory = self.directory.clone();
        run(&self.spawn, move || {
            let mut names = Vec::new();
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                // Names that are no text are not ours.
                if entry.file_type()?.is_file()
                    && let Ok(name) = entry.file_name().into_string()
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
        let file = run(&self.spawn, move || {
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
            match allocate(&file, len) {
                Ok(()) => Ok(file),
                Err(error) => {
                    // Leaves no half-made file behind; the first error is the one to tell.
                    drop(fs::remove_file(&path));
                    Err(error)
                }
            }
        })
        .await?;
        Ok(self.open_file(file))
    }

    async fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path(name)?;
        let file = run(&self.spawn, move || OpenOptions::new().read(true).write(true).open(path)).await?;
        Ok(self.open_file(file))
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name)?;
        run(&self.spawn, move || fs::remove_file(path)).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.path(from)?, self.path(to)?);
        run(&self.spawn, move || fs::rename(from, to)).await
    }

    async fn sync_directory(&self) -> io::Result<()> {
        let directory = self.directory.clone();
        run(&self.spawn, move || File::open(directory)?.sync_all()).await
    }

    async fn space(&self) -> io::Result<(u64, u64)> {
        let directory = self.directory.clone();
        run(&self.spawn, move || space(&directory)).await
    }
}

/// (free to us, total) bytes of the file system that holds `path`.
pub fn space(path: &Path) -> io::Result<(u64, u64)> {
    let found = rustix::fs::statvfs(path)?;
    Ok((found.f_bavail.saturating_mul(found.f_frsize), found.f_blocks.saturating_mul(found.f_frsize)))
}

/// Gives the file `len` bytes of zeros with blocks behind them. File systems that cannot preallocate get the length
/// only: then running out of space shows at the write.
fn allocate(file: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(len),
        Err(error) => Err(error.into()),
    }
}

struct RealFile {
    file: Arc<File>,
    spawn: Arc<dyn Spawn>,
}

#[async_trait]
impl DiskFile for RealFile {
    async fn len(&self) -> io::Result<u64> {
        let file = self.file.clone();
        run(&self.spawn, move || Ok(file.metadata()?.len())).await
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let file = self.file.clone();
        run(&self.spawn, move || {
            let mut buffer = vec![0; len];
            file.read_exact_at(&mut buffer, offset)?;
            Ok(Bytes::from(buffer))
        })
        .await
    }

    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        let file = self.file.clone();
        run(&self.spawn, move || write_all_at(&file, offset, &parts)).await
    }

    async fn sync(&self) -> io::Result<()> {
        let file = self.file.clone();
        run(&self.spawn, move || file.sync_data()).await
    }
}

fn write_all_at(file: &File, mut offset: u64, parts: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> =
        parts.iter().filter(|part| !part.is_empty()).map(|part| IoSlice::new(part)).collect();
    let mut left = slices.as_mut_slice();
    while !left.is_empty() {
        let call = left.len().min(PARTS_PER_CALL);
        let written = match rustix::io::pwritev(file, &left[..call], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        IoSlice::advance_slices(&mut left, written);
        offset += u64::try_from(written).map_err(io::Error::other)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::real::TokioSpawn;

    fn disk(directory: &Path) -> RealDisk {
        RealDisk::new(directory, Arc::new(TokioSpawn))
    }

    #[tokio::test]
    async fn conforms() {
        let directory = tempfile::tempdir().unwrap();
        crate::env::disk_conformance::run(&disk(directory.path())).await;
    }

    #[tokio::test]
    async fn more_parts_than_one_call_takes_are_written_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let file = disk(directory.path()).create("many", 0).await.unwrap();
        let parts: Vec<Bytes> =
            (0..3000_u16).map(|n| Bytes::copy_from_slice(&n.to_le_bytes()[..usize::from(n % 3)])).collect();
        let all = parts.concat();
        file.write_at(5, parts).await.unwrap();
        assert_eq!(file.read_at(5, all.len()).await.unwrap(), all);
    }

    #[tokio::test]
    async fn names_cannot_leave_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let disk = disk(directory.path());
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd"] {
            assert_eq!(disk.open(name).await.err().unwrap().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }
}
