//! Commands, queries and records of an NSM group (features §2.6, §2.11, §2.12).

//!
//! Values are only ever added at the end of an enum: nodes of the version before read the rest.

use serde::{Deserialize, Serialize};

use super::abm::OsdInfo;
use crate::checksum::Checksum;
use crate::ids::{
    ChunkIndex, FragmentIndex, GcEpoch, MessageId, NamespaceId, NamespaceName, ObjectId, ObjectName,
    ObjectVersion, OsdId,
};
use crate::manifest::Manifest;
use crate::policy::Bucket;
use crate::preset::Preset;
use crate::range::{Page, RangeQuery};

mod error;
mod moving;

pub use error::NsmError;
pub use moving::{
    Cursor, Digest, Lifecycle, MAX_PAGE_BYTES, MoveId, MovePage, MoveStatus, MoveStep, Phase, Sealed,
};

/// Longest object, in bytes, that may live in the metadata (architecture §5).
pub const MAX_INLINE: usize = 4 << 10;

/// Keys of a delete queue are counted up to here: counting must not cost more than deleting.
pub const QUEUE_COUNT_MAX: u64 = 1000;

/// What a namespace thinks of an OSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OsdUse {
    /// New fragments may go there.
    Active,
    /// No new fragments; what is there counts as redundancy, and is on its way elsewhere.
    Draining,
    /// No new fragments; manifests may still name it.
    Unlinked,
}

/// A message from the ABM (features §1.5). The group keeps the number of the next one: each has its effect once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NsmMessage {
    /// Take on a namespace.
    CreateNamespace {
        /// Its id.
        id: NamespaceId,
        /// Its name.
        name: NamespaceName,
        /// Enforced on every write.
        preset: Box<Preset>,
        /// Of the preset.
        preset_version: u32,
    },
    /// Drop a namespace with all its metadata.
    DeleteNamespace {
        /// Its id.
        id: NamespaceId,
    },
    /// New fragments may go to this OSD.
    LinkOsd {
        /// In which namespace.
        namespace: NamespaceId,
        /// Which OSD.
        osd: OsdId,
        /// Its place and address.
        info: Box<OsdInfo>,
    },
    /// No new fragments on this OSD; old ones stay readable.
    UnlinkOsd {
        /// In which namespace.
        namespace: NamespaceId,
        /// Which OSD.
        osd: OsdId,
    },
    /// The preset has changed. Only a higher version than the stored one has an effect.
    UpdatePreset {
        /// In which namespace.
        namespace: NamespaceId,
        /// Enforced on every write from now on.
        preset: Box<Preset>,
        /// Of the preset.
        version: u32,
    },
    /// An OSD has moved. Whether it takes new fragments stays as it is.
    UpdateOsd {
        /// In which namespace.
        namespace: NamespaceId,
        /// Which OSD.
        osd: OsdId,
        /// Its place and address.
        info: Box<OsdInfo>,
    },
    /// Take on a namespace whose group was lost: empty, served to nobody until its recovery is finished.
    RecoverNamespace {
        /// Its id.
        id: NamespaceId,
        /// Its name.
        name: NamespaceName,
        /// Enforced on every later write.
        preset: Box<Preset>,
        /// Of the preset.
        preset_version: u32,
    },
    /// Put a namespace in the trash or take it out. There clients are refused, and so is garbage collection; repair and
    /// the clean-up of what was deleted before go on.
    SetTrashed {
        /// Which.
        namespace: NamespaceId,
        /// In or out.
        trashed: bool,
    },
    /// How an OSD that was linked once is used from now on.
    SetOsdUse {
        /// In which namespace.
        namespace: NamespaceId,
        /// Which OSD.
        osd: OsdId,
        /// How.
        how: OsdUse,
    },
}

/// The bytes of an object that lives in the metadata: packed by the client like a fragment. Its manifest has no chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InlineValue {
    /// Compressed and encrypted as the manifest says; at most [`MAX_INLINE`].
    pub packed: Vec<u8>,
    /// Of the packed bytes.
    pub checksum: Checksum,
    /// Initial counter block for CTR.
    pub ctr: Option<[u8; 16]>,
}

