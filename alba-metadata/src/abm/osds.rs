//! The registry of OSDs and their claims (features §1.4).

use alba_core::ids::{LongId, NamespaceId, OsdId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{
    AbmError, AbmOutcome, Destination, Message, OsdFilter, OsdHealth, OsdInfo, OsdKind, OsdMessage,
    OsdRecord, OsdReport, OsdState, WorkItem,
};

use super::lifecycle::{self, OsdEvent, OsdFate};
use super::revisions::{self, Kind};
use super::walks::{self, Walk};
use super::{MAX_RECORD, Refused, keys, links, outbox, refuse, work};
use crate::listing::page;
use crate::txn::{KvTxn, counter};
use crate::value::{damaged, decode, encode, last_number, load, save, scan_prefix};

/// Most OSDs per report: a client reports those it used since.
const REPORTS_MAX: usize = 200;

/// Longest owner kept, in characters: it comes from a foreign device.
const OWNER_MAX: usize = 256;

fn check_size(info: &OsdInfo) -> Result<(), Refused> {
    if info.endpoint.ips.is_empty() {
        return refuse(AbmError::BadArgument(format!("OSD {} has no address", info.long_id)));
    }
    if !info.endpoint.ports.is_valid() {
        return refuse(AbmError::BadArgument(format!("OSD {}: 0 is no port", info.long_id)));
    }
    if encode(info)?.len() > MAX_RECORD {
        return refuse(AbmError::BadArgument(format!("OSD {}: too many addresses", info.long_id)));
    }
    Ok(())
}

/// Stores a record.
fn put(txn: &mut KvTxn<'_>, record: &OsdRecord) -> Result<(), KvError> {
    save(txn, keys::osd(&record.info.long_id), record)?;
    revisions::bump(txn, Kind::Osds)
}

pub(super) fn add(txn: &mut KvTxn<'_>, info: &OsdInfo) -> Result<AbmOutcome, Refused> {
    check_size(info)?;
    if txn.get(&keys::osd(&info.long_id))?.is_some() {
        return refuse(AbmError::OsdExists(info.long_id.clone()));
    }
    let record = OsdRecord {
        info: info.clone(),
        osd_id: None,
        state: OsdState::Available,
        claimed_since: None,
        kind: OsdKind::Asd,
        owner: None,
    };
    put(txn, &record)?;
    Ok(AbmOutcome::Done)
}

pub(super) fn update(txn: &mut KvTxn<'_>, info: &OsdInfo) -> Result<AbmOutcome, Refused> {
    check_size(info)?;
    let mut record = registered(txn, &info.long_id)?;
    let old = std::mem::replace(&mut record.info, info.clone());
    if old == *info {
        return Ok(AbmOutcome::Done);
    }
    if let Some(id) = record.osd_id
        && old.place != info.place
        && links::any_of_osd(txn, id)?
    {
        // The groups index objects by how their fragments spread over nodes; they would all have to be indexed anew.
        return refuse(AbmError::OsdInfoMismatch {
            long_id: info.long_id.clone(),
            reason: format!(
                "it has data of namespaces and stands at {}; decommission it to move it",
                old.place
            ),
        });
    }
    put(txn, &record)?;
    if let Some(id) = record.osd_id
        && old.endpoint != info.endpoint
    {
        txn.add(keys::PEERS_REVISION, 1)?;
        walks::start(txn, Walk::TellAddress(id))?;
    }
    Ok(AbmOutcome::Done)
}

fn registered(txn: &KvTxn<'_>, long_id: &LongId) -> Result<OsdRecord, Refused> {
    match load(txn, &keys::osd(long_id))? {
        Some(record) => Ok(record),
        None => refuse(AbmError::OsdUnknown(long_id.clone())),
    }
}

/// The claim is on the device: give the OSD its id and link it to every namespace whose preset takes all OSDs.
pub(super) fn mark_claimed(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    long_id: &LongId,
) -> Result<AbmOutcome, Refused> {
    let mut record = registered(txn, long_id)?;
    let id = match (record.osd_id, lifecycle::osd(record.state, OsdEvent::Claimed)) {
        (None, Some(OsdFate::Is(state))) => {
            record.state = state;
            load::<OsdId>(txn, keys::NEXT_OSD)?.unwrap_or(OsdId::from_u32(0))
        }
        // A repeat.
        (Some(id), _) if !record.state.is_leaving() => return Ok(AbmOutcome::OsdId(id)),
        // Its fragments are being moved away, or are gone: it has to be wiped, and comes back as a new one.
        _ => return refuse(AbmError::OsdDecommissioned(long_id.clone())),
    };
    record.osd_id = Some(id);
    record.owner = None;
    record.claimed_since = Some(now.0);
    save(txn, keys::NEXT_OSD, &id.next().ok_or_else(|| damaged("OSD ids are used up"))?)?;
    save(txn, keys::osd_by_id(id), long_id)?;
    put(txn, &record)?;
    txn.add(keys::PEERS_REVISION, 1)?;
    let identify = Message::Osd(OsdMessage::Identify { osd_id: id });
    outbox::enqueue(txn, &Destination::Osd(id), &identify)?;
    walks::start(txn, Walk::LinkOsd(id))?;
    Ok(AbmOutcome::OsdId(id))
}

/// The device says whose it is: its word counts, not ours.
pub(super) fn mark_foreign(
    txn: &mut KvTxn<'_>,
    long_id: &LongId,
    owner: &str,
) -> Result<AbmOutcome, Refused> {
    let mut record = registered(txn, long_id)?;
    if let Some(OsdFate::Is(state)) = lifecycle::osd(record.state, OsdEvent::Foreign) {
        record.state = state;
        record.owner = Some(owner.chars().take(OWNER_MAX).collect());
        put(txn, &record)?;
    }
    Ok(AbmOutcome::Done)
}

pub(super) fn drain(txn: &mut KvTxn<'_>, long_id: &LongId, draining: bool) -> Result<AbmOutcome, Refused> {
    let mut record = registered(txn, long_id)?;
    let event = if draining { OsdEvent::Drain } else { OsdEvent::Undrain };
    let (Some(id), Some(OsdFate::Is(state))) = (record.osd_id, lifecycle::osd(record.state, event)) else {
        return refuse(not_ours(&record));
    };
    if record.state != state {
        record.state = state;
        put(txn, &record)?;
        walks::start(txn, if draining { Walk::LeaveOsd(id) } else { Walk::LinkOsd(id) })?;
    }
    Ok(AbmOutcome::Done)
}

/// Why an OSD cannot be drained or decommissioned.
fn not_ours(record: &OsdRecord) -> AbmError {
    let long_id = record.info.long_id.clone();
    if record.state.is_leaving() {
        AbmError::OsdDecommissioned(long_id)
    } else {
        AbmError::BadArgument(format!("OSD {long_id} is not claimed by this backend"))
    }
}

pub(super) fn decommission(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    long_id: &LongId,
) -> Result<AbmOutcome, Refused> {
    let mut record = registered(txn, long_id)?;
    let fate = lifecycle::osd(record.state, OsdEvent::Decommission);
    let (Some(id), Some(OsdFate::Is(state))) = (record.osd_id, fate) else {
        return refuse(not_ours(&record));
    };
    record.state = state;
    put(txn, &record)?;
    work::add(txn, now, &WorkItem::WaitUntilDecommissioned { osd: id })?;
    walks::start(txn, Walk::LeaveOsd(id))?;
    Ok(AbmOutcome::Done)
}

pub(super) fn purge(txn: &mut KvTxn<'_>, now: Timestamp, long_id: &LongId) -> Result<AbmOutcome, Refused> {
    let mut record = registered(txn, long_id)?;
    match (lifecycle::osd(record.state, OsdEvent::Purge), record.osd_id) {
        (Some(OsdFate::Is(state)), Some(id)) => {
            if record.state != state {
                record.state = state;
                put(txn, &record)?;
                txn.add(keys::PEERS_REVISION, 1)?;
                // It is there already when the OSD was being decommissioned.
                work::add(txn, now, &WorkItem::WaitUntilDecommissioned { osd: id })?;
                walks::start(txn, Walk::LeaveOsd(id))?;
                walks::start(txn, Walk::DropQueue(id))?;
            }
        }
        _ => forget(txn, &record)?,
    }
    Ok(AbmOutcome::Done)
}

/// No namespace is linked to it any more.
pub(super) fn emptied(txn: &mut KvTxn<'_>, id: OsdId) -> Result<(), Refused> {
    let Some(mut record) = by_id(txn, id)? else { return Ok(()) };
    if links::any_of_osd(txn, id)? {
        return refuse(AbmError::BadArgument(format!("OSD {id} is still linked to namespaces")));
    }
    match lifecycle::osd(record.state, OsdEvent::Emptied) {
        Some(OsdFate::Is(state)) => {
            record.state = state;
            put(txn, &record)?;
            txn.add(keys::PEERS_REVISION, 1)?;
            Ok(())
        }
        Some(OsdFate::Forgotten) => forget(txn, &record).map_err(Into::into),
        None => Ok(()),
    }
}

/// Nothing is left of it but its id, which is never used again.
fn forget(txn: &mut KvTxn<'_>, record: &OsdRecord) -> Result<(), KvError> {
    txn.delete(keys::osd(&record.info.long_id));
    txn.delete(keys::health(&record.info.long_id));
    revisions::bump(txn, Kind::Osds)?;
    if let Some(id) = record.osd_id {
        txn.delete(keys::osd_by_id(id));
        txn.delete(keys::peers_told(id));
        txn.add(keys::PEERS_REVISION, 1)?;
        walks::start(txn, Walk::DropQueue(id))?;
    }
    Ok(())
}

/// Merges what clients saw.
pub(super) fn report(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    reports: &[(LongId, OsdReport)],
) -> Result<AbmOutcome, Refused> {
    if reports.len() > REPORTS_MAX {
        return refuse(AbmError::BadArgument(format!("at most {REPORTS_MAX} OSDs per report")));
    }
    for (long_id, report) in reports {
        let Some(mut record) = load::<OsdRecord>(txn, &keys::osd(long_id))? else { continue };
        let mut health: OsdHealth = load(txn, &keys::health(long_id))?.unwrap_or_default();
        health.merge(now.0, report);
        save(txn, keys::health(long_id), &health)?;
        if let Some(usage) = report.usage {
            // Not a change that watchers hear of: it would be one with every report.
            record.info.capacity = usage.capacity;
            record.info.used = usage.used;
            save(txn, keys::osd(long_id), &record)?;
        }
    }
    Ok(AbmOutcome::Done)
}

/// The record of an OSD that was claimed.
pub(crate) fn by_id(store: &(impl KvRead + ?Sized), id: OsdId) -> Result<Option<OsdRecord>, KvError> {
    match load::<LongId>(store, &keys::osd_by_id(id))? {
        Some(long_id) => load(store, &keys::osd(&long_id)),
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
            OsdFilter::Claimed => record.state.is_claimed(),
            OsdFilter::Available => record.state == OsdState::Available,
            OsdFilter::Decommissioning => {
                matches!(record.state, OsdState::Decommissioning | OsdState::Purging)
            }
            OsdFilter::Purging => record.state == OsdState::Purging,
            OsdFilter::Draining => record.state == OsdState::Draining,
        };
        Ok(wanted.then_some(record))
    })
}

