//! What should be on OSDs beside what is: a pure comparison of one range of object ids.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use alba_core::ids::{ChunkIndex, FragmentIndex, NamespaceName, ObjectId, OsdId};
use alba_core::manifest::Manifest;
use alba_core::osd_keys::FragmentAddress;

/// What is wrong with one fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wrong {
    /// A manifest names it, and the OSD does not have it.
    Missing,
    /// A manifest names it, and its recovery info is not beside it.
    WithoutRecoveryInfo,
    /// The OSD has it, and no manifest, tag or delete queue knows of it: nothing will ever delete it.
    Leaked,
    /// The OSD has recovery info without a fragment, which nothing will ever delete.
    LeakedRecoveryInfo,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::WithoutRecoveryInfo => "without recovery info",
            Self::Leaked => "leaked",
            Self::LeakedRecoveryInfo => "leaked recovery info",
        })
    }
}

/// A difference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Difference {
    /// In which namespace.
    pub namespace: NamespaceName,
    /// On which OSD.
    pub osd: OsdId,
    /// Which fragment.
    pub address: FragmentAddress,
    /// What is wrong.
    pub wrong: Wrong,
}

/// What one OSD holds of a range of object ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Fragments.
    pub fragments: BTreeSet<FragmentAddress>,
    /// Recovery infos.
    pub recovery_infos: BTreeSet<FragmentAddress>,
    /// Fragments with a tag.
    pub tagged: BTreeSet<FragmentAddress>,
    /// Fragments in the delete queue.
    pub queued: BTreeSet<FragmentAddress>,
}

/// Fragments by what is known of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Objects with fragments.
    pub objects: u64,
    /// Fragments that manifests name.
    pub named: u64,
    /// Fragments on OSDs.
    pub held: u64,
    /// Fragments with a tag that no manifest names: uploads under way, or garbage.
    pub tagged: u64,
    /// Fragments that wait to be deleted.
    pub queued: u64,
    /// Tags of fragments that were deleted since: garbage collection takes them away.
    pub lone_tags: u64,
}

impl Totals {
    /// Both together.
    pub fn add(&mut self, other: &Self) {
        self.objects += other.objects;
        self.named += other.named;
        self.held += other.held;
        self.tagged += other.tagged;
        self.queued += other.queued;
        self.lone_tags += other.lone_tags;
    }
}

/// Every fragment that a manifest places somewhere.
pub(super) fn placed(manifest: &Manifest) -> impl Iterator<Item = (OsdId, FragmentAddress)> + '_ {
    manifest.chunks.iter().zip(0_u32..).flat_map(move |(chunk, chunk_index)| {
        chunk.fragments.iter().zip(0_u32..).filter_map(move |(fragment, index)| {
            let address = FragmentAddress {
                object_id: manifest.object_id,
                chunk: ChunkIndex(chunk_index),
                fragment: FragmentIndex(index),
                version: fragment.version,
            };
            Some((fragment.location?, address))
        })
    })
}

/// Compares what `manifests` name with what the OSDs in `held` have; of OSDs that are not there nothing is known.
pub(super) fn compare(
    namespace: &NamespaceName,
    manifests: &[Manifest],
    held: &BTreeMap<OsdId, Held>,
) -> (Totals, Vec<Difference>) {
    let mut totals = Totals::default();
    let mut named: BTreeMap<OsdId, BTreeSet<FragmentAddress>> = BTreeMap::new();
    for manifest in manifests {
        totals.objects += u64::from(!manifest.chunks.is_empty());
        for (osd, address) in placed(manifest) {
            totals.named += 1;
            named.entry(osd).or_default().insert(address);
        }
    }
    let mut differences = Vec::new();
    let nothing = BTreeSet::new();
    for (osd, held) in held {
        let named = named.get(osd).unwrap_or(&nothing);
        let mut wrong = |address: &FragmentAddress, wrong| {
            differences.push(Difference {
                namespace: namespace.clone(),
                osd: *osd,
                address: *address,
                wrong,
            });
        };
        for address in named {
            if !held.fragments.contains(address) {
                wrong(address, Wrong::Missing);
            } else if !held.recovery_infos.contains(address) {
                wrong(address, Wrong::WithoutRecoveryInfo);
            }
        }
        for address in &held.fragments {
            totals.held += 1;
            if named.contains(address) {
                continue;
            }
            let (tagged, queued) = (held.tagged.contains(address), held.queued.contains(address));
            totals.tagged += u64::from(tagged);
            totals.queued += u64::from(queued);
            if !tagged && !queued {
                wrong(address, Wrong::Leaked);
            }
        }
        // Without its fragment it goes with what brings that back, takes it away or deletes the object.
        let known = |address: &FragmentAddress| {
            held.tagged.contains(address) || held.queued.contains(address) || named.contains(address)
        };
        for address in held.recovery_infos.difference(&held.fragments).filter(|address| !known(address)) {
            wrong(address, Wrong::LeakedRecoveryInfo);
        }
        totals.lone_tags += held.tagged.difference(&held.fragments).map(|_| 1).sum::<u64>();
    }
    (totals, differences)
}

