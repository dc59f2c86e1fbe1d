//! Connections to the other replicas' servers: one per address, shared by all groups of this process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alba_core::env::{Deadline, Env, Net, within};
use alba_core::net::rpc::{Answer, RpcConnection, RpcError};
use alba_core::wire::rpc::Request;

/// Longest a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(2);

type Slot = Arc<tokio::sync::Mutex<Option<Arc<RpcConnection>>>>;

/// All peers.
pub struct Peers {
    env: Env,
    net: Arc<dyn Net>,
    slots: Mutex<BTreeMap<SocketAddr, Slot>>,
}

impl Peers {
    /// Over `env.net`, whatever that is.
    pub fn new(env: &Env) -> Arc<Self> {
        Arc::new(Self { env: env.clone(), net: env.net.clone(), slots: Mutex::default() })
    }

    fn slot(&self, address: SocketAddr) -> Slot {
        // As many as there are replicas; no code panics while it holds the lock.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(address).or_default().clone()
    }

    async fn connection(
        &self,
        address: SocketAddr,
        deadline: Deadline,
    ) -> Result<Arc<RpcConnection>, RpcError> {
        let slot = self.slot(address);
        let connect = async {
            let mut open = slot.lock().await;
            if let Some(connection) = open.as_ref().filter(|connection| !connection.is_broken()) {
                return Ok(connection.clone());
            }
            *open = None;
            let limit = deadline.capped(self.env.clock.as_ref(), CONNECT);
            let stream = self.net.connect(address, limit).await;
            let stream = stream.map_err(|error| RpcError::Connect(format!("{address}: {error}")))?;
            let connection = Arc::new(RpcConnection::over(&self.env, stream));
            *open = Some(connection.clone());
            Ok(connection)
        };
        match within(self.env.clock.as_ref(), deadline, connect).await {
            Ok(connection) => connection,
            Err(_) => Err(RpcError::Connect(format!("{address}: no connection in time"))),
        }
    }

    /// Asks the server at `address`.
    pub async fn call(
        &self,
        address: &str,
        request: &Request,
        deadline: Deadline,
    ) -> Result<Answer, RpcError> {
        let parsed = address.parse::<SocketAddr>();
        let parsed = parsed.map_err(|_| RpcError::Connect(format!("{address:?} is no ip:port")))?;
        self.connection(parsed, deadline).await?.call(request, deadline).await
    }
}
