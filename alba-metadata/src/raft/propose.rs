//! Batches: whatever inputs wait when the log can take an entry make up that entry, so that they share its writes here and
//! on the other replicas.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use openraft::error::ClientWriteError;
use tokio::sync::{Semaphore, mpsc};

use super::context::Context;
use super::outputs::Waiter;
use super::payload::{Batch, BatchId, HEADER, room_of};
use super::types::Payload;
use crate::model::Model;
use crate::replicator::ReplicationError;

/// An input that waits for an entry.
pub(super) struct Proposal<M: Model> {
    pub(super) input: Bytes,
    /// The first format of entries that has this kind.
    pub(super) format: u8,
    pub(super) waiter: Waiter<M>,
}

/// Packs proposals for as long as the replica runs.
pub(super) async fn run<M: Model>(context: Context<M>, mut proposals: mpsc::Receiver<Proposal<M>>) {
    let limits = context.config.limits.clone();
    let in_flight = Arc::new(Semaphore::new(limits.entries_in_flight.max(1)));
    let run = context.env.rng.u64();
    let mut sequence = 0;
    let mut waiting: VecDeque<Proposal<M>> = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match proposals.recv().await {
                Some(first) => waiting.push_back(first),
                None => return,
            }
        }
        // The longer this waits, the more share the entry.
        let Ok(slot) = in_flight.clone().acquire_owned().await else { return };
        // Those who have just had an answer come with their next command.
        tokio::task::yield_now().await;
        while waiting.len() < limits.batch_inputs
            && let Ok(more) = proposals.try_recv()
        {
            waiting.push_back(more);
        }
        let (mut inputs, mut waiters) = (Vec::new(), Vec::new());
        let mut bytes = HEADER;
        let agreed = context.agreed();
        while let Some(next) = waiting.pop_front() {
            if next.format > agreed {
                // It was let in by this replica as the leader of another term.
                let refused = ReplicationError::NotAgreed { needed: next.format, agreed };
                // Whoever asked may have gone.
                drop(next.waiter.answer.send(Err(refused)));
                continue;
            }
            let more = room_of(&next.input);
            if !inputs.is_empty()
                && (bytes + more > limits.batch_bytes || inputs.len() >= limits.batch_inputs)
            {
                waiting.push_front(next);
                break;
            }
            bytes += more;
            inputs.push(next.input);
            waiters.push(next.waiter);
        }
        if inputs.is_empty() {
            continue;
        }
        sequence += 1;
        let id = BatchId { replica: context.id, run, sequence };
        let batch = Batch { format: agreed, id, wall: context.env.clock.wall_micros(), inputs };
        metrics::histogram!("alba_raft_batch_inputs", "group" => context.config.group.to_string())
            .record(f64::from(u32::try_from(waiters.len()).unwrap_or(u32::MAX)));
        context.state.outputs.register(id, waiters);
        match context.raft.client_write_ff(Payload(batch.encode())).await {
            Ok(written) => {
                let state = context.state.clone();
                let ended = async move {
                    match written.await {
                        // Applied: those that waited have their answers.
                        Ok(Ok(_)) => {}
                        Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                            let leader = forward.leader_node.map(|node| node.address);
                            let never = ReplicationError::NotLeader { leader };
                            state.outputs.failed(id, &never, &ReplicationError::Timeout);
                        }
                        Ok(Err(ClientWriteError::ChangeMembershipError(_))) | Err(_) => {
                            state.outputs.failed(id, &ReplicationError::Stopped, &ReplicationError::Timeout);
                        }
                    }
                    drop(slot);
                };
                // It ends with the entry, or with the library's task.
                drop(context.env.spawn.spawn("raft-entry", Box::pin(ended)));
            }
            Err(_) => {
                context.state.outputs.failed(id, &ReplicationError::Stopped, &ReplicationError::Timeout);
            }
        }
    }
}
