//! The bytes on the disk, format version 2: segment header, closing block, record header, checksums; version 1 is still
//! read. `docs/formats/asd.md` has the
//! pictures.
//!
//! All numbers are little endian. Every CRC is seeded with where and when its bytes were written (store, segment,
//! generation, sequence, block number): bytes of another store, an earlier life of the segment, another batch or
//! another place never verify, however whole they are.

use alba_core::blake3_tree::LeafTable;
use alba_core::checksum::Checksum;
use thiserror::Error;

/// The unit of alignment and of the checksums of values, in bytes.
pub(crate) const BLOCK: usize = 4096;

/// [`BLOCK`] as a file offset.
pub const BLOCK_BYTES: u64 = 4096;

/// Values up to this size are also kept in the index, in bytes.
pub(crate) const INLINE_MAX: usize = 4096;

/// Longest key, in bytes.
pub const KEY_MAX: usize = 16 * 1024;

/// Largest value whatever the size of segments, in bytes. A frame of the protocol is bounded by it.
pub const VALUE_MAX: u32 = 32 * 1024 * 1024;

/// Format of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// Read only: values follow their record, no closing block, segments are never reused. A store of this version is
    /// taken over as it is; its segments go away one after the other, oldest first, as they are compacted.
    V1,
    /// What this code writes.
    V2,
}

/// The newest version this code knows.
pub(crate) const VERSION: u32 = 2;

/// Blocks in front of the first batch: header and closing block.
const V2_PREFACE: u64 = 2 * BLOCK_BYTES;

/// Fixed part of a record, in bytes; key, table of block checksums and value follow.
pub(crate) const RECORD_HEADER: usize = 80;

