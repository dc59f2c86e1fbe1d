//! Three replicas under a simulator: partitions, crashes, lost unsynced tails and wiped disks, by seed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::Env;
use alba_core::env::sim::{SimNode, Simulation};
use alba_core::ids::GroupId;
use alba_core::net::rpc::{ServerLimits, serve};
use alba_core::wire::rpc::{Consistency, RequestId, SessionId};
use rand::RngExt as _;

use super::cluster::{Door, Place};
use super::model::{ListCommand, Lists};
use crate::machine::{Input, Output};
use crate::raft::log::LogLimits;
use crate::raft::{AnyRaft, Peers, Raft, RaftConfig, RaftLimits};
use crate::replicator::Replicator;

const LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Small enough that snapshots and cut logs take part, and that many seeds fit into memory.
fn limits() -> RaftLimits {
    let log = LogLimits { segment_bytes: 256 << 10, spare_segments: 3, ..LogLimits::default() };
    RaftLimits {
        snapshot_entries: 25,
        keep_entries: 5,
        snapshot_queue: 1 << 20,
        log,
        ..RaftLimits::default()
    }
}

struct World<'a> {
    sim: &'a Simulation,
    env: Env,
    nodes: Vec<SimNode>,
    places: Vec<Place>,
    rafts: Vec<Option<Arc<Raft<Lists>>>>,
}

impl World<'_> {
    async fn boot(&mut self, n: usize) {
        let env = self.nodes[n].env();
        let config = RaftConfig {
            group: GroupId::new("lists").unwrap(),
            address: self.nodes[n].address(4000).to_string(),
            peers: self.nodes.iter().map(|node| node.address(4000).to_string()).collect(),
            limits: limits(),
        };
        let raft = Arc::new(Raft::start(&env, config, self.places[n].home(), Peers::new(&env)));
        let listener = env.net.listen(self.nodes[n].address(4000)).await.unwrap();
        let door = Arc::new(Door::open(raft.clone()));
        let serving = serve(env.clone(), listener, door, ServerLimits::default());
        let task = async move {
            serving.await;
        };
        drop(env.spawn.spawn("door", Box::pin(task)));
        self.rafts[n] = Some(raft);
    }

    /// The power is cut: tasks end where they are, and what was not synced is lost.
    fn crash(&mut self, n: usize) {
        self.nodes[n].crash();
        self.rafts[n] = None;
        self.places[n].crash();
    }

    async fn pause(&self, time: Duration) {
        self.env.clock.sleep_until(self.env.clock.now().plus(time)).await;
    }

    /// None: not known within the time.
    async fn propose(
        &self,
        input: Input<ListCommand>,
        patience: Duration,
    ) -> Option<Output<u64, super::model::Twice>> {
        let until = self.env.deadline_in(patience);
        while !until.left(self.env.clock.as_ref()).is_zero() {
            for raft in self.rafts.iter().flatten() {
                if !*raft.leadership().borrow() {
                    continue;
                }
                let attempt = self.env.deadline_in(Duration::from_secs(3));
                if let Ok((output, _)) = raft.propose(input.clone(), attempt).await {
                    return Some(output);
                }
            }
            self.pause(Duration::from_millis(100)).await;
        }
        None
    }

    async fn session(&self) -> SessionId {
        match self.propose(Input::OpenSession([3; 16]), Duration::from_secs(600)).await {
            Some(Output::Session(session)) => session,
            other => panic!("{other:?}"),
        }
    }

    /// A linearizable read by whoever can.
    async fn read(&self, patience: Duration) -> Option<Vec<u64>> {
        let until = self.env.deadline_in(patience);
        while !until.left(self.env.clock.as_ref()).is_zero() {
            for raft in self.rafts.iter().flatten() {
                let attempt = self.env.deadline_in(Duration::from_secs(3));
                if let Ok((answer, _)) = raft.query("a".to_owned(), Consistency::Linearizable, attempt).await
                {
                    return Some(answer.unwrap());
                }
            }
            self.pause(Duration::from_millis(100)).await;
        }
        None
    }

    /// Replicas that vote in a group of three, as they know it. In the midst of a change of the members there are more: then
    /// the loss of a second disk can be one too many.
    fn voters(&self) -> usize {
        let settled = |raft: &&Arc<Raft<Lists>>| {
            raft.status().is_ok_and(|status| {
                let votes = status.members.iter().filter(|member| member.voter);
                let own =
                    status.members.iter().any(|member| member.replica == status.replica && member.voter);
                own && votes.count() == 3 && status.members.len() == 3
            })
        };
        let all: BTreeSet<Vec<u64>> = self
            .rafts
            .iter()
            .flatten()
            .filter_map(|raft| raft.status().ok())
            .map(|status| status.members.iter().map(|member| member.replica).collect())
            .collect();
        if all.len() > 1 {
            return 0;
        }
        self.rafts.iter().flatten().filter(settled).count()
    }
}

