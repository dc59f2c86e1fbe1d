//! Recovery of a lost ABM: what groups, OSDs and an old backup say of it, put together into a backup of a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use alba_client::metadata::MetadataClient;
use alba_core::env::{Env, NamespaceStore, blocking};
use alba_core::ids::{
    AlbaId, GroupId, LongId, MessageId, NamespaceId, NamespaceName, NodeId, OsdId, Place, PresetName,
};
use alba_core::kv::KvError;
use alba_core::net::asd::{AsdClient, AsdClientConfig, probe};
use alba_core::preset::Preset;
use alba_core::range::RangeQuery;
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmQuery, GroupRecord, MaintenanceConfig, NamespaceRecord, NamespaceState, OsdEndpoint,
    OsdFilter, OsdInfo, OsdRecord, OsdState, PresetRecord,
};
use alba_core::wire::rpc::nsm::{
    Lifecycle, MoveId, MoveStatus, NamespaceDetails, NamespaceInfo, NsmAnswer, NsmQuery, OsdUse, Phase,
    Sealed,
};
use alba_metadata::abm::rebuild::{Known, KnownGroup, KnownNamespace, KnownOsd, KnownPreset};
use alba_metadata::backup::{OldGroup, remake_abm};
use serde_json::json;

use super::devices::{self, Told};
use super::named::{Aside, tell_apart};
use crate::answer::{Answer, note};
use crate::commands::backend::{mismatch, shown};
use crate::error::CliError;
use crate::session::Session;

/// For an OSD that is asked whether it is there.
const PROBE: Duration = Duration::from_secs(10);

/// Ids that are left out behind the highest that was seen: namespaces and OSDs that came and went without a trace.
const GAP: u64 = 1000;

/// Exit code when it worked and something was found that belongs to nobody.
const LEFT: u8 = 3;

/// An OSD's address as the operator gives it.
#[derive(Debug, Clone)]
pub(crate) struct At {
    /// On which node it is; needed when nobody else knows the OSD.
    pub(crate) node: Option<NodeId>,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

/// What to put together.
pub(crate) struct Task {
    /// NSM groups, hosted by the metadata servers of the client configuration.
    pub(crate) groups: Vec<GroupId>,
    /// A backup of the ABM.
    pub(crate) backup: Option<PathBuf>,
    /// OSDs that are elsewhere than was known, or that nobody knows.
    pub(crate) osds: Vec<At>,
    /// OSDs that will not come back.
    pub(crate) without: Vec<LongId>,
    /// Namespaces that no group has belong to this one, which is lost.
    pub(crate) lost_group: Option<GroupId>,
    /// The new backup.
    pub(crate) file: PathBuf,
}

/// A namespace as a group tells of it.
struct InGroup {
    group: GroupId,
    info: NamespaceInfo,
    details: NamespaceDetails,
}

/// What all groups say.
#[derive(Default)]
struct Groups {
    known: Vec<KnownGroup>,
    owned: BTreeMap<NamespaceId, InGroup>,
    /// By namespace: what each group says of its moves.
    moves: BTreeMap<NamespaceId, Vec<(GroupId, MoveStatus)>>,
    /// Handed over to a group that had not taken it when the ABM was lost, or had.
    handed_over: BTreeMap<NamespaceId, (GroupId, Sealed)>,
    /// Names of namespaces whose rows a group still has.
    names: BTreeMap<NamespaceId, NamespaceName>,
}

/// What the backup says.
#[derive(Default)]
struct Old {
    alba_id: Option<AlbaId>,
    groups: Vec<GroupRecord>,
    osds: Vec<OsdRecord>,
    presets: Vec<PresetRecord>,
    namespaces: Vec<NamespaceRecord>,
    maintenance: Option<MaintenanceConfig>,
}

/// Puts it together and writes it.
pub(crate) async fn recover(session: &Session, task: Task) -> Result<Answer, CliError> {
    if task.file.symlink_metadata().is_ok() {
        return Err(CliError::usage(format!("{} exists; name another file", task.file.display())));
    }
    let config = session.config()?.client;
    let servers = config.metadata.clone();
    let metadata = MetadataClient::of(&session.env, &config)?;
    let mut groups = Groups::default();
    for group in &task.groups {
        ask_group(session, &metadata, &servers, group, &mut groups).await?;
    }
    ask_moves(session, &metadata, &mut groups).await?;
    let old = match &task.backup {
        Some(path) => read_backup(&session.env, path, scratch(&task.file)).await?,
        None => Old::default(),
    };
    for group in &old.groups {
        let given = groups.known.iter().any(|known| known.id == group.id);
        if !given && !group.lost && task.lost_group.as_ref() != Some(&group.id) {
            return Err(CliError::failure(format!(
                "the backup knows a group {id}: give it with --nsm-host {id}, or with --lost-group {id} if it is lost, too",
                id = group.id
            )));
        }
    }
    let osds = ask_osds(session, &task, &groups, &old).await?;
    let (mut known, left) = put_together(&task, groups, old, osds, session.env.clock.wall_micros())?;
    let asides = tell_apart(&mut known.namespaces)?;
    let (written, file) = (known.clone(), task.file.clone());
    let (work, now) = (scratch(&task.file), session.env.clock.wall_micros());
    let write = move || remake_abm(&written, work, &file, now);
    let rows = blocking(session.env.spawn.as_ref(), write).await?;
    let rows = rows.map_err(|error| CliError::failure(error.to_string()))?;
    answer(&task, &known, &left, &asides, rows)
}

/// Beside the new file.
fn scratch(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".scratch");
    file.with_file_name(name)
}

