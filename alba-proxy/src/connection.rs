//! One connection: prologue, then one request after the other (wire-protocol §2.1, §1.5).
//!
//! A client that sends nonsense, half of something or nothing at all costs its own connection only: everything it
//! can make this task wait for has a deadline, and everything it can make it keep has a bound.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Deadline, Env, Stream, elsewhere, within};
use alba_core::wire::llio::WireError;
use alba_core::wire::proxy::{ErrorCode, MAGIC, ProxyError, Session, VERSION};
use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tracing::Instrument;

use crate::admission::Room;
use crate::frame::PREFIX;
use crate::handler::Answer;
use crate::refusal::Refusal;
use crate::server::{Phase, Shared};
use crate::trace::{Arrival, Traced};
use crate::wire::{Unfilled, Wire};

/// Magic and version.
const PROLOGUE: usize = 8;

/// Longest frame of commands other than ApplySequence: they carry names and numbers. Decoded they take up to
/// [`DECODED`] times their bytes, so the limit is far below that of uploads.
const MAX_SMALL_FRAME: usize = 1 << 20;

/// Frames up to this length are read without asking for room: what 128 connections may take anyway. What is longer is received, and
/// served, by threads that give way to small requests.
const FREE: usize = 64 * 1024;

/// Answers above this length are sent by threads that give way: a small request asks for 64 KiB of data at most, and some manifests may come
/// with it.
const SMALL_ANSWER: usize = 80 * 1024;

/// A list of empty names takes 4 bytes per name on the wire and 24 in memory, a slice 12 and 16.
const DECODED: u64 = 8;

/// Bytes kept that a client sent ahead of the answer it waits for.
const READ_AHEAD: usize = 64 * 1024;

/// A client that ended its side while its request runs has gone, or only has nothing more to ask (`nc`): the request
/// has this long to end before it is cancelled.
const HALF_CLOSED: Duration = Duration::from_millis(250);

/// After a last word the connection is read for this long before it is closed: the kernel would answer unread bytes
/// with a reset, which destroys the last word on its way.
const LINGER: Duration = Duration::from_secs(2);

/// Why a connection is closed.
enum Close {
    /// Nothing to say: the client has gone, or never was one.
    Silently,
    /// After this answer.
    Saying(Refusal),
}

impl Close {
    /// Because not all came that was to come; `late` is what to say where there is somebody to hear it.
    fn without(unfilled: Unfilled, late: impl FnOnce() -> Self) -> Self {
        match unfilled {
            Unfilled::Ended => Self::Silently,
            Unfilled::Late => late(),
        }
    }
}

impl From<io::Error> for Close {
    fn from(_: io::Error) -> Self {
        Self::Silently
    }
}

impl From<WireError> for Close {
    /// No answer can be made: only the end of the connection tells the client.
    fn from(_: WireError) -> Self {
        Self::Silently
    }
}

/// What came off the wire.
enum Arrived {
    Request(Bytes, Room, Arrival),
    /// It was read and dropped; the connection goes on after this answer.
    Refused(Refusal),
}

pub(crate) struct Connection {
    shared: Arc<Shared>,
    /// Numbers it among those of this process: whose turn counts.
    client: u64,
    /// None where a task that had it did not give it back: it panicked, which ends the connection.
    wire: Option<Wire>,
    session: Session,
}

impl Connection {
    pub(crate) fn new(shared: Arc<Shared>, client: u64, stream: Stream) -> Self {
        Self { shared, client, wire: Some(Wire::new(stream)), session: Session::default() }
    }

    fn wire(&mut self) -> Result<&mut Wire, Close> {
        self.wire.as_mut().ok_or(Close::Silently)
    }

    /// Moves much, on threads that give way to small requests, also those of other connections.
    async fn as_bulk<T: Send + 'static, F: Future<Output = (Wire, T)> + Send + 'static>(
        &mut self,
        deadline: Deadline,
        work: impl FnOnce(Env, Wire) -> F + Send + 'static,
    ) -> Result<T, Close> {
        let wire = self.wire.take().ok_or(Close::Silently)?;
        let env = self.shared.env.clone();
        let moving = async move {
            let wire = wire.adopted(&env)?;
            Ok::<_, io::Error>(work(env, wire).await)
        };
        let moved = self.shared.as_bulk("large frame", deadline, moving).await;
        let (wire, done) = moved.map_err(|_| Close::Silently)?.map_err(|_| Close::Silently)??;
        self.wire = Some(wire.adopted(&self.shared.env)?);
        Ok(done)
    }

