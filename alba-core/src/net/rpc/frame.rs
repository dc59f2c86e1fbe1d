//! Frames: `u32 LE length ‖ FORMAT ‖ u64 LE correlation ‖ u64 LE note ‖ postcard value`, the length counting all behind
//! itself. With [`TRACED`] instead of [`FORMAT`] a `u64 LE` trace id stands between the note and the value.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::wire::rpc::{FORMAT, TRACED};

/// The correlation number of an answer that is about the connection and not about one request.
pub const ABOUT_CONNECTION: u64 = 0;

/// Format byte, correlation number and note.
const HEADER: usize = 1 + 8 + 8;

/// The same and the trace id.
const TRACED_HEADER: usize = HEADER + 8;

/// Grown by at most this much before more bytes have arrived.
const STEP: usize = 64 << 10;

/// Why bytes are no frame, or a value none of ours.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The stream broke.
    #[error("connection broke: {0}")]
    Io(#[from] io::Error),
    /// The peer went away in the middle of a frame.
    #[error("connection closed in the middle of a frame")]
    Half,
    /// Longer than this side takes; nothing was allocated for it.
    #[error("a frame of {len} bytes was announced; at most {max} are allowed")]
    TooLong {
        /// As announced, or as the value would take.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Too short to hold format, correlation number and note.
    #[error("a frame of {0} bytes is too short to be one")]
    TooShort(usize),
    /// Another version of the format, or no ALBA at all.
    #[error("format {found} is not known here; this version speaks format {FORMAT}")]
    WrongFormat {
        /// The first byte of the body.
        found: u8,
    },
    /// The value does not decode.
    #[error("the message does not decode: {0}")]
    Undecodable(String),
}

/// A frame whose value has not been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which request it is or answers.
    pub correlation: u64,
    /// What goes with every message of its kind ([`crate::wire::rpc`]).
    pub note: u64,
    /// The id of the request that it is sent for ([`crate::request::TraceId`]); 0: not said.
    pub trace: u64,
    /// The body, header included.
    body: Vec<u8>,
}

impl Frame {
    /// Bytes of the body, without a trace id.
    pub fn len(&self) -> usize {
        let trace = if self.trace == 0 { 0 } else { TRACED_HEADER - HEADER };
        self.body.len().saturating_sub(trace)
    }

    /// Never: a frame has a header.
    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// The value; bytes left over are an error.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        let header = if self.body.first() == Some(&TRACED) { TRACED_HEADER } else { HEADER };
        decode_body(self.body.get(header..).unwrap_or_default())
    }
}

/// Decodes one postcard value that must fill `bytes`.
pub fn decode_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(FrameError::Undecodable(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(FrameError::Undecodable(error.to_string())),
    }
}

/// A whole frame of `value`; refused when its body would be longer than `max`.
pub fn encode_frame<T: Serialize>(
    correlation: u64,
    note: u64,
    value: &T,
    max: usize,
) -> Result<Vec<u8>, FrameError> {
    encode_traced(correlation, note, 0, value, max)
}

/// The same with a trace id; with 0 it is a frame without one.
pub fn encode_traced<T: Serialize>(
    correlation: u64,
    note: u64,
    trace: u64,
    value: &T,
    max: usize,
) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; 4];
    bytes.push(if trace == 0 { FORMAT } else { TRACED });
    bytes.extend_from_slice(&correlation.to_le_bytes());
    bytes.extend_from_slice(&note.to_le_bytes());
    if trace != 0 {
        bytes.extend_from_slice(&trace.to_le_bytes());
    }
    let mut bytes =
        postcard::to_extend(value, bytes).map_err(|error| FrameError::Undecodable(error.to_string()))?;
    let len = bytes.len() - 4;
    // Whether it is traced must not decide whether a message can be sent.
    let counted = if trace == 0 { len } else { len - (TRACED_HEADER - HEADER) };
    match u32::try_from(len) {
        Ok(prefix) if counted <= max => {
            bytes.splice(..4, prefix.to_le_bytes());
            Ok(bytes)
        }
        _ => Err(FrameError::TooLong { len, max }),
    }
}

/// Reads frames from a stream.
pub struct FrameReader<R> {
    stream: R,
    max: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Bodies longer than `max` bytes are refused.
    pub fn new(stream: R, max: usize) -> Self {
        Self { stream, max }
    }

    /// Waits for the beginning of a frame: its announced length, checked; `None` when the peer closed between frames.
    /// Not cancellation-safe: a dropped call may have eaten part of the length.
    pub async fn announced(&mut self) -> Result<Option<usize>, FrameError> {
        let mut prefix = [0; 4];
        let mut have = 0;
        while have < prefix.len() {
            // `have` is below 4: the slice is never empty, so 0 means the end of the stream.
            match self.stream.read(&mut prefix[have..]).await? {
                0 if have == 0 => return Ok(None),
                0 => return Err(FrameError::Half),
                more => have += more,
            }
        }
        let len = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
        if len > self.max {
            return Err(FrameError::TooLong { len, max: self.max });
        }
        if len < HEADER {
            return Err(FrameError::TooShort(len));
        }
        Ok(Some(len))
    }

    /// The frame behind an announced length. The buffer grows as bytes arrive.
    pub async fn body(&mut self, len: usize) -> Result<Frame, FrameError> {
        let mut body = Vec::with_capacity(len.min(STEP));
        let mut format_checked = false;
        while body.len() < len {
            let missing = len - body.len();
            let known = body.len();
            // At most doubles what has arrived.
            body.reserve(missing.min(STEP.max(known)));
            let mut limited = (&mut self.stream).take(u64::try_from(missing).unwrap_or(u64::MAX));
            if limited.read_buf(&mut body).await? == 0 {
                return Err(FrameError::Half);
            }
            if let (false, Some(&found)) = (format_checked, body.first()) {
                if found != FORMAT && found != TRACED {
                    return Err(FrameError::WrongFormat { found });
                }
                if found == TRACED && len < TRACED_HEADER {
                    return Err(FrameError::TooShort(len));
                }
                format_checked = true;
            }
        }
        // `announced` saw to it that the header is there.
        let number = |at: usize| match body.get(at..at + 8).map(<[u8; 8]>::try_from) {
            Some(Ok(bytes)) => Ok(u64::from_le_bytes(bytes)),
            _ => Err(FrameError::TooShort(len)),
        };
        let (correlation, note) = (number(1)?, number(9)?);
        let trace = if body.first() == Some(&TRACED) { number(HEADER)? } else { 0 };
        Ok(Frame { correlation, note, trace, body })
    }

    /// The next frame; `None` when the peer closed between frames.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        match self.announced().await? {
            None => Ok(None),
            Some(len) => self.body(len).await.map(Some),
        }
    }
}
