//! Which way a process reaches OSDs: the endpoints in their records, what the operator wants, and whether there is a certificate.

use std::fmt::Display;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::client::{AsdClient, AsdClientConfig};
use super::connection::Connection;
use super::pool::IdleLimit;
use crate::env::{Connector, Deadline, Endpoint, Env, OsdError};
use crate::ids::LongId;
use crate::wire::rpc::abm::{OsdEndpoint, OsdInfo};

/// Which of the ports in OSDs' records are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OsdTransport {
    /// TCP where the record has such a port, QUIC where it has only that. Bulk over QUIC costs about ten times the CPU time.
    #[default]
    Auto,
    /// TCP and nothing else.
    Tcp,
    /// QUIC and nothing else.
    Quic,
}

impl OsdTransport {
    /// Where an OSD is tried, in this order. None is left when its record has no port of the wanted kind.
    pub fn endpoints(self, of: &OsdEndpoint) -> Vec<Endpoint> {
        let over_tcp = match self {
            Self::Auto => of.ports.tcp().is_some(),
            Self::Tcp => true,
            Self::Quic => false,
        };
        if over_tcp { of.tcp().map(Endpoint::Tcp).collect() } else { of.quic().map(Endpoint::Quic).collect() }
    }
}

/// How a process reaches OSDs. All clients that one makes share the connections of its connector: one per OSD, however many
/// clients there are.
#[derive(Clone)]
pub struct Reach {
    env: Env,
    connector: Option<Arc<dyn Connector>>,
    transport: OsdTransport,
    idle: Option<Arc<IdleLimit>>,
}

impl Reach {
    /// Over `env.net`, and over `connector` where that is the way. Without one, what is reached over QUIC only is not reached:
    /// calls fail with [`OsdError::Connection`].
    pub fn new(env: Env, connector: Option<Arc<dyn Connector>>, transport: OsdTransport) -> Self {
        Self { env, connector, transport, idle: None }
    }

    /// The same with a bound on the TCP connections that all clients that this one makes keep open while nothing uses them.
    #[must_use]
    pub fn with_idle(self, limit: Arc<IdleLimit>) -> Self {
        Self { idle: Some(limit), ..self }
    }

    /// Over `env.net`, for who has no certificate.
    pub fn without_certificate(env: Env) -> Self {
        Self::new(env, None, OsdTransport::Auto)
    }

    /// A client of the OSD that `info` describes. Connects when first used.
    pub fn client(&self, info: &OsdInfo, config: AsdClientConfig) -> Arc<AsdClient> {
        let endpoints = self.transport.endpoints(&info.endpoint);
        self.client_at(endpoints, info.long_id.clone(), config)
    }

    /// A client of an OSD at these endpoints, whatever the operator wants to be used.
    pub fn client_at(
        &self,
        endpoints: Vec<Endpoint>,
        expected: LongId,
        config: AsdClientConfig,
    ) -> Arc<AsdClient> {
        let (env, connector) = (self.env.clone(), self.connector.clone());
        AsdClient::sharing(env, connector, endpoints, expected, config, self.idle.clone())
    }

    /// Asks who answers at `endpoint`.
    pub async fn probe(&self, endpoint: Endpoint, deadline: Deadline) -> Result<LongId, OsdError> {
        let broken = |error: &dyn Display| OsdError::Connection(format!("{endpoint}: {error}"));
        let config = AsdClientConfig::default();
        let found = match endpoint {
            Endpoint::Tcp(address) => Connection::open(&self.env, address, None, &config, deadline).await?.1,
            Endpoint::Quic(address) => {
                let connector = self.connector.as_ref().ok_or_else(|| broken(&NO_CERTIFICATE))?;
                let clock = self.env.clock.as_ref();
                let connect_by = deadline.capped(clock, config.connect_timeout);
                let stream = connector.open(address, connect_by).await.map_err(|error| broken(&error))?;
                Connection::introduced(clock, stream, &endpoint, None, &config, deadline).await?.1
            }
        };
        LongId::new(found).map_err(|error| broken(&error))
    }
}

/// Why an endpoint of QUIC is of no use.
pub(super) const NO_CERTIFICATE: &str = "no certificate to speak QUIC with";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::rpc::abm::OsdPorts;

    #[test]
    fn bulk_goes_over_tcp_unless_there_is_no_such_port_or_the_operator_says_so() {
        let ips = vec!["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        let shown = |transport: OsdTransport, ports| {
            let endpoints = transport.endpoints(&OsdEndpoint { ips: ips.clone(), ports });
            endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let both = OsdPorts::Both { tcp: 1, quic: 2 };
        let (tcp, quic) = ("tcp://10.0.0.1:1 tcp://[::1]:1", "quic://10.0.0.1:2 quic://[::1]:2");
        assert_eq!(shown(OsdTransport::Auto, both), tcp);
        assert_eq!(shown(OsdTransport::Auto, OsdPorts::Tcp(1)), tcp);
        assert_eq!(shown(OsdTransport::Auto, OsdPorts::Quic(2)), quic);
        assert_eq!(shown(OsdTransport::Tcp, both), tcp);
        assert_eq!(shown(OsdTransport::Tcp, OsdPorts::Quic(2)), "");
        assert_eq!(shown(OsdTransport::Quic, both), quic);
        assert_eq!(shown(OsdTransport::Quic, OsdPorts::Tcp(1)), "");
    }

    #[test]
    fn ports_are_encoded_as_one_number_that_of_tcp_alone_as_ever() {
        let encoded = |ports: OsdPorts| postcard::to_stdvec(&ports).unwrap();
        assert_eq!(encoded(OsdPorts::Tcp(8000)), postcard::to_stdvec(&8000_u16).unwrap());
        assert_eq!(hex::encode(encoded(OsdPorts::Tcp(8000))), "c03e");
        assert_eq!(hex::encode(encoded(OsdPorts::Quic(8500))), "8080d08902");
        assert_eq!(hex::encode(encoded(OsdPorts::Both { tcp: 8000, quic: 8500 })), "c0bed08902");
        for ports in [
            OsdPorts::Tcp(1),
            OsdPorts::Tcp(u16::MAX),
            OsdPorts::Quic(1),
            OsdPorts::Quic(u16::MAX),
            OsdPorts::Both { tcp: 1, quic: u16::MAX },
            OsdPorts::Both { tcp: u16::MAX, quic: 1 },
        ] {
            assert_eq!(postcard::from_bytes::<OsdPorts>(&encoded(ports)).unwrap(), ports);
        }
    }

    #[test]
    fn an_endpoint_is_shown_with_all_its_ports() {
        let shown = |ports| OsdEndpoint { ips: vec!["10.0.0.1".parse().unwrap()], ports }.to_string();
        assert_eq!(shown(OsdPorts::Tcp(1)), "10.0.0.1:1");
        assert_eq!(shown(OsdPorts::Quic(2)), "10.0.0.1:quic:2");
        assert_eq!(shown(OsdPorts::Both { tcp: 1, quic: 2 }), "10.0.0.1:1+quic:2");
    }
}
