//! Dead letters: messages that their destination refuses for good.
//!
//! A refused message must not hold up all others of its destination, and must not be lost. So it moves to this list, and
//! its place in the queue is taken by one without effect, because destinations count. *Order matters within a namespace at
//! a destination and nowhere else* (all but `Identify` are about one): while a namespace has a dead letter at a destination,
//! its later messages there follow it to the list, in their order, and come back together with it. What follows the
//! delivery of a message does not happen while it is here: the namespace stays in a state that says so.

use alba_core::ids::{MessageId, NamespaceId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::range::Page;
use alba_core::wire::rpc::abm::{AbmError, AbmOutcome, DeadLetter, Destination, Message};

use super::{Refused, delivered, keys, osds, outbox, refuse};
use crate::listing::page;
use crate::txn::KvTxn;
use crate::value::{PRESENT, damaged, decode, last_number, load, save, scan_prefix};

/// Longest reason kept, in characters.
const REASON_MAX: usize = 500;

/// Moves a queued message to the list.
pub(super) fn refused(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    destination: &Destination,
    id: MessageId,
    reason: &str,
) -> Result<AbmOutcome, Refused> {
    let key = keys::message(destination, id);
    match load::<Message>(txn, &key)? {
        // A repeat, or delivered meanwhile.
        None | Some(Message::Skip) => {}
        Some(message) => {
            if let Some(namespace) = outbox::namespace_of(&message) {
                txn.put(keys::letter_of_namespace(destination, namespace, id), PRESENT);
            }
            let reason = reason.chars().take(REASON_MAX).collect();
            save(txn, keys::letter(destination, id), &DeadLetter { id, message, reason, since: now.0 })?;
            txn.add(keys::letter_count(destination), 1)?;
            save(txn, key, &Message::Skip)?;
        }
    }
    Ok(AbmOutcome::Done)
}

fn remove(txn: &mut KvTxn<'_>, destination: &Destination, letter: &DeadLetter) -> Result<(), KvError> {
    txn.delete(keys::letter(destination, letter.id));
    if let Some(namespace) = outbox::namespace_of(&letter.message) {
        txn.delete(keys::letter_of_namespace(destination, namespace, letter.id));
    }
    txn.add(keys::letter_count(destination), -1)
}

fn find(txn: &KvTxn<'_>, destination: &Destination, id: MessageId) -> Result<DeadLetter, Refused> {
    match load(txn, &keys::letter(destination, id))? {
        Some(letter) => Ok(letter),
        None => refuse(AbmError::BadArgument(format!("there is no dead letter {id} of this destination"))),
    }
}

/// Back to the end of the queue, with all of its namespace: one alone would overtake or be overtaken.
pub(super) fn retry(
    txn: &mut KvTxn<'_>,
    destination: &Destination,
    id: MessageId,
) -> Result<AbmOutcome, Refused> {
    let letter = find(txn, destination, id)?;
    let mut letters = Vec::new();
    match outbox::namespace_of(&letter.message) {
        None => letters.push(letter),
        Some(namespace) => {
            let found = keys::letters_of_namespace(destination, namespace);
            for (key, _) in scan_prefix(txn, &found, usize::MAX)? {
                letters.push(find(txn, destination, MessageId::new(last_number(&key)?).map_err(damaged)?)?);
            }
        }
    }
    for letter in letters {
        remove(txn, destination, &letter)?;
        let now_id = outbox::enqueue(txn, destination, &letter.message)?;
        super::links::renumbered(txn, destination, &letter.message, now_id)?;
    }
    Ok(AbmOutcome::Done)
}

pub(super) fn drop_one(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    destination: &Destination,
    id: MessageId,
    as_delivered: bool,
) -> Result<AbmOutcome, Refused> {
    let letter = find(txn, destination, id)?;
    remove(txn, destination, &letter)?;
    if as_delivered {
        delivered(txn, now, destination, id, &letter.message)?;
    }
    Ok(AbmOutcome::Done)
}

/// The destination is gone.
pub(super) fn forget_all(txn: &mut KvTxn<'_>, destination: &Destination) -> Result<(), KvError> {
    debug_assert!(match destination {
        Destination::Osd(id) => osds::by_id(txn, *id)?.is_none(),
        Destination::Group(_) => false,
    });
    for (_, value) in scan_prefix(txn, &keys::letters(destination), usize::MAX)? {
        remove(txn, destination, &decode(&value)?)?;
    }
    Ok(())
}

/// Must messages of the namespace wait?
pub(super) fn is_parked(
    store: &(impl KvRead + ?Sized),
    destination: &Destination,
    namespace: NamespaceId,
) -> Result<bool, KvError> {
    Ok(!scan_prefix(store, &keys::letters_of_namespace(destination, namespace), 1)?.is_empty())
}

pub(super) fn list(
    store: &(impl KvRead + ?Sized),
    destination: &Destination,
    after: Option<MessageId>,
    max: u32,
) -> Result<Page<DeadLetter>, KvError> {
    let range = osds::after_number(after.map(MessageId::get), max);
    page(store, &keys::letters(destination), &range, |_, value| decode(value).map(Some))
}
