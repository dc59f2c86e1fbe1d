use alba_core::ids::{AlbaId, GroupId, LongId, MessageId, NamespaceName, NodeId, OsdId, Place, PresetName};
use alba_core::kv::{Durability, Kv, MemKv};
use alba_core::preset::{OsdSet, Preset};
use alba_core::range::RangeQuery;
use alba_core::units::ByteCount;
use alba_core::wire::rpc::abm::{
    NamespaceState, OsdEndpoint, OsdFilter, OsdInfo, OsdPorts, OsdRecord, OsdState, WorkItem, WorkRecord,
};

use super::*;
use crate::machine::{Input, Output, step};

mod care;
mod golden;
mod letters;
mod model;
mod moves;
mod osds;
mod presets;
mod walks;
mod work;

/// An ABM whose clock stands where it is put.
struct World(MemKv, std::cell::Cell<u64>);

impl World {
    /// Bootstrapped, with two groups.
    fn new() -> Self {
        let world = Self(MemKv::new(), std::cell::Cell::new(5));
        world.run(AbmCommand::Bootstrap { alba_id: AlbaId::new("backend").unwrap() }).unwrap();
        for id in ["nsm-0", "nsm-1"] {
            let servers = vec!["127.0.0.1:1".to_owned()];
            world.run(AbmCommand::AddGroup { id: GroupId::new(id).unwrap(), servers }).unwrap();
        }
        world
    }

    fn run(&self, command: AbmCommand) -> Result<AbmOutcome, AbmError> {
        let mut txn = KvTxn::new(&self.0);
        let output = step::<Abm>(&mut txn, self.1.get(), &Input::Internal(command)).unwrap();
        self.0.commit(txn.into_batch(), Durability::Sync).unwrap();
        match output {
            Output::Done(result) => result,
            other => panic!("{other:?}"),
        }
    }

    /// Works off everything that is done in steps; how many there were.
    fn tidy(&self) -> usize {
        for steps in 0.. {
            let mut txn = KvTxn::new(&self.0);
            let output = step::<Abm>(&mut txn, self.1.get(), &Input::Tidy).unwrap();
            self.0.commit(txn.into_batch(), Durability::Sync).unwrap();
            if output == Output::Tidied(false) {
                return steps;
            }
        }
        unreachable!()
    }

    /// Nothing is in the indexes and counters that does not follow from the records.
    fn check(&self) {
        assert_eq!(recount(&self.0).unwrap(), []);
    }

    /// Delivers everything to everyone, and what follows from it.
    fn settle(&self) {
        loop {
            let more = self.tidy() > 0;
            let AbmAnswer::Queues(queues) = self.ask(AbmQuery::Queues) else { panic!() };
            if queues.is_empty() && !more {
                return;
            }
            for (destination, _) in queues {
                self.deliver(&destination);
            }
        }
    }

    fn work(&self) -> Vec<WorkRecord> {
        match self.ask(AbmQuery::Work { after: None, max: 1000 }) {
            AbmAnswer::Work(page) => page.items,
            other => panic!("{other:?}"),
        }
    }

    fn items(&self) -> Vec<WorkItem> {
        self.work().into_iter().map(|record| record.item).collect()
    }

    /// Marks the items done that `wanted` chooses.
    fn complete(&self, wanted: impl Fn(&WorkItem) -> bool) -> Result<AbmOutcome, AbmError> {
        let ids = self.work().into_iter().filter(|record| wanted(&record.item)).map(|record| record.id);
        self.run(AbmCommand::MarkWorkCompleted(ids.collect()))
    }

    fn osd(&self, n: u32) -> Option<OsdRecord> {
        match self.ask(AbmQuery::Osd(osd(n).long_id)) {
            AbmAnswer::Osd(found) => found,
            other => panic!("{other:?}"),
        }
    }

