//! ISA-L (<https://github.com/intel/isa-l>), fed with the crate's matrix: its parity is then ALBA's.

use std::ffi::{c_int, c_uchar};

unsafe extern "C" {
    fn ec_init_tables(k: c_int, rows: c_int, matrix: *mut c_uchar, tables: *mut c_uchar);
    fn ec_encode_data(
        len: c_int,
        k: c_int,
        rows: c_int,
        tables: *mut c_uchar,
        data: *mut *mut c_uchar,
        coding: *mut *mut c_uchar,
    );
}

/// A matrix prepared for ISA-L.
pub struct Tables {
    columns: usize,
    rows: usize,
    tables: Vec<u8>,
}

impl Tables {
    /// Rows of one length.
    pub fn new(matrix: &[Vec<u8>]) -> Self {
        let (rows, columns) = (matrix.len(), matrix[0].len());
        let mut bytes = matrix.concat();
        assert_eq!(bytes.len(), rows * columns);
        let mut tables = vec![0; 32 * columns * rows];
        // SAFETY: the matrix has rows × columns bytes, and the tables the 32 × k × rows that the function documents.
        unsafe { ec_init_tables(int(columns), int(rows), bytes.as_mut_ptr(), tables.as_mut_ptr()) };
        Self { columns, rows, tables }
    }

    /// `out = matrix · data`.
    pub fn multiply(&mut self, data: &[&[u8]], out: &mut [&mut [u8]]) {
        let len = data[0].len();
        assert!(data.len() == self.columns && out.len() == self.rows);
        assert!(data.iter().all(|d| d.len() == len) && out.iter().all(|o| o.len() == len));
        let mut sources: Vec<*mut u8> = data.iter().map(|d| d.as_ptr().cast_mut()).collect();
        let mut targets: Vec<*mut u8> = out.iter_mut().map(|o| o.as_mut_ptr()).collect();
        // SAFETY: k sources and `rows` targets of `len` bytes each, checked above; sources are only read, whatever
        // their type in C.
        unsafe {
            ec_encode_data(
                int(len),
                int(self.columns),
                int(self.rows),
                self.tables.as_mut_ptr(),
                sources.as_mut_ptr(),
                targets.as_mut_ptr(),
            );
        }
    }
}

fn int(n: usize) -> c_int {
    c_int::try_from(n).expect("fragments of less than 2 GiB")
}
