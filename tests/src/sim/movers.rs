//! Those who move fragments for the fill's sake, from anywhere to anywhere, as often as they can: the moves of the rebalancer
//! without its reasons. And some who move in a wrong order, to see that the checker notices.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alba_client::repair::{Registry, Relocated, Relocation, Repairer};
use alba_client::{Client, ClientConfig};
use alba_core::checksum::ChecksumAlgorithm;
use alba_core::env::Env;
use alba_core::env::osd::{OsdBatch, OsdUpdate, StoredValue};
use alba_core::ids::{ChunkIndex, FragmentIndex, ObjectVersion, OsdId};
use alba_core::manifest::Manifest;
use alba_core::osd_keys::{self, FragmentAddress};
use alba_core::wire::rpc::abm::{NamespaceRecord, OsdFilter};
use alba_core::wire::rpc::nsm::{FragmentUpdate, NsmCommand};
use alba_maintenance::{Backend, TaskError};
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::world::World;
use super::{Sabotage, Shared};

/// Time for one move.
const MOVE: Duration = Duration::from_secs(8);

/// Objects that one is chosen from.
const PAGE: u32 = 50;

/// All of a run.
pub(super) struct Movers {
    count: u32,
    sabotage: Option<Sabotage>,
    moved: Shared<u64>,
}

impl Movers {
    pub(super) fn start(world: &World<'_>, count: u32, sabotage: Option<Sabotage>) -> Self {
        let movers = Self { count, sabotage, moved: Shared::default() };
        for machine in 0..count {
            movers.start_one(world, machine);
        }
        movers
    }

    fn start_one(&self, world: &World<'_>, machine: u32) {
        let env = world.mover_node(machine).env();
        let life = Life {
            env: env.clone(),
            config: world.client_config(),
            sabotage: self.sabotage,
            moved: self.moved.clone(),
        };
        env.spawn.spawn("mover", Box::pin(life.run()));
    }

    /// One loses power, whatever it was doing, and comes back at once.
    pub(super) fn crash_one(&self, world: &World<'_>, rng: &mut StdRng) -> bool {
        if self.count == 0 {
            return false;
        }
        let machine = rng.random_range(0..self.count);
        world.mover_node(machine).crash();
        self.start_one(world, machine);
        true
    }

    /// All end where they are. Gives how many moves were made.
    pub(super) fn stop(&self, world: &World<'_>) -> u64 {
        (0..self.count).for_each(|machine| world.mover_node(machine).crash());
        *self.moved.lock().unwrap()
    }
}

/// One life of a machine.
struct Life {
    env: Env,
    config: ClientConfig,
    sabotage: Option<Sabotage>,
    moved: Shared<u64>,
}

/// Where an object could be moved.
struct Choice {
    manifest: Manifest,
    source: OsdId,
    target: OsdId,
}

impl Life {
    async fn run(self) {
        let mut rng = self.env.rng.generator();
        let client = loop {
            match Client::connect(self.env.clone(), self.config.clone()).await {
                Ok(client) => break client,
                Err(_) => self.pause(100).await,
            }
        };
        let repairer = client.repairer();
        let backend = Backend::new(self.env.clone(), client);
        loop {
            // What fails is given up, as the real one does: another plan will have it.
            if let Ok(true) = self.one(&backend, &repairer, &mut rng).await {
                *self.moved.lock().unwrap() += 1;
            }
            self.pause(rng.random_range(0..300)).await;
        }
    }

    async fn pause(&self, millis: u64) {
        self.env.clock.sleep_until(self.env.clock.now().plus(Duration::from_millis(millis))).await;
    }

    async fn one(
        &self,
        backend: &Arc<Backend>,
        repairer: &Repairer,
        rng: &mut StdRng,
    ) -> Result<bool, TaskError> {
        let records: BTreeMap<_, _> = backend
            .osds(OsdFilter::Claimed)
            .await?
            .into_iter()
            .filter_map(|record| Some((record.osd_id?, record)))
            .collect();
        let namespaces = backend.namespaces().await?;
        let Some(namespace) = namespaces.first().filter(|_| !records.is_empty()) else { return Ok(false) };
        let patient = repairer.patient(namespace.clone());
        let osds: Vec<OsdId> = records.keys().copied().collect();
        let [source, target] = [(); 2].map(|()| osds[rng.random_range(0..osds.len())]);
        let ids = repairer.objects_on(&patient, source, None, PAGE).await?.items;
        if source == target || ids.is_empty() {
            return Ok(false);
        }
        let object = ids[rng.random_range(0..ids.len())];
        let deadline = self.env.deadline_in(MOVE);
        let Some(manifest) = repairer.manifest(&patient, object, deadline).await? else { return Ok(false) };
        // Somebody else may be at it meanwhile.
        self.pause(rng.random_range(0..200)).await;
        let choice = Choice { manifest, source, target };
        match self.sabotage {
            Some(Sabotage::CommitBeforeStoring) => {
                commit_before_storing(self, backend, namespace, &choice, rng).await
            }
            Some(Sabotage::MoveWithoutTag) => move_without_tag(self, backend, namespace, &choice, rng).await,
            _ => {
                let registry = Registry { records, ..Registry::default() };
                let osds = repairer.osds(&patient, &registry).await?;
                let relocation = Relocation { object, version: choice.manifest.version, source, target };
                let moved = repairer.relocate(&patient, relocation, &osds, deadline).await?;
                Ok(matches!(moved, Relocated::Moved { .. }))
            }
        }
    }
}

