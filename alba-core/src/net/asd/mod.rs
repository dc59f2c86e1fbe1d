//! The ASD protocol on connections: the prologue of both sides, and the client ([`AsdClient`]).

mod client;
mod connection;
mod pool;
mod reach;
#[cfg(test)]
mod tests;

use std::io;

use bytes::Bytes;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::frame::{FrameError, FrameReader};
use crate::ids::LongId;
use crate::wire::asd::{EXPECTED_ID_MAX, MAGIC, VERSION, encode_prologue_answer};
use crate::wire::llio::WireError;

pub use client::{AsdClient, AsdClientConfig, probe};
pub use pool::IdleLimit;
pub use reach::{OsdTransport, Reach};

/// Why a server ends a connection at its prologue. What the protocol wants the client to hear has been sent.
#[derive(Debug, Error)]
pub enum PrologueError {
    /// Some other protocol.
    #[error("does not speak the ASD protocol (begins with {})", hex::encode(.0))]
    Magic(Bytes),
    /// Another version of it.
    #[error("speaks version {0} of the ASD protocol")]
    Version(i32),
    /// It wants another ASD, or asks for one to find out which this is.
    #[error("looks for the ASD {0:?}")]
    OtherAsd(String),
    /// A flag or length that breaks the format.
    #[error("malformed prologue: {0}")]
    Malformed(#[from] WireError),
    /// The connection failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl From<io::Error> for PrologueError {
    fn from(error: io::Error) -> Self {
        Self::Frame(FrameError::Io(error))
    }
}

/// The server's side of the prologue: reads what the client says and answers it. An error means: close. The caller
/// bounds the time.
pub async fn serve_prologue<S>(
    stream: &mut S,
    reader: &mut FrameReader,
    own: &LongId,
) -> Result<(), PrologueError>
where
    S: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    let magic = reader.exact(stream, MAGIC.len()).await?;
    if magic[..] != MAGIC {
        return Err(PrologueError::Magic(magic));
    }
    let version = int32(&reader.exact(stream, 4).await?);
    let expected = if version == VERSION { read_expected(stream, reader).await? } else { None };
    let answer = encode_prologue_answer(version, own)?;
    stream.write_all(&answer).await?;
    stream.flush().await?;
    match expected {
        _ if version != VERSION => Err(PrologueError::Version(version)),
        Some(expected) if expected[..] != *own.as_str().as_bytes() => {
            Err(PrologueError::OtherAsd(String::from_utf8_lossy(&expected).into_owned()))
        }
        _ => Ok(()),
    }
}

async fn read_expected<S>(stream: &mut S, reader: &mut FrameReader) -> Result<Option<Bytes>, PrologueError>
where
    S: AsyncRead + Unpin + ?Sized,
{
    match reader.exact(stream, 1).await?[..] {
        [0] => Ok(None),
        [1] => Ok(Some(reader.frame(stream, EXPECTED_ID_MAX).await?)),
        _ => Err(WireError::invalid("prologue", "the flag before the long id is neither 0 nor 1").into()),
    }
}

/// An `int32` from exactly four bytes.
fn int32(bytes: &Bytes) -> i32 {
    bytes.first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes))
}
