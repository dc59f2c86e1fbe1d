//! The registry of OSDs.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use alba_client::metadata::MetadataClient;
use alba_core::env::osd::DiskUsage;
use alba_core::env::{Deadline, Endpoint, Osd, OsdError};
use alba_core::ids::{LongId, Place};
use alba_core::net::asd::{AsdClientConfig, Reach};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{
    AbmCommand, OsdEndpoint, OsdFilter, OsdHealth, OsdInfo, OsdPorts, OsdRecord,
};
use clap::Args;
use serde_json::json;

use super::backend::Backend;
use crate::answer::Answer;
use crate::error::CliError;
use crate::json;
use crate::ranges::RangeArgs;
use crate::session::Session;
use crate::table::table;

/// Register an OSD: ask the one at this address who it is
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Examples:\n  alba add-osd --host 127.0.0.1 --port 8000 --node-id node-0\n  \
                  alba add-osd --host 10.0.0.7 --quic-port 8500 --node-id node-7\n\n\
                  One that is registered with both ports is reached over TCP, unless a client's osd_transport says\n\
                  otherwise. QUIC needs tls_ca, tls_cert and tls_key in the configuration of everyone who reaches it."
)]
pub(crate) struct Add {
    /// Its address
    #[arg(short = 'h', long)]
    host: IpAddr,
    /// Its port of plain TCP
    #[arg(short = 'p', long, required_unless_present = "quic_port")]
    port: Option<u16>,
    /// Its port of QUIC (`asd.quic_listen`)
    #[arg(long)]
    quic_port: Option<u16>,
    /// Where it stands: NODE, RACK/NODE or ZONE/RACK/NODE
    #[arg(long, value_name = "PLACE")]
    node_id: Place,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl Add {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let deadline = session.deadline();
        let ports = OsdPorts::of(self.port, self.quic_port)
            .ok_or_else(|| CliError::usage("give --port, --quic-port or both"))?;
        let reach = alba_client::reach(&session.env, &session.config()?.client)?;
        let mut answers = Vec::new();
        // Each that is registered is tried: a mistake shows now and not when an upload needs it.
        if let Some(port) = ports.tcp() {
            let endpoint = Endpoint::Tcp(SocketAddr::new(self.host, port));
            answers.push(ask_who(&reach, endpoint, deadline).await?);
        }
        if let Some(port) = ports.quic() {
            let endpoint = Endpoint::Quic(SocketAddr::new(self.host, port));
            answers.push(ask_who(&reach, endpoint, deadline).await?);
        }
        let (long_id, usage) = match &answers[..] {
            [(one, _), (other, _)] if one != other => {
                return Err(CliError::usage(format!("at these ports there are two OSDs: {one} and {other}")));
            }
            [(long_id, usage), ..] => (long_id.clone(), *usage),
            [] => return Err(CliError::usage("give --port, --quic-port or both")),
        };
        let client = session.client().await?;
        let info = OsdInfo {
            long_id: long_id.clone(),
            place: self.node_id,
            endpoint: OsdEndpoint { ips: vec![self.host], ports },
            capacity: usage.capacity,
            used: usage.used,
        };
        Backend::new(&client, deadline).command(AbmCommand::AddOsd(info)).await?;
        Answer::new(json!({ "long_id": long_id.as_str() }), format!("registered OSD {long_id}"))
    }
}

/// Asks the OSD at `endpoint` who it is and how large.
pub(crate) async fn ask_who(
    reach: &Reach,
    endpoint: Endpoint,
    deadline: Deadline,
) -> Result<(LongId, DiskUsage), CliError> {
    let named = |error: OsdError| CliError::from(error).while_doing(&format!("OSD at {endpoint}"));
    let long_id = reach.probe(endpoint, deadline).await.map_err(named)?;
    let osd = reach.client_at(vec![endpoint], long_id.clone(), AsdClientConfig::default());
    let usage = osd.disk_usage(deadline).await.map_err(named)?;
    Ok((long_id, usage))
}

/// Take a registered OSD into the backend
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba claim-osd --long-id 3f1c...")]
pub(crate) struct Claim {
    /// Its long id, as list-available-osds shows it
    #[arg(long)]
    long_id: LongId,
}

impl Claim {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let metadata = MetadataClient::of(&session.env, &session.config()?.client)?;
        let id = metadata.claim_osd(&self.long_id, session.deadline()).await?;
        let result = json!({ "id": id, "long_id": self.long_id.as_str() });
        Answer::new(result, format!("claimed OSD {} as {id}", self.long_id))
    }
}

/// Which OSDs to list.
#[derive(Debug, Args)]
struct Listing {
    /// Only those on this node
    #[arg(long, value_name = "NODE")]
    node_id: Option<String>,
    #[command(flatten)]
    range: RangeArgs,
}

impl Listing {
    async fn run(self, filter: OsdFilter, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let alba_id = client.alba_id(session.deadline()).await?;
        let backend = Backend::new(&client, session.deadline());
        let mut found = backend.osds(filter, self.range.pager()).await?;
        if let Some(node) = &self.node_id {
            found.retain(|osd| osd.info.place.node().as_str() == node);
        }
        let health = backend.health().await?;
        let text = listing(&found);
        let none = OsdHealth::default();
        let shown =
            found.iter().map(|osd| json::osd(osd, &alba_id, health.get(&osd.info.long_id).unwrap_or(&none)));
        Answer::new(shown.collect::<Vec<_>>(), text)
    }
}

