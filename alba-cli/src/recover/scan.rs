//! What OSDs hold of a namespace, in the order of object ids.
//!
//! Keys of a namespace sort by object id on every OSD, so a merge of all of them gathers each object's fragments with one page
//! of keys per OSD in memory, however many objects there are. Only gc tags sort otherwise, by epoch: they go to a store on the
//! local disk first.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use alba_core::encryption::FragmentKey;
use alba_core::env::osd::{OsdKey, Priority, StoredValue};
use alba_core::env::{Deadline, Env, Osd, OsdError, blocking};
use alba_core::ids::{GcEpoch, NamespaceId, ObjectId, OsdId};
use alba_core::kv::{Durability, Kv, WriteBatch};
use alba_core::osd_keys::{self, FragmentAddress, Parsed};
use alba_core::range::{Page, RangeQuery, next_prefix};
use alba_core::wire::recovery::RecoveryInfo;

use super::assemble::Found;
use crate::error::CliError;

/// For one question to an OSD.
const CALL: Duration = Duration::from_secs(10);

/// So often a question is asked before the OSD counts as not answering.
const ATTEMPTS: u32 = 3;

/// Between two of them.
const PAUSE: Duration = Duration::from_millis(500);

/// Recovery infos asked for at once: at most 64 KiB each.
const INFOS: usize = 100;

/// An OSD that is asked.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) id: OsdId,
    pub(super) osd: Arc<dyn Osd>,
}

impl Asked {
    /// Repeats a question that the device or the network may answer the next time.
    async fn ask<T, F>(&self, env: &Env, question: impl Fn(Deadline) -> F) -> Result<T, CliError>
    where
        F: Future<Output = Result<T, OsdError>>,
    {
        let mut attempt = 1;
        loop {
            let error = match question(env.deadline_in(CALL)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if attempt == ATTEMPTS {
                return Err(CliError::from(error).while_doing(&format!("OSD {}", self.id)));
            }
            attempt += 1;
            env.clock.sleep_until(env.clock.now().plus(PAUSE)).await;
        }
    }

    /// Does it answer?
    pub(super) async fn answers(&self, env: &Env) -> Result<(), CliError> {
        let ask = |deadline| self.osd.multi_get(vec![osd_keys::osd_record()], Priority::Low, deadline);
        self.ask(env, ask).await.map(drop)
    }

    async fn page(&self, env: &Env, range: &RangeQuery) -> Result<Page<OsdKey>, CliError> {
        self.ask(env, |deadline| self.osd.range(range.clone(), Priority::Low, deadline)).await
    }
}

/// All keys that begin with a prefix.
fn below(prefix: &[u8]) -> RangeQuery {
    RangeQuery {
        first: prefix.to_vec(),
        last: next_prefix(prefix).map(|end| (end, false)),
        ..RangeQuery::all()
    }
}

/// Keys of one kind on one OSD, in order, each with the object it is about.
struct Stream {
    from: Asked,
    buffer: VecDeque<(ObjectId, Option<FragmentAddress>)>,
    next: Option<RangeQuery>,
}

impl Stream {
    /// Of the keys with `prefix`, behind those of the object `after`.
    fn new(from: Asked, prefix: &[u8], after: Option<&ObjectId>) -> Self {
        let mut range = below(prefix);
        if let Some(after) = after {
            // The object id is the first part of the key, a string of 32 bytes.
            let mut of_object = prefix.to_vec();
            of_object.extend_from_slice(&32_u32.to_le_bytes());
            of_object.extend_from_slice(after.as_bytes());
            match next_prefix(&of_object) {
                Some(behind) => range.first = behind,
                None => return Self { from, buffer: VecDeque::new(), next: None },
            }
        }
        Self { from, buffer: VecDeque::new(), next: Some(range) }
    }

