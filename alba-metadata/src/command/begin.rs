//! `init` and `join`: is a new server's configuration right, before it is started for the first time?
//!
//! They make nothing but directories. A group forms by itself, of the servers that its `nodes` name, and a server joins one by
//! itself: there is nothing to be done by hand, and so nothing to be done in the wrong order. What can go wrong is the
//! configuration; these commands say so before a server does something with it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use alba_core::env::{Env, files};
use alba_core::ids::GroupId;
use alba_core::wire::rpc::admin::{AdminReply, AdminRequest, GroupStatus};
use alba_core::wire::rpc::{Reply, Request};
use anyhow::{Context as _, bail};
use clap::Args;

use super::online::{Servers, Source};
use super::{configuration, say};
use crate::daemon::{MetadataConfig, lock};

/// Check the configuration of the first server, or of one of the first servers, and make its data directory
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba-metadata init --config /etc/alba/metadata.toml\n\nThen start the server. Refused when the data \
    directory holds anything of a group, or when another server of `nodes` knows one of the groups already."
)]
pub(super) struct Init {
    /// Configuration of the server
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Check the configuration of a server that is added to a cluster, or replaces one, and make its data directory
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba-metadata join --config /etc/alba/metadata.toml\n\nThen start the server. Refused when the data \
    directory holds anything of a group, or when no server of `nodes` knows the groups."
)]
pub(super) struct Join {
    /// Configuration of the server
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Init {
    pub(super) async fn run(self, env: &Env) -> anyhow::Result<bool> {
        let config = prepared(&self.config)?;
        for (group, found) in ask_all(env, &self.config, &config).await? {
            if let Some((server, _)) = found.into_iter().find(|(_, status)| !status.members.is_empty()) {
                bail!("{server} knows group {group} already: use `join`");
            }
        }
        make(&config)?;
        say(&format!("{}: ready. Start the server.", config.data_dir.display()));
        match config.nodes.len() {
            0 => say("It will keep the only copy of its groups; backups are its only safety."),
            count => say(&format!("The groups form when all {count} servers of `nodes` run.")),
        }
        Ok(true)
    }
}

impl Join {
    pub(super) async fn run(self, env: &Env) -> anyhow::Result<bool> {
        let config = prepared(&self.config)?;
        if config.nodes.is_empty() {
            bail!("nodes is empty: name the servers to join");
        }
        let own = config.advertise.unwrap_or(config.listen).to_string();
        let mut is_member = false;
        for (group, found) in ask_all(env, &self.config, &config).await? {
            let mut members = found.iter().flat_map(|(_, status)| &status.members).peekable();
            if members.peek().is_none() {
                bail!(
                    "no server of `nodes` knows group {group}; start them, or use `init` for a new cluster"
                );
            }
            is_member |= members.any(|member| member.address == own);
        }
        make(&config)?;
        say(&format!("{}: ready. Start the server.", config.data_dir.display()));
        if is_member {
            say(&format!("It takes the place of the member at {own} by itself."));
        } else {
            say(&format!("When it runs, take it in: alba add-metadata-node {own}"));
        }
        Ok(true)
    }
}

/// The configuration, when there is nothing of a group in its data directory.
fn prepared(path: &Path) -> anyhow::Result<MetadataConfig> {
    let config = configuration(path)?;
    for group in &config.groups {
        let directory = config.data_dir.join(group.as_str());
        if directory.exists() && std::fs::read_dir(&directory)?.next().is_some() {
            bail!("{} is not empty: this server has group {group} already", directory.display());
        }
    }
    Ok(config)
}

/// Made, and free for a server.
fn make(config: &MetadataConfig) -> anyhow::Result<()> {
    files::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot create data_dir {}", config.data_dir.display()))?;
    lock(&config.data_dir).map(drop)
}

/// What the other servers say of the groups. Those that do not answer, or do not host one, say nothing; certificates that
/// cannot be used are an error.
async fn ask_all(
    env: &Env,
    path: &PathBuf,
    config: &MetadataConfig,
) -> anyhow::Result<BTreeMap<GroupId, Vec<(SocketAddr, GroupStatus)>>> {
    let source = Source::new(env, Some(path), &Servers::default())?;
    let own = config.advertise.unwrap_or(config.listen);
    let mut all = BTreeMap::new();
    for group in &config.groups {
        let mut found = Vec::new();
        for server in config.nodes.iter().filter(|server| **server != own) {
            let ask = Request::Admin(group.clone(), AdminRequest::Status);
            if let Ok(Reply::Admin(Ok(AdminReply::Status(status)))) = source.ask(*server, &ask).await {
                found.push((*server, status));
            }
        }
        all.insert(group.clone(), found);
    }
    Ok(all)
}
