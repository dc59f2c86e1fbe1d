//! Several repairs at one object: whose a fragment is, its tag says; and what was stored is not stored in vain.

use std::collections::BTreeSet;
use std::time::Duration;

use alba_core::checksum::Checksum;
use alba_core::env::MetaError;
use alba_core::env::osd::{Osd as _, OsdAssert, OsdBatch, OsdUpdate, Priority, StoredValue};
use alba_core::ids::{GcEpoch, ObjectVersion, OsdId};
use alba_core::osd_keys::{self, Parsed, parse};
use alba_core::preset::Compression;
use alba_core::wire::rpc::nsm::NsmError;

use super::backend::{Event, NS, preset};
use super::repairing::{Ward, encrypted, ward};
use super::*;
use crate::repair::{Osds, RepairError, Repaired, Standing};

/// 3 + 2 on 6 OSDs of which one is lost: there is one place for what it had.
async fn tight(ward: &Ward) -> (OsdId, Osds) {
    put(&ward.fixture, "o", &data(3000)).await.unwrap();
    settle(&ward.fixture).await;
    let used: BTreeSet<OsdId> =
        ward.stored("o").fragments().filter_map(|(_, _, entry)| entry.location).collect();
    let free = ward.fixture.backend.all().into_iter().map(|device| device.id);
    let free: Vec<OsdId> = free.filter(|id| !used.contains(id)).collect();
    assert_eq!((used.len(), free.len()), (5, 1));
    let lost = u32::try_from(ward.stored("o").chunks[0].fragments[0].location.unwrap().get()).unwrap();
    ward.kill(&[lost]);
    (free[0], ward.osds(&[(lost, Standing::Dead)]))
}

fn stored_on(ward: &Ward, id: OsdId) -> usize {
    let on = |event: &Event| matches!(event, Event::Stored(osd, _) if *osd == id);
    ward.fixture.backend.events().iter().filter(|event| on(event)).count()
}

/// What another repair would write under the same key as the next one: other bytes.
async fn write_of_another(ward: &Ward, onto: OsdId, mark: &'static [u8], asserts: bool) {
    let manifest = ward.stored("o");
    let address = osd_keys::FragmentAddress {
        object_id: manifest.object_id,
        chunk: alba_core::ids::ChunkIndex(0),
        fragment: alba_core::ids::FragmentIndex(0),
        version: ObjectVersion(if asserts { manifest.version.0 + 1 } else { manifest.version.0 }),
    };
    let set = |key, bytes: &'static [u8]| {
        OsdUpdate::Set(key, StoredValue { value: Bytes::from_static(bytes), checksum: Checksum::None })
    };
    let key = osd_keys::fragment(NS, &address);
    let mut updates = vec![OsdUpdate::Delete(key.clone())];
    if asserts {
        updates.clear();
    }
    updates.extend([
        set(key, b"another one's"),
        set(osd_keys::recovery_info(NS, &address), b"another one's"),
        set(osd_keys::gc_tag(NS, GcEpoch::from_u32(3), &address), mark),
    ]);
    let device = ward.fixture.backend.osd(onto);
    let deadline = ward.fixture.deadline();
    let asserts = Vec::<OsdAssert>::new();
    device.memory.apply(OsdBatch { asserts, updates }, Priority::Low, deadline).await.unwrap();
}

fn tag_values(ward: &Ward, id: OsdId) -> Vec<Bytes> {
    let content = ward.fixture.backend.osd(id).memory.content();
    let tags = content.into_iter().filter(|(key, _)| matches!(parse(key), Ok(Parsed::GcTag(..))));
    tags.map(|(_, stored)| stored.value).collect()
}

async fn pause(ward: &Ward, millis: u64) {
    let clock = ward.fixture.node.env().clock;
    clock.sleep_until(clock.now().plus(Duration::from_millis(millis))).await;
}

/// A repair has won, and takes its tags away late. Meanwhile what it stored has moved on and is deleted, and a slow write of another
/// repair, which lost, arrives under the same key. Were its tag taken away, nothing would ever find it.
#[test]
fn what_another_repair_wrote_under_the_same_key_stays_tagged() {
    let ward = ward(6, 6, preset(&[[3, 2, 4, 1]], 1024, Compression::None));
    ward.fixture.run(async {
        let (free, osds) = tight(&ward).await;
        // Storing, and taking the tag away, take a second each.
        ward.fixture.backend.osd(free).set(|faults| faults.write_delay = Duration::from_secs(1));
        let slow_write = async {
            pause(&ward, 1500).await;
            assert_eq!(ward.stored("o").version.0, 1, "the update is done");
            assert_eq!(tag_values(&ward, free).len(), 1, "the tag is there still");
            write_of_another(&ward, free, b"another", false).await;
        };
        let (repaired, ()) = futures_util::future::join(ward.repair("o", &osds), slow_write).await;
        assert_eq!(repaired, Ok(Repaired::Updated));
        assert_eq!(tag_values(&ward, free), [Bytes::from_static(b"another")]);
    });
}

