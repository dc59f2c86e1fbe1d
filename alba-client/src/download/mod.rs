//! Reading: whole objects and slices, around whatever does not answer.
//!
//! What is handed on was verified ([`fetch`]). A fragment that is absent, damaged, late or undecodable is an erasure, never
//! an error, while k others of its chunk are good (invariant 5); that it is absent or damaged is handed to maintenance
//! meanwhile.

mod chunk;
mod fetch;
mod flights;
mod hedging;
mod inline;
mod pace;
mod race;
mod run;
mod slices;
mod whole;

pub(crate) use fetch::{Lost, Wanted};
pub(crate) use flights::Flights;
pub(crate) use hedging::Hedging;
pub(crate) use slices::read_slices;
pub(crate) use whole::download;

use std::sync::Arc;

use alba_core::env::Deadline;
use alba_core::ids::{NamespaceName, ObjectName};
use alba_core::manifest::Manifest;
use alba_core::wire::rpc::nsm::{NsmAnswer, NsmQuery};

use crate::engine::Engine;
use crate::namespaces::{Namespace, is_moved, unexpected};
use crate::{ClientError, Consistency, ManifestCounts, StoredObject};

/// Names asked for at once: their manifests, of 1 MiB at most, fit in one answer.
const NAMES_PER_QUERY: usize = 32;

/// A manifest, and whether it may be stale.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) object: StoredObject,
    pub(crate) from_cache: bool,
}

/// The objects of these names, in their order.
pub(crate) async fn find(
    engine: &Engine,
    name: &NamespaceName,
    objects: &[ObjectName],
    consistency: Consistency,
    deadline: Deadline,
) -> Result<Vec<Option<Found>>, ClientError> {
    let namespace = engine.namespaces.resolve(name, deadline).await?;
    let found = match find_in(engine, &namespace, objects, consistency, deadline).await {
        Err(error) if is_moved(&error) => {
            let Some(namespace) = engine.namespaces.resolve_again(&namespace, deadline).await? else {
                return Err(error);
            };
            find_in(engine, &namespace, objects, consistency, deadline).await
        }
        result => result,
    }?;
    engine.observed.manifests(name, counts(&found));
    Ok(found)
}

fn counts(found: &[Option<Found>]) -> ManifestCounts {
    let of = |from_cache| {
        let these = found.iter().flatten().filter(|found| found.from_cache == from_cache);
        u32::try_from(these.count()).unwrap_or(u32::MAX)
    };
    ManifestCounts { cached: of(true), fetched: of(false), stale: 0 }
}

async fn find_in(
    engine: &Engine,
    namespace: &Arc<Namespace>,
    objects: &[ObjectName],
    consistency: Consistency,
    deadline: Deadline,
) -> Result<Vec<Option<Found>>, ClientError> {
    let mut found = Vec::with_capacity(objects.len());
    for names in objects.chunks(NAMES_PER_QUERY) {
        let cached: Vec<Option<Arc<Manifest>>> = match consistency {
            Consistency::Consistent => vec![None; names.len()],
            Consistency::Cached => names.iter().map(|name| engine.cache.get(namespace.id, name)).collect(),
        };
        let missing: Vec<ObjectName> = names
            .iter()
            .zip(&cached)
            .filter(|(_, cached)| cached.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        let mut fetched = fetch(engine, namespace, missing, deadline).await?.into_iter();
        for cached in cached {
            let from_cache = cached.is_some();
            let manifest = match cached {
                Some(manifest) => Some(manifest),
                None => fetched.next().flatten(),
            };
            found.push(manifest.map(|manifest| Found {
                object: StoredObject { namespace: namespace.id, manifest },
                from_cache,
            }));
        }
    }
    Ok(found)
}

/// Asks the group, and keeps what it says.
async fn fetch(
    engine: &Engine,
    namespace: &Arc<Namespace>,
    names: Vec<ObjectName>,
    deadline: Deadline,
) -> Result<Vec<Option<Arc<Manifest>>>, ClientError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let tickets: Vec<_> = names.iter().map(|name| engine.cache.ticket(namespace.id, name)).collect();
    let asked = names.len();
    let query = || NsmQuery::Manifests { namespace: namespace.id, names: names.clone() };
    let NsmAnswer::Manifests(answer) = engine.ask_group(namespace, query, deadline).await? else {
        return Err(unexpected("Manifests"));
    };
    if answer.len() != asked {
        return Err(unexpected("Manifests of the length asked for"));
    }
    let mut manifests = Vec::with_capacity(asked);
    for (ticket, manifest) in tickets.into_iter().zip(answer) {
        let manifest = manifest.map(Arc::new);
        if let Some(manifest) = &manifest {
            engine.cache.insert_read(ticket, namespace.id, Arc::clone(manifest));
        }
        manifests.push(manifest);
    }
    Ok(manifests)
}

/// After reading by a cached manifest failed: the current one, if it is another.
async fn find_newer(
    engine: &Engine,
    name: &NamespaceName,
    stale: &StoredObject,
    deadline: Deadline,
) -> Result<Option<Found>, ClientError> {
    engine.cache.remove(stale.namespace, &stale.manifest.name);
    let object = &stale.manifest.name;
    let found = find(engine, name, std::slice::from_ref(object), Consistency::Consistent, deadline).await?;
    match found.into_iter().next().flatten() {
        None => Err(ClientError::ObjectUnknown(object.clone())),
        Some(found) if found.object == *stale => Ok(None),
        Some(found) => {
            engine.observed.manifests(name, ManifestCounts { stale: 1, ..ManifestCounts::default() });
            Ok(Some(found))
        }
    }
}
