//! Decides the next step of a move from what the two groups say of it. It has no state of its own: whoever drives a move
//! may stop at any point, and anyone may go on, also two at once.
//!
//! The driver asks both groups for [`MoveStatus`] (linearizable), calls [`Plan::next`], does what it says, and begins again. A
//! command whose outcome is not known is no trouble: the next status tells.
//!
//! What the ABM has to do, and does: number the moves of a namespace in growing order, one at a time; when told [`Next::Switch`], make
//! the target the owner and, in the same command, send it the namespace's links, OSD uses, trash and preset again (each sets
//! a state, so a repeat is harmless): messages to the source are without effect once it has handed over. A
//! namespace must not be deleted while it is being moved. So whatever an earlier number left behind is over, and is put away.

use alba_core::ids::NamespaceId;
use alba_core::wire::rpc::nsm::{
    Cursor, MoveId, MovePage, MoveStatus, MoveStep, NsmCommand, NsmQuery, Phase,
};

/// A move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Of which namespace.
    pub namespace: NamespaceId,
    /// Which move.
    pub id: MoveId,
    /// Writes are refused once so few changes are left to copy. A few thousand are copied in some ten milliseconds.
    pub freeze_at: u64,
    /// After so many pages writes are refused all the same: else a namespace that changes faster than it is copied would
    /// never move. In pages of [`alba_core::wire::rpc::nsm::MAX_PAGE_BYTES`].
    pub patience: u64,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Have the source apply this.
    Source(NsmCommand),
    /// Have the target apply this.
    Target(NsmCommand),
    /// Ask the source this and have the target apply [`Plan::import`] of the answer.
    Copy {
        /// For the source.
        query: NsmQuery,
        /// For [`Plan::import`].
        number: u64,
    },
    /// Something at a group takes some time: ask again.
    Wait,
    /// The target serves. Have the ABM make it the owner, then have the source apply this.
    Switch(NsmCommand),
    /// The target serves and the source has forgotten the namespace.
    Moved,
    /// The move has been ended; the source serves.
    Ended,
    /// Neither group is as a move of this number leaves them.
    Impossible(&'static str),
}

impl Plan {
    fn step(&self, step: MoveStep) -> NsmCommand {
        NsmCommand::Move { namespace: self.namespace, id: self.id, step }
    }

    /// A step back of an earlier move, which came late.
    fn step_of(&self, id: MoveId, step: MoveStep) -> NsmCommand {
        NsmCommand::Move { namespace: self.namespace, id, step }
    }

    /// What a late step of an earlier move has left, if there is anything. It has ended, so the source of this move was its
    /// owner: nothing waits for that move any more.
    fn leftovers(&self, source: &MoveStatus, target: &MoveStatus) -> Option<Next> {
        match (source, target) {
            (MoveStatus::Outgoing { id, phase: Phase::Prepared | Phase::Frozen, .. }, _) if *id < self.id => {
                Some(Next::Source(self.step_of(*id, MoveStep::Withdraw)))
            }
            (_, MoveStatus::Incoming { id, .. }) if *id < self.id => {
                Some(Next::Target(self.step_of(*id, MoveStep::Reject)))
            }
            _ => None,
        }
    }

    /// The command for the target that takes a page.
    pub fn import(&self, number: u64, page: MovePage) -> NsmCommand {
        self.step(MoveStep::Import { number, page })
    }

    /// The next step towards the target.
    pub fn next(&self, source: &MoveStatus, target: &MoveStatus) -> Next {
        use MoveStatus::{Absent, Incoming, Outgoing, Owned};
        let id = self.id;
        if let Some(next) = self.leftovers(source, target) {
            return next;
        }
        match (source, target) {
            (Absent { ended }, Owned { ended: activated }) if *ended == id && *activated == id => Next::Moved,
            (Outgoing { id: same, .. }, Owned { ended }) if *same == id && *ended == id => {
                Next::Switch(self.step(MoveStep::Drop))
            }
            (Owned { ended }, Absent { .. }) if *ended >= id => Next::Ended,
            (_, Absent { ended }) if *ended >= id => self.back(source, target),
            // The source was let go on because the target was silent.
            (Owned { ended }, Incoming { .. }) if *ended >= id => self.back(source, target),
            (Owned { .. }, Absent { .. } | Incoming { .. }) => Next::Source(self.step(MoveStep::Prepare)),
            (Outgoing { id: same, overflowed: true, .. }, _) if *same == id => self.back(source, target),
            (Outgoing { id: same, .. }, Absent { .. }) if *same == id => {
                Next::Target(self.step(MoveStep::Receive))
            }
            (
                Outgoing { id: leaving, phase, covered, last_change, busy, .. },
                Incoming { id: coming, next_page, cursor },
            ) if *leaving == id && *coming == id => match phase {
                Phase::HandedOver(sealed) => Next::Target(self.step(MoveStep::Activate(sealed.clone()))),
                Phase::Prepared | Phase::Frozen => {
                    self.copy(phase, covered.as_deref(), *last_change, *busy, *next_page, cursor)
                }
            },
            _ => Next::Impossible("the groups are not as this move leaves them"),
        }
    }

