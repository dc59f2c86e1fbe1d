//! Makes every index and counter of the ABM again from its records, and says where the stored ones differ.

use std::collections::{BTreeMap, BTreeSet};

use alba_core::ids::{LongId, NamespaceId, OsdId};
use alba_core::kv::{KvError, KvRead};
use alba_core::wire::rpc::abm::{
    DeadLetter, JobRecord, NamespaceRecord, NamespaceState, OsdRecord, SurveyRecord, UnrepairedRecord,
    WorkItem, WorkRecord,
};

use super::keys;
use super::lifecycle::LinkState;
use super::walks;
use super::{groups, outbox, presets};
use crate::nsm::Difference;
use crate::value::{PRESENT, damaged, decode, encode, last_number, load, scan_prefix};

/// Tables that follow from the records.
const DERIVED: [&[u8]; 13] = [
    keys::OSD_IDS,
    keys::PRESET_USERS,
    keys::NAMESPACE_IDS,
    keys::MOVING,
    keys::GROUP_COUNTS,
    keys::LINKS_BACK,
    keys::QUEUE_LENGTHS,
    keys::LETTERS_BY_NAMESPACE,
    keys::LETTER_COUNTS,
    keys::WORK_BY_ITEM,
    keys::WORK_BY_TIME,
    keys::WORK_COUNT,
    keys::UNREPAIRED_COUNT,
];

#[derive(Default)]
struct Count {
    expected: BTreeMap<Vec<u8>, Vec<u8>>,
    counters: BTreeMap<Vec<u8>, u64>,
    differences: Vec<Difference>,
}

impl Count {
    fn expect(&mut self, key: Vec<u8>, value: Vec<u8>) {
        if self.expected.insert(key.clone(), value).is_some() {
            self.wrong("two records lead to one index entry", key);
        }
    }

    fn count(&mut self, key: Vec<u8>) {
        *self.counters.entry(key).or_default() += 1;
    }

    fn wrong(&mut self, what: impl Into<String>, key: Vec<u8>) {
        self.differences.push(Difference { what: what.into(), key, stored: None, expected: None });
    }
}

/// Compares. Needs memory for the ABM's keys: for tests and for an operator's check.
pub fn recount(store: &dyn KvRead) -> Result<Vec<Difference>, KvError> {
    let mut count = Count::default();
    let osds = osds(store, &mut count)?;
    let namespaces = namespaces(store, &mut count)?;
    links(store, &mut count, &osds, &namespaces)?;
    queues(store, &mut count)?;
    work(store, &mut count, &osds)?;
    jobs(store, &mut count)?;
    care(store, &mut count, &namespaces)?;
    if let Some(name) = presets::default_name(store)?
        && store.get(&keys::preset(&name))?.is_none()
    {
        count.wrong(format!("the default preset {name} does not exist"), keys::DEFAULT_PRESET.to_vec());
    }
    for (key, stored) in walks::all(store)? {
        if stored.walk.key() != key {
            count.wrong("a walk under a wrong key", key);
        }
    }
    let Count { mut expected, counters, mut differences } = count;
    expected.extend(counters.into_iter().map(|(key, value)| (key, value.to_le_bytes().to_vec())));
    let mut stored = BTreeMap::new();
    for table in DERIVED {
        stored.extend(scan_prefix(store, table, usize::MAX)?);
    }
    let all: BTreeSet<&Vec<u8>> = stored.keys().chain(expected.keys()).collect();
    for key in all {
        let (stored, expected) = (stored.get(key), expected.get(key));
        if stored != expected {
            differences.push(Difference {
                what: "an index or counter".to_owned(),
                key: key.clone(),
                stored: stored.cloned(),
                expected: expected.cloned(),
            });
        }
    }
    Ok(differences)
}

