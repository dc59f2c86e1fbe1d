//! The commit: the only place that knows the order "fragments, then manifest, then tags" (invariants 1 to 3).
//!
//! ```text
//!   1 fragments   each chunk has c acknowledgements or more        [`Uploaded`] is the proof
//!   2 manifest    one Sequence, naming the epoch of the tags       the commit point
//!   3 tags        removed from what the stored manifest names      [`late::finish`]
//! ```
//!
//! A crash before 2 leaves fragments that carry a tag and that no manifest names: garbage collection finds them by the
//! tag. A crash between 2 and 3 leaves tags on fragments that a manifest names: garbage collection asks the group, and
//! removes the tag only. Were 3 before 2, a crash between them would leave fragments that nothing could ever find. Were
//! 2 before 1, a manifest could name what does not exist.
//!
//! An attempt that fails deletes nothing: whether its command was applied may be unknown, and what a manifest may name
//! must stay.

use std::collections::BTreeMap;
use std::sync::Arc;

use alba_core::env::MetaError;
use alba_core::failpoint::{Step, reach};
use alba_core::ids::{ObjectId, ObjectName};
use alba_core::manifest::Manifest;
use alba_core::wire::rpc::nsm::{
    NsmAnswer, NsmCommand, NsmOutcome, NsmQuery, ObjectAssert, ObjectUpdate, Overwrite,
};

use super::inline::Small;
use super::late::{self, Leftovers, Stragglers};
use super::object::{Attempt, Uploaded};
use crate::namespaces::unexpected;
use crate::turns::UploadSlot;
use crate::{ClientError, StoredObject};

/// A change to be committed.
pub(super) enum Change {
    /// An object, step 1 of which is done.
    Put { uploaded: Box<Uploaded>, overwrite: Overwrite },
    /// An object that is to live in the metadata: stored by step 2 itself.
    PutInline { small: Box<Small>, overwrite: Overwrite },
    /// A name to be removed.
    Delete { name: ObjectName, must_exist: bool },
}

impl Change {
    fn name(&self) -> &ObjectName {
        match self {
            Self::Put { uploaded, .. } => &uploaded.manifest.name,
            Self::PutInline { small, .. } => &small.manifest.name,
            Self::Delete { name, .. } => name,
        }
    }
}

