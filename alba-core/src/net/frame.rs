//! Frames of the original's protocols on a byte stream (wire-protocol §1.5): a 32-bit length, then that many bytes.
//!
//! A length comes from a stranger: it is compared with a limit before it is believed, and memory grows only as bytes
//! arrive. Nothing here waits on a clock: the caller bounds each call with `env::within`. All reads are
//! cancel-safe: what has arrived stays in the [`FrameReader`].

use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::wire::llio::Message;

/// Room for the first bytes of a frame: small requests fit, and thousands of idle connections cost little.
const FIRST_READ: usize = 1024;

/// At most this much is reserved on the word of a length prefix; beyond it room doubles as the bytes arrive. Fragments
/// of the usual size with their recovery info fit, so they are never moved.
const TRUSTED: usize = 4 << 20;

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
}

impl FrameReader {
    /// Nothing read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Has anything arrived that was not consumed? Between a request and the next there must be nothing.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// Makes room for `len` bytes that are expected soon, so that they arrive in one read.
    pub fn expect(&mut self, len: usize) {
        self.buf.reserve(len.min(TRUSTED));
    }

    /// Waits for the first byte of the next frame; false when the other side closed instead.
    pub async fn begin<S: AsyncRead + Unpin + ?Sized>(&mut self, stream: &mut S) -> io::Result<bool> {
        Ok(!self.buf.is_empty() || self.fill(stream, FIRST_READ).await? > 0)
    }

    /// The next frame's payload; `limit` in bytes.
    pub async fn frame<S: AsyncRead + Unpin + ?Sized>(
        &mut self,
        stream: &mut S,
        limit: usize,
    ) -> Result<Bytes, FrameError> {
        self.ensure(stream, 4).await?;
        // The length stays in the buffer until the payload is there, so that a cancelled call loses nothing.
        let len = self.buf.first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
        let payload = usize::try_from(len).ok().filter(|payload| *payload <= limit);
        let Some(payload) = payload else { return Err(FrameError::TooLong { len: u64::from(len), limit }) };
        self.ensure(stream, payload.saturating_add(4)).await?;
        self.buf.advance(4);
        Ok(self.take(payload))
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
        stream.read_buf(&mut self.buf).await
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
        let mut filled = 0;
        for (slot, piece) in slices.iter_mut().zip(self.pieces()) {
            *slot = IoSlice::new(piece);
            filled += 1;
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
}
