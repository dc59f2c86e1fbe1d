//! What is cached of a fragment: its packed bytes, as its OSD has them, and a CRC-32C of each 4 KiB block of them, so that a
//! slice is verified without touching the rest.
//!
//! Whatever comes from a cache is verified before it is used: a whole fragment against the manifest's checksum, a range
//! against the blocks' sums, which were computed from bytes that had the manifest's checksum. An entry says itself whose it
//! is: a cache that mixes up its keys is found out too.
//!
//! ```text
//! on disk   | namespace u64 | object id | chunk u32 | fragment u32 | version u32 |
//!           | packed length u32 | sum of block 0 u32 | … | packed bytes |                       little endian
//! ```

use std::io::{self, Read, Write};
use std::sync::Arc;

use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceId, ObjectId, ObjectVersion};
use alba_core::manifest::{Fragment, PackedFragment, VerifiedFragment};
use alba_core::osd_keys::FragmentAddress;
use bytes::Bytes;

use super::CacheKey;

/// Bytes that one sum covers: what a small slice reads is about as much.
const BLOCK: usize = 4096;

/// Bytes before the sums.
const HEAD: usize = 8 + 32 + 4 * 4;

/// No fragment is longer: what a disk says beyond it is nonsense.
const LONGEST: u64 = 1 << 30;

/// The cached bytes are not those of the fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cached bytes are not those of the fragment")]
pub(crate) struct Damaged;

/// See the module. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    key: CacheKey,
    packed: Bytes,
    sums: Arc<[u32]>,
}

fn sum(block: &[u8]) -> u32 {
    match ChecksumAlgorithm::Crc32c.of(block) {
        Checksum::Crc32c(sum) => sum,
        // Not reached: the algorithm gives its own kind.
        _ => 0,
    }
}

impl Entry {
    /// Packed bytes whose checksum was verified, or that were packed just now. Takes about 50 µs for 1 MiB.
    pub(crate) fn seal(key: CacheKey, packed: Bytes) -> Self {
        let sums = packed.chunks(BLOCK).map(sum).collect();
        Self { key, packed, sums }
    }

    /// Bytes of memory or disk that it takes.
    pub(crate) fn weight(&self) -> u64 {
        // What maps and lists add for a key, about.
        const OVERHEAD: usize = 320;
        u64::try_from(self.packed.len() + self.sums.len() * 4 + OVERHEAD).unwrap_or(u64::MAX)
    }

    /// All of it, if it is what the manifest says.
    pub(crate) fn whole(&self, key: &CacheKey, fragment: &Fragment) -> Result<VerifiedFragment, Damaged> {
        // Where the manifest cannot tell, the sums do.
        if *key != self.key || (fragment.checksum == Checksum::None && !self.sound()) {
            return Err(Damaged);
        }
        PackedFragment(self.packed.clone()).verify(fragment).map_err(|_| Damaged)
    }

    /// Do all blocks have their sums?
    fn sound(&self) -> bool {
        self.packed.chunks(BLOCK).map(sum).eq(self.sums.iter().copied())
    }

    /// A copy of a range of a fragment whose packed length the manifest says; the blocks that it touches are verified.
    pub(crate) fn range(
        &self,
        key: &CacheKey,
        packed_len: u32,
        offset: u32,
        len: u32,
    ) -> Result<Bytes, Damaged> {
        if *key != self.key || u32::try_from(self.packed.len()) != Ok(packed_len) {
            return Err(Damaged);
        }
        let from = usize::try_from(offset).map_err(|_| Damaged)?;
        let to = from.checked_add(usize::try_from(len).map_err(|_| Damaged)?).ok_or(Damaged)?;
        let part = self.packed.get(from..to).ok_or(Damaged)?;
        if part.is_empty() {
            return Ok(Bytes::new());
        }
        let (first, last) = (from / BLOCK, (to - 1) / BLOCK);
        for block in first..=last {
            let begin = block * BLOCK;
            let end = (begin + BLOCK).min(self.packed.len());
            let bytes = self.packed.get(begin..end).ok_or(Damaged)?;
            if self.sums.get(block) != Some(&sum(bytes)) {
                return Err(Damaged);
            }
        }
        // A slice would keep all of the fragment in memory, uncounted.
        Ok(Bytes::copy_from_slice(part))
    }

