//! Which fragments move where, best first (features §3.6, without its two bugs: the best moves come first, and a node
//! that holds nothing yet counts as 0).
//!
//! Pure: a function of fill rates, node layout and sampled objects. A plan is advice: each move names the manifest
//! version that it was planned on and is void when that is no longer the stored one. No move breaks what the policy
//! guarantees (distinct OSDs for a chunk, at most x of its fragments on a node), raises the [objective](crate::objective),
//! or fills an OSD beyond [`Limits::fullest`].

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use alba_core::ids::{NamespaceId, NodeId, ObjectId, ObjectVersion, OsdId};

use crate::layout::{Layout, Placed};
use crate::objective::{Merit, SAME_NODE_BONUS, evenness};
use crate::observe::{Bounds, FillClass, FillRate, Observation, Role};

/// All fragments of one object that are on `source` go to `target`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveSpec {
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Which object.
    pub object: ObjectId,
    /// The version it was planned on; any other makes the move void.
    pub version: ObjectVersion,
    /// From where.
    pub source: OsdId,
    /// To where.
    pub target: OsdId,
    /// What it is good for, and what it costs.
    pub merit: Merit,
}

/// Bounds of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Moves in one plan.
    pub moves: usize,
    /// The smallest number of fragments of a chunk per node with which the present OSDs can hold all of them: a move may
    /// take a chunk closer to it, never further away.
    pub spread: u32,
    /// No OSD is filled beyond this.
    pub fullest: FillRate,
}

/// Targets looked at for one source: beyond them come fuller ones, so that little is lost when many are forbidden.
const TARGETS_TRIED: usize = 64;

/// At most one move per object, best first. Each move is planned on what the ones before it leave.
pub fn plan(observation: &Observation, objects: &[Layout], limits: Limits) -> Vec<MoveSpec> {
    let mut state = State::new(observation, limits);
    // Merits only fall while moves are taken, nearly always: so the best by what was last known is looked at again, and
    // taken when it still is the best.
    let mut queue: BinaryHeap<(Merit, std::cmp::Reverse<ObjectId>, usize)> = BinaryHeap::new();
    for (position, object) in objects.iter().enumerate() {
        if let Some(found) = state.best(object) {
            queue.push((found.merit, std::cmp::Reverse(object.object), position));
        }
    }
    let mut moves = Vec::new();
    while moves.len() < limits.moves {
        let Some((_, id, position)) = queue.pop() else { break };
        let Some(found) = objects.get(position).and_then(|object| state.best(object)) else { continue };
        if queue.peek().is_some_and(|(next, ..)| *next > found.merit) {
            queue.push((found.merit, id, position));
            continue;
        }
        state.take(&found);
        moves.push(found);
    }
    moves
}

/// A node's number here: names are compared once, not for every pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct NodeNumber(usize);

/// An OSD as the moves planned so far leave it.
struct Osd {
    node: NodeNumber,
    used: u64,
    total: u64,
    role: Role,
}

impl Osd {
    fn rate(&self) -> FillRate {
        FillRate::of(self.used, self.total)
    }
}

struct State {
    osds: BTreeMap<OsdId, Osd>,
    /// Those that take fragments, emptiest first.
    targets: BTreeSet<(FillRate, OsdId)>,
    bounds: Bounds,
    limits: Limits,
}

/// The nodes of a chunk's fragments, in order. Those of unknown OSDs count as one node: what isn't known to be spread
/// isn't.
type Nodes = Vec<Option<NodeNumber>>;

/// How many the fullest node has.
fn fullest(nodes: &Nodes) -> u32 {
    let longest = nodes.chunk_by(|a, b| a == b).map(<[_]>::len).max().unwrap_or(0);
    u32::try_from(longest).unwrap_or(u32::MAX)
}

/// What is to move: an object's fragments on one OSD.
struct Source<'a> {
    osd: OsdId,
    object: &'a Layout,
    bytes: u64,
    /// The chunks concerned, with the nodes of all their fragments.
    chunks: Vec<(&'a [Placed], Nodes)>,
}

impl State {
    fn new(observation: &Observation, limits: Limits) -> Self {
        let names: BTreeSet<&NodeId> = observation.osds.values().map(|fill| &fill.node).collect();
        let numbers: BTreeMap<&NodeId, NodeNumber> =
            names.into_iter().enumerate().map(|(number, name)| (name, NodeNumber(number))).collect();
        let osds: BTreeMap<OsdId, Osd> = observation
            .osds
            .iter()
            .filter_map(|(id, fill)| {
                let (used, total) = (fill.used.get(), fill.total.get());
                Some((*id, Osd { node: *numbers.get(&fill.node)?, used, total, role: fill.role }))
            })
            .collect();
        let members = osds.iter().filter(|(_, osd)| osd.role == Role::Member);
        let targets = members.map(|(id, osd)| (osd.rate(), *id)).collect();
        Self { osds, targets, bounds: observation.bounds, limits }
    }

    fn node(&self, osd: OsdId) -> Option<NodeNumber> {
        self.osds.get(&osd).map(|osd| osd.node)
    }

