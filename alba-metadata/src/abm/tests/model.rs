//! Random commands, on two stores at once.

use std::collections::BTreeMap;

use alba_core::ids::{AgentId, JobName, ObjectId, TaskName, WorkId};
use alba_core::kv::FjallKv;
use alba_core::policy::Policy;
use alba_core::wire::rpc::abm::{FailedRepair, GroupLoad, JobAction, OsdReport, SurveyCounts};
use proptest::prelude::*;

use super::*;

fn number() -> impl Strategy<Value = u32> {
    0_u32..3
}

fn group() -> impl Strategy<Value = GroupId> {
    number().prop_map(|n| GroupId::new(format!("nsm-{n}")).unwrap())
}

fn space() -> impl Strategy<Value = NamespaceName> {
    number().prop_map(|n| namespace(&format!("ns-{n}")))
}

fn preset() -> impl Strategy<Value = PresetName> {
    number().prop_map(|n| PresetName::new(["default", "one", "two"][n as usize]).unwrap())
}

fn long_id() -> impl Strategy<Value = LongId> {
    number().prop_map(|n| osd(n).long_id)
}

fn osd_id() -> impl Strategy<Value = OsdId> {
    (0_u32..4).prop_map(OsdId::from_u32)
}

fn destination() -> impl Strategy<Value = Destination> {
    prop_oneof![group().prop_map(Destination::Group), osd_id().prop_map(Destination::Osd)]
}

fn message_id() -> impl Strategy<Value = MessageId> {
    (0_u32..30).prop_map(MessageId::from_u32)
}

fn work_ids() -> impl Strategy<Value = Vec<WorkId>> {
    prop::collection::vec((0_u32..20).prop_map(WorkId::from_u32), 1..20)
}

fn osd_command() -> BoxedStrategy<AbmCommand> {
    use AbmCommand as C;
    prop_oneof![
        3 => (number(), 1_u16..3, number()).prop_map(|(n, port, node)| {
            let mut info = osd(n);
            info.endpoint.ports = OsdPorts::Tcp(port);
            if node == 2 { info.place = osd(1).place; }
            C::UpdateOsd(info)
        }),
        3 => number().prop_map(|n| C::AddOsd(osd(n))),
        6 => long_id().prop_map(|long_id| C::MarkClaimed { long_id }),
        1 => long_id().prop_map(|long_id| C::MarkForeign { long_id, owner: "x".to_owned() }),
        2 => long_id().prop_map(|long_id| C::DrainOsd { long_id }),
        2 => long_id().prop_map(|long_id| C::UndrainOsd { long_id }),
        3 => long_id().prop_map(|long_id| C::DecommissionOsd { long_id }),
        2 => long_id().prop_map(|long_id| C::PurgeOsd { long_id }),
        1 => (long_id(), 0_u64..9).prop_map(|(long_id, ago)| {
            C::ReportOsds(vec![(long_id, OsdReport { seen: vec![ago], ..OsdReport::default() })])
        }),
        1 => (osd_id(), 0_u64..9).prop_map(|(osd, revision)| C::MarkPeersTold { osd, revision }),
    ]
    .boxed()
}

fn registry_command() -> BoxedStrategy<AbmCommand> {
    use AbmCommand as C;
    let explicit = || prop::collection::vec(osd_id(), 1..3);
    prop_oneof![
        1 => group().prop_map(|id| C::CreateGroup { id, servers: vec!["a".to_owned()] }),
        1 => group().prop_map(|id| C::UpdateGroup { id, servers: None, lost: true }),
        1 => (group(), 0_u64..9).prop_map(|(id, bytes)| {
            C::ReportGroupLoad { id, load: GroupLoad { operations_per_minute: 1, bytes } }
        }),
        2 => (preset(), prop::option::of(explicit())).prop_map(|(name, ids)| {
            let osds = ids.map_or(OsdSet::All, OsdSet::Explicit);
            C::CreatePreset { name, preset: Box::new(Preset { osds, ..Preset::built_in() }) }
        }),
        1 => preset().prop_map(|name| C::SetDefaultPreset { name }),
        2 => (preset(), prop_oneof![Just(None), Just(Some(vec![Policy::new(1, 1, 1, 1).unwrap()]))])
            .prop_map(|(name, policies)| C::UpdatePreset { name, policies, fragment_size: Some(4096) }),
        2 => (preset(), explicit()).prop_map(|(name, osds)| C::AddOsdsToPreset { name, osds }),
        1 => preset().prop_map(|name| C::DeletePreset { name }),
    ]
    .boxed()
}

