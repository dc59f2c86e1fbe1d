//! Streams: a group's whole state, read by an operator in pieces while commands go on.
//!
//! A thread that may block holds one view of the store and makes pieces of it; few wait for the operator at a time. A stream
//! that nobody asks for ends, and so does one whose store was closed: a view must not keep it from being opened again.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Deadline, Env, Moment, within};
use alba_core::ids::GroupId;
use alba_core::kv::{KvError, KvRead};
use alba_core::wire::rpc::admin::{AdminError, AdminReply, StreamKind};
use alba_core::wire::rpc::{Consistency, Refusal, Reply};
use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};

use super::{ABM, Node, refused};
use crate::backup::inspect::WhileWanted;
use crate::backup::{ModelKind, check, export, make};
use crate::replicator::{ReadWork, ReplicationError, Replicator};

/// At once on one server: each holds a thread and up to [`QUEUE`] + 3 pieces.
pub(super) const MOST: usize = 2;

/// Pieces that wait to be asked for.
const QUEUE: usize = 2;

/// Bytes of a piece of lines, about.
const PIECE: usize = 256 << 10;

/// A stream that nobody asks for this long ends.
const IDLE: Duration = Duration::from_secs(60);

/// How often it is looked for such.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Longest a stream may take.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// Longest `Next` waits for a piece before it says so.
const PATIENCE: Duration = Duration::from_secs(3);

enum Piece {
    Bytes(Bytes),
    End,
    Failed(String),
}

struct Stream {
    group: GroupId,
    used: Moment,
    pull: Arc<tokio::sync::Mutex<Pull>>,
    _read: AbortOnDrop,
}

/// The side of the operator.
struct Pull {
    pieces: mpsc::Receiver<Piece>,
    /// Number of the next piece.
    next: u64,
    /// The piece before, for whom its answer was lost.
    before: Option<(Bytes, bool)>,
}

type Table = Arc<Mutex<BTreeMap<u64, Stream>>>;

/// The streams of a server.
pub(super) struct Streams {
    env: Env,
    table: Table,
    _look: AbortOnDrop,
}

fn lock(table: &Table) -> MutexGuard<'_, BTreeMap<u64, Stream>> {
    // Consistent between any two statements that hold the lock.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Streams {
    pub(super) fn new(env: &Env) -> Self {
        let table = Table::default();
        let look = {
            let (env, table) = (env.clone(), table.clone());
            async move {
                loop {
                    env.clock.sleep_until(env.clock.now().plus(LOOK_EVERY)).await;
                    let now = env.clock.now();
                    lock(&table).retain(|_, stream| now.since(stream.used) < IDLE);
                }
            }
        };
        let look = env.spawn.spawn("metadata-streams", Box::pin(look)).abort_on_drop();
        Self { env: env.clone(), table, _look: look }
    }

    /// Begins one. `begin` reads the group.
    async fn open(
        &self,
        group: &GroupId,
        what: StreamKind,
        deadline: Deadline,
        begin: impl FnOnce(ReadWork, Deadline) -> ReadTask,
    ) -> Reply {
        let (send, pieces) = mpsc::channel(QUEUE);
        let (started, begun) = oneshot::channel();
        let (ended, result) = oneshot::channel();
        let taken = self.env.clock.wall_micros();
        let work = work(group.clone(), what, taken, started, send.clone());
        let read = begin(work, self.env.deadline_in(LONGEST));
        let read = async move {
            if let Err(error) = read.await {
                let reason = error.to_string();
                // The first that still listens hears of it.
                if ended.send(error).is_err() {
                    drop(send.send(Piece::Failed(reason)).await);
                }
            }
        };
        let id = self.env.rng.u64();
        let pull = Arc::new(tokio::sync::Mutex::new(Pull { pieces, next: 0, before: None }));
        {
            let mut table = lock(&self.table);
            if table.len() >= MOST {
                return Reply::Admin(Err(AdminError::TooManyStreams(MOST)));
            }
            let read = self.env.spawn.spawn("metadata-stream", Box::pin(read)).abort_on_drop();
            table.insert(id, Stream { group: group.clone(), used: self.env.clock.now(), pull, _read: read });
        }
        let reply = match within(self.env.clock.as_ref(), deadline, begun).await {
            Ok(Ok(())) => return Reply::Admin(Ok(AdminReply::Opened { stream: id })),
            Ok(Err(_)) => match within(self.env.clock.as_ref(), deadline, result).await {
                Ok(Ok(error)) => refused(&error),
                _ => refused(&ReplicationError::Stopped),
            },
            Err(_) => refused(&ReplicationError::Timeout),
        };
        self.close(id);
        reply
    }

    fn close(&self, id: u64) {
        drop(lock(&self.table).remove(&id));
    }

    /// The pieces of a stream of this group, which was used now.
    fn pull(&self, group: &GroupId, id: u64) -> Option<Arc<tokio::sync::Mutex<Pull>>> {
        let mut table = lock(&self.table);
        let stream = table.get_mut(&id).filter(|stream| stream.group == *group)?;
        stream.used = self.env.clock.now();
        Some(stream.pull.clone())
    }

    async fn next(&self, group: &GroupId, id: u64, number: u64, deadline: Deadline) -> Reply {
        let admin = |reply| Reply::Admin(Ok(reply));
        let Some(pull) = self.pull(group, id) else {
            return Reply::Admin(Err(AdminError::StreamUnknown));
        };
        let clock = self.env.clock.as_ref();
        let patience = self.env.deadline_in(PATIENCE.min(deadline.left(clock)));
        let Ok(mut pull) = within(clock, patience, pull.lock()).await else { return admin(AdminReply::Wait) };
        if let Some((bytes, last)) = pull.before.clone().filter(|_| number.checked_add(1) == Some(pull.next))
        {
            return admin(AdminReply::Piece { bytes, last });
        }
        if number != pull.next || pull.before.as_ref().is_some_and(|(_, last)| *last) {
            return Reply::Admin(Err(AdminError::StreamUnknown));
        }
        let (bytes, last) = match within(clock, patience, pull.pieces.recv()).await {
            Err(_) => return admin(AdminReply::Wait),
            Ok(Some(Piece::Bytes(bytes))) => (bytes, false),
            Ok(Some(Piece::End)) => (Bytes::new(), true),
            Ok(Some(Piece::Failed(reason))) => {
                self.close(id);
                return Reply::Admin(Err(AdminError::Failed(reason)));
            }
            Ok(None) => {
                self.close(id);
                return Reply::Admin(Err(AdminError::StreamUnknown));
            }
        };
        pull.next = number.saturating_add(1);
        pull.before = Some((bytes.clone(), last));
        admin(AdminReply::Piece { bytes, last })
    }
}

