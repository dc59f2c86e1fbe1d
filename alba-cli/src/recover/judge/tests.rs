use alba_core::checksum::Checksum;
use alba_core::ids::{ChunkIndex, FragmentIndex, ObjectName, ObjectVersion};
use alba_core::manifest::{CodingMatrix, Timestamp};
use alba_core::osd_keys::FragmentAddress;
use alba_core::preset::Compression;
use alba_core::wire::recovery::{RecoveryInfo, RecoveryMatrix, RecoveryObject, RecoveryScheme};

use super::*;

const ID: ObjectId = ObjectId::new([3; 32]);

/// One chunk of (2, 1).
fn at(osd: u32, version: u32, tagged: bool) -> Found {
    let object = RecoveryObject {
        scheme: RecoveryScheme {
            k: 2,
            m: 1,
            matrix: RecoveryMatrix::Ours(CodingMatrix::VandermondeSystematic),
            compression: Compression::None,
        },
        size: 64,
        checksum: Checksum::Crc32c(5),
        timestamp: 1.0,
    };
    Found {
        osd: OsdId::from_u32(osd),
        address: FragmentAddress {
            object_id: ID,
            chunk: ChunkIndex(0),
            fragment: FragmentIndex(osd % 3),
            version: ObjectVersion(version),
        },
        info: RecoveryInfo {
            name: ObjectName::new("o").unwrap(),
            chunk_size: 64,
            fragments: vec![(32, Checksum::Crc32c(1)); 3],
            object: Some(object),
            ctr: None,
        },
        tagged,
    }
}

fn found(osds: &[u32]) -> Vec<Found> {
    osds.iter().map(|osd| at(*osd, 0, false)).collect()
}

fn old() -> Box<Manifest> {
    let manifest = assemble(ID, &found(&[0, 1, 2]), &Preset::built_in(), |_| None).unwrap();
    Box::new(Manifest { timestamp: Timestamp(77), max_disks_per_node: 9, ..manifest })
}

fn verdict(found: Vec<Found>, before: Before, noted: bool, absent: &[u32]) -> Verdict {
    let absent: BTreeSet<OsdId> = absent.iter().map(|osd| OsdId::from_u32(*osd)).collect();
    let scanned = (0..6).map(OsdId::from_u32).filter(|osd| !absent.contains(osd)).collect();
    let evidence = Evidence { id: ID, found, before, noted };
    judge(&evidence, &Reach { scanned, absent }, &Preset::built_in(), |_| None)
}

fn doubt(verdict: Verdict) -> Doubt {
    match verdict {
        Verdict::Apart(_, doubt) => doubt,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_as_the_backup_has_it_comes_back_as_it_was() {
    assert_eq!(verdict(found(&[0, 1, 2]), Before::Live(old()), false, &[]), Verdict::Restore(old()));
    // Of an OSD that cannot be asked the backup's word counts.
    assert_eq!(verdict(found(&[0, 1]), Before::Live(old()), false, &[2]), Verdict::Restore(old()));
    assert_eq!(verdict(vec![], Before::Live(old()), false, &[0, 1, 2]), Verdict::Restore(old()));
}

#[test]
fn every_sign_of_deletion_sets_it_apart() {
    assert_eq!(doubt(verdict(found(&[0, 1, 2]), Before::Live(old()), true, &[])), Doubt::Noted);
    assert_eq!(doubt(verdict(found(&[0, 1]), Before::Live(old()), false, &[])), Doubt::FragmentsGone);
    assert_eq!(doubt(verdict(found(&[0, 1, 2]), Before::Unknown, true, &[])), Doubt::Noted);
    let tagged = vec![at(0, 0, true), at(1, 0, true), at(2, 0, true)];
    assert_eq!(doubt(verdict(tagged.clone(), Before::Unknown, false, &[])), Doubt::Unconfirmed);
    // The backup has seen that it was confirmed.
    assert_eq!(verdict(tagged, Before::Live(old()), false, &[]), Verdict::Restore(old()));
}

#[test]
fn what_was_repaired_since_is_no_sign() {
    let repaired = vec![at(0, 0, false), at(1, 0, false), at(5, 1, false)];
    let Verdict::Restore(manifest) = verdict(repaired, Before::Live(old()), false, &[]) else { panic!() };
    assert_eq!(manifest.chunks[0].fragments[2].location, Some(OsdId::from_u32(5)));
    assert_eq!((manifest.version, manifest.timestamp), (ObjectVersion(1), Timestamp(77)));
}

#[test]
fn what_is_not_there_is_told_apart() {
    assert_eq!(verdict(vec![], Before::Live(old()), false, &[]), Verdict::Gone);
    assert_eq!(verdict(found(&[0, 1, 2]), Before::Deleted, false, &[]), Verdict::Deleted);
    for before in [Before::Unknown, Before::Live(old())] {
        let verdict = verdict(found(&[0]), before, false, &[]);
        assert!(matches!(verdict, Verdict::Incomplete(_)), "{verdict:?}");
    }
}

#[test]
fn what_is_new_since_the_backup_comes_back() {
    let late = vec![at(0, 0, false), at(1, 0, false), at(2, 0, true)];
    let Verdict::Restore(manifest) = verdict(late, Before::Unknown, false, &[]) else { panic!() };
    assert_eq!(manifest.timestamp, Timestamp(1_000_000));
}
