//! The API: one cheap handle, and what can be asked of it.

use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Deadline, Directory, Env, MetaError, NamespaceStore, Osd, within};
use alba_core::ids::{AlbaId, NamespaceName, ObjectName, OsdId, PresetName};
use alba_core::range::{Page, RangeQuery};
use alba_core::request::for_namespace;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmError, AbmOutcome, AbmQuery, NamespaceRecord};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery, ObjectAssert};

use crate::engine::Engine;
use crate::metadata::{MetadataClient, Outages};
use crate::namespaces::{Namespace, is_moved, unexpected};
use crate::osds::{self, Asds};
use crate::repair::Transfers;
use crate::watch::Fresh;
use crate::{
    ClientConfig, ClientError, Consistency, FragmentCacheStatistics, ObjectSink, ObjectSource, OsdConnector,
    ReadObserver, SequenceUpdate, Slice, SlicesRead, Statistics, StoredObject, UploadOptions, download,
    upload,
};

/// A connection to a backend. Clones share everything: caches, connections, what is known of the OSDs, and the bounds on
/// memory.
///
/// Every call ends by its deadline. Dropping a call's future gives back all that it holds; what a dropped write did is
/// unknown.
#[derive(Clone)]
pub struct Client {
    pub(crate) engine: Arc<Engine>,
}

impl Client {
    /// Connects to the metadata servers of `config` over `env.net` or QUIC, and makes sure that one of them answers. OSDs are
    /// connected to when they are first asked.
    pub async fn connect(env: Env, config: ClientConfig) -> Result<Self, ClientError> {
        Self::connect_with(env, config, None).await
    }

    /// The same; with `outages` for an agent, which waits for groups that do not answer as that says.
    pub(crate) async fn connect_with(
        env: Env,
        config: ClientConfig,
        outages: Option<Arc<Outages>>,
    ) -> Result<Self, ClientError> {
        config.check().map_err(ClientError::Config)?;
        if config.metadata.is_empty() {
            return Err(ClientError::Config("metadata names no server".to_owned()));
        }
        let metadata = match outages {
            None => MetadataClient::of(&env, &config)?,
            Some(outages) => {
                let servers = config.metadata.clone();
                MetadataClient::connect_patiently(MetadataClient::secured(&env, &config)?, servers, outages)
            }
        };
        let osds = Asds::new(&env, osds::reach(&env, &config)?, &config);
        let deadline = env.deadline_in(config.request_timeout());
        let directory: Arc<dyn Directory> = metadata.clone();
        let client = Self::with_parts(env, config, directory, metadata, Arc::new(osds));
        client.engine.keys.check().map_err(|error| ClientError::Config(error.to_string()))?;
        client.alba_id(deadline).await?;
        Ok(client)
    }

    /// Works with parts that are there already: in a simulator, in tests. Nothing is asked yet.
    pub fn with_parts(
        env: Env,
        config: ClientConfig,
        directory: Arc<dyn Directory>,
        namespaces: Arc<dyn NamespaceStore>,
        osds: Arc<dyn OsdConnector>,
    ) -> Self {
        Self { engine: Engine::new(env, config, directory, namespaces, osds) }
    }

    /// Nothing may take longer than its deadline, whatever it waits for.
    pub(crate) async fn limited<T>(
        &self,
        deadline: Deadline,
        waiting_for: &'static str,
        work: impl Future<Output = Result<T, ClientError>> + Send,
    ) -> Result<T, ClientError> {
        // Boxed: the futures of uploads and downloads are large.
        within(&*self.engine.env.clock, deadline, Box::pin(work))
            .await
            .map_err(ClientError::deadline(waiting_for))?
    }

    /// The configuration in force.
    pub fn config(&self) -> &ClientConfig {
        &self.engine.config
    }

    /// Takes a changed configuration: limits, slack, hedging and times. What belongs to connections and caches stays as it is
    /// until the next start. False when that was done thousands of times already.
    pub fn reconfigure(&self, config: ClientConfig) -> bool {
        self.engine.reconfigure(config)
    }

