use alba_core::ids::{AgentId, NamespaceId, ObjectId, TaskName};
use alba_core::wire::rpc::abm::{
    CARE_PAGE, FailedRepair, SurveyCounts, UNREPAIRED_MAX, UnrepairedRecord, WINDOW_MAX, WINDOWS_MAX,
    WindowRecord, WindowTarget,
};

use super::*;

const SECOND: u64 = 1_000_000;

fn node(name: &str) -> WindowTarget {
    WindowTarget::Node(NodeId::new(name).unwrap())
}

fn open(world: &World, target: WindowTarget, period: u64) -> Result<AbmOutcome, AbmError> {
    world.run(AbmCommand::OpenWindow { target, period, reason: "a new disk".to_owned() })
}

fn windows(world: &World) -> (u64, Vec<WindowRecord>) {
    match world.ask(AbmQuery::Windows) {
        AbmAnswer::Windows { now, windows } => (now, windows),
        other => panic!("{other:?}"),
    }
}

fn task() -> TaskName {
    TaskName::new("repair/all").unwrap()
}

fn lease(world: &World, agent: &str) -> u64 {
    let agent = AgentId::new(agent).unwrap();
    match world.run(AbmCommand::AcquireLease { task: task(), agent, period: 10 }).unwrap() {
        AbmOutcome::Lease(lease) => lease.token,
        other => panic!("{other:?}"),
    }
}

#[test]
fn windows_end_by_themselves_and_by_the_time_of_the_abm() {
    let world = World::new();
    world.1.set(1000);
    open(&world, node("a"), 500).unwrap();
    open(&world, node("b"), 100 * SECOND).unwrap();
    let (now, found) = windows(&world);
    assert!((1000..1010).contains(&now));
    let targets: Vec<_> = found.iter().map(|window| window.target.clone()).collect();
    assert_eq!(targets, [node("a"), node("b")]);
    assert!((1500..1510).contains(&found[0].until) && found[0].reason == "a new disk");
    // Opened again it lasts as long from now on; when it began stays known.
    world.1.set(1400);
    open(&world, node("a"), 500).unwrap();
    let (_, found) = windows(&world);
    assert!((1900..1910).contains(&found[0].until) && found[0].since < 1010, "{found:?}");
    // Nobody has to close it: any input brings the time.
    world.1.set(1910);
    world.run(AbmCommand::CloseWindow { target: node("never opened") }).unwrap();
    let (_, found) = windows(&world);
    assert_eq!(found.iter().map(|window| window.target.clone()).collect::<Vec<_>>(), [node("b")]);
    // A clock that goes back opens nothing again.
    world.1.set(5);
    assert_eq!(windows(&world).1, found);
    // What is over goes when the next one is opened.
    open(&world, node("c"), SECOND).unwrap();
    assert_eq!(crate::value::scan_prefix(&world.0, keys::WINDOWS, 10).unwrap().len(), 2);
    world.run(AbmCommand::CloseWindow { target: node("b") }).unwrap();
    assert_eq!(windows(&world).1.len(), 1, "only c is left");
    world.check();
}

#[test]
fn windows_are_bounded_and_of_osds_that_there_are() {
    let world = World::new();
    world.claim(0);
    for period in [0, WINDOW_MAX + 1, u64::MAX] {
        assert!(matches!(open(&world, node("a"), period), Err(AbmError::BadArgument(_))), "{period}");
    }
    let unknown = LongId::new("unknown").unwrap();
    let answer = open(&world, WindowTarget::Osd(unknown.clone()), 5 * SECOND);
    assert_eq!(answer, Err(AbmError::OsdUnknown(unknown)));
    open(&world, WindowTarget::Osd(osd(0).long_id), WINDOW_MAX).unwrap();
    for n in 1..WINDOWS_MAX {
        open(&world, node(&format!("n{n}")), 5 * SECOND).unwrap();
    }
    assert!(open(&world, node("one more"), 5 * SECOND).is_err());
    open(&world, node("n7"), 6 * SECOND).unwrap();
    assert_eq!(windows(&world).1.len(), WINDOWS_MAX);
}

#[test]
fn windows_are_watched_like_the_maintenance_configuration() {
    let world = World::new();
    let revision = || match world.ask(AbmQuery::Revisions) {
        AbmAnswer::Revisions(revisions) => revisions.maintenance,
        other => panic!("{other:?}"),
    };
    open(&world, node("a"), SECOND).unwrap();
    world.run(AbmCommand::CloseWindow { target: node("a") }).unwrap();
    world.run(AbmCommand::CloseWindow { target: node("a") }).unwrap();
    assert_eq!(revision(), 2);
}

#[test]
fn a_task_notes_how_far_it_is_and_only_who_has_it_may() {
    let world = World::new();
    let mark = || match world.ask(AbmQuery::TaskMark(task())) {
        AbmAnswer::TaskMark(mark) => mark,
        other => panic!("{other:?}"),
    };
    let token = lease(&world, "a");
    let tell = |token, mark| world.run(AbmCommand::MarkTask { task: task(), token, mark });
    assert_eq!(mark(), None);
    tell(token, 7).unwrap();
    world.1.set(1000);
    let second = lease(&world, "b");
    assert!(matches!(tell(token, 8), Err(AbmError::LeaseMismatch { .. })));
    assert_eq!(mark(), Some(7), "the next one goes on from there");
    tell(second, 9).unwrap();
    assert_eq!(mark(), Some(9));
    world.1.set(2000);
    world.run(AbmCommand::ForgetTask { task: task() }).unwrap();
    assert_eq!(mark(), None);
}

fn object(n: u8) -> ObjectId {
    ObjectId::new([n; 32])
}

