//! Writing: fragments first, then the manifest, then the tags ([`commit`]), with one retry of the whole when other
//! OSDs, a fresher preset or epoch may do better.

mod checksum;
mod commit;
pub(crate) mod fragments;
mod inline;
mod late;
mod object;
mod plan;
mod progress;
pub(crate) mod recovery;
mod spread;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alba_core::checksum::Checksum;
use alba_core::env::{Deadline, MetaError};
use alba_core::ids::{NamespaceName, ObjectName, OsdId};
use alba_core::wire::rpc::nsm::{NsmError, ObjectAssert, Overwrite};
use alba_core::wire::rpc::watch::Topic;
use futures_util::future::FutureExt;
use futures_util::stream::{self, StreamExt};

use crate::engine::Engine;
use crate::namespaces::{Namespace, is_moved};
use crate::turns::UploadSlot;
use crate::watch::Fresh;
use crate::{ClientError, ObjectSource, SequenceUpdate, StoredObject, UploadOptions};
use commit::{Change, commit};
use late::Stragglers;
use object::{Attempt, upload_object};
pub(crate) use progress::WriteHedges;

/// Objects of one sequence uploaded at once.
const OBJECTS_AT_ONCE: usize = 8;

/// A change as it was asked for; sources are read again by a retry.
enum Wanted<'a> {
    Put {
        name: ObjectName,
        source: &'a mut dyn ObjectSource,
        checksum: Option<Checksum>,
        overwrite: Overwrite,
    },
    Delete {
        name: ObjectName,
        must_exist: bool,
    },
}

impl Wanted<'_> {
    /// What it stores.
    fn bytes(&self) -> u64 {
        match self {
            Self::Put { source, .. } => source.size(),
            Self::Delete { .. } => 0,
        }
    }
}

/// Stores one object.
pub(crate) async fn upload(
    engine: &Arc<Engine>,
    namespace: &NamespaceName,
    name: &ObjectName,
    source: &mut dyn ObjectSource,
    options: UploadOptions,
    deadline: Deadline,
) -> Result<StoredObject, ClientError> {
    let UploadOptions { overwrite, checksum } = options;
    let wanted = vec![Wanted::Put { name: name.clone(), source, checksum, overwrite }];
    let stored = change(engine, namespace, Vec::new(), wanted, deadline).await?;
    stored.into_iter().next().ok_or_else(|| ClientError::Internal("an upload gave no object".to_owned()))
}

/// Removes one name.
pub(crate) async fn delete(
    engine: &Arc<Engine>,
    namespace: &NamespaceName,
    name: &ObjectName,
    must_exist: bool,
    deadline: Deadline,
) -> Result<(), ClientError> {
    let wanted = vec![Wanted::Delete { name: name.clone(), must_exist }];
    match change(engine, namespace, Vec::new(), wanted, deadline).await {
        Err(ClientError::Meta(MetaError::Nsm(NsmError::ObjectNotFound))) => {
            Err(ClientError::ObjectUnknown(name.clone()))
        }
        result => result.map(drop),
    }
}

/// Applies a sequence.
pub(crate) async fn sequence(
    engine: &Arc<Engine>,
    namespace: &NamespaceName,
    asserts: Vec<ObjectAssert>,
    mut updates: Vec<SequenceUpdate>,
    deadline: Deadline,
) -> Result<Vec<StoredObject>, ClientError> {
    if asserts.is_empty() && updates.is_empty() {
        // Only the namespace can be wrong.
        engine.namespaces.resolve(namespace, deadline).await?;
        return Ok(Vec::new());
    }
    let wanted = updates
        .iter_mut()
        .map(|update| match update {
            SequenceUpdate::Upload { name, source, checksum } => Wanted::Put {
                name: name.clone(),
                source: source.as_mut(),
                checksum: *checksum,
                overwrite: Overwrite::Unconditionally,
            },
            SequenceUpdate::Delete { name } => Wanted::Delete { name: name.clone(), must_exist: false },
        })
        .collect();
    change(engine, namespace, asserts, wanted, deadline).await
}

/// One attempt, and one more where that can help.
async fn change(
    engine: &Arc<Engine>,
    name: &NamespaceName,
    asserts: Vec<ObjectAssert>,
    mut wanted: Vec<Wanted<'_>>,
    deadline: Deadline,
) -> Result<Vec<StoredObject>, ClientError> {
    let namespace = engine.namespaces.resolve(name, deadline).await?;
    let bytes = wanted.iter().map(Wanted::bytes).fold(0, u64::saturating_add);
    let mut slot = Some(engine.upload_slot(bytes, deadline).await?);
    let avoid = Arc::new(Mutex::new(BTreeSet::new()));
    let inline = namespace.takes_inline(engine.env.clock.now());
    let first = prepare(engine, &namespace, Engine::fresh, &avoid, inline, deadline).await;
    let error = match first {
        Ok(attempt) => match run(&attempt, asserts.clone(), &mut wanted, &mut slot).await {
            Ok(stored) => return Ok(stored),
            Err(error) => error,
        },
        Err(error) => error,
    };
    if !may_succeed_when_repeated(&error) {
        return Err(plain(error));
    }
    engine.counters.uploads_retried.add(1);
    tracing::info!(namespace = %namespace.name, %error, "upload failed, one more attempt");
    let violated = matches!(error, ClientError::Meta(MetaError::Nsm(NsmError::PresetViolated(_))));
    if inline && violated {
        // Its group may have too few replicas for that: fragments are always right.
        namespace.inline_refused(engine.env.clock.now());
    }
    let inline = inline && !violated;
    let namespace = if is_moved(&error) {
        engine.namespaces.resolve_again(&namespace, deadline).await?.ok_or(error)?
    } else {
        namespace
    };
    // Everything is asked afresh: OSDs, preset, epoch. OSDs that failed are avoided.
    let afresh = |engine: &Arc<Engine>, topic| Fresh { max_age: Duration::ZERO, ..engine.fresh(topic) };
    let attempt = prepare(engine, &namespace, afresh, &avoid, inline, deadline).await?;
    run(&attempt, asserts, &mut wanted, &mut slot).await.map_err(plain)
}

