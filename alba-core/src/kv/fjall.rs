//! [`Kv`] on fjall: the embedded store of the daemons.
//!
//! No key-value separation and no `clear()`. After a failed write fjall refuses all further ones: that comes out as
//! [`KvError::Io`], and the owner closes the store, opens it again and replays what it has elsewhere.

mod memtables;

use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use fjall::compaction::Leveled;
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use self::memtables::Memtables;
use super::{Durability, Entry, Kv, KvError, KvRead, WriteBatch, check_keys, is_empty_range};

/// The one key space all entries are in.
const KEYSPACE: &str = "kv";

/// What is written before it goes to a file of its own: fjall's default, in bytes.
const MEMTABLE_BYTES: u64 = 64 << 20;

/// Files of the first level that make up a merge, where changes never end; fjall's default is 4. Each is one more filter to be asked by a
/// read, and at 20 fjall slows writes down.
const BUSY_FILES: u8 = 8;

/// Bytes of the files behind a merge. The second level may have so many times [`BUSY_FILES`]: about as much as is merged into it.
const BUSY_TABLE_BYTES: u64 = 16 << 20;

/// A store in a directory of its own, which one process may have open at a time.
pub struct FjallKv {
    database: Database,
    keyspace: Keyspace,
    /// Of a busy store: elsewhere they are small, and soon freed.
    memtables: Option<Memtables>,
}

impl FjallKv {
    /// Opens the store in `directory`, or creates it. `cache_bytes` bounds its block cache.
    pub fn open(directory: &Path, cache_bytes: u64) -> Result<Self, KvError> {
        Self::open_with(directory, cache_bytes, MEMTABLE_BYTES)
    }

    /// The same with memtables of `memtable_bytes`, of which there are up to five: writes wait while four are being written to
    /// files. A store keeps the size it was created with.
    pub fn open_with(directory: &Path, cache_bytes: u64, memtable_bytes: u64) -> Result<Self, KvError> {
        Self::opened(directory, cache_bytes, memtable_bytes, Leveled::default(), None)
    }

    /// The same for a store that small changes all over its keys go into, without end: files as small as its memtables are merged into the
    /// next level only when there are [`BUSY_FILES`] of them, since each merge writes most of that level again. One memtable more may be there
    /// for a moment: they are freed by a thread of their own.
    pub fn open_busy(directory: &Path, cache_bytes: u64, memtable_bytes: u64) -> Result<Self, KvError> {
        let merges =
            Leveled::default().with_l0_threshold(BUSY_FILES).with_table_target_size(BUSY_TABLE_BYTES);
        Self::opened(directory, cache_bytes, memtable_bytes, merges, Some(Memtables::new()))
    }

    fn opened(
        directory: &Path,
        cache_bytes: u64,
        memtable_bytes: u64,
        merges: Leveled,
        memtables: Option<Memtables>,
    ) -> Result<Self, KvError> {
        // With more threads one of them spins while another merges (fjall 3.1.13: it puts back what it must not do, and takes it again).
        let builder = Database::builder(directory).cache_size(cache_bytes).worker_threads(1);
        let database = builder.open().map_err(failure)?;
        let merges = Arc::new(merges);
        let options = || {
            let options = KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes);
            options.compaction_strategy(merges.clone())
        };
        let keyspace = database.keyspace(KEYSPACE, options).map_err(failure)?;
        Ok(Self { database, keyspace, memtables })
    }
}

/// What a caller can do about a failure of fjall.
fn failure(error: fjall::Error) -> KvError {
    use fjall::Error;
    let io = |error: &io::Error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => KvError::NoSpace,
        // A file it needs is gone, or too short.
        io::ErrorKind::NotFound | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            KvError::Damaged(error.to_string())
        }
        _ => KvError::Io(error.to_string()),
    };
    match error {
        Error::Io(error) => io(&error),
        Error::Storage(fjall::LsmError::Io(error)) => io(&error),
        Error::Locked => KvError::Io("another process has it open".into()),
        Error::Poisoned => KvError::Io("an earlier write failed; it must be reopened".into()),
        Error::Storage(_)
        | Error::JournalRecovery(_)
        | Error::InvalidVersion(_)
        | Error::Decompress(_)
        | Error::InvalidTrailer
        | Error::InvalidTag(_)
        | Error::Unrecoverable => KvError::Damaged(error.to_string()),
        other => KvError::Io(other.to_string()),
    }
}

