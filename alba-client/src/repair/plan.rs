//! What to do about one object: the least that brings it back to its best policy (features §3.3, §3.4). Pure.
//!
//! Per chunk, fragments that are well stay. What is lost, and what stands on an OSD that is to be emptied, gets a new
//! place, with the kept ones forced: OSDs distinct, at most x on a node, the nodes as even as they can be. A fragment that
//! can still be read is copied as it is; only what cannot is computed. An object is stored anew only when its code is not
//! that of the best policy, or when no update of it would be accepted.
//!
//! A plan that was carried out leaves nothing for the next one to do, while the OSDs stay as they are.

use std::collections::{BTreeMap, BTreeSet};

use alba_core::ids::{ChunkIndex, FragmentIndex, ObjectVersion, OsdId};
use alba_core::manifest::{Chunk, Manifest};
use alba_core::placement::{Candidate, Held, PlacementError, bucket_of, choose_policy, place, placeable};
use alba_core::policy::{Bucket, CodeShape, Policy};
use rand::Rng;
use thiserror::Error;

use super::standing::{Osds, Standing};

/// A fragment that was found missing or damaged, at the version at which it was placed.
pub type Bad = (ChunkIndex, FragmentIndex, ObjectVersion);

/// What a plan starts from, beside the manifest.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The OSDs of the namespace.
    pub osds: &'a Osds,
    /// Of the preset, in its order.
    pub policies: &'a [Policy],
    /// Fragments whose bytes are known to be of no use. Entries of another version say nothing.
    pub bad: &'a BTreeSet<Bad>,
}

/// What to do about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// It is as good as it can be.
    Nothing,
    /// Some of its fragments change, in one update of the manifest.
    Update(Vec<ChunkWork>),
    /// It is to be read and stored anew.
    Rewrite(WhyRewrite),
    /// Nothing helps for now.
    Unrepairable(Unrepairable),
}

/// Why an object is stored anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyRewrite {
    /// Another code is better now.
    Policy,
    /// With the code it has it would satisfy no policy of its preset.
    NoRoom,
}

/// Why an object cannot be repaired.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unrepairable {
    /// Data is lost, unless OSDs come back.
    #[error("chunk {chunk} has {readable} fragments that may be read, {needed} are needed")]
    TooFewFragments {
        /// Which chunk.
        chunk: ChunkIndex,
        /// On OSDs that can be read.
        readable: usize,
        /// k.
        needed: usize,
    },
    /// There are too few OSDs for any policy.
    #[error("no policy can be satisfied: {0}")]
    NoPolicy(String),
}

/// What to do about one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkWork {
    /// Which.
    pub chunk: ChunkIndex,
    /// Each fragment at most once, by index.
    pub steps: Vec<Step>,
    /// Fragments to read for what is to be computed, the best sources first.
    pub sources: Vec<FragmentIndex>,
}

/// What to do about one fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub fragment: FragmentIndex,
    /// What.
    pub how: How,
}

/// See [`Step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Compute it from k others.
    Regenerate {
        /// Its new place.
        onto: OsdId,
    },
    /// Copy packed bytes: its own, or those of another replica.
    Copy {
        /// Whose.
        from: FragmentIndex,
        /// Its new place.
        onto: OsdId,
    },
    /// It is a hole from now on: what is there is lost or has to go, and there is no place.
    Drop,
}

impl How {
    /// The new place.
    pub fn onto(self) -> Option<OsdId> {
        match self {
            Self::Regenerate { onto } | Self::Copy { onto, .. } => Some(onto),
            Self::Drop => None,
        }
    }
}

/// What is the matter with a fragment. In the order in which new places are given out: what raises redundancy comes first,
/// and of that what cannot come back by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Matter {
    Bad,
    Gone,
    Hole,
    Dead,
    Leaving,
    Draining,
}

/// The state of a chunk.
struct Ward<'a> {
    chunk: &'a Chunk,
    /// Well, and where they are.
    kept: BTreeMap<FragmentIndex, OsdId>,
    /// In want of a new place.
    wanted: Vec<(Matter, FragmentIndex)>,
    /// On OSDs that are away on purpose: they stay where they are, and do not count.
    away: BTreeMap<FragmentIndex, OsdId>,
}

