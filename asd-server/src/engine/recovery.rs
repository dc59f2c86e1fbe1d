//! From what is on the disk to a running engine: find the segments, open the index (or make it anew), and apply the
//! batches the index has not seen, in the order of the history.
//!
//! The history is a chain: every batch names its predecessor, and every segment names the batch it continues after.
//! Segments in between may have been reused since: then nothing of their batches is needed any more (what they deleted
//! stays deleted by newer records, or is gone as well), and the chain goes on behind the gap. A segment says itself where
//! the history ends in it, by its closing block; one that has none (it was the head when the power went, or closing it
//! failed) ends where the segment opened after it says, and is closed now.
//!
//! What decides between a torn tail and rot is proof of a sync: a batch, a segment header, a closing block or the index's
//! mark that says "all up to s was durable". Damage at or below such an s is rot: reported, and the history goes on behind
//! it. Damage above it was never acknowledged: it is dropped, with all that follows it, because what follows may depend on
//! it.
//!
//! **Old bytes never come back.** After a restart new batches continue where the last valid one ended, over the bytes of
//! a dropped tail; those may hold whole batches. They stay dead: the first new batch gets a number [`RESTART_GAP`] above
//! all before, so no dropped batch's `previous` ever names a batch of the history again. A batch that failed while the
//! engine ran stays dead, too: closing block, or the segment begun after it, name an earlier last batch.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alba_core::env::{Disk, Spawn, blocking};
use alba_core::kv::KvError;
use thiserror::Error;

use super::batch::{self, Batch, BatchError};
use super::find::{self, Found};
use super::format::{BLOCK_BYTES, Closing, StoreId, VERSION, Version, offset};
use super::index::{Applied, Effect, Entry, Index, IndexStore, Location, Mark, Range};
use super::segment::{self, Segment, Window};
use super::table::{Facts, State, Table};

/// Above the number of batches that can have been written and not acknowledged before a crash.
pub(crate) const RESTART_GAP: u64 = 1 << 32;

/// Batches put into the index in one go.
const APPLY_AT_ONCE: usize = 256;

/// Why a store does not open. Nothing was changed that matters: it may be tried again.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The disk failed.
    #[error("segments: {0}")]
    Io(#[from] io::Error),
    /// The index cannot be opened or written, and it is not damage that a rebuild mends.
    #[error("index: {0}")]
    Index(#[from] KvError),
    /// A newer program wrote this store.
    #[error(
        "segment {segment:016x} has format version {found}, this program knows {VERSION}: use a newer one"
    )]
    Version {
        /// The segment.
        segment: u64,
        /// Its version.
        found: u32,
    },
    /// The program is ending.
    #[error("interrupted")]
    Interrupted,
}

/// What recovery needs.
pub(crate) struct Sources {
    /// Something in the index did not decode: it is thrown away when it is opened next.
    pub index_is_damaged: AtomicBool,
    pub disk: Arc<dyn Disk>,
    pub spawn: Arc<dyn Spawn>,
    pub index: Arc<dyn IndexStore>,
    pub store: StoreId,
}

/// A store as it was found.
pub(crate) struct Recovered {
    pub index: Arc<Index>,
    /// Sum of the value sizes, in bytes.
    pub used: u64,
    /// Segment to go on in, and where.
    pub head: Option<(Segment, u64)>,
    /// Last batch of the history.
    pub last: u64,
    /// Number of the next batch.
    pub next: u64,
    /// Generation of the next segment that is opened.
    pub generation: u64,
    /// Number of the next new segment.
    pub slots: u64,
    /// All segments that can be used.
    pub segments: Vec<Segment>,
    /// What is known about them.
    pub table: Table,
    /// What is lost, for people.
    pub damage: Vec<String>,
    /// Batches that were applied now.
    pub replayed: u64,
    /// The index was made from nothing although there was a history.
    pub rebuilt: bool,
}

