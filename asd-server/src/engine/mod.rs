//! The storage engine of one disk: segments are the truth, the index is a checkpoint of them.
//!
//! It promises: what it acknowledged survives any crash; a batch is all or nothing; what it hands out was verified
//! block by block; a failing or full disk is a state, never an exit. It must never acknowledge before the sync, never
//! rewrite acknowledged blocks, never serve bytes that do not verify. `docs/formats/asd.md` tells the format.

mod accounting;
mod batch;
mod cache;
mod decide;
mod files;
mod find;
mod format;
#[doc(hidden)]
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod index;
mod open;
mod phase;
mod rate;
mod reader;
mod recovery;
mod relocate;
mod report;
mod scrub;
mod segment;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod upkeep;
mod walk;
mod writer;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{
    DiskUsage, Osd, OsdAssert, OsdBatch, OsdError, OsdKey, OsdUpdate, Priority, ProvenSlice, StoredValue,
    ValueSlice,
};
use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Clock, Deadline, DeviceTurn, Direction, Disk, Spawn, TaskHandle, blocking, within};
use alba_core::kv::KvError;
use alba_core::range::{Page, RangeQuery};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use crate::beside::Beside;

pub use format::{BLOCK_BYTES, KEY_MAX, StoreId, VALUE_MAX};
pub use index::{FjallIndex, IndexStore, Scrubbed};
pub use recovery::OpenError;
pub use report::{SegmentReport, SegmentState, Space};
pub use scrub::ScrubStatus;
pub use status::EngineStatus;

use accounting::Accounting;
use batch::Change;
use cache::Cache;
use decide::PreparedUpdate;
use files::SegmentFiles;
use format::offset;
use index::{Entry, Index};
use rate::{Rate, Rates};
use recovery::Sources;
use scrub::ScrubState;
use status::Status;
use table::Table;
use writer::{Request, Waiting, Writer};

/// Unit of the bound on waiting bytes.
const ROOM: u64 = 1024;

/// Between attempts while segments are compacted to make room.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// A turn of the device ends after so long, whatever is done in it: less than others wait for one.
const HELD: Duration = Duration::from_millis(500);

/// What an engine may use.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Size of new segments; a multiple of [`BLOCK_BYTES`]. The largest batch fits into one.
    pub segment_bytes: u64,
    /// Sum of value sizes it may hold; none: the size of the file system.
    pub capacity: Option<u64>,
    /// Percent of the capacity from which writes are refused.
    pub limit_percent: u8,
    /// Bytes of batches that may wait to be written; more callers wait until their deadline.
    pub queue_bytes: u64,
    /// Bytes after which a group is written.
    pub group_bytes: u64,
    /// Bytes of index entries that are kept in memory.
    pub entry_cache_bytes: u64,
    /// Bytes of blocks of values that are kept in memory.
    pub block_cache_bytes: u64,
    /// Segments that are kept ready to be written, their blocks written once. It costs one write of the disk in all,
    /// since segments are reused for ever.
    pub prepare_ahead: u64,
    /// Bytes per second at which values are moved out of mostly dead segments while there is room; 0: no limit. When
    /// room is short there is none.
    pub compaction_rate: u64,
    /// Bytes per second at which segments are made ready; 0: no limit.
    pub preparation_rate: u64,
    /// Bytes per second at which the scrub reads; 0: no limit.
    pub scrub_rate: u64,
    /// From the beginning of one round of the scrub to that of the next.
    pub scrub_every: Duration,
    /// Does it compact, make ready and scrub by itself? Tools that look into a store have no need of it.
    pub background: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            capacity: None,
            limit_percent: 99,
            queue_bytes: 64 << 20,
            // Groups of this size reach the bandwidth of the disk, several being in flight, and delay no one much.
            group_bytes: 4 << 20,
            entry_cache_bytes: 8 << 20,
            block_cache_bytes: 16 << 20,
            prepare_ahead: 0,
            compaction_rate: 64 << 20,
            preparation_rate: 64 << 20,
            scrub_rate: 16 << 20,
            scrub_every: Duration::from_secs(14 * 24 * 3600),
            background: true,
        }
    }
}

/// Where an engine lives.
#[derive(Clone)]
pub struct EngineParts {
    /// The segments' files.
    pub disk: Arc<dyn Disk>,
    /// The index's store.
    pub index: Arc<dyn IndexStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Tasks and blocking work.
    pub spawn: Arc<dyn Spawn>,
    /// The same for what clients do not wait for: compaction, scrub.
    pub bulk: Arc<dyn Spawn>,
    /// Identity of the store.
    pub store: StoreId,
}

