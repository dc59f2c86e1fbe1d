//! Messages of the ABM: taking on and dropping namespaces, linking OSDs.

use alba_core::ids::{MessageId, NamespaceId, NamespaceName, OsdId};
use alba_core::kv::KvError;
use alba_core::preset::Preset;
use alba_core::wire::rpc::abm::OsdInfo;
use alba_core::wire::rpc::nsm::{Lifecycle, NsmError, NsmMessage, NsmOutcome, OsdUse, PresetUpdate};

use super::access::{self, Moving, Outgoing, State, Want};
use super::keys::Table;
use super::{Header, Refused, epochs, keys, next_message, refuse, reindex};
use crate::model::Fault;
use crate::txn::KvTxn;
use crate::value::{PRESENT, damaged, last_number, load, save, scan_prefix};

/// Keys dropped per step: a command never waits long for a namespace that goes.
pub(super) const DROP_STEP: usize = 1000;

/// Applies messages in order; those already seen are skipped, a gap is refused.
pub(super) fn deliver(
    txn: &mut KvTxn<'_>,
    messages: &[(MessageId, NsmMessage)],
) -> Result<NsmOutcome, Refused> {
    let mut next = next_message(txn)?;
    for (id, message) in messages {
        if *id < next {
            continue;
        }
        if *id > next {
            return refuse(NsmError::Unknown(format!("message {id} came where {next} is expected")));
        }
        effect(txn, message)?;
        next = next.next().ok_or_else(|| damaged("message ids are used up"))?;
    }
    save(txn, keys::NEXT_MESSAGE, &next)?;
    Ok(NsmOutcome::Done)
}

/// The namespace that a message is about.
pub(super) fn namespace_of(message: &NsmMessage) -> NamespaceId {
    match message {
        NsmMessage::CreateNamespace { id, .. }
        | NsmMessage::DeleteNamespace { id }
        | NsmMessage::RecoverNamespace { id, .. } => *id,
        NsmMessage::LinkOsd { namespace, .. }
        | NsmMessage::UnlinkOsd { namespace, .. }
        | NsmMessage::UpdatePreset { namespace, .. }
        | NsmMessage::UpdateOsd { namespace, .. }
        | NsmMessage::SetTrashed { namespace, .. }
        | NsmMessage::SetOsdUse { namespace, .. } => *namespace,
    }
}

/// A message about a namespace that is not here, not yet or not any more, has no effect: to refuse it would hold up all
/// that come after it.
fn effect(txn: &mut KvTxn<'_>, message: &NsmMessage) -> Result<(), Refused> {
    match message {
        NsmMessage::CreateNamespace { id, name, preset, preset_version } => {
            create(txn, *id, name, preset, *preset_version, Lifecycle::Active)?;
        }
        NsmMessage::RecoverNamespace { id, name, preset, preset_version } => {
            create(txn, *id, name, preset, *preset_version, Lifecycle::Recovering)?;
        }
        NsmMessage::DeleteNamespace { id } => delete(txn, *id)?,
        _ if !access::takes_messages(txn, namespace_of(message))? => {}
        NsmMessage::LinkOsd { namespace, osd, info } => {
            place(txn, *namespace, *osd, info)?;
            set_use(txn, *namespace, *osd, OsdUse::Active)?;
        }
        // The info stays: manifests still name the OSD.
        NsmMessage::UnlinkOsd { namespace, osd } => set_use(txn, *namespace, *osd, OsdUse::Unlinked)?,
        NsmMessage::UpdatePreset { namespace, preset, version } => {
            if let Some(header) = load::<Header>(txn, &keys::header(*namespace))? {
                update_preset(txn, *namespace, header, preset, *version)?;
            }
        }
        NsmMessage::UpdateOsd { namespace, osd, info } => {
            if txn_has(txn, &keys::of_osd(*namespace, Table::OsdInfos, *osd))? {
                place(txn, *namespace, *osd, info)?;
            }
        }
        NsmMessage::SetTrashed { namespace, trashed } => {
            let mut state = access::state(txn, *namespace)?;
            state.trashed = *trashed;
            access::save_state(txn, *namespace, &state)?;
        }
        NsmMessage::SetOsdUse { namespace, osd, how } => {
            if txn_has(txn, &keys::of_osd(*namespace, Table::OsdInfos, *osd))? {
                set_use(txn, *namespace, *osd, *how)?;
            }
        }
    }
    Ok(())
}