/// Opens the store.
pub(crate) async fn recover(sources: &Sources) -> Result<Recovered, OpenError> {
    let Found { segments, slots, lost, damage } = find::segments(sources).await?;
    let (idle, mut segments): (Vec<_>, Vec<_>) = segments.into_iter().partition(Segment::is_idle);
    let (index, mark, wiped) = open_index(sources).await?;
    if let Some(reason) = wiped {
        tracing::warn!(reason, "the index is damaged: it is made again from the segments");
    }
    let newest = segments.iter().map(|segment| segment.header.previous).max().unwrap_or(0);
    let mut replay = Replay::start(sources, &segments, index, mark, &lost, damage);
    let ends = replay.run().await?;
    let Replay { index, damage, replayed, last, .. } = replay;
    let last = last.max(newest);
    let next = if last == 0 { 1 } else { last.saturating_add(RESTART_GAP) };
    let (used, live) = {
        let index = index.clone();
        kv(sources, move || Ok((index.mark()?.map_or(0, |mark| mark.used), index.live()?))).await?
    };
    let generation =
        segments.iter().chain(&idle).map(|segment| segment.seed().generation).max().unwrap_or(0) + 1;
    // Nothing is appended to a file that was cut off, or to one of an older format.
    let going_on = |segment: &Segment| {
        segment.closing.is_none() && segment.is_whole() && segment.version() == Version::V2
    };
    let count = segments.len();
    let mut table = Table::default();
    let mut head = None;
    let successors: Vec<u64> = segments.iter().skip(1).map(|next| next.header.previous).collect();
    for (nth, segment) in segments.iter_mut().enumerate() {
        let end = ends.get(nth).copied().flatten();
        let mut is_known = true;
        let (last, end) = match (&segment.closing, end) {
            (Some(closing), _) => (closing.last, closing.end),
            (None, Some((last, end))) => (last.max(segment.header.previous), end),
            // The index knows all of it, so it was not looked through.
            (None, None) => {
                let limit = successors.get(nth).copied().unwrap_or(last);
                match end_of(segment, limit).await? {
                    Some(end) => (limit, end),
                    None => {
                        is_known = false;
                        (limit, segment.readable)
                    }
                }
            }
        };
        let state = if nth + 1 == count && going_on(segment) {
            head = Some((segment.clone(), end));
            State::Head
        } else if !is_known {
            State::Unclosed
        } else {
            close(segment, last, end).await
        };
        table.insert(Facts::new(segment.header, last, end, state));
    }
    for segment in &idle {
        let header = segment.header;
        table.insert(Facts::new(header, header.previous, header.first_batch(), State::Closed));
    }
    segments.extend(idle);
    table.set_live(&live);
    let rebuilt = mark.is_none() && replayed > 0;
    Ok(Recovered {
        index,
        used,
        head,
        last,
        next,
        generation,
        slots,
        segments,
        table,
        damage,
        replayed,
        rebuilt,
    })
}

/// Where batch `limit`, the last one of the history in this segment, ends. None when that cannot be told: something is
/// damaged, or the limit is of a later segment, the one in between having been reused.
async fn end_of(segment: &Segment, limit: u64) -> Result<Option<u64>, OpenError> {
    let mut window = Window::new(segment.file.as_ref(), segment.readable);
    let (mut at, mut last) = (segment.header.first_batch(), segment.header.previous);
    while last < limit {
        match batch::read(&mut window, segment.version(), segment.seed(), at).await {
            Ok(batch) if batch.chain.previous == last && within(&batch, last, Some(limit)) => {
                (at, last) = (batch.end, batch.chain.sequence);
            }
            Ok(_) | Err(BatchError::Invalid(_)) => return Ok(None),
            Err(BatchError::Io(error)) => return Err(error.into()),
        }
    }
    Ok(Some(at))
}

/// Closes a segment that the process before this one did not close.
async fn close(segment: &mut Segment, last: u64, end: u64) -> State {
    if segment.closing.is_some() {
        return State::Closed;
    }
    if segment.version() == Version::V1 || !segment.is_whole() {
        return State::Unclosed;
    }
    let closing = Closing { header: segment.header, last, end };
    match segment::close(segment.file.as_ref(), &closing).await {
        Ok(()) => {
            segment.closing = Some(closing);
            State::Closed
        }
        Err(error) => {
            tracing::warn!(%error, segment = segment.number(), "cannot close a segment");
            State::Unclosed
        }
    }
}

/// Runs index work where it may block.
async fn kv<T: Send + 'static>(
    sources: &Sources,
    work: impl FnOnce() -> Result<T, KvError> + Send + 'static,
) -> Result<T, OpenError> {
    Ok(blocking(sources.spawn.as_ref(), work).await.map_err(|_| OpenError::Interrupted)??)
}

