//! A lost ABM, made again from what groups, devices and an old backup say of it.
//!
//! Only records are made, and what follows from them. What was under way when the ABM was lost is not: work, jobs and leases are
//! gone, and so are messages that nobody had got. In their place everything is told again: each group of all its links, each
//! device of what it lacks.
//!
//! Ids are never given again: the numbers of namespaces and OSDs begin behind all that anybody has seen, those of messages where
//! their destinations are. Numbers that only the ABM knew (tokens, work, revisions) go on from the time, which is far beyond.

use alba_core::ids::{AlbaId, GroupId, LongId, MessageId, NamespaceId, OsdId, PresetName, WorkId};
use alba_core::kv::{Durability, Kv, KvError};
use alba_core::manifest::Timestamp;
use alba_core::preset::Preset;
use alba_core::wire::rpc::abm::{
    Destination, MaintenanceConfig, NamespaceRecord, NamespaceState, OsdInfo, OsdKind, OsdRecord, OsdState,
    WorkItem,
};
use alba_core::wire::rpc::nsm::{MoveId, OsdUse};
use thiserror::Error;

use super::lifecycle::LinkState;
use super::walks::{self, Walk};
use super::{groups, keys, osds, presets, work};
use crate::model::Fault;
use crate::txn::KvTxn;
use crate::value::{PRESENT, save};

/// Why it cannot be made.
#[derive(Debug, Error)]
pub enum RebuildError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] KvError),
    /// What is known contradicts itself.
    #[error("{0}")]
    Contradiction(String),
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownGroup {
    /// Its name.
    pub id: GroupId,
    /// Where it is (`ip:port`).
    pub servers: Vec<String>,
    /// Given up.
    pub lost: bool,
    /// The message that it expects next.
    pub next_message: MessageId,
}

/// A claimed OSD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownOsd {
    /// Its id.
    pub id: OsdId,
    /// Place, addresses.
    pub info: OsdInfo,
    /// The message that it expects next; none: it does not answer and will not come back.
    pub next_message: Option<MessageId>,
    /// Namespaces that it accepts fragments of.
    pub namespaces: Vec<NamespaceId>,
    /// Namespaces that were deleted, and of which it still holds something.
    pub deleted: Vec<NamespaceId>,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownNamespace {
    /// As it is from now on.
    pub record: NamespaceRecord,
    /// The last move that any group knows of.
    pub last_move: MoveId,
    /// How its group uses OSDs.
    pub osds: Vec<(OsdId, OsdUse)>,
}

/// A preset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownPreset {
    /// Its name.
    pub name: PresetName,
    /// What it asks.
    pub preset: Preset,
    /// Of it.
    pub version: u32,
}

/// All that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Whose devices they are.
    pub alba_id: AlbaId,
    /// All NSM groups.
    pub groups: Vec<KnownGroup>,
    /// All claimed OSDs.
    pub osds: Vec<KnownOsd>,
    /// All presets.
    pub presets: Vec<KnownPreset>,
    /// For namespaces that name none.
    pub default_preset: Option<PresetName>,
    /// All namespaces that have a group.
    pub namespaces: Vec<KnownNamespace>,
    /// The agents' configuration, if it is known.
    pub maintenance: Option<MaintenanceConfig>,
    /// No OSD id at or beyond this one was ever seen.
    pub next_osd: OsdId,
    /// No namespace id at or beyond this one was ever seen.
    pub next_namespace: NamespaceId,
}

fn contradiction<T>(text: String) -> Result<T, RebuildError> {
    Err(RebuildError::Contradiction(text))
}

/// What a fault of the model means here.
fn fault<E: std::fmt::Display>(fault: Fault<E>) -> RebuildError {
    match fault {
        Fault::Store(error) => error.into(),
        Fault::Refused(error) => RebuildError::Contradiction(error.to_string()),
    }
}

/// Makes the rows of the ABM in a store that must be empty. `now` is the time in microseconds since 1970.
pub fn rebuild(kv: &dyn Kv, known: &Known, now: u64) -> Result<(), RebuildError> {
    check(known)?;
    let mut txn = KvTxn::new(kv);
    save(&mut txn, keys::ALBA_ID, &known.alba_id)?;
    save(&mut txn, keys::NEXT_OSD, &known.next_osd)?;
    save(&mut txn, keys::NEXT_NAMESPACE, &known.next_namespace)?;
    beyond(&mut txn, now)?;
    if let Some(maintenance) = &known.maintenance {
        save(&mut txn, keys::MAINTENANCE, maintenance)?;
    }
    for group in &known.groups {
        groups::add(&mut txn, &group.id, &group.servers).map_err(fault)?;
        if group.lost {
            groups::update(&mut txn, &group.id, None, true).map_err(fault)?;
        }
        let destination = Destination::Group(group.id.clone());
        save(&mut txn, keys::next_message(&destination), &group.next_message)?;
    }
    for KnownPreset { name, preset, version } in &known.presets {
        let stored = presets::Stored { preset: preset.clone(), version: *version };
        save(&mut txn, keys::preset(name), &stored)?;
    }
    if let Some(name) = &known.default_preset {
        save(&mut txn, keys::DEFAULT_PRESET, name)?;
    }
    for osd in &known.osds {
        put_osd(&mut txn, known, osd, now)?;
    }
    for namespace in &known.namespaces {
        put_namespace(&mut txn, known, namespace)?;
    }
    // Everything is there: what each has to be told follows from it.
    for osd in &known.osds {
        if osd.next_message.is_none() {
            osds::purge(&mut txn, Timestamp(now), &osd.info.long_id).map_err(fault)?;
        } else if is_draining(known, osd.id) {
            walks::start(&mut txn, Walk::LeaveOsd(osd.id))?;
        } else {
            walks::start(&mut txn, Walk::LinkOsd(osd.id))?;
        }
        // The item that said so is gone with the old ABM.
        for namespace in osd.deleted.iter().filter(|_| osd.next_message.is_some()) {
            let item = WorkItem::CleanupOsdNamespace { osd: osd.id, namespace: *namespace };
            work::add(&mut txn, Timestamp(now), &item)?;
        }
    }
    for namespace in &known.namespaces {
        walks::start(&mut txn, Walk::TellGroup(namespace.record.id))?;
    }
    txn.accept();
    kv.commit(txn.into_batch(), Durability::Sync)?;
    Ok(())
}

