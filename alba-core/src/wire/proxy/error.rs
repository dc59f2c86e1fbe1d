//! Errors a proxy answers with (§2.2).

use std::fmt;

use bytes::Bytes;
use thiserror::Error;

use crate::wire::common::RequestError;
use crate::wire::llio::{Reader, WireError, Writer};

/// The protocol's error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorCode {
    /// 1: anything not listed; undecodable arguments too.
    Unknown,
    /// 2
    OverwriteNotAllowed,
    /// 3
    ObjectDoesNotExist,
    /// 4
    NamespaceAlreadyExists,
    /// 5
    NamespaceDoesNotExist,
    /// 7
    ChecksumMismatch,
    /// 8
    ChecksumAlgoNotAllowed,
    /// 9
    PresetDoesNotExist,
    /// 10
    BadSliceLength,
    /// 11
    OverlappingSlices,
    /// 12
    SliceOutsideObject,
    /// 13
    UnknownOperation,
    /// 14
    FileNotFound,
    /// 15
    NoSatisfiablePolicy,
    /// 17
    ProtocolVersionMismatch,
    /// 18: the payload is the object's name.
    AssertFailed,
}

impl ErrorCode {
    /// All of them with their numbers.
    pub const ALL: [(u32, Self); 16] = [
        (1, Self::Unknown),
        (2, Self::OverwriteNotAllowed),
        (3, Self::ObjectDoesNotExist),
        (4, Self::NamespaceAlreadyExists),
        (5, Self::NamespaceDoesNotExist),
        (7, Self::ChecksumMismatch),
        (8, Self::ChecksumAlgoNotAllowed),
        (9, Self::PresetDoesNotExist),
        (10, Self::BadSliceLength),
        (11, Self::OverlappingSlices),
        (12, Self::SliceOutsideObject),
        (13, Self::UnknownOperation),
        (14, Self::FileNotFound),
        (15, Self::NoSatisfiablePolicy),
        (17, Self::ProtocolVersionMismatch),
        (18, Self::AssertFailed),
    ];

    /// As the wire carries it.
    pub fn number(self) -> u32 {
        Self::ALL.into_iter().find(|(_, code)| *code == self).map_or(1, |(number, _)| number)
    }

    /// The code of a number; what is not known is [`Self::Unknown`].
    pub fn from_number(number: u32) -> Self {
        Self::ALL.into_iter().find(|(known, _)| *known == number).map_or(Self::Unknown, |(_, code)| code)
    }
}

/// An error with what goes with it: text for people, or the name of the object whose assert failed.
#[derive(Clone, PartialEq, Eq, Error)]
pub struct ProxyError {
    /// What a client acts on.
    pub code: ErrorCode,
    /// Text, or the object's name (any bytes).
    pub payload: Bytes,
}

impl ProxyError {
    /// With the original's default text.
    pub fn of(code: ErrorCode) -> Self {
        Self { code, payload: format!("Proxy_protocol.Protocol.Error.{code:?}").into() }
    }

    /// With an explanation behind the original's default text.
    pub fn explained(code: ErrorCode, why: impl fmt::Display) -> Self {
        Self { code, payload: format!("Proxy_protocol.Protocol.Error.{code:?}: {why}").into() }
    }

    /// An assert of a sequence does not hold for the object of this name.
    pub fn assert_failed(name: impl Into<Bytes>) -> Self {
        Self { code: ErrorCode::AssertFailed, payload: name.into() }
    }

    /// Reads what follows a status other than 0: always a string.
    pub(super) fn read(status: u32, r: &mut Reader) -> Result<Self, WireError> {
        Ok(Self { code: ErrorCode::from_number(status), payload: r.bytes()? })
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.uint32(self.code.number());
        w.bytes(&self.payload);
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proxy error {}: {}", self.code.number(), crate::ids::text_or_hex(&self.payload))
    }
}

impl fmt::Debug for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<RequestError> for ProxyError {
    fn from(error: RequestError) -> Self {
        let code = match error {
            RequestError::UnknownOperation(_) => ErrorCode::UnknownOperation,
            RequestError::Malformed(_) => ErrorCode::Unknown,
        };
        Self::explained(code, error)
    }
}
