//! Opening a log: finds the chain of segments, tells rot from a torn tail, and begins a new segment.
//!
//! It must never cut what had been durable, never let anything beyond a cut come back, and never count what it only
//! read as durable: what is not proven is written again first.

use std::collections::BTreeMap;
use std::sync::Arc;

use alba_core::env::disk::{BLOCK, BLOCK_BYTES};
use alba_core::env::{Deadline, Disk, Env, within};
use bytes::{Bytes, BytesMut};
use openraft::LeaderId;
use tokio::sync::{Notify, Semaphore, watch};

use super::entries::{Entries, Location, Slot};
use super::format::{
    Activation, Entry, FormatError, Head, LogId, PREFACE, Previous, RECORD_HEADER, Record, RecordHeader,
    Seed, StoreId, Vote, offset,
};
use super::phase::{self, Sabotage};
use super::plan::Plan;
use super::segments::{self, Found, Live, Segment, Window, file_name, number_of};
use super::shared::{ROOM, Shared, State};
use super::writer::Writer;
use super::{Health, LogError, LogLimits};

/// Live entries of the newest segment up to this many bytes move to the new one, so that restarts don't pile segments
/// up.
const MOVE_MAX: u64 = 1 << 20;

/// What an opening found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// The vote.
    pub vote: Option<Vote>,
    /// The last purged entry.
    pub purged: Option<LogId>,
    /// The last entry known to be committed; there may be more.
    pub committed: Option<LogId>,
    /// The last entry, or the last purged one.
    pub last: Option<LogId>,
    /// Entries.
    pub entries: u64,
    /// A torn tail that was cut.
    pub cut: Option<Cut>,
    /// Records that verify, but were not proven to be durable; they are now.
    pub unproven: u64,
}

/// Where a torn tail was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The segment's file.
    pub segment: String,
    /// First byte that does not count.
    pub offset: u64,
}

/// A segment that is or was part of the log.
struct Active {
    segment: Segment,
    block: Activation,
}

/// All files of the directory.
struct Files {
    store: StoreId,
    next_number: u64,
    spares: Vec<Segment>,
    /// By activation.
    active: BTreeMap<u64, Active>,
}

/// The records of one segment that count.
struct Scanned {
    records: Vec<(Record, RecordHeader, u64)>,
    /// The last one.
    last: u64,
    /// All up to here is known to have been durable.
    floor: u64,
    cut: Option<u64>,
}

fn check(limits: &LogLimits) -> Result<(), LogError> {
    let wrong = if limits.segment_bytes < PREFACE + 2 * BLOCK_BYTES {
        "segments of fewer than four blocks"
    } else if !limits.segment_bytes.is_multiple_of(BLOCK_BYTES) {
        "segments that are no whole blocks"
    } else if limits.segment_bytes >= 1 << 32 {
        "segments of 4 GiB and more"
    } else if limits.queue_bytes < ROOM {
        "no room for waiting entries"
    } else {
        return Ok(());
    };
    Err(LogError::Limits(wrong))
}

/// Opens the log on `disk`, or makes it.
pub(super) async fn open(
    env: Env,
    disk: Arc<dyn Disk>,
    limits: LogLimits,
) -> Result<(Arc<Shared>, Writer, Recovered), LogError> {
    check(&limits)?;
    let deadline = Deadline::after(env.clock.as_ref(), limits.stall_after.saturating_mul(4));
    // What is under way when it gives up may still happen: it is not opened again in this process.
    let clock = env.clock.clone();
    within(clock.as_ref(), deadline, Box::pin(opened(env, disk, limits)))
        .await
        .unwrap_or(Err(LogError::Stalled))
}

