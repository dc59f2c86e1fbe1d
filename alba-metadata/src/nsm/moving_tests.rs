//! Moves on two groups in memory: random operations meanwhile, drivers that stop, repeat themselves and meet.

use alba_core::ids::{GcEpoch, MessageId, NamespaceId, ObjectId, OsdId};
use alba_core::kv::{Entry, Kv, KvRead, MemKv};
use alba_core::manifest::Timestamp;
use alba_core::wire::rpc::nsm::{
    Cursor, MoveId, MovePage, MoveStatus, MoveStep, NsmAnswer, NsmCommand, NsmError, NsmMessage, NsmOutcome,
    NsmQuery, ObjectUpdate, Overwrite, Phase, PresetUpdate,
};
use proptest::prelude::*;

use super::fixtures::*;
use super::moving::{Next, Plan};
use super::*;
use crate::machine::{Input, Output};
use crate::value::scan_prefix;

mod ends;

fn ask(store: &dyn Kv, query: NsmQuery) -> Result<NsmAnswer, NsmError> {
    match Nsm::query(store, &query) {
        Ok(answer) => Ok(answer),
        Err(Fault::Refused(error)) => Err(error),
        Err(Fault::Store(error)) => panic!("{error}"),
    }
}

fn status(store: &dyn Kv) -> MoveStatus {
    match ask(store, NsmQuery::MoveStatus(NS)).unwrap() {
        NsmAnswer::MoveStatus(status) => status,
        other => panic!("{other:?}"),
    }
}

const PLAN: Plan = Plan { namespace: NS, id: MoveId(1), freeze_at: 5, patience: 40 };

fn step(step: MoveStep) -> NsmCommand {
    NsmCommand::Move { namespace: NS, id: MoveId(1), step }
}

/// Two groups; the first has the namespace.
struct World {
    source: MemKv,
    target: MemKv,
}

impl World {
    fn new() -> Self {
        let source = MemKv::new();
        prepare(&source);
        Self { source, target: MemKv::new() }
    }

    fn next(&self, plan: &Plan) -> Next {
        plan.next(&status(&self.source), &status(&self.target))
    }

    fn back(&self, plan: &Plan) -> Next {
        plan.back(&status(&self.source), &status(&self.target))
    }

    /// Does what the driver is told; the commands it gave.
    fn act(&self, plan: &Plan, next: Next) -> Vec<(bool, NsmCommand)> {
        let (at_source, command) = match next {
            Next::Source(command) | Next::Switch(command) => (true, command),
            Next::Target(command) => (false, command),
            Next::Copy { query, number } => match ask(&self.source, query).unwrap() {
                NsmAnswer::Exported(page) => (false, plan.import(number, page)),
                other => panic!("{other:?}"),
            },
            Next::Wait => {
                feed(&self.source, 5, &Input::Tidy);
                return Vec::new();
            }
            Next::Moved | Next::Ended => return Vec::new(),
            Next::Impossible(why) => panic!("{why}"),
        };
        run(self.at(at_source), command.clone()).unwrap();
        vec![(at_source, command)]
    }

    fn at(&self, source: bool) -> &MemKv {
        if source { &self.source } else { &self.target }
    }

    fn finish(&self, plan: &Plan) {
        for _ in 0..10_000 {
            match self.next(plan) {
                Next::Moved => return,
                next => drop(self.act(plan, next)),
            }
        }
        panic!("the move does not end");
    }

    /// At most one group serves reads, and at most one writes.
    fn check(&self) {
        let reads = |store: &MemKv| ask(store, NsmQuery::Exist { namespace: NS, names: vec![] }).is_ok();
        let writes = |store: &MemKv| access::admit(store as &dyn KvRead, NS, access::Want::Write).is_ok();
        assert!(!(reads(&self.source) && reads(&self.target)));
        assert!(!(writes(&self.source) && writes(&self.target)));
        for store in [&self.source, &self.target] {
            assert_eq!(recount(store, NS).unwrap(), []);
        }
    }

    /// A client's command goes where it is taken.
    fn client(&self, command: &NsmCommand) -> Result<NsmOutcome, NsmError> {
        match run(&self.source, command.clone()) {
            Err(NsmError::NamespaceMoved(_)) => run(&self.target, command.clone()),
            result => result,
        }
    }
}

