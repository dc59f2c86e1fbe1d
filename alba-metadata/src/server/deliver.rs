//! Delivery of the ABM's outbox: one worker per destination that has messages, so that a stuck one never holds up the
//! others. At once after a change, again with growing pauses after a failure.
//!
//! Two kinds of failure are told apart. Trouble (no connection, a deadline, a destination that counts differently because
//! it was wiped or is another) is about the destination: the queue waits, and shows in the listings. A refusal is the
//! destination's word on one message: after [`TRIES`] of them the message goes to the dead letters, and the queue goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Env, within};
use alba_core::ids::{AlbaId, MessageId, NamespaceId};
use alba_core::preset::Preset;
use alba_core::wire::rpc::Consistency;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmError, AbmQuery, Destination, Message};
use alba_core::wire::rpc::nsm::{NsmCommand, NsmError, NsmMessage};
use tokio::sync::{Notify, Semaphore};

use super::{Devices, Groups, ages, nsm_refusal, on_device, remote};
use crate::abm::Abm;
use crate::machine::{Input, Output};
use crate::replicator::{ReplicationError, Replicator, read_with};

/// Messages per step (features, appendix A).
const BATCH: usize = 10;

/// Refusals of one message before it goes to the dead letters: what looks final may be the end of something under way.
const TRIES: u32 = 5;

/// Destinations served at once; a namespace for thousands of OSDs does not open thousands of connections together.
const AT_ONCE: usize = 64;

/// Longest one step may take: ten messages are ten small batches on a device.
const STEP_TIME: Duration = Duration::from_secs(15);

/// First pause after a failure; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause: a device that comes back is served within this.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// The queues are looked at this often even when nobody says that something changed.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The whole of it.
pub(super) struct Deliverer {
    shared: Arc<Shared>,
}

struct Shared {
    env: Env,
    abm: Arc<dyn Replicator<Abm>>,
    groups: Arc<Groups>,
    devices: Arc<dyn Devices>,
    alba_id: AlbaId,
    at_once: Semaphore,
    /// A worker ended: look again whether something came meanwhile.
    look: Notify,
}

type Workers = Arc<Mutex<BTreeMap<Destination, Option<AbortOnDrop>>>>;

impl Deliverer {
    pub(super) fn new(
        env: &Env,
        abm: &Arc<dyn Replicator<Abm>>,
        groups: &Arc<Groups>,
        devices: &Arc<dyn Devices>,
        alba_id: &AlbaId,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                env: env.clone(),
                abm: abm.clone(),
                groups: groups.clone(),
                devices: devices.clone(),
                alba_id: alba_id.clone(),
                at_once: Semaphore::new(AT_ONCE),
                look: Notify::new(),
            }),
        }
    }

    /// Runs for ever; dropped, its workers end.
    pub(super) async fn run(self) {
        let shared = self.shared;
        let env = shared.env.clone();
        let workers = Workers::default();
        let mut commits = shared.abm.commits();
        loop {
            commits.mark_unchanged();
            match ask(shared.abm.as_ref(), AbmQuery::Queues, env.deadline_in(STEP_TIME)).await {
                Ok(Ok(AbmAnswer::Queues(queues))) => {
                    for (destination, _) in queues {
                        start_worker(&shared, &workers, destination);
                    }
                }
                Ok(_) => tracing::warn!("the ABM does not tell its queues"),
                Err(error) => tracing::warn!(%error, "cannot read the queues"),
            }
            let again = env.clock.now().plus(LOOK_EVERY);
            tokio::select! {
                biased;
                // An error: the group is gone, and with it soon this task.
                changed = commits.changed() => if changed.is_err() { return },
                () = shared.look.notified() => {}
                () = env.clock.sleep_until(again) => {}
            }
        }
    }
}

