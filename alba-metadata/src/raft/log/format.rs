//! The bytes on the disk, format version 1: the two header blocks of a segment, and records.
//! `docs/formats/metadata.md` has the pictures.
//!
//! All numbers are little endian. Every CRC is seeded with the store and the segment it was written for, and every
//! record names the generation of its segment and its place in the one sequence of all records: bytes of another store,
//! an earlier life of the segment or a tail that was cut never count, however whole they are.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use openraft::{EntryPayload, LeaderId, Membership};
use thiserror::Error;

use crate::raft::types::{NodeId, Payload, Replica, TypeConfig};

pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type LogId = openraft::LogId<NodeId>;
pub(super) type Vote = openraft::Vote<NodeId>;

/// The only version so far.
pub(super) const VERSION: u8 = 1;

/// Fixed part of a record, in bytes.
pub(super) const RECORD_HEADER: usize = 48;

/// Blocks in front of the first record: identity and activation.
pub(super) const PREFACE: u64 = 2 * alba_core::env::disk::BLOCK_BYTES;

/// What a header block uses: one sector, which no power cut tears.
const SECTOR: usize = 512;
const IDENTITY_MAGIC: [u8; 8] = *b"ALBARLOG";
const ACTIVATION_MAGIC: [u8; 8] = *b"ALBARACT";
const RECORD_MAGIC: [u8; 4] = *b"ARL1";
/// Where the checksum of a header block is, for ever.
const CRC_AT: usize = SECTOR - 4;
/// Where the checksum of a record's header is.
const RECORD_CRC_AT: usize = RECORD_HEADER - 4;
/// A record begins a batch, on a block boundary.
const FIRST: u8 = 1;
/// Encoded log id.
const LOG_ID: usize = 24;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FormatError {
    /// Nothing was ever written there.
    #[error("nothing but zeros")]
    Blank,
    /// Something else than what should be there.
    #[error("no {0}")]
    Magic(&'static str),
    /// A version this program does not know.
    #[error("format version {0}, this program knows {VERSION}")]
    Version(u8),
    /// The checksum differs.
    #[error("the checksum of the {0} differs")]
    Checksum(&'static str),
    /// A field has a value that is never written.
    #[error("{0}")]
    Field(&'static str),
    /// It ends before its end.
    #[error("cut off")]
    CutOff,
}

/// A length in memory as a file offset. `usize` has at most 64 bits on every platform we build for.
pub(super) fn offset(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Identity of a log, random when it is made. Segments of another log are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoreId(pub [u8; 16]);

/// What all CRCs of a segment are seeded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seed {
    pub store: StoreId,
    pub segment: u64,
}

impl Seed {
    fn crc(&self, parts: &[&[u8]]) -> u32 {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        digest.update(&self.store.0);
        digest.update(&self.segment.to_le_bytes());
        parts.iter().for_each(|part| digest.update(part));
        // A 32-bit CRC in a 64-bit return type: the upper half is zero.
        u32::try_from(digest.finalize() & 0xffff_ffff).unwrap_or(0)
    }
}

/// Block 0 of a segment: whose it is, and which life of it this is. Rewritten only when the segment is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub store: StoreId,
    pub number: u64,
    pub generation: u64,
    /// Bytes of the file.
    pub len: u64,
}

/// The segment before in the chain of those that are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Previous {
    pub activation: u64,
    /// Last record of it that counts.
    pub last: u64,
}

/// What the log was beside its entries when a segment was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Head {
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    pub committed: Option<LogId>,
}

/// Block 1 of a segment: it is in use, with everything that later removal of older segments must not lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Activation {
    pub generation: u64,
    /// Counts activations of all segments: the order of the log.
    pub activation: u64,
    /// Sequence of its first record. All before it that counts was durable.
    pub first: u64,
    /// All records up to here are durable (those of this segment that were written before this block, too).
    pub synced: u64,
    /// The oldest activation that is still needed.
    pub oldest: u64,
    pub previous: Option<Previous>,
    pub head: Head,
}

