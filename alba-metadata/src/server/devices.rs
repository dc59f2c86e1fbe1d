//! OSDs as the server reaches them.

use std::net::SocketAddr;
use std::sync::Arc;

use alba_core::env::{Env, Osd};
use alba_core::net::asd::{AsdClient, AsdClientConfig};
use alba_core::wire::rpc::abm::OsdInfo;

/// Makes handles on OSDs. Making one does not connect.
pub trait Devices: Send + Sync + 'static {
    /// A handle on the OSD that `info` describes; its long id is checked by every connection.
    fn osd(&self, info: &OsdInfo) -> Arc<dyn Osd>;
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

impl Devices for AsdDevices {
    fn osd(&self, info: &OsdInfo) -> Arc<dyn Osd> {
        let port = info.endpoint.port;
        let addresses = info.endpoint.ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        AsdClient::new(self.env.clone(), addresses, info.long_id.clone(), AsdClientConfig::default())
    }
}
