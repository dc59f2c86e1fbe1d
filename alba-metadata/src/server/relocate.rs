//! Moves namespaces between NSM groups: drives each one that the ABM says is being moved, as its leader. What comes next is
//! [`Plan`]'s decision, from what the two groups say; here it is carried out.
//!
//! It remembers nothing that counts: whoever leads the ABM next goes on from what the groups say, and a moment in which two
//! leaders drive the same move is harmless.
//!
//! # The order, and what a crash between any two steps leaves
//!
//! ```text
//!   1 StartMove         ABM     the namespace is Moving, under a number of its own; it cannot be deleted or trashed
//!   2 Prepare … Import  groups  the source serves. A crash: goes on from the target's cursor
//!   3 Freeze … HandOver source  reads only, then nothing. A crash: goes on; nothing was acknowledged that is not in the copy
//!   4 Activate          target  only with what HandOver gave, and only if the copy is the source row for row
//!   5 FinishMove        ABM     in one command: the target is the owner, hears links, OSD uses, trash and preset again, and the source is
//!                               told to drop its copy (through the outbox, so it will, whoever leads)
//! ```
//!
//! 5 comes after 4: else clients would be sent to a group that does not serve, and the source would be told to drop the only
//! copy. 4 comes after 3: else both would serve. Until 5 the source keeps everything, so also if both groups stop for good
//! between 3 and 5 the namespace is whole on each disk that survives. The source's copy goes by the outbox's
//! `DeleteNamespace` alone: no message to the source about the namespace can come after it.
//!
//! # Giving up
//!
//! * Copying without progress for [`COPY_PATIENCE`], or frozen or handed over for longer than [`FREEZE_PATIENCE`], or refused after the
//!   hand-over: the way back. The target rejects, then the source serves again, then `AbortMove`.
//! * The target is silent while the source is frozen: the source is let go on without it (refused once it has handed over), and
//!   the target rejects when it is back. Handed over, only the target can tell whether it serves: that has to be waited for.
//! * A group that the operator gave up never says anything again. Without the target the source serves again; without the
//!   source a target that was activated stays, another one rejects, and the namespace can be recovered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Env, Moment};
use alba_core::ids::NamespaceId;
use alba_core::wire::rpc::abm::AbmCommand;
use alba_core::wire::rpc::nsm::{MoveStatus, NsmAnswer, NsmQuery, Phase};
use futures_util::future::join;
use tokio::sync::mpsc;

use super::Groups;
use super::reach::{Failed, Reach};
use crate::abm::{Abm, Move, move_of, moves};
use crate::machine::{Input, Output};
use crate::nsm::moving::{Next, Plan};
use crate::replicator::{Replicator, read_with};

/// Moves driven at once: each has a page or two in memory ([`alba_core::wire::rpc::nsm::MAX_PAGE_BYTES`]).
const AT_ONCE: usize = 8;

/// Moves looked at; those beyond wait until some are over.
const LOOK_AT: usize = 1000;

/// Moves are looked for this often even when nobody says that something changed.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Shortest pause between looks.
const REST: Duration = Duration::from_millis(100);

/// For one step: a page is written in some milliseconds.
const STEP_TIME: Duration = Duration::from_secs(5);

/// Writes are refused once so few changes are left: a page or two, copied in some ten milliseconds.
const FREEZE_AT: u64 = 2000;

/// Pages after which writes are refused all the same: 32 GiB of metadata.
const PAGES: u64 = 65_536;

/// Longest time without a further page.
const COPY_PATIENCE: Duration = Duration::from_secs(600);

/// Longest time in which writes are refused: clients wait for longer than this before they give up.
const FREEZE_PATIENCE: Duration = Duration::from_secs(8);

