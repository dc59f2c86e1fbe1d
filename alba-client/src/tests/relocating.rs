//! Moves of what an object has on one OSD: verbatim, or not at all, whoever else is at the object.

use alba_core::env::MetaError;
use alba_core::ids::{GcEpoch, OsdId};
use alba_core::manifest::Manifest;
use alba_core::preset::Compression;
use alba_core::wire::rpc::abm::WorkItem;
use alba_core::wire::rpc::nsm::NsmError;

use super::backend::{preset, record};
use super::repairing::{Ward, encrypted, ward};
use super::*;
use crate::repair::{Relocated, Relocation, Repaired, Repairer, Standing};

/// From the first OSD of the object to one that has nothing of it.
fn planned(ward: &Ward, manifest: &Manifest) -> Relocation {
    let used: std::collections::BTreeSet<OsdId> =
        manifest.fragments().filter_map(|(_, _, entry)| entry.location).collect();
    let free = ward.fixture.backend.all().into_iter().find(|device| !used.contains(&device.id)).unwrap();
    let source = manifest.chunks[0].fragments[0].location.unwrap();
    Relocation { object: manifest.object_id, version: manifest.version, source, target: free.id }
}

async fn relocate(ward: &Ward, repairer: &Repairer, relocation: Relocation) -> Relocated {
    let patient = repairer.patient(record());
    let moved = repairer.relocate(&patient, relocation, &ward.osds(&[]), ward.fixture.deadline()).await;
    // The last of its steps.
    repairer.engine.settle(ward.fixture.deadline()).await.unwrap();
    moved.unwrap()
}

fn bytes_on(manifest: &Manifest, osd: OsdId) -> u64 {
    let there = manifest.fragments().filter(|(_, _, entry)| entry.location == Some(osd));
    there.map(|(_, _, entry)| u64::from(entry.packed_len)).sum()
}

#[test]
fn fragments_are_moved_as_they_are_from_osd_to_osd() {
    for (encrypt, no_copies) in [(false, false), (true, false), (true, true)] {
        let ward = encrypted(8, 8, preset(&[[3, 2, 4, 1]], 1024, Compression::Zstd), encrypt);
        let bytes = data(7000);
        ward.fixture.run(async {
            put(&ward.fixture, "o", &bytes).await.unwrap();
            settle(&ward.fixture).await;
            for device in ward.fixture.backend.all() {
                device.set(|faults| faults.no_copies = no_copies);
                *device.reads.lock().unwrap() = 0;
            }
            let before = ward.stored("o");
            let chosen = planned(&ward, &before);
            let there = bytes_on(&before, chosen.source);
            assert!(there > 0);
            let outcome = relocate(&ward, &ward.repairer, chosen).await;
            assert_eq!(outcome, Relocated::Moved { bytes: there });
            ward.check("o");
            let after = ward.stored("o");
            assert_eq!(after.version.0, before.version.0 + 1);
            for (old, new) in before.fragments().zip(after.fragments()) {
                let (old, new) = (old.2, new.2);
                assert_eq!((old.checksum, old.packed_len, old.ctr), (new.checksum, new.packed_len, new.ctr));
                let moved = old.location == Some(chosen.source);
                let expected = if moved { Some(chosen.target) } else { old.location };
                assert_eq!(new.location, expected, "nothing else has moved");
            }
            let reads: usize = ward.fixture.backend.all().iter().map(|o| *o.reads.lock().unwrap()).sum();
            assert_eq!(reads, if no_copies { 3 } else { 0 });
            let queued = ward.fixture.backend.group.lock().unwrap().queued.len();
            assert_eq!(queued, 3, "the old place can be deleted");
            assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes);
            // Again: there is nothing any more.
            assert_eq!(relocate(&ward, &ward.repairer, chosen).await, Relocated::Stale);
        });
    }
}

#[test]
fn a_move_of_another_version_changes_nothing() {
    let ward = ward(9, 9, preset(&[[3, 2, 4, 1]], 1024, Compression::None));
    ward.fixture.run(async {
        put(&ward.fixture, "o", &data(3000)).await.unwrap();
        settle(&ward.fixture).await;
        let chosen = planned(&ward, &ward.stored("o"));
        // Repaired meanwhile.
        let lost = ward.stored("o").chunks[0].fragments[3].location.unwrap();
        let lost = u32::try_from(lost.get()).unwrap();
        let osds = ward.osds(&[(lost, Standing::Dead)]);
        assert_eq!(ward.repair("o", &osds).await, Ok(Repaired::Updated));
        let before = ward.stored("o");
        assert_eq!(relocate(&ward, &ward.repairer, chosen).await, Relocated::Stale);
        assert_eq!(ward.stored("o"), before);
        // Overwritten meanwhile: the old object is gone.
        put(&ward.fixture, "o", &data(4000)).await.unwrap();
        let now = Relocation { version: before.version, ..chosen };
        assert_eq!(relocate(&ward, &ward.repairer, now).await, Relocated::Stale);
        assert_eq!(get(&ward.fixture, "o").await.unwrap(), data(4000));
    });
}

