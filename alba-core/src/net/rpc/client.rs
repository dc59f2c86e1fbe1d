//! The calling side: many calls in flight over one connection.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::Answer;
use super::frame::{ABOUT_CONNECTION, FrameError, FrameReader, encode_traced};
use crate::env::spawn::AbortOnDrop;
use crate::env::{Clock, Deadline, Env, Moment, Stream, elsewhere, within};
use crate::request;
use crate::wire::rpc::{MAX_REPLY, Reply, Request};

/// Frames that wait for the writer; with [`Request::max_len`] this bounds their bytes. Callers wait for room, to their
/// deadline.
const QUEUE: usize = 32;

/// Why a call gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RpcError {
    /// No connection came about; the request was not sent.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke; whether the request was executed is unknown.
    #[error("connection lost: {0}")]
    Lost(String),
    /// No answer by the deadline; whether the request was executed is unknown.
    #[error("no answer by the deadline")]
    Timeout,
    /// The request is longer than a server takes; it was not sent.
    #[error("request of {len} bytes; at most {max} are allowed")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
}

/// A connection on which many calls run at once. It is never repaired: once [`Self::is_broken`], its owner opens
/// another one.
pub struct RpcConnection {
    outgoing: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
    _reader: AbortOnDrop,
    _writer: AbortOnDrop,
}

struct Shared {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    next: u64,
    last_heard: Moment,
    broken: Option<RpcError>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements that hold the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection: all that wait learn it at once.
    fn fail(&self, error: RpcError) {
        let mut state = self.lock();
        state.broken.get_or_insert(error);
        state.waiting.clear();
    }
}

/// Forgets a call when its future is dropped, so that a cancelled call leaves nothing behind.
struct Waiting<'a> {
    shared: &'a Shared,
    correlation: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.correlation);
    }
}

impl RpcConnection {
    /// Connects.
    pub async fn open(env: &Env, to: SocketAddr, deadline: Deadline) -> Result<Self, RpcError> {
        // Where the tasks of the connection run: many will share it, whoever was the first to need it.
        let net = env.net.clone();
        let connect = async move { net.connect(to, deadline).await };
        let failed = |error: &dyn fmt::Display| RpcError::Connect(format!("{to}: {error}"));
        let stream =
            elsewhere(env.spawn.as_ref(), "rpc-connect", connect).await.map_err(|gone| failed(&gone))?;
        Ok(Self::over(env, stream.map_err(|error| failed(&error))?))
    }

    /// Speaks over a stream that exists already.
    pub fn over(env: &Env, stream: Stream) -> Self {
        let (read, write) = tokio::io::split(stream);
        let (outgoing, frames) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            clock: env.clock.clone(),
            state: Mutex::new(State {
                waiting: BTreeMap::new(),
                next: ABOUT_CONNECTION + 1,
                last_heard: env.clock.now(),
                broken: None,
            }),
        });
        let reader = env.spawn.spawn("rpc-client-read", Box::pin(read_replies(read, shared.clone())));
        let writer =
            env.spawn.spawn("rpc-client-write", Box::pin(write_frames(write, frames, shared.clone())));
        Self { outgoing, shared, _reader: reader.abort_on_drop(), _writer: writer.abort_on_drop() }
    }

    /// Will every further call fail?
    pub fn is_broken(&self) -> bool {
        self.shared.lock().broken.is_some()
    }

    /// Sends a request and waits for its answer. May be dropped at any time. A connection that was silent for the whole
    /// time of a call that timed out counts as broken.
    pub async fn call(&self, message: &Request, deadline: Deadline) -> Result<Answer, RpcError> {
        let started = self.shared.clock.now();
        let (answer, reply) = oneshot::channel();
        let correlation = {
            let mut state = self.shared.lock();
            if let Some(error) = &state.broken {
                return Err(error.clone());
            }
            let correlation = state.next;
            state.next = state.next.saturating_add(1);
            state.waiting.insert(correlation, answer);
            correlation
        };
        let _waiting = Waiting { shared: &self.shared, correlation };
        let left = deadline.left(self.shared.clock.as_ref());
        let note = u64::try_from(left.as_micros()).unwrap_or(u64::MAX).max(1);
        let frame = encode_traced(correlation, note, request::trace(), message, message.max_len()).map_err(
            |error| match error {
                FrameError::TooLong { len, max } => RpcError::TooLarge { len, max },
                other => RpcError::Connect(other.to_string()),
            },
        )?;
        let call = async {
            // Both ends of these channels go only when the connection has failed, and then it says why.
            self.outgoing.send(frame).await.map_err(|_| ())?;
            reply.await.map_err(|_| ())
        };
        match within(self.shared.clock.as_ref(), deadline, call).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(())) => {
                Err(self.shared.lock().broken.clone().unwrap_or(RpcError::Lost("closed".to_owned())))
            }
            Err(_) => {
                let silent = self.shared.lock().last_heard <= started;
                if silent {
                    self.shared.fail(RpcError::Lost("the peer is silent".to_owned()));
                }
                Err(RpcError::Timeout)
            }
        }
    }
}

async fn read_replies(stream: ReadHalf<Stream>, shared: Arc<Shared>) {
    let mut frames = FrameReader::new(stream, MAX_REPLY);
    let error = loop {
        let frame = match frames.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => break RpcError::Lost("closed by the peer".to_owned()),
            Err(error) => break RpcError::Lost(error.to_string()),
        };
        let reply = match frame.decode::<Reply>() {
            Ok(reply) => reply,
            Err(error) => break RpcError::Lost(error.to_string()),
        };
        if frame.correlation == ABOUT_CONNECTION {
            break RpcError::Lost(match reply {
                Reply::Refused(refusal) => format!("closed by the peer: {refusal:?}"),
                _ => "an answer to no request".to_owned(),
            });
        }
        let mut state = shared.lock();
        state.last_heard = shared.clock.now();
        // Nobody waits any more when the call was cancelled or timed out.
        if let Some(waiter) = state.waiting.remove(&frame.correlation) {
            drop(waiter.send(Answer { reply, index: frame.note }));
        }
    };
    shared.fail(error);
}

/// The only one that writes, so that a cancelled call never leaves half a frame on the stream.
async fn write_frames(
    mut stream: WriteHalf<Stream>,
    mut frames: mpsc::Receiver<Vec<u8>>,
    shared: Arc<Shared>,
) {
    while let Some(frame) = frames.recv().await {
        let written = async {
            stream.write_all(&frame).await?;
            stream.flush().await
        };
        if let Err(error) = written.await {
            shared.fail(RpcError::Lost(error.to_string()));
            return;
        }
    }
}
