//! Clean-up of fragments that a command replaced or deleted: their keys wait in the namespace's delete queue of each OSD
//! (features §3.3).
//!
//! ```text
//!   1 take     a page of keys from the group's queue
//!   2 delete   data and recovery info, one batch on the OSD
//!   3 forget   the group takes the keys out of the queue
//! ```
//!
//! A crash between 2 and 3 repeats the deletion, harmlessly. Were 3 before 2, a crash between them would leave fragments that
//! nothing could ever find.

use alba_core::env::osd::{OsdBatch, OsdUpdate};
use alba_core::failpoint::{Step, reach};
use alba_core::ids::{NamespaceId, OsdId};
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::wire::rpc::abm::{NamespaceRecord, NamespaceState, OsdFilter, OsdState};
use alba_core::wire::rpc::nsm::{FragmentKey, NsmAnswer, NsmCommand, NsmQuery};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::backend::Backend;
use crate::error::TaskError;
use crate::schedule::Timing;
use crate::task::{Run, Task, in_lane, lanes};
use crate::tasks::unheard::{Skipped, Unheard};

/// Keys taken from a queue at a time: one batch on the OSD stays small beside client requests.
pub const PAGE: u32 = 100;

/// The task `cleanup`.
#[derive(Debug, Default)]
pub struct Obsolete {
    /// Keys that were left waiting, by OSD and lane.
    left: Mutex<BTreeMap<OsdId, BTreeMap<String, u64>>>,
    unheard: Unheard,
}

impl Obsolete {
    /// The gauge of an OSD is the sum of what all lanes left.
    fn tell(&self, part: &str, waiting: &BTreeMap<OsdId, u64>) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        for lanes in left.values_mut() {
            lanes.remove(part);
        }
        for (osd, keys) in waiting {
            left.entry(*osd).or_default().insert(part.to_owned(), *keys);
        }
        for (osd, lanes) in left.iter() {
            let keys = u32::try_from(lanes.values().sum::<u64>()).map_or(f64::INFINITY, f64::from);
            metrics::gauge!("alba_delete_queue_keys", "osd" => osd.to_string()).set(keys);
        }
        left.retain(|_, lanes| !lanes.is_empty());
    }
}

/// One batch that removes the fragments and their recovery info. No assert: a version is written once, and what is in
/// the queue is named by no manifest and never will be.
pub fn batch(namespace: NamespaceId, keys: &[FragmentKey]) -> OsdBatch {
    let updates = keys
        .iter()
        .map(|key| FragmentAddress {
            object_id: key.object,
            chunk: key.chunk,
            fragment: key.fragment,
            version: key.version,
        })
        .flat_map(|address| {
            [osd_keys::fragment(namespace, &address), osd_keys::recovery_info(namespace, &address)]
        })
        .map(OsdUpdate::Delete)
        .collect();
    OsdBatch { asserts: Vec::new(), updates }
}

/// Does a namespace in this state have queues that can be worked on? In the trash, what was deleted before goes on.
fn has_queues(state: &NamespaceState) -> bool {
    matches!(state, NamespaceState::Active | NamespaceState::Trashed { .. } | NamespaceState::Moving { .. })
}

#[async_trait]
impl Task for Obsolete {
    fn name(&self) -> &'static str {
        "cleanup"
    }

    fn about(&self) -> &'static str {
        "deletes fragments of objects that were deleted, replaced or repaired"
    }

    fn usual(&self) -> Timing {
        Timing::every(Duration::from_secs(60))
    }

    async fn parts(&self, _: &Backend) -> Result<Vec<String>, TaskError> {
        Ok(lanes())
    }

    async fn run(&self, part: &str, run: &Run) -> Result<(), TaskError> {
        let claimed = run.backend.osds(OsdFilter::Claimed).await?;
        let states: BTreeMap<OsdId, OsdState> =
            claimed.into_iter().filter_map(|record| Some((record.osd_id?, record.state))).collect();
        let mut waiting = BTreeMap::new();
        let mut skipped = Skipped::default();
        let mut namespaces = run.backend.each_namespace();
        while let Some(namespace) = namespaces.next().await? {
            if !in_lane(part, namespace.id.get()) || !has_queues(&namespace.state) {
                continue;
            }
            if let Err(error) = self.clean_up(run, &namespace, &states, &mut waiting, &mut skipped).await {
                run.progress.problem(format!("namespace {}: {error}", namespace.name));
            }
        }
        skipped.tell(&run.progress);
        self.tell(part, &waiting);
        Ok(())
    }
}

