//! Tags that are needed no longer, since a manifest names their fragments: removed together, those of many uploads and repairs that
//! are on one OSD.
//!
//! Each removal alone would cost an OSD a request and a sync, nearly as many as storing the fragments did; and nobody waits for it. So
//! it waits for others, for [`TOGETHER`] at most. Nothing here can lose data: only tags are removed, and what stays, since a process
//! ended or an OSD gave no answer, is left to garbage collection.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::osd::{OsdAssert, OsdBatch, OsdError, OsdKey, OsdUpdate, Priority};
use alba_core::env::{Deadline, within};
use alba_core::failpoint::{Step, reach};
use alba_core::ids::{NamespaceId, OsdId};
use alba_core::osd_keys;
use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::engine::Engine;
use crate::osd_pool::{CallSize, Member};
use crate::turns::Unsettled;

/// How long a tag waits for others. With ten puts per second of nine fragments on twelve OSDs about five go together.
const TOGETHER: Duration = Duration::from_millis(500);

/// So many do not wait for more, and go in one batch.
const PER_BATCH: usize = 500;

/// Tags that wait or are being removed, of all OSDs. A key takes about 80 bytes, what is around it three times as many: 10 MiB.
const MOST: usize = 32 << 10;

/// A tag on an OSD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) key: OsdKey,
    /// Removed only while it has this value; none: whatever it has.
    pub(crate) mark: Option<Bytes>,
}

/// Why they are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum After {
    Upload,
    Update,
}

impl After {
    fn step(self) -> Step {
        match self {
            Self::Upload => Step::UploadUntagged,
            Self::Update => Step::UpdateUntagged,
        }
    }
}

/// Where they are, and why they go.
type Place = (OsdId, NamespaceId, After);

/// Tags of a place that wait for others.
struct Gathering {
    member: Arc<Member>,
    tags: BTreeMap<OsdKey, Option<Bytes>>,
    /// Given back when they are gone.
    held: Vec<(OwnedSemaphorePermit, Arc<Unsettled>)>,
    /// They go now.
    go: Arc<Notify>,
}

/// See the module.
pub(crate) struct Untagging {
    gathering: Mutex<BTreeMap<Place, Gathering>>,
    room: Arc<Semaphore>,
    /// Callers that wait for all to be gone.
    hurried: AtomicUsize,
}

/// While it is there, no tag waits for others.
pub(crate) struct Hurry<'a>(&'a Untagging);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.hurried.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Default for Untagging {
    fn default() -> Self {
        Self {
            gathering: Mutex::default(),
            room: Arc::new(Semaphore::new(MOST)),
            hurried: AtomicUsize::new(0),
        }
    }
}

impl Untagging {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, Gathering>> {
        // Consistent between any two statements that hold the lock.
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that wait go now.
    pub(crate) fn hurry(&self) -> Hurry<'_> {
        self.hurried.fetch_add(1, Ordering::AcqRel);
        for gathering in self.lock().values() {
            gathering.go.notify_one();
        }
        Hurry(self)
    }
}

/// Has these tags removed, by `after`, sooner or later: returns when there is room for them to wait. `unsettled` is kept until they are
/// gone.
pub(crate) async fn remove(
    engine: &Arc<Engine>,
    namespace: NamespaceId,
    after: After,
    tags: impl IntoIterator<Item = (Arc<Member>, Tag)>,
    unsettled: &Arc<Unsettled>,
) {
    let mut by_osd: BTreeMap<OsdId, (Arc<Member>, Vec<Tag>)> = BTreeMap::new();
    for (member, tag) in tags {
        by_osd.entry(member.id).or_insert_with(|| (member, Vec::new())).1.push(tag);
    }
    for (member, tags) in by_osd.into_values() {
        for tags in tags.chunks(PER_BATCH) {
            let deadline = engine.deadline_in(engine.config.osd_timeout());
            let room = engine.untagging.room.clone().acquire_many_owned(count(tags.len()));
            match within(&*engine.env.clock, deadline, room).await {
                Ok(Ok(room)) => {
                    let held = (room, Arc::clone(unsettled));
                    add(engine, (member.id, namespace, after), &member, tags, held);
                }
                // So many wait that some OSD must be out of order.
                _ => leave(engine, member.id, tags.len(), "too many wait to be removed"),
            }
        }
    }
}

