//! kill -9 of every process at random moments of a write load: what was acknowledged is there, and nothing partial is.
//!
//! `ALBA_LONG_TESTS=1` makes more rounds; `ALBA_TEST_SEED` picks other moments.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "test code: it fails by panicking, and it is outside of what is simulated"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alba_tests::cluster::{Cluster, Options};
use alba_tests::history::{Content, History, identify};
use alba_tests::proxy::User;
use alba_tests::{content, wait};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;
use tokio::task::JoinHandle;

/// Names are reused, so that overwrites and deletes are cut off too.
const NAMES_PER_WRITER: usize = 12;
const WRITERS: usize = 3;

fn long() -> bool {
    std::env::var_os("ALBA_LONG_TESTS").is_some()
}

fn options() -> Options {
    Options::new(env!("CARGO_BIN_EXE_alba-under-test"))
}

fn seed() -> u64 {
    std::env::var("ALBA_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// Writes until told to stop, and says what came of it.
async fn write(
    mut user: User,
    directory: PathBuf,
    writer: usize,
    round: u64,
    mut history: History,
    stop: Arc<AtomicBool>,
) -> History {
    let mut rng = StdRng::seed_from_u64(seed() ^ (round << 8) ^ writer as u64);
    let file = directory.join(format!("writer-{writer}"));
    let mut attempt = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        attempt += 1;
        let name = format!("writer {writer} name {}", rng.random_range(0..NAMES_PER_WRITER));
        let result = if rng.random_ratio(1, 6) {
            history.begin(&name, None);
            user.delete(&name).await
        } else {
            let size = match rng.random_range(0..10_u32) {
                0 => 0,
                1..=6 => rng.random_range(1..100_000),
                _ => rng.random_range(100_000..6_000_000),
            };
            let tag = format!("{name} round {round} attempt {attempt}");
            content::write_file(&file, &tag, size).unwrap();
            history.begin(&name, Some(Content { tag, size }));
            user.upload(&name, &file, true).await
        };
        match result {
            Ok(()) => history.acknowledged(&name),
            // Do not spin while the proxy is dead.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    history
}

/// Reads every name and compares with what it may hold; afterwards the history knows what each holds.
async fn check(user: &mut User, directory: &Path, history: &mut History) {
    let listed = user.list().await.unwrap();
    let names: Vec<String> = history.names().map(str::to_owned).collect();
    for name in &listed {
        assert!(names.contains(name), "{name} is listed, but nobody wrote it");
    }
    let file = directory.join("read-back");
    for name in &names {
        let possible = history.possible(name);
        if !listed.contains(name) {
            history.settle(name, None);
            continue;
        }
        user.download(name, &file).await.unwrap_or_else(|error| panic!("{name}: {error}; {possible:?}"));
        let bytes = std::fs::read(&file).unwrap();
        let found = identify(&possible, &bytes)
            .unwrap_or_else(|| panic!("{name} has {} bytes that are none of {possible:?}", bytes.len()));
        assert_eq!(user.size(name).await.unwrap(), found.size);
        history.settle(name, Some(found));
    }
}

/// The writers of a round.
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<History>>,
}

impl Load {
    fn start(cluster: &Cluster, round: u64, histories: Vec<History>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = histories
            .into_iter()
            .enumerate()
            .map(|(writer, history)| {
                let user = User::new(cluster.proxy(), "demo");
                let directory = cluster.scratch().to_owned();
                tokio::spawn(write(user, directory, writer, round, history, stop.clone()))
            })
            .collect();
        Self { stop, writers }
    }

    async fn end(self) -> Vec<History> {
        self.stop.store(true, Ordering::Relaxed);
        let mut histories = Vec::new();
        for writer in self.writers {
            histories.push(writer.await.unwrap());
        }
        histories
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_objects_survive_the_death_of_everything() {
    let mut rng = StdRng::seed_from_u64(seed());
    let mut cluster = Cluster::start("kill-everything", options());
    let mut histories = vec![History::default(); WRITERS];
    for round in 0..if long() { 20 } else { 4 } {
        let load = Load::start(&cluster, round, histories);
        tokio::time::sleep(Duration::from_millis(rng.random_range(500..3000))).await;
        cluster.kill_everything(|processes| processes.shuffle(&mut rng));
        histories = load.end().await;
        cluster.up();
        let mut user = User::new(cluster.proxy(), "demo");
        let mut history = History::default();
        for part in histories {
            history.merge(part);
        }
        check(&mut user, cluster.scratch(), &mut history).await;
        histories = (0..WRITERS).map(|writer| history.part(&format!("writer {writer} "))).collect();
        let objects: usize = histories.iter().map(History::objects).sum();
        println!("round {round}: {objects} objects as acknowledged");
    }
    let objects: usize = histories.iter().map(History::objects).sum();
    assert!(objects > 10, "the load stored something: {objects}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_after_the_other_is_killed_and_comes_back() {
    let mut rng = StdRng::seed_from_u64(seed() + 1000);
    let mut options = options();
    options.restart = true;
    let cluster = Cluster::start("kill-one-by-one", options);
    let load = Load::start(&cluster, 0, vec![History::default(); WRITERS]);
    let kinds = ["asd-server", "metadata", "proxy"];
    for kill in 0..if long() { 60 } else { 12 } {
        tokio::time::sleep(Duration::from_millis(rng.random_range(200..1200))).await;
        let daemons = wait::until("a daemon to kill", Duration::from_secs(30), || {
            let found = cluster.daemons(kinds[kill % kinds.len()]);
            if found.is_empty() { Err("none is running".to_owned()) } else { Ok(found) }
        });
        daemons.choose(&mut rng).unwrap().signal(Signal::KILL);
    }
    let mut history = History::default();
    for part in load.end().await {
        history.merge(part);
    }
    let expected = cluster.ready.processes.len();
    wait::until("all processes are back", Duration::from_secs(60), || {
        // Beside the daemons there is their supervisor.
        let running = cluster.processes().len();
        if running > expected { Ok(()) } else { Err(format!("{running} of {}", expected + 1)) }
    });
    wait::until_async("the proxy answers", Duration::from_secs(60), || {
        let mut user = User::new(cluster.proxy(), "demo");
        async move { user.list().await.map_err(|error| error.to_string()) }
    })
    .await;
    let mut user = User::new(cluster.proxy(), "demo");
    check(&mut user, cluster.scratch(), &mut history).await;
    println!("{} objects as acknowledged", history.objects());
    assert!(history.objects() > 10, "the load stored something");
}
