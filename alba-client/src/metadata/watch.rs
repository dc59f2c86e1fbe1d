//! Waiting for changes at any server of the ABM: the one that told last is asked again, since what is known is known from it.

use std::net::SocketAddr;

use alba_core::env::{Deadline, MetaError};
use alba_core::net::rpc::Answer;
use alba_core::wire::rpc::watch::{WatchReply, WatchRequest};
use alba_core::wire::rpc::{Reply, Request};

use super::{Attempt, MetadataClient, unexpected};

#[cfg(test)]
mod tests;

impl MetadataClient {
    /// Asks one server after the other until one tells. When none does: [`WatchReply::TooMany`] if any would later,
    /// [`MetaError::Protocol`] if any answers but does not know the request (a server of an older version).
    pub(super) async fn watch_changes(
        &self,
        request: WatchRequest,
        deadline: Deadline,
    ) -> Result<WatchReply, MetaError> {
        let mut too_many = false;
        let mut old = None;
        let mut seen = "no server is known; check the configured addresses".to_owned();
        for server in self.watch_candidates() {
            let mut ask = || Request::Watch(request.clone());
            match self.attempt(server, &mut ask, deadline).await {
                Ok(Attempt::Answered(Answer { reply: Reply::Watch(WatchReply::TooMany), .. })) => {
                    too_many = true;
                }
                Ok(Attempt::Answered(Answer { reply: Reply::Watch(reply), index })) => {
                    let mut state = self.lock();
                    state.watched = Some(server);
                    let newest = state.seen.entry(self.abm.clone()).or_default();
                    *newest = index.max(*newest);
                    return Ok(reply);
                }
                Ok(Attempt::Answered(answer)) => seen = format!("{server}: {}", unexpected(&answer.reply)),
                Ok(Attempt::Again(reason)) => seen = reason,
                Ok(Attempt::Elsewhere(leader)) => seen = format!("{server} says that {leader} leads"),
                Err(error) => old = Some(error),
            }
            let mut state = self.lock();
            // Another one next time, also when this one has used up all the time.
            state.watched = None;
            state.unwatchable = Some(server);
            drop(state);
            if deadline.left(self.env.clock.as_ref()).is_zero() {
                break;
            }
        }
        if too_many {
            return Ok(WatchReply::TooMany);
        }
        Err(old.unwrap_or(MetaError::Unreachable { group: self.abm.clone(), reason: seen }))
    }

    /// The one that told last; then the others in any order, so that clients spread over them; last who did not tell.
    fn watch_candidates(&self) -> Vec<SocketAddr> {
        let mut all = self.candidates(&self.abm);
        for end in (1..all.len()).rev() {
            let range = u64::try_from(end).unwrap_or(u64::MAX).saturating_add(1);
            all.swap(end, usize::try_from(self.env.rng.u64() % range).unwrap_or(end));
        }
        let state = self.lock();
        all.sort_by_key(|server| match Some(*server) {
            server if server == state.watched => 0,
            server if server == state.unwatchable => 2,
            _ => 1,
        });
        all
    }
}
