//! The ALBA ASD protocol on connections (wire-protocol §4): a bounded number of them, bounded bytes, bounded waits.
//!
//! A bad client costs its own connection at most. Memory is only given for bytes that were admitted first.

mod lane;
mod service;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::osd::Priority;
use alba_core::env::{Deadline, DeadlineExceeded, Env, Here, Listener, Spawn, Stream, elsewhere, within};
use alba_core::ids::LongId;
use alba_core::net::asd::serve_prologue;
use alba_core::net::frame::{FrameError, FrameReader, write_message};
use alba_core::net::memory::FramePool;
use alba_core::wire::asd::{AsdError, Command, Request, encode_answer};
use alba_core::wire::llio::Message;
use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::schedule::Permit;
use lane::{Habit, Lane, SMALL, works_long};
pub use service::{Answer, Peer, Peers, Service, ServiceLimits};

/// From this size on a value should lie at a block boundary, so that it goes to the disk from where it lies, in bytes.
const ALIGNED_FROM: u32 = 16 << 10;

/// So long at most maintenance keeps its turn while its answer is sent: one that reads slowly must not stop the others.
const KEPT_TURN: Duration = Duration::from_millis(50);

/// After a failed accept (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How much a server takes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections at once; more are closed.
    pub connections: usize,
    /// Longest frame of a request, in bytes.
    pub frame: usize,
    /// Bytes of requests in memory, over all connections.
    pub request_bytes: usize,
    /// For the prologue.
    pub handshake_time: Duration,
    /// A frame that has begun must be whole within this, and an answer taken.
    pub frame_time: Duration,
    /// A connection on which nothing happens is closed after this.
    pub idle_time: Duration,
    /// For the work of a request, its own waits included.
    pub request_time: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 2048,
            frame: 65 << 20,
            request_bytes: 128 << 20,
            handshake_time: Duration::from_secs(5),
            frame_time: Duration::from_secs(30),
            idle_time: Duration::from_secs(600),
            request_time: Duration::from_secs(30),
        }
    }
}

/// Who can reach a listener, and so what it serves. The protocol has no authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// Those who may do everything.
    Trusted,
    /// Anyone: only what direct reads need.
    DirectReads,
}

impl Exposure {
    fn allows(self, command: Command) -> bool {
        match self {
            Self::Trusted => true,
            Self::DirectReads => {
                matches!(command, Command::GetVersion | Command::PartialGet | Command::Capabilities)
            }
        }
    }
}

/// Serves an ASD.
pub struct Server {
    env: Env,
    long_id: LongId,
    limits: ServerLimits,
    service: Arc<Service>,
    connections: Arc<Semaphore>,
    /// For requests. Small ones are not counted: with the number of connections their bytes are bounded anyway.
    requests: FramePool,
}

/// A connection, between two requests.
struct Open {
    stream: Stream,
    reader: FrameReader,
    peer: SocketAddr,
    exposure: Exposure,
    /// Its place among the connections, given back with it.
    _place: OwnedSemaphorePermit,
}

/// Why a connection ends.
enum End {
    /// The client closed, or broke off.
    Gone,
    /// It took too long, or sent what cannot be answered.
    Closed(String),
}

impl From<DeadlineExceeded> for End {
    fn from(_: DeadlineExceeded) -> Self {
        Self::Closed("too slow".into())
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::TooLong { .. } => Self::Closed(error.to_string()),
            FrameError::Closed | FrameError::Io(_) => Self::Gone,
        }
    }
}

impl Server {
    /// A server of `service` under the name `long_id`.
    pub fn new(env: Env, long_id: LongId, service: Arc<Service>, limits: ServerLimits) -> Arc<Self> {
        let connections = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
        let requests = FramePool::new(limits.request_bytes);
        Arc::new(Self { env, long_id, limits, service, connections, requests })
    }

    /// Serves everything to everyone who connects, for ever: see [`Server::serve_to`].
    pub async fn serve(self: Arc<Self>, listener: Box<dyn Listener>) {
        self.serve_to(listener, Exposure::Trusted).await;
    }