impl Obsolete {
    /// Works on all queues of a namespace, as they are now.
    async fn clean_up(
        &self,
        run: &Run,
        namespace: &NamespaceRecord,
        states: &BTreeMap<OsdId, OsdState>,
        waiting: &mut BTreeMap<OsdId, u64>,
        skipped: &mut Skipped,
    ) -> Result<(), TaskError> {
        let query = NsmQuery::DeleteQueues(namespace.id);
        let NsmAnswer::DeleteQueues(queues) = run.backend.ask_group(&namespace.group, query).await? else {
            return Err(TaskError::Mismatch("DeleteQueues"));
        };
        run.progress.found(queues.iter().map(|(_, keys)| keys).sum());
        for (osd, keys) in queues {
            let emptied = match states.get(&osd) {
                // Nothing is ever read from it again; what it holds goes with it.
                Some(OsdState::Purging) => forget(run, namespace, osd).await,
                Some(_) if self.unheard.has(osd, run.now()) => {
                    skipped.count(osd);
                    *waiting.entry(osd).or_default() += keys;
                    continue;
                }
                Some(_) => empty(run, namespace, osd).await,
                // Claimed since they were listed, or known to the group only, as after an ABM was restored from a backup: its
                // queue waits. That of an OSD that is purged goes with it.
                None => Err(TaskError::Unknown(osd)),
            };
            // One OSD that does not answer holds up no other.
            if let Err(error) = emptied {
                self.unheard.note(&error, run.now());
                *waiting.entry(osd).or_default() += keys;
                run.progress.problem(format!("namespace {}: {error}", namespace.name));
            }
        }
        Ok(())
    }
}

async fn empty(run: &Run, namespace: &NamespaceRecord, osd: OsdId) -> Result<(), TaskError> {
    let handle = run.backend.osd(osd).await?;
    loop {
        let query = NsmQuery::DeleteQueue { namespace: namespace.id, osd, max: PAGE };
        let NsmAnswer::Keys(page) = run.backend.ask_group(&namespace.group, query).await? else {
            return Err(TaskError::Mismatch("Keys"));
        };
        if page.items.is_empty() {
            return Ok(());
        }
        let count = u64::try_from(page.items.len()).unwrap_or(u64::MAX);
        run.pace(count, 0).await;
        reach(Step::CleanupTaken);
        handle.apply(batch(namespace.id, &page.items)).await?;
        reach(Step::CleanupDeleted);
        let command = NsmCommand::MarkKeysDeleted { namespace: namespace.id, osd, keys: page.items.clone() };
        run.backend.tell_group(&namespace.group, command).await?;
        reach(Step::CleanupForgotten);
        run.progress.did(count, 0);
        metrics::counter!("alba_obsolete_deleted_fragments_total").increment(count);
        if !page.has_more {
            return Ok(());
        }
    }
}

/// The group forgets the keys of an OSD that is gone for good.
pub(crate) async fn forget(run: &Run, namespace: &NamespaceRecord, osd: OsdId) -> Result<(), TaskError> {
    use alba_core::wire::rpc::nsm::NsmOutcome;
    loop {
        run.pace(1, 0).await;
        let command = NsmCommand::CleanupOsd { namespace: namespace.id, osd };
        let told = run.backend.tell_group(&namespace.group, command).await?;
        reach(Step::CleanupDropped);
        match told {
            NsmOutcome::Cleaned { more: true } => {}
            NsmOutcome::Cleaned { more: false } => return Ok(()),
            _ => return Err(TaskError::Mismatch("Cleaned")),
        }
    }
}

#[cfg(test)]
mod tests {
    use alba_core::ids::{ChunkIndex, FragmentIndex, ObjectId, ObjectVersion};

    use super::*;

    #[test]
    fn data_and_recovery_info_go_together() {
        let namespace = NamespaceId::from_u32(7);
        let key = |fragment| FragmentKey {
            object: ObjectId::new([1; 32]),
            chunk: ChunkIndex(0),
            fragment: FragmentIndex(fragment),
            version: ObjectVersion(2),
        };
        let batch = batch(namespace, &[key(0), key(1)]);
        assert!(batch.asserts.is_empty());
        assert_eq!(batch.updates.len(), 4);
        assert!(batch.updates.iter().all(|update| matches!(update, OsdUpdate::Delete(_))));
        assert!(super::batch(namespace, &[]).updates.is_empty());
    }
}
