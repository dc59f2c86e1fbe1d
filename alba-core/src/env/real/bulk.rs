//! Threads for what can wait a moment, as large requests and maintenance: executors of their own, started when they are first needed.

use std::num::NonZero;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

use super::urgency;
use crate::env::spawn::{BlockingWork, Here, Spawn, Task, TaskHandle};

/// See the module.
pub(super) struct BulkThreads {
    name: &'static str,
    threads: NonZero<usize>,
    start: fn(),
    runtime: OnceLock<Option<Runtime>>,
}

impl BulkThreads {
    /// So many of them for bulk of clients, once they are needed.
    pub(super) fn for_clients(threads: NonZero<usize>) -> Self {
        Self { name: "bulk", threads, start: urgency::give_way, runtime: OnceLock::new() }
    }

    /// So many of them for maintenance, once they are needed.
    pub(super) fn for_maintenance(threads: NonZero<usize>) -> Self {
        Self { name: "aside", threads, start: urgency::stand_aside, runtime: OnceLock::new() }
    }

    /// None when it cannot be started: then bulk runs beside everything else.
    fn runtime(&self) -> Option<&Runtime> {
        let start = || {
            let built = Builder::new_multi_thread()
                .enable_all()
                .worker_threads(self.threads.get())
                .thread_name(self.name)
                .on_thread_start(self.start)
                .build();
            built
                .inspect_err(|error| tracing::warn!(%error, "no threads of their own for what can wait"))
                .ok()
        };
        self.runtime.get_or_init(start).as_ref()
    }
}

impl Spawn for BulkThreads {
    fn spawn(&self, _name: &'static str, task: Task) -> TaskHandle {
        let started = match self.runtime() {
            Some(runtime) => runtime.spawn(task),
            None => tokio::spawn(task),
        };
        let abort = started.abort_handle();
        TaskHandle::new(move || abort.abort())
    }

    fn here(&self) -> Here {
        urgency::here()
    }

    fn run_blocking(&self, work: BlockingWork) {
        match self.runtime() {
            Some(runtime) => runtime.spawn_blocking(work),
            None => tokio::task::spawn_blocking(work),
        };
    }
}

impl Drop for BulkThreads {
    /// Waiting for its tasks is not allowed where this may be dropped: in a task.
    fn drop(&mut self) {
        if let Some(Some(runtime)) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
