use std::collections::{BTreeMap, BTreeSet};

use alba_core::checksum::Checksum;
use alba_core::ids::{NodeId, ObjectId, ObjectName};
use alba_core::manifest::{CodingMatrix, EncryptInfo, Fragment, Scheme, Timestamp};
use alba_core::preset::Compression;
use alba_core::units::ByteCount;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::super::standing::OsdView;
use super::*;

fn osd(id: u32) -> OsdId {
    OsdId::from_u32(id)
}

/// `standings[i]` is that of OSD i, on node i % `nodes`.
fn osds(nodes: u32, standings: &[Standing]) -> Osds {
    (0..)
        .zip(standings)
        .map(|(id, standing)| {
            let node = NodeId::new(format!("node-{}", id % nodes)).unwrap();
            let view = OsdView { node, standing: *standing, total: ByteCount::mib(1), used: ByteCount(0) };
            (osd(id), view)
        })
        .collect()
}

fn policies(of: &[[u32; 4]]) -> Vec<Policy> {
    of.iter().map(|policy| Policy::try_from(*policy).unwrap()).collect()
}

fn manifest(k: u8, m: u8, chunks: &[&[Option<u32>]]) -> Manifest {
    let fragment = |at: &Option<u32>| Fragment {
        location: at.map(osd),
        version: ObjectVersion(0),
        checksum: Checksum::None,
        packed_len: 1,
        ctr: None,
    };
    Manifest {
        name: ObjectName::new("o").unwrap(),
        object_id: ObjectId::new([1; 32]),
        size: u64::from(k) * chunks.len() as u64,
        checksum: Checksum::None,
        scheme: Scheme {
            shape: CodeShape::new(k, m).unwrap(),
            matrix: CodingMatrix::VandermondeSystematic,
            compression: Compression::None,
        },
        encryption: EncryptInfo::None,
        chunks: chunks
            .iter()
            .map(|places| Chunk { size: k.into(), fragments: places.iter().map(fragment).collect() })
            .collect(),
        version: ObjectVersion(0),
        max_disks_per_node: 1,
        timestamp: Timestamp(0),
    }
}

fn planned(manifest: &Manifest, osds: &Osds, policies: &[Policy], bad: &BTreeSet<Bad>) -> Plan {
    plan(manifest, &Situation { osds, policies, bad }, &mut StdRng::seed_from_u64(1))
}

/// The manifest as it is after an update.
fn carried_out(manifest: &Manifest, work: &[ChunkWork]) -> Manifest {
    let mut after = manifest.clone();
    after.version = ObjectVersion(manifest.version.0 + 1);
    for work in work {
        for step in &work.steps {
            let entry = &mut after.chunks[work.chunk.index()].fragments[step.fragment.index()];
            entry.location = step.how.onto();
            if entry.location.is_some() {
                entry.version = after.version;
            }
        }
    }
    after
}

fn steps_of(plan: &Plan) -> Vec<(u32, u32, How)> {
    let Plan::Update(work) = plan else { panic!("{plan:?}") };
    let of = |work: &ChunkWork| {
        work.steps.iter().map(|step| (work.chunk.0, step.fragment.0, step.how)).collect::<Vec<_>>()
    };
    work.iter().flat_map(of).collect()
}

const NONE: BTreeSet<Bad> = BTreeSet::new();