fn namespace_command() -> BoxedStrategy<AbmCommand> {
    use AbmCommand as C;
    prop_oneof![
        5 => (space(), prop::option::of(preset()), prop::option::of(group()))
            .prop_map(|(name, preset, group)| C::CreateNamespace { name, preset, group }),
        3 => space().prop_map(|name| C::DeleteNamespace { name }),
        1 => space().prop_map(|name| C::TrashNamespace { name }),
        1 => space().prop_map(|name| C::UndeleteNamespace { name }),
        1 => space().prop_map(|name| C::DiscardNamespace { name }),
        1 => (0_u32..6).prop_map(|id| C::EmptyTrash { namespace: NamespaceId::from_u32(id) }),
        2 => (space(), group()).prop_map(|(name, group)| C::RecoverNamespace { name, group }),
        1 => space().prop_map(|name| C::FinishRecovery { name }),
        2 => (space(), group()).prop_map(|(name, to)| C::StartMove { name, to }),
        2 => (space(), group()).prop_map(|(name, to)| C::FinishMove { name, to }),
        1 => (space(), group()).prop_map(|(name, to)| C::AbortMove { name, to }),
    ]
    .boxed()
}

fn outbox_command() -> BoxedStrategy<AbmCommand> {
    use AbmCommand as C;
    prop_oneof![
        8 => (destination(), message_id())
            .prop_map(|(destination, upto)| C::MarkDelivered { destination, upto }),
        2 => (destination(), message_id()).prop_map(|(destination, id)| {
            C::MarkRefused { destination, id, reason: "no".to_owned() }
        }),
        1 => (destination(), message_id())
            .prop_map(|(destination, id)| C::RetryDeadLetter { destination, id }),
        1 => (destination(), message_id(), any::<bool>()).prop_map(|(destination, id, as_delivered)| {
            C::DropDeadLetter { destination, id, as_delivered }
        }),
    ]
    .boxed()
}

fn work_command() -> BoxedStrategy<AbmCommand> {
    use AbmCommand as C;
    let agent = || number().prop_map(|n| AgentId::new(format!("agent-{n}")).unwrap());
    let job = || number().prop_map(|n| JobName::new(format!("job-{n}")).unwrap());
    let task = || TaskName::new("task").unwrap();
    prop_oneof![
        1 => number().prop_map(|n| {
            let object = ObjectId::new([u8::try_from(n).unwrap(); 32]);
            C::AddWork(vec![WorkItem::RewriteObject { namespace: NamespaceId::from_u32(0), object }])
        }),
        2 => agent().prop_map(|agent| C::ClaimWork { agent, max: 3, period: 9 }),
        1 => (work_ids(), 0_u64..9).prop_map(|(ids, token)| C::RenewWork { ids, token, period: 9 }),
        1 => (work_ids(), 0_u64..9)
            .prop_map(|(ids, token)| C::FailWork { id: ids[0], token, reason: "no".to_owned() }),
        4 => work_ids().prop_map(|ids| C::MarkWorkCompleted(ids[..1].to_vec())),
        2 => work_ids().prop_map(C::MarkWorkCompleted),
        1 => (job(), space(), 1_u32..3).prop_map(|(name, namespace, factor)| {
            C::StartJob { name, namespace, action: JobAction::Rewrite, factor }
        }),
        1 => job().prop_map(|name| C::ClearJob { name }),
        1 => agent().prop_map(move |agent| C::AcquireLease { task: task(), agent, period: 5 }),
        1 => (0_u64..9, 0_u8..4, 0_u8..4).prop_map(move |(token, failed, well)| {
            let namespace = NamespaceId::from_u32(0);
            let failed = FailedRepair {
                namespace,
                object: ObjectId::new([failed; 32]),
                reason: String::new(),
            };
            let well = vec![(namespace, ObjectId::new([well; 32]))];
            C::ReportRepairs { task: task(), token, failed: vec![failed], well }
        }),
        1 => (0_u64..9, 0_u32..4).prop_map(move |(token, id)| {
            let surveys = vec![(NamespaceId::from_u32(id), SurveyCounts::default())];
            C::ReportSurveys { task: task(), token, surveys }
        }),
        1 => agent().prop_map(|agent| {
            C::RegisterParticipant { agent, role: String::new(), about: String::new() }
        }),
    ]
    .boxed()
}

#[derive(Debug, Clone)]
enum Step {
    Command(Box<AbmCommand>),
    Tidy,
    /// Everything in this queue has its effect.
    Deliver(Destination),
}

fn boxed(command: AbmCommand) -> Step {
    Step::Command(Box::new(command))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        6 => osd_command().prop_map(boxed),
        3 => registry_command().prop_map(boxed),
        5 => namespace_command().prop_map(boxed),
        3 => outbox_command().prop_map(boxed),
        4 => work_command().prop_map(boxed),
        5 => destination().prop_map(Step::Deliver),
        1 => Just(Step::Tidy),
    ];
    prop::collection::vec(one, 0..80)
}

