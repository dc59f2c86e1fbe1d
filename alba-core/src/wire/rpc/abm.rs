//! Commands, queries and records of the ABM (features §1.3 to §1.5, §2.2, §3.2, §3.7, §3.11).

mod error;
mod records;
mod tasks;
mod upkeep;
mod work;

use serde::{Deserialize, Serialize};

use super::nsm::NsmMessage;
use crate::ids::{
    AgentId, AlbaId, GroupId, JobName, LongId, MessageId, NamespaceId, NamespaceName, OsdId, PresetName,
    TaskName, WorkId,
};
use crate::policy::Policy;
use crate::preset::Preset;
use crate::range::{Page, RangeQuery};

pub use error::{AbmError, code};
pub use records::{
    GroupLoad, GroupRecord, NamespaceRecord, NamespaceState, OsdEndpoint, OsdInfo, OsdKind, OsdPorts,
    OsdRecord, OsdState, PresetRecord,
};
pub use tasks::{PAUSED_MAX, RunReport, RunState, TaskRecord};
pub use upkeep::{
    ERROR_TEXT_MAX, LeaseRecord, MaintenanceConfig, MaintenanceUpdate, OsdHealth, OsdReport,
    ParticipantRecord, RedisEviction, STAMPS_MAX, Usage,
};
pub use work::{
    JobAction, JobRecord, LEAVES_MAX, LeafProgress, ObjectCursor, WORK_PAGE, WorkItem, WorkRecord,
};

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Destination {
    /// An NSM group.
    Group(GroupId),
    /// An OSD.
    Osd(OsdId),
}

/// A message to an OSD (features §1.5): the OSD keeps the number of the next one, so each has its effect once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OsdMessage {
    /// Store the OSD's own id, so that a lost ABM can be rebuilt.
    Identify {
        /// Its id here.
        osd_id: OsdId,
    },
    /// Accept fragments of a namespace.
    AddNamespace {
        /// Its id.
        id: NamespaceId,
        /// Its name.
        name: NamespaceName,
        /// Its preset, kept on the device for recovery.
        preset_name: PresetName,
        /// The preset itself.
        preset: Box<Preset>,
    },
    /// Drop all keys of a namespace.
    RemoveNamespace {
        /// Its id.
        id: NamespaceId,
    },
}

/// What a queue towards a destination holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// For an NSM group.
    Nsm(NsmMessage),
    /// For an OSD.
    Osd(OsdMessage),
    /// In place of a message that went to the dead letters: it only moves the destination's counter on.
    Skip,
}

/// A message that its destination refuses for good, or that waits behind such a one of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its number in the queue it was in.
    pub id: MessageId,
    /// The message.
    pub message: Message,
    /// Why it is here.
    pub reason: String,
    /// Since when (microseconds since the Unix epoch, the ABM's time).
    pub since: u64,
}

