//! A whole backend in memory: for the examples of this library, and for tests of programs that use it.
//!
//! The engine is the real one, on OSDs and metadata that are maps in this process. Nothing is durable, nothing is
//! maintained, and there is one group; what a client sees of a backend is as with the real one. Never for data that
//! anybody wants back.

mod objects;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{OsdAssert, OsdBatch, OsdUpdate, Priority, StoredValue};
use alba_core::env::sim::memory_osd::MemoryOsd;
use alba_core::env::{Deadline, Directory, Env, MetaError, NamespaceStore, Osd, OsdError};
use alba_core::ids::{
    AlbaId, GcEpoch, GroupId, IdError, LongId, NamespaceId, NamespaceName, NodeId, OsdId, Place, PresetName,
};
use alba_core::osd_keys;
use alba_core::policy::Policy;
use alba_core::preset::Preset;
use alba_core::range::{Page, RangeQuery};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmError, AbmOutcome, AbmQuery, NamespaceRecord, NamespaceState, OsdEndpoint,
    OsdInfo, OsdKind, OsdRecord, OsdState, PresetRecord, Revisions,
};
use alba_core::wire::rpc::nsm::{NamespaceInfo, NsmAnswer, NsmCommand, NsmError, NsmOutcome, NsmQuery};
use alba_core::wire::rpc::watch::{WatchReply, WatchRequest};
use async_trait::async_trait;

use crate::{Client, ClientConfig, OsdConnector};
use objects::Objects;

/// OSDs, each on a node of its own.
const OSDS: u32 = 6;

/// k, m, c, x of the default preset: any two of the six OSDs may be lost.
const POLICY: [u32; 4] = [4, 2, 5, 1];

/// Time for an OSD in memory.
const SOON: Duration = Duration::from_secs(10);

/// The one gc epoch there is.
const EPOCH: GcEpoch = GcEpoch::from_u32(1);

/// See the module. Its default preset is `default`, with `(4, 2, 5, 1)` on six OSDs.
pub struct MemoryBackend {
    env: Env,
    id: AlbaId,
    group: GroupId,
    preset_name: PresetName,
    preset: Preset,
    osds: BTreeMap<OsdId, (OsdInfo, Arc<MemoryOsd>)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    namespaces: BTreeMap<NamespaceName, (NamespaceRecord, Objects)>,
    made: u32,
}

impl State {
    fn objects(&mut self, id: NamespaceId) -> Result<&mut Objects, MetaError> {
        let mut all = self.namespaces.values_mut();
        let found = all.find(|(record, _)| record.id == id).map(|(_, objects)| objects);
        found.ok_or(MetaError::Nsm(NsmError::NamespaceMoved(id)))
    }
}

impl MemoryBackend {
    /// With no namespace yet.
    pub fn new(env: Env) -> Result<Arc<Self>, IdError> {
        let preset = Preset {
            policies: Policy::try_from(POLICY).into_iter().collect(),
            fragment_size: 1 << 20,
            ..Preset::built_in()
        };
        let mut osds = BTreeMap::new();
        for number in 0..OSDS {
            let info = OsdInfo {
                long_id: LongId::new(format!("memory-{number}"))?,
                place: Place::of_node(NodeId::new(format!("node-{number}"))?),
                endpoint: OsdEndpoint::over_tcp(Vec::new(), 1),
                capacity: ByteCount::mib(1024),
                used: ByteCount(0),
            };
            osds.insert(OsdId::from_u32(number), (info, Arc::new(MemoryOsd::new(ByteCount::mib(1024)))));
        }
        Ok(Arc::new(Self {
            env,
            id: AlbaId::new("in-memory")?,
            group: GroupId::new("nsm-0")?,
            preset_name: PresetName::new("default")?,
            preset,
            osds,
            state: Mutex::default(),
        }))
    }

    /// A client of it, with caches of its own.
    pub fn client(self: &Arc<Self>, config: ClientConfig) -> Client {
        let osds = Arc::new(Handles(Arc::clone(self)));
        let (directory, store) = (Arc::clone(self), Arc::clone(self));
        Client::with_parts(self.env.clone(), config, directory, store, osds)
    }

