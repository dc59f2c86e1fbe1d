//! The steps of a move of a namespace between groups, as each of the two groups takes them. Which step comes next is
//! [`super::moving`]'s business; here is what may happen at all.
//!
//! * At no time do both groups serve. The source stops with `HandOver`, and only what that gave activates the target.
//! * The target is activated only with the tables of the source, row for row ([`Digest`]).
//! * A move that ended here, in whatever way, has no later effect: its number is kept, also when the namespace is gone.
//! * A command's fate is decided by the group it was first sent to. The source keeps its sessions and remembered replies when
//!   the namespace has gone, so a retry there gets the first answer: that of the model when it was executed, and
//!   `NamespaceFrozen` or `NamespaceMoved` when it was not. Only after such an answer may a client send the
//!   command elsewhere, under a new request id. So nothing of sessions has to be copied.
//!
//! [`Digest`]: alba_core::wire::rpc::nsm::Digest

use alba_core::ids::NamespaceId;
use alba_core::kv::KvRead;
use alba_core::manifest::Timestamp;
use alba_core::wire::rpc::nsm::{
    Cursor, Digest, Lifecycle, MoveId, MovePage, MoveStatus, MoveStep, NsmError, NsmOutcome, Phase, Sealed,
};

use super::access::{self, Moving, Outgoing, Stage, State};
use super::{Header, Refused, changes, keys, refuse, reindex};
use crate::txn::KvTxn;
use crate::value::{PRESENT, load, save};

fn no<T>(reason: impl Into<String>) -> Result<T, Refused> {
    refuse(NsmError::MoveRefused(reason.into()))
}

pub(super) fn apply(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    namespace: NamespaceId,
    id: MoveId,
    step: &MoveStep,
) -> Result<NsmOutcome, Refused> {
    let header: Option<Header> = load(txn, &keys::header(namespace))?;
    let mut state = access::state(txn, namespace)?;
    match step {
        MoveStep::Prepare => prepare(txn, namespace, header.as_ref(), &mut state, id)?,
        MoveStep::Cover => {
            let outgoing = outgoing(&mut state, id)?;
            // The digest of a covered row is kept up only while changes are noted.
            if !outgoing.overflowed {
                changes::cover(txn, namespace, outgoing)?;
            }
        }
        MoveStep::Freeze => {
            let outgoing = outgoing(&mut state, id)?;
            if outgoing.overflowed {
                return no("too much has changed: end this move and begin another");
            }
            if outgoing.stage == Stage::Prepared {
                outgoing.stage = Stage::Frozen;
            }
        }
        MoveStep::HandOver { copied } => {
            let Some(header) = header else { return no("the namespace is not here") };
            hand_over(txn, now, namespace, &header, &mut state, id, *copied)?;
        }
        MoveStep::Resume => resume(txn, namespace, &mut state, id)?,
        MoveStep::Withdraw => {
            if outgoing(&mut state, id).is_ok_and(|outgoing| matches!(outgoing.stage, Stage::HandedOver(_))) {
                return no("it has been handed over: the target may serve");
            }
            resume(txn, namespace, &mut state, id)?;
        }
        MoveStep::Drop => return drop_moved(txn, namespace, header.is_some(), &mut state, id),
        MoveStep::Receive => receive(txn, namespace, header.is_some(), &mut state, id)?,
        MoveStep::Import { number, page } => import(txn, namespace, &mut state, id, *number, page)?,
        MoveStep::Activate(sealed) => activate(txn, namespace, header.is_some(), &mut state, id, sealed)?,
        MoveStep::Reject => reject(txn, namespace, &mut state, id)?,
    }
    access::save_state(txn, namespace, &state)?;
    Ok(NsmOutcome::Done)
}

/// The move away that is under way, if it is this one.
fn outgoing(state: &mut State, id: MoveId) -> Result<&mut Outgoing, Refused> {
    match &mut state.moving {
        Some(Moving::Outgoing(outgoing)) if outgoing.id == id => Ok(outgoing),
        _ => no(format!("move {} is not under way from here", id.0)),
    }
}

