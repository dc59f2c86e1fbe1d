//! The search.
//!
//! Calls and answers are gone through in the order of time, with every *configuration* that fits so far: what the name
//! holds, which operations under way have already happened, and which of unknown outcome were used up. Operations happen as
//! late as they can (Lowe's just-in-time linearization): only when an answer arrives must its operation have happened,
//! and before it any sequence of others may. No configuration left: the history is not linearizable, and this answer is the
//! first that shows it.
//!
//! Operations of unknown outcome stay under way for ever, which is what makes such searches explode. Four things prevent
//! it, each without changing the verdict:
//! * a put of unknown outcome whose value was seen has happened, at the latest when it was first seen;
//! * values that no answer and no condition of an answered operation names are all the same value;
//! * operations of unknown outcome that would do the same are told apart only by how many were used;
//! * a configuration that used more of them than another equal one is not kept: it can do nothing that the other cannot.

use std::collections::{BTreeMap, BTreeSet};

use super::explain::{self, Violation};
use super::history::{End, History, Operation};
use super::object::{Answer, Call, Condition, State, Value, apply};

/// Configurations at one moment, at most: bounds memory at some 200 bytes each.
const MOST_CONFIGURATIONS: usize = 2_000_000;

/// Known operations of one name under way at once: bits of a mask.
const MOST_PENDING: usize = 64;

/// Stands for every value that nobody names.
const UNNAMED: Value = Value(u64::MAX);

/// What a check found.
#[derive(Debug)]
pub enum Verdict {
    /// Some order explains every answer.
    Linearizable,
    /// No order does.
    Violation(Box<Violation>),
    /// Given up: too many configurations or operations at once.
    Undecided(String),
}

/// Checks every name of a history, all of which held nothing at first; the first violation is the verdict.
pub fn check(history: &History) -> Verdict {
    for (name, operations) in history.names.iter().enumerate() {
        let resolved = resolve(operations);
        match search(&resolved, Initial::Nothing) {
            Found::Explained => {}
            Found::Violated(at) => {
                return Verdict::Violation(Box::new(explain::explain(name, &resolved, at)));
            }
            Found::TooMany => return Verdict::Undecided(format!("name {name}: too many possibilities")),
        }
    }
    Verdict::Linearizable
}

/// What the name holds before the first operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Initial {
    Nothing,
    /// Whatever makes the history linearizable.
    Any,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Explained,
    Violated(Dead),
    TooMany,
}

/// Where no configuration was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dead {
    /// The operation whose answer fits nothing.
    pub(super) operation: usize,
    /// What the name could hold just before; values that nobody names are left out.
    pub(super) possible: Vec<State>,
}

/// Puts of unknown outcome whose values were seen have happened: before the first answer that shows it.
pub(super) fn resolve(operations: &[Operation]) -> Vec<Operation> {
    let mut resolved = operations.to_vec();
    let mut puts: BTreeMap<Value, usize> = BTreeMap::new();
    for (index, operation) in operations.iter().enumerate() {
        if let Call::Put { value, .. } = operation.call {
            assert!(value != UNNAMED && puts.insert(value, index).is_none(), "{value:?} was put twice");
        }
    }
    let mut shown: Vec<(u64, Value)> = operations.iter().filter_map(shows).collect();
    // The earliest last: it is what counts for each value.
    shown.sort_by(|one, other| other.cmp(one));
    let mut seen = BTreeSet::new();
    while let Some((at, value)) = shown.pop() {
        if !seen.insert(value) {
            continue;
        }
        let Some(operation) = puts.get(&value).map(|index| &mut resolved[*index]) else { continue };
        // Seen before it was asked for: the search will find no explanation for the answer that shows it.
        if operation.end == End::Unknown && operation.invoked <= at {
            operation.end = End::Answered { at, answer: Answer::Done };
            // Its own condition held then; nothing earlier waits in `shown`.
            shown.extend(shows(operation));
        }
    }
    resolved
}

/// The value that an answer shows to have been there, and when.
fn shows(operation: &Operation) -> Option<(u64, Value)> {
    let End::Answered { at, answer } = operation.end else { return None };
    match (operation.call, answer) {
        (_, Answer::Found(Some(value))) => Some((at, value)),
        (Call::Put { condition: Condition::Previous(value), .. }, Answer::Done) => Some((at, value)),
        _ => None,
    }
}