/// First pause after a failure; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Runs for ever; dropped, all that it drives stops where it is.
pub(super) async fn run(env: Env, abm: Arc<dyn Replicator<Abm>>, groups: Arc<Groups>) {
    // As many as run at most: telling the end never waits.
    let (ended, mut endings) = mpsc::channel::<NamespaceId>(AT_ONCE);
    let mut running: BTreeMap<NamespaceId, AbortOnDrop> = BTreeMap::new();
    let mut commits = abm.commits();
    loop {
        commits.mark_unchanged();
        let found = read_with(abm.as_ref(), env.deadline_in(STEP_TIME), |store| moves(store, LOOK_AT)).await;
        match found {
            Ok(found) => {
                for wanted in found {
                    let namespace = wanted.namespace;
                    if running.len() >= AT_ONCE || running.contains_key(&namespace) {
                        continue;
                    }
                    let driver = Driver::new(&env, &abm, &groups, wanted);
                    let ended = ended.clone();
                    let task = env.spawn.spawn(
                        "metadata-move",
                        Box::pin(async move {
                            driver.run().await;
                            if ended.send(namespace).await.is_err() {
                                tracing::trace!("nobody listens: all of this ends");
                            }
                        }),
                    );
                    running.insert(namespace, task.abort_on_drop());
                }
            }
            Err(error) => tracing::debug!(%error, "cannot read which namespaces are being moved"),
        }
        env.clock.sleep_until(env.clock.now().plus(REST)).await;
        let again = env.clock.now().plus(LOOK_EVERY);
        tokio::select! {
            biased;
            Some(namespace) = endings.recv() => drop(running.remove(&namespace)),
            // An error: the group is gone, and with it soon this task.
            changed = commits.changed() => if changed.is_err() { return },
            () = env.clock.sleep_until(again) => {}
        }
        while let Ok(namespace) = endings.try_recv() {
            running.remove(&namespace);
        }
    }
}

/// How far a move is, for its patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Clients are served; with the next page.
    Copying(u64),
    /// They are not, or not all.
    Held,
}

impl Stage {
    fn of(source: &MoveStatus, target: Option<&MoveStatus>) -> Self {
        match (source, target) {
            (MoveStatus::Outgoing { phase: Phase::Frozen | Phase::HandedOver(_), .. }, _) => Self::Held,
            (_, Some(MoveStatus::Incoming { next_page, .. })) => Self::Copying(*next_page),
            _ => Self::Copying(0),
        }
    }

    fn patience(self) -> Duration {
        match self {
            Self::Copying(_) => COPY_PATIENCE,
            Self::Held => FREEZE_PATIENCE,
        }
    }
}

/// How a move went on.
enum Went {
    On,
    /// It is over, or is another one's.
    Over,
    /// Something takes its time.
    Waits,
}

struct Driver {
    env: Env,
    abm: Arc<dyn Replicator<Abm>>,
    wanted: Move,
    plan: Plan,
    source: Reach,
    target: Reach,
    stage: Stage,
    since: Moment,
    back: bool,
}

impl Driver {
    fn new(env: &Env, abm: &Arc<dyn Replicator<Abm>>, groups: &Arc<Groups>, wanted: Move) -> Self {
        let (namespace, id) = (wanted.namespace, wanted.id);
        Self {
            plan: Plan { namespace, id, freeze_at: FREEZE_AT, patience: PAGES },
            source: Reach::new(env, abm, groups, &wanted.from),
            target: Reach::new(env, abm, groups, &wanted.to),
            stage: Stage::Copying(0),
            since: env.clock.now(),
            back: false,
            env: env.clone(),
            abm: abm.clone(),
            wanted,
        }
    }

    async fn run(mut self) {
        let Move { name, from, to, .. } = &self.wanted;
        tracing::info!(namespace = %name, %from, %to, "moving a namespace");
        let mut failures: u32 = 0;
        loop {
            match self.step().await {
                Ok(Went::Over) => return,
                Ok(Went::On) => {
                    failures = 0;
                    continue;
                }
                Ok(Went::Waits) => failures = 0,
                Err(error) => {
                    let namespace = &self.wanted.name;
                    // Once loudly; that it is under way shows in the listings.
                    if failures == 0 {
                        tracing::warn!(%namespace, %error, "a move does not go on");
                    } else {
                        tracing::debug!(%namespace, %error, failures, "a move still does not go on");
                    }
                    failures = failures.saturating_add(1);
                }
            }
            let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
            let thousandths = u32::try_from(self.env.rng.u64() % 500).unwrap_or(0) + 500;
            self.env.clock.sleep_until(self.env.clock.now().plus(pause / 1000 * thousandths)).await;
            // It may be over, or a group may have been given up.
            let name = self.wanted.name.clone();
            let deadline = self.env.deadline_in(STEP_TIME);
            match read_with(self.abm.as_ref(), deadline, move |store| move_of(store, &name)).await {
                Ok(Some(now)) if now.id == self.wanted.id && now.namespace == self.wanted.namespace => {
                    self.wanted = now;
                }
                Ok(_) => return,
                Err(error) => tracing::debug!(%error, "cannot read a move"),
            }
        }
    }

