//! Tasks, and work that blocks a thread.

use std::future::Future;
use std::pin::Pin;

use thiserror::Error;
use tokio::sync::oneshot;

/// A task's body.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// A piece of blocking work.
pub type BlockingWork = Box<dyn FnOnce() + Send + 'static>;

/// A running task. Dropping the handle lets it run on.
pub struct TaskHandle(Box<dyn Fn() + Send + Sync>);

impl TaskHandle {
    /// Wraps the way to abort the task.
    pub fn new(abort: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Box::new(abort))
    }

    /// Stops the task at its next await.
    pub fn abort(&self) {
        (self.0)();
    }

    /// A guard that aborts the task when dropped.
    pub fn abort_on_drop(self) -> AbortOnDrop {
        AbortOnDrop(self)
    }
}

/// Aborts its task when dropped.
pub struct AbortOnDrop(TaskHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts tasks. In a simulation each node has its own, so that a crash ends all its tasks at once.
pub trait Spawn: Send + Sync + 'static {
    /// Starts `task`. `name` is for logs and traces.
    fn spawn(&self, name: &'static str, task: Task) -> TaskHandle;

    /// Runs `work` on a thread that may block (in a simulation: here and now).
    fn run_blocking(&self, work: BlockingWork);
}

/// The work ended without an answer: it panicked, or its node crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the task ended without an answer")]
pub struct TaskGone;

/// Runs `work` where it may block, and waits for its result. The caller's deadline applies outside: abandoned work
/// still runs to its end.
pub async fn blocking<T: Send + 'static>(
    spawn: &dyn Spawn,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TaskGone> {
    let (answer, result) = oneshot::channel();
    spawn.run_blocking(Box::new(move || {
        // The caller may have gone: then nobody wants the answer.
        drop(answer.send(work()));
    }));
    result.await.map_err(|_| TaskGone)
}
