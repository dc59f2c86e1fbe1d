//! From what is on the disk to a running engine: find the segments, open the index (or make it anew), and apply the
//! batches the index has not seen, in the order of the history.
//!
//! The history is a chain: every batch names its predecessor, and every segment names the batch it continues after.
//! What decides between a torn tail and rot is proof of a sync: a batch, a segment header or the index's mark that says
//! "all up to s was durable". Damage at or below such an s is rot: reported, and the history goes on behind it. Damage
//! above it was never acknowledged: it is dropped, with all that follows it, because what follows may depend on it.
//!
//! **Old bytes never come back.** After a restart new batches continue where the last valid one ended, over the bytes of
//! a dropped tail; those may hold whole batches. They stay dead: the first new batch gets a number [`RESTART_GAP`] above
//! all before, so no dropped batch's `previous` ever names a batch of the history again. A batch that failed while the
//! engine ran stays dead, too: the segment begun after it names an earlier predecessor, and recovery stops there.

use std::io;
use std::sync::Arc;

use alba_core::env::{Disk, DiskFile, Spawn, blocking};
use alba_core::kv::KvError;
use thiserror::Error;

use super::batch::{self, Batch, BatchError};
use super::format::{BLOCK, BLOCK_BYTES, FormatError, StoreId, VERSION, looks_like_record, offset};
use super::index::{Applied, Entry, Index, IndexStore, Location, Mark};
use super::segment::{self, Segment, Window};

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
    /// Number of the next new segment.
    pub next_segment: u64,
    /// All segments, oldest first.
    pub segments: Vec<u64>,
    /// What is lost, for people.
    pub damage: Vec<String>,
    /// Batches that were applied now.
    pub replayed: u64,
    /// The index was made from nothing although there were segments.
    pub rebuilt: bool,
}

/// Opens the store.
pub(crate) async fn recover(sources: &Sources) -> Result<Recovered, OpenError> {
    let mut damage = Vec::new();
    let (segments, next_segment) = find_segments(sources, &mut damage).await?;
    let (index, mark, wiped) = open_index(sources).await?;
    if let Some(reason) = wiped {
        tracing::warn!(reason, "the index is damaged: it is made again from the segments");
    }
    let newest = segments.iter().map(|segment| segment.header.previous).max().unwrap_or(0);
    let rebuilt = mark.is_none() && !segments.is_empty();
    let mut replay = Replay::start(sources, &segments, index, mark, damage);
    let end = replay.run().await?;
    let Replay { index, damage, replayed, last, .. } = replay;
    let last = last.max(newest);
    let next = if last == 0 { 1 } else { last.saturating_add(RESTART_GAP) };
    let used = {
        let index = index.clone();
        kv(sources, move || index.mark()).await?.map_or(0, |mark| mark.used)
    };
    let numbers = segments.iter().map(Segment::number).collect();
    // Nothing is appended to a file that was cut off.
    let head = segments.into_iter().next_back().filter(Segment::is_whole).zip(end);
    Ok(Recovered {
        index,
        used,
        head,
        last,
        next,
        next_segment,
        segments: numbers,
        damage,
        replayed,
        rebuilt,
    })
}

/// Runs index work where it may block.
async fn kv<T: Send + 'static>(
    sources: &Sources,
    work: impl FnOnce() -> Result<T, KvError> + Send + 'static,
) -> Result<T, OpenError> {
    Ok(blocking(sources.spawn.as_ref(), work).await.map_err(|_| OpenError::Interrupted)??)
}

/// All segments in the order of the history, and the first free number.
async fn find_segments(
    sources: &Sources,
    damage: &mut Vec<String>,
) -> Result<(Vec<Segment>, u64), OpenError> {
    let disk = sources.disk.as_ref();
    let numbers: Vec<u64> = disk.list().await?.iter().filter_map(|name| segment::parse_name(name)).collect();
    let next = numbers.iter().max().map_or(0, |number| number + 1);
    let mut segments = Vec::new();
    for number in numbers {
        let (file, header) = segment::open(disk, number).await?;
        match header {
            Ok(header) if header.seed.store != sources.store || header.seed.segment != number => {
                damage
                    .push(format!("{} belongs to another store and is ignored", segment::file_name(number)));
            }
            Err(FormatError::Version(found)) => {
                return Err(OpenError::Version { segment: number, found });
            }
            header => {
                let readable = file.len().await?;
                let whole = header.as_ref().is_ok_and(|header| readable >= header.len);
                if !whole && !is_written(file.as_ref()).await? {
                    // Its creation was cut off: header and length are durable before the first record.
                    disk.remove(&segment::file_name(number)).await?;
                    continue;
                }
                match header {
                    Ok(header) => {
                        if !whole {
                            damage.push(format!("{} is cut off", segment::file_name(number)));
                        }
                        segments.push(Segment { header, file, readable: readable.min(header.len) });
                    }
                    Err(error) => {
                        damage.push(format!("{}: {error}; its values are lost", segment::file_name(number)))
                    }
                }
            }
        }
    }
    segments.sort_by_key(|segment| (segment.header.previous, segment.number()));
    Ok((segments, next))
}