type ReadTask = std::pin::Pin<Box<dyn Future<Output = Result<(), ReplicationError>> + Send>>;

fn send(pieces: &mpsc::Sender<Piece>, piece: Piece) -> ControlFlow<()> {
    let sent = match pieces.try_send(piece) {
        Ok(()) => true,
        // Full: this thread may block, until the stream is given up.
        Err(mpsc::error::TrySendError::Full(piece)) => pieces.blocking_send(piece).is_ok(),
        Err(mpsc::error::TrySendError::Closed(_)) => false,
    };
    if sent { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// What the thread does with its view.
fn work(
    group: GroupId,
    what: StreamKind,
    taken: u64,
    started: oneshot::Sender<()>,
    pieces: mpsc::Sender<Piece>,
) -> ReadWork {
    Box::new(move |view: &dyn KvRead| {
        if started.send(()).is_err() {
            return Ok(());
        }
        match fill(view, &group, what, taken, &pieces) {
            // Whoever asked may have gone.
            Ok(()) => drop(send(&pieces, Piece::End)),
            Err(error) => drop(send(&pieces, Piece::Failed(error.to_string()))),
        }
        Ok(())
    })
}

fn fill(
    view: &dyn KvRead,
    group: &GroupId,
    what: StreamKind,
    taken: u64,
    pieces: &mpsc::Sender<Piece>,
) -> Result<(), KvError> {
    let model = ModelKind::of(group);
    let wanted = || !pieces.is_closed();
    let view = WhileWanted { view, wanted: &wanted };
    let mut lines = BytesMut::new();
    let mut line = |line: String| {
        lines.extend_from_slice(line.as_bytes());
        lines.extend_from_slice(b"\n");
        if lines.len() < PIECE {
            return ControlFlow::Continue(());
        }
        send(pieces, Piece::Bytes(lines.split().freeze()))
    };
    match what {
        StreamKind::Backup => {
            return make::pieces(&view, group, taken, &mut |piece| send(pieces, Piece::Bytes(piece)));
        }
        StreamKind::Check => {
            for difference in check(model, &view)? {
                if line(difference).is_break() {
                    return Ok(());
                }
            }
        }
        StreamKind::Export => export(model, &view, &mut line)?,
    }
    // What is left; a stream that was given up does not mind.
    let _ = send(pieces, Piece::Bytes(lines.freeze()));
    Ok(())
}

impl Node {
    /// Why no view of the group's store may be held; none when one may.
    fn store_trouble(&self, group: &GroupId) -> Option<String> {
        match self.rafts.get(group) {
            Some(raft) => raft.status().err().map(|error| error.to_string()),
            None if group.as_str() == ABM => self.groups.abm.as_ref().and_then(|abm| abm.trouble()),
            None => self.groups.nsm.get(group).and_then(|nsm| nsm.trouble()),
        }
    }

    pub(super) async fn open_stream(
        &self,
        group: &GroupId,
        what: StreamKind,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Reply {
        fn reading<M: crate::model::Model>(
            group: Arc<dyn Replicator<M>>,
            consistency: Consistency,
        ) -> impl FnOnce(ReadWork, Deadline) -> ReadTask {
            move |work, deadline| {
                Box::pin(async move { group.read(work, consistency, deadline).await.map(|_| ()) })
            }
        }
        if group.as_str() == ABM
            && let Some(abm) = &self.groups.abm
        {
            return self.streams.open(group, what, deadline, reading(abm.clone(), consistency)).await;
        }
        match self.groups.nsm.get(group) {
            Some(nsm) => self.streams.open(group, what, deadline, reading(nsm.clone(), consistency)).await,
            None => Reply::Refused(Refusal::UnknownGroup),
        }
    }

    pub(super) async fn next_piece(
        &self,
        group: &GroupId,
        stream: u64,
        number: u64,
        deadline: Deadline,
    ) -> Reply {
        if let Some(trouble) = self.store_trouble(group) {
            self.streams.close(stream);
            return Reply::Admin(Err(AdminError::Failed(trouble)));
        }
        self.streams.next(group, stream, number, deadline).await
    }

    pub(super) fn close_stream(&self, stream: u64) -> Reply {
        self.streams.close(stream);
        Reply::Admin(Ok(AdminReply::Done))
    }
}
