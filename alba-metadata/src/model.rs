//! What a metadata model is: a deterministic function of its store, the time given, and the command.

use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::txn::KvTxn;

/// The first format of log entries; the kinds of commands that it was made with need no newer one.
pub const FIRST_FORMAT: u8 = 1;

/// Why a command was not applied.
#[derive(Debug, Clone)]
pub enum Fault<E> {
    /// The model says no. Remembered: a retry hears the same.
    Refused(E),
    /// The store failed; nothing of the command may count.
    Store(KvError),
}

impl<E> From<KvError> for Fault<E> {
    fn from(error: KvError) -> Self {
        Self::Store(error)
    }
}

/// A model. It must use nothing but its arguments: no clock, no randomness, no order of a hash map.
pub trait Model: Send + Sync + 'static {
    /// A change.
    type Command: Clone + Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What a change gave.
    type Outcome: Clone + PartialEq + std::fmt::Debug + Send + 'static;
    /// Why there was none.
    type Error: Clone + PartialEq + std::fmt::Debug + Serialize + DeserializeOwned + Send + 'static;
    /// A read.
    type Query: Send + 'static;
    /// What a read gave.
    type Answer: Send + 'static;

    /// Applies a command. `now` is later than at every command before. What it wrote is dropped when it fails.
    fn apply(
        txn: &mut KvTxn<'_>,
        now: Timestamp,
        command: &Self::Command,
    ) -> Result<Self::Outcome, Fault<Self::Error>>;

    /// The first format of log entries that has this kind of command. A kind that is added later needs a newer format than
    /// those before it: it is proposed only when every member of the group can apply it.
    fn format_of(_: &Self::Command) -> u8 {
        FIRST_FORMAT
    }

    /// A bounded step of work that no command waits for; true when more is left.
    fn tidy(txn: &mut KvTxn<'_>) -> Result<bool, KvError>;

    /// Answers from one state.
    fn query(store: &dyn KvRead, query: &Self::Query) -> Result<Self::Answer, Fault<Self::Error>>;

    /// What must be kept of an outcome so that [`Self::recall`] can give it again.
    fn remember(outcome: &Self::Outcome) -> Result<Vec<u8>, KvError>;

    /// The outcome that `command` had, of what was kept.
    fn recall(command: &Self::Command, kept: &[u8]) -> Result<Self::Outcome, KvError>;
}
