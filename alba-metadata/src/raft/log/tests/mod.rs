//! The log on simulated and real disks: openraft's suite, a plain map as model, crashes at every step, damage, full and
//! failing disks, the format's bytes.

mod crash;
mod damage;
mod golden;
mod model;
mod space;
mod suite;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use alba_core::env::Deadline;
use alba_core::env::sim::disk::SimDiskDevice;
use alba_core::env::sim::{SimNode, Simulation};
use bytes::Bytes;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::{EntryPayload, LeaderId, RaftLogReader};

use super::format::{Entry, LogId, Vote};
use super::*;
use crate::raft::types::Payload;

/// Virtual time one scenario may take.
const LIMIT: Duration = Duration::from_secs(3600);

/// Small segments: ten blocks of records in each.
fn small() -> LogLimits {
    LogLimits {
        segment_bytes: 12 * 4096,
        spare_segments: 6,
        batch_bytes: 16 << 10,
        queue_bytes: 64 << 10,
        cache_bytes: 8 << 10,
        min_free_bytes: 0,
        ..LogLimits::default()
    }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId::new(term, 7), index)
}

fn vote(term: u64, node: u64) -> Vote {
    Vote::new(term, node)
}

/// An entry whose bytes are told by its term and index.
fn entry(term: u64, index: u64, len: usize) -> Entry {
    let salt = (term * 31 + index * 7).to_le_bytes()[0];
    let bytes: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0].wrapping_mul(3) ^ salt).collect();
    Entry { log_id: id(term, index), payload: EntryPayload::Normal(Payload(Bytes::from(bytes))) }
}

fn deadline(node: &SimNode) -> Deadline {
    node.env().deadline_in(Duration::from_secs(600))
}

async fn open(
    node: &SimNode,
    disk: &SimDiskDevice,
    limits: LogLimits,
) -> Result<(LogStore, Recovered), LogError> {
    LogStore::open(node.env(), Arc::new(disk.open()), limits).await
}

/// Runs a program as one process with one life.
fn run<T>(
    disk: &SimDiskDevice,
    limits: LogLimits,
    program: impl AsyncFnOnce(&SimNode, LogStore, Recovered) -> T,
) -> T {
    let simulation = Simulation::new(1);
    let node = simulation.node(1);
    let main = async {
        let (store, recovered) = open(&node, disk, limits).await.unwrap();
        program(&node, store, recovered).await
    };
    simulation.run(LIMIT, main).unwrap()
}

async fn all(store: &LogStore) -> Vec<Entry> {
    store.clone().try_get_log_entries(..).await.unwrap()
}

/// Waits for all of them at once.
async fn join_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(|context| {
        let mut pending = false;
        for (future, output) in &mut futures {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(ready) => *output = Some(ready),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    futures.into_iter().map(|(_, output)| output.unwrap()).collect()
}
