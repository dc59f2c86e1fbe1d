//! Sessions and remembered replies, kept in the state machine: a retried command gets its first answer.
//!
//! A group keeps at most [`MAX_SESSIONS`] sessions with at most [`WINDOW`] replies each, and bounded bytes of replies, in
//! each session and altogether. What is too much for one session makes its client wait for its own acknowledgements; what is
//! too much altogether costs the session unused for longest. A command below its session's lowest
//! unacknowledged number is never executed: it is a late duplicate of one that was answered or given up.

use std::collections::BTreeMap;
use std::ops::Bound;

use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::wire::rpc::{RequestId, SessionId};
use serde::{Deserialize, Serialize};

use crate::txn::{KvTxn, counter};
use crate::value::{Key, damaged, get_long, load, piece_of, put_long, save, scan_prefix, take_long};

/// More sessions than this: the one unused for longest is forgotten.
pub const MAX_SESSIONS: u64 = 4096;

/// How far a session may run ahead of its lowest unacknowledged command.
pub const WINDOW: u64 = 1024;

/// Bytes of replies that a session may have unacknowledged; at this the next commands are not executed. One reply may go
/// beyond it.
pub const SESSION_BYTES: u64 = 8 << 20;

/// Bytes of replies that a group keeps.
pub const MAX_BYTES: u64 = 256 << 20;

/// A session unused for so long (microseconds of the model's time: one day) is forgotten.
const MAX_AGE: u64 = 24 * 3600 * 1_000_000;

/// The time of last use is written when it is older than this (microseconds): most commands write less.
const USE_GRAIN: u64 = 60 * 1_000_000;

/// Replies that are looked up one by one when they are forgotten.
const FEW: u64 = 8;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    nonce: [u8; 16],
    last_used: Timestamp,
    lowest: u64,
}

/// What to do with a command that has a request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Never seen: execute it.
    New,
    /// Executed before: what was remembered.
    Again(Vec<u8>),
    /// No such session (any more), or the number was acknowledged: not executed.
    Unknown,
    /// Too far ahead: not executed.
    TooFar,
}

fn header_key(session: SessionId) -> Vec<u8> {
    Key::table(b"\x01s").number(session.0).end()
}

fn reply_key(session: SessionId, sequence: u64) -> Vec<u8> {
    Key::table(b"\x01r").number(session.0).number(sequence).end()
}

const COUNT: &[u8] = b"\x01c";

/// Bytes of all replies.
const BYTES: &[u8] = b"\x01B";

/// Bytes of a session's replies.
fn bytes_key(session: SessionId) -> Vec<u8> {
    Key::table(b"\x01b").number(session.0).end()
}

/// What a reply is counted as: replies of a few bytes, which most are, are not counted, so that a command need not write
/// two counters more. [`WINDOW`] of them are 256 KiB at most.
fn counted(kept: usize) -> u64 {
    u64::try_from(kept).ok().filter(|bytes| *bytes > 256).unwrap_or(0)
}

