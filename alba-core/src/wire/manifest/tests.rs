use proptest::prelude::*;

use super::*;
use crate::manifest::CipherMode;

fn checksum() -> impl Strategy<Value = Checksum> {
    prop_oneof![
        Just(Checksum::None),
        any::<[u8; 20]>().prop_map(Checksum::Sha1),
        any::<u32>().prop_map(Checksum::Crc32c),
        any::<[u8; 32]>().prop_map(Checksum::Blake3),
    ]
}

fn fragment() -> impl Strategy<Value = Fragment> {
    (
        prop::option::of(0..=i64::MAX.unsigned_abs()),
        any::<u32>(),
        checksum(),
        any::<u32>(),
        any::<Option<[u8; 16]>>(),
    )
        .prop_map(|(osd, version, checksum, packed_len, ctr)| Fragment {
            location: osd.map(|osd| OsdId::new(osd).unwrap()),
            version: ObjectVersion(version),
            checksum,
            packed_len,
            ctr,
        })
}

fn encryption() -> impl Strategy<Value = EncryptInfo> {
    let aes = |mode| any::<[u8; 32]>().prop_map(move |key_sha256| EncryptInfo::Aes256 { mode, key_sha256 });
    prop_oneof![Just(EncryptInfo::None), aes(CipherMode::Cbc), aes(CipherMode::Ctr)]
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let head = (prop::collection::vec(any::<u8>(), 0..50), any::<[u8; 32]>(), 0..=i64::MAX.unsigned_abs());
    let how = (checksum(), prop::sample::select(&Compression::ALL[..]), encryption());
    let chunks = (1..6_u8, 0..4_u8).prop_flat_map(|(k, m)| {
        let chunk = (any::<u32>(), prop::collection::vec(fragment(), usize::from(k + m)))
            .prop_map(|(size, fragments)| Chunk { size, fragments });
        (Just(CodeShape::new(k, m).unwrap()), prop::collection::vec(chunk, 1..4))
    });
    let rest = (any::<u32>(), any::<u32>(), 0..4_000_000_000_000_000_u64);
    (head, how, chunks, rest).prop_map(
        |(
            (name, object_id, size),
            (checksum, compression, encryption),
            (shape, chunks),
            (version, max_disks_per_node, micros),
        )| Manifest {
            name: ObjectName::new(name).unwrap(),
            object_id: ObjectId::new(object_id),
            size,
            checksum,
            scheme: Scheme { shape, matrix: CodingMatrix::VandermondeSystematic, compression },
            encryption,
            chunks,
            version: ObjectVersion(version),
            max_disks_per_node,
            timestamp: Timestamp(micros),
        },
    )
}

/// What an old client is told of a manifest.
fn as_told(manifest: &Manifest) -> Manifest {
    let known = |checksum: &mut Checksum| {
        if matches!(checksum, Checksum::Blake3(_)) {
            *checksum = Checksum::None;
        }
    };
    let mut told = manifest.clone();
    known(&mut told.checksum);
    told.chunks.iter_mut().flat_map(|chunk| &mut chunk.fragments).for_each(|f| known(&mut f.checksum));
    if matches!(manifest.scheme.compression, Compression::Lz4 | Compression::Zstd) {
        told.scheme.compression = Compression::Snappy;
    }
    told
}

fn located(manifest: &Manifest) -> LocatedManifest {
    LocatedManifest { manifest: manifest.into(), namespace: NamespaceId::from_u32(7) }
}

fn written(manifest: &LocatedManifest, ser: ManifestSer) -> Bytes {
    let mut w = Writer::new();
    manifest.write(&mut w, ser);
    w.finish().unwrap()
}

#[test]
fn a_block_that_claims_more_than_it_can_hold_is_refused() {
    // A varint of 4 GiB - 1, then nearly nothing.
    let claim = [0xff, 0xff, 0xff, 0xff, 0x0f, 0x00, 0x61];
    assert!(decompress(&claim).is_err());
    let plain = vec![0; 1 << 20];
    let packed = snap::raw::Encoder::new().compress_vec(&plain).unwrap();
    assert_eq!(decompress(&packed).unwrap(), plain, "the best ratio there is, is accepted");
}

#[test]
fn layouts_of_different_shapes_are_refused() {
    let chunk = WireChunk {
        size: 32,
        fragments: vec![
            WireFragment {
                location: None,
                version: ObjectVersion(0),
                checksum: Checksum::None,
                packed_len: 16,
                ctr: None,
                fnr: None,
            };
            3
        ],
    };
    let manifest = WireManifest {
        name: "n".into(),
        object_id: ObjectId::new([0; 32]),
        scheme: WireScheme { k: 2, m: 1, compression: WireCompression::None },
        encryption: EncryptInfo::None,
        checksum: Checksum::None,
        size: 32,
        chunks: vec![chunk],
        version: ObjectVersion(0),
        max_disks_per_node: 1,
        timestamp: 0.0,
    };
    let body = manifest.write_body(ManifestSer::V1).unwrap();
    assert!(WireManifest::read_body(body.clone(), ManifestSer::V1).is_ok());
    // The layout of counter blocks ends the body: count of chunks, count of fragments, three flags.
    for wrong in [2, 4] {
        let mut body = body.to_vec();
        let at = body.len() - 3 - 4;
        body[at] = wrong;
        body.resize(at + 4 + usize::from(wrong), 0);
        assert!(WireManifest::read_body(body, ManifestSer::V1).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn old_clients_read_what_they_can_know(manifest in manifest()) {
        for ser in [ManifestSer::V1, ManifestSer::V2] {
            let read = LocatedManifest::read(&mut Reader::new(written(&located(&manifest), ser))).unwrap();
            prop_assert_eq!(read.namespace, NamespaceId::from_u32(7));
            prop_assert_eq!(Manifest::try_from(&read.manifest).unwrap(), as_told(&manifest));
        }
    }

    #[test]
    fn damage_never_panics(manifest in manifest(), at: prop::sample::Index, bit in 0..8_u32, cut: prop::sample::Index) {
        for ser in [ManifestSer::V1, ManifestSer::V2] {
            let whole = written(&located(&manifest), ser);
            let mut damaged = whole.to_vec();
            damaged[at.index(whole.len())] ^= 1 << bit;
            let _ = LocatedManifest::read(&mut Reader::new(damaged));
            prop_assert!(LocatedManifest::read(&mut Reader::new(whole.slice(..cut.index(whole.len())))).is_err());
            let body = located(&manifest).manifest.write_body(ser).unwrap();
            let mut damaged = body.to_vec();
            damaged[at.index(body.len())] ^= 1 << bit;
            if let Ok(read) = WireManifest::read_body(damaged, ser) {
                let _ = Manifest::try_from(&read);
            }
            let _ = WireManifest::read_body(body.slice(..cut.index(body.len())), ser);
        }
    }

    #[test]
    fn garbage_never_panics(garbage in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = WireManifest::read(&mut Reader::new(garbage.clone()));
        let _ = decompress(&garbage);
        for ser in [ManifestSer::V1, ManifestSer::V2] {
            let _ = WireManifest::read_body(garbage.clone(), ser);
        }
    }
}