    /// The form on disk.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let len = u32::try_from(self.packed.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let CacheKey { namespace, address: FragmentAddress { object_id, chunk, fragment, version } } =
            self.key;
        out.write_all(&namespace.get().to_le_bytes())?;
        out.write_all(object_id.as_bytes())?;
        for word in [chunk.0, fragment.0, version.0, len] {
            out.write_all(&word.to_le_bytes())?;
        }
        for sum in self.sums.iter() {
            out.write_all(&sum.to_le_bytes())?;
        }
        out.write_all(&self.packed)
    }

    /// From the form on disk. Only the lengths are checked: the content is when it is used.
    pub(super) fn read(from: &mut impl Read) -> io::Result<Self> {
        let (mut namespace, mut id) = ([0; 8], [0; 32]);
        from.read_exact(&mut namespace)?;
        from.read_exact(&mut id)?;
        let mut word = || {
            let mut word = [0; 4];
            from.read_exact(&mut word)?;
            Ok::<u32, io::Error>(u32::from_le_bytes(word))
        };
        let address = FragmentAddress {
            object_id: ObjectId::new(id),
            chunk: ChunkIndex(word()?),
            fragment: FragmentIndex(word()?),
            version: ObjectVersion(word()?),
        };
        let len = u64::from(word()?);
        let namespace = NamespaceId::new(u64::from_le_bytes(namespace));
        let namespace = namespace.map_err(|_| io::ErrorKind::InvalidData)?;
        if len > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut take = |bytes: u64| {
            let mut buffer = Vec::new();
            // Grows with what is there, not with what a damaged length says.
            from.by_ref().take(bytes).read_to_end(&mut buffer)?;
            let complete = u64::try_from(buffer.len()) == Ok(bytes);
            complete.then_some(buffer).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        let sums = take(len.div_ceil(BLOCK as u64) * 4)?;
        let packed = take(len)?;
        let sums = sums.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap_or_default()));
        Ok(Self { key: CacheKey { namespace, address }, sums: sums.collect(), packed: packed.into() })
    }

    /// Of the form on disk.
    pub(super) fn written_len(&self) -> usize {
        HEAD + self.sums.len() * 4 + self.packed.len()
    }

    /// The same with one bit of the bytes flipped.
    #[cfg(test)]
    pub(crate) fn flipped(&self, at: usize) -> Self {
        let mut packed = self.packed.to_vec();
        packed[at] ^= 1;
        Self { key: self.key, packed: packed.into(), sums: Arc::clone(&self.sums) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fragment(bytes: &[u8], algorithm: ChecksumAlgorithm) -> Fragment {
        Fragment {
            location: None,
            version: ObjectVersion(0),
            checksum: algorithm.of(bytes),
            packed_len: u32::try_from(bytes.len()).unwrap(),
            ctr: None,
        }
    }

    #[test]
    fn the_form_on_disk_is_fixed() {
        let entry = Entry::seal(key(), Bytes::from_static(b"123456789"));
        let mut written = Vec::new();
        entry.write(&mut written).unwrap();
        // E3069283 is the check value of CRC-32C.
        assert_eq!(
            hex(&written),
            format!(
                "0700000000000000{}01000000020000000300000009000000839206e3313233343536373839",
                "05".repeat(32)
            )
        );
        assert_eq!(entry.written_len(), written.len());
        assert_eq!(Entry::read(&mut &written[..]).unwrap(), entry);
        for cut in 0..written.len() {
            assert!(Entry::read(&mut &written[..cut]).is_err());
        }
        written[52..56].copy_from_slice(&[0xff; 4]);
        assert!(Entry::read(&mut &written[..]).is_err(), "a length that cannot be");
    }

    fn key() -> CacheKey {
        let address = FragmentAddress {
            object_id: ObjectId::new([5; 32]),
            chunk: ChunkIndex(1),
            fragment: FragmentIndex(2),
            version: ObjectVersion(3),
        };
        CacheKey { namespace: NamespaceId::from_u32(7), address }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_never_handed_on(
            bytes in prop::collection::vec(any::<u8>(), 1..20_000), at in any::<prop::sample::Index>(),
            from in any::<prop::sample::Index>(), len in 0_usize..9000,
        ) {
            let len_all = u32::try_from(bytes.len()).unwrap();
            let (at, from) = (at.index(bytes.len()), from.index(bytes.len()));
            let to = (from + len).min(bytes.len());
            let range = (u32::try_from(from).unwrap(), u32::try_from(to - from).unwrap());
            let (key, mut other) = (key(), key());
            other.address.version = ObjectVersion(9);
            let entry = Entry::seal(key, bytes.clone().into());
            prop_assert_eq!(&entry.range(&key, len_all, range.0, range.1).unwrap()[..], &bytes[from..to]);
            prop_assert!(entry.range(&key, len_all + 1, range.0, range.1).is_err());
            prop_assert!(entry.range(&key, len_all, len_all, 1).is_err());
            prop_assert!(entry.range(&other, len_all, range.0, range.1).is_err());
            let damaged = entry.flipped(at);
            for algorithm in [ChecksumAlgorithm::Blake3, ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::None] {
                let manifest = fragment(&bytes, algorithm);
                let whole = entry.whole(&key, &manifest).unwrap();
                prop_assert_eq!(whole.bytes(), &bytes);
                prop_assert_eq!(entry.whole(&other, &manifest), Err(Damaged));
                prop_assert_eq!(damaged.whole(&key, &manifest), Err(Damaged));
            }
            if let Ok(part) = damaged.range(&key, len_all, range.0, range.1) {
                prop_assert_eq!(&part[..], &bytes[from..to]);
            }
        }
    }
}