/// The epoch was closed between storing and committing. The only place there is has the fragment already, under the old tag.
#[test]
fn what_was_stored_is_used_again_also_when_it_is_encrypted() {
    for encrypt in [false, true] {
        let ward = encrypted(6, 6, preset(&[[3, 2, 5, 1]], 1024, Compression::None), encrypt);
        ward.fixture.run(async {
            let (free, osds) = tight(&ward).await;
            let refusal = MetaError::Nsm(NsmError::InvalidGcEpoch(GcEpoch::from_u32(3)));
            ward.fixture.backend.group.lock().unwrap().update_refusals = vec![Some(refusal), None];
            let close = async {
                while !ward.fixture.backend.events().contains(&Event::UpdateAsked) {
                    pause(&ward, 1).await;
                }
                let mut group = ward.fixture.backend.group.lock().unwrap();
                (group.info.min_epoch, group.info.newest_epoch) =
                    (GcEpoch::from_u32(4), GcEpoch::from_u32(4));
            };
            let (repaired, ()) = futures_util::future::join(ward.repair("o", &osds), close).await;
            assert_eq!(repaired, Ok(Repaired::Updated), "encrypted: {encrypt}");
            assert_eq!(stored_on(&ward, free), 1, "once");
            assert_eq!(tag_values(&ward, free), Vec::<Bytes>::new());
            ward.check("o");
            assert_eq!(get(&ward.fixture, "o").await.unwrap(), data(3000));
        });
    }
}

/// Under the only key that the repair needs is another one's fragment. Once the object has another version, so have the keys.
#[test]
fn a_key_that_is_taken_is_no_reason_to_avoid_the_osd_when_the_object_has_moved_on() {
    let ward = encrypted(6, 6, preset(&[[3, 2, 5, 1]], 1024, Compression::None), true);
    ward.fixture.run(async {
        let (free, osds) = tight(&ward).await;
        write_of_another(&ward, free, b"another", true).await;
        // While nothing changes it is told so, and tried again later.
        let given_up = ward.repair("o", &osds).await;
        assert!(matches!(given_up, Err(RepairError::GivenUp(_))), "{given_up:?}");
        assert!(ward.repairer.statistics().keys_taken > 0);
        ward.fixture.backend.osd(free).set(|faults| faults.write_delay = Duration::from_millis(50));
        let update_of_another = async {
            pause(&ward, 20).await;
            ward.fixture.backend.change(&name("o"), |manifest| manifest.version = ObjectVersion(1));
        };
        let (repaired, ()) = futures_util::future::join(ward.repair("o", &osds), update_of_another).await;
        assert_eq!(repaired, Ok(Repaired::Updated));
        assert_eq!(get(&ward.fixture, "o").await.unwrap(), data(3000));
        assert_eq!(
            tag_values(&ward, free),
            [Bytes::from_static(b"another")],
            "garbage collection sees to it"
        );
    });
}

/// Who stored the fragment died before the commit. Its bytes are as good as any, in this epoch and in the next.
#[test]
fn what_a_repair_that_died_has_stored_is_taken_over() {
    for later in [false, true] {
        let ward = ward(6, 6, preset(&[[3, 2, 5, 1]], 1024, Compression::None));
        ward.fixture.run(async {
            let (free, osds) = tight(&ward).await;
            let dies = MetaError::Storage("it dies here".to_owned());
            ward.fixture.backend.group.lock().unwrap().update_refusals = vec![Some(dies)];
            assert!(ward.repair("o", &osds).await.is_err());
            assert_eq!(tag_values(&ward, free).len(), 1);
            if later {
                ward.fixture.backend.group.lock().unwrap().info.newest_epoch = GcEpoch::from_u32(4);
            }
            let other = ward.fixture.second_client().repairer();
            assert_eq!(ward.repair_by(&other, "o", &osds, &[]).await, Ok(Repaired::Updated));
            assert_eq!((stored_on(&ward, free), tag_values(&ward, free).len()), (1, 0));
            ward.check("o");
        });
    }
}
