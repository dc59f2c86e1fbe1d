//! The state machine of a group: a model with sessions around it. Every replica feeds it the same inputs in the same
//! order and comes to the same state and outputs.

use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::wire::rpc::{RequestId, SessionId};
use serde::{Deserialize, Serialize};

use crate::model::{FIRST_FORMAT, Fault, Model};
use crate::session::{self, Admission};
use crate::txn::KvTxn;
use crate::value::{decode, encode, load, save};

/// Where the time of the last input is.
const TIME: &[u8] = b"\x01t";

/// What a group agrees on, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input<C> {
    /// A client starts a session.
    OpenSession([u8; 16]),
    /// A client's command.
    Command(RequestId, C),
    /// The leader's own command; harmless when repeated.
    Internal(C),
    /// A step of clean-up.
    Tidy,
}

/// What came of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output<O, E> {
    /// The session.
    Session(SessionId),
    /// What the model said, now or when the command came first.
    Done(Result<O, E>),
    /// Not executed: the session or the number in it is not known (any more).
    SessionUnknown,
    /// Not executed: too far ahead of the session's oldest open command.
    TooFar,
    /// Cleaned up; is there more?
    Tidied(bool),
}

/// The output of a model's machine.
pub type OutputOf<M> = Output<<M as Model>::Outcome, <M as Model>::Error>;

/// The first format of log entries that has this kind of input.
pub(crate) fn format_of<M: Model>(input: &Input<M::Command>) -> u8 {
    match input {
        Input::Command(_, command) | Input::Internal(command) => M::format_of(command),
        Input::OpenSession(_) | Input::Tidy => FIRST_FORMAT,
    }
}

/// A reply as it is remembered.
#[derive(Serialize, Deserialize)]
enum Kept<E> {
    Outcome(Vec<u8>),
    Error(E),
}

/// Applies one input and accepts its changes. `wall` is the leader's clock (microseconds since the Unix epoch); the
/// model's time is later than at every input before, whatever that clock does. On an error nothing of the input is kept and
/// the transaction must be dropped.
pub fn step<M: Model>(
    txn: &mut KvTxn<'_>,
    wall: u64,
    input: &Input<M::Command>,
) -> Result<OutputOf<M>, KvError> {
    let output = match input {
        Input::Tidy => Output::Tidied(M::tidy(txn)?),
        Input::OpenSession(nonce) => {
            let now = tick(txn, wall)?;
            Output::Session(session::open(txn, now, *nonce)?)
        }
        Input::Internal(command) => {
            let now = tick(txn, wall)?;
            Output::Done(run::<M>(txn, now, command)?)
        }
        Input::Command(id, command) => {
            let now = tick(txn, wall)?;
            match session::admit(txn, now, *id)? {
                Admission::Unknown => Output::SessionUnknown,
                Admission::TooFar => Output::TooFar,
                Admission::Again(kept) => Output::Done(match decode::<Kept<M::Error>>(&kept)? {
                    Kept::Outcome(kept) => Ok(M::recall(command, &kept)?),
                    Kept::Error(error) => Err(error),
                }),
                Admission::New(open) => {
                    let result = run::<M>(txn, now, command)?;
                    let kept = match &result {
                        Ok(outcome) => Kept::Outcome(M::remember(outcome)?),
                        Err(error) => Kept::Error(error.clone()),
                    };
                    session::remember(txn, open, encode(&kept)?)?;
                    Output::Done(result)
                }
            }
        }
    };
    txn.accept();
    Ok(output)
}

/// The time of this input.
/// The time of the last input: what the model's time has passed.
pub(crate) fn last_input(store: &dyn KvRead) -> Result<Timestamp, KvError> {
    Ok(load(store, TIME)?.unwrap_or_default())
}

fn tick(txn: &mut KvTxn<'_>, wall: u64) -> Result<Timestamp, KvError> {
    let last: Timestamp = load(txn, TIME)?.unwrap_or_default();
    let now = Timestamp(wall.max(last.0.saturating_add(1)));
    save(txn, TIME, &now)?;
    Ok(now)
}

/// Runs a command; its changes are dropped when the model refuses, those of the session are not.
fn run<M: Model>(
    txn: &mut KvTxn<'_>,
    now: Timestamp,
    command: &M::Command,
) -> Result<Result<M::Outcome, M::Error>, KvError> {
    // What the session changed counts whatever the command comes to.
    txn.accept();
    match M::apply(txn, now, command) {
        Ok(outcome) => Ok(Ok(outcome)),
        Err(Fault::Refused(error)) => {
            txn.reject();
            Ok(Err(error))
        }
        Err(Fault::Store(error)) => Err(error),
    }
}

/// An output as it travels from the replica that proposed the input to the one that wanted it.
#[derive(Serialize, Deserialize)]
enum Packed<E> {
    Session(SessionId),
    Outcome(Vec<u8>),
    Error(E),
    SessionUnknown,
    TooFar,
    Tidied(bool),
}

/// An output in bytes (format version first).
pub(crate) fn pack_output<M: Model>(output: &OutputOf<M>) -> Result<Vec<u8>, KvError> {
    encode(&match output {
        Output::Session(id) => Packed::<M::Error>::Session(*id),
        Output::Done(Ok(outcome)) => Packed::Outcome(M::remember(outcome)?),
        Output::Done(Err(error)) => Packed::Error(error.clone()),
        Output::SessionUnknown => Packed::SessionUnknown,
        Output::TooFar => Packed::TooFar,
        Output::Tidied(more) => Packed::Tidied(*more),
    })
}

/// The output of `command` from its bytes.
pub(crate) fn unpack_output<M: Model>(command: &M::Command, bytes: &[u8]) -> Result<OutputOf<M>, KvError> {
    Ok(match decode::<Packed<M::Error>>(bytes)? {
        Packed::Session(id) => Output::Session(id),
        Packed::Outcome(kept) => Output::Done(Ok(M::recall(command, &kept)?)),
        Packed::Error(error) => Output::Done(Err(error)),
        Packed::SessionUnknown => Output::SessionUnknown,
        Packed::TooFar => Output::TooFar,
        Packed::Tidied(more) => Output::Tidied(more),
    })
}
