//! Building a snapshot, in the background: the store's view is read on a thread that may block, the file written from here.

use std::io;
use std::ops::Bound;
use std::sync::Arc;

use alba_core::env::{Disk, Env};
use alba_core::kv::{Kv, KvError, KvRead};
use tokio::sync::mpsc;

use super::file::{SnapshotFile, Writer, open, put_entry};
use super::{BUILDING, PREFIX};
use crate::raft::state::applied_of;
use crate::raft::types::SnapshotMeta;

/// A block is closed when it has this many bytes.
const BLOCK: usize = 256 << 10;

/// Entries per page of the scan: with values below 90 KiB a page takes 6 MiB at most.
const PAGE: usize = 64;

enum Piece {
    Meta(SnapshotMeta),
    Entries(Vec<u8>, u64),
    /// All that was read is safe in the store.
    Done,
    Failed(KvError),
}

/// Builds a snapshot of the store as it is now. When it returns, the store itself is safe up to the snapshot's last
/// entry, so that the log may be cut there. `queue` blocks wait for the writer at most.
pub(in crate::raft) async fn build(
    env: &Env,
    kv: Arc<dyn Kv>,
    disk: &Arc<dyn Disk>,
    queue: usize,
) -> Result<(SnapshotMeta, SnapshotFile), io::Error> {
    let nonce = env.rng.u64();
    let (pieces, mut read) = mpsc::channel(queue.max(1));
    env.spawn.run_blocking(Box::new(move || {
        let last = match read_all(kv.as_ref(), nonce, &pieces) {
            Ok(()) => Piece::Done,
            Err(error) => Piece::Failed(error),
        };
        // The writer may have failed: then nobody waits for it.
        send(&pieces, last);
    }));
    if disk.list().await?.iter().any(|name| name == BUILDING) {
        disk.remove(BUILDING).await?;
    }
    let file = disk.create(BUILDING, 0).await?;
    let mut writer = None;
    let mut described = None;
    loop {
        match (read.recv().await, writer.take()) {
            (Some(Piece::Meta(meta)), None) => {
                writer = Some(Writer::new(file.clone(), &meta).await?);
                described = Some(meta);
            }
            (Some(Piece::Entries(body, count)), Some(mut open)) => {
                Writer::entries(&mut open, body, count).await?;
                writer = Some(open);
            }
            (Some(Piece::Done), Some(open)) => {
                open.finish().await?;
                break;
            }
            (Some(Piece::Failed(error)), _) => return Err(io::Error::other(error)),
            _ => return Err(io::Error::other("the snapshot's reader ended early")),
        }
    }
    let meta = described.ok_or_else(|| io::Error::other("a snapshot without a description"))?;
    let name = format!("{PREFIX}{}", meta.snapshot_id);
    // A crash before the rename leaves an unfinished file, one after it a finished one beside the older.
    disk.rename(BUILDING, &name).await?;
    disk.sync_directory().await?;
    let (_, file) = open(disk, &name).await?;
    Ok((meta, file))
}

/// Removes finished snapshots other than `keep`. One that is being sent is sent from its open file.
pub(in crate::raft) async fn remove_others(disk: &dyn Disk, keep: &str) -> io::Result<()> {
    for name in disk.list().await? {
        if name.starts_with(PREFIX) && name != keep {
            disk.remove(&name).await?;
        }
    }
    Ok(())
}

/// The newest finished snapshot that is sound at both ends.
pub(in crate::raft) async fn newest(
    disk: &Arc<dyn Disk>,
) -> io::Result<Option<(SnapshotMeta, SnapshotFile)>> {
    let mut best: Option<(SnapshotMeta, SnapshotFile)> = None;
    for name in disk.list().await?.iter().filter(|name| name.starts_with(PREFIX)) {
        match open(disk, name).await {
            Ok(found) if best.as_ref().is_none_or(|(meta, _)| meta.last_log_id < found.0.last_log_id) => {
                best = Some(found);
            }
            Ok(_) => {}
            // It is only a copy: a new one is built when it is needed.
            Err(error) => tracing::warn!(name, %error, "a snapshot is damaged and not used"),
        }
    }
    Ok(best)
}

fn send(pieces: &mpsc::Sender<Piece>, piece: Piece) -> bool {
    match pieces.try_send(piece) {
        Ok(()) => true,
        // Full: this thread may block.
        Err(mpsc::error::TrySendError::Full(piece)) => pieces.blocking_send(piece).is_ok(),
        Err(mpsc::error::TrySendError::Closed(_)) => false,
    }
}

fn read_all(kv: &dyn Kv, nonce: u64, pieces: &mpsc::Sender<Piece>) -> Result<(), KvError> {
    let view = kv.snapshot()?;
    let applied = applied_of(view.as_ref())?;
    let position = applied
        .log
        .map_or_else(|| "0-0".to_owned(), |log| format!("{:020}-{}", log.index, log.leader_id.term));
    let meta = SnapshotMeta {
        last_log_id: applied.log,
        last_membership: applied.membership,
        snapshot_id: format!("{position}-{nonce:016x}"),
    };
    if !send(pieces, Piece::Meta(meta)) {
        return Ok(());
    }
    let mut from: Option<Vec<u8>> = None;
    let (mut body, mut count) = (Vec::new(), 0);
    loop {
        let lower = from.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let page = KvRead::scan(view.as_ref(), lower, Bound::Unbounded, false, PAGE)?;
        let last = page.len() < PAGE;
        for (key, value) in &page {
            put_entry(&mut body, key, value).map_err(|error| KvError::Damaged(error.to_string()))?;
            count += 1;
            if body.len() >= BLOCK
                && !send(pieces, Piece::Entries(std::mem::take(&mut body), std::mem::take(&mut count)))
            {
                return Ok(());
            }
        }
        from = page.into_iter().next_back().map(|(key, _)| key).or(from);
        if last {
            break;
        }
    }
    if !body.is_empty() && !send(pieces, Piece::Entries(body, count)) {
        return Ok(());
    }
    // Before the log may be cut at the snapshot, the store itself must be safe up to there.
    kv.sync()
}
