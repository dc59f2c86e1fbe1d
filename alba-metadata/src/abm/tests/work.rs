use alba_core::ids::{
    AgentId, ChunkIndex, FragmentIndex, JobName, NodeId, ObjectId, ObjectName, ObjectVersion, TaskName,
    WorkId,
};
use alba_core::wire::rpc::abm::{
    JobAction, JobRecord, LeafProgress, LeaseRecord, MaintenanceConfig, MaintenanceUpdate, WORK_PAGE,
};

use super::*;

fn agent(text: &str) -> AgentId {
    AgentId::new(text).unwrap()
}

fn rewrite(n: u8) -> WorkItem {
    WorkItem::RewriteObject { namespace: NamespaceId::from_u32(0), object: ObjectId::new([n; 32]) }
}

impl World {
    fn claim_work(&self, who: &str, max: u32, period: u64) -> (u64, Vec<WorkRecord>) {
        match self.run(AbmCommand::ClaimWork { agent: agent(who), max, period }).unwrap() {
            AbmOutcome::Work { token, items } => (token, items),
            other => panic!("{other:?}"),
        }
    }

    fn add_work(&self, numbers: std::ops::Range<u8>) {
        self.run(AbmCommand::AddWork(numbers.map(rewrite).collect())).unwrap();
    }
}

fn ids(items: &[WorkRecord]) -> Vec<u64> {
    items.iter().map(|record| record.id.get()).collect()
}

#[test]
fn agents_share_the_queue_by_claims_that_run_out() {
    let world = World::new();
    world.add_work(0..5);
    world.1.set(1000);
    let (first, items) = world.claim_work("a", 2, 500);
    assert_eq!(ids(&items), [0, 1]);
    let (second, items) = world.claim_work("b", 10, 500);
    assert_eq!(ids(&items), [2, 3, 4]);
    assert!(second > first);
    assert_eq!(world.claim_work("c", 10, 500).1, []);
    // Renewed in time, one is kept; the others run out.
    let renew = |ids: &[u64], token| {
        let ids = ids.iter().map(|id| WorkId::new(*id).unwrap()).collect();
        world.run(AbmCommand::RenewWork { ids, token, period: 5000 }).unwrap();
    };
    renew(&[0, 2], first);
    world.1.set(3000);
    let (third, items) = world.claim_work("c", 10, 500);
    assert_eq!(ids(&items), [1, 2, 3, 4], "another's token renews nothing");
    renew(&[1], first);
    let fail = |token| AbmCommand::FailWork { id: WorkId::from_u32(1), token, reason: "no".to_owned() };
    world.run(fail(first)).unwrap();
    assert_eq!(world.work()[1].failures, 0, "it is not the first agent's any more");
    world.run(fail(third)).unwrap();
    let failed = &world.work()[1];
    assert_eq!(
        (failed.failures, failed.last_failure.as_deref(), failed.claim.is_none()),
        (1, Some("no"), true)
    );
    assert_eq!(world.claim_work("a", 10, 500).1, []);
    world.1.set(3000 + 2_000_000);
    assert_eq!(ids(&world.claim_work("a", 1, 500).1), [2], "waiting for longest");
    // Whoever did it, done is done.
    world.run(AbmCommand::MarkWorkCompleted(vec![WorkId::from_u32(0), WorkId::from_u32(9)])).unwrap();
    assert_eq!(world.ask(AbmQuery::WorkCount), AbmAnswer::WorkCount(4));
    world.check();
}