async fn ask_group(
    session: &Session,
    metadata: &Arc<MetadataClient>,
    servers: &[SocketAddr],
    group: &GroupId,
    groups: &mut Groups,
) -> Result<(), CliError> {
    let ask = async |query: NsmQuery| {
        let asked = NamespaceStore::query(metadata.as_ref(), group, query, session.deadline()).await;
        asked.map_err(|error| CliError::from(error).while_doing(&format!("group {group}")))
    };
    let NsmAnswer::NextMessage(next_message) = ask(NsmQuery::NextMessage).await? else {
        return Err(mismatch("NextMessage"));
    };
    let mut hosts = Vec::new();
    for server in servers {
        if let Ok(status) = metadata.group_status_at(*server, group, session.deadline()).await {
            if status.replica == 0 {
                hosts.push(server.to_string());
            } else {
                hosts.extend(status.members.into_iter().map(|member| member.address));
            }
        }
    }
    hosts.sort_unstable();
    hosts.dedup();
    if hosts.is_empty() {
        hosts.extend(servers.iter().map(ToString::to_string));
    }
    groups.known.push(KnownGroup { id: group.clone(), servers: hosts, lost: false, next_message });
    let mut after = None;
    loop {
        let NsmAnswer::Namespaces(page) = ask(NsmQuery::Namespaces { after, max: 200 }).await? else {
            return Err(mismatch("Namespaces"));
        };
        for (id, name) in &page.items {
            groups.names.insert(*id, name.clone());
            let NsmAnswer::MoveStatus(status) = ask(NsmQuery::MoveStatus(*id)).await? else {
                return Err(mismatch("MoveStatus"));
            };
            if let MoveStatus::Outgoing { phase: Phase::HandedOver(sealed), .. } = status {
                groups.handed_over.insert(*id, (group.clone(), *sealed));
                continue;
            }
            let info = match ask(NsmQuery::Namespace(*id)).await? {
                NsmAnswer::Namespace(info) => *info,
                _ => return Err(mismatch("Namespace")),
            };
            let details = match ask(NsmQuery::Details(*id)).await? {
                NsmAnswer::Details(details) => *details,
                _ => return Err(mismatch("Details")),
            };
            let found = InGroup { group: group.clone(), info, details };
            if let Some(other) = groups.owned.insert(*id, found) {
                return Err(CliError::failure(format!(
                    "groups {} and {group} both have namespace {}: one of them was restored from an old backup",
                    other.group,
                    shown(name)
                )));
            }
        }
        match page.items.last() {
            Some((last, _)) if page.has_more => after = Some(*last),
            _ => return Ok(()),
        }
    }
}

