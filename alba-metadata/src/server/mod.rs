//! A metadata server: hosts groups, answers clients, delivers the ABM's messages.
//!
//! It decides nothing about metadata: that is the models'. What it adds is the outside: claims on devices, delivery, the
//! wait until a new namespace can be written to.

mod admin;
mod ages;
mod claim;
mod deletions;
mod deliver;
mod devices;
mod lead;
mod notes;
mod on_device;
mod peers;
mod reach;
mod relocate;
mod remote;
#[cfg(test)]
mod replicated_tests;
mod streams;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use alba_core::env::spawn::AbortOnDrop;
use alba_core::env::{Deadline, Env, within};
use alba_core::ids::{AlbaId, GroupId, LongId, NamespaceId, NamespaceName, ObjectId};
use alba_core::net::rpc::{Answer, Handler};
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmError, AbmOutcome, AbmQuery, OsdRecord};
use alba_core::wire::rpc::nsm::{NsmCommand, NsmError, ObjectUpdate};
use alba_core::wire::rpc::{Consistency, Refusal, Reply, Request, RequestId};
use async_trait::async_trait;
use thiserror::Error;

use crate::abm::{Abm, Readiness, readiness};
use crate::backup::scheduled::{self, Schedule};
use crate::machine::{Input, Output, OutputOf};
use crate::model::Model;
use crate::nsm::Nsm;
use crate::raft::{AnyRaft, Home, Peers, Raft, RaftConfig};
use crate::replicator::{Local, LocalLimits, ReplicationError, Replicator, StoreOpener, read_with};

pub use devices::{AsdDevices, Devices};
pub use on_device::{NamespaceOnDevice, OsdOnDevice};

/// Longest a request may take inside the server; clients retry under the same request id.
const REQUEST_TIME: Duration = Duration::from_secs(6);

/// Longest a CreateNamespace waits until the namespace can be written to, and a DeleteNamespace until it is gone
/// (features, appendix A).
const NAMESPACE_WAIT: Duration = Duration::from_secs(4);

/// The name of the ABM's group.
pub const ABM: &str = "abm";

/// What a server hosts.
pub struct NodeConfig {
    /// Groups with their stores; the one named [`ABM`] is the ABM, all others are NSM groups.
    pub groups: BTreeMap<GroupId, StoreOpener>,
    /// Where clients reach this server (`ip:port`).
    pub advertise: String,
    /// Per group.
    pub limits: LocalLimits,
}

/// Why a server did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A group's store.
    #[error("group {group}: {error}")]
    Group {
        /// Which.
        group: GroupId,
        /// What happened.
        error: ReplicationError,
    },
    /// The ABM refused its own server.
    #[error("ABM: {0}")]
    Abm(AbmError),
    /// It answered what is no answer.
    #[error("the ABM gave an unexpected answer")]
    Unexpected,
}

/// A replica of a replicated group.
pub struct Replicated {
    /// Its group, addresses and limits.
    pub config: RaftConfig,
    /// Where it keeps what is its own.
    pub home: Home,
}

/// The groups of this process.
pub(crate) struct Groups {
    pub(crate) abm: Option<Arc<dyn Replicator<Abm>>>,
    pub(crate) nsm: BTreeMap<GroupId, Arc<dyn Replicator<Nsm>>>,
}

/// A running server. Dropping it stops all that it runs.
pub struct Node {
    env: Env,
    groups: Arc<Groups>,
    rafts: BTreeMap<GroupId, Arc<dyn AnyRaft>>,
    alba_id: Arc<OnceLock<AlbaId>>,
    devices: Arc<dyn Devices>,
    notes: Arc<notes::Notes>,
    /// Of the ABM that is led from here.
    misfits: ages::Misfits,
    troubles: Arc<Mutex<BTreeMap<GroupId, String>>>,
    streams: streams::Streams,
    watches: Option<watch::Watches>,
    _tasks: Vec<AbortOnDrop>,
}

