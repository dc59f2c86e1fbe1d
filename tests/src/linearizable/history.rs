//! What clients asked and heard, and when.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::object::{Answer, Call, Value};

/// More operations than this are not recorded: bounds the memory of a test that runs for hours (some 80 bytes each).
const MOST: usize = 8_000_000;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client heard this at that time.
    Answered {
        /// Nanoseconds since the history began.
        at: u64,
        /// What it heard.
        answer: Answer,
    },
    /// The client heard nothing: it may happen at any time after its call, or never.
    Unknown,
}

/// One call of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Whose.
    pub client: u32,
    /// What it asked.
    pub call: Call,
    /// When it asked: nanoseconds since the history began.
    pub invoked: u64,
    /// What came of it.
    pub end: End,
}

/// What a history holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations with an answer.
    pub completed: usize,
    /// Operations that may have happened or not.
    pub unknown: usize,
    /// Operations that certainly did not happen: not part of the history.
    pub failed: usize,
    /// Of the completed ones, those that changed something.
    pub changes: usize,
}

impl Counts {
    /// Is at most a fifth of the operations of unknown outcome?
    pub fn mostly_known(&self) -> bool {
        self.unknown * 5 <= self.completed + self.unknown + self.failed
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operations completed ({} of them changes), {} of unknown outcome, {} that did not happen",
            self.completed, self.changes, self.unknown, self.failed
        )
    }
}

/// Operations per name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// By number of the name; in the order of their calls.
    pub names: Vec<Vec<Operation>>,
    /// Operations left out because they certainly did not happen.
    pub failed: usize,
}

impl History {
    /// Counts what is in it.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { failed: self.failed, ..Counts::default() };
        for operation in self.names.iter().flatten() {
            match operation.end {
                End::Answered { answer, .. } => {
                    counts.completed += 1;
                    counts.changes += usize::from(!answer.only_looked());
                }
                End::Unknown => counts.unknown += 1,
            }
        }
        counts
    }
}

/// Records what several clients do at once; cloned for each.
#[derive(Clone)]
pub struct Recorder {
    start: Instant,
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    names: Vec<Vec<Slot>>,
    next_value: u64,
    calls: usize,
    completed: usize,
}

struct Slot {
    operation: Operation,
    failed: bool,
}

/// A call under way. Dropped, its outcome is unknown.
pub struct Pending<'a> {
    recorder: &'a Recorder,
    name: usize,
    slot: usize,
}

impl Recorder {
    /// A history of so many names begins now.
    pub fn new(names: usize) -> Self {
        let names = (0..names).map(|_| Vec::new()).collect();
        let shared = Shared { names, next_value: 1, calls: 0, completed: 0 };
        Self { start: Instant::now(), shared: Arc::new(Mutex::new(shared)) }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A value for one put.
    pub fn fresh(&self) -> Value {
        let mut shared = self.lock();
        let value = Value(shared.next_value);
        shared.next_value += 1;
        value
    }

    /// Is there no room for more calls?
    pub fn is_full(&self) -> bool {
        self.lock().calls >= MOST
    }

    /// A call begins: before its first byte can leave the client.
    pub fn begin(&self, client: u32, name: usize, call: Call) -> Pending<'_> {
        let mut shared = self.lock();
        // Inside the lock: the order of a name's operations is that of their calls.
        let invoked = self.now();
        shared.calls += 1;
        let operations = &mut shared.names[name];
        operations
            .push(Slot { operation: Operation { client, call, invoked, end: End::Unknown }, failed: false });
        Pending { recorder: self, name, slot: operations.len() - 1 }
    }

    /// What was recorded so far; what is under way is of unknown outcome.
    pub fn history(&self) -> History {
        let shared = self.lock();
        let mut history = History::default();
        for slots in &shared.names {
            let happened = slots.iter().filter(|slot| !slot.failed);
            history.names.push(happened.map(|slot| slot.operation).collect());
            history.failed += slots.iter().filter(|slot| slot.failed).count();
        }
        history
    }

    /// How many calls had an answer so far.
    pub fn completed(&self) -> usize {
        self.lock().completed
    }
}

impl Pending<'_> {
    /// The client heard an answer just now; when it had asked and when that is.
    pub fn answered(self, answer: Answer) -> (u64, u64) {
        let at = self.recorder.now();
        let mut shared = self.recorder.lock();
        shared.completed += 1;
        let operation = &mut shared.names[self.name][self.slot].operation;
        operation.end = End::Answered { at, answer };
        (operation.invoked, at)
    }

    /// It certainly did not happen and never will.
    pub fn failed(self) {
        self.recorder.lock().names[self.name][self.slot].failed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_was_dropped_is_of_unknown_outcome() {
        let recorder = Recorder::new(2);
        let put = Call::Put { value: recorder.fresh(), condition: super::super::Condition::NoPrevious };
        let _ = recorder.begin(0, 0, put);
        recorder.begin(1, 0, Call::Read).answered(Answer::Found(None));
        recorder.begin(1, 1, Call::Delete { must_exist: false }).failed();
        recorder.begin(1, 1, Call::Delete { must_exist: false }).answered(Answer::Done);
        let history = recorder.history();
        assert_eq!(history.counts(), Counts { completed: 2, unknown: 1, failed: 1, changes: 1 });
        assert!(!history.counts().mostly_known());
        assert_eq!(history.names[0][0].end, End::Unknown);
        assert!(history.names[0][0].invoked <= history.names[0][1].invoked);
        assert_ne!(recorder.fresh(), Value(1));
        assert_eq!(recorder.completed(), 2);
    }
}
