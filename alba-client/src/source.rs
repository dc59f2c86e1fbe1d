//! Where the bytes of an upload come from. An upload may read its source twice: it is retried once.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use alba_core::env::{Spawn, blocking};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use rustix::buffer::spare_capacity;

/// Bytes to upload, of known size, readable at any offset and as often as wanted.
#[async_trait]
pub trait ObjectSource: Send {
    /// How many bytes there are.
    fn size(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset` on; `UnexpectedEof` when there are fewer.
    async fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// The `len` bytes from `offset` on, and zeros behind them up to `size` bytes in all; `UnexpectedEof` when there are
    /// fewer. Sources that can save a copy have their own.
    async fn read_padded(&mut self, offset: u64, len: usize, size: usize) -> io::Result<Bytes> {
        let mut buffer = BytesMut::zeroed(size.max(len));
        if let Some(data) = buffer.get_mut(..len).filter(|data| !data.is_empty()) {
            self.read_at(offset, data).await?;
        }
        Ok(buffer.freeze())
    }
}

/// Bytes in memory.
#[derive(Debug, Clone)]
pub struct BytesSource(Bytes);

impl BytesSource {
    /// Of these bytes.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }
}

impl BytesSource {
    fn part(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let range = usize::try_from(offset).ok().and_then(|from| Some(from..from.checked_add(len)?));
        let range = range.filter(|range| range.end <= self.0.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(self.0.slice(range))
    }
}

#[async_trait]
impl ObjectSource for BytesSource {
    fn size(&self) -> u64 {
        u64::try_from(self.0.len()).unwrap_or(u64::MAX)
    }

    async fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.copy_from_slice(&self.part(offset, buffer.len())?);
        Ok(())
    }

    async fn read_padded(&mut self, offset: u64, len: usize, size: usize) -> io::Result<Bytes> {
        let part = self.part(offset, len)?;
        if size <= len {
            return Ok(part);
        }
        let mut padded = BytesMut::with_capacity(size);
        padded.extend_from_slice(&part);
        padded.resize(size, 0);
        Ok(padded.freeze())
    }
}

/// A file, read on threads that may block.
pub struct FileSource {
    spawn: Arc<dyn Spawn>,
    file: Arc<File>,
    size: u64,
}

impl FileSource {
    /// Opens `path`; its size is taken now.
    pub async fn open(spawn: Arc<dyn Spawn>, path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_owned();
        let (file, size) = blocking(spawn.as_ref(), move || {
            let named =
                |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let file = File::open(&path).map_err(named)?;
            let meta = file.metadata().map_err(named)?;
            if meta.is_dir() {
                return Err(named(io::ErrorKind::IsADirectory.into()));
            }
            Ok((file, meta.len()))
        })
        .await
        .map_err(io::Error::other)??;
        Ok(Self { spawn, file: Arc::new(file), size })
    }
}

#[async_trait]
impl ObjectSource for FileSource {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        let mut owned = vec![0; buffer.len()];
        let owned = blocking(self.spawn.as_ref(), move || {
            file.read_exact_at(&mut owned, offset)?;
            io::Result::Ok(owned)
        })
        .await
        .map_err(io::Error::other)??;
        buffer.copy_from_slice(&owned);
        Ok(())
    }

    async fn read_padded(&mut self, offset: u64, len: usize, size: usize) -> io::Result<Bytes> {
        let file = Arc::clone(&self.file);
        blocking(self.spawn.as_ref(), move || {
            // Neither zeroed first nor copied afterwards.
            let mut buffer = Vec::with_capacity(size.max(len));
            let mut at = offset;
            while buffer.len() < len {
                // It may fill more than `len` when the file has grown.
                match rustix::io::pread(&file, spare_capacity(&mut buffer), at) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => at += u64::try_from(read).unwrap_or(u64::MAX - at),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            buffer.truncate(len);
            buffer.resize(size.max(len), 0);
            io::Result::Ok(buffer.into())
        })
        .await
        .map_err(io::Error::other)?
    }
}
