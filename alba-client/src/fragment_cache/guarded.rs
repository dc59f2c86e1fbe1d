//! A disk that cannot hurt: every read has a deadline of its own, reads of the same entry are one, writes wait in a bounded
//! queue and never for a reader, and a disk that fails or is slow again and again is left alone until a probe succeeds.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use alba_core::env::{Clock, Deadline, DeadlineExceeded, Env, Moment, Spawn, within};
use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceId, ObjectId, ObjectVersion};
use alba_core::osd_keys::FragmentAddress;
use bytes::Bytes;
use tokio::sync::Semaphore;

use super::CacheKey;
use super::breaker::{Breaker, Call};
use super::entry::Entry;
use super::flights::Flights;
use super::statistics::{DiskCounters, DiskStatistics};
use super::tier::{Loaded, Slot, Tier, TierError};

/// Reads under way at once, those that nobody waits for any more included: a disk that hangs keeps them.
const READS: usize = 32;

/// Bytes that may wait to be written.
const QUEUE_BYTES: u64 = 16 << 20;

/// Bytes written at once.
const BATCH_BYTES: u64 = 4 << 20;

/// Limit of writing a batch, and of a probe's write.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// Limit of opening: a large directory is read through.
const OPEN_DEADLINE: Duration = Duration::from_secs(300);

/// See the module.
pub(crate) struct Guarded {
    tier: Arc<dyn Tier>,
    clock: Arc<dyn Clock>,
    spawn: Arc<dyn Spawn>,
    deadline: Duration,
    breaker: Mutex<Breaker>,
    flights: Flights<Slot, Option<Entry>>,
    reads: Arc<Semaphore>,
    queue: Mutex<Queue>,
    rate: Mutex<Rate>,
    probes: AtomicU64,
    pub(super) counters: DiskCounters,
}

/// How long a disk that was just given up is left alone.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What to do before the next probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It was only slow.
    Wait,
    /// What is open may be beyond help: after a failed write, the software that writes, too.
    Reopen,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<(Slot, Entry)>,
    bytes: u64,
    /// Is somebody writing?
    running: bool,
}

/// A token bucket, of one second's bytes.
struct Rate {
    per_second: u64,
    left: u64,
    at: Moment,
}

impl Rate {
    fn take(&mut self, bytes: u64, now: Moment) -> bool {
        let since = u64::try_from(now.since(self.at).as_micros()).unwrap_or(u64::MAX);
        let more = u128::from(since) * u128::from(self.per_second) / 1_000_000;
        if more > 0 {
            self.left = u64::try_from(u128::from(self.left) + more).unwrap_or(u64::MAX).min(self.per_second);
            self.at = now;
        }
        // What is larger than the bucket takes all of it.
        let wanted = bytes.min(self.per_second);
        let enough = self.left >= wanted;
        if enough {
            self.left -= wanted;
        }
        enough
    }
}

/// Whoever writes: when it is cut short, another one can.
struct Writing {
    guarded: Arc<Guarded>,
    ended: bool,
}

impl Writing {
    async fn run(mut self) {
        let guarded = Arc::clone(&self.guarded);
        guarded.write().await;
        self.ended = true;
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.ended {
            self.guarded.queue().running = false;
        }
    }
}

