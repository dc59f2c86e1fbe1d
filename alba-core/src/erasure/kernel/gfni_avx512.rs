//! The inner loop with GF2P8AFFINEQB on 64-byte registers: all outputs of a column of bytes are accumulated in
//! registers while each input is read once.
//!
//! What made it as fast as it is, measured (docs/performance.md): steps aligned to cache lines ([`super::alignment`]),
//! two inputs at a time so that one VPTERNLOGQ adds both products, four registers per output. Prefetching ahead helped
//! before the steps were aligned and does not any more.

#![expect(
    clippy::needless_range_loop,
    reason = "over zipped iterators the compiler kept the sums in memory: a third slower"
)]

use std::arch::x86_64::{
    __m512i, _mm_sfence, _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512, _mm512_mask_storeu_epi8,
    _mm512_maskz_loadu_epi8, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_storeu_si512,
    _mm512_stream_si512, _mm512_ternarylogic_epi64, _mm512_xor_si512,
};

use super::Coefficients;
use super::alignment::{lead, to_boundary};

/// Rows per pass. R rows of U registers take R·U sums, 2·U of two inputs, 2·R of their matrices (the compiler likes to load
/// them all at once) and two products: [`rows_at`] chooses U so that these stay below 32. One more and sums go to memory
/// and back, which measured 10 to 35 % slower.
const ROWS: usize = 8;

/// Buffers of more than this together do not stay in the caches, so outputs are streamed past them instead of being
/// fetched first: at 16+4 (20 MiB) 1.1 to 1.7 times as fast (docs/performance.md). At 12+4 (16 MiB) it made no difference,
/// and at 10+4 (14 MiB) it was slower when the parity was read again.
const STREAM_ABOVE: usize = 16 << 20;

/// The truth table of a ^ b ^ c.
const XOR3: i32 = 0x96;

/// `out = matrix · data`. The caller has checked that the CPU has gfni, avx512f and avx512bw, that there is one input
/// per column and one output per row, and that all have the same length.
pub(super) fn multiply(matrix: &Coefficients, data: &[&[u8]], out: &mut [&mut [u8]]) {
    let total: usize = data.iter().map(|d| d.len()).chain(out.iter().map(|o| o.len())).sum();
    multiply_or_stream(matrix, data, out, total > STREAM_ABOVE);
}

/// The same, with the choice made: tests stream small buffers too.
pub(super) fn multiply_or_stream(matrix: &Coefficients, data: &[&[u8]], out: &mut [&mut [u8]], large: bool) {
    for (group, rows) in out.chunks_mut(ROWS).enumerate() {
        let first = group * ROWS;
        let boundary = rows.first().map_or(0, |row| to_boundary(row));
        // Streaming stores want whole lines: all outputs must begin them at one offset.
        if large && rows.iter().all(|row| to_boundary(row) == boundary) {
            rows_at::<true>(matrix, first, data, rows, boundary);
        } else {
            let start = lead(data.iter().copied().chain(rows.iter().map(|row| &**row)));
            rows_at::<false>(matrix, first, data, rows, start);
        }
    }
}

/// At most [`ROWS`] outputs. With `STREAM` each of them begins a cache line at `start`.
fn rows_at<const STREAM: bool>(
    matrix: &Coefficients,
    first: usize,
    data: &[&[u8]],
    rows: &mut [&mut [u8]],
    start: usize,
) {
    // SAFETY: the CPU has the features (checked by `Kernel::multiply` before it chose this module).
    unsafe {
        match rows.len() {
            1 => pass::<1, 4, STREAM>(matrix, first, data, rows, start),
            2 => pass::<2, 4, STREAM>(matrix, first, data, rows, start),
            3 => pass::<3, 4, STREAM>(matrix, first, data, rows, start),
            4 => pass::<4, 3, STREAM>(matrix, first, data, rows, start),
            5 => pass::<5, 2, STREAM>(matrix, first, data, rows, start),
            6 => pass::<6, 2, STREAM>(matrix, first, data, rows, start),
            7 => pass::<7, 1, STREAM>(matrix, first, data, rows, start),
            _ => pass::<8, 1, STREAM>(matrix, first, data, rows, start),
        }
    }
}

/// R outputs, U registers of each at a time from `start` < 64 on; `out` has exactly R slices, all of the length of every
/// input. Both ends are blocks of 64 bytes that overlap the rest: computing a byte twice gives the same byte, since
/// outputs are never inputs.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn pass<const R: usize, const U: usize, const STREAM: bool>(
    matrix: &Coefficients,
    first_row: usize,
    data: &[&[u8]],
    out: &mut [&mut [u8]],
    start: usize,
) {
    let len = out.first().map_or(0, |first| first.len());
    if len < 64 {
        if len > 0 {
            short::<R>(matrix, first_row, data, out, (1 << len) - 1);
        }
        return;
    }
    if start > 0 {
        block::<R, 1, false>(matrix, first_row, data, out, 0);
    }
    let mut at = start;
    while len - at >= 64 * U {
        block::<R, U, STREAM>(matrix, first_row, data, out, at);
        at += 64 * U;
    }
    while len - at >= 64 {
        block::<R, 1, STREAM>(matrix, first_row, data, out, at);
        at += 64;
    }
    if STREAM {
        // Streamed bytes are in order with nothing: whoever is told that the outputs are there must find them, and so
        // must the last block, which may write some of them again.
        _mm_sfence();
    }
    if at < len {
        block::<R, 1, false>(matrix, first_row, data, out, len - 64);
    }
}

