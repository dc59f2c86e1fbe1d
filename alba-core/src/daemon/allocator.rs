//! How the C library's allocator treats the buffers of daemons that move objects: some of what is free is kept for the next ones, the
//! rest goes back to the system.
//!
//! Fresh memory costs a page fault per page. A proxy that maps and unmaps each buffer spends a third of its CPU time on that: 1.9
//! seconds per GiB of uploads instead of 1.2, 1.5 per GiB of downloads instead of 0.85. By itself the allocator keeps what is
//! free, but in an arena for up to eight threads per core, each what it once held at most. So: two arenas, no mappings of
//! their own, and a look every second whether more is kept than is worth it.
//!
//! It must never keep more than it was told for longer than two looks: bounds on the memory of daemons count with that.

use std::time::Duration;

use super::Context;
use crate::env::Env;
use crate::env::spawn::{AbortOnDrop, blocking};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// What the process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memory {
    /// Bytes that are in memory, those of the program too.
    resident: u64,
    /// Bytes that were allocated and are not free.
    in_use: u64,
}

/// Is more than `kept` bytes kept beside what is in use?
fn keeps_too_much(memory: Memory, kept: u64) -> bool {
    memory.resident > memory.in_use.saturating_add(kept)
}

/// Keeps up to `kept` bytes of what is free, and gives back what is beyond for as long as what this returns is there. To be called once,
/// before there is much to do. Does nothing where there is another C library.
pub fn keep_some(context: &Context, kept: u64) -> AbortOnDrop {
    #[cfg(target_env = "gnu")]
    if !gnu::keep_in_two_arenas(kept) {
        tracing::warn!(
            "the allocator cannot be configured: this daemon may take more memory than its limits say"
        );
    }
    let give_back = give_back(context.env.clone(), kept);
    context.env.spawn.spawn("allocator", Box::pin(give_back)).abort_on_drop()
}

async fn give_back(env: Env, kept: u64) {
    loop {
        env.clock.sleep_until(env.clock.now().plus(PAUSE)).await;
        // It may take milliseconds, and so is nothing for threads that go before all others. Who allocates from the same arena meanwhile waits
        // for it.
        let looked = blocking(env.spawn.as_ref(), move || {
            #[cfg(target_env = "gnu")]
            if gnu::memory().is_some_and(|memory| keeps_too_much(memory, kept)) {
                gnu::give_back();
            }
            #[cfg(not(target_env = "gnu"))]
            let _ = kept;
        });
        // Cannot panic; should it nevertheless, the next look is in a second.
        let _ = looked.await;
    }
}

#[cfg(target_env = "gnu")]
mod gnu {
    use super::Memory;

    /// Few, so that little is kept twice; two, so that one thread seldom waits for another. Small blocks are mostly cached by
    /// thread anyway.
    const ARENAS: i32 = 2;

    /// Larger buffers are mappings of their own: the highest value there is. Chunks are smaller.
    const OWN_MAPPING: i32 = 32 << 20;

    /// `kept` may be free at the end of an arena without being given back at once.
    pub(super) fn keep_in_two_arenas(kept: u64) -> bool {
        let settings = [
            (libc::M_ARENA_MAX, ARENAS),
            (libc::M_MMAP_THRESHOLD, OWN_MAPPING),
            (libc::M_TRIM_THRESHOLD, i32::try_from(kept).unwrap_or(i32::MAX)),
        ];
        settings.into_iter().all(|(parameter, value)| {
            // SAFETY: mallopt takes two integers and may be called at any time from any thread: it takes the allocator's own
            // lock. It changes nothing about memory that is allocated already.
            unsafe { libc::mallopt(parameter, value) != 0 }
        })
    }

    pub(super) fn memory() -> Option<Memory> {
        // The second number is in pages.
        let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
        let pages: u64 = pages.split(' ').nth(1)?.parse().ok()?;
        let page = u64::try_from(rustix::param::page_size()).ok()?;
        // SAFETY: mallinfo2 takes nothing, returns a structure by value, and takes the allocator's own locks.
        let info = unsafe { libc::mallinfo2() };
        let in_use = u64::try_from(info.uordblks.saturating_add(info.hblkhd)).ok()?;
        Some(Memory { resident: pages.checked_mul(page)?, in_use })
    }

    pub(super) fn give_back() {
        // SAFETY: malloc_trim takes an integer, may be called from any thread under the allocator's own locks, and touches free
        // memory only.
        let _ = unsafe { libc::malloc_trim(0) };
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_is_allocated_is_in_use_and_resident() {
            const LEN: usize = 40 << 20;
            let before = memory().unwrap();
            let bytes = vec![1_u8; LEN];
            let now = memory().unwrap();
            let len = u64::try_from(bytes.len()).unwrap();
            // Other tests may run beside this one; none takes nearly as much.
            assert!(now.in_use >= before.in_use + len / 2, "{before:?} {now:?}");
            assert!(now.resident >= len, "{now:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_never_counts_as_kept() {
        const KEPT: u64 = 1000;
        let with = |resident, in_use| keeps_too_much(Memory { resident, in_use }, KEPT);
        assert!(!with(KEPT, 0));
        assert!(with(KEPT + 1, 0));
        assert!(!with(KEPT + 500, 500));
        assert!(with(KEPT + 501, 500));
        // Allocated, but never touched.
        assert!(!with(1, u64::MAX));
    }
}