#[test]
fn only_what_is_lost_is_computed_and_what_can_be_read_is_copied() {
    use Standing::{Dead, Leaving, Takes};
    let mut standings = [Takes; 8];
    (standings[1], standings[2]) = (Dead, Leaving);
    let osds = osds(8, &standings);
    let chunk: &[Option<u32>] = &[Some(0), Some(1), Some(2), Some(3), Some(4)];
    let manifest = manifest(3, 2, &[chunk, chunk]);
    let plan = planned(&manifest, &osds, &policies(&[[3, 2, 4, 1]]), &NONE);
    let steps = steps_of(&plan);
    assert_eq!(steps.len(), 4, "{steps:?}");
    let (computed, copied) = (steps[0].2, steps[1].2);
    assert!(matches!(computed, How::Regenerate { .. }) && steps[0].1 == 1);
    assert!(matches!(copied, How::Copy { from: FragmentIndex(2), .. }) && steps[1].1 == 2);
    // Both chunks get the same places.
    assert_eq!((steps[2], steps[3]), ((1, 1, computed), (1, 2, copied)));
    let Plan::Update(work) = plan else { panic!() };
    let sources: Vec<u32> = work[0].sources.iter().map(|f| f.0).collect();
    assert_eq!(sources, [0, 3, 4, 2, 1], "kept ones first, the silent OSD's last");
}

#[test]
fn replicas_are_copied_from_each_other() {
    use Standing::{Dead, Takes};
    let osds = osds(4, &[Takes, Dead, Takes, Takes]);
    let manifest = manifest(1, 2, &[&[Some(0), Some(1), None]]);
    let plan = planned(&manifest, &osds, &policies(&[[1, 2, 1, 1]]), &NONE);
    let steps = steps_of(&plan);
    assert_eq!(steps.len(), 2);
    assert!(steps.iter().all(|(_, _, how)| matches!(how, How::Copy { from: FragmentIndex(0), .. })));
}

#[test]
fn a_damaged_fragment_may_be_written_again_where_it_was() {
    let osds = osds(5, &[Standing::Takes; 5]);
    let manifest = manifest(3, 2, &[&[Some(0), Some(1), Some(2), Some(3), Some(4)]]);
    let bad = |version| BTreeSet::from([(ChunkIndex(0), FragmentIndex(3), ObjectVersion(version))]);
    let policies = policies(&[[3, 2, 5, 1]]);
    let plan = planned(&manifest, &osds, &policies, &bad(0));
    assert_eq!(steps_of(&plan), [(0, 3, How::Regenerate { onto: osd(3) })]);
    assert_eq!(planned(&manifest, &osds, &policies, &bad(7)), Plan::Nothing, "of another version");
}

#[test]
fn every_chunk_is_spread_over_the_nodes() {
    // 3 nodes of 3. The first chunk is even, the second has all on one node and two others.
    let osds = osds(3, &[Standing::Takes; 9]);
    let even: &[Option<u32>] = &[Some(0), Some(1), Some(2), Some(3), Some(4)];
    let uneven: &[Option<u32>] = &[Some(0), Some(3), Some(6), Some(1), Some(4)];
    let manifest = manifest(3, 2, &[even, uneven]);
    let policies = policies(&[[3, 2, 4, 3]]);
    let plan = planned(&manifest, &osds, &policies, &NONE);
    let steps = steps_of(&plan);
    let [(1, 2, How::Copy { from: FragmentIndex(2), onto })] = steps[..] else { panic!("{steps:?}") };
    assert_eq!(osds.node(onto), osds.node(osd(2)), "the only node with room below the limit");
}

#[test]
fn a_worse_code_is_given_up_and_a_better_one_waits() {
    use Standing::{Dead, Takes};
    let policies = policies(&[[3, 2, 4, 1], [1, 2, 2, 1]]);
    let small = manifest(1, 2, &[&[Some(0), Some(1), Some(2)]]);
    assert_eq!(planned(&small, &osds(5, &[Takes; 5]), &policies, &NONE), Plan::Rewrite(WhyRewrite::Policy));
    // Two OSDs are silent: the first policy cannot be had, and nothing of it can be improved.
    let large = manifest(3, 2, &[&[Some(0), Some(1), Some(2), Some(3), Some(4)]]);
    let short = osds(5, &[Takes, Takes, Takes, Dead, Dead]);
    assert_eq!(planned(&large, &short, &policies, &NONE), Plan::Nothing);
    assert_eq!(planned(&small, &short, &policies, &NONE), Plan::Nothing);
    let foreign = manifest(2, 1, &[&[Some(0), Some(1), Some(2)]]);
    assert_eq!(planned(&foreign, &short, &policies, &NONE), Plan::Rewrite(WhyRewrite::Policy));
}

