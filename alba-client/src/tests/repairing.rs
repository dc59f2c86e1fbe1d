//! Repair of single objects: every loss, every kind of preset, and who else may be at work.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Duration;

use alba_core::encryption::{ClusterKey, FragmentKey};
use alba_core::env::{MetaError, files};
use alba_core::ids::{ChunkIndex, FragmentIndex, GcEpoch, OsdId};
use alba_core::manifest::Manifest;
use alba_core::osd_keys::{Parsed, parse};
use alba_core::preset::{Compression, FragmentEncryption, Preset};
use alba_core::wire::recovery::RecoveryInfo;
use alba_core::wire::rpc::nsm::NsmError;

use super::backend::{Event, Fixture, preset, record};
use super::*;
use crate::ClientConfig;
use crate::repair::plan::Unrepairable;
use crate::repair::standing::view;
use crate::repair::{Osds, Registry, RepairError, Repaired, Repairer, Standing, Suspect, Weakest};

const KEY: [u8; 32] = [5; 32];

pub(super) struct Ward {
    pub(super) fixture: Fixture,
    pub(super) repairer: Repairer,
    _dir: tempfile::TempDir,
}

pub(super) fn ward(osds: u32, nodes: usize, preset: Preset) -> Ward {
    encrypted(osds, nodes, preset, false)
}

pub(super) fn encrypted(osds: u32, nodes: usize, preset: Preset, encrypt: bool) -> Ward {
    let dir = tempfile::tempdir().unwrap();
    let (path, cluster) = (dir.path().join("cluster.key"), ClusterKey::new([6; 32]));
    files::create_with_mode(&path, 0o600).unwrap().write_all(cluster.to_text().as_bytes()).unwrap();
    let fragment_encryption = match encrypt {
        true => FragmentEncryption::aes_256_ctr(&FragmentKey::new(KEY), &cluster),
        false => FragmentEncryption::None,
    };
    let config = ClientConfig { cluster_key: Some(path), ..ClientConfig::default() };
    let fixture = Fixture::with_config(osds, nodes, Preset { fragment_encryption, ..preset }, config);
    let repairer = fixture.client.repairer();
    Ward { fixture, repairer, _dir: dir }
}

impl Ward {
    /// How the OSDs stand: all take fragments but these.
    pub(super) fn osds(&self, but: &[(u32, Standing)]) -> Osds {
        let group = self.fixture.backend.group.lock().unwrap();
        let but: BTreeMap<OsdId, Standing> = but.iter().map(|(id, standing)| (osd(*id), *standing)).collect();
        group
            .known
            .iter()
            .map(|(id, info)| (*id, view(info, but.get(id).copied().unwrap_or(Standing::Takes))))
            .collect()
    }

    pub(super) fn stored(&self, object: &str) -> Manifest {
        self.fixture.backend.stored(&name(object)).unwrap()
    }

    pub(super) async fn repair_by(
        &self,
        repairer: &Repairer,
        object: &str,
        osds: &Osds,
        suspects: &[Suspect],
    ) -> Result<Repaired, RepairError> {
        let patient = repairer.patient(record());
        let id = self.stored(object).object_id;
        let repaired = repairer.repair(&patient, id, osds, suspects, self.fixture.deadline()).await;
        // The last of its steps.
        repairer.engine.settle(self.fixture.deadline()).await.unwrap();
        repaired
    }

    pub(super) async fn repair(&self, object: &str, osds: &Osds) -> Result<Repaired, RepairError> {
        self.repair_by(&self.repairer, object, osds, &[]).await
    }

    pub(super) fn kill(&self, ids: &[u32]) {
        for id in ids {
            self.fixture.backend.osd(osd(*id)).set(|faults| faults.dead = true);
        }
    }

    /// Every fragment that the manifest names is where it says, as it says, without a tag, and its recovery info tells
    /// the same of all fragments that were placed no later.
    pub(super) fn check(&self, object: &str) {
        self.check_all(object, true);
    }

    /// The same of an object that several were at: whoever lost a race may leave tags on what another one's update names.
    pub(super) fn check_but_tags(&self, object: &str) {
        self.check_all(object, false);
    }

