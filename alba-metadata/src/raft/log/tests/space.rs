//! Full, slow and failing disks; bounds.

use alba_core::env::sim::disk::DiskOperation;

use super::*;

/// Room for seven segments.
const CAPACITY: u64 = 7 * 12 * 4096;

async fn pause(node: &SimNode, time: Duration) {
    let clock = node.env().clock;
    clock.sleep_until(clock.now().plus(time)).await;
}

/// Appends until there is no space. Gives how many there are.
async fn fill(node: &SimNode, store: &mut LogStore) -> u64 {
    let mut refused = false;
    for index in 0..1_000 {
        pause(node, Duration::from_secs(2)).await;
        let room = store.room_for(3_000);
        refused |= !room;
        if let Err(error) = store.blocking_append([entry(1, index, 3_000)]).await {
            assert!(error.to_string().contains("no disk space"), "{error}");
            assert!(refused, "it should have been told before");
            return index;
        }
    }
    panic!("it never was full")
}

#[test]
fn a_full_disk_is_told_before_and_votes_go_on() {
    let disk = SimDiskDevice::new(1, CAPACITY);
    let count = run(&disk, small(), async |node, mut store, _| {
        let count = fill(node, &mut store).await;
        assert!(count > 20, "{count} entries");
        assert!(matches!(store.health(), Health::NoSpace(_)));
        assert!(!store.room_for(0));
        for term in 2..7 {
            store.save_vote(&vote(term, 1)).await.unwrap();
        }
        store.truncate(id(1, count - 2)).await.unwrap();
        assert!(store.blocking_append([entry(1, count - 2, 3_000)]).await.is_err(), "still full, and alive");
        assert_eq!(all(&store).await.len() as u64, count - 2);
        count
    });
    // Also when it is opened full.
    run(&disk, small(), async |node, mut store, found| {
        assert_eq!((found.vote, found.entries), (Some(vote(6, 1)), count - 2));
        pause(node, Duration::from_secs(5)).await;
        assert!(!store.room_for(0));
        let mut health = store.watch_health();
        store.purge(id(1, count - 5)).await.unwrap();
        health.wait_for(|health| *health == Health::Ok).await.unwrap();
        assert!(store.room_for(3_000));
        store.blocking_append([entry(1, count - 2, 3_000)]).await.unwrap();
    });
}

#[test]
fn it_goes_on_by_itself_when_space_returns() {
    let disk = SimDiskDevice::new(1, CAPACITY);
    run(&disk, small(), async |node, mut store, _| {
        let count = fill(node, &mut store).await;
        disk.set_capacity(1 << 30);
        store.watch_health().wait_for(|health| *health == Health::Ok).await.unwrap();
        store.blocking_append([entry(1, count, 3_000)]).await.unwrap();
    });
}

#[test]
fn votes_without_end_on_a_full_disk_are_refused_and_it_opens_again() {
    let disk = SimDiskDevice::new(1, CAPACITY);
    run(&disk, small(), async |node, mut store, _| {
        fill(node, &mut store).await;
        let mut last = 0;
        for term in 2..200 {
            if store.save_vote(&vote(term, 1)).await.is_err() {
                break;
            }
            last = term;
        }
        assert!((10..199).contains(&last), "{last} votes");
        assert!(matches!(store.health(), Health::NoSpace(_)), "refusing is no failure");
    });
    run(&disk, small(), async |_, mut store, found| {
        assert!(found.vote.is_some());
        store.save_vote(&vote(1_000, 1)).await.unwrap();
    });
}

#[test]
fn a_failed_sync_fails_the_log_and_reopening_recovers() {
    for operation in [DiskOperation::Sync, DiskOperation::Write] {
        let disk = SimDiskDevice::new(1, 1 << 30);
        run(&disk, small(), async |node, mut store, _| {
            store.blocking_append([entry(1, 0, 100)]).await.unwrap();
            pause(node, Duration::from_secs(1)).await;
            disk.inject(operation, 0, 1, io::ErrorKind::Other);
            assert!(store.blocking_append([entry(1, 1, 100)]).await.is_err());
            assert!(matches!(store.health(), Health::Failed(_)));
            let syncs = disk.syncs();
            assert!(store.blocking_append([entry(1, 2, 100)]).await.is_err());
            assert!(store.save_vote(&vote(3, 3)).await.is_err());
            assert!(store.purge(id(1, 0)).await.is_err());
            assert!(!store.room_for(0));
            assert_eq!(disk.syncs(), syncs, "nothing is tried again");
            assert!(store.close(deadline(node)).await);
            let (mut store, _) = open(node, &disk, small()).await.unwrap();
            let next = store.get_log_state().await.unwrap().last_log_id.unwrap().index + 1;
            store.blocking_append([entry(2, next, 100)]).await.unwrap();
            assert_eq!(all(&store).await[0], entry(1, 0, 100));
        });
    }
}