    /// Serves it to its end.
    pub(crate) async fn run(mut self) {
        let shared = self.shared.clone();
        let served = tokio::select! {
            biased;
            () = shared.reached(Phase::Ended) => return,
            served = self.serve() => served,
        };
        let Err(Close::Saying(refusal)) = served else { return };
        tracing::debug!(error = %refusal, "closing a connection");
        if let Ok(answer) = Answer::refused(&refusal) {
            let deadline = shared.deadline_in(LINGER);
            if self.send(answer, deadline).await.is_ok() {
                // It may send much. However it ends, the connection does.
                let goodbye = self.as_bulk(deadline, move |env, mut wire: Wire| async move {
                    let shut = within(env.clock.as_ref(), deadline, wire.stream.shutdown()).await;
                    let rest = match shut {
                        Ok(Ok(())) => wire.discard(&env, usize::MAX, deadline).await,
                        _ => Err(Unfilled::Ended),
                    };
                    (wire, rest)
                });
                drop(goodbye.await);
            }
        }
    }

    /// Returns when the connection is to be closed.
    async fn serve(&mut self) -> Result<(), Close> {
        self.handshake().await?;
        loop {
            // Also when the next request is here already: there is always one more.
            if self.shared.is_draining() || self.wire()?.inbox.len() == 0 && !self.wait_for_request().await? {
                return Ok(());
            }
            match self.receive().await? {
                Arrived::Request(frame, room, arrival) => self.answer(frame, room, arrival).await?,
                Arrived::Refused(refusal) => {
                    let answer = Answer::refused(&refusal)?;
                    let deadline = self.deadline_for(answer.len());
                    self.send(answer, deadline).await?;
                }
            }
        }
    }

    async fn handshake(&mut self) -> Result<(), Close> {
        let deadline = Duration::from_millis(self.shared.config.handshake_timeout_ms);
        let deadline = self.shared.deadline_in(deadline);
        // Four bytes are enough to know a stranger.
        self.fill(4, deadline, || Close::Silently).await?;
        if self.wire()?.inbox.peek().map(u32::from_le_bytes) != Some(MAGIC) {
            return Err(Close::Silently);
        }
        self.fill(PROLOGUE, deadline, || Close::Silently).await?;
        let prologue = self.wire()?.inbox.take(PROLOGUE).ok_or(Close::Silently)?;
        let version = prologue.last_chunk().copied().map_or(0, i32::from_le_bytes);
        if version != VERSION {
            return Err(Close::Saying(other_version(version)));
        }
        Ok(())
    }

    /// Waits, for as long as it takes, for the first byte of a request; false when none will come.
    async fn wait_for_request(&mut self) -> Result<bool, Close> {
        let Wire { stream, inbox } = self.wire.as_mut().ok_or(Close::Silently)?;
        tokio::select! {
            biased;
            () = self.shared.reached(Phase::Draining) => Ok(false),
            more = inbox.read_some(stream, PREFIX) => Ok(more?),
        }
    }

    /// Reads one request, of which at least one byte is there.
    async fn receive(&mut self) -> Result<Arrived, Close> {
        let shared = self.shared.clone();
        let mut arrival = Arrival { began: shared.env.clock.now(), waited: Duration::ZERO };
        self.fill(PREFIX, self.deadline_for(0), late(PREFIX)).await?;
        let len = self.wire()?.inbox.prefix().and_then(|len| usize::try_from(len).ok()).unwrap_or(usize::MAX);
        let limit = usize::try_from(shared.config.max_frame_bytes).unwrap_or(usize::MAX);
        if len > limit {
            return Err(too_long(len, limit, "max_frame_bytes"));
        }
        let whole = PREFIX.saturating_add(len);
        let deadline = self.deadline_for(len);
        self.fill(PREFIX + len.min(4), deadline, late(len)).await?;
        let command = self.wire()?.inbox.peek::<8>().and_then(|head| head.last_chunk().copied());
        let uploads = len >= 4 && command.map(u32::from_le_bytes).is_some_and(crate::handler::carries_data);
        if len > MAX_SMALL_FRAME && !uploads {
            return Err(too_long(len, MAX_SMALL_FRAME, "which is the most for this command"));
        }
        self.fill(whole.min(FREE), deadline, late(len)).await?;
        let mut room = Room::default();
        if len > FREE {
            let bytes = u64::try_from(len).unwrap_or(u64::MAX);
            let bytes = if uploads { bytes } else { bytes.saturating_mul(DECODED) };
            // Half the time for waiting, so that a client gets its answer before it gives up itself.
            let patience = shared.deadline_in(deadline.left(shared.env.clock.as_ref()) / 2);
            let asked = shared.env.clock.now();
            let taken = shared.admission.take(shared.env.clock.as_ref(), self.client, bytes, patience).await;
            arrival.waited = shared.env.clock.now().since(asked);
            match taken {
                Ok(reserved) => room = reserved,
                Err(full) => {
                    self.discard(whole, deadline, late(len)).await?;
                    return Ok(Arrived::Refused(full.into()));
                }
            }
        }
        self.fill(whole, deadline, late(len)).await?;
        let frame = self.wire()?.inbox.take_frame(len).ok_or(Close::Silently)?;
        Ok(Arrived::Request(frame, room, arrival))
    }

