//! Failing and full devices: states, not exits, and nothing acknowledged is lost.

use alba_core::env::sim::disk::DiskOperation;

use super::*;

fn put(name: &str, salt: u64) -> OsdBatch {
    batch(vec![set(name, pattern(5_000, salt))])
}

#[test]
fn a_failed_sync_or_write_seals_the_segment_and_the_engine_goes_on() {
    for operation in [DiskOperation::Sync, DiskOperation::Write] {
        for seed in 0..20 {
            let hardware = Hardware::new(seed);
            hardware.run(async |node, engine, _| {
                apply(node, &engine, put("before", 1)).await.unwrap();
                hardware.disk.inject(operation, 0, 1, std::io::ErrorKind::Other);
                let failed = apply(node, &engine, put("failed", 2)).await;
                assert!(matches!(failed, Err(OsdError::Device(_))), "{failed:?}");
                assert!(engine.status().writing.is_some());
                assert_eq!(get(node, &engine, "failed").await.unwrap(), None, "not durable, not visible");
                apply(node, &engine, put("after", 3)).await.unwrap();
                assert_eq!(engine.status().writing, None, "healed");
            });
            let segments = hardware.disk.names().len();
            assert_eq!(segments, 2, "never written again on the same range");
            // Whatever of the failed batch is on the disk: it stays dead.
            for lost_index in [false, true] {
                if lost_index {
                    hardware.index.wipe();
                }
                let names = hardware.run(async |node, engine, opening| {
                    assert_eq!(opening.damage, Vec::<String>::new());
                    content(node, &engine).await.into_keys().collect::<Vec<_>>()
                });
                assert_eq!(names, [key("after"), key("before")]);
            }
        }
    }
}

#[test]
fn a_read_only_device_is_a_state_that_ends_by_itself() {
    let hardware = Hardware::new(1);
    hardware.run(async |node, engine, _| {
        apply(node, &engine, put("before", 1)).await.unwrap();
        for operation in [DiskOperation::Write, DiskOperation::Directory] {
            hardware.disk.inject(operation, 0, u64::MAX, std::io::ErrorKind::ReadOnlyFilesystem);
        }
        for _ in 0..3 {
            assert!(matches!(apply(node, &engine, put("no", 2)).await, Err(OsdError::Device(_))));
        }
        assert!(engine.status().writing.unwrap().contains("read-only"));
        assert_eq!(get(node, &engine, "before").await.unwrap(), Some(stored(pattern(5_000, 1))));
        hardware.disk.clear_injections();
        apply(node, &engine, put("yes", 3)).await.unwrap();
        assert_eq!(engine.status().writing, None);
        assert_eq!(content(node, &engine).await.len(), 2);
    });
}

#[test]
fn a_full_file_system_keeps_room_for_deletes() {
    let hardware = Hardware::new(1);
    hardware.disk.set_capacity(8 * (64 << 10));
    hardware.run(async |node, engine, _| {
        let mut taken = 0;
        loop {
            match apply(node, &engine, put(&format!("k{taken}"), taken)).await {
                Ok(()) => taken += 1,
                Err(OsdError::Full) => break,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(taken > 20, "{taken}");
        assert!(engine.status().writing.is_none(), "full is no failure");
        for nth in 0..taken {
            let delete = batch(vec![OsdUpdate::Delete(key(&format!("k{nth}")))]);
            apply(node, &engine, delete).await.unwrap();
        }
        assert_eq!(engine.usage().used, ByteCount(0));
        // Dead segments went away, so that there is room again.
        apply(node, &engine, put("again", 1)).await.unwrap();
        assert_eq!(content(node, &engine).await.len(), 1);
    });
}

#[test]
fn a_failing_index_is_opened_again_and_follows_the_segments() {
    let hardware = Hardware::new(1);
    hardware.run(async |node, engine, _| {
        apply(node, &engine, put("before", 1)).await.unwrap();
        hardware.index.fail();
        let failed = apply(node, &engine, put("open question", 2)).await;
        assert!(matches!(failed, Err(OsdError::Device(_))), "{failed:?}");
        assert!(engine.status().index.is_some());
        // The store is reopened, as after its process died.
        hardware.index.crash(0);
        apply(node, &engine, put("after", 3)).await.unwrap();
        assert_eq!(engine.status().index, None);
        assert_eq!(content(node, &engine).await.len(), 3, "what is durable in the segments counts");
    });
}

#[test]
fn dead_segments_are_reused_and_nothing_deleted_returns() {
    let hardware = Hardware::new(3);
    let mut model = Model::new();
    let mut rng = StdRng::seed_from_u64(3);
    hardware.run(async |node, engine, _| {
        for _ in 0..300 {
            let batch = random_batch(&mut rng, &model);
            let expected = play(&mut model, &batch);
            assert_eq!(apply(node, &engine, batch).await.is_ok(), expected);
        }
        let lives = engine.segments().iter().map(|segment| segment.generation).max().unwrap();
        assert!(lives > 30, "segments were reused: {lives} lives");
    });
    assert!(hardware.disk.names().len() < 30, "{:?}", hardware.disk.names());
    hardware.index.wipe();
    let found = hardware.run(async |node, engine, opening| {
        assert_eq!(opening.damage, Vec::<String>::new());
        content(node, &engine).await
    });
    assert_eq!(found, model);
}
