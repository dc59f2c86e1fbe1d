//! The OSDs that values may be copied from: registered ones only, remembered over restarts.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alba_core::env::{Deadline, Endpoint, Env, blocking, files, within};
use alba_core::ids::LongId;
use alba_core::net::asd::{AsdClient, AsdClientConfig};
use alba_core::wire::asd::{self as wire, AsdError};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Service;

/// Version of the file.
const FORMAT: u32 = 1;

/// Connections to one peer.
const CONNECTIONS: usize = 2;

/// An OSD that values may be copied from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its globally unique name.
    pub long_id: LongId,
    /// Where it serves the ASD protocol.
    pub addresses: Vec<SocketAddr>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    peers: Vec<Peer>,
}

#[derive(Default)]
struct State {
    peers: BTreeMap<LongId, Peer>,
    clients: BTreeMap<LongId, Arc<AsdClient>>,
    file: Option<PathBuf>,
}

/// The registered peers.
pub struct Peers {
    env: Env,
    state: Mutex<State>,
    /// One change at a time, so that the file holds the last one.
    changing: tokio::sync::Mutex<()>,
}

impl Peers {
    /// None yet, and none are kept.
    pub(super) fn new(env: Env) -> Self {
        Self { env, state: Mutex::default(), changing: tokio::sync::Mutex::default() }
    }

    /// No code panics while it holds the lock, so a poisoned lock holds sound data.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps them in `file` from now on, and takes those that it holds.
    pub fn keep_in(&self, file: &Path) -> io::Result<()> {
        let peers = match std::fs::read(file) {
            Ok(bytes) => parse(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut state = self.lock();
        state.replace(peers);
        state.file = Some(file.to_owned());
        Ok(())
    }

    /// Replaces them all; durable when it returns.
    pub async fn set(&self, peers: Vec<Peer>) -> io::Result<()> {
        let _changing = self.changing.lock().await;
        let file = self.lock().file.clone();
        if let Some(file) = file {
            let bytes = serde_json::to_vec_pretty(&Stored { format: FORMAT, peers: peers.clone() })?;
            let written = blocking(self.env.spawn.as_ref(), move || files::replace(&file, &bytes)).await;
            written.map_err(io::Error::other)??;
        }
        self.lock().replace(peers);
        Ok(())
    }

    /// All of them, by name.
    pub fn get(&self) -> Vec<Peer> {
        self.lock().peers.values().cloned().collect()
    }

    /// The way to one; none when it is not registered.
    pub(super) fn client(&self, peer: &LongId) -> Option<Arc<AsdClient>> {
        let mut state = self.lock();
        if let Some(client) = state.clients.get(peer) {
            return Some(client.clone());
        }
        let addresses = state.peers.get(peer)?.addresses.clone();
        let config = AsdClientConfig { max_connections: CONNECTIONS, ..AsdClientConfig::default() };
        let client = AsdClient::new(self.env.clone(), addresses, peer.clone(), config);
        state.clients.insert(peer.clone(), client.clone());
        Some(client)
    }
}

impl Service {
    /// Replaces the peers on a client's word. Begun, it is done whatever becomes of the client: a list that was written but
    /// not taken would differ from the one after the next start.
    pub(super) async fn set_peers(&self, peers: Vec<wire::Peer>, deadline: Deadline) -> Result<(), AsdError> {
        let peers = peers.into_iter().map(reachable).collect::<Result<Vec<_>, _>>()?;
        let (answer, done) = oneshot::channel();
        let registered = self.peers.clone();
        let change = async move { drop(answer.send(registered.set(peers).await)) };
        self.env.spawn.spawn("set peers", Box::pin(change));
        within(self.env.clock.as_ref(), deadline, done)
            .await
            .map_err(|_| AsdError::Overloaded("the peers were not written in time".into()))?
            .map_err(|gone| AsdError::Unknown(gone.to_string()))?
            .map_err(|error| AsdError::Unknown(format!("cannot write the peers: {error}")))
    }
}

/// The peer with those of its addresses that can be reached from here, which speaks TCP only.
fn reachable(peer: wire::Peer) -> Result<Peer, AsdError> {
    let tcp = |endpoint: &Endpoint| match endpoint {
        Endpoint::Tcp(address) => Some(*address),
        Endpoint::Quic(_) => None,
    };
    let addresses: Vec<SocketAddr> = peer.addresses.iter().filter_map(tcp).collect();
    if addresses.is_empty() {
        return Err(AsdError::BadRequest(format!("peer {} has no TCP address", peer.long_id)));
    }
    Ok(Peer { long_id: peer.long_id, addresses })
}

impl State {
    fn replace(&mut self, peers: Vec<Peer>) {
        let peers: BTreeMap<_, _> = peers.into_iter().map(|peer| (peer.long_id.clone(), peer)).collect();
        // Connections to those that did not change stay.
        let before = std::mem::replace(&mut self.peers, peers);
        self.clients.retain(|id, _| self.peers.get(id).is_some_and(|peer| before.get(id) == Some(peer)));
    }
}

fn parse(bytes: &[u8]) -> io::Result<Vec<Peer>> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let stored: Stored = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    if stored.format == FORMAT {
        Ok(stored.peers)
    } else {
        Err(invalid(format!("format {}, this program knows {FORMAT}", stored.format)))
    }
}
