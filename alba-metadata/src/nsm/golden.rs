//! The bytes of every kind of row, made by a few commands. What a group has stored once must be read for ever: a line of
//! `golden.txt` may be added, never changed.

use std::collections::BTreeSet;

use alba_core::ids::{GcEpoch, MessageId, ObjectId, OsdId};
use alba_core::kv::{Kv, KvRead, MemKv};
use alba_core::manifest::Timestamp;
use alba_core::wire::rpc::RequestId;
use alba_core::wire::rpc::nsm::{
    InlineValue, MoveId, MoveStep, NsmMessage, ObjectUpdate, OsdUse, Overwrite, RecoveredObject,
};

use super::fixtures::*;
use super::keys::Table;
use super::*;
use crate::machine::{Input, Output};
use crate::value::scan_prefix;

fn deliver(store: &dyn Kv, messages: Vec<NsmMessage>) {
    let next = next_message(store as &dyn KvRead).unwrap().get();
    let ids = (u32::try_from(next).unwrap()..).map(MessageId::from_u32);
    run(store, NsmCommand::Deliver(ids.zip(messages).collect())).unwrap();
}

fn step(store: &dyn Kv, namespace: NamespaceId, step: MoveStep) {
    run(store, NsmCommand::Move { namespace, id: MoveId(5), step }).unwrap();
}

/// One namespace that is being moved, one that is being recovered, one that comes, one that was deleted.
fn store() -> MemKv {
    let store = MemKv::new();
    deliver(&store, messages().into_iter().take(4).map(|(_, message)| message).collect());
    let Output::Session(session) = feed(&store, 9, &Input::OpenSession([3; 16])) else { panic!() };
    let small = Manifest { size: 2, ..manifest("s", 2, &[]) };
    let value = InlineValue {
        packed: b"hi".to_vec(),
        checksum: alba_core::checksum::ChecksumAlgorithm::Crc32c.of(b"hi"),
        ctr: None,
    };
    deliver(&store, vec![allow_inline(100, 1)]);
    let at = [Some(0), None, None];
    let puts = sequence(vec![
        put(manifest("a", 1, &[at]), Overwrite::NoPrevious),
        ObjectUpdate::PutInline { manifest: Box::new(small), value, overwrite: Overwrite::Unconditionally },
    ]);
    let id = RequestId { session, sequence: 1, lowest_unacknowledged: 1 };
    let refused = feed(&store, 9, &Input::Command(id, puts.clone()));
    assert!(matches!(refused, Output::Done(Err(NsmError::InvalidBucket))), "{refused:?}");
    deliver(
        &store,
        vec![NsmMessage::LinkOsd { namespace: NS, osd: OsdId::from_u32(4), info: Box::new(osd_info(4)) }],
    );
    let whole = sequence(vec![put(manifest("a", 1, &[SPREAD]), Overwrite::NoPrevious)]);
    let id = RequestId { sequence: 2, ..id };
    assert!(matches!(feed(&store, 9, &Input::Command(id, whole)), Output::Done(Ok(_))));
    let NsmCommand::Sequence { updates, .. } = puts else { panic!() };
    run(&store, sequence(vec![updates[1].clone()])).unwrap();
    step(&store, NS, MoveStep::Prepare);
    step(&store, NS, MoveStep::Cover);
    let replace = put(manifest("a", 3, &[SPREAD]), Overwrite::AnyPrevious);
    run(&store, sequence(vec![replace])).unwrap();
    run(&store, NsmCommand::EnableGcEpoch { namespace: NS, epoch: GcEpoch::from_u32(1) }).unwrap();
    let (recovered, coming, gone) =
        (NamespaceId::from_u32(8), NamespaceId::from_u32(9), NamespaceId::from_u32(10));
    let mut moved = osd_info(2);
    moved.place = osd_info(0).place;
    deliver(
        &store,
        vec![
            NsmMessage::SetOsdUse { namespace: NS, osd: OsdId::from_u32(4), how: OsdUse::Draining },
            NsmMessage::UpdateOsd { namespace: NS, osd: OsdId::from_u32(2), info: Box::new(moved) },
            NsmMessage::RecoverNamespace {
                id: recovered,
                name: NamespaceName::new("lost").unwrap(),
                preset: Box::new(preset()),
                preset_version: 3,
            },
            NsmMessage::DeleteNamespace { id: gone },
        ],
    );
    let object = Manifest { timestamp: Timestamp(50), ..manifest("f", 6, &[SPREAD]) };
    let objects = vec![RecoveredObject { manifest: object, possibly_deleted: true }];
    run(&store, NsmCommand::RecoverObjects { namespace: recovered, objects }).unwrap();
    step(&store, coming, MoveStep::Receive);
    // And one whose move was given up.
    let given_up = NamespaceId::from_u32(11);
    deliver(
        &store,
        vec![NsmMessage::CreateNamespace {
            id: given_up,
            name: NamespaceName::new("back").unwrap(),
            preset: Box::new(preset()),
            preset_version: 0,
        }],
    );
    step(&store, given_up, MoveStep::Prepare);
    step(&store, given_up, MoveStep::Resume);
    assert_eq!(recount(&store, NS).unwrap(), []);
    assert!(indexes::object(&store, NS, &ObjectId::new([3; 32])).unwrap().is_some());
    store
}

