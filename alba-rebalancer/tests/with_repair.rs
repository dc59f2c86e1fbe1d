//! Rebalancing and repair of the spread, side by side for many rounds: neither undoes what the other did.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};

use alba_client::repair::plan::{How, Plan, Situation, plan as repair};
use alba_client::repair::{OsdView, Osds, Standing};
use alba_core::checksum::Checksum;
use alba_core::ids::{NamespaceId, NodeId, ObjectId, ObjectName, ObjectVersion, OsdId};
use alba_core::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Manifest, Scheme, Timestamp};
use alba_core::policy::Policy;
use alba_core::preset::Compression;
use alba_core::units::ByteCount;
use alba_rebalancer::layout::Layout;
use alba_rebalancer::objective::Objective;
use alba_rebalancer::observe::{Observation, OsdFill, Role, observe};
use alba_rebalancer::plan::plan as rebalance;
use alba_rebalancer::sight::{for_namespace, limits};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const TOTAL: u64 = 1_000_000;
const BYTES: u32 = 1000;

struct World {
    nodes: BTreeMap<OsdId, NodeId>,
    /// Of those that do not simply take what they get.
    standings: BTreeMap<OsdId, Standing>,
    objects: Vec<Manifest>,
    policies: Vec<Policy>,
}

impl World {
    fn add(&mut self, osds: u32, node: u32) {
        for _ in 0..osds {
            let id = OsdId::from_u32(u32::try_from(self.nodes.len()).unwrap());
            self.nodes.insert(id, NodeId::new(format!("node-{node}")).unwrap());
        }
    }

    fn store(&mut self, number: u32, places: &[u32]) {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        let fragment = |at: &u32| Fragment {
            location: Some(OsdId::from_u32(*at)),
            version: ObjectVersion(0),
            checksum: Checksum::None,
            packed_len: BYTES,
            ctr: None,
        };
        self.objects.push(Manifest {
            name: ObjectName::new(format!("o{number}")).unwrap(),
            object_id: ObjectId::new(id),
            size: 5,
            checksum: Checksum::None,
            scheme: Scheme {
                shape: self.policies[0].shape(),
                matrix: CodingMatrix::VandermondeSystematic,
                compression: Compression::None,
            },
            encryption: EncryptInfo::None,
            chunks: vec![Chunk { size: 5, fragments: places.iter().map(fragment).collect() }],
            version: ObjectVersion(0),
            max_disks_per_node: 3,
            timestamp: Timestamp(0),
        });
    }

    fn used(&self) -> BTreeMap<OsdId, u64> {
        let mut used: BTreeMap<OsdId, u64> = self.nodes.keys().map(|id| (*id, 0)).collect();
        for entry in self.objects.iter().flat_map(|object| object.fragments().map(|(_, _, entry)| entry)) {
            *used.get_mut(&entry.location.unwrap()).unwrap() += u64::from(entry.packed_len);
        }
        used
    }

    fn standing(&self, id: OsdId) -> Standing {
        self.standings.get(&id).copied().unwrap_or(Standing::Takes)
    }

    /// As the rebalancer sees it: OSDs that drain or do not answer are none of its.
    fn observation(&self) -> Observation {
        let used = self.used();
        let fill = |(id, node): (&OsdId, &NodeId)| {
            let used = ByteCount(used[id]);
            (*id, OsdFill { node: node.clone(), used, total: ByteCount(TOTAL), role: Role::Member })
        };
        let mine = self.nodes.iter().filter(|(id, _)| self.standing(**id) == Standing::Takes);
        observe(mine.map(fill).collect())
    }

    fn osds(&self) -> Osds {
        let used = self.used();
        let view = |(id, node): (&OsdId, &NodeId)| {
            let (total, used) = (ByteCount(TOTAL), ByteCount(used[id]));
            (*id, OsdView { node: node.clone(), standing: self.standing(*id), total, used })
        };
        self.nodes.iter().map(view).collect()
    }

    fn layouts(&self, numbers: &[usize]) -> Vec<Layout> {
        numbers.iter().map(|number| Layout::of(NamespaceId::from_u32(1), &self.objects[*number])).collect()
    }

    fn spread(&self) -> u32 {
        limits(self.policies[0].shape(), 3, &self.policies, &self.osds(), 100).1.spread
    }

