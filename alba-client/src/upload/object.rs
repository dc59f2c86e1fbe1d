//! The fragments of one object: read, code, spread. Ends when every chunk has what its policy needs; decides nothing
//! about the object's existence.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alba_core::checksum::Checksum;
use alba_core::encryption::{CounterBlock, FragmentKey};
use alba_core::env::{Deadline, Moment};
use alba_core::fragment::{Packed, counters_needed, pack_chunk};
use alba_core::ids::{ChunkIndex, FragmentIndex, GcEpoch, ObjectId, ObjectName, ObjectVersion, OsdId};
use alba_core::layout::{ChunkExtent, ObjectLayout};
use alba_core::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Manifest, Scheme, Timestamp};
use alba_core::osd_keys::FragmentAddress;
use alba_core::preset::Compression;
use alba_core::request;
use alba_core::wire::llio::WireError;
use alba_core::wire::recovery::RecoveryInfo;
use alba_core::wire::rpc::nsm::NamespaceInfo;
use bytes::Bytes;

use super::checksum::ChecksumRule;
use super::plan::plan;
use super::recovery;
use super::spread::{Failed, Spread};
use crate::buffers::Room;
use crate::engine::Engine;
use crate::namespaces::Namespace;
use crate::osd_pool::Member;
use crate::{ClientError, ObjectSource};

/// Bytes that take about as long to pack as the recovery info of a chunk takes to compress: a small piece of computing, but too
/// much to do in between.
const RECOVERY_WORK: u64 = 64 << 10;

/// Chunks without enough acknowledgements that may be on their way at once.
const OPEN_CHUNKS: usize = 4;

/// How long an OSD may owe fragments of earlier chunks before the next ones do without it: a hanging OSD must neither stop
/// the upload nor fill the buffers with what it does not take.
const PATIENCE: Duration = Duration::from_secs(1);

/// A manifest with more fragments than this would not fit in a command of 1 MiB: each takes at most 55 bytes there…
const MAX_FRAGMENTS: u64 = 18_000;

/// … and 16 more for its counter block when it is encrypted.
const MAX_ENCRYPTED_FRAGMENTS: u64 = 14_000;

/// What all uploads of one attempt share.
pub(super) struct Attempt {
    pub(super) engine: Arc<Engine>,
    pub(super) namespace: Arc<Namespace>,
    pub(super) info: Arc<NamespaceInfo>,
    /// Fixed before the first write; named by the commit (invariant 3).
    pub(super) epoch: GcEpoch,
    /// OSDs that failed: in this attempt and in the one before.
    pub(super) avoid: Arc<Mutex<BTreeSet<OsdId>>>,
    /// Of the preset, when it encrypts.
    pub(super) key: Option<FragmentKey>,
    /// May small objects go into the metadata?
    pub(super) inline: bool,
    pub(super) deadline: Deadline,
}

