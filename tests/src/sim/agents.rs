//! Maintenance agents in a run: the real ones, at a pace that makes them meet clients all the time; and one that collects garbage in
//! the wrong order, to see that the checker notices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use alba_client::Client;
use alba_client::repair::{Registry, Weakest};
use alba_core::checksum::Checksum;
use alba_core::daemon::StopSignal;
use alba_core::env::Env;
use alba_core::env::osd::{OsdBatch, OsdUpdate, StoredValue};
use alba_core::ids::{ChunkIndex, FragmentIndex, ObjectId, ObjectVersion};
use alba_core::osd_keys::{self, FragmentAddress, Parsed};
use alba_core::range::{RangeQuery, next_prefix};
use alba_core::wire::rpc::abm::{OsdFilter, OsdState};
use alba_maintenance::config::TaskConfig;
use alba_maintenance::tasks::gc::verdict::{StaleTag, carry_out, judge};
use alba_maintenance::{Agent, Backend, MaintenanceConfig, TaskError, agent, fsck, tasks};
use bytes::Bytes;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::world::World;
use super::{Plan, Sabotage, Shared};

/// How often what runs: so that several rounds pass during the uploads of a run, and slow uploads meet the end of their epoch.
const TASKS: [(&str, &str); 2] = [("gc", "4s"), ("cleanup", "3s")];

/// The same where they repair.
const REPAIR: [(&str, &str); 2] = [("repair", "2s"), ("work", "2s")];

/// In which time all is repaired once nothing happens any more. Objects are left alone for a minute after their upload.
const CONVALESCENCE: Duration = Duration::from_secs(1800);

/// Two rounds of garbage collection, each of which waits for uploads that have begun, with the time that agents take to look for
/// work and to do it.
const TWO_CYCLES: Duration = Duration::from_secs(20);

/// As long as agents that clean up leave OSDs alone that did not answer, and a bit.
const UNHEARD: Duration = Duration::from_secs(125);

/// All agents of a run.
pub(super) struct Agents {
    count: u32,
    repair: bool,
    sabotage: Option<Sabotage>,
    boards: Shared<Vec<alba_maintenance::progress::Board>>,
}

impl Agents {
    pub(super) fn start(world: &World<'_>, plan: Plan) -> Self {
        let Plan { agents: count, repair, sabotage, .. } = plan;
        let agents = Self { count, repair, sabotage, boards: Shared::default() };
        for machine in 0..count {
            agents.start_one(world, machine);
        }
        agents
    }

    fn start_one(&self, world: &World<'_>, machine: u32) {
        let env = world.agent_node(machine).env();
        let (inner, engine) = (env.clone(), world.client_config());
        let (boards, wrong) = (self.boards.clone(), self.sabotage == Some(Sabotage::ScanBeforeClosing));
        let repair = self.repair;
        let life = async move {
            let client = loop {
                match Client::connect(inner.clone(), engine.clone()).await {
                    Ok(client) => break client,
                    Err(_) => pause(&inner, 100).await,
                }
            };
            let backend = Backend::new(inner.clone(), client);
            if wrong {
                loop {
                    // Whatever fails is tried again, as the real one does.
                    drop(scan_before_closing(&backend).await);
                    pause(&inner, 2).await;
                }
            }
            let config = config(engine.metadata, repair);
            let id = agent::new_agent_id(&inner).unwrap();
            let agent = Agent::new(backend, id, tasks::all(&config), config);
            boards.lock().unwrap().push(agent.board().clone());
            let (_stopper, stop) = StopSignal::pair();
            agent.run(stop).await;
        };
        env.spawn.spawn("agent", Box::pin(life));
    }

    /// An agent loses power, whatever it was doing, and comes back at once.
    pub(super) fn crash_one(&self, world: &World<'_>, rng: &mut StdRng) -> bool {
        if self.count == 0 {
            return false;
        }
        let machine = rng.random_range(0..self.count);
        world.agent_node(machine).crash();
        self.start_one(world, machine);
        true
    }

    /// What is on OSDs is exactly what manifests name: nothing was lost, and all that was written in vain is gone. Gives how many
    /// fragments and tags were cleaned up, and how many objects repair looked after.
    pub(super) async fn check(&self, world: &World<'_>) -> (u64, u64) {
        if self.count == 0 {
            return (0, 0);
        }
        let env = world.auditor.env();
        let client = Client::connect(env.clone(), world.client_config()).await.unwrap();
        let backend = Backend::new(env.clone(), client);
        if self.repair {
            is_repaired(world, &backend).await;
        }
        // Then agents ask every OSD again that they had left alone.
        world.sleep(UNHEARD).await;
        let orphans = plant_orphans(&backend).await.unwrap();
        assert!(orphans > 0);
        world.sleep(TWO_CYCLES).await;
        let report = fsck::check(&backend, |_| true).await.unwrap();
        assert!(report.is_whole(), "{report:?}");
        let totals = report.totals;
        assert_eq!(
            (totals.tagged, totals.queued, totals.lone_tags),
            (0, 0, 0),
            "garbage is left: {totals:?}"
        );
        assert_eq!(totals.held, totals.named, "{totals:?}");
        let now = env.clock.now();
        let boards = self.boards.lock().unwrap();
        let done = |board: &alba_maintenance::progress::Board, task: &str| {
            board.show(now)[task]["done"].as_u64().unwrap_or(0)
        };
        let sum = |tasks: &[&str]| {
            let of = |board| tasks.iter().copied().map(|task| done(board, task)).sum::<u64>();
            boards.iter().map(of).sum::<u64>()
        };
        (sum(&["gc", "cleanup"]), sum(&["repair"]))
    }
}

