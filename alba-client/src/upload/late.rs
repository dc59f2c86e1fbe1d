//! What is left to do after a commit: fragments that arrive late are added to the manifest, and tags are removed from
//! what the manifest names.
//!
//! Nothing here can lose data, and nothing here is needed for the object to be safe: what fails is logged, counted, and
//! left to maintenance. Nothing is ever deleted but tags.

use std::collections::BTreeMap;
use std::sync::Arc;

use alba_core::env::osd::{OsdAssert, OsdBatch, OsdUpdate, Priority};
use alba_core::ids::{GcEpoch, ObjectId, OsdId};
use alba_core::manifest::Manifest;
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::wire::rpc::nsm::{NsmCommand, NsmOutcome};
use futures_util::future::join;
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use tokio::sync::OwnedSemaphorePermit;

use super::fragments::{Write, Written};
use super::object::Attempt;
use crate::ClientError;
use crate::engine::{Engine, alongside};
use crate::namespaces::{Namespace, unexpected};
use crate::osd_pool::{CallSize, Member};

/// Tags removed by one batch.
const TAGS_PER_BATCH: usize = 500;

/// OSDs asked at once.
const OSDS_AT_ONCE: usize = 16;

/// What a committed object leaves to do.
pub(super) struct Leftovers {
    /// As it was committed.
    pub(super) object: Arc<Manifest>,
    /// Fragments that it names.
    pub(super) stored: Vec<(Arc<Member>, FragmentAddress)>,
}

/// Fragments that were not stored when their object had enough: holes that may still be filled. Somebody must always be
/// waiting for them, or their calls would run into their deadlines unnoticed.
#[derive(Default)]
pub(super) struct Stragglers {
    writes: FuturesUnordered<Write>,
    ended: Vec<Written>,
}

impl Stragglers {
    /// Adds those of one object.
    pub(super) fn join(&mut self, writes: FuturesUnordered<Write>) {
        self.writes.extend(writes);
    }

    /// Waits for `work` while they go on.
    pub(super) async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        alongside(&mut self.writes, |written| self.ended.push(written), work).await
    }
}

/// Does it all in one background task, which ends: each call has its deadline. `slot` bounds the number of such tasks.
pub(super) fn finish(
    attempt: &Attempt,
    leftovers: Vec<Leftovers>,
    stragglers: Stragglers,
    slot: Option<OwnedSemaphorePermit>,
) {
    let (engine, namespace) = (Arc::clone(&attempt.engine), Arc::clone(&attempt.namespace));
    let (epoch, spawn) = (attempt.epoch, Arc::clone(&attempt.engine.env.spawn));
    spawn.spawn(
        "upload-leftovers",
        Box::pin(async move {
            let _slot = slot;
            let mut tags = Vec::new();
            let mut objects = BTreeMap::new();
            for left in leftovers {
                tags.extend(left.stored);
                objects.insert(left.object.object_id, left.object);
            }
            let named = remove_tags(&engine, &namespace, epoch, tags);
            let late = add_late(&engine, &namespace, epoch, objects, stragglers);
            join(named, late).await;
        }),
    );
}

/// Waits for the stragglers and adds those that were stored to their manifests; then their tags go too.
async fn add_late(
    engine: &Arc<Engine>,
    namespace: &Arc<Namespace>,
    epoch: GcEpoch,
    objects: BTreeMap<ObjectId, Arc<Manifest>>,
    stragglers: Stragglers,
) {
    let Stragglers { mut writes, mut ended } = stragglers;
    while let Some(written) = writes.next().await {
        ended.push(written);
    }
    // An object that a later change of the same sequence replaced has no manifest to add anything to.
    ended.retain(|written| objects.contains_key(&written.address.object_id));
    let mut arrived: BTreeMap<ObjectId, Vec<(Arc<Member>, FragmentAddress)>> = BTreeMap::new();
    for written in ended {
        let address = written.address;
        match written.result {
            Ok(()) => arrived.entry(address.object_id).or_default().push((written.member, address)),
            Err(error) => {
                engine.counters.late_failed.add(1);
                let name = objects.get(&address.object_id).map(|object| &object.name);
                tracing::warn!(
                    object = name.map(tracing::field::display), chunk = %address.chunk,
                    fragment = %address.fragment, osd = %written.member.id, %error,
                    "fragment stays a hole"
                );
            }
        }
    }
    for (object, stored) in arrived {
        let count = u64::try_from(stored.len()).unwrap_or(u64::MAX);
        let command = || {
            let fragments = stored.iter().map(|(osd, at)| (at.chunk, at.fragment, osd.id)).collect();
            NsmCommand::AddLateFragments { namespace: namespace.id, object, fragments, epoch }
        };
        let deadline = engine.deadline_in(engine.config.request_timeout());
        let outcome = match engine.tell_group(namespace, command, deadline).await {
            Ok(NsmOutcome::Updated(manifest)) => Ok(manifest),
            Ok(_) => Err(unexpected("Updated")),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(manifest) => {
                engine.counters.late_added.add(count);
                engine.cache.update(namespace.id, Arc::from(manifest));
                // Only now: the group acknowledged these very places (invariant 3).
                remove_tags(engine, namespace, epoch, stored).await;
            }
            Err(error) => {
                engine.counters.late_failed.add(count);
                let name = objects.get(&object).map(|object| &object.name);
                tracing::warn!(object = name.map(tracing::field::display), %error, "late fragments not added");
            }
        }
    }
}

/// Removes the tags of fragments that a committed manifest names.
async fn remove_tags(
    engine: &Arc<Engine>,
    namespace: &Namespace,
    epoch: GcEpoch,
    fragments: Vec<(Arc<Member>, FragmentAddress)>,
) {
    let mut by_osd: BTreeMap<OsdId, (Arc<Member>, Vec<FragmentAddress>)> = BTreeMap::new();
    for (member, address) in fragments {
        by_osd.entry(member.id).or_insert_with(|| (member, Vec::new())).1.push(address);
    }
    stream::iter(by_osd.into_values())
        .for_each_concurrent(OSDS_AT_ONCE, |(member, addresses)| async move {
            for addresses in addresses.chunks(TAGS_PER_BATCH) {
                if let Err(error) = remove_tags_on(engine, namespace, epoch, &member, addresses).await {
                    engine.counters.tags_left.add(u64::try_from(addresses.len()).unwrap_or(u64::MAX));
                    tracing::debug!(osd = %member.id, %error, "tags stay until garbage collection");
                }
            }
        })
        .await;
}

async fn remove_tags_on(
    engine: &Arc<Engine>,
    namespace: &Namespace,
    epoch: GcEpoch,
    member: &Arc<Member>,
    addresses: &[FragmentAddress],
) -> Result<(), ClientError> {
    let batch = OsdBatch {
        asserts: vec![OsdAssert::Value(osd_keys::namespace_marker(namespace.id), osd_keys::NAMESPACE_ACTIVE)],
        updates: addresses
            .iter()
            .map(|address| OsdUpdate::Delete(osd_keys::gc_tag(namespace.id, epoch, address)))
            .collect(),
    };
    let deadline = engine.deadline_in(engine.config.osd_timeout());
    engine
        .pool
        .call(member, CallSize::Small, deadline, |osd, deadline| {
            let batch = batch.clone();
            async move { osd.apply(batch, Priority::High, deadline).await }
        })
        .await
        .map_err(|error| ClientError::Internal(error.to_string()))
}
