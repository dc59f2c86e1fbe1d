//! Updates of fragments, states of OSDs and namespaces, objects in the metadata, recovery, listings and batches.

use std::ops::ControlFlow;

use alba_core::checksum::Checksum;
use alba_core::ids::{ChunkIndex, FragmentIndex, GcEpoch, MessageId, ObjectId, ObjectVersion, OsdId};
use alba_core::kv::{Durability, Kv, KvRead, MemKv};
use alba_core::manifest::{Chunk, Timestamp};
use alba_core::preset::Compression;
use alba_core::range::{Page, RangeQuery};
use alba_core::wire::rpc::nsm::{
    Finding, FindingReason, FragmentKey, FragmentUpdate, GroupLoad, InlineValue, Lifecycle, MAX_INLINE,
    NamespaceDetails, NamespaceStatistics, NsmMessage, OsdUse, Overwrite, PresetUpdate, RecoveredObject,
    Resolution,
};
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

fn by_id(store: &dyn Kv, id: u8) -> Option<Manifest> {
    match ask(store, NsmQuery::ManifestById { namespace: NS, object: object(id) }).unwrap() {
        NsmAnswer::Manifest(manifest) => manifest.map(|manifest| *manifest),
        other => panic!("{other:?}"),
    }
}

fn details(store: &dyn Kv) -> NamespaceDetails {
    match ask(store, NsmQuery::Details(NS)).unwrap() {
        NsmAnswer::Details(details) => *details,
        other => panic!("{other:?}"),
    }
}

fn statistics(store: &dyn Kv) -> NamespaceStatistics {
    match ask(store, NsmQuery::Statistics(NS)).unwrap() {
        NsmAnswer::Statistics(statistics) => statistics,
        other => panic!("{other:?}"),
    }
}

fn queue(store: &dyn Kv, osd: u32) -> Vec<FragmentKey> {
    match ask(store, NsmQuery::DeleteQueue { namespace: NS, osd: OsdId::from_u32(osd), max: 200 }).unwrap() {
        NsmAnswer::Keys(page) => page.items,
        other => panic!("{other:?}"),
    }
}

fn object(id: u8) -> ObjectId {
    ObjectId::new([id; 32])
}

fn whole(store: &dyn Kv) {
    assert_eq!(recount(store, NS).unwrap(), []);
}

fn ready() -> MemKv {
    let store = MemKv::new();
    prepare(&store);
    store
}

fn deliver(store: &dyn Kv, message: NsmMessage) {
    let id = next_message(store as &dyn KvRead).unwrap();
    run(store, NsmCommand::Deliver(vec![(id, message)])).unwrap();
}

fn put_one(store: &dyn Kv, text: &str, id: u8) -> Result<NsmOutcome, NsmError> {
    run(store, sequence(vec![put(manifest(text, id, &[SPREAD]), Overwrite::Unconditionally)]))
}

fn tidy(store: &dyn Kv) -> usize {
    let mut steps = 0;
    while feed(store, 5, &Input::Tidy) == Output::Tidied(true) {
        steps += 1;
    }
    steps
}

fn at(chunk: u32, fragment: u32, osd: Option<u32>) -> FragmentUpdate {
    FragmentUpdate {
        chunk: ChunkIndex(chunk),
        fragment: FragmentIndex(fragment),
        osd: osd.map(OsdId::from_u32),
        packed: None,
        ctr: None,
    }
}

fn update(id: u8, version: u32, fragments: Vec<FragmentUpdate>) -> NsmCommand {
    NsmCommand::UpdateObject {
        namespace: NS,
        object: object(id),
        version: ObjectVersion(version),
        fragments,
        epoch: GcEpoch::from_u32(0),
    }
}

