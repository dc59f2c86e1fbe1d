//! What is asked of servers that run.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alba_core::env::Env;
use alba_core::ids::GroupId;
use alba_core::net::rpc::RpcConnection;
use alba_core::wire::rpc::admin::{AdminReply, AdminRequest, StreamKind};
use alba_core::wire::rpc::{Consistency, Refusal, Reply, Request};
use anyhow::{Context as _, bail};
use clap::Args;

use super::{configuration, of_file, say};
use crate::backup::file::{Draft, Verified};
use crate::daemon::secured;

/// For a connection or an answer.
const CALL: Duration = Duration::from_secs(10);

/// So often a piece is asked for again whose answer did not come.
const ATTEMPTS: usize = 4;

/// Which servers, and how they are reached.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Servers {
    /// A server that hosts the group; give it once for each. Without it those of the configuration
    #[arg(long, value_name = "IP:PORT")]
    server: Vec<SocketAddr>,
    /// Read whatever state the first server that answers has, also while the group has no leader
    #[arg(long)]
    any: bool,
}

impl Servers {
    /// Was one named?
    pub(super) fn is_named(&self) -> bool {
        !self.server.is_empty()
    }
}

/// Write one state of a group that runs to a file
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba-metadata backup --config /etc/alba/metadata.toml --group nsm-0 /backup/nsm-0.backup"
)]
pub(super) struct Backup {
    /// Configuration of a metadata server of this cluster: addresses and certificates
    #[arg(long, value_name = "FILE", required_unless_present = "server")]
    config: Option<PathBuf>,
    #[command(flatten)]
    servers: Servers,
    /// The group
    #[arg(long)]
    group: GroupId,
    /// The new file; only its owner can read it
    file: PathBuf,
}

impl Backup {
    pub(super) async fn run(self, env: &Env) -> anyhow::Result<bool> {
        let source = Source::new(env, self.config.as_ref(), &self.servers)?;
        let verified = source.backup(&self.group, &self.file).await?;
        let description = &verified.description;
        say(&format!(
            "{}: group {}, {} rows, applied index {}",
            self.file.display(),
            description.group,
            verified.rows,
            description.applied
        ));
        Ok(true)
    }
}

/// Writes one state of a group to a new file, as the leader among `servers` has it; `env.net` must be what they speak.
///
/// # Errors
/// Nobody gives it; the file exists or cannot be written.
pub async fn backup_to_file(
    env: &Env,
    servers: Vec<SocketAddr>,
    group: &GroupId,
    file: &Path,
) -> anyhow::Result<Verified> {
    let source = Source { env: env.clone(), servers, consistency: Consistency::Linearizable };
    source.backup(group, file).await
}

/// Servers to read a group from.
pub(super) struct Source {
    env: Env,
    servers: Vec<SocketAddr>,
    consistency: Consistency,
}

impl Source {
    pub(super) fn new(env: &Env, config: Option<&PathBuf>, servers: &Servers) -> anyhow::Result<Self> {
        let (mut env, mut addresses) = (env.clone(), servers.server.clone());
        if let Some(path) = config {
            let config = configuration(path)?;
            if let Some(net) = secured(&env, &config)? {
                env.net = net;
            }
            if addresses.is_empty() {
                addresses.push(config.advertise.unwrap_or(config.listen));
                let others = config.nodes.into_iter().filter(|node| !addresses.contains(node));
                let others: Vec<SocketAddr> = others.collect();
                addresses.extend(others);
            }
        }
        let consistency = if servers.any { Consistency::Any } else { Consistency::Linearizable };
        Ok(Self { env, servers: addresses, consistency })
    }

    /// Writes one state of a group to a new file.
    pub(super) async fn backup(&self, group: &GroupId, file: &Path) -> anyhow::Result<Verified> {
        let draft = Draft::create(file);
        let mut draft = draft.with_context(|| format!("cannot write {}", file.display()))?;
        self.read(group, StreamKind::Backup, &mut |bytes| draft.write(bytes)).await?;
        of_file(file, draft.finish())
    }

