//! Power cuts at every step of random histories, failed writes and syncs and killed processes, compared with a map; and faults
//! built in to see that they are noticed.
//!
//! `ALBA_RAFT_LOG_CRASHES=100000` asks for more crashes, `ALBA_RAFT_LOG_SEED` begins with another seed.

use alba_core::env::sim::disk::DiskOperation;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::phase::Sabotage;
use super::super::phase::testing::sabotage;
use super::model::Model;
use super::*;

/// Crashed lives of the random test.
const CRASHES: u64 = 600;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[derive(Debug, Clone)]
enum Op {
    Append(Vec<Entry>),
    Truncate(LogId),
    Purge(LogId),
    Vote(Vote),
}

impl Op {
    /// The states on the way through it, the last one when it is done.
    fn states(&self, model: &Model) -> Vec<Model> {
        let mut model = model.clone();
        match self {
            Self::Append(entries) => {
                let one = |entry: &Entry| {
                    model.entries.insert(entry.log_id.index, entry.clone());
                    model.clone()
                };
                return entries.iter().map(one).collect();
            }
            Self::Truncate(since) => model.truncate(since.index),
            Self::Purge(upto) => model.purge(*upto),
            Self::Vote(vote) => model.vote = Some(*vote),
        }
        vec![model]
    }

    async fn run(self, mut store: LogStore) -> bool {
        match self {
            Self::Append(entries) => store.blocking_append(entries).await.is_ok(),
            Self::Truncate(since) => store.truncate(since).await.is_ok(),
            Self::Purge(upto) => store.purge(upto).await.is_ok(),
            Self::Vote(vote) => store.save_vote(&vote).await.is_ok(),
        }
    }
}

/// Some operations that are under way together, in this order.
fn group(rng: &mut StdRng, model: &Model, term: &mut u64) -> Vec<Op> {
    let mut model = model.clone();
    let mut ops = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        let op = match rng.random_range(0..10) {
            0 if !model.entries.is_empty() => {
                let back = rng.random_range(1..5);
                let since = model.next().saturating_sub(back).max(model.first());
                *term += 1;
                Op::Truncate(id(*term, since))
            }
            1 if !model.entries.is_empty() => {
                let index = rng.random_range(model.first()..model.next());
                Op::Purge(model.entries[&index].log_id)
            }
            2 if rng.random_bool(0.1) => Op::Purge(id(*term, model.next() + rng.random_range(0..3))),
            3 | 4 => {
                *term += 1;
                Op::Vote(vote(*term, rng.random_range(1..4)))
            }
            _ => {
                // Few lengths, so that records of one life fit into the gaps of another.
                let len = if rng.random_bool(0.8) { 700 } else { rng.random_range(0..5_000) };
                let from = model.next();
                Op::Append(
                    (from..from + rng.random_range(1..4)).map(|index| entry(*term, index, len)).collect(),
                )
            }
        };
        if let Some(after) = op.states(&model).pop() {
            model = after;
        }
        ops.push(op);
    }
    ops
}

/// Waits until the space for a group is ready. Otherwise its operations would not keep their order.
async fn settle(node: &SimNode, store: &LogStore) -> bool {
    let clock = node.env().clock;
    for _ in 0..20_000 {
        {
            let state = store.open.shared.state();
            if state.failed.is_some() {
                return false;
            }
            if state.spares.len() > 2 && state.retired.is_empty() {
                return true;
            }
        }
        clock.sleep_until(clock.now().plus(Duration::from_millis(1))).await;
    }
    false
}

/// Works until something fails or `count` groups are done. Gives the states that are right afterwards.
async fn work(
    node: &SimNode,
    store: &mut LogStore,
    rng: &mut StdRng,
    model: &mut Model,
    term: &mut u64,
    count: usize,
) -> Vec<Model> {
    for _ in 0..count {
        if !settle(node, store).await {
            break;
        }
        let ops = group(rng, model, term);
        let results = join_all(ops.iter().map(|op| op.clone().run(store.clone())).collect()).await;
        // One log: what was acknowledged has all before it.
        let acknowledged = results.iter().rposition(|done| *done).map_or(0, |nth| nth + 1);
        let after = |model: &Model, op: &Op| op.states(model).pop().unwrap();
        *model = ops[..acknowledged].iter().fold(model.clone(), |model, op| after(&model, op));
        let mut right = Vec::new();
        if acknowledged < ops.len() {
            // What was under way may have happened up to anywhere.
            right.push(model.clone());
            for op in &ops[acknowledged..] {
                let states = op.states(model);
                *model = states.last().cloned().unwrap();
                right.extend(states);
            }
        }
        if !right.is_empty() {
            return right;
        }
        if rng.random_bool(0.3) {
            let committed = model.last();
            store.save_committed(committed).await.ok();
        }
        if rng.random_bool(0.1) {
            let clock = node.env().clock;
            clock.sleep_until(clock.now().plus(Duration::from_secs(1))).await;
        }
    }
    vec![model.clone()]
}

