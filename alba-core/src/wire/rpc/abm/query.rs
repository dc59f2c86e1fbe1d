//! Reads of the ABM's state, and what they give.

use serde::{Deserialize, Serialize};

use super::*;
use crate::range::{Page, RangeQuery};

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
    /// How far a task says that it has come.
    TaskMark(TaskName),
    /// The maintenance windows that are open.
    Windows,
    /// The last survey of each namespace, ordered by id.
    Surveys {
        /// Exclusive start.
        after: Option<NamespaceId>,
        /// At most this many, and at most [`CARE_PAGE`].
        max: u32,
    },
    /// Objects whose repair failed, ordered by namespace and id.
    Unrepaired {
        /// Exclusive start.
        after: Option<(NamespaceId, ObjectId)>,
        /// At most this many, and at most [`CARE_PAGE`].
        max: u32,
    },
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
    /// To `TaskMark`; none: it has said nothing.
    TaskMark(Option<u64>),
    /// To `Windows`, ordered by target.
    Windows {
        /// The ABM's time.
        now: u64,
        /// Those that are open.
        windows: Vec<WindowRecord>,
    },
    /// To `Surveys`.
    Surveys {
        /// The ABM's time.
        now: u64,
        /// The surveys.
        page: Page<SurveyRecord>,
    },
    /// To `Unrepaired`.
    Unrepaired {
        /// The ABM's time.
        now: u64,
        /// The objects.
        page: Page<UnrepairedRecord>,
    },
}
