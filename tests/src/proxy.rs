//! A user of a cluster: talks to its proxy over the original protocol, and connects again when the connection broke.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use alba_core::env::{Deadline, Env, real};
use alba_core::ids::{NamespaceName, ObjectName};
use alba_core::range::RangeQuery;
use alba_proxy::client::{CallError, ProxyClient};
use bytes::Bytes;

/// Time for one request of a test; a proxy's own deadline is shorter for small ones.
const REQUEST: Duration = Duration::from_secs(120);

/// A user with one namespace.
pub struct User {
    env: Env,
    proxy: SocketAddr,
    namespace: NamespaceName,
    connection: Option<ProxyClient>,
}

impl User {
    /// A user of `namespace` through `proxy`. Connects at the first request.
    pub fn new(proxy: SocketAddr, namespace: &str) -> Self {
        let namespace = NamespaceName::new(namespace).unwrap();
        Self { env: real::env(), proxy, namespace, connection: None }
    }

    /// Runs one request; whatever is wrong with the connection, the next one gets a new one.
    async fn call<T>(
        &mut self,
        request: impl AsyncFnOnce(&mut ProxyClient, &NamespaceName, Deadline) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let deadline = self.env.deadline_in(REQUEST);
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => ProxyClient::connect(&self.env, self.proxy, deadline).await?,
        };
        let answer = request(&mut connection, &self.namespace, deadline).await;
        if matches!(answer, Ok(_) | Err(CallError::Refused(_))) {
            self.connection = Some(connection);
        }
        answer
    }

    /// Creates the namespace with the default preset.
    pub async fn create_namespace(&mut self) -> Result<(), CallError> {
        self.call(async |proxy, namespace, deadline| proxy.create_namespace(namespace, None, deadline).await)
            .await
    }

    /// Stores a file that the proxy can read.
    pub async fn upload(&mut self, name: &str, file: &Path, overwrite: bool) -> Result<(), CallError> {
        let name = ObjectName::new(name).unwrap();
        self.call(async |proxy, namespace, deadline| {
            proxy.upload_object(namespace, &name, file, overwrite, None, deadline).await
        })
        .await
    }

    /// Reads an object into a file that the proxy writes.
    pub async fn download(&mut self, name: &str, file: &Path) -> Result<(), CallError> {
        let name = ObjectName::new(name).unwrap();
        self.call(async |proxy, namespace, deadline| {
            proxy.download_object(namespace, &name, file, true, deadline).await
        })
        .await
    }

    /// Reads slices of one object, back to back.
    pub async fn slices(&mut self, name: &str, slices: &[(i64, i32)]) -> Result<Bytes, CallError> {
        let requests = [(ObjectName::new(name).unwrap(), slices.to_vec())];
        self.call(async |proxy, namespace, deadline| {
            proxy.read_slices(namespace, &requests, true, deadline).await
        })
        .await
    }

    /// Deletes an object; a missing one is fine.
    pub async fn delete(&mut self, name: &str) -> Result<(), CallError> {
        let name = ObjectName::new(name).unwrap();
        self.call(async |proxy, namespace, deadline| {
            proxy.delete_object(namespace, &name, true, deadline).await
        })
        .await
    }

    /// The size of an object, by its metadata.
    pub async fn size(&mut self, name: &str) -> Result<u64, CallError> {
        let name = ObjectName::new(name).unwrap();
        self.call(async |proxy, namespace, deadline| {
            Ok(proxy.object_info(namespace, &name, true, deadline).await?.size)
        })
        .await
    }

    /// The names of all objects.
    pub async fn list(&mut self) -> Result<Vec<String>, CallError> {
        let mut names = Vec::new();
        let mut range = RangeQuery::all();
        loop {
            let page = self
                .call(async |proxy, namespace, deadline| {
                    proxy.list_objects(namespace, &range, deadline).await
                })
                .await?;
            names.extend(page.items.iter().map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned()));
            match page.items.last() {
                Some(last) if page.has_more => range = range.after(last.as_bytes()),
                _ => return Ok(names),
            }
        }
    }
}