impl Node {
    /// Opens groups of one replica each, bootstraps a new backend, registers the NSM groups hosted here, and starts
    /// delivering.
    pub async fn start(
        env: Env,
        config: NodeConfig,
        devices: Arc<dyn Devices>,
    ) -> Result<Arc<Self>, StartError> {
        Self::start_with(env, config, Vec::new(), devices).await
    }

    /// The same, with replicas of replicated groups besides. What only one server may do for a group is done by the one
    /// whose replica leads it.
    pub async fn start_with(
        env: Env,
        config: NodeConfig,
        replicated: Vec<Replicated>,
        devices: Arc<dyn Devices>,
    ) -> Result<Arc<Self>, StartError> {
        let mut groups = Groups { abm: None, nsm: BTreeMap::new() };
        for (id, open) in config.groups {
            let named = id.clone();
            let failed = |error| StartError::Group { group: named, error };
            if id.as_str() == ABM {
                let local = Local::start(env.clone(), &id, open, config.limits.clone()).await;
                groups.abm = Some(Arc::new(local.map_err(failed)?));
            } else {
                let local = Local::start(env.clone(), &id, open, config.limits.clone()).await;
                groups.nsm.insert(id, Arc::new(local.map_err(failed)?));
            }
        }
        let mut rafts: BTreeMap<GroupId, Arc<dyn AnyRaft>> = BTreeMap::new();
        let peers = Peers::new(&env);
        let local_abm = groups.abm.is_some();
        for Replicated { config, home } in replicated {
            let id = config.group.clone();
            if id.as_str() == ABM {
                let raft = Arc::new(Raft::<Abm>::start(&env, config, home, peers.clone()));
                groups.abm = Some(raft.clone());
                rafts.insert(id, raft);
            } else {
                let raft = Arc::new(Raft::<Nsm>::start(&env, config, home, peers.clone()));
                groups.nsm.insert(id.clone(), raft.clone());
                rafts.insert(id, raft);
            }
        }
        let groups = Arc::new(groups);
        let troubles: Arc<Mutex<BTreeMap<GroupId, String>>> = Arc::default();
        let alba_id: Arc<OnceLock<AlbaId>> = Arc::default();
        let misfits = ages::Misfits::default();
        let mut tasks = Vec::new();
        if let Some(abm) = &groups.abm {
            let registrar = lead::Registrar {
                env: env.clone(),
                abm: abm.clone(),
                groups: groups.clone(),
                rafts: rafts.clone(),
                advertise: config.advertise.clone(),
                alba_id: alba_id.clone(),
            };
            if local_abm {
                // A server that answers has its id, and its groups can be written to.
                registrar.bootstrap().await?;
                registrar.register().await?;
            }
            let registrar = Arc::new(registrar);
            let duty = {
                let (env, groups, devices) = (env.clone(), groups.clone(), devices.clone());
                let misfits = misfits.clone();
                move || {
                    let (groups, devices) = (groups.clone(), devices.clone());
                    lead::abm(env.clone(), registrar.clone(), groups, devices, misfits.clone())
                }
            };
            let leading = lead::while_leading(env.clone(), abm.leadership(), "metadata-abm", duty);
            tasks.push(env.spawn.spawn("metadata-lead", Box::pin(leading)).abort_on_drop());
            let tidy = lead::tidy(env.clone(), abm_id()?, abm.clone(), troubles.clone());
            tasks.push(env.spawn.spawn("metadata-tidy", Box::pin(tidy)).abort_on_drop());
        }
        for (id, group) in &groups.nsm {
            let tidy = lead::tidy(env.clone(), id.clone(), group.clone(), troubles.clone());
            tasks.push(env.spawn.spawn("metadata-tidy", Box::pin(tidy)).abort_on_drop());
        }
        let streams = streams::Streams::new(&env);
        let watches = groups.abm.as_ref().map(|abm| watch::Watches::start(&env, abm.clone(), watch::MOST));
        let notes = Arc::new(notes::Notes::new(&env, &devices));
        Ok(Arc::new(Self {
            env,
            groups,
            rafts,
            alba_id,
            devices,
            notes,
            misfits,
            troubles,
            streams,
            watches,
            _tasks: tasks,
        }))
    }

