//! How full the disk is, and what is still taken then.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use alba_core::env::osd::OsdUpdate;
use alba_core::osd_keys;

/// Space by the sum of value sizes against the capacity (wire-protocol §4.6.5).
pub(crate) struct Accounting {
    used: AtomicU64,
    capacity: AtomicU64,
    limit_percent: u8,
    forced_full: AtomicBool,
}

impl Accounting {
    pub(crate) fn new(used: u64, capacity: u64, limit_percent: u8) -> Self {
        Self {
            used: AtomicU64::new(used),
            capacity: AtomicU64::new(capacity),
            limit_percent,
            forced_full: AtomicBool::new(false),
        }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn set_used(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    pub(crate) fn set_capacity(&self, capacity: u64) {
        self.capacity.store(capacity, Ordering::Relaxed);
    }

    pub(crate) fn force_full(&self, full: bool) {
        self.forced_full.store(full, Ordering::Relaxed);
    }

    pub(crate) fn is_full(&self) -> bool {
        let limit = u128::from(self.limit_percent) * u128::from(self.capacity());
        self.forced_full.load(Ordering::Relaxed) || 100 * u128::from(self.used()) >= limit
    }
}

/// Updates that are taken by a full disk: only deletes, or such whose first set is the counter of messages (a namespace
/// is deleted by a message, too).
pub(crate) fn allowed_when_full(updates: &[OsdUpdate]) -> bool {
    updates
        .iter()
        .find_map(|update| if let OsdUpdate::Set(key, _) = update { Some(key) } else { None })
        .is_none_or(|first_set| *first_set == osd_keys::next_message())
}

#[cfg(test)]
mod tests {
    use alba_core::checksum::Checksum;
    use alba_core::env::osd::{OsdKey, StoredValue};
    use bytes::Bytes;

    use super::*;

    #[test]
    fn full_begins_at_the_limit() {
        let space = Accounting::new(98, 100, 99);
        assert!(!space.is_full());
        space.set_used(99);
        assert!(space.is_full());
        space.set_used(0);
        space.force_full(true);
        assert!(space.is_full());
        space.force_full(false);
        assert!(!space.is_full());
        assert!(!Accounting::new(u64::MAX / 2, u64::MAX, 99).is_full(), "no overflow");
    }

    #[test]
    fn a_full_disk_takes_deletes_and_the_message_counter() {
        let set = |key| OsdUpdate::Set(key, StoredValue { value: Bytes::new(), checksum: Checksum::None });
        let delete = OsdUpdate::Delete(OsdKey::from_static(b"k"));
        let other = set(OsdKey::from_static(b"k"));
        let counter = set(osd_keys::next_message());
        assert!(allowed_when_full(&[]));
        assert!(allowed_when_full(std::slice::from_ref(&delete)));
        assert!(!allowed_when_full(&[delete.clone(), other.clone()]));
        assert!(allowed_when_full(&[delete, counter.clone(), other.clone()]));
        assert!(!allowed_when_full(&[other, counter]));
    }
}
