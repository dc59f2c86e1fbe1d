use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use alba_core::units::ByteCount;

use super::*;

fn osd(id: u32) -> OsdId {
    OsdId::from_u32(id)
}

fn node(number: usize) -> NodeId {
    NodeId::new(format!("node-{number}")).unwrap()
}

const NOW: Moment = Moment(Duration::from_secs(5));

fn after(millis: u64) -> Moment {
    NOW.plus(Duration::from_millis(millis))
}

const CHUNK: ChunkIndex = ChunkIndex(0);

fn f(index: u32) -> FragmentIndex {
    FragmentIndex(index)
}

/// OSDs, each on a node of its own if there are as many nodes.
fn candidates(osds: u32, nodes: usize) -> Vec<Candidate> {
    (0..osds)
        .map(|id| Candidate {
            osd: osd(id),
            node: node(usize::try_from(id).unwrap() % nodes),
            total: ByteCount::mib(100),
            used: ByteCount(0),
        })
        .collect()
}

fn terms(needed: usize, planned: usize, max_per_node: u32, all: &[Candidate]) -> Terms {
    let nodes = all.iter().map(|c| (c.osd, c.node.clone())).collect();
    Terms { needed, planned, max_per_node, nodes }
}

/// Three fragments on OSDs 0, 1 and 2 of five.
fn three(needed: usize) -> Progress {
    let mut progress = Progress::new(terms(needed, 3, 1, &candidates(5, 5)));
    progress.start(CHUNK, NOW);
    (0..3).for_each(|i| progress.write(CHUNK, f(i), osd(i), NOW));
    progress
}

fn location(others: &[u32]) -> Acknowledged {
    Acknowledged::Location { others: others.iter().map(|id| osd(*id)).collect() }
}

#[test]
fn enough_at_c_and_the_rest_are_stragglers_until_they_answer() {
    let mut progress = three(2);
    assert_eq!(progress.acknowledged(CHUNK, f(1), osd(1), NOW), location(&[]));
    assert_eq!(progress.judge(CHUNK), None);
    assert_eq!((progress.open(), progress.owes(osd(2), 1)), (1, None));
    progress.acknowledged(CHUNK, f(0), osd(0), NOW);
    assert_eq!(progress.judge(CHUNK), Some(Verdict::Enough));
    assert_eq!((progress.open(), progress.owes(osd(2), 1)), (0, Some(NOW)));
    assert_eq!((progress.owes(osd(2), 2), progress.latest_debt(1)), (None, Some(NOW)));
    progress.acknowledged(CHUNK, f(2), osd(2), NOW);
    assert_eq!(progress.judge(CHUNK), None);
    assert_eq!((progress.owes(osd(2), 1), progress.latest_debt(1)), (None, None));
    assert_eq!((progress.explain(CHUNK), progress.holes()), ((3, String::new()), vec![]));
}

#[test]
fn failed_once_c_is_out_of_reach_and_says_why() {
    let mut progress = three(3);
    assert!(progress.failed(CHUNK, f(2), osd(2), "full"));
    assert_eq!(progress.judge(CHUNK), Some(Verdict::Failed));
    assert_eq!(progress.open(), 0);
    assert_eq!(progress.explain(CHUNK), (0, "fragment 2 on OSD 2: full".to_owned()));
    assert_eq!(progress.location(CHUNK, f(2)), None);
    assert_eq!(progress.holes().len(), 3);
}

#[test]
fn an_answer_counts_once() {
    let mut progress = three(2);
    progress.acknowledged(CHUNK, f(0), osd(0), NOW);
    assert_eq!(progress.acknowledged(CHUNK, f(0), osd(0), NOW), Acknowledged::Copy);
    assert!(!progress.failed(CHUNK, f(0), osd(0), "late news"));
    assert_eq!(progress.explain(CHUNK).0, 1);
}

#[test]
fn a_spare_saves_a_chunk_that_would_fail_and_the_first_answer_is_the_location() {
    let (mut progress, all) = (three(3), candidates(5, 5));
    let mut rng = StdRng::seed_from_u64(1);
    assert!(progress.failed(CHUNK, f(2), osd(2), "gone"));
    let spare = progress.spare(CHUNK, f(2), &all, &mut rng).unwrap();
    assert!([osd(3), osd(4)].contains(&spare));
    progress.write(CHUNK, f(2), spare, NOW);
    assert_eq!(progress.judge(CHUNK), None, "not failed");
    // A second one for a fragment that is slow; both answer.
    let other = progress.spare(CHUNK, f(0), &all, &mut rng).unwrap();
    assert!(other != spare && [osd(3), osd(4)].contains(&other));
    progress.write(CHUNK, f(0), other, NOW);
    assert_eq!(progress.spare(CHUNK, f(1), &all, &mut rng), None, "no OSD is left");
    assert_eq!(progress.acknowledged(CHUNK, f(0), other, NOW), location(&[0]));
    assert_eq!(progress.acknowledged(CHUNK, f(0), osd(0), NOW), Acknowledged::Copy);
    assert_eq!(progress.location(CHUNK, f(0)), Some(other));
}

