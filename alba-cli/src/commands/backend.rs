//! The backend: its id, its metadata groups, this program's version; and typed questions to the ABM for all commands.

use std::collections::BTreeMap;

use alba_client::Client;
use alba_core::env::{Deadline, MetaError};
use alba_core::ids::{LongId, MessageId, NamespaceName, text_or_hex};
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmError, AbmOutcome, AbmQuery, Destination, GroupRecord, NamespaceRecord,
    OsdFilter, OsdHealth, OsdRecord, PresetRecord,
};
use alba_core::wire::rpc::nsm::{NamespaceStatistics, NsmAnswer, NsmQuery};
use clap::Args;
use serde_json::json;

use crate::answer::Answer;
use crate::error::CliError;
use crate::json;
use crate::ranges::{Pager, collect};
use crate::session::Session;
use crate::table::table;

/// Print the id of the backend
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba get-alba-id --config client.toml")]
pub(crate) struct GetAlbaId {}

impl GetAlbaId {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let id = session.client().await?.alba_id(session.deadline()).await?;
        Answer::new(json!({ "id": id.as_str() }), id.as_str())
    }
}

/// List the metadata groups that hold namespaces
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-nsm-hosts --to-json")]
pub(crate) struct ListNsmHosts {}

impl ListNsmHosts {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let groups = Backend::new(&client, session.deadline()).groups().await?;
        let rows = groups.iter().map(|group| {
            let state = if group.lost { "lost" } else { "in use" };
            vec![
                group.id.to_string(),
                group.servers.join(" "),
                group.namespaces.to_string(),
                state.to_owned(),
            ]
        });
        let text = table(&["GROUP", "SERVERS", ">NAMESPACES", "STATE"], rows.collect());
        Answer::new(groups.iter().map(json::nsm_host).collect::<Vec<_>>(), text)
    }
}

/// Print this program's version
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba version")]
pub(crate) struct Version {}

impl Version {
    // Async as all commands are.
    #[allow(clippy::unused_async)]
    pub(crate) async fn run(self, _: &Session) -> Result<Answer, CliError> {
        let version = env!("CARGO_PKG_VERSION");
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let mut next = || parts.next().unwrap_or(0);
        let (major, minor, patch) = (next(), next(), next());
        let result = json!({ "major": major, "minor": minor, "patch": patch, "version": version });
        Answer::new(result, format!("alba {version}"))
    }
}

/// Typed questions to the metadata groups, all under one deadline.
pub(crate) struct Backend<'c> {
    client: &'c Client,
    deadline: Deadline,
}

/// The model answered something else than was asked.
pub(crate) fn mismatch(what: &str) -> CliError {
    MetaError::Protocol(format!("the answer to {what} is of another kind; versions that do not fit?")).into()
}

impl<'c> Backend<'c> {
    /// Of this client.
    pub(crate) fn new(client: &'c Client, deadline: Deadline) -> Self {
        Self { client, deadline }
    }

    /// Reads from the ABM.
    pub(crate) async fn ask(&self, query: AbmQuery) -> Result<AbmAnswer, CliError> {
        Ok(self.client.directory().query(query, self.deadline).await?)
    }

    /// Executes a command of the ABM.
    pub(crate) async fn command(&self, command: AbmCommand) -> Result<AbmOutcome, CliError> {
        Ok(self.client.directory().command(command, self.deadline).await?)
    }

    /// All metadata groups that hold namespaces.
    pub(crate) async fn groups(&self) -> Result<Vec<GroupRecord>, CliError> {
        match self.ask(AbmQuery::Groups).await? {
            AbmAnswer::Groups(groups) => Ok(groups),
            _ => Err(mismatch("Groups")),
        }
    }

    /// Destinations with undelivered messages.
    pub(crate) async fn queues(&self) -> Result<Vec<(Destination, u64)>, CliError> {
        match self.ask(AbmQuery::Queues).await? {
            AbmAnswer::Queues(queues) => Ok(queues),
            _ => Err(mismatch("Queues")),
        }
    }

