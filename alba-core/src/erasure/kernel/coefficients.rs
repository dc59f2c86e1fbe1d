//! A matrix over GF(2^8), with the tables that the kernels read.

use reed_solomon_erasure::galois_8;

/// A matrix of rows × columns coefficients, prepared for every kernel. Field: GF(2^8), polynomial 0x11D.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coefficients {
    rows: usize,
    columns: usize,
    /// `bytes[row * columns + column]`.
    bytes: Vec<u8>,
    /// `affine[column * rows + row]`: by column, because a kernel loads one input and uses it for all rows.
    affine: Vec<u64>,
    /// `nibbles[column * rows + row]`: products with 0..16, then with 0x00, 0x10, .. 0xf0.
    nibbles: Vec<[u8; 32]>,
}

impl Coefficients {
    /// Prepares the tables. Each row must have the same length; an empty matrix has no columns.
    pub fn new<R: AsRef<[u8]>>(rows: &[R]) -> Self {
        let columns = rows.iter().map(|row| row.as_ref().len()).min().unwrap_or(0);
        let bytes: Vec<u8> = rows.iter().flat_map(|row| row.as_ref().iter().take(columns).copied()).collect();
        let by_column = || {
            let bytes = &bytes;
            (0..columns).flat_map(move |c| (0..rows.len()).map(move |r| bytes[r * columns + c]))
        };
        let affine = by_column().map(affine_matrix).collect();
        let nibbles = by_column().map(nibble_products).collect();
        Self { rows: rows.len(), columns, bytes, affine, nibbles }
    }

    /// Number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of inputs.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// One coefficient.
    pub fn at(&self, row: usize, column: usize) -> u8 {
        self.bytes[row * self.columns + column]
    }

    /// The 8×8 bit matrices of GF2P8AFFINEQB of one column, for the R rows from `first` on (zero, the product with
    /// nothing, where there are fewer). An array, so that the kernels' loops over rows unroll into registers.
    #[inline]
    pub(super) fn affine<const R: usize>(&self, column: usize, first: usize) -> &[u64; R] {
        self.affine.get(column * self.rows + first..).and_then(<[u64]>::first_chunk).unwrap_or(&[0; R])
    }

    /// The nibble products of one column, likewise.
    #[inline]
    pub(super) fn nibbles<const R: usize>(&self, column: usize, first: usize) -> &[[u8; 32]; R] {
        self.nibbles
            .get(column * self.rows + first..)
            .and_then(<[[u8; 32]]>::first_chunk)
            .unwrap_or(&[[0; 32]; R])
    }
}

/// Multiplication by `c` as the bit matrix of GF2P8AFFINEQB: byte 7 − i holds the mask of the input bits that make
/// output bit i (Intel SDM, "GF2P8AFFINEQB"). Multiplication by a constant is linear over GF(2) in whatever
/// polynomial, so the instruction's own polynomial 0x11B plays no part.
fn affine_matrix(c: u8) -> u64 {
    let images: [u8; 8] = std::array::from_fn(|bit| galois_8::mul(c, 1 << bit));
    let masks: [u8; 8] = std::array::from_fn(|i| {
        let output = 7 - i;
        (0..8).fold(0, |mask, input| mask | (((images[input] >> output) & 1) << input))
    });
    u64::from_le_bytes(masks)
}

/// The products of `c` with every low and every high nibble.
fn nibble_products(c: u8) -> [u8; 32] {
    std::array::from_fn(|i| {
        // i < 32: fits a byte.
        let nibble = u8::try_from(i % 16).unwrap_or(0);
        galois_8::mul(c, if i < 16 { nibble } else { nibble << 4 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What GF2P8AFFINEQB does to one byte.
    fn apply_affine(matrix: u64, x: u8) -> u8 {
        let masks = matrix.to_le_bytes();
        (0..8).fold(0, |y, bit| y | (u8::from((masks[7 - bit] & x).count_ones() % 2 == 1) << bit))
    }

    #[test]
    fn the_bit_matrix_multiplies_every_byte() {
        for c in 0..=255 {
            let matrix = affine_matrix(c);
            let nibbles = nibble_products(c);
            for x in 0..=255_u8 {
                let product = galois_8::mul(c, x);
                assert_eq!(apply_affine(matrix, x), product, "{c} * {x}");
                assert_eq!(nibbles[usize::from(x % 16)] ^ nibbles[16 + usize::from(x / 16)], product);
            }
        }
    }
}