    fn check_all(&self, object: &str, tags: bool) {
        let manifest = self.stored(object);
        let mut there = BTreeSet::new();
        for device in self.fixture.backend.all() {
            for (key, stored) in device.memory.content() {
                match parse(&key).unwrap() {
                    Parsed::Fragment(_, at) if at.object_id == manifest.object_id => {
                        let entry = manifest.fragment(at.chunk, at.fragment).unwrap();
                        if entry.location == Some(device.id) && entry.version == at.version {
                            assert!(entry.checksum.matches(&stored.value), "{at:?}");
                            assert_eq!(u32::try_from(stored.value.len()).unwrap(), entry.packed_len);
                            there.insert((at.chunk, at.fragment));
                        }
                    }
                    Parsed::RecoveryInfo(_, at) if at.object_id == manifest.object_id => {
                        let entry = manifest.fragment(at.chunk, at.fragment).unwrap();
                        if entry.location != Some(device.id) || entry.version != at.version {
                            continue;
                        }
                        let info =
                            RecoveryInfo::decode_with(stored.value, |_| Some(FragmentKey::new(KEY))).unwrap();
                        assert_eq!(info.ctr, entry.ctr);
                        assert_eq!(info.object.is_some(), at.chunk.index() + 1 == manifest.chunks.len());
                        let siblings = &manifest.chunks[at.chunk.index()].fragments;
                        for (told, sibling) in info.fragments.iter().zip(siblings) {
                            if sibling.version <= at.version {
                                assert_eq!(*told, (sibling.packed_len, sibling.checksum));
                            }
                        }
                    }
                    Parsed::GcTag(_, _, at) if tags && at.object_id == manifest.object_id => {
                        let entry = manifest.fragment(at.chunk, at.fragment).unwrap();
                        assert_ne!(
                            (entry.location, entry.version),
                            (Some(device.id), at.version),
                            "a tag is left"
                        );
                    }
                    _ => {}
                }
            }
        }
        let named = manifest.fragments().filter(|(_, _, entry)| entry.location.is_some());
        for (chunk, fragment, entry) in named {
            assert!(there.contains(&(chunk, fragment)), "{chunk} {fragment} {entry:?} is not there");
        }
    }
}

/// Features §7.2 c among them: what is computed for k > 1 is packed for k > 1.
#[test]
fn what_was_lost_is_as_good_as_new_for_every_shape_and_preset() {
    for (policy, nodes) in [([5, 4, 8, 3], 4), ([2, 2, 3, 2], 4), ([1, 2, 2, 1], 6), ([3, 1, 4, 2], 3)] {
        for compression in [Compression::None, Compression::Zstd] {
            for encrypt in [false, true] {
                let label = format!("{policy:?} {compression:?} {encrypt}");
                let ward = encrypted(16, nodes, preset(&[policy], 1024, compression), encrypt);
                let k = usize::try_from(policy[0]).unwrap();
                let m = usize::try_from(policy[1]).unwrap();
                let bytes = data(1024 * k * 2 + 77);
                ward.fixture.run(async {
                    put(&ward.fixture, "o", &bytes).await.unwrap();
                    settle(&ward.fixture).await;
                    let before = ward.stored("o");
                    let first = &before.chunks[0].fragments;
                    let lost: Vec<u32> =
                        first.iter().filter_map(|f| u32::try_from(f.location?.get()).ok()).take(m).collect();
                    ward.kill(&lost);
                    let dead: Vec<_> = lost.iter().map(|id| (*id, Standing::Dead)).collect();
                    let osds = ward.osds(&dead);
                    assert_eq!(ward.repair("o", &osds).await, Ok(Repaired::Updated), "{label}");
                    ward.check("o");
                    let after = ward.stored("o");
                    assert_eq!((after.object_id, after.version.0), (before.object_id, 1));
                    let changed = |(old, new): &((_, _, &_), (_, _, &_))| {
                        let (old, new): (&alba_core::manifest::Fragment, &alba_core::manifest::Fragment) =
                            (old.2, new.2);
                        old != new
                    };
                    let replaced: Vec<_> =
                        before.fragments().zip(after.fragments()).filter(changed).collect();
                    assert_eq!(replaced.len(), m * 3, "{label}: only what was lost");
                    if encrypt && k > 1 {
                        assert!(replaced.iter().all(|(old, new)| old.2.ctr != new.2.ctr), "fresh counters");
                    }
                    let queued = ward.fixture.backend.group.lock().unwrap().queued.len();
                    assert_eq!(queued, m * 3, "what was replaced can be deleted");
                    assert_eq!(ward.repair("o", &osds).await, Ok(Repaired::Nothing), "{label}");
                    // All of the kept ones but k go: only now is what was computed needed.
                    let kept: Vec<OsdId> = after.chunks[0]
                        .fragments
                        .iter()
                        .filter(|f| f.version.0 == 0)
                        .filter_map(|f| f.location)
                        .collect();
                    for gone in kept.iter().take(m) {
                        ward.fixture.backend.osd(*gone).set(|faults| faults.dead = true);
                    }
                    assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes, "{label}");
                });
            }
        }
    }
}

