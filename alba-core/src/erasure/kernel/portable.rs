//! The inner loop on the `reed-solomon-erasure` crate's arithmetic: the reference that every other kernel equals.

use reed_solomon_erasure::galois_8::{mul_slice, mul_slice_xor};

use super::Coefficients;

/// `out = matrix · data`; the caller has checked the shapes.
pub(super) fn multiply(matrix: &Coefficients, data: &[&[u8]], out: &mut [&mut [u8]]) {
    multiply_from(matrix, 0, data, out, 0);
}

/// The same for rows `first_row..` and the bytes from `start` to the end: the tails of the wide kernels.
///
/// Whole rows at a time: the table look-ups take so long that working in cache-sized blocks only measured slower.
pub(super) fn multiply_from(
    matrix: &Coefficients,
    first_row: usize,
    data: &[&[u8]],
    out: &mut [&mut [u8]],
    start: usize,
) {
    for (row, output) in (first_row..).zip(out.iter_mut()) {
        let output = &mut output[start..];
        let mut terms = data
            .iter()
            .enumerate()
            .map(|(column, input)| (matrix.at(row, column), &input[start..]))
            .filter(|(factor, _)| *factor != 0);
        match terms.next() {
            None => output.fill(0),
            Some((1, input)) => output.copy_from_slice(input),
            Some((factor, input)) => mul_slice(factor, input, output),
        }
        for (factor, input) in terms {
            mul_slice_xor(factor, input, output);
        }
    }
}
