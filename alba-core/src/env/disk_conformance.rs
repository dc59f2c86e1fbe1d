//! What every [`Disk`] must do while nothing crashes, as code. Each implementation runs it in its tests.
#![allow(clippy::unwrap_used, reason = "a suite of assertions")]

use std::io::ErrorKind;

use bytes::Bytes;

use super::Disk;
use super::disk::{BLOCK, BLOCK_BYTES};

/// Runs all of it on an empty disk. Panics on the first deviation.
pub async fn run(disk: &dyn Disk) {
    assert!(disk.list().await.unwrap().is_empty());
    let file = disk.create("b", 10_000).await.unwrap();
    assert_eq!(file.len().await.unwrap(), 10_000);
    assert_eq!(file.read_at(9_000, 1_000).await.unwrap(), vec![0; 1_000], "new space is zero");
    assert_eq!(file.read_at(9_001, 1_000).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(disk.create("b", 0).await.err().unwrap().kind(), ErrorKind::AlreadyExists);
    assert_eq!(disk.open("absent").await.err().unwrap().kind(), ErrorKind::NotFound);
    assert_eq!(disk.remove("absent").await.unwrap_err().kind(), ErrorKind::NotFound);

    let parts = ["one", "", "two"].map(|text| Bytes::from_static(text.as_bytes()));
    file.write_at(4_094, parts.to_vec()).await.unwrap();
    assert_eq!(file.read_at(4_093, 8).await.unwrap(), &b"\0onetwo\0"[..], "before any sync");
    file.write_at(9_998, vec![Bytes::from_static(b"longer")]).await.unwrap();
    assert_eq!(file.len().await.unwrap(), 10_004);
    file.write_at(4_095, vec![Bytes::from_static(b"XX")]).await.unwrap();
    file.sync().await.unwrap();
    disk.sync_directory().await.unwrap();

    let again = disk.open("b").await.unwrap();
    assert_eq!(again.read_at(4_094, 6).await.unwrap(), &b"oXXtwo"[..]);
    assert_eq!(again.read_at(9_998, 6).await.unwrap(), &b"longer"[..]);

    disk.create("a", 0).await.unwrap();
    assert_eq!(disk.list().await.unwrap(), ["a", "b"]);
    disk.rename("b", "a").await.unwrap();
    assert_eq!(disk.list().await.unwrap(), ["a"]);
    assert_eq!(disk.open("a").await.unwrap().len().await.unwrap(), 10_004);
    disk.remove("a").await.unwrap();
    assert!(disk.list().await.unwrap().is_empty());
    assert_eq!(file.read_at(4_094, 1).await.unwrap(), &b"o"[..], "an open file outlives its name");

    let (free, total) = disk.space().await.unwrap();
    assert!(free <= total && total > 0);
    holes(disk).await;
}

async fn holes(disk: &dyn Disk) {
    let file = disk.create("holes", 6 * BLOCK_BYTES).await.unwrap();
    file.write_at(0, vec![Bytes::from(vec![7; 5 * BLOCK + 10])]).await.unwrap();
    let (sevens, zeros) = (vec![7; BLOCK], vec![0; BLOCK]);
    let expect = async |blocks: [&[u8]; 5]| {
        assert_eq!(file.read_at(0, 5 * BLOCK).await.unwrap(), blocks.concat());
        assert_eq!(file.len().await.unwrap(), 6 * BLOCK_BYTES);
    };
    for (offset, len) in [(1, BLOCK_BYTES), (BLOCK_BYTES, 1), (BLOCK_BYTES, u64::MAX - BLOCK_BYTES + 1)] {
        assert_eq!(
            file.punch(offset, len).await.unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "{offset}+{len}"
        );
    }
    file.punch(BLOCK_BYTES, 0).await.unwrap();
    expect([&sevens, &sevens, &sevens, &sevens, &sevens]).await;
    file.punch(BLOCK_BYTES, 2 * BLOCK_BYTES).await.unwrap();
    expect([&sevens, &zeros, &zeros, &sevens, &sevens]).await;
    file.sync().await.unwrap();
    file.allocate(6 * BLOCK_BYTES).await.unwrap();
    file.allocate(BLOCK_BYTES).await.unwrap();
    file.allocate(0).await.unwrap();
    expect([&sevens, &zeros, &zeros, &sevens, &sevens]).await;
    file.write_at(2 * BLOCK_BYTES, vec![Bytes::from(sevens.clone())]).await.unwrap();
    file.punch(4 * BLOCK_BYTES, 9 * BLOCK_BYTES).await.unwrap();
    expect([&sevens, &zeros, &sevens, &sevens, &zeros]).await;
    file.sync().await.unwrap();
    let again = disk.open("holes").await.unwrap();
    assert_eq!(again.read_at(2 * BLOCK_BYTES, BLOCK).await.unwrap(), sevens);
    assert_eq!(
        again.read_at(5 * BLOCK_BYTES, BLOCK).await.unwrap(),
        zeros,
        "past the end is within reach too"
    );
    disk.remove("holes").await.unwrap();
}
