use proptest::prelude::*;
use reed_solomon_erasure::galois_8;

use super::*;

fn naive(matrix: &Coefficients, data: &[&[u8]], row: usize, at: usize) -> u8 {
    data.iter()
        .enumerate()
        .fold(0, |sum, (column, input)| sum ^ galois_8::mul(matrix.at(row, column), input[at]))
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut out = vec![0; len];
    hasher.finalize_xof().fill(&mut out);
    out
}

#[test]
fn the_forced_kernel_is_used_where_the_cpu_has_it() {
    for kernel in Kernel::ALL {
        assert_eq!(choose(Some(kernel.name()), |_| true), kernel);
        assert_eq!(choose(Some(kernel.name()), |k| k == Kernel::Portable), Kernel::Portable);
    }
    assert_eq!(choose(Some("no such kernel"), |_| true), Kernel::GfniAvx512);
    assert_eq!(choose(None, |k| k >= Kernel::Avx2), Kernel::Avx2);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let matrix = Coefficients::new(&[[1, 2], [3, 4]]);
    let (a, b) = ([0; 4], [0; 5]);
    let (mut p, mut q) = ([0; 4], [0; 4]);
    let kernel = Kernel::Portable;
    assert_eq!(
        kernel.multiply(&matrix, &[&a], &mut [&mut p, &mut q]),
        Err(ShapeError::Inputs { given: 1, columns: 2 })
    );
    assert_eq!(
        kernel.multiply(&matrix, &[&a, &a], &mut [&mut p]),
        Err(ShapeError::Outputs { given: 1, rows: 2 })
    );
    assert_eq!(
        kernel.multiply(&matrix, &[&a, &b], &mut [&mut p, &mut q]),
        Err(ShapeError::Length { given: 5, expected: 4 })
    );
}

#[test]
fn every_kernel_of_this_cpu_multiplies_like_the_field() {
    for kernel in Kernel::available() {
        for (rows, columns, len) in
            [(1, 1, 1), (1, 2, 64), (2, 3, 63), (4, 8, 1000), (9, 5, 333), (20, 17, 129), (3, 0, 70)]
        {
            let coefficients: Vec<Vec<u8>> = (0_u64..).take(rows).map(|r| bytes(r, columns)).collect();
            let matrix = Coefficients::new(&coefficients);
            let data: Vec<Vec<u8>> =
                (0..columns).map(|c| bytes(1000 + u64::try_from(c).unwrap(), len)).collect();
            let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            let mut out = vec![vec![0xAA; len]; rows];
            let mut slices: Vec<&mut [u8]> = out.iter_mut().map(Vec::as_mut_slice).collect();
            kernel.multiply(&matrix, &data, &mut slices).unwrap();
            for (row, output) in out.iter().enumerate() {
                for (at, byte) in output.iter().enumerate() {
                    assert_eq!(
                        *byte,
                        naive(&matrix, &data, row, at),
                        "{kernel} {rows}x{columns} row {row} byte {at}"
                    );
                }
            }
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn no_kernel_touches_a_byte_outside_its_buffers() {
    use super::guard::{Edge, Guarded};
    let matrix = |rows: usize, columns: usize| {
        Coefficients::new(&(0_u64..).take(rows).map(|r| bytes(r, columns)).collect::<Vec<_>>())
    };
    for edge in [Edge::Front, Edge::Back] {
        for (rows, columns) in [(1, 2), (2, 4), (3, 3), (4, 8), (5, 2), (7, 3), (9, 5)] {
            let matrix = matrix(rows, columns);
            for len in (0..=70).chain([127, 128, 129, 255, 256, 257, 4095, 4096, 4097]) {
                let plain: Vec<Vec<u8>> = (0_u64..).take(columns).map(|c| bytes(c + 99, len)).collect();
                let data: Vec<Guarded> = plain.iter().map(|bytes| Guarded::holding(bytes, edge)).collect();
                let data: Vec<&[u8]> = data.iter().map(Guarded::as_ref).collect();
                let run = |kernel: Kernel| {
                    let mut out: Vec<Guarded> = (0..rows).map(|_| Guarded::new(len, edge)).collect();
                    let mut slices: Vec<&mut [u8]> = out.iter_mut().map(Guarded::as_mut).collect();
                    kernel.multiply(&matrix, &data, &mut slices).unwrap();
                    out.iter().map(|o| o.as_ref().to_vec()).collect::<Vec<_>>()
                };
                let expected = run(Kernel::Portable);
                for kernel in Kernel::available() {
                    assert_eq!(
                        run(kernel),
                        expected,
                        "{kernel} {rows}x{columns}, {len} bytes at the {edge:?}"
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_kernel_of_this_cpu_equals_the_portable_one(
        rows in 1_usize..12, columns in 1_usize..36, len in 0_usize..700,
        offset in 0_usize..64, seed: u64,
    ) {
        let coefficients: Vec<Vec<u8>> = (0_u64..).take(rows).map(|r| bytes(seed ^ r, columns)).collect();
        let matrix = Coefficients::new(&coefficients);
        let data: Vec<Vec<u8>> = (0_u64..).take(columns).map(|c| bytes(seed ^ (1 << 40) ^ c, len + offset)).collect();
        let data: Vec<&[u8]> = data.iter().map(|d| &d[offset..]).collect();
        let run = |kernel: Kernel| {
            let mut out = vec![vec![0x55; len + offset]; rows];
            let mut slices: Vec<&mut [u8]> = out.iter_mut().map(|o| &mut o[offset..]).collect();
            kernel.multiply(&matrix, &data, &mut slices).unwrap();
            out
        };
        let expected = run(Kernel::Portable);
        for kernel in Kernel::available() {
            prop_assert_eq!(&run(kernel), &expected, "{}", kernel);
        }
    }
}