#[test]
fn fragments_then_manifest_then_tags() {
    let ward = ward(8, 8, preset(&[[3, 2, 4, 1]], 1024, Compression::None));
    ward.fixture.run(async {
        put(&ward.fixture, "o", &data(7000)).await.unwrap();
        settle(&ward.fixture).await;
        let from = ward.fixture.backend.events().len();
        let lost = ward.stored("o").chunks[0].fragments[1].location.unwrap();
        let lost = u32::try_from(lost.get()).unwrap();
        ward.kill(&[lost]);
        ward.repair("o", &ward.osds(&[(lost, Standing::Dead)])).await.unwrap();
        let events = ward.fixture.backend.events().split_off(from);
        let asked = events.iter().position(|event| *event == Event::UpdateAsked).unwrap();
        let answered = events.iter().position(|event| *event == Event::UpdateAnswered).unwrap();
        assert_eq!(asked, 3, "one fragment of each chunk, then one update: {events:?}");
        assert!(events[..asked].iter().all(|event| matches!(event, Event::Stored(..))));
        assert!(events[answered + 1..].iter().all(|event| matches!(event, Event::TagRemoved(..))));
        assert_eq!(events.len(), answered + 1 + 3);
    });
}

#[test]
fn what_can_be_read_is_copied_from_osd_to_osd() {
    for no_copies in [false, true] {
        let ward = ward(8, 8, preset(&[[3, 2, 4, 1]], 1024, Compression::Zstd));
        let bytes = data(7000);
        ward.fixture.run(async {
            put(&ward.fixture, "o", &bytes).await.unwrap();
            settle(&ward.fixture).await;
            for device in ward.fixture.backend.all() {
                device.set(|faults| faults.no_copies = no_copies);
                *device.reads.lock().unwrap() = 0;
            }
            let before = ward.stored("o");
            let from = before.chunks[0].fragments[1].location.unwrap();
            let leaving = u32::try_from(from.get()).unwrap();
            let osds = ward.osds(&[(leaving, Standing::Leaving)]);
            assert_eq!(ward.repair("o", &osds).await, Ok(Repaired::Updated));
            ward.check("o");
            let after = ward.stored("o");
            assert!(after.fragments().all(|(_, _, entry)| entry.location != Some(from)));
            for (old, new) in before.fragments().zip(after.fragments()) {
                assert_eq!((old.2.checksum, old.2.packed_len), (new.2.checksum, new.2.packed_len));
            }
            let reads: usize = ward.fixture.backend.all().iter().map(|o| *o.reads.lock().unwrap()).sum();
            let statistics = ward.repairer.statistics();
            assert_eq!((statistics.copied, statistics.regenerated), (3, 0));
            let expected = if no_copies { (3, 0) } else { (0, 3) };
            assert_eq!((reads, statistics.peer_copied), expected, "nothing but the fragments is read");
            assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes);
        });
    }
}

