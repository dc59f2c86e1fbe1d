//! Whether a daemon can serve, and why not.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

/// A daemon's own judgement, shown at `/health/ready`. Cheap to clone; not ready ("starting") at first.
#[derive(Debug, Clone)]
pub struct Health(Arc<Mutex<Readiness>>);

/// Can it serve?
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Yes or no.
    pub ready: bool,
    /// Why not; empty when it can.
    pub reason: String,
}

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Readiness { ready: false, reason: "starting".to_owned() })))
    }
}

impl Health {
    /// It can serve from now on.
    pub fn set_ready(&self) {
        self.set(Readiness { ready: true, reason: String::new() });
    }

    /// It cannot serve, for this reason.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        self.set(Readiness { ready: false, reason: reason.into() });
    }

    /// As it is now.
    pub fn get(&self) -> Readiness {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, readiness: Readiness) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = readiness;
    }
}
