//! Rot, lost and foreign files: detected, reported, never served.

use super::*;

const FIRST: &str = "segment-0000000000000000";

/// Three values, in batches at known places: two blocks of preface, then batches of a block of records and three of the
/// value.
fn three(hardware: &Hardware) {
    hardware.run(async |node, engine, _| {
        for (name, salt) in [("a", 1), ("b", 2), ("c", 3)] {
            apply(node, &engine, batch(vec![set(name, pattern(8_500, salt))])).await.unwrap();
        }
    });
}

const BATCH: u64 = 4 * BLOCK_BYTES;
const FIRST_BATCH: u64 = 2 * BLOCK_BYTES;

async fn is_damaged(node: &SimNode, engine: &Engine, name: &str) -> bool {
    let whole = get(node, engine, name).await;
    let slice = vec![ValueSlice { offset: 4_000, len: 200 }];
    let part = engine.partial_get(key(name), slice, Priority::High, deadline(node)).await;
    match (whole, part) {
        (Err(OsdError::Damaged(_)), Err(OsdError::Damaged(_))) => true,
        (Ok(Some(_)), Ok(Some(_))) => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flipped_bit_of_a_value_is_never_served() {
    let hardware = Hardware::new(1);
    three(&hardware);
    assert!(hardware.disk.rot(FIRST, FIRST_BATCH + BATCH + BLOCK_BYTES + 4_100, 4));
    for lost_index in [false, true] {
        if lost_index {
            hardware.index.wipe();
        }
        hardware.run(async |node, engine, opening| {
            assert_eq!(opening.rebuilt, lost_index);
            let mut damaged = Vec::new();
            for name in ["a", "b", "c"] {
                damaged.push(is_damaged(node, &engine, name).await);
            }
            assert_eq!(damaged, [false, true, false]);
            assert_eq!(engine.status().damaged_reads, 2);
            // Blocks that are whole are still served.
            let slice = vec![ValueSlice { offset: 8_200, len: 300 }];
            let part = engine.partial_get(key("b"), slice, Priority::High, deadline(node)).await;
            assert_eq!(part.unwrap().unwrap()[0], pattern(8_500, 2).slice(8_200..8_500));
        });
    }
}

#[test]
fn rot_in_the_middle_of_the_history_is_reported_and_the_rest_recovered() {
    let hardware = Hardware::new(1);
    three(&hardware);
    // The header of b's record.
    assert!(hardware.disk.rot(FIRST, FIRST_BATCH + BATCH + 20, 1));
    hardware.index.wipe();
    hardware.run(async |node, engine, opening| {
        assert_eq!(opening.damage.len(), 1, "{:?}", opening.damage);
        assert!(opening.damage[0].contains("batches 2 to 2 are lost"), "{:?}", opening.damage);
        assert_eq!(engine.status().damage, opening.damage);
        let found: Vec<OsdKey> = content(node, &engine).await.into_keys().collect();
        assert_eq!(found, [key("a"), key("c")]);
    });
}

#[test]
fn rot_at_the_end_of_an_older_segment_is_no_torn_tail() {
    let hardware = Hardware::new(1);
    hardware.run(async |node, engine, _| {
        for nth in 0..5_u64 {
            apply(node, &engine, batch(vec![set(&format!("k{nth}"), pattern(8_500, nth))])).await.unwrap();
        }
    });
    assert_eq!(hardware.disk.names().len(), 2);
    // Three batches fit into a segment.
    assert!(hardware.disk.rot(FIRST, FIRST_BATCH + 2 * BATCH + 20, 1));
    hardware.index.wipe();
    hardware.run(async |node, engine, opening| {
        assert!(opening.damage[0].contains("batches 3 to 3"), "{:?}", opening.damage);
        let found = content(node, &engine).await;
        assert_eq!((found.len(), found.contains_key(&key("k2"))), (4, false));
    });
}

#[test]
fn a_lost_segment_is_reported_with_and_without_the_index() {
    for lost_index in [false, true] {
        let hardware = Hardware::new(1);
        hardware.run(async |node, engine, _| {
            for nth in 0..8_u64 {
                apply(node, &engine, batch(vec![set(&format!("k{nth:02}"), pattern(8_500, nth))]))
                    .await
                    .unwrap();
            }
        });
        assert!(hardware.disk.lose("segment-0000000000000001"));
        if lost_index {
            hardware.index.wipe();
        }
        hardware.run(async |node, engine, opening| {
            assert_eq!(opening.damage.len(), 1, "{:?}", opening.damage);
            if lost_index {
                assert_eq!(content(node, &engine).await.len(), 5);
            } else {
                assert!(is_damaged(node, &engine, "k04").await);
                assert!(!is_damaged(node, &engine, "k07").await);
            }
            apply(node, &engine, batch(vec![set("new", pattern(9_000, 1))])).await.unwrap();
        });
    }
}

#[test]
fn the_marked_segment_may_be_lost_too() {
    let hardware = Hardware::new(1);
    three(&hardware);
    assert!(hardware.disk.lose(FIRST));
    hardware.run(async |node, engine, opening| {
        assert!(opening.damage[0].contains("is missing"), "{:?}", opening.damage);
        assert!(is_damaged(node, &engine, "a").await);
        apply(node, &engine, batch(vec![set("a", pattern(9_000, 1))])).await.unwrap();
        assert!(!is_damaged(node, &engine, "a").await);
    });
    hardware.index.wipe();
    hardware.run(async |node, engine, _| {
        assert_eq!(content(node, &engine).await.len(), 1);
    });
}

#[test]
fn a_rotten_header_of_a_segment_is_reported() {
    let hardware = Hardware::new(1);
    three(&hardware);
    assert!(hardware.disk.rot(FIRST, 50, 1));
    hardware.index.wipe();
    hardware.run(async |node, engine, opening| {
        assert!(opening.damage[0].contains("checksum of the segment header differs"), "{:?}", opening.damage);
        apply(node, &engine, batch(vec![set("new", pattern(9_000, 1))])).await.unwrap();
        assert_eq!(content(node, &engine).await.len(), 1);
    });
    assert!(hardware.disk.names().contains(&FIRST.to_owned()), "evidence is kept");
}

#[test]
fn segments_and_indexes_of_another_store_are_not_used() {
    let hardware = Hardware::new(1);
    three(&hardware);
    let simulation = Simulation::new(1);
    let node = simulation.node(1);
    let main = async {
        let env = node.env();
        let parts = EngineParts {
            disk: Arc::new(hardware.disk.open()),
            index: Arc::new(SimIndex(hardware.index.clone(), None)),
            clock: env.clock,
            bulk: env.bulk.clone(),
            spawn: env.spawn,
            store: StoreId(*b"another store id"),
        };
        let (engine, opening) = Engine::open(parts, hardware.config.clone()).await.unwrap();
        assert!(opening.damage[0].contains("another store"), "{:?}", opening.damage);
        assert!(content(&node, &engine).await.is_empty());
    };
    simulation.run(LIMIT, main).unwrap();
}

#[test]
fn a_truncated_segment_is_reported_and_not_appended_to() {
    let hardware = Hardware::new(1);
    three(&hardware);
    assert!(hardware.disk.truncate(FIRST, FIRST_BATCH + BATCH + BLOCK_BYTES + 5_000));
    for lost_index in [false, true] {
        if lost_index {
            hardware.index.wipe();
        }
        hardware.run(async |node, engine, opening| {
            assert!(opening.damage[0].contains("is cut off"), "{:?}", opening.damage);
            assert!(!is_damaged(node, &engine, "a").await);
            if lost_index {
                assert_eq!(get(node, &engine, "c").await.unwrap(), None);
            } else {
                assert!(is_damaged(node, &engine, "c").await);
            }
            apply(node, &engine, batch(vec![set("new", pattern(9_000, 1))])).await.unwrap();
            assert!(!is_damaged(node, &engine, "new").await);
        });
    }
    assert_eq!(
        offset(hardware.disk.content(FIRST).unwrap().len()),
        FIRST_BATCH + BATCH + BLOCK_BYTES + 5_000
    );
}

#[test]
fn a_row_of_the_index_that_does_not_decode_has_it_made_again() {
    let hardware = Hardware::new(1);
    three(&hardware);
    let index = hardware.index.open();
    let mut rows = WriteBatch::default();
    rows.put([&b"k"[..], b"b"].concat(), vec![0xff; 3]);
    index.commit(rows, Durability::Sync).unwrap();
    drop(index);
    hardware.run(async |node, engine, opening| {
        assert_eq!(opening, Opening { replayed: 0, rebuilt: false, damage: vec![] });
        assert!(matches!(get(node, &engine, "b").await, Err(OsdError::Device(_))));
        let limit = deadline(node);
        loop {
            // Nobody writes: it heals by itself.
            match get(node, &engine, "b").await {
                Ok(found) => break assert_eq!(found, Some(stored(pattern(8_500, 2)))),
                Err(error) => assert!(!limit.left(node.env().clock.as_ref()).is_zero(), "{error}"),
            }
            node.env().clock.sleep_until(node.env().clock.now().plus(Duration::from_millis(100))).await;
        }
        assert_eq!(engine.status().index, None);
        assert_eq!(content(node, &engine).await.len(), 3);
    });
}

#[test]
fn a_header_of_another_segment_is_replaced_by_the_closing_block() {
    let hardware = Hardware::new(1);
    hardware.run(async |node, engine, _| {
        for nth in 0..5_u64 {
            apply(node, &engine, batch(vec![set(&format!("k{nth}"), pattern(8_500, nth))])).await.unwrap();
        }
    });
    assert!(hardware.disk.swap_sectors(FIRST, 0, "segment-0000000000000001", 0, 4096));
    hardware.index.wipe();
    hardware.run(async |node, engine, opening| {
        assert!(opening.damage.iter().all(|line| !line.contains(FIRST)), "{:?}", opening.damage);
        for nth in 0..3_u64 {
            let found = get(node, &engine, &format!("k{nth}")).await.unwrap();
            assert_eq!(found, Some(stored(pattern(8_500, nth))));
        }
    });
}
