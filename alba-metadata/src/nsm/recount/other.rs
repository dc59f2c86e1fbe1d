//! Checks of what does not follow from manifests alone: values in the metadata, findings, OSDs, epochs, notes of a move.

use std::collections::{BTreeMap, BTreeSet};

use alba_core::ids::{NamespaceId, ObjectId};
use alba_core::kv::{KvError, KvRead};
use alba_core::wire::rpc::nsm::{Finding, InlineValue};

use super::Difference;
use crate::nsm::access::{self, Moving, Outgoing};
use crate::nsm::keys::{self, Table};
use crate::nsm::{changes, epochs, indexes};
use crate::value::{PRESENT, VERSION, damaged, decode, get_long, last_number, scan_prefix};

fn differs(
    what: impl Into<String>,
    key: Vec<u8>,
    stored: Option<Vec<u8>>,
    expected: Option<Vec<u8>>,
) -> Difference {
    Difference { what: what.into(), key, stored, expected }
}

/// Exactly the objects without chunks have bytes here.
pub(super) fn inline_values(
    store: &dyn KvRead,
    namespace: NamespaceId,
    expected: &BTreeSet<ObjectId>,
    counters: &mut BTreeMap<Vec<u8>, u64>,
    differences: &mut Vec<Difference>,
) -> Result<(), KvError> {
    let table = keys::table(namespace, Table::InlineValues);
    let mut found = BTreeSet::new();
    for (key, value) in scan_prefix(store, &table, usize::MAX)? {
        let id = ObjectId::try_from(key.get(table.len()..).unwrap_or_default()).map_err(damaged)?;
        let value: InlineValue = decode(&value)?;
        let bytes = u64::try_from(value.packed.len()).map_err(damaged)?;
        *counters.entry(keys::table(namespace, Table::InlineBytes)).or_default() += bytes;
        found.insert(id);
    }
    for id in found.symmetric_difference(expected) {
        let what = format!("object {id}: bytes without such a manifest, or the reverse");
        differences.push(differs(what, keys::inline_value(namespace, id), None, None));
    }
    Ok(())
}

/// Each finding is indexed under its name and counted, and is not an object as well.
pub(super) fn findings(
    store: &dyn KvRead,
    namespace: NamespaceId,
    expected: &mut BTreeMap<Vec<u8>, Vec<u8>>,
    counters: &mut BTreeMap<Vec<u8>, u64>,
    differences: &mut Vec<Difference>,
) -> Result<(), KvError> {
    let table = keys::table(namespace, Table::Findings);
    let mut ids = BTreeSet::new();
    for (key, _) in scan_prefix(store, &table, usize::MAX)? {
        let id = key.get(table.len()..table.len() + 32).ok_or_else(|| damaged("a short finding key"))?;
        ids.insert(ObjectId::try_from(id).map_err(damaged)?);
    }
    for id in ids {
        let key = keys::finding(namespace, &id);
        let bytes = get_long(store, &key)?;
        let bytes = bytes.ok_or_else(|| damaged(format!("finding {id} lost its first piece")))?;
        let finding: Finding = decode(&bytes)?;
        let name = keys::finding_name(namespace, &finding.manifest.name, Some(&id));
        expected.insert(name, PRESENT.to_vec());
        *counters.entry(keys::table(namespace, Table::FindingCount)).or_default() += 1;
        if indexes::object(store, namespace, &id)?.is_some() {
            differences.push(differs("an object that is listed apart is stored as well", key, None, None));
        }
    }
    Ok(())
}

/// OSDs are used in one way only and have infos; the epochs are an interval.
pub(super) fn osds_and_epochs(
    store: &dyn KvRead,
    namespace: NamespaceId,
    differences: &mut Vec<Difference>,
) -> Result<(), KvError> {
    let osds = |table| -> Result<BTreeSet<u64>, KvError> {
        let found = scan_prefix(store, &keys::table(namespace, table), usize::MAX)?;
        found.iter().map(|(key, _)| last_number(key)).collect()
    };
    let infos = osds(Table::OsdInfos)?;
    let (active, draining) = (osds(Table::ActiveOsds)?, osds(Table::DrainingOsds)?);
    for osd in active.intersection(&draining) {
        let key = keys::table(namespace, Table::DrainingOsds);
        differences.push(differs(format!("OSD {osd} is active and draining"), key, None, None));
    }
    for osd in active.union(&draining).filter(|osd| !infos.contains(osd)) {
        let key = keys::table(namespace, Table::OsdInfos);
        differences.push(differs(format!("OSD {osd} is used and not known"), key, None, None));
    }
    if store.get(&keys::header(namespace))?.is_some() {
        let epochs = epochs::get(store, namespace)?;
        if epochs.min > epochs.newest {
            let what = format!("no gc epoch is valid: {epochs:?}");
            differences.push(differs(what, keys::table(namespace, Table::Epochs), None, None));
        }
    }
    Ok(())
}

/// The notes of a move are each other's reverse, and the digest is that of the rows.
pub(super) fn notes(
    store: &dyn KvRead,
    namespace: NamespaceId,
    differences: &mut Vec<Difference>,
) -> Result<(), KvError> {
    let state = access::state(store, namespace)?;
    let key = keys::state(namespace);
    let digest = match &state.moving {
        Some(Moving::Outgoing(outgoing)) if !outgoing.overflowed => {
            counted(store, namespace, outgoing, differences)?;
            Some((outgoing.digest, outgoing.covered.clone()))
        }
        Some(Moving::Incoming { digest, .. }) => Some((*digest, None)),
        _ => None,
    };
    if let Some((digest, covered)) = digest {
        let expected = changes::recount_digest(store, namespace, covered.as_deref())?;
        if digest != expected {
            let what = format!("the digest of the rows is {expected:?}, and {digest:?} is kept");
            differences.push(differs(what, key, None, None));
        }
    }
    Ok(())
}

fn counted(
    store: &dyn KvRead,
    namespace: NamespaceId,
    outgoing: &Outgoing,
    differences: &mut Vec<Difference>,
) -> Result<(), KvError> {
    let table = keys::table(namespace, Table::Changes);
    let log = scan_prefix(store, &table, usize::MAX)?;
    let by_key = scan_prefix(store, &keys::table(namespace, Table::ChangedKeys), usize::MAX)?;
    let lens = (u64::try_from(log.len()).ok(), u64::try_from(by_key.len()).ok());
    if lens != (Some(outgoing.noted), Some(outgoing.noted)) {
        let what = format!("{} notes, {} keys, counted {}", log.len(), by_key.len(), outgoing.noted);
        differences.push(differs(what, table, None, None));
    }
    for (change, value) in log {
        let number = last_number(&change)?;
        let rest = value.get(1..).unwrap_or_default();
        let key = keys::changed_key(namespace, rest);
        let mut expected = vec![VERSION];
        expected.extend_from_slice(&number.to_be_bytes());
        let stored = store.get(&key)?;
        if number > outgoing.last_change || stored.as_ref() != Some(&expected) {
            differences.push(differs("a note and its key differ", key, stored, Some(expected)));
        }
    }
    Ok(())
}
