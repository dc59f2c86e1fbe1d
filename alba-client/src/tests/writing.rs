//! Uploads: every shape and size, the order of the commit, failures and retries.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::env::MetaError;
use alba_core::ids::{GcEpoch, GroupId, ObjectVersion};
use alba_core::osd_keys::{Parsed, parse};
use alba_core::preset::Compression;
use alba_core::wire::recovery::RecoveryInfo;
use alba_core::wire::rpc::abm::{NamespaceRecord, NamespaceState};
use alba_core::wire::rpc::nsm::{NsmError, Overwrite};
use bytes::Bytes;

use super::backend::{Event, Fixture, NS, preset, record};
use super::*;
use crate::ClientConfig;

#[test]
fn every_size_shape_and_compression_comes_back() {
    let shapes: [(&[[u32; 4]], u32, u32); 5] = [
        (&[[5, 4, 8, 3]], 12, 4),
        (&[[2, 2, 3, 4]], 4, 2),
        (&[[1, 2, 2, 1]], 3, 3),
        (&[[4, 0, 4, 4]], 4, 1),
        (&[[1, 0, 1, 1]], 1, 1),
    ];
    for (policies, osds, nodes) in shapes {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Snappy] {
            let fixture =
                Fixture::new(osds, usize::try_from(nodes).unwrap(), preset(policies, 1024, compression));
            let k = usize::try_from(policies[0][0]).unwrap();
            let chunk = 1024 * k;
            for size in [0, 1, 15, 16, 80, 4095, chunk - 1, chunk, chunk + 1, 7 * chunk + 5] {
                let bytes = data(size);
                fixture.run(async {
                    let stored = put(&fixture, "o", &bytes).await.unwrap();
                    assert_eq!(stored.manifest.size, size as u64);
                    assert_eq!(stored.manifest.checksum, ChecksumAlgorithm::Crc32c.of(&bytes));
                    let read = get(&fixture, "o").await.unwrap();
                    assert_eq!(read, bytes, "{policies:?} {compression:?} {size}");
                });
            }
        }
    }
}

#[test]
fn a_fragment_is_stored_with_its_recovery_info_and_loses_its_tag() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    let bytes = data(3000);
    fixture.run(async {
        let stored = put(&fixture, "o", &bytes).await.unwrap();
        settle(&fixture).await;
        for osd in fixture.backend.all() {
            assert_eq!((osd.fragments(), osd.tags()), (2, 0));
            for (key, value) in osd.memory.content() {
                match parse(&key).unwrap() {
                    Parsed::Fragment(_, at) => {
                        let entry = stored.manifest.fragment(at.chunk, at.fragment).unwrap();
                        assert_eq!((entry.location, entry.checksum), (Some(osd.id), value.checksum));
                        assert!(value.checksum.matches(&value.value));
                        assert_eq!(at.version, ObjectVersion(0));
                    }
                    Parsed::RecoveryInfo(_, at) => {
                        let info = RecoveryInfo::decode(value.value).unwrap();
                        assert_eq!((&info.name, info.fragments.len()), (&name("o"), 4));
                        let object = info.object;
                        assert_eq!(object.is_some(), at.chunk.0 == 1, "only beside the last chunk");
                        if let Some(object) = object {
                            assert_eq!((object.size, object.checksum), (3000, stored.manifest.checksum));
                        }
                    }
                    Parsed::GcTag(..) => panic!("a tag is left"),
                    _ => {}
                }
            }
        }
    });
}