/// A change of one fragment of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FragmentUpdate {
    /// Of which chunk.
    pub chunk: ChunkIndex,
    /// Which fragment.
    pub fragment: FragmentIndex,
    /// Where it was stored, under the manifest's next version; none: nowhere, it is a hole from now on.
    pub osd: Option<OsdId>,
    /// Length and checksum of the packed bytes when they are not the same as before.
    pub packed: Option<(u32, Checksum)>,
    /// The counter block when it is not the same as before.
    pub ctr: Option<[u8; 16]>,
}

/// A preset for one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresetUpdate {
    /// Which namespace.
    pub namespace: NamespaceId,
    /// Enforced on every write from now on.
    pub preset: Box<Preset>,
    /// Only a higher one than the stored one has an effect.
    pub version: u32,
}

/// An object as it was put together from what OSDs hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveredObject {
    /// With the highest version of each fragment that was found.
    pub manifest: Manifest,
    /// Is there reason to think that it had been deleted or replaced?
    pub possibly_deleted: bool,
}

/// What came of a recovered object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Recovered {
    /// It is there now.
    Stored,
    /// It is there, or listed apart, at this version or a higher one.
    Known,
    /// It is listed apart for an operator to decide.
    Apart(FindingReason),
    /// It cannot be an object.
    Refused(NsmError),
}

/// Why a recovered object is listed apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FindingReason {
    /// Another object has the same name.
    Conflict,
    /// It may have been deleted or replaced.
    PossiblyDeleted,
}

/// A recovered object that is listed apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Why.
    pub reason: FindingReason,
    /// The object.
    pub manifest: Manifest,
}

/// What an operator decides about a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resolution {
    /// It is the object of its name; the name must be free.
    Restore,
    /// It is none: its fragments can be deleted.
    Discard,
}

/// What a put may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Overwrite {
    /// Anything or nothing.
    Unconditionally,
    /// Nothing: the name must be free.
    NoPrevious,
    /// Exactly this object.
    PreviousObjectId(ObjectId),
    /// Something: the name must be taken.
    AnyPrevious,
}

/// A condition on the state before a sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectAssert {
    /// The name is taken.
    Exists(ObjectName),
    /// The name is free.
    DoesNotExist(ObjectName),
    /// The name is taken by this object.
    HasId(ObjectName, ObjectId),
    /// The name is taken by an object with this checksum (algorithm and value).
    HasChecksum(ObjectName, Checksum),
}

/// A change of one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectUpdate {
    /// Store an object. Its version must be 0; its timestamp is set by the group.
    Put {
        /// The object.
        manifest: Box<Manifest>,
        /// What it may replace.
        overwrite: Overwrite,
    },
    /// Remove a name.
    Delete {
        /// Which.
        name: ObjectName,
        /// Is a free name an error?
        must_exist: bool,
    },
    /// Store an object in the metadata. The manifest has no chunks and version 0.
    PutInline {
        /// The object.
        manifest: Box<Manifest>,
        /// Its bytes.
        value: InlineValue,
        /// What it may replace.
        overwrite: Overwrite,
    },
}

/// The key of a fragment that no manifest names any more, on the OSD whose queue holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FragmentKey {
    /// Of which object.
    pub object: ObjectId,
    /// Of which chunk.
    pub chunk: ChunkIndex,
    /// Which fragment.
    pub fragment: FragmentIndex,
    /// Placed at which version.
    pub version: ObjectVersion,
}

