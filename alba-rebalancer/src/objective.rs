//! What is better: one measure for everything that moves fragments, compared in this order.
//!
//! 1. fragments on OSDs that are to be emptied;
//! 2. the node spread: by how much the fullest node of each chunk exceeds the smallest limit that the present OSDs allow;
//! 3. the evenness of the fill: Σ usedᵢ² / totalᵢ, which is least when all fill rates are the same (it is the variance of
//!    the rates, weighted by capacity, up to a constant);
//! 4. bytes that move.
//!
//! Repair of the node spread lowers 2 and never looks at 3; rebalancing lowers 3 and never raises 2. So neither can undo
//! what the other did.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use alba_core::ids::{NodeId, OsdId};

use crate::layout::{Layout, Placed};
use crate::observe::{FillRate, Observation, Role};

/// How good a state is; less is better. For tests, reports and simulations: plans compare moves, not states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Objective {
    /// Fragments on draining OSDs.
    pub to_drain: u64,
    /// Fragments above the spread that is possible.
    pub excess: u64,
    /// Σ usedᵢ² / totalᵢ, in millionths of bytes.
    pub unevenness: u128,
}

impl Objective {
    /// Of all the objects on these OSDs. `spread` is the smallest limit per node that the present OSDs allow.
    pub fn of(observation: &Observation, objects: &[Layout], spread: u32) -> Self {
        let draining = observation.draining();
        let node_of = |osd: OsdId| observation.osds.get(&osd).map(|osd| &osd.node);
        let fullest = |chunk: &[Placed]| {
            let mut counts: BTreeMap<Option<&NodeId>, u32> = BTreeMap::new();
            for placed in chunk {
                *counts.entry(node_of(placed.osd)).or_default() += 1;
            }
            counts.into_values().max().unwrap_or(0)
        };
        let chunks = || objects.iter().flat_map(|object| &object.chunks);
        let to_drain = chunks().flatten().filter(|placed| draining.contains(&placed.osd)).count();
        let excess = chunks().map(|chunk| u64::from(fullest(chunk).saturating_sub(spread))).sum();
        // Below 2^128 up to 2^54 bytes an OSD.
        let square = |used: u64| (u128::from(used) * u128::from(used)).saturating_mul(1_000_000);
        let members = observation.osds.values().filter(|osd| osd.role != Role::Draining);
        Self {
            to_drain: u64::try_from(to_drain).unwrap_or(u64::MAX),
            excess,
            unevenness: members.map(|o| square(o.used.get()) / u128::from(o.total.get().max(1))).sum(),
        }
    }
}

/// What one move changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merit {
    /// The source is to be emptied.
    pub drains: bool,
    /// By how much the excess of the spread falls.
    pub spread: u32,
    /// By how much the unevenness falls for each byte moved, in parts per billion; negative: it grows.
    pub evenness: i64,
    /// Nothing crosses the network between nodes.
    pub same_node: bool,
    /// What it costs.
    pub bytes: u64,
}

/// Evenness, in parts per billion, that staying on the node is worth: the 10 of 1000 of features §3.6, twice, since the
/// unevenness falls with twice the difference of the rates.
pub(crate) const SAME_NODE_BONUS: i64 = 20_000_000;

impl Merit {
    /// Does the objective fall?
    pub fn improves(&self) -> bool {
        self.drains || self.spread > 0 || self.evenness > 0
    }

    /// Evenness by the thousandth: what differs less is not worth looking for.
    fn rank(&self) -> (bool, u32, i64) {
        let bonus = if self.same_node { SAME_NODE_BONUS } else { 0 };
        (self.drains, self.spread, self.evenness.saturating_add(bonus) / 1_000_000)
    }
}

impl PartialOrd for Merit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Better is greater.
impl Ord for Merit {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank()).then_with(|| other.bytes.cmp(&self.bytes))
    }
}

/// How much less uneven the fill becomes for each of `bytes` moved: 2 (rₛ − rₜ) − b (1/Tₛ + 1/Tₜ), in parts per billion.
pub(crate) fn evenness(source: (FillRate, u64), target: (FillRate, u64), bytes: u64) -> i64 {
    let share = |total: u64| i128::from(FillRate::of(bytes, total).0);
    let gain = 2 * (i128::from(source.0.0) - i128::from(target.0.0)) - share(source.1) - share(target.1);
    i64::try_from(gain).unwrap_or(if gain < 0 { i64::MIN } else { i64::MAX })
}
