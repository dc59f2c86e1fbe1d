//! The scrub: finds what is damaged, tells it per segment, goes on after a restart, keeps its rate.

use super::*;

const VALUES: u64 = 12;

/// Values of 9000 bytes in four segments, the scrub at `rate`.
fn store(rate: u64) -> Hardware {
    let mut hardware = Hardware::new(1);
    hardware.config.scrub_rate = 1;
    hardware.config.scrub_every = Duration::from_secs(100_000);
    hardware.config.background = false;
    hardware.run(async |node, engine, _| {
        for nth in 0..VALUES {
            apply(node, &engine, batch(vec![set(&format!("k{nth:02}"), pattern(9_000, nth))])).await.unwrap();
        }
        engine.close(deadline(node)).await;
    });
    hardware.config.background = true;
    hardware.config.scrub_rate = rate;
    hardware
}

async fn wait(node: &SimNode, what: &str, is_so: impl Fn() -> bool) {
    let clock = node.env().clock;
    let until = clock.now().plus(Duration::from_secs(3_000));
    while !is_so() {
        assert!(clock.now() < until, "{what}");
        clock.sleep_until(clock.now().plus(Duration::from_millis(100))).await;
    }
}

fn results(engine: &Engine) -> Vec<(u64, u64, u64)> {
    let found = engine.shared.index().unwrap().scrubbed().unwrap();
    found.into_iter().map(|(number, found)| (number, found.values, found.damaged)).collect()
}

#[test]
fn damage_is_found_and_told_per_segment_and_kept_over_restarts() {
    let hardware = store(0);
    // Three values per segment; one of each of the first two is damaged: a value, and a record.
    assert!(hardware.disk.rot(&segment::file_name(0), 3 * BLOCK_BYTES + 100, 1));
    assert!(hardware.disk.rot(&segment::file_name(1), 2 * BLOCK_BYTES + 30, 1));
    let check = |engine: &Engine| {
        assert_eq!(results(engine)[..2], [(0, 3, 1), (1, 2, 1)], "{:?}", results(engine));
        assert!(results(engine)[2..].iter().all(|(_, values, damaged)| *values == 3 && *damaged == 0));
        let status = engine.scrub_status();
        assert_eq!((status.rounds, status.damaged), (1, 2), "{status:?}");
    };
    hardware.run(async |node, engine, _| {
        wait(node, "a round", || engine.scrub_status().rounds == 1).await;
        check(&engine);
        assert_eq!(engine.scrub_status().damaged_keys, ["k00"]);
        engine.close(deadline(node)).await;
    });
    hardware.run(async |node, engine, _| {
        wait(node, "what was found before", || engine.scrub_status().damaged == 2).await;
        check(&engine);
        // A value written again is whole; asked for, a round comes before its time.
        apply(node, &engine, batch(vec![set("k00", pattern(9_000, 0))])).await.unwrap();
        engine.scrub_now();
        wait(node, "another round", || engine.scrub_status().rounds == 2).await;
        assert_eq!(engine.scrub_status().damaged, 1);
    });
}

#[test]
fn a_round_goes_on_where_it_was_at_the_restart() {
    // About nine seconds per value.
    let hardware = store(1_000);
    hardware.run(async |node, engine, _| {
        wait(node, "two segments", || engine.scrub_status().segments_done == 2).await;
        assert!(engine.scrub_status().running);
        engine.close(deadline(node)).await;
    });
    hardware.run(async |node, engine, _| {
        assert_eq!(results(&engine).len(), 2, "results are kept");
        wait(node, "the end of the round", || engine.scrub_status().rounds == 1).await;
        assert_eq!(results(&engine).len(), 4);
        let read = engine.scrub_status().bytes;
        assert!(read < VALUES * 9_000 * 3 / 4, "{read} bytes: it began again");
    });
}

#[test]
fn the_scrub_keeps_its_rate() {
    for (rate, least, most) in [(1_000, 100, 120), (10_000, 10, 14)] {
        store(rate).run(async |node, engine, _| {
            let began = node.env().clock.now();
            wait(node, "a round", || engine.scrub_status().rounds == 1).await;
            let took = node.env().clock.now().0 - began.0;
            let (least, most) = (Duration::from_secs(least), Duration::from_secs(most));
            assert!(least < took && took < most, "{took:?} for 108 kB at {rate} B/s");
        });
    }
}
