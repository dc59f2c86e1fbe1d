//! Frames of the original's protocols on a byte stream (wire-protocol §1.5): a 32-bit length, then that many bytes.
//!
//! A length comes from a stranger: it is compared with a limit before it is believed, and memory grows only as bytes
//! arrive. Nothing here waits on a clock: the caller bounds each call with `env::within`. All reads are
//! cancel-safe: what has arrived stays in the [`FrameReader`].

use std::io::{self, IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::memory::{FrameMemory, FramePool};
use crate::env::disk::BLOCK;
use crate::wire::llio::Message;

/// Room for the first bytes of a frame: small requests fit, and thousands of idle connections cost little.
const FIRST_READ: usize = 1024;

/// At most this much is reserved on the word of a length prefix; beyond it room doubles as the bytes arrive. Fragments
/// of the usual size with their recovery info fit, so they are never moved.
const TRUSTED: usize = 4 << 20;

/// Most bytes that one system call moves. A kernel that does not interrupt itself (PREEMPT_NONE, as servers have it) lets nobody
/// else have the processor before the call is over: with megabytes at once, small requests waited milliseconds for it.
pub const PER_CALL: usize = 128 << 10;

/// Frames up to this size are not worth memory from a pool, in bytes.
pub const SMALL: usize = 4096;

/// Why no frame could be read.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The other side closed in the middle.
    #[error("connection closed in the middle of a message")]
    Closed,
    /// Longer than allowed.
    #[error("a frame of {len} bytes; at most {limit} are allowed")]
    TooLong {
        /// The length claimed.
        len: u64,
        /// The limit.
        limit: usize,
    },
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads frames, and bytes outside frames, from one stream.
#[derive(Debug, Default)]
pub struct FrameReader {
    buf: BytesMut,
    /// A large frame as far as it has arrived; then `buf` has nothing.
    filling: Option<Filling>,
}

/// A frame that arrives in memory of a pool.
#[derive(Debug)]
struct Filling {
    memory: FrameMemory,
    start: usize,
    end: usize,
    filled: usize,
}

impl FrameReader {
    /// Nothing read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Has anything arrived that was not consumed? Between a request and the next there must be nothing.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty() && self.filling.is_none()
    }

    /// Makes room for `len` bytes that are expected soon, so that they arrive in one read.
    pub fn expect(&mut self, len: usize) {
        self.buf.reserve(len.min(TRUSTED));
    }

    /// Waits for the first byte of the next frame; false when the other side closed instead.
    pub async fn begin<S: AsyncRead + Unpin + ?Sized>(&mut self, stream: &mut S) -> io::Result<bool> {
        Ok(!self.is_empty() || self.fill(stream, FIRST_READ).await? > 0)
    }

    /// How long the payload of the next frame is, which is not consumed; `limit` in bytes.
    pub async fn peek_length<S: AsyncRead + Unpin + ?Sized>(
        &mut self,
        stream: &mut S,
        limit: usize,
    ) -> Result<usize, FrameError> {
        match &self.filling {
            Some(filling) => Ok(filling.end - filling.start),
            None => self.length(stream, limit).await,
        }
    }

    /// The next frame's payload; `limit` in bytes.
    pub async fn frame<S: AsyncRead + Unpin + ?Sized>(
        &mut self,
        stream: &mut S,
        limit: usize,
    ) -> Result<Bytes, FrameError> {
        let payload = self.length(stream, limit).await?;
        self.ensure(stream, payload.saturating_add(4)).await?;
        self.buf.advance(4);
        Ok(self.take(payload))
    }

    /// The same, a frame above [`SMALL`] in memory of `pool`. Only its first bytes are read before the pool has room for it:
    /// `aligned` is shown those, and tells which byte of the payload is best at a block boundary.
    pub async fn frame_in<S: AsyncRead + Unpin + ?Sized>(
        &mut self,
        stream: &mut S,
        limit: usize,
        pool: &FramePool,
        aligned: impl FnOnce(&[u8]) -> usize,
    ) -> Result<Bytes, FrameError> {
        if self.filling.is_none() {
            let payload = self.length(stream, limit).await?;
            if payload <= SMALL {
                return self.frame(stream, limit).await;
            }
            self.ensure(stream, FIRST_READ.min(payload.saturating_add(4))).await?;
            // One block more for moving the frame within it.
            let mut memory = pool.take(payload.saturating_add(BLOCK)).await;
            // All at once from here on: a cancelled call loses nothing.
            self.buf.advance(4);
            let head = self.take(self.buf.len().min(payload));
            let start = (BLOCK - aligned(&head) % BLOCK) % BLOCK;
            let (filled, end) = (start + head.len(), start + payload);
            memory.bytes_mut()[start..filled].copy_from_slice(&head);
            self.filling = Some(Filling { memory, start, end, filled });
        }
        while let Some(filling) = &mut self.filling {
            if filling.filled == filling.end {
                break;
            }
            let end = filling.end.min(filling.filled + PER_CALL);
            let room = &mut filling.memory.bytes_mut()[filling.filled..end];
            match stream.read(room).await? {
                0 => return Err(FrameError::Closed),
                read => filling.filled += read,
            }
        }
        let whole = self.filling.take().ok_or(FrameError::Closed)?;
        Ok(whole.memory.into_bytes(whole.start, whole.end - whole.start))
    }

    /// The length of the next frame's payload, which stays in the buffer until the payload is there, so that a cancelled
    /// call loses nothing.
    async fn length<S: AsyncRead + Unpin + ?Sized>(
        &mut self,
        stream: &mut S,
        limit: usize,
    ) -> Result<usize, FrameError> {
        self.ensure(stream, 4).await?;
        let len = self.buf.first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
        let payload = usize::try_from(len).ok().filter(|payload| *payload <= limit);
        payload.ok_or(FrameError::TooLong { len: u64::from(len), limit })
    }

    /// The next `len` bytes. The caller has compared `len` with a limit.
    pub async fn exact<S: AsyncRead + Unpin + ?Sized>(
        &mut self,
        stream: &mut S,
        len: usize,
    ) -> Result<Bytes, FrameError> {
        self.ensure(stream, len).await?;
        Ok(self.take(len))
    }

    fn take(&mut self, len: usize) -> Bytes {
        let bytes = self.buf.split_to(len).freeze();
        if self.buf.is_empty() {
            // Or an idle connection would keep its last frame's memory.
            self.buf = BytesMut::new();
        }
        bytes
    }

    async fn ensure<S: AsyncRead + Unpin + ?Sized>(
        &mut self,
        stream: &mut S,
        len: usize,
    ) -> Result<(), FrameError> {
        while self.buf.len() < len {
            let missing = len - self.buf.len();
            let room = missing.min(self.buf.len().max(TRUSTED)).max(FIRST_READ);
            if self.fill(stream, room).await? == 0 {
                return Err(FrameError::Closed);
            }
        }
        Ok(())
    }

    async fn fill<S: AsyncRead + Unpin + ?Sized>(
        &mut self,
        stream: &mut S,
        room: usize,
    ) -> io::Result<usize> {
        if self.buf.capacity() - self.buf.len() < room {
            self.buf.reserve(room);
        }
        stream.read_buf(&mut (&mut self.buf).limit(PER_CALL)).await
    }
}