fn start_worker(shared: &Arc<Shared>, workers: &Workers, destination: Destination) {
    {
        let mut table = workers.lock().unwrap_or_else(PoisonError::into_inner);
        if table.contains_key(&destination) {
            return;
        }
        table.insert(destination.clone(), None);
    }
    // Weak: a worker must not keep the table alive whose end is to end it.
    let (weak, shared, key) = (Arc::downgrade(workers), shared.clone(), destination.clone());
    let env = shared.env.clone();
    let handle = env.spawn.spawn(
        "metadata-deliver-one",
        Box::pin(async move {
            shared.work(&destination).await;
            if let Some(table) = weak.upgrade() {
                let ended = table.lock().unwrap_or_else(PoisonError::into_inner).remove(&destination);
                drop(ended);
            }
            shared.look.notify_one();
        }),
    );
    // It may have ended already.
    if let Some(slot) = workers.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&key) {
        *slot = Some(handle.abort_on_drop());
    }
}

/// Why nothing (more) was delivered.
pub(super) enum Failure {
    /// The destination cannot take anything now.
    Trouble(String),
    /// It does not want this one.
    Refused(MessageId, String),
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Trouble(reason)
    }
}

/// What a group's refusal is about.
pub(super) fn group_refusal(first: MessageId, error: &NsmError) -> Failure {
    match error {
        // Also that messages are missing: about the group, whatever comes.
        NsmError::Unknown(_) => Failure::Trouble(nsm_refusal(error)),
        _ => Failure::Refused(first, nsm_refusal(error)),
    }
}

/// What one step came to.
enum Step {
    Empty,
    Done,
}

/// How a worker goes on after refusals.
#[derive(Default)]
struct Patience {
    /// The message refused last, and how often it was.
    refused: Option<(MessageId, u32)>,
    /// Messages still to be delivered one by one, to find the one of a batch that is refused.
    singly: usize,
}

impl Patience {
    fn batch(&mut self) -> usize {
        if self.singly == 0 {
            return BATCH;
        }
        self.singly -= 1;
        1
    }

    /// Has this message been refused often enough? What is refused in a batch may be any of it.
    fn is_over(&mut self, id: MessageId, batch: usize) -> bool {
        self.singly = BATCH;
        if batch > 1 {
            return false;
        }
        let before = self.refused.filter(|(other, _)| *other == id).map_or(0, |(_, count)| count);
        self.refused = Some((id, before + 1));
        before + 1 >= TRIES
    }
}

impl Shared {
    /// Delivers until the queue is empty.
    async fn work(&self, destination: &Destination) {
        let mut failures: u32 = 0;
        let mut patience = Patience::default();
        let mut compared = false;
        loop {
            let batch = patience.batch();
            let stepped = match self.compare(destination, &mut compared).await {
                Ok(()) => self.step(destination, batch).await,
                Err(reason) => Err(Failure::Trouble(reason)),
            };
            let reason = match stepped {
                Ok(Step::Empty) => return,
                Ok(Step::Done) => {
                    failures = 0;
                    continue;
                }
                Err(Failure::Refused(id, reason)) if patience.is_over(id, batch) => {
                    tracing::error!(?destination, %id, reason, "a message goes to the dead letters");
                    match self.put_aside(destination, id, reason).await {
                        Ok(()) => continue,
                        Err(reason) => reason,
                    }
                }
                Err(Failure::Refused(_, reason)) => reason,
                Err(Failure::Trouble(reason)) => {
                    // A group takes a batch whole or not at all: what comes before a message that has to wait goes alone.
                    patience.singly = BATCH;
                    reason
                }
            };
            // Once loudly; that it is stuck shows in the queues.
            if failures == 0 {
                tracing::warn!(?destination, reason, "cannot deliver messages");
            } else {
                tracing::debug!(?destination, reason, failures, "still cannot deliver messages");
            }
            let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
            failures = failures.saturating_add(1);
            let thousandths = u32::try_from(self.env.rng.u64() % 500).unwrap_or(0) + 500;
            let until = self.env.clock.now().plus(pause / 1000 * thousandths);
            self.env.clock.sleep_until(until).await;
        }
    }

