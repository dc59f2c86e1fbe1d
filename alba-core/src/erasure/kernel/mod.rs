//! Multiplying a matrix over GF(2^8) by fragments: the inner loop of encoding and of decoding alike.
//!
//! Every kernel gives the same bytes as the portable one, which is the `reed-solomon-erasure` crate's arithmetic; the
//! tests compare each kernel the CPU offers with it. The kernel is chosen once, at the first use; the environment
//! variable `ALBA_ERASURE_KERNEL` (`gfni-avx512`, `gfni-avx2`, `avx2`, `portable`) can force one that the CPU has. A
//! daemon does not start with any other value in it.
//!
//! `unsafe` is confined to one module per instruction set; what those modules rely on is checked here, in
//! [`Kernel::multiply`], and nowhere else.

#[cfg(target_arch = "x86_64")]
mod alignment;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod coefficients;
#[cfg(target_arch = "x86_64")]
mod gfni_avx2;
#[cfg(target_arch = "x86_64")]
mod gfni_avx512;
#[cfg(all(test, target_os = "linux"))]
mod guard;
mod portable;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::OnceLock;

use thiserror::Error;

pub use coefficients::Coefficients;

/// An implementation of the inner loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kernel {
    /// GF2P8AFFINEQB on 64-byte registers.
    GfniAvx512,
    /// GF2P8AFFINEQB on 32-byte registers.
    GfniAvx2,
    /// Two nibble look-ups per byte on 32-byte registers.
    Avx2,
    /// The `reed-solomon-erasure` crate's tables; runs everywhere.
    Portable,
}

/// The pieces handed to a kernel do not fit each other.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ShapeError {
    /// Not one input per column.
    #[error("{given} inputs for a matrix of {columns} columns")]
    Inputs {
        /// Inputs given.
        given: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// Not one output per row.
    #[error("{given} outputs for a matrix of {rows} rows")]
    Outputs {
        /// Outputs given.
        given: usize,
        /// Rows of the matrix.
        rows: usize,
    },
    /// Buffers of different lengths.
    #[error("a buffer of {given} bytes among buffers of {expected} bytes")]
    Length {
        /// Length of the odd one.
        given: usize,
        /// Length of the first.
        expected: usize,
    },
}

/// `ALBA_ERASURE_KERNEL` names no kernel that can run here.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ForcedKernelError {
    /// There is none of this name.
    #[error("ALBA_ERASURE_KERNEL: no kernel {0:?}; there are gfni-avx512, gfni-avx2, avx2 and portable")]
    Unknown(String),
    /// Its instructions are missing.
    #[error(
        "ALBA_ERASURE_KERNEL: this CPU cannot run {0}; leave the variable away to use the fastest that it can"
    )]
    Unavailable(Kernel),
}

impl Kernel {
    /// All kernels, fastest first.
    pub const ALL: [Self; 4] = [Self::GfniAvx512, Self::GfniAvx2, Self::Avx2, Self::Portable];

    /// The name used in benches, logs and `ALBA_ERASURE_KERNEL`.
    pub fn name(self) -> &'static str {
        match self {
            Self::GfniAvx512 => "gfni-avx512",
            Self::GfniAvx2 => "gfni-avx2",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// Can this CPU run it?
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::GfniAvx512 => {
                is_x86_feature_detected!("gfni")
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
            }
            Self::GfniAvx2 => is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx2"),
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            Self::Portable => true,
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Portable
        }
    }

    /// Those this CPU can run, fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|kernel| kernel.is_available())
    }

    /// The kernel that `ALBA_ERASURE_KERNEL` asks for; none when it is not set or empty.
    ///
    /// A daemon calls this at its start and refuses to run on an error: whoever forces a kernel must not measure or
    /// test another one.
    pub fn forced() -> Result<Option<Self>, ForcedKernelError> {
        let name = std::env::var_os("ALBA_ERASURE_KERNEL").unwrap_or_default();
        parse_forced(&name.to_string_lossy(), Self::is_available)
    }

    /// The one to use: the forced one, else the fastest that this CPU has. Decided once per process. With
    /// [`Self::forced`] in error it is the fastest one, which is right for every byte, and the log says so.
    pub fn best() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| {
            let forced = Self::forced().unwrap_or_else(|error| {
                tracing::error!(%error, "using the fastest kernel");
                None
            });
            // The last one runs everywhere.
            forced.or_else(|| Self::available().next()).unwrap_or(Self::Portable)
        })
    }

    /// `out[r] = Σ over c of matrix[r][c] · data[c]`, byte by byte, for any length including 0 and any alignment.
    ///
    /// Outputs are overwritten; what was in them does not matter. Nothing is allocated.
    pub fn multiply(
        self,
        matrix: &Coefficients,
        data: &[&[u8]],
        out: &mut [&mut [u8]],
    ) -> Result<(), ShapeError> {
        if data.len() != matrix.columns() {
            return Err(ShapeError::Inputs { given: data.len(), columns: matrix.columns() });
        }
        if out.len() != matrix.rows() {
            return Err(ShapeError::Outputs { given: out.len(), rows: matrix.rows() });
        }
        let Some(first) = out.first() else { return Ok(()) };
        let len = first.len();
        for given in data.iter().map(|d| d.len()).chain(out.iter().map(|o| o.len())) {
            if given != len {
                return Err(ShapeError::Length { given, expected: len });
            }
        }
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::GfniAvx512 if self.is_available() => gfni_avx512::multiply(matrix, data, out),
            Self::GfniAvx2 if self.is_available() => gfni_avx2::multiply(matrix, data, out),
            Self::Avx2 if self.is_available() => avx2::multiply(matrix, data, out),
            _ => portable::multiply(matrix, data, out),
        }
        #[cfg(not(target_arch = "x86_64"))]
        portable::multiply(matrix, data, out);
        Ok(())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn parse_forced(name: &str, available: impl Fn(Kernel) -> bool) -> Result<Option<Kernel>, ForcedKernelError> {
    if name.is_empty() {
        return Ok(None);
    }
    match Kernel::ALL.into_iter().find(|kernel| kernel.name() == name) {
        Some(kernel) if available(kernel) => Ok(Some(kernel)),
        Some(kernel) => Err(ForcedKernelError::Unavailable(kernel)),
        None => Err(ForcedKernelError::Unknown(name.to_owned())),
    }
}
