//! An ordered key-value store, as the metadata models and the ASD index need it: get, ordered scan, snapshot, atomic
//! batch, sync. One conformance suite runs on every implementation.
//!
//! Calls are synchronous and may wait for a disk: call them through [`crate::env::blocking`], never on an executor's
//! thread.

pub mod conformance;
#[cfg(feature = "fjall")]
mod fjall;
mod mem;
mod sim;

use std::collections::BTreeMap;
use std::ops::Bound;

use thiserror::Error;

#[cfg(feature = "fjall")]
pub use self::fjall::FjallKv;
pub use self::mem::MemKv;
pub use self::sim::{SimKv, SimKvDevice};

/// Longest key a store takes, in bytes. The empty key is refused by all of them.
pub const KEY_MAX: usize = 65_535;

/// Why the store did not do it.
#[derive(Debug, Clone, Error)]
pub enum KvError {
    /// The disk or file system refused. The store is poisoned: close, reopen and replay.
    #[error("key-value store: {0}")]
    Io(String),
    /// No room left on the device.
    #[error("key-value store: no space left")]
    NoSpace,
    /// Stored data does not decode.
    #[error("key-value store is damaged: {0}")]
    Damaged(String),
    /// A key of a batch is empty or longer than [`KEY_MAX`]; nothing was changed.
    #[error("key-value store: a key of {0} bytes is refused")]
    KeyLength(usize),
}

/// A key with its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Reads of one state.
pub trait KvRead {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;

    /// At most `limit` entries between the bounds, ascending, or descending when `reverse`.
    fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        reverse: bool,
        limit: usize,
    ) -> Result<Vec<Entry>, KvError>;
}

/// Changes that happen together or not at all: key → new value, none to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteBatch(pub BTreeMap<Vec<u8>, Option<Vec<u8>>>);

impl WriteBatch {
    /// Sets `key`.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.0.insert(key.into(), Some(value.into()));
    }

    /// Removes `key`.
    pub fn delete(&mut self, key: impl Into<Vec<u8>>) {
        self.0.insert(key.into(), None);
    }
}

/// When a batch must be safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Before the call returns (power cut included).
    Sync,
    /// Some time later, in order: after a crash a prefix of the batches is there.
    Eventual,
}

/// An ordered store.
pub trait Kv: KvRead + Send + Sync + 'static {
    /// A consistent view that later batches do not change.
    fn snapshot(&self) -> Result<Box<dyn KvRead + Send + '_>, KvError>;

    /// Applies a batch atomically. With [`Durability::Sync`] readers see it when it is safe, and not before.
    fn commit(&self, batch: WriteBatch, durability: Durability) -> Result<(), KvError>;

    /// The same for a batch that others read meanwhile.
    fn commit_shared(&self, batch: &WriteBatch, durability: Durability) -> Result<(), KvError> {
        self.commit(batch.clone(), durability)
    }

    /// Makes all earlier batches safe.
    fn sync(&self) -> Result<(), KvError>;
}

/// Refuses a batch with a key no store takes.
fn check_keys(batch: &WriteBatch) -> Result<(), KvError> {
    match batch.0.keys().find(|key| key.is_empty() || key.len() > KEY_MAX) {
        Some(key) => Err(KvError::KeyLength(key.len())),
        None => Ok(()),
    }
}

/// Can no key lie between the bounds? (Ordered maps panic on some such bounds.)
fn is_empty_range(lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> bool {
    match (lower, upper) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(lower), Bound::Included(upper)) => lower > upper,
        (
            Bound::Included(lower) | Bound::Excluded(lower),
            Bound::Included(upper) | Bound::Excluded(upper),
        ) => lower >= upper,
    }
}
