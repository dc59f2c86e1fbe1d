//! An OSD of the test backend: a map, with faults.

use super::*;

/// What goes wrong on an OSD.
#[derive(Debug, Clone, Default)]
pub(in crate::tests) struct Faults {
    /// Refuses connections.
    pub(in crate::tests) dead: bool,
    /// Every call takes this long.
    pub(in crate::tests) delay: Duration,
    /// Applies take this long in addition.
    pub(in crate::tests) write_delay: Duration,
    /// Answers to applies come so much after they were applied.
    pub(in crate::tests) answer_delay: Duration,
    /// Stops answering after so many more applied batches.
    pub(in crate::tests) dies_after: Option<usize>,
    /// The answers to the next so many applies are lost.
    pub(in crate::tests) lost_answers: usize,
    pub(in crate::tests) full: bool,
    /// Reads take up to this much longer, each by a time of its own.
    pub(in crate::tests) jitter: Duration,
    /// Is an older one that proves nothing.
    pub(in crate::tests) no_proofs: bool,
    /// Flips a bit of every part that it gives, as a disk or a cable may that its own checksums don't see.
    pub(in crate::tests) lies: bool,
    /// Copies nothing from peers, as an older one.
    pub(in crate::tests) no_copies: bool,
}

pub(in crate::tests) struct TestOsd {
    pub(in crate::tests) id: OsdId,
    pub(super) backend: std::sync::Weak<Backend>,
    pub(in crate::tests) memory: MemoryOsd,
    pub(in crate::tests) faults: Mutex<Faults>,
    pub(in crate::tests) reads: Mutex<usize>,
    /// Bytes of values that were asked for.
    pub(in crate::tests) read_bytes: Mutex<u64>,
    /// Batches that were asked for.
    pub(in crate::tests) applies: Mutex<usize>,
    /// Values that peers fetched.
    pub(in crate::tests) peer_reads: Mutex<usize>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) rng: Arc<dyn Rng>,
    pub(super) log: Log,
}

