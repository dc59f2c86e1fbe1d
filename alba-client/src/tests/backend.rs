//! A small backend in memory: one namespace's metadata and some OSDs, with faults, and a log of what happened in which
//! order. It keeps the rules that the engine relies on, in the simplest form.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alba_core::checksum::ChecksumAlgorithm;
use alba_core::env::osd::{
    DiskUsage, OsdAssert, OsdBatch, OsdKey, OsdUpdate, Priority, ProvenSlice, StoredValue, ValueSlice,
};
use alba_core::env::sim::memory_osd::MemoryOsd;
use alba_core::env::sim::{SimNode, Simulation};
use alba_core::env::{Clock, Deadline, Directory, Env, MetaError, NamespaceStore, Osd, OsdError, Rng};
use alba_core::ids::*;
use alba_core::manifest::Manifest;
use alba_core::osd_keys;
use alba_core::policy::Policy;
use alba_core::preset::{Compression, ObjectChecksums, OsdSet, Preset};
use alba_core::range::{Page, RangeQuery};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::*;
use alba_core::wire::rpc::nsm::*;
use alba_core::wire::rpc::watch::{Lineage, Seen, Topic, WatchReply, WatchRequest};
use async_trait::async_trait;

use crate::engine::Engine;
use crate::fragment_cache::FragmentCache;
use crate::{Client, ClientConfig, OsdConnector};

mod group;
mod osd;

pub(super) use osd::TestOsd;

pub(super) const NS: NamespaceId = NamespaceId::from_u32(7);

/// Something that happened, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// An OSD acknowledged a fragment.
    Stored(OsdId, OsdKey),
    /// A sequence reached the group.
    CommitAsked,
    /// The group answered it.
    CommitAnswered,
    /// An update of an object reached the group.
    UpdateAsked,
    /// The group answered it.
    UpdateAnswered,
    /// A tag was removed on an OSD.
    TagRemoved(OsdId, OsdKey),
    /// Late fragments were added.
    LateAdded(usize),
}

pub(super) type Log = Arc<Mutex<Vec<Event>>>;

struct Object {
    manifest: Manifest,
    value: Option<InlineValue>,
}

/// The state of the namespace, and what the next commands shall meet.
pub(super) struct Group {
    pub(super) info: NamespaceInfo,
    objects: BTreeMap<ObjectName, Object>,
    clock: u64,
    /// Errors for the next sequences; `None` passes.
    pub(super) refusals: Vec<Option<MetaError>>,
    /// Apply the next sequence and then lose the session.
    pub(super) lose_session: bool,
    /// What the ABM says next of the namespace; the last one stays.
    pub(super) records: Vec<NamespaceRecord>,
    /// All namespaces, by name.
    pub(super) listed: Vec<NamespaceRecord>,
    /// Which group each sequence was sent to.
    pub(super) sent_to: Vec<GroupId>,
    pub(super) queries: usize,
    /// Every OSD that was ever active.
    pub(super) known: BTreeMap<OsdId, OsdInfo>,
    /// Replaced fragments.
    pub(super) queued: Vec<(OsdId, FragmentKey)>,
    /// Errors for the next updates; `None` passes.
    pub(super) update_refusals: Vec<Option<MetaError>>,
    /// Has it the replicas that objects in the metadata need?
    pub(super) takes_inline: bool,
    /// Errors for the next additions of late fragments.
    pub(super) late_refusals: Vec<MetaError>,
    /// Given to maintenance.
    pub(super) work: Vec<WorkItem>,
    /// It takes no work.
    pub(super) abm_is_away: bool,
    /// It takes so long to take work.
    pub(super) abm_delay: Duration,
}

pub(super) struct Backend {
    pub(super) osds: Mutex<BTreeMap<OsdId, Arc<TestOsd>>>,
    pub(super) group: Mutex<Group>,
    pub(super) log: Log,
    pub(super) clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    nodes: usize,
    /// What was told to the ABM.
    pub(super) told_abm: Mutex<Vec<AbmCommand>>,
    /// The ABM does not answer.
    pub(super) abm_is_gone: Mutex<bool>,
    /// What watches are told; none: of nothing, as by an older version.
    told: Option<tokio::sync::watch::Sender<Seen>>,
}

