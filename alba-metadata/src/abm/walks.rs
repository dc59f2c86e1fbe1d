//! Changes that concern thousands of namespaces or OSDs, made in bounded steps: the first with the command, the others
//! when the group tidies up. A walk keeps where it is, and looks at each item as it is then; so a walk that begins again,
//! or two that meet, come to the same end. There is at most one of each: to begin one again starts it over.

use std::ops::Bound;

use alba_core::ids::{NamespaceId, OsdId, PresetName};
use alba_core::kv::{Entry, KvError, KvRead};
use alba_core::range::next_prefix;
use alba_core::wire::rpc::abm::{Destination, PresetPropagation};
use serde::{Deserialize, Serialize};

use super::{keys, links, namespaces, osds, outbox, presets, record_of};
use crate::txn::KvTxn;
use crate::value::{Key, damaged, decode, last_number, load, save, scan_prefix};

/// Items per step: some thousands of changed keys, and messages of some MiB with the largest presets.
pub(super) const STEP: usize = 100;

/// What to go through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Walk {
    /// All namespaces: those that want the OSD get linked to it.
    LinkOsd(OsdId),
    /// The namespaces of an OSD that drains or leaves: they let go of it.
    LeaveOsd(OsdId),
    /// The namespaces of an OSD: their groups hear where it is now.
    TellAddress(OsdId),
    /// The namespaces of a preset: their groups hear what it is now.
    TellPreset(PresetName),
    /// All OSDs: those that the namespace wants get linked to it.
    LinkNamespace(NamespaceId),
    /// The OSDs of a namespace: its new group hears of them.
    TellGroup(NamespaceId),
    /// The OSDs of a namespace that its group has dropped: they drop it, then its record goes.
    Bury(NamespaceId),
    /// The messages to an OSD that is gone.
    DropQueue(OsdId),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) walk: Walk,
    /// The last key that is done; none: at the start.
    pub(super) after: Option<Vec<u8>>,
}

impl Walk {
    pub(super) fn key(&self) -> Vec<u8> {
        let of = |kind: u8, number: u64| Key::table(keys::WALKS).bytes(&[kind]).number(number).end();
        match self {
            Self::LinkOsd(osd) => of(1, osd.get()),
            Self::LeaveOsd(osd) => of(2, osd.get()),
            Self::TellAddress(osd) => of(3, osd.get()),
            Self::TellPreset(name) => {
                Key::table(keys::WALKS).bytes(&[4]).bytes(name.as_str().as_bytes()).end()
            }
            Self::LinkNamespace(namespace) => of(5, namespace.get()),
            Self::TellGroup(namespace) => of(6, namespace.get()),
            Self::Bury(namespace) => of(7, namespace.get()),
            Self::DropQueue(osd) => of(8, osd.get()),
        }
    }

    /// The keys it goes through.
    fn over(&self) -> Vec<u8> {
        match self {
            Self::LinkOsd(_) => keys::NAMESPACE_IDS.to_vec(),
            Self::LeaveOsd(osd) | Self::TellAddress(osd) => keys::links_of_osd(*osd),
            Self::TellPreset(name) => keys::users_of_preset(name),
            Self::LinkNamespace(_) => keys::OSD_IDS.to_vec(),
            Self::TellGroup(namespace) | Self::Bury(namespace) => keys::links_of_namespace(*namespace),
            Self::DropQueue(osd) => keys::messages(&Destination::Osd(*osd)),
        }
    }
}

/// Begins a walk with its first step; what is left is done later.
pub(super) fn start(txn: &mut KvTxn<'_>, walk: Walk) -> Result<(), KvError> {
    step(txn, Stored { walk, after: None })
}

/// One step of the next walk in turn; false when there is none.
pub(super) fn go_on(txn: &mut KvTxn<'_>) -> Result<bool, KvError> {
    // In turn, so that one that is started over and over does not hold up the others.
    let last: Vec<u8> = load(txn, keys::LAST_WALK)?.unwrap_or_default();
    let end = next_prefix(keys::WALKS);
    let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let mut found = Vec::new();
    if last.starts_with(keys::WALKS) {
        found = txn.scan(Bound::Excluded(&last), upper, false, 1)?;
    }
    if found.is_empty() {
        found = scan_prefix(txn, keys::WALKS, 1)?;
    }
    let Some((key, value)) = found.into_iter().next() else {
        if !last.is_empty() {
            txn.delete(keys::LAST_WALK);
        }
        return Ok(false);
    };
    step(txn, decode(&value)?)?;
    save(txn, keys::LAST_WALK, &key)?;
    Ok(true)
}

