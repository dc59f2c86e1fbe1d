//! A code as matrix arithmetic: which rows to apply to which fragments. How rows are applied is the kernel's.

use std::marker::PhantomData;

use super::matrix::Matrix;
use super::{CodeError, ErasureCode};
use crate::ids::FragmentIndex;
use crate::policy::CodeShape;

/// What does the work.
pub(super) trait Kernel: Send + Sync + 'static {
    /// For benches and diagnostics.
    const NAME: &'static str;

    /// `targets[i] = Σ_j rows[i][j] · sources[j]`, byte by byte. All slices have one length, not 0; there are as many
    /// rows as targets and as many columns as sources.
    fn multiply(rows: &Matrix, sources: &[&[u8]], targets: &mut [&mut [u8]]);
}

/// Bytes of each fragment compared at a time by [`ErasureCode::verify`].
const VERIFY_BLOCK: usize = 64 * 1024;

/// A code of one shape on a kernel. Replication (k = 1) and m = 0 use no field arithmetic.
pub(super) struct MatrixCode<K> {
    shape: CodeShape,
    /// k + m rows; the first k are the identity.
    generator: Matrix,
    /// The last m of them.
    parity_rows: Matrix,
    kernel: PhantomData<K>,
}

impl<K: Kernel> MatrixCode<K> {
    pub(super) fn new(shape: CodeShape) -> Self {
        let generator = Matrix::generator(shape);
        let parity_rows = Matrix::from_rows(shape.k(), generator.rows().skip(shape.k()));
        Self { shape, generator, parity_rows, kernel: PhantomData }
    }

    /// Rows that make the wanted fragments from the k chosen ones, which stand in the order of `chosen`.
    fn decode_rows(&self, chosen: &[usize], wanted: impl Iterator<Item = usize>) -> Option<Matrix> {
        let square = Matrix::from_rows(self.shape.k(), chosen.iter().map(|index| self.generator.row(*index)));
        let wanted = Matrix::from_rows(self.shape.k(), wanted.map(|index| self.generator.row(index)));
        Some(wanted.times(&square.inverse()?))
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

impl<K: Kernel> ErasureCode for MatrixCode<K> {
    fn shape(&self) -> CodeShape {
        self.shape
    }

    fn kernel(&self) -> &'static str {
        K::NAME
    }

    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), CodeError> {
        count(self.shape.k(), data.len())?;
        count(self.shape.m(), parity.len())?;
        let len = data.first().map_or(0, |first| first.len());
        same_length(len, data.iter().map(|d| d.len()).chain(parity.iter().map(|p| p.len())))?;
        match data {
            _ if len == 0 || parity.is_empty() => {}
            [only] => parity.iter_mut().for_each(|copy| copy.copy_from_slice(only)),
            _ => K::multiply(&self.parity_rows, data, parity),
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
        // Any k rows of the generator have an inverse, so this cannot be absent.
        let matrix = self
            .decode_rows(&rows, targets.into_iter())
            .ok_or(CodeError::TooFew { needed: k, found: present.len() })?;
        K::multiply(&matrix, &sources, &mut buffers);
        Ok(())
    }

    fn verify(&self, fragments: &[&[u8]]) -> Result<bool, CodeError> {
        count(self.shape.total(), fragments.len())?;
        let len = fragments.first().map_or(0, |first| first.len());
        same_length(len, fragments.iter().map(|f| f.len()))?;
        let (data, parity) = fragments.split_at(self.shape.k());
        let mut scratch = vec![0; self.shape.m() * VERIFY_BLOCK.min(len)];
        for start in (0..len).step_by(VERIFY_BLOCK) {
            let block = start..len.min(start + VERIFY_BLOCK);
            let data: Vec<&[u8]> = data.iter().map(|d| &d[block.clone()]).collect();
            let mut computed: Vec<&mut [u8]> =
                scratch.chunks_exact_mut(block.len()).take(parity.len()).collect();
            self.encode(&data, &mut computed)?;
            if computed.iter().zip(parity).any(|(computed, stored)| **computed != stored[block.clone()]) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
