use std::sync::Arc;
use std::time::Duration;

use alba_core::env::sim::Simulation;
use alba_core::wire::rpc::Consistency;
use futures_util::future::join_all;

use super::lifecycle::LinkState;
use super::*;
use crate::replicator::{Local, LocalLimits, Replicator, StoreOpener};

#[test]
fn a_claim_with_thousands_of_namespaces_is_one_small_command() {
    let world = World::new();
    let records: Vec<NamespaceRecord> = (0..2500).map(|n| world.create(&format!("ns-{n:04}"))).collect();
    world.settle();
    let id = world.claim(0);
    let linked = || records.iter().filter(|record| world.link(record.id, id).is_some()).count();
    assert_eq!(linked(), 100, "the claim itself makes the first only");
    // What happens meanwhile is seen by the walk when it comes there.
    world.run(AbmCommand::DeleteNamespace { name: namespace("ns-2000") }).unwrap();
    let new = world.create("late");
    assert_eq!(world.link(new.id, id), Some(LinkState::Adding));
    assert_eq!(world.tidy(), 25);
    assert_eq!(linked(), 2499);
    world.check();
    world.settle();
    assert_eq!(world.link(records[2499].id, id), Some(LinkState::Active));
    // And away again, before the walk of another claim is through.
    let other = world.claim(1);
    world.run(AbmCommand::DecommissionOsd { long_id: osd(0).long_id }).unwrap();
    world.run(AbmCommand::PurgeOsd { long_id: osd(1).long_id }).unwrap();
    world.settle();
    assert_eq!(world.link(records[2499].id, id), Some(LinkState::Repairing));
    assert_eq!(world.link(records[2499].id, other), None);
    world.check();
}

#[test]
fn a_namespace_of_hundreds_of_osds_comes_and_goes_in_steps() {
    let world = World::new();
    for n in 0..250 {
        world.claim(n);
    }
    let record = world.create("ns");
    let links = || links::of_namespace(&world.0, record.id).unwrap().len();
    assert_eq!(links(), 100);
    let state = |text: &str| readiness(&world.0, &namespace(text)).unwrap().map(|(_, state)| state);
    world.deliver(&to_group("nsm-0"));
    assert_eq!(state("ns"), Some(Readiness::Waiting));
    world.settle();
    assert_eq!((links(), state("ns")), (250, Some(Readiness::Writable)));
    world.run(AbmCommand::DeleteNamespace { name: namespace("ns") }).unwrap();
    world.deliver(&to_group("nsm-0"));
    assert_eq!((links(), world.find("ns").unwrap().state), (150, NamespaceState::Removing));
    world.check();
    world.settle();
    assert_eq!((links(), world.find("ns")), (0, None));
    world.check();
}

#[test]
fn walks_take_turns() {
    let world = World::new();
    for n in 0..300 {
        world.create(&format!("ns-{n:04}"));
    }
    world.settle();
    let ids = [world.claim(0), world.claim(1)];
    let last = NamespaceId::from_u32(150);
    for id in ids {
        assert_eq!(world.link(last, id), None);
    }
    for _ in 0..2 {
        let mut txn = KvTxn::new(&world.0);
        assert_eq!(step::<Abm>(&mut txn, 5, &Input::Tidy).unwrap(), Output::Tidied(true));
        world.0.commit(txn.into_batch(), Durability::Sync).unwrap();
    }
    for id in ids {
        assert_eq!(world.link(last, id), Some(LinkState::Adding));
    }
}

/// The original gave up after five conflicts.
#[test]
fn a_thousand_claims_and_creates_at_once_all_succeed() {
    let sim = Simulation::new(1);
    // One store, however often it is opened.
    let store = Arc::new(MemKv::new());
    let env = sim.node(1).env();
    let opener: StoreOpener = Arc::new(move || Ok(store.clone()));
    sim.run(Duration::from_secs(3600), async {
        let group = GroupId::new("abm").unwrap();
        let abm = Local::<Abm>::start(env.clone(), &group, opener, LocalLimits::default()).await.unwrap();
        let propose = async |command| match abm
            .propose(Input::Internal(command), env.deadline_in(Duration::from_secs(600)))
            .await
        {
            Ok((Output::Done(result), _)) => result.unwrap(),
            other => panic!("{other:?}"),
        };
        propose(AbmCommand::Bootstrap { alba_id: AlbaId::new("backend").unwrap() }).await;
        let servers = vec!["127.0.0.1:1".to_owned()];
        propose(AbmCommand::AddGroup { id: GroupId::new("nsm-0").unwrap(), servers }).await;
        let claims = (0..100).map(async |n| {
            propose(AbmCommand::AddOsd(osd(n))).await;
            propose(AbmCommand::MarkClaimed { long_id: osd(n).long_id }).await
        });
        let creates = (0..900).map(async |n| {
            let name = namespace(&format!("ns-{n:04}"));
            propose(AbmCommand::CreateNamespace { name, preset: None, group: None }).await
        });
        let (claims, creates) = tokio::join!(join_all(claims), join_all(creates));
        assert!(claims.iter().all(|outcome| matches!(outcome, AbmOutcome::OsdId(_))));
        assert!(creates.iter().all(|outcome| matches!(outcome, AbmOutcome::Namespace(_))));
        while let Ok((Output::Tidied(true), _)) =
            abm.propose(Input::Tidy, env.deadline_in(Duration::from_secs(600))).await
        {}
        let deadline = env.deadline_in(Duration::from_secs(600));
        let differences = crate::replicator::read_with(&abm, deadline, |store| {
            assert_eq!(crate::value::scan_prefix(store, keys::LINKS, usize::MAX)?.len(), 100 * 900);
            recount(store)
        });
        assert_eq!(differences.await.unwrap(), []);
        let query = abm.query(AbmQuery::Revisions, Consistency::Linearizable, deadline).await.unwrap().0;
        let Ok(AbmAnswer::Revisions(revisions)) = query else { panic!("{query:?}") };
        assert_eq!((revisions.osds, revisions.namespaces), (200, 900));
    })
    .unwrap();
}
