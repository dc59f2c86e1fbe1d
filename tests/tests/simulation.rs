//! Seeded runs of a whole cluster over simulated time, network and disks.
//!
//! `ALBA_SIM_SEED=7` repeats one run, `ALBA_SIM_SEEDS=500` makes more of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::time::Duration;

use alba_tests::sim::upkeep::{collection_beside_a_silent_osd, work_beside_long_items};
use alba_tests::sim::{Outcome, Plan, Sabotage, run};

/// Seeds of an ordinary run.
const SEEDS: u64 = 12;

const FAULTY: Plan =
    Plan { clients: 3, operations: 300, faults: true, agents: 0, repair: false, movers: 0, sabotage: None };

/// With maintenance going on all the time.
const MAINTAINED: Plan = Plan { agents: 2, ..FAULTY };

/// With everything at once: agents that also repair, movers, and OSDs that come and go for good.
const LIVELY: Plan = Plan { repair: true, movers: 2, ..MAINTAINED };

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match number("ALBA_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("ALBA_SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    }
}

/// So many seeds, unless more are asked for.
fn most(usual: usize) -> usize {
    if std::env::var_os("ALBA_SIM_SEEDS").is_some() { usize::MAX } else { usual }
}

#[test]
fn without_faults_everything_succeeds() {
    let outcome = run(1, Plan { faults: false, ..FAULTY });
    let counts = outcome.counts;
    assert_eq!(counts.failed_reads, 0, "{outcome:?}");
    // Each client may have been at its last operation when the run ended.
    assert!(counts.acknowledged + FAULTY.clients >= counts.attempts, "{outcome:?}");
    assert!(outcome.objects > 5, "{outcome:?}");
}

#[test]
#[should_panic(expected = "fragments needed")]
fn the_checker_sees_lost_fragments() {
    run(1, Plan { faults: false, sabotage: Some(Sabotage::Disks), ..FAULTY });
}

#[test]
#[should_panic(expected = "NamespaceMoved")]
fn a_group_that_lost_its_state_never_says_absent() {
    run(1, Plan { faults: false, sabotage: Some(Sabotage::Metadata), ..FAULTY });
}

#[test]
fn same_seed_gives_the_same_trace() {
    let one = run(3, FAULTY);
    assert_eq!(run(3, FAULTY), one);
    assert_ne!(run(4, FAULTY).hash, one.hash);
}

/// Slow uploads, retries, overwrites and deletes while epochs change and agents die: no fragment that a manifest names is ever
/// deleted, or the object would not read back; and in the end nothing is left that no manifest names.
#[test]
fn maintenance_deletes_all_that_nothing_names_and_nothing_else() {
    let outcomes: Vec<Outcome> = seeds()
        .into_iter()
        .take(most(6))
        .map(|seed| {
            let outcome = run(seed, MAINTAINED);
            println!("seed {seed}: {outcome:?}");
            outcome
        })
        .collect();
    if outcomes.len() > 1 {
        assert!(outcomes.iter().map(|outcome| outcome.cleaned).sum::<u64>() > 100, "{outcomes:?}");
        assert!(outcomes.iter().map(|outcome| outcome.faults.agent_crashes).sum::<u32>() > 0);
    }
}

/// The same while objects are repaired and moved, and OSDs are away for long, drained, decommissioned, lost and added: all end at
/// their best policy, and nothing is left over.
#[test]
fn repairs_and_moves_lose_nothing_and_leave_nothing() {
    let outcomes: Vec<Outcome> = seeds()
        .into_iter()
        .take(most(4))
        .map(|seed| {
            let outcome = run(seed, LIVELY);
            println!("seed {seed}: {outcome:?}");
            outcome
        })
        .collect();
    if outcomes.len() > 3 {
        let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
        for (what, count) in [
            ("cleaned up", sum(|o| o.cleaned)),
            ("repaired", sum(|o| o.repaired)),
            ("moved", sum(|o| o.moved)),
            ("agent crashes", sum(|o| o.faults.agent_crashes.into())),
            ("mover crashes", sum(|o| o.faults.mover_crashes.into())),
            ("outages", sum(|o| o.faults.outages.into())),
            ("OSDs that leave", sum(|o| (o.faults.decommissions + o.faults.losses + o.faults.drains).into())),
        ] {
            assert!(count > 0, "nothing of this happened in these runs: {what}; {outcomes:?}");
        }
    }
}