fn listing(found: &[OsdRecord]) -> String {
    let rows = found.iter().map(|osd| {
        let id = osd.osd_id.map_or_else(|| "-".to_owned(), |id| id.to_string());
        vec![
            id,
            osd.info.place.to_string(),
            osd.info.endpoint.to_string(),
            json::osd_state(osd.state).to_owned(),
            ByteCount::to_string(&osd.info.capacity),
            osd.info.long_id.to_string(),
        ]
    });
    table(&[">ID", "PLACE", "ADDRESS", "STATE", ">CAPACITY", "LONG ID"], rows.collect())
}

/// List the OSDs claimed by this backend
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-osds --node-id node-0")]
pub(crate) struct ListClaimed {
    #[command(flatten)]
    listing: Listing,
}

impl ListClaimed {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        self.listing.run(OsdFilter::Claimed, session).await
    }
}

/// List all registered OSDs
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-all-osds --to-json")]
pub(crate) struct ListAll {
    #[command(flatten)]
    listing: Listing,
}

impl ListAll {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        self.listing.run(OsdFilter::All, session).await
    }
}

/// List the registered OSDs that are not claimed
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-available-osds")]
pub(crate) struct ListAvailable {
    #[command(flatten)]
    listing: Listing,
}

impl ListAvailable {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        self.listing.run(OsdFilter::Available, session).await
    }
}

/// List the OSDs that are being emptied, purged ones too
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-decommissioning-osds --to-json")]
pub(crate) struct ListDecommissioning {
    #[command(flatten)]
    listing: Listing,
}

impl ListDecommissioning {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        self.listing.run(OsdFilter::Decommissioning, session).await
    }
}

/// List the OSDs that take no new data and are emptied while what they hold counts
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-draining-osds --to-json")]
pub(crate) struct ListDraining {
    #[command(flatten)]
    listing: Listing,
}

impl ListDraining {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        self.listing.run(OsdFilter::Draining, session).await
    }
}

/// List the OSDs that are being forgotten
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-purging-osds")]
pub(crate) struct ListPurging {
    #[command(flatten)]
    listing: Listing,
}

impl ListPurging {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        self.listing.run(OsdFilter::Purging, session).await
    }
}

/// What becomes of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PortChange(Option<u16>);

impl FromStr for PortChange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            number => match number.parse() {
                Ok(port) => Ok(Self(Some(port))),
                Err(_) => Err("a port is a number up to 65535, or none".to_owned()),
            },
        }
    }
}

/// What to change.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct UpdateWhat {
    /// Its addresses from now on; give it once for each
    #[arg(long, value_name = "IP")]
    ip: Vec<IpAddr>,
    /// Its port of plain TCP from now on, or `none`: nobody is to reach it so
    #[arg(long, value_name = "PORT")]
    port: Option<PortChange>,
    /// Its port of QUIC from now on, or `none`: nobody is to reach it so
    #[arg(long, value_name = "PORT")]
    quic_port: Option<PortChange>,
    /// Where it stands: NODE, RACK/NODE or ZONE/RACK/NODE
    #[arg(long, value_name = "PLACE")]
    node_id: Option<Place>,
}

/// Change the address or the place of a registered OSD
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  alba update-osd --long-id 3f1c... --ip 10.0.0.7 --port 8000\n  \
                        alba update-osd --long-id 3f1c... --quic-port 8500 --port none\n\n\
                        The place of an OSD that holds data of namespaces cannot change: decommission it first.")]
pub(crate) struct Update {
    /// Its long id
    #[arg(long)]
    long_id: LongId,
    #[command(flatten)]
    what: UpdateWhat,
}

impl Update {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let mut info = backend.osd(&self.long_id).await?.info;
        if !self.what.ip.is_empty() {
            info.endpoint.ips = self.what.ip;
        }
        let ports = info.endpoint.ports;
        let tcp = self.what.port.map_or(ports.tcp(), |change| change.0);
        let quic = self.what.quic_port.map_or(ports.quic(), |change| change.0);
        info.endpoint.ports = OsdPorts::of(tcp, quic)
            .ok_or_else(|| CliError::usage("an OSD without a port is not reached: leave it one"))?;
        info.place = self.what.node_id.unwrap_or(info.place);
        backend.command(AbmCommand::UpdateOsd(info)).await?;
        Ok(Answer::done(format!("updated OSD {}", self.long_id)))
    }
}

/// Empty an OSD, reading what is there; done once list-decommissioning-osds does not show it any more
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba decommission-osd --long-id 3f1c...\n\n\
                        The OSD takes no new data from now on. The maintenance agents move its data away.")]
pub(crate) struct Decommission {
    /// Its long id
    #[arg(long)]
    long_id: LongId,
}

impl Decommission {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let command = AbmCommand::DecommissionOsd { long_id: self.long_id.clone() };
        Backend::new(&client, session.deadline()).command(command).await?;
        Ok(Answer::done(format!("OSD {} takes no new data and will be emptied", self.long_id)))
    }
}

/// Forget an OSD that is gone for good; its data is taken as lost and never read
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba purge-osd --long-id 3f1c...\n\n\
                        One that holds data of namespaces is forgotten when they have let go of it: the\n\
                        maintenance agents see to that.")]
pub(crate) struct Purge {
    /// Its long id
    #[arg(long)]
    long_id: LongId,
}

impl Purge {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let command = AbmCommand::PurgeOsd { long_id: self.long_id.clone() };
        Backend::new(&client, session.deadline()).command(command).await?;
        Ok(Answer::done(format!("OSD {} is forgotten, or will be when no namespace names it", self.long_id)))
    }
}