/// Invariants 1 and 3: no command before c acknowledgements per chunk, no tag removed before its answer, and none of what
/// the manifest does not name.
#[test]
fn fragments_then_manifest_then_tags() {
    let fixture = Fixture::new(12, 4, preset(&[[5, 4, 8, 3]], 1024, Compression::None));
    for id in 0..12 {
        // All different, so that acknowledgements come in any order.
        let delay = Duration::from_millis(u64::from(id) * 7 % 31);
        fixture.backend.osd(osd(id)).set(|f| f.write_delay = delay);
    }
    let bytes = data(5 * 1024 * 4 + 77);
    fixture.run(async {
        let stored = put(&fixture, "o", &bytes).await.unwrap();
        settle(&fixture).await;
        let events = fixture.backend.events();
        let asked = events.iter().position(|event| *event == Event::CommitAsked).unwrap();
        let answered = events.iter().position(|event| *event == Event::CommitAnswered).unwrap();
        let mut acked: BTreeMap<_, usize> = BTreeMap::new();
        let mut places = BTreeSet::new();
        for event in &events[..asked] {
            let Event::Stored(osd, key) = event else { panic!("{event:?} before the commit") };
            let Ok(Parsed::Fragment(_, at)) = parse(key) else { panic!() };
            *acked.entry(at.chunk).or_default() += 1;
            places.insert((at.chunk, at.fragment, *osd));
        }
        assert_eq!(acked.len(), 5);
        assert!(acked.values().all(|count| *count >= 8), "{acked:?}");
        // What the manifest names had been acknowledged there.
        let mut named = stored.manifest.fragments().filter_map(|(c, f, entry)| Some((c, f, entry.location?)));
        assert!(named.all(|place| places.contains(&place)));
        let tag_removed = |event: &Event| matches!(event, Event::TagRemoved(..));
        assert!(!events[..answered].iter().any(tag_removed), "a tag went before the commit's answer");
        assert_eq!(events[answered..].iter().filter(|event| tag_removed(event)).count(), 45);
        assert_eq!(fixture.backend.all().iter().map(|osd| osd.tags()).sum::<usize>(), 0);
    });
}

#[test]
fn late_fragments_are_added_afterwards_and_then_lose_their_tags() {
    let fixture = Fixture::new(9, 3, preset(&[[5, 4, 8, 3]], 1024, Compression::None));
    fixture.backend.osd(osd(3)).set(|f| f.write_delay = Duration::from_secs(3));
    fixture.run(async {
        let before = fixture.simulation.now();
        let stored = put(&fixture, "o", &data(5 * 1024 * 2)).await.unwrap();
        assert!(fixture.simulation.now().since(before) < Duration::from_secs(1), "not held up");
        let holes = stored.manifest.fragments().filter(|(_, _, f)| f.location.is_none()).count();
        assert_eq!((holes, stored.manifest.version), (2, ObjectVersion(0)));
        settle(&fixture).await;
        let now = fixture.backend.stored(&name("o")).unwrap();
        assert_eq!(now.fragments().filter(|(_, _, f)| f.location.is_none()).count(), 0);
        assert_eq!(now.version, ObjectVersion(1));
        assert!(now.fragments().all(|(_, _, f)| f.version == ObjectVersion(0)));
        assert_eq!(fixture.backend.all().iter().map(|osd| osd.tags()).sum::<usize>(), 0);
        // Not before the group knew of them.
        let events = fixture.backend.events();
        let added = events.iter().position(|event| *event == Event::LateAdded(2)).unwrap();
        let removed = |e: &Event| matches!(e, Event::TagRemoved(id, _) if *id == osd(3));
        assert!(!events[..added].iter().any(removed) && events[added..].iter().any(removed));
        // The cache has the new version.
        let client = &fixture.client;
        let cached = client.manifest(&ns(), &name("o"), Consistency::Cached, fixture.deadline()).await;
        assert_eq!(*cached.unwrap().unwrap().manifest, now);
        assert_eq!(fixture.client.statistics().late_fragments_added, 2);
    });
}

#[test]
fn an_osd_that_fails_during_the_upload_leaves_holes() {
    let fixture = Fixture::new(9, 3, preset(&[[5, 4, 8, 3]], 1024, Compression::None));
    fixture.backend.osd(osd(4)).set(|f| f.dies_after = Some(1));
    let bytes = data(5 * 1024 * 6);
    fixture.run(async {
        let stored = put(&fixture, "o", &bytes).await.unwrap();
        let on_it = stored.manifest.fragments().filter(|(_, _, f)| f.location == Some(osd(4))).count();
        assert_eq!(on_it, 1);
        settle(&fixture).await;
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
        assert_eq!(fixture.client.statistics().uploads_retried, 0);
    });
}

