//! ApplySequence: several changes of a namespace in one atomic step (wire-protocol §2.6).

use alba_client::{BytesSource, ObjectSource, SequenceUpdate, StoredObject};
use alba_core::ids::{NamespaceName, ObjectId};
use alba_core::wire::llio::{Reader, WireError};
use alba_core::wire::proxy::{Assert, Update};
use alba_core::wire::rpc::nsm::ObjectAssert;
use bytes::Bytes;

use crate::handler::object_name;
use crate::objects::{namespace_must_exist, open_input};
use crate::refusal::Refusal;
use crate::server::Shared;

/// Asserts, and updates, of one request. Decoded they take much more memory than the 5 bytes that the shortest of
/// them has on the wire, and the namespace's group takes no commands above 1 MiB anyway.
const MAX_STEPS: u32 = 16_384;

/// Files of one request, all open at once.
const MAX_FILES: usize = 256;

/// Counts before anything is decoded: a frame may be hundreds of megabytes long.
pub(crate) fn check_counts(frame: &Bytes) -> Result<(), Refusal> {
    let count = |r: &mut Reader, what: &str| match r.uint32() {
        Ok(count) if count > MAX_STEPS => {
            let text = format!("{count} {what} in one request; at most {MAX_STEPS} are accepted");
            Err(Refusal::unknown(text))
        }
        Ok(count) => Ok(count),
        Err(error) => Err(error.into()),
    };
    let r = &mut Reader::new(frame.clone());
    r.uint32()?;
    r.bytes()?;
    r.bool()?;
    for _ in 0..count(r, "asserts")? {
        skip_assert(r)?;
    }
    count(r, "updates").map(drop)
}

fn skip_assert(r: &mut Reader) -> Result<(), WireError> {
    let tag = r.int8()?;
    r.bytes()?;
    match tag {
        3 => r.bytes().map(drop),
        4 => alba_core::wire::common::read_checksum(r).map(drop),
        _ => Ok(()),
    }
}

/// 24. Returns the manifests of all uploads, and how many bytes they have.
pub(crate) async fn apply(
    shared: &Shared,
    namespace: &NamespaceName,
    asserts: Vec<Assert>,
    updates: Vec<Update>,
) -> Result<(Vec<StoredObject>, u64), Refusal> {
    let mut conditions = Vec::with_capacity(asserts.len());
    for assert in asserts {
        conditions.push(match assert {
            Assert::ObjectExists(name) => ObjectAssert::Exists(object_name(&name)?),
            Assert::ObjectDoesNotExist(name) => ObjectAssert::DoesNotExist(object_name(&name)?),
            Assert::ObjectHasChecksum(name, checksum) => {
                ObjectAssert::HasChecksum(object_name(&name)?, checksum)
            }
            Assert::ObjectHasId(name, id) => {
                let name = object_name(&name)?;
                let Ok(id) = ObjectId::try_from(id.as_ref()) else {
                    // No object has such an id: whatever else is asked, this fails.
                    namespace_must_exist(shared, namespace, shared.deadline_for(0)).await?;
                    return Err(Refusal::assert_failed(&name));
                };
                ObjectAssert::HasId(name, id)
            }
        });
    }
    let mut bytes = 0_u64;
    let mut files = 0_usize;
    let mut changes = Vec::with_capacity(updates.len());
    for update in updates {
        let object = object_name(update.object())?;
        let source: (Box<dyn ObjectSource>, _) = match update {
            Update::DeleteObject(_) => {
                changes.push(SequenceUpdate::Delete { name: object });
                continue;
            }
            Update::UploadObject { data, checksum, .. } => (Box::new(BytesSource::new(data)), checksum),
            Update::UploadObjectFromFile { file, checksum, .. } => {
                files += 1;
                if files > MAX_FILES {
                    let text = format!("more than {MAX_FILES} files in one request");
                    return Err(Refusal::unknown(text));
                }
                (Box::new(open_input(shared, namespace, &file).await?), checksum)
            }
        };
        let (source, checksum) = source;
        bytes = bytes.saturating_add(source.size());
        changes.push(SequenceUpdate::Upload { name: object, source, checksum });
    }
    // Of several updates of one name the protocol takes the first in the order of the request, the engine the last.
    changes.reverse();
    let deadline = shared.deadline_for(bytes);
    let (backend, namespace) = (shared.backend.clone(), namespace.clone());
    let apply = async move { backend.apply_sequence(&namespace, conditions, changes, deadline).await };
    Ok((shared.moving(bytes, deadline, apply).await?, bytes))
}
