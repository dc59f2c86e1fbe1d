//! The NSM: which objects exist, and where their fragments are (features §2.6, §2.11, §2.12). It enforces the preset
//! on every write. An object exists exactly when its name is here; nothing else in the system may decide that.

mod checks;
mod epochs;
#[cfg(test)]
pub(crate) mod fixtures;
mod indexes;
mod keys;
mod messages;
mod objects;
mod query;
mod recount;
mod sequence;
#[cfg(test)]
mod tests;

use alba_core::ids::{MessageId, NamespaceId, NamespaceName};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::{Manifest, Timestamp};
use alba_core::preset::Preset;
use alba_core::wire::rpc::MAX_REQUEST;
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmCommand, NsmError, NsmOutcome, NsmQuery, ObjectUpdate};
use serde::{Deserialize, Serialize};

use crate::model::{Fault, Model};
use crate::txn::KvTxn;
use crate::value::{damaged, decode, encode, load};

pub use recount::{Difference, recount};

type Refused = Fault<NsmError>;

/// A namespace's header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    name: NamespaceName,
    preset: Preset,
    preset_version: u32,
}

/// The model of an NSM group.
pub struct Nsm;

impl Model for Nsm {
    type Command = NsmCommand;
    type Outcome = NsmOutcome;
    type Error = NsmError;
    type Query = NsmQuery;
    type Answer = NsmAnswer;

    fn apply(txn: &mut KvTxn<'_>, now: Timestamp, command: &NsmCommand) -> Result<NsmOutcome, Refused> {
        match command {
            NsmCommand::Deliver(messages) => messages::deliver(txn, messages),
            NsmCommand::Sequence { namespace, asserts, updates, epoch } => {
                sequence::apply(txn, now, *namespace, asserts, updates, *epoch)
            }
            NsmCommand::AddLateFragments { namespace, object, fragments, epoch } => {
                objects::add_late_fragments(txn, *namespace, object, fragments, *epoch)
            }
            NsmCommand::EnableGcEpoch { namespace, epoch } => epochs::enable(txn, *namespace, *epoch),
            NsmCommand::DisableGcEpochs { namespace, upto } => epochs::disable(txn, *namespace, *upto),
            NsmCommand::MarkKeysDeleted { namespace, osd, keys } => {
                owned(txn, *namespace)?;
                for key in keys {
                    txn.delete(keys::to_delete(*namespace, *osd, key));
                }
                Ok(NsmOutcome::Done)
            }
        }
    }

    fn tidy(txn: &mut KvTxn<'_>) -> Result<bool, KvError> {
        messages::drop_some(txn)
    }

    fn query(store: &dyn KvRead, query: &NsmQuery) -> Result<NsmAnswer, Refused> {
        query::answer(store, query)
    }

    fn remember(outcome: &NsmOutcome) -> Result<Vec<u8>, KvError> {
        encode(&match outcome {
            NsmOutcome::Done => Kept::Done,
            // Everything else of a stored manifest is in the command that a retry brings along.
            NsmOutcome::Stored(manifests) => {
                Kept::Stored(manifests.iter().map(|manifest| manifest.timestamp).collect())
            }
            NsmOutcome::Updated(manifest) => Kept::Updated(manifest.clone()),
        })
    }

    fn recall(command: &NsmCommand, kept: &[u8]) -> Result<NsmOutcome, KvError> {
        Ok(match (decode(kept)?, command) {
            (Kept::Done, _) => NsmOutcome::Done,
            (Kept::Updated(manifest), _) => NsmOutcome::Updated(manifest),
            (Kept::Stored(timestamps), NsmCommand::Sequence { updates, .. }) => {
                let puts = updates.iter().filter_map(|update| match update {
                    ObjectUpdate::Put { manifest, .. } => Some(manifest),
                    ObjectUpdate::Delete { .. } => None,
                });
                let stored = puts
                    .zip(timestamps)
                    .map(|(manifest, timestamp)| Manifest { timestamp, ..Manifest::clone(manifest) });
                NsmOutcome::Stored(stored.collect())
            }
            (Kept::Stored(_), _) => return Err(damaged("a request id of another command")),
        })
    }
}

/// What is remembered of an outcome.
#[derive(Serialize, Deserialize)]
enum Kept {
    Done,
    Stored(Vec<Timestamp>),
    Updated(Box<Manifest>),
}

fn refuse<T>(error: NsmError) -> Result<T, Refused> {
    Err(Fault::Refused(error))
}

/// The header of a namespace that this group owns.
fn owned(store: &(impl KvRead + ?Sized), namespace: NamespaceId) -> Result<Header, Refused> {
    match load(store, &keys::header(namespace))? {
        Some(header) => Ok(header),
        None => refuse(NsmError::NamespaceMoved(namespace)),
    }
}

/// The message that the group expects next.
pub(crate) fn next_message(store: &(impl KvRead + ?Sized)) -> Result<MessageId, KvError> {
    Ok(load(store, keys::NEXT_MESSAGE)?.unwrap_or(MessageId::from_u32(0)))
}

/// Longest command, in bytes.
const MAX_COMMAND: usize = MAX_REQUEST;