#[test]
fn another_choice_is_made_when_too_many_fail() {
    // Three of twelve are dead. An attempt that fails has met two of them or more, so the next one fails at one at most.
    let fixture = Fixture::new(12, 4, preset(&[[5, 4, 8, 3]], 1024, Compression::None));
    for id in [0, 1, 2] {
        fixture.backend.osd(osd(id)).set(|f| f.dead = true);
    }
    let bytes = data(20_000);
    fixture.run(async {
        let stored = put(&fixture, "o", &bytes).await.unwrap();
        let used: Vec<_> = stored.manifest.fragments().filter_map(|(_, _, f)| f.location).collect();
        assert!(used.iter().all(|id| id.get() > 2));
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
        assert!(fixture.client.statistics().uploads_retried <= 1);
    });
}

#[test]
fn a_full_osd_gets_nothing_more_but_is_read_from() {
    let fixture = Fixture::new(5, 5, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    let bytes = data(2048);
    fixture.run(async {
        put(&fixture, "before", &bytes).await.unwrap();
        settle(&fixture).await;
        fixture.backend.osd(osd(0)).set(|f| f.full = true);
        for i in 0..6 {
            let stored = put(&fixture, &format!("o{i}"), &bytes).await.unwrap();
            assert!(stored.manifest.fragments().all(|(_, _, f)| f.location != Some(osd(0))), "{i}");
        }
        assert!(fixture.client.statistics().uploads_retried <= 1, "learned by one failure");
        let deleted = fixture.client.delete_object(&ns(), &name("o0"), true, fixture.deadline()).await;
        deleted.unwrap();
        assert_eq!(get(&fixture, "before").await.unwrap(), bytes);
        // Space comes back: the probe finds out.
        fixture.backend.osd(osd(0)).set(|f| f.full = false);
        let clock = fixture.node.env().clock;
        clock.sleep_until(clock.now().plus(Duration::from_secs(120))).await;
        let before = fixture.backend.osd(osd(0)).fragments();
        for i in 0..20 {
            put(&fixture, &format!("later{i}"), &bytes).await.unwrap();
        }
        assert!(fixture.backend.osd(osd(0)).fragments() > before);
    });
}

#[test]
fn a_lost_answer_is_a_retry_of_the_same_batch() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 4, 1]], 1024, Compression::None));
    for osd in fixture.backend.all() {
        osd.set(|f| f.lost_answers = 1);
    }
    fixture.run(async {
        let stored = put(&fixture, "o", &data(100)).await.unwrap();
        assert!(stored.manifest.fragments().all(|(_, _, f)| f.location.is_some()));
        assert_eq!(fixture.client.statistics().uploads_retried, 0);
    });
}

#[test]
fn no_satisfiable_policy_says_what_is_missing() {
    let fixture = Fixture::new(7, 3, preset(&[[5, 4, 8, 3]], 1024, Compression::None));
    fixture.run(async {
        let error = put(&fixture, "o", &data(10)).await.unwrap_err();
        let ClientError::NoSatisfiablePolicy { reason } = &error else { panic!("{error}") };
        assert!(reason.contains("7") && reason.contains("8"), "{reason}");
        assert!(fixture.backend.events().is_empty(), "nothing was written");
    });
}

#[test]
fn what_is_full_is_named_when_no_policy_can_be_satisfied() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    for id in [0, 1] {
        fixture.backend.osd(osd(id)).set(|f| f.full = true);
    }
    fixture.run(async {
        let error = put(&fixture, "o", &data(10)).await.unwrap_err();
        let ClientError::NoSatisfiablePolicy { reason } = &error else { panic!("{error}") };
        assert!(reason.contains("4 OSDs are active") && reason.contains("2 of them are full"), "{reason}");
    });
}

#[test]
fn the_fallback_policy_is_used_when_the_first_cannot_be_met() {
    let fixture = Fixture::new(4, 4, preset(&[[5, 4, 8, 3], [2, 2, 3, 4]], 1024, Compression::None));
    fixture.run(async {
        let stored = put(&fixture, "o", &data(10_000)).await.unwrap();
        assert_eq!(stored.manifest.scheme.shape.as_u8(), (2, 2));
        assert_eq!(stored.manifest.max_disks_per_node, 4);
    });
}