    fn osds(&self, filter: OsdFilter) -> Vec<LongId> {
        match self.ask(AbmQuery::Osds { filter, range: RangeQuery::all() }) {
            AbmAnswer::Osds(page) => page.items.into_iter().map(|osd| osd.info.long_id).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn link(&self, namespace: NamespaceId, osd: OsdId) -> Option<lifecycle::LinkState> {
        load(&self.0, &keys::link(namespace, osd)).unwrap()
    }

    fn revisions(&self) -> alba_core::wire::rpc::abm::Revisions {
        match self.ask(AbmQuery::Revisions) {
            AbmAnswer::Revisions(revisions) => revisions,
            other => panic!("{other:?}"),
        }
    }

    fn ask(&self, query: AbmQuery) -> AbmAnswer {
        match Abm::query(&self.0, &query) {
            Ok(answer) => answer,
            Err(error) => panic!("{error:?}"),
        }
    }

    fn claim(&self, n: u32) -> OsdId {
        self.run(AbmCommand::AddOsd(osd(n))).unwrap();
        match self.run(AbmCommand::MarkClaimed { long_id: osd(n).long_id }).unwrap() {
            AbmOutcome::OsdId(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn create(&self, text: &str) -> NamespaceRecord {
        let command = AbmCommand::CreateNamespace { name: namespace(text), preset: None, group: None };
        match self.run(command).unwrap() {
            AbmOutcome::Namespace(record) => record,
            other => panic!("{other:?}"),
        }
    }

    fn find(&self, text: &str) -> Option<NamespaceRecord> {
        match self.ask(AbmQuery::Namespace(namespace(text))) {
            AbmAnswer::Namespace(found) => found,
            other => panic!("{other:?}"),
        }
    }

    fn queued(&self, destination: &Destination) -> Vec<(MessageId, Message)> {
        match self.ask(AbmQuery::Messages { destination: destination.clone(), max: 1000 }) {
            AbmAnswer::Messages(messages) => messages,
            other => panic!("{other:?}"),
        }
    }

    /// Delivers all of a destination, and says what that was.
    fn deliver(&self, destination: &Destination) -> Vec<Message> {
        let messages = self.queued(destination);
        if let Some((upto, _)) = messages.last() {
            self.run(AbmCommand::MarkDelivered { destination: destination.clone(), upto: *upto }).unwrap();
        }
        messages.into_iter().map(|(_, message)| message).collect()
    }
}

fn namespace(text: &str) -> NamespaceName {
    NamespaceName::new(text).unwrap()
}

fn osd(n: u32) -> OsdInfo {
    OsdInfo {
        long_id: LongId::new(format!("osd-{n}")).unwrap(),
        place: Place::of_node(NodeId::new(format!("node-{n}")).unwrap()),
        endpoint: OsdEndpoint::over_tcp(vec!["127.0.0.1".parse().unwrap()], 8000),
        capacity: ByteCount::mib(1),
        used: ByteCount(0),
    }
}

fn to_group(id: &str) -> Destination {
    Destination::Group(GroupId::new(id).unwrap())
}

#[test]
fn the_first_bootstrap_counts() {
    let world = World::new();
    let again = world.run(AbmCommand::Bootstrap { alba_id: AlbaId::new("other").unwrap() });
    assert_eq!(again, Ok(AbmOutcome::AlbaId(AlbaId::new("backend").unwrap())));
    let AbmAnswer::Presets(page) = world.ask(AbmQuery::Presets(RangeQuery::all())) else { panic!() };
    let [preset] = &page.items[..] else { panic!("{page:?}") };
    assert_eq!((preset.name.as_str(), preset.is_default, preset.in_use), ("default", true, false));
    let empty = MemKv::new();
    assert!(matches!(Abm::query(&empty, &AbmQuery::AlbaId), Err(Fault::Refused(AbmError::BadArgument(_)))));
}

#[test]
fn a_namespace_is_born_linked_and_buried_by_messages() {
    let world = World::new();
    let osds = [world.claim(0), world.claim(1)];
    assert_eq!(osds.map(OsdId::get), [0, 1]);
    let record = world.create("ns");
    assert_eq!((record.group.as_str(), record.state), ("nsm-0", NamespaceState::Creating));
    assert_eq!(world.create("other").group.as_str(), "nsm-1", "the least loaded group");
    let ready = |text: &str| readiness(&world.0, &namespace(text)).unwrap().unwrap().1;
    assert_eq!(ready("ns"), Readiness::Waiting);
    let delete = || world.run(AbmCommand::DeleteNamespace { name: namespace("ns") });
    assert_eq!(delete(), Err(AbmError::NamespaceNotActive(namespace("ns"))));

    let group = to_group("nsm-0");
    assert!(matches!(&world.deliver(&group)[..], [Message::Nsm(NsmMessage::CreateNamespace { .. })]));
    assert_eq!(world.find("ns").unwrap().state, NamespaceState::Active);
    for id in osds {
        let messages = world.deliver(&Destination::Osd(id));
        assert!(matches!(
            &messages[..],
            [
                Message::Osd(OsdMessage::Identify { .. }),
                Message::Osd(OsdMessage::AddNamespace { .. }),
                Message::Osd(OsdMessage::AddNamespace { .. })
            ]
        ));
    }
    assert_eq!(world.ask(AbmQuery::NamespaceOsds(record.id)), AbmAnswer::OsdIds(osds.to_vec()));
    assert_eq!(ready("ns"), Readiness::Waiting);
    let links = world.deliver(&group);
    assert!(links.iter().all(|message| matches!(message, Message::Nsm(NsmMessage::LinkOsd { .. }))));
    assert_eq!(links.len(), 2);
    // Both OSDs are there, and that is all there is: not enough for any policy.
    assert_eq!(ready("ns"), Readiness::Settled);

    // An OSD claimed later joins.
    let late = world.claim(2);
    assert_eq!(ready("ns"), Readiness::Waiting);
    world.deliver(&Destination::Osd(late));
    world.deliver(&group);
    assert_eq!(ready("ns"), Readiness::Writable, "(2, 2, 3, 4) needs three OSDs");

    delete().unwrap();
    assert_eq!(delete(), Err(AbmError::NamespaceNotActive(namespace("ns"))));
    assert!(matches!(&world.deliver(&group)[..], [Message::Nsm(NsmMessage::DeleteNamespace { .. })]));
    assert_eq!(world.find("ns"), None);
    for id in [osds[0], osds[1], late] {
        let messages = world.deliver(&Destination::Osd(id));
        assert!(matches!(&messages[..], [Message::Osd(OsdMessage::RemoveNamespace { .. })]), "{messages:?}");
    }
    assert_eq!(world.ask(AbmQuery::NamespaceOsds(record.id)), AbmAnswer::OsdIds(vec![]));
    assert_ne!(world.create("ns").id, record.id, "ids are never used again");
}

#[test]
fn messages_are_numbered_per_destination_and_taken_once() {
    let world = World::new();
    let id = world.claim(0);
    world.create("a");
    let osd = Destination::Osd(id);
    let numbers: Vec<u64> = world.queued(&osd).iter().map(|(id, _)| id.get()).collect();
    assert_eq!(numbers, [0, 1]);
    let mark = |n| AbmCommand::MarkDelivered { destination: osd.clone(), upto: MessageId::from_u32(n) };
    world.run(mark(0)).unwrap();
    world.run(mark(0)).unwrap();
    assert_eq!(world.queued(&osd).len(), 1);
    let queues = AbmAnswer::Queues(vec![(to_group("nsm-0"), 1), (osd.clone(), 1)]);
    assert_eq!(world.ask(AbmQuery::Queues), queues);
    world.run(mark(1)).unwrap();
    assert_eq!(world.ask(AbmQuery::Queues), AbmAnswer::Queues(vec![(to_group("nsm-0"), 2)]));
    world.create("b");
    assert_eq!(world.queued(&osd).first().unwrap().0, MessageId::from_u32(2));
}

#[test]
fn osds_are_registered_once_and_keep_their_place_when_claimed() {
    let world = World::new();
    assert_eq!(
        world.run(AbmCommand::MarkClaimed { long_id: osd(0).long_id }),
        Err(AbmError::OsdUnknown(osd(0).long_id))
    );
    let id = world.claim(0);
    assert_eq!(world.run(AbmCommand::AddOsd(osd(0))), Err(AbmError::OsdExists(osd(0).long_id)));
    let again = world.run(AbmCommand::MarkClaimed { long_id: osd(0).long_id });
    assert_eq!(again, Ok(AbmOutcome::OsdId(id)));
    world.run(AbmCommand::AddOsd(osd(1))).unwrap();
    let list = |filter| match world.ask(AbmQuery::Osds { filter, range: RangeQuery::all() }) {
        AbmAnswer::Osds(page) => page.items.into_iter().map(|osd| osd.info.long_id).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(list(OsdFilter::All).len(), 2);
    assert_eq!(list(OsdFilter::Claimed), [osd(0).long_id]);
    assert_eq!(list(OsdFilter::Available), [osd(1).long_id]);
    world.create("ns");
    world.deliver(&to_group("nsm-0"));
    world.deliver(&Destination::Osd(id));
    world.deliver(&to_group("nsm-0"));
    let mut moved = osd(0);
    moved.endpoint.ports = OsdPorts::Both { tcp: 9000, quic: 9001 };
    world.run(AbmCommand::UpdateOsd(moved.clone())).unwrap();
    let told = world.deliver(&to_group("nsm-0"));
    assert!(
        matches!(&told[..], [Message::Nsm(NsmMessage::UpdateOsd { info, .. })] if info.endpoint == moved.endpoint)
    );
    let AbmAnswer::Osd(Some(OsdRecord { info, state, .. })) = world.ask(AbmQuery::Osd(moved.long_id.clone()))
    else {
        panic!()
    };
    assert_eq!((info, state), (moved.clone(), OsdState::Active));
    moved.place = osd(1).place;
    assert!(matches!(world.run(AbmCommand::UpdateOsd(moved)), Err(AbmError::OsdInfoMismatch { .. })));
}

#[test]
fn presets_are_checked_and_choose_the_osds() {
    let world = World::new();
    let ids = [world.claim(0), world.claim(1)];
    let name = PresetName::new("one").unwrap();
    let AbmAnswer::Preset(Some(default)) = world.ask(AbmQuery::Preset(PresetName::new("default").unwrap()))
    else {
        panic!()
    };
    let with = |osds| Box::new(Preset { osds, ..default.preset.clone() });
    let create = |preset| world.run(AbmCommand::CreatePreset { name: name.clone(), preset });
    let unknown = OsdSet::Explicit(vec![OsdId::from_u32(9)]);
    assert!(matches!(create(with(unknown)), Err(AbmError::PresetInvalid(_))));
    let huge = OsdSet::Explicit(vec![ids[0]; 40_000]);
    assert!(matches!(create(with(huge)), Err(AbmError::PresetInvalid(_))));
    create(with(OsdSet::Explicit(vec![ids[1]]))).unwrap();
    assert_eq!(create(with(OsdSet::All)), Err(AbmError::PresetExists(name.clone())));
    world.run(AbmCommand::SetDefaultPreset { name: name.clone() }).unwrap();
    let record = world.create("ns");
    assert_eq!(record.preset, name);
    assert_eq!(world.queued(&Destination::Osd(ids[0])).len(), 1, "only Identify");
    assert_eq!(world.queued(&Destination::Osd(ids[1])).len(), 2);
    world.claim(2);
    assert_eq!(world.queued(&Destination::Osd(OsdId::from_u32(2))).len(), 1, "not of an explicit preset");
    let missing = PresetName::new("none").unwrap();
    let command =
        AbmCommand::CreateNamespace { name: namespace("x"), preset: Some(missing.clone()), group: None };
    assert_eq!(world.run(command), Err(AbmError::PresetUnknown(missing)));
    let twice = AbmCommand::CreateNamespace { name: namespace("ns"), preset: None, group: None };
    assert_eq!(world.run(twice), Err(AbmError::NamespaceExists(namespace("ns"))));
}
