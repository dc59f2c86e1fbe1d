//! A code as matrix arithmetic: which rows to apply to which fragments. How rows are applied is the kernel's.

use std::sync::Arc;

use super::decode_cache::{DecodeCache, Loss};
use super::kernel::{Coefficients, Kernel};
use super::matrix::Matrix;
use super::{CodeError, ErasureCode};
use crate::ids::FragmentIndex;
use crate::policy::CodeShape;

/// Bytes of each fragment compared at a time by [`ErasureCode::verify`]: with k inputs this stays in the caches.
const VERIFY_BLOCK: usize = 4 * 1024;

/// k + m is never more (invariant of [`CodeShape`]).
const MAX_FRAGMENTS: usize = 255;

/// A code of one shape on a kernel. Replication (k = 1) and m = 0 use no field arithmetic.
pub(super) struct MatrixCode {
    shape: CodeShape,
    kernel: Kernel,
    /// k + m rows; the first k are the identity.
    generator: Matrix,
    /// The last m of them, prepared for the kernels.
    parity: Coefficients,
    /// The rows one at a time, for `verify`.
    parity_rows: Vec<Coefficients>,
    decoders: DecodeCache,
}

impl MatrixCode {
    pub(super) fn new(shape: CodeShape, kernel: Kernel) -> Self {
        let generator = Matrix::generator(shape);
        let parity_rows: Vec<&[u8]> = generator.rows().skip(shape.k()).collect();
        Self {
            shape,
            kernel,
            parity: Coefficients::new(&parity_rows),
            parity_rows: parity_rows.iter().map(|row| Coefficients::new(&[row])).collect(),
            decoders: DecodeCache::default(),
            generator,
        }
    }

    /// Rows that make the wanted fragments from the k chosen ones, which stand in the order of `chosen`.
    fn decoder(&self, loss: Loss) -> Option<Arc<Coefficients>> {
        self.decoders.get_or_make(loss, |Loss { chosen, wanted }| {
            let rows_of = |indices: &[u8]| {
                Matrix::from_rows(
                    self.shape.k(),
                    indices.iter().map(|index| self.generator.row(usize::from(*index))),
                )
            };
            let rows = rows_of(wanted).times(&rows_of(chosen).inverse()?);
            Some(Coefficients::new(&rows.rows().collect::<Vec<_>>()))
        })
    }

    fn multiply(
        &self,
        matrix: &Coefficients,
        sources: &[&[u8]],
        targets: &mut [&mut [u8]],
    ) -> Result<(), CodeError> {
        // The callers have checked counts and lengths; the kernel checks them again before it touches memory.
        self.kernel
            .multiply(matrix, sources, targets)
            .map_err(|_| CodeError::Count { expected: matrix.columns(), found: sources.len() })
    }

    fn position(&self, index: FragmentIndex) -> Result<usize, CodeError> {
        let total = self.shape.total();
        if index.index() < total { Ok(index.index()) } else { Err(CodeError::Index { index, total }) }
    }
}

fn same_length(expected: usize, lens: impl Iterator<Item = usize>) -> Result<(), CodeError> {
    for found in lens {
        if found != expected {
            return Err(CodeError::Length { expected, found });
        }
    }
    Ok(())
}

fn count(expected: usize, found: usize) -> Result<(), CodeError> {
    if found == expected { Ok(()) } else { Err(CodeError::Count { expected, found }) }
}

impl ErasureCode for MatrixCode {
    fn shape(&self) -> CodeShape {
        self.shape
    }

    fn kernel(&self) -> &'static str {
        self.kernel.name()
    }

    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodeError> {
        count(self.shape.k(), data.len())?;
        count(self.shape.m(), parity.len())?;
        let len = data.first().map_or(0, |first| first.len());
        same_length(len, data.iter().map(|d| d.len()).chain(parity.iter().map(|p| p.len())))?;
        match data {
            _ if len == 0 || parity.is_empty() => {}
            [only] => parity.iter_mut().for_each(|copy| copy.copy_from_slice(only)),
            _ => self.multiply(&self.parity, data, parity)?,
        }
        Ok(())
    }

    fn reconstruct(
        &self,
        present: &[(FragmentIndex, &[u8])],
        wanted: &mut [(FragmentIndex, &mut [u8])],
    ) -> Result<(), CodeError> {
        let k = self.shape.k();
        let mut by_position: Vec<Option<&[u8]>> = vec![None; self.shape.total()];
        let len = present.first().map_or(0, |(_, bytes)| bytes.len());
        same_length(len, present.iter().map(|(_, p)| p.len()).chain(wanted.iter().map(|(_, w)| w.len())))?;
        for (index, bytes) in present {
            if by_position[self.position(*index)?].replace(bytes).is_some() {
                return Err(CodeError::Duplicate(*index));
            }
        }
        let targets: Vec<usize> =
            wanted.iter().map(|(index, _)| self.position(*index)).collect::<Result<_, _>>()?;
        if present.len() < k {
            return Err(CodeError::TooFew { needed: k, found: present.len() });
        }
        if len == 0 || wanted.is_empty() {
            return Ok(());
        }
        // Data fragments stand at their own row, so that the square to invert is the identity but for what is missing.
        let mut spares = (k..).zip(&by_position[k..]).filter_map(|(index, bytes)| Some((index, (*bytes)?)));
        let mut chosen = Vec::with_capacity(k);
        for (index, bytes) in (0..).zip(&by_position[..k]) {
            let source = bytes.map(|bytes| (index, bytes)).or_else(|| spares.next());
            chosen.push(source.ok_or(CodeError::TooFew { needed: k, found: present.len() })?);
        }
        let (rows, sources): (Vec<usize>, Vec<&[u8]>) = chosen.into_iter().unzip();
        let mut buffers: Vec<&mut [u8]> = wanted.iter_mut().map(|(_, buffer)| &mut **buffer).collect();
        if let [only] = sources.as_slice() {
            buffers.iter_mut().for_each(|copy| copy.copy_from_slice(only));
            return Ok(());
        }
        // Positions are below k + m <= 255.
        let small = |indices: Vec<usize>| indices.into_iter().filter_map(|i| u8::try_from(i).ok()).collect();
        // Any k rows of the generator have an inverse, so this cannot be absent.
        let matrix = self
            .decoder(Loss { chosen: small(rows), wanted: small(targets) })
            .ok_or(CodeError::TooFew { needed: k, found: present.len() })?;
        self.multiply(&matrix, &sources, &mut buffers)
    }

    fn verify(&self, fragments: &[&[u8]]) -> Result<bool, CodeError> {
        count(self.shape.total(), fragments.len())?;
        let len = fragments.first().map_or(0, |first| first.len());
        same_length(len, fragments.iter().map(|f| f.len()))?;
        let (data, parity) = fragments.split_at(self.shape.k());
        if let [only] = data {
            return Ok(parity.iter().all(|copy| copy == only));
        }
        // On the stack, so that a scrub of small fragments allocates nothing: k <= 255 slices and one block.
        let mut blocks: [&[u8]; MAX_FRAGMENTS] = [&[]; MAX_FRAGMENTS];
        let mut computed = [0; VERIFY_BLOCK];
        for start in (0..len).step_by(VERIFY_BLOCK) {
            let end = len.min(start + VERIFY_BLOCK);
            for (block, fragment) in blocks.iter_mut().zip(data) {
                *block = &fragment[start..end];
            }
            let computed = &mut computed[..end - start];
            for (row, stored) in self.parity_rows.iter().zip(parity) {
                self.multiply(row, &blocks[..data.len()], &mut [&mut *computed])?;
                if *computed != stored[start..end] {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