/// Opens the index. One that is damaged is thrown away; then the reason is given.
async fn open_index(sources: &Sources) -> Result<(Arc<Index>, Option<Mark>, Option<String>), OpenError> {
    let (store, factory) = (sources.store, sources.index.clone());
    let attempt = move || {
        let index = Index::new(factory.open()?, store)?;
        let mark = index.mark()?;
        Ok((Arc::new(index), mark))
    };
    let factory = sources.index.clone();
    let attempt = async {
        if sources.index_is_damaged.swap(false, Ordering::Relaxed) {
            return Ok(Err(KvError::Damaged("a row of it does not decode".into())));
        }
        blocking(sources.spawn.as_ref(), attempt).await
    };
    let reason = match attempt.await {
        Ok(Ok((index, mark))) => return Ok((index, mark, None)),
        Ok(Err(KvError::Damaged(reason))) => reason,
        Ok(Err(error)) => return Err(error.into()),
        // The store's code panicked over what it found.
        Err(_) => "it cannot be opened".to_owned(),
    };
    let fresh = move || {
        factory.wipe()?;
        Ok(Arc::new(Index::new(factory.open()?, store)?))
    };
    Ok((kv(sources, fresh).await?, None, Some(reason)))
}

struct Replay<'a> {
    sources: &'a Sources,
    segments: &'a [Segment],
    index: Arc<Index>,
    damage: Vec<String>,
    /// Where to begin: position in `segments`, and offset there.
    from: (usize, u64),
    /// Last batch of the history so far.
    last: u64,
    /// All up to here is known to have been durable.
    floor: u64,
    /// Accepted, not yet in the index.
    accepted: Vec<Applied>,
    replayed: u64,
}

impl<'a> Replay<'a> {
    fn start(
        sources: &'a Sources,
        segments: &'a [Segment],
        index: Arc<Index>,
        mark: Option<Mark>,
        lost: &[u64],
        mut damage: Vec<String>,
    ) -> Self {
        let first_batch = |position: usize| segments.get(position).map_or(0, |s| s.header.first_batch());
        let (from, last) = match mark {
            None => ((0, first_batch(0)), segments.first().map_or(0, |segment| segment.header.previous)),
            Some(mark) => {
                let marked = segments
                    .iter()
                    .position(|s| s.number() == mark.segment && s.seed().generation == mark.generation);
                let from = marked.map_or_else(
                    || {
                        // It is being reused, when all the index knows of it was dead. Or it is gone.
                        let reused = segments.iter().any(|s| s.number() == mark.segment);
                        if !reused && !lost.contains(&mark.segment) {
                            damage.push(find::is_missing(mark.segment));
                        }
                        let later = segments.iter().position(|s| s.header.previous >= mark.sequence);
                        let later = later.unwrap_or(segments.len());
                        (later, first_batch(later))
                    },
                    |position| (position, mark.offset),
                );
                (from, mark.sequence)
            }
        };
        // The newest header proves that all before it was synced.
        let floor = segments.last().map_or(0, |segment| segment.header.previous).max(last);
        Self { sources, segments, index, damage, from, last, floor, accepted: Vec::new(), replayed: 0 }
    }

    /// Applies all that is to be applied. Returns for each segment that was looked through the last batch of the history
    /// in it, and where it ends.
    async fn run(&mut self) -> Result<Vec<Option<(u64, u64)>>, OpenError> {
        let (first, segments) = (self.from.0, self.segments);
        let mut ends = vec![None; first.min(segments.len())];
        for (nth, segment) in segments.iter().enumerate().skip(first) {
            let at = if nth == first { self.from.1 } else { segment.header.first_batch() };
            // The batches in between were in segments that are reused (or lost, which is reported).
            self.last = self.last.max(segment.header.previous);
            let successor = || segments.get(nth + 1).map(|next| next.header.previous);
            let limit = segment.closing.map(|closing| closing.last).or_else(successor);
            if let Some(limit) = limit {
                self.floor = self.floor.max(limit);
            }
            let end = self.segment(segment, at, limit).await?;
            if let Some(limit) = limit.filter(|limit| self.last < *limit) {
                // Without its closing block it cannot be told where it ended, should the next one have been reused.
                if !segment.closing_rotten {
                    self.damage.push(format!(
                        "batches {} to {limit} in {} are lost",
                        self.last + 1,
                        segment::file_name(segment.number())
                    ));
                }
            }
            ends.push(Some((self.last, end)));
        }
        self.flush().await?;
        Ok(ends)
    }

