//! A bit flipped at every block, sectors in the wrong place, damaged trees and rows: right bytes or an error, never others.

use alba_core::blake3_tree;
use alba_core::env::sim::disk::{DiskOperation, SECTOR};

use super::*;

/// Values of all shapes, some deleted, in several segments. The last batch is one that nothing is asked of: nothing after it proves that it
/// was durable.
fn store(hardware: &Hardware) -> Model {
    let mut model = Model::new();
    hardware.run(async |node, engine, _| {
        for nth in 0..20_u64 {
            let len = [300, 9_000, 5_000, 20_000][usize::try_from(nth % 4).unwrap()];
            let value = pattern(len, nth);
            let checksum = if nth % 3 == 0 { ChecksumAlgorithm::Blake3 } else { ChecksumAlgorithm::Crc32c };
            let stored = StoredValue { checksum: checksum.of(&value), value };
            let one = batch(vec![OsdUpdate::Set(key(&format!("k{nth:02}")), stored)]);
            play(&mut model, &one);
            apply(node, &engine, one).await.unwrap();
        }
        let last = batch(vec![OsdUpdate::Delete(key("k03")), set("last", pattern(100, 99))]);
        play(&mut model, &last);
        apply(node, &engine, last).await.unwrap();
        apply(node, &engine, batch(vec![set("end", pattern(100, 100))])).await.unwrap();
        engine.close(deadline(node)).await;
    });
    model.remove(&key("last"));
    model
}

/// Keys whose values cannot be read, and how that is answered.
#[derive(Debug, Default, PartialEq, Eq)]
struct Missing {
    damaged: Vec<OsdKey>,
    absent: Vec<OsdKey>,
}

impl Missing {
    fn has(&self, key: &OsdKey) -> bool {
        self.damaged.contains(key) || self.absent.contains(key)
    }
}

/// Reads all of `model`, whole and in parts; panics over other bytes.
async fn missing(node: &SimNode, engine: &Engine, model: &Model) -> Missing {
    let mut missing = Missing::default();
    for (key, stored) in model {
        let whole = engine.multi_get(vec![key.clone()], Priority::High, deadline(node)).await;
        let sound = match whole.map(|mut found| found.remove(0)) {
            Ok(Some(found)) => {
                assert!(found == *stored, "other bytes of {key:?}");
                true
            }
            Ok(None) => {
                missing.absent.push(key.clone());
                false
            }
            Err(OsdError::Damaged(_)) => {
                missing.damaged.push(key.clone());
                false
            }
            Err(other) => panic!("{other}"),
        };
        let len = u32::try_from(stored.value.len()).unwrap();
        for offset in (0..len).step_by(4096) {
            let slice = ValueSlice { offset, len: (len - offset).min(4_500) };
            let part = engine.partial_get(key.clone(), vec![slice], Priority::High, deadline(node)).await;
            let from = usize::try_from(offset).unwrap();
            let expected = stored.value.slice(from..from + usize::try_from(slice.len).unwrap());
            match part {
                Ok(Some(found)) => assert!(found == [expected], "other bytes in {key:?} at {offset}"),
                Ok(None) | Err(OsdError::Damaged(_)) if !sound => {}
                other => panic!("{key:?} is whole, its part at {offset} is not: {other:?}"),
            }
        }
    }
    missing
}

/// The segments, the one that was appended to last behind the others.
fn segments(hardware: &Hardware) -> Vec<String> {
    let head = hardware.run(async |_, engine, _| {
        engine.segments().iter().find(|s| s.state == SegmentState::Head).map(|s| segment::file_name(s.number))
    });
    let head = head.unwrap();
    let mut names: Vec<String> = hardware.disk.names().into_iter().filter(|name| *name != head).collect();
    names.push(head);
    names
}

#[test]
fn a_bit_flipped_in_any_block_gives_right_bytes_or_damage() {
    let hardware = Hardware::new(1);
    let model = store(&hardware);
    let names = segments(&hardware);
    assert!(names.len() >= 3, "{names:?}");
    let (mut harmless, mut harmful) = (0, 0);
    for name in &names {
        let blocks = offset(hardware.disk.content(name).unwrap().len()) / BLOCK_BYTES;
        for block in 0..blocks {
            for within in [10, 100, 2_000] {
                let at = block * BLOCK_BYTES + within;
                // A copy of the hardware: each damage is alone.
                let hardware = copied(&hardware);
                assert!(hardware.disk.rot(name, at, 1 << (block % 8)));
                let with_index = hardware.run(async |node, engine, _| missing(node, &engine, &model).await);
                hardware.index.wipe();
                hardware.run(async |node, engine, opening| {
                    let rebuilt = missing(node, &engine, &model).await;
                    assert!(with_index.absent.is_empty(), "{name} {at}: the index knows better");
                    assert!(with_index.damaged.iter().all(|key| rebuilt.has(key)), "{name} {at}: healed?");
                    // Damage to records is told at once, that to values when they are read.
                    let told = !opening.damage.is_empty();
                    assert!(
                        told || rebuilt.absent.is_empty(),
                        "{name} {at}: {rebuilt:?}, lost without a word"
                    );
                    let deleted = get(node, &engine, "k03").await.unwrap();
                    assert!(told || deleted.is_none(), "{name} {at}: it came back without a word");
                    if rebuilt == Missing::default() {
                        harmless += 1
                    } else {
                        harmful += 1
                    };
                });
            }
        }
    }
    assert!(harmless > 50 && harmful > 50, "{harmless} harmless, {harmful} harmful");
}