#[test]
fn an_update_moves_fragments_and_queues_what_it_replaces() {
    let store = ready();
    let compressed = |mut manifest: Manifest| {
        // Lengths of packed fragments are free when they are compressed.
        manifest.scheme.compression = Compression::Zstd;
        manifest
    };
    let mut preset = preset();
    preset.compression = Compression::Zstd;
    let update_preset = NsmMessage::UpdatePreset { namespace: NS, preset: Box::new(preset), version: 1 };
    deliver(&store, update_preset);
    let put = put(compressed(manifest("a", 1, &[SPREAD, SPREAD])), Overwrite::NoPrevious);
    run(&store, sequence(vec![put])).unwrap();
    let mut moved = at(1, 2, Some(5));
    moved.packed = Some((7, Checksum::Crc32c(9)));
    // In place: rewritten on the same OSD, because the old one was bad.
    let outcome = run(&store, update(1, 0, vec![at(0, 0, Some(0)), moved])).unwrap();
    let NsmOutcome::Updated(updated) = outcome else { panic!("{outcome:?}") };
    assert_eq!(updated.version, ObjectVersion(1));
    assert_eq!(by_id(&store, 1).as_ref(), Some(updated.as_ref()));
    let entry = |chunk, fragment| {
        let entry = updated.fragment(ChunkIndex(chunk), FragmentIndex(fragment)).unwrap();
        (entry.location.unwrap().get(), entry.version.0, entry.packed_len)
    };
    assert_eq!((entry(0, 0), entry(1, 2), entry(1, 1)), ((0, 1, 11), (5, 1, 7), (2, 0, 11)));
    let key = |chunk, fragment, version| FragmentKey {
        object: object(1),
        chunk: ChunkIndex(chunk),
        fragment: FragmentIndex(fragment),
        version: ObjectVersion(version),
    };
    assert_eq!((queue(&store, 0), queue(&store, 4)), (vec![key(0, 0, 0)], vec![key(1, 2, 0)]));
    assert_eq!(statistics(&store).storage_bytes, 5 * 11 + 7);
    whole(&store);
    // The version is spent.
    let again = run(&store, update(1, 0, vec![at(0, 1, Some(3))]));
    assert_eq!(again, Err(NsmError::InvalidVersion(ObjectVersion(1))));
    run(&store, update(1, 1, vec![at(0, 0, Some(1))])).unwrap();
    assert_eq!(queue(&store, 0), [key(0, 0, 0), key(0, 0, 1)]);
    whole(&store);
}

#[test]
fn an_update_is_checked_and_a_removal_never_for_its_bucket() {
    let store = ready();
    put_one(&store, "a", 1).unwrap();
    assert_eq!(run(&store, update(9, 0, vec![at(0, 0, None)])), Err(NsmError::ObjectNotFound));
    let invalid = |fragments| {
        let result = run(&store, update(1, 0, fragments));
        assert!(matches!(result, Err(NsmError::InvalidUpdate(_))), "{result:?}");
    };
    invalid(vec![]);
    invalid(vec![at(0, 0, Some(1)), at(0, 0, None)]);
    invalid(vec![at(1, 0, Some(1))]);
    invalid(vec![at(0, 3, Some(1))]);
    invalid(vec![FragmentUpdate { packed: Some((11, Checksum::Crc32c(1))), ..at(0, 0, None) }]);
    invalid(vec![FragmentUpdate { ctr: Some([1; 16]), ..at(0, 0, Some(1)) }]);
    invalid(vec![FragmentUpdate { packed: Some((12, Checksum::Crc32c(1))), ..at(0, 0, Some(1)) }]);
    let other = FragmentUpdate { packed: Some((11, Checksum::None)), ..at(0, 0, Some(1)) };
    let violated = run(&store, update(1, 0, vec![other]));
    assert!(matches!(violated, Err(NsmError::PresetViolated(_))), "{violated:?}");
    // Each breaks its rule and the later ones.
    assert_eq!(run(&store, update(1, 0, vec![at(0, 0, Some(2))])), Err(NsmError::InvalidFragmentSpread));
    let mut old = update(1, 0, vec![at(0, 0, Some(9))]);
    if let NsmCommand::UpdateObject { epoch, .. } = &mut old {
        *epoch = GcEpoch::from_u32(3);
    }
    assert_eq!(run(&store, old), Err(NsmError::InvalidGcEpoch(GcEpoch::from_u32(3))));
    let inactive = Err(NsmError::InactiveOsd(OsdId::from_u32(9)));
    assert_eq!(run(&store, update(1, 0, vec![at(0, 0, Some(9)), at(0, 1, None), at(0, 2, None)])), inactive);
    let thin = vec![at(0, 0, Some(1)), at(0, 1, None), at(0, 2, None)];
    assert_eq!(run(&store, update(1, 0, thin)), Err(NsmError::InvalidBucket));
    // All three fragments gone: sad, and not to be hidden.
    run(&store, update(1, 0, vec![at(0, 0, None), at(0, 1, None)])).unwrap();
    run(&store, update(1, 1, vec![at(0, 2, None)])).unwrap();
    let buckets = statistics(&store).buckets;
    assert!(matches!(&buckets[..], [(bucket, 1)] if bucket.fragments == 0));
    assert_eq!([0, 2, 4].map(|osd| queue(&store, osd).len()), [1; 3]);
    whole(&store);
}