fn get(view: &Snapshot, keyspace: &Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
    Ok(view.get(keyspace, key).map_err(failure)?.map(|value| value.to_vec()))
}

fn scan(
    view: &Snapshot,
    keyspace: &Keyspace,
    bounds: (Bound<&[u8]>, Bound<&[u8]>),
    reverse: bool,
    limit: usize,
) -> Result<Vec<Entry>, KvError> {
    if is_empty_range(bounds.0, bounds.1) || limit == 0 {
        return Ok(Vec::new());
    }
    let mut iter = view.range::<&[u8], _>(keyspace, bounds);
    let mut entries = Vec::new();
    while entries.len() < limit {
        let Some(guard) = (if reverse { iter.next_back() } else { iter.next() }) else { break };
        let (key, value) = guard.into_inner().map_err(failure)?;
        entries.push((key.to_vec(), value.to_vec()));
    }
    Ok(entries)
}

impl KvRead for FjallKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.keyspace.get(key).map_err(failure)?.map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<Entry>, KvError> {
        scan(&self.database.snapshot(), &self.keyspace, (lower, upper), reverse, limit)
    }
}

struct FjallView<'a> {
    view: Snapshot,
    keyspace: &'a Keyspace,
}

impl KvRead for FjallView<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        get(&self.view, self.keyspace, key)
    }

    fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<Entry>, KvError> {
        scan(&self.view, self.keyspace, (lower, upper), reverse, limit)
    }
}

impl Kv for FjallKv {
    fn snapshot(&self) -> Result<Box<dyn KvRead + Send + '_>, KvError> {
        Ok(Box::new(FjallView { view: self.database.snapshot(), keyspace: &self.keyspace }))
    }

    fn commit(&self, batch: WriteBatch, durability: Durability) -> Result<(), KvError> {
        self.commit_shared(&batch, durability)
    }

    fn commit_shared(&self, batch: &WriteBatch, durability: Durability) -> Result<(), KvError> {
        check_keys(batch)?;
        let mode = match durability {
            Durability::Sync => PersistMode::SyncData,
            // Out of the process at least: what a kill loses has to be replayed.
            Durability::Eventual => PersistMode::Buffer,
        };
        // The journal is written and synced before the entries can be read.
        let writes = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.0.len());
        let mut writes = writes.durability(Some(mode));
        for (key, value) in &batch.0 {
            match value {
                Some(value) => writes.insert(&self.keyspace, key.as_slice(), value.as_slice()),
                None => writes.remove(&self.keyspace, key.as_slice()),
            }
        }
        writes.commit().map_err(failure)?;
        if let Some(memtables) = &self.memtables {
            memtables.note(|| self.keyspace.tree.active_memtable());
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), KvError> {
        self.database.persist(PersistMode::SyncData).map_err(failure)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const CACHE: u64 = 1 << 20;

    #[test]
    fn conforms() {
        let directories = tempfile::tempdir().unwrap();
        let count = std::sync::atomic::AtomicU32::new(0);
        super::super::conformance::run(|| {
            let nth = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Arc::new(FjallKv::open(&directories.path().join(nth.to_string()), CACHE).unwrap())
        });
    }

    #[test]
    fn keeps_its_entries_over_a_reopen() {
        let directory = tempfile::tempdir().unwrap();
        super::super::conformance::reopen(|| Arc::new(FjallKv::open(directory.path(), CACHE).unwrap()));
    }

    #[test]
    fn a_second_opening_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let kv = FjallKv::open(directory.path(), CACHE).unwrap();
        assert!(matches!(FjallKv::open(directory.path(), CACHE), Err(KvError::Io(_))));
        drop(kv);
        FjallKv::open(directory.path(), CACHE).unwrap();
    }

    #[test]
    fn a_damaged_store_is_an_error_and_no_panic() {
        let directory = tempfile::tempdir().unwrap();
        drop(FjallKv::open(directory.path(), CACHE).unwrap());
        let version = directory.path().join("version");
        crate::env::files::replace(&version, b"garbage").unwrap();
        assert!(FjallKv::open(directory.path(), CACHE).is_err());
    }
}