async fn opened(
    env: Env,
    disk: Arc<dyn Disk>,
    limits: LogLimits,
) -> Result<(Arc<Shared>, Writer, Recovered), LogError> {
    let mut files = find(&env, disk.as_ref()).await?;
    let mut log = Log::new(limits.cache_bytes);
    let newest = files.active.last_key_value().map(|(activation, _)| *activation);
    let mut chain = Vec::new();
    if let Some(newest) = newest {
        chain = log.replay(&files, newest).await?;
    }
    // A crash or a failed write may have left records of their generation, and an activation that is on its way to the
    // disk still: it must count no more when this opening's is made, which has the same number.
    let mut ready = Vec::new();
    for spare in std::mem::take(&mut files.spares) {
        let spare = segments::renew(files.store, spare).await.map_err(LogError::io("renewing a segment"))?;
        ready.push(spare);
    }
    files.spares = ready;
    let spare = take_spare(disk.as_ref(), &limits, &mut files).await?;
    let (moved, live, block) = log.begin(&files, &mut chain, spare, newest.map_or(1, |newest| newest + 1))?;
    if let Some(newest) = chain.last()
        && let Some(active) = files.active.get(&newest.activation)
    {
        // What it holds was proven; that it is in use was perhaps only read from memory, after a sync that failed. The
        // same bytes again: whatever a crash leaves of them is right.
        let again = active.block.encode(newest.seed(files.store));
        let doing = "confirming a segment";
        newest.segment.file.write_at(BLOCK_BYTES, vec![again]).await.map_err(LogError::io(doing))?;
        newest.segment.file.sync().await.map_err(LogError::io(doing))?;
    }
    let file = live.segment.file.clone();
    let seed = live.seed(files.store);
    let end = PREFACE + offset(moved.len());
    if !moved.is_empty() {
        // Before the block that makes them count: a crash in between leaves the segments before in force.
        file.write_at(PREFACE, vec![moved]).await.map_err(LogError::io("moving entries"))?;
        file.sync().await.map_err(LogError::io("moving entries"))?;
    }
    file.write_at(BLOCK_BYTES, vec![block.encode(seed)])
        .await
        .map_err(LogError::io("beginning a segment"))?;
    file.sync().await.map_err(LogError::io("beginning a segment"))?;
    chain.push(live);

    let files_open = chain.iter().map(|live| (live.segment.number, live.segment.file.clone())).collect();
    // In the chain no more: dead.
    let in_chain = |number: u64| chain.iter().any(|live| live.segment.number == number);
    let dead = files.active.into_values().map(|active| active.segment);
    let mut retired: Vec<Segment> = dead.filter(|segment| !in_chain(segment.number)).collect();
    let (ready, odd): (Vec<Segment>, Vec<Segment>) =
        files.spares.into_iter().partition(|spare| spare.len == limits.segment_bytes);
    retired.extend(odd);
    let recovered = Recovered {
        vote: log.head.vote,
        purged: log.head.purged,
        committed: log.head.committed,
        last: log.last(),
        entries: offset(log.entries.range(0..u64::MAX).count()),
        cut: log.cut.clone(),
        unproven: log.unproven,
    };
    let state = State {
        entries: log.entries,
        vote: log.head.vote,
        purged: log.head.purged,
        committed: log.head.committed,
        queue: std::collections::VecDeque::new(),
        plan: Plan { free: limits.segment_bytes - end, spares: ready.len() },
        wanted: 0,
        files: files_open,
        spares: ready.into(),
        retired,
        next_number: files.next_number,
        no_space: None,
        failed: None,
        closed: false,
    };
    let permits = usize::try_from(limits.queue_bytes / ROOM).unwrap_or(Semaphore::MAX_PERMITS);
    let shared = Arc::new(Shared {
        env,
        disk,
        limits,
        store: files.store,
        state: std::sync::Mutex::new(state),
        work: Notify::new(),
        upkeep: Notify::new(),
        space: watch::Sender::new(0),
        room: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
        health: watch::Sender::new(Health::Ok),
        tasks: watch::Sender::new(0),
    });
    let writer = Writer {
        shared: shared.clone(),
        chain,
        offset: end,
        sequence: block.synced + 1,
        synced: block.synced,
        head: log.head,
        unproven: false,
        header: None,
        dead: Vec::new(),
        declared: 0,
        closing: false,
    };
    Ok((shared, writer, recovered))
}

/// Looks at all files, and removes those that were never made.
async fn find(env: &Env, disk: &dyn Disk) -> Result<Files, LogError> {
    let names = disk.list().await.map_err(LogError::io("listing segments"))?;
    let mut store = None;
    let mut files =
        Files { store: StoreId([0; 16]), next_number: 1, spares: Vec::new(), active: BTreeMap::new() };
    for number in names.iter().filter_map(|name| number_of(name)) {
        files.next_number = files.next_number.max(number + 1);
        let found = segments::look(disk, number).await?;
        let identity = match &found {
            Found::Unmade => {
                disk.remove(&file_name(number)).await.map_err(LogError::io("removing a segment"))?;
                continue;
            }
            Found::Spare(identity, _) | Found::Active(identity, ..) => *identity,
        };
        if *store.get_or_insert(identity.store) != identity.store {
            return Err(LogError::Foreign { segment: file_name(number) });
        }
        match found {
            Found::Active(_, segment, block) => {
                let again = files.active.insert(block.activation, Active { segment, block });
                if again.is_some() {
                    let reason = "two segments have its place".to_owned();
                    return Err(LogError::Rot { segment: file_name(number), offset: BLOCK_BYTES, reason });
                }
            }
            Found::Spare(_, segment) => files.spares.push(segment),
            Found::Unmade => {}
        }
    }
    files.store = store.unwrap_or_else(|| {
        let mut id = [0; 16];
        env.rng.fill(&mut id);
        StoreId(id)
    });
    Ok(files)
}