/// A change of an NSM group's state. The time of a command is given by the leader when it is proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NsmCommand {
    /// Messages of the ABM, in order; those already seen are skipped.
    Deliver(Vec<(MessageId, NsmMessage)>),
    /// Asserts, then updates, in one atomic step. Several updates of one name: the last counts.
    Sequence {
        /// Where.
        namespace: NamespaceId,
        /// All are evaluated against the state before.
        asserts: Vec<ObjectAssert>,
        /// All happen or none.
        updates: Vec<ObjectUpdate>,
        /// The one epoch that tags every fragment of the puts (invariant 3).
        epoch: GcEpoch,
    },
    /// Fills holes of a manifest still at version 0 with fragments of version 0 that arrived after the commit; sets
    /// version 1 (invariant 2).
    AddLateFragments {
        /// Where.
        namespace: NamespaceId,
        /// Which object.
        object: ObjectId,
        /// Which holes, and where they now are.
        fragments: Vec<(ChunkIndex, FragmentIndex, OsdId)>,
        /// Of the upload.
        epoch: GcEpoch,
    },
    /// Opens a new gc epoch; writers use the newest.
    EnableGcEpoch {
        /// Where.
        namespace: NamespaceId,
        /// The new one: exactly the next.
        epoch: GcEpoch,
    },
    /// Writes that name this epoch or an older one are refused from now on.
    DisableGcEpochs {
        /// Where.
        namespace: NamespaceId,
        /// The last disabled one.
        upto: GcEpoch,
    },
    /// These keys are gone from the OSD: forget them.
    MarkKeysDeleted {
        /// Where.
        namespace: NamespaceId,
        /// From which OSD.
        osd: OsdId,
        /// Which.
        keys: Vec<FragmentKey>,
    },
    /// Sets where fragments of an object are: repair and rebalancing. The manifest goes to the next version; the keys of the
    /// replaced fragments go to the delete queues.
    UpdateObject {
        /// Where.
        namespace: NamespaceId,
        /// Which object.
        object: ObjectId,
        /// The version that the object must have.
        version: ObjectVersion,
        /// Each fragment at most once.
        fragments: Vec<FragmentUpdate>,
        /// The one epoch that tags every new fragment (invariant 3).
        epoch: GcEpoch,
    },
    /// Forgets the delete queue of an OSD that is gone for good, up to 1000 keys at a time.
    CleanupOsd {
        /// Where.
        namespace: NamespaceId,
        /// Which OSD.
        osd: OsdId,
    },
    /// Presets of many namespaces; each succeeds or fails on its own.
    UpdatePresets(Vec<PresetUpdate>),
    /// Puts recovered objects into a recovering namespace, by id and highest version, in any order and any number of times.
    RecoverObjects {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        objects: Vec<RecoveredObject>,
    },
    /// Decides about an object that is listed apart.
    ResolveFinding {
        /// Where.
        namespace: NamespaceId,
        /// Which object.
        object: ObjectId,
        /// What to do.
        resolution: Resolution,
    },
    /// The recovery is complete: clients are served. Refused while objects are listed apart, for garbage collection would
    /// take their fragments.
    FinishRecovery {
        /// Where.
        namespace: NamespaceId,
        /// Higher than that of any gc tag on the OSDs: the one valid epoch from now on.
        epoch: GcEpoch,
    },
    /// A step of a move to or from another group.
    Move {
        /// Of which namespace.
        namespace: NamespaceId,
        /// Which move.
        id: MoveId,
        /// Which step.
        step: MoveStep,
    },
    /// The same as `Sequence`, and the outcome says what was deleted. Proposed by a group's server in place of a client's
    /// sequence that deletes; clients do not send it. Needs log entries of format 2.
    DeletingSequence {
        /// Where.
        namespace: NamespaceId,
        /// All are evaluated against the state before.
        asserts: Vec<ObjectAssert>,
        /// All happen or none.
        updates: Vec<ObjectUpdate>,
        /// The one epoch that tags every fragment of the puts (invariant 3).
        epoch: GcEpoch,
    },
}

