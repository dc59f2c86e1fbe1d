//! The objects of one namespace, and what commands do to them.

use std::collections::BTreeMap;

use alba_core::ids::{ChunkIndex, FragmentIndex, ObjectId, ObjectName, ObjectVersion, OsdId};
use alba_core::manifest::{Manifest, Timestamp};
use alba_core::wire::rpc::nsm::{NsmError, NsmOutcome, ObjectAssert, ObjectUpdate, Overwrite};

/// By name.
#[derive(Default)]
pub(super) struct Objects(BTreeMap<ObjectName, Manifest>);

impl Objects {
    pub(super) fn manifest(&self, name: &ObjectName) -> Option<Manifest> {
        self.0.get(name).cloned()
    }

    pub(super) fn names(&self) -> Vec<ObjectName> {
        self.0.keys().cloned().collect()
    }

    /// All or nothing. `now` in microseconds since 1970.
    pub(super) fn sequence(
        &mut self,
        asserts: &[ObjectAssert],
        updates: Vec<ObjectUpdate>,
        now: u64,
    ) -> Result<NsmOutcome, NsmError> {
        for assert in asserts {
            let found = |name: &ObjectName| self.0.get(name);
            let (name, holds) = match assert {
                ObjectAssert::Exists(name) => (name, found(name).is_some()),
                ObjectAssert::DoesNotExist(name) => (name, found(name).is_none()),
                ObjectAssert::HasId(name, id) => (name, found(name).is_some_and(|m| m.object_id == *id)),
                ObjectAssert::HasChecksum(name, sum) => {
                    (name, found(name).is_some_and(|m| m.checksum == *sum))
                }
            };
            if !holds {
                return Err(NsmError::AssertFailed(name.clone()));
            }
        }
        // Of several updates of one name the last counts; each must be allowed.
        let mut changes: BTreeMap<ObjectName, (usize, Option<Manifest>)> = BTreeMap::new();
        for (position, update) in updates.into_iter().enumerate() {
            match update {
                ObjectUpdate::Put { manifest, overwrite } => {
                    let exists = self.0.contains_key(&manifest.name);
                    let refused = match overwrite {
                        Overwrite::NoPrevious => exists,
                        Overwrite::AnyPrevious => !exists,
                        Overwrite::PreviousObjectId(id) => {
                            self.0.get(&manifest.name).is_none_or(|m| m.object_id != id)
                        }
                        Overwrite::Unconditionally => false,
                    };
                    if refused {
                        return Err(NsmError::OverwriteNotAllowed(manifest.name));
                    }
                    let stored = Manifest { timestamp: Timestamp(now), ..*manifest };
                    changes.insert(stored.name.clone(), (position, Some(stored)));
                }
                ObjectUpdate::PutInline { .. } => {
                    return Err(NsmError::PresetViolated("nothing is kept in the metadata here".to_owned()));
                }
                ObjectUpdate::Delete { name, must_exist } => {
                    if must_exist && !self.0.contains_key(&name) {
                        return Err(NsmError::ObjectNotFound);
                    }
                    changes.insert(name, (position, None));
                }
            }
        }
        let mut stored = Vec::new();
        for (name, (position, manifest)) in changes {
            match manifest {
                None => drop(self.0.remove(&name)),
                Some(manifest) => {
                    self.0.insert(name, manifest.clone());
                    stored.push((position, manifest));
                }
            }
        }
        stored.sort_unstable_by_key(|(position, _)| *position);
        Ok(NsmOutcome::Stored(stored.into_iter().map(|(_, manifest)| manifest).collect()))
    }

    /// Fills holes.
    pub(super) fn add_late(
        &mut self,
        object: ObjectId,
        fragments: Vec<(ChunkIndex, FragmentIndex, OsdId)>,
    ) -> Result<NsmOutcome, NsmError> {
        let found = self.0.values_mut().find(|manifest| manifest.object_id == object);
        let manifest = found.ok_or(NsmError::ObjectNotFound)?;
        if manifest.version != ObjectVersion(0) {
            return Err(NsmError::InvalidVersion(manifest.version));
        }
        for (chunk, fragment, osd) in fragments {
            let chunk = manifest.chunks.get_mut(chunk.index());
            if let Some(entry) = chunk.and_then(|chunk| chunk.fragments.get_mut(fragment.index())) {
                entry.location = Some(osd);
            }
        }
        manifest.version = ObjectVersion(1);
        Ok(NsmOutcome::Updated(Box::new(manifest.clone())))
    }
}