impl Attempt {
    fn avoided(&self) -> BTreeSet<OsdId> {
        self.avoid.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An object whose fragments are stored, to the policy's minimum at least; not committed.
pub(super) struct Uploaded {
    /// Its locations are exactly the acknowledged ones.
    pub(super) manifest: Manifest,
    /// Who acknowledged what: where tags are to be removed once the manifest is committed.
    pub(super) stored: Vec<(Arc<Member>, FragmentAddress)>,
}

/// Stores the fragments of one object. Returns also the writes that go on: holes of the manifest for now.
pub(super) async fn upload_object(
    attempt: &Attempt,
    name: &ObjectName,
    source: &mut dyn ObjectSource,
    checksum: Option<Checksum>,
) -> Result<(Uploaded, Spread), ClientError> {
    let preset = &attempt.info.preset;
    let checksum = ChecksumRule::new(&preset.object_checksum, checksum)?;
    let plan = plan(&attempt.engine, &attempt.info, &attempt.avoided())?;
    let size = source.size();
    // A large object's first chunk is part of a large request: it must not take the room that is kept for small ones.
    request::grown_by(size);
    let too_large = |reason: String| ClientError::ObjectTooLarge { object: name.clone(), reason };
    let layout = ObjectLayout::new(size, preset.fragment_size, plan.policy.shape())
        .map_err(|error| too_large(error.to_string()))?;
    let total = u64::try_from(plan.policy.shape().total()).unwrap_or(u64::MAX);
    let fragments = u64::from(layout.chunk_count()).saturating_mul(total);
    let most = if attempt.key.is_some() { MAX_ENCRYPTED_FRAGMENTS } else { MAX_FRAGMENTS };
    if fragments > most {
        return Err(too_large(format!(
            "it would have {fragments} fragments of at most {} bytes, a manifest holds {most}; use a preset \
             with larger fragments",
            preset.fragment_size
        )));
    }
    let object_id = ObjectId::new(attempt.engine.env.rng.bytes32());
    let writer = ObjectWriter {
        attempt,
        name,
        object_id,
        spread: Spread::new(attempt, object_id, plan),
        layout,
        checksum,
        final_checksum: Checksum::None,
        chunks: Vec::new(),
        last_started: attempt.engine.env.clock.now(),
    };
    writer.run(source).await
}

/// When a chunk cannot be stored: how long the answers of the other OSDs are waited for, beyond the time that the chunk
/// took so far. The next attempt avoids those that fail too.
const LAST_WORDS: Duration = Duration::from_millis(100);

struct ObjectWriter<'a> {
    attempt: &'a Attempt,
    name: &'a ObjectName,
    object_id: ObjectId,
    spread: Spread,
    layout: ObjectLayout,
    checksum: ChecksumRule,
    final_checksum: Checksum,
    /// Size and packed fragments (without their bytes) of the chunks so far.
    chunks: Vec<(u32, Vec<Sealed>)>,
    /// When the writes of the latest chunk began.
    last_started: Moment,
}

/// What the manifest says of a packed fragment.
#[derive(Clone, Copy)]
struct Sealed {
    checksum: Checksum,
    len: u32,
    ctr: Option<CounterBlock>,
}

/// A counter block that nothing was or will be encrypted with.
pub(super) fn counter(engine: &Engine) -> CounterBlock {
    let [first, second] = [0, 1].map(|_| engine.env.rng.u64().to_le_bytes());
    let mut counter = [0; 16];
    counter[..8].copy_from_slice(&first);
    counter[8..].copy_from_slice(&second);
    counter
}

impl ObjectWriter<'_> {
    async fn run(mut self, source: &mut dyn ObjectSource) -> Result<(Uploaded, Spread), ClientError> {
        match self.write_chunks(source).await {
            Ok(()) => Ok(self.finish()),
            Err(error) => {
                if matches!(error, ClientError::ChunkNotStored { .. }) {
                    self.wait_for_answers(LAST_WORDS, 1.0).await;
                }
                Err(error)
            }
        }
    }

    async fn write_chunks(&mut self, source: &mut dyn ObjectSource) -> Result<(), ClientError> {
        for extent in self.layout.chunks() {
            while self.spread.progress().open() >= OPEN_CHUNKS {
                self.next_answer().await?;
            }
            let room = Self::room(self.attempt, self.layout, extent);
            let room = self.meanwhile(room).await??;
            let (len, size) = (as_len(extent.len.min(extent.size))?, as_len(extent.size)?);
            // The padding is zeros.
            let chunk = self.meanwhile(source.read_padded(extent.offset, len, size)).await?;
            let chunk = chunk.map_err(|error| ClientError::source(&error))?;
            let packed = self.pack(extent, chunk).await?;
            let recovery = self.recovery(extent, &packed).await?;
            self.wait_for_debtors().await?;
            self.last_started = self.attempt.engine.env.clock.now();
            self.start(extent, packed, recovery, room)?;
        }
        while self.spread.progress().open() > 0 {
            self.next_answer().await?;
        }
        // All chunks have enough; the last one in time t. The rest is waited for as long as t × slack.
        let slack = self.attempt.engine.config.upload_slack;
        self.wait_for_answers(Duration::ZERO, slack).await;
        Ok(())
    }

