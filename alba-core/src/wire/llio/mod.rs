//! The primitive encodings of the original's protocols (wire-protocol §1): a [`Reader`] and a [`Writer`].
//!
//! The reader gets bytes of strangers: it never panics, never reads past the end, and never allocates more than a
//! small multiple of what is left of the input, whatever a count or length claims. Byte strings are slices of the
//! input, not copies: one that is kept for long should be copied, or it keeps the whole frame in memory.

#[cfg(test)]
mod tests;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

/// From here on a value is carried as a part of its own instead of being copied into the writer's buffer: below, the
/// copy is cheaper than one more slice in the system call.
const SHARE_FROM: usize = 4096;

/// The largest length and count: `int32`.
const LENGTH_MAX: usize = 0x7fff_ffff;

/// No list is longer: elements can take many times more memory than bytes on the wire. (An object of 1 TiB with the
/// smallest usual chunks of 1 MiB has that many.)
pub const LIST_MAX: usize = 1 << 20;

/// From this value on an `x_int64` takes 12 bytes; as the first four it says that eight more follow.
const X_INT64_ESCAPE: u32 = 0x7fff_ffff;

/// Why bytes could not be decoded, or a value not be encoded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// The message ends too early.
    #[error("message ends too early: {needed} bytes needed, {left} left")]
    Truncated {
        /// Bytes the next piece needs.
        needed: usize,
        /// Bytes there are.
        left: usize,
    },
    /// A tag or flag that is not defined.
    #[error("{what} has the undefined tag {tag}")]
    Tag {
        /// Of what.
        what: &'static str,
        /// The tag found.
        tag: u32,
    },
    /// A list that cannot fit in what is left of the message.
    #[error("a list claims {count} elements, more than the {left} bytes left can hold")]
    Count {
        /// Elements claimed.
        count: u32,
        /// Bytes there are.
        left: usize,
    },
    /// A list longer than is accepted in its place.
    #[error("a list of {count} elements; at most {max} are accepted")]
    TooMany {
        /// Elements claimed.
        count: u32,
        /// The limit.
        max: usize,
    },
    /// A number, text or identity that breaks a rule.
    #[error("{what}: {reason}")]
    Invalid {
        /// Of what.
        what: &'static str,
        /// The rule broken.
        reason: String,
    },
    /// Too long for the format's 32-bit lengths.
    #[error("{len} bytes or elements are more than the format can carry")]
    TooLong {
        /// How long it is.
        len: usize,
    },
}

impl WireError {
    /// A broken rule.
    pub fn invalid(what: &'static str, reason: impl ToString) -> Self {
        Self::Invalid { what, reason: reason.to_string() }
    }
}

/// Reads primitives from the front of a message.
#[derive(Debug, Clone)]
pub struct Reader {
    buf: Bytes,
}

impl Reader {
    /// Reads `message` from its beginning.
    pub fn new(message: impl Into<Bytes>) -> Self {
        Self { buf: message.into() }
    }

    /// Bytes not yet read.
    pub fn left(&self) -> usize {
        self.buf.len()
    }

