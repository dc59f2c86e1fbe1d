//! Who belongs to a group: how it forms, how a replica joins, takes the place of one that was wiped, and leaves.
//!
//! A group forms by itself, once: when every peer of the configuration answers and none of them knows of a group, the one
//! with the lowest address makes all of them its members. A replica that has nothing while another peer knows of the group
//! asks to join it, under its own new name. It is taken in unasked only where it takes the place of a member with the same
//! address; other addresses are added by an operator.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::error::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, Membership};
use thiserror::Error;
use tokio::sync::Mutex;

use super::context::{Context, Found};
use super::message::{Answer, Greeting, Message};
use super::network::{WireError, in_time};
use super::payload::{Batch, BatchId};
use super::types::{NodeId, Payload, Replica};
use crate::model::Model;

/// Between looks at what is to be done.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// For a question to another replica.
const ASK: Duration = Duration::from_secs(2);

/// For one change of the membership to be agreed on.
const CHANGE: Duration = Duration::from_secs(30);

/// For a new replica to get the whole state.
const CATCH_UP: Duration = Duration::from_secs(3600);

/// A new replica that is behind by no more than this many entries may vote.
const CLOSE: u64 = 64;

/// Why the membership did not change.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MembershipError {
    /// Another replica leads.
    #[error("this replica does not lead the group")]
    NotLeader,
    /// Nobody answers there, or somebody else.
    #[error("{address}: {reason}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// One change at a time.
    #[error("another change of the membership is under way")]
    Busy,
    /// It cannot apply what the group writes.
    #[error(
        "{address} reads log entries up to format {newest}, and the group writes {agreed}: update it first"
    )]
    Outdated {
        /// Where.
        address: String,
        /// The newest that it reads.
        newest: u8,
        /// What the group has agreed on.
        agreed: u8,
    },
    /// No such replica.
    #[error("no replica {0:016x} in the group")]
    Unknown(NodeId),
    /// The last voter cannot go.
    #[error("it is the only voter of the group")]
    Last,
    /// It took too long, or the leader changed; the change may still happen.
    #[error("not done: {0}")]
    Failed(String),
}

/// One change at a time.
pub(super) type Changing = Arc<Mutex<()>>;

/// Asks who is at an address.
pub(super) async fn greet<M: Model>(context: &Context<M>, address: &str) -> Result<Greeting, WireError> {
    match context.wire.call(address, 0, Message::Hello, ASK).await? {
        Answer::Hello(greeting) => Ok(greeting),
        _ => Err(WireError::Lost("an answer to another question".to_owned())),
    }
}

/// Forms the group or joins it, for as long as this replica does not vote in it.
pub(super) async fn run<M: Model>(context: Context<M>, changing: Changing) {
    loop {
        if context.leads() {
            finish_change(&context, &changing).await;
            agree_on_format(&context, &changing).await;
        } else if !context.is_voter() {
            become_member(&context).await;
        }
        context.sleep(LOOK_EVERY + context.random(LOOK_EVERY)).await;
    }
}

async fn become_member<M: Model>(context: &Context<M>) {
    let config = &context.config;
    let Some(Ok(initialized)) = in_time(&context.env, ASK, context.raft.is_initialized()).await else {
        return;
    };
    let mut greetings: BTreeMap<String, Greeting> = BTreeMap::new();
    for address in config.peers.iter().filter(|address| **address != config.address) {
        if let Ok(greeting) = greet(context, address).await {
            greetings.insert(address.clone(), greeting);
        }
    }
    // Also the leader that this replica knows: the peers of the configuration may all have been replaced.
    let leaders = greetings.values().filter_map(|greeting| greeting.leader.clone()).chain(context.leader());
    let leader = leaders.filter(|(id, _)| *id != context.id).map(|(_, address)| address).next();
    if let Some(leader) = leader {
        let join = Message::Join { address: config.address.clone() };
        match context.wire.call(&leader, 0, join, ASK).await {
            Ok(answer) => tracing::debug!(group = %config.group, leader, ?answer, "asked to join"),
            Err(error) => tracing::debug!(group = %config.group, leader, %error, "cannot ask to join"),
        }
        return;
    }
    let others_new = greetings.values().all(|greeting| !greeting.initialized);
    let all_here = greetings.len() + 1 == config.peers.len() && config.peers.contains(&config.address);
    let first = config.peers.iter().min() == Some(&config.address);
    if initialized || !others_new || !all_here || !first {
        return;
    }
    let mut members: BTreeMap<NodeId, Replica> =
        greetings.into_iter().map(|(address, greeting)| (greeting.id, Replica { address })).collect();
    members.insert(context.id, Replica { address: config.address.clone() });
    if members.len() != config.peers.len() {
        tracing::error!(group = %config.group, "two peers of the configuration are the same replica");
        return;
    }
    tracing::info!(group = %config.group, ?members, "the group forms");
    if let Err(error) = context.raft.initialize(members).await {
        tracing::error!(group = %config.group, %error, "the group does not form");
    }
}

