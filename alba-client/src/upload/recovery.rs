//! What is kept beside each fragment so that a lost namespace can be rebuilt.

use alba_core::checksum::Checksum;
use alba_core::fragment::Packed;
use alba_core::ids::ObjectName;
use alba_core::manifest::{Scheme, Timestamp};
use alba_core::wire::recovery::{RecoveryInfo, RecoveryMatrix, RecoveryObject, RecoveryScheme};

/// The recovery info of a chunk's fragments.
pub(super) fn of_chunk(
    name: &ObjectName,
    chunk_size: u32,
    fragments: &[Packed],
    object: Option<RecoveryObject>,
) -> RecoveryInfo {
    RecoveryInfo {
        name: name.clone(),
        chunk_size,
        fragments: fragments.iter().map(|packed| (packed.len, packed.checksum)).collect(),
        object,
        ctr: None,
    }
}

/// What the recovery info of the last chunk says of the object.
pub(crate) fn of_object(
    scheme: &Scheme,
    size: u64,
    checksum: Checksum,
    timestamp: Timestamp,
) -> RecoveryObject {
    let (k, m) = scheme.shape.as_u8();
    RecoveryObject {
        scheme: RecoveryScheme {
            k: u32::from(k),
            m: u32::from(m),
            matrix: RecoveryMatrix::Ours(scheme.matrix),
            compression: scheme.compression,
        },
        size,
        checksum,
        timestamp: timestamp.to_seconds(),
    }
}
