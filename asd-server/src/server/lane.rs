//! Which threads serve a connection: those for small requests, those for large ones that give way to them, or those for what
//! maintenance moves, which give way to both.
//!
//! Clients have connections of their own for what is large, and agents theirs, so a connection is one of these for long. It changes after the
//! first large request, and back after some small ones; only then, since each change costs as much as a small request.

use alba_core::env::osd::{OsdUpdate, Priority, ValueSlice};
use alba_core::wire::asd::Request;

/// Up to this many bytes a request and its answer are small: a value of 64 KiB, as far as clients call them small, with what goes with it (keys,
/// or the two leaves of 16 KiB that a proven slice begins and ends in, and its proof).
pub(super) const SMALL: usize = (64 << 10) + 2 * (16 << 10) + (16 << 10);

/// More keys than this are much to do, whatever is stored under them.
const FEW: usize = 16;

/// Does a request take much work or give a large answer, though it is small itself? How large single values are is not known before.
pub(super) fn works_long(request: &Request) -> bool {
    let large = |slices: &[ValueSlice]| {
        let bytes = slices.iter().map(|slice| u64::from(slice.len)).sum::<u64>();
        usize::try_from(bytes).map_or(true, |bytes| bytes > SMALL)
    };
    match request {
        Request::Apply { batch, .. } => {
            batch.updates.len() > FEW
                || batch.updates.iter().any(|update| matches!(update, OsdUpdate::SetFromPeer(..)))
        }
        Request::MultiGet { keys, .. } | Request::MultiGet2 { keys, .. } => keys.len() > FEW,
        Request::PartialGet { slices, .. } => large(slices),
        Request::ProvenGet { slice, .. } => large(std::slice::from_ref(slice)),
        Request::RangeEntries { .. } | Request::RangeValidate { .. } => true,
        _ => false,
    }
}

/// Small requests in a row after which a connection counts as one for them again.
pub(super) const CHANGED: u32 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Small,
    Bulk,
    Aside,
}

impl Lane {
    /// For what is large.
    pub(super) fn of_large(priority: Priority) -> Self {
        match priority {
            Priority::High => Self::Bulk,
            Priority::Low => Self::Aside,
        }
    }
}

/// What a connection is used for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habit {
    lane: Lane,
    small_in_a_row: u32,
}

impl Habit {
    pub(super) fn of(lane: Lane) -> Self {
        Self { lane, small_in_a_row: 0 }
    }

    /// The lane for what follows a request that moved `bytes`, there or back.
    pub(super) fn after(&mut self, bytes: usize, priority: Priority) -> Lane {
        if bytes > SMALL {
            *self = Self::of(Lane::of_large(priority));
        } else {
            self.small_in_a_row = self.small_in_a_row.saturating_add(1);
            if self.small_in_a_row >= CHANGED {
                self.lane = Lane::Small;
            }
        }
        self.lane
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_large_request_makes_it_bulk_and_a_row_of_small_ones_ends_that() {
        for (priority, large) in [(Priority::High, Lane::Bulk), (Priority::Low, Lane::Aside)] {
            let mut habit = Habit::of(Lane::Small);
            let mut after = |bytes| habit.after(bytes, priority);
            assert_eq!([1, SMALL, SMALL + 1].map(&mut after), [Lane::Small, Lane::Small, large]);
            for _ in 1..CHANGED {
                assert_eq!(after(1), large);
            }
            assert_eq!(after(1 << 20), large, "the row begins anew");
            for _ in 1..CHANGED {
                assert_eq!(after(1), large);
            }
            assert_eq!(after(1), Lane::Small);
        }
    }

    #[test]
    fn the_last_large_request_says_whether_it_is_of_maintenance() {
        let mut habit = Habit::of(Lane::Bulk);
        assert_eq!(habit.after(1 << 20, Priority::Low), Lane::Aside);
        assert_eq!(habit.after(1, Priority::High), Lane::Aside, "small ones say nothing");
        assert_eq!(habit.after(1 << 20, Priority::High), Lane::Bulk);
    }
}
