use std::collections::BTreeMap;

use alba_core::checksum::Checksum;
use alba_core::ids::{NodeId, ObjectName};
use alba_core::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Scheme, Timestamp};
use alba_core::policy::CodeShape;
use alba_core::preset::Compression;
use alba_core::units::ByteCount;
use proptest::prelude::*;

use super::*;
use crate::observe::observe;

fn osd(n: u32) -> OsdId {
    OsdId::from_u32(n)
}

fn fills(osds: &[(u32, u32, u64)]) -> BTreeMap<OsdId, OsdFill> {
    osds.iter()
        .map(|(id, node, percent)| {
            let node = NodeId::new(format!("node-{node}")).unwrap();
            (osd(*id), OsdFill { node, used: ByteCount(*percent), total: ByteCount(100) })
        })
        .collect()
}

fn object(id: u8, max_per_node: u32, locations: &[u32]) -> Manifest {
    let total = u8::try_from(locations.len()).unwrap();
    let fragments = locations
        .iter()
        .map(|at| Fragment {
            location: Some(osd(*at)),
            version: ObjectVersion(0),
            checksum: Checksum::None,
            packed_len: 16,
            ctr: None,
        })
        .collect();
    Manifest {
        name: ObjectName::new(vec![id]).unwrap(),
        object_id: ObjectId::new([id; 32]),
        size: 16,
        checksum: Checksum::None,
        scheme: Scheme {
            shape: CodeShape::new(1, total - 1).unwrap(),
            matrix: CodingMatrix::VandermondeSystematic,
            compression: Compression::None,
        },
        encryption: EncryptInfo::None,
        chunks: vec![Chunk { size: 16, fragments }],
        version: ObjectVersion(0),
        max_disks_per_node: max_per_node,
        timestamp: Timestamp(0),
    }
}

#[test]
fn the_fullest_gives_to_the_emptiest_and_the_best_move_comes_first() {
    let observation = observe(fills(&[(0, 0, 90), (1, 1, 50), (2, 2, 50), (3, 3, 50), (4, 4, 0)]));
    let moves = plan(&observation, &[object(1, 1, &[1, 2]), object(2, 1, &[0, 1])], 10);
    assert_eq!(moves.len(), 2);
    assert_eq!((moves[0].object, moves[0].source, moves[0].target), (ObjectId::new([2; 32]), osd(0), osd(4)));
    assert!(moves[0].score() > moves[1].score());
    assert_eq!(moves[0].bytes, 16);
    assert_eq!(plan(&observation, &[object(1, 1, &[1, 2]), object(2, 1, &[0, 1])], 1).len(), 1);
}

#[test]
fn a_node_at_its_limit_takes_nothing_more() {
    let observation = observe(fills(&[(0, 0, 90), (1, 1, 50), (2, 1, 0), (3, 2, 50)]));
    assert!(plan(&observation, &[object(1, 1, &[0, 1])], 10).iter().all(|m| m.target != osd(2)));
    assert_eq!(plan(&observation, &[object(1, 2, &[0, 1])], 10)[0].target, osd(2));
}

#[test]
fn an_even_cluster_stays_still() {
    let observation = observe(fills(&[(0, 0, 50), (1, 1, 50), (2, 2, 50)]));
    assert!(plan(&observation, &[object(1, 1, &[0, 1])], 10).is_empty());
}

proptest! {
    #[test]
    fn no_move_breaks_distinct_osds_or_the_node_limit(
        nodes in prop::collection::vec((0_u32..5, 0_u64..100), 4..16),
        picks in prop::collection::vec(prop::collection::vec(0_usize..16, 2..6), 1..10),
        max_per_node in 1_u32..4,
    ) {
        let layout: Vec<(u32, u32, u64)> = (0..).zip(&nodes).map(|(i, (node, fill))| (i, *node, *fill)).collect();
        let observation = observe(fills(&layout));
        let node_of = |o: OsdId| observation.osds[&o].0.node.clone();
        let objects: Vec<Manifest> = (0..).zip(&picks).filter_map(|(id, picks)| {
            let mut locations: Vec<u32> = Vec::new();
            for pick in picks {
                let at = layout[pick % layout.len()].0;
                let there = locations.iter().filter(|l| node_of(osd(**l)) == node_of(osd(at))).count();
                if !locations.contains(&at) && u32::try_from(there).unwrap() < max_per_node { locations.push(at); }
            }
            (locations.len() > 1).then(|| object(id, max_per_node, &locations))
        }).collect();
        for m in plan(&observation, &objects, 100) {
            let before = objects.iter().find(|o| o.object_id == m.object).unwrap();
            let after: Vec<OsdId> = before.fragments().filter_map(|(_, _, f)| f.location)
                .map(|at| if at == m.source { m.target } else { at }).collect();
            let mut distinct = after.clone();
            distinct.sort();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), after.len());
            for at in &after {
                let there = after.iter().filter(|o| node_of(**o) == node_of(*at)).count();
                prop_assert!(u32::try_from(there).unwrap() <= max_per_node);
            }
            prop_assert!(m.gain > 0.0);
        }
    }
}
