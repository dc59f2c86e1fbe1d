//! The scrub: reads everything that lives, segment after segment, at a rate, and tells what is damaged. It goes on where
//! it was after a restart. It repairs nothing but trees of values: the client's other fragments do that.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{OsdError, OsdKey};
use alba_core::env::{Deadline, Direction, blocking, within};
use serde::Serialize;

use super::Shared;
use super::format::offset;
use super::index::{Entry, ScrubProgress, Scrubbed};
use super::reader;
use super::walk::Walk;

/// Between looks whether a round is due, and after an error.
const LOOK: Duration = Duration::from_secs(10);

/// Most damaged keys that are remembered.
const DAMAGED_MAX: usize = 1000;

/// What the scrub is at, for people and programs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ScrubStatus {
    /// Rounds completed since the store was formatted.
    pub rounds: u64,
    /// Is a round under way?
    pub running: bool,
    /// Segments of this round that are done.
    pub segments_done: u64,
    /// Segments there are.
    pub segments: u64,
    /// Bytes read since the start of the process.
    pub bytes: u64,
    /// Damaged values found in the last look at each segment.
    pub damaged: u64,
    /// Some of their keys, in text or hex, newest last.
    pub damaged_keys: Vec<String>,
}

/// What the task tells others.
#[derive(Debug, Default)]
pub(crate) struct ScrubState {
    bytes: AtomicU64,
    next: AtomicU64,
    rounds: AtomicU64,
    running: std::sync::atomic::AtomicBool,
    damaged: AtomicU64,
    keys: Mutex<VecDeque<String>>,
}

impl ScrubState {
    fn found_damage(&self, key: &OsdKey) {
        let text = alba_core::ids::text_or_hex(key).to_string();
        // No code panics while it holds the lock.
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|known| *known != text);
        keys.push_back(text);
        if keys.len() > DAMAGED_MAX {
            keys.pop_front();
        }
    }

    pub(crate) fn status(&self, segments: u64) -> ScrubStatus {
        let running = self.running.load(Ordering::Relaxed);
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        ScrubStatus {
            rounds: self.rounds.load(Ordering::Relaxed),
            running,
            segments_done: if running { self.next.load(Ordering::Relaxed).min(segments) } else { segments },
            segments,
            bytes: self.bytes.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
            damaged_keys: keys.iter().cloned().collect(),
        }
    }
}

/// The task: until it is aborted.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        if let Err(error) = rounds(&shared).await {
            tracing::debug!(%error, "the scrub is put off");
        }
        let clock = shared.clock.as_ref();
        let woken = shared.scrubbing.notified();
        // Either way it looks whether a round is due.
        let _ = within(clock, Deadline::after(clock, LOOK), woken).await;
    }
}

async fn with_index<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce(&super::index::Index) -> Result<T, alba_core::kv::KvError> + Send + 'static,
) -> Result<T, OsdError> {
    let index = shared.index()?;
    let done = blocking(shared.sources.spawn.as_ref(), move || work(&index)).await;
    let done = done.map_err(|gone| OsdError::Device(gone.to_string()))?;
    done.map_err(|error| OsdError::Device(error.to_string()))
}

/// Goes through what is left of the round, and begins another one when that is due.
async fn rounds(shared: &Shared) -> Result<(), OsdError> {
    let mut progress = with_index(shared, |index| index.scrub_progress()).await?;
    count_damage(shared).await?;
    shared.scrub.rounds.store(progress.rounds, Ordering::Relaxed);
    let now = shared.clock.wall_micros();
    if progress.next == 0 {
        // Clocks that jump make a round come early or late, no more.
        let since = Duration::from_micros(now.saturating_sub(progress.began_micros));
        let due =
            progress.began_micros == 0 || progress.began_micros > now || since >= shared.config.scrub_every;
        if !due && !shared.scrub_asked.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        progress.began_micros = now.max(1);
    }
    shared.scrub.running.store(true, Ordering::Relaxed);
    let result = one_round(shared, &mut progress).await;
    shared.scrub.running.store(false, Ordering::Relaxed);
    result
}

