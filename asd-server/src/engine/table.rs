//! What the engine knows about each segment, and the decisions made from that: which one may be reused, which one is
//! worth compacting, whether a tombstone is still needed. Pure: it holds facts, does nothing.

use std::collections::BTreeMap;

use super::format::{BLOCK_BYTES, SegmentHeader, Version};
use super::index::Live;

/// Where a segment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Batches are appended to it.
    Head,
    /// It takes no more; its closing block is durable.
    Closed,
    /// It takes no more, but its closing block could not be written (or it has none, being of version 1). Only the
    /// header of the segment opened after it tells where its history ends: that one must not be reused before it.
    Unclosed,
}

/// One segment.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub header: SegmentHeader,
    /// Last batch of the history in it.
    pub last: u64,
    /// Where that batch ends.
    pub end: u64,
    pub state: State,
    pub live: Live,
    /// Its blocks were given back to the file system.
    pub punched: bool,
    /// Something in it that lives is damaged and cannot be moved: compacting it gains nothing until that is replaced.
    /// What lived in it when that was found.
    pub stuck: Option<Live>,
}

impl Facts {
    pub(crate) fn new(header: SegmentHeader, last: u64, end: u64, state: State) -> Self {
        Self { header, last, end, state, live: Live::default(), punched: false, stuck: None }
    }

    /// Nothing in it is needed.
    pub(crate) fn is_dead(&self) -> bool {
        self.state != State::Head && self.live == Live::default()
    }
}

/// All segments.
#[derive(Debug, Default)]
pub(crate) struct Table {
    segments: BTreeMap<u64, Facts>,
}

/// How much garbage a segment must hold to be worth compacting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// There is room: only what is mostly dead (a quarter or less lives, and half of it is gained).
    Relaxed,
    /// Room is short: whatever gains a sixteenth of a segment.
    Short,
}