#[test]
fn the_same_item_waits_once_and_pages_are_short() {
    let world = World::new();
    let bad = WorkItem::RepairBadFragment {
        namespace: NamespaceId::from_u32(0),
        object: ObjectId::new([1; 32]),
        name: ObjectName::new("x").unwrap(),
        chunk: ChunkIndex(0),
        fragment: FragmentIndex(1),
        version: ObjectVersion(0),
    };
    for _ in 0..3 {
        world.run(AbmCommand::AddWork(vec![bad.clone(), bad.clone()])).unwrap();
    }
    assert_eq!(world.items(), std::slice::from_ref(&bad));
    world.complete(|_| true).unwrap();
    world.run(AbmCommand::AddWork(vec![bad.clone()])).unwrap();
    assert_eq!(ids(&world.work()), [1], "damaged again: again, under another number");
    world.add_work(0..100);
    world.add_work(100..150);
    let mut after = None;
    let mut seen = Vec::new();
    loop {
        let AbmAnswer::Work(page) = world.ask(AbmQuery::Work { after, max: u32::MAX }) else { panic!() };
        assert!(page.items.len() <= WORK_PAGE);
        after = page.items.last().map(|record| record.id);
        seen.extend(ids(&page.items));
        if !page.has_more {
            break;
        }
    }
    assert_eq!(seen, (1..152).collect::<Vec<_>>());
    assert_eq!(world.claim_work("a", u32::MAX, 9).1.len(), WORK_PAGE);
    let wrong = WorkItem::WaitUntilDecommissioned { osd: OsdId::from_u32(0) };
    assert!(matches!(world.run(AbmCommand::AddWork(vec![wrong])), Err(AbmError::BadArgument(_))));
    let many = AbmCommand::AddWork((0..=100).map(rewrite).collect());
    assert!(matches!(world.run(many), Err(AbmError::BadArgument(_))));
    world.check();
}

fn job(text: &str) -> JobName {
    JobName::new(text).unwrap()
}

#[test]
fn a_job_goes_on_leaf_by_leaf_and_only_forward() {
    let world = World::new();
    let record = world.create("ns");
    let start = |name: &str, factor| {
        let namespace = namespace("ns");
        world.run(AbmCommand::StartJob { name: job(name), namespace, action: JobAction::Rewrite, factor })
    };
    assert_eq!(start("j", 4), Err(AbmError::NamespaceNotActive(namespace("ns"))));
    world.settle();
    assert!(matches!(start("j", 0), Err(AbmError::BadArgument(_))));
    assert!(matches!(start("j", 1025), Err(AbmError::BadArgument(_))));
    start("j", 4).unwrap();
    assert!(matches!(start("j", 4), Err(AbmError::BadArgument(_))), "names are unique");
    let leaves: Vec<WorkItem> = (0..4).map(|leaf| WorkItem::IterateLeaf { job: job("j"), leaf }).collect();
    assert_eq!(world.items(), leaves);
    let AbmAnswer::Jobs(jobs) = world.ask(AbmQuery::Jobs(RangeQuery::all())) else { panic!() };
    let [JobRecord { namespace: of, leaves: 4, .. }] = &jobs.items[..] else { panic!("{jobs:?}") };
    assert_eq!(*of, record.id);
    let leaves = || match world.ask(AbmQuery::JobProgress(job("j"))) {
        AbmAnswer::JobProgress(leaves) => leaves,
        other => panic!("{other:?}"),
    };
    let before = leaves().unwrap();
    let prefixes: Vec<u8> = before.iter().map(|leaf| leaf.next.unwrap().as_bytes()[0]).collect();
    assert_eq!((prefixes, before[3].end), (vec![0, 0x40, 0x80, 0xc0], None));
    let update = |leaf: u32, expected: &LeafProgress, progress: &LeafProgress| {
        let (expected, progress) = (expected.clone(), progress.clone());
        world.run(AbmCommand::UpdateJobProgress { name: job("j"), leaf, expected, progress })
    };
    let further = LeafProgress {
        count: 100,
        next: Some(ObjectId::new([0x50; 32])),
        fragments_detected_missing: 2,
        ..before[1].clone()
    };
    update(1, &before[1], &further).unwrap();
    let moved = AbmError::ProgressMoved { name: job("j"), found: Box::new(further.clone()) };
    assert_eq!(update(1, &before[1], &further), Err(moved), "two agents cannot both move it");
    assert!(matches!(update(1, &further, &before[1]), Err(AbmError::BadArgument(_))), "never back");
    assert_eq!(update(4, &further, &further), Err(AbmError::JobUnknown(job("j"))));
    let of_leaf = |item: &WorkItem| matches!(item, WorkItem::IterateLeaf { leaf: 1, .. });
    assert!(matches!(world.complete(of_leaf), Err(AbmError::BadArgument(_))), "it is not finished");
    update(1, &further, &LeafProgress { next: None, ..further.clone() }).unwrap();
    world.complete(of_leaf).unwrap();
    assert_eq!(world.items().len(), 3);
    assert_eq!(leaves().unwrap()[1].next, None);
    world.check();
    world.run(AbmCommand::ClearJob { name: job("j") }).unwrap();
    assert_eq!((world.items(), leaves()), (vec![], None));
    assert_eq!(world.run(AbmCommand::ClearJob { name: job("j") }), Err(AbmError::JobUnknown(job("j"))));
    start("j", 1).unwrap();
    world.check();
}

