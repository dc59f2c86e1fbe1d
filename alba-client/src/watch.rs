//! Hears of changes of the ABM without asking for what has not changed.
//!
//! A task asks one metadata server to answer when something has changed, again and again, and counts. What it gives are hints: who
//! works with something of the ABM's remembers the [`Generation`] it was read at, and reads it again when that has grown. A
//! generation never goes back, whatever servers say, and grows whenever a change may have been missed. While nobody tells of
//! changes [`Changes::told`] is false, and what was read is good only for as long as its reader says.

use std::sync::Arc;
use std::time::Duration;

use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Clock, Directory, Env, MetaError, Moment, within};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmQuery, Revisions};
use alba_core::wire::rpc::watch::{Lineage, Seen, Topic, WatchReply, WatchRequest};
use tokio::sync::watch;

/// How long a server waits for a change. A server that is cut off is found out after it at the latest, when nothing else is asked
/// of it.
const WAIT: Duration = Duration::from_secs(10);

/// What an answer may take longer than that.
const SLACK: Duration = Duration::from_millis(2500);

/// Between two questions, half of it at least: changes that come together are read together.
const BETWEEN: Duration = Duration::from_millis(500);

/// First and longest pause after nobody could be reached.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How often the revisions are asked for while nobody tells of changes, half of it at least.
const POLL: Duration = Duration::from_secs(10);

/// So many polls before it is tried again whether somebody tells.
const POLLS: u32 = 6;

/// Longest one poll may take.
const POLL_TIME: Duration = Duration::from_secs(5);

/// How often something may have changed: counted here, from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

/// What is known of changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    generations: [u64; Topic::ALL.len()],
    told: bool,
}

impl Changes {
    /// What was read at an earlier generation of a topic may not be so any more.
    pub fn of(&self, topic: Topic) -> Generation {
        Generation(self.generations.get(usize::from(topic.0)).copied().unwrap_or(0))
    }

    /// Would a change be heard of?
    pub fn told(&self) -> bool {
        self.told
    }

    fn count(&mut self, topic: Topic) {
        if let Some(generation) = self.generations.get_mut(usize::from(topic.0)) {
            *generation = generation.saturating_add(1);
        }
    }
}

/// How new something must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fresh {
    /// Read less than this ago…
    pub(crate) max_age: Duration,
    /// … and at this generation.
    pub(crate) generation: Generation,
}

impl Fresh {
    /// Read less than this ago, whatever has changed since.
    pub(crate) fn within(max_age: Duration) -> Self {
        Self { max_age, generation: Generation::default() }
    }

    /// Is what was read then, knowing of the changes up to `at.1`, new enough?
    pub(crate) fn is_met_by(&self, at: (Moment, Generation), now: Moment) -> bool {
        now.since(at.0) < self.max_age && at.1 >= self.generation
    }
}

/// Counts changes by what servers say. Decides; the task around it does the asking.
#[derive(Debug, Default)]
struct Count {
    known: Seen,
    polled: Option<Revisions>,
    changes: Changes,
}

impl Count {
    fn new() -> Self {
        Self { known: Seen::nothing(&Topic::ALL), ..Self::default() }
    }

    /// A server says that something is different.
    fn news(&mut self, seen: &Seen) {
        let another = seen.lineage != self.known.lineage;
        for (topic, before) in &mut self.known.revisions {
            let now = seen.of(*topic);
            // Of a server other than the last one it is not known how its numbers compare: anything may have changed.
            if another || now.is_some_and(|now| now != *before) {
                self.changes.count(*topic);
            }
            *before = now.unwrap_or(0);
        }
        self.known.lineage = seen.lineage;
        self.told();
    }

    /// A server has waited in vain.
    fn quiet(&mut self) {
        // One that was told that nothing is known must have news.
        if self.known.lineage != Lineage::default() {
            self.told();
        }
    }

    fn told(&mut self) {
        self.changes.told = true;
        self.polled = None;
    }

    /// Nobody tells.
    fn silence(&mut self) {
        self.changes.told = false;
    }

