//! The work queue, and jobs over whole namespaces (features §3.7).
//!
//! Two items of the original are not here because the groups do them themselves: a group drops the tables of a deleted
//! namespace in steps of its own, and the ABM propagates presets through its outbox.

use serde::{Deserialize, Serialize};

use crate::ids::{
    AgentId, ChunkIndex, FragmentIndex, JobName, NamespaceId, ObjectId, ObjectName, ObjectVersion, OsdId,
    WorkId,
};

/// Most items per command and page (features §3.7).
pub const WORK_PAGE: usize = 100;

/// Most leaves of a job: their records are made in one command.
pub const LEAVES_MAX: u32 = 1024;

/// Something to do. All are harmless when done twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WorkItem {
    /// Wait until no object of the namespace has a fragment on the OSD.
    WaitUntilRepaired {
        /// Being emptied.
        osd: OsdId,
        /// Where.
        namespace: NamespaceId,
    },
    /// Wait until the OSD is linked to no namespace.
    WaitUntilDecommissioned {
        /// Being emptied.
        osd: OsdId,
    },
    /// The group forgets which keys it wanted deleted from the OSD.
    CleanupNamespaceOsd {
        /// Where.
        namespace: NamespaceId,
        /// Emptied.
        osd: OsdId,
    },
    /// Delete the namespace's keys from the OSD, 200 per call, its marker and name last. Passed over when it is purged.
    CleanupOsdNamespace {
        /// Where.
        osd: OsdId,
        /// Whose keys.
        namespace: NamespaceId,
    },
    /// A reader met a missing or damaged fragment: repair it if object and version are still these.
    RepairBadFragment {
        /// Where.
        namespace: NamespaceId,
        /// Whose.
        object: ObjectId,
        /// The object's name.
        name: ObjectName,
        /// Which chunk.
        chunk: ChunkIndex,
        /// Which fragment.
        fragment: FragmentIndex,
        /// Placed at which version.
        version: ObjectVersion,
    },
    /// Read an object and store it anew.
    RewriteObject {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        object: ObjectId,
    },
    /// Work on one leaf of a job.
    IterateLeaf {
        /// Of which job.
        job: JobName,
        /// Which leaf.
        leaf: u32,
    },
}

/// An item of the queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkRecord {
    /// Its number: grows, never used again.
    pub id: WorkId,
    /// What to do.
    pub item: WorkItem,
    /// Who works on it, and the token of the claim.
    pub claim: Option<(AgentId, u64)>,
    /// Nobody gets it before this (microseconds since the Unix epoch, the ABM's time): the end of a claim or of a pause.
    pub not_before: u64,
    /// How often it failed.
    pub failures: u32,
    /// Why it failed last.
    pub last_failure: Option<String>,
}

/// What a job does with each object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobAction {
    /// Store it anew.
    Rewrite,
    /// Look at each fragment, and repair.
    Verify {
        /// Read the fragments and compare their checksums; else only ask whether they are there.
        checksums: bool,
        /// Repair fragments of OSDs that do not answer.
        repair_osd_unavailable: bool,
    },
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its name.
    pub name: JobName,
    /// Where.
    pub namespace: NamespaceId,
    /// What it does.
    pub action: JobAction,
    /// How many leaves it has.
    pub leaves: u32,
    /// Since when (microseconds since the Unix epoch, the ABM's time).
    pub since: u64,
}

/// The next object of a leaf.
pub type ObjectCursor = ObjectId;

/// How far a leaf has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafProgress {
    /// Objects done.
    pub count: u64,
    /// The next object is not below this id; none: the leaf is finished.
    pub next: Option<ObjectCursor>,
    /// Objects from this id on are another leaf's; none: to the end.
    pub end: Option<ObjectCursor>,
    /// Verify: fragments that were not there.
    pub fragments_detected_missing: u64,
    /// Verify: fragments on OSDs that did not answer.
    pub fragments_osd_unavailable: u64,
    /// Verify: damaged fragments.
    pub fragments_checksum_mismatch: u64,
}
