//! Namespaces (features §1.3).

use std::collections::BTreeMap;

use alba_core::ids::{GroupId, NamespaceId, NamespaceName, NodeId, OsdId, PresetName};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{
    AbmError, AbmOutcome, Destination, Message, NamespaceRecord, NamespaceState,
};
use alba_core::wire::rpc::nsm::{MoveId, NsmMessage};

use super::lifecycle::{self, LinkState, NamespaceEvent};
use super::revisions::{self, Kind};
use super::walks::{self, Walk};
use super::{Refused, groups, keys, leases, links, osds, outbox, presets, record_of, refuse};
use crate::listing::page;
use crate::txn::KvTxn;
use crate::value::{PRESENT, damaged, decode, load, save, scan_prefix};

/// Stores a record.
fn put(txn: &mut KvTxn<'_>, record: &NamespaceRecord) -> Result<(), KvError> {
    save(txn, keys::namespace(&record.name), record)?;
    match record.state {
        NamespaceState::Moving { .. } => save(txn, keys::moving(record.id), &record.name)?,
        _ => txn.delete(keys::moving(record.id)),
    }
    revisions::bump(txn, Kind::Namespaces)
}

pub(super) fn create(
    txn: &mut KvTxn<'_>,
    name: &NamespaceName,
    preset: Option<&PresetName>,
    group: Option<&GroupId>,
) -> Result<AbmOutcome, Refused> {
    if let Some(taken) = load::<NamespaceRecord>(txn, &keys::namespace(name))?
        && !step_aside(txn, taken)?
    {
        return refuse(AbmError::NamespaceExists(name.clone()));
    }
    let preset_name = match preset {
        Some(name) => name.clone(),
        None => match presets::default_name(txn)? {
            Some(name) => name,
            None => return refuse(AbmError::BadArgument("there is no default preset; name one".to_owned())),
        },
    };
    if txn.get(&keys::preset(&preset_name))?.is_none() {
        return refuse(AbmError::PresetUnknown(preset_name));
    }
    let group = match group {
        Some(group) => {
            groups::usable(txn, group)?;
            group.clone()
        }
        None => match groups::least_loaded(groups::all(txn)?) {
            Some(group) => group,
            None => return refuse(AbmError::NoGroup),
        },
    };
    let id = load::<NamespaceId>(txn, keys::NEXT_NAMESPACE)?.unwrap_or(NamespaceId::from_u32(0));
    save(txn, keys::NEXT_NAMESPACE, &id.next().ok_or_else(|| damaged("namespace ids are used up"))?)?;
    let state = NamespaceState::Creating;
    let record = NamespaceRecord { id, name: name.clone(), group, state, preset: preset_name };
    put(txn, &record)?;
    save(txn, keys::namespace_by_id(id), name)?;
    txn.put(keys::user_of_preset(&record.preset, id), PRESENT);
    txn.add(keys::group_load(&record.group), 1)?;
    tell_create(txn, &record)?;
    walks::start(txn, Walk::LinkNamespace(id))?;
    Ok(AbmOutcome::Namespace(record))
}

/// The name under which a namespace is kept whose own was given to a newer one: `NAME~ID`.
pub fn name_aside(name: &NamespaceName, id: NamespaceId) -> Option<NamespaceName> {
    let suffix = format!("~{id}");
    // Room for the suffix, also behind the longest name.
    let kept = name.as_bytes().len().min(NamespaceName::MAX_LEN.saturating_sub(suffix.len()));
    let mut bytes = name.as_bytes().get(..kept)?.to_vec();
    bytes.extend_from_slice(suffix.as_bytes());
    NamespaceName::new(bytes).ok()
}

/// What is in the trash gives its name to a new namespace, and is kept under one of its own: `NAME~ID`. False when it is not in
/// the trash, or cannot be renamed.
fn step_aside(txn: &mut KvTxn<'_>, mut record: NamespaceRecord) -> Result<bool, KvError> {
    if !matches!(record.state, NamespaceState::Trashed { .. }) {
        return Ok(false);
    }
    let Some(name) = name_aside(&record.name, record.id) else { return Ok(false) };
    if txn.get(&keys::namespace(&name))?.is_some() {
        return Ok(false);
    }
    txn.delete(keys::namespace(&record.name));
    record.name = name;
    save(txn, keys::namespace_by_id(record.id), &record.name)?;
    put(txn, &record)?;
    Ok(true)
}

