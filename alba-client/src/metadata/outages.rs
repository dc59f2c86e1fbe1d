//! Groups that do not answer, asked ever more rarely until they do: for agents, which have time and are many.
//!
//! A short silence is nobody's business: a group elects another leader within a second or two, and who asks simply asks again. A
//! group that says nothing for longer is *lost*. From then on one caller at a time asks its servers, once each, and after
//! growing pauses; all others wait for what comes of that, and go on together when the group answers. So a group that
//! comes back is not met by everybody's retries, and an agent that waits costs next to nothing however much it has to do.
//!
//! Nobody waits for ever: who has waited for [`PATIENCE`] since the group was last heard of gets an error, and who comes later
//! gets it at once. So work on other groups goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alba_core::env::{Deadline, Env, MetaError, Moment};
use alba_core::ids::GroupId;
use tokio::sync::Notify;

/// A group that says nothing to a caller for so long is lost. Longer than any election takes.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// First and longest pause between two attempts; doubles, each time jittered down to half.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// How long callers wait for a lost group, counted from when it was last heard of.
const PATIENCE: Duration = Duration::from_secs(30);

/// A group that is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// Which.
    pub group: GroupId,
    /// Since when nobody has heard of it.
    pub since: Moment,
    /// How often its servers were asked since it counts as lost.
    pub attempts: u64,
    /// When they are asked next, at the earliest.
    pub next: Moment,
    /// What was seen last.
    pub reason: String,
}

#[derive(Debug)]
struct Lost {
    since: Moment,
    attempts: u64,
    next: Moment,
    /// Somebody asks now.
    asking: bool,
    reason: String,
}

/// What a caller may do.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// The group is not lost.
    Free,
    /// It is, and this caller asks for all.
    Asks,
    /// Another one asks, or it is too early: until then at the longest.
    Waits(Moment),
    /// It has been lost for too long.
    Fails,
}

impl Lost {
    fn turn(&mut self, now: Moment) -> Turn {
        if !self.asking && now >= self.next {
            self.asking = true;
            return Turn::Asks;
        }
        let end = self.since.plus(PATIENCE);
        if now >= end {
            return Turn::Fails;
        }
        Turn::Waits(if self.asking { end } else { self.next.min(end) })
    }

    /// Asked in vain. `thousandths` of the pause are waited, 500 to 1000.
    fn asked(&mut self, now: Moment, thousandths: u32) {
        let doublings = u32::try_from(self.attempts.min(16)).unwrap_or(16);
        let pause = PAUSE.0.saturating_mul(1 << doublings).min(PAUSE.1);
        self.attempts = self.attempts.saturating_add(1);
        self.next = now.plus(pause / 1000 * thousandths);
        self.asking = false;
    }
}

#[derive(Debug, Default)]
struct State {
    lost: BTreeMap<GroupId, Lost>,
    /// When each group was last heard of.
    heard: BTreeMap<GroupId, Moment>,
}

/// See the module. Shared by all callers of a process.
pub struct Outages {
    env: Env,
    state: Mutex<State>,
    /// Something came of an attempt.
    news: Notify,
}

/// The right to ask a lost group. Dropped, whoever comes next may ask.
pub(super) struct Attempt<'a> {
    outages: &'a Outages,
    group: &'a GroupId,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let thousandths = self.outages.thousandths();
        let now = self.outages.env.clock.now();
        if let Some(lost) = self.outages.lock().lost.get_mut(self.group) {
            lost.asked(now, thousandths);
            metrics::counter!("alba_metadata_attempts_total", "group" => self.group.to_string()).increment(1);
        }
        self.outages.news.notify_waiters();
    }
}

