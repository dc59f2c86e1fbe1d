//! The one task that writes: takes what waits, writes it in whole blocks behind what is there, syncs, and answers.
//!
//! It must never answer before the sync, never write where something was acknowledged, and never write again where a
//! write or a sync failed.

use std::sync::Arc;

use alba_core::env::disk::{BLOCK, BLOCK_BYTES};
use alba_core::env::{Deadline, within};
use bytes::{Bytes, BytesMut};

use super::LogError;
use super::entries::Location;
use super::format::{Activation, Head, PREFACE, Previous, Record, offset};
use super::phase::{self, Sabotage};
use super::plan::ENTRIES_LEAVE;
use super::segments::{Live, Segment};
use super::shared::{Item, Shared};

/// Records that are written together.
#[derive(Default)]
struct Batch {
    bytes: BytesMut,
    /// Index and serial of the entries, and where each begins in `bytes`.
    entries: Vec<(u64, u64, u64)>,
}

pub(super) struct Writer {
    pub shared: Arc<Shared>,
    /// The segments that are needed, oldest first; the last one is written.
    pub chain: Vec<Live>,
    /// Where the next write goes.
    pub offset: u64,
    /// Number of the next record.
    pub sequence: u64,
    /// The last record that is durable.
    pub synced: u64,
    /// The state at the last record given to the batch.
    pub head: Head,
    /// The last write is not proven by another.
    pub unproven: bool,
    /// Activation block of a new segment, to be written with its first records.
    pub header: Option<Bytes>,
    /// Needed no more once the next write is durable.
    pub dead: Vec<Segment>,
    /// The last purge record says that segments activated before this are needed no more.
    pub declared: u64,
    /// The last mark is written.
    pub closing: bool,
}

impl Writer {
    /// Works until the log is closed or has failed.
    pub(super) async fn run(mut self) {
        let shared = self.shared.clone();
        while let Some(mut items) = self.next().await {
            if let Err(error) = self.write(&mut items).await {
                shared.fail(&error);
                for item in &mut items {
                    item.answer(Err(error.clone()));
                }
                return;
            }
        }
    }

    /// What is to be written together; none when it is over.
    async fn next(&mut self) -> Option<Vec<Item>> {
        loop {
            {
                let mut state = self.shared.state();
                if state.failed.is_some() {
                    return None;
                }
                let waits = state.queue.iter().any(|item| !matches!(item, Item::Committed(_)));
                if waits {
                    let mut items = Vec::new();
                    let mut bytes = 0;
                    while bytes < self.shared.limits.batch_bytes
                        && let Some(item) = state.queue.pop_front()
                    {
                        bytes += item.lens().iter().sum::<u64>();
                        items.push(item);
                    }
                    return Some(items);
                }
                if state.closed {
                    let done = !self.unproven && self.head.committed == state.committed;
                    if done || std::mem::replace(&mut self.closing, true) {
                        return None;
                    }
                    drop(state);
                    return Some(self.mark());
                }
            }
            let work = self.shared.work.notified();
            if self.unproven {
                let clock = self.shared.env.clock.as_ref();
                let deadline = Deadline::after(clock, self.shared.limits.mark_after);
                if within(clock, deadline, work).await.is_err() {
                    return Some(self.mark());
                }
            } else {
                work.await;
            }
        }
    }

    /// A write whose only use is to say that the one before it is durable. It is itself proven by the next; until then
    /// its loss loses nothing.
    fn mark(&mut self) -> Vec<Item> {
        let mut state = self.shared.state();
        let committed = state.committed;
        // Those that waited say the same or less.
        state.queue.retain(|item| !matches!(item, Item::Committed(_)));
        vec![Item::Committed(committed)]
    }

    async fn write(&mut self, items: &mut [Item]) -> Result<(), LogError> {
        let mut batch = Batch::default();
        let only_marks = items.iter().all(|item| matches!(item, Item::Committed(_)));
        for item in items.iter_mut() {
            let early = match item {
                Item::Append { .. } => phase::sabotaged(Sabotage::AckBeforeSync),
                Item::Control { record, .. } => {
                    matches!(record, Record::Vote(_)) && phase::sabotaged(Sabotage::VoteNotSynced)
                }
                Item::Committed(_) => false,
            };
            match item {
                Item::Append { entries, .. } => {
                    for (serial, entry) in entries {
                        self.push(&mut batch, Record::Entry(entry.clone()), *serial).await?;
                    }
                }
                Item::Control { record, .. } => self.push(&mut batch, record.clone(), 0).await?,
                Item::Committed(id) => {
                    let record = Record::Committed(*id);
                    // Along with others it is worth a block. What it alone proves is worth a segment, if there are enough.
                    let roll = || only_marks && self.shared.state().spares.len() > ENTRIES_LEAVE;
                    if self.fits(&batch, record.encoded_len()) || roll() {
                        self.push(&mut batch, record, 0).await?;
                    }
                }
            }
            if early {
                item.answer(Ok(()));
            }
        }
        self.flush(&mut batch).await?;
        self.unproven = !only_marks;
        {
            let mut state = self.shared.state();
            state.plan_from(self.shared.limits.segment_bytes - self.offset, self.shared.limits.segment_bytes);
        }
        for item in items {
            item.answer(Ok(()));
        }
        Ok(())
    }

