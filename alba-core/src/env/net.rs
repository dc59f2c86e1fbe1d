//! Byte streams between machines.

use std::any::Any;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use async_trait::async_trait;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use super::clock::Deadline;

/// Both directions of a connection.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + Any {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + Any> ByteStream for T {}

/// A connection.
pub type Stream = Box<dyn ByteStream>;

/// Sockets.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// Connects, or fails by the deadline.
    async fn connect(&self, to: SocketAddr, deadline: Deadline) -> io::Result<Stream>;

    /// Listens; an address in use is an error that names it.
    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>>;

    /// Connects to a socket file of this machine, or fails by the deadline.
    async fn connect_file(&self, to: &Path, _deadline: Deadline) -> io::Result<Stream> {
        Err(io::Error::new(io::ErrorKind::Unsupported, format!("no socket files here: {}", to.display())))
    }

    /// Listens on a socket file that only those may open whom `mode` (the file's permission bits) allows. A file that nobody
    /// answers on is replaced; one that is in use, or is no socket, is an error that names it. The file is removed when the
    /// listener is dropped. What it accepts has no address: it is told as `127.0.0.1:0`.
    async fn listen_file(&self, at: &Path, _mode: u32) -> io::Result<Box<dyn Listener>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, format!("no socket files here: {}", at.display())))
    }

    /// For a task that will use `stream` from now on and runs elsewhere than the one that opened or accepted it: waits on it
    /// are this task's then. What cannot change (streams inside another connection, socket files) is given back as it is.
    fn adopt(&self, stream: Stream) -> io::Result<Stream> {
        Ok(stream)
    }

    /// For the end of a process, after its listeners were dropped: waits until the other sides of what they accepted were told, or
    /// until the deadline. Where the kernel tells them, as with TCP, there is nothing to wait for.
    async fn told(&self, _deadline: Deadline) {}
}

/// Streams inside secured connections, of which there is one per peer: opening a stream costs no round trip. What it opens,
/// a [`Listener`] of the same kind accepts: to both sides a stream is like a connection of its own.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// A new stream to `to`, inside the connection there is or a new one; fails by the deadline. That the other side has heard of
    /// it is known only when it answers.
    async fn open(&self, to: SocketAddr, deadline: Deadline) -> io::Result<Stream>;
}

/// A listening socket.
#[async_trait]
pub trait Listener: Send + 'static {
    /// The next connection (or stream, of a [`Connector`]) and where it comes from.
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)>;

    /// Where it listens (the port that was chosen, when 0 was asked for).
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// Where a server listens, and how: `tcp://10.0.0.1:8500`, `quic://[::1]:8501`. Numeric, since names are resolved where they
/// are configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// Plain TCP: no authentication, no encryption.
    Tcp(SocketAddr),
    /// QUIC: both sides have certificates of the cluster's authority.
    Quic(SocketAddr),
}

/// Why a text is no [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// Neither `tcp://` nor `quic://`.
    #[error("{0:?} begins with neither tcp:// nor quic://")]
    Scheme(String),
    /// No numeric address with a port.
    #[error("{0:?} is not an IP address with a port")]
    Address(String),
}

impl Endpoint {
    /// Its address.
    pub fn address(self) -> SocketAddr {
        match self {
            Self::Tcp(address) | Self::Quic(address) => address,
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (make, rest): (fn(SocketAddr) -> Self, &str) = if let Some(rest) = text.strip_prefix("tcp://") {
            (Self::Tcp, rest)
        } else if let Some(rest) = text.strip_prefix("quic://") {
            (Self::Quic, rest)
        } else {
            return Err(EndpointError::Scheme(text.to_owned()));
        };
        rest.parse().map(make).map_err(|_| EndpointError::Address(text.to_owned()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Quic(address) => write!(f, "quic://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_read_back() {
        for text in ["tcp://127.0.0.1:8500", "quic://10.0.0.1:1", "tcp://[::1]:65535", "quic://[fe80::1]:443"]
        {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in ["127.0.0.1:8500", "rdma://127.0.0.1:1", "TCP://127.0.0.1:1", ""] {
            assert_eq!(text.parse::<Endpoint>(), Err(EndpointError::Scheme(text.to_owned())));
        }
        for text in
            ["tcp://localhost:1", "tcp://127.0.0.1", "quic://", "quic://127.0.0.1:65536", "tcp://1.2.3.4:5/"]
        {
            assert_eq!(text.parse::<Endpoint>(), Err(EndpointError::Address(text.to_owned())));
        }
    }
}