impl<'a> Ward<'a> {
    fn new(index: ChunkIndex, chunk: &'a Chunk, situation: &Situation<'_>) -> Self {
        let mut ward = Ward { chunk, kept: BTreeMap::new(), wanted: Vec::new(), away: BTreeMap::new() };
        for (fragment, entry) in (0..).map(FragmentIndex).zip(&chunk.fragments) {
            let matter = match entry.location {
                None => Matter::Hole,
                Some(_) if situation.bad.contains(&(index, fragment, entry.version)) => Matter::Bad,
                Some(osd) => match situation.osds.standing(osd) {
                    Standing::Takes | Standing::Holds => {
                        ward.kept.insert(fragment, osd);
                        continue;
                    }
                    Standing::Away => {
                        ward.away.insert(fragment, osd);
                        continue;
                    }
                    Standing::Draining => Matter::Draining,
                    Standing::Leaving => Matter::Leaving,
                    Standing::Dead => Matter::Dead,
                    Standing::Gone => Matter::Gone,
                },
            };
            ward.wanted.push((matter, fragment));
        }
        ward.wanted.sort_unstable();
        ward
    }

    fn location(&self, fragment: FragmentIndex) -> Option<OsdId> {
        self.chunk.fragments.get(fragment.index())?.location
    }

    fn of(&self, which: impl Fn(Matter) -> bool) -> impl Iterator<Item = FragmentIndex> {
        self.wanted.iter().filter(move |(matter, _)| which(*matter)).map(|(_, fragment)| *fragment)
    }

    /// Fragments that can be read, the best sources first: data before parity, OSDs in good standing before others, silent
    /// ones last.
    fn sources(&self) -> Vec<FragmentIndex> {
        let leaving = self.of(|matter| matches!(matter, Matter::Leaving | Matter::Draining));
        let mut sources: Vec<FragmentIndex> = self.kept.keys().copied().chain(leaving).collect();
        sources.extend(self.of(|matter| matter == Matter::Dead));
        sources.extend(self.away.keys());
        sources
    }

    /// Fragments that count as redundancy.
    fn counted(&self) -> usize {
        self.kept.len() + self.of(|matter| matches!(matter, Matter::Leaving | Matter::Draining)).count()
    }
}

/// Where the code of an object stands among its preset's policies now.
enum Goal {
    /// It is the best one, or a better one that lacks OSDs for now.
    Keep { max_per_node: u32, spread: u32 },
    /// Another one is better.
    Rewrite,
    /// It is none of the preset's, and none of these can be had.
    None(String),
}

fn goal(shape: CodeShape, policies: &[Policy], live: &[Candidate], taking: &[Candidate]) -> Goal {
    let own = policies.iter().position(|policy| policy.shape() == shape);
    let policy = match (choose_policy(policies, live), own.and_then(|own| policies.get(own))) {
        (Ok(best), _) if best.policy.shape() == shape => best.policy,
        // A temporary shortage: the object waits for OSDs.
        (Ok(best), Some(own_policy)) if own.is_some_and(|own| own < best.rank) => *own_policy,
        // Only if what is stored anew would get a better one: OSDs that are full or paused count for what they hold, not for
        // that, and an object must not be stored again and again in the same way.
        (Ok(_), own_policy) => match (choose_policy(policies, taking), own_policy) {
            (Ok(best), _) if own.is_none_or(|own| best.rank < own) => return Goal::Rewrite,
            (_, Some(own_policy)) => *own_policy,
            (Ok(_), None) => return Goal::Rewrite,
            (Err(error), None) => return Goal::None(error.to_string()),
        },
        (Err(_), Some(own_policy)) => *own_policy,
        (Err(error), None) => return Goal::None(error.to_string()),
    };
    let max_per_node = policy.max_per_node();
    let fit = |limit| placeable(live.iter().map(|c| (c.osd, &c.node)), limit).min(shape.total());
    // At most 255 steps, as in `choose_policy`.
    let most = fit(max_per_node);
    let spread = (1..max_per_node).find(|limit| fit(*limit) >= most).unwrap_or(max_per_node);
    Goal::Keep { max_per_node, spread }
}