    /// The next `len` raw bytes, without copying.
    pub fn raw(&mut self, len: usize) -> Result<Bytes, WireError> {
        if len > self.buf.len() {
            return Err(WireError::Truncated { needed: len, left: self.buf.len() });
        }
        Ok(self.buf.split_to(len))
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.buf)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let Some(head) = self.buf.first_chunk::<N>() else {
            return Err(WireError::Truncated { needed: N, left: self.buf.len() });
        };
        let head = *head;
        self.buf.advance(N);
        Ok(head)
    }

    /// `int8`, `char`.
    pub fn int8(&mut self) -> Result<u8, WireError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    /// `bool`; anything but 00 and 01 is an error.
    pub fn bool(&mut self) -> Result<bool, WireError> {
        match self.int8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(WireError::Tag { what: "bool", tag: u32::from(other) }),
        }
    }

    /// `int32`.
    pub fn int32(&mut self) -> Result<i32, WireError> {
        self.array().map(i32::from_le_bytes)
    }

    /// `int32` where the other side means an unsigned number.
    pub fn uint32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    /// `int64`.
    pub fn int64(&mut self) -> Result<i64, WireError> {
        self.array().map(i64::from_le_bytes)
    }

    /// `int64` of something that is never negative.
    pub fn size(&mut self, what: &'static str) -> Result<u64, WireError> {
        let value = self.int64()?;
        u64::try_from(value).map_err(|_| WireError::invalid(what, format!("{value} is negative")))
    }

    /// `float`.
    pub fn float(&mut self) -> Result<f64, WireError> {
        self.array().map(f64::from_le_bytes)
    }

    /// `int32_be`.
    pub fn uint32_be(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    /// `x_int64`. Negative values are never used and refused.
    pub fn x_int64(&mut self) -> Result<u64, WireError> {
        let short = self.uint32()?;
        let long = |reader: &mut Self| reader.array().map(i64::from_le_bytes);
        self.x_int64_after(short, long)
    }

    /// `x_int64_be`.
    pub fn x_int64_be(&mut self) -> Result<u64, WireError> {
        let short = self.uint32_be()?;
        let long = |reader: &mut Self| reader.array().map(i64::from_be_bytes);
        self.x_int64_after(short, long)
    }

    fn x_int64_after(
        &mut self,
        short: u32,
        long: impl FnOnce(&mut Self) -> Result<i64, WireError>,
    ) -> Result<u64, WireError> {
        match short {
            X_INT64_ESCAPE => {
                let value = long(self)?;
                u64::try_from(value)
                    .map_err(|_| WireError::invalid("x_int64", format!("{value} is negative")))
            }
            short if short < X_INT64_ESCAPE => Ok(u64::from(short)),
            negative => Err(WireError::invalid("x_int64", format!("{negative:#x} is negative"))),
        }
    }

    /// An identity carried as `x_int64`.
    pub fn x_id<T: TryFrom<u64>>(&mut self, what: &'static str) -> Result<T, WireError> {
        let value = self.x_int64()?;
        T::try_from(value).map_err(|_| WireError::invalid(what, format!("{value} is out of range")))
    }

    /// `varint`: unsigned LEB128.
    pub fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.int8()?;
            let group = u64::from(byte & 0x7f);
            let moved = group << shift;
            if moved >> shift != group {
                break;
            }
            value |= moved;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::invalid("varint", "more than 64 bits"))
    }

    /// `string`, `bytes`, `slice`, `blob`: any bytes.
    pub fn bytes(&mut self) -> Result<Bytes, WireError> {
        let len = self.uint32()?;
        self.sized(u64::from(len))
    }

    /// `small_bytes`.
    pub fn small_bytes(&mut self) -> Result<Bytes, WireError> {
        let len = self.varint()?;
        self.sized(len)
    }

    fn sized(&mut self, len: u64) -> Result<Bytes, WireError> {
        self.raw(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// A string of exactly `N` bytes.
    pub fn fixed<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireError> {
        let bytes = self.bytes()?;
        <[u8; N]>::try_from(&bytes[..])
            .map_err(|_| WireError::invalid(what, format!("{} bytes instead of {N}", bytes.len())))
    }

    /// A string that must be UTF-8.
    pub fn text(&mut self, what: &'static str) -> Result<String, WireError> {
        let bytes = self.bytes()?;
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|error| WireError::invalid(what, error))
    }

    /// A string for people: what is not UTF-8 is replaced.
    pub fn text_lossy(&mut self) -> Result<String, WireError> {
        Ok(String::from_utf8_lossy(&self.bytes()?).into_owned())
    }

    /// An identity carried as text.
    pub fn text_id<T: TryFrom<String>>(&mut self, what: &'static str) -> Result<T, WireError>
    where
        T::Error: std::fmt::Display,
    {
        T::try_from(self.text(what)?).map_err(|error| WireError::invalid(what, error))
    }

    /// An identity carried as a string of any bytes.
    pub fn bytes_id<T: TryFrom<Vec<u8>>>(&mut self, what: &'static str) -> Result<T, WireError>
    where
        T::Error: std::fmt::Display,
    {
        T::try_from(self.bytes()?.to_vec()).map_err(|error| WireError::invalid(what, error))
    }

    /// `?T`.
    pub fn option<T>(
        &mut self,
        item: impl FnOnce(&mut Self) -> Result<T, WireError>,
    ) -> Result<Option<T>, WireError> {
        if self.bool()? { item(self).map(Some) } else { Ok(None) }
    }

    /// A field of the compatibility tail: absent when nothing is left (§1.4).
    pub fn tail<T>(
        &mut self,
        item: impl FnOnce(&mut Self) -> Result<T, WireError>,
    ) -> Result<Option<T>, WireError> {
        if self.buf.is_empty() { Ok(None) } else { item(self).map(Some) }
    }

    /// `list`, `counted_list` of at most [`LIST_MAX`] elements: the result is in logical order, the reverse of the
    /// wire's (§1.3). `min_len` is the least number of bytes an element takes; a count that cannot fit is refused before
    /// anything is allocated.
    pub fn list<T>(
        &mut self,
        min_len: usize,
        item: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        self.list_up_to(LIST_MAX, min_len, item)
    }

    /// [`Self::list`] with a limit of its own.
    pub fn list_up_to<T>(
        &mut self,
        max: usize,
        min_len: usize,
        item: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let mut items = self.elements(max, min_len, item)?;
        items.reverse();
        Ok(items)
    }

    /// `hashtbl`: pairs as they come.
    pub fn forward_list<T>(
        &mut self,
        min_len: usize,
        item: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        self.elements(LIST_MAX, min_len, item)
    }

    fn elements<T>(
        &mut self,
        max: usize,
        min_len: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let claimed = self.uint32()?;
        let fits = self.buf.len() / min_len.max(1);
        let count = usize::try_from(claimed).unwrap_or(usize::MAX);
        if count > fits {
            return Err(WireError::Count { count: claimed, left: self.buf.len() });
        }
        if count > max {
            return Err(WireError::TooMany { count: claimed, max });
        }
        // A false count costs no more than this; a true one grows the list as its elements prove to be there.
        let mut items = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }
}

/// An encoded message, in parts so that large values are not copied. Also what follows a frame without being counted
/// in its length (§4.6.2, §4.6.6).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    parts: Vec<Bytes>,
}

impl Message {
    /// What to send, in order.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Nothing at all? (Never true of a framed message.)
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(Bytes::is_empty)
    }

    /// Adds bytes behind the frame, outside its length.
    pub fn push_outside(&mut self, bytes: Bytes) {
        self.parts.push(bytes);
    }

    /// All of it in one piece: a copy when there is more than one part.
    pub fn to_bytes(&self) -> Bytes {
        match self.parts.as_slice() {
            [only] => only.clone(),
            parts => parts.concat().into(),
        }
    }
}

