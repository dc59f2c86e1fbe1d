//! Memory that starts at a block boundary, as O_DIRECT wants it.
//!
//! It is had without `unsafe`: a vector one block longer than needed has an aligned part, and a vector that never grows
//! never moves. It must never be taken for new: who gets it from a pool finds the bytes of its last use.

use crate::env::disk::BLOCK;

/// Memory that starts at a block boundary.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// What `len` bytes take in all, in bytes.
    pub(crate) const fn cost(len: usize) -> usize {
        len + BLOCK
    }

    /// `len` zeros. Pages that are never touched take no memory.
    pub(crate) fn new(len: usize) -> Self {
        let memory = vec![0; Self::cost(len)];
        // Outside of constant evaluation it always tells; if it did not, the memory would only be slower to write from.
        let start = Some(memory.as_ptr().align_offset(BLOCK)).filter(|start| *start <= BLOCK).unwrap_or(0);
        Self { memory, start, len }
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// How many of the first bytes of `bytes` may be written with O_DIRECT from where they are.
pub(crate) fn direct_len(bytes: &[u8]) -> usize {
    if bytes.as_ptr().addr().is_multiple_of(BLOCK) { bytes.len() - bytes.len() % BLOCK } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_at_a_block_and_is_as_long_as_asked() {
        for len in [0, 1, BLOCK, BLOCK + 1, 3 << 20] {
            let mut memory = Aligned::new(len);
            assert_eq!((memory.len(), memory.bytes().len(), memory.bytes_mut().len()), (len, len, len));
            assert_eq!(direct_len(memory.bytes()), len / BLOCK * BLOCK);
            assert!(len < 2 || direct_len(&memory.bytes()[1..]) == 0);
        }
    }
}
