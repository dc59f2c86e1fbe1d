//! A client of the ALBA proxy protocol: for the command line's `proxy-*` commands and for tests.
//!
//! One request at a time per connection, as the protocol wants it. A call that was cut off (deadline, broken
//! connection, cancelled future) leaves the connection unusable: whether the request happened is then unknown.

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
use bytes::Bytes;
use thiserror::Error;
use tokio::io::AsyncWriteExt;

use crate::frame::{Inbox, PREFIX};

mod encode;

use encode::{Answer, Arguments};

/// First eight bytes of a connection: magic and version (wire-protocol §2.1).
const PROLOGUE: [u8; 8] = [0x1b, 0xde, 0x79, 0x44, 1, 0, 0, 0];

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

/// What runs on the other side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyVersion {
    /// major, minor, patch; -1 each when built without tags.
    pub number: (i32, i32, i32),
    /// The source it was built from.
    pub revision: String,
}

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
        let mut stream = env.net.connect(addr, deadline).await?;
        within(env.clock.as_ref(), deadline, stream.write_all(&PROLOGUE))
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
        let mut answer = self.call(Arguments::of(1).range(range), deadline).await?;
        let names = answer.list(Answer::string)?;
        let items = names.into_iter().map(NamespaceName::new).collect::<Result<_, _>>()?;
        Ok(Page { items, has_more: answer.bool()? })
    }

    /// 30: names of namespaces with their presets.
    pub async fn list_namespaces_with_presets(
        &mut self,
        range: &RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<(NamespaceName, PresetName)>, CallError> {
        let mut answer = self.call(Arguments::of(30).range(range), deadline).await?;
        let pairs = answer.list(|a| Ok((a.string()?, a.text()?)))?;
        let items = pairs
            .into_iter()
            .map(|(name, preset)| Ok((NamespaceName::new(name)?, PresetName::new(preset)?)))
            .collect::<Result<_, IdError>>()?;
        Ok(Page { items, has_more: answer.bool()? })
    }

    /// 2: does a namespace exist?
    pub async fn namespace_exists(
        &mut self,
        namespace: &NamespaceName,
        deadline: Deadline,
    ) -> Result<bool, CallError> {
        self.call(Arguments::of(2).string(namespace.as_bytes()), deadline).await?.bool()
    }

    /// 3: creates a namespace; without a preset the default one. It can be written to when this returns.
    pub async fn create_namespace(
        &mut self,
        namespace: &NamespaceName,
        preset: Option<&PresetName>,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        let arguments = Arguments::of(3).string(namespace.as_bytes());
        let arguments = arguments.option(preset, |a, preset| a.string(preset.as_str().as_bytes()));
        self.call(arguments, deadline).await.map(drop)
    }

    /// 4: deletes a namespace with all its objects.
    pub async fn delete_namespace(
        &mut self,
        namespace: &NamespaceName,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        self.call(Arguments::of(4).string(namespace.as_bytes()), deadline).await.map(drop)
    }

    /// 5: names of objects.
    pub async fn list_objects(
        &mut self,
        namespace: &NamespaceName,
        range: &RangeQuery,
        deadline: Deadline,
    ) -> Result<Page<ObjectName>, CallError> {
        let arguments = Arguments::of(5).string(namespace.as_bytes()).range(range);
        let mut answer = self.call(arguments, deadline).await?;
        let names = answer.list(Answer::string)?;
        let items = names.into_iter().map(ObjectName::new).collect::<Result<_, _>>()?;
        Ok(Page { items, has_more: answer.bool()? })
    }

    /// 8: deletes an object.
    pub async fn delete_object(
        &mut self,
        namespace: &NamespaceName,
        object: &ObjectName,
        may_not_exist: bool,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        let arguments = Arguments::of(8).string(namespace.as_bytes()).string(object.as_bytes());
        self.call(arguments.bool(may_not_exist), deadline).await.map(drop)
    }

    /// 9: size and checksum of an object.
    pub async fn object_info(
        &mut self,
        namespace: &NamespaceName,
        object: &ObjectName,
        consistent: bool,
        deadline: Deadline,
    ) -> Result<ObjectSummary, CallError> {
        let arguments = Arguments::of(9).string(namespace.as_bytes()).string(object.as_bytes());
        let mut answer = self.call(arguments.bool(consistent).bool(true), deadline).await?;
        Ok(ObjectSummary { size: answer.u64()?, checksum: answer.checksum()? })
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
        let arguments = Arguments::of(10).string(namespace.as_bytes()).string(object.as_bytes());
        let arguments = arguments.string(file.as_os_str().as_bytes()).bool(consistent).bool(false);
        self.call(arguments, deadline).await.map(drop)
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
        let arguments = Arguments::of(11).string(namespace.as_bytes()).string(object.as_bytes());
        let arguments = arguments.string(file.as_os_str().as_bytes()).bool(allow_overwrite);
        let arguments = arguments.option(checksum, |a, checksum| a.checksum(&checksum));
        self.call(arguments, deadline).await.map(drop)
    }

    /// 13: pieces of objects, back to back in request order.
    pub async fn read_slices(
        &mut self,
        namespace: &NamespaceName,
        requests: &[(ObjectName, Vec<(i64, i32)>)],
        consistent: bool,
        deadline: Deadline,
    ) -> Result<Bytes, CallError> {
        let arguments = Arguments::of(13).string(namespace.as_bytes());
        let arguments = arguments.list(requests, |a, (name, slices)| {
            a.string(name.as_bytes()).list(slices, |a, &(offset, length)| a.i64(offset).i32(length))
        });
        self.call(arguments.bool(consistent), deadline).await?.string()
    }

    /// 14: reads that need not be consistent see at least the state of now afterwards.
    pub async fn invalidate_cache(
        &mut self,
        namespace: &NamespaceName,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        self.call(Arguments::of(14).string(namespace.as_bytes()), deadline).await.map(drop)
    }

    /// 16: this namespace will not be used soon.
    pub async fn drop_cache(
        &mut self,
        namespace: &NamespaceName,
        deadline: Deadline,
    ) -> Result<(), CallError> {
        self.call(Arguments::of(16).string(namespace.as_bytes()), deadline).await.map(drop)
    }

    /// 17: what runs there.
    pub async fn version(&mut self, deadline: Deadline) -> Result<ProxyVersion, CallError> {
        let mut answer = self.call(Arguments::of(17), deadline).await?;
        let number = (answer.i32()?, answer.i32()?, answer.i32()?);
        Ok(ProxyVersion { number, revision: answer.text()? })
    }

    /// 20: the proxy waits `delay_seconds`, then tells its time (Unix seconds).
    pub async fn ping(&mut self, delay_seconds: f64, deadline: Deadline) -> Result<f64, CallError> {
        self.call(Arguments::of(20).f64(delay_seconds), deadline).await?.f64()
    }

    /// 26: which of these objects exist.
    pub async fn multi_exists(
        &mut self,
        namespace: &NamespaceName,
        names: &[ObjectName],
        deadline: Deadline,
    ) -> Result<Vec<bool>, CallError> {
        let arguments = Arguments::of(26).string(namespace.as_bytes());
        let arguments = arguments.list(names, |a, name| a.string(name.as_bytes()));
        self.call(arguments, deadline).await?.list(Answer::bool)
    }

    /// 29: the backend's id.
    pub async fn alba_id(&mut self, deadline: Deadline) -> Result<AlbaId, CallError> {
        let text = self.call(Arguments::of(29), deadline).await?.text()?;
        Ok(AlbaId::new(text)?)
    }

    /// Sends one request and waits for its answer.
    async fn call(&mut self, arguments: Arguments, deadline: Deadline) -> Result<Answer, CallError> {
        let gone =
            || io::Error::new(io::ErrorKind::NotConnected, "an earlier call was cut off; connect anew");
        // Back in its place only when the answer is complete: whoever comes after a call that was cut off would take
        // the answer of that call for its own.
        let mut stream = self.stream.take().ok_or_else(gone)?;
        let inbox = &mut self.inbox;
        let exchange = async {
            stream.write_all(&arguments.into_frame()?).await?;
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
        Answer::parse(frame)
    }
}