/// Opens a session. The same nonce again gives the same session.
pub(crate) fn open(txn: &mut KvTxn<'_>, now: Timestamp, nonce: [u8; 16]) -> Result<SessionId, KvError> {
    let [a, b, c, d, e, f, g, h, ..] = nonce;
    // Of the nonce and not counted: a client of a store that was wiped must not find its number taken by another.
    let mut session = SessionId(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
    loop {
        match load::<Header>(txn, &header_key(session))? {
            Some(header) if header.nonce == nonce => return Ok(session),
            Some(_) => session.0 = session.0.wrapping_add(1),
            None => break,
        }
    }
    if counter(txn, COUNT)? >= MAX_SESSIONS {
        make_room(txn, None)?;
    }
    save(txn, header_key(session), &Header { nonce, last_used: now, lowest: 1 })?;
    txn.add(COUNT, 1)?;
    Ok(session)
}

/// Forgets the session unused for longest, but not `not`.
fn make_room(txn: &mut KvTxn<'_>, not: Option<SessionId>) -> Result<(), KvError> {
    let limit = usize::try_from(MAX_SESSIONS).unwrap_or(usize::MAX);
    let mut oldest: Option<(Timestamp, SessionId)> = None;
    for (key, value) in scan_prefix(txn, b"\x01s", limit)? {
        let header: Header = crate::value::decode(&value)?;
        let candidate = (header.last_used, SessionId(crate::value::last_number(&key)?));
        if Some(candidate.1) == not {
            continue;
        }
        if oldest.is_none_or(|(used, session)| (candidate.0, candidate.1.0) < (used, session.0)) {
            oldest = Some(candidate);
        }
    }
    match oldest {
        Some((_, session)) => forget(txn, session),
        None => Ok(()),
    }
}

fn forget(txn: &mut KvTxn<'_>, session: SessionId) -> Result<(), KvError> {
    forget_replies(txn, session, 0, u64::MAX)?;
    txn.delete(header_key(session));
    txn.add(COUNT, -1)
}

/// Forgets the replies of `from..to`.
fn forget_replies(txn: &mut KvTxn<'_>, session: SessionId, from: u64, to: u64) -> Result<(), KvError> {
    let mut freed = 0;
    if to.saturating_sub(from) <= FEW {
        // What nearly every command does; a scan costs more than a few reads.
        for sequence in from..to {
            if let Some(bytes) = take_long(txn, &reply_key(session, sequence))? {
                freed += counted(bytes);
            }
        }
    } else {
        let (first, end) = (reply_key(session, from), reply_key(session, to));
        // Pieces of at most SESSION_BYTES and one reply more.
        let found = txn.scan(Bound::Included(&first), Bound::Excluded(&end), false, usize::MAX)?;
        let mut whole = 0;
        for (key, value) in found {
            // A reply's pieces follow each other; its length is known at the last.
            let (last, bytes) = piece_of(&key, &value)?;
            whole += bytes;
            if last {
                freed += counted(whole);
                whole = 0;
            }
            txn.delete(key);
        }
    }
    if freed > 0 {
        let freed = i64::try_from(freed).map_err(damaged)?;
        txn.add(bytes_key(session), -freed)?;
        txn.add(BYTES, -freed)?;
    }
    Ok(())
}

/// Looks at a command's id before the command is executed.
pub(crate) fn admit(txn: &mut KvTxn<'_>, now: Timestamp, id: RequestId) -> Result<Admission, KvError> {
    let Some(mut header) = load::<Header>(txn, &header_key(id.session))? else {
        return Ok(Admission::Unknown);
    };
    if now.0.saturating_sub(header.last_used.0) > MAX_AGE {
        forget(txn, id.session)?;
        return Ok(Admission::Unknown);
    }
    let lowest = id.lowest_unacknowledged.min(id.sequence).max(header.lowest);
    if id.sequence < lowest {
        return Ok(Admission::Unknown);
    }
    if id.sequence - lowest >= WINDOW {
        return Ok(Admission::TooFar);
    }
    let moved = lowest > header.lowest;
    if moved {
        forget_replies(txn, id.session, header.lowest, lowest)?;
    }
    if moved || now.0.saturating_sub(header.last_used.0) > USE_GRAIN {
        header.lowest = lowest;
        header.last_used = now;
        save(txn, header_key(id.session), &header)?;
    }
    Ok(match get_long(txn, &reply_key(id.session, id.sequence))? {
        Some(kept) => Admission::Again(kept),
        None if counter(txn, &bytes_key(id.session))? >= SESSION_BYTES => Admission::TooFar,
        None => Admission::New,
    })
}

/// Keeps the reply of an executed command.
pub(crate) fn remember(txn: &mut KvTxn<'_>, id: RequestId, kept: &[u8]) -> Result<(), KvError> {
    put_long(txn, &reply_key(id.session, id.sequence), kept)?;
    let bytes = counted(kept.len());
    if bytes == 0 {
        return Ok(());
    }
    let bytes = i64::try_from(bytes).map_err(damaged)?;
    txn.add(bytes_key(id.session), bytes)?;
    txn.add(BYTES, bytes)?;
    // Each round takes a session away, and one alone stays below.
    while counter(txn, BYTES)? > MAX_BYTES && counter(txn, COUNT)? > 1 {
        make_room(txn, Some(id.session))?;
    }
    Ok(())
}

/// Makes the counters again from the sessions and replies: key, what is stored and what should be, where they differ.
pub(crate) fn recount(store: &dyn KvRead) -> Result<Vec<(Vec<u8>, u64, u64)>, KvError> {
    let mut expected: BTreeMap<Vec<u8>, u64> = BTreeMap::from([(COUNT.to_vec(), 0), (BYTES.to_vec(), 0)]);
    let sessions = scan_prefix(store, b"\x01s", usize::MAX)?.len();
    expected.insert(COUNT.to_vec(), u64::try_from(sessions).map_err(damaged)?);
    let mut whole = 0;
    for (key, value) in scan_prefix(store, b"\x01r", usize::MAX)? {
        let (last, bytes) = piece_of(&key, &value)?;
        whole += bytes;
        if last {
            let session = key.get(2..10).unwrap_or_default();
            let session = SessionId(crate::value::last_number(session)?);
            for counter in [bytes_key(session), BYTES.to_vec()] {
                *expected.entry(counter).or_default() += counted(whole);
            }
            whole = 0;
        }
    }
    for (key, _) in scan_prefix(store, b"\x01b", usize::MAX)? {
        expected.entry(key).or_default();
    }
    let mut differences = Vec::new();
    for (key, expected) in expected {
        let stored = counter(store, &key)?;
        if stored != expected {
            differences.push((key, stored, expected));
        }
    }
    Ok(differences)
}

#[cfg(test)]
mod tests {
    use alba_core::kv::MemKv;

    use super::*;

    fn id(session: SessionId, sequence: u64, lowest_unacknowledged: u64) -> RequestId {
        RequestId { session, sequence, lowest_unacknowledged }
    }

    fn nonce(n: u16) -> [u8; 16] {
        let mut nonce = [7; 16];
        nonce[..2].copy_from_slice(&n.to_be_bytes());
        nonce
    }

    #[test]
    fn replies_are_kept_until_acknowledged_and_never_executed_after() {
        let store = MemKv::new();
        let mut txn = KvTxn::new(&store);
        let session = open(&mut txn, Timestamp(1), nonce(1)).unwrap();
        assert_eq!(open(&mut txn, Timestamp(2), nonce(1)).unwrap(), session);
        let mut admit =
            |sequence, lowest| admit(&mut txn, Timestamp(3), id(session, sequence, lowest)).unwrap();
        assert_eq!(admit(1, 1), Admission::New);
        assert_eq!(admit(1, 1), Admission::New, "nothing was remembered");
        remember(&mut txn, id(session, 1, 1), b"one").unwrap();
        let mut admit = |sequence, lowest| admit_at(&mut txn, sequence, lowest, session);
        assert_eq!(admit(1, 1), Admission::Again(b"one".to_vec()));
        assert_eq!(admit(3, 1), Admission::New);
        assert_eq!(admit(1, 1), Admission::Again(b"one".to_vec()));
        assert_eq!(admit(4, 3), Admission::New);
        assert_eq!(admit(1, 1), Admission::Unknown, "acknowledged");
        assert_eq!(admit(2, 2), Admission::Unknown, "given up");
        assert_eq!(admit(3 + WINDOW, 3), Admission::TooFar);
        assert_eq!(admit(2 + WINDOW, 3), Admission::New);
        assert!(scan_prefix(&txn, b"\x01r", 10).unwrap().is_empty());
    }

    fn admit_at(txn: &mut KvTxn<'_>, sequence: u64, lowest: u64, session: SessionId) -> Admission {
        admit(txn, Timestamp(3), id(session, sequence, lowest)).unwrap()
    }

    #[test]
    fn old_and_surplus_sessions_are_forgotten() {
        let store = MemKv::new();
        let mut txn = KvTxn::new(&store);
        let first = open(&mut txn, Timestamp(5), nonce(0)).unwrap();
        remember(&mut txn, id(first, 1, 1), b"one").unwrap();
        for n in 1..=u16::try_from(MAX_SESSIONS).unwrap() {
            open(&mut txn, Timestamp(u64::from(n) + 5), nonce(n)).unwrap();
        }
        assert_eq!(counter(&txn, COUNT).unwrap(), MAX_SESSIONS);
        assert_eq!(admit(&mut txn, Timestamp(9), id(first, 1, 1)).unwrap(), Admission::Unknown);
        assert!(scan_prefix(&txn, b"\x01r", 10).unwrap().is_empty());

        let second = open(&mut txn, Timestamp(9), nonce(1)).unwrap();
        let late = Timestamp(MAX_AGE + 10);
        assert_eq!(admit(&mut txn, late, id(second, 1, 1)).unwrap(), Admission::Unknown);
        assert_eq!(counter(&txn, COUNT).unwrap(), MAX_SESSIONS - 1);
    }

    #[test]
    fn replies_are_bounded_in_bytes_for_each_session_and_altogether() {
        let store = MemKv::new();
        let mut txn = KvTxn::new(&store);
        let long = vec![7; 1 << 20];
        let limit = SESSION_BYTES >> 20;
        let first = open(&mut txn, Timestamp(1), nonce(0)).unwrap();
        for sequence in 1..=limit {
            assert_eq!(admit_at(&mut txn, sequence, 1, first), Admission::New);
            remember(&mut txn, id(first, sequence, 1), &long).unwrap();
        }
        assert_eq!(admit_at(&mut txn, limit + 1, 1, first), Admission::TooFar);
        assert_eq!(admit_at(&mut txn, 1, 1, first), Admission::Again(long.clone()), "retries are answered");
        assert_eq!(admit_at(&mut txn, limit + 1, 2, first), Admission::New, "one is acknowledged");
        remember(&mut txn, id(first, limit + 1, 2), b"short").unwrap();
        assert_eq!(counter(&txn, BYTES).unwrap(), (limit - 1) << 20);
        // Altogether: the session unused for longest goes.
        let sessions = u16::try_from(MAX_BYTES / SESSION_BYTES).unwrap();
        for n in 1..=sessions {
            let session = open(&mut txn, Timestamp(u64::from(n) + 5), nonce(n)).unwrap();
            for sequence in 1..=limit {
                remember(&mut txn, id(session, sequence, 1), &long).unwrap();
            }
        }
        assert_eq!(admit_at(&mut txn, 2, 2, first), Admission::Unknown);
        assert_eq!(counter(&txn, BYTES).unwrap(), MAX_BYTES);
        let last = open(&mut txn, Timestamp(99), nonce(sessions)).unwrap();
        assert_eq!(admit_at(&mut txn, 1, 1, last), Admission::Again(long));
        assert_eq!(recount(&txn).unwrap(), []);
        forget(&mut txn, last).unwrap();
        assert_eq!(recount(&txn).unwrap(), []);
        txn.add(BYTES, 3).unwrap();
        let bytes = counter(&txn, BYTES).unwrap();
        assert_eq!(recount(&txn).unwrap(), [(BYTES.to_vec(), bytes, bytes - 3)]);
        assert_eq!(counter(&txn, &bytes_key(last)).unwrap(), 0);
    }

    #[test]
    fn a_session_number_taken_by_another_nonce_is_passed_over() {
        let store = MemKv::new();
        let mut txn = KvTxn::new(&store);
        let mut other = nonce(1);
        other[15] = 0;
        let first = open(&mut txn, Timestamp(1), nonce(1)).unwrap();
        let second = open(&mut txn, Timestamp(1), other).unwrap();
        assert_eq!(second.0, first.0 + 1);
        assert_eq!(open(&mut txn, Timestamp(1), other).unwrap(), second);
    }
}