#[test]
fn an_object_id_is_not_used_again_while_its_fragments_wait_to_be_deleted() {
    let store = ready();
    put_one(&store, "a", 1).unwrap();
    put_one(&store, "a", 2).unwrap();
    // A late repetition of the first put, under another request id.
    assert_eq!(put_one(&store, "a", 1), Err(NsmError::NonUniqueObjectId));
    let gone = queue(&store, 0);
    run(&store, NsmCommand::MarkKeysDeleted { namespace: NS, osd: OsdId::from_u32(0), keys: gone }).unwrap();
    assert_eq!(put_one(&store, "a", 1), Err(NsmError::NonUniqueObjectId), "two of three still wait");
    whole(&store);
}

#[test]
fn a_draining_osd_takes_nothing_new_and_counts() {
    let store = ready();
    put_one(&store, "a", 1).unwrap();
    let set = |how| NsmMessage::SetOsdUse { namespace: NS, osd: OsdId::from_u32(0), how };
    let use_now = |store: &MemKv| details(store).osds[0].2;
    assert_eq!(use_now(&store), OsdUse::Active);
    deliver(&store, set(OsdUse::Draining));
    assert_eq!(use_now(&store), OsdUse::Draining);
    assert_eq!(put_one(&store, "b", 2), Err(NsmError::InactiveOsd(OsdId::from_u32(0))));
    // What is there stays, also through an update of another fragment.
    run(&store, update(1, 0, vec![at(0, 1, Some(3))])).unwrap();
    let buckets = statistics(&store).buckets;
    assert!(matches!(&buckets[..], [(bucket, 1)] if bucket.fragments == 3));
    whole(&store);
    deliver(&store, NsmMessage::UnlinkOsd { namespace: NS, osd: OsdId::from_u32(0) });
    assert_eq!(use_now(&store), OsdUse::Unlinked);
    deliver(&store, set(OsdUse::Active));
    assert_eq!(use_now(&store), OsdUse::Active);
    put_one(&store, "b", 2).unwrap();
    // An OSD that was never linked has no use.
    let unknown = NsmMessage::SetOsdUse { namespace: NS, osd: OsdId::from_u32(77), how: OsdUse::Active };
    deliver(&store, unknown);
    assert_eq!(details(&store).osds.len(), 6);
    whole(&store);
}

#[test]
fn objects_go_to_other_buckets_when_an_osd_moves() {
    let store = ready();
    for id in 0..250 {
        put_one(&store, &format!("object {id}"), id).unwrap();
    }
    assert!(matches!(statistics(&store).buckets[..], [(bucket, 250)] if bucket.max_per_node == 1));
    // OSD 0 joins OSD 2 on its node.
    let mut info = osd_info(0);
    info.place = osd_info(2).place;
    deliver(&store, NsmMessage::UpdateOsd { namespace: NS, osd: OsdId::from_u32(0), info: Box::new(info) });
    whole(&store);
    put_one(&store, "object 1", 251).unwrap();
    assert_eq!(tidy(&store), 3, "250 objects, 100 at a time");
    assert!(matches!(statistics(&store).buckets[..], [(bucket, 250)] if bucket.max_per_node == 2));
    whole(&store);
}

