//! What an engine tells about itself.

use serde::Serialize;

use super::index::Live;
use super::table::{Facts, State};
use super::*;

/// Where a segment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SegmentState {
    /// Batches are appended to it.
    Head,
    /// It takes no more.
    Closed,
    /// Nothing in it is needed: it will be reused.
    Free,
}

/// One segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SegmentReport {
    /// Its number, as in the file's name.
    pub number: u64,
    /// Which life of it.
    pub generation: u64,
    /// Bytes of the file.
    pub len: u64,
    /// Bytes that were written in this life, headers included.
    pub written: u64,
    /// Values that live in it.
    pub values: u64,
    /// Bytes that their records take.
    pub live_bytes: u64,
    /// Tombstones that are needed.
    pub tombstones: u64,
    /// Where it is in its life.
    pub state: SegmentState,
}

/// Segments together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Space {
    /// Segment files.
    pub segments: u64,
    /// Of them, free to be reused.
    pub free: u64,
    /// Bytes that the records of live values take.
    pub live_bytes: u64,
    /// Bytes written in the present lives of segments that are not free.
    pub written: u64,
}

impl SegmentReport {
    fn of(facts: &Facts) -> Self {
        let Live { values, bytes, tombstones } = facts.live;
        let state = match facts.state {
            State::Head => SegmentState::Head,
            _ if facts.is_dead() => SegmentState::Free,
            State::Closed | State::Unclosed => SegmentState::Closed,
        };
        Self {
            number: facts.header.seed.segment,
            generation: facts.header.seed.generation,
            len: facts.header.len,
            written: facts.end,
            values,
            live_bytes: bytes,
            tombstones,
            state,
        }
    }
}

impl Engine {
    /// Space used and available.
    pub fn usage(&self) -> DiskUsage {
        let space = &self.shared.space;
        DiskUsage {
            used: alba_core::units::ByteCount(space.used()),
            capacity: alba_core::units::ByteCount(space.capacity()),
        }
    }

    /// What is wrong with it.
    pub fn status(&self) -> EngineStatus {
        self.shared.status.report()
    }

    /// All segments, by number.
    pub fn segments(&self) -> Vec<SegmentReport> {
        self.shared.table().iter().map(SegmentReport::of).collect()
    }

    /// Segments together.
    pub fn space(&self) -> Space {
        let mut space = Space::default();
        for report in self.segments() {
            space.segments += 1;
            space.live_bytes += report.live_bytes;
            if report.state == SegmentState::Free {
                space.free += 1;
            } else {
                space.written += report.written;
            }
        }
        space
    }

    /// What the scrub is at.
    pub fn scrub_status(&self) -> ScrubStatus {
        self.shared.scrub.status(offset(self.shared.table().len()))
    }

    /// Begins a round of the scrub now, unless one is under way.
    pub fn scrub_now(&self) {
        self.shared.scrub_asked.store(true, Ordering::Relaxed);
        self.shared.scrubbing.notify_one();
    }

    /// Changes the rates of background work, in bytes per second; 0: no limit.
    pub fn set_rates(&self, compaction: u64, scrub: u64) {
        self.shared.rates.compaction.set(compaction);
        self.shared.rates.scrub.set(scrub);
    }

    /// Changes the sum of value sizes it may hold.
    pub fn set_capacity(&self, capacity: u64) {
        self.shared.space.set_capacity(capacity);
    }
}
