use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reed_solomon_erasure::galois_8::ReedSolomon;

use super::*;

fn shape(k: u8, m: u8) -> CodeShape {
    CodeShape::new(k, m).unwrap()
}

/// k random data fragments and the parity of the code under test.
fn encoded(shape: CodeShape, len: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fragments = vec![vec![0; len]; shape.total()];
    let (data, parity) = fragments.split_at_mut(shape.k());
    data.iter_mut().for_each(|fragment| rng.fill_bytes(fragment));
    let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    // Dirty buffers: encoding must overwrite, not add.
    parity.iter_mut().for_each(|fragment| rng.fill_bytes(fragment));
    let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    code(shape).encode(&data, &mut parity).unwrap();
    fragments
}

/// The crate's parity: the stored format is what it computes.
fn encoded_by_the_crate(shape: CodeShape, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let len = data[0].len();
    let mut fragments = data.to_vec();
    fragments.resize(shape.total(), vec![0; len]);
    ReedSolomon::new(shape.k(), shape.m()).unwrap().encode(&mut fragments).unwrap();
    fragments
}

fn index(position: usize) -> FragmentIndex {
    FragmentIndex(u32::try_from(position).unwrap())
}

/// Gets the fragments of `lost` back from exactly `present`, into dirty buffers.
fn recover(shape: CodeShape, fragments: &[Vec<u8>], present: &[usize], lost: &[usize]) -> Vec<Vec<u8>> {
    let present: Vec<_> = present.iter().map(|i| (index(*i), fragments[*i].as_slice())).collect();
    let mut buffers = vec![vec![0xa5; fragments[0].len()]; lost.len()];
    let mut wanted: Vec<_> =
        lost.iter().zip(&mut buffers).map(|(i, buffer)| (index(*i), buffer.as_mut_slice())).collect();
    code(shape).reconstruct(&present, &mut wanted).unwrap();
    buffers
}

#[test]
fn parity_is_that_of_the_crate() {
    for (k, m) in (1..=20).flat_map(|k| (1..=6).map(move |m| (k, m))).chain([(100, 50), (200, 55), (254, 1)])
    {
        let shape = shape(k, m);
        let fragments = encoded(shape, 37, u64::from(k) * 100 + u64::from(m));
        assert!(fragments == encoded_by_the_crate(shape, &fragments[..shape.k()]), "parity of ({k}, {m})");
    }
}

#[test]
fn parity_has_its_golden_bytes() {
    // The stored format, written down: whoever changes these bytes makes stored objects unreadable.
    let golden = |k, m, data: &str| {
        let bytes = hex::decode(data).unwrap();
        let shape = shape(k, m);
        let len = bytes.len() / shape.k();
        let data: Vec<&[u8]> = bytes.chunks_exact(len).collect();
        let mut parity = vec![vec![0; len]; shape.m()];
        let mut buffers: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        code(shape).encode(&data, &mut buffers).unwrap();
        // The documentation shows the same bytes.
        let page = include_str!("../../../docs/formats/objects.md");
        assert!(k == 1 || parity.iter().all(|fragment| page.contains(&hex::encode(fragment))));
        hex::encode(parity.concat())
    };
    assert_eq!(golden(2, 2, "0102030405060708"), "090a0b1c0d0e0f10");
    assert_eq!(golden(5, 4, "0001020311121314222324253334353644454647"), "554e5748664760417748714a884737c2");
    assert_eq!(golden(1, 2, "616263"), "616263616263");
}

#[test]
fn every_loss_pattern_is_recovered() {
    for (k, m) in [(2, 1), (2, 2), (4, 2), (5, 4), (3, 3), (1, 3), (6, 1)] {
        let shape = shape(k, m);
        for len in [0, 1, 15, 16, 33] {
            let fragments = encoded(shape, len, 7);
            for mask in 0_u32..1 << shape.total() {
                let (lost, present): (Vec<usize>, Vec<usize>) =
                    (0..shape.total()).partition(|i| mask & (1 << i) != 0);
                if lost.len() > shape.m() {
                    continue;
                }
                for (i, recovered) in lost.iter().zip(recover(shape, &fragments, &present, &lost)) {
                    assert!(
                        recovered == fragments[*i],
                        "({k}, {m}) of {len} bytes lost {lost:?}: fragment {i}"
                    );
                }
            }
        }
    }
}

