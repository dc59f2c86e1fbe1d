//! A log entry's payload: many encoded inputs with the leader's clock, so that they share one write of the log.
//!
//! `FORMAT ‖ replica u64 LE ‖ run u64 LE ‖ sequence u64 LE ‖ wall u64 LE ‖ count u32 LE ‖ (length u32 LE ‖ input)*`, an input
//! being a postcard value of [`crate::machine::Input`]. The format says which kinds of inputs may be in it: formats 1 and 2
//! are laid out alike, and kinds that came after the first release of format 1 are only in payloads of format 2. Another
//! first byte is another format: whoever does not know it stops instead of guessing.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use super::types::NodeId;
use crate::model::FIRST_FORMAT;

/// The oldest format of payloads this version can apply.
pub const OLDEST: u8 = FIRST_FORMAT;

/// The newest format of payloads this version can apply. A leader writes no newer one than all members of its group have
/// reported in their greetings; a new kind of input raises this number, once per release.
pub const FORMAT: u8 = 2;

/// Bytes in front of the inputs.
pub(super) const HEADER: usize = 1 + 4 * 8 + 4;

/// Names a batch for ever: who proposed it, in which run of its program, and which of that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BatchId {
    pub(super) replica: NodeId,
    /// Random per start: a number of an earlier run must not be answered by this one.
    pub(super) run: u64,
    pub(super) sequence: u64,
}

/// A decoded payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    /// Of the payload.
    pub(super) format: u8,
    pub(super) id: BatchId,
    /// The proposer's clock, in microseconds since the Unix epoch.
    pub(super) wall: u64,
    pub(super) inputs: Vec<Bytes>,
}

/// Why a payload cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum PayloadError {
    /// Written by a newer version.
    #[error(
        "a log entry of format {found}; the newest that is read here is {newest}: this server must be updated"
    )]
    Unknown {
        /// Its format.
        found: u8,
        /// The newest format that this replica reads.
        newest: u8,
    },
    /// Not what its format says.
    #[error("a log entry that does not decode")]
    Malformed,
}

/// Bytes that `input` takes in a payload.
pub(super) fn room_of(input: &[u8]) -> usize {
    4 + input.len()
}

impl Batch {
    /// The payload.
    pub(super) fn encode(&self) -> Bytes {
        let len = HEADER + self.inputs.iter().map(|input| room_of(input)).sum::<usize>();
        let mut bytes = BytesMut::with_capacity(len);
        bytes.put_u8(self.format);
        bytes.put_u64_le(self.id.replica);
        bytes.put_u64_le(self.id.run);
        bytes.put_u64_le(self.id.sequence);
        bytes.put_u64_le(self.wall);
        // A batch is bounded far below 4 GiB.
        bytes.put_u32_le(u32::try_from(self.inputs.len()).unwrap_or(u32::MAX));
        for input in &self.inputs {
            bytes.put_u32_le(u32::try_from(input.len()).unwrap_or(u32::MAX));
            bytes.put_slice(input);
        }
        bytes.freeze()
    }

    /// The reverse, for a replica that reads formats up to `newest`; the inputs share the payload's memory.
    pub(super) fn decode(payload: &Bytes, newest: u8) -> Result<Self, PayloadError> {
        let mut rest = payload.clone();
        let format = rest.try_get_u8().map_err(|_| PayloadError::Malformed)?;
        if !(OLDEST..=newest.min(FORMAT)).contains(&format) {
            return Err(PayloadError::Unknown { found: format, newest });
        }
        let mut number = || rest.try_get_u64_le().map_err(|_| PayloadError::Malformed);
        let id = BatchId { replica: number()?, run: number()?, sequence: number()? };
        let wall = number()?;
        let count = rest.try_get_u32_le().map_err(|_| PayloadError::Malformed)?;
        let mut inputs = Vec::new();
        for _ in 0..count {
            let len = rest.try_get_u32_le().map_err(|_| PayloadError::Malformed)?;
            let len = usize::try_from(len).map_err(|_| PayloadError::Malformed)?;
            if rest.len() < len {
                return Err(PayloadError::Malformed);
            }
            inputs.push(rest.split_to(len));
        }
        if rest.is_empty() { Ok(Self { format, id, wall, inputs }) } else { Err(PayloadError::Malformed) }
    }

    /// Only who proposed it; none of a payload that is not ours to read.
    pub(super) fn id_of(payload: &Bytes) -> Option<BatchId> {
        let mut rest = payload.as_ref();
        if !rest.try_get_u8().is_ok_and(|format| (OLDEST..=FORMAT).contains(&format)) {
            return None;
        }
        let mut number = || rest.try_get_u64_le().ok();
        Some(BatchId { replica: number()?, run: number()?, sequence: number()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch() -> Batch {
        Batch {
            format: FORMAT,
            id: BatchId { replica: 1, run: 2, sequence: 3 },
            wall: 4,
            inputs: vec![Bytes::from_static(b"ab"), Bytes::new()],
        }
    }

    #[test]
    fn payloads_of_both_formats_have_golden_bytes_and_are_read() {
        let rest = "0100000000000000 0200000000000000 0300000000000000 0400000000000000 02000000 02000000 6162 00000000";
        for (format, first) in [(1, "01"), (2, "02")] {
            let batch = Batch { format, ..batch() };
            assert_eq!(hex_of(&batch.encode()), format!("{first}{rest}").replace(' ', ""));
            assert_eq!(Batch::id_of(&batch.encode()), Some(batch.id));
            assert_eq!(Batch::decode(&batch.encode(), FORMAT), Ok(batch));
        }
        assert_eq!((OLDEST, FORMAT), (1, 2), "a line above for each");
    }

    fn hex_of(bytes: &[u8]) -> String {
        use std::fmt::Write as _;
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").unwrap();
            text
        })
    }

    #[test]
    fn another_format_is_told_from_damage() {
        for (found, newest) in [(0, FORMAT), (FORMAT, FORMAT - 1), (FORMAT + 1, FORMAT), (255, 255)] {
            let bytes = Batch { format: found, ..batch() }.encode();
            assert_eq!(Batch::decode(&bytes, newest), Err(PayloadError::Unknown { found, newest }));
        }
        let whole = batch().encode();
        for len in 0..whole.len() {
            assert_eq!(Batch::decode(&whole.slice(..len), FORMAT), Err(PayloadError::Malformed));
        }
    }

    proptest! {
        #[test]
        fn payloads_read_back(inputs in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..8)) {
            let batch = Batch { inputs: inputs.into_iter().map(Bytes::from).collect(), ..batch() };
            prop_assert_eq!(Batch::decode(&batch.encode(), FORMAT), Ok(batch));
        }

        #[test]
        fn garbage_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Batch::decode(&bytes.into(), FORMAT);
        }
    }
}
