//! Sequences, deletes, listings.

use alba_core::preset::Compression;
use alba_core::range::RangeQuery;
use alba_core::wire::rpc::nsm::ObjectAssert;

use super::backend::{Event, Fixture, preset};
use super::*;
use crate::SequenceUpdate;

fn upload(object: &str, bytes: &Bytes) -> SequenceUpdate {
    let source = Box::new(BytesSource::new(bytes.clone()));
    SequenceUpdate::Upload { name: name(object), source, checksum: None }
}

fn fixture() -> Fixture {
    Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None))
}

#[test]
fn a_sequence_is_all_or_nothing() {
    let fixture = fixture();
    fixture.run(async {
        let (client, deadline) = (&fixture.client, fixture.deadline());
        put(&fixture, "old", &data(100)).await.unwrap();
        let updates = vec![
            upload("a", &data(5000)),
            upload("b", &data(10)),
            SequenceUpdate::Delete { name: name("old") },
        ];
        let asserts = vec![ObjectAssert::Exists(name("old")), ObjectAssert::DoesNotExist(name("a"))];
        let stored = client.apply_sequence(&ns(), asserts.clone(), updates, deadline).await.unwrap();
        let names: Vec<_> = stored.iter().map(|object| object.manifest.name.clone()).collect();
        assert_eq!(names, [name("a"), name("b")]);
        assert_eq!(get(&fixture, "a").await.unwrap(), data(5000));
        let exist = client.multi_exists(&ns(), vec![name("old"), name("b"), name("c")], deadline).await;
        assert_eq!(exist.unwrap(), [false, true, false]);
        // Now the first assert fails.
        let updates = vec![upload("a", &data(1)), SequenceUpdate::Delete { name: name("b") }];
        let refused = client.apply_sequence(&ns(), asserts, updates, deadline).await;
        assert_eq!(refused, Err(ClientError::AssertFailed(name("old"))));
        assert_eq!(get(&fixture, "a").await.unwrap(), data(5000));
        assert!(get(&fixture, "b").await.is_ok());
        assert_eq!(client.statistics().uploads_retried, 0);
    });
}

#[test]
fn the_last_update_of_a_name_counts_and_the_others_keep_their_tags() {
    let fixture = fixture();
    fixture.run(async {
        let updates = vec![upload("a", &data(10)), upload("a", &data(20))];
        let stored =
            fixture.client.apply_sequence(&ns(), Vec::new(), updates, fixture.deadline()).await.unwrap();
        assert_eq!(stored.iter().map(|object| object.manifest.size).collect::<Vec<_>>(), [10, 20]);
        assert_eq!(get(&fixture, "a").await.unwrap(), data(20));
        settle(&fixture).await;
        let tags: usize = fixture.backend.all().iter().map(|osd| osd.tags()).sum();
        assert_eq!(tags, 4, "what no manifest names is found by its tags");
    });
}

#[test]
fn many_objects_fit_through_little_memory() {
    let config = crate::ClientConfig { max_bytes_in_flight: 1 << 20, ..Default::default() };
    let preset = preset(&[[2, 2, 3, 4]], 64 << 10, Compression::Zstd);
    let fixture = Fixture::with_config(4, 4, preset, config);
    fixture.run(async {
        let updates = (0..20).map(|i| upload(&format!("o{i}"), &data(700_000 + i))).collect();
        let stored = fixture.client.apply_sequence(&ns(), Vec::new(), updates, fixture.deadline()).await;
        assert_eq!(stored.unwrap().len(), 20);
        assert_eq!(get(&fixture, "o7").await.unwrap(), data(700_007));
        let commits = fixture.backend.events().iter().filter(|e| **e == Event::CommitAsked).count();
        assert_eq!(commits, 1);
    });
}

#[test]
fn an_empty_sequence_changes_nothing() {
    let fixture = fixture();
    fixture.run(async {
        let none = fixture.client.apply_sequence(&ns(), Vec::new(), Vec::new(), fixture.deadline()).await;
        assert_eq!(none, Ok(Vec::new()));
        let elsewhere = NamespaceName::new("elsewhere").unwrap();
        let unknown =
            fixture.client.apply_sequence(&elsewhere, Vec::new(), Vec::new(), fixture.deadline()).await;
        assert_eq!(unknown, Err(ClientError::NamespaceUnknown(elsewhere)));
        assert!(fixture.backend.events().is_empty());
    });
}

#[test]
fn a_deleted_object_is_gone_for_all() {
    let fixture = fixture();
    fixture.run(async {
        let (client, deadline) = (&fixture.client, fixture.deadline());
        put(&fixture, "o", &data(100)).await.unwrap();
        assert!(get_by(&fixture, client, "o", Consistency::Cached).await.is_ok());
        client.delete_object(&ns(), &name("o"), true, deadline).await.unwrap();
        let gone = Err(ClientError::ObjectUnknown(name("o")));
        assert_eq!(get_by(&fixture, client, "o", Consistency::Cached).await, gone);
        assert_eq!(client.delete_object(&ns(), &name("o"), false, deadline).await, Ok(()));
        let again = client.delete_object(&ns(), &name("o"), true, deadline).await;
        assert_eq!(again, Err(ClientError::ObjectUnknown(name("o"))));
    });
}

#[test]
fn names_are_listed_in_order() {
    let fixture = fixture();
    fixture.run(async {
        for object in ["b", "a", "c"] {
            put(&fixture, object, &data(1)).await.unwrap();
        }
        let range = RangeQuery { max: 2, ..RangeQuery::all() };
        let page = fixture.client.list_objects(&ns(), range, fixture.deadline()).await.unwrap();
        assert_eq!((page.items, page.has_more), (vec![name("a"), name("b")], true));
    });
}
