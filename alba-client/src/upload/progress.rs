//! How far an object's chunks are: pure counting of acknowledgements against the policy, and the choice of spare OSDs.
//!
//! A fragment may be on its way to several OSDs at once: to its first one and to spares ([`Progress::spare`]). The first
//! acknowledgement is its location; what another OSD stores besides is garbage that its tag finds. Whichever wins, no two
//! fragments of a chunk are on one OSD and no node has more of them than the policy allows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alba_core::env::Moment;
use alba_core::ids::{ChunkIndex, FragmentIndex, NodeId, OsdId};
use alba_core::placement::{Candidate, Held, place};
use rand::Rng;

/// OSDs that one fragment is tried on, the first one included.
const PLACES: usize = 3;

/// A write is much slower than the others when it takes this many times what half of its chunk's writes took.
const MUCH_SLOWER: u32 = 3;

/// A chunk may be taken as stored (`Enough`), may still become so, or cannot any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Waiting,
    Enough,
    Failed,
}

/// What an acknowledgement means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Acknowledged {
    /// This is where the fragment is. These were asked to store it as well and are not needed any more.
    Location { others: Vec<OsdId> },
    /// The fragment is somewhere else: this copy is garbage.
    Copy,
}

/// What a policy asks, and who may be asked.
#[derive(Debug)]
pub(super) struct Terms {
    /// c of the policy.
    pub(super) needed: usize,
    /// n: fragments of each chunk that are to be stored.
    pub(super) planned: usize,
    /// x of the policy.
    pub(super) max_per_node: u32,
    /// Of all OSDs that may get a fragment.
    pub(super) nodes: BTreeMap<OsdId, NodeId>,
}

/// Where a fragment is or may come to be.
#[derive(Debug)]
struct Places {
    /// Acknowledged there first.
    stored: Option<OsdId>,
    pending: BTreeSet<OsdId>,
    /// How many were asked…
    tried: usize,
    /// … the last one at this time.
    since: Moment,
    /// Nothing more is done about its being slow.
    given_up: bool,
}

#[derive(Debug)]
struct Chunk {
    started: Moment,
    /// How long the faster half of its planned fragments took.
    half: Option<Duration>,
    fragments: BTreeMap<FragmentIndex, Places>,
    /// OSDs that were asked to store any fragment of it.
    tried: BTreeSet<OsdId>,
    failures: Vec<String>,
    verdict: Verdict,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Progress {
    terms: Terms,
    chunks: BTreeMap<ChunkIndex, Chunk>,
    /// Chunks that are waiting.
    open: usize,
    /// Chunks with writes under way.
    busy: BTreeSet<ChunkIndex>,
    /// Per OSD: chunks that have enough whose fragment it still owes, and since when.
    stragglers: BTreeMap<OsdId, BTreeMap<ChunkIndex, Moment>>,
}

impl Progress {
    pub(super) fn new(terms: Terms) -> Self {
        Self { terms, chunks: BTreeMap::new(), open: 0, busy: BTreeSet::new(), stragglers: BTreeMap::new() }
    }

    /// A chunk's fragments will be written now.
    pub(super) fn start(&mut self, index: ChunkIndex, now: Moment) {
        let chunk = Chunk {
            started: now,
            half: None,
            fragments: BTreeMap::new(),
            tried: BTreeSet::new(),
            failures: Vec::new(),
            verdict: Verdict::Waiting,
        };
        self.chunks.insert(index, chunk);
        self.open += 1;
        self.busy.insert(index);
    }

    /// A fragment is written to an OSD from now on.
    pub(super) fn write(&mut self, index: ChunkIndex, fragment: FragmentIndex, osd: OsdId, now: Moment) {
        let Some(chunk) = self.chunks.get_mut(&index) else { return };
        chunk.tried.insert(osd);
        let nowhere =
            Places { stored: None, pending: BTreeSet::new(), tried: 0, since: now, given_up: false };
        let places = chunk.fragments.entry(fragment).or_insert(nowhere);
        places.pending.insert(osd);
        places.tried += 1;
        places.since = now;
        self.busy.insert(index);
        if chunk.verdict == Verdict::Enough {
            self.stragglers.entry(osd).or_default().insert(index, chunk.started);
        }
    }