impl TestOsd {
    pub(in crate::tests) fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults.lock().unwrap());
    }

    async fn come_through(&self, write: bool) -> Result<(), OsdError> {
        let faults = self.faults.lock().unwrap().clone();
        let mut delay = faults.delay + if write { faults.write_delay } else { Duration::ZERO };
        if !write && !faults.jitter.is_zero() {
            delay += faults.jitter * u32::try_from(self.rng.u64() % 1000).unwrap() / 1000;
        }
        if delay > Duration::ZERO {
            self.clock.sleep_until(self.clock.now().plus(delay)).await;
        }
        if faults.dead { Err(OsdError::Connection("refused".into())) } else { Ok(()) }
    }

    /// The batch with the values of peers in their places.
    async fn fetched(&self, mut batch: OsdBatch) -> Result<OsdBatch, OsdError> {
        for update in &mut batch.updates {
            let OsdUpdate::SetFromPeer(key, source) = update else { continue };
            if self.faults.lock().unwrap().no_copies {
                return Err(OsdError::UnknownOperation);
            }
            let number: u64 = source.peer.as_str().trim_start_matches("osd-").parse().unwrap();
            let peer = self.backend.upgrade().unwrap().osd(OsdId::new(number).unwrap());
            let refused = || OsdError::BadRequest("no such value of a peer".into());
            peer.come_through(false).await.map_err(|_| refused())?;
            let value = peer.memory.content().get(&source.key).map(|stored| stored.value.clone());
            let value = value.filter(|value| source.checksum.matches(value)).ok_or_else(refused)?;
            *peer.peer_reads.lock().unwrap() += 1;
            *update = OsdUpdate::Set(key.clone(), StoredValue { value, checksum: source.checksum });
        }
        Ok(batch)
    }

    /// Flips a bit of every fragment whose index passes `which`; returns how many.
    pub(in crate::tests) fn corrupt(&self, which: impl Fn(&osd_keys::FragmentAddress) -> bool) -> usize {
        let mut count = 0;
        for (key, stored) in self.memory.content() {
            let Ok(osd_keys::Parsed::Fragment(_, address)) = osd_keys::parse(&key) else { continue };
            if !which(&address) || stored.value.is_empty() {
                continue;
            }
            let mut bytes = stored.value.to_vec();
            bytes[0] ^= 1;
            self.memory.rot(&key, bytes.into());
            count += 1;
        }
        count
    }

    /// Loses every fragment whose index passes `which`.
    pub(in crate::tests) async fn lose(&self, which: impl Fn(&osd_keys::FragmentAddress) -> bool) {
        let lost = |key: &OsdKey| matches!(osd_keys::parse(key), Ok(osd_keys::Parsed::Fragment(_, at)) if which(&at));
        let keys: Vec<OsdKey> = self.memory.content().into_keys().filter(lost).collect();
        let updates = keys.into_iter().map(OsdUpdate::Delete).collect();
        let batch = OsdBatch { asserts: Vec::new(), updates };
        let deadline = Deadline::after(&*self.clock, Duration::from_secs(1));
        self.memory.apply(batch, Priority::High, deadline).await.unwrap();
    }

    /// Flips a bit of every value, somewhere.
    pub(in crate::tests) fn rot_anywhere(&self, place: &proptest::sample::Index) {
        for (key, stored) in self.memory.content() {
            let is_fragment = matches!(osd_keys::parse(&key), Ok(osd_keys::Parsed::Fragment(..)));
            if is_fragment && !stored.value.is_empty() {
                let mut bytes = stored.value.to_vec();
                let at = place.index(bytes.len() * 8);
                bytes[at / 8] ^= 1 << (at % 8);
                self.memory.rot(&key, bytes.into());
            }
        }
    }

    /// Deletes all keys of an object, as maintenance does when no manifest names it any more.
    pub(in crate::tests) async fn remove_object(&self, object: ObjectId) {
        let of_object = |key: &OsdKey| match osd_keys::parse(key) {
            Ok(osd_keys::Parsed::Fragment(_, at) | osd_keys::Parsed::RecoveryInfo(_, at)) => {
                at.object_id == object
            }
            _ => false,
        };
        let updates = self.memory.content().into_keys().filter(of_object).map(OsdUpdate::Delete).collect();
        let deadline = Deadline::after(&*self.clock, Duration::from_secs(1));
        let batch = OsdBatch { asserts: vec![], updates };
        self.memory.apply(batch, Priority::High, deadline).await.unwrap();
    }

    /// Stores the fragments of an object's first chunk as those of another chunk, too.
    pub(in crate::tests) async fn copy_chunk(&self, to: ChunkIndex) {
        let mut updates = Vec::new();
        for (key, stored) in self.memory.content() {
            if let Ok(osd_keys::Parsed::Fragment(namespace, mut at)) = osd_keys::parse(&key) {
                at.chunk = to;
                updates.push(OsdUpdate::Set(osd_keys::fragment(namespace, &at), stored));
            }
        }
        let deadline = Deadline::after(&*self.clock, Duration::from_secs(1));
        self.memory.apply(OsdBatch { asserts: vec![], updates }, Priority::High, deadline).await.unwrap();
    }

    /// Takes the namespace's marker away, as on a disk that was formatted.
    pub(in crate::tests) async fn forget_namespace(&self) {
        let updates = vec![OsdUpdate::Delete(osd_keys::namespace_marker(NS))];
        let deadline = Deadline::after(&*self.clock, Duration::from_secs(1));
        self.memory.apply(OsdBatch { asserts: vec![], updates }, Priority::High, deadline).await.unwrap();
    }

    fn keys(&self, is: impl Fn(&osd_keys::Parsed) -> bool) -> usize {
        self.memory.content().keys().filter(|key| osd_keys::parse(key).is_ok_and(|p| is(&p))).count()
    }

    pub(in crate::tests) fn fragments(&self) -> usize {
        self.keys(|parsed| matches!(parsed, osd_keys::Parsed::Fragment(..)))
    }

    pub(in crate::tests) fn tags(&self) -> usize {
        self.keys(|parsed| matches!(parsed, osd_keys::Parsed::GcTag(..)))
    }
}

