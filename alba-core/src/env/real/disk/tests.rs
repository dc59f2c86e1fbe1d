use std::os::unix::fs::MetadataExt;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::env::real;

const MODES: [IoMode; 2] = [IoMode::Auto, IoMode::PageCache];

fn disk(directory: &Path, mode: IoMode) -> RealDisk {
    RealDisk::with(directory, IoConfig { threads: 3, buffer_bytes: 0, mode, carries_bulk: true }).unwrap()
}

#[tokio::test]
async fn conforms() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        crate::env::disk_conformance::run(&disk(directory.path(), mode)).await;
    }
    let directory = tempfile::tempdir().unwrap();
    crate::env::disk_conformance::run(&RealDisk::new(directory.path(), real::env().spawn)).await;
}

#[tokio::test]
async fn the_mode_is_as_demanded_and_the_probe_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(disk(directory.path(), IoMode::PageCache).mode(), IoMode::PageCache);
    let auto = disk(directory.path(), IoMode::Auto);
    let demanded = RealDisk::with(directory.path(), IoConfig { mode: IoMode::Direct, ..IoConfig::default() });
    match auto.mode() {
        IoMode::Direct => assert_eq!(demanded.unwrap().mode(), IoMode::Direct),
        _ => assert_eq!(demanded.err().unwrap().kind(), io::ErrorKind::Unsupported),
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    fs::write(directory.path().join(format!("{PROBE_PREFIX}1-1")), "left by a crash").unwrap();
    assert!(auto.list().await.unwrap().is_empty());
}

/// /proc takes no files at all, and its files no O_DIRECT.
#[test]
fn a_directory_that_takes_nothing_is_used_through_the_page_cache() {
    assert!(!matches!(probe(Path::new("/proc/self")), Probed::Takes));
    assert_eq!(disk(Path::new("/proc/self"), IoMode::Auto).mode(), IoMode::PageCache);
}

#[tokio::test]
async fn more_parts_than_one_call_takes_are_written_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let file = disk(directory.path(), IoMode::Auto).create("many", 0).await.unwrap();
    let parts: Vec<Bytes> =
        (0..3000_u16).map(|n| Bytes::copy_from_slice(&n.to_le_bytes()[..usize::from(n % 3)])).collect();
    let all = parts.concat();
    file.write_at(5, parts).await.unwrap();
    assert_eq!(file.read_at(5, all.len()).await.unwrap(), all);
}

#[tokio::test]
async fn names_cannot_leave_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path(), IoMode::Auto);
    for name in ["", ".", "..", "../x", "a/b", "/etc/passwd"] {
        assert_eq!(disk.open(name).await.err().unwrap().kind(), io::ErrorKind::InvalidInput, "{name}");
    }
}

/// Any bytes, cut into parts anywhere.
fn parts(rng: &mut StdRng, len: usize) -> (Vec<u8>, Vec<Bytes>) {
    let mut all = vec![0; len];
    rand::Rng::fill_bytes(rng, &mut all);
    let mut rest = Bytes::from(all.clone());
    let mut parts = Vec::new();
    while !rest.is_empty() && parts.len() < 20 {
        parts.push(rest.split_to(rng.random_range(0..=rest.len())));
    }
    parts.push(rest);
    (all, parts)
}