    /// Runs a request and sends its answer. When the client goes away, the request is cancelled.
    async fn answer(&mut self, frame: Bytes, room: Room, arrival: Arrival) -> Result<(), Close> {
        let shared = self.shared.clone();
        let traced = Traced::new(&shared.env, self.client, &frame, arrival);
        let Self { wire, session, .. } = self;
        let Wire { stream, inbox } = wire.as_mut().ok_or(Close::Silently)?;
        let is_large = frame.len() > FREE;
        let (there, asked) = (shared.clone(), *session);
        let work = async move {
            // It counts for as long as there is anything of the frame, also when the client has gone.
            let _room = room;
            let mut session = asked;
            let answer = crate::handler::handle(&there, &mut session, frame).await;
            (session, answer)
        };
        // Whatever it waits for has a deadline of its own: they depend on what is asked.
        let work = async {
            if !is_large {
                return Ok(work.await);
            }
            elsewhere(shared.env.bulk.as_ref(), "request", work).await
        };
        let mut work = Box::pin(traced.request.clone().scope(work).instrument(traced.span.clone()));
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut work => break answer,
                more = inbox.read_ahead(stream, READ_AHEAD) => if !more? {
                    let grace = shared.deadline_in(HALF_CLOSED);
                    let last = within(shared.env.clock.as_ref(), grace, &mut work).await;
                    break last.map_err(|_| {
                        traced.cancelled();
                        Close::Silently
                    })?;
                },
            }
        };
        drop(work);
        let (now, answer) = answer.map_err(|_| Close::Silently)?;
        *session = now;
        let answer = answer?;
        let answered = shared.env.clock.now();
        let deadline = self.deadline_for(answer.len());
        let sent = self.send(answer, deadline).await;
        let slow = Duration::from_millis(shared.config.slow_request_ms);
        traced.sent(answered, shared.env.clock.now(), slow);
        sent
    }

    /// Sends an answer, and keeps until then what belongs to it.
    async fn send(&mut self, answer: Answer, deadline: Deadline) -> Result<(), Close> {
        if answer.len() <= SMALL_ANSWER {
            let env = &self.shared.env;
            let wire = self.wire.as_mut().ok_or(Close::Silently)?;
            return Ok(wire.send(env, &answer, deadline).await?);
        }
        let sent = self.as_bulk(deadline, move |env, mut wire: Wire| async move {
            let sent = wire.send(&env, &answer, deadline).await;
            (wire, sent)
        });
        Ok(sent.await??)
    }

    /// Reads until `wanted` bytes wait. Half of them and then the end: silence. Not in time: `late`.
    async fn fill(
        &mut self,
        wanted: usize,
        deadline: Deadline,
        late: impl FnOnce() -> Close,
    ) -> Result<(), Close> {
        let missing = wanted.saturating_sub(self.wire()?.inbox.len());
        let filled = if missing <= FREE {
            let env = &self.shared.env;
            let wire = self.wire.as_mut().ok_or(Close::Silently)?;
            wire.fill(env, wanted, deadline).await
        } else {
            let filled = self.as_bulk(deadline, move |env, mut wire: Wire| async move {
                let filled = wire.fill(&env, wanted, deadline).await;
                (wire, filled)
            });
            filled.await?
        };
        filled.map_err(|unfilled| Close::without(unfilled, late))
    }

    /// Drops a frame of `whole` bytes as it arrives.
    async fn discard(
        &mut self,
        whole: usize,
        deadline: Deadline,
        late: impl FnOnce() -> Close,
    ) -> Result<(), Close> {
        let dropped = self.as_bulk(deadline, move |env, mut wire: Wire| async move {
            let dropped = wire.discard(&env, whole, deadline).await;
            (wire, dropped)
        });
        dropped.await?.map_err(|unfilled| Close::without(unfilled, late))
    }

    /// Until when `bytes` must have moved.
    fn deadline_for(&self, bytes: usize) -> Deadline {
        self.shared.deadline_for(u64::try_from(bytes).unwrap_or(u64::MAX))
    }
}

/// What a client of another version is told.
fn other_version(client: i32) -> Refusal {
    let text = format!("protocol version: (server) {VERSION} <> {client} (client)");
    Refusal(ProxyError { code: ErrorCode::ProtocolVersionMismatch, payload: text.into() })
}

/// The rest of a frame did not come.
fn late(len: usize) -> impl Fn() -> Close {
    move || {
        let text = format!("the rest of a request of {len} bytes did not arrive in time; connection closed");
        Close::Saying(Refusal::unknown(text))
    }
}

/// A frame that is not even read.
fn too_long(len: usize, limit: usize, which: &str) -> Close {
    let text = format!(
        "a request of {len} bytes is too long; at most {limit} bytes are accepted ({which}); connection closed"
    );
    Close::Saying(Refusal::unknown(text))
}
