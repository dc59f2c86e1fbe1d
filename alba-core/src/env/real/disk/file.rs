//! Reading and writing one open file, on a thread that may block.
//!
//! With O_DIRECT, whole blocks bypass the page cache: reads are widened to blocks, writes of whole blocks go from where
//! they lie, or are copied once into an aligned buffer. Writes of other sizes take a second handle of the same file,
//! through the page cache; the kernel keeps both views the same as long as one block is not written both ways *at once*.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;

use bytes::Bytes;
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::buffers::Buffer;
use super::direct;
use crate::env::disk::{BLOCK, BLOCK_BYTES};

/// Most buffers one pwritev takes (IOV_MAX on Linux).
const PARTS_PER_CALL: usize = 1024;

/// How `open` is told to bypass the page cache.
pub(super) fn direct_flag() -> io::Result<i32> {
    i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)
}

/// The handles of one file.
pub(super) struct Handles {
    /// O_DIRECT if `direct`. Errors of writing back show at its sync, whichever handle wrote: it was open before.
    file: File,
    direct: bool,
    /// False on a file system that is mounted read-only.
    writable: bool,
    /// The one through the page cache, opened when it is first needed.
    cached: OnceLock<File>,
}

impl Handles {
    /// Creates the file, which must not exist, with `len` zero bytes.
    pub(super) fn create(path: &Path, len: u64, direct: bool) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let file = if direct { options.custom_flags(direct_flag()?).open(path) } else { options.open(path) }?;
        match extend(&file, len) {
            Ok(()) => Ok(Self { file, direct, writable: true, cached: OnceLock::new() }),
            Err(error) => {
                // Leaves no half-made file behind; the first error is the one to tell.
                drop(std::fs::remove_file(path));
                Err(error)
            }
        }
    }

    /// Opens the file; for reading only where the file system is.
    pub(super) fn open(path: &Path, direct: bool) -> io::Result<Self> {
        let flags = if direct { direct_flag()? } else { 0 };
        let open = |write| OpenOptions::new().read(true).write(write).custom_flags(flags).open(path);
        let (file, writable) = match open(true) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => (open(false)?, false),
            file => (file?, true),
        };
        Ok(Self { file, direct, writable, cached: OnceLock::new() })
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Does a write there bypass the page cache?
    pub(super) fn takes_direct(&self, offset: u64, len: usize) -> bool {
        self.direct && offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK)
    }

    /// `len` bytes at `offset`: in `buffer` when it holds all the blocks they touch, else piece by piece through it.
    pub(super) fn read(
        &self,
        offset: u64,
        len: usize,
        mut buffer: Buffer,
        per_call: usize,
    ) -> io::Result<Bytes> {
        let (mut start, mut skip) = block_before(offset)?;
        if skip + len <= buffer.bytes_mut().len() {
            self.fill(start, skip + len, buffer.bytes_mut(), per_call)?;
            return Ok(buffer.into_bytes(skip, len));
        }
        // Grows as it is read: a length from a damaged record finds the end of the file first.
        let mut all = Vec::new();
        while all.len() < len {
            let memory = buffer.bytes_mut();
            let wanted = (skip + len - all.len()).min(memory.len());
            self.fill(start, wanted, memory, per_call)?;
            all.extend_from_slice(&memory[skip..wanted]);
            start += u64::try_from(wanted).map_err(io::Error::other)?;
            skip = 0;
        }
        Ok(all.into())
    }

    /// Reads whole blocks from `start` on until there are `wanted` bytes, at most `per_call` at once, which is whole blocks, too.
    fn fill(&self, start: u64, wanted: usize, memory: &mut [u8], per_call: usize) -> io::Result<()> {
        let memory = memory.get_mut(..wanted.next_multiple_of(BLOCK)).ok_or(io::ErrorKind::InvalidInput)?;
        let mut filled = 0;
        while filled < wanted {
            let at = start + u64::try_from(filled).map_err(io::Error::other)?;
            let end = memory.len().min(filled.saturating_add(per_call));
            let read = match self.file.read_at(&mut memory[filled..end], at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            filled += read;
            // What ends within a block ends with the file.
            if read == 0 || (filled < wanted && !filled.is_multiple_of(BLOCK)) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Writes whole blocks: from where they lie when they begin at a block boundary in memory, else copied once into
    /// `buffer`, in pieces of its size; at most `per_call` bytes at once, which is whole blocks, too.
    pub(super) fn write_direct(
        &self,
        mut offset: u64,
        parts: &[Bytes],
        mut buffer: Buffer,
        per_call: usize,
    ) -> io::Result<()> {
        self.check_writable()?;
        let mut calls = direct::calls(parts);
        loop {
            let mut slices = calls.next(buffer.bytes_mut());
            if slices.is_empty() {
                return Ok(());
            }
            let mut left = slices.as_mut_slice();
            while !left.is_empty() {
                let written = match rustix::io::pwritev(&self.file, &one_call(left, per_call), offset) {
                    // Half a block cannot be gone on from.
                    Ok(written) if written == 0 || !written.is_multiple_of(BLOCK) => {
                        return Err(io::ErrorKind::WriteZero.into());
                    }
                    Ok(written) => written,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                };
                IoSlice::advance_slices(&mut left, written);
                offset += u64::try_from(written).map_err(io::Error::other)?;
            }
        }
    }

    /// Writes anything anywhere, through the page cache.
    pub(super) fn write_cached(&self, mut offset: u64, parts: &[Bytes], per_call: usize) -> io::Result<()> {
        self.check_writable()?;
        let file = self.cached()?;
        let mut slices: Vec<IoSlice<'_>> =
            parts.iter().filter(|part| !part.is_empty()).map(|part| IoSlice::new(part)).collect();
        let mut left = slices.as_mut_slice();
        while !left.is_empty() {
            let written = match rustix::io::pwritev(file, &one_call(left, per_call), offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            IoSlice::advance_slices(&mut left, written);
            offset += u64::try_from(written).map_err(io::Error::other)?;
        }
        Ok(())
    }

    pub(super) fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match retried(|| rustix::fs::fallocate(&self.file, flags, offset, len)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
            result => Ok(result?),
        }
    }

    pub(super) fn allocate(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        if len == 0 {
            return Ok(());
        }
        match retried(|| rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, len)) {
            // Running out of space then shows at the write.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::ErrorKind::ReadOnlyFilesystem.into()) }
    }

    /// The handle through the page cache. Reopens the open file itself: its name may be gone or another's by now.
    fn cached(&self) -> io::Result<&File> {
        if !self.direct {
            return Ok(&self.file);
        }
        if let Some(cached) = self.cached.get() {
            return Ok(cached);
        }
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let opened = OpenOptions::new().read(true).write(true).open(own)?;
        Ok(self.cached.get_or_init(|| opened))
    }
}

/// The first bytes of `slices`, at most `most` of them.
fn one_call<'a>(slices: &'a [IoSlice<'_>], most: usize) -> Vec<IoSlice<'a>> {
    let mut room = most;
    let pieces = slices.iter().take(PARTS_PER_CALL).map_while(|slice| {
        let piece = &slice[..slice.len().min(room)];
        let more = room > 0;
        room -= piece.len();
        more.then(|| IoSlice::new(piece))
    });
    pieces.collect()
}

/// Where the block begins that `offset` is in, and how far into it that is.
fn block_before(offset: u64) -> io::Result<(u64, usize)> {
    let skip = offset % BLOCK_BYTES;
    Ok((offset - skip, usize::try_from(skip).map_err(io::Error::other)?))
}

/// Gives a new file `len` bytes of zeros with blocks behind them. File systems that cannot preallocate get the length
/// only: then running out of space shows at the write.
fn extend(file: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    match retried(|| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len)) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(len),
        Err(error) => Err(error.into()),
    }
}

/// Once more when a signal came between.
fn retried(mut call: impl FnMut() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_the_first_bytes_and_no_more_than_it_may() {
        let parts: [&[u8]; 4] = [b"abc", b"", b"defgh", b"ij"];
        let slices = parts.map(IoSlice::new);
        let call = |most| one_call(&slices, most).iter().map(|slice| slice.to_vec()).collect::<Vec<_>>();
        assert_eq!(call(2), [b"ab"]);
        assert_eq!(call(3), [b"abc"]);
        assert_eq!(call(4).concat(), b"abcd");
        assert_eq!(call(8).concat(), b"abcdefgh");
        assert_eq!(call(usize::MAX).concat(), b"abcdefghij");
        let many = vec![IoSlice::new(b"x"); PARTS_PER_CALL + 1];
        assert_eq!(one_call(&many, usize::MAX).len(), PARTS_PER_CALL);
    }
}