#[test]
fn damage_that_a_reader_found_is_repaired_and_what_is_well_is_not_touched() {
    let ward = ward(8, 8, preset(&[[3, 2, 4, 1]], 1024, Compression::None));
    let bytes = data(3000);
    ward.fixture.run(async {
        put(&ward.fixture, "o", &bytes).await.unwrap();
        settle(&ward.fixture).await;
        let manifest = ward.stored("o");
        let suspect = |fragment: u32, lost_if_silent| Suspect {
            fragment: (ChunkIndex(0), FragmentIndex(fragment), manifest.version),
            lost_if_silent,
        };
        let osds = ward.osds(&[]);
        let all: Vec<Suspect> = (0..5).map(|fragment| suspect(fragment, true)).collect();
        assert_eq!(ward.repair_by(&ward.repairer, "o", &osds, &all).await, Ok(Repaired::Nothing));
        // Two rot: one is reported, the other is met when the first is computed from it.
        for device in ward.fixture.backend.all() {
            device.corrupt(|at| at.fragment.0 == 0 || at.fragment.0 == 4);
        }
        let one = [suspect(4, false)];
        assert_eq!(ward.repair_by(&ward.repairer, "o", &osds, &one).await, Ok(Repaired::Updated));
        ward.check("o");
        let after = ward.stored("o");
        for (index, entry) in after.chunks[0].fragments.iter().enumerate() {
            assert_eq!(entry.version.0 > 0, index == 0 || index == 4);
        }
        assert_eq!(ward.repairer.statistics().regenerated, 2);
        // Of a version that is gone.
        assert_eq!(ward.repair_by(&ward.repairer, "o", &osds, &one).await, Ok(Repaired::Nothing));
        // An OSD that does not answer loses nothing by that, unless it is wanted so.
        let silent = after.chunks[0].fragments[1].location.unwrap();
        ward.fixture.backend.osd(silent).set(|faults| faults.dead = true);
        let fragment = (ChunkIndex(0), FragmentIndex(1), after.chunks[0].fragments[1].version);
        let say = |lost_if_silent| [Suspect { fragment, lost_if_silent }];
        assert_eq!(ward.repair_by(&ward.repairer, "o", &osds, &say(false)).await, Ok(Repaired::Nothing));
        assert_eq!(ward.repair_by(&ward.repairer, "o", &osds, &say(true)).await, Ok(Repaired::Updated));
        assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes);
    });
}

#[test]
fn two_repairers_at_one_object_do_no_harm_and_are_counted() {
    let ward = ward(9, 9, preset(&[[3, 2, 4, 1]], 1024, Compression::None));
    let bytes = data(7000);
    ward.fixture.run(async {
        put(&ward.fixture, "o", &bytes).await.unwrap();
        settle(&ward.fixture).await;
        let lost = u32::try_from(ward.stored("o").chunks[0].fragments[0].location.unwrap().get()).unwrap();
        ward.kill(&[lost]);
        let osds = ward.osds(&[(lost, Standing::Dead)]);
        let other = ward.fixture.second_client().repairer();
        let (one, two) =
            futures_util::future::join(ward.repair("o", &osds), ward.repair_by(&other, "o", &osds, &[]))
                .await;
        let mut outcomes = [one.unwrap(), two.unwrap()];
        outcomes.sort_by_key(|outcome| *outcome == Repaired::Updated);
        assert_eq!(outcomes, [Repaired::Nothing, Repaired::Updated]);
        assert_eq!(ward.repairer.statistics().raced + other.statistics().raced, 1);
        assert_eq!(ward.stored("o").version.0, 1);
        // What both had stored is the second one's by its tag, which stays for garbage collection when the first one wins.
        ward.check_but_tags("o");
        assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes);
    });
}

#[test]
fn a_write_that_fails_goes_elsewhere_and_a_lost_answer_is_not_a_failure() {
    let ward = ward(9, 9, preset(&[[3, 2, 5, 1]], 1024, Compression::None));
    let bytes = data(7000);
    ward.fixture.run(async {
        put(&ward.fixture, "o", &bytes).await.unwrap();
        settle(&ward.fixture).await;
        let used: BTreeSet<OsdId> =
            ward.stored("o").fragments().filter_map(|(_, _, entry)| entry.location).collect();
        let lost = u32::try_from(used.first().unwrap().get()).unwrap();
        ward.kill(&[lost]);
        let free: Vec<_> =
            ward.fixture.backend.all().into_iter().filter(|device| !used.contains(&device.id)).collect();
        // Of four places one works, and its first answers get lost.
        for full in &free[..3] {
            full.set(|faults| faults.full = true);
        }
        free[3].set(|faults| faults.lost_answers = 2);
        let osds = ward.osds(&[(lost, Standing::Dead)]);
        assert_eq!(ward.repair("o", &osds).await, Ok(Repaired::Updated));
        ward.check("o");
        let places: BTreeSet<OsdId> =
            ward.stored("o").fragments().filter_map(|(_, _, entry)| entry.location).collect();
        assert!(places.contains(&free[3].id) && !places.contains(&osd(lost)));
        assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes);
    });
}

