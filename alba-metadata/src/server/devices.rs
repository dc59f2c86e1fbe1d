//! OSDs as the server reaches them.

use std::sync::Arc;

use alba_core::env::{Deadline, Endpoint, Env, Osd, OsdError};
use alba_core::net::asd::{AsdClient, AsdClientConfig, Reach};
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
    reach: Reach,
}

impl AsdDevices {
    /// Over `env.net`; those that serve QUIC only are not reached.
    pub fn new(env: Env) -> Self {
        Self::over(Reach::without_certificate(env))
    }

    /// As the process reaches OSDs.
    pub fn over(reach: Reach) -> Self {
        Self { reach }
    }
}

impl AsdDevices {
    fn client(&self, info: &OsdInfo) -> Arc<AsdClient> {
        self.reach.client(info, AsdClientConfig::default())
    }
}

#[async_trait]
impl Devices for AsdDevices {
    fn osd(&self, info: &OsdInfo) -> Arc<dyn Osd> {
        self.client(info)
    }

    async fn set_peers(&self, info: &OsdInfo, peers: &[OsdInfo], deadline: Deadline) -> Result<(), OsdError> {
        // OSDs copy from each other over TCP. Whose data others cannot get at is none to copy from: agents carry it then.
        let others = peers.iter().filter(|peer| peer.long_id != info.long_id);
        let reachable = others.filter(|peer| peer.endpoint.ports.tcp().is_some());
        let peers = reachable.map(|peer| Peer {
            long_id: peer.long_id.clone(),
            addresses: peer.endpoint.tcp().take(PEER_ADDRESSES_MAX).map(Endpoint::Tcp).collect(),
        });
        self.client(info).set_peers(peers.collect(), deadline).await
    }
}
