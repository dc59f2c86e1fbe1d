//! The file: `"ALBASNAP" ‖ version u32 LE ‖ 0 u32`, then blocks `length u32 LE ‖ CRC32C u32 LE ‖ kind u8 ‖ body`, the checksum
//! being that of kind and body. The first block is the snapshot's description (postcard), then come entries in key order
//! (`key length u16 LE ‖ key ‖ value length u32 LE ‖ value`), last the end: number of entries u64 LE and BLAKE3 of all bytes
//! before that block.

use std::fmt;
use std::io;
use std::sync::Arc;

use alba_core::env::{Disk, DiskFile};
use alba_core::kv::Entry;
use bytes::{Buf, Bytes};

use super::damaged;
use crate::raft::home::crc;
use crate::raft::types::SnapshotMeta;

const MAGIC: &[u8; 8] = b"ALBASNAP";
const VERSION: u32 = 1;
const HEADER: usize = 16;
const BLOCK_HEADER: usize = 9;

/// Longest body of a block that is read: an entry and the block it overfills.
const MAX_BODY: usize = 4 << 20;

const META: u8 = 0;
const ENTRIES: u8 = 1;
const END: u8 = 2;

/// Body of the last block.
const END_LEN: usize = 8 + 32;

/// A finished snapshot, open for reading.
#[derive(Clone)]
pub struct SnapshotFile {
    pub(in crate::raft) disk: Arc<dyn Disk>,
    pub(in crate::raft) file: Arc<dyn DiskFile>,
    pub(in crate::raft) name: String,
    pub(in crate::raft) len: u64,
    /// As the last block says.
    pub(in crate::raft) hash: [u8; 32],
}

impl fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.len)
    }
}

