//! What happens to metadata nodes while clients work: one fault after the other, chosen by a seed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use alba_core::wire::rpc::admin::AdminRequest;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rustix::process::Signal;

use crate::links::Party;
use crate::metadata_nodes::{MetadataNodes, nsm_group};

/// How long a fault waits for what it should lead to (another leader), at most.
const PATIENCE: Duration = Duration::from_secs(15);

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9 of the leader.
    KillLeader,
    /// kill -9 of the leader, which is started again before anybody misses it.
    RestartLeader,
    /// kill -9 of another node.
    KillFollower,
    /// Another node is killed, loses its disk and comes back with nothing.
    WipeFollower,
    /// kill -9 of all nodes at once.
    KillAll,
    /// SIGSTOP of the leader, until another one leads.
    PauseLeader,
    /// SIGSTOP of another node for a while.
    PauseFollower,
    /// The leader hears and reaches nobody but clients, until another one leads.
    IsolateLeader,
    /// What the leader sends to the others does not arrive, until another one leads.
    MuteLeader,
    /// What the others send to the leader does not arrive.
    DeafLeader,
    /// The leader and one other node do not reach each other; the third reaches both.
    CutPair,
    /// Connections between nodes and from clients break.
    Reset,
    /// What the leader sends to the others comes late.
    SlowLeader,
}

/// Faults that were made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(BTreeMap<Fault, usize>);

impl Faults {
    /// How many in all.
    pub fn total(&self) -> usize {
        self.0.values().sum()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
        f.write_str(&parts.join(", "))
    }
}

fn choose(rng: &mut StdRng, nodes: usize) -> Fault {
    if nodes == 1 {
        return [Fault::KillAll, Fault::PauseFollower, Fault::Reset][rng.random_range(0..3)];
    }
    match rng.random_range(0..36) {
        0..7 => Fault::KillLeader,
        7..13 => Fault::PauseLeader,
        13..19 => Fault::IsolateLeader,
        19..22 => Fault::MuteLeader,
        22..24 => Fault::DeafLeader,
        24..26 => Fault::CutPair,
        26 => Fault::KillFollower,
        27 => Fault::PauseFollower,
        28 => Fault::Reset,
        29 => Fault::SlowLeader,
        30..32 => Fault::RestartLeader,
        32..34 => Fault::WipeFollower,
        _ => Fault::KillAll,
    }
}

async fn rest(rng: &mut StdRng, from: u64, to: u64) {
    tokio::time::sleep(Duration::from_millis(rng.random_range(from..to))).await;
}

/// Makes one fault, waits for what it leads to, and restores everything; returns when the group has a leader again.
pub async fn one(nodes: &mut MetadataNodes, rng: &mut StdRng, made: &mut Faults) {
    let fault = choose(rng, nodes.len());
    let leader = nodes.leader(&nsm_group()).await;
    let others: Vec<usize> = (0..nodes.len()).filter(|node| *node != leader).collect();
    // A node alone is both.
    let follower = others.choose(rng).copied().unwrap_or(leader);
    *made.0.entry(fault).or_default() += 1;
    match fault {
        Fault::KillLeader | Fault::RestartLeader => nodes.kill(leader),
        Fault::KillFollower => nodes.kill(follower),
        Fault::WipeFollower => {
            let before = nodes.replicas(follower).await;
            nodes.kill(follower);
            nodes.wipe(follower);
            if rng.random_bool(0.5) {
                // The log is cut: the state has to come as a snapshot. A leader that changes just now need not do it.
                drop(nodes.admin(leader, &nsm_group(), AdminRequest::Snapshot).await);
            }
            rest(rng, 100, 1000).await;
            nodes.start_node(follower);
            // Before that, the loss of another node's disk would be one too many.
            nodes.until_it_votes(follower, &before).await;
        }
        Fault::KillAll => (0..nodes.len()).for_each(|node| nodes.kill(node)),
        Fault::PauseLeader => nodes.signal(leader, Signal::STOP),
        Fault::PauseFollower => nodes.signal(follower, Signal::STOP),
        Fault::IsolateLeader => nodes.links.isolate(leader),
        Fault::MuteLeader => {
            others.iter().for_each(|other| nodes.links.cut(Party::Node(leader), Party::Node(*other)));
        }
        Fault::DeafLeader => {
            others.iter().for_each(|other| nodes.links.cut(Party::Node(*other), Party::Node(leader)));
        }
        Fault::CutPair => {
            nodes.links.cut(Party::Node(leader), Party::Node(follower));
            nodes.links.cut(Party::Node(follower), Party::Node(leader));
        }
        Fault::Reset => {
            others.iter().for_each(|other| nodes.links.reset(Party::Node(leader), Party::Node(*other)));
            nodes.links.reset(Party::Client, Party::Node(leader));
        }
        Fault::SlowLeader => {
            let late = Duration::from_millis(rng.random_range(50..800));
            others.iter().for_each(|other| nodes.links.delay(Party::Node(leader), Party::Node(*other), late));
        }
    }
    match fault {
        Fault::KillLeader
        | Fault::PauseLeader
        | Fault::IsolateLeader
        | Fault::MuteLeader
        | Fault::DeafLeader => {
            wait_for_successor(nodes, leader).await;
            // Both the old and the new leader are asked for a while.
            rest(rng, 100, 1200).await;
        }
        Fault::KillFollower
        | Fault::KillAll
        | Fault::PauseFollower
        | Fault::CutPair
        | Fault::Reset
        | Fault::SlowLeader => rest(rng, 100, 2500).await,
        Fault::RestartLeader | Fault::WipeFollower => {}
    }
    nodes.restore();
    nodes.leader(&nsm_group()).await;
    rest(rng, 100, 700).await;
}

/// Waits until somebody else says that it leads; a deaf leader may go on for long, and that is fine here.
async fn wait_for_successor(nodes: &mut MetadataNodes, leader: usize) {
    let until = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < until {
        nodes.check_alive();
        if nodes.claim_to_lead(&nsm_group()).await.iter().any(|claims| *claims != leader) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
