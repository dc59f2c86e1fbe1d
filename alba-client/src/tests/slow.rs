//! Slow OSDs: how long slices take beside them, in simulated time, and what that costs where all is well.

use std::time::Duration;

use alba_core::preset::Compression;

use super::backend::{Fixture, preset};
use super::*;
use crate::{ClientConfig, Slice};

/// Twelve OSDs on four nodes, fragments of 64 KiB, each read of an OSD takes 1 to 2 ms.
fn fixture(config: ClientConfig) -> Fixture {
    let fixture = Fixture::with_config(12, 4, preset(&[[5, 4, 9, 3]], 64 << 10, Compression::None), config);
    for osd in fixture.backend.all() {
        osd.set(|f| (f.delay, f.jitter) = (Duration::from_millis(1), Duration::from_millis(1)));
    }
    fixture
}

const OBJECTS: u32 = 24;
const SIZE: usize = 3 * 5 * (64 << 10);

async fn fill(fixture: &Fixture) -> Bytes {
    let bytes = data(SIZE);
    for i in 0..OBJECTS {
        put(fixture, &format!("o{i}"), &bytes).await.unwrap();
    }
    settle(fixture).await;
    bytes
}

/// Slices of 4 KiB, one after the other, of all objects and places; gives what each took.
async fn slices(fixture: &Fixture, bytes: &Bytes, count: u32) -> Vec<Duration> {
    let mut took = Vec::new();
    let pages = SIZE / 4096;
    for i in 0..count {
        let page = usize::try_from(i).unwrap() * 7919 % pages;
        let from = page * 4096;
        let request = vec![(
            name(&format!("o{}", i % OBJECTS)),
            vec![Slice { offset: i64::try_from(from).unwrap(), length: 4096 }],
        )];
        let started = fixture.simulation.now();
        let read = fixture
            .client
            .read_slices(&ns(), request, Consistency::Cached, fixture.deadline())
            .await
            .unwrap();
        took.push(fixture.simulation.now().since(started));
        assert_eq!(read.data.concat(), bytes[from..from + 4096]);
    }
    took
}

