use std::collections::BTreeSet;

use super::*;

const CAPACITY: u64 = 1 << 30;

#[tokio::test]
async fn conforms() {
    crate::env::disk_conformance::run(&SimDiskDevice::new(1, CAPACITY).open()).await;
}

/// Two sectors synced, two written after; which of the latter survive?
async fn survivors(seed: u64) -> Vec<u8> {
    let device = SimDiskDevice::new(seed, CAPACITY);
    let disk = device.open();
    let file = disk.create("f", 4 * SECTOR).await.unwrap();
    disk.sync_directory().await.unwrap();
    file.write_at(0, vec![Bytes::from(vec![1; 1024])]).await.unwrap();
    file.sync().await.unwrap();
    file.write_at(1024, vec![Bytes::from(vec![2; 1024])]).await.unwrap();
    device.crash();
    assert!(file.read_at(0, 1).await.is_err(), "handles die with the power");
    let content = device.content("f").unwrap();
    assert!(content[..1024].iter().all(|byte| *byte == 1), "synced bytes stay");
    content[1024..]
        .chunks(512)
        .map(|sector| {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "torn at sectors only");
            sector[0]
        })
        .collect()
}

#[tokio::test]
async fn a_crash_keeps_drops_or_tears_what_was_not_synced() {
    let mut seen = BTreeSet::new();
    for seed in 0..60 {
        let outcome = survivors(seed).await;
        assert_eq!(outcome, survivors(seed).await, "the seed decides");
        seen.insert(outcome);
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[tokio::test]
async fn an_unsynced_name_may_be_lost_with_its_synced_content() {
    let mut seen = BTreeSet::new();
    for seed in 0..40 {
        let device = SimDiskDevice::new(seed, CAPACITY);
        let disk = device.open();
        disk.create("old", 0).await.unwrap();
        disk.sync_directory().await.unwrap();
        disk.create("new", 0).await.unwrap().sync().await.unwrap();
        disk.remove("old").await.unwrap();
        device.crash();
        seen.insert(device.names().concat());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["", "new", "newold", "old"]);
}

#[tokio::test]
async fn a_failed_sync_is_not_mended_by_the_next_one() {
    let lost = async |seed| {
        let device = SimDiskDevice::new(seed, CAPACITY);
        let disk = device.open();
        let file = disk.create("f", SECTOR).await.unwrap();
        disk.sync_directory().await.unwrap();
        device.inject(DiskOperation::Sync, 0, 1, io::ErrorKind::Other);
        file.write_at(0, vec![Bytes::from_static(b"x")]).await.unwrap();
        file.sync().await.unwrap_err();
        file.sync().await.unwrap();
        assert_eq!(file.read_at(0, 1).await.unwrap(), &b"x"[..]);
        device.crash();
        device.content("f").unwrap()[0] == 0
    };
    let mut outcomes = BTreeSet::new();
    for seed in 0..20 {
        outcomes.insert(lost(seed).await);
    }
    assert_eq!(outcomes.len(), 2, "sometimes it was written, sometimes not");
}

#[tokio::test]
async fn the_power_stays_off_until_the_crash() {
    let device = SimDiskDevice::new(1, CAPACITY);
    let disk = device.open();
    device.cut_power_after(1);
    let file = disk.create("f", SECTOR).await.unwrap();
    assert!(!device.power_is_cut());
    file.sync().await.unwrap_err();
    assert!(device.power_is_cut());
    file.sync().await.unwrap_err();
    disk.list().await.unwrap_err();
    device.crash();
    device.open().list().await.unwrap();
}

#[tokio::test]
async fn a_full_disk_says_so() {
    let device = SimDiskDevice::new(1, 1000);
    let disk = device.open();
    let file = disk.create("f", 600).await.unwrap();
    assert_eq!(disk.create("g", 600).await.err().unwrap().kind(), io::ErrorKind::StorageFull);
    let big = vec![Bytes::from(vec![0; 500])];
    assert_eq!(file.write_at(600, big).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.space().await.unwrap(), (400, 1000));
}

#[tokio::test]
async fn a_hole_gives_space_back_and_takes_it_again() {
    const BLOCK: u64 = 4096;
    let device = SimDiskDevice::new(1, 10 * BLOCK);
    let disk = device.open();
    let file = disk.create("f", 8 * BLOCK).await.unwrap();
    file.write_at(0, vec![Bytes::from(vec![1; 32_768])]).await.unwrap();
    assert_eq!(disk.space().await.unwrap().0, 2 * BLOCK);
    file.punch(BLOCK, 6 * BLOCK).await.unwrap();
    assert_eq!(disk.space().await.unwrap().0, 8 * BLOCK);
    assert_eq!(file.len().await.unwrap(), 8 * BLOCK);

    disk.create("g", 5 * BLOCK).await.unwrap();
    assert_eq!(file.allocate(8 * BLOCK).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
    let block = |byte: u8| vec![Bytes::from(vec![byte; 4096])];
    file.write_at(0, block(2)).await.unwrap();
    file.allocate(4 * BLOCK).await.unwrap();
    assert_eq!(disk.space().await.unwrap().0, 0);
    file.write_at(3 * BLOCK, block(2)).await.unwrap();
    assert_eq!(file.write_at(4 * BLOCK, block(2)).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
    disk.remove("g").await.unwrap();
    file.write_at(4 * BLOCK, block(2)).await.unwrap();
    assert_eq!(disk.space().await.unwrap().0, 4 * BLOCK);

    // Less than what is in use: rewriting still works, and nothing more.
    device.set_capacity(BLOCK);
    file.write_at(0, block(3)).await.unwrap();
    assert_eq!(file.write_at(5 * BLOCK, block(3)).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
}

#[tokio::test]
async fn a_hole_is_a_write_of_zeros_until_it_is_synced() {
    let mut seen = BTreeSet::new();
    for seed in 0..60 {
        let device = SimDiskDevice::new(seed, CAPACITY);
        let disk = device.open();
        let file = disk.create("f", 3 * 4096).await.unwrap();
        disk.sync_directory().await.unwrap();
        file.write_at(0, vec![Bytes::from(vec![1; 3 * 4096])]).await.unwrap();
        file.sync().await.unwrap();
        file.punch(4096, 4096).await.unwrap();
        device.crash();
        let content = device.content("f").unwrap();
        assert!(content[..4096].iter().chain(&content[8192..]).all(|byte| *byte == 1));
        let left = content.iter().filter(|byte| **byte == 1).count();
        let (free, total) = device.open().space().await.unwrap();
        assert_eq!(total - free, u64::try_from(left).unwrap(), "what became a hole takes no space");
        seen.insert(left);

        let file = device.open().open("f").await.unwrap();
        file.punch(4096, 4096).await.unwrap();
        file.sync().await.unwrap();
        device.crash();
        assert!(device.content("f").unwrap()[4096..8192].iter().all(|byte| *byte == 0), "synced");
    }
    assert!(seen.contains(&8192) && seen.contains(&12_288) && seen.len() > 2, "{seen:?}");
}

#[tokio::test]
async fn a_failed_hole_leaves_any_part_of_it() {
    let mut seen = BTreeSet::new();
    for seed in 0..40 {
        let device = SimDiskDevice::new(seed, CAPACITY);
        let file = device.open().create("f", 4096).await.unwrap();
        file.write_at(0, vec![Bytes::from(vec![1; 4096])]).await.unwrap();
        device.inject(DiskOperation::Punch, 0, 1, io::ErrorKind::Other);
        file.punch(0, 4096).await.unwrap_err();
        seen.insert(device.content("f").unwrap().iter().filter(|byte| **byte == 1).count());
    }
    assert!(seen.contains(&0) && seen.contains(&4096) && seen.len() > 2, "{seen:?}");
}

#[tokio::test]
async fn failures_can_be_kept_to_one_file() {
    let device = SimDiskDevice::new(1, CAPACITY);
    let disk = device.open();
    let (one, two) = (disk.create("one", 10).await.unwrap(), disk.create("two", 10).await.unwrap());
    let write = async |file: &dyn DiskFile| file.write_at(0, vec![Bytes::from_static(b"x")]).await;
    device.inject_on("one", DiskOperation::Write, 1, 2, io::ErrorKind::StorageFull);
    device.inject_on("three", DiskOperation::Directory, 0, 1, io::ErrorKind::PermissionDenied);
    for _ in 0..3 {
        write(two.as_ref()).await.unwrap();
    }
    write(one.as_ref()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(write(one.as_ref()).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
        one.sync().await.unwrap();
    }
    write(one.as_ref()).await.unwrap();
    assert_eq!(disk.create("three", 0).await.err().unwrap().kind(), io::ErrorKind::PermissionDenied);
    disk.create("three", 0).await.unwrap();
    // By the name it has when it happens.
    device.inject_on("moved", DiskOperation::Read, 0, 1, io::ErrorKind::Other);
    disk.rename("one", "moved").await.unwrap();
    one.read_at(0, 1).await.unwrap_err();
    one.read_at(0, 1).await.unwrap();
}

#[tokio::test]
async fn a_read_only_disk_serves_reads_and_refuses_changes_until_it_is_set_back() {
    let device = SimDiskDevice::new(1, CAPACITY);
    let disk = device.open();
    let file = disk.create("f", 8192).await.unwrap();
    file.write_at(0, vec![Bytes::from_static(b"x")]).await.unwrap();
    file.sync().await.unwrap();
    disk.sync_directory().await.unwrap();
    device.set_read_only(true);
    let data = || vec![Bytes::from_static(b"y")];
    let refused = [
        file.write_at(0, data()).await.unwrap_err(),
        file.sync().await.unwrap_err(),
        file.punch(0, 4096).await.unwrap_err(),
        file.allocate(4096).await.unwrap_err(),
        disk.create("g", 0).await.err().unwrap(),
        disk.remove("f").await.unwrap_err(),
        disk.rename("f", "g").await.unwrap_err(),
        disk.sync_directory().await.unwrap_err(),
    ];
    assert!(refused.iter().all(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem), "{refused:?}");
    assert_eq!(disk.open("f").await.unwrap().read_at(0, 1).await.unwrap(), &b"x"[..]);
    assert_eq!(disk.list().await.unwrap(), ["f"]);
    device.set_read_only(false);
    file.write_at(0, data()).await.unwrap();
    file.sync().await.unwrap();
    device.crash();
    assert_eq!(device.content("f").unwrap()[0], b'y');
}

#[tokio::test]
async fn sectors_are_swapped_for_good() {
    let device = SimDiskDevice::new(1, CAPACITY);
    let disk = device.open();
    for (name, byte) in [("a", 1_u8), ("b", 2)] {
        let file = disk.create(name, 2048).await.unwrap();
        file.write_at(0, vec![Bytes::from(vec![byte; 2048])]).await.unwrap();
        file.write_at(0, vec![Bytes::from(vec![byte + 10; 512])]).await.unwrap();
        file.sync().await.unwrap();
    }
    disk.sync_directory().await.unwrap();
    assert!(device.swap_sectors("a", 512, "b", 1024, 512));
    assert!(device.swap_sectors("a", 0, "a", 1024, 512));
    assert!(!device.swap_sectors("a", 0, "a", 511, 512), "overlapping");
    assert!(!device.swap_sectors("a", 0, "b", 1537, 512), "past the end");
    assert!(!device.swap_sectors("a", 0, "c", 0, 512));
    let sectors = || {
        ["a", "b"]
            .map(|name| device.content(name).unwrap().chunks(512).map(|sector| sector[0]).collect::<Vec<_>>())
    };
    let expected = [vec![1, 2, 11, 1], vec![12, 2, 1, 2]];
    assert_eq!(sectors(), expected);
    device.crash();
    assert_eq!(sectors(), expected);
}