fn is_new(state: &State, id: MoveId) -> Result<(), Refused> {
    if id <= state.ended {
        return no(format!("move {} has ended here, and this is {}", state.ended.0, id.0));
    }
    match &state.moving {
        None => Ok(()),
        Some(Moving::Outgoing(Outgoing { id: other, .. }) | Moving::Incoming { id: other, .. }) => {
            no(format!("move {} is under way", other.0))
        }
    }
}

fn prepare(
    txn: &KvTxn<'_>,
    namespace: NamespaceId,
    header: Option<&Header>,
    state: &mut State,
    id: MoveId,
) -> Result<(), Refused> {
    if outgoing(state, id).is_ok() {
        return Ok(());
    }
    is_new(state, id)?;
    if header.is_none() {
        return refuse(NsmError::NamespaceMoved(namespace));
    }
    if state.lifecycle == Lifecycle::Recovering {
        return refuse(NsmError::NamespaceRecovering(namespace));
    }
    if changes::are_being_forgotten(txn, namespace)? {
        return no("what an earlier move noted is still being dropped: try again");
    }
    changes::begin(state, id);
    Ok(())
}

fn hand_over(
    txn: &KvTxn<'_>,
    now: Timestamp,
    namespace: NamespaceId,
    header: &Header,
    state: &mut State,
    id: MoveId,
    copied: u64,
) -> Result<(), Refused> {
    // No object has a later time stamp than the floor, or the time of a command before this one.
    let floor = state.floor.max(now);
    let (lifecycle, trashed) = (state.lifecycle, state.trashed);
    let outgoing = outgoing(state, id)?;
    match outgoing.stage {
        Stage::HandedOver(_) => return Ok(()),
        Stage::Prepared => return no("writes have to be refused first"),
        Stage::Frozen => {}
    }
    if outgoing.overflowed {
        return no("too much has changed: end this move and begin another");
    }
    if outgoing.covered.is_some() || outgoing.last_change != copied {
        return no(format!("not everything is copied: changes up to {}", outgoing.last_change));
    }
    if reindex::is_pending(txn, namespace)? {
        return no("objects are being put into other buckets: try again");
    }
    outgoing.stage = Stage::HandedOver(Box::new(Sealed {
        name: header.name.clone(),
        preset: header.preset.clone(),
        preset_version: header.preset_version,
        lifecycle,
        trashed,
        floor,
        digest: outgoing.digest,
    }));
    Ok(())
}

fn resume(txn: &mut KvTxn<'_>, namespace: NamespaceId, state: &mut State, id: MoveId) -> Result<(), Refused> {
    match &state.moving {
        None if state.ended >= id => return Ok(()),
        // `Prepare` never came; should it come late, it is refused.
        None => {}
        Some(_) => {
            outgoing(state, id)?;
            txn.put(keys::forgotten(namespace), PRESENT);
        }
    }
    state.moving = None;
    state.ended = id;
    Ok(())
}

fn drop_moved(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    here: bool,
    state: &mut State,
    id: MoveId,
) -> Result<NsmOutcome, Refused> {
    if !here && state.ended >= id {
        return Ok(NsmOutcome::Done);
    }
    if !matches!(outgoing(state, id)?.stage, Stage::HandedOver(_)) {
        return no("it has not been handed over");
    }
    txn.delete(keys::header(namespace));
    txn.put(keys::dropped(namespace), PRESENT);
    access::save_state(txn, namespace, &State { ended: id, ..State::default() })?;
    Ok(NsmOutcome::Done)
}

fn receive(
    txn: &KvTxn<'_>,
    namespace: NamespaceId,
    here: bool,
    state: &mut State,
    id: MoveId,
) -> Result<(), Refused> {
    if matches!(&state.moving, Some(Moving::Incoming { id: same, .. }) if *same == id) {
        return Ok(());
    }
    is_new(state, id)?;
    if here {
        return no("the namespace is here");
    }
    // Else dropping would take what is copied.
    if txn.get(&keys::dropped(namespace))?.is_some() {
        return no("what was here of the namespace is still being dropped: try again");
    }
    let cursor = Cursor::Rows(Vec::new());
    state.moving = Some(Moving::Incoming { id, next_page: 0, cursor, digest: Digest::default() });
    Ok(())
}

