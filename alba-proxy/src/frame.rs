//! Frames off a byte stream: `u32 LE length ‖ payload` (wire-protocol §1.5).
//!
//! Must never allocate what a length prefix merely promises: the buffer grows as bytes arrive, and who reads a frame
//! decides before its bulk arrives whether there is room for it.

use std::io;

use alba_core::env::Stream;
use alba_core::net::frame::PER_CALL;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncReadExt;

/// How far the buffer grows ahead of what arrived, while little has arrived. Also what an idle connection may keep.
const STEP: usize = 64 * 1024;

/// Room for a whole ordinary request, so that reading it takes one system call.
const SMALL: usize = 4096;

/// Bytes of a frame's length prefix.
pub(crate) const PREFIX: usize = 4;

/// What arrived and was not taken yet. Every method is safe to cancel: bytes that were read stay in the buffer.
#[derive(Default)]
pub(crate) struct Inbox {
    buffer: BytesMut,
}

impl Inbox {
    /// Bytes waiting to be taken.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// The first `N` waiting bytes, left in place.
    pub(crate) fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        self.buffer.get(..N)?.try_into().ok()
    }

    /// The length prefix of the frame at hand, once it is there.
    pub(crate) fn prefix(&self) -> Option<u32> {
        self.peek::<PREFIX>().map(u32::from_le_bytes)
    }

    /// Reads once; false at the end of the stream. `wanted` (bytes that should be waiting in the end) bounds how far
    /// the buffer grows: at most doubling, so that memory follows the bytes that really arrived.
    pub(crate) async fn read_some(&mut self, stream: &mut Stream, wanted: usize) -> io::Result<bool> {
        let len = self.buffer.len();
        let ahead = wanted.saturating_sub(len).min(len.max(STEP)).max(SMALL);
        if self.buffer.capacity() - len < SMALL {
            self.buffer.reserve(ahead);
        }
        Ok(stream.read_buf(&mut (&mut self.buffer).limit(PER_CALL)).await? > 0)
    }

    /// Reads until `wanted` bytes are waiting; false when the stream ends before.
    pub(crate) async fn read_until(&mut self, stream: &mut Stream, wanted: usize) -> io::Result<bool> {
        while self.buffer.len() < wanted {
            if !self.read_some(stream, wanted).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads once, but never lets more than `most` bytes wait: waits for ever when they do. For noticing, while a
    /// request runs, that its client has gone. False at the end of the stream.
    pub(crate) async fn read_ahead(&mut self, stream: &mut Stream, most: usize) -> io::Result<bool> {
        let room = most.saturating_sub(self.buffer.len());
        if room == 0 {
            return std::future::pending().await;
        }
        self.buffer.reserve(room.min(SMALL));
        Ok(stream.read_buf(&mut (&mut self.buffer).limit(room)).await? > 0)
    }

    /// Takes the first `len` waiting bytes without copying them; none when fewer wait.
    pub(crate) fn take(&mut self, len: usize) -> Option<Bytes> {
        if self.buffer.len() < len {
            return None;
        }
        let taken = self.buffer.split_to(len).freeze();
        if len > STEP {
            // What is left shares the allocation of what was taken, and would keep it alive for as long as the
            // connection is idle: give it one of its own.
            self.buffer = BytesMut::from(self.buffer.as_ref());
        }
        Some(taken)
    }

    /// Takes the frame at hand once `read_until` has seen all of it: its payload.
    pub(crate) fn take_frame(&mut self, len: usize) -> Option<Bytes> {
        let mut frame = self.take(PREFIX.checked_add(len)?)?;
        Some(frame.split_off(PREFIX))
    }

    /// Drops `len` bytes as they arrive; false when the stream ends before.
    pub(crate) async fn discard(&mut self, stream: &mut Stream, mut len: usize) -> io::Result<bool> {
        loop {
            let dropped = len.min(self.buffer.len());
            self.buffer.advance(dropped);
            len -= dropped;
            if len == 0 {
                return Ok(true);
            }
            if !self.read_some(stream, len.min(STEP)).await? {
                return Ok(false);
            }
        }
    }
}
