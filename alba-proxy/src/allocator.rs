//! How the C library's allocator treats the buffers of objects: they go back to the system as soon as they are free.
//!
//! By itself it keeps an arena for up to eight threads per core, and after the first large buffer was freed the next ones come out of
//! those arenas: a proxy with 24 MiB in flight kept 227 MiB, each arena what it once held at most. With a fixed limit
//! every larger buffer is a mapping of its own: the same proxy has 44 MiB at most, at the same speed.

/// Buffers from this size on are mappings of their own. The allocator's own first value, which it would raise to 32 MiB.
#[cfg(target_env = "gnu")]
const OWN_MAPPING: i32 = 128 << 10;

/// To be called once, before requests are served. Other C libraries give large buffers back anyway.
pub(crate) fn give_back_large_buffers() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt takes two integers and may be called at any time from any thread: it takes the allocator's own lock. It
        // changes nothing about memory that is allocated already.
        let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING) };
        if set == 0 {
            tracing::warn!(
                "the allocator keeps freed buffers: the proxy takes more memory than its limits say"
            );
        }
    }
}