/// A segment to begin, of a generation that no record has.
async fn take_spare(disk: &dyn Disk, limits: &LogLimits, files: &mut Files) -> Result<Segment, LogError> {
    if let Some(nth) = files.spares.iter().position(|spare| spare.len == limits.segment_bytes) {
        return Ok(files.spares.swap_remove(nth));
    }
    let number = files.next_number;
    files.next_number += 1;
    let made = segments::create(disk, files.store, number, limits.segment_bytes).await;
    made.map_err(LogError::io("making a segment"))
}

/// The log as it is read.
struct Log {
    entries: Entries,
    head: Head,
    cut: Option<Cut>,
    unproven: u64,
    /// The last record that counts.
    last_sequence: u64,
    /// The last record that was proven to be durable.
    floor: u64,
    /// A truncation was not proven.
    unproven_truncation: bool,
    /// Where the first record of the newest segment is that was not proven.
    unproven_at: u64,
    /// The entries of the newest segment, by where they are.
    tail: BTreeMap<u64, Arc<Entry>>,
}

impl Log {
    fn new(cache_bytes: u64) -> Self {
        Self {
            entries: Entries::new(cache_bytes),
            head: Head::default(),
            cut: None,
            unproven: 0,
            last_sequence: 0,
            floor: 0,
            unproven_truncation: false,
            unproven_at: u64::MAX,
            tail: BTreeMap::new(),
        }
    }

    fn last(&self) -> Option<LogId> {
        self.entries.last().map(|slot| slot.id).or(self.head.purged)
    }

    /// Reads all segments that are needed, oldest first. Gives them.
    async fn replay(&mut self, files: &Files, newest: u64) -> Result<Vec<Live>, LogError> {
        let tail = scan(files, newest, None).await?;
        self.floor = tail.floor;
        self.last_sequence = tail.last;
        let chain = self.chain(files, newest, &tail)?;
        let mut lives = Vec::new();
        for (activation, last) in chain {
            let scanned = scan(files, activation, Some(last)).await?;
            lives.push(self.apply(files, activation, scanned)?);
        }
        let cut = tail.cut;
        for (record, header, at) in &tail.records {
            if let Record::Entry(entry) = record {
                self.tail.insert(*at, entry.clone());
            }
            if header.sequence > self.floor {
                self.unproven_at = self.unproven_at.min(*at);
            }
        }
        let newest = self.apply(files, newest, tail)?;
        self.cut = cut.map(|offset| Cut { segment: file_name(newest.segment.number), offset });
        lives.push(newest);
        // Segments go only when a purge that covers their entries is durable.
        if let (Some(purged), Some(first)) = (self.head.purged, self.entries.first())
            && first.id.index != purged.index + 1
        {
            return Err(LogError::Order { expected: purged.index + 1, found: first.id.index });
        }
        // It was said of entries whose own write came later, and was torn.
        let last = self.last();
        if self.head.committed.map(|id| id.index) > last.map(|id| id.index) {
            self.head.committed = last;
        }
        Ok(lives)
    }

    /// The segments before the newest that are needed, oldest first, each with its last record.
    fn chain(&self, files: &Files, newest: u64, tail: &Scanned) -> Result<Vec<(u64, u64)>, LogError> {
        let start = files.active.get(&newest).ok_or(LogError::Missing { activation: newest })?;
        let declared = tail.records.iter().rev().find_map(|(record, ..)| match record {
            Record::Purge { oldest, .. } => Some(*oldest),
            _ => None,
        });
        let oldest = declared.unwrap_or(start.block.oldest).max(start.block.oldest);
        let mut chain = Vec::new();
        let (mut at, mut previous) = (newest, start.block.previous);
        while at > oldest {
            let Some(Previous { activation, last }) = previous else { break };
            if activation < oldest {
                break;
            }
            if activation >= at {
                return Err(LogError::Missing { activation });
            }
            let found = files.active.get(&activation).ok_or(LogError::Missing { activation })?;
            chain.push((activation, last));
            (at, previous) = (activation, found.block.previous);
        }
        chain.reverse();
        Ok(chain)
    }