/// Everything of the namespace that counts: tables without notes, header, settings.
fn tables(store: &MemKv) -> (Vec<Entry>, Option<Vec<u8>>) {
    let mut rows = scan_prefix(store, &keys::all_of(NS), usize::MAX).unwrap();
    let letter = keys::all_of(NS).len();
    rows.retain(|(key, _)| !matches!(key[letter], b'x' | b'y'));
    (rows, store.get(&keys::header(NS)).unwrap())
}

fn put_one(id: u8) -> NsmCommand {
    sequence(vec![put(manifest(&format!("object {id}"), id, &[SPREAD]), Overwrite::Unconditionally)])
}

#[test]
fn a_namespace_arrives_whole_and_the_source_forgets_it() {
    let world = World::new();
    for id in 0..200 {
        run(&world.source, put_one(id)).unwrap();
    }
    let drop_one = ObjectUpdate::Delete { name: name("object 3"), must_exist: true };
    run(&world.source, sequence(vec![drop_one])).unwrap();
    run(&world.source, NsmCommand::EnableGcEpoch { namespace: NS, epoch: GcEpoch::from_u32(1) }).unwrap();
    let before = tables(&world.source);
    world.finish(&PLAN);
    assert_eq!(tables(&world.target), before);
    assert_eq!(recount(&world.target, NS).unwrap(), []);
    assert_eq!(status(&world.target), MoveStatus::Owned { ended: MoveId(1) });
    assert_eq!(status(&world.source), MoveStatus::Absent { ended: MoveId(1) });
    assert_eq!(run(&world.source, put_one(9)), Err(NsmError::NamespaceMoved(NS)));
    let by_id = NsmQuery::ManifestById { namespace: NS, object: ObjectId::new([1; 32]) };
    assert_eq!(ask(&world.source, by_id), Err(NsmError::NamespaceMoved(NS)), "never \"absent\"");
    while feed(&world.source, 5, &Input::Tidy) == Output::Tidied(true) {}
    assert_eq!(scan_prefix(&world.source, &keys::all_of(NS), 9).unwrap(), []);
    // And back again, by a later move.
    let back = World { source: world.target, target: world.source };
    let plan = Plan { id: MoveId(2), ..PLAN };
    back.finish(&plan);
    assert_eq!(tables(&back.target), before);
    // An ended move does nothing any more, at either group.
    let old = run(&back.target, step(MoveStep::Prepare));
    assert!(matches!(old, Err(NsmError::MoveRefused(_))), "{old:?}");
    let old = run(&back.source, step(MoveStep::Receive));
    assert!(matches!(old, Err(NsmError::MoveRefused(_))), "{old:?}");
}

#[test]
fn pages_are_bounded_and_each_row_is_covered_before_it_is_copied() {
    let world = World::new();
    for id in 0..60 {
        let object = manifest(&format!("{id}"), id, &vec![SPREAD; 2000]);
        run(&world.source, sequence(vec![put(object, Overwrite::NoPrevious)])).unwrap();
    }
    let mut pages = 0;
    loop {
        match world.next(&PLAN) {
            Next::Moved => break,
            next => {
                for (_, command) in world.act(&PLAN, next) {
                    let NsmCommand::Move { step: MoveStep::Import { page, .. }, .. } = &command else {
                        continue;
                    };
                    pages += 1;
                    let len = |(key, value): &(Vec<u8>, Option<Vec<u8>>)| {
                        key.len() + value.as_ref().map_or(0, Vec::len)
                    };
                    let bytes: usize = page.rows.iter().map(len).sum();
                    assert!(bytes <= alba_core::wire::rpc::nsm::MAX_PAGE_BYTES, "{bytes}");
                    let command = postcard::to_stdvec(&command).unwrap().len();
                    assert!(command < MAX_REQUEST, "{command}");
                    if let Cursor::Rows(upto) = &page.next
                        && let MoveStatus::Outgoing { covered: Some(covered), .. } = status(&world.source)
                    {
                        assert!(*upto <= covered);
                    }
                }
            }
        }
    }
    assert!(pages > 4, "{pages}");
}

