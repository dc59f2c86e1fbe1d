//! The ABM: who and where (features §1.3 to §1.5, §2.2). It never touches a device or a group: what they must learn
//! goes into the outbox, and its next step happens when delivery is marked.

mod keys;
pub(crate) mod lifecycle;
mod namespaces;
mod osds;
mod outbox;
mod presets;
#[cfg(test)]
mod tests;

use alba_core::ids::{AlbaId, GroupId, NamespaceId};
use alba_core::kv::{KvError, KvRead};
use alba_core::manifest::Timestamp;
use alba_core::wire::rpc::abm::{
    AbmAnswer, AbmCommand, AbmError, AbmOutcome, AbmQuery, Destination, GroupRecord, Message, OsdMessage,
};
use alba_core::wire::rpc::nsm::NsmMessage;

use crate::model::{Fault, Model};
use crate::txn::{KvTxn, counter};
use crate::value::{damaged, decode, encode, load, save, scan_prefix};

pub(crate) use namespaces::{Readiness, readiness};
pub(crate) use osds::info as osd_info;

type Refused = Fault<AbmError>;

/// Longest record taken, in bytes: messages carry them, and values stay below 90 KiB.
const MAX_RECORD: usize = 32 << 10;

/// The ABM's model.
pub struct Abm;

impl Model for Abm {
    type Command = AbmCommand;
    type Outcome = AbmOutcome;
    type Error = AbmError;
    type Query = AbmQuery;
    type Answer = AbmAnswer;

    fn apply(txn: &mut KvTxn<'_>, now: Timestamp, command: &AbmCommand) -> Result<AbmOutcome, Refused> {
        match command {
            AbmCommand::Bootstrap { alba_id } => bootstrap(txn, alba_id),
            AbmCommand::AddGroup { id, servers } => add_group(txn, id, servers),
            AbmCommand::AddOsd(info) => osds::add(txn, info),
            AbmCommand::UpdateOsd(info) => osds::update(txn, info),
            AbmCommand::MarkClaimed { long_id } => osds::mark_claimed(txn, now, long_id),
            AbmCommand::CreatePreset { name, preset } => presets::create(txn, name, preset),
            AbmCommand::SetDefaultPreset { name } => presets::set_default(txn, name),
            AbmCommand::CreateNamespace { name, preset } => namespaces::create(txn, name, preset.as_ref()),
            AbmCommand::DeleteNamespace { name } => namespaces::delete(txn, name),
            AbmCommand::MarkDelivered { destination, upto } => {
                for message in outbox::take(txn, destination, *upto)? {
                    delivered(txn, destination, &message)?;
                }
                Ok(AbmOutcome::Done)
            }
        }
    }

    fn tidy(_: &mut KvTxn<'_>) -> Result<bool, KvError> {
        Ok(false)
    }

    fn query(store: &dyn KvRead, query: &AbmQuery) -> Result<AbmAnswer, Refused> {
        Ok(match query {
            AbmQuery::AlbaId => AbmAnswer::AlbaId(alba_id(store)?),
            AbmQuery::Osds { filter, range } => AbmAnswer::Osds(osds::list(store, *filter, range)?),
            AbmQuery::Osd(long_id) => AbmAnswer::Osd(load(store, &keys::osd(long_id))?),
            AbmQuery::Presets(range) => AbmAnswer::Presets(presets::list(store, range)?),
            AbmQuery::Preset(name) => AbmAnswer::Preset(presets::find(store, name)?),
            AbmQuery::Namespaces(range) => AbmAnswer::Namespaces(namespaces::list(store, range)?),
            AbmQuery::Namespace(name) => AbmAnswer::Namespace(load(store, &keys::namespace(name))?),
            AbmQuery::Groups => AbmAnswer::Groups(groups(store)?),
            AbmQuery::NamespaceOsds(id) => AbmAnswer::OsdIds(namespaces::delivered_osds(store, *id)?),
            AbmQuery::Messages { destination, max } => {
                let max = usize::try_from(*max).unwrap_or(usize::MAX).min(alba_core::range::PAGE_MAX);
                AbmAnswer::Messages(outbox::oldest(store, destination, max)?)
            }
            AbmQuery::Queues => AbmAnswer::Queues(outbox::queues(store)?),
        })
    }

