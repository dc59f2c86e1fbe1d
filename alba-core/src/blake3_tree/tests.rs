use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

fn pattern(len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(1).fill_bytes(&mut bytes);
    bytes.into()
}

fn len_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap()
}

/// What an OSD does.
fn prove(value: &Bytes, slice: ValueSlice) -> ProvenSlice {
    let table = LeafTable::of(value).unwrap();
    let covering = LeafTable::covering(len_of(value), slice).unwrap();
    ProvenSlice {
        value_len: len_of(value),
        leaves: value.slice(to_len(covering.start)..to_len(covering.end)),
        proof: table.prove(slice).unwrap(),
    }
}

fn cut(value: &Bytes, slice: ValueSlice) -> Bytes {
    value.slice(to_len(slice.offset)..to_len(slice.offset + slice.len))
}

fn root(value: &[u8]) -> Root {
    *blake3::hash(value).as_bytes()
}

const LENGTHS: [usize; 17] = [
    0,
    1,
    1023,
    1024,
    1025,
    16_383,
    16_384,
    16_385,
    32_768,
    32_769,
    49_152,
    49_153,
    65_536,
    65_537,
    100_000,
    1 << 20,
    (1 << 20) + 16_385,
];

/// A value and a slice in it; lengths around the boundaries of leaves are as likely as others.
fn value_and_slice() -> impl Strategy<Value = (Bytes, ValueSlice)> {
    let edge = (0_usize..12, 0_usize..3).prop_map(|(leaves, more)| (leaves * LEAF + more).saturating_sub(1));
    let len = prop_oneof![edge, 0_usize..200_000];
    len.prop_flat_map(|len| {
        let edge = (0..=len / LEAF).prop_map(|leaf| leaf * LEAF);
        (Just(len), prop_oneof![edge, 0..=len])
    })
    .prop_flat_map(|(len, offset)| {
        let edge = Just((len - offset).min(LEAF));
        (Just(len), Just(offset), prop_oneof![1 => edge, 4 => 0..=len - offset])
    })
    .prop_map(|(len, offset, slice_len)| {
        let slice =
            ValueSlice { offset: u32::try_from(offset).unwrap(), len: u32::try_from(slice_len).unwrap() };
        (pattern(len), slice)
    })
}

#[test]
fn the_root_is_the_hash() {
    for len in LENGTHS {
        let value = pattern(len);
        let table = LeafTable::of(&value).unwrap();
        assert_eq!(table.root(), root(&value), "{len} bytes");
        assert_eq!(table.as_bytes().len(), LeafTable::encoded_len(len_of(&value)), "{len} bytes");
        assert_eq!(table.value_len(), len_of(&value));
        let parsed = LeafTable::parse(table.root(), len_of(&value), table.as_bytes().clone());
        assert_eq!(parsed, Ok(table), "{len} bytes");
    }
}

#[test]
fn tables_have_32_bytes_per_leaf_and_none_for_one() {
    let lens = [0, 1, 16_384, 16_385, 32_768, 32_769, u32::MAX].map(LeafTable::encoded_len);
    assert_eq!(lens, [0, 0, 0, 64, 64, 96, (1 << 18) * 32]);
}