    /// Makes backups of the groups that are led from here, as long as what this gives lives.
    pub(crate) fn backups(&self, schedule: &Schedule) -> Vec<AbortOnDrop> {
        fn of<M: Model>(
            env: &Env,
            group: &GroupId,
            replicator: &Arc<dyn Replicator<M>>,
            schedule: &Schedule,
        ) -> AbortOnDrop {
            let leads = replicator.leadership();
            let (group, replicator, schedule) = (group.clone(), replicator.clone(), schedule.clone());
            let duty = {
                let env = env.clone();
                move || scheduled::run(env.clone(), group.clone(), replicator.clone(), schedule.clone())
            };
            let leading = lead::while_leading(env.clone(), leads, "metadata-backup", duty);
            env.spawn.spawn("metadata-backups", Box::pin(leading)).abort_on_drop()
        }
        let abm = self.groups.abm.iter().filter_map(|abm| Some((abm_id().ok()?, abm)));
        let abm = abm.map(|(id, abm)| of(&self.env, &id, abm, schedule));
        let nsm = self.groups.nsm.iter().map(|(id, nsm)| of(&self.env, id, nsm, schedule));
        abm.chain(nsm).collect()
    }

    /// The backend's id, as soon as this server has heard of it.
    async fn alba_id(&self) -> Option<AlbaId> {
        if let Some(id) = self.alba_id.get() {
            return Some(id.clone());
        }
        let abm = self.groups.abm.as_ref()?;
        let deadline = self.env.deadline_in(REQUEST_TIME);
        match abm.query(AbmQuery::AlbaId, Consistency::Any, deadline).await {
            Ok((Ok(AbmAnswer::AlbaId(id)), _)) => Some(self.alba_id.get_or_init(|| id).clone()),
            _ => None,
        }
    }

    async fn hello(&self) -> Answer {
        let Some(abm) = &self.groups.abm else { return unknown_group() };
        // A server that was not told yet which backend it serves cannot be of use to anybody.
        let Some(alba_id) = self.alba_id().await else { return unknown_group() };
        let led = |leads: bool, id: GroupId| leads.then_some(id);
        let of_abm = abm_id().ok().and_then(|id| led(*abm.leadership().borrow(), id));
        let of_nsm =
            self.groups.nsm.iter().filter_map(|(id, group)| led(*group.leadership().borrow(), id.clone()));
        let groups = of_abm.into_iter().chain(of_nsm).collect();
        Reply::Hello { alba_id, groups, version: env!("CARGO_PKG_VERSION").to_owned() }.into()
    }

