//! Tags that are needed no longer: removed together, by themselves, and none that is somebody else's.

use std::time::Duration;

use alba_core::checksum::Checksum;
use alba_core::env::osd::{Osd, OsdBatch, OsdUpdate, Priority, StoredValue};
use alba_core::preset::Compression;
use bytes::Bytes;

use super::backend::{Fixture, NS, preset};
use super::*;
use crate::untag::{self, After, Tag};

async fn wait(fixture: &Fixture, millis: u64) {
    let clock = fixture.node.env().clock;
    clock.sleep_until(clock.now().plus(Duration::from_millis(millis))).await;
}

fn tags(fixture: &Fixture) -> usize {
    fixture.backend.all().iter().map(|osd| osd.tags()).sum()
}

fn applies(fixture: &Fixture) -> usize {
    fixture.backend.all().iter().map(|osd| *osd.applies.lock().unwrap()).sum()
}

#[test]
fn tags_of_many_uploads_go_with_one_request_to_each_osd() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    fixture.run(async {
        for number in 0..20 {
            put(&fixture, &format!("o{number}"), &data(2000)).await.unwrap();
        }
        let stored = applies(&fixture);
        assert_eq!((stored, tags(&fixture)), (80, 80), "one batch for each fragment; nothing was waited for");
        wait(&fixture, 1000).await;
        assert_eq!((applies(&fixture), tags(&fixture)), (stored + 4, 0));
    });
}

#[test]
fn who_waits_for_the_end_does_not_wait_for_others() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    fixture.run(async {
        let clock = fixture.node.env().clock;
        for round in 0..3 {
            put(&fixture, &format!("o{round}"), &data(2000)).await.unwrap();
            let began = clock.now();
            settle(&fixture).await;
            assert_eq!(tags(&fixture), 0);
            let took = clock.now().since(began);
            assert!(took < Duration::from_millis(100), "round {round}: {took:?}");
        }
    });
}

#[test]
fn the_end_is_waited_for_until_the_last_tag_is_gone() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    fixture.run(async {
        put(&fixture, "o", &data(2000)).await.unwrap();
        fixture.backend.osd(osd(1)).set(|faults| faults.write_delay = Duration::from_secs(3));
        settle(&fixture).await;
        assert_eq!(tags(&fixture), 0);
    });
}

/// As of a fragment that another repairer has stored meanwhile under the same key.
#[test]
fn a_tag_with_another_mark_stays_and_keeps_no_other() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    fixture.run(async {
        put(&fixture, "o", &data(2000)).await.unwrap();
        settle(&fixture).await;
        let (engine, deadline) = (&fixture.client.engine, fixture.deadline());
        let at = fixture.backend.osd(osd(2));
        let mark = |text: &'static str| Bytes::from_static(text.as_bytes());
        let set = |key: &'static str, value| {
            OsdUpdate::Set(mark(key), StoredValue { value: mark(value), checksum: Checksum::None })
        };
        let updates = vec![set("a", "ours"), set("b", "theirs"), set("c", "ours"), set("d", "whose ever")];
        at.memory.apply(OsdBatch { asserts: vec![], updates }, Priority::High, deadline).await.unwrap();
        let member = engine.pool.member(osd(2), deadline).await.unwrap();
        let tag = |key, mark| (member.clone(), Tag { key, mark });
        let marked = ["a", "b", "c", "missing"].map(|key| tag(mark(key), Some(mark("ours"))));
        let all = marked.into_iter().chain([tag(mark("d"), None)]);
        let unsettled = engine.unsettled(deadline).await.unwrap();
        untag::remove(engine, NS, After::Update, all, &unsettled).await;
        drop(unsettled);
        settle(&fixture).await;
        let left = at.memory.content();
        let left = ["a", "b", "c", "d"].map(|key| left.contains_key(&mark(key)));
        assert_eq!(left, [false, true, false, false]);
        assert_eq!(engine.counters.tags_left.get(), 2);
    });
}

#[test]
fn an_osd_that_hangs_keeps_no_upload_and_its_tags_are_left_in_the_end() {
    let config = crate::ClientConfig { max_uploads: 1, ..crate::ClientConfig::default() };
    let fixture = Fixture::with_config(5, 5, preset(&[[2, 2, 4, 1]], 1024, Compression::None), config);
    fixture.run(async {
        for number in 0..20 {
            put(&fixture, &format!("before-{number}"), &data(2000)).await.unwrap();
        }
        fixture.backend.osd(osd(0)).set(|faults| faults.write_delay = Duration::from_secs(3600));
        let hangs = fixture.backend.osd(osd(0)).tags();
        assert!(hangs > 0);
        wait(&fixture, 600).await;
        let clock = fixture.node.env().clock;
        let began = clock.now();
        settle(&fixture).await;
        assert!(clock.now().since(began) < Duration::from_secs(30), "each call has a deadline");
        assert_eq!(tags(&fixture), hangs, "those of the others are gone");
        assert_eq!(fixture.client.engine.counters.tags_left.get(), u64::try_from(hangs).unwrap());
    });
}

#[test]
fn so_many_that_fill_a_batch_do_not_wait_and_no_batch_has_more() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    fixture.run(async {
        put(&fixture, "o", &data(2000)).await.unwrap();
        settle(&fixture).await;
        let (engine, deadline) = (&fixture.client.engine, fixture.deadline());
        let at = fixture.backend.osd(osd(2));
        let before = *at.applies.lock().unwrap();
        let member = engine.pool.member(osd(2), deadline).await.unwrap();
        let tag = |number: u32| (member.clone(), Tag { key: format!("tag {number}").into(), mark: None });
        let unsettled = engine.unsettled(deadline).await.unwrap();
        untag::remove(engine, NS, After::Update, (0..1200).map(tag), &unsettled).await;
        drop(unsettled);
        wait(&fixture, 100).await;
        let clock = fixture.node.env().clock;
        let began = clock.now();
        settle(&fixture).await;
        assert_eq!((*at.applies.lock().unwrap() - before, clock.now()), (3, began), "all have gone by now");
    });
}