/// Steps 2 and 3. `stragglers` are holes of the puts whose writes go on. `slot` is kept until step 3 is done. Returns every put's object in order; those that a later change of
/// the same name replaced were not stored.
pub(super) async fn commit(
    attempt: &Attempt,
    asserts: Vec<ObjectAssert>,
    changes: Vec<Change>,
    mut stragglers: Stragglers,
    slot: &mut Option<UploadSlot>,
) -> Result<Vec<StoredObject>, ClientError> {
    let engine = &attempt.engine;
    let namespace = attempt.namespace.id;
    // Whatever comes of it, what was cached under these names is not to be trusted any more.
    let mut tickets = BTreeMap::new();
    for change in &changes {
        engine.cache.remove(namespace, change.name());
    }
    for change in &changes {
        tickets.insert(change.name().clone(), engine.cache.ticket(namespace, change.name()));
    }
    // Step 1 is done for every put: `Uploaded` is made only when each chunk had enough acknowledgements, and its
    // manifest names none but acknowledged fragments.
    // Step 2. The group refuses the epoch once garbage collection may have looked at our tags.
    // While the namespace is moved the same command is sent again, to whoever has it then: the copy has its epochs, too.
    reach(Step::UploadCommitting);
    let command = || NsmCommand::Sequence {
        namespace,
        asserts: asserts.clone(),
        updates: changes.iter().map(update).collect(),
        epoch: attempt.epoch,
    };
    let told = engine.tell_group(&attempt.namespace, command, attempt.deadline);
    let committed = match stragglers.meanwhile(told).await {
        Ok(NsmOutcome::Stored(manifests)) => manifests,
        // Nothing was put.
        Ok(NsmOutcome::Done) => Vec::new(),
        Ok(_) => return Err(unexpected("Stored")),
        Err(ClientError::Meta(MetaError::SessionUnknown)) => {
            let ids = put_ids(&changes);
            find_out(attempt, ids).await?.ok_or(ClientError::Meta(MetaError::SessionUnknown))?
        }
        Err(error) => return Err(error),
    };
    reach(Step::UploadCommitted);
    let mut committed: BTreeMap<ObjectId, Arc<Manifest>> =
        committed.into_iter().map(|manifest| (manifest.object_id, Arc::new(manifest))).collect();
    let mut objects = Vec::new();
    let mut leftovers = Vec::new();
    for change in changes {
        let name = change.name().clone();
        match change {
            Change::Put { uploaded, .. } => {
                let Uploaded { manifest, stored } = *uploaded;
                let manifest = match committed.remove(&manifest.object_id) {
                    Some(stored_manifest) => {
                        if let Some(ticket) = tickets.remove(&name) {
                            engine.cache.insert_written(ticket, namespace, Arc::clone(&stored_manifest));
                        }
                        // Only what the stored manifest names loses its tag.
                        leftovers.push(Leftovers { object: Arc::clone(&stored_manifest), stored });
                        stored_manifest
                    }
                    // Another change of the name came after it: its fragments are garbage and keep their tags.
                    None => Arc::new(manifest),
                };
                objects.push(StoredObject { namespace, manifest });
            }
            Change::PutInline { small, .. } => {
                let manifest = match committed.remove(&small.manifest.object_id) {
                    Some(stored) => {
                        if let Some(ticket) = tickets.remove(&name) {
                            engine.cache.insert_written(ticket, namespace, Arc::clone(&stored));
                        }
                        stored
                    }
                    None => Arc::new(small.manifest),
                };
                objects.push(StoredObject { namespace, manifest });
            }
            Change::Delete { name, .. } => engine.cache.remove(namespace, &name),
        }
    }
    // Step 3, in the background: the objects are safe without it.
    // Each change has one slot and is committed once.
    if !leftovers.is_empty()
        && let Some(slot) = slot.take()
    {
        late::finish(attempt, leftovers, stragglers, slot);
    }
    Ok(objects)
}

fn update(change: &Change) -> ObjectUpdate {
    match change {
        Change::Put { uploaded, overwrite } => {
            ObjectUpdate::Put { manifest: Box::new(uploaded.manifest.clone()), overwrite: *overwrite }
        }
        Change::PutInline { small, overwrite } => ObjectUpdate::PutInline {
            manifest: Box::new(small.manifest.clone()),
            value: small.value.clone(),
            overwrite: *overwrite,
        },
        Change::Delete { name, must_exist } => {
            ObjectUpdate::Delete { name: name.clone(), must_exist: *must_exist }
        }
    }
}

fn put_ids(changes: &[Change]) -> Vec<ObjectId> {
    let puts = changes.iter().filter_map(|change| match change {
        Change::Put { uploaded, .. } => Some(uploaded.manifest.object_id),
        Change::PutInline { small, .. } => Some(small.manifest.object_id),
        Change::Delete { .. } => None,
    });
    puts.collect()
}

/// The group forgot our session, so the answer to the command is lost, if there was one. If the group has one of the new
/// objects, under ids that nobody else can have made, the command was applied. If not, nothing is known (it may have
/// been replaced since), and a repetition could undo a later write: the caller has to be told.
async fn find_out(attempt: &Attempt, ids: Vec<ObjectId>) -> Result<Option<Vec<Manifest>>, ClientError> {
    let mut found = Vec::new();
    for object in ids {
        let query = || NsmQuery::ManifestById { namespace: attempt.namespace.id, object };
        match attempt.engine.ask_group(&attempt.namespace, query, attempt.deadline).await? {
            NsmAnswer::Manifest(manifest) => found.extend(manifest.map(|manifest| *manifest)),
            _ => return Err(unexpected("Manifest")),
        }
    }
    Ok((!found.is_empty()).then_some(found))
}
