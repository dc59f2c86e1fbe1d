//! The content of a simulated file: pages that were written, zeros everywhere else. Copies share pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

const PAGE: usize = 4096;
/// The same as a file offset.
const PAGE_BYTES: u64 = 4096;

#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    len: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

impl Image {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Grows it with zeros; never shrinks it.
    pub(super) fn set_len(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    /// Cuts it off. What was there is zero when it grows again.
    pub(super) fn truncate(&mut self, len: u64) {
        let keep = len.min(self.len);
        let zeros = usize::try_from(PAGE_BYTES - keep % PAGE_BYTES).unwrap_or(0);
        self.write(keep, &[0; PAGE][..zeros]);
        self.pages.split_off(&keep.div_ceil(PAGE_BYTES));
        self.len = keep;
    }

    pub(super) fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = usize::try_from(offset % PAGE_BYTES).unwrap_or(0);
            let (piece, rest) = bytes.split_at(bytes.len().min(PAGE - within));
            let page = self.pages.entry(offset / PAGE_BYTES).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + piece.len()].copy_from_slice(piece);
            offset += u64::try_from(piece.len()).unwrap_or(0);
            bytes = rest;
        }
        self.set_len(offset);
    }

    /// None when the range ends after the file.
    pub(super) fn read(&self, mut offset: u64, len: usize) -> Option<Bytes> {
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        if end > self.len {
            return None;
        }
        let mut bytes = vec![0; len];
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            let within = usize::try_from(offset % PAGE_BYTES).ok()?;
            let size = rest.len().min(PAGE - within);
            let (piece, tail) = rest.split_at_mut(size);
            if let Some(page) = self.pages.get(&(offset / PAGE_BYTES)) {
                piece.copy_from_slice(&page[within..within + size]);
            }
            offset += u64::try_from(size).ok()?;
            rest = tail;
        }
        Some(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_across_pages_read_back_and_gaps_are_zero() {
        let mut image = Image::default();
        let data: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0] | 1).collect();
        image.write(3_000, &data);
        assert_eq!(image.len(), 13_000);
        assert_eq!(image.read(3_000, 10_000).unwrap(), data);
        assert_eq!(image.read(0, 3_000).unwrap(), vec![0; 3_000]);
        assert!(image.read(12_999, 2).is_none());
        let copy = image.clone();
        image.write(3_000, b"changed");
        assert_eq!(copy.read(3_000, 10_000).unwrap(), data);
    }
}
