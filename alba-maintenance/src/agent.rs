//! The agent: for each task it finds the parts that are due, takes their leases, runs them and says what came of it.
//!
//! It keeps nothing that others would miss: it can be killed at any time, and any number of agents can run side by side. It
//! must never work on a part without its lease, nor go on after the lease is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use alba_core::daemon::StopSignal;
use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Clock, Deadline, Env, within};
use alba_core::failpoint::{Step, reach};
use alba_core::ids::{AgentId, TaskName};
use alba_core::range::{RangeQuery, next_prefix};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmQuery, RunState, TaskRecord};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::backend::Backend;
use crate::config::{AT_ONCE_MAX, MaintenanceConfig, Settings};
use crate::error::TaskError;
use crate::lease::{Lease, PAUSE_LOOK};
use crate::pace::Pace;
use crate::progress::{Board, Progress};
use crate::schedule::{LastRun, Plan, plan, wall_time};
use crate::task::{Run, Task};

/// Shortest and longest pause between two looks at what is due. The longest is how late a new namespace, a task that was resumed
/// or the work of a dead agent is noticed.
const LOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// How often the agent says that it is there.
const REGISTER: Duration = Duration::from_secs(10);

/// Longest that an agent that ends waits to say so. Well below what a daemon has to stop.
const FAREWELL: Duration = Duration::from_secs(1);

/// Longest that who did a task once waits for what it left to do.
const SETTLING: Duration = Duration::from_secs(10);

/// Why a task is not done.
const PAUSED: &str = "paused";

/// See the module.
pub struct Agent {
    backend: Arc<Backend>,
    id: AgentId,
    tasks: Vec<Entry>,
    config: RwLock<Arc<MaintenanceConfig>>,
    pace: Pace,
    board: Board,
    /// When it began to look (microseconds since the Unix epoch).
    since: u64,
}

struct Entry {
    task: Arc<dyn Task>,
    pace: Pace,
}

/// How one run ended.
enum Ended {
    /// Another agent has it, or has done it meanwhile.
    Elsewhere,
    Done,
    Failed(TaskError),
}

/// A random name for an agent.
pub fn new_agent_id(env: &Env) -> Result<AgentId, TaskError> {
    Ok(AgentId::new(format!("{:016x}{:016x}", env.rng.u64(), env.rng.u64()))?)
}

impl Agent {
    /// An agent of this name that does these tasks.
    pub fn new(
        backend: Arc<Backend>,
        id: AgentId,
        tasks: Vec<Arc<dyn Task>>,
        config: MaintenanceConfig,
    ) -> Arc<Self> {
        let pace = Pace::new(backend.env(), config.limits());
        let tasks = tasks.into_iter().map(|task| Entry { task, pace: pace.of_task(Default::default()) });
        let tasks = tasks.collect();
        let since = backend.env().clock.wall_micros();
        let agent = Self {
            backend,
            id,
            tasks,
            config: RwLock::new(Arc::new(MaintenanceConfig::new(Vec::new()))),
            pace,
            board: Board::default(),
            since,
        };
        agent.configure(config);
        Arc::new(agent)
    }

    /// What it does and has done.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// The pace of all its tasks.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Goes by this from now on: schedules, rates, which tasks.
    pub fn configure(&self, config: MaintenanceConfig) {
        self.pace.change_all(config.limits());
        if !config.adapt_to_clients {
            self.pace.set_share(crate::pace::FULL);
        }
        for entry in &self.tasks {
            if let Ok(settings) = config.settings(entry.task.as_ref()) {
                entry.pace.change(settings.limits);
            }
        }
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    fn settings(&self, task: &dyn Task) -> Result<Settings, TaskError> {
        self.config().settings(task).map_err(TaskError::Problem)
    }

    fn config(&self) -> Arc<MaintenanceConfig> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn clock(&self) -> &dyn Clock {
        self.backend.env().clock.as_ref()
    }

    /// Works until it is told to stop. What is under way then is dropped: each task can go on from anywhere.
    pub async fn run(self: Arc<Self>, stop: StopSignal) {
        let mut loops: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        for index in 0..self.tasks.len() {
            loops.push(Box::pin(self.do_task(index)));
        }
        loops.push(Box::pin(self.say_that_it_is_there()));
        tokio::select! {
            biased;
            () = stop.wait() => {}
            _ = loops.next() => {}
        }
        drop(loops);
        // Where a whole cluster is stopped, metadata stops, too: who is not told finds out by the agent's silence.
        let (clock, deadline) = (self.clock(), Deadline::after(self.clock(), FAREWELL));
        let gone = AbmCommand::RemoveParticipant { agent: self.id.clone() };
        // An OSD that gives no answer must not keep it from that.
        let told = within(clock, deadline, self.backend.tell_abm(gone));
        match futures_util::future::join(told, self.settle(deadline)).await.0 {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "cannot say that this agent ends"),
            Err(_) => tracing::debug!("cannot say in time that this agent ends"),
        }
    }