/// Numbers that only the ABM gave and that others may still know.
fn beyond(txn: &mut KvTxn<'_>, now: u64) -> Result<(), RebuildError> {
    let far = i64::try_from(now).unwrap_or(i64::MAX / 2);
    txn.add(keys::TOKEN, far)?;
    txn.add(keys::PEERS_REVISION, far)?;
    for kind in *b"opngm" {
        let mut key = keys::REVISIONS.to_vec();
        key.push(kind);
        txn.add(key, far)?;
    }
    let work = WorkId::new(now.min(i64::MAX.unsigned_abs()));
    save(txn, keys::NEXT_WORK, &work.map_err(|error| KvError::Damaged(error.to_string()))?)?;
    Ok(())
}

fn check(known: &Known) -> Result<(), RebuildError> {
    let mut long_ids: Vec<&LongId> = known.osds.iter().map(|osd| &osd.info.long_id).collect();
    long_ids.sort_unstable();
    long_ids.dedup();
    let mut ids: Vec<OsdId> = known.osds.iter().map(|osd| osd.id).collect();
    ids.sort_unstable();
    ids.dedup();
    if long_ids.len() != known.osds.len() || ids.len() != known.osds.len() {
        return contradiction("two OSDs have one id".to_owned());
    }
    if let Some(osd) = known.osds.iter().find(|osd| osd.id >= known.next_osd) {
        return contradiction(format!("OSD {} is beyond the next id", osd.id));
    }
    for (at, namespace) in known.namespaces.iter().enumerate() {
        let record = &namespace.record;
        if known.osds.iter().any(|osd| osd.deleted.contains(&record.id)) {
            return contradiction(format!("namespace {} is there and deleted", record.name));
        }
        if record.id >= known.next_namespace {
            return contradiction(format!("namespace {} is beyond the next id", record.id));
        }
        let same = |other: &KnownNamespace| other.record.id == record.id || other.record.name == record.name;
        if let Some(other) = known.namespaces.get(at + 1..).unwrap_or_default().iter().find(|n| same(n)) {
            return contradiction(format!(
                "namespaces {} ({}) and {} ({}) have one name or id",
                record.name, record.id, other.record.name, other.record.id
            ));
        }
        if !known.groups.iter().any(|group| group.id == record.group) {
            return contradiction(format!("namespace {} has no group", record.name));
        }
        if !known.presets.iter().any(|preset| preset.name == record.preset) {
            return contradiction(format!("namespace {} has no preset", record.name));
        }
    }
    Ok(())
}

/// Does a group say that it takes no new fragments?
fn is_draining(known: &Known, osd: OsdId) -> bool {
    known.namespaces.iter().any(|namespace| namespace.osds.contains(&(osd, OsdUse::Draining)))
}

fn put_osd(txn: &mut KvTxn<'_>, known: &Known, osd: &KnownOsd, now: u64) -> Result<(), RebuildError> {
    let state = if is_draining(known, osd.id) { OsdState::Draining } else { OsdState::Active };
    let record = OsdRecord {
        info: osd.info.clone(),
        osd_id: Some(osd.id),
        state,
        claimed_since: Some(now),
        kind: OsdKind::Asd,
        owner: None,
    };
    save(txn, keys::osd(&osd.info.long_id), &record)?;
    save(txn, keys::osd_by_id(osd.id), &osd.info.long_id)?;
    let next = osd.next_message.unwrap_or(MessageId::from_u32(0));
    save(txn, keys::next_message(&Destination::Osd(osd.id)), &next)?;
    Ok(())
}

fn put_namespace(txn: &mut KvTxn<'_>, known: &Known, namespace: &KnownNamespace) -> Result<(), RebuildError> {
    let record = &namespace.record;
    save(txn, keys::namespace(&record.name), record)?;
    save(txn, keys::namespace_by_id(record.id), &record.name)?;
    txn.put(keys::user_of_preset(&record.preset, record.id), PRESENT);
    txn.add(keys::group_load(&record.group), 1)?;
    if let NamespaceState::Moving { .. } = record.state {
        save(txn, keys::moving(record.id), &record.name)?;
    }
    if namespace.last_move != MoveId::default() {
        save(txn, keys::last_move(record.id), &namespace.last_move)?;
    }
    for osd in &known.osds {
        let used = namespace.osds.iter().find(|(id, _)| *id == osd.id).map(|(_, how)| *how);
        let on_device = osd.namespaces.contains(&record.id);
        let state = match (used, on_device) {
            (Some(OsdUse::Active), _) => LinkState::Active,
            (Some(OsdUse::Draining), _) => LinkState::Draining,
            // The device accepts its fragments, and the group does not know or not any more: it hears of it again.
            (Some(OsdUse::Unlinked) | None, true) => LinkState::OnDevice,
            // It gets its link like a new one.
            (Some(OsdUse::Unlinked) | None, false) => continue,
        };
        save(txn, keys::link(record.id, osd.id), &state)?;
        txn.put(keys::link_back(osd.id, record.id), PRESENT);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
