//! Segment files: making them, raising their generation, reading their header blocks.

use std::io;
use std::sync::Arc;

use alba_core::env::disk::{BLOCK, BLOCK_BYTES};
use alba_core::env::{Disk, DiskFile};
use bytes::Bytes;

use super::LogError;
use super::format::{Activation, FormatError, Identity, PREFACE, Seed, StoreId};
use super::phase::{self, Sabotage};

/// Zeros written at once to a new segment.
const FILL: usize = 1 << 20;

/// A segment that holds nothing of value: its generation is durable, no record has it.
#[derive(Clone)]
pub(super) struct Segment {
    pub number: u64,
    pub generation: u64,
    pub len: u64,
    pub file: Arc<dyn DiskFile>,
}

/// A segment of the log.
#[derive(Clone)]
pub(super) struct Live {
    pub segment: Segment,
    pub activation: u64,
    /// Last record of it that counts, once that is known.
    pub last: u64,
    /// Highest index of the entries that were ever written to it.
    pub max_index: Option<u64>,
    /// It holds entries, or cuts some of an older one: a later activation block does not replace it.
    pub needed: bool,
}

/// The name of the file of a segment.
pub(super) fn file_name(number: u64) -> String {
    format!("raft-{number:012}.log")
}

/// The number of a segment, if that is the name of one.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix("raft-")?.strip_suffix(".log")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

/// Makes a new segment. All of it is written once: a block that has been written costs no journal when it is written
/// again, and its space cannot be lacking.
pub(super) async fn create(disk: &dyn Disk, store: StoreId, number: u64, len: u64) -> io::Result<Segment> {
    let name = file_name(number);
    let file = disk.create(&name, len).await?;
    let made = async {
        let zeros = Bytes::from(vec![0; FILL]);
        let mut at = 0;
        while at < len {
            let piece = (len - at).min(super::format::offset(FILL));
            let part = zeros.slice(..usize::try_from(piece).map_err(io::Error::other)?);
            file.write_at(at, vec![part]).await?;
            at += piece;
        }
        let identity = Identity { store, number, generation: 1, len };
        file.write_at(0, vec![identity.encode()]).await?;
        file.sync().await?;
        disk.sync_directory().await
    };
    if let Err(error) = made.await {
        // Nothing is in it. The first error is the one to tell.
        drop(disk.remove(&name).await);
        return Err(error);
    }
    Ok(Segment { number, generation: 1, len, file })
}

/// Begins another life of a dead segment. Its old records, and what a crash left of records never acknowledged, have
/// the old generation; the new one is durable before any record has it.
pub(super) async fn renew(store: StoreId, mut segment: Segment) -> io::Result<Segment> {
    if !phase::sabotaged(Sabotage::SameGeneration) {
        segment.generation += 1;
    }
    let identity =
        Identity { store, number: segment.number, generation: segment.generation, len: segment.len };
    segment.file.write_at(0, vec![identity.encode()]).await?;
    segment.file.sync().await?;
    Ok(segment)
}

/// What the two header blocks of a file say.
pub(super) enum Found {
    /// A crash came before it was made.
    Unmade,
    /// It is in nobody's use.
    Spare(Identity, Segment),
    /// It is or was part of the log.
    Active(Identity, Segment, Activation),
}

/// Looks at a file.
pub(super) async fn look(disk: &dyn Disk, number: u64) -> Result<Found, LogError> {
    let name = file_name(number);
    let failed = LogError::io("opening a segment");
    let read = async {
        let file = disk.open(&name).await?;
        let len = file.len().await?;
        let blocks = if len < PREFACE { None } else { Some(file.read_at(0, 2 * BLOCK).await?) };
        Ok((file, len, blocks))
    };
    let (file, len, blocks) = read.await.map_err(failed)?;
    let Some(blocks) = blocks else { return Ok(Found::Unmade) };
    let damaged = |offset: u64, error: FormatError| match error {
        FormatError::Version(_) => LogError::Version { segment: name.clone(), version: error },
        _ => LogError::Rot { segment: name.clone(), offset, reason: error.to_string() },
    };
    let identity = match Identity::decode(&blocks[..BLOCK]) {
        Ok(identity) => identity,
        Err(FormatError::Blank) => return Ok(Found::Unmade),
        Err(error) => return Err(damaged(0, error)),
    };
    if identity.number != number {
        return Err(damaged(0, FormatError::Field("the identity of another segment")));
    }
    let short = identity.len > len;
    let segment = Segment { number, generation: identity.generation, len: identity.len, file };
    match Activation::decode(&blocks[BLOCK..], identity.seed()) {
        Ok(activation) if activation.generation == identity.generation && short => {
            Err(damaged(len, FormatError::CutOff))
        }
        Ok(activation) if activation.generation == identity.generation => {
            Ok(Found::Active(identity, segment, activation))
        }
        Ok(activation) if activation.generation < identity.generation => Ok(Found::Spare(identity, segment)),
        // Its length was not durable when the power went.
        Err(FormatError::Blank) if short => Ok(Found::Unmade),
        Err(FormatError::Blank) => Ok(Found::Spare(identity, segment)),
        Ok(_) => Err(damaged(0, FormatError::Field("a generation older than its activation"))),
        Err(error) => Err(damaged(BLOCK_BYTES, error)),
    }
}

/// A file read in order, in pieces.
pub(super) struct Window<'a> {
    file: &'a dyn DiskFile,
    len: u64,
    start: u64,
    bytes: Bytes,
}

impl<'a> Window<'a> {
    pub(super) fn new(segment: &'a Segment) -> Self {
        Self { file: segment.file.as_ref(), len: segment.len, start: 0, bytes: Bytes::new() }
    }

    /// `len` bytes at `offset`; none when the segment ends before.
    pub(super) async fn get(&mut self, offset: u64, len: u64) -> io::Result<Option<Bytes>> {
        let Some(end) = offset.checked_add(len).filter(|end| *end <= self.len) else { return Ok(None) };
        let have = self.start + super::format::offset(self.bytes.len());
        if offset < self.start || end > have {
            let piece = len.max(super::format::offset(FILL)).min(self.len - offset);
            self.bytes = self.file.read_at(offset, usize::try_from(piece).map_err(io::Error::other)?).await?;
            self.start = offset;
        }
        let from = usize::try_from(offset - self.start).map_err(io::Error::other)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        Ok(Some(self.bytes.slice(from..from + len)))
    }
}

impl Live {
    pub(super) fn seed(&self, store: StoreId) -> Seed {
        Seed { store, segment: self.segment.number }
    }
}
