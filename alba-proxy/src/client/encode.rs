//! The bytes of this client's requests and answers (wire-protocol §1).

use std::io;

use alba_core::checksum::Checksum;
use alba_core::range::RangeQuery;
use bytes::{Buf, Bytes};

use super::{CallError, ProxyError};

/// A request being written. Lengths that do not fit the protocol are found by `into_frame`.
pub(super) struct Arguments {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Arguments {
    pub(super) fn of(command: i32) -> Self {
        Self { bytes: Vec::new(), too_long: false }.i32(command)
    }

    pub(super) fn i32(mut self, value: i32) -> Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn i64(mut self, value: i64) -> Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn f64(mut self, value: f64) -> Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn bool(mut self, value: bool) -> Self {
        self.bytes.push(u8::from(value));
        self
    }

    pub(super) fn string(mut self, value: &[u8]) -> Self {
        self = self.len(value.len());
        self.bytes.extend_from_slice(value);
        self
    }

    pub(super) fn option<T>(self, value: Option<T>, write: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            None => self.bool(false),
            Some(value) => write(self.bool(true), value),
        }
    }

    /// The last element first (wire-protocol §1.3).
    pub(super) fn list<T>(mut self, items: &[T], write: impl Fn(Self, &T) -> Self) -> Self {
        self = self.len(items.len());
        items.iter().rev().fold(self, write)
    }

    /// In the proxy's order: max, then reverse.
    pub(super) fn range(self, range: &RangeQuery) -> Self {
        self.string(&range.first)
            .bool(range.first_included)
            .option(range.last.as_ref(), |a, (last, included)| a.string(last).bool(*included))
            .i32(range.max)
            .bool(range.reverse)
    }

    pub(super) fn checksum(mut self, checksum: &Checksum) -> Self {
        match checksum {
            Checksum::None => self.bytes.push(1),
            Checksum::Sha1(digest) => {
                self.bytes.push(2);
                return self.string(digest);
            }
            Checksum::Crc32c(crc) => {
                self.bytes.push(3);
                self.bytes.extend_from_slice(&crc.to_le_bytes());
            }
            Checksum::Blake3(root) => {
                self.bytes.push(4);
                return self.string(root);
            }
        }
        self
    }

    pub(super) fn into_frame(self) -> io::Result<Vec<u8>> {
        match i32::try_from(self.bytes.len()) {
            Ok(len) if !self.too_long => Ok([len.to_le_bytes().as_slice(), &self.bytes].concat()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the request is longer than the protocol allows",
            )),
        }
    }

    fn len(mut self, len: usize) -> Self {
        if let Ok(len) = i32::try_from(len) {
            return self.i32(len);
        }
        self.too_long = true;
        self
    }
}

/// The result of a request, being read.
pub(super) struct Answer(Bytes);

impl Answer {
    /// Tells a result from an error.
    pub(super) fn parse(frame: Bytes) -> Result<Self, CallError> {
        let mut answer = Self(frame);
        match answer.u32()? {
            0 => Ok(answer),
            code => Err(CallError::Refused(ProxyError { code, text: answer.string()?.to_vec() })),
        }
    }

    pub(super) fn i32(&mut self) -> Result<i32, CallError> {
        self.0.try_get_i32_le().map_err(short)
    }

    pub(super) fn u32(&mut self) -> Result<u32, CallError> {
        self.0.try_get_u32_le().map_err(short)
    }

    pub(super) fn u64(&mut self) -> Result<u64, CallError> {
        self.0.try_get_u64_le().map_err(short)
    }

    pub(super) fn f64(&mut self) -> Result<f64, CallError> {
        self.0.try_get_f64_le().map_err(short)
    }

    pub(super) fn bool(&mut self) -> Result<bool, CallError> {
        match self.0.try_get_u8().map_err(short)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(CallError::Protocol(format!("{other} is no boolean"))),
        }
    }

    pub(super) fn string(&mut self) -> Result<Bytes, CallError> {
        let len = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if len > self.0.len() {
            return Err(short("string"));
        }
        Ok(self.0.split_to(len))
    }

    pub(super) fn text(&mut self) -> Result<String, CallError> {
        String::from_utf8(self.string()?.to_vec())
            .map_err(|_| CallError::Protocol("text is not UTF-8".into()))
    }

    pub(super) fn list<T>(
        &mut self,
        read: impl Fn(&mut Self) -> Result<T, CallError>,
    ) -> Result<Vec<T>, CallError> {
        let count = self.u32()?;
        // Every element has at least one byte, so a count that lies ends with the bytes.
        let mut items = (0..count).map(|_| read(self)).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(items)
    }

    pub(super) fn checksum(&mut self) -> Result<Checksum, CallError> {
        let wrong = |_| CallError::Protocol("a checksum has the wrong length".into());
        match self.0.try_get_u8().map_err(short)? {
            1 => Ok(Checksum::None),
            2 => Ok(Checksum::Sha1(self.string()?.as_ref().try_into().map_err(wrong)?)),
            3 => Ok(Checksum::Crc32c(self.u32()?)),
            other => Err(CallError::Protocol(format!("checksum of kind {other}"))),
        }
    }
}

fn short(what: impl std::fmt::Display) -> CallError {
    CallError::Protocol(format!("it ends early: {what}"))
}
