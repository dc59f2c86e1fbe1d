//! Links between namespaces and OSDs. What a link should be follows from the states of both ends; what must be told of it
//! goes into the outbox.

use alba_core::ids::{MessageId, NamespaceId, OsdId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::preset::OsdSet;
use alba_core::wire::rpc::abm::{
    AbmError, Destination, Message, NamespaceRecord, NamespaceState, OsdInfo, OsdMessage, OsdState, WorkItem,
};
use alba_core::wire::rpc::nsm::{NsmMessage, OsdUse};

use super::lifecycle::{self, LinkEvent, LinkState};
use super::{Refused, keys, osds, outbox, presets, record_of, refuse, work};
use crate::txn::KvTxn;
use crate::value::{PRESENT, damaged, decode, last_number, load, save, scan_prefix};

/// Makes, loosens or restores a link as the states of the two want it now.
pub(super) fn reconcile(txn: &mut KvTxn<'_>, namespace: NamespaceId, osd: OsdId) -> Result<(), KvError> {
    let Some(record) = record_of(txn, namespace)? else { return Ok(()) };
    if record.state == NamespaceState::Removing {
        return Ok(());
    }
    let Some(registered) = osds::by_id(txn, osd)? else { return Ok(()) };
    let state: Option<LinkState> = load(txn, &keys::link(namespace, osd))?;
    match (registered.state, state) {
        (OsdState::Active, None) => add(txn, &record, osd),
        (OsdState::Active, Some(LinkState::Draining)) => {
            set(txn, namespace, osd, LinkState::OnDevice)?;
            tell_link(txn, &record, osd, &registered.info)
        }
        (OsdState::Draining, Some(LinkState::OnDevice | LinkState::Active)) => {
            set(txn, namespace, osd, LinkState::Draining)?;
            tell_draining(txn, &record, osd)
        }
        (
            OsdState::Decommissioning | OsdState::Purging,
            Some(LinkState::OnDevice | LinkState::Active | LinkState::Draining),
        ) => {
            let unlink = tell_unlink(txn, &record, osd)?;
            set(txn, namespace, osd, LinkState::Decommissioning { unlink })
        }
        // It will never hear of the namespace, and nothing can be there.
        (OsdState::Purging, Some(LinkState::Adding)) => {
            remove(txn, namespace, osd);
            Ok(())
        }
        // A link of a decommissioning OSD that is under way to it goes when it has arrived.
        _ => Ok(()),
    }
}

/// Makes a link, if the preset wants it, and tells the device.
fn add(txn: &mut KvTxn<'_>, namespace: &NamespaceRecord, osd: OsdId) -> Result<(), KvError> {
    let Some(stored) = presets::load_stored(txn, &namespace.preset)? else { return Ok(()) };
    if let OsdSet::Explicit(ids) = &stored.preset.osds
        && !ids.contains(&osd)
    {
        return Ok(());
    }
    set(txn, namespace.id, osd, LinkState::Adding)?;
    txn.put(keys::link_back(osd, namespace.id), PRESENT);
    let message = Message::Osd(OsdMessage::AddNamespace {
        id: namespace.id,
        name: namespace.name.clone(),
        preset_name: namespace.preset.clone(),
        preset: Box::new(stored.preset),
    });
    outbox::enqueue(txn, &Destination::Osd(osd), &message).map(drop)
}

fn set(txn: &mut KvTxn<'_>, namespace: NamespaceId, osd: OsdId, state: LinkState) -> Result<(), KvError> {
    save(txn, keys::link(namespace, osd), &state)
}

fn remove(txn: &mut KvTxn<'_>, namespace: NamespaceId, osd: OsdId) {
    txn.delete(keys::link(namespace, osd));
    txn.delete(keys::link_back(osd, namespace));
}

fn tell_link(
    txn: &mut KvTxn<'_>,
    namespace: &NamespaceRecord,
    osd: OsdId,
    info: &OsdInfo,
) -> Result<(), KvError> {
    let info = Box::new(info.clone());
    let message = Message::Nsm(NsmMessage::LinkOsd { namespace: namespace.id, osd, info });
    outbox::enqueue(txn, &Destination::Group(namespace.group.clone()), &message).map(drop)
}

fn tell_unlink(txn: &mut KvTxn<'_>, namespace: &NamespaceRecord, osd: OsdId) -> Result<MessageId, KvError> {
    let message = Message::Nsm(NsmMessage::UnlinkOsd { namespace: namespace.id, osd });
    outbox::enqueue(txn, &Destination::Group(namespace.group.clone()), &message)
}

/// What is there still counts; nothing new goes there.
fn tell_draining(txn: &mut KvTxn<'_>, record: &NamespaceRecord, osd: OsdId) -> Result<(), KvError> {
    let message = Message::Nsm(NsmMessage::SetOsdUse { namespace: record.id, osd, how: OsdUse::Draining });
    outbox::enqueue(txn, &Destination::Group(record.group.clone()), &message).map(drop)
}

/// The record of a namespace whose group has to hear things.
fn listening(store: &KvTxn<'_>, namespace: NamespaceId) -> Result<Option<NamespaceRecord>, KvError> {
    Ok(record_of(store, namespace)?.filter(|record| record.state != NamespaceState::Removing))
}

/// The group hears where the OSD is now. One that takes no new fragments must not get them by that.
pub(super) fn tell_address(txn: &mut KvTxn<'_>, namespace: NamespaceId, osd: OsdId) -> Result<(), KvError> {
    let Some(record) = listening(txn, namespace)? else { return Ok(()) };
    let Some(registered) = osds::by_id(txn, osd)? else { return Ok(()) };
    // A link still on its way to the device will carry the new address by itself.
    if matches!(load(txn, &keys::link(namespace, osd))?, None | Some(LinkState::Adding)) {
        return Ok(());
    }
    let info = Box::new(registered.info);
    let message = Message::Nsm(NsmMessage::UpdateOsd { namespace, osd, info });
    outbox::enqueue(txn, &Destination::Group(record.group), &message).map(drop)
}

/// The group that owns the namespace now hears of the link as if it were new; also of an OSD that only holds old fragments,
/// because manifests name it.
pub(super) fn tell_new_group(txn: &mut KvTxn<'_>, namespace: NamespaceId, osd: OsdId) -> Result<(), KvError> {
    let Some(record) = listening(txn, namespace)? else { return Ok(()) };
    let Some(registered) = osds::by_id(txn, osd)? else { return Ok(()) };
    let Some(state) = load::<LinkState>(txn, &keys::link(namespace, osd))? else { return Ok(()) };
    match state {
        LinkState::Adding => Ok(()),
        LinkState::OnDevice | LinkState::Active => {
            set(txn, namespace, osd, LinkState::OnDevice)?;
            tell_link(txn, &record, osd, &registered.info)
        }
        LinkState::Draining => {
            tell_link(txn, &record, osd, &registered.info)?;
            tell_draining(txn, &record, osd)
        }
        // One that was moved brought along what it knows of OSDs. To call this one active, if only for a moment, could bring
        // fragments there that nobody would look for any more.
        LinkState::Repairing if record.state != NamespaceState::Recovering => {
            tell_address(txn, namespace, osd)?;
            tell_unlink(txn, &record, osd).map(drop)
        }
        LinkState::Decommissioning { .. } | LinkState::Repairing => {
            tell_link(txn, &record, osd, &registered.info)?;
            let unlink = tell_unlink(txn, &record, osd)?;
            match state {
                LinkState::Decommissioning { .. } => {
                    set(txn, namespace, osd, LinkState::Decommissioning { unlink })
                }
                _ => Ok(()),
            }
        }
    }
}

/// The namespace is gone: so is the link, and the device drops what it has of it, unless it is gone itself.
pub(super) fn bury(txn: &mut KvTxn<'_>, namespace: NamespaceId, osd: OsdId) -> Result<(), KvError> {
    remove(txn, namespace, osd);
    match osds::by_id(txn, osd)? {
        Some(registered) if registered.state != OsdState::Purging => {
            let message = Message::Osd(OsdMessage::RemoveNamespace { id: namespace });
            outbox::enqueue(txn, &Destination::Osd(osd), &message).map(drop)
        }
        _ => Ok(()),
    }
}

/// The device knows the namespace: now the group may send fragments there.
pub(super) fn on_device(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    namespace: NamespaceId,
    osd: OsdId,
) -> Result<(), Refused> {
    let Some(registered) = osds::by_id(txn, osd)? else { return Ok(()) };
    let state: Option<LinkState> = load(txn, &keys::link(namespace, osd))?;
    let Some(next) = state.and_then(|state| lifecycle::link(state, LinkEvent::OnDevice)) else {
        return Ok(());
    };
    match registered.state {
        state if state.is_leaving() => {
            remove(txn, namespace, osd);
            if state != OsdState::Purging {
                work::add(txn, now, &WorkItem::CleanupOsdNamespace { osd, namespace })?;
            }
        }
        OsdState::Draining => set(txn, namespace, osd, LinkState::Draining)?,
        _ => {
            set(txn, namespace, osd, next)?;
            if let Some(record) = listening(txn, namespace)? {
                tell_link(txn, &record, osd, &registered.info)?;
            }
        }
    }
    Ok(())
}

/// The device takes nothing of the namespace any more: now all that it holds of it may be deleted, by agents and in steps. Not
/// before: the message that makes the namespace known there may have been under way in the same queue.
pub(super) fn unmarked(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    namespace: NamespaceId,
    osd: OsdId,
) -> Result<(), Refused> {
    match osds::by_id(txn, osd)? {
        Some(registered) if registered.state != OsdState::Purging => {
            work::add(txn, now, &WorkItem::CleanupOsdNamespace { osd, namespace }).map_err(Into::into)
        }
        _ => Ok(()),
    }
}

/// The group knows the link.
pub(super) fn linked(txn: &mut KvTxn<'_>, namespace: NamespaceId, osd: OsdId) -> Result<(), Refused> {
    advance(txn, namespace, osd, LinkEvent::Linked)?;
    Ok(())
}

/// The group knows that no more fragments go there: those that are there have to leave, if the OSD does.
pub(super) fn unlinked(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    namespace: NamespaceId,
    osd: OsdId,
    message: MessageId,
) -> Result<(), Refused> {
    if advance(txn, namespace, osd, LinkEvent::Unlinked(message))? {
        work::add(txn, now, &WorkItem::WaitUntilRepaired { osd, namespace })?;
    }
    Ok(())
}

fn advance(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    osd: OsdId,
    event: LinkEvent,
) -> Result<bool, KvError> {
    let state: Option<LinkState> = load(txn, &keys::link(namespace, osd))?;
    match state.and_then(|state| lifecycle::link(state, event)) {
        Some(next) => set(txn, namespace, osd, next).map(|()| true),
        None => Ok(false),
    }
}

/// No object of the namespace has a fragment on the OSD any more: the link goes.
pub(super) fn repaired(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    namespace: NamespaceId,
    osd: OsdId,
) -> Result<(), Refused> {
    match load::<LinkState>(txn, &keys::link(namespace, osd))? {
        // The namespace or the OSD is gone meanwhile.
        None => return Ok(()),
        Some(LinkState::Repairing) => {}
        Some(_) => {
            let text = format!("namespace {namespace} has not let go of OSD {osd} yet");
            return refuse(AbmError::BadArgument(text));
        }
    }
    remove(txn, namespace, osd);
    work::add(txn, now, &WorkItem::CleanupNamespaceOsd { namespace, osd })?;
    let purging = osds::by_id(txn, osd)?.is_none_or(|registered| registered.state == OsdState::Purging);
    if !purging {
        work::add(txn, now, &WorkItem::CleanupOsdNamespace { osd, namespace })?;
    }
    Ok(())
}

/// All links of a namespace.
pub(super) fn of_namespace(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
) -> Result<Vec<(OsdId, LinkState)>, KvError> {
    let entries = scan_prefix(store, &keys::links_of_namespace(namespace), usize::MAX)?;
    entries
        .into_iter()
        .map(|(key, value)| Ok((OsdId::new(last_number(&key)?).map_err(damaged)?, decode(&value)?)))
        .collect()
}

/// Is the OSD linked to any namespace?
pub(super) fn any_of_osd(store: &(impl KvRead + ?Sized), osd: OsdId) -> Result<bool, KvError> {
    Ok(!scan_prefix(store, &keys::links_of_osd(osd), 1)?.is_empty())
}

/// A message has another number now: a link that waits for its effect waits for that.
pub(super) fn renumbered(
    txn: &mut KvTxn<'_>,
    destination: &Destination,
    message: &Message,
    id: MessageId,
) -> Result<(), KvError> {
    let Message::Nsm(NsmMessage::UnlinkOsd { namespace, osd }) = message else { return Ok(()) };
    let owner = record_of(txn, *namespace)?.map(|record| record.group);
    let state: Option<LinkState> = load(txn, &keys::link(*namespace, *osd))?;
    if let Some(LinkState::Decommissioning { .. }) = state
        && owner.as_ref() == outbox::group_of(destination)
    {
        // Also when a later one is behind it: they come back in order, and the last one's number stays.
        set(txn, *namespace, *osd, LinkState::Decommissioning { unlink: id })?;
    }
    Ok(())
}
