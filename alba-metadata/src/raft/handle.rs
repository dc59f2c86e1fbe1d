//! Answers to the other replicas' messages.

use std::sync::Arc;
use std::time::Duration;

use openraft::raft::{SnapshotResponse, VoteResponse};
use openraft::{EntryPayload, Snapshot};
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};

use super::context::Context;
use super::elect::would_vote;
use super::log::LogStore;
use super::members::{self, Changing};
use super::message::{Answer, Envelope, Greeting, Message, encode};
use super::network::in_time;
use super::snapshot::{Incoming, Offer};
use super::types::NodeId;
use crate::model::Model;

/// Longest an answer may take inside, but for the installation of a snapshot.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest the installation of a snapshot is waited for.
const INSTALL: Duration = Duration::from_secs(3600);

pub(super) struct Receiver<M: Model> {
    pub(super) context: Context<M>,
    pub(super) incoming: Arc<Mutex<Incoming>>,
    pub(super) changing: Changing,
    pub(super) log: LogStore,
}

/// An answer of one that does not run.
pub(super) fn refusal(reason: impl Into<String>) -> Vec<u8> {
    // Of plain text, which can always be written.
    encode(&Answer::Failed(reason.into())).unwrap_or_default()
}

impl<M: Model> Receiver<M> {
    /// Answers a message for this replica.
    pub(super) async fn receive(&self, envelope: Envelope) -> Answer {
        self.notice(&envelope);
        self.answer(envelope.from, envelope.message).await
    }

    /// A replica that is behind may not know the newest members, and must vote for and follow them all the same (else a
    /// group can get stuck); that a message names this replica proves that its sender knows the membership. Strangers
    /// are logged.
    fn notice(&self, envelope: &Envelope) {
        let membership = self.context.membership();
        let known = membership.membership().get_node(&envelope.from).is_some();
        let empty = membership.membership().nodes().next().is_none();
        if !known && !empty && envelope.to != 0 {
            tracing::debug!(group = %self.context.config.group, from = envelope.from, "a message of a replica that is no member here");
        }
    }

    fn is_member(&self, id: NodeId) -> bool {
        self.context.membership().membership().get_node(&id).is_some()
    }

    async fn answer(&self, from: NodeId, message: Message) -> Answer {
        let context = &self.context;
        let late = || Answer::Failed("busy".to_owned());
        match message {
            Message::Hello => {
                let Some(Ok(initialized)) =
                    in_time(&context.env, PATIENCE, context.raft.is_initialized()).await
                else {
                    return late();
                };
                Answer::Hello(Greeting {
                    id: context.id,
                    initialized,
                    leader: context.leader().filter(|_| !context.lost_majority()),
                    payload_format: context.config.limits.newest_format,
                    member: self.is_member(from),
                })
            }
            Message::PreVote { last_log_id } => {
                let granted = would_vote(context, last_log_id).await;
                Answer::PreVote { granted, member: self.is_member(from) }
            }
            Message::Vote(request) => {
                // The library lets a leader's own vote go once its first lease is over; one that a majority follows keeps it.
                if context.leads() && !context.lost_majority() && !context.is_yielding() {
                    let vote = context.metrics().vote;
                    return Answer::Vote(VoteResponse {
                        vote,
                        vote_granted: false,
                        last_log_id: context.state.last_log(),
                    });
                }
                match in_time(&context.env, PATIENCE, context.raft.vote(request)).await {
                    Some(Ok(response)) => Answer::Vote(response),
                    Some(Err(error)) => Answer::Failed(error.to_string()),
                    None => late(),
                }
            }
            Message::Append(request) => {
                let bytes = request.entries.iter().map(|entry| match &entry.payload {
                    EntryPayload::Normal(payload) => payload.0.len(),
                    _ => 1024,
                });
                let bytes = u64::try_from(bytes.sum::<usize>()).unwrap_or(u64::MAX);
                // An append that finds no space would stop the library; a leader that is refused tries again.
                if bytes > 0 && !self.log.room_for(bytes) {
                    return Answer::Failed("no disk space for the log".to_owned());
                }
                match in_time(&context.env, PATIENCE, context.raft.append_entries(request)).await {
                    Some(Ok(response)) => Answer::Append(response),
                    Some(Err(error)) => Answer::Failed(error.to_string()),
                    None => late(),
                }
            }
            Message::SnapshotBegin { vote, offer } => self.begin(vote, *offer).await,
            Message::SnapshotChunk { snapshot_id, offset, bytes } => {
                let Some(mut incoming) = self.incoming().await else { return late() };
                match incoming.chunk(&snapshot_id, offset, bytes).await {
                    Ok(have) => Answer::Snapshot { have },
                    Err(error) => Answer::Failed(error.to_string()),
                }
            }
            Message::SnapshotFinish { vote, snapshot_id } => self.finish(vote, snapshot_id).await,
            Message::Join { address } => self.join(address),
            // Answered before it gets here.
            Message::Propose { .. } => late(),
        }
    }

