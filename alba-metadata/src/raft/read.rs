//! Linearizable reads: the leader makes sure that a majority still follows it (Raft's read index), once for all readers
//! that wait.

use std::sync::OnceLock;
use std::time::Duration;

use alba_core::env::Deadline;
use openraft::error::{CheckIsLeaderError, RaftError};
use tokio::sync::{mpsc, oneshot};

use super::context::Context;
use super::network::in_time;
use crate::model::Model;
use crate::replicator::{Index, ReplicationError};

/// Readers that wait for a round; more wait with their callers.
pub(super) const QUEUE: usize = 4096;

/// A round that found no majority is tried again so often: one slow disk is no lost majority.
const ROUNDS: u32 = 4;

/// Longest a round may take; each question in it has a deadline of one heartbeat.
const ROUND: Duration = Duration::from_secs(3);

/// Names a fault that tests have to notice; only with debug assertions.
const SWITCH: &str = "ALBA_TEST_STALE_READS";

/// A fault: consistent reads are answered from what there is, and no majority is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stale {
    /// By every replica.
    Replica,
    /// By whoever believes that it leads.
    Leader,
}

/// Which fault this process has; none, unless a test asks for one.
pub(super) fn answers_stale() -> Option<Stale> {
    if !cfg!(debug_assertions) {
        return None;
    }
    static FAULT: OnceLock<Option<Stale>> = OnceLock::new();
    *FAULT.get_or_init(|| match std::env::var(SWITCH).as_deref() {
        Ok("replica") => Some(Stale::Replica),
        Ok("leader") => Some(Stale::Leader),
        _ => None,
    })
}

pub(super) struct Reader {
    pub(super) deadline: Deadline,
    /// The index up to which the state must have been applied.
    pub(super) answer: oneshot::Sender<Result<Index, ReplicationError>>,
}

/// Serves readers for as long as the replica runs.
pub(super) async fn run<M: Model>(context: Context<M>, mut readers: mpsc::Receiver<Reader>) {
    let mut waiting = Vec::new();
    // Whoever comes during a round waits for the next: it must begin after the reader came.
    while readers.recv_many(&mut waiting, QUEUE).await > 0 {
        let result = confirm(&context, &mut waiting).await;
        for reader in waiting.drain(..) {
            // The reader may have gone.
            drop(reader.answer.send(result.clone()));
        }
    }
}

async fn confirm<M: Model>(
    context: &Context<M>,
    waiting: &mut Vec<Reader>,
) -> Result<Index, ReplicationError> {
    let mut rounds = 0;
    loop {
        let clock = context.env.clock.as_ref();
        waiting.retain(|reader| !reader.deadline.left(clock).is_zero());
        if waiting.is_empty() {
            return Err(ReplicationError::Timeout);
        }
        rounds += 1;
        match in_time(&context.env, ROUND, context.raft.get_read_log_id()).await {
            Some(Ok((index, _))) => return Ok(index.map_or(0, |log| log.index)),
            Some(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                let leader = forward.leader_node.map(|node| node.address);
                return Err(ReplicationError::NotLeader { leader });
            }
            Some(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) if rounds < ROUNDS => {
                context.sleep(context.config.limits.heartbeat / 4).await;
            }
            // A leader without a majority cannot tell whether there is another one by now.
            Some(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) | None => {
                return Err(ReplicationError::NotLeader { leader: None });
            }
            Some(Err(RaftError::Fatal(_))) => return Err(ReplicationError::Stopped),
        }
    }
}