/// Nothing, for tests of the log that never read one.
#[cfg(test)]
impl Default for SnapshotFile {
    fn default() -> Self {
        use alba_core::env::sim::disk::SimDiskDevice;
        struct Nothing;
        #[async_trait::async_trait]
        impl DiskFile for Nothing {
            async fn len(&self) -> io::Result<u64> {
                Ok(0)
            }
            async fn read_at(&self, _: u64, _: usize) -> io::Result<Bytes> {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            async fn write_at(&self, _: u64, _: Vec<Bytes>) -> io::Result<()> {
                Err(io::ErrorKind::Unsupported.into())
            }
            async fn sync(&self) -> io::Result<()> {
                Ok(())
            }
        }
        let disk = Arc::new(SimDiskDevice::new(0, 0).open());
        Self { disk, file: Arc::new(Nothing), name: String::new(), len: 0, hash: [0; 32] }
    }
}

fn len_of(bytes: &[u8]) -> u64 {
    // A slice's length fits.
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Appends an entry to a block's body.
pub(crate) fn put_entry(body: &mut Vec<u8>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let key_len = u16::try_from(key.len()).map_err(|_| damaged("a key longer than any store takes"))?;
    let value_len = u32::try_from(value.len()).map_err(|_| damaged("a value of 4 GiB"))?;
    body.extend_from_slice(&key_len.to_le_bytes());
    body.extend_from_slice(key);
    body.extend_from_slice(&value_len.to_le_bytes());
    body.extend_from_slice(value);
    Ok(())
}

/// The entries of a block's body.
pub(crate) fn entries_of(mut body: Bytes) -> io::Result<Vec<Entry>> {
    let short = |_| damaged("a snapshot's entry is cut off");
    let mut entries = Vec::new();
    while !body.is_empty() {
        let key_len = usize::from(body.try_get_u16_le().map_err(short)?);
        if body.len() < key_len {
            return Err(damaged("a snapshot's key is cut off"));
        }
        let key = body.split_to(key_len).to_vec();
        let value_len = usize::try_from(body.try_get_u32_le().map_err(short)?).map_err(io::Error::other)?;
        if body.len() < value_len {
            return Err(damaged("a snapshot's value is cut off"));
        }
        entries.push((key, body.split_to(value_len).to_vec()));
    }
    Ok(entries)
}

/// Writes a snapshot.
pub(super) struct Writer {
    file: Arc<dyn DiskFile>,
    at: u64,
    hasher: blake3::Hasher,
    entries: u64,
}

impl Writer {
    pub(super) async fn new(file: Arc<dyn DiskFile>, meta: &SnapshotMeta) -> io::Result<Self> {
        let mut writer = Self { file, at: 0, hasher: blake3::Hasher::new(), entries: 0 };
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&0_u32.to_le_bytes());
        writer.write(vec![header.into()]).await?;
        let meta = postcard::to_stdvec(meta).map_err(io::Error::other)?;
        writer.block(META, meta).await?;
        Ok(writer)
    }

    async fn write(&mut self, parts: Vec<Bytes>) -> io::Result<()> {
        let mut len = 0;
        for part in &parts {
            self.hasher.update(part);
            len += len_of(part);
        }
        self.file.write_at(self.at, parts).await?;
        self.at += len;
        Ok(())
    }

    async fn block(&mut self, kind: u8, body: Vec<u8>) -> io::Result<()> {
        self.write(frame(kind, body)?).await
    }

    pub(super) async fn entries(&mut self, body: Vec<u8>, count: u64) -> io::Result<()> {
        self.entries += count;
        self.block(ENTRIES, body).await
    }

    /// Ends the file and makes it safe; its length and hash.
    pub(super) async fn finish(mut self) -> io::Result<(u64, [u8; 32])> {
        let hash = *self.hasher.finalize().as_bytes();
        let mut body = self.entries.to_le_bytes().to_vec();
        body.extend_from_slice(&hash);
        self.block(END, body).await?;
        self.file.sync().await?;
        Ok((self.at, hash))
    }
}

/// `length ‖ CRC32C ‖ kind ‖ body`.
pub(crate) fn frame(kind: u8, body: Vec<u8>) -> io::Result<Vec<Bytes>> {
    let len = u32::try_from(body.len()).map_err(|_| damaged("a block of 4 GiB"))?;
    let mut checked = vec![kind];
    checked.extend_from_slice(&body);
    let mut header = len.to_le_bytes().to_vec();
    header.extend_from_slice(&crc(&checked).to_le_bytes());
    Ok(vec![header.into(), checked.into()])
}

/// A block as it was read.
enum Block {
    Meta(Box<SnapshotMeta>),
    Entries(Vec<Entry>),
    End { entries: u64, hash: [u8; 32] },
}

/// The block at `at` with its length in the file and its bytes.
async fn block_at(file: &dyn DiskFile, at: u64, end: u64) -> io::Result<(Block, Bytes)> {
    let left = end.saturating_sub(at);
    if left < u64::try_from(BLOCK_HEADER).unwrap_or(u64::MAX) {
        return Err(damaged("the snapshot ends before its end"));
    }
    let header = file.read_at(at, BLOCK_HEADER).await?;
    let mut rest = header.clone();
    let (len, stored) = (rest.get_u32_le(), rest.get_u32_le());
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let whole = BLOCK_HEADER + len;
    if len > MAX_BODY || u64::try_from(whole).map_err(io::Error::other)? > left {
        return Err(damaged("a snapshot's block reaches past its end"));
    }
    let bytes = file.read_at(at, whole).await?;
    let checked = bytes.slice(8..);
    if crc(&checked) != stored {
        return Err(damaged("a snapshot's block has a wrong checksum"));
    }
    let body = checked.slice(1..);
    let block = match checked.first() {
        Some(&META) => Block::Meta(Box::new(
            postcard::from_bytes(&body)
                .map_err(|error| damaged(format!("a snapshot's description: {error}")))?,
        )),
        Some(&ENTRIES) => Block::Entries(entries_of(body)?),
        Some(&END) if body.len() == END_LEN => {
            let mut rest = body;
            let entries = rest.get_u64_le();
            let mut hash = [0; 32];
            rest.copy_to_slice(&mut hash);
            Block::End { entries, hash }
        }
        _ => return Err(damaged("a snapshot's block of an unknown kind")),
    };
    Ok((block, bytes))
}

async fn header_of(file: &dyn DiskFile) -> io::Result<Bytes> {
    let header = file.read_at(0, HEADER).await?;
    let mut rest = header.clone();
    let mut magic = [0; 8];
    rest.copy_to_slice(&mut magic);
    match (&magic == MAGIC, rest.get_u32_le()) {
        (true, VERSION) => Ok(header),
        (true, version) => Err(damaged(format!("a snapshot of format version {version}"))),
        (false, _) => Err(damaged("not a snapshot")),
    }
}

/// Reads a snapshot from its beginning and verifies it on the way.
pub(super) struct Reader<'a> {
    file: &'a dyn DiskFile,
    at: u64,
    end: u64,
    hasher: blake3::Hasher,
    entries: u64,
}

