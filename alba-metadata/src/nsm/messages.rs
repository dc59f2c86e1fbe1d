//! Messages of the ABM: taking on and dropping namespaces, linking OSDs.

use alba_core::ids::{MessageId, NamespaceId};
use alba_core::kv::KvError;
use alba_core::wire::rpc::nsm::{NsmError, NsmMessage, NsmOutcome};

use super::keys::Table;
use super::{Header, Refused, epochs, keys, next_message, refuse};
use crate::txn::KvTxn;
use crate::value::{PRESENT, damaged, last_number, load, save, scan_prefix};

/// Keys dropped per step: a command never waits long for a namespace that goes.
const DROP_STEP: usize = 1000;

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

fn effect(txn: &mut KvTxn<'_>, message: &NsmMessage) -> Result<(), KvError> {
    match message {
        NsmMessage::CreateNamespace { id, name, preset, preset_version } => {
            let header = Header {
                name: name.clone(),
                preset: preset.as_ref().clone(),
                preset_version: *preset_version,
            };
            save(txn, keys::header(*id), &header)?;
            epochs::start(txn, *id)
        }
        NsmMessage::DeleteNamespace { id } => {
            // Gone for everyone now; its tables go in steps.
            txn.delete(keys::header(*id));
            txn.put(keys::dropped(*id), PRESENT);
            Ok(())
        }
        NsmMessage::LinkOsd { namespace, osd, info } => {
            if txn_has(txn, &keys::header(*namespace))? {
                save(txn, keys::of_osd(*namespace, Table::OsdInfos, *osd), info)?;
                txn.put(keys::of_osd(*namespace, Table::ActiveOsds, *osd), PRESENT);
            }
            Ok(())
        }
        NsmMessage::UnlinkOsd { namespace, osd } => {
            // The info stays: manifests still name the OSD.
            txn.delete(keys::of_osd(*namespace, Table::ActiveOsds, *osd));
            Ok(())
        }
        NsmMessage::UpdatePreset { namespace, preset, version } => {
            if let Some(header) = load::<Header>(txn, &keys::header(*namespace))?
                && header.preset_version < *version
            {
                let preset = preset.as_ref().clone();
                save(txn, keys::header(*namespace), &Header { preset, preset_version: *version, ..header })?;
            }
            Ok(())
        }
        NsmMessage::UpdateOsd { namespace, osd, info } => {
            let key = keys::of_osd(*namespace, Table::OsdInfos, *osd);
            if txn_has(txn, &key)? {
                save(txn, key, info)?;
            }
            Ok(())
        }
    }
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