/// What writer, readers and background work share.
struct Shared {
    sources: Sources,
    clock: Arc<dyn Clock>,
    store: StoreId,
    config: EngineConfig,
    files: SegmentFiles,
    index: RwLock<Option<Arc<Index>>>,
    table: Mutex<Table>,
    cache: Cache,
    space: Accounting,
    status: Status,
    rates: Rates,
    scrub: ScrubState,
    scrub_asked: AtomicBool,
    scrubbing: Notify,
    /// There may be something to compact or to make ready.
    compacting: Notify,
    /// There may be rows of a deleted range to remove.
    sweeping: Notify,
    /// Who else uses the device, when that is known.
    beside: OnceLock<Arc<Beside>>,
}

impl Shared {
    /// Would clients feel it when `bytes` are moved now?
    fn is_felt(&self, bytes: u64) -> bool {
        self.beside.get().is_some_and(|beside| beside.is_felt(bytes))
    }

    /// The turn of the device for moving `bytes` that nobody waits for, where one is to be taken. While it is held nothing must be waited
    /// for but the device, or not for long ([`Self::in_turn`]).
    async fn device_turn(&self, direction: Direction, bytes: u64) -> Option<DeviceTurn> {
        let beside = self.beside.get().filter(|beside| beside.is_felt(bytes))?;
        let turn = beside.turn(direction).await?;
        if beside.has_company() {
            // Small reads of our own clients are seen by the disk itself.
            self.sources.disk.expect_small();
        }
        Some(turn)
    }

    /// Does `work`, which moves `bytes` that nobody waits for, in a turn of the device where one is to be taken. The turn ends with it,
    /// or after [`HELD`]: it may have to wait for more than the device, such as what the writer has taken before, or room.
    async fn in_turn<T>(&self, direction: Direction, bytes: u64, work: impl Future<Output = T>) -> T {
        let Some(turn) = self.device_turn(direction, bytes).await else { return work.await };
        let clock = self.clock.as_ref();
        let mut work = std::pin::pin!(work);
        let held = within(clock, Deadline::after(clock, HELD), work.as_mut()).await;
        drop(turn);
        match held {
            Ok(done) => done,
            Err(_) => work.await,
        }
    }

    /// No code panics while it holds the lock, so a poisoned lock holds a sound value.
    fn index(&self) -> Result<Arc<Index>, OsdError> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner).clone();
        index.ok_or_else(|| OsdError::Device("the index is being opened again".into()))
    }

    /// Reading the index failed. One that is damaged is made again from the segments, by the writer; until then nothing is
    /// served from it.
    fn index_failed(&self, error: &KvError) {
        if matches!(error, KvError::Damaged(_)) {
            self.status.index_failed(error);
            self.sources.index_is_damaged.store(true, Ordering::Relaxed);
            self.set_index(None);
            self.compacting.notify_one();
        } else {
            self.status.read_failed(error);
        }
    }

    fn set_index(&self, index: Option<Arc<Index>>) {
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = index;
    }

    /// No code panics while it holds the lock, so a poisoned lock holds a sound table.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many more segment files there may be: what the file system has room for, and no more than a quarter above
    /// the capacity (and some), since others may share the disk.
    async fn room_for_segments(&self) -> std::io::Result<u64> {
        let len = self.config.segment_bytes;
        let (free, _) = self.sources.disk.space().await?;
        let capacity = self.space.capacity();
        let most = capacity.saturating_add(capacity / 4) / len + 8;
        Ok((free / len).min(most.saturating_sub(offset(self.table().len()))))
    }

    /// Counts and reports damage.
    fn damaged(&self, key: &OsdKey, reason: &str) -> OsdError {
        self.status.damaged_read();
        metrics::counter!("alba_osd_damaged_reads_total").increment(1);
        tracing::error!(key = alba_core::ids::text_or_hex(key), reason, "damaged value");
        OsdError::Damaged(reason.to_owned())
    }
}

/// A running engine.
pub struct Engine {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Request>,
    /// Room for waiting batches, in units of [`ROOM`].
    room: Arc<Semaphore>,
    total_room: u32,
    _writer: TaskHandle,
    _background: Vec<AbortOnDrop>,
}

/// What was found at the opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Batches that the index had not seen.
    pub replayed: u64,
    /// The index was made from the segments alone.
    pub rebuilt: bool,
    /// What is lost, for people.
    pub damage: Vec<String>,
}

