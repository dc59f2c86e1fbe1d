//! The erasure code: systematic Reed–Solomon over GF(2^8).
//!
//! Fragments `0..k` are the data itself, `k..k+m` parity; any k of them give back the rest. Which bytes parity has is a
//! stored format, fixed by the generator matrix (`matrix`): a faster [`kernel`] may replace another, never change a
//! byte. Nothing here allocates buffers or keeps data: callers own both.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use thiserror::Error;

use crate::ids::FragmentIndex;
use crate::policy::CodeShape;

mod apart;
mod code;
mod decode_cache;
pub mod kernel;
mod matrix;

pub use apart::Apart;
use code::MatrixCode;
use kernel::Kernel;

/// Why fragments cannot be coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CodeError {
    /// Not the number of buffers the shape wants.
    #[error("{found} fragments where the code wants {expected}")]
    Count {
        /// Wanted.
        expected: usize,
        /// Given.
        found: usize,
    },
    /// Fewer than k fragments.
    #[error("{found} fragments are left of which {needed} are needed")]
    TooFew {
        /// k.
        needed: usize,
        /// Given.
        found: usize,
    },
    /// The fragments of a chunk have one length.
    #[error("a fragment has {found} bytes where the others have {expected}")]
    Length {
        /// Of the first one.
        expected: usize,
        /// Of another one.
        found: usize,
    },
    /// No such position in the shape.
    #[error("fragment {index} of a chunk of {total}")]
    Index {
        /// The position.
        index: FragmentIndex,
        /// k + m.
        total: usize,
    },
    /// The same position twice.
    #[error("fragment {0} is given twice")]
    Duplicate(FragmentIndex),
}

/// A code of one shape.
pub trait ErasureCode: Send + Sync {
    /// k and m.
    fn shape(&self) -> CodeShape;

    /// What does the arithmetic; for benches and diagnostics.
    fn kernel(&self) -> &'static str;

    /// Fills the m parity buffers from the k data fragments. All have one length.
    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodeError>;

    /// Fills the wanted fragments, data or parity, from any k (or more) present ones, and computes no others.
    fn reconstruct(
        &self,
        present: &[(FragmentIndex, &[u8])],
        wanted: &mut [(FragmentIndex, &mut [u8])],
    ) -> Result<(), CodeError>;

    /// Does the parity belong to the data? `fragments` are all k + m, in order.
    fn verify(&self, fragments: &[&[u8]]) -> Result<bool, CodeError>;
}

/// How many shapes are kept: presets use a handful; a bound, since shapes also come from manifests.
const CACHED_SHAPES: usize = 64;

static CODES: LazyLock<Mutex<BTreeMap<CodeShape, Arc<dyn ErasureCode>>>> = LazyLock::new(Mutex::default);

/// The code of a shape: the fastest kernel this machine has.
pub fn code(shape: CodeShape) -> Arc<dyn ErasureCode> {
    // What the map holds is never half changed: a poisoned lock is as good as any.
    let mut codes = CODES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(code) = codes.get(&shape) {
        return Arc::clone(code);
    }
    let code: Arc<dyn ErasureCode> = Arc::new(MatrixCode::new(shape, Kernel::best()));
    if codes.len() >= CACHED_SHAPES {
        codes.clear();
    }
    codes.insert(shape, Arc::clone(&code));
    code
}

/// The code of a shape on a given kernel, not cached: for benches and for tests of every kernel the CPU has.
pub fn code_on(shape: CodeShape, kernel: Kernel) -> Arc<dyn ErasureCode> {
    Arc::new(MatrixCode::new(shape, kernel))
}

#[cfg(test)]
mod tests;