const SEGMENT_MAGIC: [u8; 8] = *b"ALBASEG1";
const CLOSING_MAGIC: [u8; 8] = *b"ALBAEND2";
const RECORD_MAGIC: [u8; 4] = *b"ARC1";
/// Where the checksum of a segment header of version 1 is.
const V1_CRC_AT: usize = BLOCK - 4;
/// Where it is from version 2 on, for ever: header and checksum are in one sector, which no power cut tears.
const SEGMENT_CRC_AT: usize = 508;
/// Where the checksum of a record header is; all before it, then key and table are covered.
const RECORD_CRC_AT: usize = RECORD_HEADER - 4;
/// The "block number" of a record header: no value has so many blocks.
const HEADER_BLOCK: u32 = u32::MAX;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum FormatError {
    /// Other bytes than a header begins with: nothing was ever written there.
    #[error("no {0} here")]
    Magic(&'static str),
    /// A version this program does not know.
    #[error("format version {0}, this program knows {VERSION}")]
    Version(u32),
    /// The checksum differs.
    #[error("checksum of the {0} differs")]
    Checksum(&'static str),
    /// A field has a value that is never written.
    #[error("{0}")]
    Field(&'static str),
    /// It ends before its end.
    #[error("cut off")]
    CutOff,
}

/// A length in memory as a file offset. `usize` has at most 64 bits on every platform we build for.
pub(crate) fn offset(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Rounds up to the next block boundary.
pub(crate) fn align(len: u64) -> u64 {
    len.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

/// Number of checksummed blocks of a value.
pub(crate) fn blocks(value_len: u32) -> u32 {
    value_len.div_ceil(4096)
}

/// Identity of a store, random at format time. Segments of another store are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StoreId(pub [u8; 16]);

/// What all CRCs of one life of one segment are seeded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed {
    pub store: StoreId,
    pub segment: u64,
    pub generation: u64,
}

/// A CRC-32C in the making, seeded for one batch.
#[derive(Clone, Copy)]
pub(crate) struct BatchCrc(crc_fast::Digest);

impl Seed {
    pub(crate) fn of_batch(&self, sequence: u64) -> BatchCrc {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        digest.update(&self.store.0);
        digest.update(&self.segment.to_le_bytes());
        digest.update(&self.generation.to_le_bytes());
        digest.update(&sequence.to_le_bytes());
        BatchCrc(digest)
    }
}

impl BatchCrc {
    fn finish(self, block: u32, parts: &[&[u8]]) -> u32 {
        let mut digest = self.0;
        digest.update(&block.to_le_bytes());
        parts.iter().for_each(|part| digest.update(part));
        low_half(digest.finalize())
    }

    /// Of one block of a value (the last one may be short).
    pub(crate) fn block(self, number: u32, bytes: &[u8]) -> u32 {
        self.finish(number, &[bytes])
    }

    /// The table of block checksums of a value.
    pub(crate) fn table(self, value: &[u8]) -> Vec<u8> {
        (0_u32..).zip(value.chunks(BLOCK)).flat_map(|(n, block)| self.block(n, block).to_le_bytes()).collect()
    }
}

/// A 32-bit CRC in a 64-bit return type: the upper half is zero.
fn low_half(crc: u64) -> u32 {
    u32::try_from(crc & 0xffff_ffff).unwrap_or(0)
}

/// The CRC of a batch: over the checksums of its records' headers, in order.
pub(crate) fn batch_crc(record_crcs: &[u32]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    record_crcs.iter().for_each(|crc| digest.update(&crc.to_le_bytes()));
    low_half(digest.finalize())
}

/// The first block of a segment. It is durable before anything else of the segment is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub version: Version,
    /// The generation is a number of the whole store: each opening of a segment has a higher one.
    pub seed: Seed,
    /// Length of the file in bytes.
    pub len: u64,
    /// The batches here follow this one; whatever has a later sequence in segments opened before is no part of the
    /// history.
    pub previous: u64,
    /// Segment files 0 to here, exclusive, existed when this was written: one that is missing later is a loss.
    pub slots: u64,
}

impl SegmentHeader {
    /// Where the first batch begins.
    pub(crate) fn first_batch(&self) -> u64 {
        match self.version {
            Version::V1 => BLOCK_BYTES,
            Version::V2 => V2_PREFACE,
        }
    }

    /// Order of the history. (Version 1 has generation 1 throughout, and numbers in order.)
    pub(crate) fn order(&self) -> (u64, u64, u64) {
        (self.previous, self.seed.generation, self.seed.segment)
    }

    /// The block, in version 2.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BLOCK);
        bytes.extend(SEGMENT_MAGIC);
        self.encode_fields(&mut bytes);
        sealed(bytes)
    }

    fn encode_fields(&self, bytes: &mut Vec<u8>) {
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(4096_u32.to_le_bytes());
        bytes.extend(self.seed.store.0);
        bytes.extend(self.seed.segment.to_le_bytes());
        bytes.extend(self.seed.generation.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.previous.to_le_bytes());
        bytes.extend(self.slots.to_le_bytes());
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields(bytes);
        if fields.take::<8>()? != SEGMENT_MAGIC {
            return Err(FormatError::Magic("segment header"));
        }
        let version = Fields(fields.0).u32()?;
        let crc_at = if version == 1 { V1_CRC_AT } else { SEGMENT_CRC_AT };
        check_plain_crc(bytes, crc_at, "segment header")?;
        Self::decode_fields(&mut fields)
    }

    /// The fields behind the magic. The checksum is right.
    fn decode_fields(fields: &mut Fields<'_>) -> Result<Self, FormatError> {
        let version = match fields.u32()? {
            1 => Version::V1,
            2 => Version::V2,
            other => return Err(FormatError::Version(other)),
        };
        if fields.u32()? != 4096 {
            return Err(FormatError::Field("segment with another block size"));
        }
        let store = StoreId(fields.take()?);
        let seed = Seed { store, segment: fields.u64()?, generation: fields.u64()? };
        let (len, previous) = (fields.u64()?, fields.u64()?);
        let slots = match version {
            Version::V1 => 0,
            Version::V2 => fields.u64()?,
        };
        Ok(Self { version, seed, len, previous, slots })
    }
}

/// The second block of a segment (from version 2 on): written once, when the segment takes no more batches. It says
/// where the history ends in it, so that the segment opened after it may be reused first; and it has all that the header
/// has, so that a rotten header loses nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closing {
    pub header: SegmentHeader,
    /// The last batch here that is part of the history; the header's `previous` when there is none. All up to it was
    /// durable when this was written.
    pub last: u64,
    /// Where that batch ends.
    pub end: u64,
}

impl Closing {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BLOCK);
        bytes.extend(CLOSING_MAGIC);
        self.header.encode_fields(&mut bytes);
        bytes.extend(self.last.to_le_bytes());
        bytes.extend(self.end.to_le_bytes());
        sealed(bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields(bytes);
        if fields.take::<8>()? != CLOSING_MAGIC {
            return Err(FormatError::Magic("closing block"));
        }
        check_plain_crc(bytes, SEGMENT_CRC_AT, "closing block")?;
        let header = SegmentHeader::decode_fields(&mut fields)?;
        let (last, end) = (fields.u64()?, fields.u64()?);
        if header.version == Version::V1 || last < header.previous || end > header.len {
            return Err(FormatError::Field("closing block that cannot be"));
        }
        Ok(Self { header, last, end })
    }
}

