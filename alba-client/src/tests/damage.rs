//! Damage: never handed on, whatever is read, and told to those who repair and count.

use std::time::Duration;

use alba_core::checksum::ChecksumAlgorithm;
use alba_core::ids::{FragmentIndex, ObjectVersion};
use alba_core::preset::Compression;
use alba_core::wire::rpc::abm::{AbmCommand, OsdReport, WorkItem};
use proptest::prelude::*;

use super::backend::{Fixture, preset};
use super::*;
use crate::{ClientConfig, Slice};

async fn slice(fixture: &Fixture, from: usize, len: usize) -> Result<Bytes, ClientError> {
    let slice = Slice { offset: i64::try_from(from).unwrap(), length: i32::try_from(len).unwrap() };
    let requests = vec![(name("o"), vec![slice])];
    let read =
        fixture.client.read_slices(&ns(), requests, Consistency::Consistent, fixture.deadline()).await?;
    Ok(read.data.concat().into())
}

async fn pause(fixture: &Fixture, seconds: u64) {
    fixture.node.env().clock.sleep_until(fixture.simulation.now().plus(Duration::from_secs(seconds))).await;
}

fn repairs(fixture: &Fixture) -> Vec<WorkItem> {
    let told = fixture.backend.told_abm.lock().unwrap();
    let items = |command: &AbmCommand| match command {
        AbmCommand::AddWork(items) => items.clone(),
        _ => Vec::new(),
    };
    told.iter().flat_map(items).collect()
}

fn reports(fixture: &Fixture) -> Vec<(String, OsdReport)> {
    let told = fixture.backend.told_abm.lock().unwrap();
    let reports = |command: &AbmCommand| match command {
        AbmCommand::ReportOsds(reports) => reports.clone(),
        _ => Vec::new(),
    };
    told.iter().flat_map(reports).map(|(id, report)| (id.as_str().to_owned(), report)).collect()
}

const FRAGMENT: usize = 64 << 10;

#[test]
fn a_flipped_bit_never_reaches_a_reader_of_slices() {
    for algorithm in [ChecksumAlgorithm::Blake3, ChecksumAlgorithm::Crc32c, ChecksumAlgorithm::Sha1] {
        let mut preset = preset(&[[2, 2, 4, 1]], 64 << 10, Compression::None);
        preset.fragment_checksum = algorithm;
        let fixture = Fixture::new(4, 4, preset);
        let bytes = data(4 * FRAGMENT);
        fixture.run(async {
            put(&fixture, "o", &bytes).await.unwrap();
            for osd in fixture.backend.all() {
                osd.corrupt(|at| at.fragment == FragmentIndex(0));
            }
            for (from, len) in [(0, 1), (10, 4096), (0, FRAGMENT), (FRAGMENT - 5, 10), (0, 4 * FRAGMENT)] {
                let read = slice(&fixture, from, len).await.unwrap();
                assert_eq!(read, bytes.slice(from..from + len), "{algorithm:?} {from} {len}");
            }
            assert!(fixture.client.statistics().fragments_damaged >= 2, "{algorithm:?}");
        });
    }
}

#[test]
fn what_an_osd_gives_is_verified_even_when_its_own_checks_find_nothing() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 64 << 10, Compression::None));
    let bytes = data(2 * FRAGMENT);
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        let manifest = fixture.backend.stored(&name("o")).unwrap();
        let at = manifest.chunks[0].fragments[0].location.unwrap();
        fixture.backend.osd(at).set(|f| f.lies = true);
        assert_eq!(slice(&fixture, 100, 50).await.unwrap(), bytes.slice(100..150));
        assert_eq!(fixture.client.statistics().fragments_damaged, 1);
        pause(&fixture, 2).await;
        let expected = WorkItem::RepairBadFragment {
            namespace: backend::NS,
            object: manifest.object_id,
            name: name("o"),
            chunk: alba_core::ids::ChunkIndex(0),
            fragment: FragmentIndex(0),
            version: ObjectVersion(0),
        };
        assert_eq!(repairs(&fixture), [expected]);
    });
}

