//! The API: one cheap handle, and what can be asked of it.

use std::sync::Arc;

use alba_core::env::{Deadline, Directory, Env, NamespaceStore, Osd};
use alba_core::ids::{AlbaId, NamespaceName, ObjectName, OsdId, PresetName};
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::NamespaceRecord;
use alba_core::wire::rpc::nsm::ObjectAssert;

use crate::{
    ClientConfig, ClientError, Consistency, ObjectSink, ObjectSource, OsdConnector, SequenceUpdate, Slice,
    SlicesRead, StoredObject, UploadOptions,
};

/// A connection to a backend. Clones share everything.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    directory: Arc<dyn Directory>,
    namespaces: Arc<dyn NamespaceStore>,
}

fn unfinished<T>() -> Result<T, ClientError> {
    Err(ClientError::Internal("the engine is not wired up yet".to_owned()))
}

impl Client {
    /// Connects to the metadata servers of `config` over `env.net`.
    pub async fn connect(env: Env, config: ClientConfig) -> Result<Self, ClientError> {
        config.check().map_err(ClientError::Config)?;
        drop(env);
        unfinished()
    }

    /// Works with parts that are there already: in a simulator, in tests.
    pub fn with_parts(
        env: Env,
        config: ClientConfig,
        directory: Arc<dyn Directory>,
        namespaces: Arc<dyn NamespaceStore>,
        osds: Arc<dyn OsdConnector>,
    ) -> Self {
        drop((env, config, osds));
        Self { inner: Arc::new(Inner { directory, namespaces }) }
    }

    /// The ABM.
    pub fn directory(&self) -> &Arc<dyn Directory> {
        &self.inner.directory
    }

    /// The NSM groups.
    pub fn namespace_store(&self) -> &Arc<dyn NamespaceStore> {
        &self.inner.namespaces
    }

    /// A handle on one OSD, for tools: calls on it are not counted in the OSD's health.
    pub async fn osd(&self, id: OsdId, deadline: Deadline) -> Result<Arc<dyn Osd>, ClientError> {
        let _ = deadline;
        Err(ClientError::OsdUnknown(id))
    }

    /// The backend's id.
    pub async fn alba_id(&self, deadline: Deadline) -> Result<AlbaId, ClientError> {
        let _ = deadline;
        unfinished()
    }

    /// Adds a namespace, with the default preset if none is named. It can be written to on return.
    pub async fn create_namespace(
        &self,
        name: &NamespaceName,
        preset: Option<PresetName>,
        deadline: Deadline,
    ) -> Result<NamespaceRecord, ClientError> {
        let _ = (name, preset, deadline);
        unfinished()
    }

    /// Removes a namespace with all its objects.
    pub async fn delete_namespace(
        &self,
        name: &NamespaceName,
        deadline: Deadline,
    ) -> Result<(), ClientError> {
        let _ = (name, deadline);
        unfinished()
    }

    /// One namespace, asked afresh; none when there is no such active namespace.
    pub async fn namespace(
        &self,
        name: &NamespaceName,
        deadline: Deadline,
    ) -> Result<Option<NamespaceRecord>, ClientError> {
        let _ = (name, deadline);
        unfinished()
    }

    /// A page of the namespaces, ordered by name.
    pub async fn list_namespaces(
        &self,
        range: RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<NamespaceRecord>, ClientError> {
        let _ = (range, deadline);
        unfinished()
    }

    /// A page of the names of a namespace's objects, in order.
    pub async fn list_objects(
        &self,
        namespace: &NamespaceName,
        range: RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<ObjectName>, ClientError> {
        let _ = (namespace, range, deadline);
        unfinished()
    }

    /// Which of the names are taken, in the order asked.
    pub async fn multi_exists(
        &self,
        namespace: &NamespaceName,
        names: Vec<ObjectName>,
        deadline: Deadline,
    ) -> Result<Vec<bool>, ClientError> {
        let _ = (namespace, names, deadline);
        unfinished()
    }

    /// An object's manifest; none when the name is free.
    pub async fn manifest(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<Option<StoredObject>, ClientError> {
        let _ = (namespace, name, consistency, deadline);
        unfinished()
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
        let _ = (namespace, name, source, options, deadline);
        unfinished()
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
        let _ = (namespace, asserts, updates, deadline);
        unfinished()
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
        let _ = (namespace, name, consistency, sink, deadline);
        unfinished()
    }

    /// Reads parts of objects, several objects at once. The checks and their order: wire-protocol §2.4.
    pub async fn read_slices(
        &self,
        namespace: &NamespaceName,
        requests: Vec<(ObjectName, Vec<Slice>)>,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<SlicesRead, ClientError> {
        let _ = (namespace, requests, consistency, deadline);
        unfinished()
    }

    /// Removes a name. Its fragments are deleted later, by maintenance.
    pub async fn delete_object(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        must_exist: bool,
        deadline: Deadline,
    ) -> Result<(), ClientError> {
        let _ = (namespace, name, must_exist, deadline);
        unfinished()
    }

    /// Forgets all cached manifests of a namespace.
    pub async fn invalidate_cache(
        &self,
        namespace: &NamespaceName,
        deadline: Deadline,
    ) -> Result<(), ClientError> {
        let _ = (namespace, deadline);
        unfinished()
    }

    /// Waits until what finished requests left to do in the background (removing tags, adding late fragments) is done.
    /// A process that ends after an upload should call it: what is left undone is found by maintenance later.
    pub async fn settle(&self, deadline: Deadline) -> Result<(), ClientError> {
        let _ = deadline;
        Ok(())
    }
}