#[test]
fn a_new_osd_is_used_within_a_second() {
    let fixture = Fixture::new(3, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    fixture.run(async {
        put(&fixture, "o", &data(10)).await.unwrap();
        fixture.backend.add_osd(3).await;
        let clock = fixture.node.env().clock;
        clock.sleep_until(clock.now().plus(Duration::from_millis(1001))).await;
        let stored = put(&fixture, "p", &data(10)).await.unwrap();
        assert!(stored.manifest.fragments().any(|(_, _, f)| f.location == Some(osd(3))));
    });
}

#[test]
fn what_the_group_refuses_is_retried_once_with_everything_fresh() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    let bytes = data(5000);
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        // The epoch this client knows is disabled.
        {
            let mut group = fixture.backend.group.lock().unwrap();
            group.info.min_epoch = GcEpoch::from_u32(4);
            group.info.newest_epoch = GcEpoch::from_u32(4);
        }
        put(&fixture, "o", &bytes).await.unwrap();
        assert_eq!(fixture.client.statistics().uploads_retried, 1);
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
        let twice =
            [Some(MetaError::Nsm(NsmError::InvalidBucket)), Some(MetaError::Nsm(NsmError::InvalidBucket))];
        fixture.backend.group.lock().unwrap().refusals.extend(twice);
        let error = put(&fixture, "o", &data(10)).await.unwrap_err();
        assert_eq!(error, ClientError::Meta(MetaError::Nsm(NsmError::InvalidBucket)));
        // A failed attempt deletes nothing, and the old object is untouched.
        settle(&fixture).await;
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
        let deleted = |event: &Event| match event {
            Event::TagRemoved(_, key) => !matches!(parse(key), Ok(Parsed::GcTag(..))),
            _ => false,
        };
        assert!(!fixture.backend.events().iter().any(deleted));
    });
}

#[test]
fn some_refusals_are_not_retried() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    let bytes = data(50);
    let mode = |overwrite| UploadOptions { overwrite, checksum: None };
    let with = |checksum| UploadOptions { checksum: Some(checksum), ..UploadOptions::default() };
    fixture.run(async {
        let any = put_with(&fixture, "o", &bytes, mode(Overwrite::AnyPrevious)).await;
        assert_eq!(any, Err(ClientError::OverwriteNotAllowed(name("o"))));
        put_with(&fixture, "o", &bytes, mode(Overwrite::NoPrevious)).await.unwrap();
        let none = put_with(&fixture, "o", &bytes, mode(Overwrite::NoPrevious)).await;
        assert_eq!(none, Err(ClientError::OverwriteNotAllowed(name("o"))));
        let wrong = put_with(&fixture, "o", &bytes, with(Checksum::Crc32c(1))).await.unwrap_err();
        assert!(matches!(wrong, ClientError::ChecksumMismatch { .. }), "{wrong}");
        let blake3 = put_with(&fixture, "o", &bytes, with(ChecksumAlgorithm::Blake3.of(&bytes))).await;
        assert_eq!(blake3, Err(ClientError::ChecksumNotAllowed(ChecksumAlgorithm::Blake3)));
        let sha1 = put_with(&fixture, "o", &bytes, with(ChecksumAlgorithm::Sha1.of(&bytes))).await.unwrap();
        assert_eq!(sha1.manifest.checksum, ChecksumAlgorithm::Sha1.of(&bytes));
        assert_eq!(fixture.client.statistics().uploads_retried, 0);
    });
}

#[test]
fn a_checksum_that_need_not_be_verified_is_stored_as_given() {
    let mut preset = preset(&[[2, 2, 3, 4]], 1024, Compression::None);
    preset.object_checksum.verify_upload = false;
    let fixture = Fixture::new(4, 4, preset);
    let options = UploadOptions { checksum: Some(Checksum::Crc32c(1)), ..UploadOptions::default() };
    fixture.run(async {
        let stored = put_with(&fixture, "o", &data(50), options).await.unwrap();
        assert_eq!(stored.manifest.checksum, Checksum::Crc32c(1));
        let read = get(&fixture, "o").await.unwrap_err();
        assert!(matches!(read, ClientError::ChecksumMismatch { .. }), "{read}");
    });
}

