//! What the engine does by itself beside serving: rows of deleted ranges go, what lives in mostly dead segments is moved
//! so that they can be reused, files are made ready ahead, and when space is short dead blocks go back to the file system.
//!
//! It must never take a segment away from what lives in it: moving is an ordinary batch, and only what the writer finds
//! dead is reused.

use std::sync::Arc;
use std::time::Duration;

use alba_core::env::osd::{OsdError, OsdKey};
use alba_core::env::{Deadline, Direction, within};
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::format::offset;
use super::index::Entry;
use super::phase::{self, Phase};
use super::reader;
use super::relocate::{MovedValue, Relocation};
use super::segment;
use super::table::Urgency;
use super::walk::{Page, Walk};
use super::writer::Request;

/// It looks around this often, when nobody wakes it.
const LOOK: Duration = Duration::from_secs(1);

/// For the writer to do one thing.
const STEP: Duration = Duration::from_secs(60);

/// Fewer segments than these are left to write to: room is short.
const LOW: u64 = 5;

/// Bytes of values moved in one batch.
const MOVE_BYTES: u64 = 1 << 20;

/// Things moved in one batch.
const MOVE_COUNT: usize = 256;

/// What came of compacting a segment.
enum Compacted {
    Freed,
    /// Something in it cannot be moved.
    Stuck,
}

/// The task.
pub(crate) struct Upkeep {
    pub shared: Arc<Shared>,
    pub queue: mpsc::Sender<Request>,
    /// Files made ready so far.
    pub prepared: u64,
}

impl Upkeep {
    /// Until it is aborted, or the writer is gone.
    pub(crate) async fn run(mut self) {
        let clock = self.shared.clock.clone();
        while !self.queue.is_closed() {
            let woken = async {
                tokio::select! {
                    biased;
                    () = self.shared.sweeping.notified() => {}
                    () = self.shared.compacting.notified() => {}
                }
            };
            // Either way it looks around.
            let _ = within(clock.as_ref(), Deadline::after(clock.as_ref(), LOOK), woken).await;
            if let Err(error) = self.round().await {
                tracing::debug!(%error, "upkeep is put off");
            }
        }
    }

    async fn round(&mut self) -> Result<(), OsdError> {
        if self.shared.index().is_err() {
            self.ask(Request::Reopen).await?;
        }
        self.sweep().await?;
        loop {
            let urgency = self.urgency().await;
            let Some(victim) = self.shared.table().victim(urgency) else { break };
            if let Compacted::Stuck = self.compact(victim, urgency).await? {
                tracing::warn!(segment = victim, "what lives in it is damaged: it cannot be compacted");
            }
        }
        self.prepare().await?;
        if self.file_system_is_short().await {
            while self.ask(Request::Punch).await? {}
        }
        Ok(())
    }

