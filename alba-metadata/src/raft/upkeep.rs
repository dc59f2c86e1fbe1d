//! What has to be done from time to time: snapshots, cutting the log, metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ServerState;

use super::context::Context;
use super::log::{Health, LogStore};
use super::types::NodeId;
use crate::model::Model;

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Runs as long as the replica does.
pub(super) async fn run<M: Model>(context: Context<M>, log: LogStore) {
    let group = context.config.group.to_string();
    // A snapshot is asked for once per state it would hold.
    let mut asked = None;
    let mut told: BTreeSet<NodeId> = BTreeSet::new();
    loop {
        context.state.fail_if_stuck();
        let metrics = context.metrics();
        let limits = &context.config.limits;
        let leads = metrics.state == ServerState::Leader;
        metrics::gauge!("alba_raft_leader", "group" => group.clone()).set(if leads { 1.0 } else { 0.0 });
        metrics::gauge!("alba_raft_term", "group" => group.clone()).set(number(metrics.current_term));
        let last = metrics.last_log_index.unwrap_or(0);
        let lags: BTreeMap<NodeId, u64> = metrics
            .replication
            .iter()
            .flatten()
            .map(|(id, matching)| (*id, last.saturating_sub(matching.map_or(0, |log| log.index))))
            .collect();
        // Of one that left, or of a replica that leads no more, nothing is known.
        told.extend(lags.keys());
        for id in &told {
            let replica = format!("{id:016x}");
            metrics::gauge!("alba_raft_lag", "group" => group.clone(), "replica" => replica)
                .set(number(lags.get(id).copied().unwrap_or(0)));
        }
        told.retain(|id| lags.contains_key(id));
        let applied = metrics.last_applied.map_or(0, |log| log.index);
        let covered = metrics.snapshot.map_or(0, |log| log.index);
        let behind = applied.saturating_sub(covered);
        let full = matches!(log.health(), Health::NoSpace(_));
        let due = full
            || behind >= limits.snapshot_entries
            || context.state.bytes_since_snapshot() >= limits.snapshot_bytes;
        if behind > 0
            && due
            && asked != metrics.last_applied
            && context.raft.trigger().snapshot().await.is_ok()
        {
            asked = metrics.last_applied;
        }
        let kept = covered.saturating_sub(metrics.purged.map_or(0, |log| log.index));
        if full && kept > 0 && context.raft.trigger().purge_log(covered).await.is_err() {
            tracing::debug!(group, "the log is not cut: the replica stops");
        }
        context.sleep(LOOK_EVERY).await;
    }
}

fn number(value: u64) -> f64 {
    // Exact up to 2^32, and a metric beyond.
    u32::try_from(value).map_or(f64::from(u32::MAX), f64::from)
}