/// The 64 × U bytes from `at`.
#[inline]
#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn block<const R: usize, const U: usize, const STREAM: bool>(
    matrix: &Coefficients,
    first_row: usize,
    data: &[&[u8]],
    out: &mut [&mut [u8]],
    at: usize,
) {
    let mut sums = [[_mm512_setzero_si512(); U]; R];
    let (pairs, last) = data.as_chunks::<2>();
    for (pair, [left, right]) in pairs.iter().enumerate() {
        let (x, y) = (load::<U>(left, at), load::<U>(right, at));
        let of_x = matrix.affine::<R>(2 * pair, first_row);
        let of_y = matrix.affine::<R>(2 * pair + 1, first_row);
        for r in 0..R {
            let of_x = _mm512_set1_epi64(of_x[r].cast_signed());
            let of_y = _mm512_set1_epi64(of_y[r].cast_signed());
            for u in 0..U {
                sums[r][u] = _mm512_ternarylogic_epi64::<XOR3>(
                    sums[r][u],
                    _mm512_gf2p8affine_epi64_epi8::<0>(x[u], of_x),
                    _mm512_gf2p8affine_epi64_epi8::<0>(y[u], of_y),
                );
            }
        }
    }
    if let [input] = last {
        let x = load::<U>(input, at);
        let of_x = matrix.affine::<R>(2 * pairs.len(), first_row);
        for r in 0..R {
            let of_x = _mm512_set1_epi64(of_x[r].cast_signed());
            for u in 0..U {
                sums[r][u] = _mm512_xor_si512(sums[r][u], _mm512_gf2p8affine_epi64_epi8::<0>(x[u], of_x));
            }
        }
    }
    for r in 0..R {
        debug_assert!(out[r].len() >= at + 64 * U);
        let to = out[r].as_mut_ptr();
        for u in 0..U {
            // SAFETY: `pass` calls this with at + 64·U <= the common length of all inputs and outputs. With `STREAM`
            // it does so only at multiples of 64 from `start`, where every output begins a line of 64 bytes.
            unsafe {
                let to = to.add(at + 64 * u).cast::<__m512i>();
                if STREAM {
                    debug_assert!(to.is_aligned());
                    _mm512_stream_si512(to, sums[r][u]);
                } else {
                    _mm512_storeu_si512(to, sums[r][u]);
                }
            }
        }
    }
}

/// The 64 × U bytes of an input from `at`.
#[inline]
#[target_feature(enable = "avx512f")]
fn load<const U: usize>(input: &[u8], at: usize) -> [__m512i; U] {
    debug_assert!(input.len() >= at + 64 * U);
    let mut x = [_mm512_setzero_si512(); U];
    for (u, x) in x.iter_mut().enumerate() {
        // SAFETY: `pass` calls `block` with at + 64·U <= the common length of all inputs and outputs.
        *x = unsafe { _mm512_loadu_si512(input.as_ptr().add(at + 64 * u).cast::<__m512i>()) };
    }
    x
}

/// Buffers of fewer than 64 bytes: bit i of `mask` is set for each of them. Masked loads and stores touch no other byte,
/// so a page that ends right behind the buffers does not fault.
#[inline]
#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn short<const R: usize>(
    matrix: &Coefficients,
    first_row: usize,
    data: &[&[u8]],
    out: &mut [&mut [u8]],
    mask: u64,
) {
    let mut sums = [_mm512_setzero_si512(); R];
    for (column, input) in data.iter().enumerate() {
        // SAFETY: `mask` selects exactly the bytes that every input has.
        let x = unsafe { _mm512_maskz_loadu_epi8(mask, input.as_ptr().cast::<i8>()) };
        for (sum, matrix) in sums.iter_mut().zip(matrix.affine::<R>(column, first_row)) {
            let by = _mm512_set1_epi64(matrix.cast_signed());
            *sum = _mm512_xor_si512(*sum, _mm512_gf2p8affine_epi64_epi8::<0>(x, by));
        }
    }
    for (sum, output) in sums.iter().zip(out.iter_mut()) {
        // SAFETY: as for the loads.
        unsafe { _mm512_mask_storeu_epi8(output.as_mut_ptr().cast::<i8>(), mask, *sum) };
    }
}
