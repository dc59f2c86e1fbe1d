//! Looking: asks the metadata groups, every OSD and every proxy, each under a deadline of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use alba_client::Client;
use alba_client::metadata::MetadataClient;
use alba_core::env::osd::DiskUsage;
use alba_core::env::{Deadline, Endpoint, within};
use alba_core::ids::{AlbaId, GroupId, NamespaceId, ObjectId, OsdId, Place, PresetName, TaskName};
use alba_core::preset::Preset;
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmQuery, Destination, GroupRecord, NamespaceRecord, NamespaceState, OsdFilter, OsdRecord,
    OsdState, SurveyCounts, TaskRecord, WorkItem,
};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery};
use alba_proxy::client::ProxyClient;
use futures_util::future::join_all;

use super::care::{self, Care};
use super::judge::{Safety, Wanted, wanted};
use super::rebalance::{self, RebalanceSeen};
use super::replicas::{self, GroupSeen};
use crate::client_file::ClientFile;
use crate::commands::backend::{Backend, mismatch};
use crate::commands::tasks;
use crate::error::CliError;
use crate::ranges::Pager;
use crate::session::Session;

/// An OSD or proxy that takes longer does not answer, as far as people who watch are concerned.
const PATIENCE: Duration = Duration::from_secs(2);

/// Of everything together, unless --timeout says otherwise: a fault is to show within 5 s, and counting what an OSD
/// held may take some more.
const LIMIT: Duration = Duration::from_secs(10);

/// A queue whose oldest message stays the same for so long is stuck.
const QUEUE_PATIENCE: Duration = Duration::from_secs(1);

/// Objects on OSDs that do not answer whose manifests are looked at, per namespace. More take too long for a screen.
const EXAMINED: usize = 2000;

/// Items of the work queue that are looked at.
const WORK_EXAMINED: usize = 5000;

/// From here on an OSD refuses writes (architecture §6: 99 % by default).
const FULL_PERCENT: u64 = 99;

/// Everything that was seen.
pub(super) struct Observed {
    pub(super) alba_id: AlbaId,
    pub(super) osds: Vec<OsdSeen>,
    pub(super) groups: Vec<GroupRecord>,
    pub(super) replicas: Vec<GroupSeen>,
    pub(super) namespaces: Vec<NamespaceSeen>,
    pub(super) queues: Vec<(Destination, u64)>,
    /// Those of `queues` whose oldest message did not move.
    pub(super) stuck: Vec<(Destination, u64)>,
    pub(super) proxies: Vec<(SocketAddr, Result<(), String>)>,
    pub(super) agents: usize,
    pub(super) tasks: Vec<TaskRecord>,
    pub(super) paused: Vec<TaskName>,
    pub(super) rebalance: RebalanceSeen,
    pub(super) damage: Damage,
    pub(super) care: Care,
}

/// Fragments that somebody found damaged or missing, and that are not repaired yet: items of the work queue.
#[derive(Default)]
pub(super) struct Damage {
    /// How many.
    pub(super) fragments: BTreeMap<NamespaceId, u64>,
    /// There may be more.
    pub(super) more: bool,
}

/// An OSD.
pub(super) struct OsdSeen {
    pub(super) record: OsdRecord,
    /// Its answer; none: it is not ours and was not asked.
    pub(super) usage: Option<Result<DiskUsage, String>>,
}

impl OsdSeen {
    /// Its id, or a dash.
    pub(super) fn id_text(&self) -> String {
        self.record.osd_id.map_or_else(|| "-".to_owned(), |id| id.to_string())
    }

    /// Where it listens.
    pub(super) fn address(&self) -> String {
        let endpoint = &self.record.info.endpoint;
        let over_tcp = endpoint.tcp().next().map(|address| address.to_string());
        let over_quic = || endpoint.quic().next().map(|address| Endpoint::Quic(address).to_string());
        over_tcp.or_else(over_quic).unwrap_or_default()
    }
}

/// A namespace.
pub(super) struct NamespaceSeen {
    pub(super) record: NamespaceRecord,
    /// None: it is not active, so nothing was counted.
    pub(super) counted: Option<Result<Counted, String>>,
}

/// A namespace's counters.
pub(super) struct Counted {
    pub(super) objects: u64,
    pub(super) logical: u64,
    pub(super) storage: u64,
    pub(super) wanted: Option<Wanted>,
    pub(super) safety: Safety,
    /// Every object on an OSD that does not answer was looked at.
    pub(super) all_examined: bool,
}

