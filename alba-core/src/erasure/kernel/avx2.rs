//! The inner loop with nibble look-ups (PSHUFB) on 32-byte registers: a product is the xor of the products of the two
//! nibbles, each found in a table of 16. Source: Plank, Greenan, Miller, "Screaming Fast Galois Field Arithmetic Using
//! Intel SIMD Instructions" (FAST 2013).

#![expect(
    clippy::needless_range_loop,
    reason = "over zipped iterators the compiler kept the sums in memory: a third slower"
)]

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_loadu_si256,
    _mm256_set1_epi8, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_srli_epi64, _mm256_storeu_si256,
    _mm256_xor_si256,
};

use super::alignment::{LINE, lead};
use super::{Coefficients, portable};

/// Rows per pass: 4 accumulators of 2 registers, 4 for the nibbles and 2 for the tables fill 14 of 16 registers.
const ROWS: usize = 4;

/// `out = matrix · data`. The caller has checked that the CPU has avx2, that there is one input per column and one
/// output per row, and that all have the same length.
pub(super) fn multiply(matrix: &Coefficients, data: &[&[u8]], out: &mut [&mut [u8]]) {
    for (group, rows) in out.chunks_mut(ROWS).enumerate() {
        let first = group * ROWS;
        let start = lead(data.iter().copied().chain(rows.iter().map(|row| &**row)));
        // SAFETY: the CPU has avx2 (checked by `Kernel::multiply` before it chose this module).
        unsafe {
            match rows.len() {
                1 => pass::<1, 2>(matrix, first, data, rows, start),
                2 => pass::<2, 2>(matrix, first, data, rows, start),
                3 => pass::<3, 2>(matrix, first, data, rows, start),
                _ => pass::<4, 2>(matrix, first, data, rows, start),
            }
        }
    }
}

/// R outputs, U registers of each at a time from `start` < 64 on; `out` has exactly R slices, all of the length of every
/// input. Both ends are blocks of 32 bytes that overlap the rest: computing a byte twice gives the same byte, since
/// outputs are never inputs. Buffers of fewer than 32 bytes go through the portable kernel: no vector access crosses
/// the end of a buffer.
#[target_feature(enable = "avx2")]
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
#[target_feature(enable = "avx2")]
fn block<const R: usize, const U: usize>(
    matrix: &Coefficients,
    first_row: usize,
    data: &[&[u8]],
    out: &mut [&mut [u8]],
    at: usize,
) {
    let low_nibble = _mm256_set1_epi8(0x0f);
    let mut sums = [[_mm256_setzero_si256(); U]; R];
    for (column, input) in data.iter().enumerate() {
        debug_assert!(input.len() >= at + 32 * U);
        let mut low = [_mm256_setzero_si256(); U];
        let mut high = [_mm256_setzero_si256(); U];
        for u in 0..U {
            // SAFETY: `pass` calls this with at + 32·U <= the common length of all inputs and outputs.
            let x = unsafe { _mm256_loadu_si256(input.as_ptr().add(at + 32 * u).cast::<__m256i>()) };
            low[u] = _mm256_and_si256(x, low_nibble);
            high[u] = _mm256_and_si256(_mm256_srli_epi64::<4>(x), low_nibble);
        }
        let products = matrix.nibbles::<R>(column, first_row);
        for r in 0..R {
            let of_low = table(products[r].first_chunk());
            let of_high = table(products[r].last_chunk());
            for u in 0..U {
                let product = _mm256_xor_si256(
                    _mm256_shuffle_epi8(of_low, low[u]),
                    _mm256_shuffle_epi8(of_high, high[u]),
                );
                sums[r][u] = _mm256_xor_si256(sums[r][u], product);
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

/// A table of 16 in both halves of a register. Its source always has 32 bytes, so the chunk is always there.
#[inline]
#[target_feature(enable = "avx2")]
fn table(products: Option<&[u8; 16]>) -> __m256i {
    let products = products.unwrap_or(&[0; 16]);
    // SAFETY: reads the 16 bytes of the array.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(products.as_ptr().cast::<__m128i>()) })
}
