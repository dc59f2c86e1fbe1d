//! A namespace that comes back to a group which had it before.

use alba_core::ids::ObjectId;
use alba_core::kv::{KvRead, MemKv};
use alba_core::wire::rpc::nsm::{NsmMessage, Overwrite, Recovered, RecoveredObject};

use super::fixtures::*;
use super::*;
use crate::machine::{Input, Output};

fn deliver(store: &MemKv, message: NsmMessage) -> Result<NsmOutcome, NsmError> {
    let id = next_message(store as &dyn KvRead).unwrap();
    run(store, NsmCommand::Deliver(vec![(id, message)]))
}

fn come_back() -> NsmMessage {
    let NsmMessage::CreateNamespace { id, name, preset, preset_version } = messages()[0].1.clone() else {
        panic!()
    };
    NsmMessage::RecoverNamespace { id, name, preset, preset_version }
}

/// One step of clean-up; is there more?
fn tidy(store: &MemKv) -> bool {
    feed(store, 5, &Input::Tidy) == Output::Tidied(true)
}

#[test]
fn a_recovered_namespace_waits_until_the_old_copy_is_dropped() {
    let store = MemKv::new();
    prepare(&store);
    // Several steps' worth of rows.
    for id in 0..250 {
        let old = put(manifest(&format!("old {id}"), id, &[SPREAD]), Overwrite::Unconditionally);
        run(&store, sequence(vec![old])).unwrap();
    }
    deliver(&store, NsmMessage::DeleteNamespace { id: NS }).unwrap();
    assert!(tidy(&store), "the old copy is larger than a step");

    let before = next_message(&store as &dyn KvRead).unwrap();
    let mut waited = 0;
    loop {
        match deliver(&store, come_back()) {
            Ok(_) => break,
            // What the deliverer takes for trouble, and tries again.
            Err(NsmError::Unknown(reason)) => assert!(reason.contains("still being dropped"), "{reason}"),
            Err(other) => panic!("{other:?}"),
        }
        assert_eq!(next_message(&store as &dyn KvRead).unwrap(), before, "it stays the next one");
        waited += 1;
        tidy(&store);
    }
    assert!(waited > 0);

    for (_, link) in messages().into_iter().skip(1) {
        deliver(&store, link).unwrap();
    }
    let objects = vec![RecoveredObject { manifest: manifest("new", 7, &[SPREAD]), possibly_deleted: false }];
    let recovered = run(&store, NsmCommand::RecoverObjects { namespace: NS, objects }).unwrap();
    assert_eq!(recovered, NsmOutcome::Recovered(vec![Recovered::Stored]));
    while tidy(&store) {}
    let query = NsmQuery::Details(NS);
    let Ok(NsmAnswer::Details(details)) = Nsm::query(&store, &query) else { panic!() };
    assert_eq!(details.osds.len(), 6);
    assert_eq!(recount(&store, NS).unwrap(), []);
    // The object of the same id in the old copy has another name.
    let found = indexes::object(&store, NS, &ObjectId::new([7; 32])).unwrap().unwrap();
    assert_eq!(found.manifest.name, name("new"));
    assert_eq!(indexes::id_of(&store, NS, &name("old 8")).unwrap(), None);
}
