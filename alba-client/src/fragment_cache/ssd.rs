//! The part on an SSD: foyer's block engine in a directory.
//!
//! ```text
//! PATH/lock         held while the files are in use, also by what still hangs in them
//! PATH/format       which format, size and generations the files have; another one, or none: they are removed
//! PATH/blocks/…     foyer's
//! ```
//!
//! All its work on the disk is done by the threads of a runtime of its own, so that a disk that hangs takes none of the
//! executor's. Foyer reads and writes by file descriptor: its files must stay open until the last call has returned, or
//! a late write would go into whatever file got the number next. So a store that is replaced or dropped is closed by a
//! thread that waits for its calls, however long they take, and until then the lock is held and no new store is opened.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::env::files;
use async_trait::async_trait;
use foyer::{
    BlockEngineConfig, Device, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder,
    HybridCachePolicy, Load, PsyncIoEngineConfig, RecoverMode, Spawner, Statistics, StorageFilter,
    StorageFilterCondition, StorageFilterResult,
};
use tokio::runtime::{Builder, Runtime};

use super::entry::Entry;
use super::generations::{Generations, SLOTS};
use super::sketch::Sketch;
use super::tier::{Loaded, Slot, Tier, TierError};

/// The device is cut into at most so many blocks, each of which is a file, and at least so many where they are not below
/// 1 MiB: a block is evicted as a whole.
const BLOCKS: (u64, u64) = (16, 256);

const SMALLEST_BLOCK: u64 = 1 << 20;

/// Foyer's buffer for what is being written; there are two. An entry must fit in it and in a block.
const BUFFER: u64 = 8 << 20;

/// Foyer's own index at the head of each stretch of a block.
const INDEX: u64 = 4096;

/// Threads for reads and writes: an SSD is busy with these.
const THREADS: usize = 16;

/// How often an entry must have been wanted lately to be kept when its block is evicted.
const WORTH_KEEPING: u8 = 2;

/// How long closing may take to write what is waiting.
const CLOSING: Duration = Duration::from_secs(2);

const MAGIC: &[u8; 8] = b"ALBAFC01";

/// See the module.
pub(crate) struct Ssd {
    path: PathBuf,
    capacity: u64,
    block: u64,
    generations: Arc<Generations>,
    sketch: Arc<Sketch>,
    open: Mutex<State>,
    /// Is there a store, or one that is being opened or closed?
    in_use: Arc<AtomicBool>,
    used: AtomicU64,
}

#[derive(Default)]
struct State {
    store: Option<Arc<Store>>,
    /// Did the generations go on from an earlier process's?
    resumed: bool,
}

/// An open store.
struct Store {
    cache: HybridCache<Slot, Entry>,
    _closing: Closing,
}

/// What must live until the last call on the files has returned.
struct Closing {
    runtime: Option<Runtime>,
    cache: Option<HybridCache<Slot, Entry>>,
    device: Option<Arc<dyn Device>>,
    lock: Option<File>,
    /// Set while this lives.
    in_use: Arc<AtomicBool>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        let (cache, device, lock) = (self.cache.take(), self.device.take(), self.lock.take());
        let in_use = Arc::clone(&self.in_use);
        let close = move || {
            if let Some(cache) = cache {
                // What is waiting is worth a moment, no more: all of it can be read from the OSDs.
                #[expect(
                    clippy::disallowed_methods,
                    reason = "on a runtime of this module's own, never in a simulation"
                )]
                let closed = runtime.block_on(async { tokio::time::timeout(CLOSING, cache.close()).await });
                if !matches!(closed, Ok(Ok(()))) {
                    tracing::debug!("the fragment cache was closed before all was written");
                }
            }
            // Returns when the last call has.
            drop(runtime);
            drop(device);
            drop(lock);
            in_use.store(false, Ordering::Release);
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "it may have to wait for a disk that hangs, longer than any executor lives"
        )]
        drop(std::thread::spawn(close));
    }
}

/// Entries that are still wanted are written anew when their block is evicted.
#[derive(Clone)]
struct Wanted(Arc<Sketch>);

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wanted")
    }
}

impl StorageFilterCondition for Wanted {
    fn filter(&self, _: &Arc<Statistics>, hash: u64, _: usize) -> StorageFilterResult {
        if self.0.estimate(hash) >= WORTH_KEEPING {
            StorageFilterResult::Admit
        } else {
            StorageFilterResult::Reject
        }
    }
}

fn failed(what: &str, path: &Path, error: &dyn std::fmt::Display) -> TierError {
    TierError(format!("cannot {what} {}: {error}", path.display()))
}

/// The content of the file `format`.
fn format(capacity: u64, generations: &[u32]) -> Vec<u8> {
    let mut text = MAGIC.to_vec();
    text.extend(capacity.to_le_bytes());
    generations.iter().for_each(|generation| text.extend(generation.to_le_bytes()));
    let Checksum::Crc32c(sum) = ChecksumAlgorithm::Crc32c.of(&text) else { return text };
    text.extend(sum.to_le_bytes());
    text
}

