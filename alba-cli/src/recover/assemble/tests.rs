use alba_core::checksum::Checksum;
use alba_core::ids::ObjectName;
use alba_core::manifest::CodingMatrix;
use alba_core::preset::Compression;
use proptest::prelude::*;

use super::*;

const ID: ObjectId = ObjectId::new([7; 32]);

/// Two chunks of (2, 1), the last of which tells of the object.
fn info(chunk: u32, mark: u32) -> RecoveryInfo {
    RecoveryInfo {
        name: ObjectName::new("o").unwrap(),
        chunk_size: 64,
        fragments: (0..3).map(|f| (32, Checksum::Crc32c(mark * 100 + f))).collect(),
        object: (chunk == 1).then_some(RecoveryObject {
            scheme: RecoveryScheme {
                k: 2,
                m: 1,
                matrix: RecoveryMatrix::Ours(CodingMatrix::VandermondeSystematic),
                compression: Compression::None,
            },
            size: 128,
            checksum: Checksum::Crc32c(5),
            timestamp: 12.5,
        }),
        ctr: None,
    }
}

fn at(osd: u32, chunk: u32, fragment: u32, version: u32, tagged: bool) -> Found {
    Found {
        osd: OsdId::from_u32(osd),
        address: FragmentAddress {
            object_id: ID,
            chunk: ChunkIndex(chunk),
            fragment: FragmentIndex(fragment),
            version: ObjectVersion(version),
        },
        info: info(chunk, version),
        tagged,
    }
}

/// Chunk c's fragment f on OSD f.
fn whole() -> Vec<Found> {
    (0..2).flat_map(|c| (0..3).map(move |f| at(f, c, f, 0, false))).collect()
}

fn made(found: &[Found]) -> Result<Manifest, NoManifest> {
    assemble(ID, found, &Preset::built_in(), |_| None)
}

fn places(manifest: &Manifest) -> Vec<Vec<Option<u64>>> {
    let of = |fragment: &Fragment| fragment.location.map(OsdId::get);
    manifest.chunks.iter().map(|chunk| chunk.fragments.iter().map(of).collect()).collect()
}

#[test]
fn what_is_whole_is_as_it_was() {
    let manifest = made(&whole()).unwrap();
    assert_eq!(places(&manifest), [[Some(0), Some(1), Some(2)], [Some(0), Some(1), Some(2)]]);
    assert_eq!(
        (manifest.size, manifest.version, manifest.timestamp),
        (128, ObjectVersion(0), Timestamp(12_500_000))
    );
    assert_eq!(manifest.chunks[1].fragments[2].checksum, Checksum::Crc32c(2));
}

#[test]
fn what_is_missing_is_a_hole_and_what_cannot_be_read_is_said() {
    let mut found = whole();
    found.remove(4);
    let manifest = made(&found).unwrap();
    assert_eq!(places(&manifest)[1], [Some(0), None, Some(2)]);
    assert_eq!(manifest.chunks[1].fragments[1].packed_len, 32, "a hole is described, too");
    found.remove(4);
    assert_eq!(made(&found), Err(NoManifest::TooFew { chunk: 1, found: 1, needed: 2 }));
    found.truncate(3);
    assert_eq!(made(&found), Err(NoManifest::NoEnd));
    assert_eq!(made(&[]), Err(NoManifest::NoEnd));
}

#[test]
fn of_two_the_confirmed_one_counts_and_then_the_newer() {
    // A repair of chunk 0, fragment 2 that was never confirmed, and one of fragment 1 that was.
    let mut found = whole();
    found.push(at(8, 0, 2, 1, true));
    found.push(at(9, 0, 1, 2, false));
    let manifest = made(&found).unwrap();
    assert_eq!(places(&manifest)[0], [Some(0), Some(9), Some(2)]);
    assert_eq!(manifest.version, ObjectVersion(2), "no key is written again");
    let repaired = &manifest.chunks[0].fragments[1];
    assert_eq!(
        (repaired.version, repaired.checksum),
        (ObjectVersion(2), Checksum::Crc32c(201)),
        "its own word on itself"
    );
    assert_eq!(manifest.chunks[0].fragments[0].checksum, Checksum::Crc32c(0));
}

#[test]
fn an_osd_counts_once_per_chunk() {
    let mut found = whole();
    found[1] = at(0, 0, 1, 3, false);
    let manifest = made(&found).unwrap();
    assert_eq!(places(&manifest)[0], [None, Some(0), Some(2)]);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let changes: [fn(&mut Vec<Found>); 6] = [
        |found| found[3].info.name = ObjectName::new("p").unwrap(),
        |found| found[0].info.chunk_size = 96,
        |found| found[0].info.fragments.truncate(0),
        |found| found[0].info.object = found[3].info.object.clone(),
        |found| found.push(at(5, 2, 0, 0, false)),
        |found| {
            if let Some(object) = &mut found[4].info.object {
                object.size = 3;
            }
        },
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut found = whole();
        change(&mut found);
        let error = made(&found).unwrap_err();
        assert!(matches!(error, NoManifest::Inconsistent(_)), "{number}: {error}");
    }
    let mut foreign = whole();
    for found in &mut foreign {
        if let Some(object) = &mut found.info.object {
            object.scheme.matrix = RecoveryMatrix::Jerasure;
        }
    }
    assert!(matches!(made(&foreign), Err(NoManifest::Foreign(_))));
}

#[test]
fn a_manifest_tells_of_its_fragments_what_they_tell_of_it() {
    let manifest = made(&whole()).unwrap();
    let all = (0..3).map(OsdId::from_u32).collect();
    assert_eq!(made(&as_told(&manifest, &all)).unwrap(), manifest);
    let some = BTreeSet::from([OsdId::from_u32(2)]);
    let mut mixed: Vec<Found> = whole().into_iter().filter(|found| found.osd != OsdId::from_u32(2)).collect();
    mixed.extend(as_told(&manifest, &some));
    assert_eq!(made(&mixed).unwrap(), manifest);
}

proptest! {
    /// Whatever is found: no panic, and what is made can be read.
    #[test]
    fn what_is_made_is_sound(
        picks in proptest::collection::vec((0_u32..4, 0_u32..3, 0_u32..4, 0_u32..3, any::<bool>()), 0..20),
    ) {
        let found: Vec<Found> = picks.into_iter().map(|(osd, c, f, v, tagged)| at(osd, c, f, v, tagged)).collect();
        if let Ok(manifest) = made(&found) {
            prop_assert!(manifest.check().is_ok());
            for chunk in &manifest.chunks {
                prop_assert!(chunk.fragments.iter().filter(|f| f.location.is_some()).count() >= 2);
            }
        }
    }
}
