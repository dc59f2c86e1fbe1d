//! Agents that do one task once: to its end, or until they die or stop at a step that the test names.
//!
//! [`trial`] shows that an end anywhere and a lost lease are harmless: one agent is killed at the step, another one is stopped
//! there for longer than its lease, a third one does what is left, and the second one goes on when others have its work.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use alba_core::failpoint::Step;
use rustix::process::Signal;

use crate::cluster::{Cluster, output_within};
use crate::upkeep::PATIENCE;
use crate::{process, wait};

/// The work that a step belongs to: there is a test for each, which goes through its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// `maintenance.rs`: fragments that are not needed go.
    Collecting,
    /// `maintenance_kills.rs`: an OSD is emptied.
    Healing,
    /// The same, of the change of one object; and `rebalance_kills.rs`.
    Updating,
    /// `maintenance_kills.rs`: jobs, and objects stored anew.
    Anew,
    /// The same: the work queue, and OSDs that leave.
    Queue,
    /// The same: damage that is found.
    Scrubbing,
    /// The same: what only looks, and the trash.
    Looking,
    /// `rebalance_kills.rs`: moves.
    Moving,
}

impl Scene {
    fn of(step: Step) -> Self {
        match step {
            Step::GcClosing
            | Step::GcClosed
            | Step::GcJudged
            | Step::GcDeleted
            | Step::GcOpened
            | Step::CleanupTaken
            | Step::CleanupDeleted
            | Step::CleanupForgotten => Self::Collecting,
            Step::AgentLeased
            | Step::AgentRan
            | Step::AgentReported
            | Step::RepairTried
            | Step::RepairSurveyed
            | Step::RepairObject
            | Step::RepairDone
            | Step::RepairFailed => Self::Healing,
            Step::UpdatePlanned
            | Step::UpdateRead
            | Step::UpdateMade
            | Step::UpdateStoring
            | Step::UpdateStored
            | Step::UpdateCommitting
            | Step::UpdateCommitted
            | Step::UpdateUntagged => Self::Updating,
            Step::RewriteRead
            | Step::RewriteDone
            | Step::UploadStored
            | Step::UploadCommitting
            | Step::UploadCommitted
            | Step::UploadUntagged
            | Step::JobObject
            | Step::JobPage
            | Step::JobAdvanced => Self::Anew,
            Step::CleanupDropped
            | Step::WorkClaimed
            | Step::WorkHandled
            | Step::WorkReported
            | Step::WorkUnmarked
            | Step::WorkCleaned => Self::Queue,
            Step::ScrubFound | Step::ScrubRepaired | Step::ScrubMarked => Self::Scrubbing,
            Step::ClaimsAsked | Step::TrashDeleting | Step::TrashDeleted | Step::PresetsAsked => {
                Self::Looking
            }
            Step::RebalancePlanned | Step::RebalanceMoving | Step::RebalanceMoved => Self::Moving,
        }
    }

    /// Its steps, in the order in which work comes to them.
    pub fn steps(self) -> Vec<Step> {
        Step::ALL.iter().copied().filter(|step| Self::of(*step) == self).collect()
    }
}

/// A step, or the N-th time that an agent comes to it.
#[derive(Debug, Clone, Copy)]
pub struct At(pub Step, pub u32);

impl From<Step> for At {
    fn from(step: Step) -> Self {
        Self(step, 1)
    }
}

impl At {
    /// As [`alba_core::failpoint`] takes it.
    pub fn text(self) -> String {
        format!("{}:{}", self.0.name(), self.1)
    }
}

/// A run of one task.
#[derive(Debug, Clone)]
pub struct Once {
    arguments: Vec<String>,
}

impl Once {
    /// Of a maintenance task, as `alba up` configured its agent.
    pub fn maintenance(cluster: &Cluster, task: &str) -> Self {
        Self::of(cluster, &["maintenance", "--once", task], "maintenance-0.toml")
    }

    /// Of the rebalancer.
    pub fn rebalancer(cluster: &Cluster) -> Self {
        Self::of(cluster, &["rebalancer", "--once"], "rebalancer-0.toml")
    }

    fn of(cluster: &Cluster, arguments: &[&str], config: &str) -> Self {
        let config = cluster.data_dir().join("config").join(config);
        let mut arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        arguments.extend(["--config".to_owned(), config.to_string_lossy().into_owned()]);
        Self { arguments }
    }