#[test]
fn a_trashed_namespace_serves_no_client_and_no_collection_but_is_kept_in_repair() {
    let store = ready();
    put_one(&store, "a", 1).unwrap();
    put_one(&store, "b", 2).unwrap();
    put_one(&store, "b", 3).unwrap();
    deliver(&store, NsmMessage::SetTrashed { namespace: NS, trashed: true });
    assert!(details(&store).trashed);
    let refused = NsmError::NamespaceTrashed(NS);
    assert_eq!(put_one(&store, "c", 4), Err(refused.clone()));
    for query in [
        NsmQuery::Manifests { namespace: NS, names: vec![name("a")] },
        NsmQuery::Contents { namespace: NS, names: vec![name("a")] },
        NsmQuery::Exist { namespace: NS, names: vec![name("a")] },
        NsmQuery::Objects { namespace: NS, range: RangeQuery::all() },
    ] {
        assert_eq!(ask(&store, query), Err(refused.clone()));
    }
    for epoch in [
        NsmCommand::EnableGcEpoch { namespace: NS, epoch: GcEpoch::from_u32(1) },
        NsmCommand::DisableGcEpochs { namespace: NS, upto: GcEpoch::from_u32(0) },
    ] {
        assert_eq!(run(&store, epoch), Err(refused.clone()));
    }
    run(&store, update(1, 0, vec![at(0, 0, Some(1))])).unwrap();
    let keys = queue(&store, 0);
    assert_eq!(keys.len(), 2);
    run(&store, NsmCommand::MarkKeysDeleted { namespace: NS, osd: OsdId::from_u32(0), keys }).unwrap();
    assert_eq!(statistics(&store).objects, 2);
    deliver(&store, NsmMessage::SetTrashed { namespace: NS, trashed: false });
    put_one(&store, "c", 4).unwrap();
    assert_eq!(
        ask(&store, NsmQuery::Exist { namespace: NS, names: vec![name("a"), name("z")] }),
        Ok(NsmAnswer::Exist(vec![true, false]))
    );
    whole(&store);
}

fn small(text: &str, id: u8, bytes: &[u8]) -> ObjectUpdate {
    let mut manifest = manifest(text, id, &[]);
    manifest.size = u64::try_from(bytes.len()).unwrap();
    let checksum = alba_core::checksum::ChecksumAlgorithm::Crc32c.of(bytes);
    let value = InlineValue { packed: bytes.to_vec(), checksum, ctr: None };
    ObjectUpdate::PutInline { manifest: Box::new(manifest), value, overwrite: Overwrite::Unconditionally }
}

#[test]
fn small_objects_live_in_the_metadata_when_that_is_allowed() {
    let store = ready();
    let refused = run(&store, sequence(vec![small("a", 1, b"hello")]));
    assert!(matches!(refused, Err(NsmError::PresetViolated(_))), "off at first: {refused:?}");
    deliver(&store, allow_inline(4096, 1));
    run(&store, sequence(vec![small("a", 1, b"hello"), small("b", 2, b"")])).unwrap();
    put_one(&store, "c", 3).unwrap();
    let of = |text: &str| match ask(&store, NsmQuery::Contents { namespace: NS, names: vec![name(text)] }) {
        Ok(NsmAnswer::Contents(mut found)) => found.pop().unwrap(),
        other => panic!("{other:?}"),
    };
    let (manifest_a, value) = of("a").unwrap();
    assert!(manifest_a.chunks.is_empty() && manifest_a.timestamp > Timestamp(0));
    assert_eq!(value.unwrap().packed, b"hello");
    assert!(matches!(of("c"), Some((manifest, None)) if manifest.chunks.len() == 1));
    assert_eq!(of("z"), None);
    let now = details(&store);
    assert_eq!((now.inline_objects, now.inline_bytes), (2, 5));
    let counted = statistics(&store);
    assert_eq!((counted.objects, counted.logical_bytes, counted.storage_bytes), (3, 31, 39));
    assert!(matches!(counted.buckets[..], [(_, 1)]), "nothing for maintenance to do");
    whole(&store);
    let too_long = vec![7; MAX_INLINE + 1];
    let mut violations = vec![small("a", 4, &too_long), small("a", 4, b"x"), small("a", 4, b"x")];
    if let ObjectUpdate::PutInline { value, .. } = &mut violations[1] {
        value.packed = b"y".to_vec();
    }
    if let ObjectUpdate::PutInline { manifest, .. } = &mut violations[2] {
        manifest.chunks = vec![Chunk { size: 2, fragments: vec![] }];
    }
    // And a put of fragments without any.
    violations.push(put(manifest("a", 4, &[]), Overwrite::Unconditionally));
    for violation in violations {
        let refused = run(&store, sequence(vec![violation]));
        assert!(matches!(refused, Err(NsmError::PresetViolated(_))), "{refused:?}");
    }
    // Replaced by one of the other kind, both ways, and deleted.
    run(&store, sequence(vec![small("c", 5, b"now small")])).unwrap();
    put_one(&store, "a", 6).unwrap();
    assert_eq!(queue(&store, 0).len(), 1);
    run(&store, sequence(vec![ObjectUpdate::Delete { name: name("b"), must_exist: true }])).unwrap();
    let now = details(&store);
    assert_eq!((now.inline_objects, now.inline_bytes), (1, 9));
    whole(&store);
}

