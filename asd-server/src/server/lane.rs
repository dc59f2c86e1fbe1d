//! Which threads serve a connection: those for small requests, or those that give way to them.
//!
//! Clients have connections of their own for what is large, so a connection is one or the other for long. It changes sides after the
//! first large request, and back after some small ones; only then, since each change costs as much as a small request.

use alba_core::env::osd::{OsdUpdate, ValueSlice};
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
}

impl Lane {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Small => Self::Bulk,
            Self::Bulk => Self::Small,
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
    pub(super) fn after(&mut self, bytes: usize) -> Lane {
        if bytes > SMALL {
            *self = Self::of(Lane::Bulk);
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
        let mut habit = Habit::of(Lane::Small);
        assert_eq!(
            [1, SMALL, SMALL + 1].map(|bytes| habit.after(bytes)),
            [Lane::Small, Lane::Small, Lane::Bulk]
        );
        for _ in 1..CHANGED {
            assert_eq!(habit.after(1), Lane::Bulk);
        }
        assert_eq!(habit.after(1 << 20), Lane::Bulk, "the row begins anew");
        for _ in 1..CHANGED {
            assert_eq!(habit.after(1), Lane::Bulk);
        }
        assert_eq!(habit.after(1), Lane::Small);
    }
}