fn name() -> NamespaceName {
    NamespaceName::new("ns").unwrap()
}

pub(super) fn record() -> NamespaceRecord {
    NamespaceRecord {
        id: NS,
        name: name(),
        group: GroupId::new("nsm-0").unwrap(),
        state: NamespaceState::Active,
        preset: PresetName::new("p").unwrap(),
    }
}

impl Backend {
    fn osd_info(&self, id: OsdId) -> OsdInfo {
        let number = id.get();
        OsdInfo {
            long_id: LongId::new(format!("osd-{number:03}")).unwrap(),
            place: Place::of_node(NodeId::new(format!("node-{}", number % self.nodes as u64)).unwrap()),
            endpoint: OsdEndpoint::over_tcp(vec!["127.0.0.1".parse().unwrap()], 1),
            capacity: ByteCount::mib(1024),
            used: ByteCount(0),
        }
    }

    fn osd_record(&self, id: OsdId) -> OsdRecord {
        OsdRecord {
            info: self.osd_info(id),
            osd_id: Some(id),
            state: OsdState::Active,
            claimed_since: Some(0),
            kind: OsdKind::Asd,
            owner: None,
        }
    }

    pub(super) fn osd(&self, id: OsdId) -> Arc<TestOsd> {
        self.osds.lock().unwrap()[&id].clone()
    }

    pub(super) fn all(&self) -> Vec<Arc<TestOsd>> {
        self.osds.lock().unwrap().values().cloned().collect()
    }

    /// Adds an OSD with the namespace on it, and makes it active.
    pub(super) async fn add_osd(self: &Arc<Self>, id: u32) -> Arc<TestOsd> {
        let id = OsdId::from_u32(id);
        let osd = Arc::new(TestOsd {
            id,
            memory: MemoryOsd::new(ByteCount::mib(1024)),
            faults: Mutex::default(),
            reads: Mutex::default(),
            read_bytes: Mutex::default(),
            applies: Mutex::default(),
            peer_reads: Mutex::default(),
            backend: Arc::downgrade(self),
            clock: self.clock.clone(),
            rng: self.rng.clone(),
            log: self.log.clone(),
        });
        let marker =
            StoredValue { value: osd_keys::NAMESPACE_ACTIVE, checksum: alba_core::checksum::Checksum::None };
        let batch = OsdBatch {
            asserts: vec![OsdAssert::Absent(osd_keys::namespace_marker(NS))],
            updates: vec![OsdUpdate::Set(osd_keys::namespace_marker(NS), marker)],
        };
        let deadline = Deadline::after(&*self.clock, Duration::from_secs(1));
        osd.memory.apply(batch, Priority::High, deadline).await.unwrap();
        self.osds.lock().unwrap().insert(id, osd.clone());
        {
            let mut group = self.group.lock().unwrap();
            group.info.active_osds.push((id, self.osd_info(id)));
            group.known.insert(id, self.osd_info(id));
        }
        self.tell(&[Topic::OSDS, Topic::DELIVERIES]);
        osd
    }

    /// Something of these topics has changed.
    pub(super) fn tell(&self, topics: &[Topic]) {
        let Some(told) = &self.told else { return };
        told.send_modify(|seen| {
            for (topic, revision) in &mut seen.revisions {
                *revision += u64::from(topics.contains(topic));
            }
        });
    }

    pub(super) fn stored(&self, name: &ObjectName) -> Option<Manifest> {
        self.group.lock().unwrap().objects.get(name).map(|object| object.manifest.clone())
    }

    /// Changes the manifest of an object behind everybody's back.
    pub(super) fn change(&self, name: &ObjectName, change: impl FnOnce(&mut Manifest)) {
        change(&mut self.group.lock().unwrap().objects.get_mut(name).unwrap().manifest);
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.log.lock().unwrap().clone()
    }
}