    /// The object of the next key.
    async fn head(&mut self, env: &Env) -> Result<Option<ObjectId>, CliError> {
        while self.buffer.is_empty() {
            let Some(range) = self.next.take() else { return Ok(None) };
            let page = self.from.page(env, &range).await?;
            if page.has_more {
                self.next = page.items.last().map(|last| range.after(last));
            }
            for key in &page.items {
                match osd_keys::parse(key) {
                    Ok(Parsed::RecoveryInfo(_, address)) => {
                        self.buffer.push_back((address.object_id, Some(address)));
                    }
                    Ok(Parsed::DeletionNote(_, object)) => self.buffer.push_back((object, None)),
                    // Not ours to understand; it is not taken for an object.
                    _ => tracing::warn!(osd = %self.from.id, key = %hex::encode(key), "an unknown key"),
                }
            }
        }
        Ok(self.buffer.front().map(|(object, _)| *object))
    }

    /// All keys of an object that is at the head.
    async fn take(&mut self, env: &Env, object: &ObjectId) -> Result<Vec<Option<FragmentAddress>>, CliError> {
        let mut taken = Vec::new();
        while self.head(env).await? == Some(*object) {
            taken.extend(self.buffer.pop_front().map(|(_, address)| address));
        }
        Ok(taken)
    }
}

/// One object as its keys show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) id: ObjectId,
    pub(super) fragments: Vec<(OsdId, FragmentAddress)>,
}

/// The objects of a namespace on all OSDs, in the order of their ids.
pub(super) struct Merge {
    infos: Vec<Stream>,
    notes: Vec<Stream>,
}

impl Merge {
    /// Those behind `after`.
    pub(super) fn new(osds: &[Asked], namespace: NamespaceId, after: Option<&ObjectId>) -> Self {
        let streams = |prefix: OsdKey| -> Vec<Stream> {
            osds.iter().map(|asked| Stream::new(asked.clone(), &prefix, after)).collect()
        };
        Self {
            infos: streams(osd_keys::recovery_infos(namespace)),
            notes: streams(osd_keys::deletion_notes(namespace)),
        }
    }

    /// The next object of which there are fragments.
    pub(super) async fn next(&mut self, env: &Env) -> Result<Option<Seen>, CliError> {
        let mut first: Option<ObjectId> = None;
        for stream in &mut self.infos {
            if let Some(id) = stream.head(env).await? {
                first = Some(first.map_or(id, |first| first.min(id)));
            }
        }
        let Some(id) = first else { return Ok(None) };
        let mut fragments = Vec::new();
        for stream in &mut self.infos {
            let taken = stream.take(env, &id).await?;
            fragments.extend(taken.into_iter().flatten().map(|address| (stream.from.id, address)));
        }
        Ok(Some(Seen { id, fragments }))
    }

    /// Is there a note about this object? Objects are to be asked for in the order of their ids.
    pub(super) async fn noted(&mut self, env: &Env, id: &ObjectId) -> Result<bool, CliError> {
        let mut noted = false;
        for stream in &mut self.notes {
            while stream.head(env).await?.is_some_and(|head| head < *id) {
                stream.buffer.pop_front();
            }
            noted |= stream.head(env).await? == Some(*id);
        }
        Ok(noted)
    }
}

/// The gc tags of a namespace, in a store of their own. Key: object id ‖ chunk ‖ fragment ‖ version ‖ OSD, numbers big endian.
pub(super) struct Tags {
    kv: Arc<dyn Kv>,
    /// The highest epoch of any.
    pub(super) newest: Option<GcEpoch>,
    /// How many.
    pub(super) count: u64,
}