    fn nodes(&self, chunk: &[Placed]) -> Nodes {
        let mut nodes: Nodes = chunk.iter().map(|placed| self.node(placed.osd)).collect();
        nodes.sort_unstable();
        nodes
    }

    fn excess(&self, nodes: &Nodes) -> u32 {
        fullest(nodes).saturating_sub(self.limits.spread)
    }

    /// The best allowed move of an object.
    fn best(&self, object: &Layout) -> Option<MoveSpec> {
        let sources: BTreeSet<OsdId> = object.chunks.iter().flatten().map(|placed| placed.osd).collect();
        let moves = sources.into_iter().filter_map(|source| self.best_from(object, source));
        moves.max_by(|a, b| a.merit.cmp(&b.merit).then_with(|| b.source.cmp(&a.source)))
    }

    fn best_from(&self, object: &Layout, id: OsdId) -> Option<MoveSpec> {
        let from = self.osds.get(&id)?;
        let chunks: Vec<_> = object.chunks_on(id).map(|chunk| (&chunk[..], self.nodes(chunk))).collect();
        let crowded = chunks.iter().any(|(_, nodes)| self.excess(nodes) > 0);
        let drains = from.role == Role::Draining;
        if !(drains || crowded || from.rate() > self.bounds.even) {
            return None;
        }
        let source = Source { osd: id, object, bytes: object.bytes_on(id), chunks };
        let mut best: Option<(FillRate, MoveSpec)> = None;
        for (rate, target) in self.targets.iter().take(TARGETS_TRIED) {
            // Emptiest first: what comes later can only be better by its node, or by its spread.
            let near = |first: FillRate| rate.0.saturating_sub(first.0) <= SAME_NODE_BONUS.unsigned_abs();
            if !crowded
                && (best.as_ref().is_some_and(|(first, _)| !near(*first))
                    || !drains && *rate >= self.bounds.even)
            {
                break;
            }
            let Some(merit) = self.merit(&source, from, (*target, *rate)) else { continue };
            let first = best.as_ref().map_or(*rate, |(first, _)| *first);
            if best.as_ref().is_none_or(|(_, best)| merit > best.merit) {
                let (object, version, namespace) = (object.object, object.version, object.namespace);
                best = Some((
                    first,
                    MoveSpec { namespace, object, version, source: id, target: *target, merit },
                ));
            }
        }
        best.map(|(_, found)| found)
    }

    /// What the move is good for; none when it is not allowed or good for nothing.
    fn merit(&self, source: &Source<'_>, from: &Osd, (target, rate): (OsdId, FillRate)) -> Option<Merit> {
        let to = self.osds.get(&target)?;
        let bytes = source.bytes;
        let filled = FillRate::of(to.used.saturating_add(bytes), to.total);
        if source.osd == target || bytes == 0 || filled > self.limits.fullest {
            return None;
        }
        let same_node = from.node == to.node;
        let mut spread = 0;
        for (chunk, nodes) in &source.chunks {
            if chunk.iter().any(|placed| placed.osd == target) {
                return None;
            }
            if same_node {
                continue;
            }
            let there = nodes.iter().filter(|node| **node == Some(to.node)).count();
            let (before, after) = (self.excess(nodes), self.excess(&moved(nodes, from.node, to.node)));
            let full = usize::try_from(source.object.max_per_node).is_ok_and(|most| there >= most);
            if full || after > before {
                return None;
            }
            spread += before - after;
        }
        let evenness = evenness((from.rate(), from.total), (rate, to.total), bytes);
        let merit = Merit { drains: from.role == Role::Draining, spread, evenness, same_node, bytes };
        (merit.drains || merit.spread > 0 || self.evens(from, rate) && merit.improves()).then_some(merit)
    }

    /// High → low, high → ok, ok → low: towards the even rate, from at least one side that is off it by more than the
    /// bound. So it stops when all are within their bounds.
    fn evens(&self, from: &Osd, target: FillRate) -> bool {
        let towards = from.rate() > self.bounds.even && target < self.bounds.even;
        let high = self.bounds.class(from.rate()) == FillClass::High;
        towards && (high || self.bounds.class(target) == FillClass::Low)
    }

    fn take(&mut self, chosen: &MoveSpec) {
        let MoveSpec { source, target, merit, .. } = chosen;
        self.change(*source, |used| used.saturating_sub(merit.bytes));
        self.change(*target, |used| used.saturating_add(merit.bytes));
    }

    fn change(&mut self, id: OsdId, used: impl FnOnce(u64) -> u64) {
        let Some(osd) = self.osds.get_mut(&id) else { return };
        let before = osd.rate();
        osd.used = used(osd.used);
        if self.targets.remove(&(before, id)) {
            self.targets.insert((osd.rate(), id));
        }
    }
}

/// The nodes of a chunk after one fragment went from one to another.
fn moved(nodes: &Nodes, from: NodeNumber, to: NodeNumber) -> Nodes {
    let mut nodes = nodes.clone();
    if let Some(one) = nodes.iter_mut().find(|node| **node == Some(from)) {
        *one = Some(to);
    }
    nodes.sort_unstable();
    nodes
}

#[cfg(test)]
mod tests;