    fn copy(
        &self,
        phase: &Phase,
        covered: Option<&[u8]>,
        last_change: u64,
        busy: bool,
        number: u64,
        cursor: &Cursor,
    ) -> Next {
        let copy = Next::Copy {
            query: NsmQuery::ExportPage { namespace: self.namespace, id: self.id, from: cursor.clone() },
            number,
        };
        match (cursor, covered) {
            // What is covered is copied before more is: the notes stay short.
            (Cursor::Rows(after), Some(covered)) if after == covered => {
                Next::Source(self.step(MoveStep::Cover))
            }
            (Cursor::Rows(_), _) => copy,
            // Being past the rows means that all were covered.
            (Cursor::Changes(copied), _) => {
                let left = last_change.saturating_sub(*copied);
                let soon = left <= self.freeze_at || number >= self.patience;
                match phase {
                    Phase::Prepared if busy => Next::Wait,
                    Phase::Prepared if soon => Next::Source(self.step(MoveStep::Freeze)),
                    _ if left > 0 => copy,
                    _ if busy => Next::Wait,
                    _ => Next::Source(self.step(MoveStep::HandOver { copied: *copied })),
                }
            }
        }
    }

    /// Without a word of the target: has the source serve writes again. Refused if it has handed over meanwhile; nothing else can
    /// activate the target, and nothing will once the source serves again. None: it is too late, or it serves.
    pub fn unfreeze(&self, source: &MoveStatus) -> Option<NsmCommand> {
        match source {
            MoveStatus::Outgoing { id, phase: Phase::Prepared | Phase::Frozen, .. } if *id == self.id => {
                Some(self.step(MoveStep::Withdraw))
            }
            _ => None,
        }
    }

    /// The next step when the target is gone for good: the source serves again, whatever it has handed over.
    ///
    /// **Only when the target can never serve again**, because the operator has given its group up.
    pub fn without_target(&self, source: &MoveStatus) -> Next {
        match source {
            MoveStatus::Owned { ended } | MoveStatus::Absent { ended } if *ended >= self.id => Next::Ended,
            _ => Next::Source(self.step(MoveStep::Resume)),
        }
    }

    /// The next step when the source is gone for good. If the target has been activated, it has everything and stays; else what
    /// it has is of no use, since it may lack changes.
    pub fn without_source(&self, target: &MoveStatus) -> Next {
        use MoveStatus::{Absent, Incoming, Owned};
        match target {
            Owned { ended } if *ended == self.id => Next::Switch(self.step(MoveStep::Drop)),
            Absent { ended } if *ended >= self.id => Next::Ended,
            Incoming { id, .. } if *id < self.id => Next::Target(self.step_of(*id, MoveStep::Reject)),
            Incoming { .. } | Absent { .. } => Next::Target(self.step(MoveStep::Reject)),
            _ => Next::Impossible("the target is not as this move leaves it"),
        }
    }

    /// The next step back: the move is given up. Always possible until the target serves; then [`Next::Switch`] says so.
    pub fn back(&self, source: &MoveStatus, target: &MoveStatus) -> Next {
        use MoveStatus::{Absent, Incoming, Outgoing, Owned};
        let id = self.id;
        if let Some(next) = self.leftovers(source, target) {
            return next;
        }
        match (source, target) {
            // Nobody serves between `HandOver` and here; the target goes first so that it can never begin to.
            (_, Incoming { id: same, .. }) if *same == id => Next::Target(self.step(MoveStep::Reject)),
            (_, Absent { ended }) if *ended < id => Next::Target(self.step(MoveStep::Reject)),
            (Outgoing { id: same, .. }, Absent { .. }) if *same == id => {
                Next::Source(self.step(MoveStep::Resume))
            }
            // Else a late `Prepare` would be in the way of the next move.
            (Owned { ended }, Absent { .. }) if *ended < id => Next::Source(self.step(MoveStep::Resume)),
            (Owned { .. }, Absent { .. }) => Next::Ended,
            (_, Owned { ended }) if *ended == id => self.next(source, target),
            _ => Next::Impossible("the groups are not as this move leaves them"),
        }
    }
}