/// What every group says of the moves of each namespace: also where it is not, or on its way to.
async fn ask_moves(
    session: &Session,
    metadata: &Arc<MetadataClient>,
    groups: &mut Groups,
) -> Result<(), CliError> {
    for id in groups.names.keys().copied().collect::<Vec<_>>() {
        for group in groups.known.iter().map(|known| known.id.clone()) {
            let query = NsmQuery::MoveStatus(id);
            let asked = NamespaceStore::query(metadata.as_ref(), &group, query, session.deadline()).await?;
            let NsmAnswer::MoveStatus(status) = asked else { return Err(mismatch("MoveStatus")) };
            groups.moves.entry(id).or_default().push((group, status));
        }
    }
    Ok(())
}

async fn read_backup(env: &Env, path: &Path, scratch: PathBuf) -> Result<Old, CliError> {
    let path = path.to_owned();
    let read = move || {
        let of_file =
            |error: &dyn std::fmt::Display| CliError::failure(format!("{}: {error}", path.display()));
        let group = OldGroup::open(&path, scratch).map_err(|error| of_file(&error))?;
        if group.description().group.as_str() != "abm" {
            return Err(CliError::usage(format!(
                "{} is a backup of group {}, not of the ABM",
                path.display(),
                group.description().group
            )));
        }
        let ask = |query: AbmQuery| -> Result<AbmAnswer, CliError> {
            let answer = group.abm(&query).map_err(|error: KvError| of_file(&error))?;
            Ok(answer?)
        };
        let mut old = Old::default();
        if let AbmAnswer::AlbaId(id) = ask(AbmQuery::AlbaId)? {
            old.alba_id = Some(id);
        }
        if let AbmAnswer::Groups(groups) = ask(AbmQuery::Groups)? {
            old.groups = groups;
        }
        if let AbmAnswer::Maintenance(maintenance) = ask(AbmQuery::Maintenance)? {
            old.maintenance = Some(*maintenance);
        }
        let mut range = RangeQuery::all();
        while let AbmAnswer::Osds(page) =
            ask(AbmQuery::Osds { filter: OsdFilter::Claimed, range: range.clone() })?
        {
            let last = page.items.last().map(|osd| osd.info.long_id.as_str().as_bytes().to_vec());
            old.osds.extend(page.items);
            match last.filter(|_| page.has_more) {
                Some(last) => range = range.after(&last),
                None => break,
            }
        }
        let mut range = RangeQuery::all();
        while let AbmAnswer::Presets(page) = ask(AbmQuery::Presets(range.clone()))? {
            let last = page.items.last().map(|preset| preset.name.as_str().as_bytes().to_vec());
            old.presets.extend(page.items);
            match last.filter(|_| page.has_more) {
                Some(last) => range = range.after(&last),
                None => break,
            }
        }
        let mut range = RangeQuery::all();
        while let AbmAnswer::Namespaces(page) = ask(AbmQuery::Namespaces(range.clone()))? {
            let last = page.items.last().map(|namespace| namespace.name.as_bytes().to_vec());
            old.namespaces.extend(page.items);
            match last.filter(|_| page.has_more) {
                Some(last) => range = range.after(&last),
                None => break,
            }
        }
        Ok(old)
    };
    blocking(env.spawn.as_ref(), read).await?
}

/// An OSD with what it says; none: it will not come back.
struct Device {
    info: OsdInfo,
    told: Option<Told>,
}