    fn objective(&self) -> Objective {
        let all: Vec<usize> = (0..self.objects.len()).collect();
        Objective::of(&self.observation(), &self.layouts(&all), self.spread())
    }

    /// Fragments on OSDs that are dead or drain.
    fn astray(&self) -> usize {
        let places =
            self.objects.iter().flat_map(|object| object.fragments().map(|(_, _, entry)| entry.location));
        places.flatten().filter(|id| self.standing(*id) != Standing::Takes).count()
    }

    /// How good it is, by what counts first; less is better.
    fn measure(&self) -> (usize, Objective) {
        (self.astray(), self.objective())
    }

    /// Where every fragment is.
    fn places(&self) -> Vec<OsdId> {
        self.objects.iter().flat_map(|o| o.fragments().map(|(_, _, entry)| entry.location.unwrap())).collect()
    }

    /// How many moves it made.
    fn rebalance(&mut self, numbers: &[usize]) -> usize {
        let osds = self.osds();
        let (_, limits) = limits(self.policies[0].shape(), 3, &self.policies, &osds, 100);
        let moves = rebalance(&for_namespace(&self.observation(), &osds), &self.layouts(numbers), limits);
        for chosen in &moves {
            let object = self.objects.iter_mut().find(|object| object.object_id == chosen.object).unwrap();
            assert_eq!(object.version, chosen.version);
            object.version.0 += 1;
            for entry in object.chunks.iter_mut().flat_map(|chunk| &mut chunk.fragments) {
                if entry.location == Some(chosen.source) {
                    entry.location = Some(chosen.target);
                }
            }
        }
        moves.len()
    }

    /// How many fragments it placed elsewhere.
    fn repair(&mut self, numbers: &[usize], rng: &mut StdRng) -> usize {
        let mut placed = 0;
        for number in numbers {
            let osds = self.osds();
            let situation = Situation { osds: &osds, policies: &self.policies, bad: &BTreeSet::new() };
            let work = match repair(&self.objects[*number], &situation, rng) {
                Plan::Nothing => continue,
                Plan::Update(work) => work,
                other => panic!("{other:?}"),
            };
            let object = &mut self.objects[*number];
            object.version.0 += 1;
            for work in work {
                for step in work.steps {
                    assert_ne!(step.how, How::Drop, "there is room for all");
                    let fragments = &mut object.chunks[work.chunk.index()].fragments;
                    fragments[step.fragment.index()].location = step.how.onto();
                    placed += 1;
                }
            }
        }
        placed
    }
}

#[test]
fn rebalancing_and_repair_of_the_spread_never_undo_each_other() {
    let mut rng = StdRng::seed_from_u64(8);
    let policies = vec![Policy::new(5, 4, 8, 3).unwrap()];
    let mut world =
        World { nodes: BTreeMap::new(), standings: BTreeMap::new(), objects: Vec::new(), policies };
    (0..4).for_each(|node| world.add(3, node));
    for number in 0..600 {
        // Nine of twelve in turn: three nodes hold three each at most.
        let places: Vec<u32> = (0..9).map(|i| (number * 5 + i * 7) % 12).collect();
        world.store(number, &places);
    }
    assert_eq!(world.spread(), 3);
    // A node comes: two on each are enough now, and it is empty.
    world.add(3, 4);
    assert_eq!(world.spread(), 2);
    let mut before = world.objective();
    assert!(before.excess > 0);
    let mut series = vec![before];
    let (mut by_rebalancing, mut by_repair, mut still) = (0, 0, 0);
    for round in 0..400 {
        let sample: Vec<usize> = (0..60).map(|_| rng.random_range(0..world.objects.len())).collect();
        let sample: Vec<usize> = sample.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let moved = if round % 2 == 0 {
            let moved = world.rebalance(&sample);
            by_rebalancing += moved;
            moved
        } else {
            let moved = world.repair(&sample, &mut rng);
            by_repair += moved;
            moved
        };
        let after = world.objective();
        series.push(after);
        // Each term of Σ u²/T is rounded down.
        let rounding = u128::try_from(world.nodes.len()).unwrap();
        assert!(
            after.excess < before.excess
                || after.excess == before.excess && after.unevenness <= before.unevenness + rounding,
            "round {round}: {before:?} → {after:?} of {series:?}"
        );
        still = if moved == 0 { still + 1 } else { 0 };
        before = after;
    }
    assert!(by_rebalancing > 0 && by_repair > 0, "{by_rebalancing} and {by_repair}: both were at work");
    assert!(still > 40, "still moving after so many rounds: {series:?}");
    assert_eq!(before.excess, 0);
    assert!(world.observation().is_even());
}