impl Guarded {
    /// Begins to open `tier`, and is a cache without anything until that has succeeded.
    pub(crate) fn start(
        tier: Arc<dyn Tier>,
        env: &Env,
        deadline: Duration,
        bytes_per_second: u64,
    ) -> Arc<Self> {
        let now = env.clock.now();
        let guarded = Arc::new(Self {
            tier,
            clock: Arc::clone(&env.clock),
            spawn: Arc::clone(&env.spawn),
            deadline,
            breaker: Mutex::new(Breaker::closed("it is being opened")),
            flights: Flights::new(),
            reads: Arc::new(Semaphore::new(READS)),
            queue: Mutex::default(),
            rate: Mutex::new(Rate { per_second: bytes_per_second, left: bytes_per_second, at: now }),
            probes: AtomicU64::new(0),
            counters: DiskCounters::default(),
        });
        guarded.start_probes(Duration::ZERO, Then::Reopen);
        guarded
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is it in use?
    pub(crate) fn works(&self) -> bool {
        self.breaker().works()
    }

    /// Is it worth asking for?
    pub(crate) fn may_have(&self, slot: &Slot) -> bool {
        self.works() && self.tier.may_have(slot)
    }

    pub(crate) fn has_room(&self) -> bool {
        self.tier.has_room()
    }

    pub(crate) fn remove(&self, slot: &Slot) {
        self.tier.remove(slot);
    }

    pub(crate) fn statistics(&self) -> DiskStatistics {
        let broken = self.breaker().reason().map(str::to_owned);
        self.counters.snapshot(self.tier.used(), broken)
    }

    /// The entry, if it comes within the deadline.
    pub(crate) async fn get(self: &Arc<Self>, slot: &Slot) -> Option<Entry> {
        if !self.works() {
            self.counters.bypassed.add(1);
            self.counters.misses.add(1);
            return None;
        }
        let found = if self.tier.may_have(slot) {
            let limit = Deadline::after(&*self.clock, self.deadline);
            within(&*self.clock, limit, self.load(slot)).await.ok().flatten()
        } else {
            None
        };
        if found.is_some() { &self.counters.hits } else { &self.counters.misses }.add(1);
        found
    }

    async fn load(self: &Arc<Self>, slot: &Slot) -> Option<Entry> {
        let lead = match self.flights.follow_or_lead(slot).await {
            Ok(found) => return found,
            Err(lead) => lead,
        };
        // All at work on a disk that is slow: more would only wait.
        let permit = Arc::clone(&self.reads).try_acquire_owned().ok()?;
        let (answer, found) = tokio::sync::oneshot::channel();
        let (guarded, slot) = (Arc::clone(self), *slot);
        // On its own: who asked may give up, the disk must still be judged, and no more than so many reads may hang.
        let read = async move {
            let tier = Arc::clone(&guarded.tier);
            let mut load = Box::pin(async move { tier.load(&slot).await });
            let limit = Deadline::after(&*guarded.clock, guarded.deadline);
            let loaded = within(&*guarded.clock, limit, &mut load).await;
            let late = loaded.is_err();
            let found = guarded.judge(&slot, loaded);
            // Now, also when the disk hangs: nobody else shall wait for the same.
            lead.land(found.clone());
            drop(answer.send(found));
            if late {
                // Keeps its place among the reads until the disk has answered.
                let limit = Deadline::after(&*guarded.clock, OPEN_DEADLINE);
                drop(within(&*guarded.clock, limit, load).await);
            }
            drop(permit);
        };
        self.spawn.spawn("fragment-cache-read", Box::pin(read));
        found.await.ok().flatten()
    }

    /// What a read gave, and what it says of the disk.
    fn judge(
        self: &Arc<Self>,
        slot: &Slot,
        loaded: Result<Result<Loaded, TierError>, DeadlineExceeded>,
    ) -> Option<Entry> {
        match loaded {
            Err(DeadlineExceeded) => {
                self.counters.timeouts.add(1);
                self.failed(Call::Read, "reads take longer than read_deadline_ms", Then::Wait);
                None
            }
            Ok(Ok(Loaded::Found(entry))) => {
                self.breaker().succeeded(Call::Read);
                Some(entry)
            }
            Ok(Ok(Loaded::Gone)) => None,
            Ok(Ok(Loaded::Damaged)) => {
                self.counters.damaged.add(1);
                None
            }
            Ok(Err(error)) => {
                self.counters.errors.add(1);
                // What could not be read once is not worth another try.
                self.tier.remove(slot);
                self.failed(Call::Read, &error.to_string(), Then::Reopen);
                None
            }
        }
    }

    /// Adds an entry, if there is room for it in the queue. Never waits.
    pub(crate) fn offer(self: &Arc<Self>, slot: Slot, entry: Entry) {
        if !self.works() || entry.weight() > self.tier.largest() {
            return;
        }
        let mut queue = self.queue();
        if queue.bytes + entry.weight() > QUEUE_BYTES {
            self.counters.dropped_queue_full.add(1);
            return;
        }
        let now = self.clock.now();
        if !self.rate.lock().unwrap_or_else(PoisonError::into_inner).take(entry.weight(), now) {
            self.counters.dropped_rate.add(1);
            return;
        }
        queue.bytes += entry.weight();
        queue.entries.push_back((slot, entry));
        if queue.running {
            return;
        }
        queue.running = true;
        drop(queue);
        let writing = Writing { guarded: Arc::clone(self), ended: false };
        self.spawn.spawn("fragment-cache-write", Box::pin(writing.run()));
    }

    /// The next entries to be written; none ends the writing.
    fn batch(&self) -> Option<Vec<(Slot, Entry)>> {
        let mut queue = self.queue();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES {
            let Some((slot, entry)) = queue.entries.pop_front() else { break };
            bytes += entry.weight();
            batch.push((slot, entry));
        }
        queue.bytes = queue.bytes.saturating_sub(bytes);
        // Under the lock: who adds next must start the writing again.
        queue.running = !batch.is_empty();
        (!batch.is_empty()).then_some(batch)
    }

    async fn write(self: &Arc<Self>) {
        while let Some(batch) = self.batch() {
            if !self.works() {
                continue;
            }
            let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            match self.store(batch).await {
                Ok(()) => {
                    self.counters.written.add(count);
                    self.breaker().succeeded(Call::Write);
                }
                Err(error) => {
                    self.counters.errors.add(1);
                    self.failed(Call::Write, &error.to_string(), Then::Reopen);
                }
            }
        }
    }

    async fn store(&self, batch: Vec<(Slot, Entry)>) -> Result<(), TierError> {
        let limit = Deadline::after(&*self.clock, WRITE_DEADLINE);
        within(&*self.clock, limit, self.tier.store(batch))
            .await
            .unwrap_or_else(|_| Err(TierError(format!("writing took longer than {WRITE_DEADLINE:?}"))))
    }

    /// Keeps what was dropped for the next process; in the background.
    pub(crate) fn keep_generations(self: &Arc<Self>) {
        let guarded = Arc::clone(self);
        let keep = async move {
            let limit = Deadline::after(&*guarded.clock, WRITE_DEADLINE);
            let kept = within(&*guarded.clock, limit, guarded.tier.keep_generations()).await;
            if !matches!(kept, Ok(Ok(()))) {
                tracing::debug!(
                    "a restart may bring back fragments of a dropped namespace: nothing wrong, only space"
                );
            }
        };
        self.spawn.spawn("fragment-cache-drop", Box::pin(keep));
    }

    fn failed(self: &Arc<Self>, call: Call, reason: &str, then: Then) {
        if self.breaker().failed(call, reason) {
            tracing::warn!(reason, "the fragment cache's disk is not used until a probe succeeds");
            self.start_probes(FIRST_PAUSE, then);
        }
    }

    /// One task that probes until it succeeds or the cache is gone. It must not keep the cache alive.
    fn start_probes(self: &Arc<Self>, pause: Duration, first: Then) {
        let (cache, clock) = (Arc::downgrade(self), Arc::clone(&self.clock));
        self.spawn.spawn("fragment-cache-probe", Box::pin(probes(cache, clock, pause, first)));
    }

    /// Writes something, and reads it back as fast as a reader would want it.
    async fn probe(&self) -> Result<(), TierError> {
        let number = self.probes.fetch_add(1, Ordering::Relaxed);
        let at = self.clock.wall_micros();
        let mut id = [0xff; 32];
        id[..8].copy_from_slice(&number.to_le_bytes());
        id[8..16].copy_from_slice(&at.to_le_bytes());
        let address = FragmentAddress {
            object_id: ObjectId::new(id),
            chunk: ChunkIndex(0),
            fragment: FragmentIndex(0),
            version: ObjectVersion(0),
        };
        // No namespace has this id.
        let slot = Slot { namespace: u64::MAX, generation: 0, address };
        let key = CacheKey { namespace: NamespaceId::from_u32(0), address };
        let entry = Entry::seal(key, Bytes::copy_from_slice(&id.repeat(128)));
        self.store(vec![(slot, entry.clone())]).await?;
        let limit = Deadline::after(&*self.clock, self.deadline);
        let loaded = within(&*self.clock, limit, self.tier.load(&slot))
            .await
            .map_err(|_| TierError("reads take longer than read_deadline_ms".to_owned()))??;
        self.tier.remove(&slot);
        if loaded == Loaded::Found(entry) {
            Ok(())
        } else {
            Err(TierError("what was written is not what is read".to_owned()))
        }
    }
}

async fn probes(cache: Weak<Guarded>, clock: Arc<dyn Clock>, mut pause: Duration, mut then: Then) {
    loop {
        if pause > Duration::ZERO {
            clock.sleep_until(clock.now().plus(pause)).await;
        }
        let Some(guarded) = cache.upgrade() else { return };
        let attempt = async {
            if then == Then::Reopen {
                let limit = Deadline::after(&*clock, OPEN_DEADLINE);
                within(&*clock, limit, guarded.tier.open())
                    .await
                    .unwrap_or_else(|_| Err(TierError("opening it takes too long".to_owned())))?;
            }
            guarded.probe().await
        };
        match attempt.await {
            Ok(()) => {
                guarded.breaker().repaired();
                tracing::info!("the fragment cache's disk is in use");
                return;
            }
            Err(error) => {
                pause = guarded.breaker().probe_failed(&error.to_string());
                tracing::warn!(%error, next_try = ?pause, "the fragment cache's disk cannot be used; serving without it");
            }
        }
        then = Then::Reopen;
    }
}