#[test]
fn while_frozen_reads_go_on_and_writes_are_to_be_tried_again() {
    let world = World::new();
    run(&world.source, put_one(1)).unwrap();
    while !matches!(status(&world.source), MoveStatus::Outgoing { phase: Phase::Frozen, .. }) {
        world.act(&PLAN, world.next(&PLAN));
    }
    assert_eq!(run(&world.source, put_one(2)), Err(NsmError::NamespaceFrozen(NS)));
    let epoch = NsmCommand::EnableGcEpoch { namespace: NS, epoch: GcEpoch::from_u32(1) };
    assert_eq!(run(&world.source, epoch), Err(NsmError::NamespaceFrozen(NS)));
    let exists = NsmQuery::Exist { namespace: NS, names: vec![name("object 1")] };
    assert_eq!(ask(&world.source, exists.clone()), Ok(NsmAnswer::Exist(vec![true])));
    assert_eq!(ask(&world.target, exists.clone()), Err(NsmError::NamespaceMoved(NS)));
    // Not everything is copied: what a message changed now, for one.
    let unlink = NsmMessage::UnlinkOsd { namespace: NS, osd: OsdId::from_u32(5) };
    run(&world.source, NsmCommand::Deliver(vec![(MessageId::from_u32(7), unlink)])).unwrap();
    let early = run(&world.source, step(MoveStep::HandOver { copied: 0 }));
    assert!(matches!(early, Err(NsmError::MoveRefused(_))), "{early:?}");
    while !matches!(status(&world.source), MoveStatus::Outgoing { phase: Phase::HandedOver(_), .. }) {
        world.act(&PLAN, world.next(&PLAN));
    }
    for store in [&world.source, &world.target] {
        assert_eq!(ask(store, exists.clone()), Err(NsmError::NamespaceMoved(NS)));
        assert_eq!(run(store, put_one(2)), Err(NsmError::NamespaceMoved(NS)));
    }
    let preset = PresetUpdate { namespace: NS, preset: Box::new(preset()), version: 9 };
    let late = run(&world.source, NsmCommand::UpdatePresets(vec![preset])).unwrap();
    assert_eq!(late, NsmOutcome::Each(vec![Err(NsmError::NamespaceMoved(NS))]));
    world.finish(&PLAN);
    assert_eq!(ask(&world.target, exists), Ok(NsmAnswer::Exist(vec![true])));
}

#[test]
fn a_copy_that_differs_is_never_activated_and_the_way_back_is_safe() {
    let world = World::new();
    run(&world.source, put_one(1)).unwrap();
    while !matches!(status(&world.source), MoveStatus::Outgoing { phase: Phase::HandedOver(_), .. }) {
        world.act(&PLAN, world.next(&PLAN));
    }
    let MoveStatus::Outgoing { phase: Phase::HandedOver(sealed), .. } = status(&world.source) else {
        panic!()
    };
    // A row that the source never had.
    let MoveStatus::Incoming { next_page, cursor, .. } = status(&world.target) else { panic!() };
    let page = MovePage { rows: vec![(b"Nzzz".to_vec(), Some(vec![1]))], next: cursor };
    run(&world.target, PLAN.import(next_page, page)).unwrap();
    let activate = step(MoveStep::Activate(sealed));
    assert!(matches!(run(&world.target, activate.clone()), Err(NsmError::MoveRefused(_))));
    // The target first; it never activates after that.
    assert_eq!(world.back(&PLAN), Next::Target(step(MoveStep::Reject)));
    while world.back(&PLAN) != Next::Ended {
        world.act(&PLAN, world.back(&PLAN));
        world.check();
    }
    for late in [activate, step(MoveStep::Receive)] {
        assert!(matches!(run(&world.target, late), Err(NsmError::MoveRefused(_))));
    }
    run(&world.source, put_one(2)).unwrap();
    assert_eq!(world.next(&PLAN), Next::Ended);
    for store in [&world.source, &world.target] {
        while feed(store, 5, &Input::Tidy) == Output::Tidied(true) {}
    }
    World::finish(&world, &Plan { id: MoveId(2), ..PLAN });
    assert_eq!(recount(&world.target, NS).unwrap(), []);
}

#[test]
fn an_activated_move_cannot_be_taken_back() {
    let world = World::new();
    while !matches!(world.next(&PLAN), Next::Switch(_)) {
        world.act(&PLAN, world.next(&PLAN));
    }
    assert!(matches!(run(&world.target, step(MoveStep::Reject)), Err(NsmError::MoveRefused(_))));
    assert!(matches!(world.back(&PLAN), Next::Switch(_)), "the only way is forward");
}

