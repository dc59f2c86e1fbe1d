//! The one writer: drains the queue, decides each batch against all before it, and writes what passed in groups, several
//! of them in flight, each with one sync. It has a thread of its own, where it encodes, hashes and looks into the index without
//! waking another; groups are written by tasks of theirs, since they may have to wait for what the writer waits for, too.
//!
//! It must never answer "done" before the group's bytes are durable, never put a batch into the index before that, never
//! answer out of order, and never write again where a write or sync failed.

mod group;
mod heads;
mod plan;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use alba_core::env::osd::{OsdAssert, OsdError};
use alba_core::env::{Deadline, blocking};
use alba_core::kv::KvError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::Shared;
use super::decide::{Overlay, PreparedUpdate};
use super::format::offset;
use super::index::{Changed, Index, Range};
use super::recovery::{self, Recovered};
use super::relocate::Relocation;
use super::segment::{PreparedFile, Segment};

use group::{InFlight, Planned};

/// Most batches of one group.
const GROUP_BATCHES: usize = 256;

/// Groups that are written at the same time whatever their size. The second to fourth hide the latency of the sync of the
/// first; more only made groups of small values smaller.
const IN_FLIGHT: usize = 4;

/// Most groups that are written at the same time, when those in flight have [`LARGE_GROUP`] on average: such take the
/// disk longer than their sync does, and a disk is at its best with many of them. With twice as many the handing over of
/// smaller groups cost as much as it gained.
const LARGE_IN_FLIGHT: usize = 8;

/// A group of so many bytes is large.
const LARGE_GROUP: u64 = 512 << 10;

/// Rows of deleted ranges that are removed in one go.
const SWEEP_ROWS: usize = 1000;

/// A batch that waits to be written.
pub(crate) struct Waiting {
    pub asserts: Vec<OsdAssert>,
    pub updates: Vec<PreparedUpdate>,
    /// Bytes of it that count.
    pub bytes: u64,
    pub deadline: Deadline,
    pub answer: oneshot::Sender<Result<(), OsdError>>,
    /// Its part of the bytes that may wait; given back when it is answered.
    pub room: OwnedSemaphorePermit,
}

/// What the writer is asked for.
pub(crate) enum Request {
    Apply(Box<Waiting>),
    /// Move what still lives out of a segment, as far as it is still there.
    Relocate(Relocation, oneshot::Sender<Result<(), OsdError>>),
    /// Remove some rows of what a range has deleted; answered with true when none are left.
    Sweep(Box<Range>, oneshot::Sender<Result<bool, OsdError>>),
    /// Take in a file with all its blocks written, as a free segment.
    Prepared(PreparedFile, oneshot::Sender<Result<(), OsdError>>),
    /// Open the index again, when it failed.
    Reopen(oneshot::Sender<Result<(), OsdError>>),
    /// Gives the blocks of a free segment back to the file system; answered with false when there is none to give.
    Punch(oneshot::Sender<Result<bool, OsdError>>),
    /// Make the index durable and end.
    Close(oneshot::Sender<()>),
}

struct Head {
    segment: Segment,
    /// Where the next batch goes.
    at: u64,
    /// Where the last durable batch ends.
    durable: u64,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    head: Option<Head>,
    /// The last batch that is durable and in the index.
    last: u64,
    /// The last batch that is planned.
    planned_last: u64,
    next: u64,
    generation: u64,
    slots: u64,
    overlay: Overlay,
    /// The group in the making, to be written at the head.
    planned: Vec<Planned>,
    in_flight: VecDeque<InFlight>,
    /// Number of the group in the making.
    group: u64,
    /// The index has all groups up to this one.
    applied: u64,
    /// A head failed and nothing durable says yet where the history ends in it: what failed there might still be found
    /// after a crash. Nothing may be decided, not even that nothing is to be done, before that is settled.
    unsettled: bool,
}