    /// Takes the records of a segment.
    fn apply(&mut self, files: &Files, activation: u64, scanned: Scanned) -> Result<Live, LogError> {
        let Some(active) = files.active.get(&activation) else {
            return Err(LogError::Missing { activation });
        };
        let segment = active.segment.clone();
        self.head = active.block.head;
        if let Some(purged) = self.head.purged {
            self.entries.purge(purged.index);
        }
        let (mut max_index, mut needed) = (None, false);
        for (record, header, at) in scanned.records {
            if header.sequence > self.floor {
                self.unproven += 1;
            }
            match record {
                Record::Entry(entry) => {
                    let index = entry.log_id.index;
                    // What is purged later in the log may have its predecessors in segments that are gone.
                    self.entries.check(index, None).map_err(|error| LogError::Rot {
                        segment: file_name(segment.number),
                        offset: at,
                        reason: error.to_string(),
                    })?;
                    let location =
                        Location { segment: segment.number, generation: segment.generation, offset: at };
                    self.entries.push(entry, header.total(), Some(location));
                    max_index = max_index.max(Some(index));
                    needed = true;
                }
                Record::Vote(vote) => self.head.vote = Some(vote),
                Record::Truncate(since) => {
                    self.entries.truncate(since.index);
                    needed = true;
                    self.unproven_truncation |= header.sequence > self.floor;
                }
                Record::Purge { upto, .. } => {
                    self.entries.purge(upto.index);
                    self.head.purged = Some(upto);
                }
                Record::Committed(id) => self.head.committed = id,
            }
        }
        Ok(Live { segment, activation, last: scanned.last, max_index, needed })
    }

    /// Begins the segment that is written from now on. Gives the records it begins with, itself, and its activation
    /// block.
    ///
    /// The newest segment ends at its last proven record. Entries after it move; when there are few in all, everything
    /// that lives in it moves, and it is not needed any more. The state beside the entries is in the block.
    fn begin(
        &mut self,
        files: &Files,
        chain: &mut Vec<Live>,
        spare: Segment,
        activation: u64,
    ) -> Result<(Bytes, Live, Activation), LogError> {
        let first = self.last_sequence + 1;
        let mut live = Live { segment: spare, activation, last: 0, max_index: None, needed: false };
        let mut records = Vec::new();
        if let Some(mut newest) = chain.pop() {
            let number = newest.segment.number;
            let inside = |slot: &Slot| slot.location.filter(|at| at.segment == number).map(|at| at.offset);
            let slots = || self.entries.range(0..u64::MAX);
            let lives: u64 = slots().filter(|slot| inside(slot).is_some()).map(|slot| slot.len).sum();
            let all = lives <= MOVE_MAX.min(newest.segment.len.min(live.segment.len) / 4);
            // When nothing of it was proven, its activation perhaps was not durable either.
            let start = files.active.get(&newest.activation).map_or(0, |active| active.block.first);
            let all = all || self.floor < start;
            let from = if all { 0 } else { self.unproven_at };
            let moves = |slot: &Slot| inside(slot).is_some_and(|at| at >= from);
            let kept = slots().take_while(|slot| !moves(slot)).last().map_or(0, |slot| slot.id.index + 1);
            if self.unproven_truncation || (all && newest.needed && !chain.is_empty()) {
                // What it had cut of older segments is cut again.
                records.push((Record::Truncate(LogId::new(LeaderId::default(), kept)), None));
            }
            for slot in slots().filter(|slot| moves(slot)) {
                let entry = inside(slot).and_then(|at| self.tail.remove(&at));
                let entry = entry.ok_or(LogError::Missing { activation: newest.activation })?;
                records.push((Record::Entry(entry), Some((slot.id.index, slot.serial))));
            }
            if phase::sabotaged(Sabotage::NoCopy) {
                records.clear();
                newest.last = self.last_sequence;
                chain.push(newest);
            } else if !all {
                newest.last = self.floor;
                chain.push(newest);
            }
        }
        let purged = self.head.purged.map(|id| id.index);
        while chain.first().is_some_and(|live| live.max_index <= purged) {
            chain.remove(0);
        }
        let mut bytes = BytesMut::new();
        let mut sequence = first;
        for (record, slot) in records {
            let at = PREFACE + offset(bytes.len());
            let place = (live.segment.generation, sequence, first - 1);
            record.encode(&mut bytes, live.seed(files.store), place);
            sequence += 1;
            live.needed = true;
            if let Some((index, serial)) = slot {
                live.max_index = live.max_index.max(Some(index));
                let (segment, generation) = (live.segment.number, live.segment.generation);
                self.entries.locate(index, serial, Location { segment, generation, offset: at });
            }
        }
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        if PREFACE + offset(bytes.len()) > live.segment.len {
            return Err(LogError::Limits("segments that are smaller than one write was before"));
        }
        let block = Activation {
            generation: live.segment.generation,
            activation,
            first,
            synced: sequence - 1,
            oldest: chain.first().map_or(activation, |live| live.activation),
            previous: chain.last().map(|live| Previous { activation: live.activation, last: live.last }),
            head: self.head,
        };
        Ok((bytes.freeze(), live, block))
    }
}