/// Which operations of unknown outcome have happened. Those that need a certain value are not counted: the value is put
/// once, so that none of them is possible again after one of them was.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Used {
    deletes: u32,
    /// Puts of values that nobody names.
    puts: u32,
    /// The same where nothing is.
    absent: u32,
    /// Puts of values that somebody names; sorted.
    named: Vec<Value>,
}

impl Used {
    /// Can whoever used this do all that whoever used `other` can? A put without condition does for one with.
    fn within(&self, other: &Self) -> bool {
        self.deletes <= other.deletes
            && self.puts <= other.puts
            && self.puts + self.absent <= other.puts + other.absent
            && self.named.iter().all(|value| other.named.binary_search(value).is_ok())
    }
}

/// Configurations: for each state and set of operations that have happened, the smallest sets of used ones.
type Configurations = BTreeMap<(State, u64), Vec<Used>>;

#[derive(Debug, Clone)]
struct Configuration {
    state: State,
    happened: u64,
    used: Used,
}

/// Operations of unknown outcome that were called so far.
#[derive(Default)]
struct Unknown {
    deletes: u32,
    puts: u32,
    absent: u32,
    /// Puts of values that somebody names, and whether they need that nothing is there.
    named: BTreeMap<Value, bool>,
    /// What can come in place of a value.
    instead: BTreeMap<Value, BTreeSet<Value>>,
}

impl Unknown {
    fn add(&mut self, call: Call, names: &BTreeSet<Value>) {
        match call {
            Call::Read => {}
            // Whatever it would answer, it leaves nothing.
            Call::Delete { .. } => self.deletes += 1,
            Call::Put { value, condition: Condition::Previous(previous) } => {
                // From one value that nobody names to another such: no difference.
                if names.contains(&previous) {
                    self.instead.entry(previous).or_default().insert(value);
                }
            }
            Call::Put { value: UNNAMED, condition: Condition::Unconditionally } => self.puts += 1,
            Call::Put { value: UNNAMED, condition: Condition::NoPrevious } => self.absent += 1,
            Call::Put { value, condition } => {
                self.named.insert(value, condition == Condition::NoPrevious);
            }
        }
    }

    /// Where one of them could bring a configuration.
    fn steps(&self, from: &Configuration, mut step: impl FnMut(Configuration)) {
        let Configuration { state, happened, ref used } = *from;
        let mut to = |state, used| step(Configuration { state, happened, used });
        if state.is_some() && used.deletes < self.deletes {
            to(None, Used { deletes: used.deletes + 1, ..used.clone() });
        }
        if state != Some(UNNAMED) && used.puts < self.puts {
            to(Some(UNNAMED), Used { puts: used.puts + 1, ..used.clone() });
        }
        if state.is_none() && used.absent < self.absent {
            to(Some(UNNAMED), Used { absent: used.absent + 1, ..used.clone() });
        }
        for (value, needs_nothing) in &self.named {
            if (state.is_none() || !needs_nothing)
                && let Err(at) = used.named.binary_search(value)
            {
                let mut used = used.clone();
                used.named.insert(at, *value);
                to(Some(*value), used);
            }
        }
        for value in state.and_then(|state| self.instead.get(&state)).into_iter().flatten() {
            to(Some(*value), used.clone());
        }
    }
}

/// Keeps a configuration unless one that can do at least as much is kept; whether it was kept.
fn keep(kept: &mut Configurations, new: &Configuration) -> bool {
    let equals = kept.entry((new.state, new.happened)).or_default();
    if equals.iter().any(|used| used.within(&new.used)) {
        return false;
    }
    equals.retain(|used| !new.used.within(used));
    equals.push(new.used.clone());
    true
}

/// Known operations under way.
struct Pending {
    slots: Vec<Option<(usize, Call, Answer)>>,
}

impl Pending {
    fn begin(&mut self, operation: usize, call: Call, answer: Answer) -> bool {
        let free = match self.slots.iter().position(Option::is_none) {
            Some(free) => free,
            None if self.slots.len() < MOST_PENDING => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return false,
        };
        self.slots[free] = Some((operation, call, answer));
        true
    }

    fn slot_of(&self, operation: usize) -> usize {
        let found = self.slots.iter().position(|slot| slot.is_some_and(|(other, ..)| other == operation));
        found.expect("it began before it ended")
    }

