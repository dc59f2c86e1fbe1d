//! Namespaces, and their links to OSDs (features §1.3).

use std::collections::BTreeMap;

use alba_core::ids::{NamespaceId, NamespaceName, NodeId, OsdId, PresetName};
use alba_core::kv::{KvError, KvRead};
use alba_core::preset::{OsdSet, Preset};
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{
    AbmError, AbmOutcome, Destination, Message, NamespaceRecord, NamespaceState, OsdInfo, OsdMessage,
};
use alba_core::wire::rpc::nsm::NsmMessage;

use super::lifecycle::{self, LinkEvent, LinkState, NamespaceEvent};
use super::{Refused, groups, keys, osds, outbox, presets, record_of, refuse};
use crate::listing::page;
use crate::txn::KvTxn;
use crate::value::{PRESENT, damaged, decode, last_number, load, save, scan_prefix};

pub(super) fn create(
    txn: &mut KvTxn<'_>,
    name: &NamespaceName,
    preset: Option<&PresetName>,
) -> Result<AbmOutcome, Refused> {
    if txn.get(&keys::namespace(name))?.is_some() {
        return refuse(AbmError::NamespaceExists(name.clone()));
    }
    let preset_name = match preset {
        Some(name) => name.clone(),
        None => match presets::default_name(txn)? {
            Some(name) => name,
            None => return refuse(AbmError::BadArgument("there is no default preset; name one".to_owned())),
        },
    };
    let Some(preset) = presets::find(txn, &preset_name)? else {
        return refuse(AbmError::PresetUnknown(preset_name));
    };
    // Least loaded; of equals the first by name.
    let group = groups(txn)?.into_iter().filter(|group| !group.lost).min_by_key(|group| group.namespaces);
    let Some(group) = group else { return refuse(AbmError::NoGroup) };
    let id = load::<NamespaceId>(txn, keys::NEXT_NAMESPACE)?.unwrap_or(NamespaceId::from_u32(0));
    save(txn, keys::NEXT_NAMESPACE, &id.next().ok_or_else(|| damaged("namespace ids are used up"))?)?;
    let record = NamespaceRecord {
        id,
        name: name.clone(),
        group: group.id.clone(),
        state: NamespaceState::Creating,
        preset: preset_name.clone(),
    };
    save(txn, keys::namespace(name), &record)?;
    save(txn, keys::namespace_by_id(id), name)?;
    txn.put(keys::user_of_preset(&preset_name, id), PRESENT);
    txn.add(keys::group_load(&group.id), 1)?;
    let message = Message::Nsm(NsmMessage::CreateNamespace {
        id,
        name: name.clone(),
        preset: Box::new(preset.preset.clone()),
        preset_version: preset.version,
    });
    outbox::enqueue(txn, &Destination::Group(group.id), &message)?;
    let active = osds::active(txn)?;
    let targets = match &preset.preset.osds {
        OsdSet::All => active,
        OsdSet::Explicit(ids) => active.into_iter().filter(|id| ids.contains(id)).collect(),
    };
    for osd in targets {
        start_link(txn, &record, &preset.preset, osd)?;
    }
    Ok(AbmOutcome::Namespace(record))
}

/// Makes a link and tells the device.
pub(super) fn start_link(
    txn: &mut KvTxn<'_>,
    namespace: &NamespaceRecord,
    preset: &Preset,
    osd: OsdId,
) -> Result<(), KvError> {
    save(txn, keys::link(namespace.id, osd), &LinkState::Adding)?;
    txn.put(keys::link_back(osd, namespace.id), PRESENT);
    let message = Message::Osd(OsdMessage::AddNamespace {
        id: namespace.id,
        name: namespace.name.clone(),
        preset_name: namespace.preset.clone(),
        preset: Box::new(preset.clone()),
    });
    outbox::enqueue(txn, &Destination::Osd(osd), &message)
}

/// Tells the group of a namespace that fragments may go to an OSD, and where it is.
pub(super) fn tell_group_of_link(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    osd: OsdId,
    info: &OsdInfo,
) -> Result<(), KvError> {
    let Some(record) = record_of(txn, namespace)? else { return Ok(()) };
    if record.state == NamespaceState::Removing {
        return Ok(());
    }
    let message = Message::Nsm(NsmMessage::LinkOsd { namespace, osd, info: Box::new(info.clone()) });
    outbox::enqueue(txn, &Destination::Group(record.group), &message)
}

