//! The planner at scale, without disks: 10 000 OSDs on 1 000 nodes, 10⁸ objects by a sample, a hundred of the OSDs empty.
//!
//! As a pass does it: a round looks at a page of objects of each of the fullest OSDs, and plans with these.
//! `cargo run --release -p alba-rebalancer --example scale [-- FILE.svg]` prints a table, and draws it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::cast_precision_loss,
    reason = "a measurement: it times itself, and ends by panicking when something is wrong"
)]

mod plot;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use alba_core::ids::{NamespaceId, NodeId, ObjectId, ObjectVersion, OsdId};
use alba_core::units::ByteCount;
use alba_rebalancer::layout::{Layout, Placed};
use alba_rebalancer::observe::{FillRate, OsdFill, Role, observe};
use alba_rebalancer::plan::{Limits, plan};
use alba_rebalancer::sight::sources;

const NODES: u32 = 1000;
const PER_NODE: u32 = 10;
/// On ten nodes of their own.
const EMPTY: u32 = 100;
/// Each stands for 500 objects: 10⁸ in all.
const SAMPLE: u32 = 200_000;
const FRAGMENTS: u32 = 9;
/// 500 fragments of 1 MiB.
const BYTES: u32 = 500 << 20;
/// As in a pass: OSDs and objects of each that a round looks at, and moves that it makes.
const SOURCES: usize = 16;
const PAGE: usize = 100;
const MOVES: usize = 512;
/// Rounds between two lines of the table.
const LINE: u32 = 50;
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

/// The fill rates in percent, in order, of the least, the mean and the most, and GiB moved until then.
#[derive(Debug, Clone, Copy)]
struct Seen {
    fill: [f64; 3],
    moved: f64,
}

impl Seen {
    fn of(osds: &BTreeMap<OsdId, OsdFill>, moved: u64) -> Self {
        let rates: Vec<f64> = osds.values().map(|osd| osd.rate().as_f64() * 100.0).collect();
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        let fill = [least, mean, rates.iter().copied().fold(0.0, f64::max)];
        Self { fill, moved: moved as f64 / f64::from(1 << 30) }
    }
}

fn draw(series: &[Seen], empty: f64, least: f64) -> String {
    let line = |name, colour, dashed, values: Vec<f64>| plot::Line { name, colour, dashed, values };
    let fill = |which: usize| series.iter().map(|seen| seen.fill[which]).collect();
    let moved = series.iter().map(|seen| seen.moved).collect();
    let fill = plot::Panel {
        title: "Fill of the OSDs",
        unit: "% of their capacity",
        lines: vec![
            line("fullest", "#c0392b", false, fill(2)),
            line("mean", "#7f8c8d", true, fill(1)),
            line("emptiest", "#2471a3", false, fill(0)),
        ],
    };
    let bytes = plot::Panel {
        title: "Moved so far",
        unit: "GiB",
        lines: vec![
            line("moved", "#1e8449", false, moved),
            line("least: the empty to the mean", "#7f8c8d", true, vec![empty]),
            line("least: all perfectly even", "#34495e", true, vec![least]),
        ],
    };
    let title = "10 000 OSDs on 1 000 nodes, 100 of them empty, 10⁸ objects";
    plot::svg(title, series.len() - 1, &[fill, bytes])
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
    let mut on: BTreeMap<OsdId, Vec<usize>> = BTreeMap::new();
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
            on.entry(placed.osd).or_default().push(objects.len());
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
    let before = observe(osds.clone());
    let least = before.least_bytes();
    let wanted =
        u128::from(before.bounds.even.0) * u128::from(before.osds.values().next().unwrap().total.get());
    let empty = u64::from(EMPTY) * u64::try_from(wanted / 1_000_000_000).unwrap();
    let gib = |bytes: u64| bytes >> 30;
    println!(
        "| rounds | planning in all, ms | longest round, ms | moves | GiB moved | fill, % (least, mean, most) |"
    );
    println!("|---|---|---|---|---|---|");
    let show = |round: u32, (all, longest): (u128, u128), made: usize, osds: &BTreeMap<OsdId, OsdFill>| {
        let moved = made as u64 * u64::from(BYTES);
        let [least, mean, most] = Seen::of(osds, moved).fill;
        let moved = gib(moved);
        println!("| {round} | {all} | {longest} | {made} | {moved} | {least:.1}, {mean:.1}, {most:.1} |");
    };
    let (mut all, mut longest, mut made, mut round) = (0, 0, 0, 0);
    show(0, (0, 0), 0, &osds);
    let mut series = vec![Seen::of(&osds, 0)];
    let mut looked: BTreeMap<OsdId, usize> = BTreeMap::new();
    loop {
        let began = Instant::now();
        let seen = observe(osds.clone());
        let pages: Vec<OsdId> = sources(&seen)
            .into_iter()
            .filter(|osd| looked.get(osd).copied().unwrap_or(0) < on[osd].len())
            .take(SOURCES)
            .collect();
        if pages.is_empty() {
            break;
        }
        let mut sample = BTreeSet::new();
        for osd in pages {
            let from = looked.entry(osd).or_default();
            let page = on[&osd][*from..].iter().take(PAGE);
            *from += page.len();
            sample.extend(page.copied());
        }
        let layouts: Vec<Layout> = sample.iter().map(|number| objects[*number].clone()).collect();
        let moves = plan(&seen, &layouts, limits);
        let millis = began.elapsed().as_millis();
        (all, longest) = (all + millis, longest.max(millis));
        for chosen in &moves {
            let number = u32::from_be_bytes(chosen.object.as_bytes()[..4].try_into().unwrap()) as usize;
            objects[number].relocate(chosen.source, chosen.target);
            on.entry(chosen.target).or_default().push(number);
            change(&mut osds, chosen.source, |used| used - chosen.merit.bytes);
            change(&mut osds, chosen.target, |used| used + chosen.merit.bytes);
        }
        made += moves.len();
        round += 1;
        series.push(Seen::of(&osds, made as u64 * u64::from(BYTES)));
        if round % LINE == 0 {
            show(round, (all, longest), made, &osds);
        }
    }
    show(round, (all, longest), made, &osds);
    let moved = made as u64 * u64::from(BYTES);
    let even = observe(osds).is_even();
    println!(
        "{} GiB moved in {round} rounds; {} GiB are the least to fill the empty to the mean, {} for a perfectly even fill ({:.2} of it); \
         even by the classes: {even}",
        gib(moved),
        gib(empty),
        gib(least),
        moved as f64 / least as f64
    );
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
    if let Some(file) = std::env::args().nth(1) {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        std::fs::write(file, draw(&series, gib(empty), gib(least))).unwrap();
    }
}

fn change(osds: &mut BTreeMap<OsdId, OsdFill>, osd: OsdId, used: impl FnOnce(u64) -> u64) {
    let fill = osds.get_mut(&osd).unwrap();
    fill.used = ByteCount(used(fill.used.get()));
}