#[test]
fn refusals_of_the_group_lead_to_another_attempt_and_a_lost_session_to_the_truth() {
    let ward = ward(9, 9, preset(&[[3, 2, 4, 1]], 1024, Compression::None));
    ward.fixture.run(async {
        put(&ward.fixture, "o", &data(3000)).await.unwrap();
        settle(&ward.fixture).await;
        let lose = |index: usize| {
            let at = ward.stored("o").chunks[0].fragments[index].location.unwrap();
            (u32::try_from(at.get()).unwrap(), Standing::Dead)
        };
        let first = lose(0);
        {
            let mut group = ward.fixture.backend.group.lock().unwrap();
            group.info.newest_epoch = GcEpoch::from_u32(9);
            group.update_refusals =
                vec![Some(MetaError::Nsm(NsmError::InvalidGcEpoch(GcEpoch::from_u32(3)))), None];
        }
        assert_eq!(ward.repair("o", &ward.osds(&[first])).await, Ok(Repaired::Updated));
        ward.check("o");
        let second = lose(1);
        ward.fixture.backend.group.lock().unwrap().lose_session = true;
        assert_eq!(ward.repair("o", &ward.osds(&[first, second])).await, Ok(Repaired::Updated));
        assert_eq!(ward.stored("o").version.0, 2, "applied once");
        ward.check("o");
    });
}

#[test]
fn holes_of_purged_osds_come_first_and_what_cannot_be_read_is_said() {
    let ward = ward(5, 5, preset(&[[3, 2, 3, 1]], 1024, Compression::None));
    let bytes = data(3000);
    ward.fixture.run(async {
        put(&ward.fixture, "o", &bytes).await.unwrap();
        settle(&ward.fixture).await;
        ward.kill(&[0]);
        let osds = ward.osds(&[(0, Standing::Gone)]);
        assert_eq!(ward.repair("o", &osds).await, Ok(Repaired::Updated));
        let holes =
            |manifest: &Manifest| manifest.fragments().filter(|(_, _, f)| f.location.is_none()).count();
        assert_eq!(holes(&ward.stored("o")), 1);
        // A new OSD: the hole is filled.
        ward.fixture.backend.add_osd(10).await;
        let clock = ward.fixture.node.env().clock;
        clock.sleep_until(clock.now().plus(Duration::from_secs(1))).await;
        let osds = ward.osds(&[(0, Standing::Gone)]);
        assert_eq!(ward.repair("o", &osds).await, Ok(Repaired::Updated));
        assert_eq!(holes(&ward.stored("o")), 0);
        ward.check("o");
        assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes);
        let too_many =
            ward.osds(&[(0, Standing::Gone), (1, Standing::Gone), (2, Standing::Gone), (3, Standing::Gone)]);
        let expected = Unrepairable::TooFewFragments { chunk: ChunkIndex(0), readable: 2, needed: 3 };
        let mut outcome = ward.repair("o", &too_many).await;
        while outcome == Ok(Repaired::Updated) {
            outcome = ward.repair("o", &too_many).await;
        }
        assert_eq!(outcome, Err(RepairError::Unrepairable(expected)));
    });
}

#[test]
fn an_object_of_a_worse_policy_is_stored_anew_while_it_is_the_same() {
    let policies = [[3, 2, 4, 1], [1, 2, 2, 1]];
    let ward = ward(3, 8, preset(&policies, 1024, Compression::Lz4));
    let bytes = data(7000);
    ward.fixture.run(async {
        put(&ward.fixture, "o", &bytes).await.unwrap();
        settle(&ward.fixture).await;
        let before = ward.stored("o");
        assert_eq!(before.scheme.shape.as_u8(), (1, 2));
        for id in 3..7 {
            ward.fixture.backend.add_osd(id).await;
        }
        let clock = ward.fixture.node.env().clock;
        clock.sleep_until(clock.now().plus(Duration::from_secs(60))).await;
        let osds = ward.osds(&[]);
        assert_eq!(ward.repair("o", &osds).await, Ok(Repaired::Rewritten));
        let after = ward.stored("o");
        assert_eq!(after.scheme.shape.as_u8(), (3, 2));
        assert_ne!(after.object_id, before.object_id);
        assert_eq!((after.checksum, after.size), (before.checksum, before.size));
        settle(&ward.fixture).await;
        assert_eq!(ward.repair("o", &osds).await, Ok(Repaired::Nothing));
        assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes);
        // The object that was asked about is gone.
        let patient = ward.repairer.patient(record());
        let asked = ward.repairer.repair(&patient, before.object_id, &osds, &[], ward.fixture.deadline());
        assert_eq!(asked.await, Ok(Repaired::Absent));
    });
}

