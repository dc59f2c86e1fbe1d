//! Claims, made on the device itself (features §1.4, wire-protocol §5.1): three keys that only one backend can write.
//!
//! A device must never begin a second life with what is left of its first. It counts messages, and its namespaces have
//! markers: with the old counter it would take the first messages of its new life for repetitions, and hold fragments that
//! nothing knows of. Where anything of an earlier life is left it has to be wiped.

use alba_core::env::osd::{OsdAssert, OsdBatch, OsdUpdate, Priority};
use alba_core::env::{Deadline, Osd, OsdError};
use alba_core::ids::{AlbaId, LongId, text_or_hex};
use alba_core::osd_keys;
use alba_core::wire::rpc::abm::AbmError;
use bytes::Bytes;

use super::on_device::{OsdOnDevice, value};

/// Why a device is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// It is another backend's, or does not answer.
    No(AbmError),
    /// It is ours, and has heard messages: it is in use, as the ABM may say, or was before the ABM forgot it.
    Used(AbmError),
}

/// Writes the ownership keys; finding our own is as good, if nothing came after them. A device of another backend is refused
/// with its owner.
pub(super) async fn take(
    osd: &dyn Osd,
    long_id: &LongId,
    alba_id: &AlbaId,
    deadline: Deadline,
) -> Result<(), NotTaken> {
    let unreachable = |error: OsdError| {
        NotTaken::No(AbmError::OsdUnreachable { long_id: long_id.clone(), reason: error.to_string() })
    };
    let owner = Bytes::copy_from_slice(alba_id.as_str().as_bytes());
    let keys = [
        (osd_keys::next_instance(), osd_keys::NEXT_INSTANCE_VALUE),
        (osd_keys::instance_log(), owner.clone()),
        (osd_keys::instance_index(alba_id), osd_keys::INSTANCE_INDEX_VALUE),
    ];
    // What every device has that ever was told anything.
    let used = [osd_keys::next_message(), osd_keys::osd_record()];
    let asserts = keys.iter().map(|(key, _)| key).chain(&used).cloned().map(OsdAssert::Absent);
    let batch = OsdBatch {
        asserts: asserts.collect(),
        updates: keys.into_iter().map(|(key, bytes)| OsdUpdate::Set(key, value(bytes))).collect(),
    };
    match osd.apply(batch, Priority::High, deadline).await {
        Ok(()) => return Ok(()),
        Err(OsdError::AssertFailed(_)) => {}
        Err(error) => return Err(unreachable(error)),
    }
    let [next_message, record] = used;
    let asked = vec![osd_keys::instance_log(), next_message, record];
    let found = osd.multi_get(asked, Priority::High, deadline).await.map_err(unreachable)?;
    let mut found = found.into_iter().map(|found| found.map(|found| found.value));
    let (log, next, record) = (found.next().flatten(), found.next().flatten(), found.next().flatten());
    let claimed = |owner: String| NotTaken::No(AbmError::OsdClaimed { long_id: long_id.clone(), owner });
    match log {
        Some(log) if log == owner && next.is_none() && record.is_none() => Ok(()),
        Some(log) if log == owner => {
            let reason = earlier_life(record.as_deref());
            Err(NotTaken::Used(AbmError::OsdInfoMismatch { long_id: long_id.clone(), reason }))
        }
        Some(log) => Err(claimed(text_or_hex(&log))),
        // Some key of a backend is there and the owner's is not: not a device to write to.
        None => Err(claimed("an unknown backend".to_owned())),
    }
}

fn earlier_life(record: Option<&[u8]>) -> String {
    let id = record.and_then(|record| OsdOnDevice::decode(record).ok()).map(|record| record.osd_id);
    let was = id.map_or_else(|| "an OSD".to_owned(), |id| format!("OSD {id}"));
    format!(
        "it was {was} of this backend before and still holds what it had then, which nothing knows of any more: it was purged, or \
         the backend manager was restored from a backup that is older. After a purge wipe it: stop its asd-server, move its data \
         directory away, `asd-server format` a new one, then `alba add-osd` and `alba claim-osd` it under its new long id. \
         After a restore do not: `alba recover-abm` knows it again"
    )
}
