//! Which OSDs get the fragments of an object (features §2.3, §2.4).
//!
//! Pure: the candidates are given (claimed, active for the namespace, not disqualified), randomness is a generator.
//! The result never names an OSD twice and never puts more than the policy's x fragments of a chunk on one node.
//! Nodes are used as evenly as they can be before weights matter; among equals, emptier OSDs are preferred.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use thiserror::Error;

use crate::ids::{NodeId, OsdId};
use crate::policy::{Bucket, CodeShape, Policy};
use crate::units::ByteCount;

/// An OSD that may get a fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub osd: OsdId,
    /// The failure domain that policies count.
    pub node: NodeId,
    /// Its capacity.
    pub total: ByteCount,
    /// What is used of it.
    pub used: ByteCount,
}

impl Candidate {
    /// total / (1 + used): how likely it is chosen among equals. Doubles are exact enough: a rounding error moves a
    /// fragment in one upload out of 2^50.
    fn weight(&self) -> f64 {
        // Both conversions round; neither can overflow.
        #[allow(clippy::cast_precision_loss)]
        let (total, used) = (self.total.get() as f64, self.used.get() as f64);
        total / (1.0 + used)
    }
}

/// An OSD that has a fragment of the chunk already (repair).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub osd: OsdId,
    /// Its failure domain.
    pub node: NodeId,
}

/// The policy for an upload, and how far it can be met now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyChoice {
    /// The first satisfiable one.
    pub policy: Policy,
    /// Its position in the preset: 0 is the preferred one.
    pub rank: usize,
    /// Fragments to store, at least c; the rest of the k + m are holes.
    pub fragments: usize,
    /// y: the smallest limit per node with which that many can still be placed; at most x.
    pub spread: u32,
}

/// Why none of a preset's policies can be used, policy by policy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no policy can be satisfied with {candidates} usable OSDs on {nodes} nodes: {}", .missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct NoSatisfiablePolicy {
    /// Usable OSDs.
    pub candidates: usize,
    /// Nodes they are on.
    pub nodes: usize,
    /// What each policy lacks, in the order of the preset.
    pub missing: Vec<PolicyShortage>,
}

/// What one policy lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyShortage {
    /// Which.
    pub policy: Policy,
    /// Fragments that could be placed: fewer than its c.
    pub possible: usize,
}

impl std::fmt::Display for PolicyShortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { policy, possible } = self;
        let (needed, per_node) = (policy.min_fragments(), policy.max_per_node());
        write!(
            f,
            "{policy} needs {needed} fragments with at most {per_node} per node, {possible} can be placed"
        )
    }
}

/// Why fragments cannot be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PlacementError {
    /// Not enough room under the limit per node.
    #[error("{wanted} more fragments wanted, {possible} can be placed with at most {max_per_node} per node")]
    NotEnough {
        /// Asked for.
        wanted: usize,
        /// Possible.
        possible: usize,
        /// The limit per node.
        max_per_node: u32,
    },
}

/// How many OSDs each node has.
fn nodes<'a>(osds: impl IntoIterator<Item = (OsdId, &'a NodeId)>) -> BTreeMap<&'a NodeId, BTreeSet<OsdId>> {
    let mut nodes: BTreeMap<&NodeId, BTreeSet<OsdId>> = BTreeMap::new();
    for (osd, node) in osds {
        nodes.entry(node).or_default().insert(osd);
    }
    nodes
}

/// Σ over nodes of min(x, OSDs there).
fn capacity(per_node: &[usize], max_per_node: u32) -> usize {
    let limit = usize::try_from(max_per_node).unwrap_or(usize::MAX);
    per_node.iter().map(|osds| (*osds).min(limit)).sum()
}

/// How many fragments of one chunk can be placed on `osds` with at most `max_per_node` on a node.
pub fn placeable<'a>(osds: impl IntoIterator<Item = (OsdId, &'a NodeId)>, max_per_node: u32) -> usize {
    let per_node: Vec<usize> = nodes(osds).values().map(BTreeSet::len).collect();
    capacity(&per_node, max_per_node)
}

/// The first policy of which at least c fragments can be placed, and how many can.
pub fn choose_policy(
    policies: &[Policy],
    candidates: &[Candidate],
) -> Result<PolicyChoice, NoSatisfiablePolicy> {
    let by_node = nodes(candidates.iter().map(|c| (c.osd, &c.node)));
    let per_node: Vec<usize> = by_node.values().map(BTreeSet::len).collect();
    let mut missing = Vec::new();
    for (rank, policy) in policies.iter().enumerate() {
        let possible = capacity(&per_node, policy.max_per_node());
        if possible >= policy.min_fragments() {
            let fragments = possible.min(policy.shape().total());
            // At most 255 steps: with y = fragments every node has room for all of them.
            let spread = (1..policy.max_per_node())
                .find(|limit| capacity(&per_node, *limit) >= fragments)
                .unwrap_or(policy.max_per_node());
            return Ok(PolicyChoice { policy: *policy, rank, fragments, spread });
        }
        missing.push(PolicyShortage { policy: *policy, possible });
    }
    Err(NoSatisfiablePolicy { candidates: per_node.iter().sum(), nodes: per_node.len(), missing })
}