/// The beginning of all keys of an object's fragments.
pub(super) fn of_object(key: &[u8]) -> &[u8] {
    // A fragment's address ends with three numbers of four bytes: chunk, fragment, version.
    key.get(..key.len().saturating_sub(12)).unwrap_or_default()
}

/// The lowest address of an object.
pub(super) fn first_of(object_id: ObjectId) -> FragmentAddress {
    FragmentAddress {
        object_id,
        chunk: ChunkIndex(0),
        fragment: FragmentIndex(0),
        version: alba_core::ids::ObjectVersion(0),
    }
}

#[cfg(test)]
mod tests {
    use alba_core::checksum::Checksum;
    use alba_core::ids::{ObjectName, ObjectVersion};
    use alba_core::manifest::{Chunk, CodingMatrix, EncryptInfo, Fragment, Scheme, Timestamp};
    use alba_core::policy::CodeShape;
    use alba_core::preset::Compression;

    use super::*;

    fn manifest(locations: &[Option<u32>]) -> Manifest {
        let fragments = locations.iter().map(|location| Fragment {
            location: location.map(OsdId::from_u32),
            version: ObjectVersion(0),
            checksum: Checksum::None,
            packed_len: 1,
            ctr: None,
        });
        Manifest {
            name: ObjectName::new("o").unwrap(),
            object_id: ObjectId::new([1; 32]),
            size: 1,
            checksum: Checksum::None,
            scheme: Scheme {
                shape: CodeShape::new(2, 1).unwrap(),
                matrix: CodingMatrix::VandermondeSystematic,
                compression: Compression::None,
            },
            encryption: EncryptInfo::None,
            chunks: vec![Chunk { size: 1, fragments: fragments.collect() }],
            version: ObjectVersion(0),
            max_disks_per_node: 1,
            timestamp: Timestamp(0),
        }
    }

    fn address(object: u8, fragment: u32) -> FragmentAddress {
        FragmentAddress { fragment: FragmentIndex(fragment), ..first_of(ObjectId::new([object; 32])) }
    }

    /// OSD i holds fragment i of the object, and what the test changes.
    fn world(change: impl FnOnce(&mut BTreeMap<OsdId, Held>)) -> (Totals, Vec<(u64, Wrong)>) {
        let mut held: BTreeMap<OsdId, Held> = (0..3)
            .map(|osd| {
                let set = BTreeSet::from([address(1, osd)]);
                let held = Held { fragments: set.clone(), recovery_infos: set, ..Held::default() };
                (OsdId::from_u32(osd), held)
            })
            .collect();
        change(&mut held);
        let name = NamespaceName::new("ns").unwrap();
        let (totals, found) = compare(&name, &[manifest(&[Some(0), Some(1), None])], &held);
        (totals, found.into_iter().map(|difference| (difference.osd.get(), difference.wrong)).collect())
    }

    fn osd(held: &mut BTreeMap<OsdId, Held>, id: u32) -> &mut Held {
        held.get_mut(&OsdId::from_u32(id)).unwrap()
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let hole_filled = world(|_| ());
        assert_eq!(hole_filled.1, [(2, Wrong::Leaked)], "nobody names the third");
        let tagged = world(|held| _ = osd(held, 2).tagged.insert(address(1, 2)));
        assert_eq!((tagged.1, tagged.0.tagged), (vec![], 1));
        let queued = world(|held| _ = osd(held, 2).queued.insert(address(1, 2)));
        assert_eq!((queued.1, queued.0.queued), (vec![], 1));
        let whole = |change: fn(&mut BTreeMap<OsdId, Held>)| {
            world(|held| {
                osd(held, 2).queued.insert(address(1, 2));
                change(held);
            })
            .1
        };
        assert_eq!(whole(|held| osd(held, 0).fragments.clear()), [(0, Wrong::Missing)]);
        assert_eq!(whole(|held| osd(held, 1).recovery_infos.clear()), [(1, Wrong::WithoutRecoveryInfo)]);
        assert_eq!(
            whole(|held| _ = osd(held, 1).recovery_infos.insert(address(9, 0))),
            [(1, Wrong::LeakedRecoveryInfo)]
        );
        let alone = world(|held| {
            osd(held, 2).queued.insert(address(1, 2));
            osd(held, 1).tagged.insert(address(9, 0));
        });
        assert_eq!((alone.1, alone.0.lone_tags), (vec![], 1), "garbage collection finds it");
        assert_eq!(whole(|held| _ = osd(held, 0).fragments.insert(address(9, 0))), [(0, Wrong::Leaked)]);
        assert_eq!(
            whole(|held| drop(held.remove(&OsdId::from_u32(0)))),
            [],
            "of an OSD that is down nothing is known"
        );
    }

    #[test]
    fn the_keys_of_an_object_have_its_own_beginning() {
        use alba_core::osd_keys::fragment;
        let namespace = alba_core::ids::NamespaceId::from_u32(7);
        let prefix = |object, n| of_object(&fragment(namespace, &address(object, n))).to_vec();
        assert_eq!(prefix(1, 0), prefix(1, 5));
        assert!(prefix(1, 5) < prefix(2, 0));
    }
}