#[test]
fn a_retry_at_the_source_gets_the_first_answer_after_the_move() {
    let world = World::new();
    let Output::Session(session) = feed(&world.source, 9, &Input::OpenSession([3; 16])) else { panic!() };
    let command = |sequence, command| {
        let id = alba_core::wire::rpc::RequestId { session, sequence, lowest_unacknowledged: 1 };
        feed(&world.source, 9, &Input::Command(id, command))
    };
    let stored = command(1, put_one(1));
    assert!(matches!(stored, Output::Done(Ok(NsmOutcome::Stored(_)))));
    world.finish(&PLAN);
    while feed(&world.source, 5, &Input::Tidy) == Output::Tidied(true) {}
    assert_eq!(command(1, put_one(1)), stored, "executed before the move: not to be sent to the target");
    assert_eq!(command(2, put_one(2)), Output::Done(Err(NsmError::NamespaceMoved(NS))), "not executed");
}

#[test]
fn time_stamps_grow_at_a_target_whose_clock_is_behind() {
    let world = World::new();
    feed(&world.source, 1_000_000, &Input::Internal(put_one(1)));
    let stamp = |store: &MemKv| match ask(
        store,
        NsmQuery::ManifestById { namespace: NS, object: ObjectId::new([1; 32]) },
    ) {
        Ok(NsmAnswer::Manifest(Some(manifest))) => manifest.timestamp,
        other => panic!("{other:?}"),
    };
    let first = stamp(&world.source);
    assert_eq!(first, Timestamp(1_000_000));
    world.finish(&PLAN);
    let mut last = first;
    for id in 2..5 {
        let outcome = run(&world.target, put_one(id)).unwrap();
        let NsmOutcome::Stored(stored) = outcome else { panic!("{outcome:?}") };
        assert!(stored[0].timestamp > last);
        last = stored[0].timestamp;
    }
}

#[test]
fn too_many_changes_end_the_move_and_no_write_is_refused() {
    let world = World::new();
    run(&world.source, put_one(1)).unwrap();
    while !matches!(status(&world.target), MoveStatus::Incoming { cursor: Cursor::Changes(_), .. }) {
        world.act(&PLAN, world.next(&PLAN));
    }
    // As if a million keys had been noted.
    let mut txn = KvTxn::new(&world.source);
    let mut state = access::state(&txn, NS).unwrap();
    let Some(access::Moving::Outgoing(outgoing)) = &mut state.moving else { panic!() };
    outgoing.noted = changes::MAX_NOTED;
    access::save_state(&mut txn, NS, &state).unwrap();
    txn.accept();
    world.source.commit(txn.into_batch(), alba_core::kv::Durability::Sync).unwrap();
    run(&world.source, put_one(2)).unwrap();
    run(&world.source, put_one(3)).unwrap();
    assert!(matches!(run(&world.source, step(MoveStep::Freeze)), Err(NsmError::MoveRefused(_))));
    while world.next(&PLAN) != Next::Ended {
        world.act(&PLAN, world.next(&PLAN));
    }
    for store in [&world.source, &world.target] {
        while feed(store, 5, &Input::Tidy) == Output::Tidied(true) {}
    }
    assert_eq!(recount(&world.source, NS).unwrap(), []);
    world.finish(&Plan { id: MoveId(2), ..PLAN });
    assert_eq!(recount(&world.target, NS).unwrap(), []);
}

#[test]
fn a_busy_namespace_is_frozen_after_a_while() {
    let world = World::new();
    let plan = Plan { freeze_at: 0, patience: 10, ..PLAN };
    let mut id = 0;
    while world.next(&plan) != Next::Moved {
        world.act(&plan, world.next(&plan));
        // Something changes after every step.
        let _ = world.client(&put_one(id));
        id = id.wrapping_add(1);
        assert!(id < 100, "it never ends");
    }
    assert_eq!(recount(&world.target, NS).unwrap(), []);
}

/// What happens between two steps of a move.
#[derive(Debug, Clone)]
enum Event {
    /// A client's command, at whoever takes it.
    Client(NsmCommand),
    /// A step of the driver.
    Step,
    /// A step whose page or decision is old by the time it is carried out.
    Late,
    /// A command that was given before, again.
    Again(prop::sample::Index),
    /// Clean-up at both.
    Tidy,
    /// Another driver gives up; only a few do.
    Back,
    /// Another driver does not reach the target.
    Unfreeze,
}

