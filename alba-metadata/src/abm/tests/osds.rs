use alba_core::wire::rpc::abm::{OsdHealth, OsdReport, Usage};

use super::lifecycle::LinkState;
use super::*;

fn decommission(n: u32) -> AbmCommand {
    AbmCommand::DecommissionOsd { long_id: osd(n).long_id }
}

fn purge(n: u32) -> AbmCommand {
    AbmCommand::PurgeOsd { long_id: osd(n).long_id }
}

fn is_wait(item: &WorkItem) -> bool {
    matches!(item, WorkItem::WaitUntilRepaired { .. })
}

fn is_last_wait(item: &WorkItem) -> bool {
    matches!(item, WorkItem::WaitUntilDecommissioned { .. })
}

/// Two OSDs, two namespaces, all linked.
fn linked() -> (World, [OsdId; 2], [NamespaceId; 2]) {
    let world = World::new();
    let osds = [world.claim(0), world.claim(1)];
    let namespaces = ["a", "b"].map(|text| world.create(text).id);
    world.settle();
    for namespace in namespaces {
        for osd in osds {
            assert_eq!(world.link(namespace, osd), Some(LinkState::Active));
        }
    }
    world.check();
    (world, osds, namespaces)
}

#[test]
fn a_decommissioned_osd_is_emptied_namespace_by_namespace() {
    let (world, [id, other], namespaces) = linked();
    assert_eq!(world.run(decommission(9)), Err(AbmError::OsdUnknown(osd(9).long_id)));
    world.run(decommission(0)).unwrap();
    assert_eq!(world.run(decommission(0)), Err(AbmError::OsdDecommissioned(osd(0).long_id)));
    assert_eq!(world.osds(OsdFilter::Decommissioning), [osd(0).long_id]);
    assert!(matches!(world.link(namespaces[0], id), Some(LinkState::Decommissioning { .. })));
    assert_eq!(world.items(), [WorkItem::WaitUntilDecommissioned { osd: id }]);
    let messages = world.deliver(&to_group("nsm-0"));
    assert_eq!(messages, [Message::Nsm(NsmMessage::UnlinkOsd { namespace: namespaces[0], osd: id })]);
    assert_eq!(world.link(namespaces[0], id), Some(LinkState::Repairing));
    assert_eq!(world.items()[1], WorkItem::WaitUntilRepaired { osd: id, namespace: namespaces[0] });
    // The other namespace's group has not heard of it.
    assert!(matches!(world.complete(is_last_wait), Err(AbmError::BadArgument(_))));
    world.settle();
    world.check();
    world.complete(is_wait).unwrap();
    for namespace in namespaces {
        assert_eq!(world.link(namespace, id), None);
        assert_eq!(world.link(namespace, other), Some(LinkState::Active), "the other OSD stays");
        assert!(world.items().contains(&WorkItem::CleanupNamespaceOsd { namespace, osd: id }));
        assert!(world.items().contains(&WorkItem::CleanupOsdNamespace { osd: id, namespace }));
    }
    world.check();
    world.complete(|_| true).unwrap();
    assert_eq!(world.osd(0).unwrap().state, OsdState::Decommissioned);
    assert_eq!((world.osds(OsdFilter::Decommissioning), world.items()), (vec![], vec![]));
    // It is not claimed again, and new namespaces pass it over.
    let claim = AbmCommand::MarkClaimed { long_id: osd(0).long_id };
    assert_eq!(world.run(claim), Err(AbmError::OsdDecommissioned(osd(0).long_id)));
    let new = world.create("c").id;
    assert_eq!(world.link(new, id), None);
    world.run(purge(0)).unwrap();
    assert_eq!(world.osd(0), None);
    world.settle();
    world.check();
}

