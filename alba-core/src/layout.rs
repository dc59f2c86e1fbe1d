//! Object → chunk → fragment arithmetic, and which parts of which fragments a slice touches.
//!
//! An object is cut into chunks, a chunk into k data fragments (wire-protocol §6.1). Writers compute the cut with
//! [`ObjectLayout`]; readers never do: they follow the chunk sizes of the manifest through a [`ChunkMap`], because
//! the preset's fragment size may have changed since.

use thiserror::Error;

use crate::ids::{ChunkIndex, FragmentIndex};
use crate::policy::CodeShape;

mod slices;

pub use slices::{CheckedSlice, CheckedSlices, SliceError, SliceRequest, check_slices};

/// Fragments of a coded chunk (k > 1) are multiples of this many bytes; no preset may ask for smaller ones.
pub const FRAGMENT_MULTIPLE: u32 = 16;

/// Largest chunk in bytes, padding included: the wire carries chunk sizes as signed 32-bit numbers.
pub const MAX_CHUNK_SIZE: u32 = i32::MAX.unsigned_abs();

/// Why an object cannot be cut, or a place in it not be found.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// Below [`FRAGMENT_MULTIPLE`].
    #[error("fragment size {0} is below the minimum of 16 bytes")]
    FragmentTooSmall(u32),
    /// Chunks would be larger than [`MAX_CHUNK_SIZE`].
    #[error("chunks of {k} fragments of {fragment_size} bytes exceed the limit of 2147483647 bytes")]
    ChunkTooLarge {
        /// The fragment size asked for, in bytes.
        fragment_size: u32,
        /// Data fragments per chunk.
        k: usize,
    },
    /// More chunks than positions.
    #[error("an object of {size} bytes has too many chunks of {chunk_size} bytes")]
    TooManyChunks {
        /// Bytes of the object.
        size: u64,
        /// Bytes per chunk.
        chunk_size: u32,
    },
    /// A recorded chunk size that k fragments cannot add up to.
    #[error("chunk size {size} is not a multiple of k = {k}")]
    NotDivisible {
        /// The recorded size.
        size: u32,
        /// Data fragments per chunk.
        k: usize,
    },
    /// The chunks end before the slice does.
    #[error("bytes {offset}..{offset}+{len} are outside the chunks, which end at {end}")]
    OutsideChunks {
        /// Where the slice begins.
        offset: u64,
        /// Its length.
        len: u64,
        /// Where the chunks end.
        end: u64,
    },
}

/// One chunk of an object about to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkExtent {
    /// Its position.
    pub index: ChunkIndex,
    /// Where it begins in the object, in bytes.
    pub offset: u64,
    /// Bytes of the object in it.
    pub len: u32,
    /// The same with the zero padding at its end: what the manifest records.
    pub size: u32,
}

impl ChunkExtent {
    /// Zero bytes at its end.
    pub fn padding(&self) -> u32 {
        self.size - self.len
    }
}

/// How an object is cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLayout {
    size: u64,
    shape: CodeShape,
    chunk_size: u32,
    chunk_count: u32,
}

impl ObjectLayout {
    /// The cut of an object of `size` bytes under a preset's `fragment_size` (wire-protocol §6.1).
    pub fn new(size: u64, fragment_size: u32, shape: CodeShape) -> Result<Self, LayoutError> {
        if fragment_size < FRAGMENT_MULTIPLE {
            return Err(LayoutError::FragmentTooSmall(fragment_size));
        }
        let chunk = if shape.is_replication() {
            size.min(u64::from(fragment_size))
        } else {
            let k = u64::from(shape.as_u8().0);
            let largest = u64::from(fragment_size - fragment_size % FRAGMENT_MULTIPLE) * k;
            // Below `largest` the multiple above `size` is at most `largest` and cannot overflow.
            if largest < size { largest } else { size.next_multiple_of(u64::from(FRAGMENT_MULTIPLE) * k) }
        };
        let chunk_size = u32::try_from(chunk)
            .ok()
            .filter(|size| *size <= MAX_CHUNK_SIZE)
            .ok_or(LayoutError::ChunkTooLarge { fragment_size, k: shape.k() })?;
        let chunk_count = match chunk_size {
            // An empty object is one empty chunk.
            0 => 1,
            _ => u32::try_from(size.div_ceil(chunk))
                .map_err(|_| LayoutError::TooManyChunks { size, chunk_size })?,
        };
        Ok(Self { size, shape, chunk_size, chunk_count })
    }

    /// Bytes of the object.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// k and m.
    pub fn shape(&self) -> CodeShape {
        self.shape
    }

    /// How many chunks there are: at least one.
    pub fn chunk_count(&self) -> u32 {
        self.chunk_count
    }

    /// Bytes of every chunk but the last, padding included.
    pub fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    /// One chunk; none past the last.
    pub fn chunk(&self, index: ChunkIndex) -> Option<ChunkExtent> {
        if index.0 >= self.chunk_count {
            return None;
        }
        let offset = u64::from(index.0) * u64::from(self.chunk_size);
        let len = (self.size - offset).min(u64::from(self.chunk_size));
        // At most chunk_size, which fits.
        let len = u32::try_from(len).unwrap_or(self.chunk_size);
        Some(ChunkExtent { index, offset, len, size: padded(len, self.shape) })
    }

