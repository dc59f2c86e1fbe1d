//! What agrees on the order of a group's inputs and makes them durable.

mod local;
mod store;
#[cfg(test)]
mod tests;

use std::time::Duration;

use alba_core::env::Deadline;
use alba_core::kv::KvError;
use alba_core::wire::rpc::Consistency;
use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::watch;

use crate::machine::{Input, OutputOf};
use crate::model::{Fault, Model};

pub use local::{Local, LocalLimits};
pub use store::StoreOpener;

/// Bytes written by the commands of one change of a store, about: the command (or the log entry, in a replicated group) that
/// reaches it is the change's last. Ordinary batches are far below; three changes of a group are in memory at a time.
pub(crate) const CHANGE_BYTES: usize = 16 << 20;

/// Longest that one step of a store is waited for. Clients have given up long before, and a merge of files that holds writes up
/// takes seconds: a store that takes longer does not come back, say because a thread of its own has died.
pub(crate) const STORE_PATIENCE: Duration = Duration::from_secs(30);

/// Why an input did not get to the model, or may not have.
#[derive(Debug, Clone, Error)]
pub enum ReplicationError {
    /// The store refused; whether the input counts is unknown until it is tried again.
    #[error(transparent)]
    Store(#[from] KvError),
    /// Too many inputs wait; nothing happened.
    #[error("too many commands wait")]
    Overloaded,
    /// Not done by the deadline; whether the input counts is unknown.
    #[error("not done by the deadline")]
    Timeout,
    /// This replica does not lead the group; nothing happened.
    #[error("this replica does not lead the group")]
    NotLeader {
        /// Where the leader is (`ip:port`), when known.
        leader: Option<String>,
    },
    /// The replica had not applied the asked index by the deadline.
    #[error("the replica is behind")]
    Behind,
    /// Members of the group may be of an older version, which does not know this kind of command; nothing happened. It can be
    /// tried again: the group agrees by itself when all of them have been updated.
    #[error(
        "this kind of command needs log entries of format {needed}, and the members of the group have agreed on {agreed}: \
         not before all of them are updated and have been asked"
    )]
    NotAgreed {
        /// The first format that has it.
        needed: u8,
        /// The newest that every member reads, as far as the leader knows.
        agreed: u8,
    },
    /// The group is being shut down; whether the input counts is unknown.
    #[error("the group is being shut down")]
    Stopped,
}

/// A replica of a group through which commands and reads go.
#[async_trait]
pub trait Replicator<M: Model>: Send + Sync + 'static {
    /// Has the group agree on an input and apply it; durable when it returns.
    async fn propose(
        &self,
        input: Input<M::Command>,
        deadline: Deadline,
    ) -> Result<(OutputOf<M>, Index), ReplicationError>;

    /// Answers from a state as new as `consistency` wants it.
    async fn query(
        &self,
        query: M::Query,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<(Result<M::Answer, M::Error>, Index), ReplicationError>;

    /// Runs a read of the server's own on such a state.
    async fn read(
        &self,
        read: ReadWork,
        consistency: Consistency,
        deadline: Deadline,
    ) -> Result<Index, ReplicationError>;

    /// Counts commits: whoever waits for a change of the state waits for this.
    fn commits(&self) -> watch::Receiver<u64>;

    /// Does this replica lead the group, as far as it knows? What only one may do is done while it does.
    fn leadership(&self) -> watch::Receiver<bool>;

    /// Replicas that hold what is acknowledged, but for a minority of them, as far as this one knows.
    fn copies(&self) -> usize;

    /// Why it cannot serve; none when it can, or when only a proposal would tell.
    fn trouble(&self) -> Option<String>;
}

/// An applied index: later states have higher ones. 0 where the state has no copies to compare it with.
pub type Index = u64;

/// A read that keeps its result itself.
pub type ReadWork = Box<dyn FnOnce(&dyn alba_core::kv::KvRead) -> Result<(), KvError> + Send>;

/// Tells what the model says apart from what the store says.
pub(crate) fn answer_of<M: Model>(
    answer: Result<M::Answer, Fault<M::Error>>,
) -> Result<Result<M::Answer, M::Error>, KvError> {
    match answer {
        Ok(answer) => Ok(Ok(answer)),
        Err(Fault::Refused(error)) => Ok(Err(error)),
        Err(Fault::Store(error)) => Err(error),
    }
}

/// Reads linearizably with a closure and hands its result back.
pub async fn read_with<M: Model, T: Send + 'static>(
    group: &dyn Replicator<M>,
    deadline: Deadline,
    read: impl FnOnce(&dyn alba_core::kv::KvRead) -> Result<T, KvError> + Send + 'static,
) -> Result<T, ReplicationError> {
    read_as(group, Consistency::Linearizable, deadline, read).await
}

/// The same from a state as new as `consistency` wants it.
pub async fn read_as<M: Model, T: Send + 'static>(
    group: &dyn Replicator<M>,
    consistency: Consistency,
    deadline: Deadline,
    read: impl FnOnce(&dyn alba_core::kv::KvRead) -> Result<T, KvError> + Send + 'static,
) -> Result<T, ReplicationError> {
    let (answer, result) = tokio::sync::oneshot::channel();
    let work: ReadWork = Box::new(move |store| {
        // The caller may have gone.
        drop(answer.send(read(store)?));
        Ok(())
    });
    group.read(work, consistency, deadline).await?;
    result.await.map_err(|_| ReplicationError::Stopped)
}
