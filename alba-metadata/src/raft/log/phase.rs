//! Faults that tests build in, to see that the crash tests would notice them. In a program there are none.

/// A fault built in by a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only tests build faults in"))]
pub(super) enum Sabotage {
    /// Appends are acknowledged before the sync.
    AckBeforeSync,
    /// A vote is acknowledged before the sync.
    VoteNotSynced,
    /// A segment begins another life under the same generation.
    SameGeneration,
    /// What was not proven durable is not written again at the opening.
    NoCopy,
}

#[cfg(not(test))]
pub(super) fn sabotaged(_: Sabotage) -> bool {
    false
}

#[cfg(test)]
pub(super) use testing::sabotaged;

#[cfg(test)]
pub(super) mod testing {
    use std::cell::Cell;

    use super::Sabotage;

    thread_local! {
        static SABOTAGE: Cell<Option<Sabotage>> = const { Cell::new(None) };
    }

    /// Builds a fault in, on this thread.
    pub(in super::super) fn sabotage(fault: Option<Sabotage>) {
        SABOTAGE.set(fault);
    }

    pub(in super::super) fn sabotaged(fault: Sabotage) -> bool {
        SABOTAGE.get() == Some(fault)
    }
}