/// Computed with another implementation (a transcription of section 2 of the BLAKE3 paper). They are on disks: they must
/// stay.
#[test]
fn golden_bytes() {
    let value: Bytes = (0..40_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let table = LeafTable::of(&value).unwrap();
    let [a, b, c] = GOLDEN_LEAVES;
    assert_eq!(hex::encode(table.root()), GOLDEN_ROOT);
    assert_eq!(hex::encode(table.as_bytes()), [a, b, c].concat());
    let proof = |offset, len| hex::encode(table.prove(ValueSlice { offset, len }).unwrap());
    assert_eq!(proof(0, 1), [b, c].concat());
    assert_eq!(proof(16_384, 16_384), [a, c].concat());
    assert_eq!(proof(16_383, 2), c);
    assert_eq!(proof(32_768, 1), GOLDEN_LEFT);
    assert_eq!(proof(0, 40_000), "");
    assert_eq!(proof(20_000, 20_000), a);
}

const GOLDEN_ROOT: &str = "ccd32b4544a24c50fbefb249e10a8fcedc26e2794c79eb8a44ad0631bf07f53f";
const GOLDEN_LEAVES: [&str; 3] = [
    "5384f9b342c6cb86badedcbe662b0e980476a8db17db3cc1f13b19329749ab1f",
    "406632eceb31aa6735f072ad0554f5963f4082b5139978455b44f67732cf949d",
    "083663d9bddc14d40cc2f3869e01c5bebde7632dfea165eda38af01d93d5045b",
];
const GOLDEN_LEFT: &str = "1e03bf3657c5076623059f21d92f2ec634dd276b07e3760625c73416f343d857";

#[test]
fn slices_outside_the_value_are_refused() {
    let table = LeafTable::of(&pattern(20_000)).unwrap();
    for (offset, len) in [(0, 20_001), (20_000, 1), (20_001, 0), (u32::MAX, 1), (1, u32::MAX)] {
        let slice = ValueSlice { offset, len };
        let outside = TreeError::Outside { offset, len, value_len: 20_000 };
        assert_eq!(table.prove(slice), Err(outside.clone()));
        assert_eq!(LeafTable::covering(20_000, slice), Err(outside.clone()));
        let proven = prove(&pattern(20_000), ValueSlice { offset: 0, len: 20_000 });
        assert_eq!(verify(table.root(), 20_000, slice, &proven), Err(outside));
    }
}

#[test]
fn the_largest_value_is_covered_without_overflow() {
    let slice = ValueSlice { offset: u32::MAX - 1, len: 1 };
    let covering = LeafTable::covering(u32::MAX, slice).unwrap();
    assert_eq!(covering, u32::MAX - 16_383..u32::MAX);
    assert_eq!(LeafTable::proof_len(u32::MAX, slice).unwrap(), 18 * 32);
}

#[test]
fn every_flipped_bit_of_a_small_proof_is_found() {
    let value = pattern(2 * LEAF + 100);
    let slice = ValueSlice { offset: 2 * LEAF_BYTES + 10, len: 20 };
    let sound = prove(&value, slice);
    verify(root(&value), sound.value_len, slice, &sound).unwrap();
    let flip = |bytes: &Bytes, bit: usize| {
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        Bytes::from(bytes)
    };
    for bit in 0..sound.leaves.len() * 8 {
        let damaged = ProvenSlice { leaves: flip(&sound.leaves, bit), ..sound.clone() };
        assert_eq!(verify(root(&value), sound.value_len, slice, &damaged), Err(TreeError::Mismatch));
    }
    for bit in 0..sound.proof.len() * 8 {
        let damaged = ProvenSlice { proof: flip(&sound.proof, bit), ..sound.clone() };
        assert_eq!(verify(root(&value), sound.value_len, slice, &damaged), Err(TreeError::Mismatch));
    }
    for bit in 0..256 {
        let other: Root = flip(&Bytes::copy_from_slice(&root(&value)), bit)[..].try_into().unwrap();
        assert_eq!(verify(other, sound.value_len, slice, &sound), Err(TreeError::Mismatch));
    }
    for bit in 0..32 {
        let value_len = sound.value_len ^ 1 << bit;
        let damaged = ProvenSlice { value_len, ..sound.clone() };
        assert!(verify(root(&value), sound.value_len, slice, &damaged).is_err());
        // Even when the reader believes it: here the last leaf is among what was sent.
        assert!(verify(root(&value), value_len, slice, &damaged).is_err());
    }
}

#[test]
fn a_chaining_value_is_no_root() {
    // What a node of the tree hashes to must not pass as a value of its own.
    let value = pattern(2 * LEAF);
    let table = LeafTable::of(&value).unwrap();
    let leaf: Root = table.as_bytes()[..32].try_into().unwrap();
    let slice = ValueSlice { offset: 0, len: LEAF_BYTES };
    let proven = ProvenSlice { value_len: LEAF_BYTES, leaves: value.slice(..LEAF), proof: Bytes::new() };
    assert_eq!(verify(leaf, LEAF_BYTES, slice, &proven), Err(TreeError::Mismatch));
    // Nor may the two chaining values pass as a value of 64 bytes.
    let slice = ValueSlice { offset: 0, len: 64 };
    let proven = ProvenSlice { value_len: 64, leaves: table.as_bytes().clone(), proof: Bytes::new() };
    assert_eq!(verify(table.root(), 64, slice, &proven), Err(TreeError::Mismatch));
}

/// A figure, not a test: `cargo test --release -p alba-core blake3_tree -- --ignored --nocapture`.
#[test]
#[ignore = "prints a figure"]
#[allow(clippy::disallowed_methods, reason = "measures")]
fn speed_beside_blake3() {
    for len in [64 << 10, 1 << 20, 4 << 20] {
        let value = pattern(len);
        let best = |work: &dyn Fn()| {
            (0..40)
                .map(|_| {
                    let start = std::time::Instant::now();
                    work();
                    start.elapsed()
                })
                .min()
                .unwrap()
                .as_secs_f64()
        };
        let whole = best(&|| {
            std::hint::black_box(blake3::hash(&value));
        });
        let table = best(&|| drop(std::hint::black_box(LeafTable::of(&value).unwrap())));
        let slice = ValueSlice { offset: 20_000, len: 4096 };
        let built = LeafTable::of(&value).unwrap();
        let prove_time = best(&|| drop(std::hint::black_box(built.prove(slice).unwrap())));
        let proven = prove(&value, slice);
        let verify_time = best(&|| {
            drop(std::hint::black_box(verify(built.root(), proven.value_len, slice, &proven).unwrap()))
        });
        #[allow(clippy::cast_precision_loss, reason = "a figure")]
        let gib = len as f64 / f64::from(1 << 30);
        println!(
            "{len} bytes: blake3 {:.2} GiB/s, table {:.2} GiB/s, ratio {:.2}; prove {:.1} us, verify 4 KiB {:.1} us",
            gib / whole,
            gib / table,
            whole / table,
            prove_time * 1e6,
            verify_time * 1e6,
        );
    }
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same_table(len in 0_usize..200_000, pieces in prop::collection::vec(1_usize..40_000, 1..6)) {
        let value = pattern(len);
        let mut builder = LeafTableBuilder::new();
        let mut rest = &value[..];
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at(rest.len().min(*piece));
            builder.update(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        let table = builder.finish().unwrap();
        prop_assert_eq!(table.root(), root(&value));
        prop_assert_eq!(table, LeafTable::of(&value).unwrap());
    }

    #[test]
    fn what_is_proven_is_verified((value, slice) in value_and_slice()) {
        let proven = prove(&value, slice);
        prop_assert_eq!(proven.proof.len(), LeafTable::proof_len(len_of(&value), slice).unwrap());
        let verified = verify(root(&value), len_of(&value), slice, &proven).unwrap();
        prop_assert_eq!(verified.into_bytes(), cut(&value, slice));
    }

    /// No more chaining values than there are leaves missing, and at most one per level on each side.
    #[test]
    fn proofs_are_minimal((value, slice) in value_and_slice()) {
        let leaves = leaf_count(len_of(&value));
        let covering = LeafTable::covering(len_of(&value), slice).unwrap();
        let proof = LeafTable::of(&value).unwrap().prove(slice).unwrap();
        if covering.len() == value.len() || slice.len == 0 {
            prop_assert!(proof.is_empty());
        } else {
            let levels = leaves.next_power_of_two().trailing_zeros();
            prop_assert!(proof.len() <= 2 * 32 * usize::try_from(levels).unwrap());
            prop_assert!(proof.len() <= 32 * (leaves - covered_leaves(&covering).len()));
        }
    }

    #[test]
    fn any_change_is_refused((value, slice) in value_and_slice(), at: prop::sample::Index, bit in 0..8_u32, kind in 0..8) {
        prop_assume!(slice.len > 0);
        let mut proven = prove(&value, slice);
        let mut root = root(&value);
        let mut asked = slice;
        let flip = |bytes: &mut Bytes| {
            let mut changed = bytes.to_vec();
            changed[at.index(bytes.len())] ^= 1 << bit;
            *bytes = changed.into();
        };
        match kind {
            0 => flip(&mut proven.leaves),
            1 if !proven.proof.is_empty() => flip(&mut proven.proof),
            2 => root[at.index(32)] ^= 1 << bit,
            3 => proven.value_len ^= 1 << at.index(32),
            4 => proven.leaves = [&proven.leaves[..], &[0]].concat().into(),
            5 => proven.leaves.truncate(proven.leaves.len() - 1),
            6 => proven.proof = [&proven.proof[..], &[0; 32]].concat().into(),
            _ => {
                // The same leaves, said to be those of another place.
                prop_assume!(slice.offset >= LEAF_BYTES);
                asked.offset -= LEAF_BYTES;
            }
        }
        prop_assert!(verify(root, len_of(&value), asked, &proven).is_err());
    }

    #[test]
    fn a_damaged_table_is_refused(len in 16_385_usize..200_000, at: prop::sample::Index, bit in 0..8_u32) {
        let value = pattern(len);
        let table = LeafTable::of(&value).unwrap();
        let parse = |bytes: Vec<u8>| LeafTable::parse(table.root(), len_of(&value), bytes.into());
        let mut damaged = table.as_bytes().to_vec();
        damaged[at.index(table.as_bytes().len())] ^= 1 << bit;
        prop_assert_eq!(parse(damaged), Err(TreeError::Table));
        let shorter = table.as_bytes()[..table.as_bytes().len() - 1].to_vec();
        let found = shorter.len();
        prop_assert_eq!(parse(shorter), Err(TreeError::TableLength { expected: found + 1, found }));
    }

    #[test]
    fn garbage_is_refused_without_a_panic(
        value_len in any::<u32>(), offset in any::<u32>(), len in any::<u32>(), root: [u8; 32],
        leaves in prop::collection::vec(any::<u8>(), 0..100), proof in prop::collection::vec(any::<u8>(), 0..100)
    ) {
        let slice = ValueSlice { offset, len };
        let proven = ProvenSlice { value_len, leaves: leaves.clone().into(), proof: proof.into() };
        if let Ok(verified) = verify(root, value_len, slice, &proven) {
            prop_assert!(verified.as_bytes().is_empty());
        }
        prop_assert!(LeafTable::parse(root, value_len, leaves.into()).is_err() || value_len <= LEAF_BYTES);
    }
}
