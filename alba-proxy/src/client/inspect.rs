//! Calls about the proxy and its backend, and objects whole.

use alba_core::env::Deadline;
use alba_core::ids::{AlbaId, NamespaceId, NamespaceName, ObjectName, text_or_hex};
pub use alba_core::wire::osd_info::{ClaimInfo, ClientConfig, OsdInfo, OsdKind};
pub use alba_core::wire::proxy::{
    NamespaceStatistics, OsdEntry, OsdState, OsdView, ProxyStatistics, ReadObject,
};
use alba_core::wire::proxy::{Request, Response};
use bytes::Bytes;

use super::{CallError, ProxyClient, bytes_of, unexpected};

impl ProxyClient {
    /// 15: forgets the namespaces of `forget`, tells what was counted of the others, then starts anew if `clear`.
    pub async fn statistics(
        &mut self,
        clear: bool,
        forget: &[NamespaceName],
        deadline: Deadline,
    ) -> Result<ProxyStatistics, CallError> {
        let forget = forget.iter().map(|name| bytes_of(name.as_bytes())).collect();
        match self.call(&Request::ProxyStatistics { clear, forget }, deadline).await? {
            Response::Statistics(statistics) => Ok(statistics),
            other => Err(unexpected(&other)),
        }
    }

    /// 18: whose the known OSDs are, and how the claimed ones fare in the eyes of the proxy.
    pub async fn osd_view(&mut self, deadline: Deadline) -> Result<OsdView, CallError> {
        match self.call(&Request::OsdView, deadline).await? {
            Response::OsdView(view) => Ok(view),
            other => Err(unexpected(&other)),
        }
    }

    /// 19: where the metadata is.
    pub async fn client_config(&mut self, deadline: Deadline) -> Result<ClientConfig, CallError> {
        match self.call(&Request::GetClientConfig, deadline).await? {
            Response::ClientConfig(config) => Ok(config),
            other => Err(unexpected(&other)),
        }
    }

    /// 22: the claimed OSDs of the proxy's own backend.
    pub async fn osd_info(&mut self, deadline: Deadline) -> Result<Vec<OsdEntry>, CallError> {
        match self.call(&Request::OsdInfo, deadline).await? {
            Response::Osds(osds) => Ok(osds),
            other => Err(unexpected(&other)),
        }
    }

    /// 28: the claimed OSDs of the proxy's own backend, then those of the backends that are its fragment caches.
    pub async fn osd_info_by_backend(
        &mut self,
        deadline: Deadline,
    ) -> Result<Vec<(AlbaId, Vec<OsdEntry>)>, CallError> {
        match self.call(&Request::OsdInfo2, deadline).await? {
            Response::OsdsByAlba(levels) => {
                let level = |(id, osds): (Bytes, _)| Ok((AlbaId::new(text_or_hex(&id))?, osds));
                levels.into_iter().map(level).collect()
            }
            other => Err(unexpected(&other)),
        }
    }

    /// 25: objects whole, in memory; none for those that are missing. All must fit in one answer of the proxy.
    pub async fn read_objects(
        &mut self,
        namespace: &NamespaceName,
        names: &[ObjectName],
        consistent: bool,
        deadline: Deadline,
    ) -> Result<(NamespaceId, Vec<Option<ReadObject>>), CallError> {
        let request = Request::ReadObjects {
            namespace: bytes_of(namespace.as_bytes()),
            objects: names.iter().map(|name| bytes_of(name.as_bytes())).collect(),
            consistent_read: consistent,
            should_cache: true,
        };
        match self.call(&request, deadline).await? {
            Response::ReadObjects(namespace, objects) => Ok((namespace, objects)),
            other => Err(unexpected(&other)),
        }
    }

    /// 31: does the proxy cache fragments on a file system of its host?
    pub async fn has_local_fragment_cache(&mut self, deadline: Deadline) -> Result<bool, CallError> {
        match self.call(&Request::HasLocalFragmentCache, deadline).await? {
            Response::Flag(flag) => Ok(flag),
            other => Err(unexpected(&other)),
        }
    }

    /// 33: the key that a namespace's fragments are encrypted with; none when they are not, or for a backend that the proxy
    /// knows nothing of.
    pub async fn fragment_encryption_key(
        &mut self,
        alba_id: &AlbaId,
        namespace: NamespaceId,
        deadline: Deadline,
    ) -> Result<Option<Bytes>, CallError> {
        let namespace_id = i64::try_from(namespace.get())
            .map_err(|_| CallError::Protocol("the wire has no such namespace id".to_owned()))?;
        let alba_id = bytes_of(alba_id.as_str().as_bytes());
        match self.call(&Request::GetFragmentEncryptionKey { alba_id, namespace_id }, deadline).await? {
            Response::Key(key) => Ok(key),
            other => Err(unexpected(&other)),
        }
    }
}
