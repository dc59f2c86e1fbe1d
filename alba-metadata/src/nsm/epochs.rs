//! gc epochs: the interval of those that writes may name (features §2.11). They only ever grow.

use alba_core::ids::{GcEpoch, NamespaceId};
use alba_core::kv::{KvError, KvRead};
use alba_core::wire::rpc::nsm::{NsmError, NsmOutcome};
use serde::{Deserialize, Serialize};

use super::access::{self, Want};
use super::keys::Table;
use super::{Refused, keys, refuse};
use crate::txn::KvTxn;
use crate::value::{damaged, decode, load, save};

/// Valid epochs: `min ..= newest`, never none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Epochs {
    pub(super) min: GcEpoch,
    pub(super) newest: GcEpoch,
}

impl Epochs {
    /// May a write name this epoch?
    pub(super) fn check(&self, epoch: GcEpoch) -> Result<(), NsmError> {
        if (self.min..=self.newest).contains(&epoch) { Ok(()) } else { Err(NsmError::InvalidGcEpoch(epoch)) }
    }
}

/// A new namespace has the one epoch 0.
pub(super) fn start(txn: &mut KvTxn<'_>, namespace: NamespaceId) -> Result<(), KvError> {
    let first = GcEpoch::from_u32(0);
    save(txn, keys::table(namespace, Table::Epochs), &Epochs { min: first, newest: first })
}

pub(super) fn get(store: &(impl KvRead + ?Sized), namespace: NamespaceId) -> Result<Epochs, KvError> {
    load(store, &keys::table(namespace, Table::Epochs))?
        .ok_or_else(|| damaged("a namespace without gc epochs"))
}

/// The same, for the writes of a batch.
pub(super) fn common(txn: &KvTxn<'_>, namespace: NamespaceId) -> Result<Epochs, KvError> {
    let epochs = txn.common(&keys::table(namespace, Table::Epochs), decode::<Epochs>)?;
    epochs.map(|epochs| *epochs).ok_or_else(|| damaged("a namespace without gc epochs"))
}

/// Opens `epoch`, which must be the next. Opening the newest again is a repeat.
pub(super) fn enable(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    epoch: GcEpoch,
) -> Result<NsmOutcome, Refused> {
    access::admit(txn, namespace, Want::Collect)?;
    let mut epochs = get(txn, namespace)?;
    if epoch == epochs.newest {
        return Ok(NsmOutcome::Done);
    }
    if epochs.newest.next() != Some(epoch) {
        return refuse(NsmError::InvalidGcEpoch(epoch));
    }
    epochs.newest = epoch;
    save(txn, keys::table(namespace, Table::Epochs), &epochs)?;
    Ok(NsmOutcome::Done)
}

/// Closes all epochs up to `upto`, which must leave one.
pub(super) fn disable(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    upto: GcEpoch,
) -> Result<NsmOutcome, Refused> {
    access::admit(txn, namespace, Want::Collect)?;
    let mut epochs = get(txn, namespace)?;
    if upto < epochs.min {
        return Ok(NsmOutcome::Done);
    }
    match upto.next() {
        Some(min) if min <= epochs.newest => epochs.min = min,
        _ => return refuse(NsmError::InvalidGcEpoch(upto)),
    }
    save(txn, keys::table(namespace, Table::Epochs), &epochs)?;
    Ok(NsmOutcome::Done)
}