    /// Before anything goes to a group: is it of the same age?
    async fn compare(&self, destination: &Destination, compared: &mut bool) -> Result<(), String> {
        // An OSD is compared with each message.
        let Destination::Group(group) = destination else { return Ok(()) };
        if *compared {
            return Ok(());
        }
        let deadline = self.env.deadline_in(STEP_TIME);
        let lost = match ask(self.abm.as_ref(), AbmQuery::Groups, deadline).await {
            Ok(Ok(AbmAnswer::Groups(groups))) => groups.iter().any(|known| known.id == *group && known.lost),
            _ => return Err("the ABM does not tell its groups".to_owned()),
        };
        // Nothing goes to one that is given up.
        if !lost
            && let Some(misfit) = ages::compare(&self.env, &self.abm, &self.groups, group, deadline).await?
        {
            return Err(misfit);
        }
        *compared = !lost;
        Ok(())
    }

    /// Delivers some messages and marks them delivered.
    async fn step(&self, destination: &Destination, batch: usize) -> Result<Step, Failure> {
        let deadline = self.env.deadline_in(STEP_TIME);
        let wanted = destination.clone();
        let outgoing =
            read_with(self.abm.as_ref(), deadline, move |store| crate::abm::outgoing(store, &wanted, batch));
        let outgoing = outgoing.await.map_err(|error| error.to_string())?;
        let mut messages = outgoing.messages;
        let (Some((first, _)), Some((last, _))) = (messages.first(), messages.last()) else {
            return Ok(Step::Empty);
        };
        if outgoing.gone {
            return Err(format!("{destination:?} is gone; its queue is being dropped").into());
        }
        if outgoing.lost {
            let last = *last;
            return self.mark(destination, last).await;
        }
        if outgoing.free == 0 {
            let first = *first;
            let reason = "it has to wait behind an earlier one of its namespace".to_owned();
            self.put_aside(destination, first, reason).await?;
            return Ok(Step::Done);
        }
        messages.truncate(outgoing.free);
        // Never closed; whoever holds one gives it back by its own deadline.
        let Ok(_turn) = self.at_once.acquire().await else { return Ok(Step::Empty) };
        let deadline = self.env.deadline_in(STEP_TIME);
        let upto = match destination {
            Destination::Osd(_) => self.to_osd(destination, &messages, deadline).await?,
            Destination::Group(_) => {
                let sent = within(self.env.clock.as_ref(), deadline, self.to_group(destination, messages));
                sent.await.map_err(|late| late.to_string())??
            }
        };
        self.mark(destination, upto).await
    }

    async fn mark(&self, destination: &Destination, upto: MessageId) -> Result<Step, Failure> {
        let mark = AbmCommand::MarkDelivered { destination: destination.clone(), upto };
        self.tell_abm(mark).await?;
        Ok(Step::Done)
    }

    /// Moves a message to the dead letters.
    async fn put_aside(
        &self,
        destination: &Destination,
        id: MessageId,
        reason: String,
    ) -> Result<(), String> {
        self.tell_abm(AbmCommand::MarkRefused { destination: destination.clone(), id, reason }).await
    }

