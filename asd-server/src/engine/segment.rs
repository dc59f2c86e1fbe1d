//! Segment files: their names, opening, creating and closing them, and reading them front to back.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Direction, Disk, DiskFile};
use bytes::Bytes;

use super::Shared;
use super::batch::BatchError;
use super::format::{BLOCK, BLOCK_BYTES, Closing, FormatError, Seed, SegmentHeader, Version, offset};

/// How much of a segment is read at a time when it is read front to back, in bytes. Small: values are stepped over.
const WINDOW: usize = 32 * 1024;

/// How much is zeroed at a time when a segment is prepared, in bytes.
const ZEROING: u64 = 1 << 20;

/// Longest that turns of the device are waited for while a segment is made ready: what runs after it must not wait for minutes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Beside clients what was zeroed is safe after so many bytes: a flush of a whole segment keeps theirs waiting for 100 ms and more.
const FLUSHED: u64 = 4 << 20;

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

/// Creates a segment and makes it durable, empty and open.
pub(crate) async fn create(disk: &dyn Disk, header: &SegmentHeader) -> io::Result<Arc<dyn DiskFile>> {
    let name = file_name(header.seed.segment);
    // 1. The file, with all its space: later writes change neither size nor extents.
    let file = match disk.create(&name, header.len).await {
        // Left over by an attempt that failed: no header was durable in it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(&name).await?;
            disk.create(&name, header.len).await?
        }
        file => file?,
    };
    // 2. Its header, durable before any record: a record without a header cannot be verified.
    let begun = match open_with(file.as_ref(), header, false).await {
        // 3. Its name. A crash before leaves a file without a header or none at all: recovery removes it, nothing was
        //    acknowledged in it.
        Ok(()) => disk.sync_directory().await,
        Err(error) => Err(error),
    };
    if let Err(error) = begun {
        // Where it cannot be removed, recovery or the next attempt does.
        drop(disk.remove(&name).await);
        return Err(error);
    }
    Ok(file)
}

/// Begins the name of a file that is being made ready.
const PREPARING: &str = "preparing-";

/// A file whose blocks were all written once, so that later writes overwrite blocks: 3 to 5 times the bandwidth of a
/// fresh file, since a sync has no extents to journal.
pub(crate) struct PreparedFile {
    name: String,
    pub file: Arc<dyn DiskFile>,
    pub len: u64,
}

/// Is it the name of a file that was being made ready when its process ended?
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.starts_with(PREPARING)
}

/// Makes a file of a segment's size ready, at a rate and beside clients.
pub(super) async fn prepare(shared: &Shared, nth: u64) -> io::Result<PreparedFile> {
    let (disk, len) = (shared.sources.disk.as_ref(), shared.config.segment_bytes);
    let name = format!("{PREPARING}{nth:016x}");
    match disk.remove(&name).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&name, len).await?;
    let filled = async {
        let zeros = Bytes::from(vec![0; usize::try_from(ZEROING).map_err(io::Error::other)?]);
        let clock = shared.clock.as_ref();
        let (mut at, mut waited) = (0, Duration::ZERO);
        while at < len {
            let piece = usize::try_from(ZEROING.min(len - at)).map_err(io::Error::other)?;
            let (felt, asked) = (shared.is_felt(offset(piece)), clock.now());
            let turn = if waited < PATIENCE {
                shared.device_turn(Direction::Write, offset(piece)).await
            } else {
                None
            };
            waited += clock.now().since(asked);
            file.write_at(at, vec![zeros.slice(..piece)]).await?;
            at += offset(piece);
            if felt && at.is_multiple_of(FLUSHED) {
                file.sync().await?;
            }
            drop(turn);
            shared.rates.preparation.pace(clock, offset(piece)).await;
        }
        file.sync().await
    };
    match filled.await {
        Ok(()) => Ok(PreparedFile { name, file, len }),
        Err(error) => {
            drop(disk.remove(&name).await);
            Err(error)
        }
    }
}