pub(super) fn preset(policies: &[[u32; 4]], fragment_size: u32, compression: Compression) -> Preset {
    let policies = policies.iter().map(|p| Policy::try_from(*p).unwrap()).collect();
    Preset {
        policies,
        fragment_size,
        osds: OsdSet::All,
        compression,
        fragment_checksum: ChecksumAlgorithm::Blake3,
        object_checksum: ObjectChecksums {
            allowed: vec![ChecksumAlgorithm::None, ChecksumAlgorithm::Sha1, ChecksumAlgorithm::Crc32c],
            default: ChecksumAlgorithm::Crc32c,
            verify_upload: true,
        },
        ..Preset::built_in()
    }
}

#[async_trait]
impl Directory for Backend {
    async fn command(&self, command: AbmCommand, deadline: Deadline) -> Result<AbmOutcome, MetaError> {
        if !matches!(command, AbmCommand::AddWork(_) | AbmCommand::ReportOsds(_)) {
            return Err(MetaError::Abm(AbmError::NoGroup));
        }
        if *self.abm_is_gone.lock().unwrap() {
            self.clock.sleep_until(deadline.0).await;
            return Err(MetaError::Protocol("gone".to_owned()));
        }
        if let AbmCommand::AddWork(items) = &command {
            let delay = self.group.lock().unwrap().abm_delay;
            self.clock.sleep_until(self.clock.now().plus(delay)).await;
            let mut group = self.group.lock().unwrap();
            if group.abm_is_away {
                return Err(MetaError::Storage("away".into()));
            }
            assert!(items.len() <= WORK_PAGE);
            group.work.extend(items.iter().cloned());
        }
        self.told_abm.lock().unwrap().push(command);
        Ok(AbmOutcome::Done)
    }

    async fn query(&self, query: AbmQuery, _deadline: Deadline) -> Result<AbmAnswer, MetaError> {
        Ok(match query {
            AbmQuery::Namespace(asked) => {
                let records = &mut self.group.lock().unwrap().records;
                let now = if records.len() > 1 { records.remove(0) } else { records[0].clone() };
                AbmAnswer::Namespace((asked == name()).then_some(now))
            }
            AbmQuery::Osds { range, .. } => {
                let records: Vec<OsdRecord> = self
                    .osds
                    .lock()
                    .unwrap()
                    .keys()
                    .map(|id| self.osd_record(*id))
                    .filter(|record| range.contains(record.info.long_id.as_str().as_bytes()))
                    .collect();
                // Short pages, so that paging is used.
                let has_more = records.len() > 5;
                AbmAnswer::Osds(Page { items: records.into_iter().take(5).collect(), has_more })
            }
            AbmQuery::Namespaces(range) => {
                let listed = &self.group.lock().unwrap().listed;
                let in_range = |record: &&NamespaceRecord| range.contains(record.name.as_bytes());
                let records: Vec<NamespaceRecord> = listed.iter().filter(in_range).cloned().collect();
                let has_more = records.len() > 7;
                AbmAnswer::Namespaces(Page { items: records.into_iter().take(7).collect(), has_more })
            }
            AbmQuery::OsdHealth(range) => {
                // Each was seen at the moment of its number.
                let health = |id: &OsdId| {
                    (self.osd_info(*id).long_id, OsdHealth { seen: vec![id.get()], ..OsdHealth::default() })
                };
                let all: Vec<_> = self.osds.lock().unwrap().keys().map(health).collect();
                let inside: Vec<_> =
                    all.into_iter().filter(|(id, _)| range.contains(id.as_str().as_bytes())).collect();
                let has_more = inside.len() > 5;
                AbmAnswer::OsdHealth(Page { items: inside.into_iter().take(5).collect(), has_more })
            }
            AbmQuery::Osd(long_id) => {
                let ids: Vec<OsdId> = self.osds.lock().unwrap().keys().copied().collect();
                let found = ids.into_iter().find(|id| self.osd_info(*id).long_id == long_id);
                AbmAnswer::Osd(found.map(|id| self.osd_record(id)))
            }
            AbmQuery::Revisions => AbmAnswer::Revisions(Revisions::default()),
            other => panic!("not asked by the engine: {other:?}"),
        })
    }

    async fn watch(&self, request: WatchRequest, deadline: Deadline) -> Result<WatchReply, MetaError> {
        let Some(told) = &self.told else {
            return Err(MetaError::Protocol("an older version".to_owned()));
        };
        let mut told = told.subscribe();
        let news = told.wait_for(|now| now.is_news_to(&request.known));
        let wait = deadline.capped(&*self.clock, request.wait());
        match alba_core::env::within(&*self.clock, wait, news).await {
            Ok(now) => Ok(WatchReply::News(now.unwrap().clone())),
            Err(_) => Ok(WatchReply::Quiet),
        }
    }
}

