use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::ids::FragmentIndex;
use crate::manifest::PackedFragment;

const CODECS: [Compression; 6] = Compression::ALL;

/// The time of writing.
const NOW: Timestamp = Timestamp(1_500_000);

/// `abc` twelve times, by Python's `bz2` module behind the length.
const BZIP2: &str =
    "24000000425a6839314159265359185e579f00000581003800200020a534198c5c58bc5dc914e1424061795e7c";

fn shape(k: u8, m: u8) -> CodeShape {
    CodeShape::new(k, m).unwrap()
}

/// What a reader gets: bytes that had the checksum of their entry.
fn verified(packed: &Packed) -> VerifiedFragment {
    let entry = packed.entry(None, ObjectVersion(0));
    PackedFragment(packed.bytes.clone()).verify(&entry).unwrap()
}

/// Bytes as if they had been stored on purpose.
fn raw(bytes: impl Into<Bytes>) -> VerifiedFragment {
    let bytes = bytes.into();
    let len = u32::try_from(bytes.len()).unwrap();
    verified(&Packed { checksum: Checksum::None, len, bytes, ctr: None })
}

#[test]
fn each_codec_has_its_golden_bytes() {
    let text = Bytes::from_static(b"abcabcabcabcabcabcabcabcabcabcabcabc");
    for (codec, golden) in [
        (Compression::None, hex::encode(&text)),
        (Compression::Snappy, "2408616263820300".to_owned()),
        (Compression::Lz4, "240000003f61626303000860616263616263".to_owned()),
        (Compression::Zstd, "28b52ffd20244d00001861626301008e6e08".to_owned()),
        (Compression::Bzip2, BZIP2.to_owned()),
        // 1.5 s after 1970 in front.
        (Compression::Test, format!("000000000000f83f{BZIP2}")),
    ] {
        let packed = pack(&text, codec, None, ChecksumAlgorithm::Crc32c, NOW).unwrap();
        assert_eq!(hex::encode(&packed.bytes), golden, "{}", codec.name());
        let page = include_str!("../../../docs/formats/objects.md");
        assert!(codec == Compression::None || page.contains(&golden), "{} is documented", codec.name());
        let stored = raw(hex::decode(golden).unwrap());
        assert_eq!(unpack(&stored, codec, None, text.len()).unwrap(), text, "{}", codec.name());
    }
    // The vector of the specification.
    assert_eq!(
        unpack(&raw(hex::decode("0308616263").unwrap()), Compression::Snappy, None, 3).unwrap(),
        "abc"
    );
}

#[test]
fn the_test_codec_never_gives_the_same_bytes_twice() {
    let plain = Bytes::from_static(b"the same");
    let at = |now| pack(&plain, Compression::Test, None, ChecksumAlgorithm::Blake3, now).unwrap();
    let (first, second) = (at(NOW), at(Timestamp(NOW.0 + 1)));
    assert_ne!(first.checksum, second.checksum);
    for packed in [first, second] {
        assert_eq!(unpack(&verified(&packed), Compression::Test, None, plain.len()).unwrap(), plain);
    }
    assert!(unpack(&raw(vec![0; 7]), Compression::Test, None, 0).is_err(), "no room for the time");
}

#[test]
fn nothing_is_copied_without_compression() {
    let chunk = Bytes::from(vec![7; 64]);
    let packed =
        pack_chunk(&chunk, shape(2, 1), Compression::None, None, ChecksumAlgorithm::Blake3, NOW).unwrap();
    assert_eq!(packed[0].bytes.as_ptr(), chunk.as_ptr());
    assert_eq!(packed[1].bytes.as_ptr(), chunk[32..].as_ptr());
    let plain = unpack(&verified(&packed[1]), Compression::None, None, 32).unwrap();
    assert_eq!(plain.as_ptr(), chunk[32..].as_ptr());
}

#[test]
fn replicas_are_packed_once() {
    let chunk = Bytes::from(vec![7; 65]);
    for codec in CODECS {
        let packed = pack_chunk(&chunk, shape(1, 2), codec, None, ChecksumAlgorithm::Sha1, NOW).unwrap();
        assert_eq!(packed.len(), 3);
        assert!(packed.iter().all(|p| *p == packed[0] && p.bytes.as_ptr() == packed[0].bytes.as_ptr()));
        assert_eq!(unpack(&verified(&packed[2]), codec, None, 65).unwrap(), chunk);
    }
}