impl Outages {
    /// None yet.
    pub fn new(env: Env) -> Arc<Self> {
        Arc::new(Self { env, state: Mutex::default(), news: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic happens under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn thousandths(&self) -> u32 {
        u32::try_from(self.env.rng.u64() % 500).unwrap_or(0) + 500
    }

    /// The groups that are lost now.
    pub fn all(&self) -> Vec<Outage> {
        let outage = |(group, lost): (&GroupId, &Lost)| Outage {
            group: group.clone(),
            since: lost.since,
            attempts: lost.attempts,
            next: lost.next,
            reason: lost.reason.clone(),
        };
        self.lock().lost.iter().map(outage).collect()
    }

    /// Waits until the group may be asked. With the right to do so for all when it is lost.
    pub(super) async fn turn<'a>(
        &'a self,
        group: &'a GroupId,
        deadline: Deadline,
    ) -> Result<Option<Attempt<'a>>, MetaError> {
        let clock = self.env.clock.as_ref();
        loop {
            // Before the look: what comes of an attempt after it is not missed.
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            let now = clock.now();
            let (turn, since, reason) = match self.lock().lost.get_mut(group) {
                None => (Turn::Free, now, String::new()),
                Some(lost) => (lost.turn(now), lost.since, lost.reason.clone()),
            };
            let until = match turn {
                Turn::Free => return Ok(None),
                Turn::Asks => return Ok(Some(Attempt { outages: self, group })),
                Turn::Waits(until) if !deadline.left(clock).is_zero() => until,
                Turn::Waits(_) | Turn::Fails => {
                    let seconds = now.since(since).as_secs();
                    let reason = format!("nothing heard for {seconds} s: {reason}");
                    return Err(MetaError::Unreachable { group: group.clone(), reason });
                }
            };
            tokio::select! {
                biased;
                () = news => {}
                () = clock.sleep_until(until.min(now.plus(deadline.left(clock)))) => {}
            }
        }
    }

    /// All servers of the group were asked in vain by somebody who began at `began`. Is it lost?
    pub(super) fn silent(&self, group: &GroupId, began: Moment, reason: &str) -> bool {
        let now = self.env.clock.now();
        let thousandths = self.thousandths();
        let mut state = self.lock();
        if let Some(lost) = state.lost.get_mut(group) {
            reason.clone_into(&mut lost.reason);
            return true;
        }
        // Others may have been answered meanwhile: then it is only slow.
        let since = state.heard.get(group).copied().unwrap_or(began).max(began);
        if now.since(since) < LOST_AFTER {
            return false;
        }
        let next = now.plus(PAUSE.0 / 1000 * thousandths);
        let lost = Lost { since, attempts: 0, next, asking: false, reason: reason.to_owned() };
        state.lost.insert(group.clone(), lost);
        drop(state);
        tracing::warn!(%group, reason, "metadata group does not answer; waiting for it");
        metrics::gauge!("alba_metadata_lost", "group" => group.to_string()).set(1.0);
        self.news.notify_waiters();
        true
    }

    /// The group has answered.
    pub(super) fn answered(&self, group: &GroupId) {
        let now = self.env.clock.now();
        let mut state = self.lock();
        match state.heard.get_mut(group) {
            Some(heard) => *heard = now,
            None => drop(state.heard.insert(group.clone(), now)),
        }
        let Some(lost) = state.lost.remove(group) else { return };
        drop(state);
        let seconds = now.since(lost.since).as_secs();
        tracing::info!(%group, seconds, attempts = lost.attempts, "metadata group answers again");
        metrics::gauge!("alba_metadata_lost", "group" => group.to_string()).set(0.0);
        self.news.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    fn lost() -> Lost {
        Lost { since: at(0), attempts: 0, next: at(5500), asking: false, reason: String::new() }
    }

    #[test]
    fn one_asks_and_the_others_wait_and_none_for_ever() {
        let mut lost = lost();
        assert_eq!(lost.turn(at(5000)), Turn::Waits(at(5500)));
        assert_eq!(lost.turn(at(5500)), Turn::Asks);
        assert_eq!(lost.turn(at(5600)), Turn::Waits(at(30_000)), "for what comes of it");
        assert_eq!(lost.turn(at(30_000)), Turn::Fails);
        lost.asked(at(30_000), 1000);
        assert_eq!(lost.turn(at(30_100)), Turn::Fails, "too early, and no time to wait");
        assert_eq!(lost.turn(at(30_500)), Turn::Asks, "whoever comes then asks, however late");
    }

    #[test]
    fn pauses_grow_to_ten_seconds() {
        let mut lost = lost();
        let mut now = at(0);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            lost.asked(now, 1000);
            pauses.push(lost.next.since(now).as_millis());
            now = lost.next;
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 10_000, 10_000, 10_000]);
        assert_eq!(lost.attempts, 8);
        lost.asked(at(0), 500);
        assert_eq!(lost.next, at(5000), "jittered down to half");
        lost.attempts = u64::MAX;
        lost.asked(at(0), 1000);
        assert_eq!(lost.next, at(10_000));
    }
}