/// Whole blocks past the page cache, anything else through it, holes and fresh space: always what a plain vector says.
#[tokio::test]
async fn mixed_writes_read_back_as_a_plain_vector_would() {
    const LEN: usize = 9 << 20;
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let disk = disk(directory.path(), mode);
        let mut file = disk.create("f", 3 * BLOCK_BYTES).await.unwrap();
        let mut model = vec![0; 3 * BLOCK];
        let mut rng = StdRng::seed_from_u64(7);
        for round in 0..120 {
            let blocks = rng.random_bool(0.6);
            let unit = if blocks { BLOCK } else { 1 };
            let longest = if rng.random_bool(0.2) { 5 << 20 } else { 100_000 };
            let start = rng.random_range(0..LEN - longest) / unit * unit;
            let len = rng.random_range(0..=longest) / unit * unit;
            let (offset, size) = (u64::try_from(start).unwrap(), u64::try_from(len).unwrap());
            match round % 6 {
                5 if blocks => {
                    file.punch(offset, size).await.unwrap();
                    let end = (start + len).min(model.len());
                    model[start.min(end)..end].fill(0);
                }
                4 => file.allocate(size).await.unwrap(),
                _ => {
                    let (all, parts) = parts(&mut rng, len);
                    file.write_at(offset, parts).await.unwrap();
                    if len > 0 {
                        model.resize(model.len().max(start + len), 0);
                        model[start..start + len].copy_from_slice(&all);
                    }
                }
            }
            if round % 20 == 19 {
                file.sync().await.unwrap();
                file = disk.open("f").await.unwrap();
            }
            let from = rng.random_range(0..model.len());
            let len = rng.random_range(0..=model.len() - from);
            let len = if rng.random_bool(0.5) { len } else { len.min(10_000) };
            let read = file.read_at(u64::try_from(from).unwrap(), len).await.unwrap();
            assert!(read == model[from..from + len], "{len} bytes at {from} in round {round}");
            let end = u64::try_from(model.len()).unwrap();
            assert_eq!(file.len().await.unwrap(), end);
            let past = file.read_at(end - 1, 2 + rng.random_range(0..10 << 20)).await;
            assert_eq!(past.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(disk.usage(), IoUsage { operations: 0, buffer_bytes: 0, lent_bytes: 0 });
    }
}

#[tokio::test]
async fn reads_far_past_the_end_fail_without_taking_the_memory() {
    let directory = tempfile::tempdir().unwrap();
    let file = disk(directory.path(), IoMode::Auto).create("f", 10).await.unwrap();
    for (offset, len) in [(0, usize::MAX), (u64::MAX, 1), (u64::MAX - 5000, 1000), (1 << 40, 1 << 40)] {
        file.read_at(offset, len).await.unwrap_err();
    }
    assert_eq!(file.read_at(3, 0).await.unwrap(), Bytes::new());
}

#[tokio::test]
async fn values_that_are_kept_do_not_stop_reading_and_writing() {
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path(), IoMode::Auto);
    let file = disk.create("f", 0).await.unwrap();
    let value = |n: u8| Bytes::from(vec![n; 1 << 20]);
    for n in 0..48 {
        file.write_at(u64::from(n) << 20, vec![value(n)]).await.unwrap();
    }
    // Three times the pool, all kept, while more is written.
    let mut kept = Vec::new();
    for n in 0..48 {
        kept.push(file.read_at(u64::from(n) << 20, 1 << 20).await.unwrap());
        file.write_at(48 << 20, vec![value(n)]).await.unwrap();
    }
    let usage = disk.usage();
    assert!(usage.lent_bytes > 0 && usage.buffer_bytes == usage.lent_bytes, "{usage:?}");
    for (n, bytes) in (0..48).zip(&kept) {
        assert_eq!(*bytes, value(n), "{n}");
    }
    drop(kept);
    assert_eq!(disk.usage().buffer_bytes, 0);
}

#[tokio::test]
async fn calls_that_are_given_up_give_everything_back() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(disk(directory.path(), IoMode::Auto));
    let file = disk.create("f", 8 << 20).await.unwrap();
    let data = Bytes::from(vec![1; 4 << 20]);
    for _ in 0..20 {
        // Far more than there are buffers and threads; all are dropped in whatever state they are.
        let mut calls = Vec::new();
        for _ in 0..30 {
            let (one, two) = (file.clone(), file.clone());
            let data = data.clone();
            calls.push(tokio::spawn(async move { one.read_at(5, 4 << 20).await.map(drop) }));
            calls.push(tokio::spawn(async move { two.write_at(0, vec![data]).await }));
        }
        tokio::task::yield_now().await;
        calls.iter().for_each(tokio::task::JoinHandle::abort);
        for call in calls {
            if let Ok(result) = call.await {
                result.unwrap();
            }
        }
    }
    let start = std::time::Instant::now();
    while disk.usage() != (IoUsage { operations: 0, buffer_bytes: 0, lent_bytes: 0 }) {
        assert!(start.elapsed().as_secs() < 60, "{:?}", disk.usage());
        tokio::task::yield_now().await;
    }
    file.read_at(0, 8 << 20).await.unwrap();
}

#[tokio::test]
async fn a_punched_hole_gives_its_blocks_back_and_allocate_takes_them_again() {
    for mode in MODES {
        let directory = tempfile::tempdir().unwrap();
        let disk = disk(directory.path(), mode);
        let file = disk.create("f", 1 << 20).await.unwrap();
        file.write_at(0, vec![Bytes::from(vec![1; 1 << 20])]).await.unwrap();
        file.sync().await.unwrap();
        let blocks = || fs::metadata(directory.path().join("f")).unwrap().blocks() * 512;
        let full = blocks();
        assert!(full >= 1 << 20);
        file.punch(256 << 10, 512 << 10).await.unwrap();
        assert!(blocks() <= full - (512 << 10), "{} of {full}", blocks());
        file.allocate(1 << 20).await.unwrap();
        assert_eq!(blocks(), full);
        file.allocate(2 << 20).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 1 << 20, "the length stays");
    }
}