#[async_trait]
impl Osd for TestOsd {
    async fn apply(&self, batch: OsdBatch, priority: Priority, deadline: Deadline) -> Result<(), OsdError> {
        *self.applies.lock().unwrap() += 1;
        self.come_through(true).await?;
        if self.faults.lock().unwrap().full && batch.updates.iter().any(|u| matches!(u, OsdUpdate::Set(..))) {
            return Err(OsdError::Full);
        }
        if let Some(left) = &mut self.faults.lock().unwrap().dies_after {
            if *left == 0 {
                return Err(OsdError::Connection("reset".into()));
            }
            *left -= 1;
        }
        let batch = self.fetched(batch).await?;
        self.memory.apply(batch.clone(), priority, deadline).await?;
        for update in &batch.updates {
            let event = match update {
                OsdUpdate::Set(key, _)
                    if matches!(osd_keys::parse(key), Ok(osd_keys::Parsed::Fragment(..))) =>
                {
                    Event::Stored(self.id, key.clone())
                }
                OsdUpdate::Delete(key) => Event::TagRemoved(self.id, key.clone()),
                _ => continue,
            };
            self.log.lock().unwrap().push(event);
        }
        let answer_delay = self.faults.lock().unwrap().answer_delay;
        if answer_delay > Duration::ZERO {
            self.clock.sleep_until(self.clock.now().plus(answer_delay)).await;
        }
        let mut faults = self.faults.lock().unwrap();
        if faults.lost_answers > 0 {
            faults.lost_answers -= 1;
            return Err(OsdError::Connection("reset before the answer".into()));
        }
        Ok(())
    }

    async fn multi_get(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Vec<Option<StoredValue>>, OsdError> {
        *self.reads.lock().unwrap() += 1;
        self.come_through(false).await?;
        let values = self.memory.multi_get(keys, priority, deadline).await?;
        let bytes: usize = values.iter().flatten().map(|stored| stored.value.len()).sum();
        *self.read_bytes.lock().unwrap() += u64::try_from(bytes).unwrap();
        Ok(values)
    }

    async fn multi_exists(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Vec<bool>, OsdError> {
        self.come_through(false).await?;
        self.memory.multi_exists(keys, priority, deadline).await
    }

    async fn partial_get(
        &self,
        key: OsdKey,
        slices: Vec<ValueSlice>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Option<Vec<bytes::Bytes>>, OsdError> {
        *self.reads.lock().unwrap() += 1;
        self.come_through(false).await?;
        *self.read_bytes.lock().unwrap() += slices.iter().map(|slice| u64::from(slice.len)).sum::<u64>();
        self.memory.partial_get(key, slices, priority, deadline).await
    }

    async fn proven_get(
        &self,
        key: OsdKey,
        slice: ValueSlice,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Option<ProvenSlice>, OsdError> {
        *self.reads.lock().unwrap() += 1;
        self.come_through(false).await?;
        let faults = self.faults.lock().unwrap().clone();
        if faults.no_proofs {
            return Err(OsdError::UnknownOperation);
        }
        let Some(mut proven) = self.memory.proven_get(key, slice, priority, deadline).await? else {
            return Ok(None);
        };
        *self.read_bytes.lock().unwrap() += u64::try_from(proven.leaves.len()).unwrap();
        if faults.lies {
            let mut bytes = proven.leaves.to_vec();
            bytes[0] ^= 1;
            proven.leaves = bytes.into();
        }
        Ok(Some(proven))
    }

    async fn range(
        &self,
        query: RangeQuery,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Page<OsdKey>, OsdError> {
        self.memory.range(query, priority, deadline).await
    }

    async fn disk_usage(&self, deadline: Deadline) -> Result<DiskUsage, OsdError> {
        self.memory.disk_usage(deadline).await
    }
}