pub(super) fn delete(txn: &mut KvTxn<'_>, name: &NamespaceName) -> Result<AbmOutcome, Refused> {
    let key = keys::namespace(name);
    let Some(mut record) = load::<NamespaceRecord>(txn, &key)? else {
        return refuse(AbmError::NamespaceUnknown(name.clone()));
    };
    let Some(state) = lifecycle::namespace(record.state, NamespaceEvent::Delete) else {
        return refuse(AbmError::NamespaceNotActive(name.clone()));
    };
    record.state = state;
    save(txn, key, &record)?;
    let message = Message::Nsm(NsmMessage::DeleteNamespace { id: record.id });
    outbox::enqueue(txn, &Destination::Group(record.group), &message)?;
    Ok(AbmOutcome::Done)
}

/// The group has taken it on.
pub(super) fn created(txn: &mut KvTxn<'_>, id: NamespaceId) -> Result<(), Refused> {
    if let Some(mut record) = record_of(txn, id)?
        && let Some(state) = lifecycle::namespace(record.state, NamespaceEvent::Created)
    {
        record.state = state;
        save(txn, keys::namespace(&record.name), &record)?;
    }
    Ok(())
}

/// The group has dropped it: the record goes, and the devices drop its keys.
pub(super) fn removed(txn: &mut KvTxn<'_>, id: NamespaceId) -> Result<(), Refused> {
    let Some(record) = record_of(txn, id)? else { return Ok(()) };
    for (osd, _) in links(txn, id)? {
        txn.delete(keys::link(id, osd));
        txn.delete(keys::link_back(osd, id));
        let message = Message::Osd(OsdMessage::RemoveNamespace { id });
        outbox::enqueue(txn, &Destination::Osd(osd), &message)?;
    }
    txn.delete(keys::namespace(&record.name));
    txn.delete(keys::namespace_by_id(id));
    txn.delete(keys::user_of_preset(&record.preset, id));
    txn.add(keys::group_load(&record.group), -1)?;
    Ok(())
}

/// The device knows the namespace: now the group may send fragments there.
pub(super) fn on_device(txn: &mut KvTxn<'_>, id: NamespaceId, osd: OsdId) -> Result<(), Refused> {
    if advance(txn, id, osd, LinkEvent::DeviceHasIt)?
        && let Some(info) = osds::info(txn, osd)?
    {
        tell_group_of_link(txn, id, osd, &info)?;
    }
    Ok(())
}

/// The group knows the link.
pub(super) fn linked(txn: &mut KvTxn<'_>, id: NamespaceId, osd: OsdId) -> Result<(), Refused> {
    advance(txn, id, osd, LinkEvent::GroupHasIt)?;
    Ok(())
}

fn advance(txn: &mut KvTxn<'_>, id: NamespaceId, osd: OsdId, event: LinkEvent) -> Result<bool, KvError> {
    let key = keys::link(id, osd);
    match load::<LinkState>(txn, &key)?.and_then(|state| lifecycle::link(state, event)) {
        Some(state) => save(txn, key, &state).map(|()| true),
        None => Ok(false),
    }
}

fn links(store: &(impl KvRead + ?Sized), id: NamespaceId) -> Result<Vec<(OsdId, LinkState)>, KvError> {
    let entries = scan_prefix(store, &keys::links_of_namespace(id), usize::MAX)?;
    entries
        .into_iter()
        .map(|(key, value)| Ok((OsdId::new(last_number(&key)?).map_err(damaged)?, decode(&value)?)))
        .collect()
}

pub(super) fn delivered_osds(store: &(impl KvRead + ?Sized), id: NamespaceId) -> Result<Vec<OsdId>, KvError> {
    let links = links(store, id)?.into_iter();
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
    let mut waiting = record.state == NamespaceState::Creating;
    for (osd, state) in links(store, record.id)? {
        if state != LinkState::Active {
            waiting = true;
        } else if let Some(info) = osds::info(store, osd)? {
            *nodes.entry(info.place.node().clone()).or_default() += 1;
        }
    }
    let preset = presets::find(store, &record.preset)?;
    let satisfiable = preset.is_some_and(|record| {
        record.preset.policies.iter().any(|policy| {
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