fn osds(store: &dyn KvRead, count: &mut Count) -> Result<BTreeMap<OsdId, OsdRecord>, KvError> {
    let next: OsdId = load(store, keys::NEXT_OSD)?.unwrap_or(OsdId::from_u32(0));
    let mut found = BTreeMap::new();
    for (key, value) in scan_prefix(store, keys::OSDS, usize::MAX)? {
        let record: OsdRecord = decode(&value)?;
        if keys::osd(&record.info.long_id) != key {
            count.wrong("an OSD under another name", key.clone());
        }
        if record.state.is_claimed() != record.osd_id.is_some() {
            count.wrong(
                format!("an OSD in state {:?} with id {:?}", record.state, record.osd_id),
                key.clone(),
            );
        }
        if let Some(id) = record.osd_id {
            if id >= next {
                count.wrong("an OSD id that has not been given yet", key);
            }
            count.expect(keys::osd_by_id(id), encode(&record.info.long_id)?);
            found.insert(id, record);
        }
    }
    for (key, _) in scan_prefix(store, keys::HEALTH, usize::MAX)? {
        let text = String::from_utf8(key.get(1..).unwrap_or_default().to_vec()).map_err(damaged)?;
        if store.get(&keys::osd(&LongId::new(text).map_err(damaged)?))?.is_none() {
            count.wrong("reports of an OSD that is not there", key);
        }
    }
    for (key, _) in scan_prefix(store, keys::PEERS_TOLD, usize::MAX)? {
        if !found.contains_key(&OsdId::new(last_number(&key)?).map_err(damaged)?) {
            count.wrong("peers of an OSD that is not there", key);
        }
    }
    Ok(found)
}

fn namespaces(
    store: &dyn KvRead,
    count: &mut Count,
) -> Result<BTreeMap<NamespaceId, NamespaceRecord>, KvError> {
    let next: NamespaceId = load(store, keys::NEXT_NAMESPACE)?.unwrap_or(NamespaceId::from_u32(0));
    let known: BTreeSet<_> = groups::all(store)?.into_iter().map(|group| group.id).collect();
    let mut found = BTreeMap::new();
    for (key, value) in scan_prefix(store, keys::NAMESPACES, usize::MAX)? {
        let record: NamespaceRecord = decode(&value)?;
        if keys::namespace(&record.name) != key {
            count.wrong("a namespace under another name", key.clone());
        }
        if record.id >= next {
            count.wrong("a namespace id that has not been given yet", key.clone());
        }
        if !known.contains(&record.group) {
            count.wrong(format!("a namespace in group {}, which does not exist", record.group), key.clone());
        }
        if store.get(&keys::preset(&record.preset))?.is_none() {
            count.wrong(format!("a namespace of preset {}, which does not exist", record.preset), key);
        }
        count.expect(keys::namespace_by_id(record.id), encode(&record.name)?);
        if let NamespaceState::Moving { .. } = record.state {
            count.expect(keys::moving(record.id), encode(&record.name)?);
            if store.get(&keys::last_move(record.id))?.is_none() {
                count.wrong("a move without a number", keys::last_move(record.id));
            }
        }
        count.expect(keys::user_of_preset(&record.preset, record.id), PRESENT.to_vec());
        count.count(keys::group_load(&record.group));
        found.insert(record.id, record);
    }
    Ok(found)
}

