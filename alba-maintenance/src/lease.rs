//! The right to work on one part of a task, as the ABM gives it: to one agent at a time, for a while, renewed.

use std::sync::Arc;
use std::time::Duration;

use alba_core::env::{Deadline, MetaError, within};
use alba_core::ids::{AgentId, TaskName};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmError, AbmOutcome, AbmQuery, RunReport, RunState};

use crate::backend::Backend;
use crate::error::TaskError;
use crate::progress::Progress;

/// A lease is renewed so many times while it lasts: two renewals may be lost.
const RENEWALS: u32 = 4;

/// How often it is asked whether a task was paused, unless the lease is renewed more often: operators are told that agents
/// stop within seconds.
pub(crate) const PAUSE_LOOK: Duration = Duration::from_secs(2);

/// A part of a task that this agent has.
pub struct Lease {
    backend: Arc<Backend>,
    task: TaskName,
    token: u64,
    period: Duration,
}

impl Lease {
    /// Takes it, unless another agent has it. `period`: how long it stays with an agent that is not heard of, and so how long
    /// a part rests after its agent has died.
    pub async fn take(
        backend: &Arc<Backend>,
        task: &TaskName,
        agent: &AgentId,
        period: Duration,
    ) -> Result<Option<Self>, TaskError> {
        let command =
            AbmCommand::AcquireLease { task: task.clone(), agent: agent.clone(), period: micros(period) };
        match backend.tell_abm(command).await {
            Ok(AbmOutcome::Lease(lease)) => {
                Ok(Some(Self { backend: backend.clone(), task: task.clone(), token: lease.token, period }))
            }
            Ok(_) => Err(TaskError::Mismatch("Lease")),
            Err(TaskError::Meta(MetaError::Abm(AbmError::LeaseMismatch { .. }))) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What names it to the ABM.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Says how the run goes. An error when the task has changed hands.
    pub async fn report(&self, state: RunState, progress: &Progress) -> Result<(), TaskError> {
        let report =
            RunReport { state, done: progress.done(), total: progress.total(), bytes: progress.bytes() };
        let command = AbmCommand::ReportTask { task: self.task.clone(), token: self.token, report };
        self.backend.tell_abm(command).await.map(drop).map_err(lost)
    }

    /// Keeps the lease and says how the run goes, until that is of no use any more: it is lost, the ABM was not reached for
    /// as long as it lasts, or the task `unless_paused` was paused.
    pub async fn keep(&self, unless_paused: Option<&TaskName>, progress: &Progress) -> TaskError {
        let clock = self.backend.env().clock.clone();
        let (mut renewed, renewal) = (clock.now(), self.period / RENEWALS);
        let mut next = renewed.plus(renewal);
        loop {
            clock.sleep_until(next.min(clock.now().plus(PAUSE_LOOK))).await;
            if let Some(task) = unless_paused
                && self.is_paused(task).await
            {
                return TaskError::Stopped;
            }
            let asked = clock.now();
            if asked < next {
                continue;
            }
            next = asked.plus(renewal);
            let command = AbmCommand::RenewLease {
                task: self.task.clone(),
                token: self.token,
                period: micros(self.period),
            };
            match self.backend.tell_abm(command).await.map_err(lost) {
                // From when it was asked: the lease may have begun at any time since.
                Ok(_) => renewed = asked,
                Err(TaskError::LeaseLost) => return TaskError::LeaseLost,
                Err(error) if clock.now().since(renewed) >= self.period => {
                    tracing::warn!(task = %self.task, %error, "lease not renewed in time");
                    return TaskError::LeaseLost;
                }
                Err(_) => continue,
            }
            // What is not told now is told next time.
            if let Err(TaskError::LeaseLost) = self.report(RunState::Running, progress).await {
                return TaskError::LeaseLost;
            }
        }
    }

    /// As far as the ABM says so at once: a renewal must not wait for it.
    async fn is_paused(&self, task: &TaskName) -> bool {
        let clock = &self.backend.env().clock;
        let deadline = Deadline::after(clock.as_ref(), PAUSE_LOOK);
        let asked = within(clock.as_ref(), deadline, self.backend.ask_abm(AbmQuery::PausedTasks)).await;
        matches!(asked, Ok(Ok(AbmAnswer::PausedTasks(names))) if names.contains(task))
    }

    /// Gives it back. Where that fails it runs out.
    pub async fn release(self) {
        let command = AbmCommand::ReleaseLease { task: self.task.clone(), token: self.token };
        if let Err(error) = self.backend.tell_abm(command).await {
            tracing::debug!(task = %self.task, %error, "lease not given back");
        }
    }
}

fn lost(error: TaskError) -> TaskError {
    match error {
        TaskError::Meta(MetaError::Abm(AbmError::LeaseMismatch { .. })) => TaskError::LeaseLost,
        error => error,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
