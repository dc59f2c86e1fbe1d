//! Requests about the bytes of objects: files in and out, and slices.

use std::any::Any;

use alba_client::{ClientError, Consistency, ObjectSource, Slice, StoredObject, UploadOptions};
use alba_core::checksum::Checksum;
use alba_core::env::{Deadline, SMALL_REQUEST};
use alba_core::ids::{NamespaceId, NamespaceName, ObjectName};
use alba_core::wire::manifest::WireManifest;
use alba_core::wire::proxy::{ErrorCode, ReadObject};
use alba_core::wire::rpc::nsm::Overwrite;
use bytes::Bytes;

use crate::backend::SlicesAnswer;
use crate::files;
use crate::refusal::Refusal;
use crate::server::Shared;

/// A request for more objects or slices than these is no small one. Answers come with a manifest for each object, which is some KiB.
pub(crate) const FEW_OBJECTS: usize = 16;
const FEW_SLICES: usize = 256;

/// Object entries of one slices request: each is answered with a manifest, so few bytes could ask for very many.
const MAX_ENTRIES: usize = 4096;

/// An object's manifest.
pub(crate) async fn lookup(
    shared: &Shared,
    namespace: &NamespaceName,
    object: &ObjectName,
    consistency: Consistency,
) -> Result<StoredObject, Refusal> {
    let deadline = shared.deadline_for(0);
    let manifest = shared.backend.manifest(namespace, object, consistency, deadline);
    let stored = shared.within(deadline, manifest).await?;
    Ok(stored.ok_or_else(|| ClientError::ObjectUnknown(object.clone()))?)
}

/// 10: writes an object to a file of this host.
pub(crate) async fn read_to_file(
    shared: &Shared,
    namespace: &NamespaceName,
    object: &ObjectName,
    file: &[u8],
    consistency: Consistency,
) -> Result<StoredObject, Refusal> {
    // Asked first because the time a download may take depends on the object's size.
    let stored = lookup(shared, namespace, object, consistency).await?;
    let deadline = shared.deadline_for(stored.manifest.size);
    let mut sink = files::output(&shared.env, file, deadline).await?;
    let (backend, namespace, object) = (shared.backend.clone(), namespace.clone(), object.clone());
    let download =
        async move { backend.download(&namespace, &object, consistency, &mut sink, deadline).await };
    shared.moving(stored.manifest.size, deadline, download).await.map_err(|mut refusal| {
        // That code is for checksums that clients give.
        if refusal.0.code == ErrorCode::ChecksumMismatch {
            refusal.0.code = ErrorCode::Unknown;
        }
        refusal
    })
}

/// 11, 21: stores a file of this host.
pub(crate) async fn write_from_file(
    shared: &Shared,
    namespace: &NamespaceName,
    object: &ObjectName,
    file: &[u8],
    overwrite: bool,
    checksum: Option<Checksum>,
) -> Result<StoredObject, Refusal> {
    let mut source = open_input(shared, namespace, file).await?;
    let overwrite = if overwrite { Overwrite::Unconditionally } else { Overwrite::NoPrevious };
    let options = UploadOptions { overwrite, checksum };
    let size = source.size();
    let deadline = shared.deadline_for(size);
    let (backend, namespace, object) = (shared.backend.clone(), namespace.clone(), object.clone());
    let upload = async move { backend.upload(&namespace, &object, &mut source, options, deadline).await };
    shared.moving(size, deadline, upload).await
}

/// Opens a file to upload to `namespace`. A namespace that does not exist is the first thing to say.
pub(crate) async fn open_input(
    shared: &Shared,
    namespace: &NamespaceName,
    file: &[u8],
) -> Result<alba_client::FileSource, Refusal> {
    let deadline = shared.deadline_for(0);
    match files::input(&shared.env, file, deadline).await {
        Ok(source) => Ok(source),
        Err(refusal) => {
            namespace_must_exist(shared, namespace, deadline).await?;
            Err(refusal)
        }
    }
}

/// Error 5 when there is no such namespace.
pub(crate) async fn namespace_must_exist(
    shared: &Shared,
    namespace: &NamespaceName,
    deadline: Deadline,
) -> Result<(), Refusal> {
    the_namespace(shared, namespace, deadline).await.map(drop)
}

/// The number of a namespace, or error 5.
async fn the_namespace(
    shared: &Shared,
    namespace: &NamespaceName,
    deadline: Deadline,
) -> Result<NamespaceId, Refusal> {
    let record = shared.within(deadline, shared.backend.namespace(namespace, deadline)).await?;
    Ok(record.ok_or_else(|| ClientError::NamespaceUnknown(namespace.clone()))?.id)
}

/// 13, 23: parts of objects.
pub(crate) async fn read_slices(
    shared: &Shared,
    namespace: &NamespaceName,
    requests: Vec<(ObjectName, Vec<Slice>)>,
    consistency: Consistency,
) -> Result<SlicesAnswer, Refusal> {
    if requests.is_empty() {
        // Succeeds even for an unknown namespace (wire-protocol §2.4).
        let hold: Box<dyn Any + Send + Sync> = Box::new(());
        return Ok(SlicesAnswer { data: Vec::new(), objects: Vec::new(), hold });
    }
    if requests.len() > MAX_ENTRIES {
        let text = format!("{} objects in one request; at most {MAX_ENTRIES} are accepted", requests.len());
        return Err(Refusal::unknown(text));
    }
    let total: i64 =
        requests.iter().flat_map(|(_, slices)| slices).map(|slice| i64::from(slice.length)).sum();
    // The original finds this before it looks at anything else (wire-protocol §2.4, the corner).
    let total = u64::try_from(total)
        .map_err(|_| Refusal::unknown("the lengths of the slices together are negative"))?;
    // The engine refuses what is more than it may keep in memory; more time than for that makes no sense.
    let deadline = shared.deadline_for(total.min(shared.config.max_frame_bytes));
    read_parts(shared, namespace, requests, consistency, total, deadline).await
}