/// What a command gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NsmOutcome {
    /// Done.
    Done,
    /// A sequence: the stored manifests of its puts (timestamps set), in the order of the updates; of several for one
    /// name only the last was stored.
    Stored(Vec<Manifest>),
    /// The manifest after the update.
    Updated(Box<Manifest>),
    /// To `CleanupOsd`: is there more?
    Cleaned {
        /// Call again.
        more: bool,
    },
    /// To `UpdatePresets`: in the order of the command.
    Each(Vec<Result<(), NsmError>>),
    /// To `RecoverObjects`: in the order of the command.
    Recovered(Vec<Recovered>),
    /// To `DeletingSequence`. Clients get the first half, as `Stored`.
    StoredAndDeleted {
        /// As in `Stored`.
        stored: Vec<Manifest>,
        /// The objects that the deletions of the sequence removed, each with the position of its update. What puts
        /// replaced is not among them.
        deleted: Vec<(u32, ObjectId)>,
    },
}

/// A namespace as its group keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceInfo {
    /// Its name.
    pub name: NamespaceName,
    /// Enforced on every write.
    pub preset: Preset,
    /// Of the preset.
    pub preset_version: u32,
    /// OSDs that take new fragments.
    pub active_osds: Vec<(OsdId, OsdInfo)>,
    /// Oldest valid gc epoch.
    pub min_epoch: GcEpoch,
    /// Newest valid gc epoch: the one writers use.
    pub newest_epoch: GcEpoch,
}

/// Counters of a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceStatistics {
    /// Objects.
    pub objects: u64,
    /// Sum of object sizes.
    pub logical_bytes: u64,
    /// Sum of packed fragment sizes.
    pub storage_bytes: u64,
    /// The same per OSD.
    pub storage_per_osd: Vec<(OsdId, u64)>,
    /// Objects per bucket, weakest first; without those that live in the metadata.
    pub buckets: Vec<(Bucket, u64)>,
}

/// What a namespace's group knows beside [`NamespaceInfo`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceDetails {
    /// Its life.
    pub lifecycle: Lifecycle,
    /// Is it in the trash?
    pub trashed: bool,
    /// Is it being moved to another group, with writes refused?
    pub frozen: bool,
    /// Every OSD that was ever linked.
    pub osds: Vec<(OsdId, OsdInfo, OsdUse)>,
    /// Objects that do.
    pub inline_objects: u64,
    /// Sum of their packed sizes.
    pub inline_bytes: u64,
    /// Recovered objects that are listed apart.
    pub findings: u64,
}

/// What a group carries: namespaces are placed on the least loaded one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLoad {
    /// Namespaces that it owns.
    pub namespaces: u64,
    /// Commands that changed something, since the group began.
    pub operations: u64,
    /// Bytes of keys and values that they wrote.
    pub written: u64,
}

