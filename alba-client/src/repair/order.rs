//! What is repaired first: over all namespaces the object that can lose the fewest fragments, of equals the oldest. Pure.

use std::collections::BTreeSet;

use alba_core::ids::{NamespaceId, ObjectId};
use alba_core::manifest::Timestamp;

/// An object in want of repair. In the order of repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiting {
    /// How many more fragments its weakest chunk can lose.
    pub remaining: i64,
    /// Since when it is there.
    pub since: Timestamp,
    /// Where.
    pub namespace: NamespaceId,
    /// Which.
    pub object: ObjectId,
    /// About how many bytes will be read and written for it.
    pub bytes: u64,
}

/// The weakest objects of all that were shown to it, as many as there is room for.
#[derive(Debug, Clone)]
pub struct Weakest {
    kept: BTreeSet<Waiting>,
    room: usize,
    passed_over: u64,
}

impl Weakest {
    /// Keeps at most `room` objects, some 100 bytes each.
    pub fn new(room: usize) -> Self {
        Self { kept: BTreeSet::new(), room: room.max(1), passed_over: 0 }
    }

    /// Takes an object, or passes over a stronger one. Once one was passed over nothing as strong as it is kept any more.
    pub fn show(&mut self, object: Waiting) {
        self.kept.insert(object);
        if self.kept.len() > self.room {
            self.kept.pop_last();
            self.passed_over += 1;
        }
    }

    /// The weakest of those that are left.
    pub fn pop(&mut self) -> Option<Waiting> {
        self.kept.pop_first()
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Is none left?
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// How many there was no room for: after those that are left it has to be looked again.
    pub fn passed_over(&self) -> u64 {
        self.passed_over
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn waiting(remaining: i64, since: u64, namespace: u32, object: u8) -> Waiting {
        Waiting {
            remaining,
            since: Timestamp(since),
            namespace: NamespaceId::from_u32(namespace),
            object: ObjectId::new([object; 32]),
            bytes: 0,
        }
    }

    #[test]
    fn what_is_nearer_to_its_end_comes_first_in_whatever_namespace() {
        let mut queue = Weakest::new(10);
        let order = [waiting(1, 9, 4, 1), waiting(2, 1, 9, 2), waiting(2, 5, 1, 3), waiting(3, 0, 1, 4)];
        for object in [3, 1, 0, 2, 1] {
            queue.show(order[object]);
        }
        assert_eq!((queue.len(), queue.passed_over()), (4, 0), "each once");
        assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), order);
        assert!(queue.is_empty());
    }

    proptest! {
        #[test]
        fn with_little_room_the_weakest_of_all_are_kept(
            objects in prop::collection::vec((0_i64..4, 0_u64..4, 0_u32..3, 0_u8..9), 0..40),
            room in 1_usize..12,
        ) {
            let objects: Vec<Waiting> = objects.into_iter().map(|(r, s, n, o)| waiting(r, s, n, o)).collect();
            let mut queue = Weakest::new(room);
            objects.iter().for_each(|object| queue.show(*object));
            let mut all: Vec<Waiting> = objects;
            all.sort_unstable();
            all.dedup();
            let looked_over = all.len() > room;
            all.truncate(room);
            prop_assert_eq!(queue.passed_over() > 0, looked_over);
            prop_assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), all);
        }
    }
}
