//! A client of the ALBA proxy protocol: for the command line's `proxy-*` commands and for tests.
//!
//! One request at a time per connection, as the protocol wants it. A call that was cut off (deadline, broken
//! connection, cancelled future) leaves the connection unusable: whether the request happened is then unknown.

mod inspect;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use alba_core::checksum::Checksum;
use alba_core::env::{Clock, Deadline, Env, Stream, within};
use alba_core::ids::{AlbaId, IdError, NamespaceName, ObjectName, PresetName, text_or_hex};
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::llio::WireError;
pub use inspect::{
    ClaimInfo, ClientConfig, NamespaceStatistics, OsdEntry, OsdInfo, OsdKind, OsdState, OsdView,
    ProxyStatistics, ReadObject,
};

pub use alba_core::wire::manifest::{LocatedManifest, ManifestSer, WireManifest};
pub use alba_core::wire::proxy::{Assert, ObjectInfo, Update};
use alba_core::wire::proxy::{
    MANIFEST_SER, ObjectSlices, Request, Response, SliceRequest, WriteObjectFs, decode_answer,
    encode_prologue,
};
use bytes::Bytes;
use thiserror::Error;
use tokio::io::AsyncWriteExt;

use crate::frame::{Inbox, PREFIX};

/// What the proxy refused, as it said it.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyError {
    /// The protocol's error code (wire-protocol §2.2).
    pub code: u32,
    /// The explanation; of code 18 the name of the object whose assert failed.
    pub text: Vec<u8>,
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proxy error {}: {}", self.code, text_or_hex(&self.text))
    }
}

impl fmt::Debug for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for ProxyError {}