    fn command(&self, cluster: &Cluster) -> Command {
        let mut command = cluster.command();
        command.args(&self.arguments);
        command
    }

    /// Runs it; parts that other agents have are left to them.
    pub fn run(&self, cluster: &Cluster) -> Output {
        output_within(self.command(cluster), PATIENCE)
    }

    /// Runs it until no other agent, also no dead one, has any part of it.
    pub fn whole(&self, cluster: &Cluster) {
        wait::until("all parts are done", PATIENCE, || {
            let output = self.run(cluster);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() && !text.contains("another agent") { Ok(()) } else { Err(text) }
        });
    }

    /// Runs it until an agent has died at the step. `more` makes something to do.
    pub async fn dies_at(&self, cluster: &Cluster, at: At, mut more: impl AsyncFnMut()) {
        let mut wanted = true;
        for _ in 0..TRIES {
            if std::mem::take(&mut wanted) {
                more().await;
            }
            let mut command = self.command(cluster);
            command.env("ALBA_TEST_DIES_AT", at.text());
            let output = output_within(command, PATIENCE);
            // By a signal: it has no exit code.
            if output.status.code().is_none() {
                return;
            }
            wanted = !is_taken(&output);
            breathe().await;
        }
        panic!("no agent comes to {at:?}")
    }

    /// Runs it until an agent stands still at the step.
    pub async fn stops_at(&self, cluster: &Cluster, at: At, mut more: impl AsyncFnMut()) -> Stopped {
        let mut wanted = true;
        for _ in 0..TRIES {
            if std::mem::take(&mut wanted) {
                more().await;
            }
            let mut command = self.command(cluster);
            command.env("ALBA_TEST_STOPS_AT", at.text());
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut agent = Stopped(Some(command.spawn().unwrap()));
            let child = agent.0.as_mut().unwrap();
            let stands = wait::until("the agent stops or ends", PATIENCE, || {
                if process::is_stopped(child.id()) {
                    Ok(true)
                } else if child.try_wait().unwrap().is_some() {
                    Ok(false)
                } else {
                    Err("it works".to_owned())
                }
            });
            if stands {
                return agent;
            }
            wanted = !is_taken(&agent.0.take().unwrap().wait_with_output().unwrap());
            breathe().await;
        }
        panic!("no agent comes to {at:?}")
    }
}

/// Had another agent, or a dead one, a part?
fn is_taken(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stdout).contains("another agent")
}

/// Runs until an agent has come to a step: others may have the work, or there may be none yet.
const TRIES: usize = 100;

/// Between them.
async fn breathe() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// An agent that stands still.
pub struct Stopped(Option<Child>);

impl Stopped {
    /// It goes on.
    pub fn resume(&self) {
        if let Some(child) = &self.0 {
            process::signal_pid(child.id(), Signal::CONT);
        }
    }

    /// Waits until it has ended, well or not: its lease may be lost.
    pub fn end(mut self) {
        let Some(child) = &mut self.0 else { return };
        wait::until("the agent that had stopped ends", PATIENCE, || match child.try_wait().unwrap() {
            Some(_) => Ok(()),
            None => Err("it works".to_owned()),
        });
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// With `ALBA_LONG_TESTS` agents stop at every step at which they die, else at one of three: each is the length of a lease.
fn stops_too(step: Step) -> bool {
    const ONE_OF: usize = 3;
    let number = Step::ALL.iter().position(|other| *other == step).unwrap();
    std::env::var_os("ALBA_LONG_TESTS").is_some() || number.is_multiple_of(ONE_OF)
}

/// At one step: an agent dies, another one stops for longer than its lease (in the short form at some steps only), and a third one
/// takes over. `beside`: it stops at the same step, and both go on at once; else the second one goes on when `finish` has had
/// others do what is left. `more` makes something to do.
pub async fn trial(
    cluster: &Cluster,
    once: &Once,
    at: impl Into<At>,
    beside: bool,
    mut more: impl AsyncFnMut(),
    mut finish: impl AsyncFnMut(),
) {
    let at = at.into();
    once.dies_at(cluster, at, &mut more).await;
    if !stops_too(at.0) {
        return finish().await;
    }
    // Until then the dead one has its parts.
    let stopped = once.stops_at(cluster, at, &mut more).await;
    if beside {
        let other = once.stops_at(cluster, at, &mut more).await;
        stopped.resume();
        other.resume();
        other.end();
    } else {
        finish().await;
        stopped.resume();
    }
    stopped.end();
    finish().await;
}