/// Builds a message. What the format cannot carry makes [`Writer::finish`] fail, never a truncated message.
#[derive(Debug, Default)]
pub struct Writer {
    /// The first part, once the buffer was split; kept mutable for the frame's length.
    head: Option<BytesMut>,
    parts: Vec<Bytes>,
    tail: BytesMut,
    error: Option<WireError>,
}

impl Writer {
    /// An empty message.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes written so far, unframed, in one piece.
    pub fn finish(self) -> Result<Bytes, WireError> {
        let message = self.into_message()?;
        Ok(message.to_bytes())
    }

    /// A frame: the length, then the message that `write` makes.
    pub fn frame(write: impl FnOnce(&mut Self)) -> Result<Message, WireError> {
        let mut writer = Self::new();
        writer.uint32(0);
        write(&mut writer);
        let len = writer.written().saturating_sub(4);
        let length = u32::try_from(len).ok().filter(|_| len <= LENGTH_MAX);
        let Some(length) = length else { return Err(WireError::TooLong { len }) };
        let head = writer.head.as_mut().unwrap_or(&mut writer.tail);
        if let Some(place) = head.first_chunk_mut::<4>() {
            *place = length.to_le_bytes();
        }
        writer.into_message()
    }

    fn written(&self) -> usize {
        let head = self.head.as_ref().map_or(0, BytesMut::len);
        head + self.parts.iter().map(Bytes::len).sum::<usize>() + self.tail.len()
    }