/// A block of its own with its checksum.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(SEGMENT_CRC_AT, 0);
    bytes.extend(plain_crc(&bytes).to_le_bytes());
    bytes.resize(BLOCK, 0);
    bytes
}

fn check_plain_crc(bytes: &[u8], at: usize, what: &'static str) -> Result<(), FormatError> {
    let (content, crc) = bytes.split_at_checked(at).ok_or(FormatError::CutOff)?;
    if Fields(crc).u32()? == plain_crc(content) { Ok(()) } else { Err(FormatError::Checksum(what)) }
}

/// A CRC-32C without a seed, for the structures that tell the seeds.
fn plain_crc(bytes: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(bytes);
    low_half(digest.finalize())
}

/// Where a batch stands in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Number of this batch; grows, with gaps, never used twice.
    pub sequence: u64,
    /// Number of the batch before it in the history.
    pub previous: u64,
    /// Everything up to this number was durable when this batch was written.
    pub last_synced: u64,
}

/// What a record is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A key gets a value.
    Value {
        /// Bytes of the value.
        len: u32,
        /// As the client gave it.
        checksum: Checksum,
        /// Where the value begins, in blocks from the start of the batch; 0: right behind this record.
        block: u32,
    },
    /// A key is deleted.
    Tombstone,
    /// All keys from the record's key to another one (excluded, right behind this record) are deleted.
    RangeTombstone {
        /// Bytes of the other key.
        len: u32,
        /// Only what was written before this batch; 0: before the record's own one.
        until: u64,
    },
    /// The batch ends here (version 2: its records do, the values behind blocks follow), and counts.
    Commit {
        /// Bytes of the batch; in version 2 with all padding.
        len: u64,
        /// [`batch_crc`] of the records before.
        crc: u32,
    },
}

/// The fixed part of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub kind: Kind,
    pub key_len: u16,
    /// Position in the batch; in the commit record the number of records before it.
    pub ordinal: u32,
    pub chain: Chain,
}

const NO_CHECKSUM: u8 = 1;
const SHA1: u8 = 2;
const CRC32C: u8 = 3;
const BLAKE3: u8 = 4;