#[test]
fn a_lost_session_is_resolved_by_asking_for_the_object() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    let bytes = data(50);
    fixture.run(async {
        fixture.backend.group.lock().unwrap().lose_session = true;
        put(&fixture, "o", &bytes).await.unwrap();
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
        fixture.backend.group.lock().unwrap().refusals.push(Some(MetaError::SessionUnknown));
        let error = put(&fixture, "o", &data(10)).await.unwrap_err();
        assert_eq!(error, ClientError::Meta(MetaError::SessionUnknown));
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
    });
}

#[test]
fn a_namespace_that_is_moved_is_waited_for_and_followed() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    let bytes = data(5000);
    let frozen = || Some(MetaError::Nsm(NsmError::NamespaceFrozen(NS)));
    let moved = || Some(MetaError::Nsm(NsmError::NamespaceMoved(NS)));
    let (here, there) = (GroupId::new("nsm-0").unwrap(), GroupId::new("nsm-1").unwrap());
    let moving = NamespaceRecord { state: NamespaceState::Moving { to: there.clone() }, ..record() };
    let after = NamespaceRecord { group: there.clone(), ..record() };
    fixture.run(async {
        put(&fixture, "o", &bytes).await.unwrap();
        settle(&fixture).await;
        let fragments = || fixture.backend.all().iter().map(|osd| osd.fragments()).sum::<usize>();
        let each = fragments();
        {
            let mut group = fixture.backend.group.lock().unwrap();
            group.sent_to.clear();
            // Frozen for a while; then handed over, and only the third look at the ABM shows the new owner.
            group.refusals.extend([frozen(), frozen(), frozen(), moved(), moved(), moved()]);
            group.records = vec![moving.clone(), moving.clone(), after.clone()];
        }
        put(&fixture, "p", &bytes).await.unwrap();
        settle(&fixture).await;
        let sent_to = std::mem::take(&mut fixture.backend.group.lock().unwrap().sent_to);
        assert_eq!(sent_to, [vec![here.clone(); 6], vec![there.clone()]].concat());
        assert_eq!(fragments(), 2 * each, "nothing was uploaded again");
        assert_eq!(fixture.client.statistics().uploads_retried, 0);
        assert_eq!(get(&fixture, "p").await.unwrap(), bytes);
        // What stays frozen is told as such, when there is no time left.
        fixture.backend.group.lock().unwrap().refusals.extend((0..1000).map(|_| frozen()));
        let error = put(&fixture, "q", &bytes).await.unwrap_err();
        assert_eq!(error, ClientError::Meta(MetaError::Nsm(NsmError::NamespaceFrozen(NS))));
        assert!(fixture.backend.group.lock().unwrap().refusals.len() < 1000 - 60, "asked until the end");
        fixture.backend.group.lock().unwrap().refusals.clear();
        // One that nobody serves for the moment is not told to be gone.
        {
            let mut group = fixture.backend.group.lock().unwrap();
            group.refusals.extend((0..1000).map(|_| moved()));
            group.records = vec![moving.clone()];
        }
        let error = put(&fixture, "q", &bytes).await.unwrap_err();
        assert_eq!(error, ClientError::Meta(MetaError::Nsm(NsmError::NamespaceFrozen(NS))));
        {
            let mut group = fixture.backend.group.lock().unwrap();
            group.refusals.clear();
            group.records = vec![after.clone()];
        }
        // A group that disowns what the ABM says it has is not asked for ever.
        fixture.backend.group.lock().unwrap().refusals.extend((0..100).map(|_| moved()));
        let error = put(&fixture, "q", &bytes).await.unwrap_err();
        assert_eq!(error, ClientError::Meta(MetaError::Nsm(NsmError::NamespaceMoved(NS))));
        assert!(fixture.backend.group.lock().unwrap().refusals.len() > 80);
    });
}

#[test]
fn an_unreadable_source_is_an_error_of_its_own() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    struct Short;
    #[async_trait::async_trait]
    impl crate::ObjectSource for Short {
        fn size(&self) -> u64 {
            10
        }
        async fn read_at(&mut self, _offset: u64, _buffer: &mut [u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::UnexpectedEof.into())
        }
    }
    fixture.run(async {
        let options = UploadOptions::default();
        let upload = fixture.client.upload(&ns(), &name("o"), &mut Short, options, fixture.deadline()).await;
        let error = upload.unwrap_err();
        assert!(matches!(error, ClientError::Source { .. }), "{error}");
    });
}