    async fn tell_abm(&self, command: AbmCommand) -> Result<(), String> {
        let deadline = self.env.deadline_in(STEP_TIME);
        match self.abm.propose(Input::Internal(command), deadline).await {
            Ok((Output::Done(Ok(_)), _)) => Ok(()),
            Ok((output, _)) => Err(format!("the ABM does not take the news: {output:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The last that had its effect; an error when not even the first had.
    async fn to_osd(
        &self,
        destination: &Destination,
        messages: &[(MessageId, Message)],
        deadline: alba_core::env::Deadline,
    ) -> Result<MessageId, Failure> {
        let Destination::Osd(osd_id) = destination else { return Err("not an OSD".to_owned().into()) };
        let osd_id = *osd_id;
        let numbered = destination.clone();
        let read = read_with(self.abm.as_ref(), deadline, move |store| {
            let (_, next) = crate::abm::message_numbers(store, &numbered)?;
            Ok((crate::abm::osd_by_id(store, osd_id)?, next))
        });
        let (record, next) = read.await.map_err(|error| error.to_string())?;
        let info = record.ok_or_else(|| format!("OSD {osd_id} is not registered any more"))?.info;
        let osd = self.devices.osd(&info);
        let mut last = Err(Failure::Trouble("nothing to deliver".to_owned()));
        for (id, message) in messages {
            let message = match message {
                Message::Osd(message) => Some(message),
                Message::Skip => None,
                Message::Nsm(_) => {
                    return last.map_err(|_| Failure::Refused(*id, "it is not for an OSD".to_owned()));
                }
            };
            match on_device::deliver(osd.as_ref(), &self.alba_id, *id, message, next, deadline).await {
                Ok(()) => last = Ok(*id),
                Err(error) => {
                    let reason = format!("OSD {}: {error}", info.long_id);
                    let failure = if error.is_refusal() {
                        Failure::Refused(*id, reason)
                    } else {
                        Failure::Trouble(reason)
                    };
                    return last.map_err(|_| failure);
                }
            }
        }
        last
    }

    async fn to_group(
        &self,
        destination: &Destination,
        messages: Vec<(MessageId, Message)>,
    ) -> Result<MessageId, Failure> {
        let Destination::Group(group) = destination else { return Err("not a group".to_owned().into()) };
        let mut batch: Vec<(MessageId, NsmMessage)> = Vec::new();
        for (id, message) in messages {
            match message {
                Message::Nsm(message) => batch.push((id, message)),
                Message::Skip => batch.push((id, without_effect())),
                Message::Osd(_) => return Err(Failure::Refused(id, "it is not for a group".to_owned())),
            }
        }
        let (Some((first, _)), Some((upto, _))) = (batch.first(), batch.last()) else {
            return Err("nothing to deliver".to_owned().into());
        };
        let (first, upto) = (*first, *upto);
        let command = NsmCommand::Deliver(batch);
        let deadline = self.env.deadline_in(STEP_TIME);
        match self.groups.nsm.get(group) {
            Some(local) => match local.propose(Input::Internal(command), deadline).await {
                Ok((Output::Done(Ok(_)), _)) => Ok(upto),
                Ok((Output::Done(Err(error)), _)) => Err(group_refusal(first, &error)),
                Ok(_) => Err("the group gave an unexpected answer".to_owned().into()),
                Err(error) => Err(error.to_string().into()),
            },
            None => {
                let servers = self.servers_of(group, deadline).await?;
                remote::deliver(&self.env, group, &servers, first, command, deadline).await?;
                Ok(upto)
            }
        }
    }

    async fn servers_of(
        &self,
        group: &alba_core::ids::GroupId,
        deadline: alba_core::env::Deadline,
    ) -> Result<Vec<String>, String> {
        match ask(self.abm.as_ref(), AbmQuery::Groups, deadline).await {
            Ok(Ok(AbmAnswer::Groups(groups))) => {
                let found = groups.into_iter().find(|record| record.id == *group);
                found.map(|record| record.servers).ok_or_else(|| format!("group {group} is not registered"))
            }
            Ok(_) => Err("the ABM does not tell its groups".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A message that moves a group's counter on and nothing else: no group takes a preset that is not newer than its own, and
/// no version is older than the first, 0.
fn without_effect() -> NsmMessage {
    let preset = Box::new(Preset::built_in());
    NsmMessage::UpdatePreset { namespace: NamespaceId::from_u32(0), preset, version: 0 }
}

/// A linearizable read of the ABM.
async fn ask(
    abm: &dyn Replicator<Abm>,
    query: AbmQuery,
    deadline: alba_core::env::Deadline,
) -> Result<Result<AbmAnswer, AbmError>, ReplicationError> {
    abm.query(query, Consistency::Linearizable, deadline).await.map(|(answer, _)| answer)
}