/// Asks all OSDs that anybody knows of.
async fn ask_osds(
    session: &Session,
    task: &Task,
    groups: &Groups,
    old: &Old,
) -> Result<BTreeMap<OsdId, Device>, CliError> {
    let env = &session.env;
    let reach = alba_client::reach(env, &session.config()?.client)?;
    // Whom a group or the backup needs, and whom a group only remembers.
    let mut infos: BTreeMap<OsdId, (OsdInfo, bool)> = BTreeMap::new();
    for record in &old.osds {
        if let Some(id) = record.osd_id.filter(|_| record.state != OsdState::Purging) {
            infos.insert(id, (record.info.clone(), true));
        }
    }
    for (id, info, how) in groups.owned.values().flat_map(|one| &one.details.osds) {
        let entry = infos.entry(*id).or_insert_with(|| (info.clone(), false));
        // The groups hear of new addresses after the ABM did, and are newer than an old backup.
        entry.0 = info.clone();
        entry.1 |= *how != OsdUse::Unlinked;
    }
    for at in &task.osds {
        let (id, info) = probed(env, at, &infos).await?;
        infos.insert(id, (info, true));
    }
    let unknown = |long_id: &&LongId| !infos.values().any(|(info, _)| info.long_id == **long_id);
    if let Some(unknown) = task.without.iter().find(unknown) {
        return Err(CliError::usage(format!("nobody knows an OSD {unknown}")));
    }
    let mut found = BTreeMap::new();
    let mut silent = Vec::new();
    for (id, (info, needed)) in infos {
        if task.without.contains(&info.long_id) {
            found.insert(id, Device { info, told: None });
            continue;
        }
        let told = devices::ask(env, reach.client(&info, AsdClientConfig::default()).as_ref()).await;
        let problem = match told {
            Ok(told) if told.owner.is_none() => "it was wiped: it belongs to no backend".to_owned(),
            Ok(told) if told.id.is_some_and(|own| own != id) => {
                format!("it has the id {}", told.id.map_or_else(String::new, |own| own.to_string()))
            }
            Ok(told) => {
                found.insert(id, Device { info, told: Some(told) });
                continue;
            }
            Err(error) => error.message,
        };
        if needed {
            silent.push(format!("OSD {id} ({}): {problem}", info.long_id));
        }
    }
    if !silent.is_empty() {
        return Err(CliError::failure(format!(
            "these OSDs are needed:\n  {}\nStart them, say where they are with --osd, or name those that will not come back with \
             --without-osd LONG_ID",
            silent.join("\n  ")
        )));
    }
    Ok(found)
}

/// Asks who listens at an address.
async fn probed(
    env: &Env,
    at: &At,
    infos: &BTreeMap<OsdId, (OsdInfo, bool)>,
) -> Result<(OsdId, OsdInfo), CliError> {
    let failed = |error: CliError| error.while_doing(&format!("OSD at {}", at.address));
    let long_id = probe(env, at.address, env.deadline_in(PROBE)).await.map_err(|e| failed(e.into()))?;
    let endpoint = OsdEndpoint::over_tcp(vec![at.address.ip()], at.address.port());
    let known = infos.iter().find(|(_, (info, _))| info.long_id == long_id);
    if let Some((id, (info, _))) = known {
        return Ok((*id, OsdInfo { endpoint, ..info.clone() }));
    }
    let osd = AsdClient::new(env.clone(), vec![at.address], long_id.clone(), AsdClientConfig::default());
    let told = devices::ask(env, osd.as_ref()).await.map_err(failed)?;
    let (Some(id), Some(node)) = (told.id, &at.node) else {
        return Err(CliError::usage(format!(
            "nobody knows the OSD {long_id} at {}: {}",
            at.address,
            if told.id.is_none() {
                "it has no id of a backend; add and claim it afterwards"
            } else {
                "say on which node it is (--osd NODE@IP:PORT)"
            }
        )));
    };
    let place = Place::of_node(node.clone());
    Ok((id, OsdInfo { long_id, place, endpoint, capacity: ByteCount(0), used: ByteCount(0) }))
}

/// A namespace that OSDs have and that gets no record.
struct Left {
    id: NamespaceId,
    name: Option<NamespaceName>,
    why: String,
}

