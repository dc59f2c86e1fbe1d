//! Where the bytes of a download go.
//!
//! Nothing is created before the object is known to exist. A sink may be told to start over, when the manifest that
//! the download began with proves stale.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alba_core::env::{Spawn, blocking, files};
use async_trait::async_trait;
use bytes::Bytes;

/// Takes the bytes of an object, in ascending order without gaps.
#[async_trait]
pub trait ObjectSink: Send {
    /// Takes `data`, which begins at `offset`.
    async fn write_at(&mut self, offset: u64, data: Bytes) -> io::Result<()>;

    /// All bytes were given and the object's checksum is right: makes them last.
    async fn finish(&mut self) -> io::Result<()>;

    /// Forgets all that was written. A sink that cannot do so refuses, and the download fails instead of being
    /// repeated.
    async fn restart(&mut self) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this sink cannot start over"))
    }
}

/// Collects the object in memory.
#[derive(Debug, Default)]
pub struct MemorySink {
    parts: Vec<Bytes>,
}

impl MemorySink {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes written so far, in one piece.
    pub fn into_bytes(self) -> Bytes {
        match <[Bytes; 1]>::try_from(self.parts) {
            Ok([only]) => only,
            Err(parts) => parts.concat().into(),
        }
    }
}

#[async_trait]
impl ObjectSink for MemorySink {
    async fn write_at(&mut self, _offset: u64, data: Bytes) -> io::Result<()> {
        self.parts.push(data);
        Ok(())
    }

    async fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }

    async fn restart(&mut self) -> io::Result<()> {
        self.parts.clear();
        Ok(())
    }
}

/// A file with mode 0664 (less the umask), created or truncated by the first write, synced at the end.
pub struct FileSink {
    spawn: Arc<dyn Spawn>,
    path: PathBuf,
    file: Option<Arc<File>>,
}

impl FileSink {
    /// To the file `path`. Nothing is created yet.
    pub fn new(spawn: Arc<dyn Spawn>, path: impl AsRef<Path>) -> Self {
        Self { spawn, path: path.as_ref().to_owned(), file: None }
    }

    async fn with_file(
        &mut self,
        work: impl FnOnce(&File) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let open = self.file.clone();
        let path = self.path.clone();
        let file = blocking(self.spawn.as_ref(), move || {
            let named =
                |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let file = match open {
                Some(file) => file,
                None => Arc::new(files::create_with_mode(&path, 0o664).map_err(named)?),
            };
            work(&file).map_err(named)?;
            io::Result::Ok(file)
        })
        .await
        .map_err(io::Error::other)??;
        self.file = Some(file);
        Ok(())
    }
}

#[async_trait]
impl ObjectSink for FileSink {
    async fn write_at(&mut self, offset: u64, data: Bytes) -> io::Result<()> {
        self.with_file(move |file| file.write_all_at(&data, offset)).await
    }

    async fn finish(&mut self) -> io::Result<()> {
        // Also creates the file of an empty object.
        self.with_file(File::sync_all).await
    }

    async fn restart(&mut self) -> io::Result<()> {
        self.with_file(|file| file.set_len(0)).await
    }
}
