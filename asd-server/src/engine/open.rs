//! Opening an engine, and making segments ready before it is used.

use std::sync::Arc;

use alba_core::env::Urgency;
use alba_core::env::osd::OsdError;
use tokio::sync::{Notify, Semaphore, mpsc};

use super::upkeep::Upkeep;
use super::*;

/// Most batches that wait to be written.
const QUEUE: usize = 1024;

impl Engine {
    /// Opens the store, or begins it when the disk is empty.
    pub async fn open(parts: EngineParts, config: EngineConfig) -> Result<(Self, Opening), OpenError> {
        let EngineParts { disk, index, clock, spawn, bulk, store } = parts;
        let index_is_damaged = AtomicBool::new(false);
        let sources = Sources { index_is_damaged, disk: disk.clone(), spawn: spawn.clone(), index, store };
        let recovered = recovery::recover(&sources).await?;
        let capacity = match config.capacity {
            Some(capacity) => capacity,
            None => disk.space().await?.1,
        };
        let total_room = u32::try_from((config.queue_bytes / ROOM).max(1)).unwrap_or(u32::MAX >> 1);
        let shared = Arc::new(Shared {
            files: SegmentFiles::new(disk),
            index: RwLock::new(None),
            table: Mutex::default(),
            cache: Cache::new(config.entry_cache_bytes, config.block_cache_bytes),
            space: Accounting::new(recovered.used, capacity, config.limit_percent),
            status: Status::default(),
            rates: Rates {
                compaction: Rate::new(config.compaction_rate),
                preparation: Rate::new(config.preparation_rate),
                scrub: Rate::new(config.scrub_rate),
            },
            scrub: ScrubState::default(),
            scrub_asked: AtomicBool::new(false),
            scrubbing: Notify::new(),
            compacting: Notify::new(),
            sweeping: Notify::new(),
            beside: OnceLock::new(),
            sources,
            clock,
            store,
            config,
        });
        shared.status.opened(recovered.damage.clone());
        let opening = Opening {
            replayed: recovered.replayed,
            rebuilt: recovered.rebuilt,
            damage: recovered.damage.clone(),
        };
        let (queue, requests) = mpsc::channel(QUEUE);
        let writer = Writer::new(shared.clone(), recovered);
        let writer = spawn.spawn_thread("asd-writer", Urgency::Both, Box::pin(writer.run(requests)));
        let mut background = Vec::new();
        if shared.config.background {
            let upkeep = Upkeep { shared: shared.clone(), queue: queue.clone(), prepared: 0 };
            background.push(bulk.spawn("asd upkeep", Box::pin(upkeep.run())).abort_on_drop());
            let scrub = Box::pin(scrub::run(shared.clone()));
            background.push(bulk.spawn("asd scrub", scrub).abort_on_drop());
        }
        // Rows of a range that was deleted before the last stop may be left.
        shared.sweeping.notify_one();
        let room = Arc::new(Semaphore::new(usize::try_from(total_room).unwrap_or(Semaphore::MAX_PERMITS)));
        Ok((Self { shared, queue, room, total_room, _writer: writer, _background: background }, opening))
    }

    /// Makes `count` segments ready: their blocks are written once, so that later writes overwrite blocks. `progress` is
    /// told after each.
    pub async fn prepare(&self, count: u64, mut progress: impl FnMut(u64)) -> Result<(), OsdError> {
        let mut work = Upkeep { shared: self.shared.clone(), queue: self.queue.clone(), prepared: 1 << 32 };
        for done in 1..=count {
            work.prepare_one().await?;
            progress(done);
        }
        Ok(())
    }
}
