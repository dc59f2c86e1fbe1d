//! Test buffers between two pages that fault: a kernel that reads or writes one byte too many dies at once.
#![allow(clippy::unwrap_used, reason = "only tests use it: without its pages a test has nothing to show")]

use std::ffi::c_void;
use std::ptr;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

/// Largest page size of the platforms the kernels run on.
const PAGE: usize = 4096;

/// Where the bytes stand between the two guard pages.
#[derive(Debug, Clone, Copy)]
pub(super) enum Edge {
    /// The first byte is the first behind a guard page.
    Front,
    /// The last byte is the last before a guard page.
    Back,
}

/// `len` bytes, zero at first, at one edge of their pages.
pub(super) struct Guarded {
    mapping: *mut c_void,
    mapped: usize,
    start: usize,
    len: usize,
}

impl Guarded {
    pub(super) fn new(len: usize, edge: Edge) -> Self {
        let middle = len.next_multiple_of(PAGE);
        let mapped = middle + 2 * PAGE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing; the two mprotect
        // calls stay inside it.
        let mapping = unsafe {
            let mapping = mmap_anonymous(
                ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
            .unwrap();
            mprotect(mapping, PAGE, MprotectFlags::empty()).unwrap();
            mprotect(mapping.byte_add(PAGE + middle), PAGE, MprotectFlags::empty()).unwrap();
            mapping
        };
        let start = match edge {
            Edge::Front => PAGE,
            Edge::Back => PAGE + middle - len,
        };
        Self { mapping, mapped, start, len }
    }

    pub(super) fn holding(bytes: &[u8], edge: Edge) -> Self {
        let mut guarded = Self::new(bytes.len(), edge);
        guarded.as_mut().copy_from_slice(bytes);
        guarded
    }

    pub(super) fn as_ref(&self) -> &[u8] {
        // SAFETY: start..start + len lies in the readable middle of the mapping, which lives as long as self.
        unsafe { std::slice::from_raw_parts(self.mapping.byte_add(self.start).cast::<u8>(), self.len) }
    }

    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the borrow of self makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.byte_add(self.start).cast::<u8>(), self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping of `new`; no slice of it can be alive any more.
        unsafe { munmap(self.mapping, self.mapped) }.unwrap();
    }
}
