//! What the group does with commands.

use std::collections::{BTreeMap, BTreeSet};

use alba_core::ids::*;
use alba_core::manifest::Timestamp;
use alba_core::wire::rpc::nsm::*;

use super::{Group, Object};

impl Group {
    pub(super) fn sequence(
        &mut self,
        asserts: &[ObjectAssert],
        updates: Vec<ObjectUpdate>,
        epoch: GcEpoch,
    ) -> Result<NsmOutcome, NsmError> {
        if epoch < self.info.min_epoch || epoch > self.info.newest_epoch {
            return Err(NsmError::InvalidGcEpoch(epoch));
        }
        for assert in asserts {
            let holds = match assert {
                ObjectAssert::Exists(name) => self.objects.contains_key(name),
                ObjectAssert::DoesNotExist(name) => !self.objects.contains_key(name),
                ObjectAssert::HasId(name, id) => {
                    self.objects.get(name).is_some_and(|o| o.manifest.object_id == *id)
                }
                ObjectAssert::HasChecksum(name, c) => {
                    self.objects.get(name).is_some_and(|o| o.manifest.checksum == *c)
                }
            };
            let (ObjectAssert::Exists(name)
            | ObjectAssert::DoesNotExist(name)
            | ObjectAssert::HasId(name, _)
            | ObjectAssert::HasChecksum(name, _)) = assert;
            if !holds {
                return Err(NsmError::AssertFailed(name.clone()));
            }
        }
        let active: BTreeSet<OsdId> = self.info.active_osds.iter().map(|(id, _)| *id).collect();
        for update in &updates {
            match update {
                ObjectUpdate::Put { manifest, overwrite } => {
                    let exists = self.objects.contains_key(&manifest.name);
                    if (*overwrite == Overwrite::NoPrevious && exists)
                        || (*overwrite == Overwrite::AnyPrevious && !exists)
                    {
                        return Err(NsmError::OverwriteNotAllowed(manifest.name.clone()));
                    }
                    for (_, _, fragment) in manifest.fragments() {
                        if let Some(osd) = fragment.location.filter(|osd| !active.contains(osd)) {
                            return Err(NsmError::InactiveOsd(osd));
                        }
                    }
                    for chunk in &manifest.chunks {
                        let stored = chunk.fragments.iter().filter(|f| f.location.is_some()).count();
                        let fits = self.info.preset.policies.iter().any(|policy| {
                            policy.shape() == manifest.scheme.shape && stored >= policy.min_fragments()
                        });
                        if !fits {
                            return Err(NsmError::InvalidBucket);
                        }
                    }
                }
                ObjectUpdate::PutInline { manifest, value, .. } => {
                    if !self.takes_inline {
                        return Err(NsmError::PresetViolated("too few replicas".into()));
                    }
                    assert!(
                        manifest.chunks.is_empty() && manifest.size <= self.info.preset.inline_limit.into()
                    );
                    assert!(value.checksum.matches(&value.packed));
                }
                ObjectUpdate::Delete { name, must_exist } => {
                    if *must_exist && !self.objects.contains_key(name) {
                        return Err(NsmError::ObjectNotFound);
                    }
                }
            }
        }
        let mut last: BTreeMap<ObjectName, usize> = BTreeMap::new();
        for (position, update) in updates.iter().enumerate() {
            let name = match update {
                ObjectUpdate::Put { manifest, .. } | ObjectUpdate::PutInline { manifest, .. } => {
                    &manifest.name
                }
                ObjectUpdate::Delete { name, .. } => name,
            };
            last.insert(name.clone(), position);
        }
        let mut stored = Vec::new();
        for (position, update) in updates.into_iter().enumerate() {
            let (update, value) = match update {
                ObjectUpdate::PutInline { manifest, value, overwrite } => {
                    (ObjectUpdate::Put { manifest, overwrite }, Some(value))
                }
                update => (update, None),
            };
            match update {
                ObjectUpdate::Put { manifest, .. } => {
                    if last[&manifest.name] != position {
                        continue;
                    }
                    self.clock += 1;
                    let mut manifest = *manifest;
                    manifest.timestamp = Timestamp(self.clock);
                    self.objects.insert(manifest.name.clone(), Object { manifest: manifest.clone(), value });
                    stored.push(manifest);
                }
                ObjectUpdate::PutInline { .. } => unreachable!("made a put above"),
                ObjectUpdate::Delete { name, .. } => {
                    if last[&name] == position {
                        self.objects.remove(&name);
                    }
                }
            }
        }
        Ok(NsmOutcome::Stored(stored))
    }

    pub(super) fn add_late(
        &mut self,
        object: ObjectId,
        fragments: Vec<(ChunkIndex, FragmentIndex, OsdId)>,
    ) -> Result<NsmOutcome, NsmError> {
        let found = self.objects.values_mut().find(|o| o.manifest.object_id == object);
        let manifest = &mut found.ok_or(NsmError::ObjectNotFound)?.manifest;
        if manifest.version != ObjectVersion(0) {
            return Err(NsmError::InvalidVersion(manifest.version));
        }
        for (chunk, fragment, osd) in fragments {
            let entry = &mut manifest.chunks[chunk.index()].fragments[fragment.index()];
            assert_eq!(entry.location, None, "only holes are filled");
            entry.location = Some(osd);
        }
        manifest.version = ObjectVersion(1);
        Ok(NsmOutcome::Updated(Box::new(manifest.clone())))
    }
}