    /// Why the server cannot serve all that it hosts; none when it can.
    pub fn trouble(&self) -> Option<String> {
        let told = |group: &dyn std::fmt::Display, trouble: &str| format!("group {group}: {trouble}");
        if let Some(trouble) = self.groups.abm.as_ref().and_then(|abm| abm.trouble()) {
            return Some(told(&ABM, &trouble));
        }
        for (group, nsm) in &self.groups.nsm {
            if let Some(trouble) = nsm.trouble() {
                return Some(told(group, &trouble));
            }
        }
        let misfits = self.misfits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, misfit)) = misfits.iter().next() {
            return Some(misfit.clone());
        }
        drop(misfits);
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.iter().next().map(|(group, trouble)| told(group, trouble))
    }

    async fn abm_command(&self, id: RequestId, command: AbmCommand, deadline: Deadline) -> Answer {
        let Some(abm) = &self.groups.abm else { return unknown_group() };
        if Abm::is_internal(&command) {
            let error = AbmError::BadArgument("only the ABM's leader itself gives this command".to_owned());
            return Reply::Abm(Err(error)).into();
        }
        let waits_for = match &command {
            AbmCommand::CreateNamespace { name, .. } => Some((name.clone(), true)),
            // One that goes to the trash is not waited for.
            AbmCommand::DeleteNamespace { name } | AbmCommand::DiscardNamespace { name } => {
                Some((name.clone(), false))
            }
            _ => None,
        };
        let (output, index) = match abm.propose(Input::Command(id, command), deadline).await {
            Ok(output) => output,
            Err(error) => return refused(&error).into(),
        };
        let result = match done::<Abm>(output) {
            Ok(result) => result,
            Err(refusal) => return Reply::Refused(refusal).into(),
        };
        let reply = match (result, waits_for) {
            (Ok(AbmOutcome::Namespace(record)), Some((name, true))) => {
                // Later deletion and re-creation under the same name would be another namespace.
                let now = self.wait_for(abm.as_ref(), &name, true).await;
                let record = now.filter(|now| now.id == record.id).unwrap_or(record);
                Reply::Abm(Ok(AbmOutcome::Namespace(record)))
            }
            (Ok(AbmOutcome::Done), Some((name, false))) => {
                self.wait_for(abm.as_ref(), &name, false).await;
                Reply::Abm(Ok(AbmOutcome::Done))
            }
            (result, _) => Reply::Abm(result),
        };
        Answer { reply, index }
    }

    /// Waits until a namespace can be written to, or is gone, or cannot get any further; not longer than
    /// [`NAMESPACE_WAIT`]. Its record at the end.
    async fn wait_for(
        &self,
        abm: &dyn Replicator<Abm>,
        name: &NamespaceName,
        usable: bool,
    ) -> Option<alba_core::wire::rpc::abm::NamespaceRecord> {
        let deadline = self.env.deadline_in(NAMESPACE_WAIT);
        let mut commits = abm.commits();
        loop {
            commits.mark_unchanged();
            let wanted = name.clone();
            let found = read_with(abm, deadline, move |store| readiness(store, &wanted)).await.ok()?;
            let (record, state) = found?;
            let over = if usable { state != Readiness::Waiting } else { false };
            if over || within(self.env.clock.as_ref(), deadline, commits.changed()).await.is_err() {
                return Some(record);
            }
        }
    }

    async fn nsm_command(
        &self,
        nsm: &Arc<dyn Replicator<Nsm>>,
        id: RequestId,
        command: NsmCommand,
        deadline: Deadline,
    ) -> Answer {
        if let Some(deletions) = deletions::Deletions::of(&command) {
            return self.delete(nsm, id, command, &deletions, deadline).await;
        }
        let cleaned = match &command {
            // What OSDs have to hear of is not the client's business.
            NsmCommand::DeletingSequence { .. } => {
                let reason = "only the group's server itself gives this command".to_owned();
                return Reply::Refused(Refusal::BadRequest(reason)).into();
            }
            NsmCommand::MarkKeysDeleted { namespace, keys, .. } => {
                Some((*namespace, keys.iter().map(|key| key.object).collect()))
            }
            _ => None,
        };
        match nsm.propose(Input::Command(id, command), deadline).await {
            Ok((output, index)) => {
                if let Some((namespace, objects)) = cleaned {
                    self.clean_notes(nsm, namespace, objects);
                }
                let reply = done::<Nsm>(output).map_or_else(Reply::Refused, Reply::Nsm);
                Answer { reply, index }
            }
            Err(error) => refused(&error).into(),
        }
    }

    /// In the background: nobody waits for it, and what is left undone does no harm.
    fn clean_notes(
        &self,
        nsm: &Arc<dyn Replicator<Nsm>>,
        namespace: NamespaceId,
        objects: BTreeSet<ObjectId>,
    ) {
        let (notes, nsm) = (self.notes.clone(), nsm.clone());
        let deadline = self.env.deadline_in(REQUEST_TIME);
        let work = async move { notes.clean_up(nsm.as_ref(), namespace, objects, deadline).await };
        drop(self.env.spawn.spawn("metadata-notes", Box::pin(work)));
    }

    async fn claim(&self, long_id: LongId, deadline: Deadline) -> Reply {
        let Some(abm) = &self.groups.abm else { return Reply::Refused(Refusal::UnknownGroup) };
        let query = AbmQuery::Osd(long_id.clone());
        let record =
            match abm.query(query, Consistency::Linearizable, deadline).await.map(|(answer, _)| answer) {
                Ok(Ok(AbmAnswer::Osd(Some(record)))) => record,
                Ok(Ok(_)) => return Reply::Abm(Err(AbmError::OsdUnknown(long_id))),
                Ok(Err(error)) => return Reply::Abm(Err(error)),
                Err(error) => return refused(&error),
            };
        if let Some(id) = record.osd_id {
            let leaves = record.state.is_leaving();
            let claimed = if leaves { Err(AbmError::OsdDecommissioned(long_id)) } else { Ok(id) };
            return Reply::Abm(claimed.map(AbmOutcome::OsdId));
        }
        // The linearizable read above succeeded: the backend is there, and its id is known to this state.
        let Some(alba_id) = self.alba_id().await else {
            return Reply::Refused(Refusal::NotLeader { leader: None });
        };
        let osd = self.devices.osd(&record.info);
        match claim::take(osd.as_ref(), &long_id, &alba_id, deadline).await {
            Ok(()) => {}
            Err(claim::NotTaken::No(error)) => {
                if let AbmError::OsdClaimed { owner, .. } = &error {
                    // The device is the authority. That it is not recorded now does no harm: the next claim asks it again.
                    let mark = AbmCommand::MarkForeign { long_id, owner: owner.clone() };
                    drop(abm.propose(Input::Internal(mark), deadline).await);
                }
                return Reply::Abm(Err(error));
            }
            // Another claim of it may have come between the two looks: then it has an id by now, and has heard it.
            Err(claim::NotTaken::Used(error)) => {
                let query = AbmQuery::Osd(long_id);
                let record = abm.query(query, Consistency::Linearizable, deadline).await;
                return Reply::Abm(match record.map(|(answer, _)| answer) {
                    Ok(Ok(AbmAnswer::Osd(Some(OsdRecord { osd_id: Some(id), .. })))) => {
                        Ok(AbmOutcome::OsdId(id))
                    }
                    Ok(_) => Err(error),
                    Err(error) => return refused(&error),
                });
            }
        }
        // A crash here leaves a device that is ours and not registered: the next claim finds its own keys and goes on.
        let command = Input::Internal(AbmCommand::MarkClaimed { long_id });
        match abm.propose(command, deadline).await.map(|(output, _)| done::<Abm>(output)) {
            Ok(Ok(result)) => Reply::Abm(result),
            Ok(Err(refusal)) => Reply::Refused(refusal),
            Err(error) => refused(&error),
        }
    }

    async fn open_session(&self, group: &GroupId, nonce: [u8; 16], deadline: Deadline) -> Reply {
        let opened = if group.as_str() == ABM {
            match &self.groups.abm {
                Some(abm) => {
                    abm.propose(Input::OpenSession(nonce), deadline).await.map(|(o, _)| session::<Abm>(o))
                }
                None => return Reply::Refused(Refusal::UnknownGroup),
            }
        } else {
            match self.groups.nsm.get(group) {
                Some(nsm) => {
                    nsm.propose(Input::OpenSession(nonce), deadline).await.map(|(o, _)| session::<Nsm>(o))
                }
                None => return Reply::Refused(Refusal::UnknownGroup),
            }
        };
        opened.unwrap_or_else(|error| refused(&error))
    }
}