/// A change of the ABM's state. The time of a command is given by the leader when it is proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbmCommand {
    /// First start: fixes the backend's id and makes the `default` preset. A repeat changes nothing.
    Bootstrap {
        /// The id, if this is the first.
        alba_id: AlbaId,
    },
    /// Adds an NSM group, or changes its servers.
    AddGroup {
        /// Its name.
        id: GroupId,
        /// Where it listens.
        servers: Vec<String>,
    },
    /// Registers an OSD as available.
    AddOsd(OsdInfo),
    /// Changes endpoint, size or place of a registered OSD. The place of one that is linked to namespaces stays.
    UpdateOsd(OsdInfo),
    /// The ownership keys on the device are ours: allocate an id, link to the namespaces. Sent by the leader.
    MarkClaimed {
        /// Which.
        long_id: LongId,
    },
    /// Adds a preset.
    CreatePreset {
        /// Its name.
        name: PresetName,
        /// What it asks.
        preset: Box<Preset>,
    },
    /// Namespaces that name no preset get this one.
    SetDefaultPreset {
        /// Its name.
        name: PresetName,
    },
    /// Adds a namespace. The server answers once it can be written to, or after a bounded wait.
    CreateNamespace {
        /// Its name.
        name: NamespaceName,
        /// None: the default one.
        preset: Option<PresetName>,
        /// None: the least loaded one.
        group: Option<GroupId>,
    },
    /// Removes an active or trashed namespace with all its objects.
    DeleteNamespace {
        /// Its name.
        name: NamespaceName,
    },
    /// Messages up to and including this one have had their effect. Sent by the leader.
    MarkDelivered {
        /// By whom.
        destination: Destination,
        /// The last.
        upto: MessageId,
    },
    /// The destination refuses this message for good: out of its way. Sent by the leader.
    MarkRefused {
        /// By whom.
        destination: Destination,
        /// Which.
        id: MessageId,
        /// Why.
        reason: String,
    },
    /// Puts a dead letter back at the end of its queue, with all others of its namespace there, in their order.
    RetryDeadLetter {
        /// Whose.
        destination: Destination,
        /// Which.
        id: MessageId,
    },
    /// Forgets a dead letter.
    DropDeadLetter {
        /// Whose.
        destination: Destination,
        /// Which.
        id: MessageId,
        /// Go on as if it had had its effect.
        as_delivered: bool,
    },
    /// Adds an NSM group; one of that name is refused.
    CreateGroup {
        /// Its name.
        id: GroupId,
        /// Where it listens.
        servers: Vec<String>,
    },
    /// Changes a group.
    UpdateGroup {
        /// Its name.
        id: GroupId,
        /// Where it listens from now on.
        servers: Option<Vec<String>>,
        /// Given up: nothing is delivered there any more, and its namespaces can be recovered elsewhere. For good.
        lost: bool,
    },
    /// What a group has to do: new namespaces go to the least loaded.
    ReportGroupLoad {
        /// Its name.
        id: GroupId,
        /// Its load.
        load: GroupLoad,
    },
    /// The device belongs to another backend. Sent by the leader.
    MarkForeign {
        /// Which.
        long_id: LongId,
        /// Whose it is.
        owner: String,
    },
    /// No new fragments on this OSD; what is there stays and counts.
    DrainOsd {
        /// Which.
        long_id: LongId,
    },
    /// Ends `DrainOsd`.
    UndrainOsd {
        /// Which.
        long_id: LongId,
    },
    /// Evacuates an OSD, reading from it.
    DecommissionOsd {
        /// Which.
        long_id: LongId,
    },
    /// Forgets an OSD that is gone for good; it is never read again.
    PurgeOsd {
        /// Which.
        long_id: LongId,
    },
    /// What clients saw of OSDs, at most 200 per command; unknown ones are passed over.
    ReportOsds(Vec<(LongId, OsdReport)>),
    /// Changes what may change of a preset; its version goes up by one.
    UpdatePreset {
        /// Its name.
        name: PresetName,
        /// New policies.
        policies: Option<Vec<Policy>>,
        /// New largest fragment, in bytes.
        fragment_size: Option<u32>,
    },
    /// Adds OSDs to an explicit preset, and so to all its namespaces.
    AddOsdsToPreset {
        /// Its name.
        name: PresetName,
        /// Which.
        osds: Vec<OsdId>,
    },
    /// Removes a preset that no namespace uses. If it was the default, there is none any more.
    DeletePreset {
        /// Its name.
        name: PresetName,
    },
    /// Hides an active namespace; it can come back.
    TrashNamespace {
        /// Its name.
        name: NamespaceName,
    },
    /// Brings a trashed namespace back.
    UndeleteNamespace {
        /// Its name.
        name: NamespaceName,
    },
    /// Gives a namespace of a lost group to another one, where its objects are made known again.
    RecoverNamespace {
        /// Its name.
        name: NamespaceName,
        /// The new group.
        group: GroupId,
    },
    /// All that could be found of a recovering namespace has been.
    FinishRecovery {
        /// Its name.
        name: NamespaceName,
    },
    /// Begins to move an active namespace to another group.
    StartMove {
        /// Its name.
        name: NamespaceName,
        /// Where to.
        to: GroupId,
    },
    /// The other group has everything: it owns the namespace from now on. Only while it moves to that group.
    FinishMove {
        /// Its name.
        name: NamespaceName,
        /// Where to.
        to: GroupId,
    },
    /// The namespace stays where it is. Only while it moves to that group.
    AbortMove {
        /// Its name.
        name: NamespaceName,
        /// Where to.
        to: GroupId,
    },
    /// Adds items to the work queue, at most [`WORK_PAGE`]; those that wait there already are passed over.
    AddWork(Vec<WorkItem>),
    /// Takes items that nobody works on.
    ClaimWork {
        /// For whom.
        agent: AgentId,
        /// At most this many, and at most [`WORK_PAGE`].
        max: u32,
        /// For how long (microseconds).
        period: u64,
    },
    /// Keeps items for longer; those that went to another agent are passed over.
    RenewWork {
        /// Which.
        ids: Vec<WorkId>,
        /// As given by `ClaimWork`.
        token: u64,
        /// For how long from now (microseconds).
        period: u64,
    },
    /// It did not work: tried again after a pause that grows. Without effect when the item went to another agent.
    FailWork {
        /// Which.
        id: WorkId,
        /// As given by `ClaimWork`.
        token: u64,
        /// What happened.
        reason: String,
    },
    /// These are done, whoever did them: what follows happens now. Ids that are not there (any more) are passed over.
    MarkWorkCompleted(Vec<WorkId>),
    /// Starts a job over all objects of a namespace, cut into leaves that several agents can share.
    StartJob {
        /// Unique until cleared.
        name: JobName,
        /// Where.
        namespace: NamespaceName,
        /// What to do.
        action: JobAction,
        /// How many leaves, at most [`LEAVES_MAX`].
        factor: u32,
    },
    /// Moves a leaf on, if it is where the sender thinks it is.
    UpdateJobProgress {
        /// Of which job.
        name: JobName,
        /// Which leaf.
        leaf: u32,
        /// As it was read.
        expected: LeafProgress,
        /// As it is from now on.
        progress: LeafProgress,
    },
    /// Forgets a job, also one that is not finished.
    ClearJob {
        /// Which.
        name: JobName,
    },
    /// Takes a task, if nobody has it; whoever has it keeps it.
    AcquireLease {
        /// Which task.
        task: TaskName,
        /// For whom.
        agent: AgentId,
        /// For how long (microseconds).
        period: u64,
    },
    /// Keeps a task.
    RenewLease {
        /// Which task.
        task: TaskName,
        /// As given by `AcquireLease`.
        token: u64,
        /// For how long from now (microseconds).
        period: u64,
    },
    /// Gives a task back.
    ReleaseLease {
        /// Which task.
        task: TaskName,
        /// As given by `AcquireLease`.
        token: u64,
    },
    /// An agent is there. It counts as gone when it does not say so again within a minute.
    RegisterParticipant {
        /// Who.
        agent: AgentId,
        /// What it does, such as `maintenance`.
        role: String,
        /// Its software version and host, for people.
        about: String,
    },
    /// An agent ends.
    RemoveParticipant {
        /// Who.
        agent: AgentId,
    },
    /// Changes the maintenance configuration, field by field.
    UpdateMaintenance(MaintenanceUpdate),
    /// The device has the list of peers of this revision. Sent by the leader.
    MarkPeersTold {
        /// Which.
        osd: OsdId,
        /// Which list.
        revision: u64,
    },
    /// Who has a task says how its run goes. Refused when the task has changed hands.
    ReportTask {
        /// Which task.
        task: TaskName,
        /// As given by `AcquireLease`.
        token: u64,
        /// How it goes.
        report: RunReport,
    },
    /// Forgets a task, or a part of one, that there is no more. One that somebody has stays.
    ForgetTask {
        /// Which task.
        task: TaskName,
    },
    /// No agent begins this task until it is resumed; agents that are at it stop.
    PauseTask {
        /// Which task, without its parts.
        task: TaskName,
        /// Pause it, or resume it.
        paused: bool,
    },
    /// Removes a namespace that is in the trash, whatever its name is by now. One that came back stays.
    EmptyTrash {
        /// Which.
        namespace: NamespaceId,
    },
    /// Puts a namespace in the trash where it is kept for some days, if the maintenance configuration wants that; else removes
    /// it.
    DiscardNamespace {
        /// Its name.
        name: NamespaceName,
    },
}

