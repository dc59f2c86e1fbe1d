//! Tasks, and work that blocks a thread.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;

use thiserror::Error;
use tokio::sync::oneshot;
use tracing::Instrument;

use crate::request;

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

    /// The same on the executor of the caller: for work that goes on from where it is, with timers that were begun there.
    fn spawn_beside(&self, name: &'static str, task: Task) -> TaskHandle {
        self.spawn(name, task)
    }

    /// The same on a thread of its own, which may block: for the few tasks that all others wait for. In a simulation like
    /// any other.
    fn spawn_thread(&self, name: &'static str, _urgency: Urgency, task: Task) -> TaskHandle {
        self.spawn(name, task)
    }

    /// Runs `work` on a thread that may block (in a simulation: here and now).
    fn run_blocking(&self, work: BlockingWork);

    /// What the thread may do that runs the caller.
    fn here(&self) -> Here {
        Here::Shared
    }
}

/// Who waits for a thread that is one task's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Small requests: it goes first, as they do.
    First,
    /// Small requests and bulk: it gives way, but not to bulk.
    Both,
}

/// What a thread may do, by whom it holds up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Here {
    /// Nothing that takes long: small requests wait for it.
    Shared,
    /// Compute for some milliseconds: only bulk waits for it.
    Bulk,
    /// Wait for a disk, too: it has one task.
    Own,
}

/// The work ended without an answer: it panicked, or its node crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the task ended without an answer")]
pub struct TaskGone;

/// Runs `work`, which may wait for a disk, where it may do so, and waits for its result. The caller's deadline applies
/// outside: abandoned work still runs to its end.
pub async fn blocking<T: Send + 'static>(
    spawn: &dyn Spawn,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TaskGone> {
    if spawn.here() >= Here::Own {
        return caught(work);
    }
    let (answer, result) = oneshot::channel();
    spawn.run_blocking(Box::new(move || {
        // The caller may have gone: then nobody wants the answer.
        drop(answer.send(work()));
    }));
    result.await.map_err(|_| TaskGone)
}

/// The same for `work` that only computes: handing it to another thread costs as much as some tens of microseconds of work.
pub async fn computing<T: Send + 'static>(
    spawn: &dyn Spawn,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TaskGone> {
    if spawn.here() >= Here::Bulk {
        return caught(work);
    }
    blocking(spawn, work).await
}

/// A panic of `work` ends it and not who waits for it, as on a thread of its own.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, TaskGone> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| TaskGone)
}

/// Runs `work` as a task of `spawn` and waits for its result, on behalf of the same request. When this is dropped the task is, at its
/// next await.
pub async fn elsewhere<T: Send + 'static>(
    spawn: &dyn Spawn,
    name: &'static str,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, TaskGone> {
    let (answer, result) = oneshot::channel();
    let work = request::carried(work);
    let task = async move {
        // Who waited may have gone just now.
        drop(answer.send(work.await));
    };
    let _running = spawn.spawn(name, Box::pin(task.in_current_span())).abort_on_drop();
    result.await.map_err(|_| TaskGone)
}
