//! The registry of OSDs.

use std::net::{IpAddr, SocketAddr};

use alba_client::metadata::MetadataClient;
use alba_core::env::osd::DiskUsage;
use alba_core::env::{Deadline, Env, Osd, OsdError};
use alba_core::ids::{LongId, Place};
use alba_core::net::asd::{AsdClient, AsdClientConfig, probe};
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{AbmCommand, OsdEndpoint, OsdFilter, OsdHealth, OsdInfo, OsdRecord};
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
    after_help = "Example:\n  alba add-osd --host 127.0.0.1 --port 8000 --node-id node-0"
)]
pub(crate) struct Add {
    /// Its address
    #[arg(short = 'h', long)]
    host: IpAddr,
    /// Its port
    #[arg(short = 'p', long)]
    port: u16,
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
        let address = SocketAddr::new(self.host, self.port);
        let (long_id, usage) = ask_who(&session.env, address, deadline).await?;
        let client = session.client().await?;
        let info = OsdInfo {
            long_id: long_id.clone(),
            place: self.node_id,
            endpoint: OsdEndpoint { ips: vec![self.host], port: self.port },
            capacity: usage.capacity,
            used: usage.used,
        };
        Backend::new(&client, deadline).command(AbmCommand::AddOsd(info)).await?;
        Answer::new(json!({ "long_id": long_id.as_str() }), format!("registered OSD {long_id}"))
    }
}

/// Asks the OSD at `address` who it is and how large.
pub(crate) async fn ask_who(
    env: &Env,
    address: SocketAddr,
    deadline: Deadline,
) -> Result<(LongId, DiskUsage), CliError> {
    let named = |error: OsdError| CliError::from(error).while_doing(&format!("OSD at {address}"));
    let long_id = probe(env, address, deadline).await.map_err(named)?;
    let osd = AsdClient::new(env.clone(), vec![address], long_id.clone(), AsdClientConfig::default());
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
        let ips: Vec<String> = osd.info.endpoint.ips.iter().map(ToString::to_string).collect();
        let address = format!("{}:{}", ips.join(","), osd.info.endpoint.port);
        vec![
            id,
            osd.info.place.to_string(),
            address,
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

/// What to change.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct UpdateWhat {
    /// Its addresses from now on; give it once for each
    #[arg(long, value_name = "IP")]
    ip: Vec<IpAddr>,
    /// Its port from now on
    #[arg(long)]
    port: Option<u16>,
    /// Where it stands: NODE, RACK/NODE or ZONE/RACK/NODE
    #[arg(long, value_name = "PLACE")]
    node_id: Option<Place>,
}

/// Change the address or the place of a registered OSD
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba update-osd --long-id 3f1c... --ip 10.0.0.7 --port 8000\n\n\
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
        info.endpoint.port = self.what.port.unwrap_or(info.endpoint.port);
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
