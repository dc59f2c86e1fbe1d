//! The inner loop with GF2P8AFFINEQB on 32-byte registers, for CPUs with GFNI but without AVX-512.

#![expect(
    clippy::needless_range_loop,
    reason = "over zipped iterators the compiler kept the sums in memory: a third slower"
)]

use std::arch::x86_64::{
    __m256i, _mm256_gf2p8affine_epi64_epi8, _mm256_loadu_si256, _mm256_set1_epi64x, _mm256_setzero_si256,
    _mm256_storeu_si256, _mm256_xor_si256,
};

use super::alignment::{LINE, lead};
use super::{Coefficients, portable};

/// Rows per pass: 8 accumulators leave 8 of the 16 registers for inputs and matrices.
const ROWS: usize = 8;

/// `out = matrix · data`. The caller has checked that the CPU has gfni and avx2, that there is one input per column and
/// one output per row, and that all have the same length.
pub(super) fn multiply(matrix: &Coefficients, data: &[&[u8]], out: &mut [&mut [u8]]) {
    for (group, rows) in out.chunks_mut(ROWS).enumerate() {
        let first = group * ROWS;
        let start = lead(data.iter().copied().chain(rows.iter().map(|row| &**row)));
        // SAFETY: the CPU has the features (checked by `Kernel::multiply` before it chose this module).
        unsafe {
            match rows.len() {
                1 => pass::<1, 4>(matrix, first, data, rows, start),
                2 => pass::<2, 4>(matrix, first, data, rows, start),
                3 => pass::<3, 2>(matrix, first, data, rows, start),
                4 => pass::<4, 2>(matrix, first, data, rows, start),
                5 => pass::<5, 2>(matrix, first, data, rows, start),
                6 => pass::<6, 2>(matrix, first, data, rows, start),
                7 => pass::<7, 1>(matrix, first, data, rows, start),
                _ => pass::<8, 1>(matrix, first, data, rows, start),
            }
        }
    }
}

/// R outputs, U registers of each at a time from `start` < 64 on; `out` has exactly R slices, all of the length of every
/// input. Both ends are blocks of 32 bytes that overlap the rest: computing a byte twice gives the same byte, since
/// outputs are never inputs. Buffers of fewer than 32 bytes go through the portable kernel: no vector access crosses
/// the end of a buffer.
#[target_feature(enable = "gfni,avx2")]
fn pass<const R: usize, const U: usize>(
    matrix: &Coefficients,
    first_row: usize,
    data: &[&[u8]],
    out: &mut [&mut [u8]],
    start: usize,
) {
    let len = out.first().map_or(0, |first| first.len());
    if len < 32 {
        portable::multiply_from(matrix, first_row, data, out, 0);
        return;
    }
    let mut at = 0;
    if start > 0 && len >= LINE {
        block::<R, 1>(matrix, first_row, data, out, 0);
        if start > 32 {
            block::<R, 1>(matrix, first_row, data, out, start - 32);
        }
        at = start;
    }
    while len - at >= 32 * U {
        block::<R, U>(matrix, first_row, data, out, at);
        at += 32 * U;
    }
    while len - at >= 32 {
        block::<R, 1>(matrix, first_row, data, out, at);
        at += 32;
    }
    if at < len {
        block::<R, 1>(matrix, first_row, data, out, len - 32);
    }
}

/// The 32 × U bytes from `at`.
#[inline]
#[target_feature(enable = "gfni,avx2")]
fn block<const R: usize, const U: usize>(
    matrix: &Coefficients,
    first_row: usize,
    data: &[&[u8]],
    out: &mut [&mut [u8]],
    at: usize,
) {
    let mut sums = [[_mm256_setzero_si256(); U]; R];
    for (column, input) in data.iter().enumerate() {
        debug_assert!(input.len() >= at + 32 * U);
        let mut x = [_mm256_setzero_si256(); U];
        for (u, x) in x.iter_mut().enumerate() {
            // SAFETY: `pass` calls this with at + 32·U <= the common length of all inputs and outputs.
            *x = unsafe { _mm256_loadu_si256(input.as_ptr().add(at + 32 * u).cast::<__m256i>()) };
        }
        let affine = matrix.affine::<R>(column, first_row);
        for r in 0..R {
            let by = _mm256_set1_epi64x(affine[r].cast_signed());
            for u in 0..U {
                sums[r][u] = _mm256_xor_si256(sums[r][u], _mm256_gf2p8affine_epi64_epi8::<0>(x[u], by));
            }
        }
    }
    for r in 0..R {
        debug_assert!(out[r].len() >= at + 32 * U);
        let to = out[r].as_mut_ptr();
        for u in 0..U {
            // SAFETY: as for the loads.
            unsafe { _mm256_storeu_si256(to.add(at + 32 * u).cast::<__m256i>(), sums[r][u]) };
        }
    }
}
