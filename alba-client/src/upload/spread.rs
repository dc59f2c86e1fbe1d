//! The writes of one object's fragments, and the spare OSDs that take over from those that fail or are much slower than the
//! others. Goes on after the commit, until nothing is under way: what it stores then is added to the manifest.
//!
//! It deletes nothing, and takes no tag away: a copy that lost the race keeps its tag, and garbage collection finds it
//! (invariants 2 and 3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use alba_core::env::Moment;
use alba_core::fragment::Packed;
use alba_core::ids::{ChunkIndex, FragmentIndex, GcEpoch, NamespaceId, ObjectId, ObjectVersion, OsdId};
use alba_core::osd_keys::FragmentAddress;
use alba_core::placement::Candidate;
use bytes::Bytes;
use futures_util::future::AbortHandle;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::fragments::{FragmentWrite, Write, WriteError, Written};
use super::object::Attempt;
use super::plan::{Plan, candidate};
use super::progress::{Acknowledged, Progress, Terms, Verdict, WriteHedges};
use crate::buffers::Room;
use crate::engine::Engine;
use crate::osd_pool::Member;

/// Fragments of earlier chunks that an OSD may still owe before the next chunk waits for it, so that one that is a
/// little slower than the others gets its fragments all the same.
const OWED_FRAGMENTS: usize = 4;

/// See the module. Dropped, it gives up all writes.
pub(super) struct Spread {
    engine: Arc<Engine>,
    namespace: NamespaceId,
    epoch: GcEpoch,
    object_id: ObjectId,
    pub(super) plan: Plan,
    /// OSDs that failed, for the next attempt.
    avoid: Arc<Mutex<BTreeSet<OsdId>>>,
    progress: Progress,
    writes: FuturesUnordered<Write>,
    /// Of the writes under way.
    handles: BTreeMap<(ChunkIndex, FragmentIndex, OsdId), AbortHandle>,
    /// The bytes of fragments that are stored nowhere yet.
    kept: BTreeMap<ChunkIndex, Kept>,
    /// OSDs that failed or were too slow for a fragment of this object.
    troubled: BTreeSet<OsdId>,
    stored: Vec<(Arc<Member>, FragmentAddress)>,
}

/// Bytes of a chunk, and the room that they take.
struct Kept {
    room: Arc<Room>,
    fragments: BTreeMap<FragmentIndex, (Packed, Bytes)>,
}

/// A chunk cannot be stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed(pub(super) ChunkIndex);

/// What became of the writes that went on after the manifest was made.
pub(super) struct Settled {
    pub(super) object_id: ObjectId,
    /// Fragments that the manifest does not name yet.
    pub(super) arrived: Vec<(Arc<Member>, FragmentAddress)>,
    /// Fragments that should be somewhere and are nowhere.
    pub(super) holes: Vec<(ChunkIndex, FragmentIndex)>,
}