#[test]
fn slices_of_older_osds_are_read_as_whole_fragments_and_verified() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 64 << 10, Compression::None));
    let bytes = data(2 * FRAGMENT);
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        for osd in fixture.backend.all() {
            osd.set(|f| f.no_proofs = true);
            osd.corrupt(|at| at.fragment == FragmentIndex(1));
        }
        for _ in 0..3 {
            assert_eq!(
                slice(&fixture, FRAGMENT + 5, 10).await.unwrap(),
                bytes.slice(FRAGMENT + 5..FRAGMENT + 15)
            );
            assert_eq!(slice(&fixture, 5, 10).await.unwrap(), bytes.slice(5..15));
        }
        assert!(fixture.client.statistics().fragments_damaged >= 3);
        // An update is noticed.
        for osd in fixture.backend.all() {
            osd.set(|f| f.no_proofs = false);
            *osd.read_bytes.lock().unwrap() = 0;
        }
        pause(&fixture, 61).await;
        slice(&fixture, 5, 10).await.unwrap();
        let read: u64 = fixture.backend.all().iter().map(|osd| *osd.read_bytes.lock().unwrap()).sum();
        assert_eq!(read, 16 << 10);
    });
}

#[test]
fn what_readers_find_is_handed_to_repair_once() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    let bytes = data(8 * 2048);
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        settle(&fixture).await;
        // Eight chunks, one fragment of each damaged.
        for osd in fixture.backend.all() {
            osd.corrupt(|at| at.fragment == FragmentIndex(0));
        }
        for _ in 0..5 {
            assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
            assert_eq!(slice(&fixture, 0, bytes.len()).await.unwrap(), bytes);
        }
        pause(&fixture, 5).await;
        assert_eq!(repairs(&fixture).len(), 8);
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
        pause(&fixture, 5).await;
        assert_eq!(repairs(&fixture).len(), 8);
        assert_eq!(fixture.client.statistics().repairs_handed_over, 8);
    });
}

#[test]
fn a_missing_fragment_is_handed_over_when_the_abm_answers_again_and_nobody_waits_for_it() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    let bytes = data(2048);
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        settle(&fixture).await;
        let manifest = fixture.backend.stored(&name("o")).unwrap();
        let at = manifest.chunks[0].fragments[1].location.unwrap();
        fixture.backend.osd(at).remove_object(manifest.object_id).await;
        *fixture.backend.abm_is_gone.lock().unwrap() = true;
        let started = fixture.simulation.now();
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
        assert!(fixture.simulation.now().since(started) < Duration::from_secs(1));
        pause(&fixture, 100).await;
        assert_eq!(repairs(&fixture), []);
        *fixture.backend.abm_is_gone.lock().unwrap() = false;
        pause(&fixture, 100).await;
        assert_eq!(repairs(&fixture).len(), 1);
    });
}

#[test]
fn a_stale_manifest_makes_no_work() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    fixture.run(async {
        let other = fixture.second_client();
        put(&fixture, "o", &data(3000)).await.unwrap();
        settle(&fixture).await;
        assert_eq!(get_by(&fixture, &other, "o", Consistency::Cached).await.unwrap(), data(3000));
        let old = fixture.backend.stored(&name("o")).unwrap();
        put(&fixture, "o", &data(4000)).await.unwrap();
        settle(&fixture).await;
        for osd in fixture.backend.all() {
            osd.remove_object(old.object_id).await;
        }
        assert_eq!(get_by(&fixture, &other, "o", Consistency::Cached).await.unwrap(), data(4000));
        pause(&fixture, 10).await;
        assert_eq!(repairs(&fixture), []);
    });
}

#[test]
fn with_k_minus_1_left_the_error_is_clear_and_nothing_spins() {
    let fixture = Fixture::new(9, 3, preset(&[[5, 4, 9, 3]], 64 << 10, Compression::None));
    fixture.run(async {
        put(&fixture, "o", &data(5 * FRAGMENT)).await.unwrap();
        settle(&fixture).await;
        // Two gone, two without the value, one damaged: four are left.
        let manifest = fixture.backend.stored(&name("o")).unwrap();
        let at = |index: usize| fixture.backend.osd(manifest.chunks[0].fragments[index].location.unwrap());
        at(0).set(|f| f.dead = true);
        at(7).set(|f| f.dead = true);
        at(1).remove_object(manifest.object_id).await;
        at(5).remove_object(manifest.object_id).await;
        at(2).corrupt(|_| true);
        let reads = || fixture.backend.all().iter().map(|osd| *osd.reads.lock().unwrap()).sum::<usize>();
        let before = reads();
        let started = fixture.simulation.now();
        for result in [get(&fixture, "o").await, slice(&fixture, 100, 10).await] {
            let error = result.unwrap_err();
            let ClientError::NotEnoughFragments { needed, found, detail, .. } = &error else {
                panic!("{error}")
            };
            // It ends as soon as five have become impossible, whatever is still under way.
            assert!(*needed == 5 && *found <= 4, "{error}");
            assert_eq!(detail.matches("OSD ").count(), 5, "{detail}");
        }
        assert!(fixture.simulation.now().since(started) < Duration::from_secs(2));
        // Each is asked at most twice per read: a broken connection is tried once more.
        assert!(reads() - before <= 2 * 2 * 9, "{}", reads() - before);
    });
}

