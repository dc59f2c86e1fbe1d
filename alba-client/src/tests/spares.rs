//! Spare OSDs that take over from failing and slow ones, and what is handed to repair.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alba_core::env::MetaError;
use alba_core::ids::{ChunkIndex, FragmentIndex, ObjectId, ObjectVersion, OsdId};
use alba_core::manifest::Manifest;
use alba_core::osd_keys::{Parsed, parse};
use alba_core::preset::Compression;
use alba_core::wire::rpc::abm::{WORK_PAGE, WorkItem};
use alba_core::wire::rpc::nsm::NsmError;

use super::backend::{Event, Fixture, NS, preset};
use super::*;
use crate::ClientConfig;

const POLICY: [u32; 4] = [5, 4, 8, 3];

fn holes(manifest: &Manifest) -> usize {
    manifest.fragments().filter(|(_, _, fragment)| fragment.location.is_none()).count()
}

/// Every location was acknowledged, no chunk has two on one OSD, and no node more than x (OSD i is on node i modulo `nodes`).
fn check(fixture: &Fixture, manifest: &Manifest, nodes: u64, x: usize) {
    let mut acknowledged = BTreeSet::new();
    for event in fixture.backend.events() {
        if let Event::Stored(osd, key) = event
            && let Ok(Parsed::Fragment(_, at)) = parse(&key)
        {
            acknowledged.insert((at.object_id, at.chunk, at.fragment, osd));
        }
    }
    let mut per_chunk: BTreeMap<ChunkIndex, Vec<OsdId>> = BTreeMap::new();
    for (chunk, fragment, entry) in manifest.fragments() {
        let Some(osd) = entry.location else { continue };
        assert!(acknowledged.contains(&(manifest.object_id, chunk, fragment, osd)));
        per_chunk.entry(chunk).or_default().push(osd);
    }
    for osds in per_chunk.values() {
        assert_eq!(osds.iter().collect::<BTreeSet<_>>().len(), osds.len(), "{osds:?}");
        for node in 0..nodes {
            assert!(osds.iter().filter(|osd| osd.get() % nodes == node).count() <= x, "{osds:?}");
        }
    }
}

#[test]
fn fragments_of_a_dead_osd_go_to_a_spare_at_once() {
    let fixture = Fixture::new(12, 4, preset(&[POLICY], 1024, Compression::None));
    for id in [0, 1, 2, 3] {
        fixture.backend.osd(osd(id)).set(|f| f.dies_after = Some(2));
    }
    // With three OSDs for all nine fragments, four that die must not be noticed: 8 are left, at most 3 per node.
    let bytes = data(5 * 1024 * 8);
    fixture.run(async {
        let stored = put(&fixture, "o", &bytes).await.unwrap();
        assert_eq!(fixture.client.statistics().uploads_retried, 0);
        assert!(fixture.client.statistics().spare_writes > 0);
        check(&fixture, &stored.manifest, 4, 3);
        settle(&fixture).await;
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
    });
}

#[test]
fn one_dead_osd_leaves_no_hole_while_there_are_spares() {
    let fixture = Fixture::new(12, 4, preset(&[POLICY], 1024, Compression::None));
    for id in 0..12 {
        // Each in its turn: whichever is chosen dies in the middle of an upload.
        fixture.backend.osd(osd(id)).set(|f| f.dies_after = Some(3));
        let name = format!("o{id}");
        fixture.run(async {
            put(&fixture, &name, &data(5 * 1024 * 6)).await.unwrap();
            settle(&fixture).await;
            let stored = fixture.backend.stored(&super::name(&name)).unwrap();
            assert_eq!(holes(&stored), 0);
            check(&fixture, &stored, 4, 3);
        });
        fixture.backend.osd(osd(id)).set(|f| f.dies_after = None);
        fixture.run(async {
            // Until a probe finds it well.
            let clock = fixture.node.env().clock;
            clock.sleep_until(clock.now().plus(Duration::from_secs(5))).await;
        });
    }
    assert_eq!(fixture.backend.group.lock().unwrap().work, []);
    assert_eq!(fixture.client.statistics().uploads_retried, 0);
}