#[async_trait]
impl NamespaceStore for Backend {
    async fn command(
        &self,
        group: &GroupId,
        command: NsmCommand,
        _deadline: Deadline,
    ) -> Result<NsmOutcome, MetaError> {
        let event = |event| self.log.lock().unwrap().push(event);
        // Takes a moment, so that what must wait for the answer can be seen to wait.
        let pause = |millis| self.clock.sleep_until(self.clock.now().plus(Duration::from_millis(millis)));
        match command {
            NsmCommand::Sequence { namespace, asserts, updates, epoch } => {
                assert_eq!(namespace, NS);
                event(Event::CommitAsked);
                self.group.lock().unwrap().sent_to.push(group.clone());
                pause(1).await;
                let refusal = {
                    let refusals = &mut self.group.lock().unwrap().refusals;
                    if refusals.is_empty() { None } else { refusals.remove(0) }
                };
                if let Some(refusal) = refusal {
                    return Err(refusal);
                }
                let outcome = self.group.lock().unwrap().sequence(&asserts, updates, epoch)?;
                pause(1).await;
                event(Event::CommitAnswered);
                if std::mem::take(&mut self.group.lock().unwrap().lose_session) {
                    return Err(MetaError::SessionUnknown);
                }
                Ok(outcome)
            }
            NsmCommand::AddLateFragments { object, fragments, .. } => {
                let count = fragments.len();
                if let Some(refusal) = self.group.lock().unwrap().late_refusals.pop() {
                    return Err(refusal);
                }
                let outcome = self.group.lock().unwrap().add_late(object, fragments)?;
                event(Event::LateAdded(count));
                Ok(outcome)
            }
            NsmCommand::UpdateObject { object, version, fragments, epoch, .. } => {
                event(Event::UpdateAsked);
                pause(1).await;
                let refusal = {
                    let refusals = &mut self.group.lock().unwrap().update_refusals;
                    if refusals.is_empty() { None } else { refusals.remove(0) }
                };
                if let Some(refusal) = refusal {
                    return Err(refusal);
                }
                let outcome = self.group.lock().unwrap().update(object, version, &fragments, epoch)?;
                pause(1).await;
                event(Event::UpdateAnswered);
                if std::mem::take(&mut self.group.lock().unwrap().lose_session) {
                    return Err(MetaError::SessionUnknown);
                }
                Ok(outcome)
            }
            other => panic!("not sent by the engine: {other:?}"),
        }
    }

    async fn query(
        &self,
        _group: &GroupId,
        query: NsmQuery,
        _deadline: Deadline,
    ) -> Result<NsmAnswer, MetaError> {
        let mut group = self.group.lock().unwrap();
        group.queries += 1;
        if let Some(answer) = group.inspect(&query) {
            return Ok(answer);
        }
        Ok(match query {
            NsmQuery::Namespace(_) => NsmAnswer::Namespace(Box::new(group.info.clone())),
            NsmQuery::Manifests { names, .. } => NsmAnswer::Manifests(
                names.iter().map(|n| group.objects.get(n).map(|o| o.manifest.clone())).collect(),
            ),
            NsmQuery::Contents { names, .. } => NsmAnswer::Contents(
                names
                    .iter()
                    .map(|n| group.objects.get(n).map(|o| (o.manifest.clone(), o.value.clone())))
                    .collect(),
            ),
            NsmQuery::ManifestById { object, .. } => NsmAnswer::Manifest(
                group
                    .objects
                    .values()
                    .find(|o| o.manifest.object_id == object)
                    .map(|o| Box::new(o.manifest.clone())),
            ),
            NsmQuery::Objects { range, .. } => {
                let mut names: Vec<ObjectName> =
                    group.objects.keys().filter(|n| range.contains(n.as_bytes())).cloned().collect();
                let has_more = names.len() > range.limit();
                names.truncate(range.limit());
                NsmAnswer::Objects(Page { items: names, has_more })
            }
            other => panic!("not asked by the engine: {other:?}"),
        })
    }
}

