//! Dropping a namespace without looking at what is cached of it: a generation is part of every key, and dropping makes it
//! another one. What has the old one is never found again and ages out.
//!
//! Namespaces share 1024 generations, so that the memory is bounded however many come and go: dropping one may cost
//! another its entries, never its correctness.

use std::sync::atomic::{AtomicU32, Ordering};

use alba_core::ids::NamespaceId;

pub(crate) const SLOTS: usize = 1024;

/// See the module.
pub(crate) struct Generations(Box<[AtomicU32]>);

impl Generations {
    pub(crate) fn new() -> Self {
        Self((0..SLOTS).map(|_| AtomicU32::new(0)).collect())
    }

    fn slot(&self, namespace: NamespaceId) -> Option<&AtomicU32> {
        // Ids are given in order: neighbours never share.
        self.0.get(usize::try_from(namespace.get() % 1024).unwrap_or(0))
    }

    pub(crate) fn of(&self, namespace: NamespaceId) -> u32 {
        self.slot(namespace).map_or(0, |slot| slot.load(Ordering::Acquire))
    }

    pub(crate) fn drop_namespace(&self, namespace: NamespaceId) {
        if let Some(slot) = self.slot(namespace) {
            slot.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// All of them, to be kept.
    pub(crate) fn all(&self) -> Vec<u32> {
        self.0.iter().map(|slot| slot.load(Ordering::Acquire)).collect()
    }

    /// Goes on from those of an earlier process: what it dropped stays dropped.
    pub(crate) fn resume(&self, earlier: &[u32]) {
        for (slot, earlier) in self.0.iter().zip(earlier) {
            // Added, not replaced: a namespace may have been dropped since this process began.
            slot.fetch_add(*earlier, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_drop_is_another_generation_also_after_a_restart() {
        let (a, b) = (NamespaceId::from_u32(3), NamespaceId::from_u32(4));
        let generations = Generations::new();
        generations.drop_namespace(a);
        assert_eq!((generations.of(a), generations.of(b)), (1, 0));
        let next = Generations::new();
        next.drop_namespace(a);
        next.resume(&generations.all());
        assert_eq!((next.of(a), next.of(b)), (2, 0));
    }
}