/// Its group hears of a namespace.
fn tell_create(txn: &mut KvTxn<'_>, record: &NamespaceRecord) -> Result<(), KvError> {
    let Some(stored) = presets::load_stored(txn, &record.preset)? else {
        return Err(damaged(format!("preset {} of a namespace is gone", record.preset)));
    };
    let (id, name) = (record.id, record.name.clone());
    let (preset, preset_version) = (Box::new(stored.preset), stored.version);
    // Of one that is recovered nothing is served before its objects are back.
    let message = Message::Nsm(if record.state == NamespaceState::Recovering {
        NsmMessage::RecoverNamespace { id, name, preset, preset_version }
    } else {
        NsmMessage::CreateNamespace { id, name, preset, preset_version }
    });
    outbox::enqueue(txn, &Destination::Group(record.group.clone()), &message).map(drop)
}

fn find(txn: &KvTxn<'_>, name: &NamespaceName) -> Result<NamespaceRecord, Refused> {
    match load(txn, &keys::namespace(name))? {
        Some(record) => Ok(record),
        None => refuse(AbmError::NamespaceUnknown(name.clone())),
    }
}

/// Gives a namespace the state after an event.
fn advance(
    txn: &mut KvTxn<'_>,
    name: &NamespaceName,
    event: &NamespaceEvent,
) -> Result<NamespaceRecord, Refused> {
    let mut record = find(txn, name)?;
    match lifecycle::namespace(&record.state, event) {
        Some(state) => record.state = state,
        None => return refuse(AbmError::NamespaceNotActive(name.clone())),
    }
    put(txn, &record)?;
    Ok(record)
}

pub(super) fn delete(txn: &mut KvTxn<'_>, name: &NamespaceName) -> Result<AbmOutcome, Refused> {
    let record = advance(txn, name, &NamespaceEvent::Delete)?;
    let message = Message::Nsm(NsmMessage::DeleteNamespace { id: record.id });
    outbox::enqueue(txn, &Destination::Group(record.group), &message)?;
    Ok(AbmOutcome::Done)
}

pub(super) fn trash(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    name: &NamespaceName,
) -> Result<AbmOutcome, Refused> {
    let record = advance(txn, name, &NamespaceEvent::Trash { since: now.0 })?;
    tell_trashed(txn, &record, true)?;
    Ok(AbmOutcome::Namespace(record))
}

/// Into the trash, if there is one.
pub(super) fn discard(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    name: &NamespaceName,
) -> Result<AbmOutcome, Refused> {
    if leases::maintenance(txn)?.auto_cleanup_deleted_namespaces_days == 0 {
        return delete(txn, name);
    }
    trash(txn, now, name)
}

/// Deletes what has been in the trash for long enough, by the ABM's own time and configuration: an agent whose clock is wrong,
/// or that looked before the namespace was used and discarded once more, empties nothing too soon.
pub(super) fn empty_trash(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    id: NamespaceId,
) -> Result<AbmOutcome, Refused> {
    const DAY_MICROS: u64 = 24 * 3600 * 1_000_000;
    let days = leases::maintenance(txn)?.auto_cleanup_deleted_namespaces_days;
    let keep = DAY_MICROS.saturating_mul(u64::from(days));
    match record_of(txn, id)? {
        Some(record) => match record.state {
            NamespaceState::Trashed { since } if now.0.saturating_sub(since) >= keep => {
                delete(txn, &record.name)
            }
            _ => refuse(AbmError::NamespaceNotActive(record.name)),
        },
        // Gone already.
        None => Ok(AbmOutcome::Done),
    }
}

pub(super) fn undelete(txn: &mut KvTxn<'_>, name: &NamespaceName) -> Result<AbmOutcome, Refused> {
    let record = advance(txn, name, &NamespaceEvent::Undelete)?;
    tell_trashed(txn, &record, false)?;
    Ok(AbmOutcome::Namespace(record))
}

/// The group refuses clients of what is in the trash.
fn tell_trashed(txn: &mut KvTxn<'_>, record: &NamespaceRecord, trashed: bool) -> Result<(), KvError> {
    let message = Message::Nsm(NsmMessage::SetTrashed { namespace: record.id, trashed });
    outbox::enqueue(txn, &Destination::Group(record.group.clone()), &message).map(drop)
}

/// Gives the namespace of a lost group to another one.
pub(super) fn recover(
    txn: &mut KvTxn<'_>,
    name: &NamespaceName,
    group: &GroupId,
) -> Result<AbmOutcome, Refused> {
    let record = find(txn, name)?;
    groups::usable(txn, group)?;
    check_has_left(txn, &record, group)?;
    let old = record.group;
    if !groups::is_lost(txn, &old)? {
        let text = format!("NSM group {old} of namespace {name} is not marked lost");
        return refuse(AbmError::BadArgument(text));
    }
    let record = advance(txn, name, &NamespaceEvent::Recover)?;
    let record = hand_over(txn, record, group)?;
    Ok(AbmOutcome::Namespace(record))
}

