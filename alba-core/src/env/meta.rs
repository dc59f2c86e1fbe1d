//! The metadata groups as their clients see them: the ABM ([`Directory`]) and the NSM groups ([`NamespaceStore`]).

use async_trait::async_trait;
use thiserror::Error;

use super::clock::Deadline;
use crate::ids::GroupId;
use crate::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmError, AbmOutcome, AbmQuery};
use crate::wire::rpc::nsm::{NsmAnswer, NsmCommand, NsmError, NsmOutcome, NsmQuery};
use crate::wire::rpc::watch::{WatchReply, WatchRequest};

/// Why a metadata call gave no answer of the model.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MetaError {
    /// The ABM refused.
    #[error(transparent)]
    Abm(#[from] AbmError),
    /// The NSM refused.
    #[error(transparent)]
    Nsm(#[from] NsmError),
    /// The remembered session has expired: whether the command happened before is unknown, it did not happen now.
    #[error("session expired; the command was not executed now, whether it was before is unknown")]
    SessionUnknown,
    /// No leader or no connection within the deadline; for a command, whether it happened is unknown.
    #[error("metadata group {group} cannot be reached: {reason}")]
    Unreachable {
        /// Which group.
        group: GroupId,
        /// What was seen last.
        reason: String,
    },
    /// It answered with what is no answer to the question: versions that do not fit.
    #[error("metadata protocol: {0}")]
    Protocol(String),
    /// Its storage refused (full, I/O error).
    #[error("metadata storage: {0}")]
    Storage(String),
}

/// The ABM: who and where.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// Executes a command exactly once, retrying lost answers under the same request id until the deadline.
    async fn command(&self, command: AbmCommand, deadline: Deadline) -> Result<AbmOutcome, MetaError>;

    /// Reads, linearizably.
    async fn query(&self, query: AbmQuery, deadline: Deadline) -> Result<AbmAnswer, MetaError>;

    /// Waits until something has changed. What is read after the answer is at least as new as the answer. Who does not tell of
    /// changes says so with [`MetaError::Protocol`].
    async fn watch(&self, _request: WatchRequest, _deadline: Deadline) -> Result<WatchReply, MetaError> {
        Err(MetaError::Protocol("nobody tells of changes here".to_owned()))
    }
}

/// The NSM groups: names and manifests.
#[async_trait]
pub trait NamespaceStore: Send + Sync + 'static {
    /// Executes a command exactly once, retrying lost answers under the same request id until the deadline.
    async fn command(
        &self,
        group: &GroupId,
        command: NsmCommand,
        deadline: Deadline,
    ) -> Result<NsmOutcome, MetaError>;

    /// Reads, linearizably.
    async fn query(
        &self,
        group: &GroupId,
        query: NsmQuery,
        deadline: Deadline,
    ) -> Result<NsmAnswer, MetaError>;
}
