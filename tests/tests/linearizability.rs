//! Three metadata nodes, clients on few hot names, and faults: what clients saw can be explained by one order.
//!
//! `ALBA_TEST_SEED` picks other faults. `ALBA_JEPSEN_SECONDS` makes it last so long (`just jepsen-like`); else it ends as
//! soon as the history counts. A history that does not count (too few operations, leader changes or known outcomes) fails
//! the test as inconclusive.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::time::{Duration, Instant};

use alba_client::metadata::MetadataClient;
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery};
use alba_core::wire::rpc::{Consistency, Reply, Request};
use alba_tests::faults::{self, Faults};
use alba_tests::hot_names::{Load, NS, Seen, create_namespace, name};
use alba_tests::linearizable::{Verdict, check, timestamps};
use alba_tests::metadata_nodes::{LeaderChanges, MetadataNodes, Options, eventually, nsm_group};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

const NAMES: usize = 8;
const CLIENTS: u32 = 12;

// What makes a history count.
const COMPLETED: usize = 10_000;
const LEADER_CHANGES: usize = 20;

/// A run that has not got there by now is inconclusive. Some two minutes are enough on a machine of its own.
const LONGEST: Duration = Duration::from_secs(600);

/// One set of nodes at a time: they share the machine.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn seed() -> u64 {
    std::env::var("ALBA_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

fn lasting() -> Option<Duration> {
    let seconds = std::env::var("ALBA_JEPSEN_SECONDS").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("ALBA_JEPSEN_SECONDS is a number")))
}

async fn start(label: &str, nodes: u16, env: &[(&str, &str)]) -> MetadataNodes {
    let mut options = Options::new(env!("CARGO_BIN_EXE_alba-under-test"));
    options.nodes = nodes;
    options.env.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let nodes = MetadataNodes::start(label, options).await;
    let client = MetadataClient::connect(nodes.env().clone(), nodes.fronts());
    create_namespace(&client, nodes.env()).await;
    nodes
}

/// What a node holds of all names by itself, once it has applied what was acknowledged.
async fn held_by(nodes: &MetadataNodes, node: usize, index: u64) -> Result<NsmAnswer, String> {
    let connection = nodes.direct(node).await?;
    let query = NsmQuery::Manifests { namespace: NS, names: (0..NAMES).map(name).collect() };
    let request = Request::NsmQuery(nsm_group(), Consistency::AtLeast(index), query);
    let deadline = nodes.env().deadline_in(Duration::from_secs(5));
    match connection.call(&request, deadline).await {
        Ok(answer) => match answer.reply {
            Reply::NsmAnswer(Ok(answer)) => Ok(answer),
            other => Err(format!("node {node}: {other:?}")),
        },
        Err(error) => Err(format!("node {node}: {error}")),
    }
}

/// The index of the newest state, as the leader knows it.
async fn newest_index(nodes: &MetadataNodes, leader: usize) -> Result<u64, String> {
    let connection = nodes.direct(leader).await?;
    let request = Request::NsmQuery(nsm_group(), Consistency::Linearizable, NsmQuery::Statistics(NS));
    let deadline = nodes.env().deadline_in(Duration::from_secs(5));
    match connection.call(&request, deadline).await {
        Ok(answer) if matches!(answer.reply, Reply::NsmAnswer(Ok(_))) => Ok(answer.index),
        other => Err(format!("{other:?}")),
    }
}

/// Nothing is wrong any more: all replicas come to hold the same.
async fn replicas_agree(nodes: &mut MetadataNodes) {
    let leader = nodes.leader(&nsm_group()).await;
    let nodes = &*nodes;
    let index = eventually("a consistent read", || newest_index(nodes, leader)).await;
    let first = eventually("a read of the leader", || held_by(nodes, leader, index)).await;
    for node in 0..nodes.len() {
        let held = eventually("a replica has caught up", || held_by(nodes, node, index)).await;
        assert_eq!(held, first, "node {node} and node {leader}");
    }
}

