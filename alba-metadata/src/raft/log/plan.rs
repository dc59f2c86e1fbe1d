//! Where waiting records will go: decides before an entry is accepted whether there is space for it.
//!
//! It must never think there is more space than there is: each item is taken to begin on a block boundary, which is
//! where it begins when it is written alone. Written together items only need less.

use alba_core::env::disk::BLOCK_BYTES;

use super::format::PREFACE;

/// Whole segments that entries leave: votes, truncations and purges go on without disk space.
pub(super) const ENTRIES_LEAVE: usize = 2;

/// Whole segments that everything leaves: opening the log begins a new one.
pub(super) const ALL_LEAVE: usize = 1;

/// Space from some point of the log on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Bytes left in the segment.
    pub free: u64,
    /// Whole segments behind it.
    pub spares: usize,
}

impl Plan {
    /// Takes the space of one item, records of these lengths; false (and nothing taken) when fewer than `leave` whole
    /// segments would be left because of it.
    pub(super) fn place(
        &mut self,
        lens: impl IntoIterator<Item = u64>,
        segment_bytes: u64,
        leave: usize,
    ) -> bool {
        let mut next = *self;
        next.free -= next.free % BLOCK_BYTES;
        let before = next.spares;
        for len in lens {
            if len > next.free {
                if next.spares == 0 {
                    return false;
                }
                next.spares -= 1;
                next.free = segment_bytes - PREFACE;
                if len > next.free {
                    return false;
                }
            }
            next.free -= len;
        }
        if next.spares < leave && (next.spares < before || leave >= ENTRIES_LEAVE) {
            return false;
        }
        *self = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_leave_two_segments_and_the_rest_one() {
        let segment = 16 * BLOCK_BYTES;
        let mut plan = Plan { free: 4 * BLOCK_BYTES, spares: 2 };
        assert!(plan.place([100, 200], segment, ENTRIES_LEAVE));
        assert_eq!(plan, Plan { free: 4 * BLOCK_BYTES - 300, spares: 2 });
        assert!(plan.place([3 * BLOCK_BYTES], segment, ENTRIES_LEAVE), "from the next block on");
        assert_eq!(plan, Plan { free: 0, spares: 2 });
        assert!(!plan.place([1], segment, ENTRIES_LEAVE), "it would take the second but last");
        assert!(plan.place([1], segment, ALL_LEAVE));
        assert_eq!(plan, Plan { free: 14 * BLOCK_BYTES - 1, spares: 1 });
        assert!(!plan.place([1], segment, ENTRIES_LEAVE));
        assert!(!plan.place([14 * BLOCK_BYTES], segment, ALL_LEAVE));
        plan.spares = 9;
        assert!(!plan.place([14 * BLOCK_BYTES + 1], segment, ALL_LEAVE), "it fits into no segment");
        plan.spares = 0;
        assert!(plan.place([1], segment, ALL_LEAVE), "what is left of the segment is used to its end");
    }
}
