//! Memory for large frames: bounded in bytes, used again, and aligned, so that a value in it can go to the disk without
//! another copy.
//!
//! Fresh memory costs a page fault per page, which is more than it costs to receive a page's bytes. What is used again
//! costs none. Who wants memory waits for it, first come first served, and leaves nothing behind when it gives up. Its
//! bytes count until the last slice of the frame is dropped: whoever keeps a small part for long must copy it, or it
//! keeps the whole frame from others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::aligned::Aligned;
use crate::env::disk::BLOCK;

/// Longer memory is not kept for the next frame: frames are seldom that long.
const KEPT_MAX: usize = 8 << 20;

/// Unit of the bound on bytes.
const UNIT: usize = 1024;

/// What there is of a pool. Clones share it.
#[derive(Debug, Clone)]
pub struct FramePool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    units: usize,
    /// Most bytes that are kept while nobody uses them.
    keep: usize,
    room: Arc<Semaphore>,
    free: Mutex<Free>,
}

/// Memory that waits for its next use, by size.
#[derive(Debug, Default)]
struct Free {
    by_size: BTreeMap<usize, Vec<Aligned>>,
    /// Of all of it.
    bytes: usize,
    /// Of what is in use.
    used: usize,
}

impl Free {
    fn pop(&mut self, size: usize) -> Option<Aligned> {
        let memory = self.by_size.get_mut(&size)?.pop()?;
        self.bytes -= Aligned::cost(size);
        Some(memory)
    }

    /// Lets go of the largest that is not of this size, or else of one that is; false when there is none at all. What
    /// size was used last is most likely the one that is wanted next.
    fn shrink(&mut self, last_used: usize) -> bool {
        self.by_size.retain(|_, free| !free.is_empty());
        let other = self.by_size.keys().rev().copied().find(|size| *size != last_used);
        self.pop(other.unwrap_or(last_used)).is_some()
    }
}

impl Shared {
    /// No code panics while it holds the lock, so a poisoned lock holds a sound state.
    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `len` rounded up so that there are few sizes and at most an eighth is waste; memory that is not kept has its exact size.
fn size_for(len: usize) -> usize {
    let step = if len > KEPT_MAX { BLOCK } else { (len.next_power_of_two() / 16).max(BLOCK) };
    // Frames are bounded far below what overflows.
    len.checked_next_multiple_of(step).unwrap_or(len)
}

impl FramePool {
    /// A pool of at most `bytes`, used and free together. Half of it may be kept while nobody uses it.
    pub fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self(Arc::new(Shared {
            units,
            keep: bytes / 2,
            room: Arc::new(Semaphore::new(units)),
            free: Mutex::default(),
        }))
    }

    /// Waits for memory of at least `len` bytes. More than the pool has is given when nobody else has any of it.
    pub async fn take(&self, len: usize) -> FrameMemory {
        let size = size_for(len);
        let cost = Aligned::cost(size);
        let units = u32::try_from(cost.div_ceil(UNIT).min(self.0.units)).unwrap_or(u32::MAX);
        // Never closed; if it were, there would be no bound to wait for.
        let permit = self.0.room.clone().acquire_many_owned(units).await.ok();
        let mut free = self.0.free();
        free.used += cost;
        let found = free.pop(size);
        if found.is_none() {
            // Room for new memory, among what is free.
            while free.used + free.bytes > self.0.units * UNIT && free.shrink(size) {}
        }
        drop(free);
        let memory = found.unwrap_or_else(|| Aligned::new(size));
        FrameMemory { memory, pool: self.0.clone(), _permit: permit }
    }

    /// (bytes in use, bytes kept for later).
    pub fn usage(&self) -> (usize, usize) {
        let free = self.0.free();
        (free.used, free.bytes)
    }
}

/// Memory in use. Dropped, it goes back.
#[derive(Debug)]
pub struct FrameMemory {
    memory: Aligned,
    pool: Arc<Shared>,
    /// Given back after the memory.
    _permit: Option<OwnedSemaphorePermit>,
}

impl FrameMemory {
    /// All of it; what is in it is undefined. It starts at a block boundary.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    /// `len` bytes from `start` on, which are inside.
    pub(super) fn into_bytes(self, start: usize, len: usize) -> Bytes {
        Bytes::from_owner(Filled { memory: self, start, len })
    }
}

impl Drop for FrameMemory {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        let (size, cost) = (memory.len(), Aligned::cost(memory.len()));
        let mut free = self.pool.free();
        free.used -= cost;
        if size > KEPT_MAX || cost > self.pool.keep {
            return;
        }
        free.by_size.entry(size).or_default().push(memory);
        free.bytes += cost;
        while free.bytes > self.pool.keep && free.shrink(size) {}
    }
}

/// A frame.
struct Filled {
    memory: FrameMemory,
    start: usize,
    len: usize,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.memory.memory.bytes()[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const MIB: usize = 1 << 20;

    fn is_pending<T>(work: std::pin::Pin<&mut impl Future<Output = T>>) -> bool {
        matches!(work.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
    }

    #[tokio::test]
    async fn memory_starts_at_a_block_is_used_again_and_wastes_little() {
        let pool = FramePool::new(64 * MIB);
        for len in [1, BLOCK, 70_000, MIB, MIB + 2 * BLOCK, KEPT_MAX, KEPT_MAX + 1] {
            let mut memory = pool.take(len).await;
            assert!(memory.bytes_mut().len() >= len);
            assert!(memory.bytes_mut().len() <= len + (len / 8).max(BLOCK), "{len}");
            assert_eq!(memory.bytes_mut().as_ptr().addr() % BLOCK, 0);
        }
        let first = pool.take(MIB).await.bytes_mut().as_ptr().addr();
        assert_eq!(pool.take(MIB).await.bytes_mut().as_ptr().addr(), first);
        assert_eq!(pool.usage().0, 0);
    }

    #[test]
    fn used_and_free_memory_together_stay_below_the_limit() {
        let limit = 32 * MIB;
        let pool = FramePool::new(limit);
        for len in [MIB, 5 * MIB, 40_000, 3 * MIB, 9 * MIB, MIB / 2, MIB] {
            let mut all = Vec::new();
            loop {
                let mut next = pin!(pool.take(len));
                let Poll::Ready(memory) = next.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
                    break;
                };
                all.push(memory);
                let (used, free) = pool.usage();
                assert!(used + free <= limit, "{used} and {free} at {len}");
            }
            assert!(all.len() * size_for(len) > limit / 2);
            drop(all);
            let (used, free) = pool.usage();
            assert!(used == 0 && free <= limit / 2);
            assert!(len > KEPT_MAX || free > 0);
        }
    }

    #[tokio::test]
    async fn bytes_count_until_the_last_slice_is_gone() {
        let pool = FramePool::new(2 * MIB);
        let frame = pool.take(MIB).await.into_bytes(5, MIB - 5);
        let slice = frame.slice(7..8);
        drop(frame);
        let mut waits = pin!(pool.take(MIB));
        assert!(is_pending(waits.as_mut()));
        drop(slice);
        assert!(!is_pending(waits));
        assert_eq!(pool.usage().0, 0);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nothing_behind_and_more_than_all_is_given_alone() {
        let pool = FramePool::new(2 * MIB);
        let taken = pool.take(MIB).await;
        assert!(is_pending(pin!(pool.take(5 * MIB))));
        drop(taken);
        let all = pool.take(5 * MIB).await;
        assert!(is_pending(pin!(pool.take(1))));
        drop(all);
        assert_eq!(pool.usage().0, 0);
        assert!(!is_pending(pin!(pool.take(1))));
    }
}