/// Was anything ever written behind the header?
async fn is_written(file: &dyn DiskFile) -> io::Result<bool> {
    match file.read_at(BLOCK_BYTES, BLOCK).await {
        Ok(block) => Ok(looks_like_record(&block)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens the index. One that is damaged is thrown away; then the reason is given.
async fn open_index(sources: &Sources) -> Result<(Arc<Index>, Option<Mark>, Option<String>), OpenError> {
    let (store, factory) = (sources.store, sources.index.clone());
    let attempt = move || {
        let index = Index::new(factory.open()?, store);
        let mark = index.mark()?;
        Ok((Arc::new(index), mark))
    };
    let factory = sources.index.clone();
    let reason = match blocking(sources.spawn.as_ref(), attempt).await {
        Ok(Ok((index, mark))) => return Ok((index, mark, None)),
        Ok(Err(KvError::Damaged(reason))) => reason,
        Ok(Err(error)) => return Err(error.into()),
        // The store's code panicked over what it found.
        Err(_) => "it cannot be opened".to_owned(),
    };
    let fresh = move || {
        factory.wipe()?;
        Ok(Arc::new(Index::new(factory.open()?, store)))
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
        mut damage: Vec<String>,
    ) -> Self {
        let (from, last) = match mark {
            None => ((0, BLOCK_BYTES), segments.first().map_or(0, |segment| segment.header.previous)),
            Some(mark) => {
                let marked = segments
                    .iter()
                    .position(|s| s.number() == mark.segment && s.seed().generation == mark.generation);
                let from = marked.map_or_else(
                    || {
                        damage.push(format!(
                            "{} is missing; its values are lost",
                            segment::file_name(mark.segment)
                        ));
                        let later = segments.iter().position(|s| s.header.previous >= mark.sequence);
                        (later.unwrap_or(segments.len()), BLOCK_BYTES)
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

    /// Applies all that is to be applied. Returns where the history ends in the last segment; none when it is not known
    /// to end there.
    async fn run(&mut self) -> Result<Option<u64>, OpenError> {
        let mut end = None;
        let first = self.from.0;
        for (nth, segment) in self.segments.iter().enumerate().skip(first) {
            let (at, before) =
                (if nth == first { self.from.1 } else { BLOCK_BYTES }, segment.header.previous);
            if nth > first && before > self.last {
                self.damage.push(format!(
                    "batches {} to {before} before {} are lost",
                    self.last + 1,
                    segment::file_name(segment.number())
                ));
                self.last = before;
            }
            let limit = self.segments.get(nth + 1).map(|next| next.header.previous);
            end = Some(self.segment(segment, at, limit).await?);
        }
        self.flush().await?;
        Ok(end)
    }

    /// Goes through one segment from `at`, up to the batch `limit`. Returns where the history ends in it.
    async fn segment(&mut self, segment: &Segment, at: u64, limit: Option<u64>) -> Result<u64, OpenError> {
        let mut window = Window::new(segment.file.as_ref(), segment.readable);
        let mut at = at;
        // Batches that may be part of a torn tail: none was acknowledged as far as is known yet.
        let mut unproven: Vec<Batch> = Vec::new();
        while limit.is_none_or(|limit| self.last < limit) {
            let found = match batch::read(&mut window, segment.seed(), at).await {
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
            match batch::read(window, segment.seed(), there).await {
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
        let entries = batch.records.into_iter().map(|record| {
            let location =
                Location { segment: seed.segment, generation: seed.generation, sequence, at: record.at };
            let entry = record.value.map(|value| Entry {
                location,
                len: value.len,
                checksum: value.checksum,
                inline: value.inline.map(|bytes| bytes.to_vec()),
            });
            (record.key, entry)
        });
        self.accepted.push(Applied {
            entries: entries.collect(),
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
