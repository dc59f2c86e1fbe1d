//! What of a write can go to the device from where it lies in memory, and what has to be copied into aligned memory first.

use std::io::IoSlice;
use std::ops::Range;

use bytes::Bytes;

use crate::aligned::direct_len;
use crate::env::disk::BLOCK;

/// Shorter pieces are copied: a piece of its own in a system call costs about as much, in bytes.
const MIN_DIRECT: usize = 4 * BLOCK;

/// Most pieces of one call (IOV_MAX on Linux).
const PIECES_PER_CALL: usize = 1024;

/// What comes next to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Whole blocks that begin at a block boundary, in memory and in the file.
    Direct(&'a [u8]),
    /// Anything.
    Copied(&'a [u8]),
}

/// Takes `parts`, which begin at a block boundary of the file, apart. Only the last piece before a direct one, or before the
/// end, ends at a block boundary for sure.
fn pieces(parts: &[Bytes]) -> impl Iterator<Item = Piece<'_>> {
    let mut parts = parts.iter();
    let (mut part, mut skew): (&[u8], usize) = (&[], 0);
    std::iter::from_fn(move || {
        while part.is_empty() {
            part = parts.next()?;
        }
        let direct = if skew == 0 { direct_len(part) } else { 0 };
        let (piece, rest) = part.split_at(if direct < MIN_DIRECT { part.len() } else { direct });
        part = rest;
        skew = (skew + piece.len()) % BLOCK;
        Some(if direct < MIN_DIRECT { Piece::Copied(piece) } else { Piece::Direct(piece) })
    })
}

/// How many bytes of `parts` have to be copied.
pub(super) fn copied_len(parts: &[Bytes]) -> usize {
    let copied = |piece| if let Piece::Copied(bytes) = piece { bytes.len() } else { 0 };
    pieces(parts).map(copied).sum()
}

/// A write, call by call.
pub(super) struct Calls<'a, P> {
    pieces: P,
    /// Of a piece that did not fit into the last call.
    left: &'a [u8],
}

/// Whole blocks of one call.
enum Run<'a> {
    Direct(&'a [u8]),
    /// Of the memory for copies.
    Copied(Range<usize>),
}

/// The calls that write `parts`, which are whole blocks together.
pub(super) fn calls(parts: &[Bytes]) -> Calls<'_, impl Iterator<Item = Piece<'_>>> {
    Calls { pieces: pieces(parts), left: &[] }
}

