use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

fn osd(id: usize) -> OsdId {
    OsdId::from_u32(u32::try_from(id).unwrap())
}

fn node(id: usize) -> NodeId {
    NodeId::new(format!("node-{id}")).unwrap()
}

fn candidate(id: usize, on: usize, used: u64) -> Candidate {
    Candidate { osd: osd(id), node: node(on), total: ByteCount(1 << 40), used: ByteCount(used) }
}

/// Nodes with that many equal OSDs each, numbered through.
fn cluster(per_node: &[usize]) -> Vec<Candidate> {
    let nodes = per_node.iter().enumerate().flat_map(|(on, count)| std::iter::repeat_n(on, *count));
    nodes.enumerate().map(|(id, on)| candidate(id, on, 0)).collect()
}

fn policy(k: u32, m: u32, c: u32, x: u32) -> Policy {
    Policy::new(k, m, c, x).unwrap()
}

fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// Fragments per node of those chosen.
fn spread(chosen: &[OsdId], candidates: &[Candidate]) -> BTreeMap<NodeId, u32> {
    let mut counts = BTreeMap::new();
    for osd in chosen {
        let candidate = candidates.iter().find(|c| c.osd == *osd).unwrap();
        *counts.entry(candidate.node.clone()).or_default() += 1;
    }
    counts
}

#[test]
fn the_first_satisfiable_policy_is_chosen() {
    let policies = [policy(5, 4, 8, 3), policy(2, 2, 3, 4)];
    let choose = |per_node: &[usize]| choose_policy(&policies, &cluster(per_node));
    let choice =
        |rank: usize, fragments, spread| Ok(PolicyChoice { policy: policies[rank], rank, fragments, spread });
    assert_eq!(choose(&[3, 3, 3, 3]), choice(0, 9, 3));
    // Two disks gone: 8 of 9 are enough.
    assert_eq!(choose(&[3, 3, 1, 1]), choice(0, 8, 3));
    assert_eq!(choose(&[3, 3, 1]), choice(1, 4, 2));
    // More disks on the node don't help above x.
    assert_eq!(choose(&[9, 9]), choice(1, 4, 2));
    assert_eq!(choose(&[3]), choice(1, 3, 3));
    assert_eq!(choose(&[1; 20]), choice(0, 9, 1));
}

#[test]
fn an_unsatisfiable_preset_says_what_is_missing() {
    let error = choose_policy(&[policy(5, 4, 8, 3), policy(2, 2, 3, 1)], &cluster(&[4, 2])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no policy can be satisfied with 6 usable OSDs on 2 nodes: \
         (5, 4, 8, 3) needs 8 fragments with at most 3 per node, 5 can be placed; \
         (2, 2, 3, 1) needs 3 fragments with at most 1 per node, 2 can be placed"
    );
    assert!(choose_policy(&[], &cluster(&[4])).is_err());
    assert!(choose_policy(&[policy(1, 0, 1, 1)], &[]).is_err());
}

#[test]
fn a_seed_gives_the_same_choice_whatever_the_order() {
    let candidates: Vec<_> =
        (0..12).map(|id| candidate(id, id % 4, u64::try_from(id).unwrap() << 20)).collect();
    let mut turned = candidates.clone();
    turned.rotate_left(5);
    for seed in 0..50 {
        let first = place(9, &candidates, &[], 3, &mut rng(seed)).unwrap();
        assert_eq!(place(9, &turned, &[], 3, &mut rng(seed)).unwrap(), first);
    }
    let choices: BTreeSet<Vec<OsdId>> =
        (0..50).map(|seed| place(9, &candidates, &[], 3, &mut rng(seed)).unwrap()).collect();
    assert!(choices.len() > 40, "seeds make a difference");
}

#[test]
fn what_is_held_counts_on_its_node_and_is_not_chosen_again() {
    let candidates = cluster(&[3, 3, 3]);
    let held: Vec<Held> =
        [(0, 0), (1, 0), (3, 1)].map(|(id, on)| Held { osd: osd(id), node: node(on) }).into();
    for seed in 0..50 {
        let chosen = place(3, &candidates, &held, 3, &mut rng(seed)).unwrap();
        // Node 2 has none yet, then one of two with one each, then the other.
        let counts = spread(&chosen, &candidates);
        assert_eq!(counts.get(&node(0)), None);
        assert_eq!(counts[&node(1)] + counts[&node(2)], 3);
        assert!(counts[&node(2)] >= 1);
        assert!(!chosen.contains(&osd(3)));
    }
    // A held OSD need not be a candidate any more.
    let gone = [Held { osd: osd(77), node: node(0) }];
    let chosen = place(2, &cluster(&[3, 1, 1]), &gone, 3, &mut rng(1)).unwrap();
    assert_eq!(chosen.iter().collect::<BTreeSet<_>>(), [&osd(3), &osd(4)].into());
}

