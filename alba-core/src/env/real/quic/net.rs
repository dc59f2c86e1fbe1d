//! QUIC where TCP would be: a connection of [`Net`] is a stream inside the one connection per peer. What works over sockets works
//! over it unchanged.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Identity, QuicConnector, QuicLimits};
use crate::env::clock::{Clock, Deadline};
use crate::env::net::{Connector, Listener, Net, Stream};

/// [`Net`] over QUIC, for one protocol, as one member of a cluster.
pub struct QuicNet {
    clock: Arc<dyn Clock>,
    identity: Identity,
    protocol: &'static [u8],
    limits: QuicLimits,
    connector: QuicConnector,
}

impl QuicNet {
    /// For `protocol` (see [`super::METADATA`]), as `identity`.
    pub fn new(
        clock: Arc<dyn Clock>,
        identity: Identity,
        protocol: &'static [u8],
        limits: QuicLimits,
    ) -> io::Result<Self> {
        let connector = QuicConnector::new(clock.clone(), &identity, protocol, &limits)?;
        Ok(Self { clock, identity, protocol, limits, connector })
    }
}

#[async_trait]
impl Net for QuicNet {
    async fn connect(&self, to: SocketAddr, deadline: Deadline) -> io::Result<Stream> {
        self.connector.open(to, deadline).await
    }

    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        super::listen(self.clock.clone(), &self.identity, at, self.protocol, &self.limits).await
    }
}