impl Spread {
    pub(super) fn new(attempt: &Attempt, object_id: ObjectId, plan: Plan) -> Self {
        let terms = Terms {
            needed: plan.policy.min_fragments(),
            planned: plan.targets.len(),
            max_per_node: plan.policy.max_per_node(),
            nodes: plan.usable.iter().map(|osd| (osd.id, osd.info().place.node().clone())).collect(),
        };
        Self {
            engine: Arc::clone(&attempt.engine),
            namespace: attempt.namespace.id,
            epoch: attempt.epoch,
            object_id,
            plan,
            avoid: Arc::clone(&attempt.avoid),
            progress: Progress::new(terms),
            writes: FuturesUnordered::new(),
            handles: BTreeMap::new(),
            kept: BTreeMap::new(),
            troubled: BTreeSet::new(),
            stored: Vec::new(),
        }
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Fragments acknowledged since this was asked last.
    pub(super) fn take_stored(&mut self) -> Vec<(Arc<Member>, FragmentAddress)> {
        std::mem::take(&mut self.stored)
    }

    /// Is nothing under way?
    pub(super) fn is_idle(&self) -> bool {
        self.writes.is_empty()
    }

    /// Since when the OSD owes its oldest fragment that owes too many; the latest of all of them.
    pub(super) fn latest_debt(&self) -> Option<Moment> {
        self.progress.latest_debt(OWED_FRAGMENTS)
    }

    /// Starts the writes of a chunk: fragments whose OSD failed, is too slow or owes too much go to spares. Where there is none
    /// they are left out while enough others remain.
    pub(super) fn start(
        &mut self,
        chunk: ChunkIndex,
        packed: Vec<Packed>,
        recovery: Vec<Bytes>,
        room: Room,
    ) -> Result<(), Failed> {
        let now = self.engine.env.clock.now();
        let fragments = (0..).map(FragmentIndex).zip(packed.into_iter().zip(recovery));
        let fragments: BTreeMap<_, (Packed, Bytes)> = fragments.take(self.plan.targets.len()).collect();
        for (fragment, (packed, _)) in &fragments {
            let (object_id, fragment) = (self.object_id, *fragment);
            let address = FragmentAddress { object_id, chunk, fragment, version: ObjectVersion(0) };
            self.engine.fragments.written(self.namespace, self.plan.policy.shape(), &address, packed);
        }
        self.kept.insert(chunk, Kept { room: Arc::new(room), fragments });
        self.progress.start(chunk, now);
        let targets = (0..).map(FragmentIndex).zip(self.plan.targets.iter().cloned());
        let (well, ill): (Vec<_>, Vec<_>) = targets.partition(|(_, osd)| self.is_well(osd, now));
        for (fragment, osd) in well {
            self.write(chunk, fragment, &osd);
            self.hedges(WriteHedges::earn);
        }
        let alone: Vec<_> =
            ill.into_iter().filter(|(fragment, _)| !self.write_to_spare(chunk, *fragment)).collect();
        let may_miss = self.plan.targets.len().saturating_sub(self.plan.policy.min_fragments());
        let leave_out = alone.len() <= may_miss;
        for (fragment, osd) in alone {
            let usable = osd.takes_data(now) && self.progress.owes(osd.id, OWED_FRAGMENTS).is_none();
            if leave_out && !usable {
                self.forget(chunk, fragment);
            } else {
                self.write(chunk, fragment, &osd);
            }
        }
        self.judge(chunk)
    }

    /// The next answer, or the next write that is too slow, and what follows from it. None when nothing is under way.
    pub(super) async fn next(&mut self) -> Option<Result<(), Failed>> {
        let clock = Arc::clone(&self.engine.env.clock);
        let slow = self.progress.slowest(self.engine.config.write_hedge_min());
        let Some((due, chunk, fragment)) = slow else {
            let written = self.writes.next().await?;
            return Some(self.answered(written));
        };
        tokio::select! {
            biased;
            written = self.writes.next() => Some(self.answered(written?)),
            () = clock.sleep_until(due) => {
                self.hedge(chunk, fragment);
                Some(Ok(()))
            }
        }
    }

    /// Waits for `work` while the writes go on.
    pub(super) async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failed> {
        let mut work = std::pin::pin!(work);
        let mut failed = None;
        loop {
            tokio::select! {
                biased;
                Some(answered) = self.next() => failed = answered.err().or(failed),
                output = &mut work => return failed.map_or(Ok(output), Err),
            }
        }
    }

    /// Waits until nothing is under way.
    pub(super) async fn settle(mut self) -> Settled {
        while let Some(answered) = self.next().await {
            // Each chunk had enough when the manifest was made.
            drop(answered);
        }
        let holes = self.progress.holes();
        Settled { object_id: self.object_id, arrived: self.stored, holes }
    }

    fn is_well(&self, osd: &Member, now: Moment) -> bool {
        osd.takes_data(now)
            && !self.troubled.contains(&osd.id)
            && self.progress.owes(osd.id, OWED_FRAGMENTS).is_none()
    }

    fn hedges<T>(&self, change: impl FnOnce(&mut WriteHedges) -> T) -> T {
        // Its methods don't panic.
        change(&mut self.engine.write_hedges.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts the write of a kept fragment.
    fn write(&mut self, chunk: ChunkIndex, fragment: FragmentIndex, osd: &Arc<Member>) {
        let Some(kept) = self.kept.get(&chunk) else { return };
        let Some((packed, recovery)) = kept.fragments.get(&fragment) else { return };
        let write = FragmentWrite {
            namespace: self.namespace,
            epoch: self.epoch,
            address: FragmentAddress {
                object_id: self.object_id,
                chunk,
                fragment,
                version: ObjectVersion(0),
            },
            packed: packed.clone(),
            recovery: recovery.clone(),
        };
        let (write, handle) = write.start(Arc::clone(&self.engine), Arc::clone(osd), Arc::clone(&kept.room));
        self.writes.push(write);
        self.handles.insert((chunk, fragment, osd.id), handle);
        self.progress.write(chunk, fragment, osd.id, self.engine.env.clock.now());
    }

    /// Writes a fragment to one OSD more; false when there is none.
    fn write_to_spare(&mut self, chunk: ChunkIndex, fragment: FragmentIndex) -> bool {
        let now = self.engine.env.clock.now();
        let avoid = self.avoid.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let well = |osd: &&Arc<Member>| self.is_well(osd, now) && !avoid.contains(&osd.id);
        let usable: Vec<Candidate> = self.plan.usable.iter().filter(well).map(|osd| candidate(osd)).collect();
        let mut rng = self.engine.env.rng.generator();
        let spare = self.progress.spare(chunk, fragment, &usable, &mut rng);
        let spare = spare.and_then(|id| self.plan.usable.iter().find(|osd| osd.id == id)).cloned();
        let Some(spare) = spare else { return false };
        self.write(chunk, fragment, &spare);
        self.engine.counters.spare_writes.add(1);
        true
    }

    fn hedge(&mut self, chunk: ChunkIndex, fragment: FragmentIndex) {
        if !self.hedges(WriteHedges::spend) || !self.write_to_spare(chunk, fragment) {
            self.progress.give_up(chunk, fragment);
        }
    }

    fn answered(&mut self, written: Written) -> Result<(), Failed> {
        let Written { address, member, result } = written;
        let (chunk, fragment, osd) = (address.chunk, address.fragment, member.id);
        self.handles.remove(&(chunk, fragment, osd));
        match result {
            Ok(()) => {
                let now = self.engine.env.clock.now();
                match self.progress.acknowledged(chunk, fragment, osd, now) {
                    Acknowledged::Location { others } => {
                        self.stored.push((member, address));
                        self.forget(chunk, fragment);
                        for other in others {
                            // The later chunks do without it.
                            self.troubled.insert(other);
                            if let Some(handle) = self.handles.remove(&(chunk, fragment, other)) {
                                handle.abort();
                            }
                        }
                    }
                    Acknowledged::Copy => {}
                }
            }
            Err(WriteError::Superseded) => {}
            Err(error) => {
                self.avoid.lock().unwrap_or_else(PoisonError::into_inner).insert(osd);
                self.troubled.insert(osd);
                let missing = self.progress.failed(chunk, fragment, osd, &error.to_string());
                if missing && !self.write_to_spare(chunk, fragment) {
                    self.forget(chunk, fragment);
                }
            }
        }
        self.judge(chunk)
    }

    fn judge(&mut self, chunk: ChunkIndex) -> Result<(), Failed> {
        match self.progress.judge(chunk) {
            Some(Verdict::Failed) => Err(Failed(chunk)),
            Some(Verdict::Waiting | Verdict::Enough) | None => Ok(()),
        }
    }

    /// Nothing more will be written of a fragment.
    fn forget(&mut self, chunk: ChunkIndex, fragment: FragmentIndex) {
        if let Some(kept) = self.kept.get_mut(&chunk) {
            kept.fragments.remove(&fragment);
            if kept.fragments.is_empty() {
                self.kept.remove(&chunk);
            }
        }
    }
}