/// Uploads an object over OSDs three of which hang; returns how long that took.
fn with_hanging_osds(config: ClientConfig) -> (Fixture, Duration) {
    let fixture = Fixture::with_config(12, 12, preset(&[[5, 4, 8, 1]], 1024, Compression::None), config);
    for osd in fixture.backend.all() {
        osd.set(|f| f.write_delay = Duration::from_millis(5));
    }
    for id in [0, 1, 2] {
        fixture.backend.osd(osd(id)).set(|f| f.write_delay = Duration::from_secs(5));
    }
    let took = fixture.run(async {
        let started = fixture.simulation.now();
        put(&fixture, "o", &data(5 * 1024 * 6)).await.unwrap();
        fixture.simulation.now().since(started)
    });
    (fixture, took)
}

#[test]
fn spares_take_over_from_osds_that_are_much_slower() {
    let (fixture, took) = with_hanging_osds(ClientConfig::default());
    assert!(took < Duration::from_millis(500), "not held up, but {took:?}");
    fixture.run(async {
        settle(&fixture).await;
        let manifest = fixture.backend.stored(&name("o")).unwrap();
        assert_eq!(holes(&manifest), 0);
        check(&fixture, &manifest, 12, 1);
        assert!(manifest.fragments().all(|(_, _, f)| f.location.is_some_and(|osd| osd.get() > 2)));
        assert_eq!(get(&fixture, "o").await.unwrap(), data(5 * 1024 * 6));
        let statistics = fixture.client.statistics();
        assert!(statistics.spare_writes > 0 && statistics.uploads_retried == 0, "{statistics:?}");
    });
    // Two or three of the nine chosen ones hang. Without hedges that is one too many, and the upload waits for it.
    let off = ClientConfig { write_hedge_min_ms: 3_600_000, ..ClientConfig::default() };
    let (fixture, took) = with_hanging_osds(off);
    assert!(took >= Duration::from_secs(5), "{took:?}");
    assert_eq!(fixture.client.statistics().spare_writes, 0);
}

#[test]
fn copies_that_lost_the_race_keep_their_tags() {
    let fixture = Fixture::new(5, 5, preset(&[[2, 2, 3, 1]], 1024, Compression::None));
    // It takes what it is given, but answers late: after the spare, and after its call was given up.
    for osd in fixture.backend.all() {
        osd.set(|f| f.write_delay = Duration::from_millis(4));
    }
    let slow = osd(2);
    fixture.backend.osd(slow).set(|f| f.answer_delay = Duration::from_secs(4));
    fixture.run(async {
        for i in 0..4 {
            put(&fixture, &format!("o{i}"), &data(2048)).await.unwrap();
        }
        settle(&fixture).await;
    });
    let mut copies = 0;
    let content = fixture.backend.osd(slow).memory.content();
    for i in 0..4 {
        let manifest = fixture.backend.stored(&name(&format!("o{i}"))).unwrap();
        assert_eq!(holes(&manifest), 0);
        check(&fixture, &manifest, 5, 1);
        for (chunk, fragment, entry) in manifest.fragments() {
            let of = |key: &[u8], tag: bool| match parse(key) {
                Ok(Parsed::Fragment(_, at)) if !tag => Some(at),
                Ok(Parsed::GcTag(_, _, at)) if tag => Some(at),
                _ => None,
            };
            let here = |tag| {
                content
                    .keys()
                    .filter_map(|key| of(key, tag))
                    .any(|at| (at.object_id, at.chunk, at.fragment) == (manifest.object_id, chunk, fragment))
            };
            if here(false) {
                let named = entry.location == Some(slow);
                copies += usize::from(!named);
                assert_eq!(here(true), !named, "only what no manifest names has a tag");
            }
        }
    }
    assert!(copies > 0, "the slow one was not chosen");
}

#[test]
fn healthy_osds_cost_no_spare_writes() {
    let fixture = Fixture::new(12, 4, preset(&[POLICY], 1024, Compression::None));
    for id in 0..12 {
        let delay = Duration::from_millis(u64::from(id) * 7 % 31);
        fixture.backend.osd(osd(id)).set(|f| f.write_delay = delay);
    }
    fixture.run(async {
        for i in 0..20 {
            put(&fixture, &format!("o{i}"), &data(5 * 1024 * 3)).await.unwrap();
        }
        settle(&fixture).await;
        assert_eq!(fixture.client.statistics().spare_writes, 0);
    });
}

fn repair(manifest: &Manifest, chunk: ChunkIndex, fragment: FragmentIndex) -> WorkItem {
    WorkItem::RepairBadFragment {
        namespace: NS,
        object: manifest.object_id,
        name: manifest.name.clone(),
        chunk,
        fragment,
        version: ObjectVersion(0),
    }
}

