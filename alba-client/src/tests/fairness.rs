//! One client that asks for all there is must not be seen by another.

use std::sync::Arc;
use std::time::Duration;

use alba_core::env::Deadline;
use alba_core::env::spawn::AbortOnDrop;
use alba_core::preset::{Compression, Preset};
use alba_core::request::Request;

use super::backend::{Fixture, preset};
use super::*;
use crate::{ClientConfig, Slice};

/// Connections of the client that asks for all.
const HOGS: u64 = 64;

/// Bytes that each of them moves per request: so many that a few of them take all the room.
const BULK: usize = 1 << 20;

/// Small requests of each kind that are timed.
const TIMED: usize = 100;

fn fixture() -> Fixture {
    fixture_of(6, 6, preset(&[[2, 1, 3, 1]], 32 << 10, Compression::None), 2 << 20)
}

/// OSDs that take 10 ms to read and 40 to write, and room for `bytes` in flight, of which one client may have half.
fn fixture_of(osds: u32, nodes: usize, preset: Preset, bytes: u64) -> Fixture {
    let config = ClientConfig {
        max_bytes_in_flight: bytes,
        max_client_bytes_in_flight: bytes / 2,
        max_uploads: 16,
        ..ClientConfig::default()
    };
    let fixture = Fixture::with_config(osds, nodes, preset, config);
    for osd in fixture.backend.all() {
        osd.set(|faults| {
            (faults.delay, faults.write_delay) = (Duration::from_millis(10), Duration::from_millis(40))
        });
    }
    fixture
}

/// The slowest but one of a hundred times that `work` takes, done for one client.
async fn p99_of(fixture: &Fixture, work: impl AsyncFn(usize)) -> Duration {
    let clock = fixture.node.env().clock;
    let mut times = Vec::new();
    for number in 0..TIMED {
        let started = clock.now();
        Request::new(None, Some(HOGS + 1)).scope(work(number)).await;
        times.push(clock.now().since(started));
    }
    times.sort_unstable();
    times[TIMED - 2]
}

/// Of slices of 4 KiB in the first `bytes` of an object.
async fn slices(fixture: &Fixture, bytes: usize) -> Duration {
    p99_of(fixture, async |number| {
        let offset = i64::try_from(number * 4096 % bytes).unwrap();
        let wanted = vec![(name("sliced"), vec![Slice { offset, length: 4096 }])];
        fixture.client.read_slices(&ns(), wanted, Consistency::Cached, far(fixture)).await.unwrap();
    })
    .await
}

fn far(fixture: &Fixture) -> Deadline {
    fixture.node.env().deadline_in(Duration::from_secs(300))
}

/// Of the small requests of one client: slices, uploads, deletions.
async fn p99(fixture: &Fixture) -> [Duration; 3] {
    let client = &fixture.client;
    let slices = slices(fixture, BULK).await;
    let small = data(4096);
    let uploads = p99_of(fixture, async |number| {
        let mut source = BytesSource::new(small.clone());
        let (to, options) = (name(&format!("s{number}")), UploadOptions::default());
        client.upload(&ns(), &to, &mut source, options, far(fixture)).await.unwrap();
    })
    .await;
    let deletions = p99_of(fixture, async |number| {
        client.delete_object(&ns(), &name(&format!("s{number}")), true, far(fixture)).await.unwrap();
    })
    .await;
    [slices, uploads, deletions]
}

/// Uploads, whole gets and large slices without end, each connection with one request at a time.
fn hogs(fixture: &Fixture, bytes: &Bytes) -> Vec<AbortOnDrop> {
    let env = fixture.node.env();
    (0..HOGS)
        .map(|number| {
            let (client, env, bytes) = (fixture.client.clone(), env.clone(), bytes.clone());
            let spawn = Arc::clone(&env.spawn);
            let work = async move {
                for round in 0.. {
                    let deadline = env.deadline_in(Duration::from_secs(300));
                    let work = async {
                        match number % 3 {
                            0 => {
                                let mut source = BytesSource::new(bytes.clone());
                                let to = name(&format!("hog-{number}-{round}"));
                                let options = UploadOptions::default();
                                client.upload(&ns(), &to, &mut source, options, deadline).await.unwrap();
                            }
                            1 => {
                                let mut sink = MemorySink::new();
                                let from = name("sliced");
                                client
                                    .download(&ns(), &from, Consistency::Cached, &mut sink, deadline)
                                    .await
                                    .unwrap();
                            }
                            _ => {
                                let length = i32::try_from(BULK).unwrap();
                                let wanted = vec![(name("sliced"), vec![Slice { offset: 0, length }])];
                                client
                                    .read_slices(&ns(), wanted, Consistency::Cached, deadline)
                                    .await
                                    .unwrap();
                            }
                        }
                    };
                    Request::new(None, Some(number)).scope(work).await;
                }
            };
            spawn.spawn("hog", Box::pin(work)).abort_on_drop()
        })
        .collect()
}