impl Choice {
    /// A fragment that can go.
    fn fragment(&self) -> Option<(ChunkIndex, FragmentIndex, ObjectVersion)> {
        let chunk = self.manifest.chunks.first()?;
        if chunk.fragments.iter().any(|fragment| fragment.location == Some(self.target)) {
            return None;
        }
        let index = chunk.fragments.iter().position(|fragment| fragment.location == Some(self.source))?;
        let index = FragmentIndex(u32::try_from(index).unwrap());
        Some((ChunkIndex(0), index, self.manifest.fragment(ChunkIndex(0), index)?.version))
    }

    fn address(&self, chunk: ChunkIndex, fragment: FragmentIndex, version: ObjectVersion) -> FragmentAddress {
        FragmentAddress { object_id: self.manifest.object_id, chunk, fragment, version }
    }
}

/// The manifest names the fragment's new place before the fragment is there. Meanwhile the old one may be deleted.
async fn commit_before_storing(
    life: &Life,
    backend: &Backend,
    namespace: &NamespaceRecord,
    choice: &Choice,
    rng: &mut StdRng,
) -> Result<bool, TaskError> {
    let Some((chunk, fragment, version)) = choice.fragment() else { return Ok(false) };
    commit(backend, namespace, choice, chunk, fragment).await?;
    life.pause(rng.random_range(0..5000)).await;
    copy(backend, namespace, choice, chunk, fragment, version).await
}

/// The new fragment has no tag: when the update of the manifest comes too late, nobody will ever delete it.
async fn move_without_tag(
    life: &Life,
    backend: &Backend,
    namespace: &NamespaceRecord,
    choice: &Choice,
    rng: &mut StdRng,
) -> Result<bool, TaskError> {
    let Some((chunk, fragment, version)) = choice.fragment() else { return Ok(false) };
    if !copy(backend, namespace, choice, chunk, fragment, version).await? {
        return Ok(false);
    }
    life.pause(rng.random_range(0..2000)).await;
    commit(backend, namespace, choice, chunk, fragment).await?;
    Ok(true)
}

async fn commit(
    backend: &Backend,
    namespace: &NamespaceRecord,
    choice: &Choice,
    chunk: ChunkIndex,
    fragment: FragmentIndex,
) -> Result<(), TaskError> {
    let epoch = backend.namespace_info(namespace).await?.newest_epoch;
    let update = FragmentUpdate { chunk, fragment, osd: Some(choice.target), packed: None, ctr: None };
    let command = NsmCommand::UpdateObject {
        namespace: namespace.id,
        object: choice.manifest.object_id,
        version: choice.manifest.version,
        fragments: vec![update],
        epoch,
    };
    backend.tell_group(&namespace.group, command).await.map(drop)
}

/// Fragment and recovery info, from the old place under the old key to the new one under the new key.
async fn copy(
    backend: &Backend,
    namespace: &NamespaceRecord,
    choice: &Choice,
    chunk: ChunkIndex,
    fragment: FragmentIndex,
    version: ObjectVersion,
) -> Result<bool, TaskError> {
    let old = choice.address(chunk, fragment, version);
    let next = ObjectVersion(choice.manifest.version.0 + 1);
    let new = choice.address(chunk, fragment, next);
    let (from, to) = (backend.osd(choice.source).await?, backend.osd(choice.target).await?);
    let mut updates = Vec::new();
    for key in [osd_keys::fragment, osd_keys::recovery_info] {
        let Some(value) = from.get(key(namespace.id, &old)).await? else { return Ok(false) };
        let checksum = ChecksumAlgorithm::Crc32c.of(&value);
        updates.push(OsdUpdate::Set(key(namespace.id, &new), StoredValue { value, checksum }));
    }
    to.apply(OsdBatch { asserts: Vec::new(), updates }).await?;
    Ok(true)
}