fn count(tags: usize) -> u32 {
    // At most PER_BATCH.
    u32::try_from(tags).unwrap_or(u32::MAX)
}

/// Tags that are not removed.
pub(crate) fn leave(engine: &Engine, osd: OsdId, tags: usize, reason: &str) {
    engine.counters.tags_left.add(u64::try_from(tags).unwrap_or(u64::MAX));
    tracing::debug!(%osd, reason, "tags stay until garbage collection");
}

/// Puts tags with those that wait already, or begins to wait with them.
fn add(
    engine: &Arc<Engine>,
    place: Place,
    member: &Arc<Member>,
    tags: &[Tag],
    held: (OwnedSemaphorePermit, Arc<Unsettled>),
) {
    let untagging = &engine.untagging;
    let go = {
        let mut all = untagging.lock();
        let begins = !all.contains_key(&place);
        let gathering = all.entry(place).or_insert_with(|| Gathering {
            member: Arc::clone(member),
            tags: BTreeMap::new(),
            held: Vec::new(),
            go: Arc::default(),
        });
        gathering.tags.extend(tags.iter().map(|tag| (tag.key.clone(), tag.mark.clone())));
        gathering.held.push(held);
        if gathering.tags.len() >= PER_BATCH || untagging.hurried.load(Ordering::Acquire) > 0 {
            gathering.go.notify_one();
        }
        if !begins {
            return;
        }
        Arc::clone(&gathering.go)
    };
    let until = engine.deadline_in(TOGETHER);
    let (engine, spawn) = (Arc::clone(engine), Arc::clone(&engine.env.spawn));
    let task = async move {
        // Either is a reason to go.
        let _ = within(&*engine.env.clock, until, go.notified()).await;
        let Some(gathering) = engine.untagging.lock().remove(&place) else { return };
        let (_, namespace, after) = place;
        remove_all(&engine, namespace, after, gathering).await;
    };
    drop(spawn.spawn_beside("untag", Box::pin(task)));
}

/// Removes what has gathered.
async fn remove_all(engine: &Engine, namespace: NamespaceId, after: After, gathering: Gathering) {
    let Gathering { member, mut tags, held, .. } = gathering;
    while !tags.is_empty() {
        let end = tags.keys().nth(PER_BATCH).cloned();
        let rest = end.map(|end| tags.split_off(&end)).unwrap_or_default();
        remove_some(engine, namespace, &member, std::mem::replace(&mut tags, rest)).await;
    }
    reach(after.step());
    drop(held);
}

/// A tag that has another mark, or is gone, stays as it is and keeps no other.
async fn remove_some(
    engine: &Engine,
    namespace: NamespaceId,
    member: &Arc<Member>,
    mut tags: BTreeMap<OsdKey, Option<Bytes>>,
) {
    let deadline = engine.deadline_in(engine.config.osd_timeout());
    while !tags.is_empty() {
        match apply(engine, namespace, member, &tags, deadline).await {
            Ok(()) => return,
            Err(OsdError::AssertFailed(key)) if tags.remove(&key).is_some() => {
                leave(engine, member.id, 1, "another mark, or none");
            }
            Err(error) => return leave(engine, member.id, tags.len(), &error.to_string()),
        }
    }
}

async fn apply(
    engine: &Engine,
    namespace: NamespaceId,
    member: &Arc<Member>,
    tags: &BTreeMap<OsdKey, Option<Bytes>>,
    deadline: Deadline,
) -> Result<(), OsdError> {
    let marker = OsdAssert::Value(osd_keys::namespace_marker(namespace), osd_keys::NAMESPACE_ACTIVE);
    let marks = tags.iter().filter_map(|(key, mark)| Some(OsdAssert::Value(key.clone(), mark.clone()?)));
    let batch = OsdBatch {
        asserts: std::iter::once(marker).chain(marks).collect(),
        updates: tags.keys().cloned().map(OsdUpdate::Delete).collect(),
    };
    // Nobody waits for it, and to an OSD it is no request of a client.
    let call = engine.pool.call(member, CallSize::Small, deadline, |osd, deadline| {
        let batch = batch.clone();
        async move { osd.apply(batch, Priority::Low, deadline).await }
    });
    call.await
}