/// Another OSD with the same bytes.
fn copied(hardware: &Hardware) -> Hardware {
    let copy = Hardware::new(2);
    let disk = copy.disk.open();
    let files = async {
        for name in hardware.disk.names() {
            let content = hardware.disk.content(&name).unwrap();
            let file = disk.create(&name, offset(content.len())).await.unwrap();
            file.write_at(0, vec![content]).await.unwrap();
            file.sync().await.unwrap();
        }
        disk.sync_directory().await.unwrap();
    };
    Simulation::new(1).run(LIMIT, files).unwrap();
    let mut rows = WriteBatch::default();
    let all = hardware.index.open().scan(Bound::Unbounded, Bound::Unbounded, false, usize::MAX).unwrap();
    all.into_iter().for_each(|(row, bytes)| rows.put(row, bytes));
    copy.index.open().commit(rows, Durability::Eventual).unwrap();
    copy
}

#[test]
fn a_rotten_header_or_closing_block_of_a_closed_segment_loses_nothing() {
    let hardware = Hardware::new(1);
    let model = store(&hardware);
    let names = segments(&hardware);
    for name in &names[..names.len() - 1] {
        for block in [0, 1] {
            let hardware = copied(&hardware);
            assert!(hardware.disk.rot(name, block * BLOCK_BYTES + 44, 1));
            for lost_index in [false, true] {
                if lost_index {
                    hardware.index.wipe();
                }
                hardware.run(async |node, engine, opening| {
                    assert_eq!(opening.damage, Vec::<String>::new(), "{name} {block}");
                    assert_eq!(missing(node, &engine, &model).await, Missing::default(), "{name} {block}");
                });
            }
        }
    }
}

#[test]
fn a_segment_whose_closing_block_could_not_be_written_is_not_closed_as_empty() {
    let mut unclosed = 0;
    for seed in 0..20 {
        let hardware = Hardware::new(seed);
        let first = segment::file_name(0);
        hardware.run(async |node, engine, _| {
            for nth in 0..6_u64 {
                if nth == 3 {
                    // Three batches fit; what is written to it next is its closing block.
                    let error = std::io::ErrorKind::Other;
                    hardware.disk.inject_on(&first, DiskOperation::Write, 0, 1, error);
                }
                apply(node, &engine, batch(vec![set(&format!("k{nth}"), pattern(9_000, nth))]))
                    .await
                    .unwrap();
            }
            engine.close(deadline(node)).await;
        });
        let block = hardware.disk.content(&first).unwrap().slice(4096..8192);
        unclosed += usize::from(format::Closing::decode(&block).is_err());
        // The index knows all of it: the segment is not looked through, and yet it has to be closed where it ends.
        for lost_index in [false, true] {
            if lost_index {
                hardware.index.wipe();
            }
            hardware.run(async |node, engine, opening| {
                assert_eq!(opening.damage, Vec::<String>::new());
                assert_eq!(content(node, &engine).await.len(), 6, "seed {seed}");
                engine.close(deadline(node)).await;
            });
        }
    }
    assert!(unclosed > 5, "{unclosed}");
}

#[test]
fn swapped_sectors_and_blocks_are_never_taken_for_others() {
    let hardware = Hardware::new(1);
    let model = store(&hardware);
    let names = segments(&hardware);
    let places: Vec<(&String, u64)> =
        names.iter().flat_map(|name| (0..16).map(move |block| (name, block * BLOCK_BYTES))).collect();
    let mut rng = StdRng::seed_from_u64(5);
    let mut harmful = 0;
    for _ in 0..300 {
        let (a, b) = (places[rng.random_range(0..places.len())], places[rng.random_range(0..places.len())]);
        let hardware = copied(&hardware);
        let len = if rng.random_bool(0.5) { SECTOR } else { BLOCK_BYTES };
        if !hardware.disk.swap_sectors(a.0, a.1, b.0, b.1, usize::try_from(len).unwrap()) {
            continue;
        }
        let with_index = hardware.run(async |node, engine, _| missing(node, &engine, &model).await);
        hardware.index.wipe();
        hardware.run(async |node, engine, opening| {
            let rebuilt = missing(node, &engine, &model).await;
            let told = !opening.damage.is_empty() || [a.0, b.0].contains(&names.last().unwrap());
            assert!(with_index.absent.is_empty(), "{a:?} {b:?}: the index knows better");
            assert!(told || rebuilt.absent.is_empty(), "{a:?} {b:?}: {rebuilt:?}, lost without a word");
            harmful += usize::from(rebuilt != Missing::default());
        });
    }
    assert!(harmful > 50, "{harmful}");
}