    async fn incoming(&self) -> Option<OwnedMutexGuard<Incoming>> {
        in_time(&self.context.env, PATIENCE, self.incoming.clone().lock_owned()).await
    }

    async fn begin(&self, vote: openraft::Vote<NodeId>, offer: Offer) -> Answer {
        let mine = self.context.metrics().vote;
        // Votes are ordered only in part: what is neither newer nor equal is refused.
        let current = vote >= mine;
        if !current {
            return Answer::Installed(SnapshotResponse { vote: mine });
        }
        let Some(mut incoming) = self.incoming().await else {
            return Answer::Failed("a snapshot is being installed".to_owned());
        };
        match incoming.begin(offer).await {
            Ok(have) => Answer::Snapshot { have: Some(have) },
            Err(error) => Answer::Failed(error.to_string()),
        }
    }

    /// Installs in a task of its own: the sender may lose patience, the installation goes on, and its repeated request
    /// waits for the end of this one.
    async fn finish(&self, vote: openraft::Vote<NodeId>, snapshot_id: String) -> Answer {
        let (done, result) = oneshot::channel();
        let incoming = in_time(&self.context.env, INSTALL, self.incoming.clone().lock_owned()).await;
        let Some(mut incoming) = incoming else { return Answer::Failed("busy".to_owned()) };
        let context = self.context.clone();
        let work = async move {
            let answer = match incoming.finish(&snapshot_id).await {
                Ok(Some((meta, file))) => {
                    let snapshot = Snapshot { meta, snapshot: Box::new(file) };
                    match context.raft.install_full_snapshot(vote, snapshot).await {
                        Ok(response) => Answer::Installed(response),
                        Err(error) => Answer::Failed(error.to_string()),
                    }
                }
                Ok(None) => Answer::Snapshot { have: None },
                Err(error) => Answer::Failed(error.to_string()),
            };
            drop(incoming);
            // The sender may have gone.
            drop(done.send(answer));
        };
        drop(self.context.env.spawn.spawn("raft-install", Box::pin(work)));
        match in_time(&self.context.env, INSTALL, result).await {
            Some(Ok(answer)) => answer,
            _ => Answer::Failed("the installation was cut off".to_owned()),
        }
    }

    fn join(&self, address: String) -> Answer {
        let context = &self.context;
        if !context.leads() {
            return Answer::NotLeader { leader: context.leader() };
        }
        if members::at_address(context, &address, 0).is_empty() {
            tracing::info!(group = %context.config.group, address, "a replica asks to join and was not invited");
            return Answer::NotInvited;
        }
        let (context, changing) = (context.clone(), self.changing.clone());
        let work = {
            let context = context.clone();
            async move {
                match members::admit(&context, &changing, &address).await {
                    Ok(_) | Err(members::MembershipError::Busy) => {}
                    Err(error) => {
                        tracing::warn!(group = %context.config.group, address, %error, "a replica does not join")
                    }
                }
            }
        };
        // Bounded by its own deadlines, and one at a time.
        drop(context.env.spawn.spawn("raft-admit", Box::pin(work)));
        Answer::Accepted
    }
}
