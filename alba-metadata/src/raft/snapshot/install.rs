//! Installing a snapshot: into an empty store beside the one in use. The old state is served until the new one is
//! complete, safe and named by the replica's record.

use std::io;
use std::sync::Arc;

use alba_core::env::{Disk, Env, blocking};
use alba_core::kv::{Durability, Kv, KvError, WriteBatch};

use super::PREFIX;
use super::build::remove_others;
use super::file::{Reader, SnapshotFile, open};
use crate::raft::home::States;
use crate::raft::state::applied_of;
use crate::raft::types::SnapshotMeta;

/// Makes a received snapshot the replica's own: from then on a restart finishes its installation.
pub(in crate::raft) async fn adopt(
    disk: &Arc<dyn Disk>,
    meta: &SnapshotMeta,
    snapshot: SnapshotFile,
) -> io::Result<SnapshotFile> {
    let name = format!("{PREFIX}{}", meta.snapshot_id);
    if snapshot.name == name && Arc::ptr_eq(disk, &snapshot.disk) {
        return Ok(snapshot);
    }
    if Arc::ptr_eq(disk, &snapshot.disk) {
        disk.rename(&snapshot.name, &name).await?;
    } else {
        copy(disk.as_ref(), &snapshot, &name).await?;
    }
    disk.sync_directory().await?;
    let (_, file) = open(disk, &name).await?;
    remove_others(disk.as_ref(), &name).await?;
    Ok(file)
}

async fn copy(disk: &dyn Disk, from: &SnapshotFile, name: &str) -> io::Result<()> {
    let file = disk.create(name, 0).await?;
    let mut at = 0;
    while at < from.len {
        let len = (from.len - at).min(1 << 20);
        let bytes = from.file.read_at(at, usize::try_from(len).map_err(io::Error::other)?).await?;
        file.write_at(at, vec![bytes]).await?;
        at += len;
    }
    file.sync().await
}

/// Fills the empty store `generation` from a snapshot. The store is not yet the replica's: a crash before the record
/// names it leaves it to be removed at the next start.
pub(in crate::raft) async fn install(
    env: &Env,
    states: &Arc<dyn States>,
    generation: u64,
    meta: &SnapshotMeta,
    snapshot: &SnapshotFile,
) -> io::Result<Arc<dyn Kv>> {
    let gone = |_| io::Error::other("the installation was cut off");
    let kv = {
        let states = states.clone();
        blocking(env.spawn.as_ref(), move || {
            states.remove(generation)?;
            states.open(generation)
        })
        .await
        .map_err(gone)?
        .map_err(io::Error::other)?
    };
    let (mut reader, described) = Reader::new(snapshot).await?;
    if described != *meta {
        return Err(super::damaged("a snapshot that describes itself otherwise"));
    }
    while let Some(entries) = reader.next().await? {
        let kv = kv.clone();
        let work = move || {
            let batch = WriteBatch(entries.into_iter().map(|(key, value)| (key, Some(value))).collect());
            kv.commit(batch, Durability::Eventual)
        };
        blocking(env.spawn.as_ref(), work).await.map_err(gone)?.map_err(io::Error::other)?;
    }
    let check = {
        let (kv, wanted) = (kv.clone(), meta.last_log_id);
        move || {
            if applied_of(kv.as_ref())?.log != wanted {
                return Err(KvError::Damaged("a snapshot of another state than it says".to_owned()));
            }
            kv.sync()
        }
    };
    blocking(env.spawn.as_ref(), check).await.map_err(gone)?.map_err(io::Error::other)?;
    Ok(kv)
}