pub(super) fn health(
    store: &(impl KvRead + ?Sized),
    range: &RangeQuery,
) -> Result<Page<(LongId, OsdHealth)>, KvError> {
    page(store, keys::HEALTH, range, |key, value| {
        let text = String::from_utf8(key.to_vec()).map_err(damaged)?;
        Ok(Some((LongId::new(text).map_err(damaged)?, decode(value)?)))
    })
}

/// The namespaces that an OSD is linked to.
pub(super) fn namespaces(
    store: &(impl KvRead + ?Sized),
    osd: OsdId,
    after: Option<NamespaceId>,
    max: u32,
) -> Result<Page<NamespaceId>, KvError> {
    let range = after_number(after.map(NamespaceId::get), max);
    page(store, &keys::links_of_osd(osd), &range, |key, _| {
        NamespaceId::new(last_number(key)?).map(Some).map_err(damaged)
    })
}

/// A page of numbers.
pub(super) fn after_number(after: Option<u64>, max: u32) -> RangeQuery {
    let max = i32::try_from(max).unwrap_or(i32::MAX);
    let range = RangeQuery { max, ..RangeQuery::all() };
    match after {
        Some(number) => range.after(&number.to_be_bytes()),
        None => range,
    }
}

/// What the devices may have to be told of each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Peers {
    /// Of the list.
    pub(crate) revision: u64,
    /// From whom OSDs may copy, at most [`PEERS_MAX`] of them.
    pub(crate) list: Vec<OsdInfo>,
    /// Who has an older list.
    pub(crate) untold: Vec<(OsdId, OsdInfo)>,
}

