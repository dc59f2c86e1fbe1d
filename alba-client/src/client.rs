//! The API: one cheap handle, and what can be asked of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Deadline, Directory, Env, MetaError, NamespaceStore, Osd, within};
use alba_core::ids::{AlbaId, NamespaceName, ObjectName, OsdId, PresetName};
use alba_core::net::asd::{AsdClient, AsdClientConfig};
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmError, AbmOutcome, AbmQuery, NamespaceRecord, OsdInfo,
};
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery, ObjectAssert};

use crate::engine::Engine;
use crate::metadata::MetadataClient;
use crate::namespaces::{Namespace, is_moved, unexpected};
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

/// OSDs over TCP.
struct TcpOsds {
    env: Env,
    config: AsdClientConfig,
}

impl OsdConnector for TcpOsds {
    fn osd(&self, info: &OsdInfo) -> Arc<dyn Osd> {
        let port = info.endpoint.port;
        let addresses = info.endpoint.ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        AsdClient::new(self.env.clone(), addresses, info.long_id.clone(), self.config.clone())
    }
}

impl Client {
    /// Connects to the metadata servers of `config` over `env.net`, and makes sure that one of them answers.
    pub async fn connect(env: Env, config: ClientConfig) -> Result<Self, ClientError> {
        config.check().map_err(ClientError::Config)?;
        if config.metadata.is_empty() {
            return Err(ClientError::Config("metadata names no server".to_owned()));
        }
        let metadata = MetadataClient::of(&env, &config)?;
        let osds = TcpOsds {
            env: env.clone(),
            config: AsdClientConfig { max_connections: config.osd_connections, ..AsdClientConfig::default() },
        };
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
    pub async fn upload(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        source: &mut dyn ObjectSource,
        options: UploadOptions,
        deadline: Deadline,
    ) -> Result<StoredObject, ClientError> {
        let work = upload::upload(&self.engine, namespace, name, source, options, deadline);
        self.limited(deadline, "the upload", work).await
    }

    /// Checks the asserts against the state before, and applies all updates, in one atomic step. Returns the stored
    /// form of every upload in order, also of those that a later update of the same name replaced.
    pub async fn apply_sequence(
        &self,
        namespace: &NamespaceName,
        asserts: Vec<ObjectAssert>,
        updates: Vec<SequenceUpdate>,
        deadline: Deadline,
    ) -> Result<Vec<StoredObject>, ClientError> {
        let work = upload::sequence(&self.engine, namespace, asserts, updates, deadline);
        self.limited(deadline, "the sequence", work).await
    }

    /// Reads a whole object into `sink` and verifies its checksum; `sink.finish()` is called only when it is right.
    pub async fn download(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        consistency: Consistency,
        sink: &mut dyn ObjectSink,
        deadline: Deadline,
    ) -> Result<StoredObject, ClientError> {
        let work = download::download(&self.engine, namespace, name, consistency, sink, deadline);
        self.limited(deadline, "the download", work).await
    }

    /// Reads parts of objects, several objects at once. The checks and their order: wire-protocol §2.4.
    pub async fn read_slices(
        &self,
        namespace: &NamespaceName,
        requests: Vec<(ObjectName, Vec<Slice>)>,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<SlicesRead, ClientError> {
        let work = download::read_slices(&self.engine, namespace, requests, consistency, deadline);
        self.limited(deadline, "the slices", work).await
    }

    /// Removes a name. Its fragments are deleted later, by maintenance.
    pub async fn delete_object(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        must_exist: bool,
        deadline: Deadline,
    ) -> Result<(), ClientError> {
        let work = upload::delete(&self.engine, namespace, name, must_exist, deadline);
        self.limited(deadline, "the deletion", work).await
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
