//! Aligned buffers from a pool that is bounded in bytes.
//!
//! O_DIRECT wants memory that starts at a block boundary.
//!
//! Who wants a buffer waits for it, first come first served, and gives everything back when it gives up. At most half of
//! the pool may be *lent*, that is, handed out as [`Bytes`] that may live as long as somebody likes; beyond that what
//! was read is copied out instead, so that slow readers can never starve the pool, nor small slices pin it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::aligned::Aligned;
use crate::env::disk::BLOCK;

/// What buffers there are, in bytes. Between powers of two where a value with its header would waste the most.
const SIZES: [usize; 14] = [
    BLOCK,
    2 * BLOCK,
    4 * BLOCK,
    8 * BLOCK,
    16 * BLOCK,
    32 * BLOCK,
    64 * BLOCK,
    128 * BLOCK,
    256 * BLOCK,
    320 * BLOCK,
    384 * BLOCK,
    512 * BLOCK,
    768 * BLOCK,
    1024 * BLOCK,
];

/// The largest buffer.
pub(super) const LARGEST: usize = 1024 * BLOCK;

/// The smallest pool: what is not lent holds one of the largest at least.
const SMALLEST_POOL: usize = 4 * LARGEST;

/// Reads below are copied out: their buffer is worth more than the copy.
const SMALLEST_LENT: usize = 16 * BLOCK;

/// The memory that waits for its next use, by size, and what is outside.
#[derive(Default)]
struct Memory {
    free: [Vec<Aligned>; SIZES.len()],
    /// Bytes of all buffers, free and in use.
    held: usize,
}

/// A pool of buffers. Clones share it.
#[derive(Clone)]
pub(super) struct Buffers(Arc<Shared>);

struct Shared {
    limit: usize,
    memory: Mutex<Memory>,
    /// Blocks that may still be taken.
    blocks: Arc<Semaphore>,
    /// Blocks that may still be lent, of those.
    lendable: Arc<Semaphore>,
}

impl Shared {
    /// No code panics while it holds the lock, so a poisoned lock holds a sound state.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffers {
    /// A pool of at most `bytes`; fewer than 16 MiB are taken as 16 MiB.
    pub(super) fn new(bytes: usize) -> Self {
        // The limit of permits is far above what memory there is.
        let blocks = (bytes.max(SMALLEST_POOL) / BLOCK).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Shared {
            limit: blocks * BLOCK,
            memory: Mutex::default(),
            blocks: Arc::new(Semaphore::new(blocks)),
            lendable: Arc::new(Semaphore::new(blocks / 2)),
        }))
    }

    /// A buffer of at least `len` bytes, at most [`LARGEST`]; its content is undefined. Waits until there is one.
    pub(super) async fn take(&self, len: usize) -> io::Result<Buffer> {
        let class = SIZES.iter().position(|size| *size >= len).ok_or(io::ErrorKind::InvalidInput)?;
        let permit = self.0.blocks.clone().acquire_many_owned(blocks_of(SIZES[class])).await;
        let permit = permit.map_err(io::Error::other)?;
        Ok(Buffer { memory: self.memory(class), class, pool: self.0.clone(), permit })
    }

    /// Memory of that class. The permits keep what is in use below the limit; what is free is let go for what is wanted.
    fn memory(&self, class: usize) -> Aligned {
        let mut memory = self.0.memory();
        if let Some(found) = memory.free[class].pop() {
            return found;
        }
        memory.held += SIZES[class];
        while memory.held > self.0.limit {
            let Some((size, spare)) =
                SIZES.iter().zip(&mut memory.free).rev().find_map(|(size, free)| Some((*size, free.pop()?)))
            else {
                break;
            };
            drop(spare);
            memory.held -= size;
        }
        drop(memory);
        Aligned::new(SIZES[class])
    }

    /// (bytes in use, lent ones included; bytes lent).
    pub(super) fn in_use(&self) -> (usize, usize) {
        let blocks = self.0.limit / BLOCK;
        let used = blocks.saturating_sub(self.0.blocks.available_permits());
        let lent = (blocks / 2).saturating_sub(self.0.lendable.available_permits());
        (used * BLOCK, lent * BLOCK)
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        self.0.memory().held
    }
}

/// Sizes are at most [`LARGEST`], so their blocks fit.
fn blocks_of(size: usize) -> u32 {
    u32::try_from(size / BLOCK).unwrap_or(u32::MAX)
}

/// A buffer in use. Dropping it gives it back.
pub(super) struct Buffer {
    memory: Aligned,
    class: usize,
    pool: Arc<Shared>,
    permit: OwnedSemaphorePermit,
}