/// Most peers told: their list is one request to the device.
const PEERS_MAX: usize = 10_000;

/// Grows with every change of the list of peers.
pub(crate) fn peers_revision(store: &dyn KvRead) -> Result<u64, KvError> {
    counter(store, keys::PEERS_REVISION)
}

/// Who may copy from whom, and who does not know it yet.
pub(crate) fn peers(store: &dyn KvRead) -> Result<Peers, KvError> {
    let mut peers = Peers { revision: peers_revision(store)?, ..Peers::default() };
    for (key, value) in scan_prefix(store, keys::OSD_IDS, usize::MAX)? {
        let long_id: LongId = decode(&value)?;
        let Some(record) = load::<OsdRecord>(store, &keys::osd(&long_id))? else { continue };
        if matches!(record.state, OsdState::Purging | OsdState::Decommissioned) {
            continue;
        }
        let id = OsdId::new(last_number(&key)?).map_err(damaged)?;
        let told: u64 = load(store, &keys::peers_told(id))?.unwrap_or_default();
        if told < peers.revision {
            peers.untold.push((id, record.info.clone()));
        }
        if peers.list.len() < PEERS_MAX {
            peers.list.push(record.info);
        }
    }
    Ok(peers)
}

pub(super) fn peers_told(txn: &mut KvTxn<'_>, osd: OsdId, revision: u64) -> Result<AbmOutcome, Refused> {
    let told: u64 = load(txn, &keys::peers_told(osd))?.unwrap_or_default();
    if told < revision && by_id(txn, osd)?.is_some() {
        save(txn, keys::peers_told(osd), &revision)?;
    }
    Ok(AbmOutcome::Done)
}
