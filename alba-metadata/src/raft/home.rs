//! Where a replica keeps what is its own: its name, its log, its state, its snapshots.
//!
//! The name (a random number) is drawn when the directory is empty and never again. What belongs to it must be there with
//! it: a log or state that is gone although the name is there means that promises were lost, and then everything is thrown
//! away and a new name drawn, so that the replica comes back as somebody else (a learner) and never votes on what it forgot.

use std::io;
use std::sync::Arc;

use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::env::{Disk, Rng};
use alba_core::kv::{Kv, KvError};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::types::NodeId;

/// The file with the replica's name and where its state is.
pub(super) const RECORD: &str = "replica";

/// First byte of the small files here; the rest is postcard and, last, CRC32C (u32 LE) of all before it.
const VERSION: u8 = 1;

/// Stores of the state, told apart by number: a snapshot is installed into a new one, never over the old.
pub trait States: Send + Sync + 'static {
    /// Opens one, empty when it was not there. Blocks.
    fn open(&self, generation: u64) -> Result<Arc<dyn Kv>, KvError>;

    /// Removes one, if it is there. Blocks.
    fn remove(&self, generation: u64) -> Result<(), KvError>;

    /// Those there are. Blocks.
    fn list(&self) -> Result<Vec<u64>, KvError>;
}

/// The places.
#[derive(Clone)]
pub struct Home {
    /// Name and snapshots.
    pub files: Arc<dyn Disk>,
    /// The log.
    pub log: Arc<dyn Disk>,
    /// The state.
    pub states: Arc<dyn States>,
}

/// What the record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Who this replica is.
    pub(super) id: NodeId,
    /// Which store holds its state.
    pub(super) state: u64,
    /// Log and state were made: from now on their absence is a loss.
    pub(super) complete: bool,
}

/// `VERSION ‖ postcard ‖ CRC32C`.
pub(super) fn seal<T: Serialize>(value: &T) -> io::Result<Bytes> {
    let mut bytes = postcard::to_extend(value, vec![VERSION]).map_err(io::Error::other)?;
    let crc = crc(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    Ok(bytes.into())
}

/// The reverse of [`seal`].
pub(super) fn unseal<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let (body, stored) =
        bytes.split_last_chunk::<4>().ok_or_else(|| wrong(format!("a record of {} bytes", bytes.len())))?;
    if crc(body) != u32::from_le_bytes(*stored) {
        return Err(wrong("a record whose checksum is wrong".to_owned()));
    }
    match body.split_first() {
        Some((&VERSION, value)) => {
            postcard::from_bytes(value).map_err(|error| wrong(format!("a record: {error}")))
        }
        _ => Err(wrong("a record of another format version".to_owned())),
    }
}

/// CRC32C.
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    match ChecksumAlgorithm::Crc32c.of(bytes) {
        Checksum::Crc32c(crc) => crc,
        // The algorithm above gives nothing else.
        _ => 0,
    }
}

/// Replaces a small file so that a crash leaves the old or the new one.
pub(super) async fn replace(disk: &dyn Disk, name: &str, content: Bytes) -> io::Result<()> {
    let fresh = format!("{name}.new");
    if disk.list().await?.contains(&fresh) {
        disk.remove(&fresh).await?;
    }
    let file = disk.create(&fresh, 0).await?;
    file.write_at(0, vec![content]).await?;
    file.sync().await?;
    // A crash before this leaves the old file and a stray new one, which the next replacement removes.
    disk.rename(&fresh, name).await?;
    disk.sync_directory().await
}

/// A small file, if it is there.
pub(super) async fn read(disk: &dyn Disk, name: &str) -> io::Result<Option<Bytes>> {
    if !disk.list().await?.iter().any(|found| found == name) {
        return Ok(None);
    }
    let file = disk.open(name).await?;
    let len = usize::try_from(file.len().await?).map_err(io::Error::other)?;
    if len > 64 << 10 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} has {len} bytes")));
    }
    file.read_at(0, len).await.map(Some)
}

impl Home {
    /// The replica's record, made now when everything is empty.
    ///
    /// # Errors
    /// `NotFound` when there is a log and no record: whose log it is nobody knows, and it is not thrown away unasked.
    pub(super) async fn record(&self, rng: &dyn Rng) -> io::Result<Record> {
        if let Some(bytes) = read(self.files.as_ref(), RECORD).await? {
            return unseal(&bytes);
        }
        if !self.log_is_empty().await? {
            let what = "there is a log but not the record of whose it is; move the group's directory away to start anew";
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        }
        self.renew(rng).await
    }

    /// From now on another replica, which has nothing. The record is replaced first: as long as it does not say
    /// `complete`, every start removes what else there is.
    pub(super) async fn renew(&self, rng: &dyn Rng) -> io::Result<Record> {
        // Zero means "nobody" in messages.
        let record = Record { id: rng.u64().max(1), state: 1, complete: false };
        self.save(record).await?;
        Ok(record)
    }

    pub(super) async fn save(&self, record: Record) -> io::Result<()> {
        replace(self.files.as_ref(), RECORD, seal(&record)?).await
    }

    /// Removes log and snapshots of a replica that is not complete.
    pub(super) async fn clear(&self) -> io::Result<()> {
        for disk in [&self.files, &self.log] {
            for name in disk.list().await? {
                if name != RECORD {
                    disk.remove(&name).await?;
                }
            }
            disk.sync_directory().await?;
        }
        Ok(())
    }

    /// Is nothing of the log there?
    pub(super) async fn log_is_empty(&self) -> io::Result<bool> {
        Ok(self.log.list().await?.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_has_golden_bytes() {
        let record = Record { id: 300, state: 2, complete: true };
        let bytes = seal(&record).unwrap();
        assert_eq!(bytes[..5], [1, 0xac, 2, 2, 1]);
        assert_eq!(bytes.len(), 9);
        assert_eq!(unseal::<Record>(&bytes).unwrap(), record);
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 4;
            assert!(unseal::<Record>(&damaged).is_err());
        }
        assert!(unseal::<Record>(b"").is_err());
    }
}