impl Engine {
    /// Finishes what waits, makes the index durable and closes it. Later calls fail.
    pub async fn close(&self, deadline: Deadline) {
        let (answer, closed) = oneshot::channel();
        let close = async {
            if self.queue.send(Request::Close(answer)).await.is_ok() {
                drop(closed.await);
            }
        };
        // What is not closed in time is replayed at the next start.
        let _ = within(self.shared.clock.as_ref(), deadline, close).await;
    }

    /// Largest value it takes, in bytes.
    pub fn value_max(&self) -> u32 {
        u32::try_from(self.shared.config.segment_bytes / 2).map_or(VALUE_MAX, |half| half.min(VALUE_MAX))
    }

    /// What nobody waits for gives way to these from now on. Once only.
    pub fn work_beside(&self, beside: Arc<Beside>) {
        // Only a second service of the same engine would come too late.
        let _ = self.shared.beside.set(beside);
    }

    /// Does `work`, which moves `bytes`: for maintenance in a turn of the device, where one is to be taken.
    pub(crate) async fn in_turn<T>(
        &self,
        direction: Direction,
        (priority, bytes): (Priority, u64),
        work: impl Future<Output = T>,
    ) -> T {
        match priority {
            Priority::High => work.await,
            Priority::Low => self.shared.in_turn(direction, bytes, work).await,
        }
    }

    /// Makes it refuse data, or take it again, whatever the space.
    pub fn set_full(&self, full: bool) {
        self.shared.space.force_full(full);
    }

    /// Does it refuse data for its limit or because it was told to?
    pub fn is_full(&self) -> bool {
        self.shared.space.is_full()
    }

    /// Bytes of the values of `keys` together, to bound an answer before it is read.
    pub async fn size_of(&self, keys: Vec<OsdKey>, deadline: Deadline) -> Result<u64, OsdError> {
        let entries = self.within(deadline, self.lookup(keys)).await?;
        Ok(entries.iter().flatten().map(|entry| u64::from(entry.len)).sum())
    }

    async fn within<T>(
        &self,
        deadline: Deadline,
        work: impl Future<Output = Result<T, OsdError>>,
    ) -> Result<T, OsdError> {
        within(self.shared.clock.as_ref(), deadline, work).await.unwrap_or(Err(OsdError::Timeout))
    }