    /// The ABM.
    pub fn directory(&self) -> &Arc<dyn Directory> {
        &self.engine.directory
    }

    /// The NSM groups.
    pub fn namespace_store(&self) -> &Arc<dyn NamespaceStore> {
        &self.engine.store
    }

    /// What was counted since this client was made.
    pub fn statistics(&self) -> Statistics {
        self.engine.counters.snapshot()
    }

    /// How many fragments repair and moves have on their way at once.
    pub fn transfers(&self) -> &Transfers {
        &self.engine.transfers
    }

    /// Tells `observer` from now on, unless there is one already.
    pub fn observe(&self, observer: Arc<dyn ReadObserver>) {
        self.engine.observed.by(observer);
    }

    /// What the fragment cache counted, and how it is.
    pub fn fragment_cache_statistics(&self) -> FragmentCacheStatistics {
        self.engine.fragments.statistics()
    }

    /// Are fragments cached on a disk of this machine?
    pub fn has_local_fragment_cache(&self) -> bool {
        self.engine.fragments.is_local()
    }

    /// A handle on one OSD, for tools: calls on it are not counted in the OSD's health.
    pub async fn osd(&self, id: OsdId, deadline: Deadline) -> Result<Arc<dyn Osd>, ClientError> {
        let work = async { Ok(Arc::clone(&self.engine.pool.member(id, deadline).await?.osd)) };
        self.limited(deadline, "the list of OSDs", work).await
    }

    /// The backend's id.
    pub async fn alba_id(&self, deadline: Deadline) -> Result<AlbaId, ClientError> {
        match self.engine.ask_directory(AbmQuery::AlbaId, deadline).await? {
            AbmAnswer::AlbaId(id) => Ok(id),
            _ => Err(unexpected("AlbaId")),
        }
    }