    /// The group's newest revisions, asked for.
    fn polled(&mut self, now: Revisions) {
        let parts = |of: &Revisions| {
            [
                (Topic::OSDS, of.osds),
                (Topic::PRESETS, of.presets),
                (Topic::NAMESPACES, of.namespaces),
                (Topic::GROUPS, of.groups),
                (Topic::MAINTENANCE, of.maintenance),
            ]
        };
        let Some(before) = self.polled.replace(now) else {
            // Nothing is known to compare with.
            parts(&now).into_iter().for_each(|(topic, _)| self.changes.count(topic));
            return;
        };
        let pairs = || parts(&before).into_iter().zip(parts(&now));
        // A group whose numbers went back is another one: it was restored.
        let another = pairs().any(|((_, before), (_, now))| now < before);
        for ((topic, before), (_, now)) in pairs() {
            if another || now != before {
                self.changes.count(topic);
            }
        }
    }
}

/// Hears of changes for as long as it lives.
pub struct AbmWatch {
    now: watch::Receiver<Changes>,
    _task: AbortOnDrop,
}

impl AbmWatch {
    /// Starts to listen.
    pub fn start(env: &Env, directory: Arc<dyn Directory>) -> Self {
        let (publish, now) = watch::channel(Changes::default());
        let task = follow(env.clone(), directory, publish);
        let task = env.spawn.spawn("abm-watch", Box::pin(task)).abort_on_drop();
        Self { now, _task: task }
    }

    /// What is known now.
    pub fn now(&self) -> Changes {
        *self.now.borrow()
    }

    /// Waits until something has changed since the last call, or since the start, or whether changes are told has.
    pub async fn changed(&mut self) -> Changes {
        if self.now.changed().await.is_err() {
            // The task ends only with its node.
            std::future::pending::<()>().await;
        }
        *self.now.borrow_and_update()
    }

    /// The same for somebody who does not keep it alive: it ends when this does.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Changes> {
        self.now.clone()
    }
}

/// Sleeps for half of `longest` to all of it: clients that were told together don't come back together.
pub(crate) async fn pause(env: &Env, longest: Duration) {
    let thousandths = u32::try_from(env.rng.u64() % 500).unwrap_or(0) + 500;
    env.clock.sleep_until(env.clock.now().plus(longest / 1000 * thousandths)).await;
}

async fn follow(env: Env, directory: Arc<dyn Directory>, publish: watch::Sender<Changes>) {
    let clock: &dyn Clock = env.clock.as_ref();
    let mut count = Count::new();
    let mut failures: u32 = 0;
    let tell = |count: &Count| {
        publish.send_if_modified(|changes| std::mem::replace(changes, count.changes) != count.changes);
    };
    loop {
        let wait_ms = u32::try_from(WAIT.as_millis()).unwrap_or(u32::MAX);
        let request = WatchRequest { known: count.known.clone(), wait_ms };
        let deadline = env.deadline_in(WAIT + SLACK);
        match within(clock, deadline, directory.watch(request, deadline)).await {
            Ok(Ok(WatchReply::News(seen))) => {
                count.news(&seen);
                failures = 0;
            }
            Ok(Ok(WatchReply::Quiet)) => {
                count.quiet();
                failures = 0;
            }
            // All servers are of an older version, or have too many waiters.
            Ok(Ok(WatchReply::TooMany) | Err(MetaError::Protocol(_))) => {
                count.silence();
                tell(&count);
                for _ in 0..POLLS {
                    if let Some(revisions) = poll(&env, directory.as_ref()).await {
                        count.polled(revisions);
                        tell(&count);
                    }
                    pause(&env, POLL).await;
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "nobody tells of changes");
                count.silence();
                failures = failures.saturating_add(1);
            }
            Err(_) => {
                count.silence();
                failures = failures.saturating_add(1);
            }
        }
        tell(&count);
        match failures {
            0 => pause(&env, BETWEEN).await,
            _ => pause(&env, RETRY.0.saturating_mul(1 << failures.min(10)).min(RETRY.1)).await,
        }
    }
}

async fn poll(env: &Env, directory: &dyn Directory) -> Option<Revisions> {
    let deadline = env.deadline_in(POLL_TIME);
    let asked = directory.query(AbmQuery::Revisions, deadline);
    match within(env.clock.as_ref(), deadline, asked).await {
        Ok(Ok(AbmAnswer::Revisions(revisions))) => Some(revisions),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