/// What a block of a header says: all of it is in one sector.
fn read_sector<'a>(
    block: &'a [u8],
    magic: [u8; 8],
    what: &'static str,
    seed: impl FnOnce(&[u8]) -> Seed,
) -> Result<&'a [u8], FormatError> {
    let sector = block.get(..SECTOR).ok_or(FormatError::CutOff)?;
    if sector.iter().all(|byte| *byte == 0) {
        return Err(FormatError::Blank);
    }
    if sector[..8] != magic {
        return Err(FormatError::Magic(what));
    }
    if u32_at(sector, CRC_AT) != seed(sector).crc(&[&sector[..CRC_AT]]) {
        return Err(FormatError::Checksum(what));
    }
    // The place of the checksum is the same in every version, so that damage is told from a newer version.
    if sector[8] != VERSION {
        return Err(FormatError::Version(sector[8]));
    }
    Ok(sector)
}

fn finish_sector(mut fields: BytesMut, seed: Seed) -> Bytes {
    fields.resize(CRC_AT, 0);
    fields.put_u32_le(seed.crc(&[&fields]));
    fields.resize(alba_core::env::disk::BLOCK, 0);
    fields.freeze()
}

impl Identity {
    pub(super) fn seed(&self) -> Seed {
        Seed { store: self.store, segment: self.number }
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_slice(&IDENTITY_MAGIC);
        out.put_u64_le(u64::from(VERSION));
        out.put_slice(&self.store.0);
        out.put_u64_le(self.number);
        out.put_u64_le(self.generation);
        out.put_u64_le(self.len);
        finish_sector(out, self.seed())
    }

    pub(super) fn decode(block: &[u8]) -> Result<Self, FormatError> {
        let named = |sector: &[u8]| {
            let mut store = [0; 16];
            store.copy_from_slice(&sector[16..32]);
            Seed { store: StoreId(store), segment: u64_at(sector, 32) }
        };
        let sector = read_sector(block, IDENTITY_MAGIC, "segment identity", named)?;
        let Seed { store, segment } = named(sector);
        Ok(Self { store, number: segment, generation: u64_at(sector, 40), len: u64_at(sector, 48) })
    }
}

impl Activation {
    pub(super) fn encode(&self, seed: Seed) -> Bytes {
        let mut out = BytesMut::new();
        out.put_slice(&ACTIVATION_MAGIC);
        out.put_u64_le(u64::from(VERSION));
        for number in [self.generation, self.activation, self.first, self.synced, self.oldest] {
            out.put_u64_le(number);
        }
        out.put_u64_le(u64::from(self.previous.is_some()));
        let previous = self.previous.unwrap_or(Previous { activation: 0, last: 0 });
        out.put_u64_le(previous.activation);
        out.put_u64_le(previous.last);
        out.put_u64_le(self.head.vote.map_or(0, |vote| 1 + u64::from(vote.committed)));
        let leader = self.head.vote.map(|vote| vote.leader_id).unwrap_or_default();
        out.put_u64_le(leader.term);
        out.put_u64_le(leader.node_id);
        for id in [self.head.purged, self.head.committed] {
            out.put_u64_le(u64::from(id.is_some()));
            put_log_id(&mut out, &id.unwrap_or_default());
        }
        finish_sector(out, seed)
    }

    pub(super) fn decode(block: &[u8], seed: Seed) -> Result<Self, FormatError> {
        let sector = read_sector(block, ACTIVATION_MAGIC, "segment activation", |_| seed)?;
        let at = |nth: usize| u64_at(sector, 16 + 8 * nth);
        let id = |nth: usize| match at(nth) {
            0 => Ok(None),
            1 => Ok(Some(log_id_at(sector, 16 + 8 * (nth + 1)))),
            _ => Err(FormatError::Field("neither a log id nor none")),
        };
        let vote = |committed| Vote { leader_id: LeaderId::new(at(9), at(10)), committed };
        Ok(Self {
            generation: at(0),
            activation: at(1),
            first: at(2),
            synced: at(3),
            oldest: at(4),
            previous: (at(5) != 0).then(|| Previous { activation: at(6), last: at(7) }),
            head: Head {
                vote: match at(8) {
                    0 => None,
                    1 => Some(vote(false)),
                    2 => Some(vote(true)),
                    _ => return Err(FormatError::Field("neither a vote nor none")),
                },
                purged: id(11)?,
                committed: id(15)?,
            },
        })
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    /// The entry at its index, which is the next one.
    Entry(Arc<Entry>),
    /// The vote from here on.
    Vote(Vote),
    /// Entries from this one on are gone.
    Truncate(LogId),
    /// Entries up to this one are gone; segments before the activation `oldest` are needed no more.
    Purge { upto: LogId, oldest: u64 },
    /// All up to this one is known to be committed.
    Committed(Option<LogId>),
}

/// The same as its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Entry,
    Vote,
    Truncate,
    Purge,
    Committed,
}

