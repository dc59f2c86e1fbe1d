//! Where the bytes of an upload come from. An upload may read its source twice: it is retried once.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use alba_core::env::{Spawn, blocking};
use async_trait::async_trait;
use bytes::Bytes;

/// Bytes to upload, of known size, readable at any offset and as often as wanted.
#[async_trait]
pub trait ObjectSource: Send {
    /// How many bytes there are.
    fn size(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset` on; `UnexpectedEof` when there are fewer.
    async fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
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

#[async_trait]
impl ObjectSource for BytesSource {
    fn size(&self) -> u64 {
        u64::try_from(self.0.len()).unwrap_or(u64::MAX)
    }

    async fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let part = usize::try_from(offset)
            .ok()
            .and_then(|from| self.0.get(from..from.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(part);
        Ok(())
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
}