#[test]
fn an_osd_that_leaves_is_left_even_when_there_is_no_place() {
    use Standing::{Draining, Leaving, Takes};
    let full = manifest(3, 2, &[&[Some(0), Some(1), Some(2), Some(3), Some(4)]]);
    // Four places are within the policy: the fifth is given up; for one that only drains nothing is.
    let enough = policies(&[[3, 2, 4, 1]]);
    let plan = planned(&full, &osds(5, &[Takes, Takes, Leaving, Takes, Takes]), &enough, &NONE);
    assert_eq!(steps_of(&plan), [(0, 2, How::Drop)]);
    let draining = osds(5, &[Takes, Takes, Draining, Takes, Takes]);
    assert_eq!(planned(&full, &draining, &enough, &NONE), Plan::Nothing);
    // Else it takes another policy, if there is one.
    let strict = policies(&[[3, 2, 5, 1], [1, 1, 2, 1]]);
    let leaving = osds(5, &[Takes, Takes, Leaving, Takes, Takes]);
    assert_eq!(planned(&full, &leaving, &strict, &NONE), Plan::Rewrite(WhyRewrite::NoRoom));
}

#[test]
fn what_a_purged_osd_had_is_a_hole_whatever_is_left() {
    use Standing::{Gone, Takes};
    let object = manifest(3, 1, &[&[Some(0), Some(1), Some(2), Some(3)]]);
    let one = osds(4, &[Takes, Takes, Takes, Gone]);
    // Only removals: a group takes them although no policy is satisfied.
    let plan = planned(&object, &one, &policies(&[[3, 1, 3, 1]]), &NONE);
    assert_eq!(steps_of(&plan), [(0, 3, How::Drop)]);
    let two = osds(5, &[Takes, Takes, Gone, Gone, Takes]);
    let strict = policies(&[[3, 1, 3, 1]]);
    let plan = planned(&object, &two, &strict, &NONE);
    assert_eq!(steps_of(&plan), [(0, 2, How::Drop), (0, 3, How::Drop)], "nothing can be read");
    let Plan::Update(work) = plan else { panic!() };
    let lost = Unrepairable::TooFewFragments { chunk: ChunkIndex(0), readable: 2, needed: 3 };
    assert_eq!(planned(&carried_out(&object, &work), &two, &strict, &NONE), Plan::Unrepairable(lost));
}

#[test]
fn what_is_left_to_lose_is_that_of_the_weakest_chunk() {
    use Standing::{Dead, Draining, Holds, Takes};
    let osds = osds(9, &[Takes, Holds, Draining, Dead, Takes]);
    let object = manifest(2, 3, &[&[Some(0), Some(1), Some(2), Some(3), Some(4)]]);
    assert_eq!(remaining(&object, &osds, &NONE), Some(2));
    let bad = BTreeSet::from([(ChunkIndex(0), FragmentIndex(0), ObjectVersion(0))]);
    assert_eq!(remaining(&object, &osds, &bad), Some(1));
    let weak: &[Option<u32>] = &[Some(0), None, None, Some(3), Some(77)];
    let object = manifest(2, 3, &[&[Some(0), Some(1), Some(2), Some(3), Some(4)], weak]);
    assert_eq!(remaining(&object, &osds, &NONE), Some(-1));
    let inline = Manifest { chunks: vec![], ..object };
    assert_eq!(remaining(&inline, &osds, &NONE), None);
}

#[derive(Debug, Clone)]
struct Case {
    nodes: u32,
    standings: Vec<Standing>,
    policies: Vec<Policy>,
    manifest: Manifest,
    bad: BTreeSet<Bad>,
    seed: u64,
}