    /// Waits for what repairs left to do. Whatever does not end by then is left to garbage collection.
    async fn settle(&self, deadline: Deadline) {
        if let Err(error) = self.backend.client().settle(deadline).await {
            tracing::debug!(%error, "tags stay");
        }
    }

    async fn say_that_it_is_there(&self) {
        let mut told = true;
        loop {
            let notes =
                self.tasks.iter().filter_map(|entry| entry.task.note()).map(|note| format!("; {note}"));
            let about =
                format!("alba-maintenance {}{}", env!("CARGO_PKG_VERSION"), notes.collect::<String>());
            let role = "maintenance".to_owned();
            let command = AbmCommand::RegisterParticipant { agent: self.id.clone(), role, about };
            match self.backend.tell_abm(command).await {
                Ok(_) => told = true,
                // Once: how long it lasts is told by what waits for the group.
                Err(error) if std::mem::take(&mut told) => {
                    tracing::warn!(%error, "the ABM cannot be told that this agent is there");
                }
                Err(error) => {
                    tracing::debug!(%error, "the ABM still cannot be told that this agent is there")
                }
            }
            self.sleep(REGISTER).await;
        }
    }

    async fn sleep(&self, pause: Duration) {
        self.clock().sleep_until(self.clock().now().plus(pause)).await;
    }

    /// Does one task for ever. Its runs are tasks of their own, so that looking for more holds up none of them; they end with this.
    async fn do_task(self: &Arc<Self>, index: usize) {
        let Some(entry) = self.tasks.get(index) else { return };
        let (ended, mut ends) = mpsc::channel::<String>(AT_ONCE_MAX);
        let mut running: BTreeMap<String, AbortOnDrop> = BTreeMap::new();
        let mut failures = 0_u32;
        loop {
            let mut pause = LOOK.1;
            match self.look(entry, &running.keys().cloned().collect()).await {
                Ok((plan, at_once)) => {
                    failures = 0;
                    let room = at_once.saturating_sub(running.len());
                    if let Some(next) = plan.next.filter(|_| plan.now.len() <= room) {
                        let now = wall_time(self.clock().wall_micros());
                        pause = (next - now).to_std().unwrap_or_default().clamp(LOOK.0, LOOK.1);
                    }
                    for part in plan.now.into_iter().take(room) {
                        let (agent, ended, name) = (self.clone(), ended.clone(), part.clone());
                        let run = async move {
                            if let Some(entry) = agent.tasks.get(index) {
                                agent.do_part(entry, &name).await;
                            }
                            // Full or closed: nobody listens any more.
                            drop(ended.try_send(name));
                        };
                        let run = self.backend.env().spawn.spawn("maintenance", Box::pin(run));
                        running.insert(part, run.abort_on_drop());
                    }
                }
                Err(error) => {
                    self.board.idle(entry.task.name(), Some(error.to_string()));
                    if failures == 0 {
                        tracing::warn!(task = entry.task.name(), %error, "cannot look for work");
                    } else {
                        tracing::debug!(task = entry.task.name(), %error, failures, "still cannot look for work");
                    }
                    pause = LOOK.0.saturating_mul(1 << failures.min(8)).min(LOOK.1);
                    failures = failures.saturating_add(1);
                }
            }
            tokio::select! {
                biased;
                Some(part) = ends.recv() => drop(running.remove(&part)),
                () = self.sleep(pause) => {}
            }
            // All that ended meanwhile makes room at once.
            while let Ok(part) = ends.try_recv() {
                running.remove(&part);
            }
        }
    }

