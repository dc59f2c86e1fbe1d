//! What the tasks of a running replica share.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alba_core::env::Env;
use openraft::{RaftMetrics, ServerState};

use super::RaftConfig;
use super::network::{Wire, in_time};
use super::state::State;
use super::types::{NodeId, Replica, StoredMembership, TypeConfig};
use crate::model::Model;

/// The library's task may be waiting for its disk.
const CORE_PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Context<M: Model> {
    pub(super) env: Env,
    pub(super) config: Arc<RaftConfig>,
    pub(super) id: NodeId,
    pub(super) raft: openraft::Raft<TypeConfig>,
    pub(super) wire: Arc<Wire>,
    pub(super) state: Arc<State<M>>,
    /// What this replica found when it asked the members as their leader.
    pub(super) found: Arc<Mutex<Found>>,
    /// What the elections found last.
    pub(super) standing: Arc<AtomicU8>,
    /// It leads and wants another one to.
    pub(super) yielding: Arc<AtomicBool>,
}

impl<M: Model> Clone for Context<M> {
    fn clone(&self) -> Self {
        Self {
            env: self.env.clone(),
            config: self.config.clone(),
            id: self.id,
            raft: self.raft.clone(),
            wire: self.wire.clone(),
            state: self.state.clone(),
            found: self.found.clone(),
            standing: self.standing.clone(),
            yielding: self.yielding.clone(),
        }
    }
}

/// The newest payload format that every member can apply, found in a term that this replica led. In another term others may
/// have let in members that it did not ask.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found {
    pub(super) term: u64,
    pub(super) format: u8,
}

/// How a replica stands to its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing is wrong.
    Follows,
    /// It has heard of no leader for a while.
    NoLeader,
    /// Others say that it is no member.
    Removed,
}

/// What is known of a leader from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaderSeen {
    /// A leader was heard of so recently that nobody else may be elected.
    Alive,
    /// None was heard of for so long (since the last vote, when there is none).
    Silent(Duration),
}

impl<M: Model> Context<M> {
    pub(super) fn metrics(&self) -> RaftMetrics<NodeId, Replica> {
        self.raft.metrics().borrow().clone()
    }

    pub(super) fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Relaxed) {
            0 => Standing::Follows,
            1 => Standing::NoLeader,
            _ => Standing::Removed,
        }
    }

    pub(super) fn set_standing(&self, standing: Standing) {
        let number = match standing {
            Standing::Follows => 0,
            Standing::NoLeader => 1,
            Standing::Removed => 2,
        };
        self.standing.store(number, Ordering::Relaxed);
    }

    /// The newest payload format that every member can apply. One that an entry was written in stays agreed: whoever does
    /// not know it is not let in any more.
    pub(super) fn agreed(&self) -> u8 {
        let recorded = self.state.format();
        // Consistent between any two statements that hold the lock.
        let found = *self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        if metrics.state == ServerState::Leader && metrics.current_term == found.term {
            recorded.max(found.format)
        } else {
            recorded
        }
    }

    pub(super) fn set_found(&self, found: Found) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    pub(super) fn is_yielding(&self) -> bool {
        self.yielding.load(Ordering::Relaxed)
    }

    pub(super) fn leads(&self) -> bool {
        self.raft.metrics().borrow().state == ServerState::Leader
    }

    pub(super) fn membership(&self) -> Arc<StoredMembership> {
        self.raft.metrics().borrow().membership_config.clone()
    }

    /// Where the leader is, when one is known.
    pub(super) fn leader(&self) -> Option<(NodeId, String)> {
        if self.standing() != Standing::Follows {
            // The last one that was heard of, long ago.
            return None;
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let id = metrics.current_leader?;
        let node = metrics.membership_config.membership().get_node(&id)?;
        Some((id, node.address.clone()))
    }

    pub(super) fn leader_address(&self) -> Option<String> {
        // Of itself it would only be told by a leader that no majority follows any more.
        self.leader().filter(|(id, _)| *id != self.id).map(|(_, address)| address)
    }

    pub(super) fn is_voter(&self) -> bool {
        self.membership().membership().voter_ids().any(|id| id == self.id)
    }

    /// Does this leader lack the majority that has to follow it? For longer than the lease it may lead no more.
    pub(super) fn lost_majority(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let alone = metrics.membership_config.membership().voter_ids().count() <= 1;
        let limit = self.config.limits.lease * 2;
        let silent = metrics.millis_since_quorum_ack.map(Duration::from_millis);
        metrics.state == ServerState::Leader && !alone && silent.is_some_and(|silent| silent > limit)
    }

    /// Whether a leader is alive, seen from here; none when the library does not answer.
    pub(super) async fn leader_seen(&self) -> Option<LeaderSeen> {
        let lease = self.config.limits.lease;
        let asked = self.raft.with_raft_state(move |state| {
            let now = <TypeConfig as openraft::type_config::TypeConfigExt>::now();
            let age = state.vote_last_modified().map_or(Duration::MAX, |then| now - then);
            (state.vote_ref().is_committed(), age, state.server_state)
        });
        let (committed, age, server) = in_time(&self.env, CORE_PATIENCE, asked).await?.ok()?;
        if server == ServerState::Leader {
            // A leader's own vote does not age by what it hears.
            return Some(if self.lost_majority() || self.is_yielding() {
                LeaderSeen::Silent(age)
            } else {
                LeaderSeen::Alive
            });
        }
        Some(if committed && age <= lease { LeaderSeen::Alive } else { LeaderSeen::Silent(age) })
    }

    /// A random part of `most`.
    pub(super) fn random(&self, most: Duration) -> Duration {
        let millis = u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(self.env.rng.u64() % millis)
    }

    pub(super) async fn sleep(&self, time: Duration) {
        let clock = &self.env.clock;
        clock.sleep_until(clock.now().plus(time)).await;
    }

    /// Is `set` a majority of each part of the (maybe joint) configuration?
    pub(super) fn is_majority(membership: &StoredMembership, set: &BTreeSet<NodeId>) -> bool {
        let parts = membership.membership().get_joint_config();
        !parts.is_empty() && parts.iter().all(|part| part.intersection(set).count() * 2 > part.len())
    }
}
