//! Admission to the disk: two priorities, bounded bytes in flight, waits that end at the caller's deadline.
//!
//! High (clients) goes first; low (maintenance) has at least a tenth of the bandwidth when both want all of it, everything
//! when it is alone, and little in flight while clients are around, so that a client's read waits behind little. It must
//! never be held while an answer is sent: a slow client would keep the disk from others.

mod model;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alba_core::env::osd::Priority;
use alba_core::env::{Clock, Deadline, Moment, OsdError, within};
use tokio::sync::oneshot;

pub use model::{ClassLoad, ScheduleLimits};
use model::{Model, Ticket};

/// What operations cost, in bytes of the disk's time. The constants are the original's (features §4.3).
pub mod cost {
    /// Of a read or a write, beside its bytes: about what a disk could transfer while it positions.
    pub const OPERATION: u64 = 32_000;

    /// Of a key that is only looked up in the index.
    pub const KEY: u64 = 200;

    /// Of `operations` that move `bytes`.
    pub fn transfer(operations: usize, bytes: u64) -> u64 {
        let operations = u64::try_from(operations).unwrap_or(u64::MAX);
        operations.saturating_mul(OPERATION).saturating_add(bytes)
    }

    /// Of looking up `keys`.
    pub fn lookup(keys: usize) -> u64 {
        u64::try_from(keys).unwrap_or(u64::MAX).saturating_mul(KEY)
    }
}

struct State {
    model: Model,
    /// Who is to be woken when its turn comes.
    callers: BTreeMap<Ticket, oneshot::Sender<()>>,
}

/// The way to the disk.
pub struct Gate {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

/// Bytes in flight; dropped when the disk has done its part.
pub struct Permit(#[allow(dead_code, reason = "held for its drop")] Place);

/// A place in a queue or in flight. Whenever its holder goes away, it is given back.
struct Place {
    gate: Arc<Gate>,
    priority: Priority,
    ticket: Ticket,
}

impl Drop for Place {
    fn drop(&mut self) {
        let at = self.gate.clock.now();
        let mut state = self.gate.lock();
        state.callers.remove(&self.ticket);
        state.model.leave(self.priority, self.ticket, at);
        self.gate.grant(&mut state, at);
    }
}

impl Gate {
    /// A gate that nothing has passed yet.
    pub fn new(clock: Arc<dyn Clock>, limits: ScheduleLimits) -> Arc<Self> {
        let state = State { model: Model::new(limits), callers: BTreeMap::new() };
        Arc::new(Self { clock, state: Mutex::new(state) })
    }

    /// Changes the bounds from now on. What is in flight stays so.
    pub fn set_limits(&self, limits: ScheduleLimits) {
        let mut state = self.lock();
        state.model.set_limits(limits);
        self.grant(&mut state, self.clock.now());
    }

    /// No code panics while it holds the lock, so a poisoned lock holds sound data.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes exactly those whose turn it is.
    fn grant(&self, state: &mut State, at: Moment) {
        while let Some(ticket) = state.model.grant(at) {
            if let Some(caller) = state.callers.remove(&ticket) {
                // A caller that is going away at this moment gives its place back itself.
                let _ = caller.send(());
            }
        }
    }

    /// Waits for its turn with `bytes` (see [`cost`]), until `deadline`.
    pub async fn admit(
        self: &Arc<Self>,
        priority: Priority,
        bytes: u64,
        deadline: Deadline,
    ) -> Result<Permit, OsdError> {
        let (place, granted) = self.queue(priority, bytes)?;
        // The sender lives until it has sent, so an error cannot come before the grant.
        let waited = within(self.clock.as_ref(), deadline, granted).await;
        if waited.is_ok() {
            return Ok(Permit(place));
        }
        count_refused(priority, "deadline");
        let load = self.load(priority);
        Err(OsdError::Overloaded(format!(
            "no turn by the deadline: {} {} operations with {} bytes wait, {} bytes are in flight, {} may be",
            load.waiting,
            name(priority),
            load.waiting_bytes,
            self.load(Priority::High).running_bytes + self.load(Priority::Low).running_bytes,
            self.lock().model.limits().in_flight,
        )))
    }

    fn queue(
        self: &Arc<Self>,
        priority: Priority,
        bytes: u64,
    ) -> Result<(Place, oneshot::Receiver<()>), OsdError> {
        let at = self.clock.now();
        let mut state = self.lock();
        let ticket = state.model.arrive(priority, bytes, at).map_err(|refused| {
            count_refused(priority, "queue");
            OsdError::Overloaded(format!(
                "{} bytes of {} operations wait already: come back later",
                refused.waiting,
                name(priority)
            ))
        })?;
        let (caller, granted) = oneshot::channel();
        state.callers.insert(ticket, caller);
        self.grant(&mut state, at);
        drop(state);
        Ok((Place { gate: self.clone(), priority, ticket }, granted))
    }

    /// What a class has now.
    pub fn load(&self, priority: Priority) -> ClassLoad {
        self.lock().model.load(priority)
    }

    /// Shows queues and bytes in flight as metrics.
    pub fn report(&self) {
        for priority in [Priority::High, Priority::Low] {
            let load = self.load(priority);
            let class = name(priority);
            let count = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
            metrics::gauge!("alba_osd_queue_operations", "class" => class).set(count(load.waiting));
            metrics::gauge!("alba_osd_queue_bytes", "class" => class).set(crate::gauge(load.waiting_bytes));
            metrics::gauge!("alba_osd_in_flight_operations", "class" => class).set(count(load.running));
            metrics::gauge!("alba_osd_in_flight_bytes", "class" => class)
                .set(crate::gauge(load.running_bytes));
        }
    }
}

fn count_refused(priority: Priority, reason: &'static str) {
    metrics::counter!("alba_osd_refused_total", "class" => name(priority), "reason" => reason).increment(1);
}

/// As metrics and errors call a class.
pub(crate) fn name(priority: Priority) -> &'static str {
    match priority {
        Priority::High => "high",
        Priority::Low => "low",
    }
}
