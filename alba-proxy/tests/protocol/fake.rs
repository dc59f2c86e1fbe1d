//! An object engine in memory, with the semantics of `alba_client::Client` and the handles that tests need.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use alba_client::{
    ClientError, Consistency, ManifestCounts, NamespaceKey, ObjectSink, ObjectSource, OsdReading,
    ReadObserver, SequenceUpdate, Slice, StoredObject, UploadOptions,
};
use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::encryption::FragmentKey;
use alba_core::env::Deadline;
use alba_core::ids::{
    AlbaId, GroupId, NamespaceId, NamespaceName, ObjectId, ObjectName, ObjectVersion, OsdId, PresetName,
};
use alba_core::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Manifest, Scheme, Timestamp};
use alba_core::policy::CodeShape;
use alba_core::preset::Compression;
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{NamespaceRecord, NamespaceState};
use alba_core::wire::rpc::nsm::{ObjectAssert, Overwrite};
use alba_proxy::{Backend, SlicesAnswer};
use async_trait::async_trait;
use bytes::Bytes;

/// The fake. Presets: `default` and `rora`; allowed object checksums: sha-1 and crc-32c, verified.
#[derive(Default)]
pub struct Fake {
    state: Mutex<State>,
    /// The next call fails with this.
    pub trouble: Mutex<Option<ClientError>>,
    /// The next read of slices fails with this.
    pub trouble_in_slices: Mutex<Option<ClientError>>,
    /// Calls from now on never end.
    pub stalled: Mutex<bool>,
    /// Calls that never ended and were dropped.
    pub cancelled: Arc<AtomicUsize>,
    /// Calls that wait for ever right now.
    pub waiting: Arc<AtomicUsize>,
    /// How consistent the last read was asked to be.
    pub last_consistency: Mutex<Option<Consistency>>,
    /// Namespaces whose cache was invalidated.
    pub invalidated: Mutex<Vec<NamespaceName>>,
    /// What the ABM and the engine know of OSDs.
    pub osds: Mutex<Vec<OsdReading>>,
    /// Keys of namespaces, by number.
    pub keys: Mutex<BTreeMap<u64, FragmentKey>>,
    /// Is there a fragment cache on this host?
    pub local_cache: AtomicBool,
    /// Replaces an object of namespace `demo` just before slices of it are read, as often as said.
    pub replace: Mutex<Vec<(String, Bytes)>>,
    observer: OnceLock<Arc<dyn ReadObserver>>,
}

#[derive(Default)]
struct State {
    objects_made: u32,
    spaces: BTreeMap<NamespaceName, Space>,
}

struct Space {
    record: NamespaceRecord,
    objects: BTreeMap<ObjectName, (StoredObject, Bytes)>,
}

/// Counts a call that waits for ever, and its end.
struct Waiting {
    now: Arc<AtomicUsize>,
    cancelled: Arc<AtomicUsize>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.now.fetch_sub(1, Ordering::SeqCst);
        self.cancelled.fetch_add(1, Ordering::SeqCst);
    }
}

impl Fake {
    /// With a namespace `demo` of id 7.
    pub fn with_demo() -> Arc<Self> {
        let fake = Arc::new(Self::default());
        fake.add_namespace("demo", 7, NamespaceState::Active);
        fake
    }

    pub fn add_namespace(&self, name: &str, id: u32, state: NamespaceState) {
        let name = NamespaceName::new(name).unwrap();
        let record = NamespaceRecord {
            id: NamespaceId::from_u32(id),
            name: name.clone(),
            group: GroupId::new("nsm-0").unwrap(),
            state,
            preset: PresetName::new("default").unwrap(),
        };
        self.state().spaces.insert(name, Space { record, objects: BTreeMap::new() });
    }

