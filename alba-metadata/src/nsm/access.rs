//! What a namespace may be asked in its present state: recovering, trashed, being moved. One table, so that no command or
//! query is forgotten.

use std::sync::Arc;

use alba_core::ids::NamespaceId;
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::wire::rpc::nsm::{Cursor, Digest, Lifecycle, MoveId, NsmError, Sealed};
use serde::{Deserialize, Serialize};

use super::{Header, Refused, keys, refuse};
use crate::txn::KvTxn;
use crate::value::{decode, load, save};

/// A namespace's state beside its header. Absent means the default; it outlives the namespace only when a move did
/// something here, so that a late step of an ended move has no effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) lifecycle: Lifecycle,
    pub(super) trashed: bool,
    /// Objects get later time stamps than this.
    pub(super) floor: Timestamp,
    /// The last move that ended here.
    pub(super) ended: MoveId,
    pub(super) moving: Option<Moving>,
}

/// A move that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Moving {
    Outgoing(Outgoing),
    Incoming { id: MoveId, next_page: u64, cursor: Cursor, digest: Digest },
}

/// A move away from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outgoing {
    pub(super) id: MoveId,
    pub(super) stage: Stage,
    /// Rows up to this key may be copied; none: all.
    pub(super) covered: Option<Vec<u8>>,
    /// Of the covered rows, as they are now.
    pub(super) digest: Digest,
    /// Number of the last noted change.
    pub(super) last_change: u64,
    /// Keys with a noted change.
    pub(super) noted: u64,
    pub(super) overflowed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    Prepared,
    Frozen,
    HandedOver(Box<Sealed>),
}

/// What someone wants of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// Its settings and counters.
    Look,
    /// A client's read.
    Read,
    /// A client's write.
    Write,
    /// To open or close gc epochs: the first step of every garbage collection.
    Collect,
    /// Repair's and clean-up's reads.
    Inspect,
    /// Repair's and clean-up's writes.
    Maintain,
    /// To put recovered objects in, or to list them.
    Recover,
}

pub(super) fn state(store: &(impl KvRead + ?Sized), namespace: NamespaceId) -> Result<State, KvError> {
    Ok(load(store, &keys::state(namespace))?.unwrap_or_default())
}

/// The default is not stored: most namespaces never need a row.
pub(super) fn save_state(txn: &mut KvTxn<'_>, namespace: NamespaceId, state: &State) -> Result<(), KvError> {
    if *state == State::default() {
        txn.delete(keys::state(namespace));
        return Ok(());
    }
    save(txn, keys::state(namespace), state)
}

/// The header and state of a namespace that this group owns, when its state allows what is wanted.
pub(super) fn admit(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
    want: Want,
) -> Result<(Header, State), Refused> {
    // Only the owner has a header; a namespace on its way here has none until it is activated.
    let Some(header) = load::<Header>(store, &keys::header(namespace))? else {
        return refuse(NsmError::NamespaceMoved(namespace));
    };
    let state = state(store, namespace)?;
    match allows(&state, namespace, want) {
        Ok(()) => Ok((header, state)),
        Err(error) => refuse(error),
    }
}

/// The same for a client's write, of which a batch has many.
pub(super) fn admit_write(
    txn: &KvTxn<'_>,
    namespace: NamespaceId,
) -> Result<(Arc<Header>, Arc<State>), Refused> {
    let Some(header) = txn.common(&keys::header(namespace), decode::<Header>)? else {
        return refuse(NsmError::NamespaceMoved(namespace));
    };
    let state = txn.common(&keys::state(namespace), decode::<State>)?.unwrap_or_default();
    match allows(&state, namespace, Want::Write) {
        Ok(()) => Ok((header, state)),
        Err(error) => refuse(error),
    }
}

