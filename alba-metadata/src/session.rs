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

/// Longest reply that is kept in the row of its session, in bytes.
const SMALL: usize = 64;

/// Most replies that are kept there: the row is written with every command.
const SMALL_REPLIES: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    nonce: [u8; 16],
    last_used: Timestamp,
    lowest: u64,
    /// Small replies by the number of their command: nearly all there are, so that a command reads and writes one row of its
    /// session.
    small: Vec<(u64, Vec<u8>)>,
    /// Replies in rows of their own.
    rows: u64,
    /// What those are counted as, in bytes.
    bytes: u64,
}

/// What to do with a command that has a request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Never seen: execute it, and remember the reply.
    New(Open),
    /// Executed before: what was remembered.
    Again(Vec<u8>),
    /// No such session (any more), or the number was acknowledged: not executed.
    Unknown,
    /// Too far ahead: not executed.
    TooFar,
}

/// The session of a command that is being executed. What has changed of it is written with the reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Open {
    id: RequestId,
    header: Header,
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

/// What a reply is counted as: replies of a few bytes, which most are, are not counted, so that a command need not write
/// a counter more. [`WINDOW`] of them are 256 KiB at most.
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
    let header = Header { nonce, last_used: now, lowest: 1, small: Vec::new(), rows: 0, bytes: 0 };
    save(txn, header_key(session), &header)?;
    txn.add(COUNT, 1)?;
    Ok(session)
}

/// Forgets the session unused for longest, but not `not`.
fn make_room(txn: &mut KvTxn<'_>, not: Option<SessionId>) -> Result<(), KvError> {
    let limit = usize::try_from(MAX_SESSIONS).unwrap_or(usize::MAX);
    let mut oldest: Option<(Timestamp, SessionId, Header)> = None;
    for (key, value) in scan_prefix(txn, b"\x01s", limit)? {
        let header: Header = crate::value::decode(&value)?;
        let session = SessionId(crate::value::last_number(&key)?);
        if Some(session) == not {
            continue;
        }
        let used = header.last_used;
        if oldest.as_ref().is_none_or(|(least, other, _)| (used, session.0) < (*least, other.0)) {
            oldest = Some((used, session, header));
        }
    }
    match oldest {
        Some((_, session, mut header)) => forget(txn, session, &mut header),
        None => Ok(()),
    }
}

fn forget(txn: &mut KvTxn<'_>, session: SessionId, header: &mut Header) -> Result<(), KvError> {
    forget_replies(txn, session, header, u64::MAX)?;
    txn.delete(header_key(session));
    txn.add(COUNT, -1)
}

/// Forgets the replies below `to`.
fn forget_replies(
    txn: &mut KvTxn<'_>,
    session: SessionId,
    header: &mut Header,
    to: u64,
) -> Result<(), KvError> {
    header.small.retain(|(sequence, _)| *sequence >= to);
    let from = std::mem::replace(&mut header.lowest, to);
    if header.rows == 0 {
        return Ok(());
    }
    let (mut rows, mut freed) = (0, 0);
    if to.saturating_sub(from) <= FEW {
        // A scan costs more than a few reads.
        for sequence in from..to {
            if let Some(bytes) = take_long(txn, &reply_key(session, sequence))? {
                rows += 1;
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
                rows += 1;
                freed += counted(whole);
                whole = 0;
            }
            txn.delete(key);
        }
    }
    let less = |count: u64, gone: u64| count.checked_sub(gone).ok_or_else(|| damaged("replies of a session"));
    header.rows = less(header.rows, rows)?;
    header.bytes = less(header.bytes, freed)?;
    if freed > 0 {
        txn.add(BYTES, -i64::try_from(freed).map_err(damaged)?)?;
    }
    Ok(())
}

/// Looks at a command's id before the command is executed.
pub(crate) fn admit(txn: &mut KvTxn<'_>, now: Timestamp, id: RequestId) -> Result<Admission, KvError> {
    let Some(mut header) = load::<Header>(txn, &header_key(id.session))? else {
        return Ok(Admission::Unknown);
    };
    if now.0.saturating_sub(header.last_used.0) > MAX_AGE {
        forget(txn, id.session, &mut header)?;
        return Ok(Admission::Unknown);
    }
    let lowest = id.lowest_unacknowledged.min(id.sequence).max(header.lowest);
    if id.sequence < lowest {
        return Ok(Admission::Unknown);
    }
    // The last number there is stays unused: what forgets a session forgets all below it.
    if id.sequence == u64::MAX || id.sequence - lowest >= WINDOW {
        return Ok(Admission::TooFar);
    }
    let moved = lowest > header.lowest;
    if moved {
        forget_replies(txn, id.session, &mut header, lowest)?;
    }
    let changed = moved || now.0.saturating_sub(header.last_used.0) > USE_GRAIN;
    header.last_used = now;
    let admission = match reply(txn, id, &header)? {
        Some(kept) => Admission::Again(kept),
        None if header.bytes >= SESSION_BYTES => Admission::TooFar,
        None => return Ok(Admission::New(Open { id, header })),
    };
    if changed {
        save(txn, header_key(id.session), &header)?;
    }
    Ok(admission)
}

