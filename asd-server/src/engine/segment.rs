//! Segment files: their names, opening and creating them, and reading them front to back.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use alba_core::env::{Disk, DiskFile};
use bytes::Bytes;

use super::batch::BatchError;
use super::format::{BLOCK, FormatError, Seed, SegmentHeader, offset};

/// Most segment files held open for reading.
const OPEN_MAX: usize = 256;

/// How much of a segment is read at a time when it is read front to back, in bytes.
const WINDOW: usize = 256 * 1024;

/// The name of a segment's file.
pub(crate) fn file_name(number: u64) -> String {
    format!("segment-{number:016x}")
}

/// The number of the segment in the file of that name; none for other files.
pub(crate) fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (file_name(number) == name).then_some(number)
}

/// Creates a segment and makes it durable, empty.
pub(crate) async fn create(disk: &dyn Disk, header: &SegmentHeader) -> io::Result<Arc<dyn DiskFile>> {
    // 1. The file, with all its space: later writes change neither size nor extents.
    let file = disk.create(&file_name(header.seed.segment), header.len).await?;
    // 2. Its header, durable before any record: a record without a header cannot be verified.
    file.write_at(0, vec![header.encode().into()]).await?;
    file.sync().await?;
    // 3. Its name. A crash before leaves a file without a header or none at all: recovery removes it, nothing was
    //    acknowledged in it.
    disk.sync_directory().await?;
    Ok(file)
}

/// Open segment files, for readers. Bounded; the lowest numbers are closed first.
pub(crate) struct SegmentFiles {
    disk: Arc<dyn Disk>,
    open: Mutex<BTreeMap<u64, Arc<dyn DiskFile>>>,
}

impl SegmentFiles {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, open: Mutex::default() }
    }

    /// No code panics while it holds the lock, so a poisoned lock holds a sound map.
    fn table(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<dyn DiskFile>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn get(&self, number: u64) -> io::Result<Arc<dyn DiskFile>> {
        let open = self.table().get(&number).cloned();
        if let Some(file) = open {
            return Ok(file);
        }
        let file = self.disk.open(&file_name(number)).await?;
        self.insert(number, file.clone());
        Ok(file)
    }

    pub(crate) fn insert(&self, number: u64, file: Arc<dyn DiskFile>) {
        let mut open = self.table();
        if open.len() >= OPEN_MAX {
            open.pop_first();
        }
        open.insert(number, file);
    }

    pub(crate) fn forget(&self, number: u64) {
        self.table().remove(&number);
    }
}

/// A segment file read front to back, in large pieces.
pub(crate) struct Window<'a> {
    file: &'a dyn DiskFile,
    end: u64,
    start: u64,
    bytes: Bytes,
}

impl<'a> Window<'a> {
    /// Over the first `end` bytes of `file`.
    pub(crate) fn new(file: &'a dyn DiskFile, end: u64) -> Self {
        Self { file, end, start: 0, bytes: Bytes::new() }
    }

    /// `len` bytes at `at`. What ends after the segment is [`FormatError::CutOff`].
    pub(crate) async fn get(&mut self, at: u64, len: usize) -> Result<Bytes, BatchError> {
        let end = at.saturating_add(offset(len));
        if end > self.end {
            return Err(FormatError::CutOff.into());
        }
        if at < self.start || end > self.start + offset(self.bytes.len()) {
            let wanted = offset(len.max(WINDOW)).min(self.end - at);
            let wanted = usize::try_from(wanted).map_err(io::Error::other)?;
            self.bytes = self.file.read_at(at, wanted).await?;
            self.start = at;
        }
        let from = usize::try_from(at - self.start).map_err(io::Error::other)?;
        Ok(self.bytes.slice(from..from + len))
    }
}

/// A segment whose header was read and verified.
pub(crate) struct Segment {
    pub header: SegmentHeader,
    pub file: Arc<dyn DiskFile>,
    /// Bytes that are there: its length, unless the file was cut off.
    pub readable: u64,
}

impl Segment {
    pub(crate) fn seed(&self) -> &Seed {
        &self.header.seed
    }

    pub(crate) fn number(&self) -> u64 {
        self.header.seed.segment
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.readable == self.header.len
    }
}

/// Reads the header of a segment file. The inner error tells what is wrong with the bytes.
pub(crate) async fn open(
    disk: &dyn Disk,
    number: u64,
) -> io::Result<(Arc<dyn DiskFile>, Result<SegmentHeader, FormatError>)> {
    let file = disk.open(&file_name(number)).await?;
    let header = match file.read_at(0, BLOCK).await {
        Ok(bytes) => SegmentHeader::decode(&bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(FormatError::CutOff),
        Err(error) => return Err(error),
    };
    Ok((file, header))
}