fn allows(state: &State, namespace: NamespaceId, want: Want) -> Result<(), NsmError> {
    if let Some(Moving::Outgoing(outgoing)) = &state.moving {
        match (&outgoing.stage, want) {
            // "Absent" from a group that is not the owner any more would let garbage collection delete what is in use.
            (Stage::HandedOver(_), _) => return Err(NsmError::NamespaceMoved(namespace)),
            (Stage::Frozen, Want::Write | Want::Collect | Want::Maintain | Want::Recover) => {
                return Err(NsmError::NamespaceFrozen(namespace));
            }
            (Stage::Prepared, _) | (Stage::Frozen, Want::Look | Want::Read | Want::Inspect) => {}
        }
    }
    match (state.lifecycle, want) {
        (_, Want::Look) | (Lifecycle::Recovering, Want::Recover) => return Ok(()),
        (Lifecycle::Recovering, _) => return Err(NsmError::NamespaceRecovering(namespace)),
        (Lifecycle::Active, Want::Recover) => return Err(NsmError::NotRecovering(namespace)),
        (Lifecycle::Active, _) => {}
    }
    match want {
        Want::Read | Want::Write | Want::Collect if state.trashed => {
            Err(NsmError::NamespaceTrashed(namespace))
        }
        _ => Ok(()),
    }
}

/// Do messages of the ABM still count here?
pub(super) fn takes_messages(
    store: &(impl KvRead + ?Sized),
    namespace: NamespaceId,
) -> Result<bool, KvError> {
    if store.get(&keys::header(namespace))?.is_none() {
        return Ok(false);
    }
    let handed_over = matches!(
        state(store, namespace)?.moving,
        Some(Moving::Outgoing(Outgoing { stage: Stage::HandedOver(_), .. }))
    );
    Ok(!handed_over)
}

/// The time stamp of an object that is stored now. Later than that of every object stored before, also by another group
/// with another clock.
pub(super) fn stamp(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    state: &State,
    now: Timestamp,
) -> Result<Timestamp, KvError> {
    if now > state.floor {
        return Ok(now);
    }
    let mut state = state.clone();
    state.floor = Timestamp(state.floor.0.saturating_add(1));
    save_state(txn, namespace, &state)?;
    Ok(state.floor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NS: NamespaceId = NamespaceId::from_u32(7);
    const ALL: [Want; 7] =
        [Want::Look, Want::Read, Want::Write, Want::Collect, Want::Inspect, Want::Maintain, Want::Recover];

    fn allowed(state: &State) -> Vec<Want> {
        ALL.into_iter().filter(|want| allows(state, NS, *want).is_ok()).collect()
    }

    fn moved(stage: Stage) -> State {
        let outgoing = Outgoing {
            id: MoveId(1),
            stage,
            covered: None,
            digest: Digest::default(),
            last_change: 0,
            noted: 0,
            overflowed: false,
        };
        State { moving: Some(Moving::Outgoing(outgoing)), ..State::default() }
    }

    #[test]
    fn every_state_allows_what_it_should() {
        assert_eq!(allowed(&State::default()), ALL[..6]);
        assert_eq!(allowed(&moved(Stage::Prepared)), ALL[..6]);
        assert_eq!(allowed(&moved(Stage::Frozen)), [Want::Look, Want::Read, Want::Inspect]);
        let trashed = State { trashed: true, ..State::default() };
        assert_eq!(allowed(&trashed), [Want::Look, Want::Inspect, Want::Maintain]);
        let recovering = State { lifecycle: Lifecycle::Recovering, ..State::default() };
        assert_eq!(allowed(&recovering), [Want::Look, Want::Recover]);
        for (state, want, error) in [
            (&trashed, Want::Read, NsmError::NamespaceTrashed(NS)),
            (&recovering, Want::Inspect, NsmError::NamespaceRecovering(NS)),
            (&moved(Stage::Frozen), Want::Write, NsmError::NamespaceFrozen(NS)),
            (&State::default(), Want::Recover, NsmError::NotRecovering(NS)),
        ] {
            assert_eq!(allows(state, NS, want), Err(error));
        }
    }
}
