//! Where coded fragments are laid, so that coding is not slowed by the caches.
//!
//! Data fragments are slices of one object: they begin a power of two apart, so the same place of each falls into the same set of
//! every cache, and a set holds eight lines. Nine streams of 5+4 then push each other out before they are used. Outputs that
//! begin half a page aside, and some lines apart from each other, take other sets: encoding 5+4, 8+4 and 16+4 at 1 MiB
//! became 1.3 to 1.8 times as fast (docs/performance.md). They keep the place of the data within a cache line, since the
//! kernels work on whole lines of all fragments at once (`kernel/alignment.rs`).

use std::ops::Range;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Bytes of a page: the distance at which the first-level cache repeats.
const PAGE: usize = 4096;

/// Between one output and the next: a page and five lines.
const GAP: usize = PAGE + 5 * LINE;

/// Shorter fragments are not worth the space.
const WORTH_IT: usize = 16 * 1024;

/// Places for `count` buffers of `len` bytes each in one allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Apart {
    start: usize,
    stride: usize,
    len: usize,
    count: usize,
}

impl Apart {
    /// Bytes that the allocation needs.
    pub fn memory(count: usize, len: usize) -> usize {
        count * stride(len) + PAGE
    }

    /// The places in an allocation of [`Apart::memory`] bytes, for outputs that are computed from `like` and its
    /// neighbours.
    pub fn new(allocation: &[u8], count: usize, len: usize, like: &[u8]) -> Self {
        let aside = if len < WORTH_IT { 0 } else { PAGE / 2 };
        let start = (like.as_ptr().addr() + aside).wrapping_sub(allocation.as_ptr().addr()) % PAGE;
        Self { start, stride: stride(len), len, count }
    }

    /// Where one of them is.
    pub fn range(&self, index: usize) -> Range<usize> {
        let from = self.start + index * self.stride;
        from..from + self.len
    }

    /// All of them.
    pub fn split<'a>(&self, allocation: &'a mut [u8]) -> Vec<&'a mut [u8]> {
        let mut rest = allocation.get_mut(self.start..).unwrap_or_default();
        let mut buffers = Vec::with_capacity(self.count);
        for _ in 0..self.count {
            let (buffer, after) = std::mem::take(&mut rest).split_at_mut(self.stride);
            buffers.push(&mut buffer[..self.len]);
            rest = after;
        }
        buffers
    }
}

fn stride(len: usize) -> usize {
    let gap = if len < WORTH_IT { 0 } else { GAP };
    (len + gap).next_multiple_of(LINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_whole_apart_and_where_they_are_said_to_be() {
        let data = [0; 64];
        for (count, len) in [(0, 5), (1, 0), (3, 1), (4, 16 * 1024 - 1), (4, 16 * 1024), (2, 100_001)] {
            let mut allocation = vec![0; Apart::memory(count, len)];
            let apart = Apart::new(&allocation, count, len, &data[3..]);
            for (n, buffer) in apart.split(&mut allocation).into_iter().enumerate() {
                assert_eq!(buffer.len(), len);
                buffer.fill(u8::try_from(n + 1).unwrap());
            }
            for n in 0..count {
                let range = apart.range(n);
                assert!(allocation[range.clone()].iter().all(|byte| usize::from(*byte) == n + 1));
                let there = allocation.as_ptr().addr() + range.start;
                assert_eq!(there % LINE, data[3..].as_ptr().addr() % LINE);
            }
            let used = allocation.iter().filter(|byte| **byte != 0).count();
            assert_eq!(used, count * len);
        }
    }

    #[test]
    fn large_outputs_begin_half_a_page_aside_and_apart_from_each_other() {
        let data = vec![0; 1 << 20];
        let allocation = vec![0; Apart::memory(4, 1 << 20)];
        let apart = Apart::new(&allocation, 4, 1 << 20, &data);
        let place = |n| (allocation.as_ptr().addr() + apart.range(n).start) % PAGE;
        let places: Vec<usize> = (0..4).map(place).collect();
        let first = (data.as_ptr().addr() + PAGE / 2) % PAGE;
        assert_eq!(places, [0, 1, 2, 3].map(|n| (first + n * 5 * LINE) % PAGE));
    }
}
