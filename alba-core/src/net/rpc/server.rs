//! The answering side: a bounded number of connections, requests and bytes.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::Instrument;

use super::Answer;
use super::frame::{ABOUT_CONNECTION, FrameError, FrameReader, encode_frame};
use crate::env::spawn::AbortOnDrop;
use crate::env::{Deadline, Env, Listener, Stream, within};
use crate::request::{self, TraceId};
use crate::wire::rpc::watch::WatchReply;
use crate::wire::rpc::{MAX_REPLICATE, MAX_REPLY, Refusal, Reply, Request};

/// From here on a request is worth a log line: the original's figure (features §5.6).
const SLOW: Duration = Duration::from_millis(500);

/// What answers requests.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. `patience` is how long its sender still waits, when it said so; the handler has a deadline of
    /// its own besides. Dropped when the connection goes away.
    async fn handle(&self, request: Request, patience: Option<Duration>) -> Answer;
}

/// How much a server takes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerLimits {
    /// Connections at once; one more is told so and closed.
    pub connections: usize,
    /// Requests at once on one connection; further frames are not read before one is answered.
    pub requests_per_connection: usize,
    /// Of those, requests that wait for a change ([`Request::Watch`]); one more is told so at once.
    pub watches_per_connection: usize,
    /// Bytes of requests and answers in memory, over all connections. Requests wait for room.
    pub bytes: usize,
    /// A frame that has begun must be whole within this, and an answer taken by the peer.
    pub frame_time: Duration,
    /// A connection on which nothing happens is closed after this.
    pub idle_time: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 1024,
            requests_per_connection: 128,
            watches_per_connection: 4,
            bytes: 256 << 20,
            frame_time: Duration::from_secs(20),
            idle_time: Duration::from_secs(600),
        }
    }
}

/// A request this small is not counted: with the number of connections and requests its bytes are bounded anyway.
const SMALL: usize = 16 << 10;

/// After a failed accept (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

struct Server {
    env: Env,
    handler: Arc<dyn Handler>,
    limits: ServerLimits,
    bytes: Arc<Semaphore>,
}

/// Tasks that end when this is dropped.
#[derive(Default)]
struct Tasks(Arc<Mutex<TaskTable>>);

#[derive(Default)]
struct TaskTable {
    next: u64,
    running: BTreeMap<u64, Option<AbortOnDrop>>,
}

fn lock(table: &Mutex<TaskTable>) -> MutexGuard<'_, TaskTable> {
    // Consistent between any two statements that hold the lock.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tasks {
    fn len(&self) -> usize {
        lock(&self.0).running.len()
    }

    fn spawn(&self, env: &Env, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let number = {
            let mut table = lock(&self.0);
            let number = table.next;
            table.next = table.next.wrapping_add(1);
            table.running.insert(number, None);
            number
        };
        // Weak: a task must not keep the table alive whose end is to end it.
        let table = Arc::downgrade(&self.0);
        let handle = env.spawn.spawn(
            name,
            Box::pin(async move {
                work.await;
                if let Some(table) = table.upgrade() {
                    let ended = lock(&table).running.remove(&number);
                    // Dropped without the lock: aborting may run arbitrary code.
                    drop(ended);
                }
            }),
        );
        // It may be over already: then there is nothing to abort.
        if let Some(slot) = lock(&self.0).running.get_mut(&number) {
            *slot = Some(handle.abort_on_drop());
        }
    }
}

