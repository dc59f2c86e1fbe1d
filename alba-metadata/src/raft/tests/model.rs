//! A model small enough to say at once what it must hold: lists of numbers by key.

use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{Fault, Model};
use crate::txn::KvTxn;
use crate::value::{decode, encode, load, save};

pub(crate) struct Lists;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ListCommand {
    /// Appends; the new length is the outcome. Refused when the number is there already.
    Push { key: String, number: u64 },
    /// Fills a key with so many bytes, to make states large.
    Fill { key: String, bytes: u32 },
    /// A long command.
    Pad { key: String, bytes: Vec<u8> },
    /// Takes the last number away; the length is the outcome. A kind that came later: it needs entries of format 2.
    Pop { key: String },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Twice(pub(crate) u64);

fn at(key: &str) -> Vec<u8> {
    format!("L{key}").into_bytes()
}

impl Model for Lists {
    type Command = ListCommand;
    type Outcome = u64;
    type Error = Twice;
    type Query = String;
    type Answer = Vec<u64>;

    fn apply(txn: &mut KvTxn<'_>, _: Timestamp, command: &ListCommand) -> Result<u64, Fault<Twice>> {
        match command {
            ListCommand::Push { key, number } => {
                let mut list: Vec<u64> = load(txn, &at(key))?.unwrap_or_default();
                if list.contains(number) {
                    return Err(Fault::Refused(Twice(*number)));
                }
                list.push(*number);
                save(txn, at(key), &list)?;
                Ok(u64::try_from(list.len()).unwrap())
            }
            ListCommand::Fill { key, bytes } => {
                txn.put(format!("F{key}"), vec![7; usize::try_from(*bytes).unwrap()]);
                Ok(0)
            }
            ListCommand::Pad { key, bytes } => {
                txn.put(format!("P{key}"), bytes.clone());
                Ok(0)
            }
            ListCommand::Pop { key } => {
                let mut list: Vec<u64> = load(txn, &at(key))?.unwrap_or_default();
                list.pop();
                save(txn, at(key), &list)?;
                Ok(u64::try_from(list.len()).unwrap())
            }
        }
    }

    fn format_of(command: &ListCommand) -> u8 {
        match command {
            ListCommand::Pop { .. } => 2,
            ListCommand::Push { .. } | ListCommand::Fill { .. } | ListCommand::Pad { .. } => 1,
        }
    }

    fn tidy(_: &mut KvTxn<'_>) -> Result<bool, KvError> {
        Ok(false)
    }

    fn query(store: &dyn KvRead, query: &String) -> Result<Vec<u64>, Fault<Twice>> {
        Ok(load(store, &at(query))?.unwrap_or_default())
    }

    fn remember(outcome: &u64) -> Result<Vec<u8>, KvError> {
        encode(outcome)
    }

    fn recall(_: &ListCommand, kept: &[u8]) -> Result<u64, KvError> {
        decode(kept)
    }
}
