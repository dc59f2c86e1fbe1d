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
    /// What else the daemon says of itself; absent when nothing.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub details: serde_json::Value,
}

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Readiness {
            ready: false,
            reason: "starting".to_owned(),
            details: serde_json::Value::Null,
        })))
    }
}

impl Health {
    /// It can serve from now on.
    pub fn set_ready(&self) {
        self.set(true, String::new());
    }

    /// It cannot serve, for this reason.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        self.set(false, reason.into());
    }

    /// As it is now.
    pub fn get(&self) -> Readiness {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says more than yes or no, whatever that is.
    pub fn set_details(&self, details: serde_json::Value) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).details = details;
    }

    fn set(&self, ready: bool, reason: String) {
        let mut readiness = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        readiness.ready = ready;
        readiness.reason = reason;
    }
}