    async fn step(&mut self) -> Result<Went, Failed> {
        let next = match (self.wanted.from_lost, self.wanted.to_lost) {
            (true, true) => Next::Ended,
            (true, false) => {
                let target = self.status(false).await?;
                self.plan.without_source(&target)
            }
            (false, true) => {
                let source = self.status(true).await?;
                self.plan.without_target(&source)
            }
            (false, false) => self.decide().await?,
        };
        self.act(next).await
    }

    /// What a group says of the move.
    async fn status(&mut self, source: bool) -> Result<MoveStatus, Failed> {
        let group = if source { &mut self.source } else { &mut self.target };
        status(group, self.plan.namespace, &self.env).await
    }

    async fn decide(&mut self) -> Result<Next, Failed> {
        let namespace = self.plan.namespace;
        let (source, target) = join(
            status(&mut self.source, namespace, &self.env),
            status(&mut self.target, namespace, &self.env),
        )
        .await;
        let source = source?;
        let stage = Stage::of(&source, target.as_ref().ok());
        let now = self.env.clock.now();
        if stage != self.stage {
            (self.stage, self.since) = (stage, now);
        }
        if now.since(self.since) > stage.patience() && !self.back {
            tracing::warn!(namespace = %self.wanted.name, ?stage, "a move takes too long: it is given up");
            self.back = true;
        }
        let target = match target {
            Ok(target) => target,
            // The namespace must not stand still because the target does.
            Err(error) => {
                return match self.plan.unfreeze(&source).filter(|_| self.back && stage == Stage::Held) {
                    Some(command) => Ok(Next::Source(command)),
                    None => Err(error),
                };
            }
        };
        Ok(if self.back { self.plan.back(&source, &target) } else { self.plan.next(&source, &target) })
    }

    async fn act(&mut self, next: Next) -> Result<Went, Failed> {
        let deadline = self.env.deadline_in(STEP_TIME);
        match next {
            Next::Source(command) => self.source.tell(command, deadline).await.map(|_| Went::On),
            Next::Target(command) => match self.target.tell(command, deadline).await {
                Ok(_) => Ok(Went::On),
                Err(error) => {
                    // Nobody serves meanwhile, and what the target said once it says again.
                    if matches!(error, Failed::Refused(_)) && self.stage == Stage::Held {
                        self.back = true;
                    }
                    Err(error)
                }
            },
            Next::Copy { query, number } => {
                let NsmAnswer::Exported(page) = self.source.ask(query, deadline).await? else {
                    return Err("the source gave another answer than a page".to_owned().into());
                };
                let command = self.plan.import(number, page);
                self.target.tell(command, self.env.deadline_in(STEP_TIME)).await.map(|_| Went::On)
            }
            Next::Wait => Ok(Went::Waits),
            // The source hears of it by the outbox; see the module.
            Next::Switch(_) | Next::Moved => {
                let (name, to) = (self.wanted.name.clone(), self.wanted.to.clone());
                self.end(AbmCommand::FinishMove { name, to }, "a namespace has moved").await
            }
            Next::Ended => {
                let (name, to) = (self.wanted.name.clone(), self.wanted.to.clone());
                self.end(AbmCommand::AbortMove { name, to }, "a move was given up").await
            }
            Next::Impossible(reason) => Err(reason.to_owned().into()),
        }
    }

    /// Tells the ABM. If that does not take it, the look after the pause tells why.
    async fn end(&self, command: AbmCommand, what: &str) -> Result<Went, Failed> {
        let deadline = self.env.deadline_in(STEP_TIME);
        match self.abm.propose(Input::Internal(command), deadline).await {
            Ok((Output::Done(Ok(_)), _)) => {
                let Move { name, from, to, .. } = &self.wanted;
                tracing::info!(namespace = %name, %from, %to, "{what}");
                Ok(Went::Over)
            }
            Ok((output, _)) => Err(format!("the ABM does not take the end: {output:?}").into()),
            Err(error) => Err(error.to_string().into()),
        }
    }
}

async fn status(group: &mut Reach, namespace: NamespaceId, env: &Env) -> Result<MoveStatus, Failed> {
    match group.ask(NsmQuery::MoveStatus(namespace), env.deadline_in(STEP_TIME)).await? {
        NsmAnswer::MoveStatus(status) => Ok(status),
        _ => Err("the group gave another answer than a status".to_owned().into()),
    }
}