    fn iter(&self) -> impl Iterator<Item = (u64, Call, Answer)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(slot, entry)| entry.map(|(_, call, answer)| (1 << slot, call, answer)))
    }

    /// Lets everything happen that only looks and sees what it answered: later it could not do more.
    fn look(&self, configuration: &mut Configuration) {
        for (bit, call, answer) in self.iter() {
            if answer.only_looked() && apply(configuration.state, call).1 == answer {
                configuration.happened |= bit;
            }
        }
    }

    /// Where one operation that changes something could bring a configuration.
    fn steps(&self, from: &Configuration) -> impl Iterator<Item = Configuration> {
        self.iter().filter_map(|(bit, call, answer)| {
            let (state, would) = apply(from.state, call);
            let possible = from.happened & bit == 0 && !answer.only_looked() && would == answer;
            possible.then(|| Configuration { state, happened: from.happened | bit, used: from.used.clone() })
        })
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum What {
    // At equal times calls come first: such operations count as overlapping.
    Call,
    Answer,
}

/// Looks for an order that explains all answers. Outcomes that are unknown stay so: see [`resolve`].
pub(super) fn search(operations: &[Operation], initial: Initial) -> Found {
    let named = names(operations);
    let call_of = |operation: &Operation| match operation.call {
        Call::Put { value, condition } if !named.contains(&value) => Call::Put { value: UNNAMED, condition },
        call => call,
    };
    let mut events = Vec::with_capacity(operations.len() * 2);
    for (index, operation) in operations.iter().enumerate() {
        events.push((operation.invoked, What::Call, index));
        if let End::Answered { at, .. } = operation.end {
            events.push((at, What::Answer, index));
        }
    }
    events.sort();
    let mut unknown = Unknown::default();
    let mut pending = Pending { slots: Vec::new() };
    let mut current: Configurations = match initial {
        Initial::Nothing => [((None, 0), vec![Used::default()])].into(),
        Initial::Any => {
            let values = named.iter().copied().chain([UNNAMED]).map(Some).chain([None]);
            values.map(|state| ((state, 0), vec![Used::default()])).collect()
        }
    };
    for (_, what, index) in events {
        let operation = &operations[index];
        match (what, operation.end) {
            (What::Call, End::Unknown) => unknown.add(call_of(operation), &named),
            (What::Call, End::Answered { answer, .. }) => {
                if !pending.begin(index, call_of(operation), answer) {
                    return Found::TooMany;
                }
            }
            (What::Answer, _) => {
                let slot = pending.slot_of(index);
                let Some(next) = answer(&current, &pending, &unknown, 1 << slot) else {
                    return Found::TooMany;
                };
                pending.slots[slot] = None;
                if next.is_empty() {
                    let states: BTreeSet<State> = current.keys().map(|(state, _)| *state).collect();
                    let possible = states.into_iter().filter(|state| *state != Some(UNNAMED)).collect();
                    return Found::Violated(Dead { operation: index, possible });
                }
                current = next;
            }
        }
    }
    Found::Explained
}

/// All values that can make a difference: those that an answer names or the condition of an operation with an answer, and
/// those that a put of such a value needs.
fn names(operations: &[Operation]) -> BTreeSet<Value> {
    let mut needs = BTreeMap::new();
    let mut found = Vec::new();
    for operation in operations {
        if let End::Answered { answer: Answer::Found(Some(value)), .. } = operation.end {
            found.push(value);
        }
        if let Call::Put { value, condition: Condition::Previous(previous) } = operation.call {
            needs.insert(value, previous);
            if operation.end != End::Unknown {
                found.push(previous);
            }
        }
    }
    let mut named = BTreeSet::new();
    while let Some(value) = found.pop() {
        if named.insert(value) {
            found.extend(needs.get(&value));
        }
    }
    named
}

/// The configurations after the answer to the operation of `bit`: in all of them it has happened. None: too many.
fn answer(
    current: &Configurations,
    pending: &Pending,
    unknown: &Unknown,
    bit: u64,
) -> Option<Configurations> {
    let mut next = Configurations::new();
    let mut seen = Configurations::new();
    let mut waiting = Vec::new();
    for ((state, happened), alternatives) in current {
        for used in alternatives {
            waiting.push(Configuration { state: *state, happened: *happened, used: used.clone() });
        }
    }
    let mut looked_at = 0;
    while let Some(mut configuration) = waiting.pop() {
        pending.look(&mut configuration);
        if configuration.happened & bit != 0 {
            // Nothing more has to happen before the next answer. The bit is free for another operation.
            configuration.happened &= !bit;
            keep(&mut next, &configuration);
        } else if keep(&mut seen, &configuration) {
            looked_at += 1;
            if looked_at > MOST_CONFIGURATIONS {
                return None;
            }
            waiting.extend(pending.steps(&configuration));
            unknown.steps(&configuration, |next| waiting.push(next));
        }
    }
    Some(next)
}