/// Why a call gave no result.
#[derive(Debug, Error)]
pub enum CallError {
    /// The proxy refused; the connection can be used on.
    #[error(transparent)]
    Refused(#[from] ProxyError),
    /// No connection, or it broke; whether the request happened is unknown.
    #[error("connection to the proxy: {0}")]
    Connection(#[from] io::Error),
    /// No answer by the deadline; whether the request happened is unknown.
    #[error("no answer from the proxy by the deadline")]
    Deadline,
    /// The answer is not what the protocol says.
    #[error("answer of the proxy: {0}")]
    Protocol(String),
}

impl From<IdError> for CallError {
    fn from(error: IdError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<WireError> for CallError {
    fn from(error: WireError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// What runs on the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyVersion {
    /// major, minor, patch; -1 each when built without tags.
    pub number: (i32, i32, i32),
    /// The source it was built from.
    pub revision: String,
}

/// Slices of one object as a request names them: offset and length in bytes.
pub type SlicesOf = (ObjectName, Vec<(i64, i32)>);

/// Size and checksum of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectSummary {
    /// In bytes, without padding.
    pub size: u64,
    /// Of the object's own bytes; `None` for algorithms that the old protocol does not know.
    pub checksum: Checksum,
}

/// A connection to a proxy.
pub struct ProxyClient {
    clock: Arc<dyn Clock>,
    /// None once a call was cut off.
    stream: Option<Stream>,
    inbox: Inbox,
}

impl ProxyClient {
    /// Connects and sends the prologue.
    pub async fn connect(env: &Env, addr: SocketAddr, deadline: Deadline) -> Result<Self, CallError> {
        let stream = env.net.connect(addr, deadline).await?;
        Self::over(env, stream, deadline).await
    }

    /// The same to a proxy's socket file (`listen_unix`).
    pub async fn connect_file(env: &Env, path: &Path, deadline: Deadline) -> Result<Self, CallError> {
        let stream = env.net.connect_file(path, deadline).await?;
        Self::over(env, stream, deadline).await
    }

    async fn over(env: &Env, mut stream: Stream, deadline: Deadline) -> Result<Self, CallError> {
        let prologue = encode_prologue();
        within(env.clock.as_ref(), deadline, stream.write_all(&prologue))
            .await
            .map_err(|_| CallError::Deadline)??;
        Ok(Self { clock: env.clock.clone(), stream: Some(stream), inbox: Inbox::default() })
    }

    /// 1: names of namespaces, whatever their state.
    pub async fn list_namespaces(
        &mut self,
        range: &RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<NamespaceName>, CallError> {
        match self.call(&Request::ListNamespaces(range.clone()), deadline).await? {
            Response::Names(page) => named(page, NamespaceName::new),
            other => Err(unexpected(&other)),
        }
    }

    /// 30: names of namespaces with their presets.
    pub async fn list_namespaces_with_presets(
        &mut self,
        range: &RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<(NamespaceName, PresetName)>, CallError> {
        match self.call(&Request::ListNamespaces2(range.clone()), deadline).await? {
            Response::NamesWithPresets(page) => named(page, |(name, preset)| {
                Ok((NamespaceName::new(name)?, PresetName::new(text_or_hex(&preset))?))
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// 2: does a namespace exist?
    pub async fn namespace_exists(
        &mut self,
        namespace: &NamespaceName,
        deadline: Deadline,
    ) -> Result<bool, CallError> {
        match self.call(&Request::NamespaceExists(bytes_of(namespace.as_bytes())), deadline).await? {
            Response::Flag(exists) => Ok(exists),
            other => Err(unexpected(&other)),
        }
    }

    /// 3: creates a namespace; without a preset the default one. It can be written to when this returns.
    pub async fn create_namespace(
        &mut self,
        namespace: &NamespaceName,
        preset: Option<&PresetName>,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        let preset = preset.map(|preset| bytes_of(preset.as_str().as_bytes()));
        self.run(&Request::CreateNamespace { name: bytes_of(namespace.as_bytes()), preset }, deadline).await
    }

    /// 4: deletes a namespace with all its objects.
    pub async fn delete_namespace(
        &mut self,
        namespace: &NamespaceName,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        self.run(&Request::DeleteNamespace(bytes_of(namespace.as_bytes())), deadline).await
    }

    /// 5: names of objects.
    pub async fn list_objects(
        &mut self,
        namespace: &NamespaceName,
        range: &RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<ObjectName>, CallError> {
        let namespace = bytes_of(namespace.as_bytes());
        match self.call(&Request::ListObjects { namespace, query: range.clone() }, deadline).await? {
            Response::Names(page) => named(page, ObjectName::new),
            other => Err(unexpected(&other)),
        }
    }

    /// 8: deletes an object.
    pub async fn delete_object(
        &mut self,
        namespace: &NamespaceName,
        object: &ObjectName,
        may_not_exist: bool,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        let (namespace, object) = (bytes_of(namespace.as_bytes()), bytes_of(object.as_bytes()));
        self.run(&Request::DeleteObject { namespace, object, may_not_exist }, deadline).await
    }

    /// 9: size and checksum of an object.
    pub async fn object_info(
        &mut self,
        namespace: &NamespaceName,
        object: &ObjectName,
        consistent: bool,
        deadline: Deadline,
    ) -> Result<ObjectSummary, CallError> {
        let request = Request::GetObjectInfo {
            namespace: bytes_of(namespace.as_bytes()),
            object: bytes_of(object.as_bytes()),
            consistent_read: consistent,
            should_cache: true,
        };
        match self.call(&request, deadline).await? {
            Response::Summary { size, checksum } => Ok(ObjectSummary { size, checksum }),
            other => Err(unexpected(&other)),
        }
    }

    /// 10: the **proxy** writes the object to `file` on its host, relative to its working directory.
    pub async fn download_object(
        &mut self,
        namespace: &NamespaceName,
        object: &ObjectName,
        file: &Path,
        consistent: bool,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        let request = Request::ReadObjectFs {
            namespace: bytes_of(namespace.as_bytes()),
            object: bytes_of(object.as_bytes()),
            dest_file: bytes_of(file.as_os_str().as_bytes()),
            consistent_read: consistent,
            should_cache: false,
        };
        self.run(&request, deadline).await
    }

    /// 11: the **proxy** reads `file` on its host, relative to its working directory, and stores it.
    pub async fn upload_object(
        &mut self,
        namespace: &NamespaceName,
        object: &ObjectName,
        file: &Path,
        allow_overwrite: bool,
        checksum: Option<Checksum>,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        let write = write_object(namespace, object, file, allow_overwrite, checksum);
        self.run(&Request::WriteObjectFs(write), deadline).await
    }

    /// 21: the same, and how it was stored.
    pub async fn upload_object_with_manifest(
        &mut self,
        namespace: &NamespaceName,
        object: &ObjectName,
        file: &Path,
        allow_overwrite: bool,
        checksum: Option<Checksum>,
        deadline: Deadline,
    ) -> Result<LocatedManifest, CallError> {
        let write = write_object(namespace, object, file, allow_overwrite, checksum);
        match self.call(&Request::WriteObjectFs2(write), deadline).await? {
            Response::Manifest(manifest) => Ok(*manifest),
            other => Err(unexpected(&other)),
        }
    }

    /// 13: pieces of objects, back to back in request order.
    pub async fn read_slices(
        &mut self,
        namespace: &NamespaceName,
        requests: &[SlicesOf],
        consistent: bool,
        deadline: Deadline,
    ) -> Result<Bytes, CallError> {
        let (namespace, objects) = (bytes_of(namespace.as_bytes()), slices_of(requests));
        let request = Request::ReadObjectsSlices { namespace, objects, consistent_read: consistent };
        match self.call(&request, deadline).await? {
            Response::Data(data) => Ok(joined(data)),
            other => Err(unexpected(&other)),
        }
    }

    /// 23: the same, and the objects they are of.
    pub async fn read_slices_with_manifests(
        &mut self,
        namespace: &NamespaceName,
        requests: &[SlicesOf],
        consistent: bool,
        deadline: Deadline,
    ) -> Result<(Bytes, Vec<ObjectInfo>), CallError> {
        let (namespace, objects) = (bytes_of(namespace.as_bytes()), slices_of(requests));
        let request = Request::ReadObjectsSlices2 { namespace, objects, consistent_read: consistent };
        match self.call(&request, deadline).await? {
            Response::DataAndObjects(data, objects) => Ok((joined(data), objects)),
            other => Err(unexpected(&other)),
        }
    }

    /// 24: asserts and updates in one atomic step; the objects that were uploaded. Of several updates of one name the
    /// first counts.
    pub async fn apply_sequence(
        &mut self,
        namespace: &NamespaceName,
        asserts: Vec<Assert>,
        updates: Vec<Update>,
        deadline: Deadline,
    ) -> Result<Vec<ObjectInfo>, CallError> {
        let namespace = bytes_of(namespace.as_bytes());
        let request = Request::ApplySequence { namespace, write_barrier: false, asserts, updates };
        match self.call(&request, deadline).await? {
            Response::Objects(objects) => Ok(objects),
            other => Err(unexpected(&other)),
        }
    }

    /// 14: reads that need not be consistent see at least the state of now afterwards.
    pub async fn invalidate_cache(
        &mut self,
        namespace: &NamespaceName,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        self.run(&Request::InvalidateCache(bytes_of(namespace.as_bytes())), deadline).await
    }

    /// 16: this namespace will not be used soon.
    pub async fn drop_cache(
        &mut self,
        namespace: &NamespaceName,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        self.run(&Request::DropCache(bytes_of(namespace.as_bytes())), deadline).await
    }

    /// 17: what runs there.
    pub async fn version(&mut self, deadline: Deadline) -> Result<ProxyVersion, CallError> {
        match self.call(&Request::GetVersion, deadline).await? {
            Response::Version(version) => Ok(ProxyVersion {
                number: (version.major, version.minor, version.patch),
                revision: version.revision,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// 20: the proxy waits `delay_seconds`, then tells its time (Unix seconds).
    pub async fn ping(&mut self, delay_seconds: f64, deadline: Deadline) -> Result<f64, CallError> {
        match self.call(&Request::Ping { delay: delay_seconds }, deadline).await? {
            Response::Time(seconds) => Ok(seconds),
            other => Err(unexpected(&other)),
        }
    }

    /// 26: which of these objects exist.
    pub async fn multi_exists(
        &mut self,
        namespace: &NamespaceName,
        names: &[ObjectName],
        deadline: Deadline,
    ) -> Result<Vec<bool>, CallError> {
        let objects = names.iter().map(|name| bytes_of(name.as_bytes())).collect();
        let request = Request::MultiExists { namespace: bytes_of(namespace.as_bytes()), objects };
        match self.call(&request, deadline).await? {
            Response::Exists(flags) => Ok(flags),
            other => Err(unexpected(&other)),
        }
    }

    /// 29: the backend's id.
    pub async fn alba_id(&mut self, deadline: Deadline) -> Result<AlbaId, CallError> {
        match self.call(&Request::GetAlbaId, deadline).await? {
            Response::AlbaId(id) => Ok(AlbaId::new(text_or_hex(&id))?),
            other => Err(unexpected(&other)),
        }
    }

    /// 32: asks for manifests in this form from now on; the form that was agreed on.
    pub async fn use_manifests(
        &mut self,
        wanted: ManifestSer,
        deadline: Deadline,
    ) -> Result<ManifestSer, CallError> {
        let key = Bytes::from_static(MANIFEST_SER);
        let value = bytes_of(&[wanted.number()]);
        match self.call(&Request::UpdateSession(vec![(key, Some(value))]), deadline).await? {
            Response::Session(agreed) => match agreed.as_slice() {
                [(_, value)] if value[..] == [ManifestSer::V2.number()] => Ok(ManifestSer::V2),
                _ => Ok(ManifestSer::V1),
            },
            other => Err(unexpected(&other)),
        }
    }

    /// A request that only succeeds or fails.
    async fn run(&mut self, request: &Request, deadline: Deadline) -> Result<(), CallError> {
        self.call(request, deadline).await.map(drop)
    }

    /// Sends one request and waits for its answer.
    async fn call(&mut self, request: &Request, deadline: Deadline) -> Result<Response, CallError> {
        let gone =
            || io::Error::new(io::ErrorKind::NotConnected, "an earlier call was cut off; connect anew");
        // Before the stream is taken: what cannot be said leaves the connection as it is.
        let message = request.encode()?;
        // Back in its place only when the answer is complete: whoever comes after a call that was cut off would take
        // the answer of that call for its own.
        let mut stream = self.stream.take().ok_or_else(gone)?;
        let inbox = &mut self.inbox;
        let exchange = async {
            for part in message.parts() {
                stream.write_all(part).await?;
            }
            let closed = || io::Error::from(io::ErrorKind::UnexpectedEof);
            if !inbox.read_until(&mut stream, PREFIX).await? {
                return Err(closed());
            }
            // All of the prefix is there; a length that cannot be addressed never arrives.
            let len = inbox.prefix().and_then(|len| usize::try_from(len).ok()).unwrap_or(usize::MAX);
            if !inbox.read_until(&mut stream, len.saturating_add(PREFIX)).await? {
                return Err(closed());
            }
            inbox.take_frame(len).ok_or_else(closed)
        };
        let frame =
            within(self.clock.as_ref(), deadline, exchange).await.map_err(|_| CallError::Deadline)??;
        self.stream = Some(stream);
        let status = frame.first_chunk().copied().map_or(0, u32::from_le_bytes);
        match decode_answer(request.command(), frame)? {
            Ok(response) => Ok(response),
            // By its number: a newer proxy may have codes that we do not know.
            Err(error) => Err(ProxyError { code: status, text: error.payload.to_vec() }.into()),
        }
    }
}

fn bytes_of(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn write_object(
    namespace: &NamespaceName,
    object: &ObjectName,
    file: &Path,
    allow_overwrite: bool,
    checksum: Option<Checksum>,
) -> WriteObjectFs {
    WriteObjectFs {
        namespace: bytes_of(namespace.as_bytes()),
        object: bytes_of(object.as_bytes()),
        input_file: bytes_of(file.as_os_str().as_bytes()),
        allow_overwrite,
        checksum,
    }
}

fn slices_of(requests: &[SlicesOf]) -> Vec<ObjectSlices> {
    let slice = |&(offset, length): &(i64, i32)| SliceRequest { offset, length };
    let entry = |(object, slices): &SlicesOf| ObjectSlices {
        object: bytes_of(object.as_bytes()),
        slices: slices.iter().map(slice).collect(),
    };
    requests.iter().map(entry).collect()
}

/// The wire has it in one piece.
fn joined(mut data: Vec<Bytes>) -> Bytes {
    match data.as_mut_slice() {
        [only] => std::mem::take(only),
        pieces => pieces.concat().into(),
    }
}

fn named<T, U>(page: Page<T>, item: impl Fn(T) -> Result<U, IdError>) -> Result<Page<U>, CallError> {
    let items = page.items.into_iter().map(item).collect::<Result<_, _>>()?;
    Ok(Page { items, has_more: page.has_more })
}

fn unexpected(response: &Response) -> CallError {
    CallError::Protocol(format!("it is of another operation: {:.100}", format!("{response:?}")))
}