/// What is found by a restart, which must be one of the right states.
fn check(disk: &SimDiskDevice, right: &[Model], tag: &str) -> (Model, Tally) {
    run(disk, small(), async |_, store, recovered| {
        let found = Model::of(&store).await;
        let differs = || -> Vec<String> {
            let tell = |state: &Model| {
                let entries = state.entries.keys().chain(found.entries.keys());
                let mut entries: Vec<u64> =
                    entries.filter(|at| state.entries.get(at) != found.entries.get(at)).copied().collect();
                entries.sort_unstable();
                entries.dedup();
                format!("{:?} {:?} {entries:?}", state.vote, state.purged)
            };
            right.iter().map(tell).collect()
        };
        assert!(
            right.contains(&found),
            "{tag}: vote {:?}, purged {:?}, entries {:?}..{:?}; other than in {:#?}",
            found.vote,
            found.purged,
            found.entries.keys().next(),
            found.entries.keys().next_back(),
            differs()
        );
        let last = found.last().map(|id| id.index);
        assert!(recovered.committed.map(|id| id.index) <= last, "{tag}: committed beyond the end");
        let (cut, unproven) = (u64::from(recovered.cut.is_some()), u64::from(recovered.unproven > 0));
        (found, Tally { lives: 1, cut, unproven })
    })
}

/// What restarts found, to see that the interesting things happen.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    lives: u64,
    /// A torn tail.
    cut: u64,
    /// Records that had to be written again.
    unproven: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.lives += other.lives;
        self.cut += other.cut;
        self.unproven += other.unproven;
    }
}

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    PowerCut(u64),
    Failure(DiskOperation, u64),
    Killed,
}

/// The log of one replica through many lives.
struct Replica {
    disk: SimDiskDevice,
    rng: StdRng,
    model: Model,
    term: u64,
}

impl Replica {
    fn new(seed: u64) -> Self {
        let disk = SimDiskDevice::new(seed, 1 << 30);
        Self { disk, rng: StdRng::seed_from_u64(seed), model: Model::default(), term: 1 }
    }
}

/// One life of a process and what is left of it.
fn life(replica: &mut Replica, end: End, count: usize, tag: &str) -> Tally {
    let Replica { disk, rng, model, term } = replica;
    match end {
        End::PowerCut(at) => disk.cut_power_after(at),
        End::Failure(operation, after) => disk.inject(operation, after, 1, io::ErrorKind::Other),
        End::Killed => {}
    }
    let simulation = Simulation::new(rng.random());
    let node = simulation.node(1);
    let main = async {
        match open(&node, disk, small()).await {
            Ok((mut store, _)) => work(&node, &mut store, rng, model, term, count).await,
            Err(LogError::Io { .. }) => vec![model.clone()],
            Err(error) => panic!("{tag}: {error}"),
        }
    };
    let right = simulation.run(LIMIT, main).unwrap();
    drop(simulation);
    if matches!(end, End::PowerCut(_)) {
        disk.crash();
    }
    disk.clear_injections();
    let (found, tally) = check(disk, &right, &format!("{tag} {end:?}"));
    // What a restart found must stay, whatever it was made of.
    disk.crash();
    let again = check(disk, std::slice::from_ref(&found), &format!("{tag} {end:?}, and a power cut"));
    *model = again.0;
    tally
}

fn lives(seed: u64, rounds: u64) -> Tally {
    let mut replica = Replica::new(seed);
    let mut tally = Tally::default();
    for round in 0..rounds {
        let rng = &mut replica.rng;
        let end = match rng.random_range(0..10) {
            0 => End::Killed,
            1 => End::Failure(DiskOperation::Sync, rng.random_range(0..60)),
            2 => End::Failure(DiskOperation::Write, rng.random_range(0..60)),
            _ => End::PowerCut(rng.random_range(0..120)),
        };
        tally.add(life(&mut replica, end, 30, &format!("seed {seed} round {round}")));
    }
    tally
}

#[test]
fn crashes_at_every_step_lose_nothing() {
    let mut crashes = 0;
    for seed in 0..4 {
        let history = |end| {
            let mut replica = Replica::new(seed);
            // A second life, so that the directory is not empty.
            life(&mut replica, End::Killed, 6, "before");
            let before = replica.disk.changes();
            life(&mut replica, end, 12, &format!("seed {seed}"));
            replica.disk.changes() - before
        };
        let steps = history(End::Killed);
        assert!(steps > 40, "{steps} steps");
        for cut in 0..steps {
            history(End::PowerCut(cut));
            crashes += 1;
        }
    }
    assert!(crashes > 200, "{crashes} crashes");
}

#[test]
fn random_crashes_lose_nothing() {
    let first = number("ALBA_RAFT_LOG_SEED", 1000);
    let lives_wanted = number("ALBA_RAFT_LOG_CRASHES", CRASHES);
    let mut tally = Tally::default();
    for seed in first..first + lives_wanted.div_ceil(20) {
        tally.add(lives(seed, 20));
    }
    println!("{tally:?}");
    assert!(tally.cut > tally.lives / 50 && tally.unproven > tally.lives / 20, "{tally:?}");
}

#[test]
fn built_in_faults_are_noticed() {
    let faults =
        [Sabotage::AckBeforeSync, Sabotage::VoteNotSynced, Sabotage::SameGeneration, Sabotage::NoCopy];
    for fault in faults {
        sabotage(Some(fault));
        let noticed = (0..200).find(|seed| std::panic::catch_unwind(|| lives(70_000 + seed, 20)).is_err());
        sabotage(None);
        assert!(noticed.is_some(), "{fault:?} was not noticed");
        println!("{fault:?} is noticed by seed {}", 70_000 + noticed.unwrap());
    }
}