impl Buffer {
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    /// `len` bytes from `start` on: the buffer itself where it may be lent, a copy otherwise.
    pub(super) fn into_bytes(self, start: usize, len: usize) -> Bytes {
        let size = SIZES[self.class];
        let worth = len >= SMALLEST_LENT && len >= size / 2;
        let loan = if worth {
            self.pool.lendable.clone().try_acquire_many_owned(blocks_of(size)).ok()
        } else {
            None
        };
        match loan {
            Some(loan) => Bytes::from_owner(Lent { buffer: self, start, len, _loan: loan }),
            None => Bytes::copy_from_slice(&self.memory.bytes()[start..start + len]),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.pool.memory().free[self.class].push(memory);
        // The permit goes after this, when the memory is there for whoever waits.
        debug_assert!(self.permit.num_permits() > 0);
    }
}

/// A view of a buffer that is somebody else's for now.
struct Lent {
    buffer: Buffer,
    start: usize,
    len: usize,
    _loan: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.memory.bytes()[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn is_pending<T>(work: std::pin::Pin<&mut impl Future<Output = T>>) -> bool {
        matches!(work.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
    }

    #[tokio::test]
    async fn every_buffer_starts_at_a_block_and_is_long_enough() {
        let pool = Buffers::new(0);
        for len in [1, BLOCK, BLOCK + 1, 70_000, 1 << 20, (1 << 20) + 1, LARGEST] {
            let mut first = pool.take(len).await.unwrap();
            let mut second = pool.take(len).await.unwrap();
            for buffer in [&mut first, &mut second] {
                assert!(buffer.bytes_mut().len() >= len);
                assert_eq!(buffer.bytes_mut().as_ptr().addr() % BLOCK, 0);
            }
        }
        assert!(pool.take(LARGEST + 1).await.is_err());
        assert_eq!(pool.in_use(), (0, 0));
    }

    #[tokio::test]
    async fn who_wants_more_than_there_is_waits_and_leaves_nothing_behind_when_it_gives_up() {
        let pool = Buffers::new(SMALLEST_POOL);
        let mut taken = Vec::new();
        for _ in 0..4 {
            taken.push(pool.take(LARGEST).await.unwrap());
        }
        {
            let mut gives_up = pin!(pool.take(LARGEST));
            let mut waits = pin!(pool.take(1));
            assert!(is_pending(gives_up.as_mut()));
            assert!(is_pending(waits.as_mut()), "first come first served");
            taken.pop();
            // Gets its buffer and gives it back at once, which is the next one's turn.
            assert!(!is_pending(gives_up));
            assert!(!is_pending(waits));
        }
        taken.clear();
        assert_eq!(pool.in_use(), (0, 0));
        // Once more with one that is dropped while it waits.
        for _ in 0..4 {
            taken.push(pool.take(LARGEST).await.unwrap());
        }
        assert!(is_pending(pin!(pool.take(BLOCK))));
        taken.clear();
        assert_eq!(pool.in_use(), (0, 0));
        assert!(!is_pending(pin!(pool.take(LARGEST))));
    }

    #[tokio::test]
    async fn the_memory_of_all_sizes_together_stays_below_the_limit() {
        let pool = Buffers::new(SMALLEST_POOL);
        for len in SIZES.into_iter().chain(SIZES.into_iter().rev()) {
            let all: Vec<_> = {
                let mut all = Vec::new();
                while pool.0.blocks.available_permits() >= SIZES[SIZES.len() - 1] / BLOCK {
                    all.push(pool.take(len).await.unwrap());
                }
                all
            };
            assert!(all.len() > 2);
            assert!(pool.held() <= SMALLEST_POOL, "{} at {len}", pool.held());
        }
    }

    #[tokio::test]
    async fn lent_buffers_never_take_more_than_half_of_the_pool() {
        let pool = Buffers::new(SMALLEST_POOL);
        let mut kept = Vec::new();
        for n in 0..64_u8 {
            let mut buffer = pool.take(1 << 20).await.unwrap();
            buffer.bytes_mut().fill(n);
            kept.push(buffer.into_bytes(BLOCK, (1 << 20) - BLOCK));
        }
        assert_eq!(pool.in_use(), (SMALLEST_POOL / 2, SMALLEST_POOL / 2));
        for (n, bytes) in (0..64_u8).zip(&kept) {
            assert_eq!(bytes.len(), (1 << 20) - BLOCK);
            assert!(bytes.iter().all(|byte| *byte == n), "nobody writes to what is lent");
        }
        let slice = kept[0].slice(7..8);
        kept.clear();
        assert_eq!(
            pool.in_use(),
            (1 << 20, 1 << 20),
            "a slice keeps its buffer, one of those that may be lent"
        );
        drop(slice);
        assert_eq!(pool.in_use(), (0, 0));
    }

    #[tokio::test]
    async fn small_reads_are_copied_out() {
        let pool = Buffers::new(0);
        let small = pool.take(8 * BLOCK).await.unwrap().into_bytes(5, 100);
        let part_of_large = pool.take(1 << 20).await.unwrap().into_bytes(0, SMALLEST_LENT);
        assert_eq!((small.len(), part_of_large.len()), (100, SMALLEST_LENT));
        assert_eq!(pool.in_use(), (0, 0));
    }
}
