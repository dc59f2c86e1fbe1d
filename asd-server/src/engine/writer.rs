//! The one writer: drains the queue, decides each batch, and writes what passed as one group with one sync.
//!
//! It must never answer "done" before the group's bytes are durable, never put a batch into the index before that, and
//! never write again where a write or sync failed.

use std::io;
use std::sync::Arc;

use alba_core::env::osd::{OsdAssert, OsdBatch, OsdError, OsdKey};
use alba_core::env::{Deadline, DiskFile, blocking};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::accounting::allowed_when_full;
use super::batch::{self, Change, Encoded};
use super::decide::{View, keys};
use super::format::{BLOCK_BYTES, Chain, INLINE_MAX, Seed, SegmentHeader};
use super::index::{Applied, Entry, Index, Live, Location};
use super::recovery::{self, Recovered};
use super::segment::{self, Segment};
use super::{Shared, reader};

/// Most batches of one group.
const GROUP_BATCHES: usize = 256;

/// A batch that waits to be written.
pub(crate) struct Waiting {
    pub batch: OsdBatch,
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
    /// Make the index durable and end.
    Close(oneshot::Sender<()>),
}

/// A batch that is decided: its place in the head segment when it changes anything, and what to answer once the group
/// is durable.
struct Planned {
    outcome: Result<(), OsdError>,
    changes: Vec<Change>,
    sequence: u64,
    at: u64,
    encoded: Encoded,
    answer: oneshot::Sender<Result<(), OsdError>>,
    _room: OwnedSemaphorePermit,
}