/// Reads the records of a segment that count: up to `limit`, which must be there, or to the end of what verifies.
async fn scan(files: &Files, activation: u64, limit: Option<u64>) -> Result<Scanned, LogError> {
    let Some(Active { segment, block }) = files.active.get(&activation) else {
        return Err(LogError::Missing { activation });
    };
    let mut window = Window::new(segment);
    let seed = Seed { store: files.store, segment: segment.number };
    let floor = block.synced.max(block.first - 1);
    let mut scanned = Scanned { records: Vec::new(), last: block.first - 1, floor, cut: None };
    let mut at = PREFACE;
    while limit.is_none_or(|limit| scanned.last < limit) {
        let expected = scanned.last + 1;
        let mut found = record_at(&mut window, segment, seed, at, expected).await?;
        let next = at.next_multiple_of(BLOCK_BYTES);
        if matches!(found, Err(FormatError::Magic(_))) && next != at {
            // The batch ended before, in this block.
            at = next;
            found = record_at(&mut window, segment, seed, at, expected).await?;
            if matches!(&found, Ok((_, header)) if !header.first) {
                found = Err(FormatError::Field("not the beginning of a batch"));
            }
        }
        match found {
            Ok((record, header)) => {
                scanned.floor = scanned.floor.max(header.synced);
                scanned.last = header.sequence;
                scanned.records.push((record, header, at));
                at += header.total();
            }
            Err(error) => {
                let rot = |reason: String| LogError::Rot {
                    segment: file_name(segment.number),
                    offset: at,
                    reason: format!("record {expected}, which was durable: {reason}"),
                };
                if limit.is_some() || scanned.floor >= expected {
                    return Err(rot(error.to_string()));
                }
                let (proof, more) = beyond(
                    &mut window,
                    segment,
                    seed,
                    next.max(at + 1).next_multiple_of(BLOCK_BYTES),
                    expected,
                )
                .await?;
                if proof {
                    return Err(rot(error.to_string()));
                }
                let torn = matches!(error, FormatError::Checksum(_));
                scanned.cut = (torn || more).then_some(at);
                break;
            }
        }
    }
    Ok(scanned)
}

/// The record at `at`, if it is the expected one.
async fn record_at(
    window: &mut Window<'_>,
    segment: &Segment,
    seed: Seed,
    at: u64,
    expected: u64,
) -> Result<Result<(Record, RecordHeader), FormatError>, LogError> {
    let Some(header) = header_at(window, seed, at).await? else {
        return Ok(Err(FormatError::CutOff));
    };
    let header = match header {
        Ok(header) => header,
        Err(version @ FormatError::Version(_)) => {
            return Err(LogError::Version { segment: file_name(segment.number), version });
        }
        Err(error) => return Ok(Err(error)),
    };
    if header.generation != segment.generation || header.sequence != expected {
        return Ok(Err(FormatError::Field("another record")));
    }
    let payload = window.get(at + offset(RECORD_HEADER), u64::from(header.len)).await;
    let Some(payload) = payload.map_err(LogError::io("reading the log"))? else {
        return Ok(Err(FormatError::CutOff));
    };
    Ok(header.payload(&payload, seed).map(|record| (record, header)))
}

async fn header_at(
    window: &mut Window<'_>,
    seed: Seed,
    at: u64,
) -> Result<Option<Result<RecordHeader, FormatError>>, LogError> {
    let bytes = window.get(at, offset(RECORD_HEADER)).await.map_err(LogError::io("reading the log"))?;
    Ok(bytes.map(|bytes| RecordHeader::decode(&bytes, seed)))
}

/// Looks for batches from `at` on: does one say that the record `expected` was durable, and is there any after it?
async fn beyond(
    window: &mut Window<'_>,
    segment: &Segment,
    seed: Seed,
    mut at: u64,
    expected: u64,
) -> Result<(bool, bool), LogError> {
    let mut more = false;
    while let Some(header) = header_at(window, seed, at).await? {
        if let Ok(header) = header
            && header.generation == segment.generation
            && header.sequence > expected
        {
            more = true;
            if header.synced >= expected {
                return Ok((true, true));
            }
        }
        at += BLOCK_BYTES;
    }
    Ok((false, more))
}