/// Everything in one. Pure.
fn put_together(
    task: &Task,
    mut groups: Groups,
    old: Old,
    osds: BTreeMap<OsdId, Device>,
    now: u64,
) -> Result<(Known, Vec<Left>), CliError> {
    let mut owners: BTreeSet<&AlbaId> = BTreeSet::new();
    owners.extend(osds.values().filter_map(|device| device.told.as_ref()?.owner.as_ref()));
    owners.extend(&old.alba_id);
    let alba_id = match owners.into_iter().collect::<Vec<_>>().as_slice() {
        [one] => (*one).clone(),
        [] => return Err(CliError::failure("no OSD and no backup says which backend this is")),
        several => {
            let names: Vec<&str> = several.iter().map(|id| id.as_str()).collect();
            let text = format!("OSDs and backup are of different backends: {}", names.join(", "));
            return Err(CliError::failure(text));
        }
    };
    for record in old.groups.iter().filter(|record| record.lost) {
        match groups.known.iter_mut().find(|known| known.id == record.id) {
            // Never taken back, also when something answers under its name.
            Some(known) => known.lost = true,
            None => groups.known.push(lost(record.id.clone(), record.servers.clone())),
        }
    }
    if let Some(id) = &task.lost_group
        && !groups.known.iter().any(|known| known.id == *id)
    {
        let servers = old.groups.iter().find(|record| record.id == *id).map(|record| record.servers.clone());
        groups.known.push(lost(id.clone(), servers.unwrap_or_else(|| vec!["lost".to_owned()])));
    }
    // What devices say of namespaces, one word for each.
    let mut on_devices: BTreeMap<NamespaceId, devices::OnDevice> = BTreeMap::new();
    for told in osds.values().filter_map(|device| device.told.as_ref()) {
        for (id, one) in &told.namespaces {
            let entry = on_devices.entry(*id).or_default();
            entry.name = entry.name.take().or_else(|| one.name.clone());
            entry.preset = entry.preset.take().or_else(|| one.preset.clone());
            entry.marked |= one.marked;
        }
    }
    let of_backup: BTreeMap<NamespaceId, &NamespaceRecord> =
        old.namespaces.iter().map(|record| (record.id, record)).collect();
    let preset_of = |id: NamespaceId| {
        let on_device = on_devices.get(&id).and_then(|one| one.preset.clone());
        on_device.or_else(|| of_backup.get(&id).map(|record| record.preset.clone()))
    };
    let mut presets: BTreeMap<PresetName, (Preset, u32)> =
        old.presets.iter().map(|one| (one.name.clone(), (one.preset.clone(), one.version))).collect();
    let mut namespaces = Vec::new();
    for (id, found) in &groups.owned {
        let preset = match preset_of(*id) {
            Some(preset) => preset,
            None => PresetName::new(format!("recovered-{id}"))?,
        };
        let newest = presets
            .entry(preset.clone())
            .or_insert_with(|| (found.info.preset.clone(), found.info.preset_version));
        if newest.1 < found.info.preset_version {
            *newest = (found.info.preset.clone(), found.info.preset_version);
        }
        let (group, state) = state_of(&groups, *id, found, now);
        let record = NamespaceRecord { id: *id, name: found.info.name.clone(), group, state, preset };
        let how = found.details.osds.iter().map(|(osd, _, how)| (*osd, *how)).collect();
        namespaces.push(KnownNamespace { record, last_move: last_move(&groups, *id), osds: how });
    }
    for (id, (from, sealed)) in groups.handed_over.iter().filter(|(id, _)| !groups.owned.contains_key(*id)) {
        let Some(to) = incoming(&groups, *id) else {
            return Err(CliError::failure(format!(
                "namespace {} was handed over by group {from}, and no group that is given takes it",
                shown(&sealed.name)
            )));
        };
        let preset = match preset_of(*id) {
            Some(preset) => preset,
            None => PresetName::new(format!("recovered-{id}"))?,
        };
        presets.entry(preset.clone()).or_insert_with(|| (sealed.preset.clone(), sealed.preset_version));
        let state = NamespaceState::Moving { to };
        let record =
            NamespaceRecord { id: *id, name: sealed.name.clone(), group: from.clone(), state, preset };
        namespaces.push(KnownNamespace { record, last_move: last_move(&groups, *id), osds: Vec::new() });
    }
    let mut left = Vec::new();
    let has_group = |id: &NamespaceId| groups.owned.contains_key(id) || groups.handed_over.contains_key(id);
    let ids: BTreeSet<NamespaceId> = on_devices.keys().copied().chain(of_backup.keys().copied()).collect();
    for id in ids.into_iter().filter(|id| !has_group(id)) {
        let record = of_backup.get(&id);
        // One that no device takes anything of any more was deleted, and goes: whatever the backup says, and in a lost group, too.
        let device = on_devices.get(&id).filter(|one| one.marked);
        let name =
            device.and_then(|one| one.name.clone()).or_else(|| record.map(|record| record.name.clone()));
        let group = record.map(|record| record.group.clone()).or_else(|| task.lost_group.clone());
        let lost = group.filter(|group| groups.known.iter().any(|known| known.lost && known.id == *group));
        let preset = preset_of(id).filter(|preset| presets.contains_key(preset));
        match (lost, name, preset) {
            (Some(group), Some(name), Some(preset)) if device.is_some() => {
                let record = NamespaceRecord { id, name, group, state: NamespaceState::Active, preset };
                let on = osds.iter().filter(|(_, device)| {
                    device
                        .told
                        .as_ref()
                        .is_some_and(|told| told.namespaces.get(&id).is_some_and(|one| one.marked))
                });
                let how = on.map(|(osd, _)| (*osd, OsdUse::Active)).collect();
                namespaces.push(KnownNamespace { record, last_move: MoveId::default(), osds: how });
            }
            (_, name, _) if device.is_some() => {
                let why = match record {
                    Some(record) => format!(
                        "group {} of the backup does not have it any more: deleted since",
                        record.group
                    ),
                    None => "no group has it: deleted, or of a group that is not given".to_owned(),
                };
                left.push(Left { id, name, why });
            }
            // Nobody has anything of it.
            _ => {}
        }
    }
    let highest_namespace = namespaces
        .iter()
        .map(|one| one.record.id.get())
        .chain(on_devices.keys().map(|id| id.get()))
        .chain(of_backup.keys().map(|id| id.get()))
        .chain(groups.names.keys().map(|id| id.get()))
        .max();
    let highest_osd = osds
        .keys()
        .copied()
        .chain(groups.owned.values().flat_map(|one| one.details.osds.iter().map(|(id, _, _)| *id)))
        .chain(old.osds.iter().filter_map(|record| record.osd_id))
        .map(OsdId::get)
        .max();
    let beyond = |highest: Option<u64>| highest.map_or(0, |highest| highest.saturating_add(GAP));
    let default_preset = match old.presets.iter().find(|one| one.is_default) {
        Some(preset) => preset.name.clone(),
        None => PresetName::new("default")?,
    };
    presets.entry(default_preset.clone()).or_insert_with(|| (Preset::built_in(), 0));
    let recovered: BTreeSet<NamespaceId> = namespaces.iter().map(|one| one.record.id).collect();
    let known = Known {
        alba_id,
        groups: groups.known,
        osds: osds
            .into_iter()
            .map(|(id, device)| {
                let next_message = device.told.as_ref().map(|told| told.next_message);
                let held = device.told.map(|told| told.namespaces).unwrap_or_default();
                let (marked, rest): (Vec<_>, Vec<_>) = held.into_iter().partition(|(_, one)| one.marked);
                let mut deleted: Vec<NamespaceId> = rest.into_iter().map(|(id, _)| id).collect();
                deleted.retain(|id| !recovered.contains(id));
                let namespaces = marked.into_iter().map(|(id, _)| id).collect();
                KnownOsd { id, info: device.info, next_message, namespaces, deleted }
            })
            .collect(),
        presets: presets
            .into_iter()
            .map(|(name, (preset, version))| KnownPreset { name, preset, version })
            .collect(),
        default_preset: Some(default_preset),
        namespaces,
        maintenance: old.maintenance,
        next_osd: OsdId::new(beyond(highest_osd))?,
        next_namespace: NamespaceId::new(beyond(highest_namespace))?,
    };
    Ok((known, left))
}

