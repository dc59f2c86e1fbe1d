//! Groups: written together, made durable by one sync, put into the index in order, answered.

use std::io;

use alba_core::env::DiskFile;
use alba_core::env::osd::OsdError;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::super::batch::{Change, Encoded};
use super::super::format::{INLINE_MAX, Seed, offset};
use super::super::index::{Applied, Effect, Entry, Location, Range};
use super::super::phase::{self, Phase, Sabotage};
use super::Writer;

/// Who waits for a batch.
pub(super) type Answer = oneshot::Sender<Result<(), OsdError>>;

/// A batch that is decided: its place in the head segment when it changes anything, and what to answer once the group
/// is durable.
pub(super) struct Planned {
    pub outcome: Result<(), OsdError>,
    pub changes: Vec<Change>,
    pub sequence: u64,
    pub at: u64,
    pub encoded: Encoded,
    pub answer: Answer,
    pub _room: Option<OwnedSemaphorePermit>,
}

impl Planned {
    fn is_written(&self) -> bool {
        self.encoded.len > 0
    }
}

/// A group that is being written.
pub(super) struct InFlight {
    planned: Vec<Planned>,
    group: u64,
    seed: Seed,
    end: u64,
    write: oneshot::Receiver<io::Result<()>>,
    /// How it went, once that is known.
    written: Option<io::Result<()>>,
}

impl InFlight {
    /// Until it is written or failed. May be given up and called again.
    pub(super) async fn wait(&mut self) {
        if self.written.is_none() {
            let written = (&mut self.write).await;
            self.written = Some(written.unwrap_or_else(|_| Err(io::Error::other("the write was given up"))));
        }
    }

    /// Is it durable by now?
    fn is_durable(&mut self) -> bool {
        if self.written.is_none()
            && let Ok(written) = self.write.try_recv()
        {
            self.written = Some(written);
        }
        matches!(self.written, Some(Ok(())))
    }

    /// What it writes.
    pub(super) fn bytes(&self) -> u64 {
        self.planned.iter().map(|planned| planned.encoded.len).sum()
    }
}

impl Writer {
    /// Begins to write the group in the making. The order of the steps is what keeps every promise:
    ///
    /// 1. All bytes of the group go to the head segment, behind the group before it. A crash now leaves any part of
    ///    them: recovery drops the first batch that is not whole and all after it. Nobody was answered.
    /// 2. The segment is synced. A crash now loses nothing: recovery finds the batches in the segment, although the
    ///    index does not know them, provided that the groups before are durable, too.
    /// 3. Once all groups before are in the index, it takes this one, in one atomic batch together with its mark (and with
    ///    groups behind it that are durable by then), and readers see it. Before 2 it must not: it could name bytes that
    ///    a crash takes back. It is durable some time later; until then 2 covers it.
    /// 4. The writers are answered.
    ///
    /// When 1 or 2 fails nothing is known about those bytes: the segment is sealed (never written again), the writers of
    /// this group and of all after it get an error, and the next batch goes to another segment, whose header names the
    /// last batch that counts. When 3 fails the batches count: the writers get an error that leaves it open, and the
    /// index is made to follow.
    pub(super) fn dispatch(&mut self) {
        let mut planned = std::mem::take(&mut self.planned);
        if planned.is_empty() {
            return;
        }
        let group = self.group;
        self.group += 1;
        let end = planned.iter().filter(|p| p.is_written()).map(|p| p.at + p.encoded.len).next_back();
        let (answer, write) = oneshot::channel();
        let (seed, end) = match (&mut self.head, end) {
            (Some(head), Some(end)) => {
                let at = head.at;
                head.at = end;
                let parts: Vec<Bytes> =
                    planned.iter_mut().flat_map(|p| std::mem::take(&mut p.encoded.parts)).collect();
                let file = head.segment.file.clone();
                let task = async move {
                    let _phase = phase::enter(Phase::DataSync);
                    drop(answer.send(write_durably(file.as_ref(), at, parts).await));
                };
                drop(self.shared.sources.spawn.spawn("asd group", Box::pin(task)));
                (*head.segment.seed(), end)
            }
            // Answers only, to be given in order.
            (head, _) => {
                drop(answer.send(Ok(())));
                let seed = head.as_ref().map(|head| *head.segment.seed());
                let none = Seed { store: self.shared.store, segment: 0, generation: 0 };
                (seed.unwrap_or(none), 0)
            }
        };
        self.in_flight.push_back(InFlight { planned, group, seed, end, write, written: None });
    }

    /// Waits for all groups in flight. An error when one of them failed; then none is left.
    pub(super) async fn drain(&mut self) -> Result<(), OsdError> {
        let mut result = Ok(());
        while let Some(oldest) = self.in_flight.front_mut() {
            oldest.wait().await;
            if let Err(error) = self.complete().await {
                result = Err(error);
            }
        }
        result
    }

    /// The oldest group is written or failed.
    pub(super) async fn complete_oldest(&mut self) {
        // Those who wait were told.
        drop(self.complete().await);
    }