/// What the main loop does next.
enum Next {
    Request(Option<Request>),
    GroupDone,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, recovered: Recovered) -> Self {
        let Recovered { head, last, next, generation, slots, segments, table, used, index, .. } = recovered;
        for segment in segments {
            shared.files.insert(segment.number(), segment.seed().generation, segment.file.clone());
        }
        shared.cache.forget_all();
        shared.space.set_used(used);
        *shared.table() = table;
        shared.set_index(Some(index));
        let head = head.map(|(segment, at)| Head { segment, at, durable: at });
        Self {
            shared,
            head,
            last,
            planned_last: last,
            next,
            generation,
            slots,
            overlay: Overlay::default(),
            planned: Vec::new(),
            in_flight: VecDeque::new(),
            group: 1,
            applied: 0,
            unsettled: false,
        }
    }

    /// Serves until all senders are gone or it is told to close.
    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        loop {
            // The index has them, and what is decided next looks there. Kept, they would keep their requests in memory.
            self.overlay.applied(self.applied);
            match self.next(&mut queue).await {
                Next::GroupDone => self.complete_oldest().await,
                Next::Request(Some(first)) => {
                    if let Some(answer) = self.take(first, &mut queue).await {
                        self.end().await;
                        let _ = answer.send(());
                        return;
                    }
                }
                Next::Request(None) => return self.end().await,
            }
        }
    }

    /// May one more group begin to be written?
    fn may_begin(&self) -> bool {
        let groups = self.in_flight.len();
        let large = || {
            let bytes: u64 = self.in_flight.iter().map(InFlight::bytes).sum();
            bytes >= offset(groups).saturating_mul(LARGE_GROUP)
        };
        groups < IN_FLIGHT || (groups < LARGE_IN_FLIGHT && large())
    }

    async fn next(&mut self, queue: &mut mpsc::Receiver<Request>) -> Next {
        let may_take = self.may_begin();
        match self.in_flight.front_mut() {
            None => Next::Request(queue.recv().await),
            Some(oldest) if !may_take => {
                oldest.wait().await;
                Next::GroupDone
            }
            Some(oldest) => tokio::select! {
                biased;
                () = oldest.wait() => Next::GroupDone,
                request = queue.recv() => Next::Request(request),
            },
        }
    }

    /// Takes a request and what waits behind it, up to a group. Gives back who waits for the end, when it is to end.
    async fn take(
        &mut self,
        first: Request,
        queue: &mut mpsc::Receiver<Request>,
    ) -> Option<oneshot::Sender<()>> {
        let mut group = Vec::new();
        let mut bytes = 0;
        let mut request = Some(first);
        let mut other = None;
        while let Some(taken) = request {
            match taken {
                Request::Apply(waiting) => {
                    bytes += waiting.bytes;
                    group.push(*waiting);
                }
                not_a_batch => {
                    other = Some(not_a_batch);
                    break;
                }
            }
            let more = bytes < self.shared.config.group_bytes && group.len() < GROUP_BATCHES;
            request = if more { queue.try_recv().ok() } else { None };
        }
        if !group.is_empty() {
            self.serve(group).await;
        }
        match other? {
            Request::Close(answer) => return Some(answer),
            Request::Relocate(relocation, answer) => self.relocate(relocation, answer).await,
            Request::Sweep(range, answer) => {
                drop(answer.send(self.sweep(*range).await));
            }
            Request::Prepared(prepared, answer) => {
                drop(answer.send(self.add_free(prepared).await));
            }
            Request::Reopen(answer) => {
                drop(answer.send(self.index().await.map(drop)));
            }
            Request::Punch(answer) => {
                drop(answer.send(self.punch().await));
            }
            // Collected above.
            Request::Apply(_) => {}
        }
        None
    }

    /// Finishes what is in flight and makes the index durable.
    async fn end(&mut self) {
        drop(self.drain().await);
        if let Ok(index) = self.shared.index() {
            // What is not synced is replayed at the next start.
            drop(self.blocking(move || index.sync()).await);
        }
        self.shared.set_index(None);
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, KvError> + Send + 'static,
    ) -> Result<T, OsdError> {
        match blocking(self.shared.sources.spawn.as_ref(), work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                self.shared.status.index_failed(&error);
                if matches!(error, KvError::Damaged(_)) {
                    self.shared.sources.index_is_damaged.store(true, Ordering::Relaxed);
                }
                Err(OsdError::Device(error.to_string()))
            }
            Err(gone) => {
                self.shared.status.index_failed(&gone);
                Err(OsdError::Device(gone.to_string()))
            }
        }
    }

    /// The index; opened again when it failed.
    async fn index(&mut self) -> Result<Arc<Index>, OsdError> {
        if let Ok(index) = self.shared.index() {
            return Ok(index);
        }
        // Nothing may be written any more while the segments are read.
        drop(self.drain().await);
        // The segments are the truth: everything is found again as at a start.
        match recovery::recover(&self.shared.sources).await {
            Ok(recovered) => {
                let index = recovered.index.clone();
                self.shared.status.opened(recovered.damage.clone());
                *self = Self::new(self.shared.clone(), recovered);
                Ok(index)
            }
            Err(error) => {
                self.shared.status.index_failed(&error);
                Err(OsdError::Device(format!("the store cannot be opened again: {error}")))
            }
        }
    }

    /// The index gave `changed`, or failed: then it has to be opened again.
    fn account(&self, changed: Result<Changed, OsdError>) -> Result<(), OsdError> {
        match changed {
            Ok(changed) => {
                self.shared.space.set_used(changed.used);
                self.shared.table().set_live(&changed.live);
                Ok(())
            }
            Err(error) => {
                self.shared.set_index(None);
                Err(error)
            }
        }
    }

    /// Removes rows of what `range` has deleted. Nothing of the history changes: were it lost, it would be done again.
    async fn sweep(&mut self, range: Range) -> Result<bool, OsdError> {
        // What is in flight may replace such a row.
        self.drain().await?;
        let index = self.index().await?;
        match self.blocking(move || index.sweep(&range, SWEEP_ROWS)).await {
            Ok((changed, done)) => self.account(Ok(changed)).map(|()| done),
            Err(error) => self.account(Err(error)).map(|()| false),
        }
    }
}
