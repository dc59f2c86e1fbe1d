//! Delivery of the ABM's outbox: one worker per destination that has messages, so that a stuck one never holds up the
//! others. At once after a change, again with growing pauses after a failure.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Env, within};
use alba_core::ids::{AlbaId, MessageId};
use alba_core::wire::rpc::Consistency;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmError, AbmQuery, Destination, Message};
use alba_core::wire::rpc::nsm::{NsmCommand, NsmMessage};
use tokio::sync::{Notify, Semaphore};

use super::{Devices, Groups, nsm_refusal, on_device, remote};
use crate::abm::Abm;
use crate::machine::{Input, Output};
use crate::replicator::{ReplicationError, Replicator, read_with};

/// Messages per step (features, appendix A).
const BATCH: u32 = 10;

/// Destinations served at once; a namespace for thousands of OSDs does not open thousands of connections together.
const AT_ONCE: usize = 64;

/// Longest one step may take: also the removal of many keys comes further with each.
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

impl Shared {
    /// Delivers until the queue is empty.
    async fn work(&self, destination: &Destination) {
        let mut failures: u32 = 0;
        loop {
            match self.step(destination).await {
                Ok(false) => return,
                Ok(true) => failures = 0,
                Err(reason) => {
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
        }
    }

    /// Delivers some messages and marks them delivered; false when there are none.
    async fn step(&self, destination: &Destination) -> Result<bool, String> {
        let clock = self.env.clock.as_ref();
        let deadline = self.env.deadline_in(STEP_TIME);
        let query = AbmQuery::Messages { destination: destination.clone(), max: BATCH };
        let messages = match ask(self.abm.as_ref(), query, deadline).await {
            Ok(Ok(AbmAnswer::Messages(messages))) => messages,
            Ok(_) => return Err("the ABM does not tell its messages".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        if messages.is_empty() {
            return Ok(false);
        }
        // Never closed; whoever holds one gives it back by its own deadline.
        let Ok(_turn) = self.at_once.acquire().await else { return Ok(false) };
        let deadline = self.env.deadline_in(STEP_TIME);
        let delivered = match destination {
            Destination::Osd(_) => self.to_osd(destination, &messages, deadline).await,
            Destination::Group(_) => {
                match within(clock, deadline, self.to_group(destination, messages)).await {
                    Ok(delivered) => delivered,
                    Err(late) => Err(late.to_string()),
                }
            }
        };
        let upto = delivered?;
        let mark = AbmCommand::MarkDelivered { destination: destination.clone(), upto };
        let deadline = self.env.deadline_in(STEP_TIME);
        match self.abm.propose(Input::Internal(mark), deadline).await {
            Ok((Output::Done(Ok(_)), _)) => Ok(true),
            Ok((output, _)) => Err(format!("the ABM does not mark them delivered: {output:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The last that had its effect; an error when not even the first had.
    async fn to_osd(
        &self,
        destination: &Destination,
        messages: &[(MessageId, Message)],
        deadline: alba_core::env::Deadline,
    ) -> Result<MessageId, String> {
        let Destination::Osd(osd_id) = destination else { return Err("not an OSD".to_owned()) };
        let osd_id = *osd_id;
        let info = read_with(self.abm.as_ref(), deadline, move |store| crate::abm::osd_info(store, osd_id));
        let info = info.await.map_err(|error| error.to_string())?;
        let info = info.ok_or_else(|| format!("OSD {osd_id} is not registered any more"))?;
        let osd = self.devices.osd(&info);
        let mut last = Err("nothing to deliver".to_owned());
        for (id, message) in messages {
            let Message::Osd(message) = message else {
                return last.map_err(|_| format!("message {id} is not for an OSD"));
            };
            match on_device::deliver(osd.as_ref(), &self.alba_id, *id, message, deadline).await {
                Ok(()) => last = Ok(*id),
                Err(error) => return last.map_err(|_| format!("OSD {}: {error}", info.long_id)),
            }
        }
        last
    }

    async fn to_group(
        &self,
        destination: &Destination,
        messages: Vec<(MessageId, Message)>,
    ) -> Result<MessageId, String> {
        let Destination::Group(group) = destination else { return Err("not a group".to_owned()) };
        let mut batch: Vec<(MessageId, NsmMessage)> = Vec::new();
        for (id, message) in messages {
            match message {
                Message::Nsm(message) => batch.push((id, message)),
                Message::Osd(_) => return Err(format!("message {id} is not for a group")),
            }
        }
        let Some(upto) = batch.last().map(|(id, _)| *id) else { return Err("nothing to deliver".to_owned()) };
        let command = NsmCommand::Deliver(batch);
        let deadline = self.env.deadline_in(STEP_TIME);
        match self.groups.nsm.get(group) {
            Some(local) => match local.propose(Input::Internal(command), deadline).await {
                Ok((Output::Done(Ok(_)), _)) => Ok(upto),
                Ok((Output::Done(Err(error)), _)) => Err(nsm_refusal(&error)),
                Ok(_) => Err("the group gave an unexpected answer".to_owned()),
                Err(error) => Err(error.to_string()),
            },
            None => {
                let servers = self.servers_of(group, deadline).await?;
                remote::deliver(&self.env, group, &servers, command, deadline).await?;
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

/// A linearizable read of the ABM.
async fn ask(
    abm: &dyn Replicator<Abm>,
    query: AbmQuery,
    deadline: alba_core::env::Deadline,
) -> Result<Result<AbmAnswer, AbmError>, ReplicationError> {
    abm.query(query, Consistency::Linearizable, deadline).await.map(|(answer, _)| answer)
}