/// The remembered reply to a command.
fn reply(txn: &KvTxn<'_>, id: RequestId, header: &Header) -> Result<Option<Vec<u8>>, KvError> {
    if let Some((_, kept)) = header.small.iter().find(|(sequence, _)| *sequence == id.sequence) {
        return Ok(Some(kept.clone()));
    }
    if header.rows == 0 {
        return Ok(None);
    }
    get_long(txn, &reply_key(id.session, id.sequence))
}

/// Keeps the reply of an executed command.
pub(crate) fn remember(txn: &mut KvTxn<'_>, open: Open, kept: Vec<u8>) -> Result<(), KvError> {
    let Open { id, mut header } = open;
    let bytes = counted(kept.len());
    if kept.len() <= SMALL && header.small.len() < SMALL_REPLIES {
        header.small.push((id.sequence, kept));
    } else {
        put_long(txn, &reply_key(id.session, id.sequence), &kept)?;
        header.rows += 1;
        header.bytes += bytes;
    }
    save(txn, header_key(id.session), &header)?;
    if bytes == 0 {
        return Ok(());
    }
    txn.add(BYTES, i64::try_from(bytes).map_err(damaged)?)?;
    // Each round takes a session away, and one alone stays below.
    while counter(txn, BYTES)? > MAX_BYTES && counter(txn, COUNT)? > 1 {
        make_room(txn, Some(id.session))?;
    }
    Ok(())
}