pub(super) fn finish_recovery(txn: &mut KvTxn<'_>, name: &NamespaceName) -> Result<AbmOutcome, Refused> {
    advance(txn, name, &NamespaceEvent::Recovered).map(AbmOutcome::Namespace)
}

/// Another group owns the namespace from now on, and hears what it must know.
fn hand_over(
    txn: &mut KvTxn<'_>,
    mut record: NamespaceRecord,
    to: &GroupId,
) -> Result<NamespaceRecord, KvError> {
    txn.add(keys::group_load(&record.group), -1)?;
    txn.add(keys::group_load(to), 1)?;
    record.group = to.clone();
    put(txn, &record)?;
    // One that was moved is there with all its objects.
    if record.state == NamespaceState::Active {
        tell_again(txn, &record)?;
    } else {
        tell_create(txn, &record)?;
        walks::start(txn, Walk::TellGroup(record.id))?;
    }
    Ok(record)
}

/// The owner after a move, or after one that was given up, hears all that it may have missed: from `HandOver` on neither
/// group takes messages about the namespace. Each sets a state, so what it has heard already does no harm.
fn tell_again(txn: &mut KvTxn<'_>, record: &NamespaceRecord) -> Result<(), KvError> {
    presets::tell_group(txn, &record.preset, record.id)?;
    // Only an active namespace is moved; that it came back from the trash may have been under way.
    tell_trashed(txn, record, false)?;
    walks::start(txn, Walk::TellGroup(record.id))
}

/// A group that had the namespace before must have dropped it: the message on its way there would drop the new copy.
fn check_has_left(txn: &KvTxn<'_>, record: &NamespaceRecord, to: &GroupId) -> Result<(), Refused> {
    if txn.get(&keys::leaving_group(to, record.id))?.is_some() {
        let text = format!("NSM group {to} has not dropped its old copy of namespace {} yet", record.name);
        return refuse(AbmError::BadArgument(text));
    }
    Ok(())
}

pub(super) fn start_move(
    txn: &mut KvTxn<'_>,
    name: &NamespaceName,
    to: &GroupId,
) -> Result<AbmOutcome, Refused> {
    let record = find(txn, name)?;
    groups::usable(txn, to)?;
    if record.group == *to {
        return refuse(AbmError::BadArgument(format!("namespace {name} is in NSM group {to} already")));
    }
    check_has_left(txn, &record, to)?;
    let record = advance(txn, name, &NamespaceEvent::StartMove(to.clone()))?;
    let last: MoveId = load(txn, &keys::last_move(record.id))?.unwrap_or_default();
    // Both groups refuse what comes late of an earlier move by its number.
    save(txn, keys::last_move(record.id), &MoveId(last.0.saturating_add(1)))?;
    Ok(AbmOutcome::Namespace(record))
}

pub(super) fn finish_move(
    txn: &mut KvTxn<'_>,
    name: &NamespaceName,
    to: &GroupId,
) -> Result<AbmOutcome, Refused> {
    let record = advance(txn, name, &NamespaceEvent::EndMove(to.clone()))?;
    let from = record.group.clone();
    let record = hand_over(txn, record, to)?;
    txn.put(keys::leaving_group(&from, record.id), PRESENT);
    let message = Message::Nsm(NsmMessage::DeleteNamespace { id: record.id });
    outbox::enqueue(txn, &Destination::Group(from), &message)?;
    Ok(AbmOutcome::Namespace(record))
}

pub(super) fn abort_move(
    txn: &mut KvTxn<'_>,
    name: &NamespaceName,
    to: &GroupId,
) -> Result<AbmOutcome, Refused> {
    let record = advance(txn, name, &NamespaceEvent::EndMove(to.clone()))?;
    tell_again(txn, &record)?;
    Ok(AbmOutcome::Namespace(record))
}

/// A move that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) name: NamespaceName,
    pub(crate) namespace: NamespaceId,
    pub(crate) id: MoveId,
    pub(crate) from: GroupId,
    pub(crate) to: GroupId,
    /// The source is given up.
    pub(crate) from_lost: bool,
    /// The target is given up.
    pub(crate) to_lost: bool,
}

/// Moves under way, in the order of namespace ids; at most so many.
pub(crate) fn moves(store: &dyn KvRead, max: usize) -> Result<Vec<Move>, KvError> {
    let mut found = Vec::new();
    for (_, name) in scan_prefix(store, keys::MOVING, max)? {
        let name: NamespaceName = decode(&name)?;
        found.extend(move_of(store, &name)?);
    }
    Ok(found)
}

