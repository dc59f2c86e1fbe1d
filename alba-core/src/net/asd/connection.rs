//! One connection to an ASD: strict request and answer.

use std::fmt::Display;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use crate::env::{Clock, Deadline, Env, Net, OsdError, Stream, within};
use crate::ids::LongId;
use crate::net::frame::{FrameError, FrameReader, write_message};
use crate::wire::asd::{
    AsdError, Decoded, EXPECTED_ID_MAX, Request, Response, decode_answer, decode_prologue_answer,
    encode_prologue,
};
use crate::wire::llio::{Message, Reader, WireError};

use super::AsdClientConfig;

/// A connection on which no answer is outstanding.
pub(super) struct Connection {
    stream: Stream,
    reader: FrameReader,
    prologue: Prologue,
}

/// Whether both sides know who they talk to.
enum Prologue {
    /// It is done.
    Done,
    /// It goes out with the first request, and its answer comes before that request's: no round trip of its own. An ASD that is
    /// not the one expected closes without having read the request.
    WithRequest(LongId),
}

/// How far an exchange came before it failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// The request was not handed over completely: the ASD cannot have acted on it.
    NotSent(String),
    /// Handed over, but not a byte of an answer came.
    Unanswered(String),
    /// Anything later.
    Final(OsdError),
}

impl Failed {
    /// What it means when nothing can be done about it.
    pub(super) fn into_error(self) -> OsdError {
        match self {
            Self::NotSent(text) | Self::Unanswered(text) => OsdError::Connection(text),
            Self::Final(error) => error,
        }
    }
}

impl Connection {
    /// Connects, does the prologue and compares the long id; `expected` none: whoever answers.
    pub(super) async fn open(
        env: &Env,
        address: SocketAddr,
        expected: Option<&LongId>,
        config: &AsdClientConfig,
        deadline: Deadline,
    ) -> Result<(Self, String), OsdError> {
        let clock = env.clock.as_ref();
        let connect_by = deadline.capped(clock, config.connect_timeout);
        let stream = env.net.connect(address, connect_by).await;
        let stream = stream.map_err(|error| OsdError::Connection(format!("{address}: {error}")))?;
        Self::introduced(clock, stream, &address, expected, config, deadline).await
    }

    /// The same with a stream to `peer` that is there already.
    pub(super) async fn introduced(
        clock: &dyn Clock,
        stream: Stream,
        peer: &(dyn Display + Sync),
        expected: Option<&LongId>,
        config: &AsdClientConfig,
        deadline: Deadline,
    ) -> Result<(Self, String), OsdError> {
        let broken = |error: &dyn Display| OsdError::Connection(format!("{peer}: {error}"));
        let mut connection = Self { stream, reader: FrameReader::new(), prologue: Prologue::Done };
        let shaken_by = deadline.capped(clock, config.handshake_timeout);
        let found = match within(clock, shaken_by, connection.prologue(expected)).await {
            Err(_) => return Err(broken(&"no answer to the prologue in time")),
            Ok(Err(error)) => return Err(broken(&error)),
            Ok(Ok(Err(refused))) => return Err(broken(&format!("refused: {refused}"))),
            Ok(Ok(Ok(found))) => found,
        };
        match expected {
            Some(expected) if expected.as_str() != found => {
                Err(OsdError::WrongOsd { expected: expected.clone(), found })
            }
            _ => Ok((connection, found)),
        }
    }

    /// A stream for one request, to be answered by `expected`.
    pub(super) fn for_one_request(stream: Stream, expected: LongId) -> Self {
        Self { stream, reader: FrameReader::new(), prologue: Prologue::WithRequest(expected) }
    }

    /// For the task that calls, which may not be the one that used it last.
    pub(super) fn adopted(self, net: &dyn Net) -> std::io::Result<Self> {
        Ok(Self { stream: net.adopt(self.stream)?, ..self })
    }

    async fn prologue(&mut self, expected: Option<&LongId>) -> Result<Result<String, AsdError>, FrameError> {
        let wrong = |error: WireError| FrameError::Io(std::io::Error::other(error));
        let prologue = encode_prologue(expected.map(LongId::as_str)).map_err(wrong)?;
        self.stream.write_all(&prologue).await?;
        self.stream.flush().await?;
        self.prologue_answer().await
    }

