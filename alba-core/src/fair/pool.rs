//! Units that are taken, waited for and given back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tokio::sync::oneshot;

use super::queue::{Flow, Queue, Ticket};
use crate::env::{Clock, Deadline, within};

/// How much there is, and who may have how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Units in all.
    pub total: u64,
    /// Of these, kept for small requests. Must be less than `total`.
    pub reserve: u64,
    /// A request for at most so many units is small.
    pub small: u64,
    /// Units that one client may have at once. One that has nothing gets what it asks for, however much.
    pub per_client: u64,
}

impl Limits {
    /// No reserve, no limit per client.
    pub fn all_alike(total: u64) -> Self {
        Self { total, reserve: 0, small: 0, per_client: u64::MAX }
    }

    fn lane(&self, units: u64) -> Lane {
        if units <= self.small { Lane::Small } else { Lane::Bulk }
    }

    fn room(&self, lane: Lane) -> u64 {
        match lane {
            Lane::Small => self.reserve.min(self.total),
            Lane::Bulk => self.total.saturating_sub(self.reserve),
        }
        .max(1)
    }
}

/// Which of the two queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Of small requests.
    Small,
    /// Of all others.
    Bulk,
}

/// Nothing became free by the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Exhausted {
    /// Others have it.
    #[error("all {0} are in use")]
    Total(u64),
    /// The client has as much as one may have.
    #[error("this client has as many as one may have, {0}")]
    Client(u64),
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Where it waits and whose room it takes.
    pub lane: Lane,
    /// Taken until the permit is dropped.
    pub units: u64,
    /// Counted for whose turn it is.
    pub cost: u64,
}

/// What is taken and waited for now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Units taken.
    pub used: u64,
    /// Requests that wait.
    pub waiting: usize,
}

/// A counter of units, shared fairly. Clones are handles on the same one.
#[derive(Clone)]
pub struct Pool(Arc<Mutex<State>>);

struct State {
    limits: Limits,
    small: Half,
    bulk: Half,
    /// What each client has; those that have nothing are not there.
    clients: BTreeMap<u64, u64>,
}

#[derive(Default)]
struct Half {
    used: u64,
    queue: Queue<Waiter>,
}

struct Waiter {
    units: u64,
    grant: oneshot::Sender<Permit>,
}

/// Units that are taken; given back when dropped.
#[must_use]
pub struct Permit {
    pool: Pool,
    lane: Lane,
    client: Option<u64>,
    units: u64,
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit").field("lane", &self.lane).field("units", &self.units).finish_non_exhaustive()
    }
}

impl State {
    fn half(&mut self, lane: Lane) -> &mut Half {
        match lane {
            Lane::Small => &mut self.small,
            Lane::Bulk => &mut self.bulk,
        }
    }

    fn may(&self, client: Option<u64>, units: u64) -> bool {
        let has = client.and_then(|client| self.clients.get(&client)).copied().unwrap_or(0);
        has == 0 || has.saturating_add(units) <= self.limits.per_client
    }

    fn take(&mut self, pool: &Pool, lane: Lane, client: Option<u64>, units: u64) -> Permit {
        self.half(lane).used += units;
        if let Some(client) = client {
            *self.clients.entry(client).or_default() += units;
        }
        Permit { pool: pool.clone(), lane, client, units }
    }

    /// Serves, in fair order, whom there is room for. Nobody overtakes the one whose turn it is and who needs more room
    /// than there is; only clients that have their share already are passed over.
    fn dispatch(&mut self, pool: &Pool) -> Vec<(oneshot::Sender<Permit>, Permit)> {
        let mut served = Vec::new();
        for lane in [Lane::Small, Lane::Bulk] {
            let room = self.limits.room(lane);
            loop {
                let half = match lane {
                    Lane::Small => &self.small,
                    Lane::Bulk => &self.bulk,
                };
                let next = half.queue.next(|client, waiter| self.may(client, waiter.units));
                let Some((next, waiter)) = next else { break };
                // What is larger than all the room gets all of it.
                if half.used > 0 && half.used.saturating_add(waiter.units) > room {
                    break;
                }
                let Some(waiter) = self.half(lane).queue.serve(next.ticket) else { break };
                let permit = self.take(pool, lane, next.flow.client, waiter.units);
                served.push((waiter.grant, permit));
            }
        }
        served
    }
}

/// A place in the queue, left when the waiting ends.
struct Place<'a> {
    pool: &'a Pool,
    lane: Lane,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // Who leaves may have been in the way of others.
        self.pool.change(|state| drop(state.half(self.lane).queue.cancel(self.ticket)));
    }
}

impl Pool {
    /// With nothing taken.
    pub fn new(limits: Limits) -> Self {
        let (small, bulk) = (Half::default(), Half::default());
        Self(Arc::new(Mutex::new(State { limits, small, bulk, clients: BTreeMap::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Consistent between any two statements that hold the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and serves whom that made room for. Permits are handed over without the lock: one that nobody
    /// takes any more gives itself back at once.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let served = {
            let mut state = self.lock();
            change(&mut state);
            state.dispatch(self)
        };
        for (waiter, permit) in served {
            drop(waiter.send(permit));
        }
    }

    /// Waits for `units` until it is the flow's turn and there is room. May be dropped at any time.
    pub async fn take(
        &self,
        clock: &dyn Clock,
        flow: &Flow,
        units: u64,
        deadline: Deadline,
    ) -> Result<Permit, Exhausted> {
        let lane = self.lock().limits.lane(units);
        self.take_in(clock, flow, Want { lane, units, cost: units }, deadline).await
    }

    /// The same where what is taken says nothing about the size of the request.
    pub async fn take_in(
        &self,
        clock: &dyn Clock,
        flow: &Flow,
        Want { lane, units, cost }: Want,
        deadline: Deadline,
    ) -> Result<Permit, Exhausted> {
        let (place, mut granted) = {
            let mut state = self.lock();
            let room = state.limits.room(lane);
            let may = state.may(flow.client, units);
            let half = state.half(lane);
            let fits = half.used == 0 || half.used.saturating_add(units) <= room;
            if fits && may && half.queue.is_empty() {
                half.queue.charge(flow, cost);
                return Ok(state.take(self, lane, flow.client, units));
            }
            let (grant, granted) = oneshot::channel();
            let ticket = half.queue.push(flow.clone(), cost, Waiter { units, grant });
            (Place { pool: self, lane, ticket }, granted)
        };
        // Those who wait may all be clients that have their share.
        self.change(|_| {});
        match within(clock, deadline, &mut granted).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => {
                let state = self.lock();
                let limits = state.limits;
                let room = limits.room(place.lane);
                let full = !state.may(flow.client, units);
                drop(state);
                Err(if full { Exhausted::Client(limits.per_client) } else { Exhausted::Total(room) })
            }
        }
    }

    /// Other limits from now on. What is taken stays taken.
    pub fn resize(&self, limits: Limits) {
        self.change(|state| state.limits = limits);
    }

    /// What is taken and waited for now.
    pub fn usage(&self) -> Usage {
        let state = self.lock();
        Usage {
            used: state.small.used + state.bulk.used,
            waiting: state.small.queue.len() + state.bulk.queue.len(),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Self { lane, client, units, .. } = *self;
        self.pool.clone().change(|state| {
            let half = state.half(lane);
            half.used = half.used.saturating_sub(units);
            if let Some(client) = client
                && let Some(has) = state.clients.get_mut(&client)
            {
                *has = has.saturating_sub(units);
                if *has == 0 {
                    state.clients.remove(&client);
                }
            }
        });
    }
}
