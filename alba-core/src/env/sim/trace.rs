//! What happened in a run, as one hash: two runs of a seed are the same run exactly when their hashes are equal.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::executor::lock;
use crate::env::Moment;

/// How many of the last events are kept to be read by people.
const KEPT: usize = 400;

/// The running hash over all events. Cheap to clone; all clones are the same trace.
#[derive(Clone, Default)]
pub struct Trace(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    hasher: blake3::Hasher,
    events: u64,
    tail: VecDeque<String>,
}

impl Trace {
    /// Adds an event: when, on which node, what kind, and the bytes that tell it from others of its kind.
    pub fn record(&self, at: Moment, node: u32, kind: &'static str, detail: &[u8]) {
        let nanos = u64::try_from(at.0.as_nanos()).unwrap_or(u64::MAX);
        let digest = blake3::hash(detail);
        let mut state = lock(&self.0);
        // Each field has a fixed size or its length before it, so different events never give the same bytes.
        state.hasher.update(&nanos.to_le_bytes());
        state.hasher.update(&node.to_le_bytes());
        state.hasher.update(blake3::hash(kind.as_bytes()).as_bytes());
        state.hasher.update(digest.as_bytes());
        state.events += 1;
        if state.tail.len() == KEPT {
            state.tail.pop_front();
        }
        let short = hex::encode(digest.as_bytes().split_at(4).0);
        state.tail.push_back(format!("{:>12?} node {node} {kind} {} B {short}", at.0, detail.len()));
    }

    /// The hash of all events so far, in hex.
    pub fn hash(&self) -> String {
        lock(&self.0).hasher.finalize().to_hex().to_string()
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        lock(&self.0).events
    }

    /// The last few hundred events, for the message of a failed run.
    pub fn tail(&self) -> Vec<String> {
        lock(&self.0).tail.iter().cloned().collect()
    }
}
