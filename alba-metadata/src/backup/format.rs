//! The bytes of a backup: `"ALBABKUP" ‖ version u32 LE ‖ 0 u32`, then blocks as in snapshots
//! (`length u32 LE ‖ CRC32C u32 LE ‖ kind u8 ‖ body`, the checksum being that of kind and body). The first block is the
//! [`Description`] (postcard), then come entries in key order (`key length u16 LE ‖ key ‖ value length u32 LE ‖ value`), last
//! the end: number of entries u64 LE and BLAKE3 of all bytes before that block.
//!
//! A backup holds the model's state and its sessions. What belongs to one replica (its position in a log) is not in it.

use std::io::{self, Read};

use alba_core::ids::GroupId;
use alba_core::kv::Entry;
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::raft::{crc, entries_of, frame};

const MAGIC: &[u8; 8] = b"ALBABKUP";

/// Version of the format.
pub const VERSION: u32 = 1;

const HEADER: usize = 16;
const BLOCK_HEADER: usize = 8;

/// Longest body of a block that is read: an entry and the block it overfills.
const MAX_BODY: usize = 4 << 20;

const META: u8 = 0;
const ENTRIES: u8 = 1;
const END: u8 = 2;

/// Body of the last block.
const END_LEN: usize = 8 + 32;

/// Which model the state belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelKind {
    /// The ABM.
    Abm,
    /// An NSM group.
    Nsm,
}

impl ModelKind {
    /// That of a group: its name tells.
    pub fn of(group: &GroupId) -> Self {
        if group.as_str() == crate::server::ABM { Self::Abm } else { Self::Nsm }
    }
}

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The group.
    pub group: GroupId,
    /// Its model.
    pub model: ModelKind,
    /// Raft term of the last entry in the state; 0 for a group of one copy.
    pub term: u64,
    /// Index of that entry; 0 for a group of one copy.
    pub applied: u64,
    /// When it was read, in microseconds since 1970 by the server's clock.
    pub taken: u64,
}

/// Why a backup is not used.
#[derive(Debug, Error)]
pub enum BackupError {
    /// It cannot be read.
    #[error("the backup cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is not what was written.
    #[error("the backup is damaged: {0}")]
    Damaged(String),
    /// It is no backup.
    #[error("not a backup of a metadata group")]
    NotABackup,
    /// It was written by a newer version.
    #[error("a backup of format version {0}; this program knows version {VERSION}")]
    Version(u32),
}

fn damaged(what: impl ToString) -> BackupError {
    BackupError::Damaged(what.to_string())
}

/// Makes the bytes of a backup, piece by piece.
pub(crate) struct Encoder {
    hasher: blake3::Hasher,
    entries: u64,
}

impl Encoder {
    /// The beginning.
    pub(crate) fn begin(description: &Description) -> io::Result<(Self, Bytes)> {
        let mut encoder = Self { hasher: blake3::Hasher::new(), entries: 0 };
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&0_u32.to_le_bytes());
        encoder.hasher.update(&header);
        let mut bytes = BytesMut::from(header.as_slice());
        let description = postcard::to_stdvec(description).map_err(io::Error::other)?;
        bytes.extend_from_slice(&encoder.block(META, description)?);
        Ok((encoder, bytes.freeze()))
    }

    fn block(&mut self, kind: u8, body: Vec<u8>) -> io::Result<Bytes> {
        let bytes = Bytes::from(frame(kind, body)?.concat());
        self.hasher.update(&bytes);
        Ok(bytes)
    }

    /// `count` entries, put one after the other into `body`.
    pub(crate) fn entries(&mut self, body: Vec<u8>, count: u64) -> io::Result<Bytes> {
        self.entries += count;
        self.block(ENTRIES, body)
    }

    /// The end.
    pub(crate) fn end(mut self) -> io::Result<Bytes> {
        let mut body = self.entries.to_le_bytes().to_vec();
        body.extend_from_slice(self.hasher.finalize().as_bytes());
        self.block(END, body)
    }
}

/// Reads a backup and verifies it on the way. What it gave is to be trusted only after it gave the end.
pub struct Reader<R> {
    from: R,
    hasher: blake3::Hasher,
    entries: u64,
    last: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// The description, and a reader of what follows.
    pub fn new(mut from: R) -> Result<(Self, Description), BackupError> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::NotABackup,
            _ => error.into(),
        })?;
        let (magic, rest) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(BackupError::NotABackup);
        }
        match rest.split_first_chunk::<4>() {
            Some((version, [0, 0, 0, 0])) if *version == VERSION.to_le_bytes() => {}
            Some((version, [0, 0, 0, 0])) => return Err(BackupError::Version(u32::from_le_bytes(*version))),
            _ => return Err(damaged("its header")),
        }
        let mut reader = Self { from, hasher: blake3::Hasher::new(), entries: 0, last: None };
        reader.hasher.update(&header);
        let (kind, body, whole) = reader.block()?;
        if kind != META {
            return Err(damaged("it does not describe itself"));
        }
        reader.hasher.update(&whole);
        let description: Description = postcard::from_bytes(&body).map_err(damaged)?;
        if description.model != ModelKind::of(&description.group) {
            return Err(damaged("a model that is not its group's"));
        }
        Ok((reader, description))
    }

    /// Kind and body of the next block, and all its bytes.
    fn block(&mut self) -> Result<(u8, Bytes, Bytes), BackupError> {
        let cut = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged("it ends before its end"),
            _ => error.into(),
        };
        let mut header = [0; BLOCK_HEADER];
        self.from.read_exact(&mut header).map_err(cut)?;
        let (len, stored) = header.split_at(4);
        let number = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).map_err(damaged);
        let len = usize::try_from(number(len)?).map_err(damaged)?;
        if len > MAX_BODY {
            return Err(damaged("a block longer than any"));
        }
        let mut whole = header.to_vec();
        whole.resize(BLOCK_HEADER + 1 + len, 0);
        let checked = whole.get_mut(BLOCK_HEADER..).unwrap_or_default();
        self.from.read_exact(checked).map_err(cut)?;
        if crc(checked) != number(stored)? {
            return Err(damaged("a block with a wrong checksum"));
        }
        let whole = Bytes::from(whole);
        let kind = whole.get(BLOCK_HEADER).copied().ok_or_else(|| damaged("a block of no kind"))?;
        Ok((kind, whole.slice(BLOCK_HEADER + 1..), whole))
    }

    /// The next entries; none at the end, which was then found to be right.
    pub fn next_entries(&mut self) -> Result<Option<Vec<Entry>>, BackupError> {
        let (kind, body, whole) = self.block()?;
        match kind {
            ENTRIES => {
                self.hasher.update(&whole);
                let entries = entries_of(body).map_err(damaged)?;
                for (key, _) in &entries {
                    if self.last.as_ref().is_some_and(|last| last >= key) || key.is_empty() {
                        return Err(damaged("keys out of order"));
                    }
                    self.last = Some(key.clone());
                }
                self.entries += u64::try_from(entries.len()).map_err(damaged)?;
                Ok(Some(entries))
            }
            END if body.len() == END_LEN => {
                let (count, hash) = body.split_at(8);
                let right = count == self.entries.to_le_bytes()
                    && hash == self.hasher.finalize().as_bytes()
                    && self.from.read(&mut [0])? == 0;
                if right {
                    Ok(None)
                } else {
                    Err(damaged("its hash, its number of rows or its length is wrong"))
                }
            }
            _ => Err(damaged("a block of an unknown kind")),
        }
    }

    /// Entries read so far.
    pub fn count(&self) -> u64 {
        self.entries
    }
}
