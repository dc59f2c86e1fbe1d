//! What the proxy asks of the object engine. A trait, so that the protocol's side is tested without a cluster.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;

use alba_client::{
    Client, ClientError, Consistency, NamespaceKey, ObjectSink, ObjectSource, OsdReading, ReadObserver,
    SequenceUpdate, Slice, StoredObject, UploadOptions,
};
use alba_core::env::Deadline;
use alba_core::ids::{AlbaId, NamespaceId, NamespaceName, ObjectName, PresetName};
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::abm::{NamespaceRecord, NamespaceState};
use alba_core::wire::rpc::nsm::ObjectAssert;
use async_trait::async_trait;
use bytes::Bytes;

/// Parts of objects. Dropping `hold` gives back the room that their bytes take in the engine's budget.
pub struct SlicesAnswer {
    /// The bytes asked for, in the order of the request; a slice may be in several pieces.
    pub data: Vec<Bytes>,
    /// The objects read, one per entry of the request.
    pub objects: Vec<StoredObject>,
    /// Kept until the answer is on its way.
    pub hold: Box<dyn Any + Send + Sync>,
}

/// The object engine as the proxy uses it: the methods of [`Client`] of the same names.
#[async_trait]
#[allow(missing_docs, reason = "documented at alba_client::Client")]
pub trait Backend: Send + Sync + 'static {
    async fn alba_id(&self, deadline: Deadline) -> Result<AlbaId, ClientError>;

    async fn create_namespace(
        &self,
        name: &NamespaceName,
        preset: Option<PresetName>,
        deadline: Deadline,
    ) -> Result<(), ClientError>;

    async fn delete_namespace(&self, name: &NamespaceName, deadline: Deadline) -> Result<(), ClientError>;

    /// None when there is no such active namespace.
    async fn namespace(
        &self,
        name: &NamespaceName,
        deadline: Deadline,
    ) -> Result<Option<NamespaceRecord>, ClientError>;

    async fn list_namespaces(
        &self,
        range: RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<NamespaceRecord>, ClientError>;

    async fn list_objects(
        &self,
        namespace: &NamespaceName,
        range: RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<ObjectName>, ClientError>;

    async fn multi_exists(
        &self,
        namespace: &NamespaceName,
        names: Vec<ObjectName>,
        deadline: Deadline,
    ) -> Result<Vec<bool>, ClientError>;

    async fn manifest(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<Option<StoredObject>, ClientError>;

    async fn manifests(
        &self,
        namespace: &NamespaceName,
        names: &[ObjectName],
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<Vec<Option<StoredObject>>, ClientError>;

    async fn upload(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        source: &mut dyn ObjectSource,
        options: UploadOptions,
        deadline: Deadline,
    ) -> Result<StoredObject, ClientError>;

    /// Of several updates of one name the **last** counts.
    async fn apply_sequence(
        &self,
        namespace: &NamespaceName,
        asserts: Vec<ObjectAssert>,
        updates: Vec<SequenceUpdate>,
        deadline: Deadline,
    ) -> Result<Vec<StoredObject>, ClientError>;

    async fn download(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        consistency: Consistency,
        sink: &mut dyn ObjectSink,
        deadline: Deadline,
    ) -> Result<StoredObject, ClientError>;

    async fn read_slices(
        &self,
        namespace: &NamespaceName,
        requests: Vec<(ObjectName, Vec<Slice>)>,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<SlicesAnswer, ClientError>;

    async fn delete_object(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        must_exist: bool,
        deadline: Deadline,
    ) -> Result<(), ClientError>;

    async fn invalidate_cache(
        &self,
        namespace: &NamespaceName,
        deadline: Deadline,
    ) -> Result<(), ClientError>;

    async fn osd_readings(&self, deadline: Deadline) -> Result<Vec<OsdReading>, ClientError>;

    async fn namespace_key(
        &self,
        namespace: NamespaceId,
        deadline: Deadline,
    ) -> Result<NamespaceKey, ClientError>;

    /// The metadata servers that the engine was configured with.
    fn metadata_servers(&self) -> Vec<SocketAddr>;

    /// Are fragments cached on a file system of this host?
    fn has_local_fragment_cache(&self) -> bool {
        false
    }

    fn observe(&self, _observer: Arc<dyn ReadObserver>) {}
}

#[async_trait]
impl Backend for Client {
    async fn alba_id(&self, deadline: Deadline) -> Result<AlbaId, ClientError> {
        Self::alba_id(self, deadline).await
    }

    async fn create_namespace(
        &self,
        name: &NamespaceName,
        preset: Option<PresetName>,
        deadline: Deadline,
    ) -> Result<(), ClientError> {
        Self::create_namespace(self, name, preset, deadline).await.map(drop)
    }

    async fn delete_namespace(&self, name: &NamespaceName, deadline: Deadline) -> Result<(), ClientError> {
        Self::discard_namespace(self, name, deadline).await.map(drop)
    }

    async fn namespace(
        &self,
        name: &NamespaceName,
        deadline: Deadline,
    ) -> Result<Option<NamespaceRecord>, ClientError> {
        Self::namespace(self, name, deadline).await
    }

    async fn list_namespaces(
        &self,
        range: RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<NamespaceRecord>, ClientError> {
        let mut range = range;
        loop {
            let mut page = Self::list_namespaces(self, range.clone(), deadline).await?;
            let last = page.items.last().map(|record| record.name.clone());
            // What is in the trash is not there, for clients of the protocol.
            page.items.retain(|record| !matches!(record.state, NamespaceState::Trashed { .. }));
            match last {
                // They take an empty page for the end.
                Some(last) if page.items.is_empty() && page.has_more => range = range.after(last.as_bytes()),
                _ => return Ok(page),
            }
        }
    }

    async fn list_objects(
        &self,
        namespace: &NamespaceName,
        range: RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<ObjectName>, ClientError> {
        Self::list_objects(self, namespace, range, deadline).await
    }

    async fn multi_exists(
        &self,
        namespace: &NamespaceName,
        names: Vec<ObjectName>,
        deadline: Deadline,
    ) -> Result<Vec<bool>, ClientError> {
        Self::multi_exists(self, namespace, names, deadline).await
    }

    async fn manifest(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<Option<StoredObject>, ClientError> {
        Self::manifest(self, namespace, name, consistency, deadline).await
    }

    async fn manifests(
        &self,
        namespace: &NamespaceName,
        names: &[ObjectName],
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<Vec<Option<StoredObject>>, ClientError> {
        Self::manifests(self, namespace, names, consistency, deadline).await
    }

    async fn upload(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        source: &mut dyn ObjectSource,
        options: UploadOptions,
        deadline: Deadline,
    ) -> Result<StoredObject, ClientError> {
        Self::upload(self, namespace, name, source, options, deadline).await
    }

    async fn apply_sequence(
        &self,
        namespace: &NamespaceName,
        asserts: Vec<ObjectAssert>,
        updates: Vec<SequenceUpdate>,
        deadline: Deadline,
    ) -> Result<Vec<StoredObject>, ClientError> {
        Self::apply_sequence(self, namespace, asserts, updates, deadline).await
    }

    async fn download(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        consistency: Consistency,
        sink: &mut dyn ObjectSink,
        deadline: Deadline,
    ) -> Result<StoredObject, ClientError> {
        Self::download(self, namespace, name, consistency, sink, deadline).await
    }

    async fn read_slices(
        &self,
        namespace: &NamespaceName,
        requests: Vec<(ObjectName, Vec<Slice>)>,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<SlicesAnswer, ClientError> {
        let mut read = Self::read_slices(self, namespace, requests, consistency, deadline).await?;
        let data = std::mem::take(&mut read.data);
        let objects = std::mem::take(&mut read.objects);
        Ok(SlicesAnswer { data, objects, hold: Box::new(read) })
    }

    async fn delete_object(
        &self,
        namespace: &NamespaceName,
        name: &ObjectName,
        must_exist: bool,
        deadline: Deadline,
    ) -> Result<(), ClientError> {
        Self::delete_object(self, namespace, name, must_exist, deadline).await
    }

    fn has_local_fragment_cache(&self) -> bool {
        Self::has_local_fragment_cache(self)
    }

    async fn invalidate_cache(
        &self,
        namespace: &NamespaceName,
        deadline: Deadline,
    ) -> Result<(), ClientError> {
        Self::invalidate_cache(self, namespace, deadline).await
    }
    async fn osd_readings(&self, deadline: Deadline) -> Result<Vec<OsdReading>, ClientError> {
        Self::osd_readings(self, deadline).await
    }

    async fn namespace_key(
        &self,
        namespace: NamespaceId,
        deadline: Deadline,
    ) -> Result<NamespaceKey, ClientError> {
        Self::namespace_key(self, namespace, deadline).await
    }

    fn metadata_servers(&self) -> Vec<SocketAddr> {
        self.config().metadata.clone()
    }

    fn observe(&self, observer: Arc<dyn ReadObserver>) {
        Self::observe(self, observer);
    }
}