#[test]
fn small_requests_do_not_see_a_client_that_asks_for_everything() {
    let fixture = fixture();
    let bytes = data(BULK);
    let (alone, beside, waiting) = fixture.run(async {
        put(&fixture, "sliced", &bytes).await.unwrap();
        let alone = p99(&fixture).await;
        let running = hogs(&fixture, &bytes);
        // Until all the room is taken and many wait for it.
        let clock = fixture.node.env().clock;
        clock.sleep_until(clock.now().plus(Duration::from_secs(1))).await;
        let waiting = fixture.client.engine.waiting();
        let beside = p99(&fixture).await;
        drop(running);
        (alone, beside, waiting)
    });
    assert!(waiting >= 32, "only {waiting} requests waited: that is no load");
    for ((what, alone), beside) in ["slices", "uploads", "deletions"].iter().zip(alone).zip(beside) {
        println!("fairness: p99 of 4 KiB {what} alone {alone:?}, beside {HOGS} busy connections {beside:?}");
        assert!(beside <= alone * 2, "{what}: {alone:?} alone, {beside:?} beside others");
    }
}

/// What goes around a slow OSD reads from five others instead. It is as small as it was, and does not wait behind uploads.
#[test]
fn slices_around_a_slow_osd_do_not_wait_for_a_client_that_asks_for_everything() {
    let policy = preset(&[[5, 4, 7, 3]], 64 << 10, Compression::None);
    let fixture = fixture_of(12, 4, policy, 8 << 20);
    // All of it is in the first fragment.
    let first = 64 << 10;
    let bytes = data(BULK);
    let clock = fixture.node.env().clock;
    let (alone, beside, waiting, rescued) = fixture.run(async {
        put(&fixture, "sliced", &bytes).await.unwrap();
        let manifest = fixture.backend.stored(&name("sliced")).unwrap();
        let slow = manifest.chunks[0].fragments[0].location.unwrap();
        fixture.backend.osd(slow).set(|faults| faults.delay = Duration::from_secs(5));
        // Until it is known to be slow.
        slices(&fixture, first).await;
        let alone = slices(&fixture, first).await;
        let running = hogs(&fixture, &bytes);
        clock.sleep_until(clock.now().plus(Duration::from_secs(1))).await;
        let waiting = fixture.client.engine.waiting();
        let before = fixture.client.statistics().chunks_rescued;
        let beside = slices(&fixture, first).await;
        let rescued = fixture.client.statistics().chunks_rescued - before;
        drop(running);
        (alone, beside, waiting, rescued)
    });
    println!(
        "fairness: p99 of 4 KiB around a slow OSD alone {alone:?}, beside {HOGS} busy connections {beside:?}"
    );
    assert!(waiting >= 32, "only {waiting} requests waited: that is no load");
    assert!(rescued >= 90, "only {rescued} slices went around the slow OSD: nothing is shown");
    assert!(beside <= alone * 2, "{alone:?} alone, {beside:?} beside others");
}

/// Those that ask for everything share it: none gets much more than another.
#[test]
fn busy_clients_share_alike_whatever_they_ask_for_at_once() {
    let fixture = fixture();
    let bytes = data(BULK);
    let env = fixture.node.env();
    // One with 24 uploads at a time, two with six each: all of them want more than they can have.
    let clients = |number: u64| if number < 24 { 0 } else { number % 2 + 1 };
    let counts = Arc::new(std::sync::Mutex::new(std::collections::BTreeMap::<u64, usize>::new()));
    fixture.run(async {
        let mut running = Vec::new();
        for number in 0..36 {
            let (client, env, bytes, counts) =
                (fixture.client.clone(), env.clone(), bytes.clone(), counts.clone());
            let spawn = Arc::clone(&env.spawn);
            let work = async move {
                for round in 0.. {
                    let deadline = env.deadline_in(Duration::from_secs(300));
                    let mut source = BytesSource::new(bytes.clone());
                    let to = name(&format!("o-{number}-{round}"));
                    let options = UploadOptions::default();
                    let namespace = ns();
                    let upload = client.upload(&namespace, &to, &mut source, options, deadline);
                    Request::new(None, Some(clients(number))).scope(upload).await.unwrap();
                    *counts.lock().unwrap().entry(clients(number)).or_default() += 1;
                }
            };
            running.push(spawn.spawn("hog", Box::pin(work)).abort_on_drop());
        }
        env.clock.sleep_until(env.clock.now().plus(Duration::from_secs(6))).await;
        drop(running);
    });
    let counts = counts.lock().unwrap().clone();
    let least = counts.values().min().copied().unwrap();
    let most = counts.values().max().copied().unwrap();
    println!(
        "fairness: objects stored by one with 24 uploads at a time, and by two with six each: {counts:?}"
    );
    assert_eq!(counts.len(), 3);
    // What is begun is finished: a few whole uploads apart.
    assert!(least >= 20 && most <= least + least / 4, "{counts:?}");
}