/// What a command gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbmOutcome {
    /// Done.
    Done,
    /// The backend's id.
    AlbaId(AlbaId),
    /// The claimed OSD's id.
    OsdId(OsdId),
    /// The namespace, as it is after the command.
    Namespace(NamespaceRecord),
    /// The items taken, and the token that renews them.
    Work {
        /// Grows from claim to claim.
        token: u64,
        /// Oldest first.
        items: Vec<WorkRecord>,
    },
    /// The lease.
    Lease(LeaseRecord),
}

/// Which OSDs to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OsdFilter {
    /// All known.
    All,
    /// Claimed by this backend.
    Claimed,
    /// Neither claimed nor another backend's.
    Available,
    /// Being emptied, purged ones too.
    Decommissioning,
    /// Being forgotten.
    Purging,
    /// Without new fragments.
    Draining,
}

/// A read of the ABM's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbmQuery {
    /// The backend's id.
    AlbaId,
    /// OSDs ordered by long id.
    Osds {
        /// Which.
        filter: OsdFilter,
        /// Range of long ids.
        range: RangeQuery,
    },
    /// One OSD.
    Osd(LongId),
    /// Presets ordered by name.
    Presets(RangeQuery),
    /// One preset.
    Preset(PresetName),
    /// Namespaces ordered by name, whatever their state.
    Namespaces(RangeQuery),
    /// One namespace.
    Namespace(NamespaceName),
    /// All NSM groups.
    Groups,
    /// The OSDs linked to a namespace whose AddNamespace was delivered.
    NamespaceOsds(NamespaceId),
    /// Undelivered messages of a destination, oldest first.
    Messages {
        /// Whose.
        destination: Destination,
        /// At most this many.
        max: u32,
    },
    /// Destinations that have undelivered messages, with how many.
    Queues,
    /// Destinations that have dead letters, with how many.
    DeadLetterCounts,
    /// Dead letters of a destination, oldest first.
    DeadLetters {
        /// Whose.
        destination: Destination,
        /// Exclusive start.
        after: Option<MessageId>,
        /// At most this many, and at most 200.
        max: u32,
    },
    /// What clients saw of OSDs, ordered by long id.
    OsdHealth(RangeQuery),
    /// The namespaces that an OSD is linked to, in whatever state the link is.
    OsdNamespaces {
        /// Which OSD.
        osd: OsdId,
        /// Exclusive start.
        after: Option<NamespaceId>,
        /// At most this many, and at most 200.
        max: u32,
    },
    /// Presets whose newest version is not yet in the queues to all groups of their namespaces.
    PresetsPropagation,
    /// How many items wait or are worked on.
    WorkCount,
    /// The work queue, oldest first.
    Work {
        /// Exclusive start.
        after: Option<WorkId>,
        /// At most this many, and at most [`WORK_PAGE`].
        max: u32,
    },
    /// Jobs that were not cleared, ordered by name.
    Jobs(RangeQuery),
    /// The leaves of a job, all of them.
    JobProgress(JobName),
    /// Who has a task.
    Lease(TaskName),
    /// All agents that said they are there.
    Participants,
    /// The maintenance configuration.
    Maintenance,
    /// Counters that grow with every change of what they count.
    Revisions,
    /// What is known of tasks, ordered by name.
    Tasks(RangeQuery),
    /// The tasks that are paused.
    PausedTasks,
}

