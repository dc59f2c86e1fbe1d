//! Counters that grow with every change of a kind: who watches asks for them instead of everything.

use alba_core::kv::{KvError, KvRead};
use alba_core::wire::rpc::abm::Revisions;

use super::keys;
use crate::txn::{KvTxn, counter};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Osds,
    Presets,
    Namespaces,
    Groups,
    Maintenance,
}

fn key(kind: Kind) -> Vec<u8> {
    let letter = match kind {
        Kind::Osds => b'o',
        Kind::Presets => b'p',
        Kind::Namespaces => b'n',
        Kind::Groups => b'g',
        Kind::Maintenance => b'm',
    };
    [keys::REVISIONS, &[letter]].concat()
}

/// Something of the kind has changed.
pub(super) fn bump(txn: &mut KvTxn<'_>, kind: Kind) -> Result<(), KvError> {
    txn.add(key(kind), 1)
}

pub(super) fn all(store: &(impl KvRead + ?Sized)) -> Result<Revisions, KvError> {
    let of = |kind| counter(store, &key(kind));
    Ok(Revisions {
        osds: of(Kind::Osds)?,
        presets: of(Kind::Presets)?,
        namespaces: of(Kind::Namespaces)?,
        groups: of(Kind::Groups)?,
        maintenance: of(Kind::Maintenance)?,
    })
}
