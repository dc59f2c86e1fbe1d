//! What an OSD tells of its backend: whose it is, its id there, and the namespaces that it accepts.

use std::collections::BTreeMap;
use std::time::Duration;

use alba_core::env::osd::Priority;
use alba_core::env::{Env, Osd, OsdError};
use alba_core::ids::{AlbaId, MessageId, NamespaceId, NamespaceName, OsdId, PresetName};
use alba_core::osd_keys::{self, Parsed};
use alba_core::range::{RangeQuery, next_prefix};
use alba_metadata::server::{NamespaceOnDevice, OsdOnDevice};

use crate::error::CliError;

/// For one question.
const CALL: Duration = Duration::from_secs(10);

/// A namespace as a device tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OnDevice {
    pub(super) name: Option<NamespaceName>,
    pub(super) preset: Option<PresetName>,
    /// Does it take fragments of it? Where not, the namespace was deleted, and what is left there has to go.
    pub(super) marked: bool,
}

/// What a device says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    /// Whose it is; none: nobody's.
    pub(super) owner: Option<AlbaId>,
    /// Its id there, if it was told.
    pub(super) id: Option<OsdId>,
    pub(super) next_message: MessageId,
    pub(super) namespaces: BTreeMap<NamespaceId, OnDevice>,
}

/// Asks a device.
pub(super) async fn ask(env: &Env, osd: &dyn Osd) -> Result<Told, CliError> {
    let keys = vec![osd_keys::instance_log(), osd_keys::osd_record(), osd_keys::next_message()];
    let values = osd.multi_get(keys, Priority::Low, env.deadline_in(CALL)).await?;
    let mut values = values.into_iter().map(|value| value.map(|value| value.value));
    let (owner, record, next) = (values.next().flatten(), values.next().flatten(), values.next().flatten());
    let strange = |what: &str| CliError::failure(format!("it holds {what} that this version cannot read"));
    let owner = owner
        .map(|owner| {
            let text = String::from_utf8(owner.to_vec()).map_err(|_| strange("an owner"))?;
            AlbaId::new(text).map_err(|_| strange("an owner"))
        })
        .transpose()?;
    let record = record.map(|record| OsdOnDevice::decode(&record)).transpose();
    let record = record.map_err(|_| strange("a record of its own"))?;
    let next = next.map(|next| osd_keys::parse_message_id(&next)).transpose();
    let next_message = next.map_err(|_| strange("a message number"))?.unwrap_or(MessageId::from_u32(0));
    let mut told =
        Told { owner, id: record.map(|record| record.osd_id), next_message, namespaces: BTreeMap::new() };
    for id in namespaces(env, osd).await? {
        told.namespaces.insert(id, namespace(env, osd, id).await?);
    }
    Ok(told)
}

/// The namespaces of which a device has any key, without reading what lies in them: from the first key of one it goes on
/// behind its last.
async fn namespaces(env: &Env, osd: &dyn Osd) -> Result<Vec<NamespaceId>, OsdError> {
    let mut prefix = osd_keys::instance().to_vec();
    prefix.push(b'n');
    let last = next_prefix(&prefix).map(|end| (end, false));
    let mut range = RangeQuery { first: prefix, last, max: 1, ..RangeQuery::all() };
    let mut found = Vec::new();
    loop {
        let page = osd.range(range.clone(), Priority::Low, env.deadline_in(CALL)).await?;
        let Some(key) = page.items.first() else { return Ok(found) };
        let Some(id) = namespace_of(key) else {
            // None of ours: on to the next key.
            range = range.after(key);
            continue;
        };
        found.push(id);
        match next_prefix(&osd_keys::namespace_marker(id)) {
            Some(behind) => {
                range.first = behind;
                range.first_included = true;
            }
            None => return Ok(found),
        }
    }
}

fn namespace_of(key: &[u8]) -> Option<NamespaceId> {
    match osd_keys::parse(key).ok()? {
        Parsed::NamespaceMarker(id)
        | Parsed::NamespaceName(id)
        | Parsed::NamespacePreset(id)
        | Parsed::Fragment(id, _)
        | Parsed::RecoveryInfo(id, _)
        | Parsed::GcTag(id, _, _)
        | Parsed::DeletionNote(id, _) => Some(id),
        Parsed::Other => None,
    }
}

async fn namespace(env: &Env, osd: &dyn Osd, id: NamespaceId) -> Result<OnDevice, OsdError> {
    let keys =
        vec![osd_keys::namespace_name(id), osd_keys::namespace_preset(id), osd_keys::namespace_marker(id)];
    let values = osd.multi_get(keys, Priority::Low, env.deadline_in(CALL)).await?;
    let mut values = values.into_iter().map(|value| value.map(|value| value.value));
    let (name, preset, marker) = (values.next().flatten(), values.next().flatten(), values.next().flatten());
    // What does not decode is not known: another device may know it.
    Ok(OnDevice {
        name: name.and_then(|name| NamespaceName::new(name.to_vec()).ok()),
        preset: preset.and_then(|preset| Some(NamespaceOnDevice::decode(&preset).ok()?.preset_name)),
        marked: marker.is_some(),
    })
}