    /// Asks the writer for something.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, OsdError>>) -> Request,
    ) -> Result<T, OsdError> {
        let (answer, result) = oneshot::channel();
        let gone = || OsdError::Device("the engine is closed".into());
        let asked = async {
            self.queue.send(request(answer)).await.map_err(|_| gone())?;
            result.await.map_err(|_| gone())?
        };
        let clock = self.shared.clock.as_ref();
        within(clock, Deadline::after(clock, STEP), asked).await.unwrap_or(Err(OsdError::Timeout))
    }

    async fn sweep(&self) -> Result<(), OsdError> {
        let unswept = self.shared.index()?.unswept();
        for range in unswept.iter() {
            while !self.ask(|answer| Request::Sweep(Box::new(range.clone()), answer)).await? {}
        }
        Ok(())
    }

    async fn urgency(&self) -> Urgency {
        let free = offset(self.shared.table().free().len());
        // A disk that cannot tell is short.
        let room = self.shared.room_for_segments().await.unwrap_or(0);
        if free + room < LOW { Urgency::Short } else { Urgency::Relaxed }
    }

    async fn file_system_is_short(&self) -> bool {
        let low = self.shared.config.segment_bytes.saturating_mul(LOW);
        self.shared.sources.disk.space().await.is_ok_and(|(free, _)| free < low)
    }

    /// Moves what lives in a segment.
    async fn compact(&self, number: u64, urgency: Urgency) -> Result<Compacted, OsdError> {
        let _phase = phase::enter(Phase::Compaction);
        let begun = Walk::begin(&self.shared, number).await;
        let walk = begun.map_err(|error| OsdError::Device(format!("cannot read a segment: {error}")))?;
        let Some(mut walk) = walk else { return Ok(Compacted::Freed) };
        let mut damaged = 0;
        let mut urgency = urgency;
        while let Some(page) = walk.next(&self.shared).await? {
            if urgency == Urgency::Relaxed {
                // Room may have become short meanwhile.
                urgency = self.urgency().await;
            }
            damaged += self.move_page(number, page, urgency).await?;
        }
        let mut table = self.shared.table();
        let Some(facts) = table.get_mut(number) else { return Ok(Compacted::Freed) };
        if facts.header.seed.generation != walk.generation() || facts.is_dead() {
            metrics::counter!("alba_osd_segments_compacted_total").increment(1);
            return Ok(Compacted::Freed);
        }
        tracing::debug!(number, damaged, unreadable = walk.unreadable, "compaction left something");
        facts.stuck = Some(facts.live);
        Ok(Compacted::Stuck)
    }

    /// Gives back how many values are damaged.
    async fn move_page(&self, number: u64, page: Page, urgency: Urgency) -> Result<u64, OsdError> {
        let largest = (self.shared.config.segment_bytes / 4).min(MOVE_BYTES);
        let mut damaged = 0;
        let empty = || Relocation { from: number, ..Relocation::default() };
        let mut relocation = empty();
        let (mut bytes, mut count) = (0, 0);
        for (key, entry) in page.values {
            let len = entry.len.into();
            let read = self.read(key, entry);
            let moved = match urgency {
                Urgency::Relaxed => self.shared.in_turn(Direction::Read, len, read).await,
                // Who is short of room waits for nobody.
                Urgency::Short => read.await,
            };
            let moved = match moved {
                Ok(moved) => moved,
                Err(OsdError::Damaged(_)) => {
                    damaged += 1;
                    continue;
                }
                Err(other) => return Err(other),
            };
            bytes += offset(moved.stored.value.len() + moved.key.len());
            count += 1;
            relocation.values.push(moved);
            if bytes >= largest || count >= MOVE_COUNT {
                self.send(std::mem::replace(&mut relocation, empty()), bytes, urgency).await?;
                (bytes, count) = (0, 0);
            }
        }
        for (key, tombstone) in page.tombstones {
            bytes += offset(key.len());
            count += 1;
            relocation.tombstones.push((key, tombstone));
            if bytes >= largest || count >= MOVE_COUNT {
                self.send(std::mem::replace(&mut relocation, empty()), bytes, urgency).await?;
                (bytes, count) = (0, 0);
            }
        }
        for range in page.ranges {
            bytes += offset(range.from.len() + range.to.len());
            relocation.ranges.push(range);
            if bytes >= largest {
                self.send(std::mem::replace(&mut relocation, empty()), bytes, urgency).await?;
                bytes = 0;
            }
        }
        self.send(relocation, bytes, urgency).await?;
        Ok(damaged)
    }

    async fn read(&self, key: OsdKey, entry: Entry) -> Result<MovedValue, OsdError> {
        let stored = reader::value(&self.shared, &key, &entry).await?;
        let tree = match stored.checksum {
            alba_core::checksum::Checksum::Blake3(_) => Some(reader::tree(&self.shared, &key, &entry).await?),
            _ => None,
        };
        Ok(MovedValue { key, entry, stored, tree })
    }

    async fn send(&self, relocation: Relocation, bytes: u64, urgency: Urgency) -> Result<(), OsdError> {
        if relocation.is_empty() {
            return Ok(());
        }
        let sent = self.ask(|answer| Request::Relocate(relocation, answer));
        match urgency {
            Urgency::Relaxed => self.shared.in_turn(Direction::Write, bytes, sent).await?,
            Urgency::Short => sent.await?,
        }
        metrics::counter!("alba_osd_compacted_bytes_total").increment(bytes);
        if urgency == Urgency::Relaxed {
            self.shared.rates.compaction.pace(self.shared.clock.as_ref(), bytes).await;
        }
        Ok(())
    }

    /// Keeps some files ready, while there is plenty of room.
    async fn prepare(&mut self) -> Result<(), OsdError> {
        let ahead = self.shared.config.prepare_ahead;
        while offset(self.shared.table().free().len()) < ahead
            && self.shared.room_for_segments().await.unwrap_or(0) > 2 * LOW
        {
            self.prepare_one().await?;
        }
        Ok(())
    }

    /// Makes one file ready.
    pub(crate) async fn prepare_one(&mut self) -> Result<(), OsdError> {
        self.prepared += 1;
        let made = segment::prepare(&self.shared, self.prepared).await;
        let made = made.map_err(|error| OsdError::Device(format!("cannot make a segment ready: {error}")))?;
        self.ask(|answer| Request::Prepared(made, answer)).await
    }
}