    /// Room for a chunk: its data, its parity, and both once more when they are compressed or encrypted.
    async fn room(attempt: &Attempt, layout: ObjectLayout, extent: ChunkExtent) -> Result<Room, ClientError> {
        let shape = layout.shape();
        let copies =
            if shape.is_replication() { 1 } else { u64::from(shape.as_u8().0) + u64::from(shape.as_u8().1) };
        let plain = u64::from(extent.size) / u64::from(shape.as_u8().0) * copies;
        let as_is = attempt.info.preset.compression == Compression::None && attempt.key.is_none();
        let times = if as_is { 1 } else { 2 };
        attempt.engine.buffers.work(plain * times, attempt.deadline).await
    }

    /// Waits for `work` while the writes under way go on.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, ClientError> {
        let output = self.spread.meanwhile(work).await;
        output.map_err(|Failed(chunk)| self.not_stored(chunk))
    }

    /// Waits until no OSD owes much, or until those that do have hung for too long.
    async fn wait_for_debtors(&mut self) -> Result<(), ClientError> {
        let clock = Arc::clone(&self.attempt.engine.env.clock);
        loop {
            let until = self.spread.latest_debt().map(|since| since.plus(PATIENCE));
            let Some(until) = until.filter(|until| *until > clock.now()) else { return Ok(()) };
            tokio::select! {
                biased;
                answered = self.next_answer() => answered?,
                () = clock.sleep_until(until) => {}
            }
        }
    }

    async fn next_answer(&mut self) -> Result<(), ClientError> {
        match self.spread.next().await {
            Some(answered) => answered.map_err(|Failed(chunk)| self.not_stored(chunk)),
            None => Err(ClientError::Internal("a chunk waits for writes that were never started".to_owned())),
        }
    }

    fn not_stored(&self, chunk: ChunkIndex) -> ClientError {
        let (stored, detail) = self.spread.progress().explain(chunk);
        let needed = self.spread.plan.policy.min_fragments();
        ClientError::ChunkNotStored { object: self.name.clone(), chunk, needed, stored, detail }
    }

    async fn pack(&mut self, extent: ChunkExtent, chunk: Bytes) -> Result<Vec<Packed>, ClientError> {
        let preset = &self.attempt.info.preset;
        let (shape, compression, algorithm) =
            (self.layout.shape(), preset.compression, preset.fragment_checksum);
        let hasher = self.checksum.take_hasher();
        let now = Timestamp(self.attempt.engine.env.clock.wall_micros());
        let len = as_len(extent.len)?;
        let attempt = self.attempt;
        let encryption = attempt.key.clone().map(|key| {
            (key, (0..counters_needed(shape)).map(|_| counter(&attempt.engine)).collect::<Vec<_>>())
        });
        let work = attempt.engine.compute(u64::from(extent.size), move || {
            let hasher = hasher.map(|mut hasher| {
                hasher.update(chunk.get(..len).unwrap_or_default());
                hasher
            });
            let encryption = encryption.as_ref().map(|(key, counters)| (key, &counters[..]));
            (hasher, pack_chunk(&chunk, shape, compression, encryption, algorithm, now))
        });
        let (hasher, packed) = self.meanwhile(work).await??;
        self.checksum.give_back(hasher);
        if extent.index.0 + 1 == self.layout.chunk_count() {
            // Before the last chunk is written: its recovery info carries the checksum, and a wrong one ends it here.
            self.final_checksum = self.checksum.finish(self.name)?;
        }
        packed.map_err(|error| ClientError::Internal(format!("packing {}: {error}", self.name)))
    }

    fn start(
        &mut self,
        extent: ChunkExtent,
        packed: Vec<Packed>,
        recovery: Vec<Bytes>,
        room: Room,
    ) -> Result<(), ClientError> {
        let sealed = packed.iter().map(|p| Sealed { checksum: p.checksum, len: p.len, ctr: p.ctr }).collect();
        self.chunks.push((extent.size, sealed));
        let started = self.spread.start(extent.index, packed, recovery, room);
        started.map_err(|Failed(chunk)| self.not_stored(chunk))
    }

    fn scheme(&self) -> Scheme {
        Scheme {
            shape: self.layout.shape(),
            matrix: CodingMatrix::VandermondeSystematic,
            compression: self.attempt.info.preset.compression,
        }
    }

    /// The recovery info of a chunk's fragments; compressing it takes a while. It is the same for all of them unless each has a
    /// counter block to tell.
    async fn recovery(&mut self, extent: ChunkExtent, packed: &[Packed]) -> Result<Vec<Bytes>, ClientError> {
        let attempt = self.attempt;
        let is_last = extent.index.0 + 1 == self.layout.chunk_count();
        let object = is_last.then(|| {
            let now = Timestamp(attempt.engine.env.clock.wall_micros());
            recovery::of_object(&self.scheme(), self.layout.size(), self.final_checksum, now)
        });
        let info = recovery::of_chunk(self.name, extent.size, packed, object);
        let encryption = attempt
            .key
            .clone()
            .map(|key| (key, packed.iter().map(|_| counter(&attempt.engine)).collect::<Vec<_>>()));
        let own: Vec<Option<CounterBlock>> = packed.iter().map(|packed| packed.ctr).collect();
        let work = attempt.engine.compute(RECOVERY_WORK, move || match encryption {
            None => Ok(vec![info.encode()?; own.len()]),
            Some((key, counters)) => own
                .iter()
                .zip(counters)
                .map(|(own, counter)| {
                    RecoveryInfo { ctr: *own, ..info.clone() }.encode_encrypted(&key, counter)
                })
                .collect(),
        });
        let encoded = self.meanwhile(work).await??;
        encoded.map_err(|error: WireError| {
            ClientError::Internal(format!("recovery info of {}: {error}", self.name))
        })
    }

    /// Waits for the writes under way: for `least`, and `factor` times as long as the last chunk took so far.
    async fn wait_for_answers(&mut self, least: Duration, factor: f64) {
        let clock = Arc::clone(&self.attempt.engine.env.clock);
        let more = clock.now().since(self.last_started).as_secs_f64() * factor;
        let until = clock.now().plus(least).plus(Duration::try_from_secs_f64(more).unwrap_or_default());
        while !self.spread.is_idle() {
            tokio::select! {
                biased;
                // Whether a chunk can be stored is decided already.
                Some(answered) = self.spread.next() => drop(answered),
                () = clock.sleep_until(until) => break,
            }
        }
    }

    fn finish(mut self) -> (Uploaded, Spread) {
        let version = ObjectVersion(0);
        let chunks = (0..)
            .map(ChunkIndex)
            .zip(&self.chunks)
            .map(|(index, (size, sealed))| Chunk {
                size: *size,
                fragments: (0..)
                    .map(FragmentIndex)
                    .zip(sealed)
                    .map(|(fragment, sealed)| Fragment {
                        location: self.spread.progress().location(index, fragment),
                        version,
                        checksum: sealed.checksum,
                        packed_len: sealed.len,
                        ctr: sealed.ctr,
                    })
                    .collect(),
            })
            .collect();
        let manifest = Manifest {
            name: self.name.clone(),
            object_id: self.object_id,
            size: self.layout.size(),
            checksum: self.final_checksum,
            scheme: self.scheme(),
            encryption: EncryptInfo::from(&self.attempt.info.preset.fragment_encryption),
            chunks,
            version,
            max_disks_per_node: self.spread.plan.policy.max_per_node(),
            timestamp: Timestamp::default(),
        };
        // The manifest names exactly what was acknowledged until now (invariant 1).
        (Uploaded { manifest, stored: self.spread.take_stored() }, self.spread)
    }
}

fn as_len(bytes: u32) -> Result<usize, ClientError> {
    usize::try_from(bytes).map_err(|_| ClientError::Internal("a chunk does not fit in memory".to_owned()))
}