    /// Changes bytes on an OSD behind everybody's back: one of each fragment that it has.
    pub fn damage(&self, osd: OsdId) {
        let Some((_, memory)) = self.osds.get(&osd) else { return };
        for (key, stored) in memory.content() {
            if matches!(osd_keys::parse(&key), Ok(osd_keys::Parsed::Fragment(..))) {
                let mut bytes = stored.value.to_vec();
                if let Some(first) = bytes.first_mut() {
                    *first ^= 1;
                }
                memory.rot(&key, bytes.into());
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs while the state is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a namespace known to the OSDs, as maintenance does.
    async fn mark(&self, namespace: NamespaceId) -> Result<(), OsdError> {
        let key = osd_keys::namespace_marker(namespace);
        let marker = StoredValue { value: osd_keys::NAMESPACE_ACTIVE, checksum: Checksum::None };
        for (_, osd) in self.osds.values() {
            let batch = OsdBatch {
                asserts: vec![OsdAssert::Absent(key.clone())],
                updates: vec![OsdUpdate::Set(key.clone(), marker.clone())],
            };
            osd.apply(batch, Priority::High, Deadline::after(&*self.env.clock, SOON)).await?;
        }
        Ok(())
    }

    fn info(&self, id: NamespaceId) -> Result<NamespaceInfo, MetaError> {
        let state = self.state();
        let mut records = state.namespaces.values().map(|(record, _)| record);
        let record = records.find(|record| record.id == id);
        let record = record.ok_or(MetaError::Nsm(NsmError::NamespaceMoved(id)))?;
        Ok(NamespaceInfo {
            name: record.name.clone(),
            preset: self.preset.clone(),
            preset_version: 0,
            active_osds: self.osds.iter().map(|(id, (info, _))| (*id, info.clone())).collect(),
            min_epoch: EPOCH,
            newest_epoch: EPOCH,
        })
    }

    async fn create(&self, name: NamespaceName, preset: Option<PresetName>) -> Result<AbmOutcome, MetaError> {
        if let Some(preset) = preset.filter(|preset| *preset != self.preset_name) {
            return Err(MetaError::Abm(AbmError::PresetUnknown(preset)));
        }
        let id = {
            let mut state = self.state();
            if state.namespaces.contains_key(&name) {
                return Err(MetaError::Abm(AbmError::NamespaceExists(name)));
            }
            state.made += 1;
            NamespaceId::from_u32(state.made)
        };
        self.mark(id).await.map_err(|error| MetaError::Storage(error.to_string()))?;
        let (group, state, preset) = (self.group.clone(), NamespaceState::Active, self.preset_name.clone());
        let record = NamespaceRecord { id, name: name.clone(), group, state, preset };
        self.state().namespaces.entry(name).or_insert((record.clone(), Objects::default()));
        Ok(AbmOutcome::Namespace(record))
    }
}

/// A page of what is in `range`, by key.
fn page<T>(
    range: &RangeQuery,
    items: impl DoubleEndedIterator<Item = T>,
    key: impl Fn(&T) -> &[u8],
) -> Page<T> {
    let inside = items.filter(|item| range.contains(key(item)));
    let mut inside: Vec<T> = if range.reverse { inside.rev().collect() } else { inside.collect() };
    let has_more = inside.len() > range.limit();
    inside.truncate(range.limit());
    Page { items: inside, has_more }
}

fn not_here<T>(what: &dyn std::fmt::Debug) -> Result<T, MetaError> {
    Err(MetaError::Protocol(format!("a backend in memory has no {what:?}")))
}

#[async_trait]
impl Directory for MemoryBackend {
    async fn command(&self, command: AbmCommand, _: Deadline) -> Result<AbmOutcome, MetaError> {
        match command {
            AbmCommand::CreateNamespace { name, preset, .. } => self.create(name, preset).await,
            AbmCommand::DeleteNamespace { name } => match self.state().namespaces.remove(&name) {
                Some(_) => Ok(AbmOutcome::Done),
                None => Err(MetaError::Abm(AbmError::NamespaceUnknown(name))),
            },
            other => not_here(&other),
        }
    }

    async fn query(&self, query: AbmQuery, _: Deadline) -> Result<AbmAnswer, MetaError> {
        Ok(match query {
            AbmQuery::AlbaId => AbmAnswer::AlbaId(self.id.clone()),
            AbmQuery::Namespace(name) => {
                AbmAnswer::Namespace(self.state().namespaces.get(&name).map(|(record, _)| record.clone()))
            }
            AbmQuery::Namespaces(range) => {
                let state = self.state();
                let records = state.namespaces.values().map(|(record, _)| record.clone());
                AbmAnswer::Namespaces(page(&range, records, |record| record.name.as_bytes()))
            }
            AbmQuery::Osds { range, .. } => {
                let records = self.osds.iter().map(|(id, (info, _))| OsdRecord {
                    info: info.clone(),
                    osd_id: Some(*id),
                    state: OsdState::Active,
                    claimed_since: Some(0),
                    kind: OsdKind::Asd,
                    owner: None,
                });
                AbmAnswer::Osds(page(&range, records, |record| record.info.long_id.as_str().as_bytes()))
            }
            AbmQuery::Presets(range) => {
                let record = PresetRecord {
                    name: self.preset_name.clone(),
                    preset: self.preset.clone(),
                    version: 0,
                    is_default: true,
                    in_use: true,
                };
                AbmAnswer::Presets(page(&range, std::iter::once(record), |r| r.name.as_str().as_bytes()))
            }
            AbmQuery::Revisions => AbmAnswer::Revisions(Revisions::default()),
            other => return not_here(&other),
        })
    }

    /// There is nothing to tell: what changes, changes through the client.
    async fn watch(&self, _: WatchRequest, _: Deadline) -> Result<WatchReply, MetaError> {
        Err(MetaError::Protocol("a backend in memory tells of no changes".to_owned()))
    }
}

#[async_trait]
impl NamespaceStore for MemoryBackend {
    async fn command(&self, _: &GroupId, command: NsmCommand, _: Deadline) -> Result<NsmOutcome, MetaError> {
        match command {
            NsmCommand::Sequence { namespace, asserts, updates, .. } => {
                let now = self.env.clock.wall_micros();
                Ok(self.state().objects(namespace)?.sequence(&asserts, updates, now)?)
            }
            NsmCommand::AddLateFragments { namespace, object, fragments, .. } => {
                Ok(self.state().objects(namespace)?.add_late(object, fragments)?)
            }
            other => not_here(&other),
        }
    }

    async fn query(&self, _: &GroupId, query: NsmQuery, _: Deadline) -> Result<NsmAnswer, MetaError> {
        Ok(match query {
            NsmQuery::Namespace(id) => NsmAnswer::Namespace(Box::new(self.info(id)?)),
            NsmQuery::Manifests { namespace, names, .. } => {
                let mut state = self.state();
                let objects = state.objects(namespace)?;
                NsmAnswer::Manifests(names.iter().map(|name| objects.manifest(name)).collect())
            }
            NsmQuery::Contents { namespace, names, .. } => {
                let mut state = self.state();
                let objects = state.objects(namespace)?;
                // No preset here puts objects into the metadata.
                NsmAnswer::Contents(names.iter().map(|name| Some((objects.manifest(name)?, None))).collect())
            }
            NsmQuery::Objects { namespace, range } => {
                let mut state = self.state();
                let names = state.objects(namespace)?.names();
                NsmAnswer::Objects(page(&range, names.into_iter(), |name| name.as_bytes()))
            }
            other => return not_here(&other),
        })
    }
}

/// The OSDs by their long ids.
struct Handles(Arc<MemoryBackend>);

impl OsdConnector for Handles {
    fn osd(&self, info: &OsdInfo) -> Arc<dyn Osd> {
        let mut osds = self.0.osds.values();
        match osds.find(|(known, _)| known.long_id == info.long_id) {
            Some((_, osd)) => Arc::<MemoryOsd>::clone(osd),
            // Only those above are ever listed.
            None => Arc::new(MemoryOsd::new(ByteCount(0))),
        }
    }
}
