//! What the group does with commands.

use std::collections::{BTreeMap, BTreeSet};

use alba_core::ids::*;
use alba_core::manifest::{Manifest, Timestamp};
use alba_core::policy::Bucket;
use alba_core::range::Page;
use alba_core::wire::rpc::abm::OsdInfo;
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

    /// Sets where fragments are, with the checks of the real group.
    pub(super) fn update(
        &mut self,
        object: ObjectId,
        version: ObjectVersion,
        fragments: &[FragmentUpdate],
        epoch: GcEpoch,
    ) -> Result<NsmOutcome, NsmError> {
        if epoch < self.info.min_epoch || epoch > self.info.newest_epoch {
            return Err(NsmError::InvalidGcEpoch(epoch));
        }
        let active: BTreeSet<OsdId> = self.info.active_osds.iter().map(|(id, _)| *id).collect();
        let policies = self.info.preset.policies.clone();
        let algorithm = self.info.preset.fragment_checksum;
        let nodes: BTreeMap<OsdId, NodeId> =
            self.known.iter().map(|(id, info)| (*id, info.place.node().clone())).collect();
        let found = self.objects.values_mut().find(|o| o.manifest.object_id == object);
        let stored = &mut found.ok_or(NsmError::ObjectNotFound)?.manifest;
        if stored.version != version {
            return Err(NsmError::InvalidVersion(stored.version));
        }
        let mut manifest = stored.clone();
        manifest.version = ObjectVersion(version.0 + 1);
        let mut seen = BTreeSet::new();
        let mut queued = Vec::new();
        for update in fragments {
            assert!(seen.insert((update.chunk, update.fragment)), "a fragment twice");
            let entry = &mut manifest.chunks[update.chunk.index()].fragments[update.fragment.index()];
            if let Some(at) = entry.location {
                let (chunk, fragment, version) = (update.chunk, update.fragment, entry.version);
                queued.push((at, FragmentKey { object, chunk, fragment, version }));
            }
            entry.location = update.osd;
            if let Some(osd) = update.osd {
                if !active.contains(&osd) {
                    return Err(NsmError::InactiveOsd(osd));
                }
                entry.version = manifest.version;
                if let Some((len, checksum)) = update.packed {
                    assert_eq!(checksum.algorithm(), algorithm);
                    (entry.packed_len, entry.checksum) = (len, checksum);
                }
                entry.ctr = update.ctr.or(entry.ctr);
            }
        }
        manifest.check().map_err(|error| NsmError::InvalidUpdate(error.to_string()))?;
        let bucket = manifest.bucket(|osd| nodes.get(&osd));
        let places = fragments.iter().any(|update| update.osd.is_some());
        if places && !policies.iter().any(|policy| bucket.satisfies(policy)) {
            return Err(NsmError::InvalidBucket);
        }
        *stored = manifest.clone();
        self.queued.extend(queued);
        Ok(NsmOutcome::Updated(Box::new(manifest)))
    }

    fn bucket(&self, manifest: &Manifest) -> Bucket {
        manifest.bucket(|osd| self.known.get(&osd).map(|info| info.place.node()))
    }

    /// What repair asks; none: another question.
    pub(super) fn inspect(&self, query: &NsmQuery) -> Option<NsmAnswer> {
        let page = |ids: BTreeSet<ObjectId>, after: Option<ObjectId>, max: u32| {
            // Short pages, so that paging is used.
            let max = usize::try_from(max).unwrap().min(3);
            let mut items: Vec<ObjectId> =
                ids.into_iter().filter(|id| after.is_none_or(|after| *id > after)).take(max + 1).collect();
            let has_more = items.len() > max;
            items.truncate(max);
            NsmAnswer::ObjectIds(Page { items, has_more })
        };
        let manifests = || self.objects.values().map(|object| &object.manifest);
        Some(match query {
            NsmQuery::Statistics(_) => {
                let mut buckets: BTreeMap<Bucket, u64> = BTreeMap::new();
                for manifest in manifests().filter(|manifest| !manifest.chunks.is_empty()) {
                    *buckets.entry(self.bucket(manifest)).or_default() += 1;
                }
                NsmAnswer::Statistics(NamespaceStatistics {
                    objects: u64::try_from(self.objects.len()).unwrap(),
                    buckets: buckets.into_iter().collect(),
                    ..NamespaceStatistics::default()
                })
            }
            NsmQuery::Details(_) => {
                let of = |(id, info): (&OsdId, &OsdInfo)| {
                    let active = self.info.active_osds.iter().any(|(active, _)| active == id);
                    (*id, info.clone(), if active { OsdUse::Active } else { OsdUse::Unlinked })
                };
                NsmAnswer::Details(Box::new(NamespaceDetails {
                    lifecycle: Lifecycle::Active,
                    trashed: false,
                    frozen: false,
                    osds: self.known.iter().map(of).collect(),
                    inline_objects: 0,
                    inline_bytes: 0,
                    findings: 0,
                }))
            }
            NsmQuery::ObjectsInBucket { bucket, after, max, .. } => {
                let inside = |manifest: &&Manifest| self.bucket(manifest) == *bucket;
                page(manifests().filter(inside).map(|manifest| manifest.object_id).collect(), *after, *max)
            }
            NsmQuery::ObjectsOnOsd { osd, after, max, .. } => {
                let there =
                    |manifest: &&Manifest| manifest.fragments().any(|(_, _, f)| f.location == Some(*osd));
                page(manifests().filter(there).map(|manifest| manifest.object_id).collect(), *after, *max)
            }
            _ => return None,
        })
    }
}
