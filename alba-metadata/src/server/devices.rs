//! OSDs as the server reaches them.

use std::net::SocketAddr;
use std::sync::Arc;

use alba_core::env::{Deadline, Endpoint, Env, Osd, OsdError};
use alba_core::net::asd::{AsdClient, AsdClientConfig};
use alba_core::wire::asd::{PEER_ADDRESSES_MAX, Peer};
use alba_core::wire::rpc::abm::OsdInfo;
use async_trait::async_trait;

/// Makes handles on OSDs. Making one does not connect.
#[async_trait]
pub trait Devices: Send + Sync + 'static {
    /// A handle on the OSD that `info` describes; its long id is checked by every connection.
    fn osd(&self, info: &OsdInfo) -> Arc<dyn Osd>;

    /// Tells the OSD that `info` describes from which others it may copy: these and no others.
    async fn set_peers(&self, info: &OsdInfo, peers: &[OsdInfo], deadline: Deadline) -> Result<(), OsdError>;
}

/// Real ASDs.
pub struct AsdDevices {
    env: Env,
}

impl AsdDevices {
    /// Over `env.net`.
    pub fn new(env: Env) -> Self {
        Self { env }
    }
}

impl AsdDevices {
    fn client(&self, info: &OsdInfo) -> Arc<AsdClient> {
        let addresses = addresses(info).collect();
        AsdClient::new(self.env.clone(), addresses, info.long_id.clone(), AsdClientConfig::default())
    }
}

fn addresses(info: &OsdInfo) -> impl Iterator<Item = SocketAddr> {
    info.endpoint.ips.iter().map(|ip| SocketAddr::new(*ip, info.endpoint.port))
}

#[async_trait]
impl Devices for AsdDevices {
    fn osd(&self, info: &OsdInfo) -> Arc<dyn Osd> {
        self.client(info)
    }

    async fn set_peers(&self, info: &OsdInfo, peers: &[OsdInfo], deadline: Deadline) -> Result<(), OsdError> {
        let peers = peers.iter().filter(|peer| peer.long_id != info.long_id).map(|peer| Peer {
            long_id: peer.long_id.clone(),
            addresses: addresses(peer).take(PEER_ADDRESSES_MAX).map(Endpoint::Tcp).collect(),
        });
        self.client(info).set_peers(peers.collect(), deadline).await
    }
}