    /// Adds a namespace, with the default preset if none is named. It can be written to on return.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let env = alba_core::env::real::env();
    /// # let client = alba_client::memory::MemoryBackend::new(env.clone())?.client(Default::default());
    /// # let by = env.deadline_in(std::time::Duration::from_secs(20));
    /// # let namespace = alba_core::ids::NamespaceName::new("demo")?;
    /// # client.create_namespace(&namespace, None, by).await?;
    /// use alba_client::ClientError;
    /// use alba_core::ids::NamespaceName;
    ///
    /// let volumes = NamespaceName::new("volumes")?;
    /// let record = client.create_namespace(&volumes, None, by).await?;
    /// assert_eq!(record.preset.as_str(), "default");
    /// let again = client.create_namespace(&volumes, None, by).await;
    /// assert_eq!(again, Err(ClientError::NamespaceExists(volumes)));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn create_namespace(
        &self,
        name: &NamespaceName,
        preset: Option<PresetName>,
        deadline: Deadline,
    ) -> Result<NamespaceRecord, ClientError> {
        let command = AbmCommand::CreateNamespace { name: name.clone(), preset, group: None };
        let work = async {
            let record = match self.engine.tell_directory(command, deadline).await.map_err(named)? {
                AbmOutcome::Namespace(record) => record,
                _ => return Err(unexpected("Namespace")),
            };
            self.engine.namespaces.forget(name);
            if record.state.is_usable() {
                self.engine.namespaces.remember(record.clone());
                return Ok(record);
            }
            self.engine.namespaces.resolve(name, deadline).await?;
            self.engine
                .namespaces
                .record(name, deadline)
                .await?
                .ok_or_else(|| ClientError::NamespaceUnknown(name.clone()))
        };
        self.limited(deadline, "the namespace to be created", work).await
    }

    /// Removes a namespace with all its objects.
    pub async fn delete_namespace(
        &self,
        name: &NamespaceName,
        deadline: Deadline,
    ) -> Result<(), ClientError> {
        let known = self.engine.namespaces.known(name);
        self.engine.namespaces.forget(name);
        let command = AbmCommand::DeleteNamespace { name: name.clone() };
        let told = self.engine.tell_directory(command, deadline).await;
        self.engine.namespaces.forget(name);
        told.map_err(named)?;
        // Space, no more: its id is not given again. What another process deletes ages out.
        if let Some(namespace) = known {
            self.engine.fragments.drop_namespace(namespace.id);
        }
        Ok(())
    }

    /// One namespace, asked afresh; none when there is no such active namespace.
    pub async fn namespace(
        &self,
        name: &NamespaceName,
        deadline: Deadline,
    ) -> Result<Option<NamespaceRecord>, ClientError> {
        let record = self.engine.namespaces.record(name, deadline).await?;
        Ok(record.filter(|record| record.state.is_usable()))
    }

    /// A page of the namespaces, ordered by name, whatever their state.
    pub async fn list_namespaces(
        &self,
        range: RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<NamespaceRecord>, ClientError> {
        match self.engine.ask_directory(AbmQuery::Namespaces(range), deadline).await? {
            AbmAnswer::Namespaces(page) => Ok(page),
            _ => Err(unexpected("Namespaces")),
        }
    }

    /// A page of the names of a namespace's objects, in order.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let env = alba_core::env::real::env();
    /// # let client = alba_client::memory::MemoryBackend::new(env.clone())?.client(Default::default());
    /// # let by = env.deadline_in(std::time::Duration::from_secs(20));
    /// # let namespace = alba_core::ids::NamespaceName::new("demo")?;
    /// # client.create_namespace(&namespace, None, by).await?;
    /// use alba_client::{BytesSource, UploadOptions};
    /// use alba_core::ids::ObjectName;
    /// use alba_core::range::RangeQuery;
    ///
    /// for name in ["a", "b", "c"] {
    ///     let mut source = BytesSource::new(name);
    ///     client.upload(&namespace, &ObjectName::new(name)?, &mut source, UploadOptions::default(), by).await?;
    /// }
    /// // At most 200 names come at once: go on after the last one while there are more.
    /// let mut names = Vec::new();
    /// let mut range = RangeQuery::all();
    /// loop {
    ///     let page = client.list_objects(&namespace, range.clone(), by).await?;
    ///     names.extend(page.items);
    ///     match names.last() {
    ///         Some(last) if page.has_more => range = range.after(last.as_bytes()),
    ///         _ => break,
    ///     }
    /// }
    /// assert_eq!(names, [ObjectName::new("a")?, ObjectName::new("b")?, ObjectName::new("c")?]);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn list_objects(
        &self,
        namespace: &NamespaceName,
        range: RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<ObjectName>, ClientError> {
        let work = async {
            let resolved = self.engine.namespaces.resolve(namespace, deadline).await?;
            match self.list(&resolved, &range, deadline).await {
                Err(error) if is_moved(&error) => {
                    match self.engine.namespaces.resolve_again(&resolved, deadline).await? {
                        Some(now) => self.list(&now, &range, deadline).await,
                        None => Err(error),
                    }
                }
                result => result,
            }
        };
        self.limited(deadline, "the namespace manager", work).await
    }

    async fn list(
        &self,
        namespace: &Arc<Namespace>,
        range: &RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<ObjectName>, ClientError> {
        let query = || NsmQuery::Objects { namespace: namespace.id, range: range.clone() };
        match self.engine.ask_group(namespace, query, deadline).await? {
            NsmAnswer::Objects(page) => Ok(page),
            _ => Err(unexpected("Objects")),
        }
    }

    /// Which of the names are taken, in the order asked.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let env = alba_core::env::real::env();
    /// # let client = alba_client::memory::MemoryBackend::new(env.clone())?.client(Default::default());
    /// # let by = env.deadline_in(std::time::Duration::from_secs(20));
    /// # let namespace = alba_core::ids::NamespaceName::new("demo")?;
    /// # client.create_namespace(&namespace, None, by).await?;
    /// use alba_client::{BytesSource, UploadOptions};
    /// use alba_core::ids::ObjectName;
    ///
    /// let (here, missing) = (ObjectName::new("here")?, ObjectName::new("missing")?);
    /// client.upload(&namespace, &here, &mut BytesSource::new("x"), UploadOptions::default(), by).await?;
    /// assert_eq!(client.multi_exists(&namespace, vec![missing, here], by).await?, [false, true]);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn multi_exists(
        &self,
        namespace: &NamespaceName,
        names: Vec<ObjectName>,
        deadline: Deadline,
    ) -> Result<Vec<bool>, ClientError> {
        let work = async {
            let found =
                download::find(&self.engine, namespace, &names, Consistency::Consistent, deadline).await?;
            Ok(found.into_iter().map(|found| found.is_some()).collect())
        };
        self.limited(deadline, "the namespace manager", work).await
    }

    /// An object's manifest; none when the name is free.
    pub async fn manifest(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<Option<StoredObject>, ClientError> {
        let names = std::slice::from_ref(name);
        let found = self.manifests(namespace, names, consistency, deadline).await?;
        Ok(found.into_iter().next().flatten())
    }

    /// The manifests of several objects, in the order asked; none where the name is free.
    pub async fn manifests(
        &self,
        namespace: &NamespaceName,
        names: &[ObjectName],
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<Vec<Option<StoredObject>>, ClientError> {
        let work = async {
            let found = download::find(&self.engine, namespace, names, consistency, deadline).await?;
            Ok(found.into_iter().map(|found| Some(found?.object)).collect())
        };
        self.limited(deadline, "the namespace manager", work).await
    }

    /// Stores an object. On return it is committed, with at least the policy's minimum of fragments of each chunk
    /// durable.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let env = alba_core::env::real::env();
    /// # let client = alba_client::memory::MemoryBackend::new(env.clone())?.client(Default::default());
    /// # let by = env.deadline_in(std::time::Duration::from_secs(20));
    /// # let namespace = alba_core::ids::NamespaceName::new("demo")?;
    /// # client.create_namespace(&namespace, None, by).await?;
    /// use alba_client::{BytesSource, ClientError, Overwrite, UploadOptions};
    /// use alba_core::ids::ObjectName;
    ///
    /// let name = ObjectName::new("report")?;
    /// let stored = client
    ///     .upload(&namespace, &name, &mut BytesSource::new("first"), UploadOptions::default(), by)
    ///     .await?;
    /// assert_eq!(stored.manifest.size, 5);
    ///
    /// // Only when the name is free. Files are read with `FileSource`.
    /// let options = UploadOptions { overwrite: Overwrite::NoPrevious, checksum: None };
    /// let refused = client.upload(&namespace, &name, &mut BytesSource::new("second"), options, by).await;
    /// assert_eq!(refused, Err(ClientError::OverwriteNotAllowed(name)));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn upload(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        source: &mut dyn ObjectSource,
        options: UploadOptions,
        deadline: Deadline,
    ) -> Result<StoredObject, ClientError> {
        let work = upload::upload(&self.engine, namespace, name, source, options, deadline);
        self.limited(deadline, "the upload", for_namespace(namespace, work)).await
    }

    /// Checks the asserts against the state before, and applies all updates, in one atomic step. Returns the stored
    /// form of every upload in order, also of those that a later update of the same name replaced.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let env = alba_core::env::real::env();
    /// # let client = alba_client::memory::MemoryBackend::new(env.clone())?.client(Default::default());
    /// # let by = env.deadline_in(std::time::Duration::from_secs(20));
    /// # let namespace = alba_core::ids::NamespaceName::new("demo")?;
    /// # client.create_namespace(&namespace, None, by).await?;
    /// use alba_client::{BytesSource, ClientError, ObjectAssert, SequenceUpdate};
    /// use alba_core::ids::ObjectName;
    ///
    /// let (data, log) = (ObjectName::new("data")?, ObjectName::new("log")?);
    /// let put = |name: &ObjectName, text: &'static str| SequenceUpdate::Upload {
    ///     name: name.clone(),
    ///     source: Box::new(BytesSource::new(text)),
    ///     checksum: None,
    /// };
    /// let updates = vec![put(&data, "v1"), put(&log, "created")];
    /// let stored = client.apply_sequence(&namespace, vec![], updates, by).await?;
    ///
    /// // Replaces the one and removes the other, if nobody has changed the first meanwhile.
    /// let unchanged = || vec![ObjectAssert::HasId(data.clone(), stored[0].manifest.object_id)];
    /// let updates = vec![put(&data, "v2"), SequenceUpdate::Delete { name: log.clone() }];
    /// client.apply_sequence(&namespace, unchanged(), updates, by).await?;
    ///
    /// // It has been changed by now: nothing of this happens.
    /// let late = client.apply_sequence(&namespace, unchanged(), vec![put(&log, "late")], by).await;
    /// assert_eq!(late, Err(ClientError::AssertFailed(data.clone())));
    /// assert_eq!(client.multi_exists(&namespace, vec![data, log], by).await?, [true, false]);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn apply_sequence(
        &self,
        namespace: &NamespaceName,
        asserts: Vec<ObjectAssert>,
        updates: Vec<SequenceUpdate>,
        deadline: Deadline,
    ) -> Result<Vec<StoredObject>, ClientError> {
        let work = upload::sequence(&self.engine, namespace, asserts, updates, deadline);
        self.limited(deadline, "the sequence", for_namespace(namespace, work)).await
    }

    /// Reads a whole object into `sink` and verifies its checksum; `sink.finish()` is called only when it is right.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let env = alba_core::env::real::env();
    /// # let client = alba_client::memory::MemoryBackend::new(env.clone())?.client(Default::default());
    /// # let by = env.deadline_in(std::time::Duration::from_secs(20));
    /// # let namespace = alba_core::ids::NamespaceName::new("demo")?;
    /// # client.create_namespace(&namespace, None, by).await?;
    /// use alba_client::{BytesSource, Consistency, MemorySink, UploadOptions};
    /// use alba_core::ids::ObjectName;
    ///
    /// let name = ObjectName::new("o")?;
    /// client.upload(&namespace, &name, &mut BytesSource::new("bytes"), UploadOptions::default(), by).await?;
    /// // `FileSink` writes a file, which appears only when the checksum is right.
    /// let mut sink = MemorySink::new();
    /// client.download(&namespace, &name, Consistency::Consistent, &mut sink, by).await?;
    /// assert_eq!(&sink.into_bytes()[..], b"bytes");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn download(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        consistency: Consistency,
        sink: &mut dyn ObjectSink,
        deadline: Deadline,
    ) -> Result<StoredObject, ClientError> {
        let work = download::download(&self.engine, namespace, name, consistency, sink, deadline);
        self.limited(deadline, "the download", for_namespace(namespace, work)).await
    }

    /// Reads parts of objects, several objects at once. The checks and their order: wire-protocol §2.4.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let env = alba_core::env::real::env();
    /// # let client = alba_client::memory::MemoryBackend::new(env.clone())?.client(Default::default());
    /// # let by = env.deadline_in(std::time::Duration::from_secs(20));
    /// # let namespace = alba_core::ids::NamespaceName::new("demo")?;
    /// # client.create_namespace(&namespace, None, by).await?;
    /// use alba_client::{BytesSource, Consistency, Slice, UploadOptions};
    /// use alba_core::ids::ObjectName;
    ///
    /// let name = ObjectName::new("o")?;
    /// let mut source = BytesSource::new("0123456789");
    /// client.upload(&namespace, &name, &mut source, UploadOptions::default(), by).await?;
    /// let parts = vec![Slice { offset: 1, length: 3 }, Slice { offset: 8, length: 2 }];
    /// // `Cached` saves a question to the metadata where the manifest is known already.
    /// let read = client.read_slices(&namespace, vec![(name, parts)], Consistency::Cached, by).await?;
    /// assert_eq!(read.data.concat(), b"12389");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn read_slices(
        &self,
        namespace: &NamespaceName,
        requests: Vec<(ObjectName, Vec<Slice>)>,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<SlicesRead, ClientError> {
        let work = download::read_slices(&self.engine, namespace, requests, consistency, deadline);
        self.limited(deadline, "the slices", for_namespace(namespace, work)).await
    }

    /// Removes a name. Its fragments are deleted later, by maintenance.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let env = alba_core::env::real::env();
    /// # let client = alba_client::memory::MemoryBackend::new(env.clone())?.client(Default::default());
    /// # let by = env.deadline_in(std::time::Duration::from_secs(20));
    /// # let namespace = alba_core::ids::NamespaceName::new("demo")?;
    /// # client.create_namespace(&namespace, None, by).await?;
    /// use alba_client::{BytesSource, ClientError, UploadOptions};
    /// use alba_core::ids::ObjectName;
    ///
    /// let name = ObjectName::new("o")?;
    /// client.upload(&namespace, &name, &mut BytesSource::new("x"), UploadOptions::default(), by).await?;
    /// client.delete_object(&namespace, &name, true, by).await?;
    /// // Whoever does not care whether it was there says so.
    /// client.delete_object(&namespace, &name, false, by).await?;
    /// let gone = client.delete_object(&namespace, &name, true, by).await;
    /// assert_eq!(gone, Err(ClientError::ObjectUnknown(name)));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn delete_object(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        must_exist: bool,
        deadline: Deadline,
    ) -> Result<(), ClientError> {
        let work = upload::delete(&self.engine, namespace, name, must_exist, deadline);
        self.limited(deadline, "the deletion", for_namespace(namespace, work)).await
    }

    /// Forgets all that is cached of a namespace: manifests and fragments.
    pub async fn invalidate_cache(
        &self,
        namespace: &NamespaceName,
        deadline: Deadline,
    ) -> Result<(), ClientError> {
        let work = async {
            let resolved = self.engine.namespaces.resolve(namespace, deadline).await?;
            self.engine.cache.invalidate(resolved.id);
            self.engine.fragments.drop_namespace(resolved.id);
            // The name is looked up anew too: it may mean another namespace by now.
            self.engine.namespaces.forget(namespace);
            Ok(())
        };
        self.limited(deadline, "the backend manager", work).await
    }

    /// Waits until what finished requests left to do in the background (removing tags, adding late fragments) is done.
    /// A process that ends after an upload should call it: what is left undone is found by maintenance later.
    pub async fn settle(&self, deadline: Deadline) -> Result<(), ClientError> {
        self.engine.settle(deadline).await
    }

    /// Asks the ABM for the list of OSDs, unless what is known is younger than a second.
    pub async fn refresh_osds(&self, deadline: Deadline) -> Result<(), ClientError> {
        self.engine.pool.refresh(Fresh::within(Duration::from_secs(1)), deadline).await
    }
}

/// The ABM's refusals that callers know under a name of their own.
fn named(error: ClientError) -> ClientError {
    match error {
        ClientError::Meta(MetaError::Abm(error)) => match error {
            AbmError::NamespaceExists(name) => ClientError::NamespaceExists(name),
            AbmError::NamespaceUnknown(name) | AbmError::NamespaceNotActive(name) => {
                ClientError::NamespaceUnknown(name)
            }
            AbmError::PresetUnknown(name) => ClientError::PresetUnknown(name),
            error => ClientError::Meta(MetaError::Abm(error)),
        },
        error => error,
    }
}
