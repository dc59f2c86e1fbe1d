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
        assert_eq!(parse_forced(kernel.name(), |_| true), Ok(Some(kernel)));
        assert_eq!(parse_forced(kernel.name(), |_| false), Err(ForcedKernelError::Unavailable(kernel)));
    }
    assert_eq!(parse_forced("", |_| true), Ok(None));
    let error = parse_forced("avx3", |_| true).unwrap_err();
    assert_eq!(error, ForcedKernelError::Unknown("avx3".to_owned()));
    // Whoever mistyped one is told all of them.
    assert!(Kernel::ALL.iter().all(|kernel| error.to_string().contains(kernel.name())), "{error}");
}

/// What a process of its own asserts in [`every_kernel_can_be_forced_by_the_environment`]; without the variable, that
/// the fastest kernel is used.
#[test]
fn the_kernel_of_this_process_is_the_expected_one() {
    let expected = std::env::var("ALBA_TEST_EXPECTED_KERNEL").unwrap_or_else(|_| {
        let forced = Kernel::forced().unwrap();
        forced.or_else(|| Kernel::available().next()).unwrap().to_string()
    });
    let shape = crate::policy::CodeShape::new(2, 2).unwrap();
    let code = crate::erasure::code(shape);
    assert_eq!(code.kernel(), expected);
    let (mut p, mut q) = ([0; 4], [0; 4]);
    code.encode(&[&[1, 2, 3, 4], &[5, 6, 7, 8]], &mut [&mut p, &mut q]).unwrap();
    assert_eq!(hex::encode([p, q].concat()), "090a0b1c0d0e0f10");
}

#[test]
fn every_kernel_can_be_forced_by_the_environment() {
    let run = |forced: &str, expected: &str| {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "erasure::kernel::tests::the_kernel_of_this_process_is_the_expected_one"])
            .env("ALBA_ERASURE_KERNEL", forced)
            .env("ALBA_TEST_EXPECTED_KERNEL", expected)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("running 1 test"), "{text}");
        assert!(output.status.success(), "{forced}: {text}");
    };
    for kernel in Kernel::available() {
        run(kernel.name(), kernel.name());
    }
    let fastest = Kernel::available().next().unwrap();
    run("", fastest.name());
    // Libraries go on with the right bytes; daemons refuse to start (tests/tests/bad_input.rs).
    run("avx3", fastest.name());
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

#[test]
#[cfg(target_arch = "x86_64")]
fn streamed_outputs_have_the_same_bytes() {
    use super::alignment::to_boundary;
    if !Kernel::GfniAvx512.is_available() {
        return;
    }
    for (rows, columns) in [(1, 2), (2, 3), (3, 4), (4, 16), (5, 2), (6, 6), (7, 3), (8, 20), (9, 5)] {
        let coefficients: Vec<Vec<u8>> = (0_u64..).take(rows).map(|r| bytes(r, columns)).collect();
        let matrix = Coefficients::new(&coefficients);
        for len in (0..=130).chain([255, 256, 300, 511, 512, 1000, 4096, 4097]) {
            let data: Vec<Vec<u8>> = (0_u64..).take(columns).map(|c| bytes(c + 99, len)).collect();
            let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            // All outputs at one distance from a line, as streaming wants them, and one that is not.
            for (distance, odd) in [(0, 0), (1, 0), (48, 0), (63, 0), (0, 1), (16, 63)] {
                let mut out = vec![vec![0x55; len + 128]; rows];
                let run = |out: &mut [Vec<u8>], large: bool| {
                    let mut slices: Vec<&mut [u8]> = Vec::new();
                    for (row, out) in out.iter_mut().enumerate() {
                        let start = (to_boundary(out) + distance + if row == 1 { odd } else { 0 }) % 64;
                        slices.push(&mut out[start..start + len]);
                    }
                    gfni_avx512::multiply_or_stream(&matrix, &data, &mut slices, large);
                    slices.iter().map(|slice| slice.to_vec()).collect::<Vec<_>>()
                };
                let expected = run(&mut out, false);
                out.iter_mut().for_each(|out| out.fill(0x55));
                assert_eq!(
                    run(&mut out, true),
                    expected,
                    "{rows}x{columns} {len} bytes at {distance}, {odd}"
                );
                // Nothing was written around them.
                for out in &mut out {
                    let written = out.iter().filter(|byte| **byte != 0x55).count();
                    assert!(written <= len, "{rows}x{columns} {len} bytes: {written} written");
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