fn links(
    store: &dyn KvRead,
    count: &mut Count,
    osds: &BTreeMap<OsdId, OsdRecord>,
    namespaces: &BTreeMap<NamespaceId, NamespaceRecord>,
) -> Result<(), KvError> {
    for (key, value) in scan_prefix(store, keys::LINKS, usize::MAX)? {
        let state: LinkState = decode(&value)?;
        let numbers = key.get(1..).and_then(|rest| rest.split_at_checked(8));
        let (namespace, osd) = numbers.ok_or_else(|| damaged("a short link key"))?;
        let namespace = NamespaceId::new(last_number(namespace)?).map_err(damaged)?;
        let osd = OsdId::new(last_number(osd)?).map_err(damaged)?;
        count.expect(keys::link_back(osd, namespace), PRESENT.to_vec());
        if !namespaces.contains_key(&namespace) {
            count.wrong("a link of a namespace that is not there", key.clone());
        }
        match (osds.get(&osd), state) {
            (None, _) => count.wrong("a link to an OSD that is not there", key),
            (Some(record), LinkState::Decommissioning { .. } | LinkState::Repairing)
                if !record.state.is_leaving() =>
            {
                count.wrong(format!("a link that is let go of, to an OSD in state {:?}", record.state), key);
            }
            // What has to be repaired must be in somebody's queue.
            (Some(_), LinkState::Repairing) => {
                let item = WorkItem::WaitUntilRepaired { osd, namespace };
                if store.get(&keys::work_by_item(&encode(&item)?))?.is_none() {
                    count.wrong("a link in repair that nobody waits for", key);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn queues(store: &dyn KvRead, count: &mut Count) -> Result<(), KvError> {
    for (key, _) in scan_prefix(store, keys::QUEUES, usize::MAX)? {
        let split = key.len().checked_sub(8).ok_or_else(|| damaged("a short message key"))?;
        let destination = keys::parse_destination(key.get(1..split).unwrap_or_default())?;
        let next: u64 = load(store, &keys::next_message(&destination))?.unwrap_or_default();
        if last_number(&key)? >= next {
            count.wrong("a message id that has not been given yet", key);
        }
        count.count(keys::queue_length(&destination));
    }
    for (key, value) in scan_prefix(store, keys::LETTERS, usize::MAX)? {
        let split = key.len().checked_sub(8).ok_or_else(|| damaged("a short message key"))?;
        let destination = keys::parse_destination(key.get(1..split).unwrap_or_default())?;
        let letter: DeadLetter = decode(&value)?;
        if let Some(namespace) = outbox::namespace_of(&letter.message) {
            count.expect(keys::letter_of_namespace(&destination, namespace, letter.id), PRESENT.to_vec());
        }
        count.count(keys::letter_count(&destination));
    }
    Ok(())
}

fn work(store: &dyn KvRead, count: &mut Count, osds: &BTreeMap<OsdId, OsdRecord>) -> Result<(), KvError> {
    let mut awaited = BTreeSet::new();
    for (key, value) in scan_prefix(store, keys::WORK, usize::MAX)? {
        let record: WorkRecord = decode(&value)?;
        if keys::work(record.id) != key {
            count.wrong("an item under another id", key);
        }
        count.expect(keys::work_by_item(&encode(&record.item)?), encode(&record.id)?);
        count.expect(keys::work_by_time(record.not_before, record.id), PRESENT.to_vec());
        count.count(keys::WORK_COUNT.to_vec());
        if let WorkItem::WaitUntilDecommissioned { osd } = record.item {
            awaited.insert(osd);
        }
    }
    use alba_core::wire::rpc::abm::OsdState::{Decommissioning, Purging};
    for (id, record) in osds {
        if matches!(record.state, Decommissioning | Purging) && !awaited.contains(id) {
            count.wrong("an OSD that leaves and that nobody waits for", keys::osd(&record.info.long_id));
        }
    }
    Ok(())
}

fn jobs(store: &dyn KvRead, count: &mut Count) -> Result<(), KvError> {
    let mut leaves = BTreeSet::new();
    for (_, value) in scan_prefix(store, keys::JOBS, usize::MAX)? {
        let job: JobRecord = decode(&value)?;
        leaves.extend((0..job.leaves).map(|leaf| keys::leaf(&job.name, leaf)));
    }
    let stored: BTreeSet<_> =
        scan_prefix(store, keys::LEAVES, usize::MAX)?.into_iter().map(|(key, _)| key).collect();
    for key in stored.symmetric_difference(&leaves) {
        count.wrong("a leaf without its job, or missing", key.clone());
    }
    Ok(())
}

fn care(
    store: &dyn KvRead,
    count: &mut Count,
    namespaces: &BTreeMap<NamespaceId, NamespaceRecord>,
) -> Result<(), KvError> {
    for (key, value) in scan_prefix(store, keys::SURVEYS, usize::MAX)? {
        let record: SurveyRecord = decode(&value)?;
        if keys::survey(record.namespace) != key || !namespaces.contains_key(&record.namespace) {
            count.wrong("a survey of a namespace that is not there", key);
        }
    }
    for (key, value) in scan_prefix(store, keys::UNREPAIRED, usize::MAX)? {
        let record: UnrepairedRecord = decode(&value)?;
        if keys::unrepaired(record.namespace, &record.object) != key {
            count.wrong("an object in want of repair under another id", key);
        }
        count.count(keys::UNREPAIRED_COUNT.to_vec());
    }
    Ok(())
}
