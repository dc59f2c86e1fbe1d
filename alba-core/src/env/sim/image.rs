//! The content of a simulated file: pages that were written, zeros everywhere else, and which ranges have space behind
//! them. Copies share pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

const PAGE: usize = 4096;
/// The same as a file offset.
const PAGE_BYTES: u64 = 4096;

#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
    allocated: Ranges,
}

/// A set of bytes: where each range begins, and where it ends. Ranges neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ranges {
    ends: BTreeMap<u64, u64>,
    total: u64,
}

impl Ranges {
    /// Bytes of `start..end` that are in it.
    fn within(&self, start: u64, end: u64) -> u64 {
        // The range that begins before may reach into it.
        let from = self.ends.range(..=start).next_back().map_or(start, |(begin, _)| *begin);
        let ranges = self.ends.range(from..end.max(from));
        ranges.map(|(begin, until)| (*until).min(end).saturating_sub((*begin).max(start))).sum()
    }

    fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut low, mut high) = (start, end);
        while let Some((begin, until)) =
            self.ends.range(..=high).next_back().map(|(begin, until)| (*begin, *until))
            && until >= low
        {
            self.ends.remove(&begin);
            self.total -= until - begin;
            (low, high) = (low.min(begin), high.max(until));
        }
        self.ends.insert(low, high);
        self.total += high - low;
    }

    fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        while let Some((begin, until)) =
            self.ends.range(..end).next_back().map(|(begin, until)| (*begin, *until))
            && until > start
        {
            self.ends.remove(&begin);
            self.total -= until - begin;
            for (begin, until) in [(begin, start), (end, until)] {
                if begin < until {
                    self.ends.insert(begin, until);
                    self.total += until - begin;
                }
            }
            if begin < start {
                break;
            }
        }
    }
}

impl Image {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes with space behind them: what it takes of the disk.
    pub(super) fn allocated(&self) -> u64 {
        self.allocated.total
    }

    /// Bytes of `start..end` without space behind them.
    pub(super) fn missing(&self, start: u64, end: u64) -> u64 {
        end.saturating_sub(start) - self.allocated.within(start, end)
    }

    /// Puts space behind `start..end`, whether the file is that long or not.
    pub(super) fn allocate(&mut self, start: u64, end: u64) {
        self.allocated.add(start, end);
    }

    /// Grows it with zeros; never shrinks it.
    pub(super) fn set_len(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Grows it with zeros to the length of `other`, with space behind them where that has it.
    pub(super) fn grow_as(&mut self, other: &Self) {
        if other.len > self.len {
            for (start, end) in &other.allocated.ends {
                self.allocated.add((*start).max(self.len), (*end).min(other.len));
            }
            self.len = other.len;
        }
    }

    /// Zeros without space behind them in `start..end`. The length stays.
    pub(super) fn punch(&mut self, start: u64, end: u64) {
        self.allocated.remove(start, end);
        let mut at = start;
        let end = end.min(self.len);
        while at < end {
            let page = at / PAGE_BYTES;
            let next = end.min((page + 1) * PAGE_BYTES);
            if next - at == PAGE_BYTES {
                self.pages.remove(&page);
            } else if let Some(found) = self.pages.get_mut(&page) {
                let within = |offset: u64| usize::try_from(offset - page * PAGE_BYTES).unwrap_or(PAGE);
                Arc::make_mut(found)[within(at)..within(next)].fill(0);
            }
            at = next;
        }
    }

    /// Cuts it off. What was there is zero when it grows again.
    pub(super) fn truncate(&mut self, len: u64) {
        let keep = len.min(self.len);
        self.punch(keep, u64::MAX);
        self.len = keep;
    }

    pub(super) fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        self.allocated.add(offset, offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(0)));
        while !bytes.is_empty() {
            let within = usize::try_from(offset % PAGE_BYTES).unwrap_or(0);
            let (piece, rest) = bytes.split_at(bytes.len().min(PAGE - within));
            let page = self.pages.entry(offset / PAGE_BYTES).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + piece.len()].copy_from_slice(piece);
            offset += u64::try_from(piece.len()).unwrap_or(0);
            bytes = rest;
        }
        self.set_len(offset);
    }

    /// None when the range ends after the file.
    pub(super) fn read(&self, mut offset: u64, len: usize) -> Option<Bytes> {
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        if end > self.len {
            return None;
        }
        let mut bytes = vec![0; len];
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            let within = usize::try_from(offset % PAGE_BYTES).ok()?;
            let size = rest.len().min(PAGE - within);
            let (piece, tail) = rest.split_at_mut(size);
            if let Some(page) = self.pages.get(&(offset / PAGE_BYTES)) {
                piece.copy_from_slice(&page[within..within + size]);
            }
            offset += u64::try_from(size).ok()?;
            rest = tail;
        }
        Some(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn writes_across_pages_read_back_and_gaps_are_zero() {
        let mut image = Image::default();
        let data: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0] | 1).collect();
        image.write(3_000, &data);
        assert_eq!(image.len(), 13_000);
        assert_eq!(image.read(3_000, 10_000).unwrap(), data);
        assert_eq!(image.read(0, 3_000).unwrap(), vec![0; 3_000]);
        assert!(image.read(12_999, 2).is_none());
        let copy = image.clone();
        image.write(3_000, b"changed");
        assert_eq!(copy.read(3_000, 10_000).unwrap(), data);
        assert_eq!((image.allocated(), image.missing(0, 20_000)), (10_000, 10_000));
    }

    #[test]
    fn space_is_counted_as_a_plain_set_would() {
        const LEN: usize = 3 * PAGE;
        let mut rng = StdRng::seed_from_u64(3);
        let mut image = Image::default();
        let (mut bytes, mut space) = (vec![0; LEN], vec![false; LEN]);
        image.set_len(u64::try_from(LEN).unwrap());
        for round in 0..2_000_u32 {
            let end = rng.random_range(0..=LEN);
            let start = rng.random_range(0..=end);
            let (from, to) = (u64::try_from(start).unwrap(), u64::try_from(end).unwrap());
            let missing = space[start..end].iter().filter(|there| !**there).count();
            assert_eq!(image.missing(from, to), u64::try_from(missing).unwrap());
            match rng.random_range(0..3) {
                0 => {
                    let data = vec![round.to_le_bytes()[0] | 1; end - start];
                    image.write(from, &data);
                    bytes[start..end].copy_from_slice(&data);
                    space[start..end].fill(true);
                }
                1 => {
                    image.allocate(from, to);
                    space[start..end].fill(true);
                }
                _ => {
                    image.punch(from, to);
                    bytes[start..end].fill(0);
                    space[start..end].fill(false);
                }
            }
            assert!(image.read(0, LEN).unwrap() == bytes, "round {round}");
            let taken = u64::try_from(space.iter().filter(|there| **there).count()).unwrap();
            assert_eq!(image.allocated(), taken, "round {round}");
            let ranges: Vec<_> = image.allocated.ends.iter().collect();
            assert!(ranges.windows(2).all(|two| two[0].1 < two[1].0), "{ranges:?}");
        }
        image.truncate(5_000);
        image.set_len(u64::try_from(LEN).unwrap());
        bytes[5_000..].fill(0);
        assert_eq!(image.read(0, LEN).unwrap(), bytes);
        assert_eq!(image.missing(5_000, 9_000), 4_000);
    }
}
