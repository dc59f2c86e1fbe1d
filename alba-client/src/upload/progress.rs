//! How far an object's chunks are: pure counting of acknowledgements against the policy.

use std::collections::BTreeMap;

use alba_core::env::Moment;
use alba_core::ids::{ChunkIndex, FragmentIndex, OsdId};

/// A chunk may be taken as stored (`Enough`), may still become so, or cannot any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Waiting,
    Enough,
    Failed,
}

#[derive(Debug)]
struct Chunk {
    started: Moment,
    /// Which fragments were acknowledged, and by whom.
    stored: BTreeMap<FragmentIndex, OsdId>,
    pending: BTreeMap<FragmentIndex, OsdId>,
    failures: Vec<String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Progress {
    /// c of the policy.
    needed: usize,
    chunks: BTreeMap<ChunkIndex, Chunk>,
    /// Chunks that are waiting.
    open: usize,
    /// Per OSD: chunks that have enough whose fragment it still owes, and since when.
    stragglers: BTreeMap<OsdId, BTreeMap<ChunkIndex, Moment>>,
}

impl Progress {
    pub(super) fn new(needed: usize) -> Self {
        Self { needed, chunks: BTreeMap::new(), open: 0, stragglers: BTreeMap::new() }
    }

    fn judge(&self, chunk: &Chunk) -> Verdict {
        if chunk.stored.len() >= self.needed {
            Verdict::Enough
        } else if chunk.stored.len() + chunk.pending.len() >= self.needed {
            Verdict::Waiting
        } else {
            Verdict::Failed
        }
    }

    /// All fragments of a chunk that will be written are being written now.
    pub(super) fn start(
        &mut self,
        index: ChunkIndex,
        writes: impl IntoIterator<Item = (FragmentIndex, OsdId)>,
        now: Moment,
    ) {
        let chunk = Chunk {
            started: now,
            stored: BTreeMap::new(),
            pending: writes.into_iter().collect(),
            failures: Vec::new(),
        };
        self.chunks.insert(index, chunk);
        self.open += 1;
    }

    /// A fragment was acknowledged or failed. Returns the chunk's verdict when this answer changed it.
    pub(super) fn answered(
        &mut self,
        index: ChunkIndex,
        fragment: FragmentIndex,
        result: Result<(), String>,
    ) -> Option<Verdict> {
        let mut chunk = self.chunks.remove(&index)?;
        let before = self.judge(&chunk);
        if let Some(osd) = chunk.pending.remove(&fragment) {
            match result {
                Ok(()) => drop(chunk.stored.insert(fragment, osd)),
                Err(reason) => chunk.failures.push(format!("fragment {fragment} on OSD {osd}: {reason}")),
            }
            if before == Verdict::Enough {
                self.no_straggler(osd, index);
            }
        }
        let after = self.judge(&chunk);
        if before == Verdict::Waiting && after != before {
            self.open = self.open.saturating_sub(1);
            if after == Verdict::Enough {
                for osd in chunk.pending.values() {
                    self.stragglers.entry(*osd).or_default().insert(index, chunk.started);
                }
            }
        }
        self.chunks.insert(index, chunk);
        (after != before).then_some(after)
    }

    fn no_straggler(&mut self, osd: OsdId, chunk: ChunkIndex) {
        if let Some(owed) = self.stragglers.get_mut(&osd) {
            owed.remove(&chunk);
            if owed.is_empty() {
                self.stragglers.remove(&osd);
            }
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

    /// Where a fragment is, if that was acknowledged.
    pub(super) fn location(&self, index: ChunkIndex, fragment: FragmentIndex) -> Option<OsdId> {
        self.chunks.get(&index)?.stored.get(&fragment).copied()
    }

    /// How many fragments a chunk has, and what happened to the others.
    pub(super) fn explain(&self, index: ChunkIndex) -> (usize, String) {
        self.chunks.get(&index).map_or((0, String::new()), |c| (c.stored.len(), c.failures.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn osd(id: u32) -> OsdId {
        OsdId::from_u32(id)
    }

    const NOW: Moment = Moment(std::time::Duration::from_secs(5));

    fn three(needed: usize) -> Progress {
        let mut progress = Progress::new(needed);
        progress.start(ChunkIndex(0), (0..3).map(|i| (FragmentIndex(i), osd(i))), NOW);
        progress
    }

    #[test]
    fn enough_at_c_and_the_rest_are_stragglers_until_they_answer() {
        let mut progress = three(2);
        assert_eq!(progress.answered(ChunkIndex(0), FragmentIndex(1), Ok(())), None);
        assert_eq!((progress.open(), progress.owes(osd(2), 1)), (1, None));
        assert_eq!(progress.answered(ChunkIndex(0), FragmentIndex(0), Ok(())), Some(Verdict::Enough));
        assert_eq!((progress.open(), progress.owes(osd(2), 1)), (0, Some(NOW)));
        assert_eq!(progress.owes(osd(2), 2), None);
        assert_eq!(progress.answered(ChunkIndex(0), FragmentIndex(2), Ok(())), None);
        assert_eq!(progress.owes(osd(2), 1), None);
        assert_eq!(progress.explain(ChunkIndex(0)), (3, String::new()));
    }

    #[test]
    fn failed_once_c_is_out_of_reach_and_says_why() {
        let mut progress = three(3);
        assert_eq!(
            progress.answered(ChunkIndex(0), FragmentIndex(2), Err("full".to_owned())),
            Some(Verdict::Failed)
        );
        assert_eq!(progress.open(), 0);
        assert_eq!(progress.explain(ChunkIndex(0)), (0, "fragment 2 on OSD 2: full".to_owned()));
        assert_eq!(progress.location(ChunkIndex(0), FragmentIndex(2)), None);
    }

    #[test]
    fn an_answer_counts_once() {
        let mut progress = three(2);
        progress.answered(ChunkIndex(0), FragmentIndex(0), Ok(()));
        assert_eq!(progress.answered(ChunkIndex(0), FragmentIndex(0), Ok(())), None);
        assert_eq!(progress.explain(ChunkIndex(0)).0, 1);
    }
}
