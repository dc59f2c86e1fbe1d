//! Foyer's files: reopened, killed, damaged, of another format, in use, not there.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use alba_core::env::{files, real};

use super::super::FragmentCache;
use super::super::ssd::Ssd;
use super::*;

const LEN: usize = 200_000;
const DISK: u64 = 32 << 20;

/// A cache with almost no memory over foyer in `path`.
fn open(env: &Env, path: &Path) -> Arc<LocalCache> {
    let (generations, sketch) = (Arc::new(Generations::new()), Arc::new(Sketch::new()));
    let ssd = Ssd::new(path.to_owned(), DISK, generations.clone(), sketch.clone());
    // Debug builds on a busy machine: none of these tests is about speed.
    let disk = Guarded::start(Arc::new(ssd), env, Duration::from_secs(5), 1 << 30);
    Arc::new(LocalCache::new(1, Some(disk), generations, sketch))
}

async fn works(env: &Env, cache: &LocalCache) {
    until(&*env.clock, async || cache.statistics().disk.unwrap().broken.is_none()).await;
}

async fn fill(env: &Env, cache: &LocalCache, keys: &[CacheKey]) {
    for key in keys {
        cache.put(key, entry(key, LEN));
        until(&*env.clock, async || cache.may_have(key)).await;
    }
}

/// How many of the keys are there; none with other bytes than it should have.
async fn found(cache: &LocalCache, keys: &[CacheKey]) -> usize {
    let mut found = 0;
    for key in keys {
        let Some(got) = cache.get(key).await else { continue };
        assert_eq!(got.range(key, 200_000, 0, 200_000).unwrap(), content(key, LEN));
        found += 1;
    }
    found
}

fn keys() -> Vec<CacheKey> {
    (0..30).map(|object| key(3, object)).collect()
}

