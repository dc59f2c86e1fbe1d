//! Messages to OSDs, and what they leave there (features §1.5, wire-protocol §5.3). The device keeps the number of the
//! next message and every batch asserts it: each message has its effect once, whoever delivers it how often.
//!
//! A message must cost the device one small batch, however much it holds: what takes longer belongs into the work queue.

use alba_core::checksum::Checksum;
use alba_core::env::osd::{OsdAssert, OsdBatch, OsdUpdate, Priority, StoredValue};
use alba_core::env::{Deadline, Osd, OsdError};
use alba_core::ids::{AlbaId, MessageId, OsdId, PresetName};
use alba_core::kv::KvError;
use alba_core::osd_keys;
use alba_core::preset::Preset;
use alba_core::wire::rpc::abm::OsdMessage;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::ages;
use crate::value::{decode, encode};

/// Kept on a claimed OSD so that a lost ABM can be rebuilt: `1 ‖ postcard` under [`osd_keys::osd_record`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsdOnDevice {
    /// Whose it is.
    pub alba_id: AlbaId,
    /// Its id there.
    pub osd_id: OsdId,
}

/// Kept on each OSD of a namespace, for the same: `1 ‖ postcard` under [`osd_keys::namespace_preset`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceOnDevice {
    /// The preset's name.
    pub preset_name: PresetName,
    /// The preset.
    pub preset: Preset,
}

impl OsdOnDevice {
    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<Self, KvError> {
        decode(bytes)
    }
}

impl NamespaceOnDevice {
    /// Reads the stored form.
    pub fn decode(bytes: &[u8]) -> Result<Self, KvError> {
        decode(bytes)
    }
}

/// Why a message did not have its effect (yet).
#[derive(Debug, Error)]
pub(super) enum DeliveryError {
    /// The device.
    #[error(transparent)]
    Osd(#[from] OsdError),
    /// Earlier messages are missing there: it was wiped or belongs to another backend.
    #[error("the OSD expects message {expected}; {message} is too far off")]
    TooFarOff {
        /// What it waits for.
        expected: MessageId,
        /// What there is.
        message: MessageId,
    },
    /// The ABM is older than the device.
    #[error("{0}")]
    Misfit(String),
    /// What the device keeps does not decode.
    #[error("the OSD holds {0}")]
    Damaged(String),
}

impl DeliveryError {
    /// Is it the device's word on this message, and not trouble with the device?
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            // Of the counter: someone else delivered at the same time, and the next attempt finds what.
            Self::Osd(OsdError::AssertFailed(key)) => *key != osd_keys::next_message(),
            Self::Osd(OsdError::BadRequest(_)) => true,
            Self::Osd(_) | Self::TooFarOff { .. } | Self::Misfit(_) | Self::Damaged(_) => false,
        }
    }
}

/// A small value of ours: no checksum, so that it can be asserted.
pub(super) fn value(bytes: impl Into<Bytes>) -> StoredValue {
    StoredValue { value: bytes.into(), checksum: Checksum::None }
}

/// Gives one message its effect, once; without a message only the device's counter moves on. `next_sent`: the number that no
/// message has yet; read before the device is asked, and messages are delivered by one at a time.
pub(super) async fn deliver(
    osd: &dyn Osd,
    alba_id: &AlbaId,
    id: MessageId,
    message: Option<&OsdMessage>,
    next_sent: MessageId,
    deadline: Deadline,
) -> Result<(), DeliveryError> {
    let next_key = osd_keys::next_message();
    let found = osd.multi_get(vec![next_key.clone()], Priority::High, deadline).await?;
    let found = found.into_iter().flatten().next();
    let (expected, unchanged) = match found {
        None => (MessageId::from_u32(0), OsdAssert::Absent(next_key.clone())),
        Some(found) => {
            let expected = osd_keys::parse_message_id(&found.value);
            let expected = expected.map_err(|error| DeliveryError::Damaged(error.to_string()))?;
            (expected, OsdAssert::Value(next_key.clone(), found.value))
        }
    };
    if let Some(misfit) = ages::misfit("the OSD", id, next_sent, expected).filter(|_| expected > next_sent) {
        return Err(DeliveryError::Misfit(misfit));
    }
    if expected > id {
        // It had its effect before; only the news of it was lost.
        return Ok(());
    }
    if expected < id {
        return Err(DeliveryError::TooFarOff { expected, message: id });
    }
    let next = id.next().ok_or_else(|| DeliveryError::Damaged("the last message".to_owned()))?;
    let advance = OsdUpdate::Set(next_key, value(osd_keys::message_id_value(next)));
    let mut batch = OsdBatch { asserts: vec![unchanged], updates: vec![advance] };
    match message {
        None => {}
        Some(OsdMessage::Identify { osd_id }) => {
            let record = OsdOnDevice { alba_id: alba_id.clone(), osd_id: *osd_id };
            batch.updates.push(OsdUpdate::Set(osd_keys::osd_record(), value(encoded(&record)?)));
        }
        Some(OsdMessage::AddNamespace { id, name, preset_name, preset }) => {
            let marker = osd_keys::namespace_marker(*id);
            let record =
                NamespaceOnDevice { preset_name: preset_name.clone(), preset: preset.as_ref().clone() };
            batch.asserts.push(OsdAssert::Absent(marker.clone()));
            let set = |key, bytes: Bytes| OsdUpdate::Set(key, value(bytes));
            batch.updates.push(set(marker, osd_keys::NAMESPACE_ACTIVE));
            batch.updates.push(set(osd_keys::namespace_name(*id), Bytes::copy_from_slice(name.as_bytes())));
            batch.updates.push(set(osd_keys::namespace_preset(*id), encoded(&record)?));
        }
        Some(OsdMessage::RemoveNamespace { id }) => {
            // Every write to the namespace asserts the marker, so what is there from now on can only shrink. All the rest may be
            // millions of keys: an item of the work queue, made when this message is marked delivered, has it deleted, and no
            // message waits for that. The marker goes in the batch that counts the message: never one without the other.
            batch.updates.push(OsdUpdate::Delete(osd_keys::namespace_marker(*id)));
        }
    }
    osd.apply(batch, Priority::High, deadline).await?;
    Ok(())
}

fn encoded<T: Serialize>(record: &T) -> Result<Bytes, DeliveryError> {
    encode(record).map(Bytes::from).map_err(|error| DeliveryError::Damaged(error.to_string()))
}