/// A compressor that has changed since gives other bytes: sizes and checksums are replaced.
#[test]
fn other_output_of_the_compressor_is_accepted() {
    let ward = ward(8, 8, preset(&[[3, 2, 4, 1]], 1024, Compression::Zstd));
    let bytes = Bytes::from(vec![7; 3000]);
    ward.fixture.run(async {
        put(&ward.fixture, "o", &bytes).await.unwrap();
        settle(&ward.fixture).await;
        // As if the other version had packed one fragment: longer, and right by its own checksum.
        let old = ward.stored("o");
        let at = old.chunks[0].fragments[1].location.unwrap();
        ward.fixture.backend.change(&name("o"), |manifest| {
            let entry = &mut manifest.chunks[0].fragments[1];
            entry.packed_len += 5;
            entry.checksum = alba_core::checksum::Checksum::Blake3([1; 32]);
        });
        let lost = u32::try_from(at.get()).unwrap();
        ward.kill(&[lost]);
        assert_eq!(ward.repair("o", &ward.osds(&[(lost, Standing::Dead)])).await, Ok(Repaired::Updated));
        let entry = ward.stored("o").chunks[0].fragments[1].clone();
        let was = &old.chunks[0].fragments[1];
        assert_eq!((entry.packed_len, entry.checksum), (was.packed_len, was.checksum));
        ward.check("o");
        assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes);
    });
}

/// The weakest first, by the group's indexes: each object once, however many of its OSDs are dead.
#[test]
fn a_survey_finds_all_that_can_be_improved_and_counts_exactly() {
    let ward = ward(9, 9, preset(&[[3, 2, 3, 1]], 1024, Compression::None));
    ward.fixture.run(async {
        for object in 0..14 {
            put(&ward.fixture, &format!("o{object:02}"), &data(3000)).await.unwrap();
        }
        settle(&ward.fixture).await;
        let clock = ward.fixture.node.env().clock;
        clock.sleep_until(clock.now().plus(Duration::from_secs(100))).await;
        // One object has two holes.
        ward.fixture.backend.change(&name("o13"), |manifest| {
            manifest.chunks[0].fragments[3].location = None;
            manifest.chunks[0].fragments[4].location = None;
        });
        let dead = [(0, Standing::Dead), (1, Standing::Dead), (2, Standing::Leaving)];
        let osds = ward.osds(&dead);
        let left = |manifest: &Manifest| {
            let lost = |osd: OsdId| osd.get() < 2;
            let fragments = &manifest.chunks[0].fragments;
            let live = fragments.iter().filter(|f| f.location.is_some_and(|osd| !lost(osd))).count();
            i64::try_from(live).unwrap() - 3
        };
        let all: Vec<Manifest> = (0..14).map(|object| ward.stored(&format!("o{object:02}"))).collect();
        let touched = |manifest: &&Manifest| {
            let there = |f: &alba_core::manifest::Fragment| f.location.is_none_or(|osd| osd.get() < 3);
            manifest.chunks[0].fragments.iter().any(there)
        };
        let mut expected: Vec<i64> = all.iter().filter(touched).map(left).collect();
        expected.sort_unstable();
        let patient = ward.repairer.patient(record());
        let (mut queue, none) = (Weakest::new(100), BTreeSet::new());
        let survey = ward.repairer.survey(&patient, &osds, (&none, &none), &mut queue).await.unwrap();
        let found: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(found.iter().map(|waiting| waiting.remaining).collect::<Vec<_>>(), expected);
        assert_eq!(survey.repairable, u64::try_from(expected.len()).unwrap());
        let below = all.iter().filter(|manifest| left(manifest) < 2).count();
        assert_eq!(survey.below_policy, u64::try_from(below).unwrap());
        let least = all.iter().map(left).min().unwrap();
        let as_weak = all.iter().filter(|manifest| left(manifest) == least).count();
        assert_eq!(survey.safety.least(), Some((least, u64::try_from(as_weak).unwrap())));
        assert_eq!(ward.repairer.safety(&patient, &osds).await.unwrap(), survey.safety);
        // All of it is repaired in that order, and then there is nothing.
        for waiting in found {
            let repaired =
                ward.repairer.repair(&patient, waiting.object, &osds, &[], ward.fixture.deadline());
            assert_eq!(repaired.await, Ok(Repaired::Updated));
        }
        let survey = ward.repairer.survey(&patient, &osds, (&none, &none), &mut queue).await.unwrap();
        assert_eq!((survey.repairable, survey.below_policy, queue.len()), (0, 0, 0));
        // An OSD that the registry does not have yet is new, and well; one that the ABM does not know
        // may be one of later than its backup: it is not taken for lost.
        let found = ward.repairer.osds(&patient, &Registry::default()).await.unwrap();
        assert!(found.iter().all(|(_, view)| view.standing == Standing::Takes));
        ward.fixture.backend.osds.lock().unwrap().remove(&osd(5));
        let found = ward.repairer.osds(&patient, &Registry::default()).await.unwrap();
        assert_eq!(found.standing(osd(5)), Standing::Dead);
    });
}