    fn fits(&self, batch: &Batch, len: u64) -> bool {
        let end = self.offset.checked_add(offset(batch.bytes.len())).and_then(|end| end.checked_add(len));
        end.is_some_and(|end| end <= self.shared.limits.segment_bytes)
    }

    /// Adds a record to the batch, in a new segment if it must be.
    async fn push(&mut self, batch: &mut Batch, record: Record, serial: u64) -> Result<(), LogError> {
        if !self.fits(batch, record.encoded_len()) {
            self.flush(batch).await?;
            self.roll()?;
        }
        let Some((store, current)) = self.chain.last_mut().map(|live| (self.shared.store, live)) else {
            return Err(LogError::Closed);
        };
        let record = match record {
            Record::Entry(entry) => {
                batch.entries.push((entry.log_id.index, serial, offset(batch.bytes.len())));
                current.max_index = current.max_index.max(Some(entry.log_id.index));
                current.needed = true;
                Record::Entry(entry)
            }
            Record::Vote(vote) => {
                self.head.vote = Some(vote);
                Record::Vote(vote)
            }
            Record::Committed(id) => {
                self.head.committed = id;
                Record::Committed(id)
            }
            Record::Truncate(since) => {
                current.needed = true;
                Record::Truncate(since)
            }
            Record::Purge { upto, .. } => {
                self.head.purged = Some(upto);
                self.declared = self.oldest_needed();
                Record::Purge { upto, oldest: self.declared }
            }
        };
        let Some(current) = self.chain.last() else { return Err(LogError::Closed) };
        let seed = current.seed(store);
        let place = (current.segment.generation, self.sequence, self.synced);
        record.encode(&mut batch.bytes, seed, place);
        self.sequence += 1;
        Ok(())
    }

    /// Activation of the oldest segment that holds an entry behind the purge point; what is before it is dead.
    fn oldest_needed(&self) -> u64 {
        let purged = self.head.purged.map(|id| id.index);
        let older = self.chain.split_last().map_or(&[][..], |(_, older)| older);
        let needed = older.iter().find(|live| live.max_index > purged);
        needed.or(self.chain.last()).map_or(0, |live| live.activation)
    }

    /// Begins the next segment. Everything before it is durable.
    fn roll(&mut self) -> Result<(), LogError> {
        let spare = {
            let mut state = self.shared.state();
            let spare = state.spares.pop_front().ok_or(LogError::NoSpace)?;
            state.files.insert(spare.number, spare.file.clone());
            spare
        };
        self.shared.upkeep.notify_one();
        let activation = self.chain.last().map_or(1, |live| live.activation + 1);
        if let Some(current) = self.chain.last_mut() {
            current.last = self.sequence - 1;
        }
        // All it says is in the new activation block.
        if let Some(current) = self.chain.pop_if(|current| !current.needed) {
            self.dead.push(current.segment);
        }
        while self.chain.first().is_some_and(|live| live.max_index <= self.head.purged.map(|id| id.index)) {
            self.dead.push(self.chain.remove(0).segment);
        }
        let (generation, number) = (spare.generation, spare.number);
        let block = Activation {
            generation,
            activation,
            first: self.sequence,
            synced: self.sequence - 1,
            oldest: self.chain.first().map_or(activation, |live| live.activation),
            previous: self.chain.last().map(|live| Previous { activation: live.activation, last: live.last }),
            head: self.head,
        };
        let seed = super::format::Seed { store: self.shared.store, segment: number };
        self.header = Some(block.encode(seed));
        self.offset = PREFACE;
        self.chain.push(Live { segment: spare, activation, last: 0, max_index: None, needed: false });
        Ok(())
    }

    /// Writes and syncs the batch, and makes known what is durable then.
    async fn flush(&mut self, batch: &mut Batch) -> Result<(), LogError> {
        if batch.bytes.is_empty() {
            return Ok(());
        }
        let Batch { mut bytes, entries } = std::mem::take(batch);
        let Some(current) = self.chain.last() else { return Err(LogError::Closed) };
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let bytes = bytes.freeze();
        let end = self.offset + offset(bytes.len());
        // Activation block and first records in one write: a crash may keep either without the other. The block alone
        // begins an empty segment whose state is what had been durable; the records alone are those of a spare, whose
        // generation is raised before it is used.
        let (at, parts) = match self.header.take() {
            Some(header) => (BLOCK_BYTES, vec![header, bytes]),
            None => (self.offset, vec![bytes]),
        };
        let file = current.segment.file.clone();
        let written = async {
            file.write_at(at, parts).await?;
            file.sync().await
        };
        self.shared.io("writing the log", written).await?;
        // From here on it is durable. A crash before the answer leaves entries that nobody was told of, which is what a
        // log may hold.
        let (segment, generation) = (current.segment.number, current.segment.generation);
        let start = self.offset;
        self.offset = end;
        self.synced = self.sequence - 1;
        let mut dead = std::mem::take(&mut self.dead);
        // The record that says so is durable.
        while self.chain.first().is_some_and(|live| live.activation < self.declared) {
            dead.push(self.chain.remove(0).segment);
        }
        let mut state = self.shared.state();
        for (index, serial, within) in entries {
            state.entries.locate(index, serial, Location { segment, generation, offset: start + within });
        }
        state.entries.evict();
        if !dead.is_empty() {
            for segment in &dead {
                state.files.remove(&segment.number);
            }
            state.retired.append(&mut dead);
            self.shared.upkeep.notify_one();
        }
        Ok(())
    }
}
