//! Threads for what is large and can wait a moment: an executor of its own, started when it is first needed.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

use super::urgency;
use crate::env::spawn::{BlockingWork, Here, Spawn, Task, TaskHandle};

/// See the module.
#[derive(Default)]
pub(super) struct BulkThreads(OnceLock<Option<Runtime>>);

impl BulkThreads {
    /// None when it cannot be started: then bulk runs beside everything else.
    fn runtime(&self) -> Option<&Runtime> {
        let start = || {
            let built = Builder::new_multi_thread()
                .enable_all()
                .thread_name("bulk")
                .on_thread_start(urgency::give_way)
                .build();
            built
                .inspect_err(|error| tracing::warn!(%error, "no threads of their own for large requests"))
                .ok()
        };
        self.0.get_or_init(start).as_ref()
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
        if let Some(Some(runtime)) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