    /// Chooses one more OSD for a fragment, among `usable` ones: none that has or may have any fragment of the chunk, on a
    /// node that has room whatever becomes of the other fragments' writes. To be followed by [`Progress::write`].
    pub(super) fn spare(
        &self,
        index: ChunkIndex,
        fragment: FragmentIndex,
        usable: &[Candidate],
        rng: &mut dyn Rng,
    ) -> Option<OsdId> {
        let chunk = self.chunks.get(&index)?;
        if chunk.fragments.get(&fragment).is_some_and(|places| places.tried >= PLACES) {
            return None;
        }
        let free: Vec<Candidate> = usable
            .iter()
            .filter(|candidate| {
                !chunk.tried.contains(&candidate.osd)
                    // Its node would not be known to later choices.
                    && self.terms.nodes.get(&candidate.osd) == Some(&candidate.node)
            })
            .cloned()
            .collect();
        // Both places of a fragment that is on its way to two count, though it will be at one only: rather no spare than a
        // node with too much.
        let others = chunk.fragments.iter().filter(|(other, _)| **other != fragment);
        let possible = others.flat_map(|(_, places)| places.stored.iter().chain(&places.pending));
        let held: Vec<Held> = possible
            .filter_map(|osd| Some(Held { osd: *osd, node: self.terms.nodes.get(osd)?.clone() }))
            .collect();
        place(1, &free, &held, self.terms.max_per_node, rng).ok()?.pop()
    }

    /// An OSD acknowledged a fragment.
    pub(super) fn acknowledged(
        &mut self,
        index: ChunkIndex,
        fragment: FragmentIndex,
        osd: OsdId,
        now: Moment,
    ) -> Acknowledged {
        let (planned, copy) = (self.terms.planned, Acknowledged::Copy);
        let Some(chunk) = self.chunks.get_mut(&index) else { return copy };
        let started = chunk.started;
        let Some(places) = chunk.fragments.get_mut(&fragment) else { return copy };
        let asked = places.pending.remove(&osd);
        let first = asked && places.stored.is_none();
        if first {
            places.stored = Some(osd);
        }
        let others = if first { std::mem::take(&mut places.pending) } else { BTreeSet::new() };
        if chunk.half.is_none() && chunk.stored() >= planned.div_ceil(2) {
            chunk.half = Some(now.since(started));
        }
        for done in others.iter().chain([&osd]) {
            self.no_straggler(*done, index);
        }
        self.look_after(index);
        if first { Acknowledged::Location { others: others.into_iter().collect() } } else { copy }
    }

    /// An OSD failed to store a fragment. Says whether nothing is under way for the fragment any more.
    pub(super) fn failed(
        &mut self,
        index: ChunkIndex,
        fragment: FragmentIndex,
        osd: OsdId,
        reason: &str,
    ) -> bool {
        let Some(chunk) = self.chunks.get_mut(&index) else { return false };
        let Some(places) = chunk.fragments.get_mut(&fragment) else { return false };
        if !places.pending.remove(&osd) {
            // It was not waited for any more.
            return false;
        }
        chunk.failures.push(format!("fragment {fragment} on OSD {osd}: {reason}"));
        let missing = places.stored.is_none() && places.pending.is_empty();
        self.no_straggler(osd, index);
        self.look_after(index);
        missing
    }

    fn look_after(&mut self, index: ChunkIndex) {
        let writes = |chunk: &Chunk| chunk.fragments.values().any(|places| !places.pending.is_empty());
        if !self.chunks.get(&index).is_some_and(writes) {
            self.busy.remove(&index);
        }
    }

    /// The chunk's verdict, when it is another than last time. To be asked when all that follows from an answer is begun.
    pub(super) fn judge(&mut self, index: ChunkIndex) -> Option<Verdict> {
        let chunk = self.chunks.get_mut(&index)?;
        let (stored, needed) = (chunk.stored(), self.terms.needed);
        let possible =
            chunk.fragments.values().filter(|p| p.stored.is_some() || !p.pending.is_empty()).count();
        let verdict = if stored >= needed {
            Verdict::Enough
        } else if possible >= needed {
            Verdict::Waiting
        } else {
            Verdict::Failed
        };
        let before = std::mem::replace(&mut chunk.verdict, verdict);
        if before == Verdict::Waiting && verdict != before {
            self.open = self.open.saturating_sub(1);
            if verdict == Verdict::Enough {
                for osd in chunk.fragments.values().flat_map(|places| &places.pending) {
                    self.stragglers.entry(*osd).or_default().insert(index, chunk.started);
                }
            }
        }
        (verdict != before).then_some(verdict)
    }

