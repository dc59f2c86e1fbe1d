//! Maintenance agents in a run: the real ones, at a pace that makes them meet clients all the time; and one that collects garbage in
//! the wrong order, to see that the checker notices.

use std::sync::Arc;
use std::time::Duration;

use alba_client::Client;
use alba_core::daemon::StopSignal;
use alba_core::env::Env;
use alba_core::osd_keys::{self, Parsed};
use alba_core::range::{RangeQuery, next_prefix};
use alba_maintenance::config::TaskConfig;
use alba_maintenance::tasks::gc::verdict::{StaleTag, carry_out, judge};
use alba_maintenance::{Agent, Backend, MaintenanceConfig, TaskError, agent, fsck, tasks};
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::world::World;
use super::{Sabotage, Shared};

/// How often what runs: so that several rounds pass during the uploads of a run, and slow uploads meet the end of their epoch.
const TASKS: [(&str, &str); 2] = [("gc", "4s"), ("cleanup", "3s")];

/// All agents of a run.
pub(super) struct Agents {
    count: u32,
    sabotage: Option<Sabotage>,
    boards: Shared<Vec<alba_maintenance::progress::Board>>,
}

impl Agents {
    pub(super) fn start(world: &World<'_>, count: u32, sabotage: Option<Sabotage>) -> Self {
        let agents = Self { count, sabotage, boards: Shared::default() };
        for machine in 0..count {
            agents.start_one(world, machine);
        }
        agents
    }

    fn start_one(&self, world: &World<'_>, machine: u32) {
        let env = world.agent_node(machine).env();
        let (inner, engine) = (env.clone(), world.client_config());
        let (boards, wrong) = (self.boards.clone(), self.sabotage == Some(Sabotage::ScanBeforeClosing));
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
            let config = config(engine.metadata);
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
    /// fragments and tags were cleaned up.
    pub(super) async fn check(&self, world: &World<'_>) -> u64 {
        if self.count == 0 {
            return 0;
        }
        let env = world.auditor.env();
        let client = Client::connect(env.clone(), world.client_config()).await.unwrap();
        let backend = Backend::new(env.clone(), client);
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
        boards.iter().map(|board| done(board, "gc") + done(board, "cleanup")).sum()
    }
}

fn config(metadata: Vec<std::net::SocketAddr>) -> MaintenanceConfig {
    let mut config = MaintenanceConfig::new(metadata);
    config.gc_grace = "1s".to_owned();
    config.lease = "2s".to_owned();
    config.adapt_to_clients = false;
    for task in tasks::all(&config) {
        let every = TASKS.iter().find(|(name, _)| *name == task.name()).map(|(_, every)| (*every).to_owned());
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
                let tag = StaleTag { namespace: id, epoch, address };
                let manifest = backend.manifest_by_id(&namespace.group, id, address.object_id).await?;
                handle.apply_if(carry_out(&tag, judge(&tag, osd, manifest.as_ref()))).await?;
            }
        }
    }
    Ok(())
}
