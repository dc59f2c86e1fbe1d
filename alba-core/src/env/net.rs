//! Byte streams between machines.

use std::io;
use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use super::clock::Deadline;

/// Both directions of a connection.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A connection.
pub type Stream = Box<dyn ByteStream>;

/// Sockets.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// Connects, or fails by the deadline.
    async fn connect(&self, to: SocketAddr, deadline: Deadline) -> io::Result<Stream>;

    /// Listens; an address in use is an error that names it.
    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>>;
}

/// A listening socket.
#[async_trait]
pub trait Listener: Send + 'static {
    /// The next connection and where it comes from.
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)>;

    /// Where it listens (the port that was chosen, when 0 was asked for).
    fn local_addr(&self) -> io::Result<SocketAddr>;
}