#[test]
fn every_row_has_golden_bytes() {
    let store = store();
    let rows = scan_prefix(&store, b"", usize::MAX).unwrap();
    let inside: BTreeSet<u8> =
        rows.iter().filter(|(key, _)| key[0] == b'n').filter_map(|(key, _)| key.get(9).copied()).collect();
    assert_eq!(inside, Table::ALL.map(Table::letter).into(), "every table of a namespace has a row");
    let outside: BTreeSet<u8> = rows.iter().map(|(key, _)| key[0]).collect();
    assert_eq!(outside, BTreeSet::from(*b"\x01dfghlnrv"));
    let lines: Vec<String> =
        rows.iter().map(|(key, value)| format!("{} {}", hex::encode(key), hex::encode(value))).collect();
    let golden: Vec<&str> = include_str!("golden.txt").lines().collect();
    let missing: Vec<&String> = lines.iter().filter(|line| !golden.contains(&line.as_str())).collect();
    assert!(
        missing.is_empty(),
        "{}",
        missing.iter().map(|line| line.as_str()).collect::<Vec<_>>().join("\n")
    );
    assert_eq!(lines.len(), golden.len());
}

/// What `recount` is for: a row that is lost or changed is told of. (Infos and uses of OSDs are not made of other rows.)
#[test]
fn every_lost_or_changed_row_is_noticed() {
    let store = store();
    let start = keys::all_of(NS);
    let not_derived = [Table::ActiveOsds, Table::DrainingOsds, Table::OsdInfos];
    for (key, value) in scan_prefix(&store, &start, usize::MAX).unwrap() {
        let table = Table::of_letter(key[start.len()]).unwrap();
        if not_derived.contains(&table) {
            continue;
        }
        let mut changed = value.clone();
        if let Some(last) = changed.last_mut() {
            *last ^= 1;
        }
        // Nothing else says what these should be.
        let is_truth = matches!(table, Table::Epochs | Table::Objects | Table::Findings | Table::DeleteQueue);
        for damage in [None, Some(changed)] {
            if is_truth && damage.is_some() {
                continue;
            }
            let set = |value: Option<Vec<u8>>| {
                let mut batch = alba_core::kv::WriteBatch::default();
                match value {
                    Some(value) => batch.put(key.clone(), value),
                    None => batch.delete(key.clone()),
                }
                store.commit(batch, alba_core::kv::Durability::Eventual).unwrap();
            };
            set(damage.clone());
            // The digest of a move would notice anything: without it the index itself has to.
            let state = store.get(&keys::state(NS)).unwrap().unwrap();
            let notes = matches!(table, Table::Changes | Table::ChangedKeys);
            if !notes {
                let mut batch = alba_core::kv::WriteBatch::default();
                batch.delete(keys::state(NS));
                store.commit(batch, alba_core::kv::Durability::Eventual).unwrap();
            }
            let seen = recount(&store, NS).map_or(true, |differences| !differences.is_empty());
            assert!(seen, "{table:?} {} {damage:?}", hex::encode(&key));
            set(Some(value.clone()));
            let mut batch = alba_core::kv::WriteBatch::default();
            batch.put(keys::state(NS), state);
            store.commit(batch, alba_core::kv::Durability::Eventual).unwrap();
        }
    }
    assert_eq!(recount(&store, NS).unwrap(), []);
    assert_eq!(recount_group(&store).unwrap(), []);
    // And tables that nobody owns.
    let lost = NamespaceId::from_u32(77);
    let mut batch = alba_core::kv::WriteBatch::default();
    batch.put(keys::table(lost, Table::ObjectCount), vec![1; 8]);
    store.commit(batch, alba_core::kv::Durability::Eventual).unwrap();
    let found = recount_group(&store).unwrap();
    assert!(matches!(&found[..], [(Some(namespace), _)] if *namespace == lost), "{found:?}");
}

/// What is remembered of a sequence that says what it deleted; with either kind of sequence it gives the outcome again.
#[test]
fn what_was_deleted_is_remembered_in_golden_bytes() {
    let updates = vec![
        put(manifest("a", 1, &[SPREAD]), Overwrite::NoPrevious),
        ObjectUpdate::Delete { name: name("b"), must_exist: true },
    ];
    let (namespace, asserts, epoch) = (NS, Vec::new(), GcEpoch::from_u32(0));
    let telling =
        NsmCommand::DeletingSequence { namespace, asserts: asserts.clone(), updates: updates.clone(), epoch };
    let plain = NsmCommand::Sequence { namespace, asserts, updates, epoch };
    assert_eq!((Nsm::format_of(&telling), Nsm::format_of(&plain)), (2, 1));
    let stored = vec![Manifest { timestamp: Timestamp(300), ..manifest("a", 1, &[SPREAD]) }];
    let outcome = NsmOutcome::StoredAndDeleted { stored, deleted: vec![(1, ObjectId::new([9; 32]))] };
    let kept = Nsm::remember(&outcome).unwrap();
    assert_eq!(hex::encode(&kept), format!("010601ac020101{}", "09".repeat(32)));
    for command in [&telling, &plain] {
        assert_eq!(Nsm::recall(command, &kept).unwrap(), outcome);
    }
}