fn lost(id: GroupId, servers: Vec<String>) -> KnownGroup {
    KnownGroup { id, servers, lost: true, next_message: MessageId::from_u32(0) }
}

/// The last move of a namespace that any group has heard of.
fn last_move(groups: &Groups, id: NamespaceId) -> MoveId {
    let statuses = groups.moves.get(&id).into_iter().flatten();
    let ids = statuses.map(|(_, status)| match status {
        MoveStatus::Absent { ended } | MoveStatus::Owned { ended } => *ended,
        MoveStatus::Outgoing { id, .. } | MoveStatus::Incoming { id, .. } => *id,
    });
    ids.max().unwrap_or_default()
}

/// The group that a namespace is on its way to.
fn incoming(groups: &Groups, id: NamespaceId) -> Option<GroupId> {
    let statuses = groups.moves.get(&id).into_iter().flatten();
    let mut to = statuses.filter(|(_, status)| matches!(status, MoveStatus::Incoming { .. }));
    to.next().map(|(group, _)| group.clone())
}

/// The group and state of a namespace. One on its way goes on to where it was going.
fn state_of(groups: &Groups, id: NamespaceId, found: &InGroup, now: u64) -> (GroupId, NamespaceState) {
    // It has arrived, and its old group is still to hear of it.
    if let Some((from, _)) = groups.handed_over.get(&id) {
        return (from.clone(), NamespaceState::Moving { to: found.group.clone() });
    }
    let state = if let Some(to) = incoming(groups, id) {
        NamespaceState::Moving { to }
    } else if found.details.lifecycle == Lifecycle::Recovering {
        NamespaceState::Recovering
    } else if found.details.trashed {
        NamespaceState::Trashed { since: now }
    } else {
        NamespaceState::Active
    };
    (found.group.clone(), state)
}