#[test]
fn the_abm_hears_how_osds_are_doing() {
    let config = ClientConfig { report_osds_ms: 10_000, ..ClientConfig::default() };
    let preset = preset(&[[2, 2, 4, 1]], 1024, Compression::None);
    let fixture = Fixture::with_config(4, 4, preset, config);
    fixture.run(async {
        put(&fixture, "o", &data(2048)).await.unwrap();
        settle(&fixture).await;
        let manifest = fixture.backend.stored(&name("o")).unwrap();
        let at = |index: usize| manifest.chunks[0].fragments[index].location.unwrap();
        fixture.backend.osd(at(0)).set(|f| f.dead = true);
        fixture.backend.osd(at(1)).corrupt(|_| true);
        get(&fixture, "o").await.unwrap();
        assert_eq!(reports(&fixture), []);
        pause(&fixture, 12).await;
        let told = reports(&fixture);
        assert_eq!(told.len(), 4);
        let of =
            |id: OsdId| &told.iter().find(|(name, _)| *name == format!("osd-{:03}", id.get())).unwrap().1;
        assert!(of(at(0)).errors.iter().any(|(_, text)| text.contains("refused")), "{:?}", of(at(0)));
        assert_eq!(of(at(0)).read, [0_u64; 0]);
        assert_eq!((of(at(1)).checksum_errors, of(at(1)).read.len()), (1, 1));
        assert_eq!((of(at(2)).errors.len(), of(at(2)).read.len(), of(at(2)).write.len()), (0, 1, 1));
        // Nothing new, nothing told of those that did nothing.
        pause(&fixture, 12).await;
        assert!(reports(&fixture).iter().skip(4).all(|(name, _)| *name == format!("osd-{:03}", at(0).get())));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_m_faults_of_any_kind_leave_all_reads_equal(
        code in 0_usize..3,
        compressed in any::<bool>(),
        faults in prop::collection::vec((0_usize..9, 0_u8..5, any::<prop::sample::Index>()), 0..4),
        ranges in prop::collection::vec((0_usize..300_000, 1_usize..100_000), 1..5),
    ) {
        let (policy, total) = [([5, 4, 9, 9], 9), ([2, 2, 4, 9], 4), ([1, 2, 3, 9], 3)][code];
        let m = usize::try_from(policy[1]).unwrap();
        let compression = if compressed { Compression::Lz4 } else { Compression::None };
        let fixture = Fixture::new(u32::try_from(total).unwrap(), 1, preset(&[policy], 40_000, compression));
        let bytes = data(300_000);
        fixture.run(async {
            put(&fixture, "o", &bytes).await.unwrap();
            settle(&fixture).await;
            for (which, kind, place) in faults.iter().take(m) {
                let osd = fixture.backend.osd(osd(u32::try_from(which % total).unwrap()));
                match kind {
                    0 => osd.set(|f| f.dead = true),
                    1 => osd.set(|f| f.delay = Duration::from_secs(100_000)),
                    2 => osd.set(|f| f.lies = true),
                    3 => osd.rot_anywhere(place),
                    _ => osd.remove_object(fixture.backend.stored(&name("o")).unwrap().object_id).await,
                }
            }
            for _ in 0..2 {
                assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
                for (from, len) in &ranges {
                    let len = *len.min(&(bytes.len() - from));
                    assert_eq!(slice(&fixture, *from, len).await.unwrap(), bytes.slice(*from..from + len));
                }
            }
        });
    }
}
