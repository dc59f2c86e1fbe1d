//! Queues of messages to NSM groups and OSDs: numbered from 0 per destination, delivered in order, at least once; the
//! destination keeps the next number, so each has its effect once (features §1.5).

use alba_core::ids::MessageId;
use alba_core::kv::{KvError, KvRead};
use alba_core::wire::rpc::abm::{Destination, Message};

use super::keys;
use crate::txn::{KvTxn, counter};
use crate::value::{damaged, decode, last_number, load, save, scan_prefix};

/// Appends a message.
pub(super) fn enqueue(
    txn: &mut KvTxn<'_>,
    destination: &Destination,
    message: &Message,
) -> Result<(), KvError> {
    let next = keys::next_message(destination);
    let id = load::<MessageId>(txn, &next)?.unwrap_or(MessageId::from_u32(0));
    save(txn, keys::message(destination, id), message)?;
    save(txn, next, &id.next().ok_or_else(|| damaged("message ids are used up"))?)?;
    txn.add(keys::queue_length(destination), 1)
}

/// The oldest messages.
pub(super) fn oldest(
    store: &(impl KvRead + ?Sized),
    destination: &Destination,
    max: usize,
) -> Result<Vec<(MessageId, Message)>, KvError> {
    let entries = scan_prefix(store, &keys::messages(destination), max)?;
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
) -> Result<Vec<Message>, KvError> {
    let mut taken = Vec::new();
    for (id, message) in oldest(txn, destination, usize::MAX)? {
        if id > upto {
            break;
        }
        txn.delete(keys::message(destination, id));
        txn.add(keys::queue_length(destination), -1)?;
        taken.push(message);
    }
    Ok(taken)
}

/// Destinations with messages, and how many.
pub(super) fn queues(store: &(impl KvRead + ?Sized)) -> Result<Vec<(Destination, u64)>, KvError> {
    let entries = scan_prefix(store, keys::QUEUE_LENGTHS, usize::MAX)?;
    entries
        .into_iter()
        .map(|(key, _)| {
            let destination = keys::parse_destination(key.get(1..).unwrap_or_default())?;
            Ok((destination, counter(store, &key)?))
        })
        .collect()
}