    async fn complete(&mut self) -> Result<(), OsdError> {
        let Some(oldest) = self.in_flight.pop_front() else { return Ok(()) };
        if let Some(Err(error)) = &oldest.written {
            self.shared.status.write_failed(error);
            let error = OsdError::Device(format!("writing failed: {error}"));
            fail_all(oldest.planned, &error);
            // What was decided after it depended on it.
            while let Some(mut later) = self.in_flight.pop_front() {
                later.wait().await;
                fail_all(later.planned, &error);
            }
            fail_all(std::mem::take(&mut self.planned), &error);
            self.overlay.clear();
            self.planned_last = self.last;
            self.seal().await;
            return Err(error);
        }
        let mut durable = vec![oldest];
        // Those behind it that are durable, too, go into the index with it.
        while self.in_flight.front_mut().is_some_and(InFlight::is_durable) {
            durable.extend(self.in_flight.pop_front());
        }
        let mut batches = Vec::new();
        for group in &durable {
            batches.extend(self.note_durable(group));
        }
        let result = self.index_takes(batches).await;
        for group in durable {
            match &result {
                Ok(()) => {
                    self.applied = group.group;
                    answer_all(group.planned);
                }
                Err(error) => fail_all(group.planned, error),
            }
        }
        result
    }

    /// The group is durable, and all before it are: what the index is to take of it.
    fn note_durable(&mut self, group: &InFlight) -> Vec<Applied> {
        let written = group.planned.iter().filter(|p| p.is_written());
        let batches: Vec<Applied> = written.map(|p| applied(&group.seed, p)).collect();
        if let Some(last) = batches.last().map(|batch| batch.sequence) {
            self.last = last;
            self.shared.status.write_succeeded();
            metrics::histogram!("alba_osd_group_batches").record(small(batches.len()));
            if let Some(head) = self.head.as_mut() {
                head.durable = group.end;
            }
            if let Some(facts) = self.shared.table().get_mut(group.seed.segment) {
                (facts.last, facts.end) = (last, group.end);
            }
        }
        batches
    }

    /// Step 3 of [`Writer::dispatch`]; readers see it when it returns.
    async fn index_takes(&mut self, applied: Vec<Applied>) -> Result<(), OsdError> {
        if applied.is_empty() {
            return Ok(());
        }
        let _phase = phase::enter(Phase::IndexCommit);
        let index = self.shared.index()?;
        let effects = applied.iter().flat_map(|batch| &batch.effects);
        let mut keys = Vec::new();
        let mut ranges = false;
        for effect in effects {
            match effect {
                Effect::Set(key, _) | Effect::Delete(key, _) => keys.push(key.clone()),
                Effect::DeleteRange(range) => ranges |= !range.swept,
            }
        }
        let changed = self.blocking(move || index.apply(applied)).await;
        if ranges {
            self.shared.cache.forget_all();
            self.shared.sweeping.notify_one();
        }
        keys.iter().for_each(|key| self.shared.cache.forget(key));
        self.account(changed)
    }

    /// As [`Sabotage::IndexBeforeSync`] wants it.
    pub(super) async fn index_takes_too_early(&mut self) {
        if !phase::sabotaged(Sabotage::IndexBeforeSync) {
            return;
        }
        let Some(seed) = self.head.as_ref().map(|head| *head.segment.seed()) else { return };
        let written = self.planned.iter().filter(|p| p.is_written());
        let early: Vec<Applied> = written.map(|p| applied(&seed, p)).collect();
        drop(self.index_takes(early).await);
    }
}

/// A small count for a histogram.
fn small(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

/// Steps 1 and 2 of [`Writer::dispatch`].
async fn write_durably(file: &dyn DiskFile, at: u64, parts: Vec<Bytes>) -> io::Result<()> {
    if phase::sabotaged(Sabotage::NoSync) {
        file.write_at(at, parts).await
    } else {
        file.write_durably_at(at, parts).await
    }
}

fn applied(seed: &Seed, planned: &Planned) -> Applied {
    let (sequence, at) = (planned.sequence, planned.at);
    let changes = planned.changes.iter().zip(&planned.encoded.places);
    let effects = changes.map(|(change, place)| {
        let (segment, generation) = (seed.segment, seed.generation);
        let location = Location { segment, generation, sequence, at: at + place.record };
        match change {
            Change::Delete { key } => Effect::Delete(key.clone(), location),
            Change::DeleteRange { from, to, until } => Effect::DeleteRange(Range {
                location,
                from: from.to_vec(),
                to: to.to_vec(),
                until: if *until == 0 { sequence } else { *until },
                swept: false,
            }),
            Change::Set { key, stored, .. } => {
                let len = stored.value.len();
                let entry = Entry {
                    location,
                    value_at: at + place.value,
                    // Encoding has refused longer ones.
                    len: u32::try_from(len).unwrap_or(u32::MAX),
                    checksum: stored.checksum,
                    since: sequence,
                    inline: (len <= INLINE_MAX).then(|| stored.value.to_vec()),
                };
                Effect::Set(key.clone(), entry)
            }
        }
    });
    let effects = effects.collect();
    let end = at + planned.encoded.len;
    debug_assert!(end >= at + offset(0));
    Applied { effects, segment: seed.segment, generation: seed.generation, sequence, end }
}

/// A caller that went away needs no answer.
fn answer_all(planned: Vec<Planned>) {
    planned.into_iter().for_each(|planned| drop(planned.answer.send(planned.outcome)));
}

/// Nobody of the group learns what was decided: it depended on what is not durable.
pub(super) fn fail_all(planned: Vec<Planned>, error: &OsdError) {
    planned.into_iter().for_each(|planned| drop(planned.answer.send(Err(error.clone()))));
}
