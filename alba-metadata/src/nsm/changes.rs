//! Changes of a namespace while it is copied elsewhere: every key that changed after it was covered, in the order of the
//! last change, and the digest of all covered rows as they are now.
//!
//! A key is noted once, with its last change: the notes are never more than the keys. When there are too many all the
//! same, they are dropped and the move has to begin again; no write is ever refused for them.

use alba_core::ids::NamespaceId;
use alba_core::kv::{KvError, KvRead};
use alba_core::wire::rpc::nsm::{Cursor, Digest, MAX_PAGE_BYTES, MovePage};

use super::access::{self, Moving, Outgoing, Stage, State};
use super::keys::{self, Table};
use crate::txn::KvTxn;
use crate::value::{PRESENT, VERSION, damaged, decode, last_number, scan_prefix};

/// Most keys with a noted change: with the longest names about 2 GiB, with usual ones 100 MiB.
pub(super) const MAX_NOTED: u64 = 1 << 20;

/// Rows read from the store at a time.
const STEP: usize = 256;

/// The notes themselves are not part of what is copied.
fn is_copied(key: &[u8]) -> bool {
    let notes = [Table::Changes.letter(), Table::ChangedKeys.letter()];
    key.first().is_some_and(|letter| !notes.contains(letter))
}

/// Keys beyond the notes' own, of the bytes that name a namespace.
fn prefix_len() -> usize {
    keys::all_of(NamespaceId::from_u32(0)).len()
}

/// The hash of a row: the first 16 bytes of BLAKE3 over the length of the key (u32 LE), the key and the value.
fn hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    let mut sum = 0_u128;
    for byte in hasher.finalize().as_bytes().iter().take(16) {
        sum = sum << 8 | u128::from(*byte);
    }
    sum
}

pub(super) fn digest_add(digest: &mut Digest, key: &[u8], value: &[u8]) {
    digest.rows = digest.rows.wrapping_add(1);
    digest.sum = digest.sum.wrapping_add(hash(key, value));
}

fn digest_take(digest: &mut Digest, key: &[u8], value: &[u8]) {
    digest.rows = digest.rows.wrapping_sub(1);
    digest.sum = digest.sum.wrapping_sub(hash(key, value));
}

/// A row went from one value to another.
pub(super) fn digest_change(digest: &mut Digest, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
    if let Some(old) = old {
        digest_take(digest, key, old);
    }
    if let Some(new) = new {
        digest_add(digest, key, new);
    }
}

/// Notes what the current command changed in a namespace, when it is being moved away. Called once per command and
/// namespace, after the command.
pub(super) fn note(txn: &mut KvTxn<'_>, namespace: NamespaceId) -> Result<(), KvError> {
    let state = txn.common(&keys::state(namespace), decode::<State>)?;
    let Some(mut state) = state.filter(|state| state.moving.is_some()).map(|state| State::clone(&state))
    else {
        return Ok(());
    };
    let Some(Moving::Outgoing(outgoing)) = &mut state.moving else { return Ok(()) };
    if outgoing.overflowed || matches!(outgoing.stage, Stage::HandedOver(_)) {
        return Ok(());
    }
    let before = outgoing.clone();
    for change in txn.changed(&keys::all_of(namespace))? {
        let key = change.key.get(prefix_len()..).unwrap_or_default();
        let covered = outgoing.covered.as_ref().is_none_or(|covered| key <= covered.as_slice());
        if !is_copied(key) || !covered || change.old == change.new {
            continue;
        }
        digest_change(&mut outgoing.digest, key, change.old.as_deref(), change.new.as_deref());
        note_key(txn, namespace, outgoing, key)?;
    }
    if outgoing.noted > MAX_NOTED {
        outgoing.overflowed = true;
        txn.put(keys::forgotten(namespace), PRESENT);
    }
    if *outgoing != before {
        access::save_state(txn, namespace, &state)?;
    }
    Ok(())
}

fn note_key(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    outgoing: &mut Outgoing,
    key: &[u8],
) -> Result<(), KvError> {
    let changed = keys::changed_key(namespace, key);
    match txn.get(&changed)? {
        Some(number) => txn.delete(keys::change(namespace, last_number(&number)?)),
        None => outgoing.noted += 1,
    }
    outgoing.last_change += 1;
    let mut number = vec![VERSION];
    number.extend_from_slice(&outgoing.last_change.to_be_bytes());
    txn.put(changed, number);
    let mut value = vec![VERSION];
    value.extend_from_slice(key);
    txn.put(keys::change(namespace, outgoing.last_change), value);
    Ok(())
}

/// Rows after `after`, until they have the bytes of a page; none when there are no more.
fn rows_after(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    after: &[u8],
    mut row: impl FnMut(Vec<u8>, Vec<u8>) -> bool,
) -> Result<bool, KvError> {
    use std::ops::Bound;
    let prefix = keys::all_of(namespace);
    let end = alba_core::range::next_prefix(&prefix).ok_or_else(|| damaged("a namespace without an end"))?;
    let mut lower = [prefix.as_slice(), after].concat();
    let mut bytes = 0;
    loop {
        let found = store.scan(Bound::Excluded(&lower), Bound::Excluded(&end), false, STEP)?;
        let full = found.len() == STEP;
        for (key, value) in found {
            let rest = key.get(prefix.len()..).unwrap_or_default().to_vec();
            lower = key;
            if !is_copied(&rest) {
                continue;
            }
            bytes += rest.len() + value.len();
            if (bytes > MAX_PAGE_BYTES && bytes > rest.len() + value.len()) || !row(rest, value) {
                return Ok(true);
            }
        }
        if !full {
            return Ok(false);
        }
    }
}