#[test]
fn any_k_fragments_give_any_other_one() {
    let shape = shape(4, 3);
    let fragments = encoded(shape, 50, 3);
    for mask in 0_u32..1 << shape.total() {
        let (others, present): (Vec<usize>, Vec<usize>) =
            (0..shape.total()).partition(|i| mask & (1 << i) != 0);
        if present.len() != shape.k() {
            continue;
        }
        // Also those that are present: asking for them is odd, not wrong.
        for wanted in others.iter().chain(&present) {
            assert_eq!(recover(shape, &fragments, &present, &[*wanted]), [fragments[*wanted].clone()]);
        }
    }
}

#[test]
fn without_parity_there_is_nothing_to_compute() {
    let shape = shape(3, 0);
    let fragments = encoded(shape, 9, 1);
    assert_eq!(fragments.len(), 3);
    assert_eq!(recover(shape, &fragments, &[0, 1, 2], &[]), Vec::<Vec<u8>>::new());
    assert_eq!(code(shape).verify(&[b"a", b"b", b"c"]), Ok(true));
}

#[test]
fn every_flipped_bit_is_seen() {
    let shape = shape(3, 2);
    // More than one block of the comparison, and an odd end.
    let fragments = encoded(shape, 150_001, 11);
    let verify = |fragments: &[Vec<u8>]| {
        code(shape).verify(&fragments.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap()
    };
    assert!(verify(&fragments));
    for fragment in 0..shape.total() {
        for byte in [0, 65_535, 65_536, 150_000] {
            let mut damaged = fragments.clone();
            damaged[fragment][byte] ^= 0x10;
            assert!(!verify(&damaged), "fragment {fragment} byte {byte}");
        }
    }
}

#[test]
fn what_is_no_code_word_is_refused() {
    let code = code(shape(2, 1));
    let (a, b): (&[u8], &[u8]) = (b"aa", b"bb");
    let mut short = [0; 1];
    let mut buffer = [0; 2];
    assert_eq!(code.encode(&[a], &mut []), Err(CodeError::Count { expected: 2, found: 1 }));
    assert_eq!(code.encode(&[a, b], &mut []), Err(CodeError::Count { expected: 1, found: 0 }));
    assert_eq!(code.encode(&[a, b], &mut [&mut short]), Err(CodeError::Length { expected: 2, found: 1 }));
    let mut reconstruct = |present: &[(u32, &[u8])], wanted: u32| {
        let present: Vec<_> = present.iter().map(|(i, bytes)| (FragmentIndex(*i), *bytes)).collect();
        code.reconstruct(&present, &mut [(FragmentIndex(wanted), &mut buffer)])
    };
    assert_eq!(reconstruct(&[(0, a)], 1), Err(CodeError::TooFew { needed: 2, found: 1 }));
    assert_eq!(reconstruct(&[(0, a), (0, a)], 1), Err(CodeError::Duplicate(FragmentIndex(0))));
    assert_eq!(
        reconstruct(&[(0, a), (3, a)], 1),
        Err(CodeError::Index { index: FragmentIndex(3), total: 3 })
    );
    assert_eq!(
        reconstruct(&[(0, a), (2, a)], 9),
        Err(CodeError::Index { index: FragmentIndex(9), total: 3 })
    );
    assert_eq!(reconstruct(&[(0, a), (2, b"b")], 1), Err(CodeError::Length { expected: 2, found: 1 }));
    assert_eq!(code.verify(&[a, b]), Err(CodeError::Count { expected: 3, found: 2 }));
}

#[test]
fn many_shapes_in_turn_stay_right() {
    // More shapes than are kept.
    for round in 0..2 {
        for k in 1..=80 {
            let shape = shape(k, 1);
            let fragments = encoded(shape, 5, round);
            let present: Vec<usize> = (1..shape.total()).collect();
            assert_eq!(recover(shape, &fragments, &present, &[0]), [fragments[0].clone()]);
        }
    }
}

proptest! {
    #[test]
    fn random_shapes_survive_random_losses(
        k in 1_u8..=40, m in 0_u8..=12, len in 0_usize..70, seed: u64
    ) {
        let shape = shape(k, m);
        let fragments = encoded(shape, len, seed);
        let mut order: Vec<usize> = (0..shape.total()).collect();
        let mut rng = StdRng::seed_from_u64(!seed);
        for i in (1..order.len()).rev() {
            order.swap(i, usize::try_from(rng.next_u64() % (u64::try_from(i).unwrap() + 1)).unwrap());
        }
        let (present, lost) = order.split_at(shape.k());
        let recovered = recover(shape, &fragments, present, lost);
        let expected: Vec<_> = lost.iter().map(|i| fragments[*i].clone()).collect();
        prop_assert_eq!(recovered, expected);
        let all: Vec<&[u8]> = fragments.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(code(shape).verify(&all), Ok(true));
    }

    #[test]
    fn the_crate_decodes_what_we_encode(k in 2_u8..=12, m in 1_u8..=5, seed: u64) {
        let shape = shape(k, m);
        let fragments = encoded(shape, 24, seed);
        let mut shards: Vec<Option<Vec<u8>>> = fragments.iter().cloned().map(Some).collect();
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..m {
            let position = usize::try_from(rng.next_u64() % u64::from(k + m)).unwrap();
            shards[position] = None;
        }
        ReedSolomon::new(shape.k(), shape.m()).unwrap().reconstruct(&mut shards).unwrap();
        prop_assert_eq!(shards.into_iter().map(Option::unwrap).collect::<Vec<_>>(), fragments);
    }
}

proptest! {
    /// Every kernel this CPU has, forced, against the crate: parity, and what any loss of at most m fragments gives back.
    #[test]
    fn every_kernel_codes_and_decodes_like_the_crate(
        k in 2_u8..20, m in 1_u8..6, len in 0_usize..400, seed: u64,
    ) {
        let shape = shape(k, m);
        let mut rng = StdRng::seed_from_u64(seed);
        let data: Vec<Vec<u8>> = (0..k)
            .map(|_| {
                let mut fragment = vec![0; len];
                rng.fill_bytes(&mut fragment);
                fragment
            })
            .collect();
        // The crate refuses empty fragments.
        let fragments = if len == 0 { vec![Vec::new(); shape.total()] } else { encoded_by_the_crate(shape, &data) };
        let mut order: Vec<usize> = (0..shape.total()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, usize::try_from(rng.next_u64() % 251).unwrap() % (i + 1));
        }
        let (lost, kept) = order.split_at(usize::from(m));
        for kernel in Kernel::available() {
            let code = code_on(shape, kernel);
            let sources: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            let mut parity = vec![vec![0x5a; len]; usize::from(m)];
            let mut buffers: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
            code.encode(&sources, &mut buffers).unwrap();
            prop_assert_eq!(&parity[..], &fragments[usize::from(k)..], "{} encodes otherwise", kernel);
            let present: Vec<_> = kept.iter().map(|i| (index(*i), fragments[*i].as_slice())).collect();
            let mut rebuilt = vec![vec![0xa5; len]; lost.len()];
            let mut wanted: Vec<_> =
                lost.iter().zip(&mut rebuilt).map(|(i, buffer)| (index(*i), buffer.as_mut_slice())).collect();
            code.reconstruct(&present, &mut wanted).unwrap();
            for (i, rebuilt) in lost.iter().zip(&rebuilt) {
                prop_assert_eq!(rebuilt, &fragments[*i], "{} rebuilds {} otherwise", kernel, i);
            }
            let all: Vec<&[u8]> = fragments.iter().map(Vec::as_slice).collect();
            prop_assert!(code.verify(&all).unwrap());
            if len > 0 {
                let mut damaged = fragments.clone();
                damaged[lost[0]][len / 2] ^= 1;
                let damaged: Vec<&[u8]> = damaged.iter().map(Vec::as_slice).collect();
                prop_assert!(!code.verify(&damaged).unwrap());
            }
        }
    }
}