#[test]
fn a_bomb_is_an_error_and_not_an_allocation() {
    let bomb = Bytes::from(vec![0; 16 << 20]);
    for codec in CODECS {
        let packed = verified(&pack(&bomb, codec, None, ChecksumAlgorithm::None, NOW).unwrap());
        assert!(unpack(&packed, codec, None, 64).is_err(), "{} larger", codec.name());
        let small =
            verified(&pack(&Bytes::from_static(b"0123"), codec, None, ChecksumAlgorithm::None, NOW).unwrap());
        assert!(unpack(&small, codec, None, 64).is_err(), "{} smaller", codec.name());
        assert!(unpack(&small, codec, None, 0).is_err(), "{} empty", codec.name());
    }
    // An announced length of 4 GiB.
    let lz4 = raw(hex::decode("ffffffff3061626300").unwrap());
    assert_eq!(
        unpack(&lz4, Compression::Lz4, None, 3),
        Err(UnpackError::Length { expected: 3, found: 0xffff_ffff })
    );
}

#[test]
fn verification_comes_before_unpacking() {
    let packed =
        pack(&Bytes::from_static(b"data"), Compression::None, None, ChecksumAlgorithm::Blake3, NOW).unwrap();
    let entry = packed.entry(None, ObjectVersion(0));
    let damaged = PackedFragment(Bytes::from_static(b"dada"));
    assert_eq!(damaged.clone().verify(&entry), Err(damaged));
    let longer = PackedFragment(Bytes::from_static(b"data1"));
    assert!(longer.verify(&entry).is_err());
}

#[test]
fn padding_is_zeros() {
    let mut buffer = BytesMut::from(&b"secretsecret"[..]);
    buffer.truncate(3);
    assert_eq!(pad(buffer, 6), &b"sec\0\0\0"[..]);
}

#[test]
fn a_chunk_that_k_does_not_divide_is_refused() {
    let chunk = Bytes::from_static(b"abc");
    assert_eq!(split(&chunk, shape(2, 1)), Err(CodeError::Length { expected: 4, found: 3 }));
    assert!(encode_chunk(&chunk, shape(2, 1)).is_err());
}

