//! Presets (features §2.2).

use alba_core::ids::{NamespaceId, OsdId, PresetName};
use alba_core::kv::{KvError, KvRead};
use alba_core::policy::Policy;
use alba_core::preset::{OsdSet, Preset};
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{AbmError, AbmOutcome, Destination, Message, NamespaceState, PresetRecord};
use alba_core::wire::rpc::nsm::NsmMessage;
use serde::{Deserialize, Serialize};

use super::revisions::{self, Kind};
use super::walks::{self, Walk};
use super::{MAX_RECORD, Refused, keys, outbox, record_of, refuse};
use crate::listing::page;
use crate::txn::KvTxn;
use crate::value::{damaged, decode, encode, load, save, scan_prefix};

/// The preset every backend begins with.
const BUILT_IN: &str = "default";

/// A preset as it is kept.
#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) preset: Preset,
    pub(super) version: u32,
}

pub(super) fn bootstrap(txn: &mut KvTxn<'_>) -> Result<(), KvError> {
    let name = PresetName::new(BUILT_IN).map_err(damaged)?;
    save(txn, keys::preset(&name), &Stored { preset: Preset::built_in(), version: 0 })?;
    revisions::bump(txn, Kind::Presets)?;
    save(txn, keys::DEFAULT_PRESET, &name)
}

fn put(txn: &mut KvTxn<'_>, name: &PresetName, stored: &Stored) -> Result<(), Refused> {
    let value = encode(stored)?;
    if value.len() > MAX_RECORD {
        return refuse(AbmError::PresetInvalid(format!("it takes more than {MAX_RECORD} bytes")));
    }
    txn.put(keys::preset(name), value);
    revisions::bump(txn, Kind::Presets)?;
    Ok(())
}

pub(super) fn load_stored(
    store: &(impl KvRead + ?Sized),
    name: &PresetName,
) -> Result<Option<Stored>, KvError> {
    load(store, &keys::preset(name))
}

fn known(txn: &KvTxn<'_>, name: &PresetName) -> Result<Stored, Refused> {
    match load_stored(txn, name)? {
        Some(stored) => Ok(stored),
        None => refuse(AbmError::PresetUnknown(name.clone())),
    }
}

fn check_osds(txn: &KvTxn<'_>, ids: &[OsdId]) -> Result<(), Refused> {
    for id in ids {
        if txn.get(&keys::osd_by_id(*id))?.is_none() {
            return refuse(AbmError::PresetInvalid(format!("there is no OSD {id}")));
        }
    }
    Ok(())
}

pub(super) fn create(txn: &mut KvTxn<'_>, name: &PresetName, preset: &Preset) -> Result<AbmOutcome, Refused> {
    if txn.get(&keys::preset(name))?.is_some() {
        return refuse(AbmError::PresetExists(name.clone()));
    }
    if let OsdSet::Explicit(ids) = &preset.osds {
        check_osds(txn, ids)?;
    }
    put(txn, name, &Stored { preset: preset.clone(), version: 0 })?;
    Ok(AbmOutcome::Done)
}

/// What a change of a preset has in common: the rules, the next version, and that all groups hear of it.
fn change(txn: &mut KvTxn<'_>, name: &PresetName, stored: Stored) -> Result<AbmOutcome, Refused> {
    if let Err(error) = stored.preset.check() {
        return refuse(AbmError::PresetInvalid(error.to_string()));
    }
    let version = stored.version.checked_add(1).ok_or_else(|| damaged("preset versions are used up"))?;
    put(txn, name, &Stored { version, ..stored })?;
    walks::start(txn, Walk::TellPreset(name.clone()))?;
    Ok(AbmOutcome::Done)
}

pub(super) fn update(
    txn: &mut KvTxn<'_>,
    name: &PresetName,
    policies: Option<&[Policy]>,
    fragment_size: Option<u32>,
) -> Result<AbmOutcome, Refused> {
    let mut stored = known(txn, name)?;
    if let Some(policies) = policies {
        stored.preset.policies = policies.to_vec();
    }
    if let Some(fragment_size) = fragment_size {
        stored.preset.fragment_size = fragment_size;
    }
    change(txn, name, stored)
}

