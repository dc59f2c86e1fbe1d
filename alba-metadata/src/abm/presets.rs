//! Presets (features §2.2).

use alba_core::ids::PresetName;
use alba_core::kv::{KvError, KvRead};
use alba_core::preset::{OsdSet, Preset};
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{AbmError, AbmOutcome, PresetRecord};
use serde::{Deserialize, Serialize};

use super::{MAX_RECORD, Refused, keys, refuse};
use crate::listing::page;
use crate::txn::KvTxn;
use crate::value::{damaged, decode, encode, load, save, scan_prefix};

/// The preset every backend begins with.
const BUILT_IN: &str = "default";

#[derive(Serialize, Deserialize)]
struct Stored {
    preset: Preset,
    version: u32,
}

pub(super) fn bootstrap(txn: &mut KvTxn<'_>) -> Result<(), KvError> {
    let name = PresetName::new(BUILT_IN).map_err(damaged)?;
    save(txn, keys::preset(&name), &Stored { preset: Preset::built_in(), version: 0 })?;
    save(txn, keys::DEFAULT_PRESET, &name)
}

pub(super) fn create(txn: &mut KvTxn<'_>, name: &PresetName, preset: &Preset) -> Result<AbmOutcome, Refused> {
    let key = keys::preset(name);
    if txn.get(&key)?.is_some() {
        return refuse(AbmError::PresetExists(name.clone()));
    }
    if let OsdSet::Explicit(ids) = &preset.osds {
        for id in ids {
            if txn.get(&keys::osd_by_id(*id))?.is_none() {
                return refuse(AbmError::PresetInvalid(format!("there is no OSD {id}")));
            }
        }
    }
    let stored = Stored { preset: preset.clone(), version: 0 };
    if encode(&stored)?.len() > MAX_RECORD {
        return refuse(AbmError::PresetInvalid(format!("it takes more than {MAX_RECORD} bytes")));
    }
    save(txn, key, &stored)?;
    Ok(AbmOutcome::Done)
}

pub(super) fn set_default(txn: &mut KvTxn<'_>, name: &PresetName) -> Result<AbmOutcome, Refused> {
    if txn.get(&keys::preset(name))?.is_none() {
        return refuse(AbmError::PresetUnknown(name.clone()));
    }
    save(txn, keys::DEFAULT_PRESET, name)?;
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

pub(super) fn all(store: &(impl KvRead + ?Sized)) -> Result<Vec<PresetRecord>, KvError> {
    let entries = scan_prefix(store, keys::PRESETS, usize::MAX)?;
    entries.iter().map(|(key, value)| named(store, key.get(1..).unwrap_or_default(), value)).collect()
}