    async fn with_index<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Index) -> Result<T, KvError> + Send + 'static,
    ) -> Result<T, OsdError> {
        let index = self.shared.index()?;
        let done = blocking(self.shared.sources.spawn.as_ref(), move || work(&index)).await;
        done.map_err(|gone| OsdError::Device(gone.to_string()))?.map_err(|error| {
            self.shared.index_failed(&error);
            OsdError::Device(error.to_string())
        })
    }

    async fn lookup(&self, keys: Vec<OsdKey>) -> Result<Vec<Option<Entry>>, OsdError> {
        self.with_index(move |index| index.lookup(&keys)).await
    }

    /// The entry of one key, from memory when it is there.
    async fn entry(&self, key: &OsdKey) -> Result<Option<Arc<Entry>>, OsdError> {
        let ticket = match self.shared.cache.entry(key) {
            Ok(entry) => return Ok(Some(entry)),
            Err(ticket) => ticket,
        };
        let found = self.lookup(vec![key.clone()]).await?.pop().flatten().map(Arc::new);
        if let Some(entry) = &found {
            self.shared.cache.keep(key, entry.clone(), ticket);
        }
        Ok(found)
    }

    /// Checks what needs no state; gives the bytes that count.
    fn admit(&self, batch: &OsdBatch) -> Result<u64, OsdError> {
        let too_long = |what: &str, len: usize, max: u64| {
            Err(OsdError::BadRequest(format!("{what} of {len} bytes; this OSD takes {max} at most")))
        };
        let mut bytes = 0;
        for key in decide::named(batch) {
            if key.len() > KEY_MAX {
                return too_long("key", key.len(), offset(KEY_MAX));
            }
            bytes += offset(key.len());
        }
        for assert in &batch.asserts {
            if let OsdAssert::Value(_, value) = assert {
                bytes += offset(value.len());
            }
        }
        let mut changes = Vec::with_capacity(batch.updates.len());
        for update in &batch.updates {
            changes.push(match update {
                OsdUpdate::Set(key, stored) => {
                    let len = stored.value.len();
                    if offset(len) > u64::from(self.value_max()) {
                        return too_long("value", len, self.value_max().into());
                    }
                    bytes += offset(len);
                    Change::Set { key: key.clone(), stored: stored.clone(), tree: None }
                }
                OsdUpdate::Delete(key) => Change::Delete { key: key.clone() },
                OsdUpdate::DeleteRange(from, to) if from < to => {
                    Change::DeleteRange { from: from.clone(), to: to.clone(), until: 0 }
                }
                OsdUpdate::DeleteRange(..) => {
                    return Err(OsdError::BadRequest("a range to delete ends before it begins".into()));
                }
                // Whoever has connections fetches the value first.
                OsdUpdate::SetFromPeer(..) => return Err(OsdError::UnknownOperation),
            });
        }
        let room = self.shared.config.segment_bytes - 2 * BLOCK_BYTES;
        if batch::encoded_len(&changes) > room {
            return too_long("batch", usize::try_from(bytes).unwrap_or(usize::MAX), room);
        }
        Ok(bytes)
    }

    /// Computes what the records need of the values. A value must have the BLAKE3 root that comes with it.
    async fn prepare_updates(&self, updates: Vec<OsdUpdate>) -> Result<Vec<PreparedUpdate>, OsdError> {
        let mut prepared = Vec::with_capacity(updates.len());
        for update in updates {
            let tree = match &update {
                OsdUpdate::Set(key, StoredValue { value, checksum: Checksum::Blake3(root) }) => {
                    let tree = reader::hash(&self.shared, value.clone()).await?;
                    if tree.root() != *root {
                        return Err(OsdError::WrongChecksum(key.clone()));
                    }
                    Some(tree)
                }
                _ => None,
            };
            prepared.push(PreparedUpdate { update, tree });
        }
        Ok(prepared)
    }

    async fn enqueue(&self, batch: OsdBatch, deadline: Deadline) -> Result<(), OsdError> {
        let bytes = self.admit(&batch)?;
        let clock = self.shared.clock.as_ref();
        let units = u32::try_from(bytes / ROOM + 1).unwrap_or(u32::MAX).min(self.total_room);
        let gone = || OsdError::Device("the engine is closed".into());
        let overloaded = |_| OsdError::Overloaded("too many bytes wait to be written".into());
        let room = within(clock, deadline, self.room.clone().acquire_many_owned(units))
            .await
            .map_err(overloaded)?
            .map_err(|_| gone())?;
        let OsdBatch { asserts, updates } = batch;
        let updates = self.within(deadline, self.prepare_updates(updates)).await?;
        let (answer, result) = oneshot::channel();
        let waiting = Box::new(Waiting { asserts, updates, bytes, deadline, answer, room });
        within(clock, deadline, self.queue.send(Request::Apply(waiting)))
            .await
            .map_err(overloaded)?
            .map_err(|_| gone())?;
        match within(clock, deadline, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(OsdError::Timeout),
        }
    }

    /// After a read met damage: was it only that the value was replaced and its segment removed meanwhile? Then
    /// `entries` are the new ones.
    async fn look_again(
        &self,
        keys: &[OsdKey],
        entries: &mut Vec<Option<Entry>>,
        error: OsdError,
    ) -> Result<(), OsdError> {
        if !matches!(error, OsdError::Damaged(_)) {
            return Err(error);
        }
        let now = self.lookup(keys.to_vec()).await?;
        if now == *entries {
            return Err(error);
        }
        *entries = now;
        Ok(())
    }

    async fn values(
        &self,
        keys: &[OsdKey],
        entries: &[Option<Entry>],
    ) -> Result<Vec<Option<StoredValue>>, OsdError> {
        let mut values = Vec::with_capacity(keys.len());
        for (key, entry) in keys.iter().zip(entries) {
            values.push(match entry {
                Some(entry) => Some(reader::value(&self.shared, key, entry).await?),
                None => None,
            });
        }
        Ok(values)
    }

    async fn get(&self, keys: Vec<OsdKey>) -> Result<Vec<Option<StoredValue>>, OsdError> {
        let mut entries = self.lookup(keys.clone()).await?;
        loop {
            match self.values(&keys, &entries).await {
                Ok(values) => return Ok(values),
                Err(error) => self.look_again(&keys, &mut entries, error).await?,
            }
        }
    }

    async fn get_slices(&self, key: &OsdKey, slices: &[ValueSlice]) -> Result<Option<Vec<Bytes>>, OsdError> {
        let keys = vec![key.clone()];
        let mut entries = vec![self.entry(key).await?.map(|entry| entry.as_ref().clone())];
        loop {
            let Some(Some(entry)) = entries.first() else { return Ok(None) };
            match reader::slices(&self.shared, key, entry, slices).await {
                Ok(found) => return Ok(Some(found)),
                Err(error) => self.look_again(&keys, &mut entries, error).await?,
            }
        }
    }

    async fn get_proven(&self, key: &OsdKey, slice: ValueSlice) -> Result<Option<ProvenSlice>, OsdError> {
        let keys = vec![key.clone()];
        let mut entries = vec![self.entry(key).await?.map(|entry| entry.as_ref().clone())];
        loop {
            let Some(Some(entry)) = entries.first() else { return Ok(None) };
            match reader::proven(&self.shared, key, entry, slice).await {
                Ok(found) => return Ok(Some(found)),
                Err(error) => self.look_again(&keys, &mut entries, error).await?,
            }
        }
    }

    /// Is there garbage to be compacted, so that being out of segments will pass?
    fn gets_room(&self) -> bool {
        !self.is_full() && self.shared.table().victim(table::Urgency::Short).is_some()
    }

    /// All slices, when they are in memory.
    fn in_memory(&self, key: &OsdKey, slices: &[ValueSlice]) -> Option<Vec<Bytes>> {
        let entry = self.shared.cache.entry(key).ok()?;
        let inside =
            |slice: &ValueSlice| slice.offset.checked_add(slice.len).is_some_and(|end| end <= entry.len);
        let find = |slice: &ValueSlice| {
            inside(slice).then(|| reader::slice_in_memory(&self.shared, &entry, *slice)).flatten()
        };
        slices.iter().map(find).collect()
    }
}