    async fn prologue_answer(&mut self) -> Result<Result<String, AsdError>, FrameError> {
        let wrong = |error: WireError| FrameError::Io(std::io::Error::other(error));
        let status = self.reader.exact(&mut self.stream, 4).await?;
        // Both answers carry one string.
        let text = self.reader.frame(&mut self.stream, EXPECTED_ID_MAX).await?;
        let len = u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
        let answer = [&status[..], &len, &text].concat();
        decode_prologue_answer(&mut Reader::new(answer)).map_err(wrong)
    }

    /// Is it still as it was left? Closed by the other side, or with bytes nobody asked for, it is of no use. (What the
    /// network has not told yet cannot be seen here.)
    pub(super) async fn is_usable(&mut self) -> bool {
        let mut byte = [0];
        let readable = poll_fn(|cx| {
            let mut buf = ReadBuf::new(&mut byte);
            Poll::Ready(Pin::new(&mut self.stream).poll_read(cx, &mut buf).is_ready())
        });
        self.reader.is_empty() && !readable.await
    }

    /// Sends `message`, which is `request` encoded, and reads the answer (an error of the ASD is one). After [`Failed`],
    /// and when dropped in the middle, the connection must not be used again: an answer may be outstanding.
    pub(super) async fn exchange(
        &mut self,
        message: &Message,
        request: &Request,
        answer_max: usize,
    ) -> Result<Result<Response, AsdError>, Failed> {
        match std::mem::replace(&mut self.prologue, Prologue::Done) {
            Prologue::Done => {
                write_message(&mut self.stream, message)
                    .await
                    .map_err(|error| Failed::NotSent(error.to_string()))?;
                self.stream.flush().await.map_err(|error| Failed::Unanswered(error.to_string()))?;
            }
            Prologue::WithRequest(expected) => self.send_with_prologue(expected, message).await?,
        }
        if let Request::PartialGet { slices, .. } = request {
            // Header and slices arrive together.
            let len = slices.iter().fold(16_usize, |sum, slice| {
                sum.saturating_add(usize::try_from(slice.len).unwrap_or(usize::MAX))
            });
            self.reader.expect(len.min(answer_max));
        }
        match self.reader.begin(&mut self.stream).await {
            Ok(true) => {}
            Ok(false) => return Err(Failed::Unanswered("closed by the ASD".to_owned())),
            Err(error) => return Err(Failed::Unanswered(error.to_string())),
        }
        self.answer(request, answer_max).await.map_err(Failed::Final)
    }

    async fn send_with_prologue(&mut self, expected: LongId, message: &Message) -> Result<(), Failed> {
        let prologue = encode_prologue(Some(expected.as_str()))
            .map_err(|error| Failed::Final(OsdError::BadRequest(error.to_string())))?;
        let write = async {
            self.stream.write_all(&prologue).await?;
            write_message(&mut self.stream, message).await
        };
        let written = write.await;
        if written.is_ok() {
            // There will be no other request. If that cannot be said any more, the answer says why.
            let _ = self.stream.shutdown().await;
        }
        // Also when not all could be written: who refuses us stops reading, and says why.
        match (self.prologue_answer().await, written) {
            (Ok(Ok(found)), _) if found != expected.as_str() => {
                Err(Failed::Final(OsdError::WrongOsd { expected, found }))
            }
            (Ok(Err(refused)), _) => Err(Failed::Final(OsdError::Connection(format!("refused: {refused}")))),
            (_, Err(error)) => Err(Failed::NotSent(error.to_string())),
            (Err(error), Ok(())) => Err(Failed::Unanswered(error.to_string())),
            (Ok(Ok(_)), Ok(())) => Ok(()),
        }
    }

    async fn answer(
        &mut self,
        request: &Request,
        answer_max: usize,
    ) -> Result<Result<Response, AsdError>, OsdError> {
        let broken = |error: FrameError| OsdError::Connection(error.to_string());
        let malformed = |error: WireError| OsdError::Connection(format!("malformed answer: {error}"));
        let frame = self.reader.frame(&mut self.stream, answer_max).await.map_err(broken)?;
        match decode_answer(request, frame).map_err(malformed)? {
            Decoded::Complete(answer) => Ok(answer),
            Decoded::Outside(outside) => {
                let len = usize::try_from(outside.len()).ok().filter(|len| *len <= answer_max);
                let Some(len) = len else {
                    let error = FrameError::TooLong { len: outside.len(), limit: answer_max };
                    return Err(broken(error));
                };
                let bytes: Bytes = self.reader.exact(&mut self.stream, len).await.map_err(broken)?;
                Ok(Ok(outside.complete(bytes).map_err(malformed)?))
            }
        }
    }
}
