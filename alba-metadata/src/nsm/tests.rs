use std::sync::Arc;

use alba_core::checksum::{Checksum, ChecksumAlgorithm};
use alba_core::encryption::{self, ClusterKey};
use alba_core::ids::{ChunkIndex, FragmentIndex, GcEpoch, MessageId, ObjectId, ObjectVersion, OsdId};
use alba_core::kv::{FjallKv, Kv, MemKv};
use alba_core::manifest::{CipherMode, EncryptInfo};
use alba_core::preset::{Compression, FragmentEncryption};
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::nsm::{
    FragmentKey, FragmentUpdate, InlineValue, NsmAnswer, NsmMessage, ObjectAssert, ObjectUpdate, OsdUse,
    Overwrite,
};
use alba_core::wire::rpc::{RequestId, SessionId};
use proptest::prelude::*;

use super::fixtures::*;
use super::*;
use crate::machine::{Input, Output};

fn ask(store: &dyn Kv, query: NsmQuery) -> Result<NsmAnswer, NsmError> {
    match Nsm::query(store, &query) {
        Ok(answer) => Ok(answer),
        Err(Fault::Refused(error)) => Err(error),
        Err(Fault::Store(error)) => panic!("{error}"),
    }
}

fn get(store: &dyn Kv, text: &str) -> Option<Manifest> {
    match ask(store, NsmQuery::Manifests { namespace: NS, names: vec![name(text)] }).unwrap() {
        NsmAnswer::Manifests(mut manifests) => manifests.pop().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn queue(store: &dyn Kv, osd: u32) -> Vec<FragmentKey> {
    let query = NsmQuery::DeleteQueue { namespace: NS, osd: OsdId::from_u32(osd), max: 200 };
    match ask(store, query).unwrap() {
        NsmAnswer::Keys(page) => page.items,
        other => panic!("{other:?}"),
    }
}

fn whole(store: &dyn Kv) {
    assert_eq!(recount(store, NS).unwrap(), []);
}

fn ready() -> MemKv {
    let store = MemKv::new();
    prepare(&store);
    store
}

#[test]
fn a_put_is_found_counted_and_replaced() {
    let store = ready();
    let first = manifest("a", 1, &[SPREAD, SPREAD]);
    let stored = match run(&store, sequence(vec![put(first.clone(), Overwrite::NoPrevious)])).unwrap() {
        NsmOutcome::Stored(mut stored) => stored.pop().unwrap(),
        other => panic!("{other:?}"),
    };
    assert!(stored.timestamp > Timestamp(0));
    assert_eq!(get(&store, "a"), Some(stored.clone()));
    assert_eq!(stored, Manifest { timestamp: stored.timestamp, ..first });
    whole(&store);
    let statistics = match ask(&store, NsmQuery::Statistics(NS)).unwrap() {
        NsmAnswer::Statistics(statistics) => statistics,
        other => panic!("{other:?}"),
    };
    assert_eq!((statistics.objects, statistics.logical_bytes, statistics.storage_bytes), (1, 44, 66));
    assert_eq!(statistics.storage_per_osd, [0, 2, 4].map(|n| (OsdId::from_u32(n), 22)));
    let [(bucket, 1)] = statistics.buckets[..] else { panic!("{statistics:?}") };
    assert_eq!((bucket.fragments, bucket.max_per_node), (3, 1));

    let second = manifest("a", 2, &[[Some(1), Some(3), None]]);
    run(&store, sequence(vec![put(second, Overwrite::PreviousObjectId(ObjectId::new([1; 32])))])).unwrap();
    assert!(get(&store, "a").unwrap().timestamp > stored.timestamp, "strictly increasing whatever the clock");
    let key = |chunk| FragmentKey {
        object: ObjectId::new([1; 32]),
        chunk: ChunkIndex(chunk),
        fragment: FragmentIndex(0),
        version: ObjectVersion(0),
    };
    assert_eq!(queue(&store, 0), [key(0), key(1)]);
    whole(&store);

    run(&store, sequence(vec![ObjectUpdate::Delete { name: name("a"), must_exist: true }])).unwrap();
    assert_eq!(get(&store, "a"), None);
    assert_eq!(queue(&store, 1).len(), 1);
    whole(&store);
    let keys = queue(&store, 0);
    run(&store, NsmCommand::MarkKeysDeleted { namespace: NS, osd: OsdId::from_u32(0), keys }).unwrap();
    assert!(queue(&store, 0).is_empty());
    let gone = sequence(vec![ObjectUpdate::Delete { name: name("a"), must_exist: true }]);
    assert_eq!(run(&store, gone), Err(NsmError::ObjectNotFound));
}

/// Each manifest breaks its rule and all later ones, so that the first failing check must be the answer.
#[test]
fn the_checks_come_in_their_order() {
    let store = ready();
    run(&store, sequence(vec![put(manifest("a", 1, &[SPREAD]), Overwrite::Unconditionally)])).unwrap();
    let with_epoch = |manifest: Manifest, overwrite, epoch| NsmCommand::Sequence {
        namespace: NS,
        asserts: Vec::new(),
        updates: vec![put(manifest, overwrite)],
        epoch: GcEpoch::from_u32(epoch),
    };
    // Linked nowhere, and one fragment of three.
    let lonely = manifest("a", 1, &[[Some(9), None, None]]);
    let mut bad = manifest("a", 1, &[[Some(9), Some(9), None]]);
    bad.scheme.compression = Compression::Zstd;
    let violated = run(&store, with_epoch(bad.clone(), Overwrite::NoPrevious, 9));
    assert!(matches!(violated, Err(NsmError::PresetViolated(_))), "{violated:?}");
    bad.scheme.compression = Compression::None;
    assert_eq!(
        run(&store, with_epoch(bad.clone(), Overwrite::NoPrevious, 9)),
        Err(NsmError::NonUniqueObjectId)
    );
    bad.object_id = ObjectId::new([2; 32]);
    assert_eq!(run(&store, with_epoch(bad, Overwrite::NoPrevious, 9)), Err(NsmError::InvalidFragmentSpread));
    let lonely = Manifest { object_id: ObjectId::new([2; 32]), ..lonely };
    assert_eq!(
        run(&store, with_epoch(lonely.clone(), Overwrite::NoPrevious, 9)),
        Err(NsmError::OverwriteNotAllowed(name("a")))
    );
    assert_eq!(
        run(&store, with_epoch(lonely.clone(), Overwrite::AnyPrevious, 9)),
        Err(NsmError::InvalidGcEpoch(GcEpoch::from_u32(9)))
    );
    assert_eq!(
        run(&store, with_epoch(lonely, Overwrite::AnyPrevious, 0)),
        Err(NsmError::InactiveOsd(OsdId::from_u32(9)))
    );
    let thin = manifest("a", 2, &[SPREAD, [Some(0), None, None]]);
    assert_eq!(run(&store, with_epoch(thin, Overwrite::AnyPrevious, 0)), Err(NsmError::InvalidBucket));
    let crowded = manifest("a", 2, &[[Some(0), Some(1), None]]);
    assert!(run(&store, with_epoch(crowded, Overwrite::AnyPrevious, 0)).is_ok());
    whole(&store);
}

#[test]
fn a_manifest_must_be_as_the_preset_wants_it() {
    let store = ready();
    let good = manifest("a", 1, &[SPREAD]);
    let change = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        run(&store, sequence(vec![put(manifest, Overwrite::Unconditionally)]))
    };
    let violations: [&dyn Fn(&mut Manifest); 7] = [
        &|m| m.chunks.clear(),
        &|m| m.chunks[0].size = 2049,
        &|m| m.chunks[0].fragments.truncate(2),
        &|m| m.size = 129,
        &|m| {
            m.encryption = EncryptInfo::Aes256 { mode: CipherMode::Ctr, key_sha256: [0; 32] };
        },
        &|m| m.chunks[0].fragments[2].checksum = Checksum::None,
        &|m| m.checksum = Checksum::None,
    ];
    for violation in violations {
        let result = change(violation);
        assert!(matches!(result, Err(NsmError::PresetViolated(_))), "{result:?}");
    }
    assert_eq!(change(&|m| m.version = ObjectVersion(1)), Err(NsmError::InvalidVersion(ObjectVersion(1))));
    assert!(change(&|_| {}).is_ok());
}

#[test]
fn a_manifest_must_be_encrypted_with_the_key_of_the_preset() {
    let store = ready();
    let (key, other) = (encryption::FragmentKey::new([1; 32]), encryption::FragmentKey::new([2; 32]));
    let fragment_encryption = FragmentEncryption::aes_256_ctr(&key, &ClusterKey::new([3; 32]));
    let encrypting = Box::new(Preset { fragment_encryption, inline_limit: 100, ..preset() });
    let next = next_message(&store).unwrap().get();
    let update = NsmMessage::UpdatePreset { namespace: NS, preset: encrypting, version: 1 };
    let id = MessageId::from_u32(u32::try_from(next).unwrap());
    run(&store, NsmCommand::Deliver(vec![(id, update)])).unwrap();
    let with = |id, mode, key: &encryption::FragmentKey| {
        let mut manifest = manifest("a", id, &[SPREAD]);
        manifest.encryption = EncryptInfo::Aes256 { mode, key_sha256: key.sha256() };
        for fragment in &mut manifest.chunks[0].fragments {
            fragment.ctr = (mode == CipherMode::Ctr).then_some([id; 16]);
        }
        run(&store, sequence(vec![put(manifest, Overwrite::Unconditionally)]))
    };
    let plain = run(&store, sequence(vec![put(manifest("a", 1, &[SPREAD]), Overwrite::Unconditionally)]));
    for refused in [plain, with(2, CipherMode::Ctr, &other), with(3, CipherMode::Cbc, &key)] {
        assert!(matches!(refused, Err(NsmError::PresetViolated(_))), "{refused:?}");
    }
    assert!(with(4, CipherMode::Ctr, &key).is_ok());
    // The same holds for what lives here.
    let inline = |id, ctr| {
        let encryption = EncryptInfo::Aes256 { mode: CipherMode::Ctr, key_sha256: key.sha256() };
        let small = Manifest { size: 1, encryption, ..manifest("s", id, &[]) };
        let value = InlineValue { packed: b"x".to_vec(), checksum: ChecksumAlgorithm::Crc32c.of(b"x"), ctr };
        let (manifest, overwrite) = (Box::new(small), Overwrite::Unconditionally);
        run(&store, sequence(vec![ObjectUpdate::PutInline { manifest, value, overwrite }]))
    };
    assert!(matches!(inline(5, None), Err(NsmError::PresetViolated(_))));
    assert!(inline(6, Some([9; 16])).is_ok());
    whole(&store);
}

#[test]
fn asserts_look_at_the_state_before_and_the_last_update_of_a_name_counts() {
    let store = ready();
    let command = |asserts, updates| NsmCommand::Sequence {
        namespace: NS,
        asserts,
        updates,
        epoch: GcEpoch::from_u32(0),
    };
    let puts = vec![
        put(manifest("a", 1, &[SPREAD]), Overwrite::NoPrevious),
        put(manifest("b", 2, &[SPREAD]), Overwrite::NoPrevious),
        // Breaks every rule, and does not count: a later update of the name does.
        put(manifest("c", 1, &[]), Overwrite::AnyPrevious),
        put(manifest("a", 3, &[SPREAD]), Overwrite::NoPrevious),
        ObjectUpdate::Delete { name: name("c"), must_exist: false },
    ];
    let outcome = run(&store, command(vec![ObjectAssert::DoesNotExist(name("a"))], puts)).unwrap();
    let NsmOutcome::Stored(stored) = outcome else { panic!("{outcome:?}") };
    assert_eq!(stored.len(), 4, "all puts are answered, stored or not");
    assert_eq!(get(&store, "a").unwrap().object_id, ObjectId::new([3; 32]));
    whole(&store);
    let id = |n| ObjectId::new([n; 32]);
    for (assert, holds) in [
        (ObjectAssert::Exists(name("a")), true),
        (ObjectAssert::Exists(name("c")), false),
        (ObjectAssert::DoesNotExist(name("a")), false),
        (ObjectAssert::HasId(name("a"), id(3)), true),
        (ObjectAssert::HasId(name("a"), id(1)), false),
        (ObjectAssert::HasId(name("c"), id(1)), false),
        (ObjectAssert::HasChecksum(name("a"), Checksum::Crc32c(3)), true),
        (ObjectAssert::HasChecksum(name("a"), Checksum::Sha1([3; 20])), false),
        (ObjectAssert::HasChecksum(name("c"), Checksum::Crc32c(3)), false),
    ] {
        let result = run(&store, command(vec![assert.clone()], vec![]));
        assert_eq!(result.is_ok(), holds, "{assert:?}: {result:?}");
    }
    // Nothing of a sequence that fails half way.
    let failing = vec![
        ObjectUpdate::Delete { name: name("a"), must_exist: true },
        ObjectUpdate::Delete { name: name("zzz"), must_exist: true },
    ];
    assert_eq!(run(&store, command(vec![], failing)), Err(NsmError::ObjectNotFound));
    assert!(get(&store, "a").is_some());
}

#[test]
fn late_fragments_fill_exactly_the_holes_of_version_0() {
    let store = ready();
    run(&store, sequence(vec![put(manifest("a", 1, &[[Some(0), Some(2), None]]), Overwrite::NoPrevious)]))
        .unwrap();
    let late = |chunk, fragment, osd| NsmCommand::AddLateFragments {
        namespace: NS,
        object: ObjectId::new([1; 32]),
        fragments: vec![(ChunkIndex(chunk), FragmentIndex(fragment), OsdId::from_u32(osd))],
        epoch: GcEpoch::from_u32(0),
    };
    let version = |n| Err(NsmError::InvalidVersion(ObjectVersion(n)));
    assert_eq!(run(&store, late(0, 1, 4)), version(0), "no hole");
    assert_eq!(run(&store, late(1, 0, 4)), version(0), "no such chunk");
    assert_eq!(run(&store, late(0, 2, 2)), Err(NsmError::InvalidFragmentSpread));
    assert_eq!(run(&store, late(0, 2, 9)), Err(NsmError::InactiveOsd(OsdId::from_u32(9))));
    let outcome = run(&store, late(0, 2, 4)).unwrap();
    let NsmOutcome::Updated(updated) = outcome else { panic!("{outcome:?}") };
    assert_eq!(updated.version, ObjectVersion(1));
    let entry = updated.fragment(ChunkIndex(0), FragmentIndex(2)).unwrap();
    assert_eq!((entry.location, entry.version), (Some(OsdId::from_u32(4)), ObjectVersion(0)));
    whole(&store);
    assert_eq!(run(&store, late(0, 2, 4)), version(1));
}

#[test]
fn epochs_only_grow_and_one_is_always_valid() {
    let store = ready();
    let enable = |n| NsmCommand::EnableGcEpoch { namespace: NS, epoch: GcEpoch::from_u32(n) };
    let disable = |n| NsmCommand::DisableGcEpochs { namespace: NS, upto: GcEpoch::from_u32(n) };
    let invalid = |n| Err(NsmError::InvalidGcEpoch(GcEpoch::from_u32(n)));
    assert_eq!(run(&store, disable(0)), invalid(0));
    assert_eq!(run(&store, enable(2)), invalid(2));
    run(&store, enable(1)).unwrap();
    run(&store, enable(1)).unwrap();
    let put_in = |id, n| NsmCommand::Sequence {
        namespace: NS,
        asserts: vec![],
        updates: vec![put(manifest("a", id, &[SPREAD]), Overwrite::Unconditionally)],
        epoch: GcEpoch::from_u32(n),
    };
    assert!(run(&store, put_in(1, 0)).is_ok());
    run(&store, disable(0)).unwrap();
    assert_eq!(run(&store, put_in(2, 0)), invalid(0));
    assert!(run(&store, put_in(2, 1)).is_ok());
    assert_eq!(run(&store, put_in(3, 2)), invalid(2));
    assert_eq!(run(&store, disable(1)), invalid(1));
}

#[test]
fn messages_have_their_effect_once_and_in_order() {
    let store = ready();
    // A repeat of all is skipped.
    prepare(&store);
    let unlink = NsmMessage::UnlinkOsd { namespace: NS, osd: OsdId::from_u32(0) };
    let gap = NsmCommand::Deliver(vec![(MessageId::from_u32(8), unlink.clone())]);
    assert!(run(&store, gap).is_err());
    run(&store, NsmCommand::Deliver(vec![(MessageId::from_u32(7), unlink)])).unwrap();
    prepare(&store);
    let put = sequence(vec![put(manifest("a", 1, &[SPREAD]), Overwrite::Unconditionally)]);
    assert_eq!(run(&store, put), Err(NsmError::InactiveOsd(OsdId::from_u32(0))));
}

#[test]
fn a_deleted_namespace_is_gone_at_once_and_its_keys_in_steps() {
    let store = ready();
    for id in 0..250 {
        let object = manifest(&format!("object {id}"), id, &[SPREAD, SPREAD]);
        run(&store, sequence(vec![put(object, Overwrite::NoPrevious)])).unwrap();
    }
    let delete = NsmMessage::DeleteNamespace { id: NS };
    run(&store, NsmCommand::Deliver(vec![(MessageId::from_u32(7), delete)])).unwrap();
    assert_eq!(ask(&store, NsmQuery::Statistics(NS)), Err(NsmError::NamespaceMoved(NS)));
    assert_eq!(run(&store, sequence(vec![])), Err(NsmError::NamespaceMoved(NS)));
    let mut steps = 0;
    while feed(&store, 5, &Input::Tidy) == Output::Tidied(true) {
        steps += 1;
    }
    assert_eq!(steps, 2, "1766 keys: a full step and a rest");
    assert!(crate::value::scan_prefix(&store, b"n", 10).unwrap().is_empty());
    assert!(crate::value::scan_prefix(&store, keys::DROPPED, 10).unwrap().is_empty());
}

#[test]
fn long_manifests_are_split_and_too_long_ones_refused() {
    let store = ready();
    let long = manifest("a", 1, &vec![SPREAD; 15_000]);
    run(&store, sequence(vec![put(long.clone(), Overwrite::NoPrevious)])).unwrap();
    assert_eq!(get(&store, "a").unwrap().chunks, long.chunks);
    whole(&store);
    let longer = manifest("b", 2, &vec![SPREAD; 60_000]);
    let refused = run(&store, sequence(vec![put(longer, Overwrite::NoPrevious)]));
    assert!(matches!(refused, Err(NsmError::TooLarge(_))), "{refused:?}");
    run(&store, sequence(vec![ObjectUpdate::Delete { name: name("a"), must_exist: true }])).unwrap();
    whole(&store);
}

#[test]
fn listings_follow_ranges_and_indexes_page() {
    let store = ready();
    for id in 0..5 {
        let object = manifest(&format!("{id}"), id, &[SPREAD]);
        run(&store, sequence(vec![put(object, Overwrite::NoPrevious)])).unwrap();
    }
    let range = RangeQuery { max: 2, reverse: true, ..RangeQuery::all() };
    let listed = ask(&store, NsmQuery::Objects { namespace: NS, range }).unwrap();
    assert_eq!(listed, NsmAnswer::Objects(Page { items: vec![name("4"), name("3")], has_more: true }));
    let on_osd = |after: Option<u8>, max| {
        let after = after.map(|n| ObjectId::new([n; 32]));
        match ask(&store, NsmQuery::ObjectsOnOsd { namespace: NS, osd: OsdId::from_u32(2), after, max }) {
            Ok(NsmAnswer::ObjectIds(page)) => (page.items.len(), page.has_more),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        (on_osd(None, 3), on_osd(Some(2), 3), on_osd(Some(4), 3)),
        ((3, true), (2, false), (0, false))
    );
    let object = get(&store, "0").unwrap();
    let nodes = indexes::nodes(&store, NS, &indexes::osds_of(&object)).unwrap();
    let bucket = object.bucket(|osd| nodes.get(&osd));
    let query = NsmQuery::ObjectsInBucket { namespace: NS, bucket, after: None, max: 9 };
    assert!(matches!(ask(&store, query), Ok(NsmAnswer::ObjectIds(page)) if page.items.len() == 5));
}

#[test]
fn a_retried_command_gets_its_first_answer() {
    let store = ready();
    let Output::Session(session) = feed(&store, 9, &Input::OpenSession([3; 16])) else { panic!() };
    let command = |sequence, lowest, command| {
        let id = RequestId { session, sequence, lowest_unacknowledged: lowest };
        feed(&store, 9, &Input::Command(id, command))
    };
    let puts = sequence(vec![
        put(manifest("a", 1, &[SPREAD]), Overwrite::NoPrevious),
        put(manifest("b", 2, &[SPREAD]), Overwrite::NoPrevious),
    ]);
    let first = command(1, 1, puts.clone());
    assert!(matches!(&first, Output::Done(Ok(NsmOutcome::Stored(stored))) if stored.len() == 2));
    assert_eq!(command(1, 1, puts.clone()), first);
    // An error is remembered as well: the name is free by the time of the retry, the answer stays.
    let again = command(2, 1, sequence(vec![put(manifest("a", 3, &[SPREAD]), Overwrite::NoPrevious)]));
    assert_eq!(again, Output::Done(Err(NsmError::OverwriteNotAllowed(name("a")))));
    let delete = sequence(vec![ObjectUpdate::Delete { name: name("a"), must_exist: true }]);
    let deleted = command(3, 1, delete.clone());
    assert_eq!(command(3, 1, delete.clone()), deleted);
    assert_eq!(command(2, 1, sequence(vec![put(manifest("a", 3, &[SPREAD]), Overwrite::NoPrevious)])), again);
    assert_eq!(command(4, 4, sequence(vec![])), Output::Done(Ok(NsmOutcome::Stored(vec![]))));
    assert_eq!(command(3, 3, delete.clone()), Output::SessionUnknown, "acknowledged: never again");
    let id = RequestId { session: SessionId(1), sequence: 1, lowest_unacknowledged: 1 };
    assert_eq!(feed(&store, 9, &Input::Command(id, delete)), Output::SessionUnknown);
}

#[test]
fn commands_and_records_have_golden_bytes() {
    let command = Input::<NsmCommand>::Internal(NsmCommand::EnableGcEpoch {
        namespace: NS,
        epoch: GcEpoch::from_u32(3),
    });
    assert_eq!(postcard::to_stdvec(&command).unwrap(), [2, 3, 7, 3]);
    let store = ready();
    run(&store, sequence(vec![put(manifest("ab", 1, &[SPREAD]), Overwrite::NoPrevious)])).unwrap();
    use alba_core::kv::KvRead;
    let record = store.get(&[&keys::object(NS, &ObjectId::new([1; 32]))[..], &[0, 0]].concat()).unwrap();
    let mut golden = vec![1, 0, 1]; // a piece: format, number of pieces
    golden.extend([1]); // a record: format
    golden.extend([2, 1, 3, 1]); // its bucket: k, m, fragments, most per node
    golden.extend([2, b'a', b'b']);
    golden.extend([1; 32]);
    golden.extend([22, 2, 1]); // size, crc-32c 1
    golden.extend([2, 1, 0, 0]); // scheme: k, m, matrix, compression
    golden.extend([0]); // no encryption
    golden.extend([1, 22, 3]); // one chunk of 22 bytes, three fragments
    for osd in [0, 2, 4] {
        golden.extend([1, osd, 0, 2, 1, 11, 0]); // some OSD, version 0, crc-32c 1, 11 bytes, no counter
    }
    golden.extend([0, 1, 6]); // version, x, time stamp
    assert_eq!(record.unwrap(), golden);
}

/// Commands that mostly make sense, on few names and ids so that they meet.
fn command() -> impl Strategy<Value = NsmCommand> {
    let text = prop_oneof![Just("a"), Just("b"), Just("c")];
    let place = proptest::option::weighted(0.9, 0_u32..7);
    let object =
        (text.clone(), 0_u8..40, proptest::collection::vec([place.clone(), place.clone(), place], 1..3))
            .prop_map(|(text, id, chunks)| manifest(text, id, &chunks));
    let overwrite = prop_oneof![
        3 => Just(Overwrite::Unconditionally),
        1 => Just(Overwrite::NoPrevious),
        1 => Just(Overwrite::AnyPrevious),
        1 => (0_u8..20).prop_map(|id| Overwrite::PreviousObjectId(ObjectId::new([id; 32]))),
    ];
    let update = prop_oneof![
        3 => (object, overwrite).prop_map(|(manifest, overwrite)| put(manifest, overwrite)),
        1 => (text.clone(), any::<bool>())
            .prop_map(|(text, must_exist)| ObjectUpdate::Delete { name: name(text), must_exist }),
        1 => (text.clone(), 0_u8..40, proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(text, id, bytes)| {
            let size = u64::try_from(bytes.len()).unwrap();
            let checksum = ChecksumAlgorithm::Crc32c.of(&bytes);
            ObjectUpdate::PutInline {
                manifest: Box::new(Manifest { size, ..manifest(text, id, &[]) }),
                value: InlineValue { packed: bytes, checksum, ctr: None },
                overwrite: Overwrite::Unconditionally,
            }
        }),
    ];
    let assert = prop_oneof![
        text.clone().prop_map(|text| ObjectAssert::Exists(name(text))),
        text.prop_map(|text| ObjectAssert::DoesNotExist(name(text))),
    ];
    let epoch = (0_u32..3).prop_map(GcEpoch::from_u32);
    prop_oneof![
        8 => (
            proptest::collection::vec(assert, 0..2),
            proptest::collection::vec(update, 0..4),
            prop_oneof![4 => Just(GcEpoch::from_u32(0)), 1 => epoch.clone()],
        )
            .prop_map(|(asserts, updates, epoch)| NsmCommand::Sequence {
                namespace: NS, asserts, updates, epoch
            }),
        4 => (0_u8..40, 0_u32..2, 0_u32..3, 0_u32..6).prop_map(|(id, chunk, fragment, osd)| {
            NsmCommand::AddLateFragments {
                namespace: NS,
                object: ObjectId::new([id; 32]),
                fragments: vec![(ChunkIndex(chunk), FragmentIndex(fragment), OsdId::from_u32(osd))],
                epoch: GcEpoch::from_u32(0),
            }
        }),
        1 => epoch.clone().prop_map(|epoch| NsmCommand::EnableGcEpoch { namespace: NS, epoch }),
        1 => epoch.prop_map(|upto| NsmCommand::DisableGcEpochs { namespace: NS, upto }),
        1 => (0_u8..6, 0_u32..6).prop_map(|(id, osd)| NsmCommand::MarkKeysDeleted {
            namespace: NS,
            osd: OsdId::from_u32(osd),
            keys: vec![FragmentKey {
                object: ObjectId::new([id; 32]),
                chunk: ChunkIndex(0),
                fragment: FragmentIndex(0),
                version: ObjectVersion(0),
            }],
        }),
        3 => (7_u32..10, message()).prop_map(|(id, message)| {
            NsmCommand::Deliver(vec![(MessageId::from_u32(id), message)])
        }),
        1 => (0_u32..6).prop_map(|osd| NsmCommand::CleanupOsd { namespace: NS, osd: OsdId::from_u32(osd) }),
        4 => (0_u8..40, 0_u32..3, proptest::collection::vec(fragment_update(), 1..3)).prop_map(
            |(id, version, fragments)| NsmCommand::UpdateObject {
                namespace: NS,
                object: ObjectId::new([id; 32]),
                version: ObjectVersion(version),
                fragments,
                epoch: GcEpoch::from_u32(0),
            }
        ),
    ]
}

fn fragment_update() -> impl Strategy<Value = FragmentUpdate> {
    (0_u32..2, 0_u32..3, proptest::option::of(0_u32..7)).prop_map(|(chunk, fragment, osd)| FragmentUpdate {
        chunk: ChunkIndex(chunk),
        fragment: FragmentIndex(fragment),
        osd: osd.map(OsdId::from_u32),
        packed: None,
        ctr: None,
    })
}

fn message() -> impl Strategy<Value = NsmMessage> {
    let osd = 0_u32..6;
    let how = prop_oneof![Just(OsdUse::Active), Just(OsdUse::Draining), Just(OsdUse::Unlinked)];
    prop_oneof![
        osd.clone().prop_map(|osd| NsmMessage::LinkOsd {
            namespace: NS,
            osd: OsdId::from_u32(osd),
            info: Box::new(osd_info(osd)),
        }),
        osd.clone().prop_map(|osd| NsmMessage::UnlinkOsd { namespace: NS, osd: OsdId::from_u32(osd) }),
        (osd.clone(), how).prop_map(|(osd, how)| NsmMessage::SetOsdUse {
            namespace: NS,
            osd: OsdId::from_u32(osd),
            how,
        }),
        // To another node, or back.
        (osd, 0_u32..6).prop_map(|(osd, at)| {
            let mut info = osd_info(osd);
            info.place = osd_info(at).place;
            NsmMessage::UpdateOsd { namespace: NS, osd: OsdId::from_u32(osd), info: Box::new(info) }
        }),
        any::<bool>().prop_map(|trashed| NsmMessage::SetTrashed { namespace: NS, trashed }),
        (0_u32..30, 0_u32..9).prop_map(|(limit, version)| allow_inline(limit, version)),
    ]
}

fn valid_epochs(store: &dyn Kv) -> (u64, u64) {
    let epochs = epochs::get(store, NS).unwrap();
    (epochs.min.get(), epochs.newest.get())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Any commands, with any of them retried at any time, on memory and on fjall, one by one and many to a commit: the same
    /// replies, the same state; and after each every index is what the manifests say.
    #[test]
    fn every_store_gives_the_same_replies_and_state(
        commands in proptest::collection::vec((command(), any::<bool>(), 0_u64..20), 1..40),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let memory = ready();
        let fjall: Arc<dyn Kv> = Arc::new(FjallKv::open(directory.path(), 1 << 20).unwrap());
        prepare(fjall.as_ref());
        let batched = ready();
        let mut together = KvTxn::new(&batched);
        let mut inputs = vec![Input::OpenSession([1; 16])];
        let session = SessionId(0x0101_0101_0101_0101);
        for (sequence, (command, retried, _)) in (1..).zip(&commands) {
            let id = RequestId { session, sequence, lowest_unacknowledged: sequence.saturating_sub(2).max(1) };
            inputs.push(Input::Command(id, command.clone()));
            if *retried {
                inputs.push(Input::Command(id, command.clone()));
            } else if sequence % 3 == 0 {
                inputs.push(Input::Tidy);
            }
        }
        let mut last = None;
        let mut epochs = valid_epochs(&memory);
        for (n, input) in inputs.iter().enumerate() {
            let wall = commands[n % commands.len()].2;
            let output = feed(&memory, wall, input);
            prop_assert_eq!(&feed(fjall.as_ref(), wall, input), &output);
            prop_assert_eq!(&crate::machine::step::<Nsm>(&mut together, wall, input).unwrap(), &output);
            prop_assert_eq!(recount(&memory, NS).unwrap(), vec![]);
            let now = valid_epochs(&memory);
            prop_assert!(epochs.0 <= now.0 && epochs.1 <= now.1 && now.0 <= now.1);
            epochs = now;
            if let (Input::Command(id, _), Some((last_id, last_output))) = (input, &last)
                && id == last_id
            {
                prop_assert_eq!(last_output, &output);
            }
            if let Input::Command(id, _) = input {
                last = Some((*id, output));
            }
        }
        let all = |store: &dyn Kv| crate::value::scan_prefix(store, b"", 1_000_000).unwrap();
        prop_assert_eq!(all(&memory), all(fjall.as_ref()));
        let batch = together.into_batch();
        batched.commit(batch, alba_core::kv::Durability::Sync).unwrap();
        prop_assert_eq!(all(&memory), all(&batched));
    }
}