fn verify(seen: &Seen) {
    assert!(seen.impossible.is_empty(), "answers that no model gives: {:#?}", seen.impossible);
    if let Some((before, after)) = timestamps::out_of_order(&seen.stamps) {
        panic!("the second put began after the first had ended, its time is not later: {before:?} {after:?}");
    }
    if let Some(changed) = timestamps::changed(seen.times.iter().copied()) {
        panic!("one object was seen with two times: {changed:?}");
    }
    match check(&seen.history) {
        Verdict::Linearizable => {}
        Verdict::Violation(violation) => panic!("{violation}"),
        Verdict::Undecided(reason) => panic!("inconclusive: {reason}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_under_faults_are_linearizable() {
    let _turn = TURN.lock().await;
    let mut rng = StdRng::seed_from_u64(seed());
    let mut nodes = start("linearizable", 3, &[]).await;
    let load = Load::start(nodes.env(), &nodes.fronts(), NAMES, CLIENTS, seed());
    let changes = LeaderChanges::watch(&nodes, &nsm_group());
    let mut made = Faults::default();
    let began = Instant::now();
    loop {
        let counts = load.completed() >= COMPLETED && changes.count() >= LEADER_CHANGES;
        let over = match lasting() {
            Some(lasting) => began.elapsed() >= lasting || load.is_full(),
            None => counts || began.elapsed() >= LONGEST,
        };
        if over {
            break;
        }
        faults::one(&mut nodes, &mut rng, &mut made).await;
    }
    let worked = began.elapsed();
    let leader_changes = changes.count();
    drop(changes);
    let seen = load.end(&nodes.fronts()).await;
    let counts = seen.history.counts();
    println!("seed {}: {counts} on {NAMES} names in {worked:.1?}", seed());
    println!("{leader_changes} leader changes; {} faults: {made}", made.total());
    println!("of unknown outcome because of: {:#?}", seen.unknown);
    let began = Instant::now();
    verify(&seen);
    println!("no violation; checked in {:.1?}", began.elapsed());
    replicas_agree(&mut nodes).await;
    println!("all replicas hold the same");
    assert!(
        counts.completed >= COMPLETED && leader_changes >= LEADER_CHANGES && counts.mostly_known(),
        "inconclusive: {counts}; {leader_changes} leader changes; needed are {COMPLETED} completed operations, \
         {LEADER_CHANGES} leader changes and at most a fifth of unknown outcome"
    );
}

/// A node alone keeps what it acknowledged, in order, when it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_of_one_node_that_is_killed_are_linearizable() {
    let _turn = TURN.lock().await;
    let mut rng = StdRng::seed_from_u64(seed());
    let mut nodes = start("one-node", 1, &[]).await;
    let load = Load::start(nodes.env(), &nodes.fronts(), NAMES, CLIENTS, seed());
    let mut made = Faults::default();
    while made.total() < 12 {
        faults::one(&mut nodes, &mut rng, &mut made).await;
    }
    let seen = load.end(&nodes.fronts()).await;
    println!("{}; faults: {made}", seen.history.counts());
    println!("of unknown outcome because of: {:#?}", seen.unknown);
    verify(&seen);
    assert!(seen.history.counts().completed > 1000, "{}", seen.history.counts());
}

/// The same load, faults and checker find replicas that answer consistent reads without asking a majority.
async fn is_caught(fault: &str) {
    let _turn = TURN.lock().await;
    let mut rng = StdRng::seed_from_u64(seed());
    let mut nodes = start("stale-reads", 3, &[("ALBA_TEST_STALE_READS", fault)]).await;
    let load = Load::start(nodes.env(), &nodes.fronts(), NAMES, CLIENTS, seed());
    let mut made = Faults::default();
    let began = Instant::now();
    while began.elapsed() < LONGEST {
        faults::one(&mut nodes, &mut rng, &mut made).await;
        if let Verdict::Violation(violation) = check(&load.history()) {
            println!("after {:.1?} and {} faults ({made}):\n{violation}", began.elapsed(), made.total());
            return;
        }
    }
    panic!("the checker did not notice stale reads: {}; faults: {made}", load.history().counts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(debug_assertions), ignore = "only builds with debug assertions have the switch")]
async fn stale_reads_of_every_replica_are_caught() {
    is_caught("replica").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(not(debug_assertions), ignore = "only builds with debug assertions have the switch")]
async fn stale_reads_of_a_leader_that_was_cut_off_are_caught() {
    is_caught("leader").await;
}
