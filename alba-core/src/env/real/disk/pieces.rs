//! How much is moved at a time between a file and memory.
//!
//! A device does what it was given in about the order it got it: a read of a block waits until the megabytes before it are through. In
//! pieces of [`SHORT`], and from one call at a time, that is a tenth of the time. But each piece is an interrupt and a thread that wakes up,
//! so it is done only while somebody reads small things, here or at another daemon of the device.
//!
//! It must never change what is read or written, only in how many calls, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::env::SMALL_REQUEST;

/// Bytes of one call beside small reads. Beside 500 MB/s of reads 4 KiB took (p99) 0.8 ms with pieces of 1 MiB, 0.22 of 256 KiB, 0.19 of
/// 128 KiB, and 0.1 alone.
const SHORT: usize = 128 << 10;

/// So long after a small read another one is to be expected, in milliseconds.
const EXPECTED: u64 = 1000;

/// A turn is waited for no longer: one sector that a disk reads for seconds must not keep everything else away from it. Turns are over in a
/// few milliseconds.
const PATIENCE: Duration = Duration::from_millis(100);

/// Is a read of `len` bytes one that somebody waits for, and not part of something large?
pub(super) fn is_small(len: usize) -> bool {
    u64::try_from(len).is_ok_and(|len| len <= SMALL_REQUEST)
}

/// How much a read or write may move per call.
pub(super) struct Share {
    /// In bytes.
    pub(super) per_call: usize,
    /// Given back when all is moved.
    _turn: Option<OwnedSemaphorePermit>,
}

/// What was read from one disk lately.
pub(super) struct Pieces {
    /// Who moves something large beside small reads.
    turn: Arc<Semaphore>,
    began: Instant,
    /// Until when small reads are to be expected, in milliseconds since then.
    until: AtomicU64,
}

impl Pieces {
    /// Nothing was read yet.
    pub(super) fn new() -> Self {
        let turn = Arc::new(Semaphore::new(1));
        Self { turn, began: Instant::now(), until: AtomicU64::new(0) }
    }

    /// Takes note of a read of `len` bytes.
    pub(super) fn reads(&self, len: usize) {
        self.reads_at(len, self.now());
    }

    /// Somebody else reads small things.
    pub(super) fn expect_small(&self) {
        self.expect_small_at(self.now());
    }

    /// What a read or write of `len` bytes may do, when it is its turn or it has waited for that for [`PATIENCE`]. Whoever has the turn must
    /// wait for nothing but the disk.
    pub(super) async fn share(&self, len: usize) -> Share {
        let per_call = self.per_call_at(self.now());
        let turn = if len > per_call {
            // It is never closed.
            tokio::time::timeout(PATIENCE, self.turn.clone().acquire_owned()).await.ok().and_then(Result::ok)
        } else {
            None
        };
        Share { per_call, _turn: turn }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn reads_at(&self, len: usize, now: u64) {
        if is_small(len) {
            self.expect_small_at(now);
        }
    }

    fn expect_small_at(&self, now: u64) {
        self.until.fetch_max(now.saturating_add(EXPECTED), Ordering::Relaxed);
    }

    fn per_call_at(&self, now: u64) -> usize {
        if now < self.until.load(Ordering::Relaxed) { SHORT } else { usize::MAX }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

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
        pieces.expect_small_at(2000);
        assert_eq!(
            [1999, 2999, 3000].map(|now| pieces.per_call_at(now)),
            [SHORT, SHORT, usize::MAX],
            "another daemon's client"
        );
    }

    #[tokio::test]
    async fn one_moves_something_large_at_a_time_beside_small_reads() {
        let pieces = Pieces::new();
        let now = |len| pieces.share(len).now_or_never();
        let large = 4 * SHORT;
        let both = (now(large).unwrap(), now(large).unwrap());
        assert_eq!(
            (both.0.per_call, both.1.per_call),
            (usize::MAX, usize::MAX),
            "nobody reads anything small"
        );
        pieces.reads(1);
        let one = now(large).unwrap();
        assert_eq!(one.per_call, SHORT);
        assert!(now(large).is_none(), "it is another's turn");
        assert!(now(SHORT).is_some(), "one call is no more than a piece");
        let began = Instant::now();
        pieces.share(large).await;
        assert!(began.elapsed() >= PATIENCE, "who has the turn does not end, and is waited for");
        drop(one);
        assert!(now(large).is_some());
    }
}
