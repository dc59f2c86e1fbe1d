//! The registry of NSM groups: where they are, what they have to do, and where new namespaces go.

use alba_core::ids::GroupId;
use alba_core::kv::{KvError, KvRead};
use alba_core::wire::rpc::abm::{AbmError, AbmOutcome, GroupLoad, GroupRecord};
use serde::{Deserialize, Serialize};

use super::revisions::{self, Kind};
use super::{MAX_RECORD, Refused, keys, refuse};
use crate::txn::{KvTxn, counter};
use crate::value::{damaged, decode, encode, load, save, scan_prefix};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    servers: Vec<String>,
    lost: bool,
}

fn put(txn: &mut KvTxn<'_>, id: &GroupId, stored: &Stored) -> Result<(), Refused> {
    let value = encode(stored)?;
    if stored.servers.is_empty() || value.len() > MAX_RECORD {
        return refuse(AbmError::BadArgument("a group needs servers, and not that many".to_owned()));
    }
    txn.put(keys::group(id), value);
    revisions::bump(txn, Kind::Groups)?;
    Ok(())
}

fn find(store: &(impl KvRead + ?Sized), id: &GroupId) -> Result<Stored, Refused> {
    match load(store, &keys::group(id))? {
        Some(stored) => Ok(stored),
        None => refuse(AbmError::GroupUnknown(id.clone())),
    }
}

/// Adds a group, or says where it is now: servers tell this at every start.
pub(super) fn add(txn: &mut KvTxn<'_>, id: &GroupId, servers: &[String]) -> Result<AbmOutcome, Refused> {
    let old: Option<Stored> = load(txn, &keys::group(id))?;
    let lost = old.as_ref().is_some_and(|old| old.lost);
    let stored = Stored { servers: servers.to_vec(), lost };
    if old.as_ref() != Some(&stored) {
        put(txn, id, &stored)?;
    }
    Ok(AbmOutcome::Done)
}

pub(super) fn create(txn: &mut KvTxn<'_>, id: &GroupId, servers: &[String]) -> Result<AbmOutcome, Refused> {
    if txn.get(&keys::group(id))?.is_some() {
        return refuse(AbmError::GroupExists(id.clone()));
    }
    add(txn, id, servers)
}

pub(super) fn update(
    txn: &mut KvTxn<'_>,
    id: &GroupId,
    servers: Option<&[String]>,
    lost: bool,
) -> Result<AbmOutcome, Refused> {
    let mut stored = find(txn, id)?;
    if let Some(servers) = servers {
        stored.servers = servers.to_vec();
    }
    // Never taken back: messages were marked delivered that it did not get.
    stored.lost |= lost;
    put(txn, id, &stored)?;
    Ok(AbmOutcome::Done)
}

pub(super) fn report(txn: &mut KvTxn<'_>, id: &GroupId, load: &GroupLoad) -> Result<AbmOutcome, Refused> {
    find(txn, id)?;
    save(txn, keys::reported_load(id), load)?;
    Ok(AbmOutcome::Done)
}

pub(super) fn is_lost(store: &(impl KvRead + ?Sized), id: &GroupId) -> Result<bool, KvError> {
    Ok(load::<Stored>(store, &keys::group(id))?.is_some_and(|stored| stored.lost))
}

/// A group that can take a namespace.
pub(super) fn usable(store: &(impl KvRead + ?Sized), id: &GroupId) -> Result<(), Refused> {
    if find(store, id)?.lost {
        return refuse(AbmError::BadArgument(format!("NSM group {id} is lost")));
    }
    Ok(())
}

pub(super) fn all(store: &(impl KvRead + ?Sized)) -> Result<Vec<GroupRecord>, KvError> {
    let entries = scan_prefix(store, keys::GROUPS, usize::MAX)?;
    entries
        .into_iter()
        .map(|(key, value)| {
            let text = String::from_utf8(key.get(1..).unwrap_or_default().to_vec()).map_err(damaged)?;
            let id = GroupId::new(text).map_err(damaged)?;
            let namespaces = counter(store, &keys::group_load(&id))?;
            let reported: GroupLoad = load(store, &keys::reported_load(&id))?.unwrap_or_default();
            let Stored { servers, lost } = decode(&value)?;
            Ok(GroupRecord { id, servers, namespaces, lost, load: reported })
        })
        .collect()
}

/// Where a new namespace goes: the group with the least share, in thousandths, of all namespaces, operations and bytes
/// together; of equals the first by name. Lost ones never.
pub(super) fn least_loaded(groups: Vec<GroupRecord>) -> Option<GroupId> {
    let usable: Vec<GroupRecord> = groups.into_iter().filter(|group| !group.lost).collect();
    let measures: [fn(&GroupRecord) -> u64; 3] =
        [|group| group.namespaces, |group| group.load.operations_per_minute, |group| group.load.bytes];
    let share = |group: &GroupRecord| -> u128 {
        let shares = measures.iter().map(|measure| {
            let sum: u128 = usable.iter().map(|group| u128::from(measure(group))).sum();
            (u128::from(measure(group)) * 1000).checked_div(sum).unwrap_or(0)
        });
        shares.sum()
    };
    usable.iter().min_by_key(|group| share(group)).map(|group| group.id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_go_where_the_least_is_to_do() {
        let group = |name: &str, namespaces, operations_per_minute, bytes, lost| GroupRecord {
            id: GroupId::new(name).unwrap(),
            servers: Vec::new(),
            namespaces,
            lost,
            load: GroupLoad { operations_per_minute, bytes },
        };
        let choose = |groups: &[GroupRecord]| least_loaded(groups.to_vec()).map(String::from);
        assert_eq!(choose(&[]), None);
        assert_eq!(choose(&[group("a", 0, 0, 0, true)]), None);
        assert_eq!(choose(&[group("a", 0, 0, 0, false), group("b", 0, 0, 0, false)]).unwrap(), "a");
        assert_eq!(choose(&[group("a", 2, 0, 0, false), group("b", 1, 0, 0, false)]).unwrap(), "b");
        // Few namespaces, but busy ones.
        let busy = [group("a", 1, 9000, 1 << 30, false), group("b", 3, 10, 1 << 20, false)];
        assert_eq!(choose(&busy).unwrap(), "b");
        let lost = [group("a", 0, 0, 0, true), group("b", 3, 10, 1 << 20, false)];
        assert_eq!(choose(&lost).unwrap(), "b");
        let most = [group("a", u64::MAX, u64::MAX, u64::MAX, false), group("b", u64::MAX, 1, 1, false)];
        assert_eq!(choose(&most).unwrap(), "b");
    }
}
