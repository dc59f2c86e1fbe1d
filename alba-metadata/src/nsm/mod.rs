//! The NSM: which objects exist, and where their fragments are (features §2.6, §2.11, §2.12). It enforces the preset
//! on every write. An object exists exactly when its name is here; nothing else in the system may decide that.

mod access;
mod changes;
mod checks;
#[cfg(test)]
mod dropping_tests;
mod epochs;
pub mod export;
#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod golden;
mod indexes;
mod inline;
mod keys;
mod messages;
pub mod moving;
#[cfg(test)]
mod moving_tests;
mod objects;
mod query;
mod recount;
mod recovery;
mod reindex;
mod relocate;
mod sequence;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod tests;
mod update;

use std::collections::BTreeSet;

use alba_core::ids::{MessageId, NamespaceId, NamespaceName, ObjectId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::{Manifest, Timestamp};
use alba_core::preset::Preset;
use alba_core::wire::rpc::MAX_REQUEST;
use alba_core::wire::rpc::nsm::{
    NsmAnswer, NsmCommand, NsmError, NsmOutcome, NsmQuery, ObjectUpdate, Recovered,
};
use serde::{Deserialize, Serialize};

use crate::model::{FIRST_FORMAT, Fault, Model};
use crate::txn::KvTxn;
use crate::value::{damaged, decode, encode, load};

pub use recount::{Difference, recount, recount_group};
pub(crate) use recovery::{note_takers, to_note, waits_for_deletion, without_keys_to_delete};

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
        let outcome = execute(txn, now, command)?;
        for namespace in changed_by(command) {
            changes::note(txn, namespace)?;
        }
        let written = i64::try_from(txn.written()).map_err(damaged)?;
        if written > 0 {
            txn.add(keys::OPERATIONS, 1)?;
            txn.add(keys::WRITTEN, written)?;
        }
        Ok(outcome)
    }

    fn format_of(command: &NsmCommand) -> u8 {
        match command {
            NsmCommand::DeletingSequence { .. } => 2,
            NsmCommand::Deliver(_)
            | NsmCommand::Sequence { .. }
            | NsmCommand::AddLateFragments { .. }
            | NsmCommand::EnableGcEpoch { .. }
            | NsmCommand::DisableGcEpochs { .. }
            | NsmCommand::MarkKeysDeleted { .. }
            | NsmCommand::UpdateObject { .. }
            | NsmCommand::CleanupOsd { .. }
            | NsmCommand::UpdatePresets(_)
            | NsmCommand::RecoverObjects { .. }
            | NsmCommand::ResolveFinding { .. }
            | NsmCommand::FinishRecovery { .. }
            | NsmCommand::Move { .. } => FIRST_FORMAT,
        }
    }

    fn tidy(txn: &mut KvTxn<'_>) -> Result<bool, KvError> {
        Ok(messages::drop_some(txn)?
            || changes::forget_some(txn, messages::DROP_STEP)?
            || reindex::step(txn)?)
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
            NsmOutcome::Cleaned { more } => Kept::Cleaned(*more),
            NsmOutcome::Each(results) => Kept::Each(results.clone()),
            NsmOutcome::Recovered(results) => Kept::Recovered(results.clone()),
            NsmOutcome::StoredAndDeleted { stored, deleted } => {
                let stored = stored.iter().map(|manifest| manifest.timestamp).collect();
                Kept::StoredAndDeleted(stored, deleted.clone())
            }
        })
    }

    fn recall(command: &NsmCommand, kept: &[u8]) -> Result<NsmOutcome, KvError> {
        Ok(match (decode(kept)?, command) {
            (Kept::Done, _) => NsmOutcome::Done,
            (Kept::Updated(manifest), _) => NsmOutcome::Updated(manifest),
            (Kept::Cleaned(more), _) => NsmOutcome::Cleaned { more },
            (Kept::Each(results), _) => NsmOutcome::Each(results),
            (Kept::Recovered(results), _) => NsmOutcome::Recovered(results),
            // A retry may come as the other of the two kinds of sequences: the group has agreed on a format meanwhile, or its
            // new leader does not know yet that it had.
            (
                Kept::Stored(timestamps),
                NsmCommand::Sequence { updates, .. } | NsmCommand::DeletingSequence { updates, .. },
            ) => NsmOutcome::Stored(stored_of(updates, timestamps)),
            (
                Kept::StoredAndDeleted(timestamps, deleted),
                NsmCommand::Sequence { updates, .. } | NsmCommand::DeletingSequence { updates, .. },
            ) => NsmOutcome::StoredAndDeleted { stored: stored_of(updates, timestamps), deleted },
            // The id was used for another command: a client's fault, of which it hears nothing that it could take for an outcome.
            (Kept::Stored(_) | Kept::StoredAndDeleted(..), _) => NsmOutcome::Each(Vec::new()),
        })
    }
}

