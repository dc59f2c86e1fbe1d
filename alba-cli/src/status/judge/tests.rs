use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::ids::{ObjectId, ObjectName, ObjectVersion};
use alba_core::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Scheme, Timestamp};
use alba_core::preset::{Compression, ObjectChecksums};

use super::*;

fn preset(policies: &[[u32; 4]]) -> Preset {
    Preset {
        policies: policies.iter().map(|policy| Policy::try_from(*policy).unwrap()).collect(),
        fragment_size: 1 << 20,
        osds: OsdSet::All,
        compression: Compression::None,
        fragment_checksum: ChecksumAlgorithm::Blake3,
        object_checksum: ObjectChecksums {
            allowed: vec![ChecksumAlgorithm::Crc32c],
            default: ChecksumAlgorithm::Crc32c,
            verify_upload: true,
        },
        ..Preset::built_in()
    }
}

fn cluster(nodes: u32, per_node: u32) -> BTreeMap<OsdId, Place> {
    (0..nodes * per_node)
        .map(|i| (OsdId::from_u32(i), format!("node-{}", i / per_node).parse().unwrap()))
        .collect()
}

/// One chunk per row, an entry per fragment: its OSD, or none for a hole.
fn manifest(k: u8, m: u8, chunks: &[&[Option<u32>]]) -> Manifest {
    let entry = |osd: &Option<u32>| Fragment {
        location: osd.map(OsdId::from_u32),
        version: ObjectVersion(0),
        checksum: Checksum::None,
        packed_len: 1,
        ctr: None,
    };
    Manifest {
        name: ObjectName::new("x").unwrap(),
        object_id: ObjectId::new([0; 32]),
        size: 1,
        checksum: Checksum::None,
        scheme: Scheme {
            shape: CodeShape::new(k, m).unwrap(),
            matrix: CodingMatrix::VandermondeSystematic,
            compression: Compression::None,
        },
        encryption: EncryptInfo::None,
        chunks: chunks
            .iter()
            .map(|row| Chunk { size: 16, fragments: row.iter().map(entry).collect() })
            .collect(),
        version: ObjectVersion(0),
        max_disks_per_node: 3,
        timestamp: Timestamp(0),
    }
}

#[test]
fn the_first_policy_that_the_osds_can_satisfy_is_wanted() {
    let preset = preset(&[[5, 4, 8, 3], [2, 2, 3, 4]]);
    let policy = |i: usize| preset.policies[i];
    let want = |policy, fragments| Some(Wanted { policy, fragments });
    assert_eq!(wanted(&preset, &cluster(4, 3)), want(policy(0), 9));
    // 2 nodes × 4: at most 3 of 5 + 4 on a node gives 6 places, too few; 2 + 2 has them.
    assert_eq!(wanted(&preset, &cluster(2, 4)), want(policy(1), 4));
    // 8 places: c is met, 9 are impossible, so 8 are all that is wanted.
    assert_eq!(wanted(&preset, &cluster(4, 2)), want(policy(0), 8));
    assert_eq!(wanted(&preset, &cluster(1, 2)), None);
    let mut some = preset.clone();
    some.osds = OsdSet::Explicit((0..4).map(OsdId::from_u32).collect());
    assert_eq!(wanted(&some, &cluster(4, 3)), want(policy(1), 4));
}

#[test]
fn counters_are_measured_against_the_wanted_policy() {
    let preset = preset(&[[5, 4, 8, 3], [2, 2, 3, 4]]);
    let wanted = wanted(&preset, &cluster(4, 3));
    let bucket =
        |k, m, fragments| Bucket { shape: CodeShape::new(k, m).unwrap(), fragments, max_per_node: 3 };
    let safety = |buckets: &[(Bucket, u64)]| Safety::of_buckets(buckets, wanted);
    assert_eq!(safety(&[(bucket(5, 4, 9), 7)]), Safety::default());
    assert_eq!(safety(&[(bucket(5, 4, 8), 7)]), Safety { below: 7, ..Safety::default() });
    assert_eq!(safety(&[(bucket(2, 2, 4), 3)]), Safety { below: 3, ..Safety::default() });
    assert_eq!(safety(&[(bucket(5, 4, 5), 2)]), Safety { below: 2, at_risk: 2, unreadable: 0 });
    assert_eq!(safety(&[(bucket(5, 4, 4), 2)]), Safety { below: 2, at_risk: 0, unreadable: 2 });
}

#[test]
fn fragments_on_osds_that_do_not_answer_do_not_count() {
    let preset = preset(&[[2, 2, 3, 4]]);
    let wanted = wanted(&preset, &cluster(4, 1));
    let bucket = |fragments| Bucket { shape: CodeShape::new(2, 2).unwrap(), fragments, max_per_node: 1 };
    let dead = |ids: &[u32]| ids.iter().copied().map(OsdId::from_u32).collect::<BTreeSet<_>>();
    let whole =
        manifest(2, 2, &[&[Some(0), Some(1), Some(2), Some(3)], &[Some(0), Some(1), Some(2), Some(4)]]);
    let after = |fragments, manifest: &Manifest, ids: &[u32]| {
        let mut safety = Safety::of_buckets(&[(bucket(fragments), 1)], wanted);
        safety.correct(manifest, &dead(ids), wanted);
        safety
    };
    assert_eq!(after(4, &whole, &[]), Safety::default());
    assert_eq!(after(4, &whole, &[3]), Safety { below: 1, ..Safety::default() });
    assert_eq!(after(4, &whole, &[0, 4]), Safety { below: 1, at_risk: 1, unreadable: 0 });
    assert_eq!(after(4, &whole, &[0, 1, 3]), Safety { below: 1, at_risk: 0, unreadable: 1 });
    // Below by the counters already: it is not counted twice.
    let holed = manifest(2, 2, &[&[Some(0), Some(1), Some(2), None]]);
    assert_eq!(after(3, &holed, &[2]), Safety { below: 1, at_risk: 1, unreadable: 0 });
    assert_eq!(after(3, &holed, &[2]).verdict(), Verdict::AtRisk);
}