fn tag_key(osd: OsdId, address: &FragmentAddress) -> Vec<u8> {
    let mut key = address.object_id.as_bytes().to_vec();
    for number in [address.chunk.0, address.fragment.0, address.version.0] {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key.extend_from_slice(&osd.get().to_be_bytes());
    key
}

impl Tags {
    /// Reads those of all OSDs into `kv`, which must be empty.
    pub(super) async fn read(
        env: &Env,
        kv: Arc<dyn Kv>,
        osds: &[Asked],
        namespace: NamespaceId,
    ) -> Result<Self, CliError> {
        let mut tags = Self { kv, newest: None, count: 0 };
        for asked in osds {
            let mut next = Some(below(&osd_keys::gc_tags(namespace)));
            while let Some(range) = next.take() {
                let page = asked.page(env, &range).await?;
                if page.has_more {
                    next = page.items.last().map(|last| range.after(last));
                }
                let mut batch = WriteBatch::default();
                for key in &page.items {
                    let Ok(Parsed::GcTag(_, epoch, address)) = osd_keys::parse(key) else { continue };
                    batch.put(tag_key(asked.id, &address), [1]);
                    tags.newest = tags.newest.max(Some(epoch));
                    tags.count += 1;
                }
                let kv = tags.kv.clone();
                let stored = move || kv.commit(batch, Durability::Eventual);
                blocking(env.spawn.as_ref(), stored).await?.map_err(local)?;
            }
        }
        Ok(tags)
    }

    /// Which of these fragments have one?
    async fn of(&self, env: &Env, fragments: Vec<(OsdId, FragmentAddress)>) -> Result<Vec<bool>, CliError> {
        if self.count == 0 {
            return Ok(vec![false; fragments.len()]);
        }
        let kv = self.kv.clone();
        let look = move || {
            let found = fragments
                .iter()
                .map(|(osd, address)| kv.get(&tag_key(*osd, address)).map(|value| value.is_some()));
            found.collect::<Result<Vec<bool>, _>>()
        };
        blocking(env.spawn.as_ref(), look).await?.map_err(local)
    }
}

/// The own disk refuses.
pub(super) fn local(error: alba_core::kv::KvError) -> CliError {
    CliError::failure(format!("the work directory: {error}"))
}

/// Reads the recovery infos of many objects, in the order of `seen`; `key` is that of the namespace's preset. All OSDs are asked at the same time. A fragment
/// whose info is not there any more or does not decode is left out.
pub(super) async fn read_infos(
    env: &Env,
    osds: &[Asked],
    namespace: NamespaceId,
    key: Option<&FragmentKey>,
    tags: &Tags,
    seen: &[Seen],
) -> Result<Vec<Vec<Found>>, CliError> {
    let mut wanted: BTreeMap<OsdId, Vec<(usize, FragmentAddress)>> = BTreeMap::new();
    for (at, object) in seen.iter().enumerate() {
        for (osd, address) in &object.fragments {
            wanted.entry(*osd).or_default().push((at, *address));
        }
    }
    let asking = osds.iter().filter_map(|asked| {
        let wanted = wanted.remove(&asked.id)?;
        Some(async move {
            let mut found = Vec::new();
            for part in wanted.chunks(INFOS) {
                let keys: Vec<OsdKey> =
                    part.iter().map(|(_, address)| osd_keys::recovery_info(namespace, address)).collect();
                let ask = |deadline| asked.osd.multi_get(keys.clone(), Priority::Low, deadline);
                let values = asked.ask(env, ask).await?;
                for ((at, address), value) in part.iter().zip(values) {
                    let decode = |value: StoredValue| {
                        let key_of = |hash: &[u8; 32]| key.filter(|key| key.sha256() == *hash).cloned();
                        RecoveryInfo::decode_with(value.value, key_of)
                    };
                    match value.map(decode) {
                        Some(Ok(info)) => found.push((*at, asked.id, *address, info)),
                        Some(Err(error)) => {
                            tracing::warn!(osd = %asked.id, object = %address.object_id, %error, "recovery info");
                        }
                        // Deleted meanwhile.
                        None => {}
                    }
                }
            }
            Ok::<_, CliError>(found)
        })
    });
    // As many at once as there are OSDs.
    let answers = futures_util::future::try_join_all(asking).await?;
    let mut gathered: Vec<Vec<Found>> = vec![Vec::new(); seen.len()];
    for found in answers {
        let fragments = found.iter().map(|(_, osd, address, _)| (*osd, *address)).collect();
        let tagged = tags.of(env, fragments).await?;
        for ((at, osd, address, info), tagged) in found.into_iter().zip(tagged) {
            if let Some(of_object) = gathered.get_mut(at) {
                of_object.push(Found { osd, address, info, tagged });
            }
        }
    }
    // In one order, whoever answered first.
    for of_object in &mut gathered {
        of_object.sort_by_key(|found| (found.address, found.osd));
    }
    Ok(gathered)
}
