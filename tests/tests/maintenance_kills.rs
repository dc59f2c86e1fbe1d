//! Agents are killed, stopped beyond their leases and run side by side at every step of every task: nothing is lost, nothing is
//! leaked, and what was to be done is done. Garbage collection and clean-up: `maintenance.rs`; moves: `rebalance_kills.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::cell::{Cell, RefCell};
use std::time::Duration;

use alba_core::env::osd::OsdUpdate;
use alba_core::failpoint::Step;
use alba_core::wire::rpc::abm::{AbmAnswer, AbmCommand, AbmQuery, WorkItem, WorkRecord};
use alba_tests::agents::{At, Once, Scene, trial};
use alba_tests::upkeep::PATIENCE;
use alba_tests::wait;
use alba_tests::ward::{NS, SIZES, Ward, name};
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_alba-under-test");

const LATER: Duration = Duration::from_secs(3600);

/// After which OSDs count as lost where that is tried.
const SILENCE: Duration = Duration::from_secs(6);

/// One node's two OSDs are drained in turn, whichever has the first object; a fragment there that is to be copied is gone.
async fn heals(label: &str, steps: Vec<At>) {
    let ward = Ward::start(label, Ward::options(PROGRAM, 3, 2), &SIZES).await;
    let repair = Once::maintenance(&ward.cluster, "repair");
    for (number, at) in steps.into_iter().enumerate() {
        let At(step, _) = at;
        if step == Step::RepairTried {
            ward.auto_repair_after(SILENCE);
        }
        // Too few of the first object's fragments are left for a while.
        let lost = if step == Step::RepairFailed { 2 } else { 1 };
        let gone = RefCell::new(Vec::new());
        let more = async || {
            let drained = ward.drain_the_first_object().await;
            let taken = ward.take_fragments(&name(0), drained, lost).await;
            gone.borrow_mut().extend(taken);
            if step == Step::RepairTried {
                // What nobody told of for half of it is tried: the time itself is what has to pass.
                tokio::time::sleep(SILENCE / 2 + Duration::from_secs(1)).await;
            }
        };
        let finish = async || {
            if step == Step::RepairFailed {
                for (device, key, value) in gone.take() {
                    device.apply(OsdUpdate::Set(key, value)).await;
                }
            }
            repair.whole(&ward.cluster);
        };
        trial(&ward.cluster, &repair, at, number % 2 == 1, more, finish).await;
        if step == Step::RepairTried {
            ward.auto_repair_after(LATER);
        }
        ward.check(&at.text()).await;
    }
    ward.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repair_may_end_at_every_step() {
    heals("kill-repair", Scene::Healing.steps().into_iter().map(At::from).collect()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_update_of_an_object_may_end_at_every_step() {
    let mut steps: Vec<At> = Scene::Updating.steps().into_iter().map(At::from).collect();
    // In the middle of an object of several chunks, and of several objects.
    steps.extend([At(Step::UpdateStoring, 3), At(Step::UpdateStored, 4)]);
    heals("kill-update", steps).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_and_what_is_stored_anew_may_end_at_every_step() {
    let ward = Ward::start("kill-jobs", Ward::options(PROGRAM, 3, 2), &SIZES).await;
    let work = Once::maintenance(&ward.cluster, "work");
    let jobs = RefCell::new(Vec::new());
    for (number, step) in Scene::Anew.steps().into_iter().enumerate() {
        let command = match step {
            Step::JobObject | Step::JobPage | Step::JobAdvanced => "verify-namespace",
            _ => "rewrite-namespace",
        };
        let more = async || {
            let mut jobs = jobs.borrow_mut();
            let job = format!("job-{}", jobs.len());
            ward.cluster.alba(&[command, NS, "--job-name", &job, "--factor", "2"]).unwrap();
            jobs.push(job);
        };
        let finish = async || {
            for job in jobs.borrow().iter() {
                wait::until("the job is finished", PATIENCE, || {
                    let progress = ward.cluster.alba(&["show-job-progress", job]).unwrap();
                    if progress["finished"] == json!(true) {
                        return Ok(());
                    }
                    work.run(&ward.cluster);
                    Err(progress.to_string())
                });
            }
        };
        trial(&ward.cluster, &work, step, number % 2 == 1, more, finish).await;
        for job in jobs.take() {
            let found = ward.cluster.alba(&["show-job-progress", &job]).unwrap();
            if command == "verify-namespace" {
                // Each object is counted once, however often a page was begun.
                assert_eq!(found["count"], json!(SIZES.len()), "{step:?}: {found}");
                assert_eq!(found["fragments_detected_missing"], json!(0), "{found}");
                assert_eq!(found["fragments_checksum_mismatch"], json!(0), "{found}");
            }
            ward.cluster.alba(&["clear-job-progress", &job]).unwrap();
        }
        ward.check(step.name()).await;
    }
    ward.end().await;
}

/// The work queue.
async fn queue(ward: &Ward) -> Vec<WorkRecord> {
    let query = AbmQuery::Work { after: None, max: 100 };
    match ward.client.directory().query(query, ward.deadline()).await.unwrap() {
        AbmAnswer::Work(page) => page.items,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_work_queue_may_be_left_at_every_step() {
    let ward = Ward::start("kill-work", Ward::options(PROGRAM, 3, 4), &SIZES).await;
    let [work, repair] = ["work", "repair"].map(|task| Once::maintenance(&ward.cluster, task));
    let leaving = Cell::new(0);
    let rewrite = async || {
        let mut items = Vec::new();
        for object in 0..SIZES.len() {
            let object = ward.stored_object(&name(object)).await.manifest.object_id;
            items.push(WorkItem::RewriteObject { namespace: ward.namespace, object });
        }
        ward.client.directory().command(AbmCommand::AddWork(items), ward.deadline()).await.unwrap();
    };
    // Another OSD leaves, unless one is about to.
    let leave = async || {
        let lets_go = |record: &WorkRecord| {
            matches!(
                record.item,
                WorkItem::WaitUntilRepaired { .. }
                    | WorkItem::CleanupNamespaceOsd { .. }
                    | WorkItem::CleanupOsdNamespace { .. }
            )
        };
        if queue(&ward).await.iter().any(lets_go) {
            return;
        }
        // Three of the four on each node may go.
        let index = leaving.get() % 3 * 4 + leaving.get() / 3;
        assert!(leaving.get() < 9, "too few OSDs are left");
        leaving.set(leaving.get() + 1);
        let long_id = &ward.cluster.ready.osds[index].long_id;
        ward.cluster.alba(&["decommission-osd", "--long-id", long_id]).unwrap();
        wait::until_async("the namespace lets go of the OSD", PATIENCE, async || {
            let queue = queue(&ward).await;
            if queue.iter().any(lets_go) { Ok(()) } else { Err(format!("{queue:?}")) }
        })
        .await;
        repair.whole(&ward.cluster);
    };
    let empty = async || {
        wait::until_async("the queue is empty", PATIENCE, async || {
            work.run(&ward.cluster);
            let queue = queue(&ward).await;
            if queue.is_empty() { Ok(()) } else { Err(format!("{queue:?}")) }
        })
        .await;
    };
    for (number, step) in Scene::Queue.steps().into_iter().enumerate() {
        let beside = number % 2 == 1;
        if let Step::WorkClaimed | Step::WorkHandled | Step::WorkReported = step {
            trial(&ward.cluster, &work, step, beside, rewrite, empty).await;
        } else {
            trial(&ward.cluster, &work, step, beside, leave, empty).await;
        }
        ward.check(step.name()).await;
    }
    let found = ward.cluster.alba(&["list-decommissioning-osds"]).unwrap();
    assert_eq!(found, json!([]));
    ward.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scrub_may_end_at_every_step() {
    for (number, step) in Scene::Scrubbing.steps().into_iter().enumerate() {
        let mut options = Ward::options(PROGRAM, 3, 2);
        // The first run reads everything.
        options.env.push(("ALBA_MAINTENANCE__SCRUB_PERIOD".to_owned(), "10m".to_owned()));
        options.env.push(("ALBA_MAINTENANCE__TASKS__SCRUB__ENABLED".to_owned(), "false".to_owned()));
        let ward = Ward::start("kill-scrub", options, &SIZES).await;
        let [scrub, work] = ["scrub", "work"].map(|task| Once::maintenance(&ward.cluster, task));
        let more = async || {
            for object in 0..3 {
                ward.spoil_a_fragment(&name(object)).await;
            }
        };
        let finish = async || {
            scrub.whole(&ward.cluster);
            work.whole(&ward.cluster);
        };
        trial(&ward.cluster, &scrub, step, number % 2 == 1, more, finish).await;
        ward.check(step.name()).await;
        let found = ward.verify(step.name());
        assert_eq!(found["fragments_checksum_mismatch"], json!(0), "{step:?}: {found}");
        ward.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trash_and_those_that_look_may_end_at_every_step() {
    let ward = Ward::start("kill-trash", Ward::options(PROGRAM, 3, 2), &SIZES).await;
    let keep = |days: &str| {
        ward.cluster.alba(&["update-maintenance-config", "--auto-cleanup-deleted-namespaces", days]).unwrap();
    };
    for (number, step) in Scene::Looking.steps().into_iter().enumerate() {
        let task = step.name().split('.').next().unwrap();
        let once = Once::maintenance(&ward.cluster, task);
        let more = async || {
            if task == "trash" {
                keep("7");
                ward.cluster.alba(&["create-namespace", "gone", "ward"]).unwrap();
                ward.cluster.alba(&["delete-namespace", "gone"]).unwrap();
                keep("0");
            }
        };
        trial(&ward.cluster, &once, step, number % 2 == 1, more, async || once.whole(&ward.cluster)).await;
        ward.only_namespace();
        ward.check(step.name()).await;
    }
    ward.end().await;
}