fn all_of(store: &dyn KvRead) -> BTreeMap<Vec<u8>, Vec<u8>> {
    use std::ops::Bound::Unbounded;
    store.scan(Unbounded, Unbounded, false, usize::MAX).unwrap().into_iter().collect()
}

fn input(store: &dyn KvRead, one: &Step) -> Input<AbmCommand> {
    match one {
        Step::Tidy => Input::Tidy,
        Step::Command(command) => Input::Internal(AbmCommand::clone(command)),
        Step::Deliver(destination) => {
            let last = outbox::oldest(store, destination, usize::MAX).unwrap().last().map(|(id, _)| *id);
            let upto = last.unwrap_or(MessageId::from_u32(0));
            Input::Internal(AbmCommand::MarkDelivered { destination: destination.clone(), upto })
        }
    }
}

fn run(store: &dyn Kv, input: &Input<AbmCommand>) -> Output<AbmOutcome, AbmError> {
    let mut txn = KvTxn::new(store);
    let output = step::<Abm>(&mut txn, 5, input).unwrap();
    store.commit(txn.into_batch(), Durability::Eventual).unwrap();
    output
}

fn begin(store: &dyn Kv) {
    run(store, &Input::Internal(AbmCommand::Bootstrap { alba_id: AlbaId::new("b").unwrap() }));
    for id in ["nsm-0", "nsm-1"] {
        let id = GroupId::new(id).unwrap();
        run(store, &Input::Internal(AbmCommand::AddGroup { id, servers: vec!["a".to_owned()] }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Each index and counter follows from the records after every step.
    #[test]
    fn nothing_goes_astray(steps in steps()) {
        let store = MemKv::new();
        begin(&store);
        for one in &steps {
            let input = input(&store, one);
            let output = run(&store, &input);
            prop_assert_eq!(recount(&store).unwrap(), [], "after {:?}: {:?}", input, output);
        }
    }

    /// Whatever happened, the end is reached once messages are delivered and agents do their work.
    #[test]
    fn everything_that_leaves_is_gone_in_the_end(steps in steps()) {
        let store = MemKv::new();
        begin(&store);
        for one in &steps {
            run(&store, &input(&store, one));
        }
        let world = World(store, std::cell::Cell::new(5));
        for _ in 0..4 {
            // While a namespace is moved, its links do not go on.
            for wanted in moves(&world.0, usize::MAX).unwrap() {
                let (name, to) = (wanted.name, wanted.to);
                let end = match wanted.namespace.get() % 2 {
                    0 => AbmCommand::FinishMove { name, to },
                    _ => AbmCommand::AbortMove { name, to },
                };
                world.run(end).unwrap();
            }
            let AbmAnswer::Queues(letters) = world.ask(AbmQuery::DeadLetterCounts) else { panic!() };
            for (destination, _) in letters {
                let query = AbmQuery::DeadLetters { destination: destination.clone(), after: None, max: 200 };
                let AbmAnswer::DeadLetters(page) = world.ask(query) else { panic!() };
                for letter in page.items {
                    // Some come back with others.
                    drop(world.run(AbmCommand::RetryDeadLetter {
                        destination: destination.clone(),
                        id: letter.id,
                    }));
                }
            }
            world.settle();
            for record in world.work() {
                drop(world.run(AbmCommand::MarkWorkCompleted(vec![record.id])));
            }
        }
        prop_assert_eq!(recount(&world.0).unwrap(), []);
        let AbmAnswer::Osds(page) = world.ask(AbmQuery::Osds { filter: OsdFilter::Decommissioning, range: RangeQuery::all() })
        else { panic!() };
        prop_assert_eq!(page.items, []);
        for (_, value) in crate::value::scan_prefix(&world.0, keys::NAMESPACES, usize::MAX).unwrap() {
            let record: NamespaceRecord = decode(&value).unwrap();
            prop_assert!(record.state != NamespaceState::Removing, "{:?}", record);
            for (osd, state) in links::of_namespace(&world.0, record.id).unwrap() {
                let registered = osd_by_id(&world.0, osd).unwrap().unwrap();
                let want = match registered.state {
                    OsdState::Active => lifecycle::LinkState::Active,
                    OsdState::Draining => lifecycle::LinkState::Draining,
                    other => panic!("{other:?}"),
                };
                prop_assert_eq!(state, want, "{:?} {:?}", record, registered);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn both_stores_come_to_the_same(steps in steps()) {
        let directory = tempfile::tempdir().unwrap();
        let disk = FjallKv::open(directory.path(), 1 << 20).unwrap();
        let memory = MemKv::new();
        begin(&disk);
        begin(&memory);
        for one in &steps {
            let input = input(&memory, one);
            prop_assert_eq!(run(&disk, &input), run(&memory, &input));
        }
        prop_assert_eq!(all_of(&*disk.snapshot().unwrap()), all_of(&memory));
    }
}