/// `total` bytes of objects, in memory.
async fn read_parts(
    shared: &Shared,
    namespace: &NamespaceName,
    requests: Vec<(ObjectName, Vec<Slice>)>,
    consistency: Consistency,
    total: u64,
    deadline: Deadline,
) -> Result<SlicesAnswer, Refusal> {
    let (backend, namespace) = (shared.backend.clone(), namespace.clone());
    // Each object and each slice is work, however little of it is asked for.
    let slices = requests.iter().map(|(_, slices)| slices.len()).sum::<usize>();
    let many = requests.len() > FEW_OBJECTS || slices > FEW_SLICES;
    let weight = if many { total.max(SMALL_REQUEST + 1) } else { total };
    let read = async move { backend.read_slices(&namespace, requests, consistency, deadline).await };
    shared.moving(weight, deadline, read).await
}

/// How often objects may be replaced while they are read before the request is given up.
const REPLACED: u32 = 8;

/// What ReadObjects gives.
pub(crate) struct ObjectsAnswer {
    pub(crate) namespace: NamespaceId,
    /// In the order asked; none: missing.
    pub(crate) objects: Vec<Option<ReadObject>>,
    /// Kept until the answer is on its way.
    pub(crate) hold: Box<dyn Any + Send + Sync>,
}

/// 25: objects whole, in memory. Each is of one moment: its bytes are those that its manifest describes.
pub(crate) async fn read_objects(
    shared: &Shared,
    namespace: &NamespaceName,
    names: Vec<ObjectName>,
    consistency: Consistency,
) -> Result<ObjectsAnswer, Refusal> {
    if names.len() > MAX_ENTRIES {
        let text = format!("{} objects in one request; at most {MAX_ENTRIES} are accepted", names.len());
        return Err(Refusal::unknown(text));
    }
    let by = shared.deadline_for(0);
    let id = the_namespace(shared, namespace, by).await?;
    let mut consistency = consistency;
    for _ in 0..REPLACED {
        let found = shared.backend.manifests(namespace, &names, consistency, by);
        let found = shared.within(by, found).await?;
        let sizes: Vec<Option<u64>> =
            found.iter().map(|stored| Some(stored.as_ref()?.manifest.size)).collect();
        let total: u64 = sizes.iter().flatten().fold(0, |total, size| total.saturating_add(*size));
        let limit = shared.config.max_frame_bytes;
        if total > limit {
            let text =
                format!("the objects have {total} bytes together; at most {limit} are sent in one answer");
            return Err(Refusal::unknown(text));
        }
        let whole = |size: u64| match i32::try_from(size) {
            Ok(length) => Ok(vec![Slice { offset: 0, length }]),
            // Above that limit, which is lower.
            Err(_) => Err(Refusal::unknown("an object is too large for one answer")),
        };
        let requests = names
            .iter()
            .zip(&sizes)
            .filter_map(|(name, size)| Some((name.clone(), (*size)?)))
            .map(|(name, size)| Ok((name, whole(size)?)))
            .collect::<Result<Vec<_>, Refusal>>()?;
        let deadline = shared.deadline_for(total);
        // What has just been looked up is cached now, and is as fresh as was asked for.
        let read = read_parts(shared, namespace, requests, Consistency::Cached, total, deadline);
        // Should that fail, nothing cached will do.
        consistency = Consistency::Consistent;
        let read = match read.await {
            Ok(read) => read,
            Err(refusal) if is_replaced(refusal.0.code) => continue,
            Err(refusal) => return Err(refusal),
        };
        if let Some(objects) = joined(&sizes, &read) {
            return Ok(ObjectsAnswer { namespace: id, objects, hold: read.hold });
        }
    }
    Err(Refusal::unknown("the objects were replaced again and again while they were read"))
}

/// Deleted, or shorter, since its size was looked up.
fn is_replaced(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::ObjectDoesNotExist | ErrorCode::SliceOutsideObject)
}

/// Deals what was read out to the objects that are there; none when one of them has another size by now.
fn joined(sizes: &[Option<u64>], read: &SlicesAnswer) -> Option<Vec<Option<ReadObject>>> {
    let mut stored = read.objects.iter();
    let mut pieces = read.data.iter();
    let mut objects = Vec::with_capacity(sizes.len());
    for size in sizes {
        let Some(size) = *size else {
            objects.push(None);
            continue;
        };
        let object = stored.next().filter(|object| object.manifest.size == size)?;
        let mut data = Vec::new();
        // A piece never has bytes of two slices.
        while len_of(&data) < size {
            data.push(pieces.next()?.clone());
        }
        objects.push(Some(ReadObject { manifest: WireManifest::from(object.manifest.as_ref()), data }));
    }
    Some(objects)
}

/// Bytes of an answer's data.
pub(crate) fn len_of(data: &[Bytes]) -> u64 {
    data.iter().map(|piece| u64::try_from(piece.len()).unwrap_or(u64::MAX)).sum()
}
