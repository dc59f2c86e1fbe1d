//! Deletion notes: before a client hears that an object is deleted, some OSDs of its namespace know that this was under way.
//!
//! They are the only thing outside of a group that tells a deleted object from a stored one as long as its fragments are there.
//! A recovery of a lost group never brings back by itself what a note names. A note says "somebody was about to": one of a
//! deletion that failed makes an object doubtful that is not, which costs a decision and no object.
//!
//! A note is gone when no fragment of its object waits to be deleted any more. What is replaced needs none: its successor is
//! found under the same name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{OsdAssert, OsdBatch, OsdUpdate, Priority, StoredValue};
use alba_core::env::{Deadline, Env, Moment, Osd, OsdError};
use alba_core::ids::{LongId, NamespaceId, ObjectId, ObjectName};
use alba_core::osd_keys;
use alba_core::wire::rpc::Consistency;
use alba_core::wire::rpc::abm::OsdInfo;
use bytes::Bytes;
use futures_util::future::join_all;

use super::Devices;
use crate::nsm::{self, Nsm};
use crate::replicator::{Replicator, read_as, read_with};

/// On so many OSDs, of different nodes where there are.
const COPIES: usize = 3;

/// Longest that one OSD is waited for.
pub(super) const CALL: Duration = Duration::from_secs(1);

/// How long an OSD that failed is passed over.
const PASSED_OVER: Duration = Duration::from_secs(5);

/// OSDs whose connections are kept.
const KEPT: usize = 4096;

/// Notes per batch.
const BATCH: usize = 200;

/// Writes and removes notes.
pub(super) struct Notes {
    env: Env,
    devices: Arc<dyn Devices>,
    known: Mutex<BTreeMap<LongId, Known>>,
}

struct Known {
    info: OsdInfo,
    osd: Arc<dyn Osd>,
    bad_until: Option<Moment>,
}

/// What is about to be deleted, or was.
pub(super) struct Doomed {
    namespace: NamespaceId,
    objects: Vec<(ObjectId, ObjectName)>,
    osds: Vec<OsdInfo>,
}

impl Doomed {
    /// Which objects.
    pub(super) fn ids(&self) -> BTreeSet<ObjectId> {
        self.objects.iter().map(|(id, _)| *id).collect()
    }
}

impl Notes {
    pub(super) fn new(env: &Env, devices: &Arc<dyn Devices>) -> Self {
        Self { env: env.clone(), devices: devices.clone(), known: Mutex::default() }
    }