/// An OSD that counts as dead may still answer: what nobody else has is read from it.
#[test]
fn what_only_silent_osds_have_is_read_from_them() {
    let ward = ward(9, 9, preset(&[[3, 2, 4, 1]], 1024, Compression::None));
    let bytes = data(7000);
    ward.fixture.run(async {
        put(&ward.fixture, "o", &bytes).await.unwrap();
        settle(&ward.fixture).await;
        let silent: Vec<(u32, Standing)> = ward.stored("o").chunks[0]
            .fragments
            .iter()
            .take(3)
            .map(|entry| (u32::try_from(entry.location.unwrap().get()).unwrap(), Standing::Dead))
            .collect();
        let osds = ward.osds(&silent);
        assert_eq!(ward.repair("o", &osds).await, Ok(Repaired::Updated));
        ward.check("o");
        let left = ward.stored("o");
        assert!(left.fragments().all(|(_, _, entry)| {
            entry.location.is_some_and(|at| silent.iter().all(|(id, _)| at != osd(*id)))
        }));
        assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes);
    });
}

/// Each chunk has damage of its own that nobody has reported: it is met one after the other, and all is repaired.
#[test]
fn damage_that_is_met_on_the_way_is_repaired_in_every_chunk() {
    let ward = ward(9, 9, preset(&[[3, 2, 4, 1]], 1024, Compression::None));
    let bytes = data(3 * 1024 * 20);
    ward.fixture.run(async {
        put(&ward.fixture, "o", &bytes).await.unwrap();
        settle(&ward.fixture).await;
        for device in ward.fixture.backend.all() {
            device.corrupt(|at| at.fragment.0 == 1);
        }
        let lost = u32::try_from(ward.stored("o").chunks[0].fragments[0].location.unwrap().get()).unwrap();
        ward.kill(&[lost]);
        assert_eq!(ward.repair("o", &ward.osds(&[(lost, Standing::Dead)])).await, Ok(Repaired::Updated));
        ward.check("o");
        assert_eq!(ward.repairer.statistics().regenerated, 40);
        assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes);
    });
}

/// Beside what was to be repaired a source is missing: the fragment is computed of others, and the source repaired, too.
#[test]
fn sources_that_are_missing_are_repaired_though_there_were_others() {
    let ward = ward(9, 9, preset(&[[3, 3, 4, 1]], 1024, Compression::None));
    let bytes = data(3 * 1024 * 4);
    ward.fixture.run(async {
        put(&ward.fixture, "o", &bytes).await.unwrap();
        settle(&ward.fixture).await;
        for device in ward.fixture.backend.all() {
            device.lose(|at| at.fragment.0 == 1).await;
        }
        let lost = u32::try_from(ward.stored("o").chunks[0].fragments[0].location.unwrap().get()).unwrap();
        ward.kill(&[lost]);
        assert_eq!(ward.repair("o", &ward.osds(&[(lost, Standing::Dead)])).await, Ok(Repaired::Updated));
        ward.check("o");
        assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes);
    });
}