#[test]
fn a_purged_osd_is_forgotten_with_everything_about_it() {
    let (world, [id, _], namespaces) = linked();
    let report = OsdReport { seen: vec![0], ..OsdReport::default() };
    world.run(AbmCommand::ReportOsds(vec![(osd(0).long_id, report)])).unwrap();
    world.create("late");
    assert_eq!(world.queued(&Destination::Osd(id)).len(), 1);
    world.run(purge(0)).unwrap();
    world.run(purge(0)).unwrap();
    assert_eq!(world.run(decommission(0)), Err(AbmError::OsdDecommissioned(osd(0).long_id)));
    assert_eq!(world.osds(OsdFilter::Purging), [osd(0).long_id]);
    assert_eq!(world.osds(OsdFilter::Decommissioning), [osd(0).long_id]);
    assert_eq!(world.queued(&Destination::Osd(id)), [], "nothing is sent there any more");
    world.settle();
    world.check();
    // A namespace that is deleted does not send to it either.
    world.run(AbmCommand::DeleteNamespace { name: namespace("b") }).unwrap();
    world.settle();
    world.check();
    world.complete(is_wait).unwrap();
    let cleanup = WorkItem::CleanupNamespaceOsd { namespace: namespaces[0], osd: id };
    assert!(world.items().contains(&cleanup));
    let of_it = |item: &WorkItem| matches!(item, WorkItem::CleanupOsdNamespace { osd, .. } if *osd == id);
    assert!(!world.items().iter().any(of_it));
    world.complete(|_| true).unwrap();
    assert_eq!((world.osd(0), world.osds(OsdFilter::Purging)), (None, vec![]));
    for table in [keys::OSD_IDS, keys::HEALTH, keys::PEERS_TOLD, keys::WALKS] {
        let left = crate::value::scan_prefix(&world.0, table, 10).unwrap();
        assert!(left.iter().all(|(key, _)| crate::value::last_number(key).unwrap() != id.get()), "{left:?}");
    }
    assert_eq!(world.run(purge(0)), Err(AbmError::OsdUnknown(osd(0).long_id)));
    world.check();
    // The device, wiped and registered again, is another OSD.
    assert_ne!(world.claim(0), id);
}

#[test]
fn a_decommissioning_osd_can_die_on_the_way() {
    let (world, [id, _], _) = linked();
    world.run(decommission(0)).unwrap();
    world.settle();
    world.run(purge(0)).unwrap();
    assert_eq!(world.osd(0).unwrap().state, OsdState::Purging);
    let waits = world.items().iter().filter(|item| is_last_wait(item)).count();
    assert_eq!(waits, 1, "one is enough");
    world.complete(is_wait).unwrap();
    assert!(
        !world
            .items()
            .contains(&WorkItem::CleanupOsdNamespace { osd: id, namespace: NamespaceId::from_u32(0) })
    );
    world.complete(|_| true).unwrap();
    assert_eq!(world.osd(0), None);
    world.check();
}

#[test]
fn osds_that_were_never_ours_go_at_once() {
    let world = World::new();
    world.run(AbmCommand::AddOsd(osd(0))).unwrap();
    world.run(AbmCommand::AddOsd(osd(1))).unwrap();
    assert!(matches!(world.run(decommission(0)), Err(AbmError::BadArgument(_))));
    let foreign = AbmCommand::MarkForeign { long_id: osd(1).long_id, owner: "other".to_owned() };
    world.run(foreign.clone()).unwrap();
    let record = world.osd(1).unwrap();
    assert_eq!((record.state, record.owner.as_deref()), (OsdState::Foreign, Some("other")));
    assert_eq!(world.osds(OsdFilter::Available), [osd(0).long_id]);
    world.check();
    // The device decides: released by the other backend it can be ours.
    let AbmOutcome::OsdId(_) = world.run(AbmCommand::MarkClaimed { long_id: osd(1).long_id }).unwrap() else {
        panic!()
    };
    assert_eq!(world.osd(1).unwrap().owner, None);
    world.run(foreign).unwrap();
    assert_eq!(world.osd(1).unwrap().state, OsdState::Active, "what is ours stays ours");
    world.run(purge(0)).unwrap();
    assert_eq!(world.osd(0), None);
    world.check();
}

#[test]
fn an_osd_that_leaves_before_it_heard_of_a_namespace() {
    let world = World::new();
    let id = world.claim(0);
    let record = world.create("a");
    world.run(decommission(0)).unwrap();
    assert_eq!(world.link(record.id, id), Some(LinkState::Adding), "the message is on its way");
    world.settle();
    assert_eq!(world.link(record.id, id), None);
    let cleanup = WorkItem::CleanupOsdNamespace { osd: id, namespace: record.id };
    assert!(world.items().contains(&cleanup));
    world.check();
    world.complete(|_| true).unwrap();
    assert_eq!(world.osd(0).unwrap().state, OsdState::Decommissioned);
}

