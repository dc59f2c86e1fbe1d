//! One name of a namespace: what it holds, and what each operation does to it and answers.

/// Names what a put stored. No two puts of a history have the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub u64);

/// What a name holds.
pub type State = Option<Value>;

/// What a put may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// Anything or nothing.
    Unconditionally,
    /// Nothing.
    NoPrevious,
    /// Exactly this.
    Previous(Value),
}

/// What a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// What does the name hold?
    Read,
    /// Hold this.
    Put {
        /// Of this put alone.
        value: Value,
        /// What it may replace.
        condition: Condition,
    },
    /// Hold nothing.
    Delete {
        /// Is it refused when the name holds nothing?
        must_exist: bool,
    },
}

/// What a client hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// To a read.
    Found(State),
    /// The change was made.
    Done,
    /// The condition did not hold: no change.
    Refused,
}

impl Answer {
    /// Did the operation only look? Then nothing depends on when exactly.
    pub fn only_looked(self) -> bool {
        matches!(self, Self::Found(_) | Self::Refused)
    }
}

/// What `call` does to a name that holds `state`, and what it answers.
pub fn apply(state: State, call: Call) -> (State, Answer) {
    match call {
        Call::Read => (state, Answer::Found(state)),
        Call::Put { value, condition } => {
            let holds = match condition {
                Condition::Unconditionally => true,
                Condition::NoPrevious => state.is_none(),
                Condition::Previous(previous) => state == Some(previous),
            };
            if holds { (Some(value), Answer::Done) } else { (state, Answer::Refused) }
        }
        Call::Delete { must_exist: true } if state.is_none() => (None, Answer::Refused),
        Call::Delete { .. } => (None, Answer::Done),
    }
}