/// What all members can apply. One that cannot be asked may be of an older version: then nothing newer than what was found
/// before is taken for agreed. Nobody is let in meanwhile ([`Changing`]).
async fn agree_on_format<M: Model>(context: &Context<M>, changing: &Changing) {
    let Ok(_turn) = changing.try_lock() else { return };
    let newest = context.config.limits.newest_format;
    if context.state.format() >= newest {
        return;
    }
    let term = context.metrics().current_term;
    let membership = context.membership();
    let mut format = newest;
    for (id, node) in membership.membership().nodes().filter(|(id, _)| **id != context.id) {
        match greet(context, &node.address).await {
            Ok(greeting) if greeting.id == *id => format = format.min(greeting.payload_format),
            _ => return,
        }
    }
    context.set_found(Found { term, format });
    let agreed = context.agreed();
    if agreed <= context.state.format() {
        return;
    }
    // An entry of the new format is the record of it, for later leaders too: they need not reach every member again. One that
    // does not get through is written again at the next look.
    let id = BatchId { replica: context.id, run: context.env.rng.u64(), sequence: 0 };
    let record = Batch { format: agreed, id, wall: context.env.clock.wall_micros(), inputs: Vec::new() };
    let written = context.raft.client_write_ff(Payload(record.encode()));
    if matches!(in_time(&context.env, ASK, written).await, Some(Ok(_))) {
        tracing::info!(group = %context.config.group, format = agreed, "all members read this format of entries");
    }
}

/// A leader that stopped between the two steps of a change left the group between two memberships: the next one ends it.
async fn finish_change<M: Model>(context: &Context<M>, changing: &Changing) {
    let Ok(_turn) = changing.try_lock() else { return };
    let membership = context.membership();
    if membership.membership().get_joint_config().len() < 2 {
        return;
    }
    let Some(target) = membership.membership().get_joint_config().last().cloned() else { return };
    tracing::info!(group = %context.config.group, ?target, "ends a change of the membership");
    if let Err(error) = change(context, ChangeMembers::ReplaceAllVoters(target)).await {
        tracing::warn!(group = %context.config.group, %error, "the change is not ended");
    }
}

async fn change<M: Model>(
    context: &Context<M>,
    members: ChangeMembers<NodeId, Replica>,
) -> Result<(), MembershipError> {
    match in_time(&context.env, CHANGE, context.raft.change_membership(members, false)).await {
        Some(Ok(_)) => Ok(()),
        Some(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
            Err(MembershipError::NotLeader)
        }
        Some(Err(error)) => Err(MembershipError::Failed(error.to_string())),
        None => Err(MembershipError::Failed("no majority in time".to_owned())),
    }
}

fn voters(membership: &Membership<NodeId, Replica>) -> BTreeSet<NodeId> {
    membership.voter_ids().collect()
}

/// Members at an address, other than `but`.
pub(super) fn at_address<M: Model>(context: &Context<M>, address: &str, but: NodeId) -> BTreeSet<NodeId> {
    let membership = context.membership();
    let nodes = membership.membership().nodes();
    nodes.filter(|(id, node)| node.address == address && **id != but).map(|(id, _)| *id).collect()
}

