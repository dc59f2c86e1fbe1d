//! Counters that grow with every change of a kind: who watches asks for them instead of everything.

use alba_core::ids::MessageId;
use alba_core::kv::{KvError, KvRead};
use alba_core::wire::rpc::abm::{Destination, Revisions};
use alba_core::wire::rpc::watch::Topic;

use super::{groups, keys};
use crate::txn::{KvTxn, counter};
use crate::value::load;

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

/// The same as a watch tells it, together with what the groups were told: how many messages were taken out of their queues.
pub(crate) fn watched(store: &dyn KvRead) -> Result<Vec<(Topic, u64)>, KvError> {
    let Revisions { osds, presets, namespaces, groups, maintenance } = all(store)?;
    let mut delivered = 0_u64;
    for group in groups::all(store)? {
        let destination = Destination::Group(group.id);
        let numbered =
            load::<MessageId>(store, &keys::next_message(&destination))?.map_or(0, |next| next.get());
        let waiting = counter(store, &keys::queue_length(&destination))?;
        delivered = delivered.wrapping_add(numbered.saturating_sub(waiting));
    }
    Ok(vec![
        (Topic::OSDS, osds),
        (Topic::PRESETS, presets),
        (Topic::NAMESPACES, namespaces),
        (Topic::GROUPS, groups),
        (Topic::MAINTENANCE, maintenance),
        (Topic::DELIVERIES, delivered),
    ])
}
