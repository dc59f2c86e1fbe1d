use proptest::prelude::*;

use super::*;
use crate::checksum::ChecksumAlgorithm;

fn fragment(osd: Option<u32>, len: u32) -> Fragment {
    Fragment {
        location: osd.map(OsdId::from_u32),
        version: ObjectVersion(0),
        checksum: Checksum::Crc32c(0x0102_0304),
        packed_len: len,
        ctr: None,
    }
}

/// 36 bytes, k = 2, m = 1, one chunk of 64, the last fragment a hole.
fn sample() -> Manifest {
    Manifest {
        name: ObjectName::new("sample").unwrap(),
        object_id: ObjectId::new([7; 32]),
        size: 36,
        checksum: ChecksumAlgorithm::Sha1.of(b"abc"),
        scheme: Scheme {
            shape: CodeShape::new(2, 1).unwrap(),
            matrix: CodingMatrix::VandermondeSystematic,
            compression: Compression::None,
        },
        encryption: EncryptInfo::None,
        chunks: vec![Chunk {
            size: 64,
            fragments: vec![fragment(Some(3), 32), fragment(Some(300), 32), fragment(None, 32)],
        }],
        version: ObjectVersion(1),
        max_disks_per_node: 2,
        timestamp: Timestamp(1_500_000_000_250_000),
    }
}

/// Two chunks, all variants that `sample` does not have.
fn encrypted() -> Manifest {
    let replica =
        |osd| Fragment { checksum: Checksum::Blake3([9; 32]), ctr: Some([5; 16]), ..fragment(Some(osd), 40) };
    Manifest {
        size: 50,
        checksum: Checksum::None,
        scheme: Scheme {
            shape: CodeShape::new(1, 1).unwrap(),
            compression: Compression::Zstd,
            ..sample().scheme
        },
        encryption: EncryptInfo::Aes256 { mode: CipherMode::Ctr, key_sha256: [6; 32] },
        chunks: vec![
            Chunk { size: 40, fragments: vec![replica(1), replica(2)] },
            Chunk { size: 10, fragments: vec![replica(3), replica(2)] },
        ],
        ..sample()
    }
}

fn empty() -> Manifest {
    let chunk =
        Chunk { size: 0, fragments: vec![fragment(Some(1), 0), fragment(Some(2), 0), fragment(Some(3), 0)] };
    Manifest { size: 0, chunks: vec![chunk], ..sample() }
}

#[test]
fn the_stored_form_has_its_golden_bytes() {
    for (manifest, golden) in [
        (
            sample(),
            "010673616d706c6507070707070707070707070707070707070707070707070707070707070707072401a9993e364706816aba3e25717850c26c9cd0d89d02010000000140030103000284868808200001ac020002848688082000000002848688082000010290a1b6b9df87d502",
        ),
        (
            encrypted(),
            "010673616d706c650707070707070707070707070707070707070707070707070707070707070707320001010003010106060606060606060606060606060606060606060606060606060606060606060228020101000309090909090909090909090909090909090909090909090909090909090909092801050505050505050505050505050505050102000309090909090909090909090909090909090909090909090909090909090909092801050505050505050505050505050505050a02010300030909090909090909090909090909090909090909090909090909090909090909280105050505050505050505050505050505010200030909090909090909090909090909090909090909090909090909090909090909280105050505050505050505050505050505010290a1b6b9df87d502",
        ),
    ] {
        let bytes = manifest.encode().unwrap();
        assert_eq!(hex::encode(&bytes), golden);
        assert_eq!(Manifest::decode(&hex::decode(golden).unwrap()), Ok(manifest));
    }
}

#[test]
fn other_formats_are_refused() {
    let mut bytes = sample().encode().unwrap();
    bytes[0] = 2;
    assert_eq!(Manifest::decode(&bytes), Err(ManifestError::UnknownVersion(2)));
    assert!(matches!(Manifest::decode(&[]), Err(ManifestError::Damaged(_))));
    bytes[0] = 1;
    bytes.push(0);
    assert_eq!(Manifest::decode(&bytes), Err(ManifestError::Damaged("1 bytes follow it".into())));
    bytes.pop();
    for len in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..len]).is_err(), "cut at {len}");
    }
}

/// A change to a manifest.
type Spoil = fn(&mut Manifest);

