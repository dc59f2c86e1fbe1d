//! Commands, queries and records of an NSM group (features §2.6, §2.11, §2.12).

use serde::{Deserialize, Serialize};
use thiserror::Error;

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
    /// Objects per bucket, weakest first.
    pub buckets: Vec<(Bucket, u64)>,
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
    /// To `ObjectsOnOsd` and `ObjectsInBucket`.
    ObjectIds(Page<ObjectId>),
    /// To `DeleteQueue`.
    Keys(Page<FragmentKey>),
}

/// Why an NSM group refused. Codes: features §2.12.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum NsmError {
    /// The server's own trouble.
    #[error("{0}")]
    Unknown(String),
    /// The epoch is not valid any more (or not yet).
    #[error("gc epoch {0} is not valid")]
    InvalidGcEpoch(GcEpoch),
    /// No such object.
    #[error("object not found")]
    ObjectNotFound,
    /// The object id is in use.
    #[error("object id is not unique")]
    NonUniqueObjectId,
    /// This group does not own the namespace.
    #[error("namespace {0} is not here")]
    NamespaceMoved(NamespaceId),
    /// The overwrite mode forbids it.
    #[error("object {0} may not be overwritten")]
    OverwriteNotAllowed(ObjectName),
    /// The manifest is not at the version the update needs.
    #[error("object is at version {0}")]
    InvalidVersion(ObjectVersion),
    /// Two fragments of a chunk on one OSD.
    #[error("two fragments of a chunk on one OSD")]
    InvalidFragmentSpread,
    /// A fragment on an OSD that takes none.
    #[error("OSD {0} takes no new fragments")]
    InactiveOsd(OsdId),
    /// An assert of a sequence failed.
    #[error("assert failed on object {0}")]
    AssertFailed(ObjectName),
    /// Too few fragments or too many per node for every policy of the preset.
    #[error("the fragments satisfy no policy of the preset")]
    InvalidBucket,
    /// The manifest is not as the preset wants it.
    #[error("not as the preset wants it: {0}")]
    PresetViolated(String),
    /// The command is larger than the group takes.
    #[error("too large: {0}")]
    TooLarge(String),
}

impl NsmError {
    /// The original's error number (features §2.12).
    pub fn code(&self) -> u32 {
        match self {
            Self::Unknown(_) | Self::TooLarge(_) => 1,
            Self::InvalidGcEpoch(_) => 5,
            Self::ObjectNotFound => 6,
            Self::NonUniqueObjectId => 7,
            Self::NamespaceMoved(_) => 8,
            Self::OverwriteNotAllowed(_) => 9,
            Self::InvalidVersion(_) => 11,
            Self::InvalidFragmentSpread => 16,
            Self::InactiveOsd(_) => 17,
            Self::AssertFailed(_) => 20,
            Self::InvalidBucket => 21,
            Self::PresetViolated(_) => 22,
        }
    }
}