/// The generations, if this is the format and the capacity.
fn parse(text: &[u8], capacity: u64) -> Option<Vec<u32>> {
    let (content, _) = text.split_at_checked(text.len().checked_sub(4)?)?;
    let generations: Vec<u32> = content
        .get(16..)?
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().unwrap_or_default()))
        .collect();
    (generations.len() == SLOTS && format(capacity, &generations) == text).then_some(generations)
}

/// Bytes that the files take on the disk.
fn allocated(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.blocks() * 512)).sum()
}

/// What preparing the directory gives.
struct Prepared {
    lock: File,
    device: Arc<dyn Device>,
    generations: Vec<u32>,
    used: u64,
}

fn prepare(path: &Path, capacity: u64) -> Result<Prepared, TierError> {
    files::create_dir_all(path).map_err(|error| failed("create", path, &error))?;
    let lock =
        files::try_lock(&path.join("lock")).map_err(|error| failed("lock", path, &error))?.ok_or_else(
            || TierError(format!("{} is still in use, here or by another process", path.display())),
        )?;
    let (note, blocks) = (path.join("format"), path.join("blocks"));
    let known = std::fs::read(&note).ok().and_then(|text| parse(&text, capacity));
    if known.is_none() && blocks.exists() {
        tracing::info!(path = %path.display(), "the fragment cache has another format or size; it begins empty");
        // The note first: without it what is left after a crash is removed by the next start.
        match files::remove_file(&note) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("remove", &note, &error));
            }
            _ => {}
        }
        files::remove_dir_all(&blocks).map_err(|error| failed("empty", &blocks, &error))?;
    }
    files::create_dir_all(&blocks).map_err(|error| failed("create", &blocks, &error))?;
    let generations = match known {
        Some(generations) => generations,
        None => {
            let none = vec![0; SLOTS];
            files::replace(&note, &format(capacity, &none))
                .map_err(|error| failed("write", &note, &error))?;
            none
        }
    };
    let size = usize::try_from(capacity).map_err(|error| failed("use", path, &error))?;
    // Without the page cache: what is hot is in memory already.
    let device = FsDeviceBuilder::new(&blocks).with_capacity(size).with_direct(direct_works(path)).build();
    let device = device.map_err(|error| failed("open", &blocks, &error))?;
    Ok(Prepared { lock, device, generations, used: allocated(&blocks).min(capacity) })
}

/// Not every file system can read and write without the page cache.
fn direct_works(path: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    // O_DIRECT | O_NOATIME, as foyer opens its files.
    let flags = (rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::NOATIME).bits();
    let Ok(flags) = i32::try_from(flags) else { return false };
    #[expect(clippy::disallowed_methods, reason = "opened for reading, to see whether these flags work")]
    std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path.join("lock")).is_ok()
}

