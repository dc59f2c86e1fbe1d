//! Clients that wait for a change of the ABM.
//!
//! One task looks at the replica's own state after each commit and publishes the revisions; whoever waits does it on them, with
//! neither a thread nor a read of its own. Any replica serves watches: what a follower tells of has been committed. It must
//! never let a client believe that it would hear of changes when it would not: a replica without leader or majority, or whose
//! store failed, sends its waiters away.

use std::sync::Arc;
use std::time::Duration;

use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Env, within};
use alba_core::net::rpc::Answer;
use alba_core::wire::rpc::watch::{Lineage, MAX_TOPICS, Seen, Topic, WatchReply, WatchRequest};
use alba_core::wire::rpc::{Consistency, Refusal, Reply};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::abm::{Abm, watched};
use crate::replicator::{Index, ReadWork, ReplicationError, Replicator};

/// Waiters at once on one server: some hundred bytes each.
pub(super) const MOST: usize = 4096;

/// How often the replica is asked whether it still hears of everything.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Longest a look at the replica's own state may take.
const READ_TIME: Duration = Duration::from_secs(2);

/// What waiters are told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Published {
    seen: Seen,
    /// Applied index of a state in which it is so.
    index: Index,
}

/// The watches of a server; its end ends them.
pub(super) struct Watches {
    env: Env,
    /// None while the replica cannot tell.
    now: watch::Receiver<Option<Published>>,
    room: Semaphore,
    _follow: AbortOnDrop,
}

/// Counts a waiter for as long as it waits, however that ends.
struct Waiting;

impl Waiting {
    fn begin() -> Self {
        metrics::gauge!("alba_watch_waiters").increment(1.0);
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        metrics::gauge!("alba_watch_waiters").decrement(1.0);
    }
}

impl Watches {
    /// Follows the replica. At most `most` may wait.
    pub(super) fn start(env: &Env, abm: Arc<dyn Replicator<Abm>>, most: usize) -> Self {
        let (publish, now) = watch::channel(None);
        let follow = follow(env.clone(), abm, publish);
        let follow = env.spawn.spawn("metadata-watch", Box::pin(follow)).abort_on_drop();
        Self { env: env.clone(), now, room: Semaphore::new(most), _follow: follow }
    }

    /// Waits until there is something to say, for as long as was asked for and its sender waits.
    pub(super) async fn wait(&self, request: WatchRequest, patience: Option<Duration>) -> Answer {
        if request.known.revisions.len() > MAX_TOPICS {
            let reason = format!("at most {MAX_TOPICS} topics can be watched at once");
            return Reply::Refused(Refusal::BadRequest(reason)).into();
        }
        let Ok(_room) = self.room.try_acquire() else {
            metrics::counter!("alba_watch_refused_total").increment(1);
            return Reply::Watch(WatchReply::TooMany).into();
        };
        let _waiting = Waiting::begin();
        let wait = request.wait().min(patience.unwrap_or(Duration::MAX));
        let mut now = self.now.clone();
        let news = now.wait_for(|now| match now {
            None => true,
            Some(now) => now.seen.is_news_to(&request.known),
        });
        match within(self.env.clock.as_ref(), self.env.deadline_in(wait), news).await {
            Ok(Ok(now)) => match &*now {
                Some(now) => {
                    metrics::counter!("alba_watch_wakeups_total").increment(1);
                    let news = now.seen.asked_by(&request.known);
                    Answer { reply: Reply::Watch(WatchReply::News(news)), index: now.index }
                }
                None => Reply::Refused(Refusal::Behind).into(),
            },
            // The server is going down.
            Ok(Err(_)) => Reply::Refused(Refusal::Behind).into(),
            Err(_) => Reply::Watch(WatchReply::Quiet).into(),
        }
    }
}

/// Publishes the replica's revisions for as long as anybody may wait for them.
async fn follow(env: Env, abm: Arc<dyn Replicator<Abm>>, publish: watch::Sender<Option<Published>>) {
    let mut commits = abm.commits();
    let mut last: Option<Published> = None;
    loop {
        // First, so that what is committed during the look wakes it again.
        commits.mark_unchanged();
        let now = match abm.trouble() {
            Some(_) => None,
            None => look(&env, abm.as_ref()).await.ok(),
        };
        let now = now.map(|(revisions, index)| next(last.as_ref(), revisions, index, || lineage(&env)));
        if now.is_some() {
            last.clone_from(&now);
        }
        publish.send_if_modified(|published| {
            // Another index alone is nothing that anybody waits for.
            let other =
                published.as_ref().map(|published| &published.seen) != now.as_ref().map(|now| &now.seen);
            if other {
                *published = now;
            }
            other
        });
        let changed = within(env.clock.as_ref(), env.deadline_in(LOOK_EVERY), commits.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            return;
        }
    }
}

/// What is told after `last`. A state that went back, as that of a replica which begins anew, is another one: revisions of the
/// one before say nothing about it.
fn next(
    last: Option<&Published>,
    revisions: Vec<(Topic, u64)>,
    index: Index,
    fresh: impl FnOnce() -> Lineage,
) -> Published {
    let grew = |last: &&Published| {
        let of = |topic| revisions.iter().find(|(of, _)| *of == topic).map_or(0, |(_, revision)| *revision);
        index >= last.index && last.seen.revisions.iter().all(|(topic, before)| of(*topic) >= *before)
    };
    let lineage = last.filter(grew).map_or_else(fresh, |last| last.seen.lineage);
    Published { seen: Seen { lineage, revisions }, index }
}

fn lineage(env: &Env) -> Lineage {
    Lineage(env.rng.u64().max(1))
}

/// The revisions in the replica's own state.
async fn look(env: &Env, abm: &dyn Replicator<Abm>) -> Result<(Vec<(Topic, u64)>, Index), ReplicationError> {
    let (answer, result) = oneshot::channel();
    let work: ReadWork = Box::new(move |store| {
        // The receiver goes only with the whole look.
        drop(answer.send(watched(store)?));
        Ok(())
    });
    let index = abm.read(work, Consistency::Any, env.deadline_in(READ_TIME)).await?;
    Ok((result.await.map_err(|_| ReplicationError::Stopped)?, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_went_back_is_another_one() {
        let at = |osds, presets| vec![(Topic::OSDS, osds), (Topic::PRESETS, presets)];
        let first = next(None, at(3, 4), 10, || Lineage(7));
        assert_eq!((first.seen.lineage, first.index), (Lineage(7), 10));
        let grown = next(Some(&first), at(3, 5), 11, || Lineage(8));
        assert_eq!(grown.seen, Seen { lineage: Lineage(7), revisions: at(3, 5) });
        assert_eq!(next(Some(&grown), at(2, 9), 12, || Lineage(8)).seen.lineage, Lineage(8));
        assert_eq!(next(Some(&grown), at(3, 5), 10, || Lineage(8)).seen.lineage, Lineage(8));
        assert_eq!(next(Some(&grown), Vec::new(), 12, || Lineage(8)).seen.lineage, Lineage(8));
    }
}