#[test]
fn the_limit_per_node_holds_also_with_what_is_held() {
    let candidates = cluster(&[4, 1]);
    let held = [Held { osd: osd(0), node: node(0) }];
    let error = PlacementError::NotEnough { wanted: 3, possible: 2, max_per_node: 2 };
    assert_eq!(place(3, &candidates, &held, 2, &mut rng(0)), Err(error));
    let over: Vec<Held> = (0..3).map(|id| Held { osd: osd(id), node: node(0) }).collect();
    assert_eq!(place(1, &candidates, &over, 2, &mut rng(0)), Ok(vec![osd(4)]));
}

#[test]
fn fuller_osds_are_chosen_less() {
    // One node; capacities alike, one OSD three times as full as the other.
    let candidates = [candidate(0, 0, 1 << 30), candidate(1, 0, 3 << 30)];
    let rounds = 4000;
    let mut rng = rng(42);
    let emptier =
        (0..rounds).filter(|_| place(1, &candidates, &[], 1, &mut rng).unwrap() == [osd(0)]).count();
    // Expected 3/4; six standard deviations either way.
    assert!((2836..=3164).contains(&emptier), "{emptier} of {rounds}");
}

#[test]
fn fuller_nodes_are_chosen_less_but_get_their_turn() {
    let candidates: Vec<_> = (0..6).map(|id| candidate(id, id / 2, [1, 1, 3][id / 2] << 30)).collect();
    let mut rng = rng(7);
    let rounds = 4000;
    let full = (0..rounds)
        .filter(|_| place(1, &candidates, &[], 2, &mut rng).unwrap().iter().any(|o| o.get() >= 4))
        .count();
    // Weights 3 : 3 : 1.
    assert!((439..=704).contains(&full), "{full} of {rounds}");
    for _ in 0..50 {
        let chosen = place(3, &candidates, &[], 2, &mut rng).unwrap();
        assert_eq!(spread(&chosen, &candidates).len(), 3, "even spread before weights");
    }
}

#[test]
fn odd_weights_do_no_harm() {
    // Size unknown: weight 0 everywhere.
    let candidates: Vec<_> =
        (0..4).map(|id| Candidate { total: ByteCount(0), ..candidate(id, id % 2, 5) }).collect();
    assert_eq!(place(4, &candidates, &[], 2, &mut rng(3)).unwrap().len(), 4);
    let huge: Vec<_> =
        (0..4).map(|id| Candidate { total: ByteCount(u64::MAX), ..candidate(id, id % 2, 0) }).collect();
    assert_eq!(place(4, &huge, &[], 2, &mut rng(3)).unwrap().len(), 4);
    // Named twice: counted once.
    let twice = [candidate(0, 0, 0), candidate(0, 0, 0)];
    assert_eq!(
        place(2, &twice, &[], 2, &mut rng(3)),
        Err(PlacementError::NotEnough { wanted: 2, possible: 1, max_per_node: 2 })
    );
    assert_eq!(place(0, &[], &[], 1, &mut rng(3)), Ok(vec![]));
}

#[test]
fn a_bucket_is_that_of_the_weakest_chunk() {
    let shape = CodeShape::new(2, 2).unwrap();
    let nodes = [node(0), node(1)];
    let node_of = |osd: OsdId| match osd.get() {
        0..=2 => Some(&nodes[0]),
        3..=5 => Some(&nodes[1]),
        _ => None,
    };
    let bucket = |chunks: &[&[Option<usize>]]| {
        let chunks = chunks.iter().map(|c| c.iter().map(|o| o.map(osd)));
        let bucket = bucket_of(shape, chunks, node_of);
        assert_eq!(bucket.shape, shape);
        (bucket.fragments, bucket.max_per_node)
    };
    assert_eq!(bucket(&[&[Some(0), Some(1), Some(3), Some(4)]]), (4, 2));
    assert_eq!(bucket(&[&[Some(0), Some(1), Some(2), Some(4)], &[Some(0), None, Some(3), None]]), (2, 3));
    assert_eq!(bucket(&[&[None, None, None, None]]), (0, 0));
    // Where an unknown OSD is nobody knows: they count as together.
    assert_eq!(bucket(&[&[Some(7), Some(8), Some(9), Some(0)]]), (4, 3));
    assert_eq!(bucket(&[]), (0, 0));
}

