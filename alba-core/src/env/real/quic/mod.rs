//! QUIC (quinn, rustls with ring): many streams in one connection per peer, both sides with a certificate of the cluster's
//! authority.
//!
//! Whoever has no such certificate never gets to open a stream. TLS 1.3 only, no early data (it could be replayed). Nothing here
//! knows what the streams carry; that is agreed by the protocol's name ([`ASD`]). Which server it is beyond "one of the cluster"
//! is for the protocol inside to find out (the long id of its prologue).

mod connector;
mod identity;
mod listener;
mod net;
#[cfg(test)]
mod tests;
mod threads;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use quinn::{IdleTimeout, TransportConfig, VarInt};

use crate::units::ByteCount;

pub use connector::QuicConnector;
pub use identity::{Identity, IdentityError};
pub use listener::listen;
pub use net::QuicNet;

/// The protocol of ASDs, as it is named in the handshake (ALPN): that of TCP, a request and its answer per stream.
pub const ASD: &[u8] = b"alba-asd/1";

/// The protocol of metadata servers: [`crate::wire::rpc`], many requests in flight per stream.
pub const METADATA: &[u8] = b"alba-rpc/2";

/// The name in the certificate of every server of a cluster. Servers are reached by address and move; who they are is said by the
/// protocol inside.
pub const SERVER_NAME: &str = "alba";

/// Limits of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuicLimits {
    /// Connections at once; a server refuses further ones.
    pub connections: usize,
    /// Streams at once that the other side may open in a connection; it waits for more.
    pub streams: u32,
    /// Bytes of a stream that are kept before they are read; the other side waits then.
    pub stream_bytes: ByteCount,
    /// The same for all streams of a connection, and for what waits to be sent.
    pub connection_bytes: ByteCount,
    /// For the handshake, as a server.
    pub handshake: Duration,
    /// A connection that hears nothing for so long is over.
    pub idle: Duration,
    /// A client says that it is there after so long; shorter than `idle`.
    pub keep_alive: Duration,
}

impl Default for QuicLimits {
    /// At most 2 GiB from the members of a cluster that fill all windows; a peer that vanished is noticed after 15 s.
    fn default() -> Self {
        Self {
            connections: 256,
            streams: 256,
            stream_bytes: ByteCount::mib(2),
            connection_bytes: ByteCount::mib(8),
            handshake: Duration::from_secs(5),
            idle: Duration::from_secs(15),
            keep_alive: Duration::from_secs(5),
        }
    }
}

impl QuicLimits {
    fn transport(&self) -> io::Result<TransportConfig> {
        let wrong =
            |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("QUIC: {what} is too large"));
        let window = |bytes: ByteCount| VarInt::from_u64(bytes.get()).map_err(|_| wrong("a window"));
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(self.streams))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(window(self.stream_bytes)?)
            .receive_window(window(self.connection_bytes)?)
            .send_window(self.connection_bytes.get())
            .max_idle_timeout(Some(IdleTimeout::try_from(self.idle).map_err(|_| wrong("the idle time"))?))
            .datagram_receive_buffer_size(None);
        Ok(transport)
    }
}

/// ring's algorithms, whatever other provider the process may have installed.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// Both directions as one.
fn stream(send: quinn::SendStream, receive: quinn::RecvStream) -> crate::env::Stream {
    Box::new(tokio::io::join(receive, send))
}