struct Head {
    segment: Segment,
    at: u64,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    head: Option<Head>,
    last: u64,
    next: u64,
    next_segment: u64,
    /// Oldest first, the head included.
    segments: Vec<u64>,
    /// The group in the making, to be written at the head.
    planned: Vec<Planned>,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, recovered: Recovered) -> Self {
        let Recovered { head, last, next, next_segment, segments, .. } = recovered;
        let head = head.map(|(segment, at)| Head { segment, at });
        Self { shared, head, last, next, next_segment, segments, planned: Vec::new() }
    }

    /// Serves until all senders are gone or it is told to close.
    pub(crate) async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.recv().await {
            let mut group = Vec::new();
            let mut bytes = 0;
            let mut closing = None;
            let mut request = Some(first);
            while let Some(taken) = request {
                match taken {
                    Request::Apply(waiting) => {
                        bytes += waiting.bytes;
                        group.push(*waiting);
                    }
                    Request::Close(answer) => {
                        closing = Some(answer);
                        break;
                    }
                }
                let more = bytes < self.shared.config.group_bytes && group.len() < GROUP_BATCHES;
                request = if more { queue.try_recv().ok() } else { None };
            }
            self.serve(group).await;
            if let Some(answer) = closing {
                if let Ok(index) = self.shared.index() {
                    // What is not synced is replayed at the next start.
                    drop(self.blocking(move || index.sync()).await);
                }
                self.shared.set_index(None);
                let _ = answer.send(());
                return;
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, alba_core::kv::KvError> + Send + 'static,
    ) -> Result<T, OsdError> {
        match blocking(self.shared.sources.spawn.as_ref(), work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                self.shared.status.index_failed(&error);
                Err(OsdError::Device(error.to_string()))
            }
            Err(gone) => {
                self.shared.status.index_failed(&gone);
                Err(OsdError::Device(gone.to_string()))
            }
        }
    }

    /// Decides, writes and answers a group.
    async fn serve(&mut self, group: Vec<Waiting>) {
        let index = match self.index().await {
            Ok(index) => index,
            Err(error) => return refuse(group, &error),
        };
        let all: Vec<OsdKey> = group.iter().flat_map(|waiting| keys(&waiting.batch)).collect();
        let looked_up = {
            let (index, all) = (index.clone(), all.clone());
            self.blocking(move || index.lookup(&all)).await
        };
        let mut view = match looked_up {
            Ok(entries) => View::new(all, entries),
            Err(error) => {
                self.shared.set_index(None);
                return refuse(group, &error);
            }
        };
        let mut failure = None;
        for waiting in group {
            let Waiting { batch, deadline, answer, room, .. } = waiting;
            let refusal = if let Some(error) = &failure {
                Some(OsdError::clone(error))
            } else if deadline.left(self.shared.clock.as_ref()).is_zero() {
                // Nobody waits for it any more: as good as never arrived.
                Some(OsdError::Timeout)
            } else if self.shared.space.is_full() && !allowed_when_full(&batch.updates) {
                Some(OsdError::Full)
            } else {
                self.check(&batch.asserts, &view).await.err()
            };
            if let Some(error) = refusal {
                self.settle(Err(error), answer, room);
                continue;
            }
            let head_room = !allowed_when_full(&batch.updates);
            let changes = view.changes(batch.updates);
            if changes.is_empty() {
                self.settle(Ok(()), answer, room);
                continue;
            }
            if let Err(error) = self.make_room(batch::encoded_len(&changes), head_room).await {
                drop(answer.send(Err(error.clone())));
                if !matches!(error, OsdError::Full) {
                    failure = Some(error);
                }
                continue;
            }
            view.add(&changes);
            self.plan(changes, answer, room);
        }
        drop(self.flush().await);
    }

    /// The index; opened again when it failed.
    async fn index(&mut self) -> Result<Arc<Index>, OsdError> {
        if let Ok(index) = self.shared.index() {
            return Ok(index);
        }
        // The segments are the truth: everything is found again as at a start.
        match recovery::recover(&self.shared.sources).await {
            Ok(recovered) => {
                let index = recovered.index.clone();
                self.shared.space.set_used(recovered.used);
                self.shared.set_index(Some(index.clone()));
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

    async fn check(&self, asserts: &[OsdAssert], view: &View) -> Result<(), OsdError> {
        for assert in asserts {
            if let (Some(entry), OsdAssert::Value(key, expected)) = (view.check(assert)?, assert) {
                let stored = reader::value(&self.shared, key, entry).await?;
                if stored.value != *expected {
                    return Err(OsdError::AssertFailed(key.clone()));
                }
            }
        }
        Ok(())
    }

    /// Answers a batch that changes nothing. When it may have been decided by a batch that is not durable yet, it is
    /// answered with the group.
    fn settle(
        &mut self,
        outcome: Result<(), OsdError>,
        answer: oneshot::Sender<Result<(), OsdError>>,
        room: OwnedSemaphorePermit,
    ) {
        if self.planned.is_empty() {
            drop(answer.send(outcome));
            return;
        }
        let encoded = Encoded { parts: Vec::new(), offsets: Vec::new(), len: 0 };
        let (sequence, at) = (self.next, 0);
        self.planned.push(Planned {
            outcome,
            changes: Vec::new(),
            sequence,
            at,
            encoded,
            answer,
            _room: room,
        });
    }

    /// Gives the batch its number and its place. There is a head with room for it.
    fn plan(
        &mut self,
        changes: Vec<Change>,
        answer: oneshot::Sender<Result<(), OsdError>>,
        room: OwnedSemaphorePermit,
    ) {
        let Some(head) = &self.head else {
            drop(answer.send(Err(OsdError::Device("no segment to write to".into()))));
            return;
        };
        let written = |planned: &&Planned| planned.encoded.len > 0;
        let newest = self.planned.iter().rfind(written);
        let chain = Chain {
            sequence: self.next,
            previous: newest.map_or(self.last, |planned| planned.sequence),
            last_synced: self.last,
        };
        let at = newest.map_or(head.at, |planned| planned.at + planned.encoded.len);
        match batch::encode(head.segment.seed(), chain, &changes) {
            Ok(encoded) => {
                self.next = self.next.saturating_add(1);
                let sequence = chain.sequence;
                self.planned.push(Planned {
                    outcome: Ok(()),
                    changes,
                    sequence,
                    at,
                    encoded,
                    answer,
                    _room: room,
                });
            }
            Err(error) => drop(answer.send(Err(OsdError::BadRequest(error.to_string())))),
        }
    }

    /// Sees to it that the head segment has `len` bytes left after the group so far. Begins a new one when it has not;
    /// with `head_room`, only while the file system has room for one more: the last one is for deletes.
    async fn make_room(&mut self, len: u64, head_room: bool) -> Result<(), OsdError> {
        let planned: u64 = self.planned.iter().map(|planned| planned.encoded.len).sum();
        if let Some(head) = &self.head
            && head.at + planned + len <= head.segment.header.len
        {
            return Ok(());
        }
        self.flush().await?;
        self.retire_dead_segments().await;
        let result = self.begin_segment(head_room).await;
        result.map_err(|error| {
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                return OsdError::Full;
            }
            self.shared.status.write_failed(&error);
            OsdError::Device(format!("cannot begin a segment: {error}"))
        })
    }

    async fn begin_segment(&mut self, head_room: bool) -> io::Result<()> {
        let len = self.shared.config.segment_bytes;
        let disk = self.shared.sources.disk.as_ref();
        if head_room && disk.space().await?.0 < len.saturating_mul(2) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let number = self.next_segment;
        let seed = Seed { store: self.shared.store, segment: number, generation: 1 };
        let header = SegmentHeader { seed, len, previous: self.last };
        // Also when it fails: whatever is left of it, its number is not used again.
        self.next_segment += 1;
        let file = segment::create(disk, &header).await?;
        self.shared.files.insert(number, file.clone());
        self.segments.push(number);
        self.head = Some(Head { segment: Segment { header, file, readable: len }, at: BLOCK_BYTES });
        if let Ok(index) = self.shared.index() {
            // A checkpoint per segment bounds what a start has to replay.
            drop(self.blocking(move || index.sync()).await);
        }
        Ok(())
    }

    /// Removes segments nothing lives in, oldest first. Only a prefix of the history goes: a tombstone in it can only
    /// be about values that went before or with it.
    async fn retire_dead_segments(&mut self) {
        let head = self.head.as_ref().map(|head| head.segment.number());
        let oldest = self.segments.first().copied();
        let Some(number) = oldest.filter(|oldest| Some(*oldest) != head) else { return };
        let Ok(index) = self.shared.index() else { return };
        let reading = index.clone();
        let Ok(live) = self.blocking(move || reading.live()).await else { return };
        let dead = |number: &u64| live.get(number).copied().unwrap_or_default() == Live::default();
        let doomed: Vec<u64> =
            self.segments.iter().copied().filter(|number| Some(*number) != head).take_while(dead).collect();
        if !doomed.contains(&number) {
            return;
        }
        // 1. The index with a mark behind them is durable: else a crash would leave a mark into a removed segment.
        let syncing = index.clone();
        if self.blocking(move || syncing.sync()).await.is_err() {
            return;
        }
        for number in doomed {
            // 2. The oldest file goes, durably, before the next one may. Were two removals on their way at once, a
            //    crash could bring back the older one alone: without the tombstones of the newer one, what they
            //    deleted would return.
            self.shared.files.forget(number);
            let disk = self.shared.sources.disk.as_ref();
            let removed = disk.remove(&segment::file_name(number)).await;
            let removed = match removed {
                Ok(()) => disk.sync_directory().await,
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                tracing::warn!(%error, number, "cannot remove a dead segment");
                return;
            }
            self.segments.retain(|kept| *kept != number);
            let forgetting = index.clone();
            drop(self.blocking(move || forgetting.forget_segment(number)).await);
        }
    }

    /// Writes the group, makes it durable, and answers. The order is what keeps every promise:
    ///
    /// 1. All bytes of the group go to the head segment, behind what was acknowledged. A crash now leaves any part of
    ///    them: recovery drops the first batch that is not whole and all after it. Nobody was answered.
    /// 2. The segment is synced. A crash now loses nothing: recovery finds the batches in the segment, although the
    ///    index does not know them.
    /// 3. The index takes them, in one atomic batch together with its mark, and readers see them. Before 2 it must not:
    ///    it could name bytes that a crash takes back. It is durable some time later; until then 2 covers it.
    /// 4. The writers are answered.
    ///
    /// When 1 or 2 fails nothing is known about those bytes: the segment is sealed (never written again), the writers
    /// get an error, and the next batch goes to a new segment, whose header names the last batch that counts. When 3
    /// fails the batches count: the writers get an error that leaves it open, and the index is made to follow.
    async fn flush(&mut self) -> Result<(), OsdError> {
        let mut planned = std::mem::take(&mut self.planned);
        let end = planned.iter().filter(|p| p.encoded.len > 0).map(|p| p.at + p.encoded.len).next_back();
        let Some(end) = end else {
            answer_all(planned);
            return Ok(());
        };
        let Some(head) = &mut self.head else {
            let error = OsdError::Device("no segment to write to".into());
            fail_all(planned, &error);
            return Err(error);
        };
        let at = head.at;
        let parts: Vec<Bytes> =
            planned.iter_mut().flat_map(|p| std::mem::take(&mut p.encoded.parts)).collect();
        if let Err(error) = write_durably(head.segment.file.as_ref(), at, parts).await {
            self.shared.status.write_failed(&error);
            let error = OsdError::Device(format!("writing failed: {error}"));
            self.head = None;
            fail_all(planned, &error);
            return Err(error);
        }
        head.at = end;
        let seed = *head.segment.seed();
        let applied: Vec<Applied> =
            planned.iter_mut().filter(|p| p.encoded.len > 0).map(|p| applied(&seed, p)).collect();
        self.last = applied.last().map_or(self.last, |batch| batch.sequence);
        self.shared.status.write_succeeded();
        metrics::histogram!("alba_osd_group_batches").record(small(applied.len()));
        let result = match self.shared.index() {
            Ok(index) => self.blocking(move || index.apply(applied)).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(used) => {
                self.shared.space.set_used(used);
                answer_all(planned);
                Ok(())
            }
            Err(error) => {
                self.shared.set_index(None);
                fail_all(planned, &error);
                Err(error)
            }
        }
    }
}

/// A small count for a histogram.
fn small(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

/// Steps 1 and 2 of [`Writer::flush`].
async fn write_durably(file: &dyn DiskFile, at: u64, parts: Vec<Bytes>) -> io::Result<()> {
    file.write_at(at, parts).await?;
    file.sync().await
}

fn applied(seed: &Seed, planned: &mut Planned) -> Applied {
    let (sequence, at) = (planned.sequence, planned.at);
    let changes = std::mem::take(&mut planned.changes).into_iter().zip(&planned.encoded.offsets);
    let entries = changes.map(|(change, record)| {
        let location =
            Location { segment: seed.segment, generation: seed.generation, sequence, at: at + record };
        let entry = change.value.map(|stored| Entry {
            location,
            // Encoding has refused longer ones.
            len: u32::try_from(stored.value.len()).unwrap_or(u32::MAX),
            checksum: stored.checksum,
            inline: (stored.value.len() <= INLINE_MAX).then(|| stored.value.to_vec()),
        });
        (change.key, entry)
    });
    let entries = entries.collect();
    let end = at + planned.encoded.len;
    Applied { entries, segment: seed.segment, generation: seed.generation, sequence, end }
}

/// A caller that went away needs no answer.
fn answer_all(planned: Vec<Planned>) {
    planned.into_iter().for_each(|planned| drop(planned.answer.send(planned.outcome)));
}

/// Nobody of the group learns what was decided: it depended on what is not durable.
fn fail_all(planned: Vec<Planned>, error: &OsdError) {
    planned.into_iter().for_each(|planned| drop(planned.answer.send(Err(error.clone()))));
}

fn refuse(group: Vec<Waiting>, error: &OsdError) {
    group.into_iter().for_each(|waiting| drop(waiting.answer.send(Err(error.clone()))));
}