/// The bags of features §2.4, kept as lists of nodes by how often they were drawn, drawn uniformly: what counts per
/// node can come out.
fn expected_counts(per_node: &[usize], count: usize) -> Vec<u32> {
    let mut taken = vec![0; per_node.len()];
    for _ in 0..count {
        let next =
            (0..per_node.len()).filter(|i| taken[*i] < per_node[*i]).min_by_key(|i| taken[*i]).unwrap();
        taken[next] += 1;
    }
    let mut counts: Vec<u32> = taken.iter().map(|c| u32::try_from(*c).unwrap()).filter(|c| *c > 0).collect();
    counts.sort_unstable();
    counts
}

proptest! {
    #[test]
    fn no_osd_twice_no_node_overfull_and_even(
        per_node in proptest::collection::vec(1_usize..6, 1..8), x in 1_u32..5, want in 0_usize..20,
        fill in proptest::collection::vec(0_u64..1 << 40, 40), seed: u64
    ) {
        let mut candidates = cluster(&per_node);
        for (candidate, used) in candidates.iter_mut().zip(fill) {
            candidate.used = ByteCount(used);
        }
        let possible = placeable(candidates.iter().map(|c| (c.osd, &c.node)), x);
        match place(want, &candidates, &[], x, &mut rng(seed)) {
            Err(error) => {
                prop_assert!(want > possible);
                prop_assert_eq!(error, PlacementError::NotEnough { wanted: want, possible, max_per_node: x });
            }
            Ok(chosen) => {
                prop_assert!(want <= possible);
                prop_assert_eq!(chosen.len(), want);
                prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), want);
                let counts = spread(&chosen, &candidates);
                prop_assert!(counts.values().all(|count| *count <= x));
                // As even as the sizes of the nodes allow, whatever the weights; in every prefix too.
                let mut got: Vec<u32> = counts.values().copied().collect();
                got.sort_unstable();
                prop_assert_eq!(got, expected_counts(&per_node, want));
                for prefix in 0..want {
                    let mut got: Vec<u32> = spread(&chosen[..prefix], &candidates).into_values().collect();
                    got.sort_unstable();
                    prop_assert_eq!(got, expected_counts(&per_node, prefix));
                }
            }
        }
    }

    #[test]
    fn what_a_choice_promises_can_be_placed(
        per_node in proptest::collection::vec(1_usize..6, 1..8), k in 1_u32..6, m in 0_u32..5, x in 1_u32..5, seed: u64
    ) {
        let candidates = cluster(&per_node);
        for c in k..=k + m {
            let policy = policy(k, m, c, x);
            let Ok(choice) = choose_policy(&[policy], &candidates) else { continue };
            prop_assert!(choice.fragments >= policy.min_fragments());
            prop_assert!(choice.fragments <= policy.shape().total());
            let chosen = place(choice.fragments, &candidates, &[], choice.spread, &mut rng(seed)).unwrap();
            prop_assert_eq!(chosen.len(), choice.fragments);
            // The smallest such limit.
            if choice.spread > 1 {
                prop_assert!(place(choice.fragments, &candidates, &[], choice.spread - 1, &mut rng(seed)).is_err());
            }
            let nodes: BTreeMap<OsdId, NodeId> = candidates.iter().map(|c| (c.osd, c.node.clone())).collect();
            let mut locations: Vec<Option<OsdId>> = chosen.into_iter().map(Some).collect();
            locations.resize(policy.shape().total(), None);
            let bucket = bucket_of(policy.shape(), [locations], |osd| nodes.get(&osd));
            prop_assert!(bucket.satisfies(&policy));
        }
    }

    #[test]
    fn repair_keeps_the_limit_and_evens_out(
        per_node in proptest::collection::vec(1_usize..6, 1..6), lost in any::<u64>(), x in 1_u32..4, seed: u64
    ) {
        let candidates = cluster(&per_node);
        let possible = placeable(candidates.iter().map(|c| (c.osd, &c.node)), x);
        let all = place(possible, &candidates, &[], x, &mut rng(seed)).unwrap();
        let held: Vec<Held> = all
            .iter()
            .enumerate()
            .filter(|(i, _)| lost & (1 << (i % 64)) == 0)
            .map(|(_, osd)| {
                let candidate = candidates.iter().find(|c| c.osd == *osd).unwrap();
                Held { osd: *osd, node: candidate.node.clone() }
            })
            .collect();
        let again = place(possible - held.len(), &candidates, &held, x, &mut rng(!seed)).unwrap();
        let mut together: Vec<OsdId> = held.iter().map(|h| h.osd).collect();
        together.extend(again);
        prop_assert_eq!(together.iter().collect::<BTreeSet<_>>().len(), possible);
        prop_assert!(spread(&together, &candidates).values().all(|count| *count <= x));
    }
}