/// Gone for everyone now; its tables go in steps.
fn delete(txn: &mut KvTxn<'_>, id: NamespaceId) -> Result<(), KvError> {
    let here = txn_has(txn, &keys::header(id))?;
    txn.delete(keys::header(id));
    txn.put(keys::dropped(id), PRESENT);
    // A copy that was moved away: a late step of that move must have no effect here either.
    match access::state(txn, id)? {
        State { moving: Some(Moving::Outgoing(Outgoing { id: moved, .. })), .. } => {
            access::save_state(txn, id, &State { ended: moved, ..State::default() })
        }
        state if !here => access::save_state(txn, id, &State { ended: state.ended, ..State::default() }),
        _ => {
            txn.delete(keys::state(id));
            Ok(())
        }
    }
}

fn create(
    txn: &mut KvTxn<'_>,
    id: NamespaceId,
    name: &NamespaceName,
    preset: &Preset,
    preset_version: u32,
    lifecycle: Lifecycle,
) -> Result<(), Refused> {
    let mut state = access::state(txn, id)?;
    // Ids are never used twice; a namespace that is here already is not to lose its epochs.
    if state.moving.is_some() || txn_has(txn, &keys::header(id))? {
        return Ok(());
    }
    // It comes back to where it was before. Else the new copy would begin with rows of the old one, and the steps that drop
    // those would go on with what was recovered. Trouble and no refusal: the message comes again, and this takes some seconds.
    if txn_has(txn, &keys::dropped(id))? {
        let text = format!("what was here of namespace {name} ({id}) before is still being dropped");
        return refuse(NsmError::Unknown(text));
    }
    state.lifecycle = lifecycle;
    access::save_state(txn, id, &state)?;
    save(txn, keys::header(id), &Header { name: name.clone(), preset: preset.clone(), preset_version })?;
    epochs::start(txn, id).map_err(Into::into)
}

fn set_use(txn: &mut KvTxn<'_>, namespace: NamespaceId, osd: OsdId, how: OsdUse) -> Result<(), KvError> {
    let active = keys::of_osd(namespace, Table::ActiveOsds, osd);
    let draining = keys::of_osd(namespace, Table::DrainingOsds, osd);
    txn.delete(active.clone());
    txn.delete(draining.clone());
    match how {
        OsdUse::Active => txn.put(active, PRESENT),
        OsdUse::Draining => txn.put(draining, PRESENT),
        OsdUse::Unlinked => {}
    }
    Ok(())
}

/// Where an OSD is. On another node than before, its objects belong in other buckets.
fn place(txn: &mut KvTxn<'_>, namespace: NamespaceId, osd: OsdId, info: &OsdInfo) -> Result<(), KvError> {
    let key = keys::of_osd(namespace, Table::OsdInfos, osd);
    let old: Option<OsdInfo> = load(txn, &key)?;
    if old.is_some_and(|old| old.place.node() != info.place.node()) {
        reindex::begin(txn, namespace, osd)?;
    }
    save(txn, key, info)
}

fn update_preset(
    txn: &mut KvTxn<'_>,
    namespace: NamespaceId,
    header: Header,
    preset: &Preset,
    version: u32,
) -> Result<(), KvError> {
    if header.preset_version >= version {
        return Ok(());
    }
    let header = Header { preset: preset.clone(), preset_version: version, ..header };
    save(txn, keys::header(namespace), &header)
}

/// Presets of many namespaces; each succeeds or fails on its own.
pub(super) fn update_presets(txn: &mut KvTxn<'_>, updates: &[PresetUpdate]) -> Result<NsmOutcome, Refused> {
    let mut results = Vec::with_capacity(updates.len());
    for PresetUpdate { namespace, preset, version } in updates {
        results.push(match access::admit(txn, *namespace, Want::Look) {
            Ok((header, _)) => Ok(update_preset(txn, *namespace, header, preset, *version)?),
            Err(Fault::Refused(error)) => Err(error),
            Err(fault) => return Err(fault),
        });
    }
    Ok(NsmOutcome::Each(results))
}

fn txn_has(txn: &KvTxn<'_>, key: &[u8]) -> Result<bool, KvError> {
    Ok(alba_core::kv::KvRead::get(txn, key)?.is_some())
}

/// Drops some of the tables of a deleted namespace; true when there is more to drop.
pub(super) fn drop_some(txn: &mut KvTxn<'_>) -> Result<bool, KvError> {
    let marked = scan_prefix(txn, keys::DROPPED, 1)?;
    let Some((marker, _)) = marked.into_iter().next() else { return Ok(false) };
    let namespace = NamespaceId::new(last_number(&marker)?).map_err(damaged)?;
    let found = scan_prefix(txn, &keys::all_of(namespace), DROP_STEP)?;
    if found.len() < DROP_STEP {
        txn.delete(marker);
    }
    for (key, _) in found {
        txn.delete(key);
    }
    Ok(true)
}