    /// What has these names; none when nothing has, or when that cannot be told.
    pub(super) async fn doomed(
        &self,
        group: &dyn Replicator<Nsm>,
        namespace: NamespaceId,
        names: BTreeSet<ObjectName>,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Option<Doomed> {
        let read = move |store: &dyn alba_core::kv::KvRead| nsm::to_note(store, namespace, &names);
        let (objects, osds) = read_as(group, consistency, deadline, read).await.ok()?;
        (!objects.is_empty()).then_some(Doomed { namespace, objects, osds })
    }

    /// What was deleted, with the OSDs that can take notes of it.
    pub(super) async fn deleted(
        &self,
        group: &dyn Replicator<Nsm>,
        namespace: NamespaceId,
        objects: Vec<(ObjectId, ObjectName)>,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Option<Doomed> {
        let read = move |store: &dyn alba_core::kv::KvRead| nsm::note_takers(store, namespace);
        let osds = read_as(group, consistency, deadline, read).await.ok()?;
        Some(Doomed { namespace, objects, osds })
    }

    /// Writes the notes. Deletion goes on without them when no OSD takes them: it must stay possible, and then there is
    /// nothing to be recovered from either.
    pub(super) async fn write(&self, doomed: Option<Doomed>, deadline: Deadline) {
        let Some(Doomed { namespace, objects, osds }) = doomed else { return };
        let mut written = 0;
        let mut left = self.in_order(osds, objects.first().map(|(id, _)| *id));
        while written < COPIES && !left.is_empty() {
            let some: Vec<(LongId, Arc<dyn Osd>)> = left.drain(..left.len().min(COPIES - written)).collect();
            let writes =
                some.iter().map(|(_, osd)| self.write_to(osd.as_ref(), namespace, &objects, deadline));
            let results = join_all(writes).await;
            for ((long_id, _), result) in some.iter().zip(results) {
                match result {
                    Ok(()) => written += 1,
                    Err(error) => self.failed(long_id, &error),
                }
            }
        }
        if written == 0 {
            metrics::counter!("alba_deletion_notes_missed").increment(1);
            tracing::debug!(%namespace, "no OSD takes a note of a deletion");
        }
    }

    async fn write_to(
        &self,
        osd: &dyn Osd,
        namespace: NamespaceId,
        objects: &[(ObjectId, ObjectName)],
        deadline: Deadline,
    ) -> Result<(), OsdError> {
        for part in objects.chunks(BATCH) {
            let set = |(id, name): &(ObjectId, ObjectName)| {
                let value = Bytes::copy_from_slice(name.as_bytes());
                let key = osd_keys::deletion_note(namespace, id);
                OsdUpdate::Set(key, StoredValue { value, checksum: Checksum::None })
            };
            // Of a namespace that is not there any more nothing may be left.
            let marker = osd_keys::namespace_marker(namespace);
            let batch = OsdBatch {
                asserts: vec![OsdAssert::Value(marker, osd_keys::NAMESPACE_ACTIVE)],
                updates: part.iter().map(set).collect(),
            };
            let deadline = deadline.capped(self.env.clock.as_ref(), CALL);
            osd.apply(batch, Priority::High, deadline).await?;
        }
        Ok(())
    }

    /// OSDs in the order in which they are tried: spread by the object, each node once before any twice, without those that
    /// failed a moment ago.
    fn in_order(&self, osds: Vec<OsdInfo>, object: Option<ObjectId>) -> Vec<(LongId, Arc<dyn Osd>)> {
        let now = self.env.clock.now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > KEPT {
            known.clear();
        }
        let mut by_turn: BTreeMap<(usize, usize), (LongId, Arc<dyn Osd>)> = BTreeMap::new();
        let mut on_node: BTreeMap<String, usize> = BTreeMap::new();
        let count = osds.len();
        let spread =
            object.map_or(0, |id| usize::from(id.as_bytes()[0]) * 256 + usize::from(id.as_bytes()[1]));
        for turn in 0..count {
            let Some(info) = osds.get((turn + spread) % count) else { continue };
            let entry = known.entry(info.long_id.clone()).or_insert_with(|| Known {
                info: info.clone(),
                osd: self.devices.osd(info),
                bad_until: None,
            });
            if entry.info.endpoint != info.endpoint {
                *entry = Known { info: info.clone(), osd: self.devices.osd(info), bad_until: None };
            }
            if entry.bad_until.is_some_and(|until| until > now) {
                continue;
            }
            let before = on_node.entry(info.place.node().to_string()).or_default();
            by_turn.insert((*before, turn), (info.long_id.clone(), entry.osd.clone()));
            *before += 1;
        }
        by_turn.into_values().collect()
    }

    fn failed(&self, long_id: &LongId, error: &OsdError) {
        // The namespace is not on the device (yet): about the namespace.
        if matches!(error, OsdError::AssertFailed(_)) {
            return;
        }
        let until = self.env.clock.now().plus(PASSED_OVER);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = known.get_mut(long_id) {
            entry.bad_until = Some(until);
        }
    }

    /// Keys of fragments were deleted: notes of objects of which none is left to be deleted go. What is not removed now does
    /// no harm: the object is gone.
    pub(super) async fn clean_up(
        &self,
        group: &dyn Replicator<Nsm>,
        namespace: NamespaceId,
        objects: BTreeSet<ObjectId>,
        deadline: Deadline,
    ) {
        let read =
            move |store: &dyn alba_core::kv::KvRead| nsm::without_keys_to_delete(store, namespace, &objects);
        let Ok((objects, osds)) = read_with(group, deadline, read).await else { return };
        if objects.is_empty() {
            return;
        }
        let keys: Vec<Bytes> = objects.iter().map(|id| osd_keys::deletion_note(namespace, id)).collect();
        let osds = self.in_order(osds, None);
        let removals = osds.iter().map(|(_, osd)| remove(osd.as_ref(), &keys, deadline));
        for ((long_id, _), result) in osds.iter().zip(join_all(removals).await) {
            if let Err(error) = result {
                tracing::debug!(%long_id, %error, "notes of deletions stay");
            }
        }
    }
}

async fn remove(osd: &dyn Osd, keys: &[Bytes], deadline: Deadline) -> Result<(), OsdError> {
    for part in keys.chunks(BATCH) {
        let there = osd.multi_exists(part.to_vec(), Priority::Low, deadline).await?;
        let updates: Vec<OsdUpdate> = part
            .iter()
            .zip(there)
            .filter(|(_, there)| *there)
            .map(|(key, _)| OsdUpdate::Delete(key.clone()))
            .collect();
        if !updates.is_empty() {
            osd.apply(OsdBatch { asserts: Vec::new(), updates }, Priority::Low, deadline).await?;
        }
    }
    Ok(())
}
