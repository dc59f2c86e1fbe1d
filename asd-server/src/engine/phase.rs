//! Names for the moments at which a crash is interesting. Tests count how many crashes fell into each; in a program this
//! does nothing.

/// What the engine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Records are written and synced.
    DataSync,
    /// The index takes what is durable.
    IndexCommit,
    /// The index is made durable.
    Checkpoint,
    /// What lives in a segment is moved out of it.
    Compaction,
    /// A segment begins another life.
    Reuse,
}

/// A fault built in by a test, to see that the tests would notice it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only tests build faults in"))]
pub(crate) enum Sabotage {
    /// The index takes a group before its records are durable.
    IndexBeforeSync,
    /// A segment is reused without a new generation.
    SameGeneration,
    /// A tombstone is dropped although older records of its key are left.
    DropTombstones,
    /// A group is answered without a sync.
    NoSync,
}

/// Ends the phase when dropped.
pub(crate) struct Guard {
    #[cfg(test)]
    nth: Option<usize>,
}

#[cfg(not(test))]
pub(crate) fn enter(_: Phase) -> Guard {
    Guard {}
}

#[cfg(not(test))]
pub(crate) fn sabotaged(_: Sabotage) -> bool {
    false
}

#[cfg(test)]
pub(crate) use testing::{enter, sabotaged};

#[cfg(test)]
pub(crate) mod testing {
    use std::cell::{Cell, RefCell};

    use super::{Guard, Phase, Sabotage};

    type Probe = Box<dyn Fn() -> u64>;

    thread_local! {
        static PROBE: RefCell<Option<Probe>> = const { RefCell::new(None) };
        static TRACE: RefCell<Vec<(Phase, u64, Option<u64>)>> = const { RefCell::new(Vec::new()) };
        static SABOTAGE: Cell<Option<Sabotage>> = const { Cell::new(None) };
    }

    /// From now on this thread's phases are noted, with the step (of a simulated disk) in which they begin and end.
    pub(crate) fn trace(probe: impl Fn() -> u64 + 'static) {
        PROBE.set(Some(Box::new(probe)));
        TRACE.take();
    }

    /// The phases that were under way in `step`.
    pub(crate) fn in_step(step: u64) -> Vec<Phase> {
        let within = |(phase, from, to): &(Phase, u64, Option<u64>)| {
            (*from <= step && to.is_none_or(|to| step < to)).then_some(*phase)
        };
        let mut phases: Vec<Phase> = TRACE.with_borrow(|trace| trace.iter().filter_map(within).collect());
        phases.sort();
        phases.dedup();
        phases
    }

    /// Builds a fault in, on this thread.
    pub(crate) fn sabotage(fault: Option<Sabotage>) {
        SABOTAGE.set(fault);
    }

    pub(crate) fn sabotaged(fault: Sabotage) -> bool {
        SABOTAGE.get() == Some(fault)
    }

    pub(crate) fn enter(phase: Phase) -> Guard {
        let now = PROBE.with_borrow(|probe| probe.as_ref().map(|probe| probe()));
        let note = |now| {
            TRACE.with_borrow_mut(|trace| {
                trace.push((phase, now, None));
                trace.len() - 1
            })
        };
        Guard { nth: now.map(note) }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            let now = PROBE.with_borrow(|probe| probe.as_ref().map(|probe| probe()));
            let Some((nth, now)) = self.nth.zip(now) else { return };
            TRACE.with_borrow_mut(|trace| {
                if let Some(entry) = trace.get_mut(nth) {
                    entry.2 = Some(now);
                }
            });
        }
    }
}