/// Covers as many rows as fit a page: they can be copied, and their changes are noted from now on.
pub(super) fn cover(txn: &KvTxn<'_>, namespace: NamespaceId, outgoing: &mut Outgoing) -> Result<(), KvError> {
    let Some(covered) = &mut outgoing.covered else { return Ok(()) };
    let digest = &mut outgoing.digest;
    let mut last = covered.clone();
    let more = rows_after(txn, namespace, covered, |key, value| {
        digest_add(digest, &key, &value);
        last = key;
        true
    })?;
    outgoing.covered = more.then_some(last);
    Ok(())
}

/// What comes after `from`. Empty with the same cursor: nothing for now.
pub(super) fn page(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    outgoing: &Outgoing,
    from: &Cursor,
) -> Result<MovePage, KvError> {
    match from {
        Cursor::Rows(after) => covered_rows(store, namespace, outgoing, after),
        Cursor::Changes(number) => changed_rows(store, namespace, *number),
    }
}

fn covered_rows(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    outgoing: &Outgoing,
    after: &[u8],
) -> Result<MovePage, KvError> {
    let mut rows = Vec::new();
    let more = rows_after(store, namespace, after, |key, value| {
        let covered = outgoing.covered.as_ref().is_none_or(|covered| key <= *covered);
        if covered {
            rows.push((key, Some(value)));
        }
        covered
    })?;
    let next = match (rows.last(), more) {
        _ if !more && outgoing.covered.is_none() => Cursor::Changes(0),
        (Some((last, _)), _) => Cursor::Rows(last.clone()),
        (None, _) => Cursor::Rows(after.to_vec()),
    };
    Ok(MovePage { rows, next })
}

fn changed_rows(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    mut number: u64,
) -> Result<MovePage, KvError> {
    use std::ops::Bound;
    let prefix = keys::all_of(namespace);
    let last = keys::change(namespace, u64::MAX);
    let mut rows = Vec::new();
    let mut bytes = 0;
    loop {
        let lower = keys::change(namespace, number);
        let found = store.scan(Bound::Excluded(&lower), Bound::Included(&last), false, STEP)?;
        let full = found.len() == STEP;
        for (change, key) in found {
            let Some((&VERSION, key)) = key.split_first() else {
                return Err(damaged("a change of another format version"));
            };
            let value = store.get(&[&prefix, key].concat())?;
            let size = key.len() + value.as_ref().map_or(0, Vec::len);
            bytes += size;
            if bytes > MAX_PAGE_BYTES && bytes > size {
                return Ok(MovePage { rows, next: Cursor::Changes(number) });
            }
            rows.push((key.to_vec(), value));
            number = last_number(&change)?;
        }
        if !full {
            return Ok(MovePage { rows, next: Cursor::Changes(number) });
        }
    }
}

/// The digest of all rows as they are, made afresh: for tests and for an operator's check.
pub(super) fn recount_digest(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    upto: Option<&[u8]>,
) -> Result<Digest, KvError> {
    let prefix = keys::all_of(namespace);
    let mut digest = Digest::default();
    for (key, value) in scan_prefix(store, &prefix, usize::MAX)? {
        let key = key.get(prefix.len()..).unwrap_or_default();
        if is_copied(key) && upto.is_none_or(|upto| key <= upto) {
            digest_add(&mut digest, key, &value);
        }
    }
    Ok(digest)
}

/// Drops some of the notes of an ended move; true when there may be more to drop.
pub(super) fn forget_some(txn: &mut KvTxn<'_>, limit: usize) -> Result<bool, KvError> {
    let marked = scan_prefix(txn, keys::FORGOTTEN, 1)?;
    let Some((marker, _)) = marked.into_iter().next() else { return Ok(false) };
    let namespace = NamespaceId::new(last_number(&marker)?).map_err(damaged)?;
    let mut left = limit;
    for table in [Table::Changes, Table::ChangedKeys] {
        for (key, _) in scan_prefix(txn, &keys::table(namespace, table), left)? {
            txn.delete(key);
            left -= 1;
        }
    }
    if left > 0 {
        txn.delete(marker);
    }
    Ok(true)
}

/// Are notes of an earlier move still there?
pub(super) fn are_being_forgotten(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
) -> Result<bool, KvError> {
    Ok(store.get(&keys::forgotten(namespace))?.is_some())
}

/// Begins to note nothing yet.
pub(super) fn begin(state: &mut State, id: alba_core::wire::rpc::nsm::MoveId) {
    state.moving = Some(Moving::Outgoing(Outgoing {
        id,
        stage: Stage::Prepared,
        covered: Some(Vec::new()),
        digest: Digest::default(),
        last_change: 0,
        noted: 0,
        overflowed: false,
    }));
}