impl PreparedFile {
    /// Gives it its header, as one that is closed and empty, and its name, durably.
    pub(crate) async fn take_in(&self, disk: &dyn Disk, header: &SegmentHeader) -> io::Result<()> {
        open_with(self.file.as_ref(), header, true).await?;
        disk.rename(&self.name, &file_name(header.seed.segment)).await?;
        disk.sync_directory().await
    }
}

/// Begins a life of a segment: from here on its older records are void.
pub(crate) async fn open_with(file: &dyn DiskFile, header: &SegmentHeader, closed: bool) -> io::Result<()> {
    let mut blocks = header.encode();
    if closed {
        let closing = Closing { header: *header, last: header.previous, end: header.first_batch() };
        blocks.extend(closing.encode());
    }
    file.write_at(0, vec![blocks.into()]).await?;
    file.sync().await
}

/// Removes the closing block of a former life. It is durable with the first batch of the new one: were the header of that
/// to rot, the former life would be taken for the present one.
pub(crate) async fn forget_closing(file: &dyn DiskFile) -> io::Result<()> {
    file.write_at(BLOCK_BYTES, vec![vec![0; BLOCK].into()]).await
}

/// Writes the closing block, durably.
pub(crate) async fn close(file: &dyn DiskFile, closing: &Closing) -> io::Result<()> {
    file.write_at(BLOCK_BYTES, vec![closing.encode().into()]).await?;
    file.sync().await
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

/// A segment whose header (or closing block) was read and verified.
#[derive(Clone)]
pub(crate) struct Segment {
    pub header: SegmentHeader,
    pub file: Arc<dyn DiskFile>,
    /// Bytes that are there: its length, unless the file was cut off.
    pub readable: u64,
    /// Where the history ends in it; none while it takes batches, or when that block was not written or is damaged.
    pub closing: Option<Closing>,
    /// That block is damaged.
    pub closing_rotten: bool,
}

impl Segment {
    /// Is it closed without a batch of the history? Then it is no part of that.
    pub(crate) fn is_idle(&self) -> bool {
        self.closing.is_some_and(|closing| closing.last == self.header.previous)
    }

    pub(crate) fn seed(&self) -> &Seed {
        &self.header.seed
    }

    pub(crate) fn number(&self) -> u64 {
        self.header.seed.segment
    }

    pub(crate) fn version(&self) -> Version {
        self.header.version
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.readable == self.header.len
    }
}

/// What the first blocks of a segment file say.
pub(crate) struct Preface {
    pub file: Arc<dyn DiskFile>,
    /// From the closing block when the header is damaged.
    pub header: Result<SegmentHeader, FormatError>,
    /// Of this life of the segment.
    pub closing: Option<Closing>,
    /// What is damaged although nothing is lost by it, for people.
    pub damage: Option<FormatError>,
}

/// Reads header and closing block of a segment file.
pub(crate) async fn open(disk: &dyn Disk, number: u64) -> io::Result<Preface> {
    let file = disk.open(&file_name(number)).await?;
    let block = async |at| match file.read_at(at, BLOCK).await {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Bytes::new()),
        Err(error) => Err(error),
    };
    let header = SegmentHeader::decode(&block(0).await?);
    // One that strayed here from another segment is no better than a damaged one.
    let header = match header {
        Ok(other) if other.seed.segment != number => Err(FormatError::Field("header of another segment")),
        header => header,
    };
    let closing = Closing::decode(&block(BLOCK_BYTES).await?);
    let (header, closing, damage) = match (header, closing) {
        // Of this life?
        (Ok(header), Ok(closing)) if closing.header == header => (Ok(header), Some(closing), None),
        (Ok(header), Err(error @ FormatError::Checksum(_))) if header.version == Version::V2 => {
            (Ok(header), None, Some(error))
        }
        (Ok(header), _) => (Ok(header), None, None),
        (Err(FormatError::Version(found)), _) => (Err(FormatError::Version(found)), None, None),
        // The header is rotten (or torn when the segment was to be reused; then nothing lives in it). The closing block
        // says the same.
        (Err(error), Ok(closing)) => (Ok(closing.header), Some(closing), Some(error)),
        (Err(error), Err(_)) => (Err(error), None, None),
    };
    Ok(Preface { file, header, closing, damage })
}
