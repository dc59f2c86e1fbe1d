//! The portable kernel: the field arithmetic of the `reed-solomon-erasure` crate. Others are tested against it.

use reed_solomon_erasure::galois_8::{mul_slice, mul_slice_xor};

use super::code::Kernel;
use super::matrix::Matrix;

/// Table look-ups, a byte at a time.
pub(super) struct Reference;

/// Bytes of each fragment worked on at a time, so that a target stays in the first-level cache while all sources are
/// added to it.
const BLOCK: usize = 16 * 1024;

impl Kernel for Reference {
    const NAME: &'static str = "reference";

    fn multiply(rows: &Matrix, sources: &[&[u8]], targets: &mut [&mut [u8]]) {
        let len = targets.first().map_or(0, |target| target.len());
        for start in (0..len).step_by(BLOCK) {
            let block = start..len.min(start + BLOCK);
            for (row, target) in rows.rows().zip(targets.iter_mut()) {
                let target = &mut target[block.clone()];
                let mut terms = row.iter().zip(sources).filter(|(factor, _)| **factor != 0);
                match terms.next() {
                    None => target.fill(0),
                    Some((1, source)) => target.copy_from_slice(&source[block.clone()]),
                    Some((factor, source)) => mul_slice(*factor, &source[block.clone()], target),
                }
                for (factor, source) in terms {
                    mul_slice_xor(*factor, &source[block.clone()], target);
                }
            }
        }
    }
}