impl<'a> Reader<'a> {
    /// The description, and a reader of what follows.
    pub(super) async fn new(snapshot: &'a SnapshotFile) -> io::Result<(Self, SnapshotMeta)> {
        let file = snapshot.file.as_ref();
        let header = header_of(file).await?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&header);
        let (block, bytes) = block_at(file, len_of(&header), snapshot.len).await?;
        hasher.update(&bytes);
        let Block::Meta(meta) = block else { return Err(damaged("a snapshot without a description")) };
        let at = len_of(&header) + len_of(&bytes);
        Ok((Self { file, at, end: snapshot.len, hasher, entries: 0 }, *meta))
    }

    /// The next entries; none at the end, which was then found to be right.
    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<Entry>>> {
        let (block, bytes) = block_at(self.file, self.at, self.end).await?;
        self.at += len_of(&bytes);
        match block {
            Block::Entries(entries) => {
                self.hasher.update(&bytes);
                self.entries += u64::try_from(entries.len()).unwrap_or(u64::MAX);
                Ok(Some(entries))
            }
            Block::End { entries, hash } => {
                let right = entries == self.entries
                    && hash == *self.hasher.finalize().as_bytes()
                    && self.at == self.end;
                if right { Ok(None) } else { Err(damaged("a snapshot whose hash is wrong")) }
            }
            Block::Meta(_) => Err(damaged("a snapshot with two descriptions")),
        }
    }
}

/// Opens a finished snapshot: its beginning and end are looked at, not yet all between.
pub(super) async fn open(disk: &Arc<dyn Disk>, name: &str) -> io::Result<(SnapshotMeta, SnapshotFile)> {
    let file = disk.open(name).await?;
    let len = file.len().await?;
    let end = u64::try_from(BLOCK_HEADER + END_LEN).map_err(io::Error::other)?;
    let last = len.checked_sub(end).ok_or_else(|| damaged("a snapshot too short to be one"))?;
    let (Block::End { hash, .. }, _) = block_at(file.as_ref(), last, len).await? else {
        return Err(damaged("a snapshot without an end"));
    };
    let snapshot = SnapshotFile { disk: disk.clone(), file, name: name.to_owned(), len, hash };
    let meta = Reader::new(&snapshot).await?.1;
    Ok((meta, snapshot))
}

/// How many bytes from the beginning are whole blocks.
pub(super) async fn sound_prefix(file: &dyn DiskFile, len: u64) -> u64 {
    let Ok(header) = header_of(file).await else { return 0 };
    let mut at = len_of(&header);
    while let Ok((_, bytes)) = block_at(file, at, len).await {
        at += len_of(&bytes);
    }
    at
}

#[cfg(test)]
mod tests {
    use alba_core::env::sim::disk::SimDiskDevice;

    use super::*;

    #[tokio::test]
    async fn a_snapshot_has_golden_bytes_and_every_damage_is_found() {
        let disk: Arc<dyn Disk> = Arc::new(SimDiskDevice::new(1, 1 << 20).open());
        let file = disk.create("s", 0).await.unwrap();
        let meta = SnapshotMeta { snapshot_id: "id".to_owned(), ..SnapshotMeta::default() };
        let mut writer = Writer::new(file.clone(), &meta).await.unwrap();
        let mut body = Vec::new();
        put_entry(&mut body, b"k", b"vv").unwrap();
        writer.entries(body, 1).await.unwrap();
        let (len, hash) = writer.finish().await.unwrap();
        let bytes = file.read_at(0, usize::try_from(len).unwrap()).await.unwrap();
        let mut expected = b"ALBASNAP\x01\0\0\0\0\0\0\0".to_vec();
        // No last entry; a membership without position, voters and nodes; the id.
        for (kind, body) in [(0_u8, &b"\0\0\0\0\x02id"[..]), (1, b"\x01\0k\x02\0\0\0vv")] {
            let checked = [&[kind], body].concat();
            expected.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
            expected.extend_from_slice(&crc(&checked).to_le_bytes());
            expected.extend_from_slice(&checked);
        }
        assert_eq!(blake3::hash(&expected).as_bytes(), &hash);
        assert_eq!(bytes[..expected.len()], expected);
        assert_eq!(bytes.len(), expected.len() + BLOCK_HEADER + END_LEN);
        let (found, snapshot) = open(&disk, "s").await.unwrap();
        assert_eq!((found, snapshot.hash), (meta, hash));
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 0x20;
            file.write_at(0, vec![damaged.into()]).await.unwrap();
            let read = async {
                let (_, snapshot) = open(&disk, "s").await?;
                let mut reader = Reader::new(&snapshot).await?.0;
                while reader.next().await?.is_some() {}
                Ok::<_, io::Error>(())
            };
            assert!(read.await.is_err(), "byte {at}");
        }
        file.write_at(0, vec![bytes]).await.unwrap();
        assert_eq!(sound_prefix(file.as_ref(), len).await, len);
        assert_eq!(sound_prefix(file.as_ref(), len - 1).await, len - 49);
    }
}