/// Takes the replica at `address` into the group, as a learner first; whoever had that address before leaves in the same
/// step in which it begins to vote.
pub(super) async fn admit<M: Model>(
    context: &Context<M>,
    changing: &Changing,
    address: &str,
) -> Result<NodeId, MembershipError> {
    let Ok(_turn) = changing.try_lock() else { return Err(MembershipError::Busy) };
    if !context.leads() {
        return Err(MembershipError::NotLeader);
    }
    // Who asked is not believed: the name is the one that answers there.
    let greeting = greet(context, address).await.map_err(|error| MembershipError::Unreachable {
        address: address.to_owned(),
        reason: error.to_string(),
    })?;
    let id = greeting.id;
    let agreed = context.agreed();
    if greeting.payload_format < agreed {
        let (address, newest) = (address.to_owned(), greeting.payload_format);
        return Err(MembershipError::Outdated { address, newest, agreed });
    }
    let membership = context.membership();
    if voters(membership.membership()).contains(&id) {
        return Ok(id);
    }
    if membership.membership().get_node(&id).is_none() {
        let node = Replica { address: address.to_owned() };
        match in_time(&context.env, CHANGE, context.raft.add_learner(id, node, false)).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(MembershipError::Failed(error.to_string())),
            None => return Err(MembershipError::Failed("no majority in time".to_owned())),
        }
    }
    tracing::info!(group = %context.config.group, id, address, "a replica gets the state");
    caught_up(context, id).await?;
    let replaced = at_address(context, address, id);
    let mut wanted = voters(context.membership().membership());
    wanted.retain(|voter| !replaced.contains(voter));
    wanted.insert(id);
    change(context, ChangeMembers::ReplaceAllVoters(wanted)).await?;
    tracing::info!(group = %context.config.group, id, address, ?replaced, "a replica votes from now on");
    // Those that did not vote stay in a change of the voters: such are the names that a restored group has for its other
    // addresses. Should the leader stop before this, they stay as members without effect.
    let membership = context.membership();
    let left: BTreeSet<_> =
        replaced.into_iter().filter(|id| membership.membership().get_node(id).is_some()).collect();
    if !left.is_empty() {
        change(context, ChangeMembers::RemoveNodes(left)).await?;
    }
    Ok(id)
}

/// Waits until a learner has nearly all entries.
async fn caught_up<M: Model>(context: &Context<M>, id: NodeId) -> Result<(), MembershipError> {
    let until = context.env.deadline_in(CATCH_UP);
    loop {
        let metrics = context.metrics();
        let Some(replication) = &metrics.replication else { return Err(MembershipError::NotLeader) };
        let matching = replication.get(&id).copied().flatten();
        let last = metrics.last_log_index.unwrap_or(0);
        if matching.is_some_and(|matching| matching.index.saturating_add(CLOSE) >= last) {
            return Ok(());
        }
        if until.left(context.env.clock.as_ref()).is_zero() {
            return Err(MembershipError::Failed("the new replica does not catch up".to_owned()));
        }
        context.sleep(Duration::from_millis(100)).await;
    }
}

/// Stops leading in favour of whoever the others elect.
async fn step_down<M: Model>(context: &Context<M>) -> Result<(), MembershipError> {
    let until = context.env.deadline_in(CHANGE);
    let _yielding = Yielding::begin(context);
    // It takes nothing more and gives no sign of life; the others' patience with it is one lease.
    while context.leads() {
        if until.left(context.env.clock.as_ref()).is_zero() {
            return Err(MembershipError::Failed("no other replica takes the lead".to_owned()));
        }
        context.sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// While it lives the replica gives the lead away.
struct Yielding<'a, M: Model>(&'a Context<M>);

impl<'a, M: Model> Yielding<'a, M> {
    fn begin(context: &'a Context<M>) -> Self {
        context.yielding.store(true, Ordering::Relaxed);
        context.raft.runtime_config().heartbeat(false);
        Self(context)
    }
}

impl<M: Model> Drop for Yielding<'_, M> {
    fn drop(&mut self) {
        self.0.yielding.store(false, Ordering::Relaxed);
        self.0.raft.runtime_config().heartbeat(true);
    }
}

/// Removes a replica, whether it is alive or not.
pub(super) async fn remove<M: Model>(
    context: &Context<M>,
    changing: &Changing,
    id: NodeId,
) -> Result<(), MembershipError> {
    let Ok(_turn) = changing.try_lock() else { return Err(MembershipError::Busy) };
    if !context.leads() {
        return Err(MembershipError::NotLeader);
    }
    let membership = context.membership();
    let mut wanted = voters(membership.membership());
    if wanted.remove(&id) {
        if wanted.is_empty() {
            return Err(MembershipError::Last);
        }
        if id == context.id {
            // A leader that removes itself may end as the only one with the newest entry and no vote, and then nobody
            // can be elected any more: the next leader does it.
            step_down(context).await?;
            return Err(MembershipError::NotLeader);
        }
        return change(context, ChangeMembers::ReplaceAllVoters(wanted)).await;
    }
    if membership.membership().get_node(&id).is_none() {
        return Err(MembershipError::Unknown(id));
    }
    change(context, ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await
}
