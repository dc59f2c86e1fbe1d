//! Carrying out moves: several at once, within what each OSD may bear and within the rate of all.
//!
//! A move that is refused or stale is dropped: the next plan sees how things are. Nothing here waits without an end:
//! [`Hands::relocate`] has a deadline of its own.

use std::collections::VecDeque;

use alba_client::repair::Relocated;
use alba_core::env::{Clock, Moment};
use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::lanes::{Lanes, Ready};
use crate::plan::MoveSpec;

/// What moves.
#[async_trait]
pub trait Hands: Send + Sync {
    /// Waits until so many bytes may be moved within the rate of all.
    async fn pace(&self, bytes: u64);

    /// Moves; ends within its deadline.
    async fn relocate(&self, chosen: &MoveSpec) -> Relocated;
}

/// Carries out all moves, in their order as far as the OSDs allow; at most `at_once` side by side. What became of each, in the
/// order in which they ended. Dropped in the middle it leaves moves that were done or not, none by half.
pub async fn execute(
    moves: Vec<MoveSpec>,
    hands: &dyn Hands,
    clock: &dyn Clock,
    lanes: &mut Lanes,
    at_once: usize,
) -> Vec<(MoveSpec, Relocated)> {
    let mut waiting = VecDeque::from(moves);
    let mut running = FuturesUnordered::new();
    let mut ended = Vec::new();
    loop {
        let now = clock.now();
        let mut next: Option<Moment> = None;
        let mut held_up = VecDeque::new();
        while running.len() < at_once.max(1) {
            let Some(chosen) = waiting.pop_front() else { break };
            match lanes.ready(chosen.source, chosen.target, now) {
                Ready::Now => {
                    lanes.begin(chosen.source, chosen.target, chosen.merit.bytes, now);
                    running.push(one(hands, chosen));
                    continue;
                }
                Ready::At(moment) => next = Some(next.map_or(moment, |next| next.min(moment))),
                Ready::Busy => {}
            }
            held_up.push_back(chosen);
        }
        // What is held up comes before what was not looked at.
        while let Some(chosen) = held_up.pop_back() {
            waiting.push_front(chosen);
        }
        if running.is_empty() && next.is_none() {
            return ended;
        }
        let wait = async {
            match next {
                Some(next) => clock.sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some((chosen, outcome)) = running.next() => {
                lanes.end(chosen.source, chosen.target);
                ended.push((chosen, outcome));
            }
            () = wait => {}
        }
    }
}

async fn one(hands: &dyn Hands, chosen: MoveSpec) -> (MoveSpec, Relocated) {
    hands.pace(chosen.merit.bytes).await;
    let outcome = hands.relocate(&chosen).await;
    (chosen, outcome)
}

#[cfg(test)]
mod tests;