/// The stored manifests of a sequence: those of its puts with the time stamps that were remembered.
fn stored_of(updates: &[ObjectUpdate], timestamps: Vec<Timestamp>) -> Vec<Manifest> {
    let puts = updates.iter().filter_map(|update| match update {
        ObjectUpdate::Put { manifest, .. } | ObjectUpdate::PutInline { manifest, .. } => Some(manifest),
        ObjectUpdate::Delete { .. } => None,
    });
    let stamped = puts.zip(timestamps);
    stamped.map(|(manifest, timestamp)| Manifest { timestamp, ..Manifest::clone(manifest) }).collect()
}

fn execute(txn: &mut KvTxn<'_>, now: Timestamp, command: &NsmCommand) -> Result<NsmOutcome, Refused> {
    match command {
        NsmCommand::Deliver(messages) => messages::deliver(txn, messages),
        NsmCommand::Sequence { namespace, asserts, updates, epoch } => {
            let (stored, _) = sequence::apply(txn, now, *namespace, asserts, updates, *epoch)?;
            Ok(NsmOutcome::Stored(stored))
        }
        NsmCommand::DeletingSequence { namespace, asserts, updates, epoch } => {
            let (stored, deleted) = sequence::apply(txn, now, *namespace, asserts, updates, *epoch)?;
            Ok(NsmOutcome::StoredAndDeleted { stored, deleted })
        }
        NsmCommand::AddLateFragments { namespace, object, fragments, epoch } => {
            objects::add_late_fragments(txn, *namespace, object, fragments, *epoch)
        }
        NsmCommand::EnableGcEpoch { namespace, epoch } => epochs::enable(txn, *namespace, *epoch),
        NsmCommand::DisableGcEpochs { namespace, upto } => epochs::disable(txn, *namespace, *upto),
        NsmCommand::MarkKeysDeleted { namespace, osd, keys } => {
            objects::mark_deleted(txn, *namespace, *osd, keys)
        }
        NsmCommand::UpdateObject { namespace, object, version, fragments, epoch } => {
            update::apply(txn, *namespace, object, *version, fragments, *epoch)
        }
        NsmCommand::CleanupOsd { namespace, osd } => objects::clean_up_osd(txn, *namespace, *osd),
        NsmCommand::UpdatePresets(updates) => messages::update_presets(txn, updates),
        NsmCommand::RecoverObjects { namespace, objects } => recovery::recover(txn, *namespace, objects),
        NsmCommand::ResolveFinding { namespace, object, resolution } => {
            recovery::resolve(txn, *namespace, object, *resolution)
        }
        NsmCommand::FinishRecovery { namespace, epoch } => recovery::finish(txn, *namespace, *epoch),
        NsmCommand::Move { namespace, id, step } => relocate::apply(txn, now, *namespace, *id, step),
    }
}

/// The namespaces whose tables a command may have changed.
fn changed_by(command: &NsmCommand) -> BTreeSet<NamespaceId> {
    match command {
        NsmCommand::Deliver(messages) => {
            messages.iter().map(|(_, message)| messages::namespace_of(message)).collect()
        }
        // Presets are in the headers, which are handed over last.
        NsmCommand::UpdatePresets(_) => BTreeSet::new(),
        NsmCommand::Sequence { namespace, .. }
        | NsmCommand::DeletingSequence { namespace, .. }
        | NsmCommand::AddLateFragments { namespace, .. }
        | NsmCommand::EnableGcEpoch { namespace, .. }
        | NsmCommand::DisableGcEpochs { namespace, .. }
        | NsmCommand::MarkKeysDeleted { namespace, .. }
        | NsmCommand::UpdateObject { namespace, .. }
        | NsmCommand::CleanupOsd { namespace, .. }
        | NsmCommand::RecoverObjects { namespace, .. }
        | NsmCommand::ResolveFinding { namespace, .. }
        | NsmCommand::FinishRecovery { namespace, .. }
        | NsmCommand::Move { namespace, .. } => BTreeSet::from([*namespace]),
    }
}

/// What is remembered of an outcome.
#[derive(Serialize, Deserialize)]
enum Kept {
    Done,
    Stored(Vec<Timestamp>),
    Updated(Box<Manifest>),
    Cleaned(bool),
    Each(Vec<Result<(), NsmError>>),
    Recovered(Vec<Recovered>),
    StoredAndDeleted(Vec<Timestamp>, Vec<(u32, ObjectId)>),
}

fn refuse<T>(error: NsmError) -> Result<T, Refused> {
    Err(Fault::Refused(error))
}

/// The message that the group expects next.
pub(crate) fn next_message(store: &(impl KvRead + ?Sized)) -> Result<MessageId, KvError> {
    Ok(load(store, keys::NEXT_MESSAGE)?.unwrap_or(MessageId::from_u32(0)))
}

/// Longest command, in bytes.
const MAX_COMMAND: usize = MAX_REQUEST;