/// Makes the counters again from the sessions and replies: key, what is stored and what should be, where they differ.
pub(crate) fn recount(store: &dyn KvRead) -> Result<Vec<(Vec<u8>, u64, u64)>, KvError> {
    let mut differences = Vec::new();
    let mut compare = |key: Vec<u8>, stored: u64, expected: u64| {
        if stored != expected {
            differences.push((key, stored, expected));
        }
    };
    // Rows and counted bytes by session.
    let mut found: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut whole = 0;
    for (key, value) in scan_prefix(store, b"\x01r", usize::MAX)? {
        let (last, bytes) = piece_of(&key, &value)?;
        whole += bytes;
        if last {
            let session = crate::value::last_number(key.get(2..10).unwrap_or_default())?;
            let (rows, sum) = found.entry(session).or_default();
            *rows += 1;
            *sum += counted(whole);
            whole = 0;
        }
    }
    let all: u64 = found.values().map(|(_, bytes)| bytes).sum();
    compare(BYTES.to_vec(), counter(store, BYTES)?, all);
    let mut sessions = 0;
    for (key, value) in scan_prefix(store, b"\x01s", usize::MAX)? {
        sessions += 1;
        let header: Header = crate::value::decode(&value)?;
        let (rows, bytes) = found.remove(&crate::value::last_number(&key)?).unwrap_or_default();
        compare(key.clone(), header.rows, rows);
        compare(key, header.bytes, bytes);
    }
    compare(COUNT.to_vec(), counter(store, COUNT)?, sessions);
    // Replies of sessions that are not there.
    for (session, (rows, _)) in found {
        compare(header_key(SessionId(session)), 0, rows);
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
        assert!(is_new(&admit(1, 1)));
        assert!(is_new(&admit(1, 1)), "nothing was remembered");
        // One in the session's row, one in rows of its own.
        for (sequence, kept) in [(1, b"one".to_vec()), (3, vec![3; SMALL + 1])] {
            execute(&mut txn, session, sequence, 1, &kept);
            let mut admit = |sequence, lowest| admit_at(&mut txn, sequence, lowest, session);
            assert_eq!(admit(sequence, 1), Admission::Again(kept));
        }
        let rows = scan_prefix(&txn, b"\x01r", 10).unwrap();
        let key = [&b"\x01r"[..], &session.0.to_be_bytes(), b"\0\0\0\0\0\0\0\x03\0\0"].concat();
        let value = [&[crate::value::VERSION, 0, 1][..], &[3; SMALL + 1]].concat();
        assert_eq!(rows, [(key, value)]);
        assert_eq!(recount(&txn).unwrap(), []);
        let mut admit = |sequence, lowest| admit_at(&mut txn, sequence, lowest, session);
        assert!(is_new(&admit(4, 1)));
        assert_eq!(admit(1, 1), Admission::Again(b"one".to_vec()));
        // What a command acknowledges is written with its reply, or with the answer to a repeat.
        assert_eq!(admit(3, 3), Admission::Again(vec![3; SMALL + 1]));
        assert_eq!(admit(1, 1), Admission::Unknown, "acknowledged");
        assert_eq!(admit(2, 2), Admission::Unknown, "given up");
        assert_eq!(admit(3 + WINDOW, 3), Admission::TooFar);
        assert!(is_new(&admit(2 + WINDOW, 3)));
        execute(&mut txn, session, 4, 4, b"four");
        assert!(scan_prefix(&txn, b"\x01r", 10).unwrap().is_empty());
        assert_eq!(admit_at(&mut txn, 3, 3, session), Admission::Unknown, "acknowledged");
        assert_eq!(recount(&txn).unwrap(), []);
    }

    #[test]
    fn many_small_replies_go_to_rows_of_their_own() {
        let store = MemKv::new();
        let mut txn = KvTxn::new(&store);
        let session = open(&mut txn, Timestamp(1), nonce(1)).unwrap();
        let last = u64::try_from(SMALL_REPLIES).unwrap() + 3;
        for sequence in 1..=last {
            execute(&mut txn, session, sequence, 1, &sequence.to_le_bytes());
        }
        assert_eq!(scan_prefix(&txn, b"\x01r", 10).unwrap().len(), 3);
        assert_eq!(recount(&txn).unwrap(), []);
        for sequence in 1..=last {
            let again = Admission::Again(sequence.to_le_bytes().to_vec());
            assert_eq!(admit_at(&mut txn, sequence, 1, session), again);
        }
        execute(&mut txn, session, last + 1, last, b"next");
        assert_eq!(scan_prefix(&txn, b"\x01r", 10).unwrap().len(), 1);
        assert_eq!(recount(&txn).unwrap(), []);
        txn.delete(reply_key(session, last).into_iter().chain([0, 0]).collect::<Vec<_>>());
        assert_eq!(recount(&txn).unwrap(), [(header_key(session), 1, 0)]);
    }

    fn is_new(admission: &Admission) -> bool {
        matches!(admission, Admission::New(_))
    }

    fn execute(txn: &mut KvTxn<'_>, session: SessionId, sequence: u64, lowest: u64, kept: &[u8]) {
        match admit_at(txn, sequence, lowest, session) {
            Admission::New(open) => remember(txn, open, kept.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn admit_at(txn: &mut KvTxn<'_>, sequence: u64, lowest: u64, session: SessionId) -> Admission {
        admit(txn, Timestamp(3), id(session, sequence, lowest)).unwrap()
    }

    #[test]
    fn old_and_surplus_sessions_are_forgotten() {
        let store = MemKv::new();
        let mut txn = KvTxn::new(&store);
        let first = open(&mut txn, Timestamp(5), nonce(0)).unwrap();
        execute(&mut txn, first, 1, 1, b"one");
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
            execute(&mut txn, first, sequence, 1, &long);
        }
        assert_eq!(admit_at(&mut txn, limit + 1, 1, first), Admission::TooFar);
        assert_eq!(admit_at(&mut txn, 1, 1, first), Admission::Again(long.clone()), "retries are answered");
        // One is acknowledged.
        execute(&mut txn, first, limit + 1, 2, b"short");
        assert_eq!(counter(&txn, BYTES).unwrap(), (limit - 1) << 20);
        // Altogether: the session unused for longest goes.
        let sessions = u16::try_from(MAX_BYTES / SESSION_BYTES).unwrap();
        for n in 1..=sessions {
            let session = open(&mut txn, Timestamp(u64::from(n) + 5), nonce(n)).unwrap();
            for sequence in 1..=limit {
                execute(&mut txn, session, sequence, 1, &long);
            }
        }
        assert_eq!(admit_at(&mut txn, 2, 2, first), Admission::Unknown);
        assert_eq!(counter(&txn, BYTES).unwrap(), MAX_BYTES);
        let last = open(&mut txn, Timestamp(99), nonce(sessions)).unwrap();
        assert_eq!(admit_at(&mut txn, 1, 1, last), Admission::Again(long));
        assert_eq!(recount(&txn).unwrap(), []);
        let mut header = load(&txn, &header_key(last)).unwrap().unwrap();
        forget(&mut txn, last, &mut header).unwrap();
        assert_eq!(recount(&txn).unwrap(), []);
        txn.add(BYTES, 3).unwrap();
        let bytes = counter(&txn, BYTES).unwrap();
        assert_eq!(recount(&txn).unwrap(), [(BYTES.to_vec(), bytes, bytes - 3)]);
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
