//! Objects that live in the metadata: their bytes come with their manifest, from one state of the group.

use std::sync::Arc;

use alba_core::env::Deadline;
use alba_core::fragment::{Cipher, unpack};
use alba_core::ids::NamespaceName;
use alba_core::manifest::{Fragment, PackedFragment};
use alba_core::wire::rpc::nsm::{InlineValue, NsmAnswer, NsmQuery};
use bytes::Bytes;

use super::Found;
use crate::engine::Engine;
use crate::keys::Keys;
use crate::namespaces::unexpected;
use crate::{ClientError, StoredObject};

/// What a name that stood for an object in the metadata stands for now.
pub(super) enum Now {
    /// Such an object: its plain bytes, checked.
    Here(StoredObject, Bytes),
    /// One of fragments: it was replaced meanwhile.
    Elsewhere(Found),
}

/// Asks for the bytes of an object in the metadata.
pub(super) async fn read(
    engine: &Engine,
    namespace: &NamespaceName,
    found: &Found,
    deadline: Deadline,
) -> Result<Now, ClientError> {
    let name = &found.object.manifest.name;
    let resolved = engine.namespaces.resolve(namespace, deadline).await?;
    let query = || NsmQuery::Contents { namespace: resolved.id, names: vec![name.clone()] };
    let NsmAnswer::Contents(contents) = engine.ask_group(&resolved, query, deadline).await? else {
        return Err(unexpected("Contents"));
    };
    let (manifest, value) =
        contents.into_iter().next().flatten().ok_or_else(|| ClientError::ObjectUnknown(name.clone()))?;
    let object = StoredObject { namespace: resolved.id, manifest: Arc::new(manifest) };
    if found.from_cache && object.manifest.object_id != found.object.manifest.object_id {
        // The next reader shall look anew.
        engine.cache.remove(object.namespace, name);
    }
    match value {
        Some(value) => {
            let bytes = open(engine, namespace, &object, value, deadline).await?;
            Ok(Now::Here(object, bytes))
        }
        None => Ok(Now::Elsewhere(Found { object, from_cache: false })),
    }
}

async fn open(
    engine: &Engine,
    namespace: &NamespaceName,
    object: &StoredObject,
    value: InlineValue,
    deadline: Deadline,
) -> Result<Bytes, ClientError> {
    let manifest = &object.manifest;
    let undecodable = |reason: String| ClientError::Undecodable { object: manifest.name.clone(), reason };
    let plain_len = usize::try_from(manifest.size).map_err(|error| undecodable(error.to_string()))?;
    let key = Keys::of_object(engine, namespace, &manifest.encryption, deadline).await?;
    let cipher = match (&key, value.ctr) {
        (None, _) => None,
        (Some(key), Some(counter)) => Some(Cipher { key, counter }),
        (Some(_), None) => return Err(undecodable("it is encrypted and has no counter block".to_owned())),
    };
    let entry = Fragment {
        location: None,
        version: manifest.version,
        checksum: value.checksum,
        packed_len: u32::try_from(value.packed.len()).unwrap_or(u32::MAX),
        ctr: value.ctr,
    };
    let verified = PackedFragment(value.packed.into())
        .verify(&entry)
        .map_err(|_| undecodable("its bytes are damaged".to_owned()))?;
    unpack(&verified, manifest.scheme.compression, cipher, plain_len)
        .map_err(|error| undecodable(error.to_string()))
}