    /// Goes through one segment from `at`, up to the batch `limit`. Returns where the history ends in it.
    async fn segment(&mut self, segment: &Segment, at: u64, limit: Option<u64>) -> Result<u64, OpenError> {
        let mut window = Window::new(segment.file.as_ref(), segment.readable);
        let mut at = at;
        // Batches that may be part of a torn tail: none was acknowledged as far as is known yet.
        let mut unproven: Vec<Batch> = Vec::new();
        while limit.is_none_or(|limit| self.last < limit) {
            let found = match batch::read(&mut window, segment.version(), segment.seed(), at).await {
                Ok(batch) if batch.chain.previous == self.last && within(&batch, self.last, limit) => {
                    Some(batch)
                }
                Ok(_) | Err(BatchError::Invalid(_)) => None,
                Err(BatchError::Io(error)) => return Err(error.into()),
            };
            let found = match found {
                Some(batch) => batch,
                None => match self.behind_rot(&mut window, segment, at, limit).await? {
                    Some(batch) => batch,
                    None => break,
                },
            };
            self.floor = self.floor.max(found.chain.last_synced);
            (at, self.last) = (found.end, found.chain.sequence);
            unproven.push(found);
            while unproven.first().is_some_and(|batch| batch.chain.sequence <= self.floor) {
                let proven = unproven.remove(0);
                self.accept(segment, proven).await?;
            }
        }
        for batch in unproven {
            if !batch.values_are_whole(segment.file.as_ref(), segment.seed()).await? {
                (at, self.last) = (batch.start, batch.chain.previous);
                break;
            }
            self.accept(segment, batch).await?;
        }
        Ok(at)
    }

    /// There is no valid successor at `at`. Is there proof, further on, that there was one? Then that is rot, and the
    /// history goes on there.
    async fn behind_rot(
        &mut self,
        window: &mut Window<'_>,
        segment: &Segment,
        at: u64,
        limit: Option<u64>,
    ) -> Result<Option<Batch>, OpenError> {
        let mut there = at + BLOCK_BYTES;
        while there + BLOCK_BYTES <= segment.readable {
            match batch::read(window, segment.version(), segment.seed(), there).await {
                Ok(batch) if batch.chain.last_synced > self.last && within(&batch, self.last, limit) => {
                    self.damage.push(format!(
                        "{}, bytes {at} to {there}: batches {} to {} are lost",
                        segment::file_name(segment.number()),
                        self.last + 1,
                        batch.chain.previous
                    ));
                    return Ok(Some(batch));
                }
                Ok(_) | Err(BatchError::Invalid(_)) => there += BLOCK_BYTES,
                Err(BatchError::Io(error)) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    async fn accept(&mut self, segment: &Segment, batch: Batch) -> Result<(), OpenError> {
        let seed = segment.seed();
        let sequence = batch.chain.sequence;
        let effects = batch.records.into_iter().map(|record| {
            let location =
                Location { segment: seed.segment, generation: seed.generation, sequence, at: record.at };
            match record.effect {
                batch::Effect::Delete => Effect::Delete(record.key, location),
                batch::Effect::DeleteRange { to, until } => Effect::DeleteRange(Range {
                    location,
                    from: record.key.to_vec(),
                    to: to.to_vec(),
                    until,
                    swept: false,
                }),
                batch::Effect::Set(value) => {
                    let entry = Entry {
                        location,
                        value_at: value.at,
                        len: value.len,
                        checksum: value.checksum,
                        since: sequence,
                        inline: value.inline.map(|bytes| bytes.to_vec()),
                    };
                    Effect::Set(record.key, entry)
                }
            }
        });
        self.accepted.push(Applied {
            effects: effects.collect(),
            segment: seed.segment,
            generation: seed.generation,
            sequence,
            end: batch.end,
        });
        if self.accepted.len() >= APPLY_AT_ONCE { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), OpenError> {
        let accepted = std::mem::take(&mut self.accepted);
        self.replayed += offset(accepted.len());
        let index = self.index.clone();
        kv(self.sources, move || index.apply(accepted)).await?;
        Ok(())
    }
}

fn within(batch: &Batch, last: u64, limit: Option<u64>) -> bool {
    batch.chain.sequence > last && limit.is_none_or(|limit| batch.chain.sequence <= limit)
}
