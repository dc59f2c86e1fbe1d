//! What nobody waits for, beside clients and other daemons on the device.

use std::sync::atomic::Ordering;

use super::*;
use crate::beside::doubles::Late;

const MIB: u64 = 1 << 20;

/// The engine, beside a client that has just asked for something.
fn beside(node: &SimNode, engine: &Engine, turns: Arc<Late>) -> Arc<Beside> {
    let clock = node.env().clock;
    let beside = Arc::new(Beside::new(turns, clock.clone()));
    beside.asked(clock.now());
    engine.work_beside(beside.clone());
    beside
}

#[test]
fn a_turn_ends_before_others_give_up_whatever_is_done_in_it() {
    Hardware::new(1).run(async |node, engine, _| {
        let clock = node.env().clock;
        let turns = Late::new(node.env().clock, Duration::ZERO, false);
        let _beside = beside(node, &engine, turns.clone());
        let began = clock.now();
        let work = async {
            clock.sleep_until(began.plus(HELD / 2)).await;
            assert_eq!(turns.held.load(Ordering::Relaxed), 1);
            clock.sleep_until(began.plus(HELD * 2)).await;
            assert_eq!(turns.held.load(Ordering::Relaxed), 0, "the work goes on without");
            7
        };
        assert_eq!(engine.shared.in_turn(Direction::Write, MIB, work).await, 7);
        let small = async { turns.counts() };
        assert_eq!(engine.shared.in_turn(Direction::Write, 64 << 10, small).await, (0, 1), "nobody feels it");
    });
}

#[test]
fn who_had_to_wait_for_a_turn_has_company_for_a_while() {
    Hardware::new(1).run(async |node, engine, _| {
        let clock = node.env().clock;
        for (after, company) in [(Duration::ZERO, false), (Duration::from_millis(2), true)] {
            let beside = Beside::new(Late::new(clock.clone(), after, false), clock.clone());
            assert!(!beside.has_company());
            assert!(beside.turn(Direction::Read).await.is_some());
            assert_eq!(beside.has_company(), company);
            clock.sleep_until(clock.now().plus(Duration::from_secs(10))).await;
            assert!(!beside.has_company());
        }
        engine.close(deadline(node)).await;
    });
}

#[test]
fn what_is_made_ready_beside_clients_is_flushed_little_by_little_and_in_time() {
    let mut hardware = Hardware::with_segments(1, 16 * MIB);
    hardware.config.background = false;
    hardware.config.preparation_rate = 0;
    let disk = hardware.disk.clone();
    hardware.run(async |node, engine, _| {
        let clock = node.env().clock;
        let prepare = async || {
            let (syncs, began) = (disk.syncs(), clock.now());
            engine.prepare(1, |_| {}).await.unwrap();
            (disk.syncs() - syncs, clock.now().since(began))
        };
        let (alone, _) = prepare().await;
        // Others keep the turn for longer than it is waited for, or there is none.
        let beside = beside(node, &engine, Late::new(node.env().clock, Duration::from_secs(1), true));
        clock.sleep_until(clock.now().plus(Duration::from_secs(3))).await;
        assert_eq!(prepare().await, (alone, Duration::ZERO), "the client has gone");
        let asks = async {
            loop {
                beside.asked(clock.now());
                clock.sleep_until(clock.now().plus(Duration::from_secs(1))).await;
            }
        };
        let (syncs, took) = tokio::select! {
            biased;
            () = asks => unreachable!(),
            prepared = prepare() => prepared,
        };
        assert_eq!(syncs, alone + 4, "every 4 MiB");
        assert_eq!(took, Duration::from_secs(5), "no longer, of 16 times a second");
        engine.close(deadline(node)).await;
    });
}

#[test]
fn compaction_takes_turns_while_there_is_room() {
    for short in [false, true] {
        let mut hardware = Hardware::with_segments(1, MIB);
        hardware.config.background = false;
        hardware.run(async |node, engine, _| {
            for nth in 0..20 {
                let value = pattern(200_000, nth);
                apply(node, &engine, batch(vec![set(&format!("k{nth:02}"), value)])).await.unwrap();
            }
            for nth in (0..20).filter(|nth| nth % 5 != 0) {
                let gone = batch(vec![OsdUpdate::Delete(key(&format!("k{nth:02}")))]);
                apply(node, &engine, gone).await.unwrap();
            }
            engine.close(deadline(node)).await;
        });
        hardware.config.background = true;
        if short {
            // Less than one segment is left to be begun.
            hardware.disk.set_capacity(6 * MIB);
        }
        hardware.run(async |node, engine, _| {
            let clock = node.env().clock;
            let turns = Late::new(node.env().clock, Duration::ZERO, false);
            let beside = beside(node, &engine, turns.clone());
            let before = engine.shared.table().free().len();
            let until = clock.now().plus(Duration::from_secs(60));
            while engine.shared.table().free().len() < before + 2 {
                assert!(clock.now() < until, "nothing is compacted");
                beside.asked(clock.now());
                clock.sleep_until(clock.now().plus(Duration::from_millis(100))).await;
            }
            // The scrub reads in turns, too.
            let (reads, writes) = turns.counts();
            if short {
                assert_eq!(writes, 0, "who is short of room waits for nobody");
            } else {
                assert!(writes > 0 && reads >= writes, "{reads} {writes}");
            }
            engine.close(deadline(node)).await;
        });
    }
}
