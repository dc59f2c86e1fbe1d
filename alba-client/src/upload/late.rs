//! What is left to do after a commit: fragments that arrive late are added to the manifest, and tags are removed from
//! what the manifest names.
//!
//! Nothing here can lose data, and nothing here is needed for the object to be safe. Fragments that stay holes are handed to
//! repair ([`crate::repairs`]); tags that stay are left to garbage collection. Nothing is ever deleted but tags.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use alba_core::env::MetaError;
use alba_core::ids::{ChunkIndex, FragmentIndex, GcEpoch, ObjectId, ObjectVersion};
use alba_core::manifest::Manifest;
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::wire::rpc::abm::WorkItem;
use alba_core::wire::rpc::nsm::{NsmCommand, NsmError, NsmOutcome};
use futures_util::future::join;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::object::Attempt;
use super::spread::{Settled, Spread};
use crate::engine::{Engine, alongside};
use crate::namespaces::{Namespace, unexpected};
use crate::osd_pool::Member;
use crate::turns::{Unsettled, UploadSlot};
use crate::untag::{After, Tag};
use crate::{ClientError, repairs, untag};

/// What a committed object leaves to do.
pub(super) struct Leftovers {
    /// As it was committed.
    pub(super) object: Arc<Manifest>,
    /// Fragments that it names.
    pub(super) stored: Vec<(Arc<Member>, FragmentAddress)>,
}

/// Writes that went on when their object had enough: holes that may still be filled. Somebody must always be waiting for
/// them, or their calls would run into their deadlines unnoticed.
#[derive(Default)]
pub(super) struct Stragglers {
    objects: FuturesUnordered<Pin<Box<dyn Future<Output = Settled> + Send>>>,
    settled: Vec<Settled>,
}

impl Stragglers {
    /// Adds those of one object.
    pub(super) fn join(&mut self, object: Option<Spread>) {
        if let Some(spread) = object {
            self.objects.push(Box::pin(spread.settle()));
        }
    }

    /// Waits for `work` while they go on.
    pub(super) async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        alongside(&mut self.objects, |settled| self.settled.push(settled), work).await
    }
}

/// Does it all in one background task, which ends: each call has its deadline. `slot` bounds the number of such tasks. Only tags may
/// be left when it ends.
pub(super) fn finish(attempt: &Attempt, leftovers: Vec<Leftovers>, stragglers: Stragglers, slot: UploadSlot) {
    let (engine, namespace) = (Arc::clone(&attempt.engine), Arc::clone(&attempt.namespace));
    let (epoch, spawn) = (attempt.epoch, Arc::clone(&attempt.engine.env.spawn));
    // Stragglers are under way: they go on where they are.
    spawn.spawn_beside(
        "upload-leftovers",
        Box::pin(async move {
            let unsettled = slot.unsettled();
            let mut tags = Vec::new();
            let mut objects = BTreeMap::new();
            for left in leftovers {
                tags.extend(left.stored);
                objects.insert(left.object.object_id, left.object);
            }
            let named = remove_tags(&engine, &namespace, epoch, tags, &unsettled);
            let late = add_late(&engine, &namespace, epoch, objects, stragglers, &unsettled);
            join(named, late).await;
            drop(slot);
        }),
    );
}

/// Waits for the stragglers and adds those that were stored to their manifests. What stays a hole is handed to repair.
async fn add_late(
    engine: &Arc<Engine>,
    namespace: &Arc<Namespace>,
    epoch: GcEpoch,
    objects: BTreeMap<ObjectId, Arc<Manifest>>,
    stragglers: Stragglers,
    unsettled: &Arc<Unsettled>,
) {
    let Stragglers { objects: mut writing, mut settled } = stragglers;
    while let Some(object) = writing.next().await {
        settled.push(object);
    }
    for Settled { object_id, arrived, holes } in settled {
        // An object that a later change of the same sequence replaced has no manifest to add anything to.
        let Some(object) = objects.get(&object_id) else { continue };
        let mut missing = holes;
        if !arrived.is_empty() {
            missing.extend(add_to_manifest(engine, namespace, epoch, object, arrived, unsettled).await);
        }
        if missing.is_empty() {
            continue;
        }
        engine.counters.late_failed.add(u64::try_from(missing.len()).unwrap_or(u64::MAX));
        tracing::warn!(object = %object.name, holes = missing.len(), "fragments stay holes until repair");
        let item = |(chunk, fragment)| WorkItem::RepairBadFragment {
            namespace: namespace.id,
            object: object_id,
            name: object.name.clone(),
            chunk,
            fragment,
            version: ObjectVersion(0),
        };
        repairs::hand_over(engine, missing.into_iter().map(item).collect()).await;
    }
}

/// Adds fragments to the manifest of their object; then their tags go too. Returns those that are not in it for all that is
/// known.
async fn add_to_manifest(
    engine: &Arc<Engine>,
    namespace: &Arc<Namespace>,
    epoch: GcEpoch,
    object: &Manifest,
    arrived: Vec<(Arc<Member>, FragmentAddress)>,
    unsettled: &Arc<Unsettled>,
) -> Vec<(ChunkIndex, FragmentIndex)> {
    let command = || {
        let fragments = arrived.iter().map(|(osd, at)| (at.chunk, at.fragment, osd.id)).collect();
        NsmCommand::AddLateFragments { namespace: namespace.id, object: object.object_id, fragments, epoch }
    };
    let deadline = engine.deadline_in(engine.config.request_timeout());
    let outcome = match engine.tell_group(namespace, command, deadline).await {
        Ok(NsmOutcome::Updated(manifest)) => Ok(manifest),
        Ok(_) => Err(unexpected("Updated")),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(manifest) => {
            engine.counters.late_added.add(u64::try_from(arrived.len()).unwrap_or(u64::MAX));
            engine.cache.update(namespace.id, Arc::from(manifest));
            // Only now: the group acknowledged these very places (invariant 3).
            remove_tags(engine, namespace, epoch, arrived, unsettled).await;
            Vec::new()
        }
        // Deleted or replaced since: all of it is garbage.
        Err(ClientError::Meta(MetaError::Nsm(NsmError::ObjectNotFound))) => Vec::new(),
        Err(error) => {
            tracing::warn!(object = %object.name, %error, "late fragments not added");
            arrived.iter().map(|(_, at)| (at.chunk, at.fragment)).collect()
        }
    }
}

/// Has the tags removed of fragments that a committed manifest names.
async fn remove_tags(
    engine: &Arc<Engine>,
    namespace: &Namespace,
    epoch: GcEpoch,
    fragments: Vec<(Arc<Member>, FragmentAddress)>,
    unsettled: &Arc<Unsettled>,
) {
    let tag = |address| Tag { key: osd_keys::gc_tag(namespace.id, epoch, &address), mark: None };
    let tags = fragments.into_iter().map(|(member, address)| (member, tag(address)));
    untag::remove(engine, namespace.id, After::Upload, tags, unsettled).await;
}
