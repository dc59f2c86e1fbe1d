//! The client's side: one connection per peer, made when first needed and again when it is gone.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig};

use super::{Identity, QuicLimits, SERVER_NAME, invalid, stream};
use crate::env::clock::{Clock, Deadline};
use crate::env::net::{Connector, Stream};
use crate::env::within;

/// From so many peers on, those whose connection is gone are forgotten.
const PEERS_KEPT: usize = 1024;

/// Opens streams over QUIC.
pub struct QuicConnector {
    clock: Arc<dyn Clock>,
    config: ClientConfig,
    sockets: Mutex<Sockets>,
    peers: Mutex<HashMap<SocketAddr, Arc<Peer>>>,
}

/// One per address family, made when first needed.
#[derive(Default)]
struct Sockets {
    v4: Option<Endpoint>,
    v6: Option<Endpoint>,
}

/// The connection to one peer; who holds the lock may make a new one, the others wait for that.
#[derive(Default)]
struct Peer(tokio::sync::Mutex<Option<Connection>>);

impl QuicConnector {
    /// For `protocol` (see [`super::ASD`]), as `identity`.
    pub fn new(
        clock: Arc<dyn Clock>,
        identity: &Identity,
        protocol: &[u8],
        limits: &QuicLimits,
    ) -> io::Result<Self> {
        let mut transport = limits.transport()?;
        transport.keep_alive_interval(Some(limits.keep_alive));
        // Servers open no streams.
        transport.max_concurrent_bidi_streams(0_u32.into());
        let mut config = ClientConfig::new(Arc::new(identity.client(protocol).map_err(invalid)?));
        config.transport_config(Arc::new(transport));
        Ok(Self { clock, config, sockets: Mutex::default(), peers: Mutex::default() })
    }

    /// With other credentials, for tests of refusals.
    #[cfg(test)]
    pub(super) fn with_crypto(mut self, crypto: Arc<dyn quinn::crypto::ClientConfig>) -> Self {
        self.config = ClientConfig::new(crypto);
        self
    }

    fn socket(&self, to: SocketAddr) -> io::Result<Endpoint> {
        // No code panics while it holds the lock.
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let (socket, any) = match to {
            SocketAddr::V4(_) => (&mut sockets.v4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            SocketAddr::V6(_) => (&mut sockets.v6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))),
        };
        match socket {
            Some(socket) => Ok(socket.clone()),
            None => {
                let bound = std::net::UdpSocket::bind(any)?;
                let runtime = super::threads::runtime();
                let made = Endpoint::new(EndpointConfig::default(), None, bound, runtime)?;
                Ok(socket.insert(made).clone())
            }
        }
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<SocketAddr, Arc<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer(&self, to: SocketAddr) -> Arc<Peer> {
        let mut peers = self.peers();
        if peers.len() >= PEERS_KEPT && !peers.contains_key(&to) {
            peers.retain(|_, peer| match peer.0.try_lock() {
                Ok(connection) => connection.as_ref().is_some_and(is_alive),
                // In use.
                Err(_) => true,
            });
        }
        peers.entry(to).or_default().clone()
    }

    /// The connection there is, or a new one; `but` it is one that has turned out to be dead.
    async fn connection(&self, peer: &Peer, to: SocketAddr, but: Option<usize>) -> io::Result<Connection> {
        let mut slot = peer.0.lock().await;
        if let Some(connection) = slot.as_ref()
            && is_alive(connection)
            && Some(connection.stable_id()) != but
        {
            return Ok(connection.clone());
        }
        let refused =
            |error: &dyn std::error::Error| io::Error::other(format!("no QUIC connection to {to}: {error}"));
        let connecting = self.socket(to)?.connect_with(self.config.clone(), to, SERVER_NAME);
        let connection =
            connecting.map_err(|error| refused(&error))?.await.map_err(|error| refused(&error))?;
        // As many as there are peers. More than one each: it was restarted, or was not heard of for too long.
        metrics::counter!("alba_quic_connections_total", "peer" => to.to_string()).increment(1);
        Ok(slot.insert(connection).clone())
    }

    async fn open_stream(&self, to: SocketAddr) -> io::Result<Stream> {
        let peer = self.peer(to);
        let connection = self.connection(&peer, to, None).await?;
        // Waits while the other side allows no more streams.
        if let Ok((send, receive)) = connection.open_bi().await {
            return Ok(stream(send, receive));
        }
        // It was lost since it was looked at.
        let connection = self.connection(&peer, to, Some(connection.stable_id())).await?;
        let (send, receive) = connection.open_bi().await?;
        Ok(stream(send, receive))
    }
}

fn is_alive(connection: &Connection) -> bool {
    connection.close_reason().is_none()
}

#[async_trait]
impl Connector for QuicConnector {
    async fn open(&self, to: SocketAddr, deadline: Deadline) -> io::Result<Stream> {
        within(self.clock.as_ref(), deadline, self.open_stream(to))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no QUIC stream to {to} in time")))?
    }
}