impl Counted {
    /// How many objects are below their policy, and whether none is left out. What agents counted fills in where there were too many
    /// objects to look at each here; it may be some seconds old, so it never makes less of what was seen now.
    pub(super) fn below(&self, surveyed: Option<SurveyCounts>) -> (u64, bool) {
        match surveyed {
            Some(counts) if !self.all_examined => (self.safety.below.max(counts.below_policy), true),
            Some(_) | None => (self.safety.below, self.all_examined),
        }
    }
}

/// Does it refuse writes?
pub(super) fn is_full(usage: &DiskUsage) -> bool {
    let limit = usage.capacity.get() / 100 * FULL_PERCENT;
    usage.capacity.get() > 0 && usage.used.get() >= limit
}

/// Looks at everything.
pub(super) async fn observe(session: &Session, file: ClientFile) -> Result<Observed, CliError> {
    let deadline = session.deadline_or(LIMIT);
    let proxies = file.proxies.clone();
    let metadata = MetadataClient::of(&session.env, &file.client)?;
    let servers: BTreeSet<SocketAddr> = file.client.metadata.iter().copied().collect();
    let client = session.client_of(file, deadline).await?;
    let backend = Backend::new(&client, deadline);
    let alba_id = client.alba_id(deadline).await?;
    let groups = backend.groups().await?;
    let mut asked = vec![(GroupId::new("abm")?, servers)];
    for group in groups.iter().filter(|group| !group.lost) {
        let servers = group.servers.iter().filter_map(|server| server.parse().ok()).collect();
        asked.push((group.id.clone(), servers));
    }
    let records = backend.osds(OsdFilter::All, Pager::all()).await?;
    let (replicas, mut osds, proxies) = tokio::join!(
        replicas::ask_all(&session.env, &metadata, asked),
        ask_osds(session, &client, records),
        ask_proxies(session, &proxies),
    );
    // People look for them by their numbers.
    osds.sort_by_key(|osd| (osd.record.osd_id.is_none(), osd.record.osd_id));
    let presets: BTreeMap<PresetName, Preset> =
        backend.presets(Pager::all()).await?.into_iter().map(|record| (record.name, record.preset)).collect();
    let active: BTreeMap<OsdId, Place> = (osds.iter())
        .filter(|osd| osd.record.state == OsdState::Active)
        .filter_map(|osd| Some((osd.record.osd_id?, osd.record.info.place.clone())))
        .collect();
    let silent: BTreeSet<OsdId> = (osds.iter())
        .filter(|osd| matches!(osd.usage, Some(Err(_))))
        .filter_map(|osd| osd.record.osd_id)
        .collect();
    let mut namespaces = Vec::new();
    for record in backend.namespaces(Pager::all()).await? {
        let counted = if record.state == NamespaceState::Active {
            let wanted = presets.get(&record.preset).and_then(|preset| wanted(preset, &active));
            Some(count(&backend, &record, wanted, &silent).await.map_err(|error| error.to_string()))
        } else {
            None
        };
        namespaces.push(NamespaceSeen { record, counted });
    }
    let (queues, stuck) = watch_queues(session, &backend).await?;
    let agents = agents(&backend).await?;
    let tasks = tasks::records(&backend, Pager::all()).await?;
    let paused = tasks::paused(&backend).await?;
    let rebalance = rebalance::ask(&backend).await?;
    let damage = damage(&backend).await?;
    let care = care::ask(&backend).await?;
    Ok(Observed {
        alba_id,
        osds,
        groups,
        replicas,
        namespaces,
        queues,
        stuck,
        proxies,
        agents,
        tasks,
        paused,
        rebalance,
        damage,
        care,
    })
}

async fn damage(backend: &Backend<'_>) -> Result<Damage, CliError> {
    let (mut damage, mut after, mut looked) = (Damage::default(), None, 0);
    loop {
        let AbmAnswer::Work(page) = backend.ask(AbmQuery::Work { after, max: 100 }).await? else {
            return Err(mismatch("Work"));
        };
        looked += page.items.len();
        after = page.items.last().map(|record| record.id);
        for record in page.items {
            if let WorkItem::RepairBadFragment { namespace, .. } = record.item {
                *damage.fragments.entry(namespace).or_default() += 1;
            }
        }
        damage.more = page.has_more;
        if !page.has_more || looked >= WORK_EXAMINED {
            return Ok(damage);
        }
    }
}

/// Maintenance agents that said within the last minute that they are there.
async fn agents(backend: &Backend<'_>) -> Result<usize, CliError> {
    match backend.ask(AbmQuery::Participants).await? {
        AbmAnswer::Participants(found) => {
            Ok(found.iter().filter(|participant| participant.role == "maintenance").count())
        }
        _ => Err(mismatch("Participants")),
    }
}

