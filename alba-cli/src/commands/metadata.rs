//! The metadata servers: which there are, one more, one less.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use alba_client::metadata::MetadataClient;
use alba_core::env::Directory;
use alba_core::ids::GroupId;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery};
use alba_core::wire::rpc::admin::{AdminError, AdminReply, AdminRequest, GroupStatus};
use clap::Args;
use serde_json::json;

use crate::answer::Answer;
use crate::error::CliError;
use crate::session::Session;
use crate::table::table;

/// A new replica gets the whole state before it votes.
const CHANGE: Duration = Duration::from_secs(600);

/// Between two attempts of a change that could not begin.
const PAUSE: Duration = Duration::from_millis(250);

/// The metadata groups and how to speak to them.
struct Groups {
    metadata: Arc<MetadataClient>,
    ids: Vec<GroupId>,
}

impl Groups {
    async fn find(session: &Session) -> Result<Self, CliError> {
        let metadata = MetadataClient::of(&session.env, &session.config()?.client)?;
        let mut ids = vec![GroupId::new("abm")?];
        match metadata.query(AbmQuery::Groups, session.deadline()).await? {
            AbmAnswer::Groups(groups) => ids.extend(groups.into_iter().filter(|g| !g.lost).map(|g| g.id)),
            _ => {
                return Err(CliError::failure(
                    "the answer to Groups is of another kind; versions that do not fit?",
                ));
            }
        }
        Ok(Self { metadata, ids })
    }

    /// How a group is; none of one that is not replicated.
    async fn status(&self, session: &Session, group: &GroupId) -> Result<Option<GroupStatus>, CliError> {
        let asked = self.metadata.admin(group, AdminRequest::Status, session.deadline()).await?;
        let answer = match asked {
            Err(AdminError::NotReplicated) => return Ok(None),
            answer => answer.map_err(|error| CliError::failure(format!("group {group}: {error}")))?,
        };
        match answer {
            AdminReply::Status(status) if status.replica == 0 => Ok(None),
            AdminReply::Status(status) => {
                // Only the leader knows how far the others are; when it does not answer, this is what there is.
                let leader = status.members.iter().find(|member| Some(member.replica) == status.leader);
                let leader = leader.and_then(|member| member.address.parse().ok());
                Ok(Some(match leader {
                    Some(leader) if status.leader != Some(status.replica) => {
                        let asked = self.metadata.group_status_at(leader, group, session.deadline()).await;
                        asked.unwrap_or(status)
                    }
                    _ => status,
                }))
            }
            other => Err(CliError::failure(format!("group {group}: unexpected answer {other:?}"))),
        }
    }

    async fn change(
        &self,
        session: &Session,
        group: &GroupId,
        request: AdminRequest,
    ) -> Result<AdminReply, CliError> {
        let (deadline, patience) = (session.deadline_or(CHANGE), session.deadline());
        let clock = session.env.clock.as_ref();
        loop {
            match self.metadata.admin(group, request.clone(), deadline).await? {
                Ok(reply) => return Ok(reply),
                // A server that was just started answers in a moment; another change ends.
                Err(AdminError::Unreachable { .. } | AdminError::Busy) if patience.left(clock) > PAUSE => {
                    clock.sleep_until(clock.now().plus(PAUSE)).await;
                }
                Err(error) => return Err(CliError::failure(format!("group {group}: {error}"))),
            }
        }
    }
}

/// List the replicas of the metadata groups
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-metadata-nodes")]
pub(crate) struct List {}

impl List {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let groups = Groups::find(session).await?;
        let (mut rows, mut found) = (Vec::new(), Vec::new());
        for group in &groups.ids {
            let Some(status) = groups.status(session, group).await? else { continue };
            for member in &status.members {
                let leads = status.leader == Some(member.replica);
                rows.push(vec![
                    group.to_string(),
                    member.address.clone(),
                    format!("{:016x}", member.replica),
                    if leads {
                        "leader"
                    } else if member.voter {
                        "voter"
                    } else {
                        "learner"
                    }
                    .to_owned(),
                    member.lag.map_or_else(|| "?".to_owned(), |lag| lag.to_string()),
                ]);
                found.push(json!({
                    "group": group.as_str(),
                    "address": member.address,
                    "replica": format!("{:016x}", member.replica),
                    "leader": leads,
                    "voter": member.voter,
                    "lag": member.lag,
                }));
            }
        }
        let text = if rows.is_empty() {
            "The metadata groups are not replicated.".to_owned()
        } else {
            table(&["GROUP", "ADDRESS", "REPLICA", "ROLE", "LAG"], rows)
        };
        Answer::new(found, text)
    }
}

/// Take a metadata server into every group; it must run already
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba add-metadata-node 10.0.0.4:4000\n\n\
                        The server must run with the groups in its configuration and `nodes` naming some of the others.")]
pub(crate) struct Add {
    /// Where it is reached
    address: SocketAddr,
}

impl Add {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let groups = Groups::find(session).await?;
        for group in &groups.ids {
            let request = AdminRequest::AddReplica { address: self.address.to_string() };
            groups.change(session, group, request).await?;
        }
        Ok(Answer::done(format!("{} votes in {} groups", self.address, groups.ids.len())))
    }
}

/// Take a metadata server out of every group, alive or not
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba remove-metadata-node 10.0.0.4:4000\n\nThen stop the server.")]
pub(crate) struct Remove {
    /// Where it is, or was, reached
    address: SocketAddr,
}

impl Remove {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let groups = Groups::find(session).await?;
        let mut removed = 0;
        for group in &groups.ids {
            let Some(status) = groups.status(session, group).await? else { continue };
            let here = status.members.iter().filter(|member| member.address == self.address.to_string());
            for member in here {
                groups
                    .change(session, group, AdminRequest::RemoveReplica { replica: member.replica })
                    .await?;
                removed += 1;
            }
        }
        if removed == 0 {
            return Err(CliError::failure(format!(
                "no group has a replica at {}; `alba list-metadata-nodes` shows where they are",
                self.address
            )));
        }
        Ok(Answer::done(format!("removed {} from {removed} groups", self.address)))
    }
}
