//! The real program: killed while it writes, started again, everything acknowledged is there.
#![allow(clippy::unwrap_used, reason = "a test, its helpers included")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alba_core::checksum::ChecksumAlgorithm;
use alba_core::env::osd::{Osd, OsdAssert, OsdBatch, OsdKey, OsdUpdate, Priority, StoredValue};
use alba_core::env::{Env, OsdError, real};
use alba_core::ids::LongId;
use alba_core::net::asd::{AsdClient, AsdClientConfig, probe};
use bytes::Bytes;

const LONG_ID: &str = "killed-asd";

/// For whatever should not take long.
const WAIT: Duration = Duration::from_secs(30);

/// A child that does not outlive the test.
struct Asd(Child);

impl Drop for Asd {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn command(directory: &Path, address: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_asd-server"));
    for (key, value) in [
        ("data_dir", format!("{:?}", directory.to_str().unwrap())),
        ("place", "\"node-0\"".to_owned()),
        ("long_id", format!("{LONG_ID:?}")),
        ("listen", format!("\"{address}\"")),
        ("segment_bytes", (4 << 20).to_string()),
    ] {
        command.arg("--set").arg(format!("asd.{key}={value}"));
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

async fn start(env: &Env, directory: &Path, address: SocketAddr) -> Asd {
    let mut asd = Asd(command(directory, address).stderr(Stdio::inherit()).spawn().unwrap());
    let limit = env.deadline_in(WAIT);
    while probe(env, address, env.deadline_in(Duration::from_secs(1))).await.is_err() {
        assert!(!limit.left(env.clock.as_ref()).is_zero(), "it does not start");
        assert_eq!(asd.0.try_wait().unwrap(), None, "it ended at once");
        env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(20))).await;
    }
    asd
}

fn free_address() -> SocketAddr {
    // The port is free again once the listener is dropped.
    #[allow(clippy::disallowed_types, reason = "only to find a free port")]
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn stored(nth: u64) -> StoredValue {
    let len = [10, 5_000, 20_000, 70_000][usize::try_from(nth % 4).unwrap()];
    let value: Vec<u8> = (0..len).map(|i: u64| (i.wrapping_mul(nth + 1) >> 3).to_le_bytes()[0]).collect();
    let value = Bytes::from(value);
    StoredValue { checksum: ChecksumAlgorithm::Crc32c.of(&value), value }
}

fn key(writer: u64, nth: u64) -> OsdKey {
    format!("w{writer}-{nth:06}").into()
}

/// Writes until it fails; gives the number of acknowledged values.
async fn write(env: Env, osd: Arc<AsdClient>, writer: u64, from: u64, count: Arc<AtomicBool>) -> u64 {
    let mut nth = from;
    loop {
        let batch = OsdBatch {
            asserts: vec![OsdAssert::Absent(key(writer, nth))],
            updates: vec![OsdUpdate::Set(key(writer, nth), stored(nth))],
        };
        if let Err(error) = osd.apply(batch, Priority::High, env.deadline_in(Duration::from_secs(5))).await {
            assert!(matches!(error, OsdError::Connection(_) | OsdError::Timeout), "{error}");
            return nth;
        }
        nth += 1;
        if nth >= from + 20 {
            count.store(true, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_writes_loses_nothing_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("asd");
    let env = real::env();
    let address = free_address();
    let id = LongId::new(LONG_ID).unwrap();
    // (writer, first number, end of the acknowledged ones)
    let mut acknowledged: Vec<(u64, u64, u64)> = Vec::new();
    for round in 0..4 {
        let mut asd = start(&env, &data, address).await;
        let osd = AsdClient::new(env.clone(), vec![address], id.clone(), AsdClientConfig::default());
        for (writer, from, end) in &acknowledged {
            for nth in *from..*end {
                let keys = vec![key(*writer, nth)];
                let found = osd.multi_get(keys, Priority::High, env.deadline_in(WAIT)).await.unwrap();
                assert_eq!(found, [Some(stored(nth))], "round {round}, writer {writer}, value {nth}");
            }
        }
        if round == 3 {
            break;
        }
        let busy = Arc::new(AtomicBool::new(false));
        // A write that was cut off may have happened: each round has numbers of its own.
        let from = round * 100_000;
        let mut running = Vec::new();
        for writer in 0..4 {
            let (env, osd, busy) = (env.clone(), osd.clone(), busy.clone());
            let (answer, result) = tokio::sync::oneshot::channel();
            let spawn = env.spawn.clone();
            let task = async move {
                let _ = answer.send(write(env, osd, writer, from, busy).await);
            };
            spawn.spawn("writer", Box::pin(task));
            running.push((writer, result));
        }
        let limit = env.deadline_in(WAIT);
        while !busy.load(Ordering::Relaxed) {
            assert!(!limit.left(env.clock.as_ref()).is_zero(), "it does not write");
            env.clock.sleep_until(env.clock.now().plus(Duration::from_millis(5))).await;
        }
        asd.0.kill().unwrap();
        asd.0.wait().unwrap();
        for (writer, result) in running {
            acknowledged.push((writer, from, result.await.unwrap()));
        }
    }
    let count: u64 = acknowledged.iter().map(|(_, from, end)| end - from).sum();
    assert!(count >= 60, "{acknowledged:?}");
}

#[tokio::test]
async fn a_directory_in_use_and_a_wrong_identity_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let env = real::env();
    let address = free_address();
    let running = start(&env, directory.path(), address).await;
    let text = |command: &mut Command| {
        let output = command.stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let second = text(&mut command(directory.path(), free_address()));
    assert!(second.contains("in use by a running ASD"), "{second}");
    drop(running);
    let other = text(command(directory.path(), free_address()).args(["--set", "asd.place=\"node-1\""]));
    assert!(other.contains("belongs to the ASD with place node-0"), "{other}");
    let checked = Command::new(env!("CARGO_BIN_EXE_asd-server"))
        .args(["fsck", "--rebuild-index", "--data-dir"])
        .arg(directory.path())
        .output()
        .unwrap();
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("0 values") && checked.contains("0 damaged"), "{checked}");
}
