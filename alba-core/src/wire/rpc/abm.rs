//! Commands, queries and records of the ABM (features §1.3 to §1.5, §2.2, §3.2, §3.7, §3.11).

mod care;
mod error;
mod query;
mod records;
mod tasks;
mod upkeep;
mod work;

use serde::{Deserialize, Serialize};

use super::nsm::NsmMessage;
use crate::ids::{
    AgentId, AlbaId, GroupId, JobName, LongId, MessageId, NamespaceId, NamespaceName, ObjectId, OsdId,
    PresetName, TaskName, WorkId,
};
use crate::policy::Policy;
use crate::preset::Preset;

pub use care::{
    CARE_PAGE, FailedRepair, REASON_MAX, SurveyCounts, SurveyRecord, UNREPAIRED_MAX, UnrepairedRecord,
    WINDOW_MAX, WINDOWS_MAX, WindowRecord, WindowTarget, rest,
};
pub use error::{AbmError, code};
pub use query::{AbmAnswer, AbmQuery, OsdFilter, PresetPropagation, Revisions};
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
    /// Notes how far a task has come, as a number that the task itself gives a meaning. Refused when it has changed hands.
    MarkTask {
        /// Which task.
        task: TaskName,
        /// As given by `AcquireLease`.
        token: u64,
        /// How far.
        mark: u64,
    },
    /// Something is away on purpose: no repair for its sake. One that is open already lasts as long from now on.
    OpenWindow {
        /// What is away.
        target: WindowTarget,
        /// For how long from now (microseconds), at most [`WINDOW_MAX`].
        period: u64,
        /// For people.
        reason: String,
    },
    /// It is not, or not any more.
    CloseWindow {
        /// What.
        target: WindowTarget,
    },
    /// What the one who repairs found, at most [`CARE_PAGE`] namespaces; unknown ones are passed over.
    ReportSurveys {
        /// Of the one who repairs.
        task: TaskName,
        /// As given by `AcquireLease`.
        token: u64,
        /// By namespace.
        surveys: Vec<(NamespaceId, SurveyCounts)>,
    },
    /// Objects whose repair failed, and objects that are well, at most [`CARE_PAGE`] of each.
    ReportRepairs {
        /// Of the one who repairs.
        task: TaskName,
        /// As given by `AcquireLease`.
        token: u64,
        /// They rest, longer each time.
        failed: Vec<FailedRepair>,
        /// There is nothing wrong with these (any more).
        well: Vec<(NamespaceId, ObjectId)>,
    },
    /// OSDs came or went: what failed before may work now, and rests no longer.
    WakeUnrepaired {
        /// Of the one who repairs.
        task: TaskName,
        /// As given by `AcquireLease`.
        token: u64,
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

#[cfg(test)]
mod tests;
