//! An OSD as its clients see it: an ordered key-value store with atomic conditional batches (features §4).

use async_trait::async_trait;
use bytes::Bytes;
use thiserror::Error;

use super::clock::Deadline;
use crate::checksum::Checksum;
use crate::ids::LongId;
use crate::range::{Page, RangeQuery};
use crate::units::ByteCount;

/// A key on an OSD: global and flat. How keys are made: [`crate::wire`].
pub type OsdKey = Bytes;

/// A value with the checksum that was given when it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredValue {
    /// The bytes.
    pub value: Bytes,
    /// Stored beside them. An OSD with the capability `ProvenGet` compares a BLAKE3 root with the value when it is stored;
    /// all others are taken as they are.
    pub checksum: Checksum,
}

/// Condition on the state before a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OsdAssert {
    /// The key is absent.
    Absent(OsdKey),
    /// The key holds exactly this value.
    Value(OsdKey, Bytes),
}

impl OsdAssert {
    /// The key it is about.
    pub fn key(&self) -> &OsdKey {
        match self {
            Self::Absent(key) | Self::Value(key, _) => key,
        }
    }
}

/// One change of a batch. They are applied in order: of several for one key the last counts, and a key that is set after
/// a range around it was deleted is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OsdUpdate {
    /// Sets the key.
    Set(OsdKey, StoredValue),
    /// Removes the key; absent is fine.
    Delete(OsdKey),
    /// Removes every key from the first (included) to the second (excluded, and above the first). One record; the space
    /// returns in the background. Only an OSD with the capability `DeleteRange` takes it.
    DeleteRange(OsdKey, OsdKey),
    /// Sets the key to a value that the OSD fetches itself. Only one with the capability `CopyFromPeer` takes it.
    SetFromPeer(OsdKey, PeerSource),
}

/// A value on another OSD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSource {
    /// The OSD that has it; one that the fetching OSD knows as registered.
    pub peer: LongId,
    /// Its key there.
    pub key: OsdKey,
    /// What the value must have; stored beside it. `None` is refused: nothing could be verified.
    pub checksum: Checksum,
}

/// All asserts hold and all updates are durable, or nothing happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsdBatch {
    /// Checked first, against the state before.
    pub asserts: Vec<OsdAssert>,
    /// Applied atomically.
    pub updates: Vec<OsdUpdate>,
}

/// Who is served first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Clients.
    High,
    /// Maintenance.
    Low,
}

/// A piece of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ValueSlice {
    /// Where it begins, in bytes.
    pub offset: u32,
    /// How long it is, in bytes.
    pub len: u32,
}

/// A piece of a value as its OSD proves it: whole 16 KiB leaves of the value's BLAKE3 tree that cover the slice asked for,
/// and what is needed to verify them against the root. Unverified until [`crate::blake3_tree`] has checked it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenSlice {
    /// Length of the whole value in bytes, as claimed.
    pub value_len: u32,
    /// The covering leaves, back to back.
    pub leaves: Bytes,
    /// The sibling chaining values, 32 bytes each, in the order that the verifier consumes them.
    pub proof: Bytes,
}

/// Space on an OSD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsage {
    /// Sum of the value sizes.
    pub used: ByteCount,
    /// What it may hold.
    pub capacity: ByteCount,
}

/// Why an OSD call failed; the variants are what a caller does differently.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OsdError {
    /// An assert failed; nothing was changed. Never a fault of the device.
    #[error("assert failed on key {}", crate::ids::text_or_hex(.0))]
    AssertFailed(OsdKey),
    /// It takes no more data (deletes still work). Not dead, not slow.
    #[error("OSD is full")]
    Full,
    /// Stored bytes are damaged: an erasure. Never served, always reported.
    #[error("stored value is damaged: {0}")]
    Damaged(String),
    /// The device at this address is another one.
    #[error("found OSD {found} where {expected} was expected")]
    WrongOsd {
        /// The one asked for.
        expected: LongId,
        /// The one that answered.
        found: String,
    },
    /// It does not know the operation (an older one).
    #[error("operation unknown to the OSD")]
    UnknownOperation,
    /// Too much in flight there; try another one or later.
    #[error("OSD is overloaded: {0}")]
    Overloaded(String),
    /// The request itself is wrong (slices outside the value, a key too long, a range that ends before it begins).
    #[error("refused by the OSD: {0}")]
    BadRequest(String),
    /// The value of this key is not what its checksum says: damaged on its way. Nothing was changed.
    #[error("the value of {} is not what its checksum says", crate::ids::text_or_hex(.0))]
    WrongChecksum(OsdKey),
    /// It serves this operation, but not to who comes in by this address.
    #[error("not allowed by the OSD: {0}")]
    Forbidden(String),
    /// No connection, or it broke; whether a batch happened is unknown.
    #[error("connection to OSD: {0}")]
    Connection(String),
    /// No answer by the deadline; whether a batch happened is unknown.
    #[error("no answer from the OSD by the deadline")]
    Timeout,
    /// Anything else it says (I/O errors of the device).
    #[error("OSD says: {0}")]
    Device(String),
}

/// An OSD.
#[async_trait]
pub trait Osd: Send + Sync + 'static {
    /// Applies a batch; durable when it returns.
    async fn apply(&self, batch: OsdBatch, priority: Priority, deadline: Deadline) -> Result<(), OsdError>;

    /// Values in the order of `keys`, all of one instant.
    async fn multi_get(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Vec<Option<StoredValue>>, OsdError>;

    /// Presence in the order of `keys`.
    async fn multi_exists(
        &self,
        keys: Vec<OsdKey>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Vec<bool>, OsdError>;

    /// Slices of one value in the order asked, none when the key is absent. Each is verified by the OSD's block
    /// checksums. Slices outside the value are `BadRequest`.
    async fn partial_get(
        &self,
        key: OsdKey,
        slices: Vec<ValueSlice>,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Option<Vec<Bytes>>, OsdError>;

    /// A slice of a value that was stored with a BLAKE3 root, with the proof that leads to the root; none when the key is
    /// absent. `BadRequest` when the value has another checksum or the slice is outside of it.
    async fn proven_get(
        &self,
        key: OsdKey,
        slice: ValueSlice,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Option<ProvenSlice>, OsdError> {
        let _ = (key, slice, priority, deadline);
        Err(OsdError::UnknownOperation)
    }

    /// Keys of a range, bytewise order.
    async fn range(
        &self,
        query: RangeQuery,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<Page<OsdKey>, OsdError>;

    /// Space used and available.
    async fn disk_usage(&self, deadline: Deadline) -> Result<DiskUsage, OsdError>;

    /// How many values clients have read and batches they have written since it began, as far as it counts that: what is asked at
    /// [`Priority::High`], look-ups of keys excepted.
    async fn client_operations(&self, deadline: Deadline) -> Result<Option<u64>, OsdError> {
        let _ = deadline;
        Ok(None)
    }
}
