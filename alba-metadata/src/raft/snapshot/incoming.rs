//! A snapshot on its way in: chunks are appended to a file, and the sender is told how much there is, so that it can go
//! on after a lost connection or a restart of either side.

use std::io;
use std::sync::Arc;

use alba_core::env::{Disk, DiskFile};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::damaged;
use super::file::{Reader, SnapshotFile, open, sound_prefix};
use crate::raft::home::{read, replace, seal, unseal};
use crate::raft::types::SnapshotMeta;

/// What was received so far.
const FILE: &str = "incoming";

/// Which snapshot it belongs to.
const OFFER: &str = "incoming-offer";

/// A snapshot that is offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::raft) struct Offer {
    pub(in crate::raft) meta: SnapshotMeta,
    pub(in crate::raft) len: u64,
    pub(in crate::raft) hash: [u8; 32],
}

/// The receiving side's state; one snapshot at a time.
pub(in crate::raft) struct Incoming {
    disk: Arc<dyn Disk>,
    current: Option<Current>,
}

struct Current {
    offer: Offer,
    file: Arc<dyn DiskFile>,
    have: u64,
}

impl Incoming {
    pub(in crate::raft) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, current: None }
    }

    /// How much of the offered snapshot is here already; anything else that was coming in is dropped.
    pub(in crate::raft) async fn begin(&mut self, offer: Offer) -> io::Result<u64> {
        if let Some(current) = self.current.as_ref().filter(|current| current.offer == offer) {
            return Ok(current.have);
        }
        self.current = None;
        let names = self.disk.list().await?;
        let has = |wanted: &str| names.iter().any(|name| name == wanted);
        let left_over = match read(self.disk.as_ref(), OFFER).await? {
            // Unreadable is as good as none: it is fetched again.
            Some(bytes) => unseal::<Offer>(&bytes).ok(),
            None => None,
        };
        if left_over.as_ref() == Some(&offer) && has(FILE) {
            let file = self.disk.open(FILE).await?;
            // What a crash tore is found by the blocks' checksums and fetched again.
            let have = sound_prefix(file.as_ref(), file.len().await?.min(offer.len)).await;
            self.current = Some(Current { offer, file, have });
            return Ok(have);
        }
        if has(FILE) {
            self.disk.remove(FILE).await?;
        }
        let file = self.disk.create(FILE, 0).await?;
        // The offer after the new file: an old file is never taken for a part of a new snapshot.
        self.disk.sync_directory().await?;
        replace(self.disk.as_ref(), OFFER, seal(&offer)?).await?;
        self.current = Some(Current { offer, file, have: 0 });
        Ok(0)
    }

    /// Appends a chunk that fits; how much there is then, or none when no such snapshot is coming in.
    pub(in crate::raft) async fn chunk(
        &mut self,
        snapshot_id: &str,
        offset: u64,
        bytes: Bytes,
    ) -> io::Result<Option<u64>> {
        let Some(current) = self.current.as_mut().filter(|c| c.offer.meta.snapshot_id == snapshot_id) else {
            return Ok(None);
        };
        let end = u64::try_from(bytes.len()).ok().and_then(|len| offset.checked_add(len));
        if offset == current.have && end.is_some_and(|end| end <= current.offer.len) {
            current.file.write_at(offset, vec![bytes]).await?;
            current.have = end.unwrap_or(current.have);
        }
        Ok(Some(current.have))
    }

    /// The whole snapshot, verified; none when it is not here.
    pub(in crate::raft) async fn finish(
        &mut self,
        snapshot_id: &str,
    ) -> io::Result<Option<(SnapshotMeta, SnapshotFile)>> {
        let Some(current) =
            self.current.take_if(|c| c.offer.meta.snapshot_id == snapshot_id && c.have == c.offer.len)
        else {
            return Ok(None);
        };
        current.file.sync().await?;
        match self.verified(&current.offer).await {
            Ok(found) => Ok(Some(found)),
            Err(error) => {
                // What came is not what was offered: fetched again from the beginning.
                self.disk.remove(OFFER).await?;
                Err(error)
            }
        }
    }

    async fn verified(&self, offer: &Offer) -> io::Result<(SnapshotMeta, SnapshotFile)> {
        let (meta, file) = open(&self.disk, FILE).await?;
        if meta != offer.meta || file.hash != offer.hash {
            return Err(damaged("another snapshot came than was offered"));
        }
        let mut reader = Reader::new(&file).await?.0;
        while reader.next().await?.is_some() {}
        Ok((meta, file))
    }
}