/// The move of a namespace; none when it is not being moved.
pub(crate) fn move_of(store: &dyn KvRead, name: &NamespaceName) -> Result<Option<Move>, KvError> {
    let Some(record) = load::<NamespaceRecord>(store, &keys::namespace(name))? else { return Ok(None) };
    let NamespaceState::Moving { to } = record.state else { return Ok(None) };
    let Some(id) = load(store, &keys::last_move(record.id))? else {
        return Err(damaged(format!("the move of namespace {name} has no number")));
    };
    Ok(Some(Move {
        namespace: record.id,
        id,
        from_lost: groups::is_lost(store, &record.group)?,
        to_lost: groups::is_lost(store, &to)?,
        name: record.name,
        from: record.group,
        to,
    }))
}

/// The group has taken it on.
pub(super) fn created(txn: &mut KvTxn<'_>, group: &GroupId, id: NamespaceId) -> Result<(), Refused> {
    // A lost group takes nothing on; and one that it was taken from has no say any more.
    if let Some(mut record) = record_of(txn, id)?.filter(|record| record.group == *group)
        && !groups::is_lost(txn, group)?
        && let Some(state) = lifecycle::namespace(&record.state, &NamespaceEvent::Created)
    {
        record.state = state;
        put(txn, &record)?;
    }
    Ok(())
}

/// The group has dropped it: the devices drop its keys, then the record goes.
pub(super) fn removed(txn: &mut KvTxn<'_>, group: &GroupId, id: NamespaceId) -> Result<(), Refused> {
    txn.delete(keys::leaving_group(group, id));
    let Some(record) = record_of(txn, id)? else { return Ok(()) };
    if record.group == *group && record.state == NamespaceState::Removing {
        walks::start(txn, Walk::Bury(id))?;
    }
    Ok(())
}

/// No device has anything of it any more, or knows that it has to go.
pub(super) fn forget(txn: &mut KvTxn<'_>, id: NamespaceId) -> Result<(), KvError> {
    let Some(record) = record_of(txn, id)? else { return Ok(()) };
    txn.delete(keys::namespace(&record.name));
    txn.delete(keys::namespace_by_id(id));
    txn.delete(keys::last_move(id));
    txn.delete(keys::survey(id));
    txn.delete(keys::user_of_preset(&record.preset, id));
    txn.add(keys::group_load(&record.group), -1)?;
    revisions::bump(txn, Kind::Namespaces)
}

pub(super) fn delivered_osds(store: &(impl KvRead + ?Sized), id: NamespaceId) -> Result<Vec<OsdId>, KvError> {
    let links = links::of_namespace(store, id)?.into_iter();
    Ok(links.filter(|(_, state)| *state != LinkState::Adding).map(|(osd, _)| osd).collect())
}

pub(super) fn list(
    store: &(impl KvRead + ?Sized),
    range: &RangeQuery,
) -> Result<Page<NamespaceRecord>, KvError> {
    page(store, keys::NAMESPACES, range, |_, value| decode(value).map(Some))
}

/// Can a namespace be written to?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// Some policy of its preset can be met by OSDs that are fully linked.
    Writable,
    /// Messages are still under way that may change that.
    Waiting,
    /// Nothing is under way: it stays as it is until OSDs are added.
    Settled,
}

/// How far a namespace has come; none when there is none (any more).
pub(crate) fn readiness(
    store: &dyn KvRead,
    name: &NamespaceName,
) -> Result<Option<(NamespaceRecord, Readiness)>, KvError> {
    let Some(record) = load::<NamespaceRecord>(store, &keys::namespace(name))? else { return Ok(None) };
    let mut nodes: BTreeMap<NodeId, u32> = BTreeMap::new();
    let mut waiting = record.state == NamespaceState::Creating || walks::is_linking(store, record.id)?;
    for (osd, state) in links::of_namespace(store, record.id)? {
        match state {
            LinkState::Adding | LinkState::OnDevice => waiting = true,
            LinkState::Active => {
                if let Some(registered) = osds::by_id(store, osd)? {
                    *nodes.entry(registered.info.place.node().clone()).or_default() += 1;
                }
            }
            LinkState::Decommissioning { .. } | LinkState::Repairing | LinkState::Draining => {}
        }
    }
    let preset = presets::load_stored(store, &record.preset)?;
    let satisfiable = preset.is_some_and(|stored| {
        stored.preset.policies.iter().any(|policy| {
            // Σ over nodes of min(x, OSDs there) >= c (features §2.3).
            let places: u64 = nodes.values().map(|count| u64::from(*count.min(&policy.max_per_node()))).sum();
            usize::try_from(places).is_ok_and(|places| places >= policy.min_fragments())
        })
    });
    let readiness = if record.state == NamespaceState::Active && satisfiable {
        Readiness::Writable
    } else if waiting {
        Readiness::Waiting
    } else {
        Readiness::Settled
    };
    Ok(Some((record, readiness)))
}