impl Kind {
    const ALL: [(Self, u8); 5] =
        [(Self::Entry, 1), (Self::Vote, 2), (Self::Truncate, 3), (Self::Purge, 4), (Self::Committed, 5)];

    fn number(self) -> u8 {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, number)| *number)
    }

    fn of(number: u8) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == number).map(|(kind, _)| *kind)
    }
}

/// What stands in front of a record's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub kind: Kind,
    /// It begins a batch, on a block boundary.
    pub first: bool,
    pub generation: u64,
    pub sequence: u64,
    /// The last record that was known to be durable when this one was written.
    pub synced: u64,
    /// Bytes of the payload.
    pub len: u32,
    payload_crc: u32,
}

impl RecordHeader {
    /// The header in front of `bytes`, which may go on.
    pub(super) fn decode(bytes: &[u8], seed: Seed) -> Result<Self, FormatError> {
        let header = bytes.get(..RECORD_HEADER).ok_or(FormatError::CutOff)?;
        if header[..4] != RECORD_MAGIC {
            return Err(FormatError::Magic("record"));
        }
        if u32_at(header, RECORD_CRC_AT) != seed.crc(&[&header[..RECORD_CRC_AT]]) {
            return Err(FormatError::Checksum("record header"));
        }
        if header[4] != VERSION {
            return Err(FormatError::Version(header[4]));
        }
        Ok(Self {
            kind: Kind::of(header[5]).ok_or(FormatError::Field("a kind of record that is not known"))?,
            first: header[6] & FIRST != 0,
            generation: u64_at(header, 8),
            sequence: u64_at(header, 16),
            synced: u64_at(header, 24),
            len: u32_at(header, 32),
            payload_crc: u32_at(header, 36),
        })
    }

    /// Header and payload together, in bytes.
    pub(super) fn total(&self) -> u64 {
        offset(RECORD_HEADER) + u64::from(self.len)
    }

    /// The record whose payload this is.
    pub(super) fn payload(&self, payload: &Bytes, seed: Seed) -> Result<Record, FormatError> {
        if offset(payload.len()) != u64::from(self.len) {
            return Err(FormatError::CutOff);
        }
        if seed.crc(&[&self.sequence.to_le_bytes(), payload]) != self.payload_crc {
            return Err(FormatError::Checksum("payload"));
        }
        Record::decode(self.kind, payload)
    }
}