/// A namespace that is being recovered.
fn recovering() -> MemKv {
    let store = MemKv::new();
    let mut told = messages();
    let NsmMessage::CreateNamespace { id, name, preset, preset_version } = told[0].1.clone() else {
        panic!()
    };
    told[0].1 = NsmMessage::RecoverNamespace { id, name, preset, preset_version };
    run(&store, NsmCommand::Deliver(told)).unwrap();
    store
}

fn found(text: &str, id: u8, version: u32, possibly_deleted: bool) -> RecoveredObject {
    let mut manifest = manifest(text, id, &[SPREAD]);
    manifest.version = ObjectVersion(version);
    manifest.timestamp = Timestamp(1000 + u64::from(id));
    RecoveredObject { manifest, possibly_deleted }
}

fn recover(store: &dyn Kv, objects: Vec<RecoveredObject>) -> Vec<Recovered> {
    match run(store, NsmCommand::RecoverObjects { namespace: NS, objects }).unwrap() {
        NsmOutcome::Recovered(results) => results,
        other => panic!("{other:?}"),
    }
}

fn findings(store: &dyn Kv) -> Vec<(u8, FindingReason)> {
    let query = NsmQuery::RecoveryFindings { namespace: NS, after: None, max: 200 };
    match ask(store, query).unwrap() {
        NsmAnswer::Findings(page) => {
            let item = |finding: &Finding| (finding.manifest.object_id.as_bytes()[0], finding.reason);
            page.items.iter().map(item).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn recovery_restores_what_is_certain_and_lists_the_rest() {
    use FindingReason::{Conflict, PossiblyDeleted};
    let store = recovering();
    assert_eq!(details(&store).lifecycle, Lifecycle::Recovering);
    let refused = NsmError::NamespaceRecovering(NS);
    assert_eq!(put_one(&store, "a", 1), Err(refused.clone()));
    let asked = NsmQuery::ManifestById { namespace: NS, object: object(1) };
    assert_eq!(ask(&store, asked), Err(refused), "never \"absent\" to garbage collection");
    let mut thin = found("t", 7, 0, false);
    thin.manifest.chunks[0].fragments[0].location = None;
    thin.manifest.chunks[0].fragments[1].location = None;
    let mut unsound = found("u", 8, 0, false);
    unsound.manifest.chunks.clear();
    let results = recover(
        &store,
        vec![
            found("a", 1, 2, false),
            found("a", 1, 1, false),
            found("a", 1, 3, false),
            found("b", 2, 0, false),
            found("b", 3, 0, false),
            found("c", 4, 0, true),
            found("d", 1, 9, false),
            thin,
            unsound,
        ],
    );
    assert_eq!(
        results[..8],
        [
            Recovered::Stored,
            Recovered::Known,
            Recovered::Stored,
            Recovered::Stored,
            Recovered::Apart(Conflict),
            Recovered::Apart(PossiblyDeleted),
            Recovered::Refused(NsmError::NonUniqueObjectId),
            Recovered::Refused(NsmError::InsufficientFragments),
        ]
    );
    assert!(matches!(results[8], Recovered::Refused(NsmError::InvalidUpdate(_))));
    assert_eq!(findings(&store), [(2, Conflict), (3, Conflict), (4, PossiblyDeleted)]);
    assert_eq!((statistics(&store).objects, details(&store).findings), (1, 3));
    whole(&store);
    let finish = NsmCommand::FinishRecovery { namespace: NS, epoch: GcEpoch::from_u32(17) };
    assert!(matches!(run(&store, finish.clone()), Err(NsmError::InvalidUpdate(_))));
    let resolve = |id, resolution| {
        run(&store, NsmCommand::ResolveFinding { namespace: NS, object: object(id), resolution })
    };
    resolve(2, Resolution::Restore).unwrap();
    assert_eq!(resolve(3, Resolution::Restore), Err(NsmError::OverwriteNotAllowed(name("b"))));
    resolve(3, Resolution::Discard).unwrap();
    assert_eq!(resolve(3, Resolution::Discard), Err(NsmError::ObjectNotFound));
    resolve(4, Resolution::Restore).unwrap();
    // An agent that begins again brings nothing back.
    assert_eq!(
        recover(&store, vec![found("b", 3, 0, false), found("b", 2, 0, false)]),
        [Recovered::Refused(NsmError::NonUniqueObjectId), Recovered::Known]
    );
    whole(&store);
    run(&store, finish.clone()).unwrap();
    run(&store, finish).unwrap();
    assert_eq!(by_id(&store, 1).unwrap().version, ObjectVersion(3));
    assert_eq!(queue(&store, 0).len(), 1, "what was discarded");
    let old = put_one(&store, "e", 9);
    assert_eq!(old, Err(NsmError::InvalidGcEpoch(GcEpoch::from_u32(0))), "older epochs are not valid");
    let new = NsmCommand::Sequence {
        namespace: NS,
        asserts: vec![],
        updates: vec![put(manifest("a", 9, &[SPREAD]), Overwrite::AnyPrevious)],
        epoch: GcEpoch::from_u32(17),
    };
    let outcome = run(&store, new).unwrap();
    let NsmOutcome::Stored(stored) = outcome else { panic!("{outcome:?}") };
    assert!(stored[0].timestamp > Timestamp(1004), "later than all that was recovered");
    let late = run(&store, NsmCommand::RecoverObjects { namespace: NS, objects: vec![] });
    assert_eq!(late, Err(NsmError::NotRecovering(NS)));
    whole(&store);
}

#[test]
fn of_one_version_the_manifest_with_more_fragments_counts() {
    let store = recovering();
    let mut thin = found("a", 1, 0, false);
    thin.manifest.chunks[0].fragments[1].location = None;
    let whole_one = found("a", 1, 0, false);
    assert_eq!(recover(&store, vec![thin.clone()]), [Recovered::Stored]);
    assert_eq!(recover(&store, vec![whole_one.clone(), thin]), [Recovered::Stored, Recovered::Known]);
    whole(&store);
    let finish = NsmCommand::FinishRecovery { namespace: NS, epoch: GcEpoch::from_u32(1) };
    run(&store, finish).unwrap();
    assert_eq!(by_id(&store, 1).unwrap().chunks, whole_one.manifest.chunks);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Agents bring objects in any order, in any portions, and again: the result is the same.
    #[test]
    fn recovery_does_not_depend_on_the_order(
        objects in proptest::collection::vec((0_u8..6, 0_u32..3, any::<bool>()), 1..12)
            .prop_flat_map(|objects| (Just(objects.clone()), Just(objects).prop_shuffle())),
        portion in 1_usize..5,
    ) {
        // The name of an object is for ever; two objects share each name.
        let object = |(id, version, doubt): &(u8, u32, bool)| {
            found(["a", "b", "c"][usize::from(*id) / 2], *id, *version, *doubt && *id == 0)
        };
        let (one, other) = (recovering(), recovering());
        recover(&one, objects.0.iter().map(object).collect());
        for portion in objects.1.chunks(portion) {
            recover(&other, portion.iter().map(object).collect());
            whole(&other);
        }
        recover(&other, objects.0.iter().map(object).collect());
        let tables = |store: &MemKv| crate::value::scan_prefix(store, &keys::all_of(NS), 1000).unwrap();
        prop_assert_eq!(tables(&one), tables(&other));
        prop_assert_eq!(access::state(&one, NS).unwrap(), access::state(&other, NS).unwrap());
    }
}

#[test]
fn objects_are_listed_by_id_in_both_directions_with_and_without_manifests() {
    let store = ready();
    for id in [1, 2, 3, 200] {
        // Some in several pieces.
        let places = vec![SPREAD; if id == 2 { 3000 } else { 1 }];
        let object = manifest(&format!("object {id}"), id, &places);
        run(&store, sequence(vec![put(object, Overwrite::NoPrevious)])).unwrap();
    }
    let list = |range: RangeQuery| match ask(&store, NsmQuery::ObjectsById { namespace: NS, range }) {
        Ok(NsmAnswer::ObjectIds(page)) => {
            (page.items.iter().map(|id| id.as_bytes()[0]).collect::<Vec<_>>(), page.has_more)
        }
        other => panic!("{other:?}"),
    };
    let all = RangeQuery::all();
    assert_eq!(list(all.clone()), (vec![1, 2, 3, 200], false));
    assert_eq!(list(RangeQuery { max: 2, ..all.clone() }), (vec![1, 2], true));
    assert_eq!(list(RangeQuery { max: 2, ..all.clone() }.after(&[2; 32])), (vec![3, 200], false));
    assert_eq!(list(RangeQuery { reverse: true, ..all.clone() }.after(&[3; 32])), (vec![2, 1], false));
    let between = |last_included| RangeQuery {
        first: vec![2; 32],
        last: Some((vec![3; 32], last_included)),
        ..all.clone()
    };
    assert_eq!(list(between(true)), (vec![2, 3], false));
    assert_eq!(list(between(false)), (vec![2], false));
    // A leaf of a job: ids that begin below 0x80.
    assert_eq!(list(RangeQuery { last: Some((vec![0x80], false)), ..all.clone() }), (vec![1, 2, 3], false));
    let page = ask(&store, NsmQuery::ManifestsById { namespace: NS, range: all }).unwrap();
    let expected = [1, 2, 3, 200].map(|id| by_id(&store, id).unwrap());
    assert_eq!(page, NsmAnswer::ManifestPage(Page { items: expected.to_vec(), has_more: false }));
}

#[test]
fn batches_answer_each_entry_on_its_own() {
    let store = ready();
    put_one(&store, "a", 1).unwrap();
    let gone = NamespaceId::from_u32(99);
    let moved = NsmError::NamespaceMoved(gone);
    let answer = ask(&store, NsmQuery::StatisticsOf(vec![gone, NS])).unwrap();
    let expected = vec![Err(moved.clone()), Ok(statistics(&store))];
    assert_eq!(answer, NsmAnswer::EachStatistics(expected));
    let too_many = ask(&store, NsmQuery::StatisticsOf(vec![NS; 201]));
    assert!(matches!(too_many, Err(NsmError::TooLarge(_))), "{too_many:?}");
    let change = |namespace, fragment_size, version| PresetUpdate {
        namespace,
        preset: Box::new(Preset { fragment_size, ..preset() }),
        version,
    };
    let updates = vec![change(NS, 16, 2), change(gone, 16, 2), change(NS, 32, 1)];
    let outcome = run(&store, NsmCommand::UpdatePresets(updates)).unwrap();
    assert_eq!(outcome, NsmOutcome::Each(vec![Ok(()), Err(moved), Ok(())]));
    match ask(&store, NsmQuery::Namespace(NS)).unwrap() {
        NsmAnswer::Namespace(info) => assert_eq!((info.preset.fragment_size, info.preset_version), (16, 2)),
        other => panic!("{other:?}"),
    }
    let named = |after, max| ask(&store, NsmQuery::Namespaces { after, max }).unwrap();
    let here = vec![(NS, NamespaceName::new("ns").unwrap())];
    assert_eq!(named(None, 5), NsmAnswer::Namespaces(Page { items: here, has_more: false }));
    assert_eq!(named(Some(NS), 5), NsmAnswer::Namespaces(Page { items: vec![], has_more: false }));
}

#[test]
fn the_queue_of_an_osd_that_is_gone_is_forgotten_in_steps() {
    let store = ready();
    for id in 0..250 {
        let object = manifest("a", id, &[SPREAD; 5]);
        run(&store, sequence(vec![put(object, Overwrite::Unconditionally)])).unwrap();
    }
    let queues = || match ask(&store, NsmQuery::DeleteQueues(NS)).unwrap() {
        NsmAnswer::DeleteQueues(queues) => queues,
        other => panic!("{other:?}"),
    };
    let all = queues();
    assert!(all.len() > 1 && all.is_sorted() && all.iter().all(|(_, keys)| *keys == 1000), "{all:?}");
    assert_eq!(all[0].0, OsdId::from_u32(0));
    let clean_up = NsmCommand::CleanupOsd { namespace: NS, osd: OsdId::from_u32(0) };
    assert_eq!(run(&store, clean_up.clone()), Ok(NsmOutcome::Cleaned { more: true }));
    assert_eq!((queues().len(), queues()[0]), (all.len(), (OsdId::from_u32(0), 245)));
    assert_eq!(run(&store, clean_up.clone()), Ok(NsmOutcome::Cleaned { more: false }));
    assert_eq!(run(&store, clean_up), Ok(NsmOutcome::Cleaned { more: false }));
    assert_eq!(queues(), all[1..]);
    assert_eq!((queue(&store, 0).len(), queue(&store, 2).len()), (0, 200));
}

#[test]
fn a_group_knows_its_load() {
    let store = ready();
    let load = || match ask(&store, NsmQuery::Load).unwrap() {
        NsmAnswer::Load(load) => load,
        other => panic!("{other:?}"),
    };
    let before = load();
    assert_eq!((before.namespaces, before.operations), (1, 1));
    put_one(&store, "a", 1).unwrap();
    let GroupLoad { operations, written, .. } = load();
    assert_eq!(operations, 2);
    assert!(written > before.written + 200, "{written}");
    // Neither what is refused nor what changes nothing is load.
    put_one(&store, "a", 1).unwrap_err();
    run(&store, sequence(vec![])).unwrap();
    assert_eq!(load().operations, 2);
}

#[test]
fn an_export_shows_every_row() {
    let store = ready();
    deliver(&store, allow_inline(100, 1));
    let long = manifest("long", 1, &vec![SPREAD; 3000]);
    run(&store, sequence(vec![put(long, Overwrite::NoPrevious), small("small", 2, b"x")])).unwrap();
    put_one(&store, "a", 3).unwrap();
    put_one(&store, "a", 4).unwrap();
    deliver(&store, NsmMessage::SetTrashed { namespace: NS, trashed: true });
    let mut batch = alba_core::kv::WriteBatch::default();
    batch.put("zzz", "what is this");
    batch.put(keys::header(NamespaceId::from_u32(8)), vec![9, 9]);
    store.commit(batch, Durability::Sync).unwrap();
    let mut lines: Vec<serde_json::Value> = Vec::new();
    export::lines(&store, &mut |line| {
        assert!(!line.contains('\n'));
        lines.push(serde_json::from_str(&line).unwrap());
        ControlFlow::Continue(())
    })
    .unwrap();
    let rows = crate::value::scan_prefix(&store, b"", usize::MAX).unwrap();
    let further = rows.iter().filter(|(key, _)| key.starts_with(&keys::object(NS, &object(1)))).count() - 1;
    assert!(further > 0);
    assert_eq!(lines.len(), rows.len() - further);
    let of = |table: &str| lines.iter().filter(|line| line["table"] == table).count();
    assert_eq!((of("object"), of("name"), of("osd"), of("to_delete")), (3, 3, 6, 3));
    assert_eq!((of("inline_value"), of("namespace"), of("state")), (1, 1, 1));
    let a = lines.iter().find(|line| line["table"] == "object" && line["manifest"]["name"] == "a").unwrap();
    assert_eq!(a["object"], "04".repeat(32));
    assert_eq!(a["manifest"]["chunks"][0]["fragments"][1]["osd"], 2);
    assert!(lines.iter().any(|line| line["unknown"] == "7a7a7a"));
    assert!(lines.iter().any(|line| line["unreadable"].is_string()), "damage is shown, not skipped");
    // It can be stopped.
    let mut seen = 0;
    export::lines(&store, &mut |_| {
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!(seen, 3);
}

#[test]
fn a_message_for_a_namespace_that_is_not_here_has_no_effect() {
    let store = ready();
    let other = NamespaceId::from_u32(99);
    let osd = OsdId::from_u32(0);
    let info = Box::new(osd_info(0));
    let told = [
        NsmMessage::LinkOsd { namespace: other, osd, info: info.clone() },
        NsmMessage::UnlinkOsd { namespace: other, osd },
        NsmMessage::UpdateOsd { namespace: other, osd, info },
        NsmMessage::SetOsdUse { namespace: other, osd, how: OsdUse::Draining },
        NsmMessage::SetTrashed { namespace: other, trashed: true },
    ];
    let before = crate::value::scan_prefix(&store, b"n", usize::MAX).unwrap();
    for message in told {
        deliver(&store, message);
    }
    assert_eq!(crate::value::scan_prefix(&store, b"n", usize::MAX).unwrap(), before);
    assert_eq!(store.get(&keys::state(other)).unwrap(), None);
    assert_eq!(next_message(&store as &dyn KvRead).unwrap(), MessageId::from_u32(12));
}
