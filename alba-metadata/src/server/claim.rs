//! Claims, made on the device itself (features §1.4, wire-protocol §5.1): three keys that only one backend can write.

use alba_core::env::osd::{OsdAssert, OsdBatch, OsdUpdate, Priority};
use alba_core::env::{Deadline, Osd, OsdError};
use alba_core::ids::{AlbaId, LongId, text_or_hex};
use alba_core::osd_keys;
use alba_core::wire::rpc::abm::AbmError;
use bytes::Bytes;

use super::on_device::value;

/// Writes the ownership keys; finding our own is as good. A device of another backend is refused with its owner.
pub(super) async fn take(
    osd: &dyn Osd,
    long_id: &LongId,
    alba_id: &AlbaId,
    deadline: Deadline,
) -> Result<(), AbmError> {
    let unreachable =
        |error: OsdError| AbmError::OsdUnreachable { long_id: long_id.clone(), reason: error.to_string() };
    let owner = Bytes::copy_from_slice(alba_id.as_str().as_bytes());
    let keys = [
        (osd_keys::next_instance(), osd_keys::NEXT_INSTANCE_VALUE),
        (osd_keys::instance_log(), owner.clone()),
        (osd_keys::instance_index(alba_id), osd_keys::INSTANCE_INDEX_VALUE),
    ];
    let batch = OsdBatch {
        asserts: keys.iter().map(|(key, _)| OsdAssert::Absent(key.clone())).collect(),
        updates: keys.into_iter().map(|(key, bytes)| OsdUpdate::Set(key, value(bytes))).collect(),
    };
    match osd.apply(batch, Priority::High, deadline).await {
        Ok(()) => return Ok(()),
        Err(OsdError::AssertFailed(_)) => {}
        Err(error) => return Err(unreachable(error)),
    }
    let found = osd.multi_get(vec![osd_keys::instance_log()], Priority::High, deadline).await;
    match found.map_err(unreachable)?.into_iter().flatten().next() {
        Some(found) if found.value == owner => Ok(()),
        Some(found) => {
            let owner = text_or_hex(&found.value);
            Err(AbmError::OsdClaimed { long_id: long_id.clone(), owner })
        }
        // Some ownership key is there and the owner's is not: not a device to write to.
        None => {
            Err(AbmError::OsdClaimed { long_id: long_id.clone(), owner: "an unknown backend".to_owned() })
        }
    }
}
