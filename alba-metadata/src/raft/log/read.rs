//! Reading entries: recent ones from memory, others from the disk, in runs.
//!
//! It must never hand out bytes that do not verify, nor an entry that was truncated or purged before it was asked for.

use std::ops::Range;
use std::sync::Arc;

use alba_core::env::DiskFile;
use bytes::Bytes;

use super::LogError;
use super::entries::{Location, Slot};
use super::format::{Entry, FormatError, RECORD_HEADER, Record, RecordHeader, Seed, offset};
use super::segments::file_name;
use super::shared::Shared;

/// Bytes read at once.
const RUN: u64 = 1 << 20;

/// Entries of `range` that are there, up to `bytes` together but at least one.
pub(super) async fn read(shared: &Shared, range: Range<u64>, bytes: u64) -> Result<Vec<Entry>, LogError> {
    let mut found = Vec::new();
    let mut next = range.start;
    let mut left = bytes;
    loop {
        let run = next_run(shared, next..range.end, left, found.is_empty());
        let Some(first) = run.first() else { return Ok(found) };
        if found.last().is_some_and(|last: &Entry| last.log_id.index + 1 != first.id.index) {
            // Purged or truncated meanwhile: what is there has no holes.
            return Ok(found);
        }
        match first.location.filter(|_| first.cached.is_none()) {
            None => found.extend(run.iter().filter_map(|slot| slot.cached.as_deref().cloned())),
            Some(location) => match load(shared, location, &run).await? {
                Some(entries) => found.extend(entries),
                // They are elsewhere now, or gone.
                None => continue,
            },
        }
        left = left.saturating_sub(run.iter().map(|slot| slot.len).sum());
        next = match run.last() {
            Some(last) => last.id.index + 1,
            None => return Ok(found),
        };
        if left == 0 {
            return Ok(found);
        }
    }
}

/// The next entries that are read in one go: all from memory, or all from one place on the disk.
fn next_run(shared: &Shared, range: Range<u64>, mut left: u64, mut any: bool) -> Vec<Slot> {
    let state = shared.state();
    let mut run: Vec<Slot> = Vec::new();
    for slot in state.entries.range(range) {
        if let Some(first) = run.first() {
            let same = match (first.cached.is_some(), slot.cached.is_some()) {
                (true, true) => true,
                (false, false) => first.location.zip(slot.location).is_some_and(|(one, other)| {
                    let end = other.offset + slot.len;
                    one.segment == other.segment
                        && one.generation == other.generation
                        && other.offset > one.offset
                        && end - one.offset <= RUN
                }),
                _ => false,
            };
            if !same {
                break;
            }
        }
        if slot.len > left && !any {
            break;
        }
        any = false;
        left = left.saturating_sub(slot.len);
        run.push(slot.clone());
    }
    run
}

/// Reads a run from the disk. None when it has been truncated or purged, and its segment used again.
async fn load(shared: &Shared, start: Location, run: &[Slot]) -> Result<Option<Vec<Entry>>, LogError> {
    let file = shared.state().files.get(&start.segment).cloned();
    let end = run.last().and_then(|slot| Some(slot.location?.offset + slot.len)).unwrap_or(start.offset);
    let read = match file {
        Some(file) => shared.io_read(file, start.offset, end - start.offset).await,
        None => Err(LogError::io("reading the log")(std::io::ErrorKind::NotFound.into())),
    };
    let parsed = read.and_then(|bytes| {
        run.iter().map(|slot| parse(shared, start.offset, slot, &bytes)).collect::<Result<Vec<_>, _>>()
    });
    match parsed {
        Ok(entries) => Ok(Some(entries)),
        Err(error) => {
            let state = shared.state();
            let still =
                |slot: &Slot| state.entries.get(slot.id.index).is_some_and(|now| now.serial == slot.serial);
            if run.iter().all(still) { Err(error) } else { Ok(None) }
        }
    }
}

fn parse(shared: &Shared, start: u64, slot: &Slot, bytes: &Bytes) -> Result<Entry, LogError> {
    let Some(location) = slot.location else { return Err(LogError::Closed) };
    let rot = |reason: String| LogError::Rot {
        segment: file_name(location.segment),
        offset: location.offset,
        reason,
    };
    let seed = Seed { store: shared.store, segment: location.segment };
    let decoded = || {
        let from = usize::try_from(location.offset - start).map_err(|_| FormatError::CutOff)?;
        let len = usize::try_from(slot.len).map_err(|_| FormatError::CutOff)?;
        if bytes.len() < from + len {
            return Err(FormatError::CutOff);
        }
        let record = bytes.slice(from..from + len);
        let header = RecordHeader::decode(&record, seed)?;
        if header.generation != location.generation || header.total() != offset(len) {
            return Err(FormatError::Field("another record"));
        }
        header.payload(&record.slice(RECORD_HEADER..), seed)
    };
    match decoded() {
        Ok(Record::Entry(entry)) if entry.log_id == slot.id => Ok(Arc::unwrap_or_clone(entry)),
        Ok(_) => Err(rot("another record".to_owned())),
        Err(error) => Err(rot(error.to_string())),
    }
}

impl Shared {
    async fn io_read(&self, file: Arc<dyn DiskFile>, at: u64, len: u64) -> Result<Bytes, LogError> {
        let len = usize::try_from(len).map_err(|_| LogError::Limits("a read that no memory holds"))?;
        // A reader that gives up leaves nothing behind, and does not fail the log.
        let clock = self.env.clock.as_ref();
        let deadline = alba_core::env::Deadline::after(clock, self.limits.stall_after);
        match alba_core::env::within(clock, deadline, file.read_at(at, len)).await {
            Ok(read) => read.map_err(LogError::io("reading the log")),
            Err(_) => Err(LogError::Stalled),
        }
    }
}