/// More items that take hours than an agent has hands, and some that hang: what takes a moment is done all the same, and each of the
/// long ones has its turns.
#[test]
fn work_of_hours_holds_up_no_other_work() {
    let turns = work_beside_long_items(1, 60, 10, 40);
    assert_eq!(turns.short.len(), 40, "{turns:?}");
    assert!(turns.short.iter().all(|took| *took < Duration::from_secs(60)), "{turns:?}");
    assert!(turns.long.len() == 60 && turns.long.iter().all(|turns| *turns > 0), "{turns:?}");
}

/// An OSD that is asked again for each namespace costs half a minute each time.
#[test]
fn garbage_collection_does_not_wait_for_a_silent_osd_in_each_namespace() {
    let (took, failed) = collection_beside_a_silent_osd(1, 40);
    // Each of the 16 lanes has to say so.
    assert!(failed.len() == 16 && failed.iter().any(|error| error.contains("OSD")), "{failed:?}");
    assert!(took < Duration::from_secs(240), "{took:?}: {failed:?}");
}

#[test]
fn runs_with_agents_repeat_too() {
    assert_eq!(run(5, MAINTAINED), run(5, MAINTAINED));
    assert_eq!(run(6, LIVELY), run(6, LIVELY));
}

#[test]
#[should_panic(expected = "Missing")]
fn the_checker_sees_moves_that_commit_before_they_store() {
    let wrong = Plan { movers: 1, sabotage: Some(Sabotage::CommitBeforeStoring), ..MAINTAINED };
    for seed in 1..=5 {
        run(seed, Plan { faults: false, ..wrong });
    }
}

#[test]
#[should_panic(expected = "Leaked")]
fn the_checker_sees_moves_of_what_garbage_collection_cannot_find() {
    let wrong = Plan { movers: 2, sabotage: Some(Sabotage::MoveWithoutTag), ..MAINTAINED };
    for seed in 1..=5 {
        run(seed, Plan { faults: false, ..wrong });
    }
}

#[test]
fn the_checker_sees_garbage_collected_before_its_epoch_is_closed() {
    // One of these seeds has an upload between the scan and the closing. Its readers miss what was deleted, or, where enough is
    // left to read, fsck does.
    let plan = Plan { faults: false, sabotage: Some(Sabotage::ScanBeforeClosing), ..MAINTAINED };
    let seen = (1..=20).find_map(|seed| std::panic::catch_unwind(|| run(seed, plan)).err());
    let seen = seen.expect("nobody notices");
    let text = seen.downcast_ref::<String>().unwrap();
    assert!(text.contains("does not have it") || text.contains("wrong: Missing"), "{text}");
}

#[test]
fn acknowledged_objects_survive_crashes_and_a_bad_network() {
    let outcomes: Vec<Outcome> = seeds()
        .into_iter()
        .map(|seed| {
            let outcome = run(seed, FAULTY);
            println!("seed {seed}: {outcome:?}");
            outcome
        })
        .collect();
    // The runs are worth something: most of what is attempted succeeds, and all kinds of faults happen.
    if outcomes.len() >= 10 {
        let sum = |of: fn(&Outcome) -> u32| outcomes.iter().map(of).sum::<u32>();
        assert!(sum(|o| o.counts.acknowledged) * 2 > sum(|o| o.counts.attempts));
        assert!(sum(|o| o.counts.reads) > sum(|o| o.counts.failed_reads));
        for (kind, count) in [
            ("OSD crashes", sum(|o| o.faults.osd_crashes)),
            ("metadata crashes", sum(|o| o.faults.metadata_crashes)),
            ("client crashes", sum(|o| o.faults.client_crashes)),
            ("stalls", sum(|o| o.faults.stalls)),
            ("link faults", sum(|o| o.faults.link_faults)),
        ] {
            assert!(count > 0, "no {kind} in all these runs");
        }
    }
}