/// A read of an NSM group's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NsmQuery {
    /// Preset, OSDs and epochs of a namespace.
    Namespace(NamespaceId),
    /// Counters of a namespace.
    Statistics(NamespaceId),
    /// Names, in order.
    Objects {
        /// Where.
        namespace: NamespaceId,
        /// Which.
        range: RangeQuery,
    },
    /// Manifests by name, in the order asked.
    Manifests {
        /// Where.
        namespace: NamespaceId,
        /// Whose.
        names: Vec<ObjectName>,
    },
    /// A manifest by object id: what gc and repair ask.
    ManifestById {
        /// Where.
        namespace: NamespaceId,
        /// Whose.
        object: ObjectId,
    },
    /// Objects with a fragment on an OSD, ordered by id, from `after` on.
    ObjectsOnOsd {
        /// Where.
        namespace: NamespaceId,
        /// Which OSD.
        osd: OsdId,
        /// Exclusive start.
        after: Option<ObjectId>,
        /// At most this many (and at most 200).
        max: u32,
    },
    /// Objects of a bucket, ordered by id, from `after` on.
    ObjectsInBucket {
        /// Where.
        namespace: NamespaceId,
        /// Which bucket.
        bucket: Bucket,
        /// Exclusive start.
        after: Option<ObjectId>,
        /// At most this many (and at most 200).
        max: u32,
    },
    /// Keys to delete from an OSD, oldest order of the index.
    DeleteQueue {
        /// Where.
        namespace: NamespaceId,
        /// From which OSD.
        osd: OsdId,
        /// At most this many (and at most 200).
        max: u32,
    },
    /// State, OSDs and counters that `Namespace` and `Statistics` don't have.
    Details(NamespaceId),
    /// Counters of many namespaces (at most 200); each succeeds or fails on its own.
    StatisticsOf(Vec<NamespaceId>),
    /// Which of these names are taken?
    Exist {
        /// Where.
        namespace: NamespaceId,
        /// At most 200.
        names: Vec<ObjectName>,
    },
    /// Objects by id, in order.
    ObjectsById {
        /// Where.
        namespace: NamespaceId,
        /// Of ids or beginnings of ids.
        range: RangeQuery,
    },
    /// The same with their manifests; a page ends early when it would get long.
    ManifestsById {
        /// Where.
        namespace: NamespaceId,
        /// Of ids or beginnings of ids.
        range: RangeQuery,
    },
    /// Manifests by name, in the order asked, with the bytes of those that live in the metadata.
    Contents {
        /// Where.
        namespace: NamespaceId,
        /// Whose.
        names: Vec<ObjectName>,
    },
    /// Recovered objects that are listed apart, ordered by id; a page ends early when it would get long.
    RecoveryFindings {
        /// Where.
        namespace: NamespaceId,
        /// Exclusive start.
        after: Option<ObjectId>,
        /// At most this many (and at most 200).
        max: u32,
    },
    /// How far a move is. Answered of any namespace.
    MoveStatus(NamespaceId),
    /// What a move has to copy next.
    ExportPage {
        /// Of which namespace.
        namespace: NamespaceId,
        /// By which move.
        id: MoveId,
        /// How far the target is.
        from: Cursor,
    },
    /// What the group carries.
    Load,
    /// Namespaces that the group owns, ordered by id.
    Namespaces {
        /// Exclusive start.
        after: Option<NamespaceId>,
        /// At most this many (and at most 200).
        max: u32,
    },
    /// Number of the message of the ABM that is expected next.
    NextMessage,
    /// The OSDs from which keys of a namespace are to be deleted.
    DeleteQueues(NamespaceId),
}

/// What a read gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NsmAnswer {
    /// To `Namespace`.
    Namespace(Box<NamespaceInfo>),
    /// To `Statistics`.
    Statistics(NamespaceStatistics),
    /// To `Objects`.
    Objects(Page<ObjectName>),
    /// To `Manifests`.
    Manifests(Vec<Option<Manifest>>),
    /// To `ManifestById`.
    Manifest(Option<Box<Manifest>>),
    /// To `ObjectsOnOsd`, `ObjectsInBucket` and `ObjectsById`.
    ObjectIds(Page<ObjectId>),
    /// To `DeleteQueue`.
    Keys(Page<FragmentKey>),
    /// To `Details`.
    Details(Box<NamespaceDetails>),
    /// To `StatisticsOf`: in the order asked.
    EachStatistics(Vec<Result<NamespaceStatistics, NsmError>>),
    /// To `Exist`: in the order asked.
    Exist(Vec<bool>),
    /// To `ManifestsById`.
    ManifestPage(Page<Manifest>),
    /// To `Contents`.
    Contents(Vec<Option<(Manifest, Option<InlineValue>)>>),
    /// To `RecoveryFindings`.
    Findings(Page<Finding>),
    /// To `MoveStatus`.
    MoveStatus(MoveStatus),
    /// To `ExportPage`.
    Exported(MovePage),
    /// To `Load`.
    Load(GroupLoad),
    /// To `Namespaces`.
    Namespaces(Page<(NamespaceId, NamespaceName)>),
    /// To `NextMessage`.
    NextMessage(MessageId),
    /// To `DeleteQueues`: how many keys wait for each OSD that has any, counted up to [`QUEUE_COUNT_MAX`].
    DeleteQueues(Vec<(OsdId, u64)>),
}

#[cfg(test)]
mod tests;