impl Record {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Entry(_) => Kind::Entry,
            Self::Vote(_) => Kind::Vote,
            Self::Truncate(_) => Kind::Truncate,
            Self::Purge { .. } => Kind::Purge,
            Self::Committed(_) => Kind::Committed,
        }
    }

    fn payload(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Entry(entry) => return entry_payload(entry),
            Self::Vote(vote) => {
                out.put_u64_le(vote.leader_id.term);
                out.put_u64_le(vote.leader_id.node_id);
                out.put_u8(u8::from(vote.committed));
            }
            Self::Truncate(since) => put_log_id(&mut out, since),
            Self::Purge { upto, oldest } => {
                put_log_id(&mut out, upto);
                out.put_u64_le(*oldest);
            }
            Self::Committed(id) => {
                if let Some(id) = id {
                    put_log_id(&mut out, id);
                }
            }
        }
        out.freeze()
    }

    fn decode(kind: Kind, payload: &Bytes) -> Result<Self, FormatError> {
        let exactly = |len: usize| {
            if payload.len() == len { Ok(()) } else { Err(FormatError::Field("another length")) }
        };
        Ok(match kind {
            Kind::Entry => Self::Entry(Arc::new(decode_entry(payload)?)),
            Kind::Vote => {
                exactly(17)?;
                Self::Vote(Vote {
                    leader_id: LeaderId::new(u64_at(payload, 0), u64_at(payload, 8)),
                    committed: match payload[16] {
                        0 => false,
                        1 => true,
                        _ => return Err(FormatError::Field("neither committed nor not")),
                    },
                })
            }
            Kind::Truncate => {
                exactly(LOG_ID)?;
                Self::Truncate(log_id_at(payload, 0))
            }
            Kind::Purge => {
                exactly(LOG_ID + 8)?;
                Self::Purge { upto: log_id_at(payload, 0), oldest: u64_at(payload, LOG_ID) }
            }
            Kind::Committed if payload.is_empty() => Self::Committed(None),
            Kind::Committed => {
                exactly(LOG_ID)?;
                Self::Committed(Some(log_id_at(payload, 0)))
            }
        })
    }

    /// Appends it to `out`, which holds nothing but the batch.
    pub(super) fn encode(
        &self,
        out: &mut BytesMut,
        seed: Seed,
        (generation, sequence, synced): (u64, u64, u64),
    ) {
        let payload = self.payload();
        let start = out.len();
        let first = start == 0;
        out.put_slice(&RECORD_MAGIC);
        out.put_slice(&[VERSION, self.kind().number(), if first { FIRST } else { 0 }, 0]);
        out.put_u64_le(generation);
        out.put_u64_le(sequence);
        out.put_u64_le(synced);
        // Whoever hands a record in has checked that it fits into a segment, which is below 4 GiB.
        out.put_u32_le(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        out.put_u32_le(seed.crc(&[&sequence.to_le_bytes(), &payload]));
        out.put_u32_le(0);
        let crc = seed.crc(&[&out[start..]]);
        out.put_u32_le(crc);
        out.put_slice(&payload);
    }

    /// Bytes [`Record::encode`] appends.
    pub(super) fn encoded_len(&self) -> u64 {
        let payload = match self {
            Self::Entry(entry) => return entry_len(entry),
            Self::Vote(_) => 17,
            Self::Truncate(_) => LOG_ID,
            Self::Purge { .. } => LOG_ID + 8,
            Self::Committed(id) => id.map_or(0, |_| LOG_ID),
        };
        offset(RECORD_HEADER + payload)
    }
}

/// Bytes of the record of an entry.
pub(super) fn entry_len(entry: &Entry) -> u64 {
    let body = match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(payload) => payload.0.len(),
        EntryPayload::Membership(membership) => encode_membership(membership).len(),
    };
    offset(RECORD_HEADER + LOG_ID + 1 + body)
}

fn encode_membership(membership: &Membership<NodeId, Replica>) -> Vec<u8> {
    // Numbers, strings, lists and maps into memory: postcard refuses none of them.
    postcard::to_stdvec(membership).unwrap_or_default()
}

fn entry_payload(entry: &Entry) -> Bytes {
    let mut out = BytesMut::new();
    put_log_id(&mut out, &entry.log_id);
    match &entry.payload {
        EntryPayload::Blank => out.put_u8(0),
        EntryPayload::Normal(payload) => {
            out.reserve(1 + payload.0.len());
            out.put_u8(1);
            out.put_slice(&payload.0);
        }
        EntryPayload::Membership(membership) => {
            out.put_u8(2);
            out.put_slice(&encode_membership(membership));
        }
    }
    out.freeze()
}

fn decode_entry(payload: &Bytes) -> Result<Entry, FormatError> {
    let tag = *payload.get(LOG_ID).ok_or(FormatError::CutOff)?;
    let body = payload.slice(LOG_ID + 1..);
    let content = match tag {
        0 if body.is_empty() => EntryPayload::Blank,
        // A copy: a slice would keep the whole buffer of a read in memory.
        1 => EntryPayload::Normal(Payload(Bytes::copy_from_slice(&body))),
        2 => EntryPayload::Membership(
            postcard::from_bytes(&body)
                .map_err(|_| FormatError::Field("a membership that does not decode"))?,
        ),
        _ => return Err(FormatError::Field("a kind of entry that is not known")),
    };
    Ok(Entry { log_id: log_id_at(payload, 0), payload: content })
}

fn put_log_id(out: &mut BytesMut, id: &LogId) {
    out.put_u64_le(id.leader_id.term);
    out.put_u64_le(id.leader_id.node_id);
    out.put_u64_le(id.index);
}

/// The callers have looked at the length.
fn log_id_at(bytes: &[u8], at: usize) -> LogId {
    LogId::new(LeaderId::new(u64_at(bytes, at), u64_at(bytes, at + 8)), u64_at(bytes, at + 16))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}