#[async_trait]
impl Osd for Engine {
    async fn apply(&self, batch: OsdBatch, _: Priority, deadline: Deadline) -> Result<(), OsdError> {
        loop {
            let result = self.enqueue(batch.clone(), deadline).await;
            if result != Err(OsdError::Full) || !self.gets_room() {
                return result;
            }
            // Only garbage is in the way: it is being compacted.
            let clock = self.shared.clock.as_ref();
            self.shared.compacting.notify_one();
            if deadline.left(clock) <= FULL_PAUSE {
                return result;
            }
            clock.sleep_until(clock.now().plus(FULL_PAUSE)).await;
        }
    }

    async fn multi_get(
        &self,
        keys: Vec<OsdKey>,
        _: Priority,
        deadline: Deadline,
    ) -> Result<Vec<Option<StoredValue>>, OsdError> {
        self.within(deadline, self.get(keys)).await
    }

    async fn multi_exists(
        &self,
        keys: Vec<OsdKey>,
        _: Priority,
        deadline: Deadline,
    ) -> Result<Vec<bool>, OsdError> {
        let entries = self.within(deadline, self.lookup(keys)).await?;
        Ok(entries.iter().map(Option::is_some).collect())
    }

    async fn partial_get(
        &self,
        key: OsdKey,
        slices: Vec<ValueSlice>,
        _: Priority,
        deadline: Deadline,
    ) -> Result<Option<Vec<Bytes>>, OsdError> {
        if let Some(found) = self.in_memory(&key, &slices) {
            return Ok(Some(found));
        }
        self.within(deadline, self.get_slices(&key, &slices)).await
    }

    async fn proven_get(
        &self,
        key: OsdKey,
        slice: ValueSlice,
        _: Priority,
        deadline: Deadline,
    ) -> Result<Option<ProvenSlice>, OsdError> {
        self.within(deadline, self.get_proven(&key, slice)).await
    }

    async fn range(
        &self,
        query: RangeQuery,
        _: Priority,
        deadline: Deadline,
    ) -> Result<Page<OsdKey>, OsdError> {
        if query.is_empty() {
            return Ok(Page { items: Vec::new(), has_more: false });
        }
        let limit = query.limit();
        let scan =
            self.with_index(move |index| index.scan(query.lower(), query.upper(), query.reverse, limit + 1));
        let found = self.within(deadline, scan).await?;
        let has_more = found.len() > limit;
        let items = found.into_iter().take(limit).map(|(key, _)| key).collect();
        Ok(Page { items, has_more })
    }

    async fn disk_usage(&self, _: Deadline) -> Result<DiskUsage, OsdError> {
        Ok(self.usage())
    }
}