#[test]
fn of_two_movers_and_repair_at_once_one_wins_and_nothing_is_lost() {
    let ward = ward(9, 9, preset(&[[3, 2, 4, 1]], 1024, Compression::None));
    let bytes = data(7000);
    ward.fixture.run(async {
        put(&ward.fixture, "o", &bytes).await.unwrap();
        settle(&ward.fixture).await;
        let before = ward.stored("o");
        let chosen = planned(&ward, &before);
        let other = ward.fixture.second_client().repairer();
        let lost = u32::try_from(before.chunks[0].fragments[2].location.unwrap().get()).unwrap();
        let osds = ward.osds(&[(lost, Standing::Leaving)]);
        let (one, two, repaired) = futures_util::future::join3(
            relocate(&ward, &ward.repairer, chosen),
            relocate(&ward, &other, chosen),
            ward.repair("o", &osds),
        )
        .await;
        // Repair goes on until it is done; of the moves at most one was in time.
        assert_eq!(repaired, Ok(Repaired::Updated));
        let moved = [&one, &two].iter().filter(|outcome| matches!(outcome, Relocated::Moved { .. })).count();
        assert!(moved <= 1, "{one:?} {two:?}");
        assert_eq!(ward.stored("o").version.0, 1 + u32::try_from(moved).unwrap());
        ward.check_but_tags("o");
        assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes);
    });
}

#[test]
fn a_target_that_is_full_or_dead_leaves_the_object_as_it_is() {
    let ward = ward(8, 8, preset(&[[3, 2, 4, 1]], 1024, Compression::None));
    let bytes = data(7000);
    ward.fixture.run(async {
        put(&ward.fixture, "o", &bytes).await.unwrap();
        settle(&ward.fixture).await;
        let before = ward.stored("o");
        let chosen = planned(&ward, &before);
        let target = ward.fixture.backend.osd(chosen.target);
        target.set(|faults| faults.full = true);
        assert!(matches!(relocate(&ward, &ward.repairer, chosen).await, Relocated::Refused(_)));
        assert_eq!(ward.stored("o"), before);
        target.set(|faults| (faults.full, faults.dead) = (false, true));
        assert!(matches!(relocate(&ward, &ward.repairer, chosen).await, Relocated::Refused(_)));
        assert_eq!(ward.stored("o"), before);
        // One that holds only.
        let patient = ward.repairer.patient(record());
        let holds = u32::try_from(chosen.target.get()).unwrap();
        let osds = ward.osds(&[(holds, Standing::Holds)]);
        let refused = ward.repairer.relocate(&patient, chosen, &osds, ward.fixture.deadline()).await;
        assert!(matches!(refused, Ok(Relocated::Refused(_))));
        // One that has a fragment of every chunk already.
        let taken = before.chunks[0].fragments[1].location.unwrap();
        let onto = Relocation { target: taken, ..chosen };
        assert_eq!(relocate(&ward, &ward.repairer, onto).await, Relocated::Stale);
        assert_eq!(get(&ward.fixture, "o").await.unwrap(), bytes);
    });
}

#[test]
fn damage_is_not_moved_but_handed_to_repair() {
    let ward = ward(8, 8, preset(&[[3, 2, 4, 1]], 1024, Compression::None));
    ward.fixture.run(async {
        put(&ward.fixture, "o", &data(2000)).await.unwrap();
        settle(&ward.fixture).await;
        let before = ward.stored("o");
        let chosen = planned(&ward, &before);
        ward.fixture.backend.osd(chosen.source).corrupt(|_| true);
        assert!(matches!(relocate(&ward, &ward.repairer, chosen).await, Relocated::Refused(_)));
        assert_eq!(ward.stored("o"), before);
        let work = ward.fixture.backend.group.lock().unwrap().work.clone();
        let told = work.iter().any(
            |item| matches!(item, WorkItem::RepairBadFragment { object, .. } if *object == before.object_id),
        );
        assert!(told, "{work:?}");
    });
}

#[test]
fn what_the_group_refuses_is_dropped_and_the_next_one_knows_better() {
    let ward = ward(8, 8, preset(&[[3, 2, 4, 1]], 1024, Compression::None));
    ward.fixture.run(async {
        put(&ward.fixture, "o", &data(2000)).await.unwrap();
        put(&ward.fixture, "p", &data(2000)).await.unwrap();
        settle(&ward.fixture).await;
        let before = ward.stored("o");
        {
            let mut group = ward.fixture.backend.group.lock().unwrap();
            group.info.newest_epoch = GcEpoch::from_u32(9);
            group.update_refusals =
                vec![Some(MetaError::Nsm(NsmError::InvalidGcEpoch(GcEpoch::from_u32(3)))), None];
        }
        let refused = relocate(&ward, &ward.repairer, planned(&ward, &before)).await;
        assert!(matches!(refused, Relocated::Refused(_)), "{refused:?}");
        assert_eq!(ward.stored("o"), before);
        let next = planned(&ward, &ward.stored("p"));
        assert!(matches!(relocate(&ward, &ward.repairer, next).await, Relocated::Moved { .. }));
        ward.check("p");
    });
}