#[async_trait]
impl Handler for Node {
    async fn handle(&self, request: Request, patience: Option<Duration>) -> Answer {
        let deadline = self.env.deadline_in(patience.map_or(REQUEST_TIME, |left| left.min(REQUEST_TIME)));
        match request {
            Request::Hello => self.hello().await,
            Request::OpenSession { group, nonce } => self.open_session(&group, nonce, deadline).await.into(),
            Request::Abm(id, command) => self.abm_command(id, command, deadline).await,
            Request::AbmQuery(consistency, query) => match &self.groups.abm {
                None => unknown_group(),
                Some(abm) => match abm.query(query, consistency, deadline).await {
                    Ok((answer, index)) => Answer { reply: Reply::AbmAnswer(answer), index },
                    Err(error) => refused(&error).into(),
                },
            },
            Request::Nsm(group, id, command) => match self.groups.nsm.get(&group) {
                None => unknown_group(),
                Some(nsm) if nsm.copies() < INLINE_COPIES && puts_inline(&command) => {
                    Reply::Nsm(Err(NsmError::PresetViolated(format!(
                        "objects live in the metadata of groups with {INLINE_COPIES} replicas or more only; this one has {}",
                        nsm.copies()
                    ))))
                    .into()
                }
                Some(nsm) => self.nsm_command(nsm, id, command, deadline).await,
            },
            Request::NsmQuery(group, consistency, query) => match self.groups.nsm.get(&group) {
                None => unknown_group(),
                Some(nsm) => match nsm.query(query, consistency, deadline).await {
                    Ok((answer, index)) => Answer { reply: Reply::NsmAnswer(answer), index },
                    Err(error) => refused(&error).into(),
                },
            },
            Request::ClaimOsd(long_id) => self.claim(long_id, deadline).await.into(),
            // Has deadlines of its own: the installation of a large state takes longer than any client waits.
            Request::Replicate(group, bytes) => match self.rafts.get(&group) {
                None => unknown_group(),
                Some(raft) => Reply::Replicate(raft.receive(&bytes).await.into()).into(),
            },
            Request::Admin(group, request) => self.admin(&group, request, deadline).await.into(),
            // Waits as long as it was asked to: longer than any other request takes.
            Request::Watch(request) => match &self.watches {
                None => unknown_group(),
                Some(watches) => watches.wait(request, patience).await,
            },
        }
    }
}