    /// Puts an object with a manifest of the test's choice in namespace `demo`.
    pub fn plant(&self, manifest: Manifest, data: impl Into<Bytes>) {
        let name = manifest.name.clone();
        let stored = StoredObject { namespace: NamespaceId::from_u32(7), manifest: Arc::new(manifest) };
        let mut state = self.state();
        let demo = state.spaces.get_mut(&NamespaceName::new("demo").unwrap()).unwrap();
        demo.objects.insert(name, (stored, data.into()));
    }

    /// Puts an object in namespace `demo`.
    pub fn put(&self, name: &str, data: impl Into<Bytes>) {
        let data = data.into();
        let name = ObjectName::new(name).unwrap();
        let manifest = self.manifest_of(&name, &data, ChecksumAlgorithm::Crc32c.of(&data));
        self.plant(manifest, data);
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Bytes> {
        let state = self.state();
        let space = state.spaces.get(&NamespaceName::new(namespace).unwrap())?;
        Some(space.objects.get(&ObjectName::new(name).unwrap())?.1.clone())
    }

    /// Removes an object of namespace `demo`.
    pub fn delete(&self, name: &str) {
        let mut state = self.state();
        let demo = state.spaces.get_mut(&NamespaceName::new("demo").unwrap()).unwrap();
        demo.objects.remove(&ObjectName::new(name).unwrap()).unwrap();
    }

    /// An object of namespace `demo`.
    pub fn stored(&self, name: &str) -> StoredObject {
        let state = self.state();
        let space = &state.spaces[&NamespaceName::new("demo").unwrap()];
        space.objects[&ObjectName::new(name).unwrap()].0.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Manifests found, as the engine tells of them: all but the first of a request from the cache.
    fn counted(&self, namespace: &NamespaceName, found: usize) {
        let cached = u32::try_from(found.saturating_sub(1)).unwrap();
        let fetched = u32::from(found > 0);
        if let Some(observer) = self.observer.get()
            && found > 0
        {
            observer.manifests(namespace, ManifestCounts { cached, fetched, stale: 0 });
        }
    }

    async fn enter(&self) -> Result<(), ClientError> {
        if let Some(trouble) = self.trouble.lock().unwrap().take() {
            return Err(trouble);
        }
        if *self.stalled.lock().unwrap() {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let _waiting = Waiting { now: self.waiting.clone(), cancelled: self.cancelled.clone() };
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    fn read<T>(
        &self,
        namespace: &NamespaceName,
        work: impl FnOnce(&mut Space) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut state = self.state();
        match state.spaces.get_mut(namespace) {
            Some(space) if space.record.state == NamespaceState::Active => work(space),
            _ => Err(ClientError::NamespaceUnknown(namespace.clone())),
        }
    }

    fn manifest_of(&self, name: &ObjectName, data: &[u8], checksum: Checksum) -> Manifest {
        let made = {
            let mut state = self.state();
            state.objects_made += 1;
            state.objects_made
        };
        let size = u32::try_from(data.len()).unwrap();
        let fragment = |osd| Fragment {
            location: Some(OsdId::from_u32(osd)),
            version: ObjectVersion(0),
            checksum: ChecksumAlgorithm::Blake3.of(data),
            packed_len: size,
            ctr: None,
        };
        Manifest {
            name: name.clone(),
            object_id: ObjectId::new(std::array::from_fn(|at| made.to_le_bytes()[at % 4])),
            size: u64::from(size),
            checksum,
            scheme: Scheme {
                shape: CodeShape::new(1, 1).unwrap(),
                matrix: CodingMatrix::VandermondeSystematic,
                compression: Compression::Zstd,
            },
            encryption: EncryptInfo::None,
            chunks: vec![Chunk { size, fragments: vec![fragment(1), fragment(2)] }],
            version: ObjectVersion(0),
            max_disks_per_node: 1,
            timestamp: Timestamp(1_500_000_000_250_000),
        }
    }

    /// Reads the source and checks the checksum (wire-protocol §2.5).
    async fn store(
        &self,
        name: &ObjectName,
        source: &mut dyn ObjectSource,
        checksum: Option<Checksum>,
    ) -> Result<(Manifest, Bytes), ClientError> {
        let mut data = vec![0; usize::try_from(source.size()).unwrap()];
        source.read_at(0, &mut data).await.map_err(|error| ClientError::source(&error))?;
        let algorithm = checksum.map_or(ChecksumAlgorithm::Crc32c, |given| given.algorithm());
        if !matches!(algorithm, ChecksumAlgorithm::Sha1 | ChecksumAlgorithm::Crc32c) {
            return Err(ClientError::ChecksumNotAllowed(algorithm));
        }
        let found = algorithm.of(&data);
        if let Some(expected) = checksum.filter(|given| *given != found) {
            return Err(ClientError::ChecksumMismatch { object: name.clone(), expected, found });
        }
        Ok((self.manifest_of(name, &data, found), data.into()))
    }
}

fn page<T>(
    range: &RangeQuery,
    items: impl DoubleEndedIterator<Item = T>,
    key: impl Fn(&T) -> &[u8],
) -> Page<T> {
    let inside = items.filter(|item| range.contains(key(item)));
    let mut inside: Vec<T> = if range.reverse { inside.rev().collect() } else { inside.collect() };
    let has_more = inside.len() > range.limit();
    inside.truncate(range.limit());
    Page { items: inside, has_more }
}

fn check_slices(slices: &[Slice], size: u64) -> Result<(), ClientError> {
    let mut sorted: Vec<(i64, i64)> = slices.iter().map(|s| (s.offset, i64::from(s.length))).collect();
    sorted.sort_unstable();
    let (mut before, mut total) = ((-1, 0), 0);
    for &(offset, length) in &sorted {
        if length < 0 {
            return Err(ClientError::BadSliceLength);
        }
        if before.0 + before.1 > offset && offset + length > before.0 {
            return Err(ClientError::OverlappingSlices);
        }
        before = (offset, length);
        total += length;
    }
    match sorted.last() {
        Some((offset, length)) if total > 0 && offset + length > i64::try_from(size).unwrap() => {
            Err(ClientError::SliceOutsideObject)
        }
        _ => Ok(()),
    }
}

#[async_trait]
impl Backend for Fake {
    async fn alba_id(&self, _: Deadline) -> Result<AlbaId, ClientError> {
        self.enter().await?;
        Ok(AlbaId::new("the-backend").unwrap())
    }

    async fn create_namespace(
        &self,
        name: &NamespaceName,
        preset: Option<PresetName>,
        _: Deadline,
    ) -> Result<(), ClientError> {
        self.enter().await?;
        let preset = preset.unwrap_or_else(|| PresetName::new("default").unwrap());
        if !["default", "preset_rora"].contains(&preset.as_str()) {
            return Err(ClientError::PresetUnknown(preset));
        }
        if self.state().spaces.contains_key(name) {
            return Err(ClientError::NamespaceExists(name.clone()));
        }
        self.add_namespace(std::str::from_utf8(name.as_bytes()).unwrap(), 8, NamespaceState::Active);
        self.state().spaces.get_mut(name).unwrap().record.preset = preset;
        Ok(())
    }

    async fn delete_namespace(&self, name: &NamespaceName, _: Deadline) -> Result<(), ClientError> {
        self.enter().await?;
        self.read(name, |_| Ok(()))?;
        self.state().spaces.remove(name);
        Ok(())
    }

    async fn namespace(
        &self,
        name: &NamespaceName,
        _: Deadline,
    ) -> Result<Option<NamespaceRecord>, ClientError> {
        self.enter().await?;
        Ok(self.read(name, |space| Ok(space.record.clone())).ok())
    }

    async fn list_namespaces(
        &self,
        range: RangeQuery,
        _: Deadline,
    ) -> Result<Page<NamespaceRecord>, ClientError> {
        self.enter().await?;
        let state = self.state();
        Ok(page(&range, state.spaces.values().map(|space| space.record.clone()), |r| r.name.as_bytes()))
    }

    async fn list_objects(
        &self,
        namespace: &NamespaceName,
        range: RangeQuery,
        _: Deadline,
    ) -> Result<Page<ObjectName>, ClientError> {
        self.enter().await?;
        self.read(namespace, |space| Ok(page(&range, space.objects.keys().cloned(), |n| n.as_bytes())))
    }

    async fn multi_exists(
        &self,
        namespace: &NamespaceName,
        names: Vec<ObjectName>,
        _: Deadline,
    ) -> Result<Vec<bool>, ClientError> {
        self.enter().await?;
        self.read(namespace, |space| Ok(names.iter().map(|name| space.objects.contains_key(name)).collect()))
    }

    async fn manifest(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        consistency: Consistency,
        _: Deadline,
    ) -> Result<Option<StoredObject>, ClientError> {
        self.enter().await?;
        *self.last_consistency.lock().unwrap() = Some(consistency);
        let found =
            self.read(namespace, |space| Ok(space.objects.get(name).map(|(stored, _)| stored.clone())))?;
        self.counted(namespace, usize::from(found.is_some()));
        Ok(found)
    }

    async fn manifests(
        &self,
        namespace: &NamespaceName,
        names: &[ObjectName],
        consistency: Consistency,
        _: Deadline,
    ) -> Result<Vec<Option<StoredObject>>, ClientError> {
        self.enter().await?;
        *self.last_consistency.lock().unwrap() = Some(consistency);
        let found: Vec<_> = self.read(namespace, |space| {
            Ok(names.iter().map(|name| Some(space.objects.get(name)?.0.clone())).collect())
        })?;
        self.counted(namespace, found.iter().flatten().count());
        Ok(found)
    }

    async fn upload(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        source: &mut dyn ObjectSource,
        options: UploadOptions,
        _: Deadline,
    ) -> Result<StoredObject, ClientError> {
        self.enter().await?;
        self.read(namespace, |_| Ok(()))?;
        let (manifest, data) = self.store(name, source, options.checksum).await?;
        self.read(namespace, |space| {
            if options.overwrite == Overwrite::NoPrevious && space.objects.contains_key(name) {
                return Err(ClientError::OverwriteNotAllowed(name.clone()));
            }
            let stored = StoredObject { namespace: space.record.id, manifest: Arc::new(manifest) };
            space.objects.insert(name.clone(), (stored.clone(), data));
            Ok(stored)
        })
    }

    async fn apply_sequence(
        &self,
        namespace: &NamespaceName,
        asserts: Vec<ObjectAssert>,
        updates: Vec<SequenceUpdate>,
        _: Deadline,
    ) -> Result<Vec<StoredObject>, ClientError> {
        self.enter().await?;
        self.read(namespace, |_| Ok(()))?;
        let mut changes = Vec::new();
        for update in updates {
            match update {
                SequenceUpdate::Upload { name, mut source, checksum } => {
                    let stored = self.store(&name, source.as_mut(), checksum).await?;
                    changes.push((name, Some(stored)));
                }
                SequenceUpdate::Delete { name } => changes.push((name, None)),
            }
        }
        self.read(namespace, |space| {
            for assert in asserts {
                let found = |name| space.objects.get(name).map(|(stored, _)| &stored.manifest);
                let (name, holds) = match &assert {
                    ObjectAssert::Exists(name) => (name, found(name).is_some()),
                    ObjectAssert::DoesNotExist(name) => (name, found(name).is_none()),
                    ObjectAssert::HasId(name, id) => (name, found(name).is_some_and(|m| m.object_id == *id)),
                    ObjectAssert::HasChecksum(name, sum) => {
                        (name, found(name).is_some_and(|m| m.checksum == *sum))
                    }
                };
                if !holds {
                    return Err(ClientError::AssertFailed(name.clone()));
                }
            }
            let mut all = Vec::new();
            for (name, stored) in changes {
                let Some((manifest, data)) = stored else {
                    space.objects.remove(&name);
                    continue;
                };
                let stored = StoredObject { namespace: space.record.id, manifest: Arc::new(manifest) };
                all.push(stored.clone());
                space.objects.insert(name, (stored, data));
            }
            Ok(all)
        })
    }

    async fn download(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        consistency: Consistency,
        sink: &mut dyn ObjectSink,
        _: Deadline,
    ) -> Result<StoredObject, ClientError> {
        self.enter().await?;
        *self.last_consistency.lock().unwrap() = Some(consistency);
        let (stored, data) = self.read(namespace, |space| {
            space.objects.get(name).cloned().ok_or_else(|| ClientError::ObjectUnknown(name.clone()))
        })?;
        let expected = stored.manifest.checksum;
        let found = expected.algorithm().of(&data);
        if !data.is_empty() {
            sink.write_at(0, data).await.map_err(|error| ClientError::sink(&error))?;
        }
        if found != expected {
            return Err(ClientError::ChecksumMismatch { object: name.clone(), expected, found });
        }
        sink.finish().await.map_err(|error| ClientError::sink(&error))?;
        Ok(stored)
    }

    async fn read_slices(
        &self,
        namespace: &NamespaceName,
        requests: Vec<(ObjectName, Vec<Slice>)>,
        consistency: Consistency,
        _: Deadline,
    ) -> Result<SlicesAnswer, ClientError> {
        self.enter().await?;
        *self.last_consistency.lock().unwrap() = Some(consistency);
        if let Some(trouble) = self.trouble_in_slices.lock().unwrap().take() {
            return Err(trouble);
        }
        let replaced = self.replace.lock().unwrap().pop();
        if let Some((name, data)) = replaced {
            self.put(&name, data);
        }
        self.read(namespace, |space| {
            let (mut data, mut objects) = (Vec::new(), Vec::new());
            for (name, slices) in requests {
                let (stored, bytes) =
                    space.objects.get(&name).ok_or_else(|| ClientError::ObjectUnknown(name.clone()))?;
                check_slices(&slices, stored.manifest.size)?;
                objects.push(stored.clone());
                for slice in slices.iter().filter(|slice| slice.length > 0) {
                    let from = usize::try_from(slice.offset).unwrap();
                    data.push(bytes.slice(from..from + usize::try_from(slice.length).unwrap()));
                }
            }
            Ok(SlicesAnswer { data, objects, hold: Box::new(()) })
        })
    }

    async fn delete_object(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        must_exist: bool,
        _: Deadline,
    ) -> Result<(), ClientError> {
        self.enter().await?;
        self.read(namespace, |space| match space.objects.remove(name) {
            None if must_exist => Err(ClientError::ObjectUnknown(name.clone())),
            _ => Ok(()),
        })
    }

    async fn invalidate_cache(&self, namespace: &NamespaceName, _: Deadline) -> Result<(), ClientError> {
        self.enter().await?;
        self.read(namespace, |_| Ok(()))?;
        self.invalidated.lock().unwrap().push(namespace.clone());
        Ok(())
    }

    async fn osd_readings(&self, _: Deadline) -> Result<Vec<OsdReading>, ClientError> {
        self.enter().await?;
        Ok(self.osds.lock().unwrap().clone())
    }

    async fn namespace_key(&self, id: NamespaceId, _: Deadline) -> Result<NamespaceKey, ClientError> {
        self.enter().await?;
        if !self.state().spaces.values().any(|space| space.record.id == id) {
            return Ok(NamespaceKey::UnknownNamespace);
        }
        let key = self.keys.lock().unwrap().get(&id.get()).cloned();
        Ok(key.map_or(NamespaceKey::NotEncrypted, NamespaceKey::Key))
    }

    fn metadata_servers(&self) -> Vec<SocketAddr> {
        vec!["127.0.0.1:4000".parse().unwrap(), "[::1]:4001".parse().unwrap()]
    }

    fn has_local_fragment_cache(&self) -> bool {
        self.local_cache.load(Ordering::SeqCst)
    }

    fn observe(&self, observer: Arc<dyn ReadObserver>) {
        drop(self.observer.set(observer));
    }
}