impl Ssd {
    /// Nothing is opened yet. Uses at most `bytes` of the file system below `path`.
    pub(crate) fn new(path: PathBuf, bytes: u64, generations: Arc<Generations>, sketch: Arc<Sketch>) -> Self {
        // 16 GiB in 256 blocks of 64 MiB.
        let block = (bytes / BLOCKS.1).clamp(SMALLEST_BLOCK, 1 << 30).min(bytes / BLOCKS.0);
        let block = block - block % INDEX;
        let capacity = bytes - bytes % block;
        Self {
            path,
            capacity,
            block,
            generations,
            sketch,
            open: Mutex::default(),
            in_use: Arc::default(),
            used: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> Result<Arc<Store>, TierError> {
        self.state().store.clone().ok_or_else(|| TierError("it is not open".to_owned()))
    }

    async fn build(&self) -> Result<(Store, Vec<u32>), TierError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(THREADS)
            .thread_name("cache-ssd")
            .enable_time()
            .build()
            .map_err(|error| {
                self.in_use.store(false, Ordering::Release);
                TierError(format!("no threads for the fragment cache: {error}"))
            })?;
        let handle = runtime.handle().clone();
        // From here on, also when this future is dropped.
        let in_use = Arc::clone(&self.in_use);
        let mut closing = Closing { runtime: Some(runtime), cache: None, device: None, lock: None, in_use };
        let (path, capacity) = (self.path.clone(), self.capacity);
        let prepared = handle
            .spawn_blocking(move || prepare(&path, capacity))
            .await
            .map_err(|error| TierError(error.to_string()))??;
        let Prepared { lock, device, generations, used } = prepared;
        closing.device = Some(Arc::clone(&device));
        closing.lock = Some(lock);
        let engine = BlockEngineConfig::new(device)
            .with_block_size(number(self.block))
            .with_buffer_pool_size(number(BUFFER))
            .with_submit_queue_size_threshold(number(4 * BUFFER))
            .with_blob_index_size(number(INDEX))
            .with_reinsertion_filter(StorageFilter::new().with_condition(Wanted(Arc::clone(&self.sketch))));
        let builder = HybridCacheBuilder::new()
            .with_name("fragments")
            .with_policy(HybridCachePolicy::WriteOnInsertion)
            .with_flush_on_close(false)
            // Entries never stay there: they are written to the disk and no more.
            .memory(1)
            .with_shards(1)
            .storage()
            .with_io_engine_config(PsyncIoEngineConfig::new())
            .with_engine_config(engine)
            .with_recover_mode(RecoverMode::Quiet)
            .with_spawner(Spawner::from(handle.clone()));
        let cache = handle
            .spawn(builder.build())
            .await
            .map_err(|error| TierError(error.to_string()))?
            .map_err(|error| failed("open", &self.path, &error))?;
        closing.cache = Some(cache.clone());
        self.used.store(used, Ordering::Relaxed);
        Ok((Store { cache, _closing: closing }, generations))
    }
}

fn number(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[async_trait]
impl Tier for Ssd {
    async fn open(&self) -> Result<(), TierError> {
        // The old one is closed by this, once nobody reads from it any more.
        drop(self.state().store.take());
        if self.in_use.swap(true, Ordering::AcqRel) {
            return Err(TierError(format!("calls on {} have not returned yet", self.path.display())));
        }
        let (store, generations) = self.build().await?;
        let mut state = self.state();
        if !state.resumed {
            state.resumed = true;
            self.generations.resume(&generations);
        }
        state.store = Some(Arc::new(store));
        Ok(())
    }

    fn may_have(&self, slot: &Slot) -> bool {
        self.store().is_ok_and(|store| store.cache.storage().may_contains(slot))
    }

    async fn load(&self, slot: &Slot) -> Result<Loaded, TierError> {
        let store = self.store()?;
        if !store.cache.storage().may_contains(slot) {
            return Ok(Loaded::Gone);
        }
        match store.cache.storage().load(slot).await {
            Ok(Load::Entry { value, .. }) => Ok(Loaded::Found(value)),
            Ok(Load::Piece { piece, .. }) => Ok(Loaded::Found(piece.value().clone())),
            // The index had it, so its bytes were not understood; the index has forgotten it.
            Ok(Load::Miss) => Ok(Loaded::Damaged),
            Ok(Load::Throttled) => Ok(Loaded::Gone),
            Err(error) => Err(failed("read from", &self.path, &error)),
        }
    }

    async fn store(&self, batch: Vec<(Slot, Entry)>) -> Result<(), TierError> {
        let store = self.store()?;
        let mut written = Vec::with_capacity(batch.len());
        for (slot, entry) in batch {
            written.push((slot, entry.weight()));
            drop(store.cache.storage_writer(slot).force().insert(entry));
        }
        store.cache.storage().wait().await;
        // Foyer logs what fails, and goes on: only its index tells. When the disk is full, or the task that writes has
        // ended, nothing new gets there.
        written.retain(|(slot, _)| store.cache.storage().may_contains(slot));
        if written.is_empty() {
            return Err(TierError(format!(
                "nothing can be written to {}: it may be full or read-only; the log says more",
                self.path.display()
            )));
        }
        let bytes: u64 = written.iter().map(|(_, bytes)| bytes).sum();
        let grown = self.used.load(Ordering::Relaxed).saturating_add(bytes).min(self.capacity);
        self.used.store(grown, Ordering::Relaxed);
        Ok(())
    }

    fn remove(&self, slot: &Slot) {
        if let Ok(store) = self.store()
            && store.cache.storage().may_contains(slot)
        {
            store.cache.storage().delete(slot);
        }
    }

    async fn keep_generations(&self) -> Result<(), TierError> {
        let store = self.store()?;
        let (note, content) = (self.path.join("format"), format(self.capacity, &self.generations.all()));
        let write = move || files::replace(&note, &content).map_err(|error| failed("write", &note, &error));
        let spawner = store.cache.storage().spawner();
        spawner.spawn_blocking(write).await.map_err(|error| TierError(error.to_string()))?
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn has_room(&self) -> bool {
        // The last blocks are for what is being written.
        self.used().saturating_add(3 * self.block) < self.capacity
    }

    fn largest(&self) -> u64 {
        self.block.min(BUFFER).saturating_sub(4 * INDEX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_is_fixed_and_only_its_own_format_and_size_are_read() {
        let mut generations = vec![0; SLOTS];
        generations[1] = 7;
        let text = format(1 << 24, &generations);
        assert_eq!(text.len(), 16 + 4 * SLOTS + 4);
        assert_eq!(&text[..24], b"ALBAFC01\0\0\0\x01\0\0\0\0\0\0\0\0\x07\0\0\0");
        assert_eq!(parse(&text, 1 << 24), Some(generations));
        assert_eq!(parse(&text, 1 << 25), None);
        for at in 0..text.len() {
            let mut damaged = text.clone();
            damaged[at] ^= 1;
            assert_eq!(parse(&damaged, 1 << 24), None);
            assert_eq!(parse(&text[..at], 1 << 24), None);
        }
    }
}
