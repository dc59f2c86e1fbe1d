//! What agents tell of the tasks they do, so that all know when each ran last and how far it is.

use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, TaskName};

/// Most tasks that can be paused by name.
pub const PAUSED_MAX: usize = 200;

/// How a run goes, or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// It is under way.
    Running,
    /// It has done all there was to do.
    Succeeded,
    /// It has not.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What the agent that has a task's lease says of its run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunReport {
    /// How it goes.
    pub state: RunState,
    /// Things done in this run, such as fragments deleted.
    pub done: u64,
    /// How many there are, if that is known.
    pub total: Option<u64>,
    /// Bytes moved or freed in this run.
    pub bytes: u64,
}

/// What is known of a task. Times are microseconds since the Unix epoch, the ABM's time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Which task, or which part of one.
    pub task: TaskName,
    /// Who did it last.
    pub agent: AgentId,
    /// Of the lease under which it was reported last.
    pub token: u64,
    /// When the last run began.
    pub started: u64,
    /// When it was last heard of.
    pub reported: u64,
    /// The last report.
    pub report: RunReport,
    /// When a run last ended well.
    pub succeeded: Option<u64>,
    /// When a run last failed, and why.
    pub failed: Option<(u64, String)>,
    /// How often it has failed since it last ended well.
    pub failures: u32,
}