fn failed(n: u8) -> FailedRepair {
    FailedRepair { namespace: NamespaceId::from_u32(3), object: object(n), reason: "no".to_owned() }
}

fn report(world: &World, token: u64, failed: Vec<FailedRepair>, well: &[u8]) -> Result<AbmOutcome, AbmError> {
    let well = well.iter().map(|n| (NamespaceId::from_u32(3), object(*n))).collect();
    world.run(AbmCommand::ReportRepairs { task: task(), token, failed, well })
}

fn unrepaired(world: &World) -> Vec<UnrepairedRecord> {
    match world.ask(AbmQuery::Unrepaired { after: None, max: 1000 }) {
        AbmAnswer::Unrepaired { page, .. } => page.items,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_failed_rests_longer_each_time_until_it_is_well_or_osds_come() {
    let world = World::new();
    let token = lease(&world, "a");
    report(&world, token, vec![failed(1), failed(2)], &[]).unwrap();
    let seconds = |record: &UnrepairedRecord| (record.until - record.at) / SECOND;
    let rests = || unrepaired(&world).iter().map(|one| (one.failures, seconds(one))).collect::<Vec<_>>();
    assert_eq!(rests(), [(1, 10), (1, 10)]);
    report(&world, token, vec![failed(2)], &[]).unwrap();
    assert_eq!(rests(), [(1, 10), (2, 20)]);
    // Another agent goes on where this one was; who lost the task has no say.
    world.1.set(1000);
    let second = lease(&world, "b");
    assert!(matches!(report(&world, token, vec![failed(1)], &[2]), Err(AbmError::LeaseMismatch { .. })));
    report(&world, second, vec![failed(2)], &[1]).unwrap();
    assert_eq!(rests(), [(3, 40)]);
    world.check();
    // Other OSDs: at once, and from the beginning.
    world.run(AbmCommand::WakeUnrepaired { task: task(), token: second }).unwrap();
    assert_eq!(rests(), [(0, 0)]);
    report(&world, second, vec![failed(2)], &[]).unwrap();
    assert_eq!(rests(), [(1, 10)]);
    report(&world, second, vec![], &[1, 2]).unwrap();
    assert_eq!(rests(), []);
    world.check();
}

#[test]
fn what_rests_is_listed_in_pages_and_bounded() {
    let world = World::new();
    let token = lease(&world, "a");
    report(&world, token, (0..200).map(failed).collect(), &[]).unwrap();
    let after = Some((NamespaceId::from_u32(3), object(197)));
    let AbmAnswer::Unrepaired { page, .. } = world.ask(AbmQuery::Unrepaired { after, max: 1 }) else {
        panic!()
    };
    assert_eq!((page.items[0].object, page.has_more), (object(198), true));
    let many = vec![failed(1); CARE_PAGE + 1];
    assert!(matches!(report(&world, token, many, &[]), Err(AbmError::BadArgument(_))));
    // When there is no room, what is there is still counted on.
    let mut txn = KvTxn::new(&world.0);
    txn.add(keys::UNREPAIRED_COUNT, i64::try_from(UNREPAIRED_MAX).unwrap() - 200).unwrap();
    world.0.commit(txn.into_batch(), Durability::Sync).unwrap();
    report(&world, token, vec![failed(201), failed(7)], &[]).unwrap();
    let found = unrepaired(&world);
    assert_eq!((found.len(), found[7].failures), (200, 2));
}

#[test]
fn surveys_are_of_namespaces_that_there_are() {
    let world = World::new();
    world.create("ns");
    world.settle();
    let token = lease(&world, "a");
    let counts =
        SurveyCounts { below_policy: 5, repairable: 4, unrepairable: 1, left_alone: 0, least: Some((-1, 1)) };
    let surveys = vec![(NamespaceId::from_u32(0), counts), (NamespaceId::from_u32(9), counts)];
    world.1.set(1000);
    world.run(AbmCommand::ReportSurveys { task: task(), token, surveys }).unwrap();
    let surveys = || match world.ask(AbmQuery::Surveys { after: None, max: 100 }) {
        AbmAnswer::Surveys { now, page } => (now, page.items),
        other => panic!("{other:?}"),
    };
    let (now, found) = surveys();
    assert_eq!((found.len(), found[0].counts, found[0].at), (1, counts, now));
    world.check();
    world.run(AbmCommand::DeleteNamespace { name: namespace("ns") }).unwrap();
    world.settle();
    assert_eq!(surveys().1, []);
    world.check();
}

#[test]
fn records_of_care_have_golden_bytes() {
    let world = World::new();
    world.create("ns");
    world.settle();
    let token = lease(&world, "a");
    world.1.set(1000);
    open(&world, node("n"), 5).unwrap();
    world.claim(0);
    world.settle();
    world.1.set(2000);
    open(&world, WindowTarget::Osd(osd(0).long_id), 5).unwrap();
    let counts =
        SurveyCounts { below_policy: 1, repairable: 2, unrepairable: 3, left_alone: 6, least: Some((-1, 4)) };
    let surveys = vec![(NamespaceId::from_u32(0), counts)];
    world.run(AbmCommand::ReportSurveys { task: task(), token, surveys }).unwrap();
    report(&world, token, vec![failed(7)], &[]).unwrap();
    world.run(AbmCommand::WakeUnrepaired { task: task(), token }).unwrap();
    world.run(AbmCommand::MarkTask { task: task(), token, mark: 300 }).unwrap();
    let mut shown = String::new();
    for table in "adhsuz".bytes() {
        for (key, value) in crate::value::scan_prefix(&world.0, &[table], 10).unwrap() {
            shown.push_str(&format!("{} {}\n", hex::encode(&key), hex::encode(&value)));
        }
    }
    assert_eq!(shown, include_str!("care.txt"));
}