impl<'a, P: Iterator<Item = Piece<'a>>> Calls<'a, P> {
    /// What the next call writes: whole blocks; nothing at the end. Copies go to `memory`, which is whole blocks, too.
    pub(super) fn next<'m>(&mut self, memory: &'m mut [u8]) -> Vec<IoSlice<'m>>
    where
        'a: 'm,
    {
        let (mut runs, mut filled) = (Vec::new(), 0);
        // Within a block it goes on: what comes next is copied, too, and no piece more.
        while filled < memory.len() && (runs.len() < PIECES_PER_CALL || !filled.is_multiple_of(BLOCK)) {
            let copied = if self.left.is_empty() {
                match self.pieces.next() {
                    None => break,
                    Some(Piece::Direct(bytes)) => {
                        runs.push(Run::Direct(bytes));
                        continue;
                    }
                    Some(Piece::Copied(bytes)) => bytes,
                }
            } else {
                self.left
            };
            let (now, later) = copied.split_at(copied.len().min(memory.len() - filled));
            memory[filled..filled + now.len()].copy_from_slice(now);
            self.left = later;
            match runs.last_mut() {
                Some(Run::Copied(range)) => range.end += now.len(),
                _ => runs.push(Run::Copied(filled..filled + now.len())),
            }
            filled += now.len();
        }
        let memory = &*memory;
        let slice = |run| match run {
            Run::Direct(bytes) => IoSlice::new(bytes),
            Run::Copied(range) => IoSlice::new(&memory[range]),
        };
        runs.into_iter().map(slice).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::aligned::Aligned;

    /// `len` bytes that begin `skew` bytes after a block boundary.
    fn part(skew: usize, len: usize, seed: u8) -> Bytes {
        struct At(Aligned, usize);
        impl AsRef<[u8]> for At {
            fn as_ref(&self) -> &[u8] {
                &self.0.bytes()[self.1..]
            }
        }
        let mut memory = Aligned::new(skew + len);
        memory.bytes_mut().iter_mut().zip(seed..=255).for_each(|(byte, value)| *byte = value);
        memory.bytes_mut().iter_mut().skip(256).for_each(|byte| *byte = seed);
        Bytes::from_owner(At(memory, skew))
    }

    fn written(parts: &[Bytes], room: usize) -> Vec<u8> {
        let mut memory = Aligned::new(room);
        let (mut calls, mut all) = (calls(parts), Vec::new());
        loop {
            let slices = calls.next(memory.bytes_mut());
            if slices.is_empty() {
                return all;
            }
            assert!(slices.len() <= PIECES_PER_CALL);
            for slice in slices {
                assert_eq!(slice.as_ptr().addr() % BLOCK, 0, "O_DIRECT would refuse this");
                assert_eq!(slice.len() % BLOCK, 0);
                all.extend_from_slice(&slice);
            }
        }
    }

    #[test]
    fn an_aligned_value_between_small_parts_is_not_copied() {
        let parts = [
            part(7, 100, 1),
            part(0, BLOCK - 100, 2),
            part(0, 16 * BLOCK, 3),
            part(0, 5, 4),
            part(1, BLOCK - 5, 5),
        ];
        assert_eq!(copied_len(&parts), 2 * BLOCK);
        assert_eq!(written(&parts, 2 * BLOCK), parts.concat());
        assert_eq!(written(&parts, BLOCK), parts.concat());
    }

    #[test]
    fn what_does_not_begin_at_a_block_in_memory_or_file_is_copied() {
        let aside = [part(1, 16 * BLOCK, 1)];
        assert_eq!(copied_len(&aside), 16 * BLOCK);
        let behind = [part(0, 1, 1), part(0, 16 * BLOCK, 2), part(0, BLOCK - 1, 3)];
        assert_eq!(copied_len(&behind), 17 * BLOCK);
        let tail = [part(0, 16 * BLOCK + 9, 1), part(3, BLOCK - 9, 2)];
        assert_eq!(copied_len(&tail), BLOCK);
        for parts in [&aside[..], &behind[..], &tail[..]] {
            assert_eq!(written(parts, 3 * BLOCK), parts.concat());
        }
    }

    #[test]
    fn no_call_has_more_pieces_than_the_kernel_takes() {
        let one = [part(1, 9, 1), part(2, BLOCK - 9, 2), part(0, MIN_DIRECT, 3)];
        let parts: Vec<Bytes> = (0..PIECES_PER_CALL + 2).flat_map(|_| one.clone()).collect();
        assert_eq!(written(&parts, PIECES_PER_CALL * BLOCK), parts.concat());
    }

    proptest! {
        #[test]
        fn every_byte_is_written_once_in_order(
            shapes in prop::collection::vec((0_usize..3, 0..6 * BLOCK, any::<u8>(), any::<bool>()), 1..40),
            room in 1_usize..6,
        ) {
            let mut parts: Vec<Bytes> = shapes
                .into_iter()
                .map(|(skew, len, seed, whole)| part(skew, if whole { len.next_multiple_of(BLOCK) } else { len }, seed))
                .collect();
            let len: usize = parts.iter().map(Bytes::len).sum();
            parts.push(part(0, len.next_multiple_of(BLOCK) - len, 0));
            prop_assert_eq!(written(&parts, room * BLOCK), parts.concat());
        }
    }
}
