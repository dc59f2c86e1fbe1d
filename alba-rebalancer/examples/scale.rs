//! The planner at scale, without disks: 10 000 OSDs on 1 000 nodes, 10⁸ objects by a sample, a hundred of the OSDs empty.
//!
//! `cargo run --release -p alba-rebalancer --example scale` prints a table, one line for each round of planning.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    reason = "a measurement: it times itself, and ends by panicking when something is wrong"
)]

use std::collections::BTreeMap;
use std::time::Instant;

use alba_core::ids::{NamespaceId, NodeId, ObjectId, ObjectVersion, OsdId};
use alba_core::units::ByteCount;
use alba_rebalancer::layout::{Layout, Placed};
use alba_rebalancer::observe::{FillRate, OsdFill, Role, observe};
use alba_rebalancer::plan::{Limits, plan};

const NODES: u32 = 1000;
const PER_NODE: u32 = 10;
/// On ten nodes of their own.
const EMPTY: u32 = 100;
/// Each stands for 500 objects: 10⁸ in all.
const SAMPLE: u32 = 200_000;
const FRAGMENTS: u32 = 9;
/// 500 fragments of 1 MiB.
const BYTES: u32 = 500 << 20;
/// Moves of a round.
const MOVES: usize = 2000;
const MOST: u32 = 3;

/// A generator that needs no crate (xorshift, G. Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from((self.0 >> 32) % u64::from(end)).unwrap()
    }
}

fn main() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let full = NODES * PER_NODE - EMPTY;
    let fill = |id: u32| {
        let node = NodeId::new(format!("node-{}", id / PER_NODE)).unwrap();
        // 1 MiB of 10⁸ · 9 / 9 900 fragments is 60 %.
        OsdFill { node, used: ByteCount(0), total: ByteCount(152_000 << 20), role: Role::Member }
    };
    let mut osds: BTreeMap<OsdId, OsdFill> =
        (0..NODES * PER_NODE).map(|id| (OsdId::from_u32(id), fill(id))).collect();
    let mut objects = Vec::new();
    for number in 0..SAMPLE {
        let mut nodes = Vec::new();
        let mut chunk = Vec::new();
        while chunk.len() < FRAGMENTS as usize {
            let osd = random.below(full);
            if !nodes.contains(&(osd / PER_NODE)) {
                nodes.push(osd / PER_NODE);
                chunk.push(Placed { osd: OsdId::from_u32(osd), bytes: BYTES });
            }
        }
        for placed in &chunk {
            change(&mut osds, placed.osd, |used| used + u64::from(BYTES));
        }
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        objects.push(Layout {
            namespace: NamespaceId::from_u32(1),
            object: ObjectId::new(id),
            version: ObjectVersion(0),
            max_per_node: MOST,
            chunks: vec![chunk],
        });
    }
    let limits = Limits { moves: MOVES, spread: 1, fullest: FillRate(950_000_000) };
    let least = observe(osds.clone()).least_bytes();
    let gib = |bytes: u64| bytes >> 30;
    println!("| round | plan, ms | moves | GiB moved | fill, % (least, mean, most) |\n|---|---|---|---|---|");
    let show = |round: u32, millis: u128, moves: usize, moved: u64, osds: &BTreeMap<OsdId, OsdFill>| {
        let rates: Vec<f64> = osds.values().map(|osd| osd.rate().as_f64() * 100.0).collect();
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rates.iter().copied().fold(0.0, f64::max);
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        println!("| {round} | {millis} | {moves} | {} | {least:.1}, {mean:.1}, {most:.1} |", gib(moved));
    };
    show(0, 0, 0, 0, &osds);
    let (mut moved, mut round) = (0_u64, 0);
    loop {
        let began = Instant::now();
        let moves = plan(&observe(osds.clone()), &objects, limits);
        let millis = began.elapsed().as_millis();
        if moves.is_empty() {
            println!("\nnothing more to move after {millis} ms of looking");
            break;
        }
        for chosen in &moves {
            let number = u32::from_be_bytes(chosen.object.as_bytes()[..4].try_into().unwrap());
            objects[number as usize].relocate(chosen.source, chosen.target);
            change(&mut osds, chosen.source, |used| used - chosen.merit.bytes);
            change(&mut osds, chosen.target, |used| used + chosen.merit.bytes);
            moved += chosen.merit.bytes;
        }
        round += 1;
        show(round, millis, moves.len(), moved, &osds);
    }
    let even = observe(osds).is_even();
    println!(
        "{} GiB moved in {round} rounds; {} GiB are the least for a perfectly even fill ({:.2} of it); even by the classes: {even}",
        gib(moved),
        gib(least),
        moved as f64 / least as f64
    );
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
}

fn change(osds: &mut BTreeMap<OsdId, OsdFill>, osd: OsdId, used: impl FnOnce(u64) -> u64) {
    let fill = osds.get_mut(&osd).unwrap();
    fill.used = ByteCount(used(fill.used.get()));
}