#[test]
fn slow_is_what_takes_much_longer_than_half_of_the_others() {
    let mut progress = three(2);
    let least = Duration::from_millis(50);
    assert_eq!(progress.slowest(least), None, "nothing to compare with");
    progress.acknowledged(CHUNK, f(1), osd(1), after(40));
    assert_eq!(progress.slowest(least), None);
    progress.acknowledged(CHUNK, f(2), osd(2), after(60));
    assert_eq!(progress.slowest(least), Some((after(180), CHUNK, f(0))));
    assert_eq!(progress.slowest(least * 10), Some((after(500), CHUNK, f(0))));
    // The spare may be slow, too.
    progress.write(CHUNK, f(0), osd(3), after(180));
    assert_eq!(progress.slowest(least), Some((after(360), CHUNK, f(0))));
    progress.give_up(CHUNK, f(0));
    assert_eq!(progress.slowest(least), None);
}

#[test]
fn hedges_are_one_in_twenty_in_the_long_run() {
    let mut hedges = WriteHedges::new();
    assert_eq!((0..1000).filter(|_| hedges.spend()).count(), 16);
    let spent = (0..2000).filter(|_| {
        hedges.earn();
        hedges.spend()
    });
    assert_eq!(spent.count(), 100);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever OSDs answer, in whichever order, and whenever spares are asked for.
    #[test]
    fn spares_keep_to_the_policy_and_locations_are_acknowledged(
        osds in 1_u32..16, nodes in 1_usize..6, x in 1_u32..4, planned in 1_usize..10, seed: u64
    ) {
        let all = candidates(osds, nodes);
        let mut rng = StdRng::seed_from_u64(seed);
        let planned = planned.min(alba_core::placement::placeable(all.iter().map(|c| (c.osd, &c.node)), x));
        let targets = place(planned, &all, &[], x, &mut rng).unwrap();
        let node_of: BTreeMap<OsdId, NodeId> = all.iter().map(|c| (c.osd, c.node.clone())).collect();
        let mut progress = Progress::new(terms(planned.div_ceil(2), planned, x, &all));
        let mut under_way = Vec::new();
        let mut acknowledged = BTreeSet::new();
        for chunk in (0..2).map(ChunkIndex) {
            progress.start(chunk, NOW);
            for (fragment, target) in (0..).map(FragmentIndex).zip(&targets) {
                progress.write(chunk, fragment, *target, NOW);
                under_way.push((chunk, fragment, *target));
            }
        }
        let mut step = 0;
        while !under_way.is_empty() {
            step += 1;
            let position = rng.random_range(0..under_way.len());
            let (chunk, fragment, osd) = under_way[position];
            let ask = match rng.random_range(0..4) {
                0 => {
                    under_way.swap_remove(position);
                    progress.failed(chunk, fragment, osd, "fails")
                }
                1 | 2 => {
                    under_way.swap_remove(position);
                    acknowledged.insert((chunk, fragment, osd));
                    let before = progress.location(chunk, fragment);
                    let told = progress.acknowledged(chunk, fragment, osd, after(step));
                    let first = matches!(told, Acknowledged::Location { .. });
                    prop_assert_eq!(first, before.is_none());
                    prop_assert_eq!(progress.location(chunk, fragment), Some(before.unwrap_or(osd)));
                    false
                }
                // It is slow.
                _ => progress.location(chunk, fragment).is_none(),
            };
            if ask && let Some(spare) = progress.spare(chunk, fragment, &all, &mut rng) {
                progress.write(chunk, fragment, spare, NOW);
                under_way.push((chunk, fragment, spare));
            }
            progress.judge(chunk);
            // At any moment: it may be now that the manifest is made.
            for chunk in (0..2).map(ChunkIndex) {
                let mut here = BTreeSet::new();
                let mut per_node: BTreeMap<&NodeId, u32> = BTreeMap::new();
                for fragment in (0..u32::try_from(planned).unwrap()).map(FragmentIndex) {
                    let Some(osd) = progress.location(chunk, fragment) else { continue };
                    prop_assert!(here.insert(osd), "two fragments on one OSD");
                    prop_assert!(acknowledged.contains(&(chunk, fragment, osd)));
                    let count = per_node.entry(&node_of[&osd]).or_default();
                    *count += 1;
                    prop_assert!(*count <= x, "more than {} on a node", x);
                }
            }
        }
        let located = acknowledged.iter().map(|(chunk, fragment, _)| (*chunk, *fragment)).collect::<BTreeSet<_>>();
        prop_assert_eq!(progress.holes().len(), 2 * planned - located.len());
        prop_assert_eq!(progress.slowest(Duration::ZERO), None);
    }
}