async fn ask_proxies(session: &Session, proxies: &[SocketAddr]) -> Vec<(SocketAddr, Result<(), String>)> {
    let ask = async |proxy: &SocketAddr| {
        let deadline = session.env.deadline_in(PATIENCE);
        let answer =
            async { ProxyClient::connect(&session.env, *proxy, deadline).await?.version(deadline).await };
        (*proxy, answer.await.map(drop).map_err(|error| error.to_string()))
    };
    join_all(proxies.iter().map(ask)).await
}

/// All at once: a dozen silent ones must not add up.
async fn ask_osds(session: &Session, client: &Client, records: Vec<OsdRecord>) -> Vec<OsdSeen> {
    let mut tasks = tokio::task::JoinSet::new();
    let deadline = session.env.deadline_in(PATIENCE);
    for (position, record) in records.iter().enumerate() {
        let Some(id) = record.osd_id else { continue };
        let (client, clock) = (client.clone(), session.env.clock.clone());
        tasks.spawn(async move {
            let ask =
                async { client.osd(id, deadline).await?.disk_usage(deadline).await.map_err(CliError::from) };
            let answer = within(clock.as_ref(), deadline, ask).await.unwrap_or_else(|late| Err(late.into()));
            (position, answer.map_err(|error| error.to_string()))
        });
    }
    let mut answers = BTreeMap::new();
    while let Some(answer) = tasks.join_next().await {
        answers.extend(answer);
    }
    let seen = |(position, record): (usize, OsdRecord)| {
        let missing = || Err("no answer".to_owned());
        let usage = record.osd_id.map(|_| answers.remove(&position).unwrap_or_else(missing));
        OsdSeen { record, usage }
    };
    records.into_iter().enumerate().map(seen).collect()
}

async fn count(
    backend: &Backend<'_>,
    record: &NamespaceRecord,
    wanted: Option<Wanted>,
    silent: &BTreeSet<OsdId>,
) -> Result<Counted, CliError> {
    let counters = backend.statistics(record).await?;
    let mut counted = Counted {
        objects: counters.objects,
        logical: counters.logical_bytes,
        storage: counters.storage_bytes,
        wanted,
        safety: Safety::of_buckets(&counters.buckets, wanted),
        all_examined: true,
    };
    let mut affected = BTreeSet::new();
    for osd in silent {
        let mut after = None;
        while let Some(last) = objects_on(backend, record, *osd, after, &mut affected).await? {
            if affected.len() > EXAMINED {
                counted.all_examined = false;
                break;
            }
            after = Some(last);
        }
    }
    for object in affected.iter().take(EXAMINED) {
        let query = NsmQuery::ManifestById { namespace: record.id, object: *object };
        // Deleted meanwhile: it is in nobody's way.
        if let NsmAnswer::Manifest(Some(manifest)) = backend.nsm(record, query).await? {
            counted.safety.correct(&manifest, silent, wanted);
        }
    }
    Ok(counted)
}

/// One page of the objects on an OSD; gives the last when there are more.
async fn objects_on(
    backend: &Backend<'_>,
    record: &NamespaceRecord,
    osd: OsdId,
    after: Option<ObjectId>,
    into: &mut BTreeSet<ObjectId>,
) -> Result<Option<ObjectId>, CliError> {
    let query = NsmQuery::ObjectsOnOsd { namespace: record.id, osd, after, max: 200 };
    match backend.nsm(record, query).await? {
        NsmAnswer::ObjectIds(page) => {
            let last = page.items.last().copied().filter(|_| page.has_more);
            into.extend(page.items);
            Ok(last)
        }
        _ => Err(CliError::failure("the group's answer is of another kind; versions that do not fit?")),
    }
}

/// Queues move all the time; one is stuck when its oldest message stays.
async fn watch_queues(
    session: &Session,
    backend: &Backend<'_>,
) -> Result<(Vec<(Destination, u64)>, Vec<(Destination, u64)>), CliError> {
    let queues = backend.queues().await?;
    if queues.is_empty() {
        return Ok((queues, Vec::new()));
    }
    let mut oldest = Vec::new();
    for (destination, _) in &queues {
        oldest.push(backend.oldest_message(destination).await?);
    }
    let clock = session.env.clock.as_ref();
    clock.sleep_until(Deadline::after(clock, QUEUE_PATIENCE).0).await;
    let mut stuck = Vec::new();
    for (queue, before) in queues.iter().zip(oldest) {
        if before.is_some() && backend.oldest_message(&queue.0).await? == before {
            stuck.push(queue.clone());
        }
    }
    Ok((queues, stuck))
}