#[test]
fn a_task_has_one_holder_and_its_token_grows() {
    let world = World::new();
    let task = TaskName::new("gc").unwrap();
    let acquire = |who: &str| match world.run(AbmCommand::AcquireLease {
        task: task.clone(),
        agent: agent(who),
        period: 100,
    }) {
        Ok(AbmOutcome::Lease(lease)) => Ok(lease),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    };
    let held_by = |holder: &str| AbmError::LeaseMismatch { task: task.clone(), holder: holder.to_owned() };
    world.1.set(1000);
    let first = acquire("a").unwrap();
    assert_eq!(first.expires, 1100);
    assert_eq!(acquire("b"), Err(held_by("a")));
    assert_eq!(acquire("a").unwrap().token, first.token, "it keeps what it has");
    let renew = |token| world.run(AbmCommand::RenewLease { task: task.clone(), token, period: 1000 });
    renew(first.token).unwrap();
    world.1.set(1500);
    assert_eq!(acquire("b"), Err(held_by("a")));
    world.1.set(3000);
    let second = acquire("b").unwrap();
    assert!(second.token > first.token);
    assert_eq!(renew(first.token), Err(held_by("b")), "the old token is worth nothing");
    let release = |token| world.run(AbmCommand::ReleaseLease { task: task.clone(), token });
    assert_eq!(release(first.token), Err(held_by("b")));
    release(second.token).unwrap();
    assert_eq!(renew(second.token), Err(held_by("nobody")));
    let third: LeaseRecord = acquire("a").unwrap();
    assert!(third.token > second.token, "also after a release");
    assert_eq!(world.ask(AbmQuery::Lease(task.clone())), AbmAnswer::Lease(Some(third)));
    let forever = AbmCommand::AcquireLease { task, agent: agent("a"), period: u64::MAX };
    assert!(matches!(world.run(forever), Err(AbmError::BadArgument(_))));
}

