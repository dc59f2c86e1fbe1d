//! Segments to write to: beginning one (reusing a dead one, or making a file), closing it, giving space back.

use std::io;
use std::sync::Arc;

use alba_core::env::osd::{OsdError, OsdKey};

use super::super::format::{Closing, Seed, SegmentHeader, Version};
use super::super::index::{Index, Range, Tombstone};
use super::super::phase::{self, Phase, Sabotage};
use super::super::segment::{self, PreparedFile, Segment};
use super::super::table::{Facts, State};
use super::{Head, Writer};

/// What room is asked for. When room is short, the last of it is for what gives room back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// Takes space.
    Data,
    /// Gives space back later.
    Deletes,
    /// Gives space back at once.
    Compaction,
}

impl Purpose {
    /// Segments that must be left, the one asked for included.
    fn needs(self) -> u64 {
        match self {
            Self::Data => 3,
            Self::Deletes => 2,
            Self::Compaction => 1,
        }
    }
}

impl Writer {
    /// Sees to it that the head segment has `len` bytes left after what is planned. Begins another one when it has not.
    pub(super) async fn make_room(&mut self, len: u64, purpose: Purpose) -> Result<(), OsdError> {
        let planned: u64 = self.planned.iter().map(|planned| planned.encoded.len).sum();
        if let Some(head) = &self.head
            && head.at + planned + len <= head.segment.header.len
        {
            return Ok(());
        }
        self.dispatch();
        // The next header names the last batch that counts: all before must be decided.
        self.drain().await?;
        let begun = self.begin_segment(purpose).await;
        begun.map_err(|error| {
            if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                self.shared.compacting.notify_one();
                return OsdError::Full;
            }
            self.shared.status.write_failed(&error);
            OsdError::Device(format!("cannot begin a segment: {error}"))
        })
    }

    async fn begin_segment(&mut self, purpose: Purpose) -> io::Result<()> {
        let free = self.shared.table().free();
        let room = self.shared.room_for_segments().await?;
        if u64::try_from(free.len()).unwrap_or(u64::MAX).saturating_add(room) < purpose.needs() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Ok(index) = self.shared.index() {
            let _phase = phase::enter(Phase::Checkpoint);
            // 1. The index is durable. That bounds what a start has to replay. And before a segment is reused it must be:
            //    else a crash would leave an index that names what was in there, or misses what it deleted.
            let synced = self.blocking(move || index.sync()).await;
            synced.map_err(|error| io::Error::other(error.to_string()))?;
        }
        let mut begun = None;
        for number in free {
            begun = self.reuse(number).await?;
            if begun.is_some() {
                break;
            }
        }
        let segment = match begun {
            Some(segment) => segment,
            None if room == 0 => return Err(io::ErrorKind::StorageFull.into()),
            None => self.create().await?,
        };
        let old = self.head.take();
        let header = segment.header;
        let at = header.first_batch();
        self.shared.table().insert(Facts::new(header, header.previous, at, State::Head));
        self.head = Some(Head { segment, at, durable: at });
        if let Some(old) = old {
            self.close(old).await;
        }
        // There may be something to compact, or to make ready.
        self.shared.compacting.notify_one();
        Ok(())
    }

    fn header(&self, number: u64) -> SegmentHeader {
        let seed = Seed { store: self.shared.store, segment: number, generation: self.generation };
        let slots = self.slots.max(number + 1);
        let len = self.shared.config.segment_bytes;
        SegmentHeader { version: Version::V2, seed, len, previous: self.last, slots }
    }

    /// Begins another life of a dead segment; none when somebody reads it.
    async fn reuse(&mut self, number: u64) -> io::Result<Option<Segment>> {
        let _phase = phase::enter(Phase::Reuse);
        let Some(facts) = self.shared.table().get(number).cloned() else { return Ok(None) };
        if !self.shared.files.retire(number) {
            return Ok(None);
        }
        let file = self.shared.files.file(number).await?;
        let mut header = self.header(number);
        // Segments keep their length for life.
        header.len = facts.header.len;
        if phase::sabotaged(Sabotage::SameGeneration) {
            header.seed.generation = facts.header.seed.generation;
        }
        if facts.punched {
            file.allocate(header.len).await?;
        }
        // 2. From here on its older records are void, whatever becomes of this life. Its closing block is of the old
        //    life, so it is open.
        segment::open_with(file.as_ref(), &header, false).await?;
        segment::forget_closing(file.as_ref()).await?;
        self.generation += 1;
        if let Ok(index) = self.shared.index() {
            // Were this lost, it would be counted as what it is: nothing.
            drop(self.blocking(move || index.forget_segment(number)).await);
        }
        self.shared.files.insert(number, header.seed.generation, file.clone());
        Ok(Some(Segment { readable: header.len, header, file, closing: None, closing_rotten: false }))
    }

    async fn create(&mut self) -> io::Result<Segment> {
        let header = self.header(self.slots);
        let disk = self.shared.sources.disk.as_ref();
        // Whatever is left of it when that fails is removed, or replaced by the next attempt.
        let file = segment::create(disk, &header).await?;
        self.slots += 1;
        self.generation += 1;
        self.shared.files.insert(header.seed.segment, header.seed.generation, file.clone());
        Ok(Segment { readable: header.len, header, file, closing: None, closing_rotten: false })
    }

    /// Takes in a file that was made ready, as a free segment.
    pub(super) async fn add_free(&mut self, prepared: PreparedFile) -> Result<(), OsdError> {
        let mut header = self.header(self.slots);
        header.len = prepared.len;
        let disk = self.shared.sources.disk.as_ref();
        prepared.take_in(disk, &header).await.map_err(|error| {
            self.shared.status.write_failed(&error);
            OsdError::Device(format!("cannot take in a segment: {error}"))
        })?;
        self.slots += 1;
        self.generation += 1;
        self.shared.files.insert(header.seed.segment, header.seed.generation, prepared.file);
        let facts = Facts::new(header, header.previous, header.first_batch(), State::Closed);
        self.shared.table().insert(facts);
        Ok(())
    }

    /// The head is not written any more: a write or sync in it failed.
    pub(super) async fn seal(&mut self) {
        if let Some(head) = self.head.take() {
            self.close(head).await;
        }
    }

    async fn close(&mut self, head: Head) {
        let header = head.segment.header;
        let number = header.seed.segment;
        let facts = self.shared.table().get(number).cloned();
        let last = facts.map_or(header.previous, |facts| facts.last);
        let closing = Closing { header, last, end: head.durable };
        let state = match segment::close(head.segment.file.as_ref(), &closing).await {
            Ok(()) => State::Closed,
            Err(error) => {
                tracing::warn!(%error, segment = number, "cannot close a segment");
                State::Unclosed
            }
        };
        if let Some(facts) = self.shared.table().get_mut(number) {
            facts.state = state;
        }
        // Without a segment opened after it, nothing says where it ends.
        self.unsettled = state == State::Unclosed && self.head.is_none();
    }

    /// Sees to it that the end of a failed head is told by something durable.
    pub(super) async fn settle_failed_head(&mut self) -> Result<(), OsdError> {
        if !self.unsettled {
            return Ok(());
        }
        self.begin_segment(Purpose::Compaction).await.map_err(|error| {
            self.shared.status.write_failed(&error);
            OsdError::Device(format!("cannot begin a segment after a failed one: {error}"))
        })?;
        self.unsettled = false;
        Ok(())
    }

    /// Gives the blocks of a free segment back; false when there is none that has any.
    pub(super) async fn punch(&mut self) -> Result<bool, OsdError> {
        self.dispatch();
        self.drain().await?;
        let index = self.index().await?;
        let free = self.shared.table().free();
        let (mut chosen, keep) = (None, usize::try_from(Purpose::Data.needs()).unwrap_or(usize::MAX));
        for number in free.into_iter().rev().skip(keep) {
            let facts = self.shared.table().get(number).cloned();
            if let Some(facts) = facts.filter(|facts| !facts.punched)
                && self.shared.files.retire(number)
            {
                chosen = Some((number, facts));
                break;
            }
        }
        let Some((number, facts)) = chosen else { return Ok(false) };
        // As for a reuse: first the index is durable, then the old life ends, then its bytes go.
        self.blocking({
            let index = index.clone();
            move || index.sync()
        })
        .await?;
        let mut header = self.header(number);
        header.len = facts.header.len;
        let first = header.first_batch();
        let given = async {
            let file = self.shared.files.file(number).await?;
            segment::open_with(file.as_ref(), &header, true).await?;
            file.punch(first, header.len - first).await?;
            file.sync().await?;
            Ok::<_, io::Error>(file)
        };
        let given = given.await;
        self.generation += 1;
        drop(self.blocking(move || index.forget_segment(number)).await);
        match given {
            Ok(file) => {
                self.shared.files.insert(number, header.seed.generation, file);
                let facts =
                    Facts { punched: true, ..Facts::new(header, header.previous, first, State::Closed) };
                self.shared.table().insert(facts);
                Ok(true)
            }
            Err(error) => {
                tracing::warn!(%error, segment = number, "cannot give space back");
                Ok(false)
            }
        }
    }

    /// Forgets tombstones that are not needed any more.
    pub(super) async fn forget(
        &mut self,
        index: &Arc<Index>,
        keys: &[(OsdKey, Tombstone)],
        ranges: &[Range],
    ) -> Result<(), OsdError> {
        if keys.is_empty() && ranges.is_empty() {
            return Ok(());
        }
        let (index, keys, ranges) = (index.clone(), keys.to_vec(), ranges.to_vec());
        let changed = self.blocking(move || index.forget_tombstones(&keys, &ranges)).await;
        self.account(changed)
    }
}