/// What happens to the OSDs, and in which round.
const EVENTS: [(usize, &str); 4] =
    [(0, "a node comes"), (300, "an OSD is lost"), (600, "one drains"), (900, "one comes back empty")];

#[test]
fn losses_drains_and_new_osds_in_the_middle_of_it_and_nothing_goes_to_and_fro() {
    let mut rng = StdRng::seed_from_u64(28);
    let policies = vec![Policy::new(5, 4, 8, 3).unwrap()];
    let mut world =
        World { nodes: BTreeMap::new(), standings: BTreeMap::new(), objects: Vec::new(), policies };
    (0..4).for_each(|node| world.add(3, node));
    for number in 0..500 {
        let places: Vec<u32> = (0..9).map(|i| (number * 5 + i * 7) % 12).collect();
        world.store(number, &places);
    }
    // Round, who, how many fragments it placed elsewhere, and what came of it.
    let mut series = Vec::new();
    let mut moves = BTreeMap::from([("rebalancing", 0), ("repair", 0)]);
    let (mut still, mut returned) = (0, 0);
    let mut before = world.measure();
    // By fragment: where it was since the last event.
    let mut been: Vec<BTreeSet<OsdId>> = Vec::new();
    for round in 0..1200 {
        if let Some((_, event)) = EVENTS.iter().find(|(at, _)| *at == round) {
            assert!(round == 0 || still > 40, "before {event}: still moving: {series:?}");
            match *event {
                "a node comes" => world.add(3, 4),
                "an OSD is lost" => drop(world.standings.insert(OsdId::from_u32(2), Standing::Dead)),
                "one drains" => drop(world.standings.insert(OsdId::from_u32(7), Standing::Draining)),
                _ => drop(world.standings.remove(&OsdId::from_u32(2))),
            }
            been = world.places().into_iter().map(|osd| BTreeSet::from([osd])).collect();
            before = world.measure();
            series.push((round, *event, 0, before));
        }
        let sample: BTreeSet<usize> = (0..60).map(|_| rng.random_range(0..world.objects.len())).collect();
        let sample: Vec<usize> = sample.into_iter().collect();
        let who = if round % 2 == 0 { "rebalancing" } else { "repair" };
        let places = world.places();
        let moved = match who {
            "rebalancing" => world.rebalance(&sample),
            _ => world.repair(&sample, &mut rng),
        };
        for ((now, then), been) in world.places().into_iter().zip(places).zip(&mut been) {
            returned += usize::from(now != then && !been.insert(now));
        }
        let after = world.measure();
        series.push((round, who, moved, after));
        let rounding = u128::try_from(world.nodes.len()).unwrap();
        let slack = Objective { unevenness: before.1.unevenness + rounding, ..before.1 };
        assert!(after <= (before.0, slack), "round {round}: {before:?} → {after:?} of {series:?}");
        *moves.get_mut(who).unwrap() += moved;
        still = if moved == 0 { still + 1 } else { 0 };
        before = after;
    }
    assert!(still > 40, "still moving after so many rounds: {series:?}");
    assert_eq!((before.0, before.1.excess), (0, 0));
    assert!(world.observation().is_even());
    // Each had its part in every stretch, and no fragment came back to where it was.
    for (from, event) in EVENTS {
        let stretch = series.iter().filter(|(round, ..)| (from..from + 300).contains(round));
        let by: BTreeMap<&str, usize> = stretch.fold(BTreeMap::new(), |mut by, (_, who, moved, _)| {
            *by.entry(*who).or_default() += moved;
            by
        });
        assert!(by["rebalancing"] + by["repair"] > 0, "{event}: {by:?}");
    }
    assert!(moves.values().all(|moved| *moved > 100), "{moves:?}");
    assert_eq!(returned, 0, "fragments that came back, of {moves:?}");
}