/// Replicas that a group needs for objects to live in its metadata: they are as safe as the group is (architecture §5).
const INLINE_COPIES: usize = 3;

fn puts_inline(command: &NsmCommand) -> bool {
    let NsmCommand::Sequence { updates, .. } = command else { return false };
    updates.iter().any(|update| matches!(update, ObjectUpdate::PutInline { .. }))
}

fn abm_id() -> Result<GroupId, StartError> {
    GroupId::new(ABM).map_err(|error| StartError::Abm(error.into()))
}

fn done<M: Model>(output: OutputOf<M>) -> Result<Result<M::Outcome, M::Error>, Refusal> {
    match output {
        Output::Done(result) => Ok(result),
        Output::SessionUnknown => Err(Refusal::SessionUnknown),
        Output::TooFar => Err(Refusal::Overloaded),
        Output::Session(_) | Output::Tidied(_) => Err(Refusal::BadRequest("not a command".to_owned())),
    }
}

fn session<M: Model>(output: OutputOf<M>) -> Reply {
    match output {
        Output::Session(id) => Reply::Session(id),
        _ => Reply::Refused(Refusal::BadRequest("not a session".to_owned())),
    }
}

fn unknown_group() -> Answer {
    Reply::Refused(Refusal::UnknownGroup).into()
}

fn refused(error: &ReplicationError) -> Reply {
    Reply::Refused(match error {
        ReplicationError::Overloaded => Refusal::Overloaded,
        ReplicationError::NotLeader { leader } => Refusal::NotLeader { leader: leader.clone() },
        ReplicationError::Behind => Refusal::Behind,
        // Nothing happened; the reason is one for a person, and clients try again.
        ReplicationError::NotAgreed { .. }
        // Whether it happened is unknown, exactly as after a failure of the store; a retry tells.
        | ReplicationError::Store(_) | ReplicationError::Timeout | ReplicationError::Stopped => {
            Refusal::Storage(error.to_string())
        }
    })
}

/// A random (version 4) UUID.
fn uuid(env: &Env) -> String {
    let random = u128::from(env.rng.u64()) << 64 | u128::from(env.rng.u64());
    let versioned = random & !(0xf << 76) | 0x4 << 76;
    let hex = format!("{:032x}", versioned & !(0x3 << 62) | 0x2 << 62);
    let mut parts = Vec::new();
    let mut rest = hex.as_str();
    for len in [8, 4, 4, 4] {
        // 32 ASCII digits: every cut is inside and between characters.
        let (part, more) = rest.split_at(len);
        parts.push(part);
        rest = more;
    }
    parts.push(rest);
    parts.join("-")
}

/// The NSM's refusal of a message, as text.
pub(crate) fn nsm_refusal(error: &NsmError) -> String {
    format!("the group refuses: {error}")
}