/// Hands all parts of `message` to the stream, several per system call, without joining them. When it fails, the last
/// byte was not handed over: the other side cannot have seen the whole message. Does not flush.
pub async fn write_message<S: AsyncWrite + Unpin>(stream: &mut S, message: &Message) -> io::Result<()> {
    let mut parts = Parts { parts: message.parts(), offset: 0 };
    stream.write_all_buf(&mut parts).await
}

/// What is left to write. `offset` lies inside the first part.
struct Parts<'a> {
    parts: &'a [Bytes],
    offset: usize,
}

impl Parts<'_> {
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let first = self.parts.first().and_then(|part| part.get(self.offset..)).unwrap_or_default();
        let others = self.parts.iter().skip(1).map(|part| &part[..]);
        std::iter::once(first).chain(others).filter(|piece| !piece.is_empty())
    }
}

impl Buf for Parts<'_> {
    fn remaining(&self) -> usize {
        self.pieces().map(<[u8]>::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.pieces().next().unwrap_or_default()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let (mut filled, mut left) = (0, PER_CALL);
        for (slot, piece) in slices.iter_mut().zip(self.pieces()) {
            let piece = piece.get(..left).unwrap_or(piece);
            *slot = IoSlice::new(piece);
            filled += 1;
            left -= piece.len();
            if left == 0 {
                break;
            }
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.parts.first() {
            let left = first.len().saturating_sub(self.offset);
            if count < left {
                self.offset += count;
                return;
            }
            count -= left;
            self.offset = 0;
            self.parts = self.parts.get(1..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::llio::Writer;

    fn frame(payload: &[u8]) -> Vec<u8> {
        Writer::frame(|w| w.raw(payload)).unwrap().to_bytes().to_vec()
    }

    #[tokio::test]
    async fn frames_and_what_follows_them_arrive_in_order() {
        let big = vec![7; TRUSTED + 100_000];
        let wire = [frame(b"one"), frame(&big), b"outside".to_vec(), frame(b"")].concat();
        let (mut near, mut far) = tokio::io::duplex(1000);
        let writer = async {
            far.write_all(&wire).await.unwrap();
            drop(far);
        };
        let reader = async {
            let mut reader = FrameReader::new();
            assert!(reader.begin(&mut near).await.unwrap());
            assert_eq!(&reader.frame(&mut near, 3).await.unwrap()[..], b"one");
            assert_eq!(reader.frame(&mut near, big.len()).await.unwrap(), big);
            assert_eq!(&reader.exact(&mut near, 7).await.unwrap()[..], b"outside");
            assert_eq!(&reader.frame(&mut near, 0).await.unwrap()[..], b"");
            assert!(!reader.begin(&mut near).await.unwrap());
            assert!(reader.is_empty());
        };
        tokio::join!(writer, reader);
    }

    #[tokio::test]
    async fn a_length_above_the_limit_is_refused_without_allocating() {
        for len in [11_u32, 0x7fff_ffff, u32::MAX] {
            let mut wire: &[u8] = &len.to_le_bytes();
            let mut reader = FrameReader::new();
            let error = reader.frame(&mut wire, 10).await.unwrap_err();
            assert!(matches!(error, FrameError::TooLong { len: l, limit: 10 } if l == u64::from(len)));
            assert!(reader.buf.capacity() <= 2 * FIRST_READ);
        }
    }

    #[tokio::test]
    async fn memory_grows_with_the_bytes_not_with_the_claim() {
        let mut wire = (1_u32 << 30).to_le_bytes().to_vec();
        wire.extend([0; 100]);
        let mut reader = FrameReader::new();
        let error = reader.frame(&mut &wire[..], 1 << 30).await.unwrap_err();
        assert!(matches!(error, FrameError::Closed));
        assert!(reader.buf.capacity() <= 2 * TRUSTED);
    }

    #[tokio::test]
    async fn large_frames_lie_in_the_pool_where_the_caller_wants_them() {
        let pool = FramePool::new(32 << 20);
        let big: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let wire = [frame(&big), frame(b"small"), frame(&big[..3 * BLOCK]), frame(b"last")].concat();
        let (mut near, mut far) = tokio::io::duplex(50_000);
        let writer = async {
            far.write_all(&wire).await.unwrap();
            drop(far);
        };
        let reader = async {
            let mut reader = FrameReader::new();
            for (expected, aligned) in [(&big[..], 100), (b"small", 0), (&big[..3 * BLOCK], BLOCK + 3)] {
                let shown = |head: &[u8]| {
                    assert_eq!(head, &expected[..head.len()]);
                    assert!(head.len() >= 1000);
                    aligned
                };
                let found = reader.frame_in(&mut near, big.len(), &pool, shown).await.unwrap();
                assert_eq!(found, expected);
                assert!(found.len() <= SMALL || found[aligned..].as_ptr().addr().is_multiple_of(BLOCK));
                assert_eq!(pool.usage().0 > 0, found.len() > SMALL);
            }
            let refused = reader.frame_in(&mut near, 3, &pool, |_| 0).await.unwrap_err();
            assert!(matches!(refused, FrameError::TooLong { len: 4, limit: 3 }));
        };
        tokio::join!(writer, reader);
        assert_eq!(pool.usage().0, 0);
    }

    #[tokio::test]
    async fn a_cancelled_read_of_a_large_frame_loses_nothing() {
        let pool = FramePool::new(1 << 20);
        let payload: Vec<u8> = (0..10_000_u32).flat_map(u32::to_le_bytes).collect();
        let wire = frame(&payload);
        let (mut near, mut far) = tokio::io::duplex(wire.len());
        let mut reader = FrameReader::new();
        for piece in wire[..wire.len() - 1].chunks(777) {
            far.write_all(piece).await.unwrap();
            // Polled once, then dropped.
            tokio::select! {
                biased;
                _ = reader.frame_in(&mut near, payload.len(), &pool, |_| 9) => panic!("not complete yet"),
                () = std::future::ready(()) => {}
            }
            assert!(!reader.is_empty());
        }
        far.write_all(&wire[wire.len() - 1..]).await.unwrap();
        assert_eq!(reader.frame_in(&mut near, payload.len(), &pool, |_| 9).await.unwrap(), payload);
        assert!(reader.is_empty());
    }

    #[tokio::test]
    async fn a_large_frame_waits_for_room_and_is_whole_afterwards() {
        let pool = FramePool::new(1 << 20);
        let taken = pool.take(1 << 20).await;
        let wire = frame(&[7; 100_000]);
        let (mut stream, mut reader) = (&wire[..], FrameReader::new());
        tokio::select! {
            biased;
            _ = reader.frame_in(&mut stream, 100_000, &pool, |_| 0) => panic!("there is no room"),
            () = std::future::ready(()) => {}
        }
        assert!(wire.len() - stream.len() <= 2 * FIRST_READ, "more was read than was admitted");
        drop(taken);
        assert_eq!(reader.frame_in(&mut stream, 100_000, &pool, |_| 0).await.unwrap(), vec![7; 100_000]);
    }

    #[tokio::test]
    async fn a_cancelled_read_loses_nothing() {
        let (mut near, mut far) = tokio::io::duplex(100);
        let mut reader = FrameReader::new();
        let wire = frame(b"hello");
        for byte in &wire[..wire.len() - 1] {
            far.write_all(&[*byte]).await.unwrap();
            // Polled once, then dropped.
            tokio::select! {
                biased;
                _ = reader.frame(&mut near, 100) => panic!("not complete yet"),
                () = std::future::ready(()) => {}
            }
        }
        far.write_all(&wire[wire.len() - 1..]).await.unwrap();
        assert_eq!(&reader.frame(&mut near, 100).await.unwrap()[..], b"hello");
    }

    #[tokio::test]
    async fn all_parts_are_written_in_order_through_a_narrow_pipe() {
        let parts: Vec<Bytes> = (0..200_u8).map(|i| Bytes::from(vec![i; usize::from(i) * 40])).collect();
        let mut message = Message::default();
        parts.iter().for_each(|part| message.push_outside(part.clone()));
        let (mut near, mut far) = tokio::io::duplex(999);
        let writer = async {
            write_message(&mut far, &message).await.unwrap();
            drop(far);
        };
        let mut received = Vec::new();
        let (_, read) = tokio::join!(writer, near.read_to_end(&mut received));
        assert_eq!(read.unwrap(), message.len());
        assert_eq!(received, parts.concat());
    }

    #[tokio::test]
    async fn no_call_moves_more_than_others_can_wait_for() {
        let payload = Bytes::from(vec![7; PER_CALL]);
        let parts = [Bytes::from_static(b"head"), payload.clone(), payload];
        let mut left = Parts { parts: &parts, offset: 0 };
        let mut calls = Vec::new();
        while left.has_remaining() {
            let mut slices = [IoSlice::new(&[]); 8];
            let filled = left.chunks_vectored(&mut slices);
            calls.push(slices[..filled].iter().map(|slice| slice.len()).sum());
            left.advance(*calls.last().unwrap());
        }
        assert_eq!(calls, [PER_CALL, PER_CALL, 4]);
    }
}
