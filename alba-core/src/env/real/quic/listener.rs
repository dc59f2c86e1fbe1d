//! The server's side: every stream that a client opens is accepted like a connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, Incoming, ServerConfig};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

use super::{Identity, QuicLimits, invalid, stream};
use crate::env::clock::{Clock, Deadline};
use crate::env::net::{Listener, Stream};
use crate::env::within;

/// Streams that were opened and wait to be accepted, over all connections; beyond it their connections wait.
const WAITING: usize = 64;

/// Listens on a UDP port for clients of the authority that speak `protocol`. Dropped, it closes all connections.
pub async fn listen(
    clock: Arc<dyn Clock>,
    identity: &Identity,
    at: SocketAddr,
    protocol: &[u8],
    limits: &QuicLimits,
) -> io::Result<Box<dyn Listener>> {
    Ok(Box::new(open(clock, identity, at, protocol, limits)?))
}

/// The same as what it is. Of a runtime: it starts tasks.
pub(super) fn open(
    clock: Arc<dyn Clock>,
    identity: &Identity,
    at: SocketAddr,
    protocol: &[u8],
    limits: &QuicLimits,
) -> io::Result<QuicListener> {
    let mut config = ServerConfig::with_crypto(Arc::new(identity.server(protocol).map_err(invalid)?));
    config.transport_config(Arc::new(limits.transport()?)).max_incoming(limits.connections);
    // After a restart the packets of connections from before are answered with a reset that their senders recognise, so that
    // they connect anew at once instead of waiting for their idle time. For that the key must be the same as before, and
    // ids of connections nobody knows must be taken seriously.
    let mut endpoint =
        EndpointConfig::new(Arc::new(ResetKey(identity.derived_key("alba 1 quic stateless reset"))));
    endpoint.cid_generator(|| Box::new(RandomIds));
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {at}/udp: {error}"));
    let socket = std::net::UdpSocket::bind(at).map_err(named)?;
    let endpoint = Endpoint::new(endpoint, Some(config), socket, super::threads::runtime()).map_err(named)?;
    let (streams, accepted) = mpsc::channel(WAITING);
    let accepting = Accepting {
        clock,
        endpoint: endpoint.clone(),
        places: Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS))),
        limits: limits.clone(),
        streams,
    };
    let task = super::threads::spawn(accepting.run());
    Ok(QuicListener { endpoint, accepted, task })
}

pub(super) struct QuicListener {
    endpoint: Endpoint,
    accepted: mpsc::Receiver<(Stream, SocketAddr)>,
    task: AbortHandle,
}

impl QuicListener {
    /// To see the end of its connections after it was dropped.
    pub(super) fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }
}

impl Drop for QuicListener {
    fn drop(&mut self) {
        self.task.abort();
        self.endpoint.close(0_u32.into(), b"closing");
    }
}

#[async_trait]
impl Listener for QuicListener {
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        self.accepted.recv().await.ok_or_else(|| io::Error::other("the QUIC endpoint is closed"))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }
}

struct Accepting {
    clock: Arc<dyn Clock>,
    endpoint: Endpoint,
    places: Arc<Semaphore>,
    limits: QuicLimits,
    streams: mpsc::Sender<(Stream, SocketAddr)>,
}

impl Accepting {
    async fn run(self) {
        while let Some(incoming) = self.endpoint.accept().await {
            let Ok(place) = self.places.clone().try_acquire_owned() else {
                tracing::warn!(peer = %incoming.remote_address(), limit = self.limits.connections, "too many QUIC connections: refused");
                incoming.refuse();
                continue;
            };
            // When many places are taken, only those get one who receive packets at the address that they send from.
            if self.places.available_permits() < self.limits.connections / 2
                && !incoming.remote_address_validated()
                && incoming.may_retry()
            {
                // Cannot fail: it may be retried.
                let _ = incoming.retry();
                continue;
            }
            let (clock, streams) = (self.clock.clone(), self.streams.clone());
            let handshake = Deadline::after(clock.as_ref(), self.limits.handshake);
            super::threads::spawn(async move {
                if let Err(error) = connection(clock, incoming, handshake, streams).await {
                    tracing::debug!(%error, "QUIC connection ended");
                }
                drop(place);
            });
        }
    }
}

async fn connection(
    clock: Arc<dyn Clock>,
    incoming: Incoming,
    handshake: Deadline,
    streams: mpsc::Sender<(Stream, SocketAddr)>,
) -> io::Result<()> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no handshake in time");
    let connection = within(clock.as_ref(), handshake, incoming.into_future()).await.map_err(late)??;
    loop {
        let (send, receive) = connection.accept_bi().await?;
        let opened = (stream(send, receive), connection.remote_address());
        if streams.send(opened).await.is_err() {
            // Nobody listens any more; the endpoint is being closed.
            return Ok(());
        }
    }
}

/// Signs resets.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let signature = blake3::keyed_hash(&self.0, data);
        for (out, byte) in signature_out.iter_mut().zip(signature.as_bytes()) {
            *out = *byte;
        }
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Compares in constant time.
        if blake3::keyed_hash(&self.0, data) == *signature { Ok(()) } else { Err(CryptoError) }
    }
}

/// Ids of connections without a mark of the process that made them.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; 8];
        rand::Rng::fill_bytes(&mut rand::rng(), &mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}