fn client_command() -> impl Strategy<Value = NsmCommand> {
    let text = prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")];
    prop_oneof![
        6 => (text.clone(), 0_u8..60).prop_map(|(text, id)| {
            sequence(vec![put(manifest(text, id, &[SPREAD]), Overwrite::Unconditionally)])
        }),
        2 => text.prop_map(|text| {
            sequence(vec![ObjectUpdate::Delete { name: name(text), must_exist: false }])
        }),
        1 => (1_u32..4).prop_map(|n| NsmCommand::EnableGcEpoch {
            namespace: NS,
            epoch: GcEpoch::from_u32(n),
        }),
        1 => (0_u32..6).prop_map(|osd| NsmCommand::CleanupOsd { namespace: NS, osd: OsdId::from_u32(osd) }),
        1 => (0_u32..6, 0_u32..3).prop_map(|(osd, node)| {
            let mut info = osd_info(osd);
            info.place = osd_info(node * 2).place;
            // The number is put right where it is delivered.
            NsmCommand::Deliver(vec![(
                MessageId::from_u32(0),
                NsmMessage::UpdateOsd { namespace: NS, osd: OsdId::from_u32(osd), info: Box::new(info) },
            )])
        }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => client_command().prop_map(Event::Client),
        8 => Just(Event::Step),
        2 => Just(Event::Late),
        2 => any::<prop::sample::Index>().prop_map(Event::Again),
        1 => Just(Event::Tidy),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever happens meanwhile, in the end the target has what a group has that was never left.
    #[test]
    fn a_moved_namespace_is_as_if_it_had_stayed(
        events in proptest::collection::vec(
            prop_oneof![40 => event(), 1 => Just(Event::Back), 1 => Just(Event::Unfreeze)], 1..120),
    ) {
        let world = World::new();
        let stayed = MemKv::new();
        prepare(&stayed);
        let mut given: Vec<(bool, NsmCommand)> = Vec::new();
        let mut plan = PLAN;
        for event in events {
            match event {
                Event::Client(NsmCommand::Deliver(messages)) => {
                    // The ABM sends to the owner, and to nobody between `HandOver` and its switch.
                    let moved = matches!(status(&world.target), MoveStatus::Owned { .. });
                    let leaving = matches!(
                        status(&world.source),
                        MoveStatus::Outgoing { phase: Phase::HandedOver(_), .. }
                    );
                    if moved || !leaving {
                        let (_, message) = messages.into_iter().next().unwrap();
                        for store in [world.at(!moved), &stayed] {
                            let id = next_message(store as &dyn KvRead).unwrap();
                            run(store, NsmCommand::Deliver(vec![(id, message.clone())])).unwrap();
                        }
                    }
                }
                Event::Client(command) => match world.client(&command) {
                    // Not executed: the client tries again later, or does not.
                    Err(NsmError::NamespaceFrozen(_) | NsmError::NamespaceMoved(_)) => {}
                    result => {
                        let expected = run(&stayed, command);
                        prop_assert_eq!(result.is_ok(), expected.is_ok());
                        if let (Err(error), Err(expected)) = (result, expected) {
                            prop_assert_eq!(error, expected);
                        }
                    }
                },
                Event::Step => {
                    let next = world.next(&plan);
                    if next == Next::Ended {
                        plan.id.0 += 1;
                        for store in [&world.source, &world.target] {
                            while feed(store, 5, &Input::Tidy) == Output::Tidied(true) {}
                        }
                    } else {
                        given.extend(world.act(&plan, next));
                    }
                }
                Event::Unfreeze => {
                    if let Some(command) = plan.unfreeze(&status(&world.source)) {
                        run(&world.source, command.clone()).unwrap();
                        given.push((true, command));
                    }
                }
                Event::Late => {
                    // Two drivers with the same plan: one is overtaken.
                    let copied = match world.next(&plan) {
                        Next::Copy { query, number } => match ask(&world.source, query).unwrap() {
                            NsmAnswer::Exported(page) => Some((false, plan.import(number, page))),
                            other => panic!("{other:?}"),
                        },
                        Next::Source(command) => Some((true, command)),
                        Next::Target(command) => Some((false, command)),
                        _ => None,
                    };
                    let next = world.next(&plan);
                    if !matches!(next, Next::Ended) {
                        given.extend(world.act(&plan, next));
                        let next = world.next(&plan);
                        if !matches!(next, Next::Ended) {
                            given.extend(world.act(&plan, next));
                        }
                    }
                    if let Some((at_source, command)) = copied {
                        let _ = run(world.at(at_source), command);
                    }
                }
                Event::Again(which) => {
                    if !given.is_empty() {
                        // A driver that was cut off gives the command of its time.
                        let (at_source, command) = which.get(&given);
                        let _ = run(world.at(*at_source), command.clone());
                    }
                }
                Event::Tidy => {
                    for store in [&world.source, &world.target, &stayed] {
                        feed(store, 5, &Input::Tidy);
                    }
                }
                Event::Back => {
                    for _ in 0..3 {
                        match world.back(&plan) {
                            Next::Source(_) | Next::Target(_) => {
                                given.extend(world.act(&plan, world.back(&plan)));
                            }
                            _ => break,
                        }
                    }
                }
            }
            world.check();
        }
        for _ in 0..10_000 {
            match world.next(&plan) {
                Next::Moved => break,
                Next::Ended => plan.id.0 += 1,
                Next::Source(NsmCommand::Move { step: MoveStep::Prepare, .. }) => {
                    for store in [&world.source, &world.target] {
                        while feed(store, 5, &Input::Tidy) == Output::Tidied(true) {}
                    }
                    drop(world.act(&plan, world.next(&plan)));
                }
                next => drop(world.act(&plan, next)),
            }
        }
        prop_assert_eq!(world.next(&plan), Next::Moved);
        for store in [&world.target, &stayed] {
            while feed(store, 5, &Input::Tidy) == Output::Tidied(true) {}
        }
        prop_assert_eq!(recount(&world.target, NS).unwrap(), vec![]);
        // But for time stamps, which are each group's own.
        let manifests = |store: &MemKv| {
            let range = alba_core::range::RangeQuery::all();
            match ask(store, NsmQuery::ManifestsById { namespace: NS, range }).unwrap() {
                NsmAnswer::ManifestPage(page) => page
                    .items
                    .into_iter()
                    .map(|manifest| Manifest { timestamp: Timestamp(0), ..manifest })
                    .collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            }
        };
        prop_assert_eq!(manifests(&world.target), manifests(&stayed));
        let (moved, stayed) = (tables(&world.target), tables(&stayed));
        let object = keys::table(NS, keys::Table::Objects);
        let others = |rows: Vec<Entry>| {
            rows.into_iter().filter(|(key, _)| !key.starts_with(&object)).collect::<Vec<_>>()
        };
        prop_assert_eq!(others(moved.0), others(stayed.0));
        prop_assert_eq!(moved.1, stayed.1);
    }
}

#[test]
fn other_namespaces_are_not_noted() {
    let world = World::new();
    let other = NamespaceId::from_u32(8);
    let create = NsmMessage::CreateNamespace {
        id: other,
        name: NamespaceName::new("other").unwrap(),
        preset: Box::new(preset()),
        preset_version: 0,
    };
    run(&world.source, step(MoveStep::Prepare)).unwrap();
    while !matches!(status(&world.source), MoveStatus::Outgoing { covered: None, .. }) {
        run(&world.source, step(MoveStep::Cover)).unwrap();
    }
    run(&world.source, NsmCommand::Deliver(vec![(MessageId::from_u32(7), create)])).unwrap();
    let enable = NsmCommand::EnableGcEpoch { namespace: other, epoch: GcEpoch::from_u32(1) };
    run(&world.source, enable).unwrap();
    assert!(matches!(status(&world.source), MoveStatus::Outgoing { last_change: 0, .. }));
}

#[test]
fn the_pause_does_not_grow_with_the_namespace() {
    // Commands from `Freeze` to `Activate`, whatever came before.
    let pause = |objects: u8| {
        let world = World::new();
        for id in 0..objects {
            run(&world.source, put_one(id)).unwrap();
        }
        let (mut frozen, mut rows) = (0, 0);
        loop {
            match world.next(&PLAN) {
                Next::Switch(_) => return (frozen, rows),
                next => {
                    // Clients go on all the time.
                    let _ = world.client(&put_one(200));
                    for (_, command) in world.act(&PLAN, next) {
                        let MoveStatus::Outgoing { phase, .. } = status(&world.source) else { continue };
                        if phase == Phase::Prepared {
                            continue;
                        }
                        frozen += 1;
                        if let NsmCommand::Move { step: MoveStep::Import { page, .. }, .. } = command {
                            rows += page.rows.len();
                        }
                    }
                }
            }
        }
    };
    let (few, many) = (pause(2), pause(200));
    assert_eq!(few, many);
    assert!(many.0 <= 4 && many.1 <= 40, "{many:?}");
}
