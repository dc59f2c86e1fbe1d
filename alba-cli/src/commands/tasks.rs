//! Tasks of the maintenance agents: what each does and when it ran, pausing them for the whole backend.

use alba_core::ids::TaskName;
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmQuery, RunState, TaskRecord};
use clap::Args;
use serde_json::{Value, json};

use super::backend::{Backend, mismatch};
use crate::answer::Answer;
use crate::error::CliError;
use crate::json;
use crate::ranges::{Pager, RangeArgs, collect};
use crate::rebalancer;
use crate::session::Session;
use crate::table::table;

/// Have no agent do a task until it is resumed
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  alba pause-task gc\n\nAgents that are at it stop within seconds. `alba maintenance \
                        --list-tasks` lists the tasks."
)]
pub(crate) struct Pause {
    /// Its name
    task: String,
}

/// Have agents do a task again that was paused
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba resume-task gc")]
pub(crate) struct Resume {
    /// Its name
    task: String,
}

/// The task of that name. One that no agent of this version does could never be resumed by name.
fn known(task: &str) -> Result<TaskName, CliError> {
    let config = alba_maintenance::MaintenanceConfig::new(Vec::new());
    let tasks = alba_maintenance::tasks::all(&config);
    let names: Vec<&str> = tasks.iter().map(|task| task.name()).chain([rebalancer::TASK]).collect();
    if !names.contains(&task) {
        return Err(CliError::usage(format!("there is no task {task}; there are {}", names.join(", "))));
    }
    TaskName::new(task).map_err(|error| CliError::usage(error.to_string()))
}

async fn set(task: &str, paused: bool, session: &Session) -> Result<Answer, CliError> {
    let task = known(task)?;
    let client = session.client().await?;
    Backend::new(&client, session.deadline())
        .command(AbmCommand::PauseTask { task: task.clone(), paused })
        .await?;
    let text = format!("task {task} is {}", if paused { "paused" } else { "resumed" });
    Answer::new(json!({ "task": task.as_str(), "paused": paused }), text)
}

impl Pause {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        set(&self.task, true, session).await
    }
}

impl Resume {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        set(&self.task, false, session).await
    }
}

/// List what the maintenance agents do: when each part of each task ran last, and how far it is
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  alba list-tasks --to-json")]
pub(crate) struct List {
    #[command(flatten)]
    range: RangeArgs,
}

/// What the ABM knows of tasks.
pub(crate) async fn records(backend: &Backend<'_>, pager: Pager) -> Result<Vec<TaskRecord>, CliError> {
    let key = |record: &TaskRecord| record.task.as_str().as_bytes().to_vec();
    let ask = async |range: RangeQuery| match backend.ask(AbmQuery::Tasks(range)).await? {
        AbmAnswer::Tasks(page) => Ok(page),
        _ => Err(mismatch("Tasks")),
    };
    collect(pager, key, ask).await
}

/// The tasks that are paused.
pub(crate) async fn paused(backend: &Backend<'_>) -> Result<Vec<TaskName>, CliError> {
    match backend.ask(AbmQuery::PausedTasks).await? {
        AbmAnswer::PausedTasks(names) => Ok(names),
        _ => Err(mismatch("PausedTasks")),
    }
}

pub(crate) fn shown(record: &TaskRecord) -> Value {
    let (state, reason) = match &record.report.state {
        RunState::Running => ("running", None),
        RunState::Succeeded => ("succeeded", None),
        RunState::Failed { reason } => ("failed", Some(reason)),
    };
    json!({
        "task": record.task.as_str(),
        "state": state,
        "error": reason,
        "agent": record.agent.as_str(),
        "started": json::seconds(record.started),
        "reported": json::seconds(record.reported),
        "succeeded": record.succeeded.map(json::seconds),
        "failures": record.failures,
        "done": record.report.done,
        "total": record.report.total,
        "bytes": record.report.bytes,
    })
}

impl List {
    pub(crate) async fn run(self, session: &Session) -> Result<Answer, CliError> {
        let client = session.client().await?;
        let backend = Backend::new(&client, session.deadline());
        let found = records(&backend, self.range.pager()).await?;
        let paused = paused(&backend).await?;
        let rows = found.iter().map(|record| {
            let of = match record.report.total {
                Some(total) => format!("{} of {total}", record.report.done),
                None => record.report.done.to_string(),
            };
            let (state, error) = match &record.report.state {
                RunState::Running => ("running", String::new()),
                RunState::Succeeded => ("succeeded", String::new()),
                RunState::Failed { reason } => ("failed", reason.clone()),
            };
            vec![record.task.to_string(), state.to_owned(), of, error]
        });
        let mut text = table(&["TASK", "STATE", ">DONE", "ERROR"], rows.collect());
        for task in &paused {
            text.push_str(&format!("task {task} is paused\n"));
        }
        let result = json!({
            "tasks": found.iter().map(shown).collect::<Vec<_>>(),
            "paused": paused.iter().map(TaskName::as_str).collect::<Vec<_>>(),
        });
        Answer::new(result, text)
    }
}