/// The handles: the OSD of that long id.
struct Handles(Arc<Backend>);

impl OsdConnector for Handles {
    fn osd(&self, info: &OsdInfo) -> Arc<dyn Osd> {
        let number: u64 = info.long_id.as_str().trim_start_matches("osd-").parse().unwrap();
        self.0.osd(OsdId::new(number).unwrap())
    }
}

/// A simulation with a backend and a client.
pub(super) struct Fixture {
    pub(super) simulation: Simulation,
    pub(super) backend: Arc<Backend>,
    pub(super) client: Client,
    pub(super) node: SimNode,
}

impl Fixture {
    pub(super) fn new(osds: u32, nodes: usize, preset: Preset) -> Self {
        Self::with_config(osds, nodes, preset, ClientConfig::default())
    }

    pub(super) fn with_config(osds: u32, nodes: usize, preset: Preset, config: ClientConfig) -> Self {
        Self::made(osds, nodes, preset, config, None)
    }

    /// One whose metadata tells of changes.
    pub(super) fn watched(osds: u32, nodes: usize, preset: Preset, config: ClientConfig) -> Self {
        let told = Seen { lineage: Lineage(1), ..Seen::nothing(&Topic::ALL) };
        Self::made(osds, nodes, preset, config, Some(told))
    }

    fn made(osds: u32, nodes: usize, preset: Preset, config: ClientConfig, told: Option<Seen>) -> Self {
        let simulation = Simulation::new(1);
        let node = simulation.node(1);
        let env = node.env();
        let epoch = GcEpoch::from_u32(3);
        let info = NamespaceInfo {
            name: name(),
            preset,
            preset_version: 0,
            active_osds: Vec::new(),
            min_epoch: epoch,
            newest_epoch: epoch,
        };
        let group = Group {
            info,
            objects: BTreeMap::new(),
            clock: 0,
            refusals: Vec::new(),
            lose_session: false,
            records: vec![record()],
            listed: Vec::new(),
            sent_to: Vec::new(),
            queries: 0,
            known: BTreeMap::new(),
            queued: Vec::new(),
            update_refusals: Vec::new(),
            takes_inline: true,
            late_refusals: Vec::new(),
            work: Vec::new(),
            abm_is_away: false,
            abm_delay: Duration::ZERO,
        };
        let backend = Arc::new(Backend {
            osds: Mutex::default(),
            group: Mutex::new(group),
            log: Log::default(),
            clock: env.clock.clone(),
            rng: env.rng.clone(),
            nodes,
            told_abm: Mutex::default(),
            abm_is_gone: Mutex::new(false),
            told: told.map(|told| tokio::sync::watch::channel(told).0),
        });
        simulation
            .run(Duration::from_secs(1), async {
                for id in 0..osds {
                    backend.add_osd(id).await;
                }
            })
            .unwrap();
        let client = Self::client_of(&backend, env, config);
        Self { simulation, backend, client, node }
    }

    fn client_of(backend: &Arc<Backend>, env: Env, config: ClientConfig) -> Client {
        let directory: Arc<dyn Directory> = backend.clone();
        let store: Arc<dyn NamespaceStore> = backend.clone();
        Client::with_parts(env, config, directory, store, Arc::new(Handles(backend.clone())))
    }

    /// The same with a client that has this cache.
    pub(super) fn with_cache(mut self, cache: Arc<dyn FragmentCache>) -> Self {
        let directory: Arc<dyn Directory> = self.backend.clone();
        let store: Arc<dyn NamespaceStore> = self.backend.clone();
        let osds = Arc::new(Handles(self.backend.clone()));
        let config = self.client.config().clone();
        self.client =
            Client { engine: Engine::with_cache(self.node.env(), config, directory, store, osds, cache) };
        self
    }

    /// Another process with caches of its own.
    pub(super) fn second_client(&self) -> Client {
        Self::client_of(&self.backend, self.node.env(), self.client.config().clone())
    }

    pub(super) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.simulation.run(Duration::from_secs(600), work).unwrap()
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.node.env().deadline_in(Duration::from_secs(60))
    }
}