/// Decides. `rng` chooses among equal places.
pub fn plan(manifest: &Manifest, situation: &Situation<'_>, rng: &mut dyn Rng) -> Plan {
    if manifest.chunks.is_empty() {
        // It lives in the metadata.
        return Plan::Nothing;
    }
    let shape = manifest.scheme.shape;
    let wards: Vec<(ChunkIndex, Ward<'_>)> = (0..)
        .map(ChunkIndex)
        .zip(&manifest.chunks)
        .map(|(index, chunk)| (index, Ward::new(index, chunk, situation)))
        .collect();
    for (chunk, ward) in &wards {
        let readable = ward.sources().len();
        if readable < shape.k() {
            let lost = Unrepairable::TooFewFragments { chunk: *chunk, readable, needed: shape.k() };
            // What a purged OSD had is lost anyway: the manifest must not hold up its end.
            return removals(&wards, |matter| matter == Matter::Gone).unwrap_or(Plan::Unrepairable(lost));
        }
    }
    let live = situation.osds.keeping();
    let (max_per_node, spread) = match goal(shape, situation.policies, &live, &situation.osds.taking()) {
        Goal::Keep { max_per_node, spread } => (max_per_node, spread),
        Goal::Rewrite => return Plan::Rewrite(WhyRewrite::Policy),
        Goal::None(reason) => {
            return removals(&wards, |matter| matter == Matter::Gone)
                .unwrap_or(Plan::Unrepairable(Unrepairable::NoPolicy(reason)));
        }
    };
    let mut places = Places {
        osds: situation.osds,
        taking: situation.osds.taking(),
        max_per_node,
        spread,
        known: BTreeMap::new(),
    };
    let mut work = Vec::new();
    for (chunk, ward) in &wards {
        let mut steps = steps(ward, shape, &mut places, rng);
        if !steps.is_empty() {
            steps.sort_unstable_by_key(|step| step.fragment);
            work.push(ChunkWork { chunk: *chunk, steps, sources: ward.sources() });
        }
    }
    if work.is_empty() {
        return Plan::Nothing;
    }
    if accepted(manifest, &work, situation) {
        return Plan::Update(work);
    }
    match choose_policy(situation.policies, &live) {
        Ok(_) => Plan::Rewrite(WhyRewrite::NoRoom),
        Err(error) => removals(&wards, |matter| matches!(matter, Matter::Gone | Matter::Bad))
            .unwrap_or(Plan::Unrepairable(Unrepairable::NoPolicy(error.to_string()))),
    }
}

/// The update that only takes these fragments out; none when there are none.
fn removals(wards: &[(ChunkIndex, Ward<'_>)], which: impl Fn(Matter) -> bool) -> Option<Plan> {
    let work: Vec<ChunkWork> = wards
        .iter()
        .map(|(chunk, ward)| {
            let steps = ward.of(&which).map(|fragment| Step { fragment, how: How::Drop }).collect();
            ChunkWork { chunk: *chunk, steps, sources: Vec::new() }
        })
        .filter(|work| !work.steps.is_empty())
        .collect();
    (!work.is_empty()).then_some(Plan::Update(work))
}

/// Gives out places; chunks that are in the same state get the same ones, so that an object does not come to depend on more
/// OSDs than it must.
struct Places<'a> {
    osds: &'a Osds,
    taking: Vec<Candidate>,
    max_per_node: u32,
    spread: u32,
    known: BTreeMap<(Vec<OsdId>, usize), Result<Vec<OsdId>, usize>>,
}

impl Places<'_> {
    fn held(&self, osds: &BTreeSet<OsdId>) -> Vec<Held> {
        // What is not known to stand elsewhere is not counted: the group does so, too.
        osds.iter().filter_map(|osd| Some(Held { osd: *osd, node: self.osds.node(*osd)?.clone() })).collect()
    }

    /// `count` places beside `held`, or how many there are.
    fn find(&mut self, held: &BTreeSet<OsdId>, count: usize, rng: &mut dyn Rng) -> Result<Vec<OsdId>, usize> {
        let key = (held.iter().copied().collect(), count);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let placed = place(count, &self.taking, &self.held(held), self.max_per_node, rng)
            .map_err(|PlacementError::NotEnough { possible, .. }| possible);
        self.known.insert(key, placed.clone());
        placed
    }

    /// How many of a chunk's fragments each node has.
    fn counts(&self, used: &BTreeSet<OsdId>) -> BTreeMap<&alba_core::ids::NodeId, u32> {
        let mut counts = BTreeMap::new();
        for node in used.iter().filter_map(|osd| self.osds.node(*osd)) {
            *counts.entry(node).or_default() += 1;
        }
        counts
    }

    /// A fragment on a node that has more than it should, and a better place for it.
    fn relieve(
        &self,
        used: &BTreeSet<OsdId>,
        movable: &BTreeMap<FragmentIndex, OsdId>,
        rng: &mut dyn Rng,
    ) -> Option<(FragmentIndex, OsdId)> {
        let counts = self.counts(used);
        let count = |osd: OsdId| self.osds.node(osd).and_then(|node| counts.get(node)).copied().unwrap_or(0);
        // Parity before data: what is read without decoding stays where it is.
        let (fragment, _) = movable
            .iter()
            .filter(|(_, osd)| count(**osd) > self.spread)
            .max_by_key(|(fragment, osd)| (count(**osd), **fragment))?;
        let better: Vec<Candidate> = self
            .taking
            .iter()
            .filter(|candidate| !used.contains(&candidate.osd) && count(candidate.osd) < self.spread)
            .cloned()
            .collect();
        let placed = place(1, &better, &self.held(used), self.spread, rng).ok()?;
        Some((*fragment, *placed.first()?))
    }
}

fn steps(ward: &Ward<'_>, shape: CodeShape, places: &mut Places<'_>, rng: &mut dyn Rng) -> Vec<Step> {
    let stays = |matter: Matter| matches!(matter, Matter::Dead | Matter::Draining);
    let mut count = ward.wanted.len();
    // What gets no place and stays where it is takes up room on its node, so that even less may fit.
    let (placed, used) = loop {
        let left = ward.wanted.get(count..).unwrap_or_default();
        let staying = left.iter().filter(|(matter, _)| stays(*matter));
        let mut used: BTreeSet<OsdId> = ward.kept.values().chain(ward.away.values()).copied().collect();
        used.extend(staying.filter_map(|(_, fragment)| ward.location(*fragment)));
        match places.find(&used, count, rng) {
            Ok(placed) => {
                used.extend(&placed);
                break (placed, used);
            }
            // Never more than was asked for.
            Err(possible) => count = possible.min(count.saturating_sub(1)),
        }
    };
    let sources = ward.sources();
    let mut steps = Vec::new();
    let mut onto = placed.into_iter();
    for (matter, fragment) in &ward.wanted {
        let how = match onto.next() {
            Some(onto) => match (matter, sources.first()) {
                (Matter::Leaving | Matter::Draining, _) => How::Copy { from: *fragment, onto },
                (_, Some(from)) if shape.is_replication() => How::Copy { from: *from, onto },
                _ => How::Regenerate { onto },
            },
            None if stays(*matter) || *matter == Matter::Hole => continue,
            None => How::Drop,
        };
        steps.push(Step { fragment: *fragment, how });
    }
    spread(ward, places, used, &mut steps, rng);
    steps
}

/// Moves kept fragments from nodes that have too many to nodes that have room.
fn spread(
    ward: &Ward<'_>,
    places: &Places<'_>,
    mut used: BTreeSet<OsdId>,
    steps: &mut Vec<Step>,
    rng: &mut dyn Rng,
) {
    let mut movable = ward.kept.clone();
    // Each turn takes one of the movable ones.
    while let Some((fragment, onto)) = places.relieve(&used, &movable, rng) {
        if let Some(from) = movable.remove(&fragment) {
            used.remove(&from);
        }
        used.insert(onto);
        steps.push(Step { fragment, how: How::Copy { from: fragment, onto } });
    }
}

/// Would the namespace's group accept the update? It refuses one that places fragments when the outcome satisfies no policy.
/// And a fragment that could still be read is given up only when a policy is satisfied by those alone that can be read after
/// that: what a manifest names on a dead OSD, or what is damaged, is no reason to delete a good copy.
pub(super) fn accepted(manifest: &Manifest, work: &[ChunkWork], situation: &Situation<'_>) -> bool {
    let all = || work.iter().flat_map(|work| work.steps.iter().map(|step| (work.chunk, *step)));
    let gives_up = |(chunk, step): (ChunkIndex, Step)| {
        let entry = manifest.fragment(chunk, step.fragment);
        let is_bad =
            entry.is_some_and(|entry| situation.bad.contains(&(chunk, step.fragment, entry.version)));
        let at = entry.and_then(|entry| entry.location);
        let leaves = at.is_some_and(|osd| situation.osds.standing(osd) == Standing::Leaving);
        step.how == How::Drop && leaves && !is_bad
    };
    if all().all(|(_, step)| step.how == How::Drop) && !all().any(gives_up) {
        return true;
    }
    let after = applied(manifest, work);
    let satisfied = |places: Vec<Vec<Option<OsdId>>>| {
        let bucket = bucket_of(manifest.scheme.shape, places, |osd| situation.osds.node(osd));
        situation.policies.iter().any(|policy| bucket.satisfies(policy))
    };
    let written: BTreeSet<(ChunkIndex, FragmentIndex)> = all()
        .filter(|(_, step)| step.how.onto().is_some())
        .map(|(chunk, step)| (chunk, step.fragment))
        .collect();
    if all().any(gives_up) && !satisfied(readable(manifest, &after, &written, situation)) {
        return false;
    }
    satisfied(after)
}

/// Of these places those that can be read: written now (be it where the fragment was), or neither damaged nor on an OSD
/// that does not answer.
fn readable(
    manifest: &Manifest,
    places: &[Vec<Option<OsdId>>],
    written: &BTreeSet<(ChunkIndex, FragmentIndex)>,
    situation: &Situation<'_>,
) -> Vec<Vec<Option<OsdId>>> {
    let is_readable = |chunk: ChunkIndex, fragment: FragmentIndex, osd: OsdId| {
        let Some(entry) = manifest.fragment(chunk, fragment) else { return false };
        let is_bad = situation.bad.contains(&(chunk, fragment, entry.version));
        written.contains(&(chunk, fragment)) || (!is_bad && situation.osds.standing(osd).counts())
    };
    let of = |(chunk, places): (ChunkIndex, &Vec<Option<OsdId>>)| {
        let place = |(fragment, osd): (FragmentIndex, &Option<OsdId>)| {
            osd.filter(|osd| is_readable(chunk, fragment, *osd))
        };
        (0..).map(FragmentIndex).zip(places).map(place).collect()
    };
    (0..).map(ChunkIndex).zip(places).map(of).collect()
}

/// The fragments of each chunk that can be read, the best sources first.
pub(super) fn sources(manifest: &Manifest, situation: &Situation<'_>) -> Vec<Vec<FragmentIndex>> {
    let of = |(index, chunk)| Ward::new(index, chunk, situation).sources();
    (0..).map(ChunkIndex).zip(&manifest.chunks).map(of).collect()
}

/// Where the fragments are after the work.
pub fn applied(manifest: &Manifest, work: &[ChunkWork]) -> Vec<Vec<Option<OsdId>>> {
    let mut chunks: Vec<Vec<Option<OsdId>>> =
        manifest.chunks.iter().map(|chunk| chunk.fragments.iter().map(|f| f.location).collect()).collect();
    for work in work {
        for step in &work.steps {
            let chunk = chunks.get_mut(work.chunk.index());
            if let Some(place) = chunk.and_then(|chunk| chunk.get_mut(step.fragment.index())) {
                *place = step.how.onto();
            }
        }
    }
    chunks
}

/// About how many bytes a plan reads and writes.
pub fn cost(manifest: &Manifest, plan: &Plan) -> u64 {
    let k = u64::from(manifest.scheme.shape.as_u8().0);
    match plan {
        Plan::Nothing | Plan::Unrepairable(_) => 0,
        Plan::Rewrite(_) => manifest.size.saturating_mul(3),
        Plan::Update(work) => work
            .iter()
            .map(|work| {
                let len = |fragment| {
                    manifest.fragment(work.chunk, fragment).map_or(0, |entry| u64::from(entry.packed_len))
                };
                let moved = |step: &Step| match step.how {
                    How::Regenerate { .. } => len(step.fragment),
                    How::Copy { from, .. } => len(from).saturating_mul(2),
                    How::Drop => 0,
                };
                let computes = work.steps.iter().find(|step| matches!(step.how, How::Regenerate { .. }));
                let read = computes.map_or(0, |step| len(step.fragment).saturating_mul(k));
                work.steps.iter().map(moved).fold(read, u64::saturating_add)
            })
            .fold(0, u64::saturating_add),
    }
}

/// Can objects of this bucket be improved, although all their OSDs are well?
pub fn in_want(bucket: &Bucket, policies: &[Policy], osds: &Osds) -> bool {
    let live = osds.keeping();
    match goal(bucket.shape, policies, &live, &osds.taking()) {
        Goal::Rewrite => true,
        Goal::None(_) => false,
        Goal::Keep { max_per_node, spread } => {
            let most =
                placeable(live.iter().map(|c| (c.osd, &c.node)), max_per_node).min(bucket.shape.total());
            usize::try_from(bucket.fragments).is_ok_and(|fragments| fragments < most)
                || bucket.max_per_node > spread
        }
    }
}

/// How many more of an object's fragments can be lost, for its weakest chunk: below 0 it cannot be read. An object that
/// lives in the metadata has none to lose: none.
pub fn remaining(manifest: &Manifest, osds: &Osds, bad: &BTreeSet<Bad>) -> Option<i64> {
    let situation = Situation { osds, policies: &[], bad };
    let k = i64::try_from(manifest.scheme.shape.k()).unwrap_or(i64::MAX);
    let counted = |(index, chunk)| Ward::new(index, chunk, &situation).counted();
    let least = (0..).map(ChunkIndex).zip(&manifest.chunks).map(counted).min()?;
    Some(i64::try_from(least).unwrap_or(i64::MAX) - k)
}

#[cfg(test)]
mod tests;