fn import(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    state: &mut State,
    id: MoveId,
    number: u64,
    page: &MovePage,
) -> Result<(), Refused> {
    let Some(Moving::Incoming { id: same, next_page, cursor, digest }) = &mut state.moving else {
        return no(format!("move {} does not come here", id.0));
    };
    if *same != id {
        return no(format!("move {} is under way", same.0));
    }
    if number < *next_page {
        return Ok(());
    }
    if number > *next_page {
        return no(format!("page {number} came where {next_page} is expected"));
    }
    let prefix = keys::all_of(namespace);
    for (rest, value) in &page.rows {
        let letter = rest.first().copied().unwrap_or_default();
        let table = keys::Table::of_letter(letter);
        if table.is_none_or(|table| matches!(table, keys::Table::Changes | keys::Table::ChangedKeys)) {
            return no(format!("this group knows no table {letter:#04x}"));
        }
        let key = [prefix.as_slice(), rest].concat();
        let old = txn.get(&key)?;
        changes::digest_change(digest, rest, old.as_deref(), value.as_deref());
        match value {
            Some(value) if value.len() < crate::txn::MAX_VALUE => txn.put(key, value.clone()),
            Some(value) => return no(format!("a row of {} bytes", value.len())),
            None => txn.delete(key),
        }
    }
    *next_page += 1;
    *cursor = page.next.clone();
    Ok(())
}

fn activate(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    here: bool,
    state: &mut State,
    id: MoveId,
    sealed: &Sealed,
) -> Result<(), Refused> {
    if here && state.ended == id {
        return Ok(());
    }
    match &state.moving {
        Some(Moving::Incoming { id: same, digest, .. }) if *same == id => {
            if *digest != sealed.digest {
                return no(format!(
                    "the copy has {} rows and the source {}, or they differ",
                    digest.rows, sealed.digest.rows
                ));
            }
        }
        _ => return no(format!("move {} does not come here", id.0)),
    }
    let header = Header {
        name: sealed.name.clone(),
        preset: sealed.preset.clone(),
        preset_version: sealed.preset_version,
    };
    save(txn, keys::header(namespace), &header)?;
    *state = State {
        lifecycle: sealed.lifecycle,
        trashed: sealed.trashed,
        floor: sealed.floor,
        ended: id,
        moving: None,
    };
    Ok(())
}

fn reject(txn: &mut KvTxn<'_>, namespace: NamespaceId, state: &mut State, id: MoveId) -> Result<(), Refused> {
    match &state.moving {
        Some(Moving::Incoming { id: same, .. }) if *same == id => {
            txn.put(keys::dropped(namespace), PRESENT);
            state.moving = None;
            state.ended = id;
            Ok(())
        }
        Some(_) => no("another move is under way"),
        None if txn.get(&keys::header(namespace))?.is_some() => {
            no("the namespace is here: the move has been activated, or does not come here")
        }
        // It may be that `Receive` never came; should it come late, it is refused.
        None => {
            state.ended = state.ended.max(id);
            Ok(())
        }
    }
}

/// How far a move is.
pub(super) fn status(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
) -> Result<MoveStatus, alba_core::kv::KvError> {
    let here = store.get(&keys::header(namespace))?.is_some();
    let state = access::state(store, namespace)?;
    Ok(match state.moving {
        Some(Moving::Outgoing(outgoing)) => MoveStatus::Outgoing {
            id: outgoing.id,
            phase: match outgoing.stage {
                Stage::Prepared => Phase::Prepared,
                Stage::Frozen => Phase::Frozen,
                Stage::HandedOver(sealed) => Phase::HandedOver(sealed),
            },
            covered: outgoing.covered,
            last_change: outgoing.last_change,
            overflowed: outgoing.overflowed,
            busy: reindex::is_pending(store, namespace)?,
        },
        Some(Moving::Incoming { id, next_page, cursor, .. }) => {
            MoveStatus::Incoming { id, next_page, cursor }
        }
        None if here => MoveStatus::Owned { ended: state.ended },
        None => MoveStatus::Absent { ended: state.ended },
    })
}

/// What has to be copied next.
pub(super) fn export(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    id: MoveId,
    from: &Cursor,
) -> Result<MovePage, Refused> {
    let mut state = access::state(store, namespace)?;
    let outgoing = outgoing(&mut state, id)?;
    if outgoing.overflowed {
        return no("too much has changed: end this move and begin another");
    }
    Ok(changes::page(store, namespace, outgoing, from)?)
}
