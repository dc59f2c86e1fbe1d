//! What a task is: named parts that can be worked on side by side, each by one agent at a time.
//!
//! A run may be ended at any await: by a lost lease, a pause, the end of the agent, or a crash. So a task must leave
//! something at every point that the next run, of whatever agent, can go on from; and two runs of one part at once must be
//! harmless, since a lease is only a clock's word.

use std::sync::Arc;
use std::time::Duration;

use alba_core::env::Moment;
use alba_core::ids::{AgentId, NamespaceId, ObjectId, TaskName};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmQuery, FailedRepair, SurveyCounts};
use async_trait::async_trait;

use crate::backend::Backend;
use crate::error::TaskError;
use crate::pace::{Hurry, Pace};
use crate::progress::Progress;
use crate::schedule::Timing;

/// Parts of tasks that go through all namespaces: each namespace is in the lane of its id, whoever works on it. Fixed, so that
/// all agents mean the same by a name.
pub const LANES: u64 = 16;

/// Something that agents do again and again.
#[async_trait]
pub trait Task: Send + Sync + 'static {
    /// Its name in configurations, leases, metrics and commands: lower case and dashes, without a slash.
    fn name(&self) -> &'static str;

    /// What it does, in one line.
    fn about(&self) -> &'static str;

    /// When it runs, unless the configuration says otherwise.
    fn usual(&self) -> Timing;

    /// How many of its parts one agent does at once, unless the configuration says otherwise.
    fn at_once(&self) -> usize {
        2
    }

    /// What shall be known of it beside its records, as `key=value`: the agent says it where it says that it is there. Short: with
    /// all that the agent says it has at most 256 bytes.
    fn note(&self) -> Option<String> {
        None
    }

    /// Its parts, as they are now. All agents must come to the same names.
    async fn parts(&self, backend: &Backend) -> Result<Vec<String>, TaskError>;

    /// Does one part. Once this returns, what there was to do when it began is done.
    async fn run(&self, part: &str, run: &Run) -> Result<(), TaskError>;
}

/// The one part of a task that has no parts.
pub fn whole() -> Vec<String> {
    vec!["all".to_owned()]
}

/// The parts of a task that goes through all namespaces.
pub fn lanes() -> Vec<String> {
    (0..LANES).map(|lane| format!("lane-{lane:02}")).collect()
}

/// Is the namespace, or whatever has this number, in the lane?
pub fn in_lane(part: &str, number: u64) -> bool {
    part.strip_prefix("lane-").and_then(|lane| lane.parse().ok()) == Some(number % LANES)
}

/// What a run works with.
pub struct Run {
    /// The backend.
    pub backend: Arc<Backend>,
    /// Who works.
    pub agent: AgentId,
    /// How long ago anybody last worked on this part; none: never, as far as is known.
    pub rested: Option<Duration>,
    /// How long what this agent has taken stays with it when it is not heard of.
    pub lease: Duration,
    /// This very process worked on this part last: what it remembers is what there is to know.
    pub continues: bool,
    /// When it began, by the ABM's time: microseconds since the Unix epoch.
    pub began: u64,
    /// What it has done so far.
    pub progress: Arc<Progress>,
    pub(crate) pace: Pace,
    /// The task and its part, and the lease on it.
    pub(crate) task: TaskName,
    pub(crate) token: u64,
}

impl Run {
    /// How far this part says that it has come, whoever worked on it; none: it has said nothing.
    pub async fn mark(&self) -> Result<Option<u64>, TaskError> {
        match self.backend.ask_abm(AbmQuery::TaskMark(self.task.clone())).await? {
            AbmAnswer::TaskMark(mark) => Ok(mark),
            _ => Err(TaskError::Mismatch("TaskMark")),
        }
    }

    /// Says how far this part has come, durably. An error when another agent has it by now.
    pub async fn set_mark(&self, mark: u64) -> Result<(), TaskError> {
        let command = AbmCommand::MarkTask { task: self.task.clone(), token: self.token, mark };
        self.backend.tell_abm(command).await.map(drop)
    }

    /// While what it gives is there, what is done cannot wait, if `urgent`.
    pub(crate) fn hurry(&self, urgent: bool) -> Hurry {
        self.pace.hurry(urgent)
    }

    /// Waits until so much may be done within the rates. To be called before it is done.
    pub async fn pace(&self, objects: u64, bytes: u64) {
        self.pace.wait(objects, bytes).await;
    }

    /// OSDs came or went: what could not be repaired may be tried again at once.
    pub(crate) async fn wake_unrepaired(&self) -> Result<(), TaskError> {
        let (task, token) = (self.task.clone(), self.token);
        self.backend.tell_abm(AbmCommand::WakeUnrepaired { task, token }).await.map(drop)
    }

    /// These could not be repaired; there is nothing wrong with those.
    pub(crate) async fn report_repairs(
        &self,
        failed: Vec<FailedRepair>,
        well: Vec<(NamespaceId, ObjectId)>,
    ) -> Result<(), TaskError> {
        let (task, token) = (self.task.clone(), self.token);
        self.backend.tell_abm(AbmCommand::ReportRepairs { task, token, failed, well }).await.map(drop)
    }

    /// What was found in namespaces: at most a page of them.
    pub(crate) async fn report_surveys(
        &self,
        surveys: Vec<(NamespaceId, SurveyCounts)>,
    ) -> Result<(), TaskError> {
        let (task, token) = (self.task.clone(), self.token);
        self.backend.tell_abm(AbmCommand::ReportSurveys { task, token, surveys }).await.map(drop)
    }

    /// This process's time.
    pub fn now(&self) -> Moment {
        self.backend.env().clock.now()
    }

    /// Rests.
    pub async fn sleep(&self, pause: Duration) {
        let clock = &self.backend.env().clock;
        clock.sleep_until(clock.now().plus(pause)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_in_exactly_one_lane() {
        for number in [0, 1, 15, 16, 17, 1 << 40, u64::MAX] {
            assert_eq!(lanes().iter().filter(|lane| in_lane(lane, number)).count(), 1, "{number}");
        }
        assert!(!in_lane("all", 0) && !in_lane("lane-x", 0));
    }
}
