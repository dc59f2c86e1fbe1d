//! Small objects into the metadata (architecture §5): packed like a fragment, committed with their manifest, nothing on OSDs.

use alba_core::checksum::Checksum;
use alba_core::fragment::{Cipher, pack};
use alba_core::ids::{ObjectId, ObjectName, ObjectVersion};
use alba_core::manifest::{CodingMatrix, EncryptInfo, Manifest, Scheme, Timestamp};
use alba_core::policy::CodeShape;
use alba_core::wire::rpc::nsm::{InlineValue, MAX_INLINE};

use super::checksum::ChecksumRule;
use super::object::{Attempt, counter};
use crate::{ClientError, ObjectSource};

/// An object that is complete, and stored nowhere yet.
pub(super) struct Small {
    pub(super) manifest: Manifest,
    pub(super) value: InlineValue,
}

/// Packs an object for the metadata; none when it has to be stored as fragments.
pub(super) async fn pack_object(
    attempt: &Attempt,
    name: &ObjectName,
    source: &mut dyn ObjectSource,
    checksum: Option<Checksum>,
) -> Result<Option<Small>, ClientError> {
    let preset = &attempt.info.preset;
    let size = source.size();
    if !attempt.inline || size > u64::from(preset.inline_limit) {
        return Ok(None);
    }
    let internal = |reason: String| ClientError::Internal(format!("packing {name}: {reason}"));
    let mut rule = ChecksumRule::new(&preset.object_checksum, checksum)?;
    let len = usize::try_from(size).map_err(|error| internal(error.to_string()))?;
    let plain = source.read_padded(0, len, len).await.map_err(|error| ClientError::source(&error))?;
    rule.add(&plain);
    let checksum = rule.finish(name)?;
    let counter = counter(&attempt.engine);
    let now = Timestamp(attempt.engine.env.clock.wall_micros());
    let cipher = attempt.key.as_ref().map(|key| Cipher { key, counter });
    let packed = pack(&plain, preset.compression, cipher, preset.fragment_checksum, now)
        .map_err(|error| internal(error.to_string()))?;
    if packed.bytes.len() > MAX_INLINE {
        // It grew.
        return Ok(None);
    }
    let manifest = Manifest {
        name: name.clone(),
        object_id: ObjectId::new(attempt.engine.env.rng.bytes32()),
        size,
        checksum,
        scheme: Scheme {
            shape: CodeShape::new(1, 0).map_err(|error| internal(error.to_string()))?,
            matrix: CodingMatrix::VandermondeSystematic,
            compression: preset.compression,
        },
        encryption: EncryptInfo::from(&preset.fragment_encryption),
        chunks: Vec::new(),
        version: ObjectVersion(0),
        max_disks_per_node: 0,
        timestamp: Timestamp::default(),
    };
    let value = InlineValue { packed: packed.bytes.to_vec(), checksum: packed.checksum, ctr: packed.ctr };
    Ok(Some(Small { manifest, value }))
}