/// Reads for a second of simulated time: what happens in it does not count.
async fn first_second(fixture: &Fixture, bytes: &Bytes) {
    let started = fixture.simulation.now();
    while fixture.simulation.now().since(started) < Duration::from_secs(1) {
        slices(fixture, bytes, 10).await;
    }
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

#[test]
fn beside_a_slow_osd_the_p99_of_slices_is_at_most_twice_that_without() {
    let fixture = fixture(ClientConfig::default());
    fixture.run(async {
        let bytes = fill(&fixture).await;
        first_second(&fixture, &bytes).await;
        let well = p99(slices(&fixture, &bytes, 3000).await);
        for delay in [Duration::from_millis(50), Duration::from_secs(1), Duration::from_secs(100_000)] {
            let slow = fixture.backend.osd(osd(3));
            slow.set(|f| f.delay = delay);
            first_second(&fixture, &bytes).await;
            let beside = p99(slices(&fixture, &bytes, 3000).await);
            assert!(beside <= well * 2, "{beside:?} beside {delay:?}, {well:?} without");
            println!("p99 {well:?} without, {beside:?} beside {delay:?}");
            slow.set(|f| f.delay = Duration::from_millis(1));
            // Until it is known to be well again: looked at, and where it was taken out of use, probed.
            fixture
                .node
                .env()
                .clock
                .sleep_until(fixture.simulation.now().plus(Duration::from_secs(30)))
                .await;
            for _ in 0..8 {
                first_second(&fixture, &bytes).await;
            }
        }
    });
}

#[test]
fn without_hedges_a_slow_osd_shows() {
    let fixture = fixture(ClientConfig { hedge: false, ..ClientConfig::default() });
    fixture.run(async {
        let bytes = fill(&fixture).await;
        first_second(&fixture, &bytes).await;
        let well = p99(slices(&fixture, &bytes, 1000).await);
        fixture.backend.osd(osd(3)).set(|f| f.delay = Duration::from_millis(50));
        first_second(&fixture, &bytes).await;
        let beside = p99(slices(&fixture, &bytes, 1000).await);
        assert!(beside > well * 2, "{beside:?} beside, {well:?} without");
        assert_eq!(fixture.client.statistics().hedged_reads, 0);
    });
}

#[test]
fn where_all_is_well_at_most_one_read_of_twenty_is_extra() {
    let fixture = fixture(ClientConfig::default());
    fixture.run(async {
        let bytes = fill(&fixture).await;
        let before = fixture.client.statistics();
        slices(&fixture, &bytes, 5000).await;
        for i in 0..OBJECTS {
            assert_eq!(get(&fixture, &format!("o{i}")).await.unwrap(), bytes);
        }
        let now = fixture.client.statistics();
        let needed = now.fragments_needed - before.fragments_needed;
        let asked = now.fragments_asked - before.fragments_asked;
        // Slices that cross into the next fragment need two.
        assert!(needed >= 5000 + u64::from(OBJECTS) * 15, "{needed}");
        assert!(asked >= needed && asked * 20 <= needed * 21, "{asked} asked, {needed} needed");
    });
}

#[test]
fn a_slice_beside_a_slow_osd_reads_only_its_part_of_others() {
    let fixture = fixture(ClientConfig::default());
    fixture.run(async {
        let bytes = fill(&fixture).await;
        first_second(&fixture, &bytes).await;
        let manifest = fixture.backend.stored(&name("o0")).unwrap();
        let slow = fixture.backend.osd(manifest.chunks[0].fragments[0].location.unwrap());
        slow.set(|f| f.delay = Duration::from_secs(100_000));
        let first = slices(&fixture, &bytes, 1).await[0];
        assert!(first < Duration::from_millis(20), "{first:?}");
        let read = || fixture.backend.all().iter().map(|osd| *osd.read_bytes.lock().unwrap()).sum::<u64>();
        let before = (read(), fixture.client.statistics());
        slices(&fixture, &bytes, 1).await;
        let now = (read(), fixture.client.statistics());
        assert_eq!(now.1.chunks_rescued - before.1.chunks_rescued, 1);
        // The leaf of each of five others.
        assert_eq!(now.0 - before.0, 5 * (16 << 10));
    });
}

#[test]
fn an_osd_that_was_slow_is_read_from_again() {
    let fixture = fixture(ClientConfig::default());
    fixture.run(async {
        let bytes = fill(&fixture).await;
        first_second(&fixture, &bytes).await;
        let slow = fixture.backend.osd(osd(3));
        slow.set(|f| f.delay = Duration::from_millis(80));
        first_second(&fixture, &bytes).await;
        let rescued = fixture.client.statistics().chunks_rescued;
        let (reads, clock) = (*slow.reads.lock().unwrap(), fixture.node.env().clock);
        let begun = clock.now();
        slices(&fixture, &bytes, 1000).await;
        let looks = u128::try_from(*slow.reads.lock().unwrap() - reads).unwrap();
        let most = clock.now().since(begun).as_millis() / 250 + 1;
        assert!(fixture.client.statistics().chunks_rescued > rescued + 20, "reads go around it");
        assert!((1..=most).contains(&looks), "{looks} looks, {most} quarters of a second");
        slow.set(|f| f.delay = Duration::from_millis(1));
        for _ in 0..5 {
            first_second(&fixture, &bytes).await;
        }
        let rescued = fixture.client.statistics().chunks_rescued;
        slices(&fixture, &bytes, 1000).await;
        let more = fixture.client.statistics().chunks_rescued - rescued;
        assert!(more <= 5, "{more} slices still go around it");
    });
}

#[test]
fn equal_slices_at_the_same_time_are_one_read() {
    let fixture = fixture(ClientConfig::default());
    fixture.run(async {
        let bytes = fill(&fixture).await;
        let ns = ns();
        let request = || vec![(name("o1"), vec![Slice { offset: 8192, length: 4096 }])];
        let read = || fixture.client.read_slices(&ns, request(), Consistency::Cached, fixture.deadline());
        read().await.unwrap();
        let before = fixture.client.statistics();
        // The first one to ask goes away in the middle.
        let soon = fixture.node.env().deadline_in(Duration::from_micros(500));
        let first = fixture.client.read_slices(&ns, request(), Consistency::Cached, soon);
        let others = futures_util::future::join_all((0..10).map(|_| read()));
        let (first, others) = tokio::join!(first, others);
        assert!(first.is_err());
        for read in others {
            assert_eq!(read.unwrap().data.concat(), bytes[8192..8192 + 4096]);
        }
        let now = fixture.client.statistics();
        assert_eq!(now.fragments_asked - before.fragments_asked, 1);
        assert_eq!(now.fragments_merged - before.fragments_merged, 10);
    });
}