fn blocks(path: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(path.join("blocks")).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Files can be used again once all that was open is closed.
async fn closed(env: &Env, path: &Path) {
    until(&*env.clock, async || files::try_lock(&path.join("lock")).unwrap().is_some()).await;
}

fn flip(path: &Path, every: usize) {
    for block in blocks(path) {
        let mut bytes = std::fs::read(&block).unwrap();
        let mut file = files::open_or_create(&block).unwrap();
        // Pages that were never written stay so: they say how much is used.
        for (page, bytes) in bytes.chunks_mut(every).enumerate() {
            if bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            bytes[every / 2] ^= 0x10;
            file.seek(SeekFrom::Start(u64::try_from(page * every).unwrap())).unwrap();
            file.write_all(bytes).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_cached_and_what_was_dropped_survive_a_restart() {
    let (env, dir) = (real::env(), tempfile::tempdir().unwrap());
    let path = dir.path().join("cache");
    let keys = keys();
    let gone = key(4, 1);
    {
        let cache = open(&env, &path);
        works(&env, &cache).await;
        fill(&env, &cache, &keys).await;
        fill(&env, &cache, &[gone]).await;
        cache.drop_namespace(gone.namespace);
        let none = vec![0_u8; 4096];
        until(&*env.clock, async || {
            let note = std::fs::read(path.join("format")).unwrap();
            note[16..16 + 4096] != none[..]
        })
        .await;
        assert!(cache.statistics().disk.unwrap().tier.bytes > 30 * 200_000);
    }
    closed(&env, &path).await;
    let cache = open(&env, &path);
    works(&env, &cache).await;
    assert_eq!(found(&cache, &keys).await, keys.len());
    assert!(cache.get(&gone).await.is_none());
    assert!(cache.statistics().disk.unwrap().tier.bytes > 30 * 200_000, "the files tell how much is used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_leaves_nothing_wrong() {
    let (env, dir) = (real::env(), tempfile::tempdir().unwrap());
    let (path, left) = (dir.path().join("cache"), dir.path().join("left"));
    let keys = keys();
    let cache = open(&env, &path);
    works(&env, &cache).await;
    fill(&env, &cache, &keys[..10]).await;
    for key in &keys[10..] {
        cache.put(key, entry(key, LEN));
    }
    // While it is writing: what the files hold now is what a killed process would leave.
    files::create_dir_all(&left.join("blocks")).unwrap();
    for file in blocks(&path) {
        let mut copy = files::create(&left.join("blocks").join(file.file_name().unwrap())).unwrap();
        copy.write_all(&std::fs::read(&file).unwrap()).unwrap();
    }
    let mut copy = files::create(&left.join("format")).unwrap();
    copy.write_all(&std::fs::read(path.join("format")).unwrap()).unwrap();
    drop(copy);
    let second = open(&env, &left);
    works(&env, &second).await;
    let there = found(&second, &keys).await;
    assert!(there >= 10, "{there}");
    // What is missing can be added.
    fill(&env, &second, &keys).await;
    assert_eq!(found(&second, &keys).await, keys.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bits_on_the_disk_are_misses_and_are_counted() {
    let (env, dir) = (real::env(), tempfile::tempdir().unwrap());
    let path = dir.path().join("cache");
    let keys = keys();
    // While it is open, in every fragment; and while it is closed, in everything, foyer's own indexes too.
    let cache = open(&env, &path);
    works(&env, &cache).await;
    fill(&env, &cache, &keys).await;
    flip(&path, 32 << 10);
    assert_eq!(found(&cache, &keys).await, 0);
    assert!(cache.statistics().damaged >= 30, "{:?}", cache.statistics());
    assert!(keys.iter().all(|key| !cache.may_have(key)));
    works(&env, &cache).await;
    fill(&env, &cache, &keys).await;
    assert_eq!(found(&cache, &keys).await, keys.len());
    drop(cache);
    closed(&env, &path).await;
    flip(&path, 512);
    let cache = open(&env, &path);
    works(&env, &cache).await;
    assert_eq!(found(&cache, &keys).await, 0);
    fill(&env, &cache, &keys).await;
    assert_eq!(found(&cache, &keys).await, keys.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_format_is_replaced_and_other_peoples_files_are_left_alone() {
    let (env, dir) = (real::env(), tempfile::tempdir().unwrap());
    let path = dir.path().join("cache");
    let keys = keys();
    for note in [Some(&b"ALBAFC99 something"[..]), Some(b""), None] {
        {
            let cache = open(&env, &path);
            works(&env, &cache).await;
            fill(&env, &cache, &keys).await;
        }
        closed(&env, &path).await;
        match note {
            Some(note) => files::create(&path.join("format")).unwrap().write_all(note).unwrap(),
            None => files::remove_file(&path.join("format")).unwrap(),
        }
        files::create(&path.join("mine.txt")).unwrap().write_all(b"mine").unwrap();
        let cache = open(&env, &path);
        works(&env, &cache).await;
        assert_eq!(found(&cache, &keys).await, 0, "{note:?}");
        assert_eq!(std::fs::read(path.join("mine.txt")).unwrap(), b"mine");
        drop(cache);
        closed(&env, &path).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_cannot_be_used_is_said_so_and_used_once_it_can() {
    let (env, dir) = (real::env(), tempfile::tempdir().unwrap());
    let path = dir.path().join("cache");
    // A file in its place.
    files::create(&path).unwrap();
    let cache = open(&env, &path);
    let reason = async |cache: &LocalCache, what: &str| {
        until(&*env.clock, async || {
            cache.statistics().disk.unwrap().broken.is_some_and(|reason| reason.contains(what))
        })
        .await;
    };
    reason(&cache, "cannot create").await;
    assert!(cache.get(&key(1, 1)).await.is_none());
    files::remove_file(&path).unwrap();
    works(&env, &cache).await;
    // Of two processes with one directory the second goes without.
    let second = open(&env, &path);
    reason(&second, "still in use").await;
    fill(&env, &cache, &[key(1, 1)]).await;
    drop(cache);
    works(&env, &second).await;
    assert_eq!(found(&second, &[key(1, 1)]).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_cut_short_or_removed_under_it_break_it_until_it_is_opened_anew() {
    let (env, dir) = (real::env(), tempfile::tempdir().unwrap());
    let path = dir.path().join("cache");
    let keys = keys();
    let cache = open(&env, &path);
    works(&env, &cache).await;
    fill(&env, &cache, &keys).await;
    for block in blocks(&path) {
        files::open_or_create(&block).unwrap().set_len(0).unwrap();
    }
    assert_eq!(found(&cache, &keys).await, 0);
    let disk = cache.statistics().disk.unwrap();
    assert!(disk.errors >= 3 && disk.broken.is_some(), "{disk:?}");
    works(&env, &cache).await;
    fill(&env, &cache, &keys).await;
    assert_eq!(found(&cache, &keys).await, keys.len());
    // All of it removed: what is open goes on.
    files::remove_dir_all(&path).unwrap();
    assert_eq!(found(&cache, &keys).await, keys.len());
}