impl RecordHeader {
    /// Appends header, key, table and tree to `out`; returns the header's CRC.
    pub(crate) fn encode(&self, crc: BatchCrc, key: &[u8], tables: &[&[u8]], out: &mut Vec<u8>) -> u32 {
        let start = out.len();
        let mut body = [0; 32];
        let (kind, tag, value_len, block) = match &self.kind {
            Kind::Value { len, checksum, block } => {
                let tag = match checksum {
                    Checksum::None => NO_CHECKSUM,
                    Checksum::Sha1(digest) => {
                        body[..20].copy_from_slice(digest);
                        SHA1
                    }
                    Checksum::Crc32c(crc) => {
                        body[..4].copy_from_slice(&crc.to_le_bytes());
                        CRC32C
                    }
                    Checksum::Blake3(root) => {
                        body = *root;
                        BLAKE3
                    }
                };
                (1, tag, *len, *block)
            }
            Kind::Tombstone => (2, 0, 0, 0),
            Kind::RangeTombstone { len, until } => {
                body[..8].copy_from_slice(&until.to_le_bytes());
                (4, 0, *len, 0)
            }
            Kind::Commit { len, crc } => {
                body[..8].copy_from_slice(&len.to_le_bytes());
                body[8..12].copy_from_slice(&crc.to_le_bytes());
                (3, 0, 0, 0)
            }
        };
        out.extend(RECORD_MAGIC);
        out.extend([kind, tag]);
        out.extend(self.key_len.to_le_bytes());
        out.extend(value_len.to_le_bytes());
        out.extend(self.ordinal.to_le_bytes());
        out.extend(self.chain.sequence.to_le_bytes());
        out.extend(self.chain.previous.to_le_bytes());
        out.extend(self.chain.last_synced.to_le_bytes());
        out.extend(body);
        out.extend(block.to_le_bytes());
        let fixed = out.len();
        // The CRC stands in front of what it covers last.
        out.extend([0; 4]);
        out.extend_from_slice(key);
        tables.iter().for_each(|table| out.extend_from_slice(table));
        let (covered, rest) = out.split_at(fixed);
        let crc = crc.finish(HEADER_BLOCK, &[&covered[start..], &rest[4..]]);
        out[fixed..fixed + 4].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// Reads the fixed part. Nothing of it may be believed before [`RecordHeader::verify`].
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Fields(bytes);
        if fields.take::<4>()? != RECORD_MAGIC {
            return Err(FormatError::Magic("record"));
        }
        let [kind, tag] = fields.take::<2>()?;
        let key_len = u16::from_le_bytes(fields.take()?);
        let value_len = fields.u32()?;
        let ordinal = fields.u32()?;
        let chain = Chain { sequence: fields.u64()?, previous: fields.u64()?, last_synced: fields.u64()? };
        let body: [u8; 32] = fields.take()?;
        let block = fields.u32()?;
        let kind = match kind {
            1 => Kind::Value { len: value_len, checksum: decode_checksum(tag, body)?, block },
            2 => Kind::Tombstone,
            3 => {
                let mut fields = Fields(&body);
                Kind::Commit { len: fields.u64()?, crc: fields.u32()? }
            }
            4 => Kind::RangeTombstone { len: value_len, until: Fields(&body).u64()? },
            _ => return Err(FormatError::Field("unknown kind of record")),
        };
        if usize::from(key_len) > KEY_MAX || value_len > VALUE_MAX {
            return Err(FormatError::Field("key or value too long"));
        }
        Ok(Self { kind, key_len, ordinal, chain })
    }

    /// Bytes of the table of block checksums.
    pub(crate) fn table_len(&self) -> usize {
        // A table of 32 bits per entry: at most 32 KiB.
        usize::try_from(blocks(self.value_len())).unwrap_or(0) * 4
    }

    /// Bytes of the leaves' chaining values of a BLAKE3 tree.
    pub(crate) fn tree_len(&self, version: Version) -> usize {
        match (version, &self.kind) {
            (Version::V2, Kind::Value { len, checksum, .. }) => tree_len(*len, checksum),
            _ => 0,
        }
    }

    /// Bytes of the value (of the other key of a range).
    pub(crate) fn value_len(&self) -> u32 {
        match self.kind {
            Kind::Value { len, .. } | Kind::RangeTombstone { len, .. } => len,
            Kind::Tombstone | Kind::Commit { .. } => 0,
        }
    }

    /// Checks the CRC over fixed part, key and tables (`bytes`, of exactly that length) and returns it.
    pub(crate) fn verify(&self, seed: &Seed, bytes: &[u8]) -> Result<u32, FormatError> {
        let (fixed, rest) = bytes.split_at_checked(RECORD_HEADER).ok_or(FormatError::CutOff)?;
        let (covered, stored) = fixed.split_at_checked(RECORD_CRC_AT).ok_or(FormatError::CutOff)?;
        let stored = Fields(stored).u32()?;
        let crc = seed.of_batch(self.chain.sequence).finish(HEADER_BLOCK, &[covered, rest]);
        if crc == stored { Ok(crc) } else { Err(FormatError::Checksum("record header")) }
    }
}

/// Bytes of the BLAKE3 tree that is kept beside a value.
pub(crate) fn tree_len(value_len: u32, checksum: &Checksum) -> usize {
    match checksum {
        Checksum::Blake3(_) => LeafTable::encoded_len(value_len),
        _ => 0,
    }
}

fn decode_checksum(tag: u8, body: [u8; 32]) -> Result<Checksum, FormatError> {
    let mut fields = Fields(&body);
    Ok(match tag {
        NO_CHECKSUM => Checksum::None,
        SHA1 => Checksum::Sha1(fields.take()?),
        CRC32C => Checksum::Crc32c(fields.u32()?),
        BLAKE3 => Checksum::Blake3(body),
        _ => return Err(FormatError::Field("unknown checksum algorithm")),
    })
}

/// Fields off the front of a slice.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(FormatError::CutOff)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.take()?))
    }
}