async fn history(sim: &Simulation, seed: u64) {
    let nodes: Vec<SimNode> = (1..=3).map(|n| sim.node(n)).collect();
    let places = (0..3).map(|n| Place::new(seed * 10 + n)).collect();
    let env = sim.node(9).env();
    let mut world = World { sim, env, nodes, places, rafts: vec![None, None, None] };
    let mut rng = sim.rng("faults");
    for n in 0..3 {
        world.boot(n).await;
    }
    let session = world.session().await;
    let mut acknowledged = BTreeSet::new();
    let mut next = 0;
    let mut wiped = 0;
    for _ in 0..12 {
        let victim = rng.random_range(0..3_usize);
        let other = (victim + 1) % 3;
        let last = (victim + 2) % 3;
        match rng.random_range(0..6_u8) {
            0 => {
                for peer in [other, last] {
                    world.sim.block(&world.nodes[victim], &world.nodes[peer]);
                    world.sim.block(&world.nodes[peer], &world.nodes[victim]);
                }
            }
            1 => world.sim.block(&world.nodes[victim], &world.nodes[other]),
            2 | 3 => {
                world.crash(victim);
                world.boot(victim).await;
            }
            4 => {
                for n in 0..3 {
                    world.crash(n);
                }
                for n in 0..3 {
                    world.boot(n).await;
                }
            }
            // A wiped disk is survived while the others have what it had.
            _ if world.voters() == 3 => {
                world.crash(victim);
                wiped += 1;
                world.places[victim] = Place::new(seed * 1000 + wiped);
                world.boot(victim).await;
            }
            _ => {}
        }
        for _ in 0..rng.random_range(1..10_u8) {
            next += 1;
            let id = RequestId { session, sequence: next, lowest_unacknowledged: next };
            let command = ListCommand::Push { key: "a".to_owned(), number: next };
            match world.propose(Input::Command(id, command), Duration::from_secs(8)).await {
                Some(Output::Done(Ok(_))) => {
                    acknowledged.insert(next);
                }
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            if let Some(list) = world.read(Duration::from_millis(500)).await {
                check(&list, &acknowledged, seed);
            }
        }
        world.sim.heal();
        if rng.random_bool(0.7) {
            world.pause(Duration::from_secs(20)).await;
        }
    }
    let list = world
        .read(Duration::from_secs(600))
        .await
        .unwrap_or_else(|| panic!("seed {seed}: the group does not come back by itself"));
    check(&list, &acknowledged, seed);
    let until = world.env.deadline_in(Duration::from_secs(600));
    while world.voters() < 3 {
        assert!(!until.left(world.env.clock.as_ref()).is_zero(), "seed {seed}: a replica stays out");
        world.pause(Duration::from_secs(1)).await;
    }
    let list = world.read(Duration::from_secs(600)).await.unwrap();
    world.pause(Duration::from_secs(10)).await;
    for raft in world.rafts.iter().flatten() {
        let soon = world.env.deadline_in(Duration::from_secs(10));
        let (same, _) = raft.query("a".to_owned(), Consistency::Any, soon).await.unwrap();
        assert_eq!(same.unwrap(), list, "seed {seed}: the replicas differ");
    }
    assert!(acknowledged.len() > 10, "seed {seed}: only {} commands got through", acknowledged.len());
    // Tasks that know their node would keep it, and its disks, for ever.
    for n in 0..3 {
        world.crash(n);
    }
}

fn check(list: &[u64], acknowledged: &BTreeSet<u64>, seed: u64) {
    let found: BTreeSet<u64> = list.iter().copied().collect();
    assert_eq!(found.len(), list.len(), "seed {seed}: a command was applied twice: {list:?}");
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "seed {seed}: acknowledged and not there: {lost:?}");
}

#[test]
fn nothing_acknowledged_is_lost_whatever_fails() {
    let seeds = std::env::var("ALBA_RAFT_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    for seed in 0..seeds {
        let sim = Simulation::new(seed);
        sim.run(LIMIT, history(&sim, seed)).unwrap_or_else(|stuck| panic!("seed {seed}: {stuck:?}"));
    }
}

#[test]
fn a_seed_gives_the_same_history_again() {
    let run = || {
        let sim = Simulation::new(3);
        sim.run(LIMIT, history(&sim, 3)).unwrap();
        sim.trace().hash()
    };
    assert_eq!(run(), run());
}