async fn prepare(
    engine: &Arc<Engine>,
    namespace: &Arc<Namespace>,
    how_new: impl Fn(&Arc<Engine>, Topic) -> Fresh,
    avoid: &Arc<Mutex<BTreeSet<OsdId>>>,
    inline: bool,
    deadline: Deadline,
) -> Result<Attempt, ClientError> {
    engine.pool.refresh(how_new(engine, Topic::OSDS), deadline).await?;
    let info = engine.namespaces.info(namespace, how_new(engine, Topic::DELIVERIES), deadline).await?;
    Ok(Attempt {
        key: engine.keys.of_preset(&info.preset.fragment_encryption)?,
        inline,
        engine: Arc::clone(engine),
        namespace: Arc::clone(namespace),
        epoch: info.newest_epoch,
        info,
        avoid: Arc::clone(avoid),
        deadline,
    })
}

/// Uploads all objects, then commits all changes at once.
async fn run(
    attempt: &Attempt,
    asserts: Vec<ObjectAssert>,
    wanted: &mut [Wanted<'_>],
    slot: &mut Option<UploadSlot>,
) -> Result<Vec<StoredObject>, ClientError> {
    let mut changes: Vec<Option<Change>> = Vec::with_capacity(wanted.len());
    let mut puts = Vec::new();
    for (position, wanted) in wanted.iter_mut().enumerate() {
        match wanted {
            Wanted::Put { name, source, checksum, overwrite } => {
                let (name, source): (&ObjectName, &mut dyn ObjectSource) = (name, &mut **source);
                let (checksum, overwrite) = (*checksum, *overwrite);
                let put = async move {
                    if let Some(small) = inline::pack_object(attempt, name, source, checksum).await? {
                        let small = Box::new(small);
                        return Ok((position, Change::PutInline { small, overwrite }, None));
                    }
                    let (uploaded, spread) = upload_object(attempt, name, source, checksum).await?;
                    Ok::<_, ClientError>((
                        position,
                        Change::Put { uploaded: Box::new(uploaded), overwrite },
                        Some(spread),
                    ))
                };
                puts.push(put.boxed());
                changes.push(None);
            }
            Wanted::Delete { name, must_exist } => {
                changes.push(Some(Change::Delete { name: name.clone(), must_exist: *must_exist }));
            }
        }
    }
    let mut uploads = stream::iter(puts).buffer_unordered(OBJECTS_AT_ONCE);
    let mut stragglers = Stragglers::default();
    while let Some(uploaded) = stragglers.meanwhile(uploads.next()).await {
        let (position, change, spread) = uploaded?;
        stragglers.join(spread);
        if let Some(place) = changes.get_mut(position) {
            *place = Some(change);
        }
    }
    drop(uploads);
    commit(attempt, asserts, changes.into_iter().flatten().collect(), stragglers, slot).await
}

/// Can another attempt, with everything asked afresh and failed OSDs avoided, end otherwise? Only errors after which
/// it is known that nothing was committed (features §2.6).
fn may_succeed_when_repeated(error: &ClientError) -> bool {
    match error {
        ClientError::ChunkNotStored { .. } | ClientError::NoSatisfiablePolicy { .. } => true,
        ClientError::Meta(MetaError::Nsm(error)) => match error {
            NsmError::InvalidGcEpoch(_)
            | NsmError::NonUniqueObjectId
            | NsmError::NamespaceMoved(_)
            | NsmError::InvalidFragmentSpread
            | NsmError::InactiveOsd(_)
            | NsmError::InvalidBucket
            | NsmError::PresetViolated(_) => true,
            NsmError::Unknown(_)
            // The commit has waited for it to the end.
            | NsmError::NamespaceFrozen(_)
            | NsmError::ObjectNotFound
            | NsmError::OverwriteNotAllowed(_)
            | NsmError::InvalidVersion(_)
            | NsmError::AssertFailed(_)
            | NsmError::TooLarge(_)
            | NsmError::InvalidUpdate(_)
            | NsmError::InsufficientFragments
            | NsmError::NamespaceTrashed(_)
            | NsmError::NamespaceRecovering(_)
            | NsmError::NotRecovering(_)
            | NsmError::MoveRefused(_) => false,
        },
        _ => false,
    }
}

/// The group's refusals that callers know under a name of their own.
fn plain(error: ClientError) -> ClientError {
    match error {
        ClientError::Meta(MetaError::Nsm(NsmError::OverwriteNotAllowed(name))) => {
            ClientError::OverwriteNotAllowed(name)
        }
        ClientError::Meta(MetaError::Nsm(NsmError::AssertFailed(name))) => ClientError::AssertFailed(name),
        error => error,
    }
}
