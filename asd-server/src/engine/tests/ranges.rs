//! Deleted ranges: one record, rows and space come back in the background, also over restarts and rebuilds.

use super::*;

fn name(nth: u32) -> String {
    format!("r{nth:05}")
}

/// `count` small values, then the whole range is deleted in one batch, then two of its keys are written again.
async fn delete_and_write_again(node: &SimNode, engine: &Engine, count: u32) {
    for first in (0..count).step_by(50) {
        let updates = (first..count.min(first + 50)).map(|nth| set(&name(nth), pattern(300, nth.into())));
        apply(node, engine, batch(updates.collect())).await.unwrap();
    }
    apply(node, engine, batch(vec![set("q", pattern(10, 1)), set("s", pattern(10, 2))])).await.unwrap();
    apply(node, engine, batch(vec![OsdUpdate::DeleteRange(key("r"), key("s"))])).await.unwrap();
    let newer = vec![set(&name(7), pattern(5_000, 7_000)), set("rzz", pattern(20, 3))];
    apply(node, engine, batch(newer)).await.unwrap();
}

fn expected() -> Model {
    let values = [
        ("q", pattern(10, 1)),
        ("s", pattern(10, 2)),
        ("r00007", pattern(5_000, 7_000)),
        ("rzz", pattern(20, 3)),
    ];
    values.into_iter().map(|(name, value)| (key(name), stored(value))).collect()
}

#[test]
fn what_a_range_deleted_is_gone_at_once_and_its_space_later() {
    let hardware = Hardware::new(1);
    hardware.run(async |node, engine, _| {
        delete_and_write_again(node, &engine, 3_000).await;
        // Gone for readers, whatever rows are left.
        assert_eq!(get(node, &engine, &name(2_000)).await.unwrap(), None);
        assert_eq!(content(node, &engine).await, expected());
        // Segments come free, without a delete per key.
        let clock = node.env().clock;
        clock.sleep_until(clock.now().plus(Duration::from_secs(60))).await;
        let space = engine.space();
        assert!(space.free + 3 >= space.segments, "{space:?}");
        assert_eq!(content(node, &engine).await, expected());
    });
}

#[test]
fn a_sweep_goes_on_after_a_restart_in_its_middle() {
    let (mut interrupted, mut cut) = (0, 0);
    loop {
        let mut hardware = Hardware::new(cut);
        hardware.powered = true;
        hardware.run(async |node, engine, _| {
            delete_and_write_again(node, &engine, 2_500).await;
            // From here on mostly the sweep changes anything: each of its steps is cut off once.
            hardware.disk.cut_power_after(cut);
            let clock = node.env().clock;
            clock.sleep_until(clock.now().plus(Duration::from_secs(30))).await;
        });
        let was_cut = hardware.disk.power_is_cut();
        hardware.disk.crash();
        // The index keeps what it had committed before the cut, or the first half of it.
        let unsynced = hardware.index.unsynced();
        hardware.index.crash(if cut % 2 == 0 { unsynced } else { unsynced / 2 });
        hardware.run(async |node, engine, opening| {
            assert_eq!(opening.damage, Vec::<String>::new());
            interrupted += usize::from(!engine.shared.index().unwrap().unswept().is_empty());
            assert_eq!(get(node, &engine, &name(2_000)).await.unwrap(), None);
            assert_eq!(content(node, &engine).await, expected(), "cut at {cut}");
            assert!(engine.shared.index().unwrap().unswept().is_empty());
        });
        hardware.index.wipe();
        hardware.run(async |node, engine, opening| {
            assert_eq!(opening.damage, Vec::<String>::new());
            assert_eq!(content(node, &engine).await, expected(), "rebuilt, cut at {cut}");
        });
        if !was_cut || cut > 40 {
            break;
        }
        cut += 1;
    }
    assert!(interrupted > 1, "{interrupted} sweeps were cut off in {cut} tries");
}

#[test]
fn a_rebuild_after_the_sweep_brings_nothing_back() {
    let hardware = Hardware::new(1);
    hardware.run(async |node, engine, _| {
        delete_and_write_again(node, &engine, 500).await;
        assert_eq!(content(node, &engine).await, expected());
        engine.close(deadline(node)).await;
    });
    for _ in 0..2 {
        hardware.index.wipe();
        hardware.run(async |node, engine, opening| {
            assert!(opening.rebuilt);
            assert_eq!(content(node, &engine).await, expected());
        });
    }
}
