//! Moves that even out the fill, best first (features §3.6, without its two bugs: the best moves come first, and a node
//! that holds nothing yet counts as 0).
//!
//! A plan is advice: each move names the manifest version it was planned on and is dropped when that is no longer the
//! stored one.

use alba_core::ids::{ObjectId, ObjectVersion, OsdId};
use alba_core::manifest::Manifest;

use crate::observe::{FillClass, Observation, OsdFill};

/// All fragments of one object that are on `source` go to `target`.
#[derive(Debug, Clone, PartialEq)]
pub struct MoveSpec {
    /// Which object.
    pub object: ObjectId,
    /// The version it was planned on; any other makes the move void.
    pub version: ObjectVersion,
    /// From where.
    pub source: OsdId,
    /// To where.
    pub target: OsdId,
    /// Packed bytes that move.
    pub bytes: u64,
    /// Difference of the fill rates: what it is good for.
    pub gain: f64,
    /// Source and target share a node: nothing crosses the network between nodes.
    pub same_node: bool,
}

/// Gain in fill rate that staying on the node is worth.
const SAME_NODE_BONUS: f64 = 0.01;

impl MoveSpec {
    /// What moves are ranked by.
    pub fn score(&self) -> f64 {
        self.gain + if self.same_node { SAME_NODE_BONUS } else { 0.0 }
    }
}

/// At most one move per object, best first, at most `limit` of them.
pub fn plan(observation: &Observation, objects: &[Manifest], limit: usize) -> Vec<MoveSpec> {
    let mut moves: Vec<MoveSpec> =
        objects.iter().filter_map(|object| best_move(observation, object)).collect();
    moves.sort_by(|a, b| b.score().total_cmp(&a.score()).then_with(|| a.object.cmp(&b.object)));
    moves.truncate(limit);
    moves
}

/// The best allowed move of one object, by family: high → low, else high → ok, else ok → low.
fn best_move(observation: &Observation, object: &Manifest) -> Option<MoveSpec> {
    const FAMILIES: [(FillClass, FillClass); 3] = [
        (FillClass::High, FillClass::Low),
        (FillClass::High, FillClass::Ok),
        (FillClass::Ok, FillClass::Low),
    ];
    FAMILIES.into_iter().find_map(|(from, to)| {
        let sources =
            observation.osds.iter().filter(|(osd, (_, class))| *class == from && holds(object, **osd));
        sources
            .flat_map(|source| {
                observation
                    .osds
                    .iter()
                    .filter(move |(osd, (_, class))| *class == to && !holds(object, **osd))
                    .filter_map(move |target| allowed(observation, object, source, target))
            })
            .max_by(|a, b| a.score().total_cmp(&b.score()).then_with(|| b.target.cmp(&a.target)))
    })
}

type Candidate<'a> = (&'a OsdId, &'a (OsdFill, FillClass));

/// The move from source to target, if it keeps every chunk within the object's limit per node.
fn allowed(
    observation: &Observation,
    object: &Manifest,
    (source, (source_fill, _)): Candidate<'_>,
    (target, (target_fill, _)): Candidate<'_>,
) -> Option<MoveSpec> {
    let gain = source_fill.rate() - target_fill.rate();
    let same_node = source_fill.node == target_fill.node;
    let on_target_node =
        |osd: &OsdId| observation.osds.get(osd).is_some_and(|(fill, _)| fill.node == target_fill.node);
    let fits = same_node
        || object.chunks.iter().all(|chunk| {
            let locations = || chunk.fragments.iter().filter_map(|fragment| fragment.location.as_ref());
            let moves_here = locations().any(|osd| osd == source);
            let there = locations().filter(|osd| on_target_node(osd)).count();
            !moves_here || u32::try_from(there).is_ok_and(|there| there < object.max_disks_per_node)
        });
    (fits && gain > 0.0).then(|| MoveSpec {
        object: object.object_id,
        version: object.version,
        source: *source,
        target: *target,
        bytes: object
            .fragments()
            .filter(|(_, _, fragment)| fragment.location == Some(*source))
            .map(|(_, _, fragment)| u64::from(fragment.packed_len))
            .sum(),
        gain,
        same_node,
    })
}

fn holds(object: &Manifest, osd: OsdId) -> bool {
    object.fragments().any(|(_, _, fragment)| fragment.location == Some(osd))
}

#[cfg(test)]
mod tests;
