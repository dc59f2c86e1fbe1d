//! QUIC where TCP would be: a connection of [`Net`] is a stream inside the one connection per peer. What works over sockets works
//! over it unchanged.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use quinn::Endpoint;

use super::{Identity, QuicConnector, QuicLimits};
use crate::env::clock::{Clock, Deadline};
use crate::env::net::{Connector, Listener, Net, Stream};
use crate::env::within;

/// [`Net`] over QUIC, for one protocol, as one member of a cluster.
pub struct QuicNet {
    clock: Arc<dyn Clock>,
    identity: Identity,
    protocol: &'static [u8],
    limits: QuicLimits,
    connector: QuicConnector,
    /// Of all listeners that there were: a process has one.
    listened: Mutex<Vec<Endpoint>>,
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
        Ok(Self { clock, identity, protocol, limits, connector, listened: Mutex::default() })
    }

    fn listened(&self) -> MutexGuard<'_, Vec<Endpoint>> {
        // No code panics while it holds the lock.
        self.listened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Net for QuicNet {
    async fn connect(&self, to: SocketAddr, deadline: Deadline) -> io::Result<Stream> {
        self.connector.open(to, deadline).await
    }

    async fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn Listener>> {
        let ended = |endpoint: &Endpoint| endpoint.local_addr().ok() == Some(at);
        // What is kept of one that ended keeps its port.
        self.listened().retain(|endpoint| !ended(endpoint));
        let listener =
            super::listener::open(self.clock.clone(), &self.identity, at, self.protocol, &self.limits)?;
        self.listened().push(listener.endpoint());
        Ok(Box::new(listener))
    }

    async fn told(&self, deadline: Deadline) {
        let ended = std::mem::take(&mut *self.listened());
        for endpoint in ended {
            // Who was not told finds out by a reset of the next process, or after the idle time.
            let _ = within(self.clock.as_ref(), deadline, endpoint.wait_idle()).await;
        }
    }
}