    fn remember(outcome: &AbmOutcome) -> Result<Vec<u8>, KvError> {
        encode(outcome)
    }

    fn recall(_: &AbmCommand, kept: &[u8]) -> Result<AbmOutcome, KvError> {
        decode(kept)
    }
}

fn refuse<T>(error: AbmError) -> Result<T, Refused> {
    Err(Fault::Refused(error))
}

fn alba_id(store: &(impl KvRead + ?Sized)) -> Result<AlbaId, Refused> {
    match load(store, keys::ALBA_ID)? {
        Some(id) => Ok(id),
        None => refuse(AbmError::BadArgument("the backend has not been bootstrapped yet".to_owned())),
    }
}

fn bootstrap(txn: &mut KvTxn<'_>, alba_id: &AlbaId) -> Result<AbmOutcome, Refused> {
    if let Some(first) = load::<AlbaId>(txn, keys::ALBA_ID)? {
        return Ok(AbmOutcome::AlbaId(first));
    }
    save(txn, keys::ALBA_ID, alba_id)?;
    presets::bootstrap(txn)?;
    Ok(AbmOutcome::AlbaId(alba_id.clone()))
}

fn add_group(txn: &mut KvTxn<'_>, id: &GroupId, servers: &[String]) -> Result<AbmOutcome, Refused> {
    let value = encode(servers)?;
    if servers.is_empty() || value.len() > MAX_RECORD {
        return refuse(AbmError::BadArgument("a group needs servers, and not that many".to_owned()));
    }
    txn.put(keys::group(id), value);
    Ok(AbmOutcome::Done)
}

fn groups(store: &(impl KvRead + ?Sized)) -> Result<Vec<GroupRecord>, KvError> {
    let entries = scan_prefix(store, keys::GROUPS, usize::MAX)?;
    entries
        .into_iter()
        .map(|(key, value)| {
            let text = String::from_utf8(key.get(1..).unwrap_or_default().to_vec()).map_err(damaged)?;
            let id = GroupId::new(text).map_err(damaged)?;
            let namespaces = counter(store, &keys::group_load(&id))?;
            Ok(GroupRecord { id, servers: decode(&value)?, namespaces, lost: false })
        })
        .collect()
}

/// The next step after a message had its effect.
fn delivered(txn: &mut KvTxn<'_>, destination: &Destination, message: &Message) -> Result<(), Refused> {
    match (destination, message) {
        (_, Message::Nsm(NsmMessage::CreateNamespace { id, .. })) => namespaces::created(txn, *id),
        (_, Message::Nsm(NsmMessage::DeleteNamespace { id })) => namespaces::removed(txn, *id),
        (_, Message::Nsm(NsmMessage::LinkOsd { namespace, osd, .. })) => {
            namespaces::linked(txn, *namespace, *osd)
        }
        (Destination::Osd(osd), Message::Osd(OsdMessage::AddNamespace { id, .. })) => {
            namespaces::on_device(txn, *id, *osd)
        }
        // Nothing follows these.
        (
            _,
            Message::Nsm(
                NsmMessage::UnlinkOsd { .. }
                | NsmMessage::UpdatePreset { .. }
                | NsmMessage::UpdateOsd { .. }
                | NsmMessage::RecoverNamespace { .. }
                | NsmMessage::SetTrashed { .. }
                | NsmMessage::SetOsdUse { .. }
                | NsmMessage::SetInlineLimit { .. },
            )
            | Message::Osd(_),
        ) => Ok(()),
    }
}

/// The name of a namespace by its id, and with it its record.
fn record_of(
    store: &(impl KvRead + ?Sized),
    id: NamespaceId,
) -> Result<Option<alba_core::wire::rpc::abm::NamespaceRecord>, KvError> {
    match load(store, &keys::namespace_by_id(id))? {
        Some(name) => load(store, &keys::namespace(&name)),
        None => Ok(None),
    }
}
