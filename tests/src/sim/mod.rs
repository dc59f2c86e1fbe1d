//! A whole cluster in one process and one thread: the real storage engine, metadata models and client, with the real wire
//! code between them, over the simulated clock, network and disks. One seed is one run.
//!
//! The faults stay inside the budget: at most m storage machines are down at a time, and no device loses what was synced. So
//! the checker excuses nothing: what was acknowledged reads back equal, what is read at any time is something that
//! the name may hold.

mod actors;
mod agents;
mod disk;
mod movers;
mod operator;
pub mod upkeep;
mod world;

use std::sync::Arc;
use std::time::Duration;

use alba_core::env::sim::Simulation;
use rand::RngExt as _;
use rand::rngs::StdRng;

pub use actors::Counts;
use actors::{Actors, check_everything};
use agents::Agents;
use movers::Movers;
use operator::Operator;
use world::{OSDS, World};

/// Virtual time after which a run counts as stuck.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

/// Storage machines that may be down or cut off at once: the parity of the preset.
const MAX_DOWN: usize = 2;

/// How much happens in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Client machines.
    pub clients: u32,
    /// What all of them together attempt.
    pub operations: u32,
    /// Whether anything breaks.
    pub faults: bool,
    /// Maintenance agents.
    pub agents: u32,
    /// Do they repair, too? Then OSDs come and go for good, if anything breaks.
    pub repair: bool,
    /// Machines that move fragments from OSD to OSD all the time.
    pub movers: u32,
    /// Breaks a promise on purpose, to see that the checker notices.
    pub sabotage: Option<Sabotage>,
}

/// A loss that nothing can survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// More storage machines than the preset has parity lose their disks.
    Disks,
    /// The metadata loses what it had made durable.
    Metadata,
    /// Garbage is collected before the epoch is closed in which it was written. Only with agents.
    ScanBeforeClosing,
    /// Moves name a fragment's new place before the fragment is there. Only with movers.
    CommitBeforeStoring,
    /// Moves store fragments that garbage collection does not find. Only with movers.
    MoveWithoutTag,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The hash over all its events.
    pub hash: String,
    /// How many events there were.
    pub events: u64,
    /// Virtual time that passed.
    pub time: Duration,
    /// What the clients did and saw.
    pub counts: Counts,
    /// Faults by kind.
    pub faults: Faults,
    /// Objects that were there in the end, each compared byte by byte.
    pub objects: usize,
    /// Fragments and tags that agents cleaned up.
    pub cleaned: u64,
    /// Objects that repair looked after.
    pub repaired: u64,
    /// Moves from OSD to OSD.
    pub moved: u64,
}

/// How often what broke.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Storage machines that lost power.
    pub osd_crashes: u32,
    /// Metadata machines that lost power.
    pub metadata_crashes: u32,
    /// Client machines that lost power.
    pub client_crashes: u32,
    /// Machines that stood still for a while.
    pub stalls: u32,
    /// Links that were blocked or slowed for a while.
    pub link_faults: u32,
    /// Maintenance agents that lost power.
    pub agent_crashes: u32,
    /// Movers that lost power.
    pub mover_crashes: u32,
    /// OSDs that were away for longer than repair waits.
    pub outages: u32,
    /// OSDs that were drained.
    pub drains: u32,
    /// OSDs that were decommissioned.
    pub decommissions: u32,
    /// OSDs that were lost for good.
    pub losses: u32,
    /// OSDs that came new.
    pub joins: u32,
}