#[test]
fn a_drained_osd_keeps_what_it_has_and_can_come_back() {
    let (world, [id, _], [a, _]) = linked();
    let drain = AbmCommand::DrainOsd { long_id: osd(0).long_id };
    let undrain = AbmCommand::UndrainOsd { long_id: osd(0).long_id };
    world.run(drain.clone()).unwrap();
    world.run(drain.clone()).unwrap();
    assert_eq!(world.osds(OsdFilter::Draining), [osd(0).long_id]);
    world.settle();
    assert_eq!(world.link(a, id), Some(LinkState::Draining));
    assert_eq!(world.items(), [], "nothing has to be repaired");
    let new = world.create("c").id;
    assert_eq!(world.link(new, id), None, "no new namespaces");
    world.run(undrain.clone()).unwrap();
    assert_eq!(world.link(a, id), Some(LinkState::OnDevice));
    assert_eq!(world.link(new, id), Some(LinkState::Adding), "nor is it left out for ever");
    // Off and on before any message is delivered: the last word counts.
    world.run(drain).unwrap();
    world.run(undrain).unwrap();
    world.run(decommission(0)).unwrap();
    let group = to_group("nsm-0");
    let last = world.queued(&group).last().unwrap().0;
    for (message, _) in world.queued(&group) {
        world.run(AbmCommand::MarkDelivered { destination: group.clone(), upto: message }).unwrap();
        let repairing = world.link(a, id) == Some(LinkState::Repairing);
        assert_eq!(repairing, message == last, "an earlier UnlinkOsd is not this one");
        world.check();
    }
    world.settle();
    world.complete(is_wait).unwrap();
    world.complete(|_| true).unwrap();
    assert_eq!(world.osd(0).unwrap().state, OsdState::Decommissioned);
    world.check();
}

#[test]
fn an_emptied_osd_may_move_to_another_place() {
    let (world, [_, _], _) = linked();
    let moved = OsdInfo { place: osd(1).place, ..osd(0) };
    let update = || world.run(AbmCommand::UpdateOsd(moved.clone()));
    assert!(matches!(update(), Err(AbmError::OsdInfoMismatch { .. })));
    world.run(decommission(0)).unwrap();
    world.settle();
    assert!(matches!(update(), Err(AbmError::OsdInfoMismatch { .. })));
    world.complete(is_wait).unwrap();
    update().unwrap();
}

#[test]
fn what_clients_saw_is_kept_by_our_clock() {
    let world = World::new();
    world.claim(0);
    world.1.set(1_000_000);
    let usage = Some(Usage { capacity: ByteCount(70), used: ByteCount(7) });
    let report = OsdReport {
        seen: vec![5],
        read: vec![10, 2_000_000],
        errors: vec![(1, "broken".to_owned())],
        checksum_errors: 3,
        usage,
        ..OsdReport::default()
    };
    let revisions = world.revisions();
    let unknown = (osd(7).long_id, report.clone());
    for _ in 0..2 {
        world.run(AbmCommand::ReportOsds(vec![(osd(0).long_id, report.clone()), unknown.clone()])).unwrap();
    }
    let AbmAnswer::OsdHealth(page) = world.ask(AbmQuery::OsdHealth(RangeQuery::all())) else { panic!() };
    let [(long_id, health)] = &page.items[..] else { panic!("{page:?}") };
    assert_eq!(*long_id, osd(0).long_id);
    let want = OsdHealth {
        seen: vec![999_996, 999_995],
        read: vec![999_991, 999_990, 0],
        write: vec![],
        errors: vec![(1_000_000, "broken".to_owned()), (999_999, "broken".to_owned())],
        checksum_errors: 6,
    };
    assert_eq!(*health, want);
    assert_eq!(world.osd(0).unwrap().info.used, ByteCount(7));
    assert_eq!(world.revisions(), revisions, "watchers are not woken");
    let many = (0..201).map(|_| unknown.clone()).collect();
    assert!(matches!(world.run(AbmCommand::ReportOsds(many)), Err(AbmError::BadArgument(_))));
}

#[test]
fn osds_hear_of_each_other_once_per_change() {
    let world = World::new();
    let ids = [world.claim(0), world.claim(1)];
    let untold = || peers(&world.0).unwrap().untold.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(untold(), ids);
    let revision = peers(&world.0).unwrap().revision;
    for osd in ids {
        world.run(AbmCommand::MarkPeersTold { osd, revision }).unwrap();
    }
    assert_eq!(untold(), []);
    let mut moved = osd(0);
    moved.endpoint.ports = OsdPorts::Quic(9);
    world.run(AbmCommand::UpdateOsd(moved.clone())).unwrap();
    world.run(AbmCommand::UpdateOsd(moved)).unwrap();
    assert_eq!(untold(), ids);
    assert_eq!(peers(&world.0).unwrap().revision, revision + 1, "a repeat is no change");
    // Old news does not count.
    world.run(AbmCommand::MarkPeersTold { osd: ids[0], revision }).unwrap();
    assert_eq!(untold(), ids);
    world.run(purge(1)).unwrap();
    assert_eq!(peers(&world.0).unwrap().list.len(), 1, "nobody copies from one that is gone");
    world.settle();
    world.complete(|_| true).unwrap();
    world.run(AbmCommand::MarkPeersTold { osd: ids[1], revision: 99 }).unwrap();
    world.check();
}
