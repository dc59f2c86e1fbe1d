//! What an engine does when it is told of changes. All ages are an hour: only what was told makes it ask again.

use std::sync::Arc;

use alba_core::ids::{GroupId, NamespaceId};
use alba_core::preset::Compression;

use super::backend::{NS, preset, record};
use super::*;
use crate::{ClientConfig, Topic};

const HOUR: u64 = 3_600_000;

fn watched(osds: u32, nodes: usize) -> Fixture {
    let config = ClientConfig { refresh_ms: HOUR, refresh_watched_ms: HOUR, ..ClientConfig::default() };
    Fixture::watched(osds, nodes, preset(&[[2, 2, 3, 4]], 1024, Compression::None), config)
}

async fn sleep(fixture: &Fixture, millis: u64) {
    let clock = fixture.node.env().clock;
    clock.sleep_until(clock.now().plus(Duration::from_millis(millis))).await;
}

fn uses(stored: &StoredObject, id: u32) -> bool {
    stored.manifest.fragments().any(|(_, _, fragment)| fragment.location == Some(osd(id)))
}

#[test]
fn a_new_osd_is_used_within_a_second_of_being_told_of() {
    let fixture = watched(3, 4);
    fixture.run(async {
        put(&fixture, "o", &data(10)).await.unwrap();
        sleep(&fixture, 5000).await;
        put(&fixture, "p", &data(10)).await.unwrap();
        let asked = fixture.backend.group.lock().unwrap().queries;
        sleep(&fixture, 60_000).await;
        let stored = put(&fixture, "q", &data(10)).await.unwrap();
        assert!(!uses(&stored, 3));
        assert_eq!(fixture.backend.group.lock().unwrap().queries, asked, "nothing has changed");
        fixture.backend.add_osd(3).await;
        sleep(&fixture, 999).await;
        let stored = put(&fixture, "r", &data(10)).await.unwrap();
        assert!(uses(&stored, 3));
    });
}

#[test]
fn an_older_server_is_polled_as_before() {
    let config = ClientConfig { refresh_watched_ms: HOUR, ..ClientConfig::default() };
    let preset = preset(&[[2, 2, 3, 4]], 1024, Compression::None);
    let fixture = Fixture::with_config(3, 4, preset, config);
    fixture.run(async {
        for round in 0..5 {
            put(&fixture, &format!("o{round}"), &data(10)).await.unwrap();
            sleep(&fixture, 1001).await;
        }
        assert_eq!(fixture.backend.group.lock().unwrap().queries, 5);
        assert!(!fixture.client.engine.changes().told());
    });
}

#[test]
fn what_a_name_means_is_compared_when_namespaces_change_and_requests_do_not_wait_for_it() {
    let fixture = watched(4, 4);
    fixture.run(async {
        put(&fixture, "o", &data(10)).await.unwrap();
        sleep(&fixture, 5000).await;
        let kept = || fixture.client.engine.namespaces.all_kept();
        let first = kept().remove(0);
        // The same still: it stays.
        fixture.backend.tell(&[Topic::NAMESPACES]);
        sleep(&fixture, 10_000).await;
        assert!(Arc::ptr_eq(&first, &kept()[0]));
        // It is at another group: forgotten, and asked for again by the next request.
        let moved = GroupId::new("nsm-1").unwrap();
        fixture.backend.group.lock().unwrap().records =
            vec![alba_core::wire::rpc::abm::NamespaceRecord { group: moved.clone(), ..record() }];
        fixture.backend.tell(&[Topic::NAMESPACES]);
        sleep(&fixture, 10_000).await;
        assert!(kept().is_empty());
        put(&fixture, "p", &data(10)).await.unwrap();
        assert_eq!(fixture.backend.group.lock().unwrap().sent_to.last(), Some(&moved));
        assert_eq!((kept().len(), kept()[0].id), (1, NS));
        // Another namespace of that name.
        fixture.backend.group.lock().unwrap().records =
            vec![alba_core::wire::rpc::abm::NamespaceRecord { id: NamespaceId::from_u32(8), ..record() }];
        fixture.backend.tell(&[Topic::NAMESPACES]);
        sleep(&fixture, 10_000).await;
        assert!(kept().is_empty());
    });
}

#[test]
fn many_names_are_compared_with_the_list_of_all() {
    let fixture = watched(4, 4);
    fixture.run(async {
        put(&fixture, "o", &data(10)).await.unwrap();
        sleep(&fixture, 5000).await;
        let namespaces = &fixture.client.engine.namespaces;
        namespaces.forget(&ns());
        let named = |n: u32| alba_core::wire::rpc::abm::NamespaceRecord {
            id: NamespaceId::from_u32(100 + n),
            name: NamespaceName::new(format!("n{n:03}")).unwrap(),
            ..record()
        };
        for n in 0..100 {
            namespaces.remember(named(n));
        }
        // Every fifth is gone, every seventh is another one; and there are many that nobody asked for.
        let listed = (0..300).filter(|n| n % 5 != 0).map(|n| match n % 7 {
            0 => alba_core::wire::rpc::abm::NamespaceRecord { id: NS, ..named(n) },
            _ => named(n),
        });
        fixture.backend.group.lock().unwrap().listed = listed.collect();
        fixture.backend.tell(&[Topic::NAMESPACES]);
        sleep(&fixture, 10_000).await;
        let left: Vec<_> = namespaces.all_kept().iter().map(|kept| kept.name.clone()).collect();
        let expected = (0..100).filter(|n| n % 5 != 0 && n % 7 != 0).map(|n| named(n).name);
        assert_eq!(left, expected.collect::<Vec<_>>());
    });
}