/// Accepts and serves until the listener fails; dropping the future closes every connection.
pub async fn serve(
    env: Env,
    mut listener: Box<dyn Listener>,
    handler: Arc<dyn Handler>,
    limits: ServerLimits,
) -> io::Error {
    let bytes = Arc::new(Semaphore::new(limits.bytes.min(Semaphore::MAX_PERMITS)));
    let server = Arc::new(Server { bytes, env, handler, limits });
    let tasks = Tasks::default();
    let mut failures: u32 = 0;
    loop {
        match listener.accept().await {
            Ok((mut stream, peer)) => {
                failures = 0;
                if tasks.len() >= server.limits.connections {
                    tracing::warn!(%peer, "too many connections: refused one");
                    say_goodbye(&server, &mut stream, Refusal::Overloaded, Duration::from_millis(100)).await;
                } else {
                    tasks.spawn(&server.env, "rpc-connection", connection(server.clone(), stream, peer));
                }
            }
            // Out of file descriptors, or a connection that was reset before it was accepted: both pass.
            Err(error) if failures < 100 => {
                failures += 1;
                tracing::warn!(%error, "cannot accept a connection");
                server.env.clock.sleep_until(server.env.clock.now().plus(ACCEPT_PAUSE)).await;
            }
            Err(error) => return error,
        }
    }
}

/// Tells the peer why its connection is closed, if it can be told.
async fn say_goodbye<W: AsyncWrite + Unpin>(server: &Server, to: &mut W, why: Refusal, patience: Duration) {
    let Ok(frame) = encode_frame(ABOUT_CONNECTION, 0, &Reply::Refused(why), MAX_REPLY) else { return };
    let written = async {
        to.write_all(&frame).await?;
        to.flush().await?;
        to.shutdown().await
    };
    // The peer may have gone: then there is nobody to tell.
    drop(within(server.env.clock.as_ref(), server.env.deadline_in(patience), written).await);
}

/// An answer on its way out, with the room its request and it take.
struct Outgoing {
    frame: Vec<u8>,
    _room: Option<OwnedSemaphorePermit>,
    _slot: OwnedSemaphorePermit,
}

async fn connection(server: Arc<Server>, stream: Stream, peer: SocketAddr) {
    let (read, mut write) = tokio::io::split(stream);
    let (answers, mut outgoing) = mpsc::channel::<Outgoing>(server.limits.requests_per_connection.max(1));
    let requests = Tasks::default();
    let end = tokio::select! {
        biased;
        end = read_requests(&server, read, &requests, answers) => end,
        end = write_answers(&server, &mut write, &mut outgoing) => Err(FrameError::Io(end)),
    };
    if let Err(error) = end {
        tracing::info!(%peer, %error, "connection closed");
        if !matches!(error, FrameError::Io(_) | FrameError::Half) {
            say_goodbye(&server, &mut write, Refusal::BadRequest(error.to_string()), ACCEPT_PAUSE * 20).await;
        }
    }
}

/// Room for `len` bytes; small ones need none.
async fn room(server: &Server, len: usize) -> Option<OwnedSemaphorePermit> {
    if len <= SMALL {
        return None;
    }
    let wanted = u32::try_from(len.min(server.limits.bytes)).unwrap_or(u32::MAX);
    // The semaphore is never closed.
    server.bytes.clone().acquire_many_owned(wanted).await.ok()
}