    /// The chunks in order.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkExtent> + use<> {
        let layout = *self;
        (0..self.chunk_count).filter_map(move |index| layout.chunk(ChunkIndex(index)))
    }
}

/// `len` with padding. For a `len` up to a chunk size, itself such a multiple, the result is at most that.
fn padded(len: u32, shape: CodeShape) -> u32 {
    if shape.is_replication() {
        len
    } else {
        len.next_multiple_of(FRAGMENT_MULTIPLE * u32::from(shape.as_u8().0))
    }
}

/// Plain bytes of each fragment of a chunk of `chunk_size` bytes (padding included).
pub fn fragment_len(chunk_size: u32, shape: CodeShape) -> Result<u32, LayoutError> {
    let k = u32::from(shape.as_u8().0);
    if chunk_size.is_multiple_of(k) {
        Ok(chunk_size / k)
    } else {
        Err(LayoutError::NotDivisible { size: chunk_size, k: shape.k() })
    }
}

/// A part of one data fragment's plain bytes, and where it goes in the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Which chunk.
    pub chunk: ChunkIndex,
    /// Which data fragment (`0..k`).
    pub fragment: FragmentIndex,
    /// Where the part begins in the plain fragment, in bytes.
    pub offset: u32,
    /// Its length in bytes; never 0.
    pub len: u32,
    /// Where it goes in the answer, in bytes.
    pub target: u64,
}

/// Where the chunks of a stored object are, from the sizes in its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkMap {
    /// Where chunk i ends in the object; ascending, equal for an empty chunk.
    ends: Vec<u64>,
    /// Plain bytes of a fragment of chunk i.
    fragment_lens: Vec<u32>,
}

impl ChunkMap {
    /// From the recorded chunk sizes, padding included.
    pub fn new(sizes: impl IntoIterator<Item = u32>, shape: CodeShape) -> Result<Self, LayoutError> {
        let mut map = Self { ends: Vec::new(), fragment_lens: Vec::new() };
        let mut end = 0_u64;
        for size in sizes {
            map.fragment_lens.push(fragment_len(size, shape)?);
            // 2^32 chunks below 2^32 bytes each stay below 2^64.
            end = end.saturating_add(u64::from(size));
            map.ends.push(end);
        }
        Ok(map)
    }

    /// Where the last chunk ends, padding included.
    pub fn end(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Where a chunk begins in the object, in bytes.
    pub fn chunk_offset(&self, chunk: ChunkIndex) -> Option<u64> {
        let index = chunk.index();
        if index >= self.ends.len() {
            return None;
        }
        Some(index.checked_sub(1).and_then(|before| self.ends.get(before).copied()).unwrap_or(0))
    }

    /// The parts of data fragments that hold `offset..offset + len` of the object, in order; the first goes to
    /// `target` of the answer. An empty slice has none, wherever it is.
    pub fn pieces(&self, offset: u64, len: u64, target: u64) -> Result<Pieces<'_>, LayoutError> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.end());
        if len > 0 && !inside {
            return Err(LayoutError::OutsideChunks { offset, len, end: self.end() });
        }
        let chunk = self.ends.partition_point(|end| *end <= offset);
        Ok(Pieces { map: self, chunk, offset, left: len, target })
    }

    /// The pieces of all slices of a request, in its order: the answer is their concatenation.
    pub fn plan(&self, slices: &CheckedSlices) -> Result<Vec<Piece>, LayoutError> {
        let mut plan = Vec::new();
        let mut target = 0;
        for slice in slices.iter() {
            plan.extend(self.pieces(slice.offset, u64::from(slice.len), target)?);
            target += u64::from(slice.len);
        }
        Ok(plan)
    }
}

/// See [`ChunkMap::pieces`].
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    map: &'a ChunkMap,
    chunk: usize,
    offset: u64,
    left: u64,
    target: u64,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.left == 0 {
            return None;
        }
        while *self.map.ends.get(self.chunk)? <= self.offset {
            self.chunk += 1;
        }
        let chunk = ChunkIndex(u32::try_from(self.chunk).ok()?);
        let in_chunk = self.offset - self.map.chunk_offset(chunk)?;
        // A chunk that holds a byte has fragments that do.
        let fragment_len = u64::from(*self.map.fragment_lens.get(self.chunk)?);
        let fragment = FragmentIndex(u32::try_from(in_chunk / fragment_len).ok()?);
        let offset = in_chunk % fragment_len;
        let len = self.left.min(fragment_len - offset);
        let piece = Piece {
            chunk,
            fragment,
            offset: u32::try_from(offset).ok()?,
            len: u32::try_from(len).ok()?,
            target: self.target,
        };
        self.offset += len;
        self.target += len;
        self.left -= len;
        Some(piece)
    }
}

#[cfg(test)]
mod tests;
