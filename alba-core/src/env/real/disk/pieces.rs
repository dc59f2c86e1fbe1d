//! How much one system call moves between a file and memory.
//!
//! A device does what it was given in about the order it got it: a read of a block waits until the megabyte before it is through. In
//! pieces of [`SHORT`] that is a tenth of the time. But each piece is an interrupt and a thread that wakes up, so it is done only while
//! somebody reads small things.
//!
//! It must never change what is read or written, only in how many calls.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::env::SMALL_REQUEST;

/// Bytes of one call beside small reads. Beside 500 MB/s of reads 4 KiB took (p99) 0.8 ms with pieces of 1 MiB, 0.22 of 256 KiB, 0.19 of
/// 128 KiB, and 0.1 alone.
const SHORT: usize = 128 << 10;

/// So long after a small read another one is to be expected, in milliseconds.
const EXPECTED: u64 = 1000;

/// Is a read of `len` bytes one that somebody waits for, and not part of something large?
pub(super) fn is_small(len: usize) -> bool {
    u64::try_from(len).is_ok_and(|len| len <= SMALL_REQUEST)
}

/// What was read from one disk lately.
pub(super) struct Pieces {
    began: Instant,
    /// Until when small reads are to be expected, in milliseconds since then.
    until: AtomicU64,
}

impl Pieces {
    /// Nothing was read yet.
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), until: AtomicU64::new(0) }
    }

    /// Takes note of a read of `len` bytes.
    pub(super) fn reads(&self, len: usize) {
        self.reads_at(len, self.now());
    }

    /// Most bytes of one call, now.
    pub(super) fn per_call(&self) -> usize {
        self.per_call_at(self.now())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn reads_at(&self, len: usize, now: u64) {
        if is_small(len) {
            self.until.fetch_max(now.saturating_add(EXPECTED), Ordering::Relaxed);
        }
    }

    fn per_call_at(&self, now: u64) -> usize {
        if now < self.until.load(Ordering::Relaxed) { SHORT } else { usize::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_short_for_a_while_after_each_small_read() {
        let small = usize::try_from(SMALL_REQUEST).unwrap();
        let pieces = Pieces::new();
        assert_eq!(pieces.per_call_at(0), usize::MAX, "nobody reads anything");
        pieces.reads_at(small + 1, 10);
        assert_eq!(pieces.per_call_at(10), usize::MAX, "only large things");
        pieces.reads_at(small, 20);
        assert_eq!((pieces.per_call_at(20), pieces.per_call_at(1019)), (SHORT, SHORT));
        pieces.reads_at(1, 500);
        // Clocks of two processors may differ a little.
        pieces.reads_at(1, 499);
        assert_eq!((pieces.per_call_at(1499), pieces.per_call_at(1500)), (SHORT, usize::MAX));
    }
}
