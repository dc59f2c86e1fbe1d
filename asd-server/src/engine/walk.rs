//! Going through a segment record by record, for what of it is in use: compaction moves that, the scrub reads it.

use std::io;

use alba_core::env::blocking;
use alba_core::env::osd::{OsdError, OsdKey};

use super::Shared;
use super::batch::{self, BatchError, Effect, Record};
use super::files::Pinned;
use super::format::BLOCK_BYTES;
use super::index::{Entry, Index, Location, Range, Tombstone};
use super::segment::Window;
use super::table::Facts;

/// Records looked up in the index in one go.
const PAGE: usize = 256;

/// Some of what of a segment is in use.
#[derive(Default)]
pub(crate) struct Page {
    pub values: Vec<(OsdKey, Entry)>,
    pub tombstones: Vec<(OsdKey, Tombstone)>,
    pub ranges: Vec<Range>,
}

/// A walk through one life of a segment, up to where its last durable batch ended when the walk began.
pub(crate) struct Walk {
    facts: Facts,
    pinned: Pinned,
    at: u64,
    /// Blocks in which no batch begins although one should: their batches are damaged.
    pub unreadable: u64,
}

impl Walk {
    /// None when the segment is not there any more.
    pub(crate) async fn begin(shared: &Shared, number: u64) -> io::Result<Option<Self>> {
        let Some(facts) = shared.table().get(number).cloned() else { return Ok(None) };
        let pinned = shared.files.pin(number, facts.header.seed.generation).await?;
        let at = facts.header.first_batch();
        Ok(pinned.map(|pinned| Self { facts, pinned, at, unreadable: 0 }))
    }

    pub(crate) fn generation(&self) -> u64 {
        self.facts.header.seed.generation
    }

    /// The next page; none at the end.
    pub(crate) async fn next(&mut self, shared: &Shared) -> Result<Option<Page>, OsdError> {
        let header = self.facts.header;
        if self.at >= self.facts.end {
            return Ok(None);
        }
        let mut window = Window::new(self.pinned.file.as_ref(), self.facts.end);
        let mut records: Vec<(u64, Record)> = Vec::new();
        while self.at < self.facts.end && records.len() < PAGE {
            match batch::read(&mut window, header.version, &header.seed, self.at).await {
                Ok(found) => {
                    self.at = found.end;
                    let sequence = found.chain.sequence;
                    records.extend(found.records.into_iter().map(|record| (sequence, record)));
                }
                Err(BatchError::Invalid(_)) => {
                    self.unreadable += 1;
                    self.at += BLOCK_BYTES;
                }
                Err(BatchError::Io(error)) => {
                    shared.status.read_failed(&error);
                    return Err(OsdError::Device(format!("cannot read a segment: {error}")));
                }
            }
        }
        let index = shared.index()?;
        let (segment, generation) = (header.seed.segment, header.seed.generation);
        let page = blocking(shared.sources.spawn.as_ref(), move || {
            in_use(&index, records, |sequence, at| Location { segment, generation, sequence, at })
        });
        let page = page.await.map_err(|gone| OsdError::Device(gone.to_string()))?;
        page.map(Some).map_err(|error| OsdError::Device(error.to_string()))
    }
}

/// What of the records the index still names.
fn in_use(
    index: &Index,
    records: Vec<(u64, Record)>,
    location: impl Fn(u64, u64) -> Location,
) -> Result<Page, alba_core::kv::KvError> {
    let mut page = Page::default();
    for (sequence, record) in records {
        let here = location(sequence, record.at);
        match record.effect {
            Effect::Set(_) => {
                let found = index.lookup(std::slice::from_ref(&record.key))?.pop().flatten();
                if let Some(entry) = found.filter(|entry| entry.location == here) {
                    page.values.push((record.key, entry));
                }
            }
            Effect::Delete => {
                if let Some(found) = index.tombstone(&record.key)?.filter(|found| found.location == here) {
                    page.tombstones.push((record.key, found));
                }
            }
            Effect::DeleteRange { until, to } => {
                if let Some(found) =
                    index.range(until, &record.key, &to)?.filter(|found| found.location == here)
                {
                    page.ranges.push(found);
                }
            }
        }
    }
    Ok(page)
}