    fn into_message(self) -> Result<Message, WireError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let mut parts: Vec<Bytes> = self.head.map(BytesMut::freeze).into_iter().collect();
        parts.extend(self.parts);
        if !self.tail.is_empty() || parts.is_empty() {
            parts.push(self.tail.freeze());
        }
        Ok(Message { parts })
    }

    /// Makes [`Self::finish`] fail; the first reason is kept.
    pub fn fail(&mut self, error: WireError) {
        self.error.get_or_insert(error);
    }

    /// Bytes without a length.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.tail.put_slice(bytes);
    }

    /// `int8`, `char`.
    pub fn int8(&mut self, value: u8) {
        self.tail.put_u8(value);
    }

    /// `bool`.
    pub fn bool(&mut self, value: bool) {
        self.int8(u8::from(value));
    }

    /// `int32`.
    pub fn int32(&mut self, value: i32) {
        self.tail.put_i32_le(value);
    }

    /// `int32` of an unsigned number.
    pub fn uint32(&mut self, value: u32) {
        self.tail.put_u32_le(value);
    }

    /// `int64`.
    pub fn int64(&mut self, value: i64) {
        self.tail.put_i64_le(value);
    }

    /// `int64` of something that is never negative.
    pub fn size(&mut self, value: u64) {
        match i64::try_from(value) {
            Ok(value) => self.int64(value),
            Err(_) => self.fail(WireError::invalid("size", format!("{value} is more than 63 bits"))),
        }
    }

    /// `float`.
    pub fn float(&mut self, value: f64) {
        self.tail.put_f64_le(value);
    }

    /// `int32_be`.
    pub fn uint32_be(&mut self, value: u32) {
        self.tail.put_u32(value);
    }

    /// `x_int64`.
    pub fn x_int64(&mut self, value: u64) {
        match u32::try_from(value) {
            Ok(short) if short < X_INT64_ESCAPE => self.uint32(short),
            _ => {
                self.uint32(X_INT64_ESCAPE);
                self.size(value);
            }
        }
    }

    /// `x_int64_be`.
    pub fn x_int64_be(&mut self, value: u64) {
        match (u32::try_from(value), i64::try_from(value)) {
            (Ok(short), _) if short < X_INT64_ESCAPE => self.uint32_be(short),
            (_, Ok(long)) => {
                self.uint32_be(X_INT64_ESCAPE);
                self.tail.put_i64(long);
            }
            (_, Err(_)) => self.fail(WireError::invalid("x_int64", format!("{value} is more than 63 bits"))),
        }
    }

    /// `varint`.
    pub fn varint(&mut self, mut value: u64) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.int8(low & 0x7f);
            }
            self.int8(low | 0x80);
        }
    }

    fn length(&mut self, len: usize) {
        match u32::try_from(len) {
            Ok(length) if len <= LENGTH_MAX => self.uint32(length),
            _ => self.fail(WireError::TooLong { len }),
        }
    }

    /// `string` and its likes, copied.
    pub fn bytes(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.length(bytes.len());
        self.raw(bytes);
    }

    /// `string` and its likes; shared instead of copied when it is large.
    pub fn value(&mut self, value: &Bytes) {
        self.value_pieces(std::slice::from_ref(value));
    }

    /// One string in several pieces, each shared instead of copied when it is large.
    pub fn value_pieces(&mut self, pieces: &[Bytes]) {
        self.length(pieces.iter().fold(0_usize, |sum, piece| sum.saturating_add(piece.len())));
        pieces.iter().for_each(|piece| self.piece(piece));
    }

    fn piece(&mut self, piece: &Bytes) {
        if piece.len() < SHARE_FROM {
            return self.raw(piece);
        }
        let before = self.tail.split();
        if self.head.is_none() {
            self.head = Some(before);
        } else if !before.is_empty() {
            self.parts.push(before.freeze());
        }
        self.parts.push(piece.clone());
    }

    /// `small_bytes`.
    pub fn small_bytes(&mut self, bytes: &[u8]) {
        self.varint(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.raw(bytes);
    }

    /// A length-prefixed piece: a string that holds what `write` makes.
    pub fn nested(&mut self, write: impl FnOnce(&mut Self)) {
        if let Some(inner) = self.inner(write) {
            self.value(&inner);
        }
    }

    /// `small_bytes` that hold what `write` makes.
    pub fn small_nested(&mut self, write: impl FnOnce(&mut Self)) {
        if let Some(inner) = self.inner(write) {
            self.small_bytes(&inner);
        }
    }

    fn inner(&mut self, write: impl FnOnce(&mut Self)) -> Option<Bytes> {
        let mut inner = Self::new();
        write(&mut inner);
        match inner.finish() {
            Ok(inner) => Some(inner),
            Err(error) => {
                self.fail(error);
                None
            }
        }
    }

    /// `?T`.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    /// `list`, `counted_list`: last element first (§1.3).
    pub fn list<I>(&mut self, items: I, mut write: impl FnMut(&mut Self, I::Item))
    where
        I: IntoIterator,
        I::IntoIter: DoubleEndedIterator + ExactSizeIterator,
    {
        let items = items.into_iter();
        self.length(items.len());
        items.rev().for_each(|item| write(self, item));
    }

    /// `hashtbl`: as they come.
    pub fn forward_list<I>(&mut self, items: I, mut write: impl FnMut(&mut Self, I::Item))
    where
        I: IntoIterator,
        I::IntoIter: ExactSizeIterator,
    {
        let items = items.into_iter();
        self.length(items.len());
        items.for_each(|item| write(self, item));
    }
}
