//! The inner loop with GF2P8AFFINEQB on 64-byte registers: all outputs of a column of bytes are accumulated in
//! registers while each input is read once.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512,
    _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8, _mm512_set1_epi64, _mm512_setzero_si512,
    _mm512_storeu_si512, _mm512_xor_si512,
};

use super::Coefficients;

/// Rows per pass: 8 accumulators of 2 registers leave half of the 32 registers for inputs.
const ROWS: usize = 8;

/// How far ahead inputs are prefetched, in bytes: k + m streams are more than the hardware follows well. 512 measured
/// 10 to 15 % faster than none at 5+4 and 8+4 with fragments of 1 MiB, 1024 and 2048 about the same.
const AHEAD: usize = 512;

/// `out = matrix · data`. The caller has checked that the CPU has gfni, avx512f and avx512bw, that there is one input
/// per column and one output per row, and that all have the same length.
pub(super) fn multiply(matrix: &Coefficients, data: &[&[u8]], out: &mut [&mut [u8]]) {
    for (group, rows) in out.chunks_mut(ROWS).enumerate() {
        let first = group * ROWS;
        // SAFETY: the CPU has the features (checked by `Kernel::multiply` before it chose this module).
        unsafe {
            match rows.len() {
                1 => pass::<1, 4>(matrix, first, data, rows),
                2 => pass::<2, 4>(matrix, first, data, rows),
                3 => pass::<3, 4>(matrix, first, data, rows),
                4 => pass::<4, 2>(matrix, first, data, rows),
                5 => pass::<5, 2>(matrix, first, data, rows),
                6 => pass::<6, 2>(matrix, first, data, rows),
                7 => pass::<7, 2>(matrix, first, data, rows),
                _ => pass::<8, 2>(matrix, first, data, rows),
            }
        }
    }
}

/// R outputs, U registers of each at a time; `out` has exactly R slices, all of the length of every input.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn pass<const R: usize, const U: usize>(
    matrix: &Coefficients,
    first_row: usize,
    data: &[&[u8]],
    out: &mut [&mut [u8]],
) {
    let len = out.first().map_or(0, |first| first.len());
    let mut at = 0;
    while len - at >= 64 * U {
        block::<R, U>(matrix, first_row, data, out, at);
        at += 64 * U;
    }
    while len - at >= 64 {
        block::<R, 1>(matrix, first_row, data, out, at);
        at += 64;
    }
    if at < len {
        tail::<R>(matrix, first_row, data, out, at, (1 << (len - at)) - 1);
    }
}

/// The 64 × U bytes from `at`.
#[inline]
#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn block<const R: usize, const U: usize>(
    matrix: &Coefficients,
    first_row: usize,
    data: &[&[u8]],
    out: &mut [&mut [u8]],
    at: usize,
) {
    let mut sums = [[_mm512_setzero_si512(); U]; R];
    for (column, input) in data.iter().enumerate() {
        let affine = matrix.affine::<R>(column, first_row);
        debug_assert!(input.len() >= at + 64 * U);
        for u in 0..U {
            // A hint, harmless past the end: an address is made, nothing is read.
            _mm_prefetch::<_MM_HINT_T0>(input.as_ptr().wrapping_add(at + AHEAD + 64 * u).cast::<i8>());
        }
        let mut x = [_mm512_setzero_si512(); U];
        for (u, x) in x.iter_mut().enumerate() {
            // SAFETY: `pass` calls this with at + 64·U <= the common length of all inputs and outputs.
            *x = unsafe { _mm512_loadu_si512(input.as_ptr().add(at + 64 * u).cast::<__m512i>()) };
        }
        for (sums, matrix) in sums.iter_mut().zip(affine) {
            let by = _mm512_set1_epi64(matrix.cast_signed());
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = _mm512_xor_si512(*sum, _mm512_gf2p8affine_epi64_epi8::<0>(x, by));
            }
        }
    }
    for (sums, output) in sums.iter().zip(out.iter_mut()) {
        debug_assert!(output.len() >= at + 64 * U);
        for (u, sum) in sums.iter().enumerate() {
            // SAFETY: as for the loads.
            unsafe { _mm512_storeu_si512(output.as_mut_ptr().add(at + 64 * u).cast::<__m512i>(), *sum) };
        }
    }
}

/// The last bytes from `at`, fewer than 64: bit i of `mask` is set for each of them. Masked loads and stores touch no
/// other byte, so a page that ends right behind the buffers does not fault.
#[inline]
#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn tail<const R: usize>(
    matrix: &Coefficients,
    first_row: usize,
    data: &[&[u8]],
    out: &mut [&mut [u8]],
    at: usize,
    mask: u64,
) {
    let mut sums = [_mm512_setzero_si512(); R];
    for (column, input) in data.iter().enumerate() {
        // SAFETY: `mask` selects exactly the bytes at..len, which every input has.
        let x = unsafe { _mm512_maskz_loadu_epi8(mask, input.as_ptr().add(at).cast::<i8>()) };
        for (sum, matrix) in sums.iter_mut().zip(matrix.affine::<R>(column, first_row)) {
            let by = _mm512_set1_epi64(matrix.cast_signed());
            *sum = _mm512_xor_si512(*sum, _mm512_gf2p8affine_epi64_epi8::<0>(x, by));
        }
    }
    for (sum, output) in sums.iter().zip(out.iter_mut()) {
        // SAFETY: as for the loads.
        unsafe { _mm512_mask_storeu_epi8(output.as_mut_ptr().add(at).cast::<i8>(), mask, *sum) };
    }
}