    /// What is due of a task, and how many parts may be done side by side.
    async fn look(&self, entry: &Entry, running: &BTreeSet<String>) -> Result<(Plan, usize), TaskError> {
        let task = entry.task.as_ref();
        let settings = self.settings(task)?;
        let now = wall_time(self.clock().wall_micros());
        let idle = if !settings.enabled {
            Some("switched off by the configuration")
        } else if !settings.timing.is_open(now) {
            Some("outside of its hours")
        } else if self.is_paused(task).await? {
            Some(PAUSED)
        } else {
            None
        };
        self.board.idle(task.name(), idle.map(str::to_owned));
        match idle {
            None => {}
            // It is resumed as soon as it is paused.
            Some(PAUSED) => return Ok((Plan { next: Some(now + PAUSE_LOOK), ..Plan::default() }, 0)),
            Some(_) => return Ok((Plan::default(), 0)),
        }
        let parts = task.parts(&self.backend).await?;
        let last = self.last_runs(task).await?;
        let planned = plan(&settings.timing, &parts, &last, running, wall_time(self.since), now);
        Ok((planned, settings.at_once))
    }

    async fn is_paused(&self, task: &dyn Task) -> Result<bool, TaskError> {
        match self.backend.ask_abm(AbmQuery::PausedTasks).await? {
            AbmAnswer::PausedTasks(names) => Ok(names.iter().any(|name| name.as_str() == task.name())),
            _ => Err(TaskError::Mismatch("PausedTasks")),
        }
    }

    async fn last_runs(&self, task: &dyn Task) -> Result<BTreeMap<String, LastRun>, TaskError> {
        let records = task_records(&self.backend, task.name()).await?;
        Ok(records.into_iter().map(|(part, record)| (part, last_run(&record))).collect())
    }

    /// Does one part of a task, if nobody else does.
    async fn do_part(&self, entry: &Entry, part: &str) {
        match self.try_part(entry, part, true).await {
            Ended::Done | Ended::Elsewhere => {}
            Ended::Failed(error) => {
                tracing::warn!(task = entry.task.name(), part, %error, "maintenance run failed");
            }
        }
    }

    /// `only_due`: by the schedule; not when another agent has done it meanwhile, nor when the task is paused.
    async fn try_part(&self, entry: &Entry, part: &str, only_due: bool) -> Ended {
        match self.lease_and_run(entry, part, only_due).await {
            Ok(ended) => ended,
            Err(error) => Ended::Failed(error),
        }
    }

    async fn lease_and_run(&self, entry: &Entry, part: &str, only_due: bool) -> Result<Ended, TaskError> {
        let task = entry.task.as_ref();
        let name = TaskName::new(format!("{}/{part}", task.name()))?;
        let period = self.config().lease().map_err(TaskError::Problem)?;
        let Some(lease) = Lease::take(&self.backend, &name, &self.id, period).await? else {
            metrics::counter!("alba_maintenance_lease_conflicts_total", "task" => task.name()).increment(1);
            return Ok(Ended::Elsewhere);
        };
        reach(Step::AgentLeased);
        // Under the lease: what another agent did before it gave the lease back is known now.
        let record = task_record(&self.backend, &name).await?;
        let micros = self.clock().wall_micros();
        if only_due {
            let timing = self.settings(task)?.timing;
            let last = record.as_ref().map(last_run).unwrap_or_default();
            let (since, now) = (wall_time(self.since), wall_time(micros));
            if !matches!(timing.due(&last, since, now), crate::schedule::Due::Now(_)) {
                lease.release().await;
                return Ok(Ended::Elsewhere);
            }
        }
        let progress = Arc::new(Progress::default());
        lease.report(RunState::Running, &progress).await?;
        // All by the ABM's time: this machine's clock may be another.
        let began = task_record(&self.backend, &name).await?.map_or(micros, |record| record.started);
        let continues = record.as_ref().is_some_and(|record| record.agent == self.id);
        let rested = record.map(|record| Duration::from_micros(began.saturating_sub(record.reported)));
        self.board.begin(task.name(), part, &progress, self.clock().now());
        let run = Run {
            backend: self.backend.clone(),
            agent: self.id.clone(),
            rested,
            lease: period,
            continues,
            began,
            progress: progress.clone(),
            pace: entry.pace.clone(),
            task: name.clone(),
            token: lease.token(),
        };
        let paused = TaskName::new(task.name())?;
        let ended = tokio::select! {
            biased;
            // The work is dropped where it is: whoever has the lease now goes on from there.
            lost = lease.keep(Some(&paused).filter(|_| only_due), &progress) => Err(lost),
            ended = task.run(part, &run) => ended,
        };
        let ended = match (ended, progress.problems_text()) {
            (Ok(()), Some(problems)) => Err(TaskError::Problem(problems)),
            (ended, _) => ended,
        };
        let reason = ended.as_ref().err().map(ToString::to_string);
        self.board.end(task.name(), part, reason.clone(), self.clock().now());
        if matches!(ended, Err(TaskError::LeaseLost)) {
            metrics::counter!("alba_maintenance_leases_lost_total", "task" => task.name()).increment(1);
            return Err(TaskError::LeaseLost);
        }
        reach(Step::AgentRan);
        let state = reason.map_or(RunState::Succeeded, |reason| RunState::Failed { reason });
        lease.report(state, &progress).await?;
        reach(Step::AgentReported);
        lease.release().await;
        Ok(ended.map_or_else(Ended::Failed, |()| Ended::Done))
    }