fn repairs_of_holes(manifest: &Manifest) -> Vec<WorkItem> {
    let holes = manifest.fragments().filter(|(_, _, fragment)| fragment.location.is_none());
    holes.map(|(chunk, fragment, _)| repair(manifest, chunk, fragment)).collect()
}

#[test]
fn holes_without_spares_are_handed_to_repair() {
    let fixture = Fixture::new(9, 3, preset(&[POLICY], 1024, Compression::None));
    fixture.backend.osd(osd(4)).set(|f| f.dies_after = Some(1));
    fixture.run(async {
        put(&fixture, "o", &data(5 * 1024 * 6)).await.unwrap();
        settle(&fixture).await;
        let stored = fixture.backend.stored(&name("o")).unwrap();
        let expected = repairs_of_holes(&stored);
        assert_eq!((expected.len(), &fixture.backend.group.lock().unwrap().work), (5, &expected));
        let statistics = fixture.client.statistics();
        assert_eq!((statistics.repairs_handed_over, statistics.late_fragments_failed), (5, 5));
    });
}

#[test]
fn late_fragments_that_cannot_be_added_are_handed_to_repair_unless_the_object_is_gone() {
    let gone = MetaError::Nsm(NsmError::ObjectNotFound);
    for (refusal, expected) in [(MetaError::Storage("full".to_owned()), 2), (gone, 0)] {
        let fixture = Fixture::new(9, 3, preset(&[POLICY], 1024, Compression::None));
        fixture.backend.osd(osd(3)).set(|f| f.write_delay = Duration::from_secs(3));
        fixture.backend.group.lock().unwrap().late_refusals.push(refusal);
        fixture.run(async {
            put(&fixture, "o", &data(5 * 1024 * 2)).await.unwrap();
            settle(&fixture).await;
            let stored = fixture.backend.stored(&name("o")).unwrap();
            assert_eq!(holes(&stored), 2);
            let work = &fixture.backend.group.lock().unwrap().work;
            assert_eq!(work.len(), expected);
            assert!(work.is_empty() || *work == repairs_of_holes(&stored));
            // Their tags stay, whatever was told.
            assert_eq!(fixture.backend.osd(osd(3)).tags(), 2);
        });
    }
}

#[test]
fn repairs_wait_for_a_backend_manager_that_is_away() {
    let fixture = Fixture::new(9, 3, preset(&[POLICY], 1024, Compression::None));
    fixture.backend.osd(osd(4)).set(|f| f.dies_after = Some(0));
    fixture.backend.group.lock().unwrap().abm_is_away = true;
    fixture.run(async {
        put(&fixture, "o", &data(5 * 1024 * 6)).await.unwrap();
        // The upload's background work ends all the same.
        settle(&fixture).await;
        let clock = fixture.node.env().clock;
        clock.sleep_until(clock.now().plus(Duration::from_secs(30))).await;
        assert_eq!(fixture.client.statistics().repairs_handed_over, 0);
        fixture.backend.group.lock().unwrap().abm_is_away = false;
        clock.sleep_until(clock.now().plus(Duration::from_secs(61))).await;
        let stored = fixture.backend.stored(&name("o")).unwrap();
        let expected = repairs_of_holes(&stored);
        assert!(expected.len() == 6 && fixture.backend.group.lock().unwrap().work == expected);
        assert_eq!(fixture.client.statistics().repairs_handed_over, 6);
        assert_eq!(fixture.client.statistics().repairs_dropped, 0);
    });
}

/// Two pages more than the first wait: they are told in the background, and hold up nobody.
#[test]
fn who_hands_over_waits_for_one_page_however_many_there_are() {
    let fixture = Fixture::new(9, 3, preset(&[POLICY], 1024, Compression::None));
    fixture.backend.group.lock().unwrap().abm_delay = Duration::from_secs(5);
    fixture.run(async {
        let item = |number: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            WorkItem::RewriteObject { namespace: NS, object: ObjectId::new(id) }
        };
        let count = 3 * WORK_PAGE;
        let clock = fixture.node.env().clock;
        let began = clock.now();
        crate::repairs::hand_over(&fixture.client.engine, (0..count).map(item).collect()).await;
        let waited = clock.now().since(began).as_secs();
        let told = || fixture.backend.group.lock().unwrap().work.len();
        assert_eq!((waited, told()), (5, WORK_PAGE));
        clock.sleep_until(clock.now().plus(Duration::from_secs(20))).await;
        assert_eq!(told(), count, "and all in the end");
    });
}
