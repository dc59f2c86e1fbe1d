//! Threads that remember what they were given: for tests of what is done where.

use std::sync::{Arc, Mutex, PoisonError};

use crate::env::spawn::{BlockingWork, Here, Spawn, Task, TaskHandle};

/// A [`Spawn`] that remembers the names of its tasks.
pub struct Given {
    threads: Arc<dyn Spawn>,
    names: Mutex<Vec<&'static str>>,
}

impl Given {
    /// Runs everything on `threads`.
    pub fn to(threads: Arc<dyn Spawn>) -> Arc<Self> {
        Arc::new(Self { threads, names: Mutex::default() })
    }

    /// The tasks since the last time, in order.
    pub fn taken(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.names.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Spawn for Given {
    fn spawn(&self, name: &'static str, task: Task) -> TaskHandle {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        self.threads.spawn(name, task)
    }

    fn run_blocking(&self, work: BlockingWork) {
        self.threads.run_blocking(work);
    }

    fn here(&self) -> Here {
        self.threads.here()
    }
}