    /// The oldest undelivered message for a destination.
    pub(crate) async fn oldest_message(
        &self,
        destination: &Destination,
    ) -> Result<Option<MessageId>, CliError> {
        match self.ask(AbmQuery::Messages { destination: destination.clone(), max: 1 }).await? {
            AbmAnswer::Messages(messages) => Ok(messages.first().map(|(id, _)| *id)),
            _ => Err(mismatch("Messages")),
        }
    }

    /// OSDs ordered by long id.
    pub(crate) async fn osds(&self, filter: OsdFilter, pager: Pager) -> Result<Vec<OsdRecord>, CliError> {
        let key = |osd: &OsdRecord| osd.info.long_id.as_str().as_bytes().to_vec();
        collect(pager, key, async |range| match self.ask(AbmQuery::Osds { filter, range }).await? {
            AbmAnswer::Osds(page) => Ok(page),
            _ => Err(mismatch("Osds")),
        })
        .await
    }

    /// What clients saw of all OSDs.
    pub(crate) async fn health(&self) -> Result<BTreeMap<LongId, OsdHealth>, CliError> {
        let key = |(id, _): &(LongId, OsdHealth)| id.as_str().as_bytes().to_vec();
        let found =
            collect(Pager::all(), key, async |range| match self.ask(AbmQuery::OsdHealth(range)).await? {
                AbmAnswer::OsdHealth(page) => Ok(page),
                _ => Err(mismatch("OsdHealth")),
            });
        Ok(found.await?.into_iter().collect())
    }

    /// One OSD; an unknown one is an error.
    pub(crate) async fn osd(&self, long_id: &LongId) -> Result<OsdRecord, CliError> {
        match self.ask(AbmQuery::Osd(long_id.clone())).await? {
            AbmAnswer::Osd(Some(record)) => Ok(record),
            AbmAnswer::Osd(None) => Err(AbmError::OsdUnknown(long_id.clone()).into()),
            _ => Err(mismatch("Osd")),
        }
    }

    /// Presets ordered by name.
    pub(crate) async fn presets(&self, pager: Pager) -> Result<Vec<PresetRecord>, CliError> {
        let key = |preset: &PresetRecord| preset.name.as_str().as_bytes().to_vec();
        collect(pager, key, async |range| match self.ask(AbmQuery::Presets(range)).await? {
            AbmAnswer::Presets(page) => Ok(page),
            _ => Err(mismatch("Presets")),
        })
        .await
    }

    /// Namespaces ordered by name, whatever their state.
    pub(crate) async fn namespaces(&self, pager: Pager) -> Result<Vec<NamespaceRecord>, CliError> {
        let key = |namespace: &NamespaceRecord| namespace.name.as_bytes().to_vec();
        collect(pager, key, async |range| match self.ask(AbmQuery::Namespaces(range)).await? {
            AbmAnswer::Namespaces(page) => Ok(page),
            _ => Err(mismatch("Namespaces")),
        })
        .await
    }

    /// One namespace, whatever its state; an unknown one is an error.
    pub(crate) async fn namespace(&self, name: &NamespaceName) -> Result<NamespaceRecord, CliError> {
        match self.ask(AbmQuery::Namespace(name.clone())).await? {
            AbmAnswer::Namespace(Some(record)) => Ok(record),
            AbmAnswer::Namespace(None) => {
                Err(alba_client::ClientError::NamespaceUnknown(name.clone()).into())
            }
            _ => Err(mismatch("Namespace")),
        }
    }

    /// Asks the group that holds a namespace.
    pub(crate) async fn nsm(
        &self,
        namespace: &NamespaceRecord,
        query: NsmQuery,
    ) -> Result<NsmAnswer, CliError> {
        Ok(self.client.namespace_store().query(&namespace.group, query, self.deadline).await?)
    }

    /// Counters of a namespace.
    pub(crate) async fn statistics(
        &self,
        namespace: &NamespaceRecord,
    ) -> Result<NamespaceStatistics, CliError> {
        match self.nsm(namespace, NsmQuery::Statistics(namespace.id)).await? {
            NsmAnswer::Statistics(statistics) => Ok(statistics),
            _ => Err(mismatch("Statistics")),
        }
    }
}

/// A namespace's name for a text.
pub(crate) fn shown(name: &NamespaceName) -> String {
    text_or_hex(name.as_bytes())
}