#[test]
fn memory_is_bounded_and_a_hanging_osd_does_not_hold_it() {
    let config = ClientConfig { max_bytes_in_flight: 1 << 20, ..ClientConfig::default() };
    let preset = preset(&[[2, 2, 3, 4]], 16 << 10, Compression::None);
    let fixture = Fixture::with_config(4, 4, preset, config);
    // 64 KiB per chunk: 16 of them fill the room. One OSD never answers within the call's limit.
    fixture.backend.osd(osd(2)).set(|f| f.write_delay = Duration::from_secs(100));
    let bytes: Bytes = data(4 << 20);
    fixture.run(async {
        let started = fixture.simulation.now();
        put(&fixture, "o", &bytes).await.unwrap();
        assert!(
            fixture.simulation.now().since(started) < Duration::from_secs(5),
            "waited for the hanging OSD"
        );
        settle(&fixture).await;
        assert_eq!(get(&fixture, "o").await.unwrap(), bytes);
    });
}

#[test]
fn a_cancelled_upload_gives_everything_back_and_commits_nothing() {
    let config = ClientConfig { max_bytes_in_flight: 1 << 20, max_uploads: 1, ..ClientConfig::default() };
    let preset = preset(&[[2, 2, 3, 4]], 256 << 10, Compression::None);
    let fixture = Fixture::with_config(4, 4, preset, config);
    fixture.run(async {
        for osd in fixture.backend.all() {
            osd.set(|f| f.write_delay = Duration::from_secs(3));
        }
        let clock = fixture.node.env().clock;
        for _ in 0..20 {
            let bytes = data(512 << 10);
            let mut source = BytesSource::new(bytes);
            let deadline = fixture.node.env().deadline_in(Duration::from_millis(500));
            let error = fixture
                .client
                .upload(&ns(), &name("o"), &mut source, UploadOptions::default(), deadline)
                .await
                .unwrap_err();
            assert!(matches!(error, ClientError::Deadline { .. }), "{error}");
            assert!(clock.now() <= deadline.0);
        }
        for osd in fixture.backend.all() {
            osd.set(|f| f.write_delay = Duration::ZERO);
        }
        let soon = fixture.node.env().deadline_in(Duration::from_millis(1));
        fixture.client.settle(soon).await.unwrap();
        assert_eq!(get(&fixture, "o").await, Err(ClientError::ObjectUnknown(name("o"))));
        put(&fixture, "o", &data(512 << 10)).await.unwrap();
    });
}

#[test]
fn an_object_too_large_for_its_manifest_is_refused_at_once() {
    let fixture = Fixture::new(1, 1, preset(&[[1, 0, 1, 1]], 16, Compression::None));
    fixture.run(async {
        let error = put(&fixture, "o", &data(16 * 18_001)).await.unwrap_err();
        assert!(matches!(error, ClientError::ObjectTooLarge { .. }), "{error}");
        assert!(fixture.backend.events().is_empty());
    });
}

#[test]
fn an_osd_that_is_merely_slower_gets_all_its_fragments() {
    let fixture = Fixture::new(4, 4, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    fixture.backend.osd(osd(1)).set(|f| f.write_delay = Duration::from_millis(30));
    fixture.run(async {
        put(&fixture, "o", &data(2 * 1024 * 40)).await.unwrap();
        settle(&fixture).await;
        let stored = fixture.backend.stored(&name("o")).unwrap();
        assert!(stored.fragments().all(|(_, _, f)| f.location.is_some()));
    });
}

#[test]
fn a_namespace_that_an_osd_does_not_have_says_nothing_about_the_device() {
    let fixture = Fixture::new(5, 5, preset(&[[2, 2, 3, 4]], 1024, Compression::None));
    fixture.run(async {
        fixture.backend.osd(osd(0)).forget_namespace().await;
        for i in 0..10 {
            let stored = put(&fixture, &format!("o{i}"), &data(10)).await.unwrap();
            assert!(stored.manifest.fragments().all(|(_, _, f)| f.location != Some(osd(0))));
        }
        settle(&fixture).await;
        assert_eq!(fixture.backend.osd(osd(0)).fragments(), 0, "ownership is asserted on each write");
    });
}