#[test]
fn what_cannot_be_an_object_is_refused() {
    let chunk = ChunkIndex(0);
    let size = |size, chunks, last| Inconsistency::Size { size, chunks, last };
    let cases: [(Manifest, Spoil, Inconsistency); 14] = [
        (sample(), |m| m.chunks.clear(), Inconsistency::NoChunks),
        (sample(), |m| m.size = 65, size(65, 64, 64)),
        (sample(), |m| m.size = 0, size(0, 64, 64)),
        (sample(), |m| m.chunks.push(m.chunks[0].clone()), size(36, 128, 64)),
        (empty(), |m| m.chunks.push(m.chunks[0].clone()), size(0, 0, 0)),
        (empty(), |m| m.size = 1, size(1, 0, 0)),
        (
            sample(),
            |m| m.chunks[0].size = 63,
            Inconsistency::Layout(LayoutError::NotDivisible { size: 63, k: 2 }),
        ),
        (sample(), |m| m.chunks[0].size = 1 << 31, Inconsistency::ChunkTooLarge { chunk, size: 1 << 31 }),
        (
            sample(),
            |m| m.chunks[0].fragments.truncate(2),
            Inconsistency::FragmentCount { chunk, found: 2, expected: 3 },
        ),
        (
            sample(),
            |m| m.chunks[0].fragments[1].location = Some(OsdId::from_u32(3)),
            Inconsistency::OsdTwice { chunk, osd: OsdId::from_u32(3) },
        ),
        (
            sample(),
            |m| m.chunks[0].fragments[2].version = ObjectVersion(2),
            Inconsistency::VersionAhead { chunk, fragment: FragmentIndex(2) },
        ),
        (
            sample(),
            |m| m.chunks[0].fragments[1].packed_len = 31,
            Inconsistency::PackedLength { chunk, fragment: FragmentIndex(1), found: 31, expected: 32 },
        ),
        (
            encrypted(),
            |m| m.chunks[1].fragments[0].ctr = None,
            Inconsistency::Counter { chunk: ChunkIndex(1), fragment: FragmentIndex(0) },
        ),
        (sample(), |m| m.max_disks_per_node = 0, Inconsistency::NoDiskPerNode),
    ];
    for (mut manifest, spoil, expected) in cases {
        assert_eq!(manifest.check(), Ok(()));
        spoil(&mut manifest);
        assert_eq!(manifest.check(), Err(expected.clone()));
        assert_eq!(Manifest::decode(&manifest.encode().unwrap()), Err(ManifestError::Inconsistent(expected)));
    }
}

#[test]
fn lengths_follow_from_the_chunks() {
    let manifest = encrypted();
    assert_eq!(manifest.fragment_len(ChunkIndex(1)), Some(10));
    assert_eq!(sample().fragment_len(ChunkIndex(0)), Some(32));
    assert_eq!(sample().fragment_len(ChunkIndex(1)), None);
    assert_eq!(sample().chunk_len(ChunkIndex(0)), Some(36));
    assert_eq!(manifest.chunk_len(ChunkIndex(0)), Some(40));
    assert_eq!(manifest.chunk_len(ChunkIndex(1)), Some(10));
    assert_eq!(manifest.chunk_len(ChunkIndex(2)), None);
    assert_eq!(empty().chunk_len(ChunkIndex(0)), Some(0));
    assert_eq!(manifest.chunk_map().unwrap().end(), 50);
}

#[test]
fn the_bucket_counts_what_is_stored() {
    let node = NodeId::new("n").unwrap();
    let bucket = sample().bucket(|_| Some(&node));
    assert_eq!((bucket.shape, bucket.fragments, bucket.max_per_node), (sample().scheme.shape, 2, 2));
}

proptest! {
    #[test]
    fn damaged_bytes_are_an_error_or_a_consistent_manifest(position in 0_usize..200, value: u8) {
        let mut bytes = encrypted().encode().unwrap();
        let position = position % bytes.len();
        bytes[position] = value;
        if let Ok(manifest) = Manifest::decode(&bytes) {
            prop_assert_eq!(manifest.check(), Ok(()));
        }
    }

    #[test]
    fn garbage_is_never_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 1..300)) {
        bytes[0] = 1;
        let _ = Manifest::decode(&bytes);
    }
}