    /// Does each part of a task once, due or not, paused or not, those of other agents excepted; what came of it.
    pub async fn once(&self, name: &str) -> Result<Once, TaskError> {
        let Some(entry) = self.tasks.iter().find(|entry| entry.task.name() == name) else {
            return Err(TaskError::Problem(format!("there is no task {name}")));
        };
        let parts = entry.task.parts(&self.backend).await?;
        let at_once = self.settings(entry.task.as_ref())?.at_once;
        let runs = futures_util::stream::iter(parts)
            .map(|part| async move { (self.try_part(entry, &part, false).await, part) });
        let mut runs = runs.buffer_unordered(at_once);
        let mut once = Once::default();
        while let Some((ended, part)) = runs.next().await {
            match ended {
                Ended::Done => once.done += 1,
                Ended::Elsewhere => once.elsewhere.push(part),
                Ended::Failed(error) => once.failed.push((part, error)),
            }
        }
        self.settle(Deadline::after(self.clock(), SETTLING)).await;
        Ok(once)
    }
}

/// What came of [`Agent::once`].
#[derive(Debug, Default)]
pub struct Once {
    /// Parts done.
    pub done: usize,
    /// Parts that other agents have.
    pub elsewhere: Vec<String>,
    /// Parts that failed, and why.
    pub failed: Vec<(String, TaskError)>,
}

fn last_run(record: &TaskRecord) -> LastRun {
    LastRun {
        succeeded: record.succeeded.map(wall_time),
        failed: record.failed.as_ref().map(|(at, _)| wall_time(*at)),
        failures: record.failures,
    }
}

/// What the ABM knows of one part.
async fn task_record(backend: &Backend, name: &TaskName) -> Result<Option<TaskRecord>, TaskError> {
    let key = name.as_str().as_bytes().to_vec();
    let range = RangeQuery { first: key.clone(), last: Some((key, true)), ..RangeQuery::all() };
    match backend.ask_abm(AbmQuery::Tasks(range)).await? {
        AbmAnswer::Tasks(page) => Ok(page.items.into_iter().next()),
        _ => Err(TaskError::Mismatch("Tasks")),
    }
}

/// What the ABM knows of a task's parts.
pub async fn task_records(backend: &Backend, task: &str) -> Result<BTreeMap<String, TaskRecord>, TaskError> {
    let prefix = format!("{task}/").into_bytes();
    let end = next_prefix(&prefix).map(|end| (end, false));
    let mut range = RangeQuery { first: prefix.clone(), last: end, ..RangeQuery::all() };
    let mut all = BTreeMap::new();
    loop {
        let AbmAnswer::Tasks(page) = backend.ask_abm(AbmQuery::Tasks(range.clone())).await? else {
            return Err(TaskError::Mismatch("Tasks"));
        };
        let last = page.items.last().map(|record| record.task.clone());
        for record in page.items {
            if let Some((_, part)) = record.task.as_str().split_once('/') {
                all.insert(part.to_owned(), record);
            }
        }
        match last {
            Some(last) if page.has_more => range = range.after(last.as_str().as_bytes()),
            _ => return Ok(all),
        }
    }
}
