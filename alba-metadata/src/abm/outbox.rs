//! Queues of messages to NSM groups and OSDs: numbered from 0 per destination, delivered in order, at least once; the
//! destination keeps the next number, so each has its effect once (features §1.5).

use std::ops::Bound;

use alba_core::ids::{GroupId, MessageId, NamespaceId};
use alba_core::kv::{KvError, KvRead};
use alba_core::wire::rpc::abm::{Destination, Message, OsdMessage, OsdState};
use alba_core::wire::rpc::nsm::NsmMessage;

use super::{groups, keys, letters, osds};
use crate::txn::{KvTxn, counter};
use crate::value::{damaged, decode, last_number, load, save, scan_prefix};

/// Appends a message; its number.
pub(super) fn enqueue(
    txn: &mut KvTxn<'_>,
    destination: &Destination,
    message: &Message,
) -> Result<MessageId, KvError> {
    let next = keys::next_message(destination);
    let id = load::<MessageId>(txn, &next)?.unwrap_or(MessageId::from_u32(0));
    save(txn, keys::message(destination, id), message)?;
    save(txn, next, &id.next().ok_or_else(|| damaged("message ids are used up"))?)?;
    txn.add(keys::queue_length(destination), 1)?;
    Ok(id)
}

/// The oldest messages.
pub(super) fn oldest(
    store: &(impl KvRead + ?Sized),
    destination: &Destination,
    max: usize,
) -> Result<Vec<(MessageId, Message)>, KvError> {
    parse(scan_prefix(store, &keys::messages(destination), max)?)
}

fn parse(entries: Vec<alba_core::kv::Entry>) -> Result<Vec<(MessageId, Message)>, KvError> {
    entries
        .into_iter()
        .map(|(key, value)| Ok((MessageId::new(last_number(&key)?).map_err(damaged)?, decode(&value)?)))
        .collect()
}

/// Takes out the messages up to and including `upto`.
pub(super) fn take(
    txn: &mut KvTxn<'_>,
    destination: &Destination,
    upto: MessageId,
) -> Result<Vec<(MessageId, Message)>, KvError> {
    let first = keys::messages(destination);
    let last = keys::message(destination, upto);
    let taken = parse(txn.scan(Bound::Included(&first), Bound::Included(&last), false, usize::MAX)?)?;
    for (id, _) in &taken {
        txn.delete(keys::message(destination, *id));
        txn.add(keys::queue_length(destination), -1)?;
    }
    Ok(taken)
}

/// Takes out one message that will never be delivered.
pub(super) fn forget(txn: &mut KvTxn<'_>, destination: &Destination, number: u64) -> Result<(), KvError> {
    let key = keys::message(destination, MessageId::new(number).map_err(damaged)?);
    if txn.get(&key)?.is_some() {
        txn.delete(key);
        txn.add(keys::queue_length(destination), -1)?;
    }
    Ok(())
}

/// Forgets an empty queue; its destination is gone and never comes back.
pub(super) fn forget_queue(txn: &mut KvTxn<'_>, destination: &Destination) -> Result<(), KvError> {
    txn.delete(keys::next_message(destination));
    letters::forget_all(txn, destination)
}

/// A queue's messages as the deliverer needs them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outgoing {
    /// The oldest, in order.
    pub(crate) messages: Vec<(MessageId, Message)>,
    /// How many of them come before one that has to wait behind a dead letter of its namespace.
    pub(crate) free: usize,
    /// The group is lost: it counts as delivered what it would never get.
    pub(crate) lost: bool,
    /// The OSD is gone: nothing goes there.
    pub(crate) gone: bool,
}

/// What to deliver next.
pub(crate) fn outgoing(
    store: &dyn KvRead,
    destination: &Destination,
    max: usize,
) -> Result<Outgoing, KvError> {
    let messages = oldest(store, destination, max)?;
    let mut free = 0;
    for (_, message) in &messages {
        if let Some(namespace) = namespace_of(message)
            && letters::is_parked(store, destination, namespace)?
        {
            break;
        }
        free += 1;
    }
    let (lost, gone) = match destination {
        Destination::Group(id) => (groups::is_lost(store, id)?, false),
        Destination::Osd(id) => {
            (false, osds::by_id(store, *id)?.is_none_or(|osd| osd.state == OsdState::Purging))
        }
    };
    Ok(Outgoing { messages, free, lost, gone })
}

/// The number of the oldest message that was not marked delivered, and that of the next one to be sent: the same when there
/// is none.
pub(crate) fn numbers(
    store: &dyn KvRead,
    destination: &Destination,
) -> Result<(MessageId, MessageId), KvError> {
    let next = load(store, &keys::next_message(destination))?.unwrap_or(MessageId::from_u32(0));
    let oldest = oldest(store, destination, 1)?.first().map(|(id, _)| *id);
    Ok((oldest.unwrap_or(next), next))
}

/// The namespace a message is about.
pub(super) fn namespace_of(message: &Message) -> Option<NamespaceId> {
    match message {
        Message::Nsm(
            NsmMessage::CreateNamespace { id: namespace, .. }
            | NsmMessage::DeleteNamespace { id: namespace }
            | NsmMessage::LinkOsd { namespace, .. }
            | NsmMessage::UnlinkOsd { namespace, .. }
            | NsmMessage::UpdatePreset { namespace, .. }
            | NsmMessage::UpdateOsd { namespace, .. }
            | NsmMessage::RecoverNamespace { id: namespace, .. }
            | NsmMessage::SetTrashed { namespace, .. }
            | NsmMessage::SetOsdUse { namespace, .. },
        )
        | Message::Osd(
            OsdMessage::AddNamespace { id: namespace, .. } | OsdMessage::RemoveNamespace { id: namespace },
        ) => Some(*namespace),
        Message::Osd(OsdMessage::Identify { .. }) | Message::Skip => None,
    }
}

/// Destinations of a table of counters, and what they say.
pub(super) fn counts(
    store: &(impl KvRead + ?Sized),
    table: &[u8],
) -> Result<Vec<(Destination, u64)>, KvError> {
    let entries = scan_prefix(store, table, usize::MAX)?;
    entries
        .into_iter()
        .map(|(key, _)| {
            let destination = keys::parse_destination(key.get(1..).unwrap_or_default())?;
            Ok((destination, counter(store, &key)?))
        })
        .collect()
}

/// The group that a queue leads to.
pub(super) fn group_of(destination: &Destination) -> Option<&GroupId> {
    match destination {
        Destination::Group(id) => Some(id),
        Destination::Osd(_) => None,
    }
}