    fn no_straggler(&mut self, osd: OsdId, chunk: ChunkIndex) {
        if let Some(owed) = self.stragglers.get_mut(&osd) {
            owed.remove(&chunk);
            if owed.is_empty() {
                self.stragglers.remove(&osd);
            }
        }
    }

    /// The fragment whose latest write becomes much slower than the others of its chunk next, and when it does: never
    /// sooner than after `least`.
    pub(super) fn slowest(&self, least: Duration) -> Option<(Moment, ChunkIndex, FragmentIndex)> {
        let of_chunk = |index: &ChunkIndex| {
            let chunk = self.chunks.get(index)?;
            let patience = least.max(chunk.half?.saturating_mul(MUCH_SLOWER));
            let waiting = chunk.fragments.iter().filter(|(_, places)| {
                places.stored.is_none() && !places.pending.is_empty() && !places.given_up
            });
            waiting.map(|(fragment, places)| (places.since.plus(patience), *index, *fragment)).min()
        };
        self.busy.iter().filter_map(of_chunk).min()
    }

    /// Nothing more can be done about a slow write.
    pub(super) fn give_up(&mut self, index: ChunkIndex, fragment: FragmentIndex) {
        let chunk = self.chunks.get_mut(&index);
        if let Some(places) = chunk.and_then(|chunk| chunk.fragments.get_mut(&fragment)) {
            places.given_up = true;
        }
    }

    /// Chunks that are waiting.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// If this OSD owes `many` fragments of finished chunks or more: since when it owes the oldest.
    pub(super) fn owes(&self, osd: OsdId, many: usize) -> Option<Moment> {
        let owed = self.stragglers.get(&osd).filter(|owed| owed.len() >= many)?;
        owed.values().next().copied()
    }

    /// The latest of what OSDs owe that owe `many` fragments or more.
    pub(super) fn latest_debt(&self, many: usize) -> Option<Moment> {
        self.stragglers.keys().filter_map(|osd| self.owes(*osd, many)).max()
    }

    /// Where a fragment is, if that was acknowledged.
    pub(super) fn location(&self, index: ChunkIndex, fragment: FragmentIndex) -> Option<OsdId> {
        self.chunks.get(&index)?.fragments.get(&fragment)?.stored
    }

    /// Planned fragments that are nowhere.
    pub(super) fn holes(&self) -> Vec<(ChunkIndex, FragmentIndex)> {
        let planned = u32::try_from(self.terms.planned).unwrap_or(u32::MAX);
        let all = self.chunks.keys().flat_map(|chunk| (0..planned).map(|f| (*chunk, FragmentIndex(f))));
        all.filter(|(chunk, fragment)| self.location(*chunk, *fragment).is_none()).collect()
    }

    /// How many fragments a chunk has, and what happened to the others.
    pub(super) fn explain(&self, index: ChunkIndex) -> (usize, String) {
        self.chunks.get(&index).map_or((0, String::new()), |c| (c.stored(), c.failures.join("; ")))
    }
}

impl Chunk {
    fn stored(&self) -> usize {
        self.fragments.values().filter(|places| places.stored.is_some()).count()
    }
}

/// How many writes may be sent twice because they are slow: one in [`WriteHedges::ONE_IN`], saved up to
/// [`WriteHedges::MOST`]. When everything is slow, twice as many writes would make it worse.
#[derive(Debug)]
pub(crate) struct WriteHedges {
    /// In parts of one hedge.
    saved: u32,
}

impl WriteHedges {
    /// Writes that earn one hedge.
    pub(crate) const ONE_IN: u32 = 20;

    /// Hedges that can be saved up: enough for one slow OSD among those of a few objects that begin together.
    pub(crate) const MOST: u32 = 16;

    pub(crate) fn new() -> Self {
        Self { saved: Self::MOST * Self::ONE_IN }
    }

    /// A fragment was written as planned.
    pub(super) fn earn(&mut self) {
        self.saved = (self.saved + 1).min(Self::MOST * Self::ONE_IN);
    }

    /// Takes one hedge, if there is one.
    pub(super) fn spend(&mut self) -> bool {
        let left = self.saved.checked_sub(Self::ONE_IN);
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }
}

#[cfg(test)]
mod tests;
