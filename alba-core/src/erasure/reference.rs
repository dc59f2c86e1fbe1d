//! The portable kernel: the field arithmetic of the `reed-solomon-erasure` crate. Others are tested against it.

use reed_solomon_erasure::galois_8::{mul_slice, mul_slice_xor};

use super::code::Kernel;
use super::matrix::Matrix;

/// Table look-ups, a byte at a time.
pub(super) struct Reference;

impl Kernel for Reference {
    const NAME: &'static str = "reference";

    fn multiply(rows: &Matrix, sources: &[&[u8]], targets: &mut [&mut [u8]]) {
        for (row, target) in rows.rows().zip(targets) {
            let mut terms = row.iter().zip(sources).filter(|(factor, _)| **factor != 0);
            match terms.next() {
                None => target.fill(0),
                Some((1, source)) => target.copy_from_slice(source),
                Some((factor, source)) => mul_slice(*factor, source, target),
            }
            for (factor, source) in terms {
                mul_slice_xor(*factor, source, target);
            }
        }
    }
}