#[test]
fn a_disk_that_does_not_answer_fails_the_log() {
    let disk = SimDiskDevice::new(1, 1 << 30);
    let simulation = Simulation::new(1);
    let node = simulation.node(1);
    let main = async {
        // Opening has a limit of its own, larger.
        let slow = disk.open_slow(node.env().clock, Duration::from_secs(3));
        let limits = LogLimits { stall_after: Duration::from_secs(5), ..small() };
        let opened = LogStore::open(node.env(), Arc::new(slow), limits).await;
        assert_eq!(opened.err(), Some(LogError::Stalled));
        let slow = disk.open_slow(node.env().clock, Duration::from_millis(900));
        let limits = LogLimits { stall_after: Duration::from_secs(1), ..small() };
        let opened = LogStore::open(node.env(), Arc::new(slow), limits).await;
        assert_eq!(opened.err(), Some(LogError::Stalled));
        let slow = disk.open_slow(node.env().clock, Duration::from_millis(100));
        let limits = LogLimits { stall_after: Duration::from_millis(500), ..small() };
        let (mut store, _) = LogStore::open(node.env(), Arc::new(slow), limits).await.unwrap();
        store.blocking_append([entry(1, 0, 100)]).await.unwrap();
        assert_eq!(store.health(), Health::Ok);
    };
    simulation.run(LIMIT, main).unwrap();
}

#[test]
fn what_arrives_during_a_sync_shares_the_next_and_the_queue_is_bounded() {
    let disk = SimDiskDevice::new(1, 1 << 30);
    let simulation = Simulation::new(1);
    let node = simulation.node(1);
    let main = async {
        let slow = disk.open_slow(node.env().clock, Duration::from_millis(5));
        // What may be written together finds its space at once.
        let limits = LogLimits { segment_bytes: 1 << 20, ..small() };
        let (store, _) = LogStore::open(node.env(), Arc::new(slow), limits).await.unwrap();
        pause(&node, Duration::from_secs(2)).await;
        let before = disk.syncs();
        // 100 appends of 300 bytes fit into the queue together.
        let appends = (0..100).map(|index| {
            let mut store = store.clone();
            async move { store.blocking_append([entry(1, index, 300)]).await }
        });
        for result in join_all(appends.collect()).await {
            result.unwrap();
        }
        let syncs = disk.syncs() - before;
        assert!(syncs < 15, "{syncs} syncs of 100 appends");
        // Of large ones not more than the bound wait.
        let appends = (100..140).map(|index| {
            let mut store = store.clone();
            async move { store.blocking_append([entry(1, index, 6_000)]).await }
        });
        let watched = async {
            let mut most = 0;
            for _ in 0..2_000 {
                pause(&node, Duration::from_millis(1)).await;
                let state = store.open.shared.state();
                most = most.max(state.queue.iter().flat_map(|item| item.lens()).sum::<u64>());
            }
            most
        };
        let (results, most) = tokio::join!(join_all(appends.collect()), watched);
        assert!(results.iter().any(Result::is_ok));
        assert!(most <= 64 << 10 && most > 10_000, "{most} bytes waited");
    };
    simulation.run(LIMIT, main).unwrap();
}

#[test]
fn answers_are_bounded_and_give_at_least_one_entry() {
    let disk = SimDiskDevice::new(1, 1 << 30);
    let limits = LogLimits { answer_bytes: 7_000, ..small() };
    run(&disk, limits, async |_, mut store, _| {
        for index in 0..30 {
            let len = if index == 10 { 20_000 } else { 2_000 };
            store.blocking_append([entry(1, index, len)]).await.unwrap();
        }
        let mut next = 0;
        while next < 30 {
            let found = store.limited_get_log_entries(next, 30).await.unwrap();
            assert!((1..=3).contains(&found.len()), "{} entries", found.len());
            assert_eq!(found[0].log_id.index, next);
            next += found.len() as u64;
        }
        assert!(store.limited_get_log_entries(30, 31).await.unwrap().is_empty());
    });
}

#[test]
fn what_does_not_fit_or_is_not_next_is_refused() {
    let disk = SimDiskDevice::new(1, 1 << 30);
    run(&disk, small(), async |_, mut store, _| {
        assert!(store.blocking_append([entry(1, 0, 10 * 4096)]).await.is_err());
        let most = usize::try_from(store.payload_max()).unwrap();
        store.blocking_append([entry(1, 0, most)]).await.unwrap();
        assert!(store.blocking_append([entry(1, 2, 1)]).await.is_err());
        assert!(store.blocking_append([entry(1, 1, 1), entry(1, 3, 1)]).await.is_err());
        store.blocking_append([entry(1, 1, 1)]).await.unwrap();
        assert_eq!(all(&store).await.len(), 2);
    });
}

#[test]
fn segments_are_used_again() {
    let disk = SimDiskDevice::new(1, 1 << 30);
    run(&disk, small(), async |node, mut store, _| {
        for index in 0..400 {
            store.blocking_append([entry(1, index, 3_000)]).await.unwrap();
            if index % 20 == 19 {
                store.purge(id(1, index - 5)).await.unwrap();
            }
        }
        pause(node, Duration::from_secs(2)).await;
        let names = disk.names();
        assert!(names.len() <= 11, "{names:?}");
        let generations = store.open.shared.state().spares.iter().map(|spare| spare.generation).max();
        assert!(generations > Some(3), "{generations:?}");
    });
    // Restarts without work don't pile segments up.
    for _ in 0..20 {
        run(&disk, small(), async |_, mut store, found| {
            assert_eq!(found.entries, 5);
            store.save_vote(&vote(2, 2)).await.unwrap();
        });
    }
    assert!(disk.names().len() <= 11, "{:?}", disk.names());
}
