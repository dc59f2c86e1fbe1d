//! Around the log: what keeps log, state and proposers consistent with each other.
//!
//! * The library cuts a follower's log when a snapshot *begins* to be installed. A crash before its end would leave a log
//!   that starts behind the old state. So a cut beyond what is safe in the store waits until it is.
//! * The library lets a leader that restarts go on as the leader it was, without an election. What it had committed and
//!   not yet noted (the note is written late) it does not know then, and it would answer a linearizable read without it.
//!   So a restarted replica finds its own election undone, and has to win another.
//! * Which batches reached the log is noted before they do: whoever proposed one of them cannot be told that nothing
//!   happened.

use std::fmt::Debug;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, RaftLogReader, Vote};

use super::payload::Batch;
use super::state::State;
use super::types::{LogId, NodeId, StorageError, TypeConfig};
use crate::model::Model;

type Entry = openraft::Entry<TypeConfig>;

/// How often a postponed cut is looked at by those that wait for it.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A log with its guards.
pub(super) struct Guarded<L, M: Model> {
    log: L,
    state: Arc<State<M>>,
    cut: Option<LogId>,
}

impl<L: RaftLogStorage<TypeConfig>, M: Model> Guarded<L, M> {
    pub(super) fn new(log: L, state: Arc<State<M>>) -> Self {
        Self { log, state, cut: None }
    }

    fn is_mine(&self, vote: &Vote<NodeId>) -> bool {
        vote.leader_id().voted_for() == Some(self.state.record().id)
    }

    /// Makes a postponed cut before anything else changes the log; waits for the installation it is for.
    async fn settle(&mut self) -> Result<(), StorageError> {
        let Some(upto) = self.cut else { return Ok(()) };
        while self.state.durable() < upto.index {
            let clock = &self.state.env.clock;
            clock.sleep_until(clock.now().plus(LOOK_EVERY)).await;
        }
        self.log.purge(upto).await?;
        self.cut = None;
        Ok(())
    }
}

impl<L: RaftLogStorage<TypeConfig>, M: Model> RaftLogReader<TypeConfig> for Guarded<L, M> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.log.try_get_log_entries(range).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.log.limited_get_log_entries(start, end).await
    }
}

impl<L: RaftLogStorage<TypeConfig>, M: Model> RaftLogStorage<TypeConfig> for Guarded<L, M> {
    type LogReader = L::LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        self.log.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> L::LogReader {
        self.log.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &Vote<NodeId>) -> Result<(), StorageError> {
        self.log.save_vote(vote).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeId>>, StorageError> {
        // Of the vote it stays that this replica voted for itself, which no other vote of that term may contradict; that it
        // won is forgotten.
        Ok(self
            .log
            .read_vote()
            .await?
            .map(|vote| Vote { committed: vote.committed && !self.is_mine(&vote), ..vote }))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.log.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        self.log.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        self.settle().await?;
        let state = self.state.clone();
        let entries = entries.into_iter().inspect(move |entry| {
            state.set_last_log(Some(entry.log_id));
            if let EntryPayload::Normal(payload) = &entry.payload
                && let Some(id) = Batch::id_of(&payload.0)
            {
                state.outputs.logged(id);
            }
        });
        self.log.append(entries, callback).await
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.settle().await?;
        self.log.truncate(log_id).await?;
        let last = self.log.get_log_state().await?.last_log_id;
        self.state.set_last_log(last);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        if self.state.durable() < log_id.index {
            self.cut = Some(log_id);
            return Ok(());
        }
        self.cut = None;
        self.log.purge(log_id).await
    }
}
