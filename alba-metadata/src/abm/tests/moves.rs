use alba_core::wire::rpc::abm::{GroupLoad, MaintenanceUpdate};
use alba_core::wire::rpc::nsm::OsdUse;

use super::lifecycle::LinkState;
use super::*;

fn group(text: &str) -> GroupId {
    GroupId::new(text).unwrap()
}

fn lose(id: &str) -> AbmCommand {
    AbmCommand::UpdateGroup { id: group(id), servers: None, lost: true }
}

impl World {
    fn groups(&self) -> Vec<(String, u64, bool)> {
        match self.ask(AbmQuery::Groups) {
            AbmAnswer::Groups(groups) => {
                groups.into_iter().map(|group| (group.id.into(), group.namespaces, group.lost)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// One OSD that drains, one that leaves, one that stays; a namespace in nsm-0.
    fn linked() -> (Self, NamespaceRecord, [OsdId; 3]) {
        let world = Self::new();
        let osds = [world.claim(0), world.claim(1), world.claim(2)];
        let record = world.create("a");
        world.settle();
        world.run(AbmCommand::DrainOsd { long_id: osd(0).long_id }).unwrap();
        world.settle();
        world.run(AbmCommand::DecommissionOsd { long_id: osd(1).long_id }).unwrap();
        (world, record, osds)
    }
}

#[test]
fn groups_are_added_changed_and_given_up() {
    let world = World::new();
    let servers = vec!["127.0.0.1:2".to_owned()];
    let create = |id: &str| world.run(AbmCommand::CreateGroup { id: group(id), servers: servers.clone() });
    create("nsm-2").unwrap();
    assert_eq!(create("nsm-2"), Err(AbmError::GroupExists(group("nsm-2"))));
    assert_eq!(world.run(lose("none")), Err(AbmError::GroupUnknown(group("none"))));
    world.run(lose("nsm-0")).unwrap();
    let before = world.revisions();
    world.run(AbmCommand::AddGroup { id: group("nsm-0"), servers: vec!["127.0.0.1:1".to_owned()] }).unwrap();
    assert_eq!(world.revisions(), before, "a server's start is no change");
    let want = ["nsm-0", "nsm-1", "nsm-2"].map(|id| (id.to_owned(), 0, id == "nsm-0"));
    assert_eq!(world.groups(), want, "lost for good");
    assert_eq!(world.create("a").group, group("nsm-1"), "never to a lost one");
    let busy = GroupLoad { operations_per_minute: 1000, bytes: 1 << 30 };
    world.run(AbmCommand::ReportGroupLoad { id: group("nsm-2"), load: busy }).unwrap();
    assert_eq!(world.create("b").group, group("nsm-1"), "the other one has more to do");
    let create = |text: &str, id: &str| {
        let name = namespace(text);
        world.run(AbmCommand::CreateNamespace { name, preset: None, group: Some(group(id)) })
    };
    let AbmOutcome::Namespace(record) = create("c", "nsm-2").unwrap() else { panic!() };
    assert_eq!(record.group, group("nsm-2"));
    assert!(matches!(create("d", "nsm-0"), Err(AbmError::BadArgument(_))));
    assert_eq!(create("d", "none"), Err(AbmError::GroupUnknown(group("none"))));
    world.check();
}

#[test]
fn a_namespace_of_a_lost_group_is_recovered_in_another() {
    let (world, record, [drained, leaving, kept]) = World::linked();
    let name = namespace("a");
    let recover = |to: &str| world.run(AbmCommand::RecoverNamespace { name: name.clone(), group: group(to) });
    assert!(matches!(recover("nsm-1"), Err(AbmError::BadArgument(_))), "its group is not lost");
    let unlink = world.queued(&to_group("nsm-0"));
    assert_eq!(unlink.len(), 1);
    world.run(lose("nsm-0")).unwrap();
    assert!(matches!(recover("nsm-0"), Err(AbmError::BadArgument(_))));
    let AbmOutcome::Namespace(after) = recover("nsm-1").unwrap() else { panic!() };
    assert_eq!((after.state, after.group.as_str()), (NamespaceState::Recovering, "nsm-1"));
    assert_eq!(world.groups()[1], ("nsm-1".to_owned(), 1, false));
    // What the lost group would have heard has no say any more.
    world.deliver(&to_group("nsm-0"));
    assert!(matches!(world.link(record.id, leaving), Some(LinkState::Decommissioning { .. })));
    assert_eq!(world.link(record.id, kept), Some(LinkState::OnDevice));
    let told: Vec<String> = world
        .deliver(&to_group("nsm-1"))
        .iter()
        .map(|message| match message {
            Message::Nsm(NsmMessage::RecoverNamespace { .. }) => "recover".to_owned(),
            Message::Nsm(NsmMessage::SetOsdUse { osd, how: OsdUse::Draining, .. }) => format!("drain {osd}"),
            Message::Nsm(NsmMessage::LinkOsd { osd, .. }) => format!("link {osd}"),
            Message::Nsm(NsmMessage::UnlinkOsd { osd, .. }) => format!("unlink {osd}"),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, ["recover", "link 0", "drain 0", "link 1", "unlink 1", "link 2"]);
    assert_eq!(world.link(record.id, drained), Some(LinkState::Draining));
    assert_eq!(world.link(record.id, leaving), Some(LinkState::Repairing));
    assert_eq!(world.link(record.id, kept), Some(LinkState::Active));
    assert_eq!(world.find("a").unwrap().state, NamespaceState::Recovering);
    let delete = AbmCommand::DeleteNamespace { name: name.clone() };
    assert_eq!(world.run(delete), Err(AbmError::NamespaceNotActive(name.clone())));
    // Once more elsewhere, while it recovers.
    world.run(AbmCommand::AddGroup { id: group("nsm-2"), servers: vec!["127.0.0.1:3".to_owned()] }).unwrap();
    world.run(lose("nsm-1")).unwrap();
    recover("nsm-2").unwrap();
    world.settle();
    let finish = AbmCommand::FinishRecovery { name: name.clone() };
    world.run(finish.clone()).unwrap();
    assert_eq!(world.find("a").unwrap().state, NamespaceState::Active);
    assert_eq!(world.run(finish), Err(AbmError::NamespaceNotActive(name)));
    world.check();
}

#[test]
fn a_namespace_that_a_lost_group_never_took_on_is_created_elsewhere() {
    let world = World::new();
    let name = world.create("a").name;
    world.run(lose("nsm-0")).unwrap();
    world.settle();
    assert_eq!(world.find("a").unwrap().state, NamespaceState::Creating);
    world.run(AbmCommand::RecoverNamespace { name: name.clone(), group: group("nsm-1") }).unwrap();
    world.settle();
    assert_eq!(world.find("a").unwrap().state, NamespaceState::Active);
    // And one that it had can be deleted without it.
    let AbmOutcome::Namespace(_) = world
        .run(AbmCommand::CreateNamespace { name: namespace("b"), preset: None, group: Some(group("nsm-1")) })
        .unwrap()
    else {
        panic!()
    };
    world.settle();
    world.run(lose("nsm-1")).unwrap();
    world.run(AbmCommand::DeleteNamespace { name: namespace("b") }).unwrap();
    world.settle();
    assert_eq!(world.find("b"), None);
    let recover = AbmCommand::RecoverNamespace { name: namespace("b"), group: group("nsm-1") };
    assert!(world.run(recover).is_err());
    world.check();
}

#[test]
fn a_namespace_moves_and_its_old_group_drops_it() {
    let (world, record, [_, leaving, kept]) = World::linked();
    let name = namespace("a");
    let start = |to: &str| world.run(AbmCommand::StartMove { name: name.clone(), to: group(to) });
    let finish = |to: &str| world.run(AbmCommand::FinishMove { name: name.clone(), to: group(to) });
    let abort = |to: &str| world.run(AbmCommand::AbortMove { name: name.clone(), to: group(to) });
    let not_now = Err(AbmError::NamespaceNotActive(name.clone()));
    assert!(matches!(start("nsm-0"), Err(AbmError::BadArgument(_))));
    assert_eq!(start("none"), Err(AbmError::GroupUnknown(group("none"))));
    assert_eq!(finish("nsm-1"), not_now);
    start("nsm-1").unwrap();
    assert_eq!(start("nsm-1"), not_now, "one at a time");
    assert_eq!(finish("nsm-0"), not_now, "not to there");
    assert_eq!(abort("nsm-0"), not_now);
    assert_eq!(world.run(AbmCommand::DeleteNamespace { name: name.clone() }), not_now);
    abort("nsm-1").unwrap();
    assert_eq!(world.find("a").unwrap(), record_in(&record, "nsm-0"));
    start("nsm-1").unwrap();
    finish("nsm-1").unwrap();
    assert_eq!(world.find("a").unwrap(), record_in(&record, "nsm-1"));
    assert_eq!((world.groups()[0].1, world.groups()[1].1), (0, 1));
    let told = world.queued(&to_group("nsm-1"));
    assert!(matches!(&told[0].1, Message::Nsm(NsmMessage::UpdatePreset { .. })), "{told:?}");
    assert!(matches!(start("nsm-0"), Err(AbmError::BadArgument(_))), "the old copy is still there");
    let dropped = world.deliver(&to_group("nsm-0"));
    assert!(matches!(dropped.last().unwrap(), Message::Nsm(NsmMessage::DeleteNamespace { .. })));
    assert!(world.find("a").is_some(), "only the old copy goes");
    world.settle();
    assert_eq!(world.link(record.id, leaving), Some(LinkState::Repairing));
    assert_eq!(world.link(record.id, kept), Some(LinkState::Active));
    start("nsm-0").unwrap();
    world.check();
}

fn record_in(record: &NamespaceRecord, id: &str) -> NamespaceRecord {
    NamespaceRecord { state: NamespaceState::Active, group: group(id), ..record.clone() }
}

#[test]
fn a_trashed_namespace_comes_back_or_goes() {
    let world = World::new();
    let name = world.create("a").name;
    let trash = AbmCommand::TrashNamespace { name: name.clone() };
    let undelete = AbmCommand::UndeleteNamespace { name: name.clone() };
    let not_now = Err(AbmError::NamespaceNotActive(name.clone()));
    assert_eq!(world.run(trash.clone()), not_now);
    world.settle();
    assert_eq!(world.run(undelete.clone()), not_now);
    world.1.set(77);
    world.run(trash.clone()).unwrap();
    assert_eq!(world.find("a").unwrap().state, NamespaceState::Trashed { since: 77 });
    world.run(undelete).unwrap();
    assert_eq!(world.find("a").unwrap().state, NamespaceState::Active);
    world.run(trash).unwrap();
    world.run(AbmCommand::DeleteNamespace { name }).unwrap();
    world.settle();
    assert_eq!(world.find("a"), None);
    world.check();
}

#[test]
fn a_deleted_namespace_gives_its_name_away_and_is_kept_for_a_while() {
    let world = World::new();
    let days = |days| {
        let update = MaintenanceUpdate {
            auto_cleanup_deleted_namespaces_days: Some(days),
            ..MaintenanceUpdate::default()
        };
        world.run(AbmCommand::UpdateMaintenance(update)).unwrap();
    };
    let discard = |text: &str| world.run(AbmCommand::DiscardNamespace { name: namespace(text) });
    let first = world.create("a");
    assert_eq!(discard("a"), Err(AbmError::NamespaceNotActive(namespace("a"))), "not before it is there");
    world.settle();
    assert!(matches!(discard("a"), Ok(AbmOutcome::Namespace(_))));
    assert_eq!(discard("a"), Err(AbmError::NamespaceNotActive(namespace("a"))), "once is enough");
    // A new one of that name: the old one steps aside, and comes back under the name it has then.
    let second = world.create("a");
    assert_ne!(second.id, first.id);
    let aside = world.find("a~0").unwrap();
    assert!(aside.id == first.id && matches!(aside.state, NamespaceState::Trashed { .. }));
    world.settle();
    world.run(AbmCommand::UndeleteNamespace { name: aside.name.clone() }).unwrap();
    assert_eq!(world.find("a~0").unwrap().state, NamespaceState::Active);
    world.check();

    // For good: only what is in the trash.
    let empty = |id| world.run(AbmCommand::EmptyTrash { namespace: id });
    assert_eq!(empty(first.id), Err(AbmError::NamespaceNotActive(aside.name)));
    discard("a~0").unwrap();
    // Not before its time, by whatever clock an agent goes.
    assert_eq!(empty(first.id), Err(AbmError::NamespaceNotActive(namespace("a~0"))));
    world.1.set(world.1.get() + 8 * 24 * 3600 * 1_000_000);
    empty(first.id).unwrap();
    world.settle();
    assert_eq!((world.find("a~0"), empty(first.id)), (None, Ok(AbmOutcome::Done)), "gone already");

    // Without a trash there is nothing to bring back.
    days(0);
    assert_eq!(discard("a"), Ok(AbmOutcome::Done));
    world.settle();
    assert_eq!(world.find("a"), None);
    world.check();
}

#[test]
fn the_longest_name_makes_room_for_where_it_is_kept() {
    let world = World::new();
    let long = "x".repeat(NamespaceName::MAX_LEN);
    world.create(&long);
    world.settle();
    world.run(AbmCommand::DiscardNamespace { name: namespace(&long) }).unwrap();
    world.create(&long);
    assert!(world.find(&format!("{}~0", "x".repeat(NamespaceName::MAX_LEN - 2))).is_some());
    world.check();
}

#[test]
fn moves_have_growing_numbers_and_are_found_while_they_are_under_way() {
    let (world, record, _) = World::linked();
    let name = namespace("a");
    let start = |to: &str| world.run(AbmCommand::StartMove { name: name.clone(), to: group(to) }).unwrap();
    let under_way = || -> Vec<(u64, String)> {
        let found = moves(&world.0, 10).unwrap();
        found.into_iter().map(|wanted| (wanted.id.0, wanted.to.to_string())).collect()
    };
    assert_eq!(under_way(), []);
    start("nsm-1");
    assert_eq!(under_way(), [(1, "nsm-1".to_owned())]);
    world.check();
    world.run(AbmCommand::AbortMove { name: name.clone(), to: group("nsm-1") }).unwrap();
    assert_eq!(under_way(), []);
    start("nsm-1");
    assert_eq!(under_way(), [(2, "nsm-1".to_owned())]);
    world.run(AbmCommand::FinishMove { name: name.clone(), to: group("nsm-1") }).unwrap();
    world.settle();
    start("nsm-0");
    assert_eq!(under_way(), [(3, "nsm-0".to_owned())]);
    let found = move_of(&world.0, &name).unwrap().unwrap();
    assert_eq!((found.namespace, found.from, found.from_lost), (record.id, group("nsm-1"), false));
    // Its source is given up: the move decides, then it can be recovered.
    world.run(lose("nsm-1")).unwrap();
    let recover = AbmCommand::RecoverNamespace { name: name.clone(), group: group("nsm-0") };
    assert_eq!(world.run(recover.clone()), Err(AbmError::NamespaceNotActive(name.clone())));
    assert!(move_of(&world.0, &name).unwrap().unwrap().from_lost);
    world.run(AbmCommand::AbortMove { name: name.clone(), to: group("nsm-0") }).unwrap();
    world.run(recover).unwrap();
    world.check();
}

/// What the source is told after it has handed over has no effect there, although it is delivered.
#[test]
fn what_the_source_hears_during_a_move_is_told_again() {
    for finish in [true, false] {
        let (world, record, [drained, leaving, kept]) = World::linked();
        let name = namespace("a");
        let (to, source) = (group("nsm-1"), to_group("nsm-0"));
        world.run(AbmCommand::StartMove { name: name.clone(), to: to.clone() }).unwrap();
        world.run(AbmCommand::DecommissionOsd { long_id: osd(2).long_id }).unwrap();
        assert_eq!(world.deliver(&source).len(), 2, "two OSDs leave");
        for osd in [leaving, kept] {
            let link = world.link(record.id, osd);
            assert!(matches!(link, Some(LinkState::Decommissioning { .. })), "{link:?}");
        }
        let end = if finish {
            AbmCommand::FinishMove { name, to: to.clone() }
        } else {
            AbmCommand::AbortMove { name, to: to.clone() }
        };
        world.run(end).unwrap();
        let owner = if finish { to_group("nsm-1") } else { source };
        let told = world.deliver(&owner);
        let trashed = |message: &Message| {
            matches!(message, Message::Nsm(NsmMessage::SetTrashed { trashed: false, .. }))
        };
        assert!(told.iter().any(trashed), "{told:?}");
        for osd in [leaving, kept] {
            let unlinked = |message: &Message| matches!(message, Message::Nsm(NsmMessage::UnlinkOsd { osd: which, .. }) if *which == osd);
            assert!(told.iter().any(unlinked), "{told:?}");
            assert_eq!(world.link(record.id, osd), Some(LinkState::Repairing));
        }
        assert_eq!(world.link(record.id, drained), Some(LinkState::Draining));
        world.check();
        // An OSD that nobody looks at any more is never called active again, not even for a moment.
        world.settle();
        let back = if finish { "nsm-0" } else { "nsm-1" };
        let (name, to) = (namespace("a"), group(back));
        world.run(AbmCommand::StartMove { name: name.clone(), to: to.clone() }).unwrap();
        world.run(AbmCommand::FinishMove { name, to }).unwrap();
        let linked = |message: &Message| matches!(message, Message::Nsm(NsmMessage::LinkOsd { osd, .. }) if *osd != drained);
        let told = world.deliver(&to_group(back));
        assert!(!told.iter().any(linked), "{told:?}");
        world.check();
    }
}