fn any_standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        6 => Just(Standing::Takes),
        1 => Just(Standing::Holds),
        1 => Just(Standing::Draining),
        1 => Just(Standing::Leaving),
        1 => Just(Standing::Dead),
        1 => Just(Standing::Away),
        1 => Just(Standing::Gone),
    ]
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (1_u32..4, 0_u32..4, 1_u32..4)
        .prop_flat_map(|(k, m, x)| (k..=k + m).prop_map(move |c| Policy::try_from([k, m, c, x]).unwrap()))
}

fn case() -> impl Strategy<Value = Case> {
    let parts =
        (1_u32..6, prop::collection::vec(any_standing(), 3..13), prop::collection::vec(any_policy(), 1..4));
    parts.prop_flat_map(|(nodes, standings, policies)| {
        let shapes: Vec<(u8, u8)> =
            policies.iter().map(|policy| policy.shape().as_u8()).chain([(2, 1)]).collect();
        let count = u32::try_from(standings.len()).unwrap();
        let shape = prop::sample::select(shapes);
        (shape, 1_usize..4, any::<u64>()).prop_flat_map(move |((k, m), chunks, seed)| {
            let total = usize::from(k + m);
            let ids: Vec<u32> = (0..count).collect();
            let places = prop::collection::vec(
                (Just(ids).prop_shuffle(), prop::collection::vec(prop::bool::weighted(0.9), total)),
                chunks,
            );
            let bad = prop::collection::btree_set((0..chunks, 0..total), 0..2);
            let (standings, policies) = (standings.clone(), policies.clone());
            (places, bad).prop_map(move |(places, bad)| {
                let places: Vec<Vec<Option<u32>>> = places
                    .into_iter()
                    .map(|(ids, there)| {
                        let mut ids = ids.into_iter();
                        there.into_iter().map(|there| ids.next().filter(|_| there)).collect()
                    })
                    .collect();
                let places: Vec<&[Option<u32>]> = places.iter().map(Vec::as_slice).collect();
                let index = |i: usize| u32::try_from(i).unwrap();
                Case {
                    nodes,
                    standings: standings.clone(),
                    policies: policies.clone(),
                    manifest: manifest(k, m, &places),
                    bad: bad
                        .into_iter()
                        .map(|(c, f)| (ChunkIndex(index(c)), FragmentIndex(index(f)), ObjectVersion(0)))
                        .collect(),
                    seed,
                }
            })
        })
    })
}

/// An OSD is emptied while another one does not answer, and there is no place for what it has: it stays.
#[test]
fn good_copies_are_not_given_up_for_copies_that_cannot_be_read() {
    use Standing::{Dead, Leaving, Takes};
    let erasure = manifest(2, 1, &[&[Some(0), Some(1), Some(2)]]);
    let policies = [Policy::try_from([2, 1, 2, 1]).unwrap()];
    let found = planned(&erasure, &osds(3, &[Dead, Leaving, Takes]), &policies, &BTreeSet::new());
    assert!(!matches!(found, Plan::Update(_)), "{found:?}");
    let copies = manifest(1, 1, &[&[Some(0), Some(1)]]);
    let policies = [Policy::try_from([1, 1, 1, 1]).unwrap()];
    let found = planned(&copies, &osds(2, &[Dead, Leaving]), &policies, &BTreeSet::new());
    assert!(!matches!(found, Plan::Update(_)), "{found:?}");
    let bad = BTreeSet::from([(ChunkIndex(0), FragmentIndex(0), ObjectVersion(0))]);
    let osds = osds(2, &[Takes, Leaving]);
    let Plan::Update(mut work) = planned(&copies, &osds, &policies, &bad) else { panic!() };
    let situation = Situation { osds: &osds, policies: &policies, bad: &bad };
    assert!(accepted(&copies, &work, &situation), "the damaged copy is written again: {work:?}");
    // When that does not succeed, what depends on it is not done either.
    work[0].steps.retain(|step| step.how == How::Drop);
    assert_eq!(work[0].steps.len(), 1);
    assert!(!accepted(&copies, &work, &situation));
}

