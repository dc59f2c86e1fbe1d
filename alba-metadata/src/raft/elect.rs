//! Elections. The library would start one whenever it hears of no leader: a replica that was cut off would come back with
//! a high term and depose a leader that all others follow. So its own timer is off, and this task starts an election only
//! after a majority said that it hears of no leader either and that it would vote for this replica (Raft's pre-vote,
//! dissertation §9.6). A replica that cannot reach a majority keeps its term.

use std::collections::BTreeSet;

use tokio::sync::mpsc;

use super::context::{Context, LeaderSeen, Standing};
use super::message::{Answer, Message};
use super::types::{LogId, NodeId};
use crate::model::Model;

/// Would this replica vote for one whose log ends at `theirs`?
pub(super) async fn would_vote<M: Model>(context: &Context<M>, theirs: Option<LogId>) -> bool {
    let silent = matches!(context.leader_seen().await, Some(LeaderSeen::Silent(_)));
    silent && theirs >= context.state.last_log()
}

/// Runs as long as the replica does.
pub(super) async fn run<M: Model>(context: Context<M>) {
    let limits = context.config.limits.clone();
    loop {
        context.sleep(limits.heartbeat / 2 + context.random(limits.heartbeat / 2)).await;
        let seen = context.leader_seen().await;
        let silent = match seen {
            Some(LeaderSeen::Silent(silent)) if !context.leads() => silent,
            _ => {
                context.set_standing(Standing::Follows);
                continue;
            }
        };
        if silent > limits.lease * 2 && context.standing() == Standing::Follows {
            context.set_standing(Standing::NoLeader);
        }
        if !context.is_voter() {
            continue;
        }
        // Of several that wait the one with the shortest wait is elected before the others ask.
        let alone = context.membership().membership().voter_ids().count() == 1;
        if !alone {
            if silent < limits.lease / 2 {
                // Somebody else's election, or our own, is under way.
                continue;
            }
            context.sleep(context.random(limits.lease / 3)).await;
            if !matches!(context.leader_seen().await, Some(LeaderSeen::Silent(_))) {
                continue;
            }
        }
        if agreed(&context).await && context.raft.trigger().elect().await.is_ok() {
            tracing::info!(group = %context.config.group, id = context.id, "stands for election");
            context.sleep(limits.lease / 2).await;
        }
    }
}

/// Asks all voters at once and returns as soon as a majority agrees.
async fn agreed<M: Model>(context: &Context<M>) -> bool {
    let membership = context.membership();
    let mut granted = BTreeSet::from([context.id]);
    if Context::<M>::is_majority(&membership, &granted) {
        return true;
    }
    let patience = context.config.limits.heartbeat * 2;
    let others: Vec<(NodeId, String)> = membership
        .membership()
        .voter_ids()
        .filter(|id| *id != context.id)
        .filter_map(|id| membership.membership().get_node(&id).map(|node| (id, node.address.clone())))
        .collect();
    let (answers, mut heard) = mpsc::channel(others.len().max(1));
    let mut asking = Vec::new();
    for (id, address) in others {
        let (wire, answers, last_log_id) = (context.wire.clone(), answers.clone(), context.state.last_log());
        let ask = async move {
            let answer = wire.call(&address, id, Message::PreVote { last_log_id }, patience).await;
            let (granted, removed) = match answer {
                Ok(Answer::PreVote { granted, member }) => (granted, !member),
                _ => (false, false),
            };
            // Whoever asked may have its majority already.
            let _ = answers.send((id, granted, removed)).await;
        };
        asking.push(context.env.spawn.spawn("raft-ask", Box::pin(ask)).abort_on_drop());
    }
    drop(answers);
    // Each of them has its deadline.
    while let Some((id, yes, removed)) = heard.recv().await {
        if removed && context.standing() == Standing::NoLeader {
            context.set_standing(Standing::Removed);
        }
        if yes {
            granted.insert(id);
        }
        if Context::<M>::is_majority(&membership, &granted) {
            return true;
        }
    }
    false
}
