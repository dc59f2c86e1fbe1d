//! Single questions about maintenance agents, over simulated time: who waits for whom, and for how long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alba_client::Client;
use alba_core::daemon::StopSignal;
use alba_core::env::sim::Simulation;
use alba_core::ids::{NamespaceId, NamespaceName, ObjectId};
use alba_core::wire::rpc::abm::{AbmCommand, WorkItem};
use alba_maintenance::config::TaskConfig;
use alba_maintenance::task::Run;
use alba_maintenance::tasks::work::{Handled, Handler, TURN, WorkQueue};
use alba_maintenance::{Agent, Backend, MaintenanceConfig, TaskError, agent, tasks};
use async_trait::async_trait;

use super::world::World;
use super::{LIMIT, Shared};

/// What happened to the items of a work queue that has some for hours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turns {
    /// How often each of the long items had a turn.
    pub long: Vec<u32>,
    /// How long after they were added each of the short items was done.
    pub short: Vec<Duration>,
}

/// Items that take hours, in turns; some that hang; and others that are done at once.
#[derive(Default)]
struct Items {
    turns: Shared<BTreeMap<u8, u32>>,
    done: Shared<Vec<alba_core::env::Moment>>,
}

const LONG: u8 = 100;
const HANGING: u8 = 200;

fn item(number: u8) -> WorkItem {
    WorkItem::RewriteObject { namespace: NamespaceId::from_u32(0), object: ObjectId::new([number; 32]) }
}

#[async_trait]
impl Handler for Items {
    fn takes(&self, _: &WorkItem) -> bool {
        true
    }

    async fn handle(&self, item: &WorkItem, run: &Run) -> Result<Handled, TaskError> {
        let WorkItem::RewriteObject { object, .. } = item else { return Ok(Handled::Done) };
        match object.as_bytes()[0] {
            HANGING.. => {
                run.sleep(Duration::from_secs(3600)).await;
                Ok(Handled::NotYet("it hangs".to_owned()))
            }
            number @ LONG.. => {
                *self.turns.lock().unwrap().entry(number).or_default() += 1;
                run.sleep(TURN).await;
                Ok(Handled::More)
            }
            _ => {
                self.done.lock().unwrap().push(run.now());
                Ok(Handled::Done)
            }
        }
    }
}

fn config(world: &World<'_>, only: &str) -> MaintenanceConfig {
    let mut config = MaintenanceConfig::new(world.client_config().metadata);
    config.gc_grace = "1s".to_owned();
    config.adapt_to_clients = false;
    for task in tasks::all(&config) {
        let enabled = Some(task.name() == only);
        config.tasks.insert(task.name().to_owned(), TaskConfig { enabled, ..TaskConfig::default() });
    }
    config.check().unwrap();
    config
}

async fn backend(world: &World<'_>) -> Arc<Backend> {
    let env = world.agent_node(0).env();
    let client = Client::connect(env.clone(), world.client_config()).await.unwrap();
    Backend::new(env, client)
}

/// `long` items of hours and `hanging` ones are in the queue when `short` ones come.
pub fn work_beside_long_items(seed: u64, long: u8, hanging: u8, short: u8) -> Turns {
    let sim = Simulation::new(seed);
    let outcome = sim.run(LIMIT, async {
        let world = World::start(&sim, false).await;
        let backend = backend(&world).await;
        let items = Arc::new(Items::default());
        let (turns, done) = (items.turns.clone(), items.done.clone());
        let add = async |numbers: Vec<u8>| {
            let command = AbmCommand::AddWork(numbers.into_iter().map(item).collect());
            backend.tell_abm(command).await.unwrap();
        };
        add((LONG..LONG + long).chain(HANGING..HANGING + hanging).collect()).await;
        let id = agent::new_agent_id(backend.env()).unwrap();
        let queue = Arc::new(WorkQueue::new(vec![items]));
        let agent = Agent::new(backend.clone(), id, vec![queue], config(&world, "work"));
        let (_stopper, stop) = StopSignal::pair();
        backend.env().spawn.spawn("agent", Box::pin(agent.run(stop)));
        // Until the long ones have all the room that there is.
        world.sleep(TURN * 6).await;
        let clock = backend.env().clock.clone();
        let added = clock.now();
        add((0..short).collect()).await;
        while done.lock().unwrap().len() < usize::from(short) && clock.now().since(added) < TURN * 60 {
            world.sleep(Duration::from_secs(1)).await;
        }
        let short = done.lock().unwrap().iter().map(|at| at.since(added)).collect();
        let long = turns.lock().unwrap().values().copied().collect();
        Turns { long, short }
    });
    outcome.unwrap_or_else(|stuck| panic!("{stuck}"))
}

/// One garbage collection of so many namespaces while one storage machine stands still: how long it takes, and what it says.
pub fn collection_beside_a_silent_osd(seed: u64, namespaces: u32) -> (Duration, Vec<String>) {
    let sim = Simulation::new(seed);
    let outcome = sim.run(LIMIT, async {
        let world = World::start(&sim, false).await;
        let backend = backend(&world).await;
        let deadline = backend.env().deadline_in(Duration::from_secs(600));
        for number in 0..namespaces {
            let name = NamespaceName::new(format!("n{number}")).unwrap();
            let command = AbmCommand::CreateNamespace { name, preset: None, group: None };
            backend.client().directory().command(command, deadline).await.unwrap();
        }
        let config = config(&world, "gc");
        let id = agent::new_agent_id(backend.env()).unwrap();
        let agent = Agent::new(backend.clone(), id, tasks::all(&config), config);
        world.osds[0].node.stall();
        let clock = backend.env().clock.clone();
        let began = clock.now();
        let once = agent.once("gc").await.unwrap();
        let took = clock.now().since(began);
        world.osds[0].node.resume();
        (took, once.failed.into_iter().map(|(_, error)| error.to_string()).collect())
    });
    outcome.unwrap_or_else(|stuck| panic!("{stuck}"))
}