async fn read_requests(
    server: &Arc<Server>,
    stream: ReadHalf<Stream>,
    requests: &Tasks,
    answers: mpsc::Sender<Outgoing>,
) -> Result<(), FrameError> {
    let clock = server.env.clock.as_ref();
    let late = |what: &str| FrameError::Io(io::Error::new(io::ErrorKind::TimedOut, what));
    let slots = Arc::new(Semaphore::new(server.limits.requests_per_connection));
    // Watches hold their slots for long: without a bound of their own they could take all of them.
    let watches = Arc::new(Semaphore::new(server.limits.watches_per_connection));
    let mut frames = FrameReader::new(stream, MAX_REPLICATE);
    loop {
        // A full connection waits here for one of its own answers, which has its deadline.
        let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
        let idle = server.env.deadline_in(server.limits.idle_time);
        let announced =
            within(clock, idle, frames.announced()).await.map_err(|_| late("idle for too long"))?;
        let Some(len) = announced? else { return Ok(()) };
        let whole = server.env.deadline_in(server.limits.frame_time);
        let frame = async {
            let room = room(server, len).await;
            frames.body(len).await.map(|frame| (frame, room))
        };
        let (frame, room) =
            within(clock, whole, frame).await.map_err(|_| late("a frame took too long"))??;
        let correlation = frame.correlation;
        let patience = (frame.note > 0).then_some(Duration::from_micros(frame.note));
        let request = frame.decode::<Request>();
        let request = match request {
            Ok(request) if frame.len() > request.max_len() => {
                Err(FrameError::TooLong { len: frame.len(), max: request.max_len() })
            }
            other => other,
        };
        let trace = TraceId::new(frame.trace);
        drop(frame);
        let (server, answers) = (server.clone(), answers.clone());
        let env = server.env.clone();
        let place = match &request {
            Ok(Request::Watch(_)) => Some(watches.clone().try_acquire_owned()),
            _ => None,
        };
        requests.spawn(&env, "rpc-request", async move {
            let reply = match request {
                Ok(_) if matches!(place, Some(Err(_))) => {
                    metrics::counter!("alba_watch_refused_total").increment(1);
                    Reply::Watch(WatchReply::TooMany).into()
                }
                Ok(request) => handle(&server, trace, request, patience).await,
                // The frame was whole: the connection is sound, and a newer client may go on with what we know.
                Err(error) => Reply::Refused(Refusal::BadRequest(error.to_string())).into(),
            };
            drop(place);
            answer(&server, correlation, reply, room, slot, &answers).await;
        });
    }
}

/// Answers a request. What is logged meanwhile, here and by the servers that are asked in turn, has the id of the client's
/// request.
async fn handle(
    server: &Server,
    trace: Option<TraceId>,
    request: Request,
    patience: Option<Duration>,
) -> Answer {
    let Some(id) = trace else { return server.handler.handle(request, patience).await };
    let clock = server.env.clock.as_ref();
    let (name, started) = (request.name(), clock.now());
    let work = async {
        let answer = server.handler.handle(request, patience).await;
        let took = clock.now().since(started);
        match took {
            slow if slow >= SLOW => tracing::info!(name, ?took, "slow request of a client's request"),
            _ => tracing::debug!(name, ?took, "answered"),
        }
        answer
    };
    let span = tracing::info_span!("request", %id);
    request::Request::new(trace, None).scope(work).instrument(span).await
}

async fn answer(
    server: &Server,
    correlation: u64,
    Answer { reply, index }: Answer,
    request_room: Option<OwnedSemaphorePermit>,
    slot: OwnedSemaphorePermit,
    answers: &mpsc::Sender<Outgoing>,
) {
    let frame = match encode_frame(correlation, index, &reply, MAX_REPLY) {
        Ok(frame) => frame,
        Err(error) => {
            let refused = Reply::Refused(Refusal::BadRequest(format!("the answer is {error}")));
            match encode_frame(correlation, 0, &refused, MAX_REPLY) {
                Ok(frame) => frame,
                Err(_) => return,
            }
        }
    };
    drop(reply);
    // The request's room is given back first: waiting for more while holding some could wait for ever.
    drop(request_room);
    let patience = server.env.deadline_in(server.limits.frame_time);
    let Ok(room) = within(server.env.clock.as_ref(), patience, room(server, frame.len())).await else {
        return;
    };
    // The connection may have gone meanwhile.
    drop(answers.send(Outgoing { frame, _room: room, _slot: slot }).await);
}

/// Runs until writing fails.
async fn write_answers(
    server: &Server,
    stream: &mut WriteHalf<Stream>,
    outgoing: &mut mpsc::Receiver<Outgoing>,
) -> io::Error {
    let clock = server.env.clock.as_ref();
    loop {
        // The reader holds a sender: this ends only with the connection.
        let Some(next) = outgoing.recv().await else { return io::ErrorKind::BrokenPipe.into() };
        let patience: Deadline = server.env.deadline_in(server.limits.frame_time);
        let written = async {
            stream.write_all(&next.frame).await?;
            stream.flush().await
        };
        match within(clock, patience, written).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(_) => return io::Error::new(io::ErrorKind::TimedOut, "the peer does not take its answers"),
        }
    }
}