#[test]
fn unequal_or_unknown_fragments_are_refused() {
    let shape = shape(2, 1);
    let present = |fragments: &[(u32, &'static [u8])]| -> Vec<(FragmentIndex, Bytes)> {
        fragments.iter().map(|(i, bytes)| (FragmentIndex(*i), Bytes::from_static(bytes))).collect()
    };
    let data = |fragments: &[(u32, &'static [u8])]| data_fragments(shape, &present(fragments));
    assert_eq!(data(&[(0, b"ab"), (1, b"c")]), Err(CodeError::Length { expected: 2, found: 1 }));
    assert_eq!(data(&[(0, b"ab"), (3, b"cd")]), Err(CodeError::Index { index: FragmentIndex(3), total: 3 }));
    assert_eq!(data(&[(2, b"ab")]), Err(CodeError::TooFew { needed: 2, found: 1 }));
    assert_eq!(data(&[]), Err(CodeError::TooFew { needed: 2, found: 0 }));
}

#[test]
fn present_data_is_passed_on_as_it_is() {
    let chunk = Bytes::from((0..48).collect::<Vec<u8>>());
    let shape = shape(3, 2);
    let fragments = encode_chunk(&chunk, shape).unwrap();
    let present: Vec<_> =
        [4, 0, 2].map(|i| (FragmentIndex(i), fragments[usize::try_from(i).unwrap()].clone())).into();
    let data = data_fragments(shape, &present).unwrap();
    assert_eq!(data.concat(), chunk);
    assert_eq!(data[0].as_ptr(), chunk.as_ptr());
    assert_eq!(data[2].as_ptr(), chunk[32..].as_ptr());
}

#[test]
fn trimming_ends_where_the_object_does() {
    let fragments = || vec![Bytes::from_static(b"abcd"), Bytes::from_static(b"ef\0\0")];
    assert_eq!(trim(fragments(), 6).concat(), b"abcdef");
    assert_eq!(trim(fragments(), 3), [Bytes::from_static(b"abc")]);
    assert_eq!(trim(fragments(), 0), Vec::<Bytes>::new());
    assert_eq!(trim(fragments(), 100).concat(), b"abcdef\0\0");
}

fn codec() -> impl Strategy<Value = Compression> {
    prop::sample::select(&CODECS[..])
}

proptest! {
    #[test]
    fn a_chunk_comes_back_from_any_k_fragments(
        k in 1_u8..7, m in 0_u8..5, units in 0_usize..5, codec in codec(), seed: u64, level in 0_u8..4
    ) {
        use rand::{Rng, SeedableRng};
        let shape = shape(k, m);
        let mut chunk = vec![0; units * 16 * shape.k()];
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        rng.fill_bytes(&mut chunk);
        // From incompressible to all alike.
        chunk.iter_mut().for_each(|byte| *byte >>= level * 2);
        let chunk = Bytes::from(chunk);
        let packed = pack_chunk(&chunk, shape, codec, None, ChecksumAlgorithm::Crc32c, NOW).unwrap();
        prop_assert_eq!(packed.len(), shape.total());
        let plain_len = chunk.len() / shape.k();
        let mut present: Vec<(FragmentIndex, Bytes)> = (0..)
            .map(FragmentIndex)
            .zip(&packed)
            .map(|(index, packed)| (index, unpack(&verified(packed), codec, None, plain_len).unwrap()))
            .collect();
        while present.len() > shape.k() {
            let gone = rng.next_u64() % u64::try_from(present.len()).unwrap();
            present.remove(usize::try_from(gone).unwrap());
        }
        prop_assert_eq!(data_fragments(shape, &present).unwrap().concat(), &chunk[..]);
    }

    #[test]
    fn garbage_never_unpacks_to_another_length(bytes in proptest::collection::vec(any::<u8>(), 0..80), len in 0_usize..100, codec in codec()) {
        if let Ok(plain) = unpack(&raw(bytes), codec, None, len) {
            prop_assert_eq!(plain.len(), len);
        }
    }
}

#[test]
fn encrypted_fragments_have_counters_of_their_own_and_need_the_key() {
    let key = FragmentKey::new([3; 32]);
    let chunk = Bytes::from(vec![7; 64]);
    let counters: Vec<CounterBlock> = (1..=3).map(|n| [n; 16]).collect();
    for codec in [Compression::None, Compression::Zstd] {
        let with = |shape, counters| {
            pack_chunk(&chunk, shape, codec, Some((&key, counters)), ChecksumAlgorithm::Blake3, NOW)
        };
        let packed = with(shape(2, 1), &counters).unwrap();
        for (packed, counter) in packed.iter().zip(&counters) {
            assert_eq!(packed.entry(None, ObjectVersion(0)).ctr, Some(*counter));
            let cipher = |key| Some(Cipher { key, counter: *counter });
            assert_eq!(unpack(&verified(packed), codec, cipher(&key), 32).unwrap(), chunk.slice(..32));
            let other = FragmentKey::new([4; 32]);
            assert_ne!(unpack(&verified(packed), codec, cipher(&other), 32).ok(), Some(chunk.slice(..32)));
            assert_ne!(unpack(&verified(packed), codec, None, 32).ok(), Some(chunk.slice(..32)));
        }
        // Equal bytes, unlike once encrypted.
        assert_ne!(packed[0].bytes, packed[1].bytes);
        let copies = with(shape(1, 2), &counters[..1]).unwrap();
        assert!(copies.iter().all(|copy| *copy == copies[0]));
        assert_eq!(with(shape(1, 2), &counters), Err(PackError::Counters { expected: 1, found: 3 }));
        assert_eq!(with(shape(2, 1), &counters[..2]), Err(PackError::Counters { expected: 3, found: 2 }));
    }
}

proptest! {
    /// What comes out of right fragments is proven; what comes out of anything else is not handed out.
    #[test]
    fn what_is_computed_of_unverified_fragments_is_right_or_nothing(
        (k, m) in (1_u8..6, 1_u8..4),
        content in prop::collection::vec(any::<u8>(), 1..2000),
        order in any::<prop::sample::Index>(),
        (damaged, at, flip) in (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1_u8..=255),
    ) {
        let shape = shape(k, m);
        let size = content.len().next_multiple_of(shape.k());
        let chunk = pad(BytesMut::from(&content[..]), size);
        let packed = pack_chunk(&chunk, shape, Compression::None, None, ChecksumAlgorithm::Blake3, NOW).unwrap();
        let total = shape.total();
        let from = order.index(total);
        let index = |nth: usize| FragmentIndex(u32::try_from((from + nth) % total).unwrap());
        let present: Vec<_> = (0..shape.k())
            .map(|nth| (index(nth), PackedFragment(packed[index(nth).index()].bytes.clone())))
            .collect();
        let wanted: Vec<_> = (shape.k()..total)
            .map(|nth| (index(nth), packed[index(nth).index()].entry(None, ObjectVersion(0))))
            .collect();
        let made = regenerate_proven(shape, present.clone(), &wanted).unwrap();
        for (made, (index, _)) in made.iter().zip(&wanted) {
            prop_assert_eq!(made.bytes(), &packed[index.index()].bytes);
        }

        let mut wrong = present.clone();
        let mut bytes = wrong[damaged.index(shape.k())].1.0.to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        wrong[damaged.index(shape.k())].1.0 = bytes.into();
        prop_assert_eq!(regenerate_proven(shape, wrong, &wanted), None);
        prop_assert_eq!(regenerate_proven(shape, present[1..].to_vec(), &wanted), None);

        let mut bare = wanted;
        for (_, entry) in &mut bare {
            entry.checksum = Checksum::None;
        }
        prop_assert_eq!(regenerate_proven(shape, present, &bare), None, "nothing proves it");
    }
}