impl Table {
    pub(crate) fn insert(&mut self, facts: Facts) {
        self.segments.insert(facts.header.seed.segment, facts);
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Facts> {
        self.segments.get(&number)
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut Facts> {
        self.segments.get_mut(&number)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Facts> {
        self.segments.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn set_live(&mut self, live: &BTreeMap<u64, Live>) {
        for (number, live) in live {
            if let Some(facts) = self.segments.get_mut(number) {
                facts.live = *live;
            }
        }
    }

    /// Segments that may be reused now, those with blocks behind them first, then oldest first.
    pub(crate) fn free(&self) -> Vec<u64> {
        let pinned = self.pinned();
        let mut free: Vec<&Facts> = self
            .segments
            .values()
            .filter(|facts| facts.is_dead() && !pinned.contains(&facts.header.seed.segment))
            .collect();
        free.sort_by_key(|facts| (facts.punched, facts.header.order()));
        free.into_iter().map(|facts| facts.header.seed.segment).collect()
    }

    /// Segments whose headers are still needed: each opened right after an unclosed one. While segments of version 1
    /// are left, all but the oldest of those: version 1 tells the gaps of its history from losses by its headers.
    fn pinned(&self) -> Vec<u64> {
        // Those without a batch are no part of the history.
        let in_history = |facts: &&Facts| facts.state != State::Closed || facts.last > facts.header.previous;
        let mut order: Vec<&Facts> = self.segments.values().filter(in_history).collect();
        order.sort_by_key(|facts| facts.header.order());
        let number = |facts: &&Facts| facts.header.seed.segment;
        if let Some(oldest) = order.iter().find(|facts| facts.header.version == Version::V1).map(number) {
            let all = self.segments.keys().copied();
            return all.filter(|number| *number != oldest).collect();
        }
        let pairs = order.windows(2);
        pairs
            .filter_map(|pair| match pair {
                [first, second] if first.state == State::Unclosed => Some(number(second)),
                _ => None,
            })
            .collect()
    }

    /// Is a tombstone still needed that deletes what was written from batch `since` to before batch `until`? It is
    /// while any segment but `except` (the one it is in, which goes away with it) may hold such a batch.
    pub(crate) fn may_hold(&self, since: u64, until: u64, except: u64) -> bool {
        self.segments.values().any(|facts| {
            let number = facts.header.seed.segment;
            // Batches previous+1 to last. A head is growing: what it gets from now on is later than any tombstone.
            number != except
                && facts.last > facts.header.previous
                && facts.last >= since
                && facts.header.previous + 1 < until
        })
    }

    /// The segment that is most worth compacting: the one with the least that lives in it.
    pub(crate) fn victim(&self, urgency: Urgency) -> Option<u64> {
        let worth = |facts: &&Facts| {
            let (room, live) = (facts.header.len, facts.live.bytes);
            // What is written again takes a block of records per batch of a megabyte, besides.
            let again = live + BLOCK_BYTES * (live / (1 << 20) + 1);
            let gain = facts.end.saturating_sub(facts.header.first_batch()).saturating_sub(again);
            let enough = match urgency {
                Urgency::Relaxed => live <= room / 4 && gain >= room / 2,
                Urgency::Short => gain >= room / 16,
            };
            facts.state != State::Head && !facts.is_dead() && facts.stuck != Some(facts.live) && enough
        };
        // The successor of an unclosed one cannot be reused before that one: then that one has to go first, whatever
        // lives in it. The same holds for version 1.
        let pinned = self.pinned();
        let blocking =
            self.segments.values().filter(|f| f.state == State::Unclosed && f.stuck != Some(f.live));
        let blocking = blocking
            .filter(|facts| !facts.is_dead() && !pinned.contains(&facts.header.seed.segment))
            .min_by_key(|facts| facts.header.order());
        let best = self
            .segments
            .values()
            .filter(|facts| !pinned.contains(&facts.header.seed.segment))
            .filter(worth)
            .min_by_key(|facts| (facts.live.bytes, facts.header.order()));
        let urgent = blocking.filter(|_| urgency == Urgency::Short);
        urgent.or(best).or(blocking).map(|facts| facts.header.seed.segment)
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::{Seed, StoreId};
    use super::*;

    const LEN: u64 = 1 << 20;

    fn facts(number: u64, previous: u64, last: u64, state: State, live: u64) -> Facts {
        let seed = Seed { store: StoreId([0; 16]), segment: number, generation: previous + 1 };
        let header = SegmentHeader { version: Version::V2, seed, len: LEN, previous, slots: 9 };
        let live = Live { values: u64::from(live > 0), bytes: live, tombstones: 0 };
        Facts { live, ..Facts::new(header, last, LEN, state) }
    }

    fn table(segments: impl IntoIterator<Item = Facts>) -> Table {
        let mut table = Table::default();
        segments.into_iter().for_each(|facts| table.insert(facts));
        table
    }

    #[test]
    fn dead_segments_are_free_unless_their_header_is_needed() {
        let all = |state| {
            table([
                facts(0, 0, 10, state, 0),
                facts(1, 10, 20, State::Closed, 0),
                facts(2, 20, 30, State::Closed, 7),
                facts(3, 30, 40, State::Head, 0),
            ])
        };
        assert_eq!(all(State::Closed).free(), [0, 1]);
        assert_eq!(all(State::Unclosed).free(), [0], "the header of 1 tells where 0 ends");
    }

    #[test]
    fn version_1_goes_oldest_first_and_before_all_others() {
        let mut old = [facts(0, 0, 10, State::Unclosed, 5), facts(1, 10, 20, State::Unclosed, 0)];
        old.iter_mut().for_each(|facts| facts.header.version = Version::V1);
        let [first, second] = old;
        let mut table = table([first, second, facts(2, 20, 30, State::Closed, 0)]);
        assert_eq!(table.free(), Vec::<u64>::new());
        assert_eq!(table.victim(Urgency::Relaxed), Some(0));
        table.set_live(&BTreeMap::from([(0, Live::default())]));
        assert_eq!(table.free(), [0]);
    }

    #[test]
    fn a_tombstone_is_needed_while_an_older_batch_may_be_somewhere() {
        let table = table([
            facts(0, 0, 10, State::Closed, 1),
            facts(1, 10, 20, State::Closed, 1),
            facts(2, 40, 50, State::Head, 1),
        ]);
        assert!(table.may_hold(5, 45, 2), "written in batch 5 of segment 0, or later");
        assert!(table.may_hold(20, 45, 2));
        assert!(!table.may_hold(21, 41, 9), "that segment is gone");
        assert!(!table.may_hold(45, 47, 2), "only in the tombstone's own segment");
        assert!(!table.may_hold(1, 1, 9));
    }

    #[test]
    fn what_lives_least_is_compacted_first_and_damage_stops_it() {
        let mut table = table([
            facts(0, 0, 10, State::Closed, LEN / 2),
            facts(1, 10, 20, State::Closed, LEN / 4),
            facts(2, 20, 30, State::Closed, LEN),
            facts(3, 30, 40, State::Head, 1),
        ]);
        assert_eq!(table.victim(Urgency::Relaxed), Some(1));
        let live = table.get(1).unwrap().live;
        table.get_mut(1).unwrap().stuck = Some(live);
        assert_eq!(table.victim(Urgency::Relaxed), None);
        assert_eq!(table.victim(Urgency::Short), Some(0));
        table.set_live(&BTreeMap::from([(1, Live { bytes: 5, ..live })]));
        assert_eq!(table.victim(Urgency::Relaxed), Some(1), "what was damaged is gone");
    }
}