async fn one_round(shared: &Shared, progress: &mut ScrubProgress) -> Result<(), OsdError> {
    loop {
        let next = shared.table().iter().map(|f| f.header.seed.segment).find(|n| *n >= progress.next);
        let Some(number) = next else { break };
        let found = segment(shared, number).await?;
        progress.next = number + 1;
        shared.scrub.next.store(progress.next, Ordering::Relaxed);
        let now = *progress;
        with_index(shared, move |index| index.set_scrubbed(found.map(|found| (number, found)), &now)).await?;
        count_damage(shared).await?;
    }
    (progress.next, progress.rounds) = (0, progress.rounds + 1);
    shared.scrub.rounds.store(progress.rounds, Ordering::Relaxed);
    let now = *progress;
    with_index(shared, move |index| index.set_scrubbed(None, &now)).await
}

async fn count_damage(shared: &Shared) -> Result<(), OsdError> {
    let results = with_index(shared, |index| index.scrubbed()).await?;
    let table = shared.table();
    let of_this_life = |(number, found): &(&u64, &Scrubbed)| {
        table.get(**number).is_some_and(|facts| facts.header.seed.generation == found.generation)
    };
    let damaged = results.iter().filter(of_this_life).map(|(_, found)| found.damaged).sum();
    shared.scrub.damaged.store(damaged, Ordering::Relaxed);
    Ok(())
}

/// Reads what lives in a segment. None when it is gone, or empty.
async fn segment(shared: &Shared, number: u64) -> Result<Option<Scrubbed>, OsdError> {
    let begun = Walk::begin(shared, number).await;
    let walk = begun.map_err(|error| OsdError::Device(format!("cannot read a segment: {error}")))?;
    let Some(mut walk) = walk else { return Ok(None) };
    let mut found = Scrubbed { generation: walk.generation(), ..Scrubbed::default() };
    while let Some(page) = walk.next(shared).await? {
        for (key, entry) in page.values {
            found.values += 1;
            found.bytes += u64::from(entry.len);
            match check(shared, &key, &entry).await {
                Ok(()) => {}
                // Replaced meanwhile?
                Err(OsdError::Damaged(_)) if !is_current(shared, &key, &entry).await? => {}
                Err(OsdError::Damaged(_)) => {
                    found.damaged += 1;
                    shared.scrub.found_damage(&key);
                    metrics::counter!("alba_scrub_errors_total").increment(1);
                }
                Err(other) => return Err(other),
            }
            let bytes = u64::from(entry.len) + offset(key.len());
            shared.scrub.bytes.fetch_add(bytes, Ordering::Relaxed);
            metrics::counter!("alba_scrub_bytes_total").increment(bytes);
            shared.rates.scrub.pace(shared.clock.as_ref(), bytes).await;
        }
    }
    // Values of batches whose records are damaged are found by their rows, not here.
    if walk.unreadable > 0 {
        let lost = lost_values(shared, number, found.values).await?;
        found.damaged += lost;
        if lost > 0 {
            tracing::error!(segment = number, lost, "records are damaged");
            metrics::counter!("alba_scrub_errors_total").increment(lost);
        }
    }
    found.at_micros = shared.clock.wall_micros();
    Ok(Some(found))
}

/// How many values of the segment were not met.
async fn lost_values(shared: &Shared, number: u64, met: u64) -> Result<u64, OsdError> {
    let live = shared.table().get(number).map_or(0, |facts| facts.live.values);
    Ok(live.saturating_sub(met))
}

async fn is_current(shared: &Shared, key: &OsdKey, entry: &Entry) -> Result<bool, OsdError> {
    let (key, entry) = (key.clone(), entry.clone());
    with_index(shared, move |index| {
        Ok(index.lookup(std::slice::from_ref(&key))?.pop().flatten().as_ref() == Some(&entry))
    })
    .await
}

/// Reads a value from its segment, also a small one, and compares it with all that is known of it.
async fn check(shared: &Shared, key: &OsdKey, entry: &Entry) -> Result<(), OsdError> {
    let from_segment = Entry { inline: None, ..entry.clone() };
    let read = reader::value(shared, key, &from_segment);
    let stored = shared.in_turn(Direction::Read, entry.len.into(), read).await?;
    if entry.inline.as_ref().is_some_and(|inline| **inline != *stored.value) {
        return Err(shared.damaged(key, "index and segment differ"));
    }
    if let Checksum::Blake3(root) = entry.checksum {
        let tree = reader::hash(shared, stored.value).await?;
        if tree.root() != root {
            return Err(shared.damaged(key, "it has another BLAKE3 root"));
        }
    }
    Ok(())
}