fn step(txn: &mut KvTxn<'_>, stored: Stored) -> Result<(), KvError> {
    let Stored { walk, after } = stored;
    let over = walk.over();
    let entries = next_entries(txn, &over, after.as_deref(), STEP)?;
    let finished = entries.len() < STEP;
    let last = entries.last().map(|(key, _)| key.clone());
    for (key, _) in entries {
        item(txn, &walk, &key)?;
    }
    if finished {
        txn.delete(walk.key());
        end(txn, &walk)
    } else {
        save(txn, walk.key(), &Stored { walk: walk.clone(), after: last })
    }
}

fn next_entries(
    store: &(impl KvRead + ?Sized),
    prefix: &[u8],
    after: Option<&[u8]>,
    limit: usize,
) -> Result<Vec<Entry>, KvError> {
    let end = next_prefix(prefix);
    let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    store.scan(after.map_or(Bound::Included(prefix), Bound::Excluded), upper, false, limit)
}

fn item(txn: &mut KvTxn<'_>, walk: &Walk, key: &[u8]) -> Result<(), KvError> {
    let number = || last_number(key);
    match walk {
        Walk::LinkOsd(osd) | Walk::LeaveOsd(osd) => {
            links::reconcile(txn, NamespaceId::new(number()?).map_err(damaged)?, *osd)
        }
        Walk::LinkNamespace(namespace) => {
            links::reconcile(txn, *namespace, OsdId::new(number()?).map_err(damaged)?)
        }
        Walk::TellAddress(osd) => {
            links::tell_address(txn, NamespaceId::new(number()?).map_err(damaged)?, *osd)
        }
        Walk::TellPreset(name) => {
            presets::tell_group(txn, name, NamespaceId::new(number()?).map_err(damaged)?)
        }
        Walk::TellGroup(namespace) => {
            links::tell_new_group(txn, *namespace, OsdId::new(number()?).map_err(damaged)?)
        }
        Walk::Bury(namespace) => links::bury(txn, *namespace, OsdId::new(number()?).map_err(damaged)?),
        Walk::DropQueue(osd) => outbox::forget(txn, &Destination::Osd(*osd), number()?),
    }
}

fn end(txn: &mut KvTxn<'_>, walk: &Walk) -> Result<(), KvError> {
    match walk {
        Walk::Bury(namespace) => namespaces::forget(txn, *namespace),
        // Messages may have come while it walked.
        Walk::DropQueue(osd) if osds::by_id(txn, *osd)?.is_none() => {
            outbox::forget_queue(txn, &Destination::Osd(*osd))
        }
        _ => Ok(()),
    }
}

/// The walks that are not finished.
pub(super) fn all(store: &(impl KvRead + ?Sized)) -> Result<Vec<(Vec<u8>, Stored)>, KvError> {
    let entries = scan_prefix(store, keys::WALKS, usize::MAX)?;
    entries.into_iter().map(|(key, value)| Ok((key, decode(&value)?))).collect()
}

/// Presets on their way to the groups.
pub(super) fn propagation(store: &(impl KvRead + ?Sized)) -> Result<Vec<PresetPropagation>, KvError> {
    let mut found = Vec::new();
    for (_, Stored { walk, after }) in all(store)? {
        let Walk::TellPreset(preset) = walk else { continue };
        let users = next_entries(store, &keys::users_of_preset(&preset), after.as_deref(), usize::MAX)?;
        let Some(record) = presets::find(store, &preset)? else { continue };
        let pending = u64::try_from(users.len()).unwrap_or(u64::MAX);
        found.push(PresetPropagation { preset, version: record.version, pending });
    }
    Ok(found)
}

/// The namespace a walk is about, while its record is needed.
pub(super) fn is_linking(store: &(impl KvRead + ?Sized), namespace: NamespaceId) -> Result<bool, KvError> {
    Ok(record_of(store, namespace)?.is_some() && store.get(&Walk::LinkNamespace(namespace).key())?.is_some())
}