/// Runs `plan` with `seed`.
///
/// # Panics
/// When a promise was broken; the message has the seed and the last events.
pub fn run(seed: u64, plan: Plan) -> Outcome {
    let sim = Simulation::new(seed);
    let trace = sim.trace();
    let guard = TellSeed(seed, trace.clone());
    let outcome = sim
        .run(LIMIT, async {
            let world = World::start(&sim, plan.repair).await;
            let actors = Actors::start(&world, plan);
            let agents = Agents::start(&world, plan);
            let movers = Movers::start(&world, plan.movers, plan.sabotage);
            let faults = if plan.faults {
                let operator = plan.repair.then(Operator::default);
                break_things(&sim, &world, &actors, &agents, &movers, operator).await
            } else {
                actors.done(&world).await;
                Faults::default()
            };
            match plan.sabotage {
                Some(Sabotage::Disks) => world.lose_disks(OSDS - MAX_DOWN),
                Some(Sabotage::Metadata) => world.lose_metadata(),
                Some(
                    Sabotage::ScanBeforeClosing | Sabotage::CommitBeforeStoring | Sabotage::MoveWithoutTag,
                )
                | None => {}
            }
            let moved = movers.stop(&world);
            let objects = check_everything(&world, &actors).await;
            let (cleaned, repaired) = agents.check(&world).await;
            (actors.counts(), faults, objects, cleaned, repaired, moved)
        })
        .unwrap_or_else(|stuck| panic!("{stuck}"));
    drop(guard);
    let (counts, faults, objects, cleaned, repaired, moved) = outcome;
    Outcome {
        hash: trace.hash(),
        events: trace.events(),
        time: sim.now().0,
        counts,
        faults,
        objects,
        cleaned,
        repaired,
        moved,
    }
}

/// Says which seed it was when a run fails.
struct TellSeed(u64, alba_core::env::sim::Trace);

impl Drop for TellSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} failed; repeat it with ALBA_SIM_SEED={}. The last events:", self.0, self.0);
            for event in self.1.tail().iter().rev().take(40).rev() {
                eprintln!("  {event}");
            }
        }
    }
}

/// Breaks and mends until the clients are done; mends everything in the end.
async fn break_things(
    sim: &Simulation,
    world: &World<'_>,
    actors: &Actors,
    agents: &Agents,
    movers: &Movers,
    mut operator: Option<Operator>,
) -> Faults {
    let mut rng = sim.rng("faults");
    let mut faults = Faults::default();
    while actors.remaining() > 0 {
        world.sleep(pause(&mut rng, 10..250)).await;
        match rng.random_range(0..10_u32) {
            0..=2 if world.osds_down() < MAX_DOWN => {
                world.crash_osd(rng.random_range(0..OSDS), &mut rng);
                faults.osd_crashes += 1;
            }
            3..=4 => world.start_one_osd(&mut rng),
            5 => {
                world.crash_metadata(&mut rng);
                faults.metadata_crashes += 1;
                world.sleep(pause(&mut rng, 0..3000)).await;
                world.start_metadata();
            }
            6 => {
                actors.crash_one(world, &mut rng);
                faults.client_crashes += 1;
            }
            7 if world.osds_down() < MAX_DOWN => {
                let node = &world.osds[rng.random_range(0..OSDS)].node;
                node.stall();
                world.sleep(pause(&mut rng, 10..4000)).await;
                node.resume();
                faults.stalls += 1;
            }
            8 if world.osds_down() < MAX_DOWN => {
                let (one, other) = (world.any_client(&mut rng), &world.osds[rng.random_range(0..OSDS)].node);
                let (from, to) = if rng.random_bool(0.5) { (&one, other) } else { (other, &one) };
                if rng.random_bool(0.5) {
                    sim.block(from, to);
                } else {
                    sim.slow(from, to, pause(&mut rng, 5..500));
                }
                world.sleep(pause(&mut rng, 10..5000)).await;
                sim.heal();
                faults.link_faults += 1;
            }
            9 => {
                sim.sever(&world.any_client(&mut rng), &world.metadata.node);
                faults.link_faults += 1;
                // One throw of the dice for all, so that runs without agents stay as they were.
                faults.agent_crashes += u32::from(agents.crash_one(world, &mut rng));
                faults.mover_crashes += u32::from(movers.crash_one(world, &mut rng));
            }
            _ => {}
        }
        if let Some(operator) = &mut operator {
            operator.step(world, &mut rng, &mut faults).await;
        }
    }
    sim.heal();
    if let Some(operator) = &mut operator {
        operator.finish(world).await;
    }
    world.start_everything();
    faults
}

fn pause(rng: &mut StdRng, millis: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(millis))
}

/// A value that actors share. One thread runs them all, so the lock is never waited for.
type Shared<T> = Arc<std::sync::Mutex<T>>;