#[test]
fn agents_are_there_while_they_say_so() {
    let world = World::new();
    let register = |who: &str| AbmCommand::RegisterParticipant {
        agent: agent(who),
        role: "maintenance".to_owned(),
        about: "here".to_owned(),
    };
    let there = || match world.ask(AbmQuery::Participants) {
        AbmAnswer::Participants(found) => {
            found.into_iter().map(|participant| String::from(participant.agent)).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    for who in ["a", "b", "c"] {
        world.run(register(who)).unwrap();
    }
    world.run(AbmCommand::RemoveParticipant { agent: agent("c") }).unwrap();
    world.1.set(50_000_000);
    world.run(register("b")).unwrap();
    assert_eq!(there(), ["a", "b"]);
    world.1.set(80_000_000);
    world.run(register("b")).unwrap();
    assert_eq!(there(), ["b"]);
}

#[test]
fn maintenance_is_merged_and_watched() {
    let world = World::new();
    assert_eq!(world.ask(AbmQuery::Maintenance), AbmAnswer::Maintenance(Box::default()));
    let update = MaintenanceUpdate {
        add_disabled_nodes: vec![NodeId::new("n").unwrap()],
        enable_auto_repair: Some(false),
        ..MaintenanceUpdate::default()
    };
    for _ in 0..2 {
        world.run(AbmCommand::UpdateMaintenance(update.clone())).unwrap();
        assert_eq!(world.revisions().maintenance, 1);
    }
    let mut want = MaintenanceConfig::default();
    want.merge(&update);
    assert_eq!(world.ask(AbmQuery::Maintenance), AbmAnswer::Maintenance(Box::new(want)));
    let add_cache_eviction =
        (0..2000).map(|n| (format!("{n:020}"), PresetName::new("default").unwrap())).collect();
    let huge = MaintenanceUpdate { add_cache_eviction, ..MaintenanceUpdate::default() };
    assert!(matches!(world.run(AbmCommand::UpdateMaintenance(huge)), Err(AbmError::BadArgument(_))));
}

#[test]
fn what_became_of_a_task_is_told_by_who_has_it() {
    use alba_core::wire::rpc::abm::{RunReport, RunState, TaskRecord};
    let world = World::new();
    let task = TaskName::new("gc/7").unwrap();
    let acquire = |who: &str| {
        let command = AbmCommand::AcquireLease { task: task.clone(), agent: agent(who), period: 100 };
        match world.run(command) {
            Ok(AbmOutcome::Lease(lease)) => lease.token,
            other => panic!("{other:?}"),
        }
    };
    let report = |token, state, done| {
        let report = RunReport { state, done, total: Some(9), bytes: 1 };
        world.run(AbmCommand::ReportTask { task: task.clone(), token, report })
    };
    let record = || -> Option<TaskRecord> {
        match world.ask(AbmQuery::Tasks(RangeQuery::all())) {
            AbmAnswer::Tasks(page) => page.items.into_iter().next(),
            other => panic!("{other:?}"),
        }
    };
    let failed = |reason: &str| RunState::Failed { reason: reason.to_owned() };
    world.1.set(1000);
    let first = acquire("a");
    report(first, RunState::Running, 1).unwrap();
    let begun = record().unwrap().started;
    assert!((1000..1010).contains(&begun), "{begun}");
    world.1.set(1050);
    report(first, RunState::Running, 2).unwrap();
    let found = record().unwrap();
    assert_eq!((found.started, found.report.done, found.reported >= 1050), (begun, 2, true));
    assert_eq!((found.succeeded, found.failures), (None, 0));
    report(first, failed(&"x".repeat(500)), 2).unwrap();
    let found = record().unwrap();
    assert_eq!((found.failed.unwrap().1.len(), found.failures), (300, 1));
    // The task changes hands: who had it is not believed any more.
    world.1.set(2000);
    let second = acquire("b");
    assert!(matches!(report(first, RunState::Succeeded, 3), Err(AbmError::LeaseMismatch { .. })));
    report(second, RunState::Succeeded, 3).unwrap();
    let found = record().unwrap();
    assert_eq!((found.agent, found.succeeded, found.failures), (agent("b"), Some(found.reported), 0));
    assert!(found.failed.is_some_and(|(at, _)| (1050..2000).contains(&at)), "the last failure stays known");
    let forget = || world.run(AbmCommand::ForgetTask { task: task.clone() });
    assert!(matches!(forget(), Err(AbmError::LeaseMismatch { .. })), "somebody has it");
    world.1.set(3000);
    forget().unwrap();
    assert_eq!((record(), world.ask(AbmQuery::Lease(task.clone()))), (None, AbmAnswer::Lease(None)));
}

#[test]
fn tasks_are_paused_by_name_and_watched() {
    use alba_core::wire::rpc::abm::PAUSED_MAX;
    let world = World::new();
    let pause =
        |name: &str, paused| world.run(AbmCommand::PauseTask { task: TaskName::new(name).unwrap(), paused });
    let paused = || match world.ask(AbmQuery::PausedTasks) {
        AbmAnswer::PausedTasks(names) => names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let revision = || match world.ask(AbmQuery::Revisions) {
        AbmAnswer::Revisions(revisions) => revisions.maintenance,
        other => panic!("{other:?}"),
    };
    assert_eq!((paused(), revision()), (vec![], 0));
    pause("gc", true).unwrap();
    pause("gc", true).unwrap();
    pause("scrub", true).unwrap();
    assert_eq!((paused(), revision()), (vec!["gc".to_owned(), "scrub".to_owned()], 2));
    pause("gc", false).unwrap();
    pause("gc", false).unwrap();
    assert_eq!((paused(), revision()), (vec!["scrub".to_owned()], 3));
    for n in 1..PAUSED_MAX {
        pause(&format!("t{n}"), true).unwrap();
    }
    assert!(pause("one more", true).is_err());
    assert_eq!(paused().len(), PAUSED_MAX);
}