/// A segment in its second life still has the closing block of the first one until it is closed again: that must not be
/// believed when the header rots.
#[test]
fn a_rotten_header_of_a_reused_segment_is_not_replaced_by_its_former_life() {
    for lost_index in [false, true] {
        let hardware = Hardware::new(1);
        hardware.disk.set_capacity(14 * (64 << 10));
        let mut nth = 0;
        let head = hardware.run(async |node, engine, _| {
            loop {
                nth += 1;
                apply(node, &engine, batch(vec![set(&format!("k{}", nth % 7), pattern(9_000, nth))]))
                    .await
                    .unwrap();
                let segments = engine.segments();
                let head = segments.iter().find(|s| s.state == SegmentState::Head).unwrap();
                let reused = head.generation > offset(segments.len()) + 2;
                if reused && head.written > 6 * BLOCK_BYTES {
                    return segment::file_name(head.number);
                }
                assert!(nth < 2_000, "never reused");
            }
        });
        assert!(hardware.disk.rot(&head, 41, 1));
        if lost_index {
            hardware.index.wipe();
        }
        hardware.run(async |node, engine, opening| {
            assert!(opening.damage.iter().any(|text| text.contains(&head)), "{:?}", opening.damage);
            let last = get(node, &engine, &format!("k{}", nth % 7)).await;
            if !lost_index {
                assert!(matches!(last, Err(OsdError::Damaged(_))), "{last:?}");
            }
        });
    }
}

#[test]
fn a_damaged_tree_is_made_again_and_the_proof_still_leads_to_the_root() {
    let hardware = Hardware::new(1);
    let value = pattern(30_000, 1);
    let checksum = ChecksumAlgorithm::Blake3.of(&value);
    let Checksum::Blake3(root) = checksum else { unreachable!() };
    hardware.run(async |node, engine, _| {
        let stored = StoredValue { checksum, value: value.clone() };
        apply(node, &engine, batch(vec![OsdUpdate::Set(key("v"), stored)])).await.unwrap();
        engine.close(deadline(node)).await;
    });
    // Behind the fixed part, the key, and eight CRCs.
    let tree_at = 2 * BLOCK_BYTES + 80 + 1 + 8 * 4;
    let name = segment::file_name(0);
    let content = hardware.disk.content(&name).unwrap();
    let tree = blake3_tree::LeafTable::of(&value).unwrap();
    let at = usize::try_from(tree_at).unwrap();
    assert_eq!(content[at..at + 64], tree.as_bytes()[..], "the tree is where it is thought to be");
    assert!(hardware.disk.rot(&name, tree_at + 5, 1));
    hardware.run(async |node, engine, _| {
        for slice in [ValueSlice { offset: 100, len: 50 }, ValueSlice { offset: 16_000, len: 1_000 }] {
            let proven =
                engine.proven_get(key("v"), slice, Priority::High, deadline(node)).await.unwrap().unwrap();
            let verified = blake3_tree::verify(root, 30_000, slice, &proven).unwrap();
            let from = usize::try_from(slice.offset).unwrap();
            assert_eq!(*verified.as_bytes(), value.slice(from..from + usize::try_from(slice.len).unwrap()));
        }
    });
    // Value and tree: nothing can be proven.
    assert!(hardware.disk.rot(&name, 3 * BLOCK_BYTES + 5, 1));
    hardware.run(async |node, engine, _| {
        let slice = ValueSlice { offset: 20_000, len: 10 };
        let proven = engine.proven_get(key("v"), slice, Priority::High, deadline(node)).await;
        assert!(matches!(proven, Err(OsdError::Damaged(_))), "{proven:?}");
    });
}

#[test]
fn a_damaged_index_is_thrown_away_and_made_again() {
    let hardware = Hardware::new(1);
    let model = store(&hardware);
    // The mark; the rows of ranges are read at the start, too.
    for row in [b"m".to_vec(), b"r?".to_vec()] {
        let hardware = copied(&hardware);
        let mut rows = WriteBatch::default();
        rows.put(row, vec![0xff; 3]);
        hardware.index.open().commit(rows, Durability::Eventual).unwrap();
        hardware.run(async |node, engine, opening| {
            assert!(opening.rebuilt);
            assert_eq!(opening.damage, Vec::<String>::new());
            assert_eq!(missing(node, &engine, &model).await, Missing::default());
        });
    }
}