/// Waits until every object is at its best policy, what leaves is empty, and what was lost is forgotten.
async fn is_repaired(world: &World<'_>, backend: &Backend) {
    let limit = world.now().plus(CONVALESCENCE);
    loop {
        match ills(backend).await {
            Ok(ills) if ills.is_empty() => return,
            ills => assert!(world.now() < limit, "not repaired in {CONVALESCENCE:?}: {ills:?}"),
        }
        world.sleep(Duration::from_secs(2)).await;
    }
}

/// What an upload leaves that is cut off before its manifest: on every OSD a fragment, tagged with the newest epoch. Gives how
/// many.
async fn plant_orphans(backend: &Backend) -> Result<u64, TaskError> {
    let mut planted = 0;
    for namespace in backend.namespaces().await? {
        let epoch = backend.namespace_info(&namespace).await?.newest_epoch;
        for record in backend.osds(OsdFilter::Claimed).await? {
            let Some(id) = record.osd_id.filter(|_| record.state == OsdState::Active) else { continue };
            let mut object = [0; 32];
            object.iter_mut().for_each(|byte| *byte = backend.env().rng.u64().to_le_bytes()[0]);
            let address = FragmentAddress {
                object_id: ObjectId::new(object),
                chunk: ChunkIndex(0),
                fragment: FragmentIndex(0),
                version: ObjectVersion(0),
            };
            let set = |key, value: &'static [u8]| {
                let value = StoredValue { value: Bytes::from_static(value), checksum: Checksum::None };
                OsdUpdate::Set(key, value)
            };
            let updates = vec![
                set(osd_keys::fragment(namespace.id, &address), b"fragment"),
                set(osd_keys::recovery_info(namespace.id, &address), b"info"),
                set(osd_keys::gc_tag(namespace.id, epoch, &address), b""),
            ];
            backend.osd(id).await?.apply(OsdBatch { asserts: Vec::new(), updates }).await?;
            planted += 1;
        }
    }
    Ok(planted)
}

/// What is not as it should be.
async fn ills(backend: &Backend) -> Result<Vec<String>, TaskError> {
    let mut ills = Vec::new();
    let mut records = BTreeMap::new();
    for record in backend.osds(OsdFilter::Claimed).await? {
        if let OsdState::Decommissioning | OsdState::Purging = record.state {
            ills.push(format!("OSD {} is {:?}", record.info.long_id, record.state));
        }
        if let Some(id) = record.osd_id {
            records.insert(id, record);
        }
    }
    let registry = Registry { records, ..Registry::default() };
    let repairer = backend.client().repairer();
    for record in backend.namespaces().await? {
        let patient = repairer.patient(record);
        let osds = repairer.osds(&patient, &registry).await?;
        let mut queue = Weakest::new(1);
        let survey =
            repairer.survey(&patient, &osds, (&BTreeSet::new(), &BTreeSet::new()), &mut queue).await?;
        if survey.below_policy + survey.repairable + survey.unrepairable > 0 {
            ills.push(format!("{survey:?}"));
        }
    }
    Ok(ills)
}

fn config(metadata: Vec<std::net::SocketAddr>, repair: bool) -> MaintenanceConfig {
    let mut config = MaintenanceConfig::new(metadata);
    config.gc_grace = "1s".to_owned();
    config.lease = "2s".to_owned();
    config.adapt_to_clients = false;
    for task in tasks::all(&config) {
        let more = if repair { &REPAIR[..] } else { &[] };
        let known = TASKS.iter().chain(more).find(|(name, _)| *name == task.name());
        let every = known.map(|(_, every)| (*every).to_owned());
        let settings =
            TaskConfig { enabled: Some(every.is_some()), every, at_once: Some(16), ..TaskConfig::default() };
        config.tasks.insert(task.name().to_owned(), settings);
    }
    config.check().unwrap();
    config
}

async fn pause(env: &Env, millis: u64) {
    env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(millis))).await;
}

/// Garbage collection as it must not be: tags of an epoch that uploads still use are judged.
async fn scan_before_closing(backend: &Arc<Backend>) -> Result<(), TaskError> {
    for namespace in backend.namespaces().await? {
        for osd in backend.serving_osds().await? {
            let handle = backend.osd(osd).await?;
            let prefix = osd_keys::gc_tags(namespace.id);
            let last = next_prefix(&prefix).map(|end| (end, false));
            let range = RangeQuery { first: prefix.to_vec(), last, ..RangeQuery::all() };
            for key in handle.range(range).await?.items {
                let Ok(Parsed::GcTag(id, epoch, address)) = osd_keys::parse(&key) else { continue };
                let Some(value) = handle.get(key.clone()).await? else { continue };
                let tag = StaleTag { namespace: id, epoch, address, value };
                let manifest = backend.manifest_by_id(&namespace.group, id, address.object_id).await?;
                handle.apply_if(carry_out(&tag, judge(&tag, osd, manifest.as_ref()))).await?;
            }
        }
    }
    Ok(())
}