/// How far a preset's newest version has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresetPropagation {
    /// Which preset.
    pub preset: PresetName,
    /// The version on its way.
    pub version: u32,
    /// Namespaces whose group has not been sent it yet.
    pub pending: u64,
}

/// Counters for watching: equal to an earlier answer means that nothing of the kind has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revisions {
    /// OSD records; not what clients report of OSDs.
    pub osds: u64,
    /// Presets, the default too.
    pub presets: u64,
    /// Namespace records.
    pub namespaces: u64,
    /// Groups; not their loads.
    pub groups: u64,
    /// The maintenance configuration.
    pub maintenance: u64,
}

/// What a read gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbmAnswer {
    /// The backend's id.
    AlbaId(AlbaId),
    /// OSDs.
    Osds(Page<OsdRecord>),
    /// One OSD.
    Osd(Option<OsdRecord>),
    /// Presets.
    Presets(Page<PresetRecord>),
    /// One preset.
    Preset(Option<PresetRecord>),
    /// Namespaces.
    Namespaces(Page<NamespaceRecord>),
    /// One namespace.
    Namespace(Option<NamespaceRecord>),
    /// NSM groups.
    Groups(Vec<GroupRecord>),
    /// OSD ids.
    OsdIds(Vec<OsdId>),
    /// Messages.
    Messages(Vec<(MessageId, Message)>),
    /// Queue lengths, of messages or dead letters.
    Queues(Vec<(Destination, u64)>),
    /// Dead letters.
    DeadLetters(Page<DeadLetter>),
    /// What clients saw of OSDs.
    OsdHealth(Page<(LongId, OsdHealth)>),
    /// Namespace ids.
    NamespaceIds(Page<NamespaceId>),
    /// To `PresetsPropagation`.
    PresetsPropagation(Vec<PresetPropagation>),
    /// To `WorkCount`.
    WorkCount(u64),
    /// To `Work`.
    Work(Page<WorkRecord>),
    /// To `Jobs`.
    Jobs(Page<JobRecord>),
    /// To `JobProgress`; none: no such job.
    JobProgress(Option<Vec<LeafProgress>>),
    /// To `Lease`.
    Lease(Option<LeaseRecord>),
    /// To `Participants`.
    Participants(Vec<ParticipantRecord>),
    /// To `Maintenance`.
    Maintenance(Box<MaintenanceConfig>),
    /// To `Revisions`.
    Revisions(Revisions),
    /// To `Tasks`.
    Tasks(Page<TaskRecord>),
    /// To `PausedTasks`, ordered by name.
    PausedTasks(Vec<TaskName>),
}

#[cfg(test)]
mod tests;
