//! Matrices over GF(2^8) with polynomial 0x11D, and the generator matrix that is part of the stored format.

use reed_solomon_erasure::galois_8::{add, div, exp, mul};

use crate::policy::CodeShape;

/// Rows × columns of field elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matrix {
    columns: usize,
    elements: Vec<u8>,
}

impl Matrix {
    fn zero(rows: usize, columns: usize) -> Self {
        Self { columns, elements: vec![0; rows * columns] }
    }

    /// Row i is (1, i, i², …). Any `columns` rows of it are independent.
    fn vandermonde(rows: u8, columns: usize) -> Self {
        let elements = (0..rows).flat_map(|row| (0..columns).map(move |power| exp(row, power))).collect();
        Self { columns, elements }
    }

    /// From rows of one length.
    pub(super) fn from_rows<'a>(columns: usize, rows: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self { columns, elements: rows.into_iter().flatten().copied().collect() }
    }

    /// `CodingMatrix::VandermondeSystematic`: the k + m rows that make the fragments from the data; the first k are
    /// the identity.
    pub(super) fn generator(shape: CodeShape) -> Self {
        let (k, m) = shape.as_u8();
        // k + m <= 255 by the invariant of CodeShape.
        let vandermonde = Self::vandermonde(k.saturating_add(m), shape.k());
        let top = Self::from_rows(shape.k(), vandermonde.rows().take(shape.k()));
        // Rows of distinct elements of a field: the top square has an inverse.
        let inverse = top.inverse().unwrap_or_else(|| Self::zero(shape.k(), shape.k()));
        vandermonde.times(&inverse)
    }

    /// The rows in order.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.elements.chunks_exact(self.columns)
    }

    /// One row; empty past the last.
    pub(super) fn row(&self, index: usize) -> &[u8] {
        self.rows().nth(index).unwrap_or(&[])
    }

    /// The product; `other` has as many rows as this has columns.
    pub(super) fn times(&self, other: &Self) -> Self {
        let mut product = Self::zero(self.rows().count(), other.columns);
        for (row, target) in self.rows().zip(product.elements.chunks_exact_mut(other.columns)) {
            for (factor, source) in row.iter().zip(other.rows()) {
                add_multiple(target, *factor, source);
            }
        }
        product
    }

    /// The inverse of a square matrix; none when its rows depend on each other.
    ///
    /// Gauss–Jordan. Zeros are skipped, so a matrix that is mostly identity (few fragments missing) costs little.
    pub(super) fn inverse(&self) -> Option<Self> {
        let n = self.columns;
        let mut left: Vec<Vec<u8>> = self.rows().map(<[u8]>::to_vec).collect();
        let mut right: Vec<Vec<u8>> = (0..n).map(|i| (0..n).map(|j| u8::from(i == j)).collect()).collect();
        for column in 0..n {
            let pivot = (column..n).find(|row| left[*row][column] != 0)?;
            left.swap(column, pivot);
            right.swap(column, pivot);
            let scale = div(1, left[column][column]);
            if scale != 1 {
                for element in left[column].iter_mut().chain(right[column].iter_mut()) {
                    *element = mul(*element, scale);
                }
            }
            let (pivot_left, pivot_right) = (left[column].clone(), right[column].clone());
            for row in (0..n).filter(|row| *row != column) {
                let factor = left[row][column];
                add_multiple(&mut left[row], factor, &pivot_left);
                add_multiple(&mut right[row], factor, &pivot_right);
            }
        }
        Some(Self { columns: n, elements: right.concat() })
    }
}

fn add_multiple(target: &mut [u8], factor: u8, source: &[u8]) {
    if factor != 0 {
        for (to, from) in target.iter_mut().zip(source) {
            *to = add(*to, mul(factor, *from));
        }
    }
}
