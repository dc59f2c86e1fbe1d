//! Why a task did not do what it was to do.

use alba_client::ClientError;
use alba_core::env::{MetaError, OsdError};
use alba_core::ids::{IdError, OsdId};
use thiserror::Error;

/// What stopped a run. All of it is tried again later; none of it is a reason to skip a check.
#[derive(Debug, Error)]
pub enum TaskError {
    /// The metadata refused or did not answer.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The object engine.
    #[error(transparent)]
    Client(ClientError),
    /// An OSD refused or did not answer.
    #[error("OSD {osd}: {error}")]
    Osd {
        /// Which.
        osd: OsdId,
        /// What it said.
        error: OsdError,
    },
    /// An OSD that the ABM does not know as ours.
    #[error("OSD {0} is not known to the backend manager; what is queued for it waits")]
    Unknown(OsdId),
    /// An answer to another question: the versions do not fit.
    #[error("metadata protocol: no answer of kind {0}")]
    Mismatch(&'static str),
    /// A name that the formats cannot carry.
    #[error(transparent)]
    Name(#[from] IdError),
    /// A deadline passed.
    #[error("deadline exceeded while waiting for {0}")]
    Deadline(&'static str),
    /// Another agent has the task.
    #[error("the task went to another agent")]
    LeaseLost,
    /// The agent stops, or the task was paused.
    #[error("stopped")]
    Stopped,
    /// Something is wrong that this run could not mend.
    #[error("{0}")]
    Problem(String),
}

impl From<ClientError> for TaskError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Meta(error) => Self::Meta(error),
            error => Self::Client(error),
        }
    }
}

impl TaskError {
    /// Says the group that it does not have the namespace (any more)?
    pub fn is_gone(&self) -> bool {
        use alba_core::wire::rpc::nsm::NsmError;
        match self {
            Self::Meta(MetaError::Nsm(NsmError::NamespaceMoved(_))) => true,
            Self::Client(error) => alba_client::repair::is_gone(error),
            _ => false,
        }
    }
}