/// What is written again where it was damaged can be read: with it the object is whole without the OSD that leaves.
#[test]
fn what_is_written_again_in_its_place_counts_for_what_is_given_up() {
    use Standing::{Draining, Leaving, Takes};
    let object = manifest(2, 2, &[&[Some(1), Some(0), Some(2), None]]);
    let policies = policies(&[[2, 2, 2, 2]]);
    let bad = BTreeSet::from([(ChunkIndex(0), FragmentIndex(0), ObjectVersion(0))]);
    let found = planned(&object, &osds(1, &[Leaving, Takes, Draining]), &policies, &bad);
    assert_eq!(steps_of(&found), [(0, 0, How::Regenerate { onto: osd(1) }), (0, 1, How::Drop)]);
}

/// A node is away on purpose: nothing is done for its sake, what else is wrong is repaired, and it does not count.
#[test]
fn what_is_away_on_purpose_is_left_alone_and_does_not_count() {
    use Standing::{Away, Dead, Takes};
    let object = manifest(2, 2, &[&[Some(0), Some(1), Some(2), Some(3)]]);
    let policies = policies(&[[2, 2, 3, 1]]);
    let none = BTreeSet::new();
    let away = osds(6, &[Away, Takes, Takes, Takes, Takes, Takes]);
    assert_eq!(planned(&object, &away, &policies, &none), Plan::Nothing);
    assert_eq!(remaining(&object, &away, &none), Some(1));
    let both = osds(6, &[Away, Dead, Takes, Takes, Takes, Takes]);
    let steps = steps_of(&planned(&object, &both, &policies, &none));
    assert!(matches!(steps.as_slice(), [(0, 1, How::Regenerate { .. })]), "{steps:?}");
    assert_eq!(remaining(&object, &both, &none), Some(0));
    // When it comes back, or the time is over, all is as before.
    let over = osds(6, &[Dead, Takes, Takes, Takes, Takes, Takes]);
    let steps = steps_of(&planned(&object, &over, &policies, &none));
    assert!(matches!(steps.as_slice(), [(0, 0, How::Regenerate { .. })]), "{steps:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10000))]

    #[test]
    fn plans_keep_the_rules_touch_no_more_than_needed_and_converge(case in case()) {
        let Case { nodes, standings, policies, manifest, bad, seed } = case;
        let osds = osds(nodes, &standings);
        let situation = Situation { osds: &osds, policies: &policies, bad: &bad };
        let mut rng = StdRng::seed_from_u64(seed);
        let Plan::Update(work) = plan(&manifest, &situation, &mut rng) else { return Ok(()) };
        let after = carried_out(&manifest, &work);
        let places = applied(&manifest, &work);
        let mut new = false;
        let mut given_up = false;
        for (index, chunk) in places.iter().enumerate() {
            let chunk_index = ChunkIndex(u32::try_from(index).unwrap());
            let there: Vec<OsdId> = chunk.iter().flatten().copied().collect();
            let distinct: BTreeSet<OsdId> = there.iter().copied().collect();
            prop_assert_eq!(there.len(), distinct.len(), "an OSD twice");
            let mut before: BTreeMap<&NodeId, u32> = BTreeMap::new();
            for entry in &manifest.chunks[index].fragments {
                let well = entry.location.filter(|osd| osds.standing(*osd).keeps());
                if let Some(node) = well.and_then(|osd| osds.node(osd)) {
                    *before.entry(node).or_default() += 1;
                }
            }
            let steps = work.iter().find(|work| work.chunk == chunk_index);
            for step in steps.map(|work| work.steps.clone()).unwrap_or_default() {
                let entry = &manifest.chunks[index].fragments[step.fragment.index()];
                let is_bad = bad.contains(&(chunk_index, step.fragment, ObjectVersion(0)));
                let at = entry.location.map(|osd| osds.standing(osd));
                prop_assert!(is_bad || at != Some(Standing::Away), "it is left alone");
                if let Some(onto) = step.how.onto() {
                    new = true;
                    prop_assert_eq!(osds.standing(onto), Standing::Takes);
                }
                match step.how {
                    How::Drop => {
                        given_up |= at == Some(Standing::Leaving) && !is_bad;
                        prop_assert!(is_bad || matches!(at, Some(Standing::Leaving | Standing::Gone)));
                    }
                    // What is well moves only from a node that has more than one.
                    How::Copy { from, .. } if from == step.fragment && at.is_some_and(Standing::keeps) => {
                        let node = osds.node(entry.location.unwrap()).unwrap();
                        prop_assert!(before[node] > 1 && !is_bad);
                    }
                    How::Copy { from, .. } => {
                        let source = &manifest.chunks[index].fragments[from.index()];
                        let standing = osds.standing(source.location.unwrap());
                        prop_assert!(!bad.contains(&(chunk_index, from, ObjectVersion(0))));
                        prop_assert!(standing.counts() || matches!(standing, Standing::Dead | Standing::Away));
                    }
                    How::Regenerate { .. } => {
                        prop_assert!(is_bad || !at.is_some_and(Standing::counts), "it could be read");
                    }
                }
            }
        }
        if new || given_up {
            let bucket = bucket_of(manifest.scheme.shape, places, |osd| osds.node(osd));
            prop_assert!(policies.iter().any(|policy| bucket.satisfies(policy)), "{:?}", bucket);
        }
        let left = |manifest| remaining(manifest, &osds, &bad).unwrap();
        if !given_up {
            prop_assert!(left(&after) >= left(&manifest));
        }
        // What can be read can be read afterwards, whatever is given up.
        prop_assert!(left(&manifest) < 0 || left(&after) >= 0, "{} → {}", left(&manifest), left(&after));
        let next = plan(&after, &situation, &mut rng);
        let hopeless = matches!(next, Plan::Unrepairable(_));
        prop_assert!(next == Plan::Nothing || hopeless && !new, "{:?}", next);
    }
}

/// Without this the property could hold because nothing ever happens.
#[test]
fn the_cases_are_of_all_kinds() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for _ in 0..2000 {
        let Case { nodes, standings, policies, manifest, bad, .. } =
            case().new_tree(&mut runner).unwrap().current();
        let osds = osds(nodes, &standings);
        let mut count = |kind| *seen.entry(kind).or_default() += 1;
        match planned(&manifest, &osds, &policies, &bad) {
            Plan::Nothing => count("nothing"),
            Plan::Rewrite(WhyRewrite::Policy) => count("rewrite"),
            Plan::Rewrite(WhyRewrite::NoRoom) => count("no room"),
            Plan::Unrepairable(_) => count("unrepairable"),
            Plan::Update(work) => {
                for (chunk, step) in
                    work.iter().flat_map(|work| work.steps.iter().map(|step| (work.chunk, *step)))
                {
                    let at = manifest.fragment(chunk, step.fragment).and_then(|entry| entry.location);
                    match step.how {
                        How::Regenerate { .. } => count("regenerate"),
                        How::Copy { from, .. } if from != step.fragment => count("replica"),
                        How::Copy { .. } if at.is_some_and(|osd| osds.standing(osd).keeps()) => {
                            count("spread")
                        }
                        How::Copy { .. } => count("move"),
                        How::Drop => count("drop"),
                    }
                }
            }
        }
    }
    for kind in
        ["nothing", "rewrite", "no room", "unrepairable", "regenerate", "replica", "spread", "move", "drop"]
    {
        assert!(seen.get(kind).is_some_and(|count| *count >= 20), "too few of {kind}: {seen:?}");
    }
}
