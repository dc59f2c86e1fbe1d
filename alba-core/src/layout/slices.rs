//! The checks of a read of slices, in the order and with the corner cases of the original (wire-protocol §2.4).

use thiserror::Error;

/// A slice as a client asks for it: nothing is known about it yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceRequest {
    /// Where it begins in the object, in bytes.
    pub offset: i64,
    /// How many bytes.
    pub len: i32,
}

impl SliceRequest {
    fn start(&self) -> i128 {
        i128::from(self.offset)
    }

    fn end(&self) -> i128 {
        self.start() + i128::from(self.len)
    }

    fn overlaps(&self, other: &Self) -> bool {
        !(self.end() <= other.start() || other.end() <= self.start())
    }
}

/// A slice that is inside its object, or empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckedSlice {
    /// Where it begins in the object, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u32,
}

/// The slices of one object in the order asked, without the empty ones; together below 4 GiB.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckedSlices {
    slices: Vec<CheckedSlice>,
    total: u32,
}

impl CheckedSlices {
    /// In the order asked.
    pub fn iter(&self) -> impl Iterator<Item = CheckedSlice> + '_ {
        self.slices.iter().copied()
    }

    /// Bytes of the answer.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Nothing is to be read.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }
}

/// Why slices are refused. Wire codes: 10, 11, 12 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SliceError {
    /// A negative length.
    #[error("slice at {offset} has the negative length {len}")]
    BadLength {
        /// Where it begins.
        offset: i64,
        /// Its length.
        len: i32,
    },
    /// It overlaps the slice before it in offset order.
    #[error("slice at {offset} overlaps the one before it, at {previous}")]
    Overlap {
        /// Where it begins.
        offset: i64,
        /// Where the other one begins.
        previous: i64,
    },
    /// It leaves the object.
    #[error("slice at {offset} of {len} bytes is outside the object of {size} bytes")]
    OutsideObject {
        /// Where it begins.
        offset: i64,
        /// Its length.
        len: i32,
        /// Bytes of the object.
        size: u64,
    },
    /// More than an answer can carry.
    #[error("slices ask for {total} bytes together; fewer than 4294967296 are allowed")]
    TooMuch {
        /// Bytes asked for.
        total: u64,
    },
}

/// Checks the slices of one object of `size` bytes.
///
/// In offset order (signed; stable): a negative length, then an overlap with the predecessor (a zero-length slice
/// strictly inside another one is one). Nothing asked for succeeds even beyond the end. Only the last slice is
/// compared with the size. The original answers code 1 instead of [`SliceError::BadLength`] when the lengths add up to
/// less than 0; we don't. Where its checks let through what no object can have (a negative offset; a slice hidden from
/// its successor by an empty one at the same offset), we answer [`SliceError::OutsideObject`] last.
pub fn check_slices(requests: &[SliceRequest], size: u64) -> Result<CheckedSlices, SliceError> {
    let mut ordered = requests.to_vec();
    ordered.sort_by_key(|slice| slice.offset);
    let mut previous = SliceRequest { offset: -1, len: 0 };
    let mut total = 0_u64;
    for slice in &ordered {
        let SliceRequest { offset, len } = *slice;
        total += u64::try_from(len).map_err(|_| SliceError::BadLength { offset, len })?;
        if slice.overlaps(&previous) {
            return Err(SliceError::Overlap { offset, previous: previous.offset });
        }
        previous = *slice;
    }
    if total == 0 {
        return Ok(CheckedSlices::default());
    }
    let outside =
        |slice: &SliceRequest| SliceError::OutsideObject { offset: slice.offset, len: slice.len, size };
    if previous.end() > i128::from(size) {
        return Err(outside(&previous));
    }
    let total = u32::try_from(total).map_err(|_| SliceError::TooMuch { total })?;
    let slices = requests
        .iter()
        .filter(|slice| slice.len > 0)
        .map(|slice| {
            let inside = slice.end() <= i128::from(size);
            match (u64::try_from(slice.offset), u32::try_from(slice.len)) {
                (Ok(offset), Ok(len)) if inside => Ok(CheckedSlice { offset, len }),
                _ => Err(outside(slice)),
            }
        })
        .collect::<Result<_, _>>()?;
    Ok(CheckedSlices { slices, total })
}