fn answer(
    task: &Task,
    known: &Known,
    left: &[Left],
    asides: &[Aside],
    rows: u64,
) -> Result<Answer, CliError> {
    let file = task.file.display();
    let mut text = format!(
        "{file}: backend {}, {} groups, {} OSDs, {} presets, {} namespaces ({rows} rows)",
        known.alba_id,
        known.groups.len(),
        known.osds.len(),
        known.presets.len(),
        known.namespaces.len()
    );
    for one in left {
        let name = one.name.as_ref().map_or_else(|| "?".to_owned(), shown);
        text.push_str(&format!("\nnamespace {} ({name}) is on OSDs and gets no record: {}", one.id, one.why));
    }
    for one in asides {
        text.push_str(&format!(
            "\nnamespace {} is called {}: a newer one has its name {}",
            one.id,
            shown(&one.is),
            shown(&one.was)
        ));
    }
    text.push_str(&format!(
        "\nNow stop all servers of the ABM, move their directories of it away, and give on one of them:\n  \
         alba metadata restore --config metadata.toml --group abm {file}"
    ));
    let lost: Vec<&str> = known
        .groups
        .iter()
        .filter(|group| group.lost && known.namespaces.iter().any(|one| one.record.group == group.id))
        .map(|group| group.id.as_str())
        .collect();
    for group in &lost {
        text.push_str(&format!(
            "\nWhen it runs, recover the lost group: alba recover-nsm {group} --to ANOTHER"
        ));
    }
    if let Some(preset) = known.presets.iter().find(|preset| preset.name.as_str().starts_with("recovered-")) {
        note(&format!("preset {} has a name of its own: nobody knows what it was called", preset.name));
    }
    let leftovers: Vec<_> = left
        .iter()
        .map(|one| json!({ "id": one.id, "name": one.name.as_ref().map(shown), "why": one.why }))
        .collect();
    let result = json!({
        "file": task.file,
        "alba_id": known.alba_id.as_str(),
        "groups": known.groups.iter().map(|group| group.id.as_str()).collect::<Vec<_>>(),
        "lost_groups": lost,
        "osds": known.osds.len(),
        "presets": known.presets.len(),
        "namespaces": known.namespaces.len(),
        "left": leftovers,
        "renamed": asides.iter().map(|one| json!({ "id": one.id, "was": shown(&one.was), "is": shown(&one.is) }))
            .collect::<Vec<_>>(),
    });
    let mut answer = Answer::new(result, text)?;
    answer.exit = if left.is_empty() { 0 } else { LEFT };
    Ok(answer)
}
