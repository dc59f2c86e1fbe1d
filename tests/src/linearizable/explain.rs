//! What is wrong with a history that is not linearizable, in as few operations as show it.

use std::fmt;

use super::check::{Dead, Found, Initial, search};
use super::history::{End, Operation};
use super::object::{Answer, Call, Condition, State, Value};

/// Longer windows are not thinned out: each operation costs one search.
const MOST_TO_THIN: usize = 500;

/// Operations printed at most.
const MOST_TO_PRINT: usize = 60;

/// Operations that no order explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Of which name.
    pub name: usize,
    /// The first answer that fits nothing, as the whole history goes.
    pub operation: Operation,
    /// What the name could hold just before; values that no answer names are left out.
    pub possible: Vec<State>,
    /// These are not linearizable, whatever the name held at first and whichever others of unknown outcome happened.
    pub window: Vec<Operation>,
    /// How many operations of the name came before the window.
    pub before: usize,
}

/// Finds the latest and smallest part of a name's operations that cannot be explained.
pub(super) fn explain(name: usize, operations: &[Operation], dead: Dead) -> Violation {
    let last = operations[dead.operation];
    let End::Answered { at, .. } = last.end else { unreachable!("only answers can be wrong") };
    // Later answers are of no interest, and later calls could not have happened yet.
    let mut begun: Vec<Operation> =
        operations.iter().filter(|operation| operation.invoked <= at).copied().collect();
    for operation in &mut begun {
        if matches!(operation.end, End::Answered { at: end, .. } if end > at) {
            operation.end = End::Unknown;
        }
    }
    begun.retain(|operation| (operation.call, operation.end) != (Call::Read, End::Unknown));
    begun.sort_by_key(|operation| operation.invoked);
    let fails = |window: &[Operation]| matches!(search(window, Initial::Any), Found::Violated(_));
    let mut window = begun.clone();
    if fails(&window) {
        // A window that fails makes every earlier beginning fail: the last such one.
        let (mut bad, mut good) = (0, begun.len());
        while good - bad > 1 {
            let middle = bad + (good - bad) / 2;
            if fails(&since(&begun, middle)) { bad = middle } else { good = middle }
        }
        window = since(&begun, bad);
        let answered = window.iter().filter(|operation| operation.end != End::Unknown).count();
        if answered <= MOST_TO_THIN {
            thin(&mut window, fails);
        }
    }
    let first = window.first().map_or(0, |operation| operation.invoked);
    let before = begun.iter().filter(|operation| operation.invoked < first).count();
    Violation { name, operation: last, possible: dead.possible, window, before }
}

/// The operations from the call of number `first` on. Of those under way then it is unknown whether they had happened.
fn since(operations: &[Operation], first: usize) -> Vec<Operation> {
    let start = operations[first].invoked;
    let earlier = operations[..first].iter().filter_map(|operation| match operation.end {
        End::Answered { at, .. } if at < start => None,
        End::Answered { answer, .. } if answer.only_looked() => None,
        // It may have happened before, or never happens.
        _ => Some(Operation { end: End::Unknown, ..*operation }),
    });
    earlier.chain(operations[first..].iter().copied()).collect()
}

/// Leaves out what is not needed: what only looked, then what may have happened or not.
fn thin(window: &mut Vec<Operation>, fails: impl Fn(&[Operation]) -> bool) {
    let mut index = 0;
    while index < window.len() {
        let operation = window[index];
        let End::Answered { answer, .. } = operation.end else {
            index += 1;
            continue;
        };
        let mut without = window.clone();
        if answer.only_looked() {
            without.remove(index);
        } else {
            without[index].end = End::Unknown;
        }
        if fails(&without) {
            *window = without;
            // What took its place is looked at next, or it is passed over as one of unknown outcome.
        } else {
            index += 1;
        }
    }
    drop_irrelevant(window);
}

/// Leaves out operations of unknown outcome that nobody names: none of them explains anything, or the window would not have
/// failed with them. Only now: before, what they could explain would have been taken for a contradiction.
fn drop_irrelevant(window: &mut Vec<Operation>) {
    let named: Vec<Value> = window
        .iter()
        .filter_map(|operation| match operation.end {
            End::Answered { answer: Answer::Found(found), .. } => found,
            _ => None,
        })
        .collect();
    window.retain(|operation| match (operation.end, operation.call) {
        (End::Unknown, Call::Put { value, .. }) => named.contains(&value),
        (End::Unknown, _) => false,
        _ => true,
    });
}

struct Shown(State);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "#{}", value.0),
            None => f.write_str("nothing"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| format!("{}.{:03}", ns / 1_000_000, ns / 1000 % 1000);
        write!(f, "{:>12} .. ", ms(self.invoked))?;
        match self.end {
            End::Answered { at, .. } => write!(f, "{:>12} ms", ms(at))?,
            End::Unknown => write!(f, "{:>12} ms", "?")?,
        }
        write!(f, "  client {:<3} ", self.client)?;
        match self.call {
            Call::Read => f.write_str("read")?,
            Call::Put { value, condition } => {
                write!(f, "put #{}", value.0)?;
                match condition {
                    Condition::Unconditionally => {}
                    Condition::NoPrevious => f.write_str(" if there is nothing")?,
                    Condition::Previous(value) => write!(f, " in place of #{}", value.0)?,
                }
            }
            Call::Delete { must_exist } => {
                f.write_str(if must_exist { "delete what is there" } else { "delete" })?;
            }
        }
        match self.end {
            End::Answered { answer: Answer::Found(state), .. } => write!(f, ": {}", Shown(state)),
            End::Answered { answer: Answer::Done, .. } => f.write_str(": done"),
            End::Answered { answer: Answer::Refused, .. } => f.write_str(": refused"),
            End::Unknown => f.write_str(": outcome unknown or not needed"),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "name {} is not linearizable: no order explains the answer to", self.name)?;
        writeln!(f, "{}", self.operation)?;
        let possible: Vec<String> =
            self.possible.iter().take(8).map(|state| Shown(*state).to_string()).collect();
        writeln!(f, "before it the name could hold: {} (or what nobody ever saw)", possible.join(", "))?;
        writeln!(f, "these {} operations alone show it ({} came before):", self.window.len(), self.before)?;
        let skip = self.window.len().saturating_sub(MOST_TO_PRINT);
        if skip > 0 {
            writeln!(f, "… {skip} more")?;
        }
        for operation in &self.window[skip..] {
            writeln!(f, "{operation}")?;
        }
        Ok(())
    }
}
