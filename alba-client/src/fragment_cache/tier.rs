//! A place on a local disk for fragments, as [`Guarded`](super::guarded::Guarded) uses it. It may be slow, fail, hang and lie: the
//! guard copes.

use std::io::{Read, Write};

use alba_core::ids::{ChunkIndex, FragmentIndex, ObjectId, ObjectVersion};
use alba_core::osd_keys::FragmentAddress;
use async_trait::async_trait;
use foyer::Code;

use super::entry::Entry;

/// What an entry is found by. Never a name: an object's id is not used twice and its fragments never change, so that nothing
/// cached can ever be stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot {
    pub(crate) namespace: u64,
    /// See [`Generations`](super::generations::Generations).
    pub(crate) generation: u32,
    pub(crate) address: FragmentAddress,
}

impl Slot {
    /// Bytes of the form on disk.
    const LEN: usize = 8 + 4 + 32 + 4 + 4 + 4;

    /// The same in every process: the SSD's index is by it.
    pub(crate) fn hash(&self) -> u64 {
        use std::hash::BuildHasher;
        foyer::DefaultHasher::default().hash_one(self)
    }

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut rest = &mut bytes[..];
        let FragmentAddress { object_id, chunk, fragment, version } = self.address;
        let mut put = |part: &[u8]| {
            let (here, after) = std::mem::take(&mut rest).split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = after;
        };
        put(&self.namespace.to_le_bytes());
        put(&self.generation.to_le_bytes());
        put(object_id.as_bytes());
        for word in [chunk.0, fragment.0, version.0] {
            put(&word.to_le_bytes());
        }
        bytes
    }
}

impl Code for Slot {
    fn encode(&self, writer: &mut impl Write) -> foyer::Result<()> {
        writer.write_all(&self.to_bytes()).map_err(foyer::Error::io_error)
    }

    fn decode(reader: &mut impl Read) -> foyer::Result<Self> {
        let mut wide = [0; 8];
        let mut id = [0; 32];
        reader.read_exact(&mut wide).map_err(foyer::Error::io_error)?;
        let word = |reader: &mut dyn Read| {
            let mut word = [0; 4];
            reader.read_exact(&mut word).map_err(foyer::Error::io_error)?;
            Ok::<u32, foyer::Error>(u32::from_le_bytes(word))
        };
        let generation = word(reader)?;
        reader.read_exact(&mut id).map_err(foyer::Error::io_error)?;
        Ok(Self {
            namespace: u64::from_le_bytes(wide),
            generation,
            address: FragmentAddress {
                object_id: ObjectId::new(id),
                chunk: ChunkIndex(word(reader)?),
                fragment: FragmentIndex(word(reader)?),
                version: ObjectVersion(word(reader)?),
            },
        })
    }

    fn estimated_size(&self) -> usize {
        Self::LEN
    }
}

impl Code for Entry {
    fn encode(&self, writer: &mut impl Write) -> foyer::Result<()> {
        self.write(writer).map_err(foyer::Error::io_error)
    }

    fn decode(reader: &mut impl Read) -> foyer::Result<Self> {
        Self::read(reader).map_err(foyer::Error::io_error)
    }

    fn estimated_size(&self) -> usize {
        self.written_len()
    }
}

/// Why a tier did not do what it was asked for, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TierError(pub(crate) String);

/// What a lookup gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Loaded {
    /// The entry, unverified.
    Found(Entry),
    /// It is not there any more.
    Gone,
    /// Its bytes could not be understood; it was removed.
    Damaged,
}

/// See the module. The asynchronous methods may be given up (dropped) at any time.
#[async_trait]
pub(crate) trait Tier: Send + Sync + 'static {
    /// Makes it usable, again if it was before. An earlier attempt may still be hanging: then this one fails.
    async fn open(&self) -> Result<(), TierError>;

    /// Is it worth asking for? From memory, at once.
    fn may_have(&self, slot: &Slot) -> bool;

    /// Reads one entry.
    async fn load(&self, slot: &Slot) -> Result<Loaded, TierError>;

    /// Writes entries; on return at least one of them can be read (others may have been left out).
    async fn store(&self, batch: Vec<(Slot, Entry)>) -> Result<(), TierError>;

    /// Forgets an entry.
    fn remove(&self, slot: &Slot);

    /// Keeps what generations there are for the next process.
    async fn keep_generations(&self) -> Result<(), TierError>;

    /// Bytes in use, about.
    fn used(&self) -> u64;

    /// Has it space that was never used? Then everything is welcome.
    fn has_room(&self) -> bool;

    /// The largest entry that it takes.
    fn largest(&self) -> u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_on_disk_and_its_hash_are_fixed() {
        let slot = Slot {
            namespace: 0x0102,
            generation: 3,
            address: FragmentAddress {
                object_id: ObjectId::new([0xab; 32]),
                chunk: ChunkIndex(4),
                fragment: FragmentIndex(5),
                version: ObjectVersion(6),
            },
        };
        let mut written = Vec::new();
        slot.encode(&mut written).unwrap();
        let text: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected =
            format!("0201000000000000{}{}{}", "03000000", "ab".repeat(32), "040000000500000006000000");
        assert_eq!(text, expected);
        assert_eq!(Slot::decode(&mut &written[..]).unwrap(), slot);
        assert!(Slot::decode(&mut &written[..55]).is_err());
        assert_eq!(slot.hash(), slot.hash());
    }
}
