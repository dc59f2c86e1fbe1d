//! How fast maintenance goes: rates per task and in all, and less while clients would notice.
//!
//! [`Rate`], [`politeness`] and [`company`] are pure; [`Pace`] waits. Every wait ends: a rate is never zero.

mod company;
mod politeness;
mod probe;
mod rate;

use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use alba_core::env::{Clock, Env, Moment};

pub use company::{Company, OSDS_PER_MOVE, OSDS_PER_REPAIR, transfers};
pub use politeness::{FULL, Politeness, share_of};
pub use probe::give_way;
pub use rate::{Limits, Rate};

/// The limits of one task, or of all together.
#[derive(Debug)]
struct Buckets {
    bytes: Option<Rate>,
    objects: Option<Rate>,
}

impl Buckets {
    fn new(limits: Limits) -> Self {
        Self {
            bytes: limits.bytes_per_second.map(Rate::new),
            objects: limits.objects_per_second.map(Rate::new),
        }
    }

    fn change(&mut self, limits: Limits) {
        *self = Self::new(limits);
    }

    fn reserve(&mut self, now: Moment, bytes: u64, objects: u64, share: u16) -> Moment {
        let bytes = self.bytes.as_mut().map_or(now, |rate| rate.reserve(now, bytes, share));
        let objects = self.objects.as_mut().map_or(now, |rate| rate.reserve(now, objects, share));
        bytes.max(objects)
    }
}

/// The pace of one task.
#[derive(Clone)]
pub struct Pace {
    clock: Arc<dyn Clock>,
    own: Arc<Mutex<Buckets>>,
    all: Arc<Mutex<Buckets>>,
    share: Arc<AtomicU16>,
    /// Objects in work of which the next loss would cost data.
    urgent: Arc<AtomicUsize>,
}

/// See [`Pace::hurry`].
pub struct Hurry(Option<Arc<AtomicUsize>>);

impl Drop for Hurry {
    fn drop(&mut self) {
        if let Some(urgent) = &self.0 {
            urgent.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Pace {
    /// The pace of all tasks together, which those of single tasks come from.
    pub fn new(env: &Env, limits: Limits) -> Self {
        Self {
            clock: env.clock.clone(),
            own: Arc::new(Mutex::new(Buckets::new(Limits::default()))),
            all: Arc::new(Mutex::new(Buckets::new(limits))),
            share: Arc::new(AtomicU16::new(FULL)),
            urgent: Arc::default(),
        }
    }

    /// The pace of a task with these limits of its own.
    #[must_use]
    pub fn of_task(&self, limits: Limits) -> Self {
        Self { own: Arc::new(Mutex::new(Buckets::new(limits))), ..self.clone() }
    }

    /// Other limits of its own from now on.
    pub fn change(&self, limits: Limits) {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).change(limits);
    }

    /// Other limits of all together from now on.
    pub fn change_all(&self, limits: Limits) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).change(limits);
    }

    /// How much of the rates is used now, of [`FULL`].
    pub fn share(&self) -> u16 {
        self.share.load(Ordering::Relaxed)
    }

    /// Uses so much of the rates from now on, of [`FULL`]; at least one part.
    pub fn set_share(&self, share: u16) {
        self.share.store(share.clamp(1, FULL), Ordering::Relaxed);
    }

    /// While what it gives is there, clients are no reason to go slower, if `urgent`: what is done cannot wait.
    pub fn hurry(&self, urgent: bool) -> Hurry {
        Hurry(urgent.then(|| {
            self.urgent.fetch_add(1, Ordering::Relaxed);
            self.urgent.clone()
        }))
    }

    /// Is anything done that cannot wait?
    pub fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed) > 0
    }

    /// Waits until `objects` things of `bytes` bytes together may be done.
    pub async fn wait(&self, objects: u64, bytes: u64) {
        let now = self.clock.now();
        let share = self.share();
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).reserve(now, bytes, objects, share);
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner).reserve(now, bytes, objects, share);
        let until = own.max(all);
        if until > now {
            self.clock.sleep_until(until).await;
        }
    }
}
