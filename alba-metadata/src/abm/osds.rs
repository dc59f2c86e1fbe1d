//! The registry of OSDs and their claims (features §1.4).

use alba_core::ids::{LongId, NamespaceId, OsdId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::preset::OsdSet;
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{
    AbmError, AbmOutcome, Destination, Message, NamespaceState, OsdFilter, OsdInfo, OsdMessage, OsdRecord,
    OsdState,
};

use super::lifecycle::{self, LinkState, OsdEvent};
use super::{MAX_RECORD, Refused, keys, namespaces, outbox, presets, record_of, refuse};
use crate::listing::page;
use crate::txn::KvTxn;
use crate::value::{damaged, decode, encode, last_number, load, save, scan_prefix};

fn check_size(info: &OsdInfo) -> Result<(), Refused> {
    if info.endpoint.ips.is_empty() {
        return refuse(AbmError::BadArgument(format!("OSD {} has no address", info.long_id)));
    }
    if encode(info)?.len() > MAX_RECORD {
        return refuse(AbmError::BadArgument(format!("OSD {}: too many addresses", info.long_id)));
    }
    Ok(())
}

pub(super) fn add(txn: &mut KvTxn<'_>, info: &OsdInfo) -> Result<AbmOutcome, Refused> {
    check_size(info)?;
    let key = keys::osd(&info.long_id);
    if txn.get(&key)?.is_some() {
        return refuse(AbmError::OsdExists(info.long_id.clone()));
    }
    let record =
        OsdRecord { info: info.clone(), osd_id: None, state: OsdState::Available, claimed_since: None };
    save(txn, key, &record)?;
    Ok(AbmOutcome::Done)
}

pub(super) fn update(txn: &mut KvTxn<'_>, info: &OsdInfo) -> Result<AbmOutcome, Refused> {
    check_size(info)?;
    let mut record = registered(txn, &info.long_id)?;
    let old = std::mem::replace(&mut record.info, info.clone());
    let moved = old.place != info.place;
    if let Some(id) = record.osd_id {
        if moved {
            // The groups index objects by how their fragments spread over nodes; they would all have to be indexed anew.
            return refuse(AbmError::BadArgument(format!(
                "OSD {} is claimed and stands at {}; a claimed OSD cannot change its place",
                info.long_id, old.place
            )));
        }
        if old.endpoint != info.endpoint {
            for namespace in namespaces_of(txn, id)? {
                // A link still on its way to the device will carry the new address by itself.
                let state: Option<LinkState> = load(txn, &keys::link(namespace, id))?;
                if matches!(state, Some(LinkState::OnDevice | LinkState::Active)) {
                    namespaces::tell_group_of_link(txn, namespace, id, info)?;
                }
            }
        }
    }
    save(txn, keys::osd(&info.long_id), &record)?;
    Ok(AbmOutcome::Done)
}

fn registered(txn: &KvTxn<'_>, long_id: &LongId) -> Result<OsdRecord, Refused> {
    match load(txn, &keys::osd(long_id))? {
        Some(record) => Ok(record),
        None => refuse(AbmError::OsdUnknown(long_id.clone())),
    }
}

fn namespaces_of(txn: &KvTxn<'_>, osd: OsdId) -> Result<Vec<NamespaceId>, KvError> {
    let entries = scan_prefix(txn, &keys::links_of_osd(osd), usize::MAX)?;
    entries.into_iter().map(|(key, _)| NamespaceId::new(last_number(&key)?).map_err(damaged)).collect()
}

/// The claim is on the device: give the OSD its id and link it to every namespace whose preset takes all OSDs.
pub(super) fn mark_claimed(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    long_id: &LongId,
) -> Result<AbmOutcome, Refused> {
    let mut record = registered(txn, long_id)?;
    let id = match (record.osd_id, lifecycle::osd(record.state, OsdEvent::Claimed)) {
        (None, Some(state)) => {
            record.state = state;
            load::<OsdId>(txn, keys::NEXT_OSD)?.unwrap_or(OsdId::from_u32(0))
        }
        // A repeat.
        (Some(id), _) => return Ok(AbmOutcome::OsdId(id)),
        (None, None) => return refuse(AbmError::OsdUnknown(long_id.clone())),
    };
    record.osd_id = Some(id);
    record.claimed_since = Some(now.0);
    save(txn, keys::NEXT_OSD, &id.next().ok_or_else(|| damaged("OSD ids are used up"))?)?;
    save(txn, keys::osd_by_id(id), long_id)?;
    save(txn, keys::osd(long_id), &record)?;
    let identify = Message::Osd(OsdMessage::Identify { osd_id: id });
    outbox::enqueue(txn, &Destination::Osd(id), &identify)?;
    for preset in presets::all(txn)? {
        if preset.preset.osds != OsdSet::All {
            continue;
        }
        for (key, _) in scan_prefix(txn, &keys::users_of_preset(&preset.name), usize::MAX)? {
            let namespace = NamespaceId::new(last_number(&key)?).map_err(damaged)?;
            match record_of(txn, namespace)? {
                Some(record) if record.state != NamespaceState::Removing => {
                    namespaces::start_link(txn, &record, &preset.preset, id)?;
                }
                _ => {}
            }
        }
    }
    Ok(AbmOutcome::OsdId(id))
}

/// Claimed OSDs that take new namespaces.
pub(super) fn active(store: &(impl KvRead + ?Sized)) -> Result<Vec<OsdId>, KvError> {
    let mut ids = Vec::new();
    for (key, value) in scan_prefix(store, keys::OSD_IDS, usize::MAX)? {
        let long_id: LongId = decode(&value)?;
        if load::<OsdRecord>(store, &keys::osd(&long_id))?.is_some_and(|osd| osd.state == OsdState::Active) {
            ids.push(OsdId::new(last_number(&key)?).map_err(damaged)?);
        }
    }
    Ok(ids)
}

/// The registered information of a claimed OSD.
pub(crate) fn info(store: &(impl KvRead + ?Sized), id: OsdId) -> Result<Option<OsdInfo>, KvError> {
    match load::<LongId>(store, &keys::osd_by_id(id))? {
        Some(long_id) => Ok(load::<OsdRecord>(store, &keys::osd(&long_id))?.map(|record| record.info)),
        None => Ok(None),
    }
}

pub(super) fn list(
    store: &(impl KvRead + ?Sized),
    filter: OsdFilter,
    range: &RangeQuery,
) -> Result<Page<OsdRecord>, KvError> {
    page(store, keys::OSDS, range, |_, value| {
        let record: OsdRecord = decode(value)?;
        let wanted = match filter {
            OsdFilter::All => true,
            OsdFilter::Claimed => record.osd_id.is_some(),
            OsdFilter::Available => record.osd_id.is_none(),
        };
        Ok(wanted.then_some(record))
    })
}