    /// Accepts connections for ever; drop the future to stop. Connections in progress end with their tasks.
    pub async fn serve_to(self: Arc<Self>, mut listener: Box<dyn Listener>, exposure: Exposure) {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    self.env.clock.sleep_until(self.env.clock.now().plus(ACCEPT_PAUSE)).await;
                    continue;
                }
            };
            let Ok(place) = self.connections.clone().try_acquire_owned() else {
                tracing::warn!(%peer, limit = self.limits.connections, "too many connections: closed");
                continue;
            };
            let open = Open { stream, reader: FrameReader::new(), peer, exposure, _place: place };
            self.clone().serve_on(Lane::Small, open, true);
        }
    }

    /// Serves a connection in a task of its own, on the threads of `lane`.
    fn serve_on(self: Arc<Self>, lane: Lane, mut open: Open, is_new: bool) {
        let spawn = self.threads(lane).clone();
        let connection = async move {
            let peer = open.peer;
            let served = async {
                if is_new {
                    self.greet(&mut open).await?;
                } else {
                    open.stream = self.env.net.adopt(open.stream)?;
                }
                self.serve_while(lane, open).await
            };
            match served.await {
                Ok(None) => {}
                Ok(Some((open, lane))) => self.clone().serve_on(lane, open, false),
                Err(End::Closed(reason)) => tracing::debug!(%peer, reason, "connection closed"),
                Err(End::Gone) => {}
            }
        };
        spawn.spawn("asd connection", Box::pin(connection));
    }

    fn threads(&self, lane: Lane) -> &Arc<dyn Spawn> {
        match lane {
            Lane::Small => &self.env.spawn,
            Lane::Bulk => &self.env.bulk,
            Lane::Aside => &self.env.aside,
        }
    }

    fn deadline(&self, after: Duration) -> Deadline {
        self.env.deadline_in(after)
    }

    async fn greet(&self, open: &mut Open) -> Result<(), End> {
        let prologue = serve_prologue(&mut open.stream, &mut open.reader, &self.long_id);
        within(self.env.clock.as_ref(), self.deadline(self.limits.handshake_time), prologue)
            .await?
            .map_err(|error| End::Closed(error.to_string()))
    }

    /// Serves requests as long as they are of this lane. Gives the connection back when they are of another, and says of which.
    async fn serve_while(self: &Arc<Self>, lane: Lane, mut open: Open) -> Result<Option<(Open, Lane)>, End> {
        let clock = self.env.clock.as_ref();
        let mut habit = Habit::of(lane);
        loop {
            let Open { stream, reader, exposure, .. } = &mut open;
            let begun = reader.begin(stream);
            if !within(clock, self.deadline(self.limits.idle_time), begun).await?? {
                return Ok(None);
            }
            let deadline = self.deadline(self.limits.frame_time);
            if lane == Lane::Small {
                let length = within(clock, deadline, reader.peek_length(stream, self.limits.frame)).await?;
                // Whatever is wrong with it is said below. Whose it is stands at its end: the first one of maintenance is received as a
                // client's.
                if length.is_ok_and(|length| length > SMALL) {
                    return Ok(Some((open, Lane::Bulk)));
                }
            }
            // Its bytes are admitted before they are read, and count until nothing of it is needed any more.
            let frame = reader.frame_in(stream, self.limits.frame, &self.requests, |head| {
                Request::large_value_at(head, ALIGNED_FROM).unwrap_or(0)
            });
            let payload = match within(clock, deadline, frame).await? {
                Err(error @ FrameError::TooLong { .. }) => {
                    // Whatever follows cannot be told apart any more: said, and closed.
                    let refusal = Err(AsdError::BadRequest(error.to_string()));
                    self.answer_with(stream, Outgoing::of(Command::GetVersion, refusal)?).await?;
                    return Err(error.into());
                }
                other => other?,
            };
            let asked = payload.len();
            let (command, priority, answer) = self.answer(payload, *exposure).await;
            let answer = Outgoing::of(command, answer)?;
            let answered = answer.message.len();
            if lane == Lane::Small && answered > SMALL {
                // The last one of this lane.
                let (server, next) = (self.clone(), Lane::of_large(priority));
                let send = async move {
                    let sent = server.answer_with(&mut open.stream, answer).await;
                    sent.map(|()| (open, next))
                };
                let sent = elsewhere(self.threads(next).as_ref(), "asd answer", send).await;
                return sent.map_err(|_| End::Gone)?.map(Some);
            }
            self.answer_with(stream, answer).await?;
            let next = habit.after(asked.max(answered), priority);
            if next != lane {
                return Ok(Some((open, next)));
            }
        }
    }

    /// What to say to the payload of a frame, to which operation, and whose it was.
    async fn answer(
        &self,
        payload: Bytes,
        exposure: Exposure,
    ) -> (Command, Priority, Result<Answer, AsdError>) {
        let request = match Request::decode(payload) {
            Ok(request) => request,
            // An error is the same for all operations.
            Err(error) => return (Command::GetVersion, Priority::High, Err(error.into())),
        };
        let (command, priority) = (request.command(), request.priority());
        if !exposure.allows(command) {
            return (command, priority, Err(self.service.forbid()));
        }
        let deadline = self.deadline(self.limits.request_time);
        if !works_long(&request) || self.env.spawn.here() >= Here::Bulk {
            return (command, priority, self.service.answer(request, deadline).await);
        }
        let service = self.service.clone();
        let answer = async move { service.answer(request, deadline).await };
        let threads = self.threads(Lane::of_large(priority));
        let done = elsewhere(threads.as_ref(), "asd request", answer).await;
        (command, priority, done.unwrap_or_else(|gone| Err(AsdError::Unknown(gone.to_string()))))
    }

    async fn answer_with(&self, stream: &mut Stream, answer: Outgoing) -> Result<(), End> {
        let Outgoing { message, turn, _held } = answer;
        let mut sending = pin!(self.send(stream, &message));
        if let Some(turn) = turn {
            let sent = within(self.env.clock.as_ref(), self.deadline(KEPT_TURN), &mut sending).await;
            drop(turn);
            if let Ok(sent) = sent {
                return sent;
            }
        }
        sending.await
    }

    async fn send(&self, stream: &mut Stream, message: &Message) -> Result<(), End> {
        let write = async {
            write_message(stream, message).await?;
            stream.flush().await
        };
        within(self.env.clock.as_ref(), self.deadline(self.limits.frame_time), write).await??;
        Ok(())
    }
}

/// An answer on its way.
struct Outgoing {
    message: Message,
    /// Of maintenance, which keeps it for a while.
    turn: Option<Permit>,
    /// Its room, until it is sent.
    _held: Option<Answer>,
}

impl Outgoing {
    fn of(command: Command, answer: Result<Answer, AsdError>) -> Result<Self, End> {
        let (answer, held, turn) = match answer {
            Ok(mut answer) => {
                let turn = answer.turn.take();
                (Ok(answer.response.clone()), Some(answer), turn)
            }
            Err(error) => (Err(error), None, None),
        };
        let message = match encode_answer(command, &answer) {
            Ok(message) => message,
            Err(error) => encode_answer(command, &Err(AsdError::BadRequest(error.to_string())))
                .map_err(|error| End::Closed(error.to_string()))?,
        };
        Ok(Self { message, turn, _held: held })
    }
}