/// More OSDs for an explicit preset; its namespaces get linked to them.
pub(super) fn add_osds(
    txn: &mut KvTxn<'_>,
    name: &PresetName,
    osds: &[OsdId],
) -> Result<AbmOutcome, Refused> {
    let mut stored = known(txn, name)?;
    let OsdSet::Explicit(ids) = &mut stored.preset.osds else {
        return refuse(AbmError::PresetInvalid(format!("preset {name} has all OSDs already")));
    };
    check_osds(txn, osds)?;
    let mut new: Vec<OsdId> = osds.iter().filter(|id| !ids.contains(id)).copied().collect();
    new.sort_unstable();
    new.dedup();
    if new.is_empty() {
        return Ok(AbmOutcome::Done);
    }
    ids.extend(&new);
    change(txn, name, stored)?;
    for id in new {
        walks::start(txn, Walk::LinkOsd(id))?;
    }
    Ok(AbmOutcome::Done)
}

pub(super) fn delete(txn: &mut KvTxn<'_>, name: &PresetName) -> Result<AbmOutcome, Refused> {
    known(txn, name)?;
    if !scan_prefix(txn, &keys::users_of_preset(name), 1)?.is_empty() {
        return refuse(AbmError::PresetInUse(name.clone()));
    }
    txn.delete(keys::preset(name));
    // A preset made later under this name must not inherit it.
    txn.delete(Walk::TellPreset(name.clone()).key());
    if default_name(txn)?.as_ref() == Some(name) {
        txn.delete(keys::DEFAULT_PRESET);
    }
    revisions::bump(txn, Kind::Presets)?;
    Ok(AbmOutcome::Done)
}

/// The group of a namespace hears of the newest version of its preset; groups take only higher versions than they have.
pub(super) fn tell_group(
    txn: &mut KvTxn<'_>,
    name: &PresetName,
    namespace: NamespaceId,
) -> Result<(), KvError> {
    let Some(record) = record_of(txn, namespace)?.filter(|r| r.state != NamespaceState::Removing) else {
        return Ok(());
    };
    let Some(stored) = load_stored(txn, name)? else { return Ok(()) };
    let preset = Box::new(stored.preset);
    let message = Message::Nsm(NsmMessage::UpdatePreset { namespace, preset, version: stored.version });
    outbox::enqueue(txn, &Destination::Group(record.group), &message).map(drop)
}

pub(super) fn set_default(txn: &mut KvTxn<'_>, name: &PresetName) -> Result<AbmOutcome, Refused> {
    known(txn, name)?;
    save(txn, keys::DEFAULT_PRESET, name)?;
    revisions::bump(txn, Kind::Presets)?;
    Ok(AbmOutcome::Done)
}

/// The name of the preset used when none is named.
pub(super) fn default_name(store: &(impl KvRead + ?Sized)) -> Result<Option<PresetName>, KvError> {
    load(store, keys::DEFAULT_PRESET)
}

fn record(store: &(impl KvRead + ?Sized), name: PresetName, stored: Stored) -> Result<PresetRecord, KvError> {
    let is_default = default_name(store)?.as_ref() == Some(&name);
    let in_use = !scan_prefix(store, &keys::users_of_preset(&name), 1)?.is_empty();
    Ok(PresetRecord { name, preset: stored.preset, version: stored.version, is_default, in_use })
}

pub(super) fn find(
    store: &(impl KvRead + ?Sized),
    name: &PresetName,
) -> Result<Option<PresetRecord>, KvError> {
    load(store, &keys::preset(name))?.map(|stored| record(store, name.clone(), stored)).transpose()
}

fn named(store: &(impl KvRead + ?Sized), key: &[u8], value: &[u8]) -> Result<PresetRecord, KvError> {
    let text = String::from_utf8(key.to_vec()).map_err(damaged)?;
    record(store, PresetName::new(text).map_err(damaged)?, decode(value)?)
}

pub(super) fn list(
    store: &(impl KvRead + ?Sized),
    range: &RangeQuery,
) -> Result<Page<PresetRecord>, KvError> {
    page(store, keys::PRESETS, range, |key, value| named(store, key, value).map(Some))
}