/// A node with OSDs left to choose.
#[derive(Debug)]
struct Node {
    /// The mean of its candidates' weights, computed once.
    weight: f64,
    /// Not chosen yet, in the order of the ids.
    osds: Vec<(OsdId, f64)>,
    /// Fragments it has.
    count: u32,
}

/// Chooses `count` OSDs among the candidates, none of which is in `held`, for the chunks of one object: fragment i of
/// every chunk goes to the i-th.
///
/// Level by level: of the nodes with the fewest fragments (those in `held` included) one is drawn by weight, in it an
/// OSD by weight. Candidates named twice count once. The order of the candidates does not matter, only the generator's
/// state does.
pub fn place(
    count: usize,
    candidates: &[Candidate],
    held: &[Held],
    max_per_node: u32,
    rng: &mut dyn Rng,
) -> Result<Vec<OsdId>, PlacementError> {
    let mut taken: BTreeSet<OsdId> = held.iter().map(|held| held.osd).collect();
    let mut counts: BTreeMap<&NodeId, u32> = BTreeMap::new();
    for osds in nodes(held.iter().map(|held| (held.osd, &held.node))) {
        counts.insert(osds.0, u32::try_from(osds.1.len()).unwrap_or(u32::MAX));
    }
    let mut ordered: Vec<&Candidate> = candidates.iter().collect();
    ordered.sort_by(|a, b| (&a.node, a.osd).cmp(&(&b.node, b.osd)));
    let mut nodes: Vec<Node> = Vec::new();
    for group in ordered.chunk_by(|a, b| a.node == b.node) {
        let count = group.first().and_then(|first| counts.get(&first.node)).copied().unwrap_or(0);
        let osds: Vec<(OsdId, f64)> = group
            .iter()
            .filter(|candidate| taken.insert(candidate.osd))
            .map(|candidate| (candidate.osd, candidate.weight()))
            .collect();
        if !osds.is_empty() {
            nodes.push(Node { weight: mean(osds.iter().map(|(_, weight)| *weight)), osds, count });
        }
    }
    let room = |node: &Node| usize::try_from(max_per_node.saturating_sub(node.count)).unwrap_or(usize::MAX);
    let possible: usize = nodes.iter().map(|node| room(node).min(node.osds.len())).sum();
    let not_enough = PlacementError::NotEnough { wanted: count, possible, max_per_node };
    if possible < count {
        return Err(not_enough);
    }
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count {
        let usable = |node: &Node| !node.osds.is_empty() && node.count < max_per_node;
        let level = nodes.iter().filter(|node| usable(node)).map(|node| node.count).min();
        let bag: Vec<usize> =
            (0..nodes.len()).filter(|i| usable(&nodes[*i]) && Some(nodes[*i].count) == level).collect();
        let drawn = draw(rng, bag.iter().map(|i| nodes[*i].weight)).and_then(|i| bag.get(i));
        let Some(node) = drawn.and_then(|i| nodes.get_mut(*i)) else { return Err(not_enough) };
        let Some(osd) = draw(rng, node.osds.iter().map(|(_, weight)| *weight)) else {
            return Err(not_enough);
        };
        chosen.push(node.osds.remove(osd).0);
        node.count += 1;
    }
    Ok(chosen)
}

fn mean(weights: impl ExactSizeIterator<Item = f64>) -> f64 {
    // A node has far fewer than 2^53 OSDs.
    #[allow(clippy::cast_precision_loss)]
    let count = weights.len().max(1) as f64;
    weights.sum::<f64>() / count
}

/// A position drawn with a probability proportional to its weight; the last one absorbs rounding. None of no weights.
fn draw(rng: &mut dyn Rng, weights: impl Iterator<Item = f64> + Clone) -> Option<usize> {
    let sum: f64 = weights.clone().sum();
    // 53 random bits: every value is exact, and below 1.
    #[allow(clippy::cast_precision_loss)]
    let unit = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
    let mut left = unit * sum;
    let mut last = None;
    for (position, weight) in weights.enumerate() {
        last = Some(position);
        if left < weight {
            break;
        }
        left -= weight;
    }
    last
}

/// The bucket of an object (features §2.3) from where its chunks' fragments are (`None`: a hole). OSDs that `node_of`
/// does not know count as one node: what isn't known to be spread isn't.
pub fn bucket_of<'a, Chunk>(
    shape: CodeShape,
    chunks: impl IntoIterator<Item = Chunk>,
    node_of: impl Fn(OsdId) -> Option<&'a NodeId>,
) -> Bucket
where
    Chunk: IntoIterator<Item = Option<OsdId>>,
{
    let mut fragments = u32::MAX;
    let mut max_per_node = 0;
    for chunk in chunks {
        let mut per_node: BTreeMap<Option<&NodeId>, u32> = BTreeMap::new();
        for osd in chunk.into_iter().flatten() {
            *per_node.entry(node_of(osd)).or_default() += 1;
        }
        fragments = fragments.min(per_node.values().sum());
        max_per_node = max_per_node.max(per_node.values().copied().max().unwrap_or(0));
    }
    // Without chunks nothing is stored.
    let fragments = if fragments == u32::MAX { 0 } else { fragments };
    Bucket { shape, fragments, max_per_node }
}

#[cfg(test)]
mod tests;