    /// One question to one server.
    pub(super) async fn ask(&self, server: SocketAddr, question: &Request) -> anyhow::Result<Reply> {
        let connection = self.connect(server).await?;
        Ok(connection.call(question, self.env.deadline_in(CALL)).await?.reply)
    }

    async fn connect(&self, to: SocketAddr) -> anyhow::Result<RpcConnection> {
        let connection = RpcConnection::open(&self.env, to, self.env.deadline_in(CALL)).await;
        connection.with_context(|| format!("cannot reach {to}"))
    }

    /// Hands a stream of the group to `each`, piece by piece.
    pub(super) async fn read(
        &self,
        group: &GroupId,
        what: StreamKind,
        each: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> anyhow::Result<()> {
        let (at, mut connection, stream) = self.open(group, what).await?;
        let mut number = 0;
        loop {
            let ask = Request::Admin(group.clone(), AdminRequest::Next { stream, number });
            let mut attempt = 1;
            let reply = loop {
                match connection.call(&ask, self.env.deadline_in(CALL)).await {
                    Ok(answer) => break answer.reply,
                    Err(error) if attempt == ATTEMPTS => return Err(error).context("the stream is lost"),
                    Err(_) => {}
                }
                attempt += 1;
                if let Ok(fresh) = self.connect(at).await {
                    connection = fresh;
                }
            };
            match reply {
                Reply::Admin(Ok(AdminReply::Piece { bytes, last })) => {
                    if let Err(error) = each(&bytes) {
                        let close = Request::Admin(group.clone(), AdminRequest::Close { stream });
                        // Else it ends by itself.
                        drop(connection.call(&close, self.env.deadline_in(CALL)).await);
                        return Err(error.into());
                    }
                    number += 1;
                    if last {
                        let close = Request::Admin(group.clone(), AdminRequest::Close { stream });
                        drop(connection.call(&close, self.env.deadline_in(CALL)).await);
                        return Ok(());
                    }
                }
                Reply::Admin(Ok(AdminReply::Wait)) => {}
                Reply::Admin(Err(error)) => return Err(error).with_context(|| format!("server {at}")),
                other => bail!("server {at}: {other:?}"),
            }
        }
    }

    /// Asks the servers in turn, and whomever they name as the leader.
    async fn open(
        &self,
        group: &GroupId,
        what: StreamKind,
    ) -> anyhow::Result<(SocketAddr, RpcConnection, u64)> {
        let open = AdminRequest::Open { what, consistency: self.consistency };
        let open = Request::Admin(group.clone(), open);
        let mut servers: Vec<SocketAddr> = self.servers.clone();
        let mut reasons = Vec::new();
        let mut next = 0;
        while let Some(at) = servers.get(next).copied() {
            next += 1;
            let asked = async {
                let connection = self.connect(at).await?;
                let reply = connection.call(&open, self.env.deadline_in(CALL)).await?.reply;
                Ok::<_, anyhow::Error>((connection, reply))
            };
            match asked.await {
                Ok((connection, Reply::Admin(Ok(AdminReply::Opened { stream })))) => {
                    return Ok((at, connection, stream));
                }
                Ok((_, Reply::Refused(Refusal::NotLeader { leader }))) => {
                    let leader = leader.and_then(|leader| leader.parse::<SocketAddr>().ok());
                    servers.extend(leader.filter(|leader| !servers.contains(leader)));
                    reasons.push(format!("{at} does not lead the group"));
                }
                Ok((_, Reply::Admin(Err(error)))) => reasons.push(format!("{at}: {error}")),
                Ok((_, other)) => reasons.push(format!("{at}: {other:?}")),
                Err(error) => reasons.push(format!("{error:#}")),
            }
        }
        bail!("no server gives group {group}: {}", reasons.join("; "))
    }

    /// The lines of a stream to standard output; how many.
    pub(super) async fn print(&self, group: &GroupId, what: StreamKind) -> anyhow::Result<usize> {
        let mut lines = 0;
        self.read(group, what, &mut |bytes: &[u8]| {
            lines += bytes.iter().filter(|byte| **byte == b'\n').count();
            std::io::stdout().lock().write_all(bytes)
        })
        .await?;
        Ok(lines)
    }
}
